"""COCO's summary of detections: average precision and recall (extra `detection`).

Matching and accumulation are faster-coco-eval's; `benchmarks/speed/coco_summary.py` compares with pycocotools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dart_core.errors import InputError, SettingError

THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))
"""All, small, medium, large, in square pixels; COCO counts a border in both."""
Picture = Mapping[str, Any]


def coco_summary(
    ground_truth: Sequence[Picture], detections: Sequence[Picture], max_detections: Sequence[int] = (1, 10, 100)
) -> dict[str, float]:
    """Average precision and recall as COCO defines them, pictures and boxes as they come.

    IoU thresholds 0.50 to 0.95 in steps of 0.05, 101 recall points, greedy matching by score within each picture. Sizes small,
    medium and large are below 32², 32² to 96² and above, in square pixels of the boxes.

    Args:
        ground_truth: for each picture a mapping with `boxes` (n, 4), absolute x1, y1, x2, y2, and, if there are several classes,
            `labels` (n,) integers.
        detections: likewise, in the same order, with `scores` (n,) as well.
        max_detections: how many of a picture's best count, per class.

    Returns:
        AP, AP50, AP75, APs, APm, APl, ARs, ARm, ARl, all with the last of `max_detections`, and AR1, AR10, ... for each of
        them; from 0 to 1, and -1 where there is no ground truth of that kind.

    Raises:
        InputError: lists of different length, boxes of another shape, values that are not finite.
        SettingError: `max_detections` is empty or holds a number below 1.
    """
    limits = sorted({int(limit) for limit in max_detections})
    if not limits or limits[0] < 1:
        raise SettingError(f"max_detections is {tuple(max_detections)}", remedy="give numbers from 1 on")
    if len(ground_truth) != len(detections):
        raise InputError(f"{len(ground_truth)} pictures with ground truth, {len(detections)} with detections")
    truth = [_read(picture, i, False) for i, picture in enumerate(ground_truth)]
    found = [_read(picture, i, True) for i, picture in enumerate(detections)]
    precision, recall = _evaluate(truth, found, limits)

    def mean(values: NDArray[np.float64]) -> float:
        defined = values[values > -1]
        return float(defined.mean()) if defined.size else -1.0

    summary = {"AP": mean(precision[:, :, :, 0, -1])}
    for name, threshold in (("AP50", 0), ("AP75", 5)):
        summary[name] = mean(precision[threshold, :, :, 0, -1])
    for place, size in enumerate("sml", start=1):
        summary[f"AP{size}"] = mean(precision[:, :, :, place, -1])
    for place, limit in enumerate(limits):
        summary[f"AR{limit}"] = mean(recall[:, :, 0, place])
    for place, size in enumerate("sml", start=1):
        summary[f"AR{size}"] = mean(recall[:, :, place, -1])
    return summary


_Boxes = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]


def _array(values: Any) -> NDArray[np.float64]:
    values = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return np.asarray(values, dtype=np.float64)


def _read(picture: Picture, number: int, scored: bool) -> _Boxes:
    """Boxes as x, y, width, height, their scores, and their labels."""
    kind = "detections" if scored else "ground truth"
    boxes = _array(picture["boxes"])
    boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise InputError(f"boxes of picture {number} of the {kind} have shape {boxes.shape}", remedy="give (n, 4)")
    scores = _array(picture["scores"]).reshape(-1) if scored else np.ones(len(boxes))
    labels = _array(picture["labels"]).reshape(-1) if "labels" in picture else np.ones(len(boxes))
    for name, values in (("scores", scores), ("labels", labels)):
        if len(values) != len(boxes):
            raise InputError(f"picture {number} of the {kind} has {len(boxes)} boxes and {len(values)} {name}")
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all() and np.isfinite(labels).all()):
        raise InputError(
            f"picture {number} of the {kind} has a box, score or label that is not finite", remedy="remove it"
        )
    if (boxes[:, 2:] < boxes[:, :2]).any():
        raise InputError(
            f"picture {number} of the {kind} has a box that ends before it begins", remedy="give x1, y1, x2, y2"
        )
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1), scores, labels.astype(np.int64)


def _evaluate(
    truth: Sequence[_Boxes], found: Sequence[_Boxes], limits: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision (thresholds, recalls, classes, areas, limits) and recall (thresholds, classes, areas, limits)."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise SettingError(
            "scores of detections need the package faster-coco-eval", remedy='install "dart-core[detection]"'
        ) from error
    classes = sorted({int(label) for _, _, labels in truth for label in labels}) or [1]
    images = [{"id": i, "width": 1, "height": 1} for i in range(1, len(truth) + 1)]
    categories = [{"id": label, "name": str(label)} for label in classes]
    known = set(classes)

    def annotations(pictures: Sequence[_Boxes]) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = []
        for image, (boxes, scores, labels) in enumerate(pictures, start=1):
            for box, score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True):
                if label in known:  # a class without ground truth is undefined and does not count
                    listed.append({
                        "id": len(listed) + 1, "image_id": image, "category_id": label, "bbox": box, "score": score,
                        "area": box[2] * box[3], "iscrowd": 0,
                    })  # fmt: skip
        return listed

    def dataset(pictures: Sequence[_Boxes]) -> Any:
        made = COCO(print_function=_silent)
        made.dataset = {"images": images, "categories": categories, "annotations": annotations(pictures)}
        made.createIndex()
        return made

    evaluator = COCOeval_faster(dataset(truth), dataset(found), "bbox", print_function=_silent, extra_calc=False)
    evaluator.params.maxDets = list(limits)
    evaluator.params.iouThrs = THRESHOLDS
    evaluator.params.areaRng = [list(area) for area in AREAS]
    evaluator.evaluate()
    evaluator.accumulate()
    precision, recall = (np.asarray(evaluator.eval[name], dtype=np.float64) for name in ("precision", "recall"))
    return precision, recall


def _silent(*words: object) -> None:
    """faster-coco-eval prints its progress; nobody asked for it."""
