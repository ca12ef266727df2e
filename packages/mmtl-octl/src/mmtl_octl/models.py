"""Network files: what they hold, and what they say of themselves so that no later command has to be told again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dart_core.adapt import SpotTUNet
from dart_core.checkpoint import load_weights, read_model, weights_file
from dart_core.nets import ResidualUNet2d

PACKAGE = "mmtl-octl"
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


def load_model(path: Path, device: torch.device | str = "cpu") -> tuple[ResidualUNet2d | SpotTUNet, Model]:
    """The network of a run folder or weight file, and what its file says of it.

    Raises:
        CheckpointError: no such file, a damaged one, or weights of something else.
    """

    def parse(fields: Any) -> tuple[ResidualUNet2d | SpotTUNet, Model]:
        model = Model(**fields)
        return build(model), model

    file = weights_file(path)
    remedy = "give a run folder of `pretrain` or `adapt`"
    network, model = read_model(file, PACKAGE, parse, "is no segmentation network of mmtl-octl", remedy)
    load_weights(file, network)
    return network.to(device), model
