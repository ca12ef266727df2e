"""Encoder and heads (specification 3), and what a weight file says of the network in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dart_core import checkpoint
from dart_core.checkpoint import load_weights, save_weights, weights_file
from dart_core.nets.backbones import create_backbone
from skintone_debias.recipes import PACKAGE

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours (B10)."""
DROPOUT, HIDDEN = 0.5, 128
"""In front of the main head; units of a deep auxiliary head."""
BEST = "best.safetensors"


class MainHead(nn.Sequential):
    """Features (B, features) -> logits (B, 1): dropout, one linear layer.

    Args:
        features: K.
    """

    def __init__(self, features: int) -> None:
        super().__init__(nn.Dropout(DROPOUT), nn.Linear(features, 1))


def auxiliary_head(features: int, classes: int, deep: bool = False) -> nn.Module:
    """Features (B, features) -> logits (B, classes): one linear layer, or two with ReLU between them."""
    if not deep:
        return nn.Linear(features, classes)
    return nn.Sequential(nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes))


class LesionNet(nn.Module):
    """Encoder, main head and auxiliary heads. ImageNet's mean and standard deviation are part of it.

    Args:
        encoder: normalised pictures (B, 3, H, W) -> features (B, K); has the attribute `num_features` = K.
        classes: of each auxiliary head.
        deep_heads: auxiliary heads with a hidden layer.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, encoder: nn.Module, classes: Sequence[int] = (), deep_heads: bool = False) -> None:
        super().__init__()
        features = int(encoder.num_features)  # type: ignore[arg-type]
        self.encoder = encoder
        self.main_head = MainHead(features)
        self.aux_heads = nn.ModuleList(auxiliary_head(features, n, deep_heads) for n in classes)
        # Not "mean": older exporters to ONNX give that name to the pooling as well.
        self.register_buffer("pixel_mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def normalised(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1], or uint8, as the encoder takes them."""
        images = images.float() / 255 if images.dtype == torch.uint8 else images
        return (images - self.pixel_mean) / self.pixel_std

    def forward(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1], or uint8 -> logits (B,) for malignant."""
        logits: Tensor = self.main_head(self.encoder(self.normalised(images)))
        return logits[:, 0]


@dataclass(frozen=True)
class Model:
    """Where a network comes from and how it wants its pictures."""

    encoder: str
    image_size: int
    square: bool
    method: str
    """Name of the method with what departs from its defaults, `settings.Unlearning.name`."""
    label: str
    """Column with 1 = malignant."""
    nuisances: dict[str, list[str]] = field(default_factory=dict)
    """Column -> its values in the order of the head's outputs; one entry may serve two heads."""
    heads: list[str] = field(default_factory=list)
    """Column of each auxiliary head."""
    deep_heads: bool = False
    seed: int = 0
    sites: list[str] = field(default_factory=list)
    """Sites it was trained on."""
    fold: int | None = None
    """Fold that validated."""
    pictures: int = 0
    """Training pictures."""

    @property
    def classes(self) -> list[int]:
        """Outputs of each auxiliary head."""
        return [len(self.nuisances[column]) for column in self.heads]


def build(model: Model, weights: Path | None = None) -> LesionNet:
    """A network of this kind; random weights, but those of the encoder from a file where it is given.

    Raises:
        SettingError: timm has no such encoder.
        CheckpointError: the file does not fit.
    """
    encoder = create_backbone(model.encoder, weights, image_size=model.image_size)
    return LesionNet(encoder, model.classes, model.deep_heads)


def save_model(path: Path, network: nn.Module, model: Model) -> Path:
    """Write the weights of a network with what they are.

    Raises:
        OutputError: the file cannot be written.
    """
    save_weights(path, network, {PACKAGE: json.dumps(asdict(model))})
    return path


def load_model(path: Path, device: torch.device | str = "cpu") -> tuple[LesionNet, Model]:
    """The network of a run folder or weight file, in evaluation mode, and what its file says of it.

    Raises:
        CheckpointError: no such file, a damaged one, or weights of something else.
    """

    def parse(fields: Any) -> tuple[LesionNet, Model]:
        model = read_model(fields)
        return build(model), model

    file = weights_file(path)
    problem, remedy = "is no classifier of skintone-debias", "give a run folder of `skintone-debias train`"
    network, model = checkpoint.read_model(file, PACKAGE, parse, problem, remedy)
    load_weights(file, network)
    return network.to(device).eval(), model


def read_model(content: Mapping[str, object]) -> Model:
    """What `dataclasses.asdict` made of a model.

    Raises:
        TypeError: it is not that.
    """
    return Model(**content)  # type: ignore[arg-type]
