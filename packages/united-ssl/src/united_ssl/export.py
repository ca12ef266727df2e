"""The command `export`: a network as ONNX, compared with PyTorch."""

from __future__ import annotations

from torch import Tensor, nn

from dart_core.cli import say
from dart_core.errors import SettingError
from dart_core.export import check_file, export_onnx
from united_ssl import settings as of
from united_ssl.models import Pretrained, Target, load_model
from united_ssl.networks import UnitedUNet3d


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
    path = command.out
    check_file(path, ".onnx", command.overwrite)
    network, model = load_model(command.model)
    names = _outputs(model)
    if isinstance(model, Pretrained):
        if not isinstance(network, UnitedUNet3d):
            raise SettingError(
                "the siamese network works on blocks and is not exported", remedy="export a network fine-tuned from it"
            )
        network = FeaturesAndRestoration(network, model.restores).eval()
    worst = export_onnx(network, path, [(3, 1, *model.shape)], "cube", names, optimize=False)
    say(f"{path}: cube -> {', '.join(names)}; largest difference to PyTorch {worst:.1e} of the largest value")


def _outputs(model: Pretrained | Target) -> list[str]:
    if isinstance(model, Pretrained):
        return ["features", "restored"] if model.restores else ["features"]
    return ["logits"]
