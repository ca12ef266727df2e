"""Network files: what they hold, and what they say of themselves so that no later command has to be told again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dart_core.checkpoint import load_weights, read_metadata, read_model, save_model, weights_file
from dart_core.errors import CheckpointError
from popar.networks import POPAR, Classifier, parse_options
from popar.settings import FineTuning, Head, Normalisation, Subtask

PACKAGE = "popar"
_PRETRAINED, _TUNED = "popar-pretrained", "popar-classifier"


@dataclass(frozen=True)
class Pretrained:
    """What a pretrained network is."""

    backbone: str
    image_size: int
    network: dict[str, Any]
    """Keywords of the architecture, see `POPAR`."""
    normalisation: Normalisation
    subtasks: tuple[Subtask, ...]
    order_loss_on_appearance: bool
    epochs: int
    seed: int
    pictures: int
    """Number of pictures that it was trained on."""

    @property
    def name(self) -> str:
        """What tables call weights of this kind: POPAR, or the sub-tasks of the ablation."""
        if len(self.subtasks) == 3:
            return "POPAR" if self.order_loss_on_appearance else "POPAR, order loss on permuted only"
        return "+".join(f"T_{subtask}" for subtask in self.subtasks)


_VERSIONS = {
    ("swin_b", 448, 448): "POPAR", ("swin_b", 448, 224): "POPAR-1", ("swin_b", 224, 224): "POPAR-2",
    ("vit_b", 224, 224): "POPAR-3",
}  # fmt: skip
"""Backbone, side in pretraining and in fine-tuning -> version of Table 1."""


@dataclass(frozen=True)
class Tuned:
    """What a fine-tuned network is."""

    backbone: str
    image_size: int
    network: dict[str, Any]
    head: Head
    labels: tuple[str, ...]
    multi_label: bool
    """Each label on its own (sigmoid); otherwise classes (softmax)."""
    normalisation: Normalisation
    colour: bool
    target: str
    site: str
    """The data set."""
    init: str
    """What tables call the initial weights: "random", "POPAR", ..."""
    seed: int
    split_seed: int
    test: str = "valid"
    frontal: bool = False
    epoch: int = 0
    """Of the weights: the one with the lowest validation loss."""
    reported: tuple[str, ...] = field(default=())
    """Labels whose mean AUC is reported; empty: all."""
    lists: dict[str, tuple[str, ...]] | None = None
    """Split -> names of pictures, where the authors' lists were given; None: the file is too old to say."""

    @property
    def variant(self) -> str:
        """What is unusual: changes of the architecture, another head, another normalisation. Empty where nothing is."""
        usual = FineTuning()
        found = [f"{key}={_text(value)}" for key, value in sorted(self.network.items())]
        found += [f"{self.head} head"] if self.head != usual.head else []
        found += [f"normalisation {self.normalisation}"] if self.normalisation != usual.normalisation else []
        return ", ".join(found)

    @property
    def name(self) -> str:
        """What tables call it."""
        return network_name(self.init, self.backbone, self.image_size, self.variant)


def network_name(init: str, backbone: str, image_size: int, variant: str = "") -> str:
    """What tables call a fine-tuned network: all that tells it from others, the seed apart."""
    return f"{init}, {backbone} at {image_size}" + (f", {variant}" if variant else "")


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def pretrained_of(fields: Mapping[str, Any]) -> Pretrained:
    """A `Pretrained` from what JSON made of one.

    Raises:
        KeyError, TypeError, ValueError: they are not its fields.
    """
    return Pretrained(**{**fields, "network": parse_options(fields["network"]), "subtasks": tuple(fields["subtasks"])})


def tuned_of(fields: Mapping[str, Any]) -> Tuned:
    """A `Tuned` from what JSON made of one.

    Raises:
        KeyError, TypeError, ValueError: they are not its fields.
    """
    tuples = {name: tuple(fields[name]) for name in ("labels", "reported")}
    lists = fields.get("lists")
    lists = None if lists is None else {split: tuple(names) for split, names in lists.items()}
    return Tuned(**{**fields, **tuples, "lists": lists, "network": parse_options(fields["network"])})


def version_of(origin: Pretrained | Tuned, image_size: int) -> str:
    """What tables call initial weights: POPAR and its downgraded versions, the sub-tasks, or a supervised training."""
    if isinstance(origin, Tuned):
        return f"supervised on {origin.site}"
    if origin.name != "POPAR" or origin.network:  # the versions are of the paper's networks
        return origin.name
    return _VERSIONS.get((origin.backbone, origin.image_size, image_size), origin.name)


def save_pretrained(folder: Path, network: POPAR, about: Pretrained) -> None:
    """Write model.safetensors into a run folder.

    Raises:
        OutputError: the file cannot be written.
    """
    save_model(folder, network, _PRETRAINED, about)


def save_tuned(folder: Path, network: Classifier, about: Tuned) -> None:
    """Write model.safetensors into a run folder.

    Raises:
        OutputError: the file cannot be written.
    """
    save_model(folder, network, _TUNED, about)


def describe(path: Path) -> Pretrained | Tuned | None:
    """What a run folder or weight file says of itself; None: it was not written by this package.

    Raises:
        CheckpointError: no such file, a damaged one, or a run folder without weights.
    """
    file = weights_file(path)
    if file.suffix != ".safetensors":
        return None
    metadata = read_metadata(file)
    readers: dict[str, Callable[[Any], Pretrained | Tuned]] = {_PRETRAINED: pretrained_of, _TUNED: tuned_of}
    for key, parse in readers.items():
        if key in metadata:
            return read_model(file, key, parse, "its description cannot be read", "train again with this version")
    return None


def load_pretrained(path: Path, device: torch.device | str = "cpu") -> tuple[POPAR, Pretrained]:
    """The network of a run of `pretrain` in evaluation mode, and what its file says of it.

    Raises:
        CheckpointError: no such file, a damaged one, or weights of something else.
    """
    about = describe(path)
    if not isinstance(about, Pretrained):
        raise CheckpointError(
            "is no pretrained network of popar", where=path, remedy="give a run folder of `popar pretrain`"
        )
    network = POPAR(about.backbone, about.image_size, **about.network)
    load_weights(weights_file(path), network)
    return network.to(device).eval(), about


def load_tuned(path: Path, device: torch.device | str = "cpu") -> tuple[Classifier, Tuned]:
    """The network of a run of `fine-tune` in evaluation mode, and what its file says of it.

    Raises:
        CheckpointError: no such file, a damaged one, or weights of something else.
    """
    about = describe(path)
    if not isinstance(about, Tuned):
        raise CheckpointError("is no classifier of popar", where=path, remedy="give a run folder of `popar fine-tune`")
    network = Classifier(about.backbone, len(about.labels), about.image_size, about.head, **about.network)
    load_weights(weights_file(path), network)
    return network.to(device).eval(), about
