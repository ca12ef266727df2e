"""Network files: what they hold, and what they say of themselves so that no later command has to be told again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from dart_core.adapt import SpotTUNet
from dart_core.checkpoint import load_weights, read_metadata, save_weights
from dart_core.errors import CheckpointError
from dart_core.nets import ResidualUNet2d

WEIGHTS = "model.safetensors"
HISTORY = "history.safetensors"
JOINT = "+"
"""Between the names of several source sites."""


@dataclass(frozen=True)
class Model:
    """Where a segmentation network comes from and how it wants its scans."""

    network: str
    """ResidualUNet2d or SpotTUNet."""
    width: int
    channels: int
    """Neighbouring slices that it sees."""
    preprocessing: str
    spacing: list[float] | None
    optimizer: str
    seed: int
    source: list[str]
    """Source sites; none for a network trained on the target alone."""
    target: str = ""
    """Site it was fine-tuned on; empty for a source network."""
    method: str = "source"
    patients: int = 0
    """Target patients."""
    interval: int = 1
    """Every how many-th of their slices."""
    slices: int = 0
    """Target slices."""

    @property
    def source_site(self) -> str:
        """The source sites as one name."""
        return JOINT.join(self.source)


def build(model: Model) -> ResidualUNet2d | SpotTUNet:
    """A network of this kind with random weights."""
    network = ResidualUNet2d(in_channels=model.channels, width=model.width)
    return SpotTUNet(network, switch_top_skip=False) if model.network == "SpotTUNet" else network


def save_model(folder: Path, network: nn.Module, model: Model) -> Path:
    """Write model.safetensors into a run folder.

    Raises:
        OutputError: the file cannot be written.
    """
    save_weights(folder / WEIGHTS, network, {"mmtl-octl": json.dumps(asdict(model))})
    return folder / WEIGHTS


def load_model(path: Path, device: torch.device | str = "cpu") -> tuple[ResidualUNet2d | SpotTUNet, Model]:
    """The network of a run folder or weight file, and what its file says of it.

    Raises:
        CheckpointError: no such file, a damaged one, or weights of something else.
    """
    file = weights_file(path)
    text = read_metadata(file).get("mmtl-octl")
    try:
        model = Model(**json.loads(text or ""))
        network = build(model)
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            "is no segmentation network of mmtl-octl", where=file, remedy="give a run folder of `pretrain` or `adapt`"
        ) from error
    load_weights(file, network)
    return network.to(device), model


def weights_file(path: Path) -> Path:
    """The weight file that a run folder or path means.

    Raises:
        CheckpointError: a folder without one.
    """
    if path.is_dir() and not (path / WEIGHTS).is_file():
        raise CheckpointError(f"holds no {WEIGHTS}", where=path, remedy="finish the training run (--resume)")
    return path / WEIGHTS if path.is_dir() else path
