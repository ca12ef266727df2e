"""The command `export`: a network as ONNX, compared with PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dart_core.cli import say
from dart_core.errors import OutputError, SettingError
from united_ssl import settings as of
from united_ssl.models import Pretrained, Target, load_model
from united_ssl.networks import UnitedUNet3d

TOLERANCE = 1e-4
"""Of the largest value."""


class FeaturesAndRestoration(nn.Module):
    """What a pretrained network is good for elsewhere: pooled features, and the restored cube where it has learnt that."""

    def __init__(self, network: UnitedUNet3d, restores: bool) -> None:
        super().__init__()
        self.encoder = network.encoder
        self.decoder = network.decoder if restores else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Features (N, 16 width), and cubes (N, 1, H, W, D)."""
        levels = self.encoder(x)
        features = levels[-1].flatten(2).mean(2)
        return (features,) if self.decoder is None else (features, self.decoder(levels))


def export(command: of.Export) -> None:
    """Write a network as ONNX for cubes of the size of its training, any number at once, and compare it with PyTorch."""
    import onnxruntime

    path = command.out
    if path.suffix != ".onnx":
        raise OutputError("the file name must end in .onnx", where=path, remedy="rename --out")
    if path.exists() and not command.overwrite:
        raise OutputError("is there already", where=path, remedy="--overwrite replaces it")
    if not path.resolve().parent.is_dir():
        raise OutputError("the folder is not there", where=path, remedy=f"make {path.parent} first")
    network, model = load_model(command.model)
    names = _outputs(model)
    if isinstance(model, Pretrained):
        if not isinstance(network, UnitedUNet3d):
            raise SettingError(
                "the siamese network works on blocks and is not exported", remedy="export a network fine-tuned from it"
            )
        network = FeaturesAndRestoration(network, model.restores).eval()
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        program = torch.onnx.export(
            network, (torch.zeros(2, 1, *model.shape),), dynamo=True, input_names=["cube"], output_names=names,
            dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False, external_data=False, optimize=False,
        )  # fmt: skip
        assert program is not None  # only the older exporter answers None
        program.save(temporary)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        worst = _difference(network, session, model.shape)
        if worst > TOLERANCE:
            raise OutputError(f"ONNX and PyTorch differ by {worst:.1e} of the largest value", where=path)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    say(f"{path}: cube -> {', '.join(names)}; largest difference to PyTorch {worst:.1e} of the largest value")


def _outputs(model: Pretrained | Target) -> list[str]:
    if isinstance(model, Pretrained):
        return ["features", "restored"] if model.restores else ["features"]
    return ["logits"]


@torch.no_grad()
def _difference(network: nn.Module, session: object, shape: tuple[int, int, int]) -> float:
    x = torch.rand((3, 1, *shape), generator=torch.Generator().manual_seed(0))
    expected = network(x)
    expected = expected if isinstance(expected, tuple) else (expected,)
    found = session.run(None, {"cube": x.numpy()})  # type: ignore[attr-defined]
    return max(
        float((a - torch.from_numpy(b)).abs().max() / a.abs().max().clamp_min(1e-12))
        for a, b in zip(expected, found, strict=True)
    )
