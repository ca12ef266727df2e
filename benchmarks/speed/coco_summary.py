"""dart_core.metrics.coco_summary against pycocotools and faster-coco-eval: 100 pictures, 100 cells each, 150 detections.

The evaluators start from the same arrays, so that making their dictionaries is part of the time; ours is faster-coco-eval behind a
plain function, and what it adds is what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from compare import alternate, record
from faster_coco_eval import COCO as FasterCOCO
from faster_coco_eval import COCOeval_faster
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dart_core.metrics import coco_summary

PICTURES, CELLS, DETECTIONS, LIMITS = 100, 100, 150, (1, 10, 400)


def made_up() -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    """Ground truth and detections."""
    rng = np.random.default_rng(0)
    truth, found = [], []
    for _ in range(PICTURES):
        corner = rng.uniform(0, 470, (CELLS, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(15, 60, (CELLS, 2))], axis=1)
        index = rng.integers(0, CELLS, DETECTIONS)
        truth.append({"boxes": boxes})
        found.append(
            {
                "boxes": boxes[index] + rng.normal(0, 4, (DETECTIONS, 4)),
                "scores": rng.permutation(DETECTIONS) / DETECTIONS + rng.random() / DETECTIONS,
            }
        )
    return truth, found


def annotations(pictures: list[dict[str, np.ndarray]]) -> list[dict[str, Any]]:
    """As COCO's evaluators take them."""
    listed: list[dict[str, Any]] = []
    for image, picture in enumerate(pictures, start=1):
        boxes = picture["boxes"].tolist()
        for (x1, y1, x2, y2), score in zip(boxes, picture.get("scores", np.ones(len(boxes))).tolist(), strict=True):
            width, height = x2 - x1, y2 - y1
            listed.append({
                "id": len(listed) + 1, "image_id": image, "category_id": 1, "bbox": [x1, y1, width, height],
                "area": width * height, "iscrowd": 0, "score": score,
            })  # fmt: skip
    return listed


def evaluated(dataset: type, evaluator: type, truth: Any, found: Any) -> list[float]:
    """AP, AP50, AP75, AR of an evaluator with COCO's interface."""
    sets = []
    with contextlib.redirect_stdout(io.StringIO()):
        for pictures in (truth, found):
            made = dataset()
            made.dataset = {
                "images": [{"id": i} for i in range(1, PICTURES + 1)], "categories": [{"id": 1, "name": "cell"}],
                "annotations": annotations(pictures),
            }  # fmt: skip
            made.createIndex()
            sets.append(made)
        evaluation = evaluator(*sets, "bbox")
        evaluation.params.maxDets = list(LIMITS)
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    return [
        float(np.mean(part))
        for part in (precision[..., 0, -1], precision[0, ..., 0, -1], precision[5, ..., 0, -1], recall[..., 0, -1])
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="all work on the CPU; other devices are skipped")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    arguments = parser.parse_args()
    if arguments.device != "cpu":
        print("evaluators are measured on the CPU")
        return
    truth, found = made_up()

    def ours() -> list[float]:
        summary = coco_summary(truth, found, LIMITS)
        return [summary[name] for name in ("AP", "AP50", "AP75", f"AR{LIMITS[-1]}")]

    functions = {
        "pycocotools": lambda: evaluated(COCO, COCOeval, truth, found),
        "faster-coco-eval": lambda: evaluated(FasterCOCO, COCOeval_faster, truth, found), "ours": ours,
    }  # fmt: skip
    expected = functions["pycocotools"]()
    difference = max(float(np.abs(np.subtract(function(), expected)).max()) for function in functions.values())
    if difference > 1e-9:
        raise SystemExit(f"values differ by {difference:.1e}; not timed")
    seconds = alternate(functions, arguments.rounds)
    notes = {"pictures": PICTURES, "cells": CELLS, "detections": DETECTIONS, "largest difference": difference}
    record("coco-summary", seconds, notes, arguments.out)


if __name__ == "__main__":
    main()
