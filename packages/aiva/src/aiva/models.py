"""Network files: what they hold, and what they say of themselves so that no later command has to be told again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from aiva.training import Judge
from dart_core import metrics
from dart_core.checkpoint import load_weights, read_model, weights_file
from dart_core.data.scans import Scan, largest_component, predict_scan
from dart_core.nets import ResidualUNet2d
from dart_core.settings import ScanSettings

PACKAGE = "aiva"
JOINT = "+"
"""Between the names of several source sites."""
CLASSES = 2
LEFT_OUT = (1, 2)
"""Slices at the bottom and at the top that are not scored on prostates (specification 6.1)."""


@dataclass(frozen=True)
class Model:
    """Where a network comes from and how it wants its scans."""

    width: int
    channels: int
    """Neighbouring slices that it sees."""
    preprocessing: str
    spacing: list[float] | None
    source: list[str]
    """Source sites; for the upper bound the target itself."""
    target: str = ""
    """Site it was adapted to; empty for a source network."""
    method: str = "none"
    clusters: int = 0
    """Of AIVA."""
    chosen: str = ""
    """Which network of the run it is."""
    name: str = ""
    """What tables call it (`Adapt.name`); empty where that is the method."""

    @property
    def shown(self) -> str:
        """What tables call it."""
        return self.name or self.method

    @property
    def source_site(self) -> str:
        """The source sites as one name."""
        return JOINT.join(self.source)


def build(model: Model) -> ResidualUNet2d:
    """A network of this kind with random weights (specification 3)."""
    return ResidualUNet2d(in_channels=model.channels, out_channels=CLASSES, width=model.width)


def load_model(path: Path, device: torch.device | str = "cpu") -> tuple[ResidualUNet2d, Model]:
    """The network of a run folder or weight file, and what its file says of it.

    Raises:
        CheckpointError: no such file, a damaged one, or weights of something else.
    """

    def parse(fields: Any) -> tuple[ResidualUNet2d, Model]:
        model = Model(**fields)
        return build(model), model

    file = weights_file(path)
    remedy = "give a run folder of `pretrain` or `adapt`"
    network, model = read_model(file, PACKAGE, parse, "is no network of aiva", remedy)
    load_weights(file, network)
    return network.to(device), model


# --- Masks and scores ------------------------------------------------------------------------------------------------


def probabilities(network: nn.Module, scan: Scan, channels: int, batch_size: int = 16) -> NDArray[np.float32]:
    """Foreground probabilities (H, W, Z) of a scan; above 0.5 where the foreground's logit is the larger one."""
    softmax = predict_scan(network, scan.volume, channels, batch_size).softmax(0)
    return np.asarray(softmax[1].numpy())


def mask_of(foreground: NDArray[np.float32], prostate: bool, largest: bool) -> NDArray[np.bool_]:
    """The mask of foreground probabilities: argmax of the two channels, and for prostates the largest component (6.1)."""
    mask = foreground > 0.5
    if prostate:
        mask[..., : LEFT_OUT[0]] = False  # neither trained on nor scored
        mask[..., mask.shape[-1] - LEFT_OUT[1] :] = False
    return largest_component(mask) if largest else mask


def source_judge(scans: list[Scan], settings: ScanSettings) -> Judge:
    """The score that chooses a network: mean surface Dice at 1 mm, or on prostates Dice, over labelled source scans.

    Scans whose score is undefined (both masks empty) are left out.
    """
    prostate = settings.preprocessing == "prostate"

    def judge(network: nn.Module) -> float:
        scores = []
        for scan in scans:
            mask = mask_of(probabilities(network, scan, settings.channels), prostate, prostate)
            if prostate:
                inside = slice(LEFT_OUT[0], mask.shape[-1] - LEFT_OUT[1])
                scores.append(metrics.dice(mask[..., inside], scan.truth[..., inside]))
            else:
                scores.append(metrics.surface_dice(mask, scan.truth, scan.spacing, 1.0))
        finite = [score for score in scores if np.isfinite(score)]
        return float(np.mean(finite)) if finite else float("nan")

    return judge
