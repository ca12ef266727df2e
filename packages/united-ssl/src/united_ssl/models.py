"""Network files: what they hold, and what they say of themselves so that no later command has to be told again."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dart_core import checkpoint
from dart_core.checkpoint import load_weights, weights_file
from dart_core.errors import CheckpointError
from united_ssl.networks import TargetClassifier, TargetSegmenter
from united_ssl.settings import RESTORING, Network, Pretext
from united_ssl.tasks import AnyUNet, Task

CRITIC = "critic.safetensors"
PACKAGE = "united-ssl"


@dataclass(frozen=True)
class Pretrained:
    """What a pretrained network is."""

    step: str
    """The last training: D, DR, DRA, joint or joint-DR."""
    pretext: dict[str, Any]
    network: dict[str, Any]
    shape: tuple[int, int, int]
    seed: int
    words: int = 0
    """Visual words of TransVW."""
    epoch: int = 0
    """Of the weights."""
    numbers: dict[str, float] = field(default_factory=dict)
    """Validation after that epoch."""
    kind: str = "pretrained"

    @property
    def restores(self) -> bool:
        """The decoder has been trained."""
        return self.step in RESTORING

    @property
    def name(self) -> str:
        """What tables call it: pretext and strategy as the paper writes them."""
        strategy = {"D": "D", "DR": "(D)+R", "DRA": "((D)+R)+A", "joint": "D+R+A", "joint-DR": "D+R"}[self.step]
        return f"{self.pretext['pretext']} {strategy}"

    def task(self) -> Task:
        """Its pretext task."""
        return Task(Pretext(**self.pretext), self.words, self.seed)


@dataclass(frozen=True)
class Target:
    """What a fine-tuned network is."""

    task: str
    """classification or segmentation."""
    classes: int
    """Logits: 1 for two classes, or foreground classes."""
    width: int
    up: str
    shape: tuple[int, int, int]
    name: str
    """Of the initialisation."""
    transfer: str
    """none, encoder or encoder-decoder."""
    fraction: float
    seed: int
    epoch: int = 0
    validation_loss: float | None = None
    kind: str = "target"


def build(model: Pretrained | Target) -> nn.Module:
    """The network with random weights."""
    if isinstance(model, Pretrained):
        return model.task().network(Network(**model.network), model.shape)
    if model.task == "classification":
        return TargetClassifier(model.classes, model.width)
    return TargetSegmenter(model.classes, model.width, "transposed" if model.up == "transposed" else "nearest")


def read_model(path: Path) -> Pretrained | Target:
    """What a network file says of itself.

    Raises:
        CheckpointError: no such file, or one of something else.
    """

    def parse(fields: Any) -> Pretrained | Target:
        fields["shape"] = tuple(fields["shape"])
        if fields["kind"] == "target":
            return Target(**fields)
        model = Pretrained(**fields)
        Pretext(**model.pretext)
        Network(**model.network)
        return model

    problem, remedy = f"is no network of {PACKAGE}", "give a run of `pretrain` or `fine-tune`"
    return checkpoint.read_model(weights_file(path), PACKAGE, parse, problem, remedy)


def load_model(path: Path, device: torch.device | str = "cpu") -> tuple[nn.Module, Pretrained | Target]:
    """The network of a run folder or weight file in evaluation mode, and what its file says of it.

    Raises:
        CheckpointError: no such file, a damaged one, or weights of something else.
    """
    model = read_model(path)
    network = build(model)
    load_weights(weights_file(path), network)
    return network.to(device).eval(), model


def load_pretrained(path: Path) -> tuple[AnyUNet, Pretrained]:
    """A pretrained network.

    Raises:
        CheckpointError: as `load_model`, or a fine-tuned network.
    """
    network, model = load_model(path)
    if isinstance(model, Target):
        raise CheckpointError("is a fine-tuned network", where=path, remedy="give a run of `united-ssl pretrain`")
    return network, model  # type: ignore[return-value]
