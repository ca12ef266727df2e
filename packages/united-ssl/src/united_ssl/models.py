"""Network files: what they hold, and what they say of themselves so that no later command has to be told again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dart_core.checkpoint import load_state, load_weights, read_metadata, save_weights
from dart_core.errors import CheckpointError
from united_ssl.networks import TargetClassifier, TargetSegmenter
from united_ssl.settings import RESTORING, Network, Pretext
from united_ssl.tasks import AnyUNet, Task

WEIGHTS = "model.safetensors"
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


def save_model(folder: Path, network: nn.Module, model: Pretrained | Target) -> Path:
    """Write model.safetensors into a run folder.

    Raises:
        OutputError: the file cannot be written.
    """
    save_weights(folder / WEIGHTS, network, {PACKAGE: json.dumps(asdict(model))})
    return folder / WEIGHTS


def read_model(path: Path) -> Pretrained | Target:
    """What a network file says of itself.

    Raises:
        CheckpointError: no such file, or one of something else.
    """
    file = weights_file(path)
    text = read_metadata(file).get(PACKAGE)
    try:
        content = json.loads(text or "")
        content["shape"] = tuple(content["shape"])
        model: Pretrained | Target = Target(**content) if content["kind"] == "target" else Pretrained(**content)
        if isinstance(model, Pretrained):
            Pretext(**model.pretext)
            Network(**model.network)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"is no network of {PACKAGE}", where=file, remedy="give a run of `pretrain` or `fine-tune`"
        ) from error
    return model


def load_model(path: Path, device: torch.device | str = "cpu") -> tuple[nn.Module, Pretrained | Target]:
    """The network of a run folder or weight file in evaluation mode, and what its file says of it.

    Raises:
        CheckpointError: no such file, a damaged one, or weights of something else.
    """
    model = read_model(path)
    network = build(model)
    state, _ = load_weights(weights_file(path))
    load_state(network, state, weights_file(path))
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


def weights_file(path: Path) -> Path:
    """The weight file that a run folder or path means.

    Raises:
        CheckpointError: a folder without one.
    """
    if path.is_dir() and not (path / WEIGHTS).is_file():
        raise CheckpointError(f"holds no {WEIGHTS}", where=path, remedy="finish the training run (--resume)")
    return path / WEIGHTS if path.is_dir() else path
