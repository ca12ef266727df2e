"""Networks by name, their files, and what these say of themselves so that no later command has to be told again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from catenorm import settings as of
from catenorm.baselines import MSNet, SiteNetwork, WNet
from catenorm.networks import LEVELS, CateNormUNet
from dart_core.checkpoint import WEIGHTS, load_weights, read_model, save_weights, weights_file
from dart_core.errors import SettingError

PACKAGE = "catenorm"
CHANNELS = 3
"""A slice and its two neighbours."""
REDUCTION = 2 ** max(LEVELS)
"""Pixels of a slice beside one of the U-Net's lowest level."""


@dataclass(frozen=True)
class Model:
    """What a network is, what it segments, and which cases it has seen."""

    network: of.Network
    name: str
    """In tables."""
    organs: tuple[str, ...]
    """The classes 1, 2, ..."""
    sites: tuple[str, ...]
    """Of the training, in the order of batches."""
    cases: of.Cases
    """How its cases were read, and from where."""
    fold: int | None = None
    steps: int = 0
    warmup_steps: int = 0
    seen: tuple[str, ...] = ()
    """`rows.marks` of the cases that it was trained on, here or before a warm start."""

    @property
    def classes(self) -> int:
        """With the background."""
        return 1 + len(self.organs)

    def as_text(self) -> str:
        """As JSON."""
        return json.dumps(dataclasses.asdict(self), default=str, sort_keys=True)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Model:
        """What JSON made of one.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: of something else.
        """
        network, cases = (_tuples(values.pop(name)) for name in ("network", "cases"))
        cases["datalist"] = tuple(Path(path) for path in cases["datalist"])
        cases["cache"] = None
        return cls(network=of.Network(**network), cases=of.Cases(**cases), **_tuples(values))


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


# --- Networks ---------------------------------------------------------------------------------------------------------


def plain_network(settings: of.Network, classes: int) -> nn.Module:
    """The network of one pass with the same convolutions: what a warm-up trains (2.6)."""
    if settings.architecture == "deeplabv3plus":
        from catenorm.deeplab import CateNormDeepLabV3Plus

        return CateNormDeepLabV3Plus(CHANNELS, classes, ())
    norm: Any = settings.method if settings.method in ("in", "gn") else "bn"
    return CateNormUNet(CHANNELS, classes, (), norm, width=settings.width)


def plain_settings(settings: of.Network) -> of.Network:
    """The same network with batch norm and one pass."""
    return dataclasses.replace(settings, method="bn", blocks=(), mask_source="prediction", separate_statistics=False)


def build(settings: of.Network, classes: int, sites: Sequence[str]) -> nn.Module:
    """A network with random weights.

    Args:
        settings: of what kind.
        classes: K, with the background.
        sites: names, for those with parameters per site.
    """
    options: dict[str, Any] = {
        "mask_mode": settings.mask_mode,
        "form": settings.form,
        "reduction": settings.reduction,
    }
    if settings.method == "ms-net":
        return MSNet(CHANNELS, classes, sites, settings.width)
    if settings.method == "w-net":
        return WNet(CHANNELS, classes, settings.categorical, width=settings.width, **options)
    if settings.method == "dsbn":
        return SiteNetwork(plain_network(settings, classes), sites)
    if settings.method != "catenorm":
        return plain_network(settings, classes)
    if settings.architecture == "deeplabv3plus":
        from catenorm.deeplab import CateNormDeepLabV3Plus

        return CateNormDeepLabV3Plus(CHANNELS, classes, settings.categorical, **options)
    return CateNormUNet(
        CHANNELS, classes, settings.categorical, width=settings.width, separate_statistics=settings.separate_statistics,
        **options,
    )  # fmt: skip


def check_sides(settings: of.Network, sides: Sequence[int], images: int = 2, where: Path | None = None) -> None:
    """Look whether a network can take slices of a size: every normalisation needs more than one value.

    Args:
        settings: of what kind.
        sides: H, W of the slices.
        images: that a batch norm sees at once in training; 2 or more where it goes by its running statistics.
        where: file of the slices.

    Raises:
        SettingError: too small, or too few at once.
    """
    rows, columns = sides
    if settings.architecture == "deeplabv3plus":
        if images < 2:  # its image pooling leaves one pixel of each image, whatever the size
            raise SettingError("DeepLabV3+ cannot learn from one slice at a time", remedy="raise --batch-size")
        return
    pixels = (rows // REDUCTION) * (columns // REDUCTION)
    if not pixels:
        problem = f"slices of {columns} x {rows} pixels are too small for the U-Net"
        raise SettingError(problem, where=where, remedy=f"resize them to {REDUCTION} pixels or more")
    own = settings.method in ("in", "gn")  # every image is normalised for itself
    # A group of the lowest level has as many channels as the whole first level.
    values = pixels * (settings.width if settings.method == "gn" else 1) * (1 if own else images)
    if values < 2:
        raise SettingError(
            f"slices of {columns} x {rows} pixels leave a single value to normalise by at the U-Net's lowest level",
            where=where,
            remedy=f"resize them to {2 * REDUCTION} pixels or more{'' if own else ', or raise --batch-size'}",
        )


def initialise(network: nn.Module, settings: of.Network, classes: int, weights: Mapping[str, Tensor]) -> int:
    """Take over the weights of a network of one pass; CN layers keep their own random ones.

    DSBN's sites all start as the one batch norm; W-Net's networks both start as the one.

    Args:
        network: of `build`, changed.
        settings: of what kind.
        classes: K.
        weights: of `plain_network`, or of a network like `network` itself.

    Returns:
        How many kernels of convolutions were taken over.
    """
    if isinstance(network, SiteNetwork) and not any(name.startswith("network.") for name in weights):
        source = plain_network(settings, classes)
        count = take_over(source, weights)
        network.load_state_dict(SiteNetwork(source, network.sites).state_dict())
        return count
    if isinstance(network, WNet) and not any(name.startswith("first.") for name in weights):
        return take_over(network.first, weights) + take_over(network.second, weights)
    return take_over(network, weights)


def take_over(network: nn.Module, weights: Mapping[str, Tensor]) -> int:
    """Copy every tensor of equal name and shape; says how many kernels of convolutions were among them."""
    own = network.state_dict()
    same = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    network.load_state_dict({**own, **same})
    return sum(value.ndim == 4 for value in same.values())


# --- Files ------------------------------------------------------------------------------------------------------------


def save_model(folder: Path, network: nn.Module, model: Model) -> Path:
    """Write model.safetensors into a folder.

    Raises:
        OutputError: the file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / WEIGHTS, network, {PACKAGE: model.as_text()})
    return folder / WEIGHTS


def load_model(path: Path, device: torch.device | str = "cpu") -> tuple[nn.Module, Model]:
    """The network of a run folder or weight file, and what its file says of it.

    Raises:
        CheckpointError: no such file, a damaged one, or weights of something else.
    """

    def parse(values: Any) -> tuple[nn.Module, Model]:
        model = Model.of(values)
        return build(model.network, model.classes, model.sites), model

    file = weights_file(path)
    remedy = "give a run folder of `catenorm train`"
    network, model = read_model(file, PACKAGE, parse, f"is no network of {PACKAGE}", remedy)
    load_weights(file, network)
    return network.to(device).eval(), model
