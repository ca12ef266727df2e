"""Network files, and what they say of themselves so that no later command has to be told again."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dart_core import checkpoint
from dart_core.checkpoint import load_weights, weights_file
from dart_core.errors import CheckpointError
from metamedseg.networks import MetaUNet
from metamedseg.settings import MetaTrain, Network, Slicing

PACKAGE = "metamedseg"
SHORT = {"average": "AW", "inverse_distance": "IDW", "complement": "complement", "as_coded": "as coded"}


@dataclass(frozen=True)
class Model:
    """What a network is."""

    kind: str
    """initialisation or target."""
    name: str
    """What tables call it, or the initialisation that it came from."""
    network: dict[str, Any]
    sources: tuple[str, ...] = ()
    """Data sets that an initialisation has seen."""
    target: str = ""
    shots: int = 0
    """Training slices of this selection; 0 = all."""
    selection: int = 0
    """Seed of their selection."""
    slicing: dict[str, Any] = field(default_factory=dict)
    """How its slices were made from volumes; empty = unknown."""
    channel: int = 0
    """Channel of those volumes."""


def method_name(command: MetaTrain) -> str:
    """What tables call an initialisation."""
    if command.name:
        return command.name
    if command.method == "transfer":
        return "transfer"
    volumetric = " vol" if command.definition.tasks == "volumetric" else ""
    if command.method == "dawoud":
        return f"Dawoud{volumetric}"
    place = {"meta": "", "mean": " to mean", "leave_one_out": " to others"}[command.meta.distance_to]
    return SHORT[command.meta.rule] + place + volumetric


def build(model: Model) -> MetaUNet:
    """The network with random weights."""
    settings = Network(**model.network)
    return MetaUNet(settings.depth, settings.norm, settings.width)


def read_model(path: Path) -> Model:
    """What a network file says of itself.

    Raises:
        CheckpointError: no such file, or one of something else.
    """

    def parse(fields: Any) -> Model:
        model = Model(**{**fields, "sources": tuple(fields["sources"])})
        Network(**model.network)
        Slicing(**model.slicing)
        return model

    problem, remedy = f"is no network of {PACKAGE}", "give a run of `meta-train` or `fine-tune`"
    return checkpoint.read_model(weights_file(path), PACKAGE, parse, problem, remedy)


def load_model(path: Path, kind: str, device: torch.device | str = "cpu") -> tuple[MetaUNet, Model]:
    """The network of a run folder or weight file in evaluation mode, and what it is.

    Args:
        path: a folder with model.safetensors, or the file.
        kind: "initialisation" or "target".
        device: where to.

    Raises:
        CheckpointError: no such file, a damaged one, weights of something else, or a network of the other kind.
    """
    model = read_model(path)
    if model.kind != kind:
        command = "meta-train" if kind == "initialisation" else "fine-tune"
        raise CheckpointError(f"is no {kind} network", where=path, remedy=f"give a run of `{PACKAGE} {command}`")
    network = build(model)
    load_weights(weights_file(path), network)
    return network.to(device).eval(), model
