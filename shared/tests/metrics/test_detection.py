from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dart_core.metrics import coco_summary

BOX, FAR = [10.0, 10.0, 60.0, 60.0], [200.0, 10.0, 260.0, 60.0]


def one(boxes, scores=None):
    return {"boxes": boxes} if scores is None else {"boxes": boxes, "scores": scores}


def test_perfect_detections():
    found = coco_summary([one([BOX, FAR]), one([])], [one([BOX, FAR], [0.9, 0.8]), one([], [])])
    assert {name: found[name] for name in ("AP", "AP50", "AP75", "AR10", "AR100")} == dict.fromkeys(("AP", "AP50", "AP75", "AR10", "AR100"), 1.0)  # fmt: skip
    assert found["AR1"] == 0.5


def test_half_of_two_objects():
    """51 of 101 recall points have precision 1."""
    found = coco_summary([one([BOX, FAR])], [one([BOX], [0.9])])
    assert found["AP"] == pytest.approx(51 / 101)
    assert found["AR100"] == 0.5


def test_one_detection_at_iou_062():
    """Thresholds 0.50, 0.55 and 0.60 are reached, seven are not."""
    found = coco_summary([one([[0, 0, 100, 100]])], [one([[0, 0, 62, 100]], [0.9])])
    assert (found["AP"], found["AP50"], found["AP75"]) == (pytest.approx(0.3), 1.0, 0.0)


def test_a_second_hit_below_the_first_costs_nothing():
    assert coco_summary([one([BOX])], [one([BOX, BOX], [0.9, 0.8])])["AP"] == 1.0


def test_a_false_positive_above_the_hit():
    assert coco_summary([one([BOX])], [one([FAR, BOX], [0.9, 0.8])])["AP"] == pytest.approx(0.5)


def test_nothing_found_and_nothing_to_find():
    assert coco_summary([one([BOX])], [one([], [])])["AP"] == 0.0
    nothing = coco_summary([one([])], [one([BOX], [0.5])])
    assert set(nothing.values()) == {-1.0}
    assert set(coco_summary([], []).values()) == {-1.0}


def test_sizes():
    """Sides 10, 50 and 100: small, medium, large."""
    boxes = [[0, 0, 10, 10], [100, 0, 150, 50], [200, 0, 300, 100]]
    found = coco_summary([one(boxes)], [one(boxes[::2], [0.9, 0.8])])
    assert (found["APs"], found["APm"], found["APl"]) == (1.0, 0.0, 1.0)
    assert (found["ARs"], found["ARm"], found["ARl"]) == (1.0, 0.0, 1.0)


def test_everything_at_the_last_limit():
    """150 objects, all found: with 100 detections a recall of 2/3."""
    boxes = np.stack([np.arange(150) * 10, np.zeros(150), np.arange(150) * 10 + 8, np.full(150, 8)], axis=1)
    scores = np.linspace(0.9, 0.1, 150)
    assert coco_summary([one(boxes)], [one(boxes, scores)], (1, 10, 400))["AP"] == 1.0
    found = coco_summary([one(boxes)], [one(boxes, scores)], (10, 100))
    assert found["AR100"] == pytest.approx(2 / 3)
    assert found["AP"] == pytest.approx(67 / 101)
    assert "AR400" not in found


def test_classes_and_tensors():
    truth = {"boxes": torch.tensor([BOX, FAR]), "labels": torch.tensor([1, 7])}
    found = {"boxes": torch.tensor([BOX, FAR]), "scores": torch.tensor([0.9, 0.8]), "labels": torch.tensor([1, 1])}
    assert coco_summary([truth], [found])["AP"] == 0.5


@pytest.mark.parametrize(
    ("truth", "found", "line"),
    [
        ([one([BOX])], [], "1 pictures with ground truth, 0 with detections"),
        ([one([BOX])], [one([BOX], [])], "has 1 boxes and 0 scores"),
        ([one([BOX])], [one([BOX], [float("nan")])], "not finite"),
        ([one([BOX[:3]])], [one([BOX], [1])], "shape"),
        ([one([[*BOX[2:], *BOX[:2]]])], [one([BOX], [1])], "ends before it begins"),
        ([{"boxes": [BOX], "labels": [float("nan")]}], [one([BOX], [1])], "not finite"),
    ],
)
def test_refused(truth, found, line):
    with pytest.raises(ValueError, match=line):
        coco_summary(truth, found)


def test_no_limit():
    with pytest.raises(ValueError, match="max_detections"):
        coco_summary([one([BOX])], [one([BOX], [1])], ())


def pycoco(truth, found, limits):
    """The same by pycocotools, from its raw tables."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def made(pictures):
        boxes = [(i, box, score) for i, picture in enumerate(pictures, 1) for box, score in zip(picture["boxes"], picture.get("scores", [1] * len(picture["boxes"])), strict=True)]  # fmt: skip
        data = COCO()
        data.dataset = {
            "images": [{"id": i} for i in range(1, len(pictures) + 1)], "categories": [{"id": 1}],
            "annotations": [
                {"id": n, "image_id": i, "category_id": 1, "iscrowd": 0, "score": s, "bbox": [x, y, u - x, v - y], "area": (u - x) * (v - y)}
                for n, (i, (x, y, u, v), s) in enumerate(boxes, 1)
            ],
        }  # fmt: skip
        data.createIndex()
        return data

    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = COCOeval(made(truth), made(found), "bbox")
        evaluator.params.maxDets = list(limits)
        evaluator.evaluate()
        evaluator.accumulate()
    precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]

    def mean(values):
        return float(values[values > -1].mean()) if (values > -1).any() else -1.0

    return {
        "AP": mean(precision[:, :, :, 0, -1]), "AP50": mean(precision[0, :, :, 0, -1]),
        "AP75": mean(precision[5, :, :, 0, -1]), "APs": mean(precision[:, :, :, 1, -1]),
        "APm": mean(precision[:, :, :, 2, -1]), "ARm": mean(recall[:, :, 2, -1]), "AR10": mean(recall[:, :, 0, 1]),
    }  # fmt: skip


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000))
def test_as_pycocotools(seed):
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(rng.integers(1, 4)):
        corner = rng.integers(0, 200, (rng.integers(0, 8), 2)).astype(float)
        boxes = np.concatenate([corner, corner + rng.integers(5, 80, corner.shape)], axis=1)
        moved = boxes[rng.random(len(boxes)) < 0.8] + rng.integers(-6, 7, (1, 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        truth.append(one(boxes.tolist()))
        # Different scores: what comes first among equals is nobody's business.
        found.append(one(moved.tolist(), (rng.permutation(100)[: len(moved)] / 100).tolist()))
    ours, theirs = coco_summary(truth, found, (1, 10, 400)), pycoco(truth, found, (1, 10, 400))
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, abs=1e-12)
