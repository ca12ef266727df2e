"""The toy of the specification (section 9), end to end: what a correction makes of labels half of which are missing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dart_core.data.boxes import read_boxes, write_boxes
from dart_core.data.phantoms import degrade_boxes, write_cells
from sissi.evaluation import measure, read_scored


@pytest.mark.slow
def test_labels_get_better(command, tmp_path):
    """Half of the boxes are gone and a tenth is false: after a correction more cells have a box than had one at first."""
    lists = write_cells(tmp_path, pictures=32, size=256, cells=12)
    rng, weak = np.random.default_rng(0), []
    for picture in read_boxes(lists["smear"]):
        if picture.split == "train":
            boxes = degrade_boxes(picture.boxes, (256, 256), rng, 0.5, 0.08, 0.1)
            picture = replace(picture, boxes=boxes, labels=("cell",) * len(boxes))
        weak.append(picture)
    path = write_boxes(tmp_path / "weak.csv", weak)
    words = (
        "--detector", "small", "--size", 128, "--batch-size", 2, "--learning-rate", 0.02, "--zoom", 0.8, 1.25, "--edges",
        "clip", "--memory", "--configuration", "sissi-s", "--epochs", 15, "--supervised", 14, "--device", "cpu", "--seed", 0,
    )  # fmt: skip
    out = tmp_path / "run"
    assert command("train", "--source", lists["phase"], "--target", path, *words, "--out", out).status == 0
    truth = [picture for picture in read_boxes(lists["smear"]) if picture.split == "train"]
    first, corrected = (measure(truth, read_scored(file)) for file in (path, *(out / "labels").iterdir()))
    assert 40 < first["recall"] < 65
    assert corrected["recall"] > first["recall"] + 10
    assert corrected["AP50"] > first["AP50"] + 10
