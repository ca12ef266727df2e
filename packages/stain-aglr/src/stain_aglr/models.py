"""Network files: what they hold, and what they say of themselves so that no later command has to be told again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dart_core.checkpoint import load_weights, read_model, weights_file
from dart_core.errors import CheckpointError
from stain_aglr.method import LAMBDA1, LAMBDA2
from stain_aglr.networks import PatchClassifier, StainGenerator
from stain_aglr.settings import CONSISTENT, ON, REGENERATING, Halving, SplitBy, Upsampling

GENERATOR = "generator.safetensors"
PACKAGE = "stain-aglr"


@dataclass(frozen=True)
class Model:
    """Where a classifier comes from and how it wants its patches."""

    method: str
    site: str
    """The training laboratory."""
    width: int
    image_size: int
    """Height of the patches."""
    resized: bool
    """Patches are resized to `image_size`; otherwise they must have that size."""
    seed: int
    epoch: int = 0
    """Of the weights: the one with the lowest validation loss."""
    validation_loss: float | None = None
    lambda1: float = 0.0
    lambda2: float = 0.0
    split_by: SplitBy = "subject"
    """How validation patches were drawn where the datalist names none."""
    validation: Sequence[str] | None = None
    """The subjects (or patches) that were drawn; None where the datalist named them, and in files that do not say."""
    image_width: int | None = None
    """Width of the patches; None: as their height."""
    halving: Halving = "second"
    relu_logits: bool = False
    upsampling: Upsampling = "nearest"
    options: Mapping[str, str] = field(default_factory=dict)
    """`Train.options`: what else departs from the defaults; empty in files that do not say."""

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the patches."""
        return self.image_size, self.image_size if self.image_width is None else self.image_width

    @property
    def name(self) -> str:
        """What tables call it: the method, with weights of the losses and layers that are not the default ones, and other
        options that are not in brackets.

        Networks of one method that differ in an option must not be taken for each other.
        """
        name = self.method
        for letter, value, usual, methods in (
            ("λ1", self.lambda1, LAMBDA1, REGENERATING),
            ("λ2", self.lambda2, LAMBDA2, CONSISTENT),
        ):
            if self.method in methods and value != usual:
                name += f" {letter}={value:g}"
        for option in ("halving", "relu_logits", "upsampling"):
            if getattr(self, option) != getattr(Model, option):
                name += f" {option}={getattr(self, option)}"
        words = [key.replace("_", " ") + ("" if value == ON else f" {value}") for key, value in self.options.items()]
        return f"{name} ({', '.join(words)})" if words else name


def load_model(path: Path, device: torch.device | str = "cpu") -> tuple[PatchClassifier, Model]:
    """The classifier of a run folder or weight file in evaluation mode, and what its file says of it.

    Raises:
        CheckpointError: no such file, a damaged one, or weights of something else.
    """

    def parse(fields: Any) -> tuple[PatchClassifier, Model]:
        model = Model(**fields)
        return PatchClassifier(model.width, model.halving, model.relu_logits), model

    file = weights_file(path)
    problem, remedy = f"is no patch classifier of {PACKAGE}", "give a run folder of `stain-aglr train`"
    network, model = read_model(file, PACKAGE, parse, problem, remedy)
    load_weights(file, network)
    return network.to(device).eval(), model


def load_generator(path: Path, device: torch.device | str = "cpu") -> StainGenerator:
    """The generator of a run of hed-reg or stain-aglr, in evaluation mode.

    Raises:
        CheckpointError: the run has none.
    """
    folder = path if path.is_dir() else path.parent
    _, model = load_model(path)
    if not (folder / GENERATOR).is_file():
        raise CheckpointError(
            f"a run of {model.method} without generator", where=folder, remedy="give one of hed-reg or stain-aglr"
        )
    generator = StainGenerator(model.width, model.upsampling)
    load_weights(folder / GENERATOR, generator)
    return generator.to(device).eval()
