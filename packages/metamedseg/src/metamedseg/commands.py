"""The command `meta-train`: an initialisation by Reptile, by Dawoud et al., or by pooled supervised training."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dart_core import figures
from dart_core.checkpoint import save_model
from dart_core.cli import say
from dart_core.errors import InputError
from dart_core.report import Report
from dart_core.run import Run
from metamedseg import settings as of
from metamedseg.baselines import (
    TRANSFER_DECAY,
    TRANSFER_FACTOR,
    TRANSFER_LR,
    DawoudTrainer,
    Pooled,
    train_supervised,
)
from metamedseg.datasets import SliceSet, read_slices
from metamedseg.method import Hardware, ReptileTrainer, TaskTrainer, meta_train, task_probabilities
from metamedseg.models import PACKAGE, Model, method_name
from metamedseg.networks import MetaUNet


def meta_train_command(command: of.MetaTrain) -> None:
    """Train; write the initialisation and report.html."""
    sources = source_sets(command)
    with Run(command.run, command) as run:
        network = MetaUNet(command.network.depth, command.network.norm, command.network.width)
        if command.method == "transfer":
            pooled = Pooled([source.split("train") for source in sources], command.transfer.slices_per_set)
            train_supervised(
                run, network, pooled, "iou", command.transfer.epochs, (TRANSFER_LR, TRANSFER_FACTOR, 1), TRANSFER_DECAY
            )
            network.cpu()
        else:
            trainer = make_trainer(command, sources)
            meta_train(run, network, trainer, command.meta, command.processes, command.threads)
        if not run.is_main:
            return
        model = Model(
            "initialisation", method_name(command), dataclasses.asdict(command.network), tuple(s.name for s in sources)
        )
        lines = logged(run.out)
        last = [line["loss"] for line in lines if line.get("loss") is not None][-len(sources) :]
        run.finish(
            {"name": model.name, "sources": model.sources, "steps": run.step, "mean_last_loss": sum(last) / len(last)}
        )
        _report(run, command, sources, model)
        save_model(run.out, network, PACKAGE, model)  # last: a folder that has it is finished
    say(f"initialisation {model.name}: {run.out}   report: {run.out / 'report.html'}")


def make_trainer(command: of.MetaTrain, sources: Sequence[SliceSet]) -> TaskTrainer:
    """What trains the tasks of a method."""
    settings = command.run
    hardware = Hardware(settings.precision, settings.channels_last, settings.compile)
    common: dict[str, Any] = {
        "sources": sources,
        "definition": command.definition,
        "inner": command.inner,
        "network": command.network,
        "seed": settings.seed,
        "validation_slices": command.meta.validation_slices,
        "hardware": hardware,
    }
    if command.method == "dawoud":
        return DawoudTrainer(**common, dawoud=command.dawoud)
    return ReptileTrainer(**common)


def source_sets(command: of.MetaTrain) -> list[SliceSet]:
    """The data sets to learn from, by name.

    Raises:
        InputError: a data set to exclude that is not there, none left, or none with training slices.
    """
    sets = read_slices(command.slices)
    unknown = [name for name in command.exclude if name not in sets]
    if unknown and command.exclude != of.TARGETS:
        raise InputError(
            f"no data set {unknown[0]!r} to exclude", where=command.slices, remedy=f"there are {', '.join(sets)}"
        )
    sources = [one for name, one in sets.items() if name not in command.exclude]
    if not sources:
        raise InputError("every data set is excluded", where=command.slices, remedy="leave some as sources")
    for source in sources:
        if not len(source.split("train")):
            raise InputError(f"{source.name} has no training slice", where=source.folder, remedy="exclude it")
    return sources


def logged(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _report(run: Run, command: of.MetaTrain, sources: Sequence[SliceSet], model: Model) -> None:
    report = Report(
        f"Initialisation: {model.name}", f"{len(sources)} source data sets, {run.step} steps", package=PACKAGE
    )
    if command.method == "reptile":
        report.text(
            f"Each meta-epoch trains {command.definition.per_epoch} tasks from the meta-model for "
            f"{command.inner.epochs} epochs and moves the meta-model by {command.meta.beta:g} of the way to their "
            "weighted mean. The last weights are kept; validation numbers are shown, nothing was chosen by them."
        )
        lines = [line for line in logged(run.out) if "dataset" in line]
        drawn = [line["dataset"] for line in lines]
        probabilities = task_probabilities([source.organ for source in sources])
        report.table(
            ("data set", "organ", "training slices", "volumes", "probability", "tasks drawn"),
            [
                (s.name, s.organ, len(s.split("train")), len(s.split("train").volumes()), float(p), drawn.count(s.name))
                for s, p in zip(sources, probabilities, strict=True)
            ],
            "Sources; every organ is equally likely",
        )
    figures.training_curves(
        report, run.out, {"first_loss": "first epoch of the task", "loss": "last epoch"}, "loss", "Loss of each task"
    )
    figures.training_curves(
        report,
        run.out,
        {"validation_iou": "network of the task"},
        "IoU",
        "IoU of each task's network on validation slices",
    )
    figures.training_curves(
        report,
        run.out,
        {"least_weight": "least", "largest_weight": "largest"},
        "weight of a task",
        "Weights of the tasks in each meta-update (even: 1 / number of tasks)",
    )
    figures.training_curves(
        report, run.out, {"distance": "mean over tasks"}, "squared distance", "Distance that tasks move"
    )
    report.section("Settings")
    report.settings(command)
    report.write(run.out / "report.html")


def device_of(network: torch.nn.Module) -> torch.device:
    """Where a network is."""
    return next(network.parameters()).device
