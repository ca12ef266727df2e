"""Every package's demo on a GPU: training, prediction and scores with all tensors there (`nox -s gpu`)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dart_core.testing import InProcess

PACKAGES = sorted(found.parent.name for found in Path(__file__).parents[2].glob("packages/*/pyproject.toml"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("package", PACKAGES)
def test_demo_on_a_gpu(package: str, tmp_path: Path) -> None:
    torch.cuda.reset_peak_memory_stats()
    assert InProcess(package)("demo", "--out", tmp_path / "demo") == 0
    assert (tmp_path / "demo" / "report.html").is_file()
    assert torch.cuda.max_memory_allocated() > 0  # `--device auto` took the GPU
