"""The runs of sissi's table: a detector trained from a source with good boxes and a target with weak ones, scored against readers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sissi_cells import EXTRA_ON, SIDE, degraded, prepare
from table import Scale, config

from dart_core.data import phantoms
from dart_core.experiment import Job, Word

PACKAGE = "sissi"
SEEDS = (1337,)
"""The paper trains each row once."""
ROWS = {
    "Baseline": "baseline",
    "SISSI (W)": "sissi-w",
    "SISSI (S)": "sissi-s",
    "Plain A": "plain-a",
    "A+SISSI (W)": "a-sissi-w",
    "A+SISSI (S)": "a-sissi-s",
}
WEIGHTS = "weights/fasterrcnn_resnet50_fpn_coco.pth"
READERS = ("Annotator1", "Annotator2", "Annotator3")
SCALES = {
    "paper": "CellLab is not public. DATA holds cellpose/, a folder celllab/ of the same layout with pictures of your own, the readers' "
    f"boxes as celllab_readers/Annotator1.json to Annotator3.json (COCO), and {WEIGHTS} of torchvision.",
    "small": "smear_boxes_256 to bccd, whose training boxes are degraded by a rule (half of them go, the others move, false ones come); "
    "scored on the set's own boxes, which stand for the first annotator. A detector of four convolutions at 128 pixels from random "
    "weights, 14 epochs in batches of 2 + 2, learning rate 0.02, three seeds.",
    "smoke": "phantom cells, two epochs, one view; labels of the lowest score count, so that there are some.",
}  # fmt: skip


def lists(scale: Scale) -> tuple[Path, Path, dict[str, Path]]:
    """Source, target with weak boxes, and the readers' boxes."""
    if scale.name == "paper":
        readers = {name: scale.set(f"celllab_readers/{name}.json") for name in READERS}
        return scale.set("cellpose"), scale.set("celllab"), readers
    if scale.name == "small":
        source, weak, good = prepare(scale.set("bccd").parent, scale.work / "data" / "cells")[EXTRA_ON]
        return source, weak, {READERS[0]: good}
    folder = scale.work / "data" / "phantom-cells"
    source, good, weak = (folder / f"{name}.csv" for name in ("phase", "smear", "weak"))
    if not weak.is_file():
        phantoms.write_cells(folder, ("phase", "smear"), pictures=8, size=64, cells=5)
        degraded(good, weak)
    return source, weak, {READERS[0]: good}


def trained(scale: Scale, row: str, source: Path, weak: Path, seed: int) -> Job:
    """A detector with the settings of a row."""
    words: list[Word] = ["train", "--config", config(PACKAGE, f"train_{row}"), "--source", source, "--target", weak]
    words += ["--seed", seed]
    if scale.name == "paper":
        words += ["--init", scale.set(WEIGHTS)]
    else:
        words += ["--detector", "small", "--batch-norm", "trained", "--batch-size", 2, "--learning-rate", 0.02]
        words += ["--edges", "clip", "--memory"]
        words += scale.pick(
            paper=[],
            small=["--size", SIDE, "--epochs", 14, "--zoom", 0.7, 1.4, "--supervised", 9],
            smoke=["--size", 64, "--epochs", 2, "--views", "one", "--least-score", 0.01, "--skip-score", 0.01],
        )
    return Job(PACKAGE, tuple(words), f"{row} seed {seed}")


def scored(network: Job, reader: str, boxes: Path, pictures: Sequence[Word]) -> Job:
    """A detector's COCO measures on the test pictures of a reader."""
    predicted = Job(PACKAGE, ("predict", "--model", network, "--pictures", *pictures), f"{network.name}, predicted")
    words: tuple[Word, ...] = ("evaluate", "--config", config(PACKAGE, "evaluate_table1"), "--no-table")
    return Job(PACKAGE, (*words, "--predictions", predicted, "--readers", boxes), f"{network.name}, by {reader}")
