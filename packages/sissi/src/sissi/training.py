"""The command `train`: read and check everything, then claim the output folder, then work and write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from dart_core import figures
from dart_core.cli import say
from dart_core.data.boxes import BoxedPicture, read_boxes, write_boxes
from dart_core.errors import SettingError
from dart_core.report import Report
from dart_core.run import Run
from sissi import settings as of
from sissi.detectors import PACKAGE, About, has_zero_eps, make, save_detector
from sissi.figures import Look, label_sheet
from sissi.memorisation import fit_saturation, saturation
from sissi.method import ASKED_FROM, Material, Progress, Trainer
from sissi.pictures import Files, dark_note, open_data, refuse_to_delete, synthetic

LABELS = "labels"
"""Folder of the corrected labels, a file for each epoch that began with a correction."""


def labels_file(out: Path, epoch: int) -> Path:
    """Where the labels of an epoch lie."""
    return out / LABELS / f"epoch-{epoch:04d}.csv"


def train(command: of.Train) -> None:
    """Train a detector; write it, the labels of every cycle, and report.html."""
    _check(command)
    training, validation, target, sizes, noted = open_data(command.data, command.run.seed)
    if command.run.overwrite:
        refuse_to_delete(command.run.out, (*training, *validation, *target))
    given = command.detection
    make(given)  # whether it can be built, before the folder is touched
    files = Files(command.data.memory, given.colours)
    material = Material(training, validation, target, sizes, files, given.size)
    with Run(command.run, command) as run:
        for line in noted.lists if run.is_main else ():
            say(line)
        if noted.left_out and run.is_main:
            listed = ", ".join(f"{count} {reason}" for reason, count in noted.left_out.items())
            say(f"boxes left out: {listed} (--edges {command.data.edges})")
        if noted.cut and run.is_main:
            say(f"boxes cut to the picture: {noted.cut} that reached beyond it (--edges clip)")
        if noted.dark and run.is_main:
            say(dark_note(noted.dark))
        parts = {"source": training, "validation": validation, "target": target}
        empty = [f"{_without(part)} of {len(part)} of the {name}" for name, part in parts.items() if _without(part)]
        if empty and run.is_main:
            say(f"pictures without a box: {', '.join(empty)}; what they show counts as background")
        detector, frozen, taken = make(given)
        if taken and run.is_main:
            say(taken)
        trainer = Trainer(
            run, run.prepare(detector), material, command.correction, command.training, say if run.is_main else _nothing,
            lambda epoch, pictures: _save(run.out, epoch, pictures),
        )  # fmt: skip
        progress = trainer.train()
        if not run.is_main:
            return
        about = About(
            given.detector, given.size, frozen, given.colours, given.score, given.nms, given.detections,
            command.method, command.training.epochs, command.run.seed, has_zero_eps(trainer.detector),
        )  # fmt: skip
        save_detector(run.out, trainer.detector, about)
        if progress.curve and not progress.cycles:
            say(f"the AP50 curve {_never(progress.memorised, command.training.epochs)}: no label was corrected")
        run.finish({
            "method": about.method, "source_pictures": len(training), "validation_pictures": len(validation),
            "target_pictures": len(target), "boxes_left_out": dict(noted.left_out), "steps": run.step,
            "boxes_at_first": sum(len(picture.boxes) for picture in target),
            "boxes_at_last": sum(map(len, progress.labels)), "cycles": progress.cycles,
            "memorised_epoch": progress.memorised if progress.memorised >= 0 else None, "ap50_curve": progress.curve,
            "validation_losses": progress.losses, "best_epoch": progress.best_epoch if progress.best_epoch >= 0 else None,
        })  # fmt: skip
        _report(command, material, progress)
    say(f"detector: {run.out}   report: {run.out / 'report.html'}   next: {PACKAGE} predict --model {run.out} ...")


def _check(command: of.Train) -> None:
    if command.correction.starts != "validation" or command.training.learn_from != "both":
        return
    epochs, supervised = command.training.epochs, command.correction.supervised
    if epochs < 2:
        raise SettingError("--epochs is 1", remedy="a start by validation loss takes at least 2")
    if supervised is not None and supervised >= epochs:
        raise SettingError(
            f"--supervised is {supervised}, so that no epoch is left for a correction",
            remedy=f"give fewer than the {epochs} of --epochs",
        )


def _never(memorised: int, epochs: int) -> str:
    """What an AP50 curve did that led to no correction."""
    if epochs <= ASKED_FROM:
        return f"is asked from epoch {ASKED_FROM} on, which a training of {epochs} does not reach"
    return f"did not slow down within {epochs} epochs" if memorised < 0 else "slowed down in the last epoch only"


def _without(pictures: Sequence[BoxedPicture]) -> int:
    return sum(not len(picture.boxes) for picture in pictures)


def _nothing(line: str) -> None:
    """Only the main process speaks."""


def _save(out: Path, epoch: int, pictures: Sequence[BoxedPicture]) -> None:
    write_boxes(labels_file(out, epoch), pictures)


# --- Report ----------------------------------------------------------------------------------------------------------


def _report(command: of.Train, material: Material, progress: Progress) -> None:
    out = command.run.out
    report = Report(f"Training: {command.method}", f"{command.detection.detector} at {command.detection.size} pixels", package=PACKAGE)  # fmt: skip
    first, last = sum(len(picture.boxes) for picture in material.target), sum(map(len, progress.labels))
    report.text(
        f"{len(material.source)} source pictures with good boxes, {len(material.target)} target pictures with imperfect ones, "
        f"{command.training.epochs} epochs. "
        + (
            f"The labels of the target were corrected {progress.cycles} times: {first} boxes at first, {last} at last."
            if progress.cycles
            else f"The {first} boxes of the target were never corrected."
        )
    )
    if progress.curve:
        curve_section(report, progress.curve, progress.memorised, command.training.epochs)
    steps = -(-len(material.target) // command.training.batch_size)
    sheet = follow_labels(out, material, command, steps)
    if sheet is not None:
        report.section("Labels and what is learned from")
        report.picture(
            sheet,
            "Target pictures with the first labels (orange), corrected ones (blue), and the last synthetic-like pictures",
            "rows of microscope pictures with boxes",
        )
    report.section("Learning")
    figures.training_curves(report, out, {"loss": "training", "validation_loss": "validation (source)"}, "loss", "Loss")
    figures.training_curves(report, out, {"boxes": "boxes"}, "boxes", "Boxes of the target after each correction")
    figures.training_curves(report, out, {"learning_rate": "learning rate"}, "learning rate", "Learning rate")
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")


def curve_section(report: Report, curve: Sequence[float], memorised: int, epochs: int) -> None:
    """The AP50 curve with its fit and the epoch in which memorisation began (the paper's Fig. 7)."""
    report.section("When memorisation begins")
    used = curve[: memorised + 1] if memorised >= 0 else curve
    series: dict[str, tuple[ArrayLike, ArrayLike]] = {
        "AP50 against the first labels": (np.arange(len(curve)), np.asarray(curve))
    }
    fitted = fit_saturation(used)
    if fitted is not None:
        x = np.linspace(0, len(used), 100)
        series["fit"] = (x * (len(used) - 1) / len(used), saturation(x, *fitted))
    marks = {f"memorisation begins (epoch {memorised})": (float(memorised), curve[memorised])} if memorised >= 0 else {}
    report.text(
        "While a detector learns what cells look like, it agrees more and more with the first, imperfect labels; when the curve "
        "flattens, it has begun to learn their mistakes. At the start of each epoch a saturating curve is fitted to the agreement "
        "so far, and memorisation is taken to begin once its slope has fallen by the share that --memorisation gives. Labels are "
        "corrected from the next epoch on; after that the curve may fall, since the detector learns from other labels."
    )
    report.curves(series, "epoch", "AP50", "Agreement of the detector with the first labels of the target", marks)
    if not 0 <= memorised < epochs - 1:
        report.text(f"The curve {_never(memorised, epochs)}, so that no label was corrected.")


def follow_labels(out: Path, material: Material, command: of.Train, steps: int) -> Figure | None:
    """A sheet of pictures: their labels at first, after the first and the last correction, and what is learned from."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    epochs = [line["epoch"] for line in lines if "boxes" in line]
    shown = [i for i, picture in enumerate(material.target) if len(picture.boxes)][: command.training.examples]
    if not shown:
        return None
    chosen = sorted({epochs[0], epochs[len(epochs) // 2], epochs[-1]}) if epochs else []
    files = {epoch: read_boxes(labels_file(out, epoch)) for epoch in chosen}
    rows = []
    for i in shown:
        picture = material.target[i]
        image = Files(False, "rgb")(picture.image)
        row = [Look("first labels", image, {"first": picture.boxes})]
        row += [Look(f"epoch {epoch}", image, {"corrected": files[epoch][i].boxes}) for epoch in chosen]
        if chosen and command.correction.blur != "none":
            boxes = files[chosen[-1]][i].boxes
            row.append(
                Look("synthetic-like", synthetic(image, boxes, command.correction.blur, command.correction.paste), {})
            )
        rows.append(row)
    return label_sheet(rows)
