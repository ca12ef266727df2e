from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dart_core import export
from dart_core.errors import OutputError
from dart_core.export import check_file, export_onnx

pytest.importorskip("onnxruntime")


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.layer(x)
        return y, y.mean((2, 3))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return TwoOutputs().eval()


def test_other_sizes_and_all_outputs(network: nn.Module, tmp_path: Path) -> None:
    import onnxruntime

    sides = {2: 4 * torch.export.Dim("rows", min=1), 3: 4 * torch.export.Dim("columns", min=1)}
    file = tmp_path / "net.onnx"
    worst = export_onnx(network, file, [(1, 1, 8, 8), (3, 1, 12, 16)], outputs=["map", "mean"], sides=sides)
    assert 0 <= worst <= 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    x = torch.rand(5, 1, 20, 4)
    found = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(
        ["map", "mean"], {"image": x.numpy()}
    )
    for value, expected in zip(found, network(x), strict=True):
        torch.testing.assert_close(torch.from_numpy(value), expected.detach(), rtol=1e-4, atol=1e-5)


def test_nothing_is_left_where_the_file_is_no_good(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: Any) -> None:
        raise OutputError(f"{len(model.graph.output)} outputs")

    outputs = ["map", "mean"]
    (tmp_path / "net.onnx").write_text("the older one")
    with pytest.raises(OutputError, match="2 outputs"):
        export_onnx(network, tmp_path / "net.onnx", [(1, 1, 8, 8)], outputs=outputs, check=refuse)
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(OutputError, match="ONNX and PyTorch differ by"):
        export_onnx(network, tmp_path / "net.onnx", [(1, 1, 8, 8)], outputs=outputs)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("net.onnx", "the older one")]


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "there.onnx").touch()
    check_file(tmp_path / "there.onnx", ".onnx", overwrite=True)
    for name, problem in (
        ("there.onnx", "is there already"),
        ("a.pt", "must end in .onnx"),
        ("no/a.onnx", "folder is not there"),
    ):
        with pytest.raises(OutputError, match=problem):
            check_file(tmp_path / name, ".onnx", overwrite=False)
