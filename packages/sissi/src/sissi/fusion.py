"""Pseudo labels out of many views: weighted boxes fusion (specification 2D P3, paper Eq. 1) and the selection after it (P4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import nms

from dart_core.errors import InputError, SettingError
from sissi.boxes import array_of, boxes_of, compiled

ConfidenceType = Literal["avg", "max", "box_and_model_avg", "absent_model_aware_avg"]
CONFIDENCE_TYPES: tuple[ConfidenceType, ...] = ("avg", "max", "box_and_model_avg", "absent_model_aware_avg")
FRAME = 512
"""Side of the frame in which the detector works."""
SMALLEST_SIDE, SUPPRESSION, MOST = 0.01, 0.2, 200
"""P4: sides in pixels, IoU above which the lower score goes, boxes kept of a picture."""


def weighted_boxes_fusion(
    boxes: Sequence[Any],
    scores: Sequence[Any],
    labels: Sequence[Any],
    weights: Sequence[float] | None = None,
    iou_threshold: float = 0.55,
    skip_box_threshold: float = 0.0,
    conf_type: ConfidenceType = "avg",
    allows_overflow: bool = False,
) -> tuple[Any, Any, Any]:
    """Fuse the boxes of several views of one picture (Solovyev et al. 2021), as package ensemble-boxes 1.0.9 does.

    Boxes with a score below `skip_box_threshold` go; corners are ordered and clipped to [0, 1]; boxes without area go. Then,
    for each label from the highest score down, a box joins the fused box that it overlaps most, if by more than
    `iou_threshold`, or opens a new one. Coordinates are means weighted with score times weight of the view (Eq. 1).

    Args:
        boxes: one list, array or tensor (n, 4) per view, in [0, 1].
        scores: (n,) each.
        labels: (n,) each, integers.
        weights: one per view; None: 1 each.
        iou_threshold: a box joins above it (strictly).
        skip_box_threshold: lowest score that counts.
        conf_type: of the fused score: avg (mean, times the share of views that contributed), max, box_and_model_avg,
            absent_model_aware_avg.
        allows_overflow: avg: count boxes instead of views, so that a view that contributes twice can lift the score above 1.

    Returns:
        boxes (n, 4), scores (n,), labels (n,) by falling score; tensors on the device of the first view where that is a
        tensor, else arrays; boxes and scores in the floating-point type of its boxes, where they have one.

    Raises:
        InputError: lists of different lengths, or values that are not finite.
        SettingError: an unknown `conf_type`, or weights that are not positive or not one per view.
    """
    if conf_type not in CONFIDENCE_TYPES:
        raise SettingError(f"conf_type is {conf_type!r}", remedy=f"give one of {', '.join(CONFIDENCE_TYPES)}")
    views = len(boxes)
    if not views == len(scores) == len(labels):
        raise InputError(f"{views} views with boxes, {len(scores)} with scores, {len(labels)} with labels")
    share = np.ones(views) if weights is None else array_of(weights)
    if share.shape != (views,) or not (share > 0).all():
        raise SettingError(f"weights are {share.tolist()}", remedy=f"give {views} positive numbers")
    corners, values, classes = [], [], []
    for i in range(views):
        corners.append(boxes_of(boxes[i]))
        values.append(array_of(scores[i]).reshape(-1))
        classes.append(array_of(labels[i]).reshape(-1))
        if not len(corners[i]) == len(values[i]) == len(classes[i]):
            raise InputError(f"view {i} has {len(corners[i])} boxes, {len(values[i])} scores, {len(classes[i])} labels")
        if not np.isfinite(values[i]).all():
            raise InputError(
                f"view {i} has a score that is not finite", remedy="remove the box, or train with a lower rate"
            )
    lengths = [len(part) for part in values]
    view = np.repeat(np.arange(views), lengths)
    first = boxes[0] if views else None
    fused = fuse(
        np.concatenate([np.zeros((0, 4)), *corners]), np.concatenate([np.zeros(0), *values]),
        np.concatenate([np.zeros(0), *classes]).astype(np.int64), view, share, iou_threshold, skip_box_threshold,
        conf_type, allows_overflow,
    )  # fmt: skip
    label = torch.from_numpy(fused[2]).to(first.device) if isinstance(first, Tensor) else fused[2]
    return _like(first, fused[0]), _like(first, fused[1]), label


def _like(given: Any, found: NDArray[np.float64]) -> Any:
    """A result as what was given: tensor on its device or array, in its floating-point type."""
    if isinstance(given, Tensor):
        kind = given.dtype if given.dtype.is_floating_point else torch.float32
        return torch.from_numpy(found).to(given.device, kind)
    return found.astype(given.dtype) if isinstance(given, np.ndarray) and given.dtype.kind == "f" else found


def fuse(
    boxes: NDArray[np.float64],
    scores: NDArray[np.float64],
    labels: NDArray[np.int64],
    view: NDArray[np.int64],
    weights: NDArray[np.float64],
    iou_threshold: float,
    skip_box_threshold: float,
    conf_type: ConfidenceType = "avg",
    allows_overflow: bool = False,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """`weighted_boxes_fusion` of all views in one list: boxes (n, 4), and of each its score, label and view."""
    x, y = np.sort(boxes[:, 0::2].clip(0, 1), axis=1), np.sort(boxes[:, 1::2].clip(0, 1), axis=1)
    boxes = np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)
    keep = (scores >= skip_box_threshold) & ((x[:, 1] - x[:, 0]) * (y[:, 1] - y[:, 0]) > 0)
    confidence = scores * weights[view]
    # By label, and within it from the highest confidence down; views in their order where confidences are equal.
    order = np.lexsort((-confidence, labels))
    order = order[keep[order]]
    result = _cluster(boxes[order], confidence[order], labels[order], view[order], weights, iou_threshold)
    fused, total, largest, count, weight, there, label = result
    mean = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    if conf_type == "max":
        score = largest / weights.max() if len(weights) else largest
    elif conf_type == "box_and_model_avg":
        score = total / weight * (there @ weights) / weights.sum()
    elif conf_type == "absent_model_aware_avg":
        score = total / (weight + (~there) @ weights)
    else:
        views = count if allows_overflow else np.minimum(count, len(weights))
        score = mean * views / max(weights.sum(), 1e-300)
    order = np.argsort(-score, kind="stable")
    return fused[order], score[order], label[order]


@compiled
def _cluster(boxes: Any, confidence: Any, labels: Any, view: Any, weights: Any, threshold: float) -> Any:
    n = len(boxes)
    fused, sums = np.zeros((n, 4)), np.zeros((n, 4))
    total, largest, weight, area = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n)
    count, label = np.zeros(n, np.int64), np.zeros(n, np.int64)
    there = np.zeros((n, len(weights)), np.bool_)
    clusters, start = 0, 0
    for i in range(n):
        if i > 0 and labels[i] != labels[i - 1]:
            start = clusters  # the list is sorted by label: earlier clusters are of others
        x1, y1, x2, y2 = boxes[i]
        own = (x2 - x1) * (y2 - y1)
        best, where = threshold, -1
        for k in range(start, clusters):
            width = min(x2, fused[k, 2]) - max(x1, fused[k, 0])
            if width <= 0:
                continue
            height = min(y2, fused[k, 3]) - max(y1, fused[k, 1])
            if height <= 0:
                continue
            shared = width * height
            iou = shared / (own + area[k] - shared)
            if iou > best:
                best, where = iou, k
        if where < 0:
            where = clusters
            clusters += 1
            label[where] = labels[i]
        for c in range(4):
            sums[where, c] += confidence[i] * boxes[i, c]
        total[where] += confidence[i]
        largest[where] = max(largest[where], confidence[i])
        weight[where] += weights[view[i]]
        count[where] += 1
        there[where, view[i]] = True
        if count[where] == 1:
            fused[where] = boxes[i]
        elif total[where] > 0:  # scores of 0 have no say
            for c in range(4):
                fused[where, c] = sums[where, c] / total[where]  # Eq. 1
        area[where] = (fused[where, 2] - fused[where, 0]) * (fused[where, 3] - fused[where, 1])
    return (
        fused[:clusters], total[:clusters], largest[:clusters], count[:clusters], weight[:clusters], there[:clusters],
        label[:clusters],
    )  # fmt: skip


def correct_labels(boxes: Any, scores: Any, size: tuple[int, int], threshold: float = 0.25, frame: int = FRAME) -> Any:
    """From fused boxes to the new labels of a picture (specification 2D P4).

    Args:
        boxes: (n, 4) in the frame of the detector.
        scores: (n,).
        size: (H, W) of the picture.
        threshold: lowest score of a label.
        frame: side of the square that the picture was resized to.

    Returns:
        (m, 4) in pixels of the picture, from the highest score down, as many as there are up to 200; tensor for a tensor,
        else array, of the same floating-point type. None of these: the caller keeps the old labels.

    Raises:
        InputError: shapes that do not fit, or a score that is not finite.
    """
    corners, values = boxes_of(boxes), array_of(scores).reshape(-1)
    if len(values) != len(corners):
        raise InputError(f"{len(values)} scores for {len(corners)} boxes", remedy="give one score per box")
    if not np.isfinite(values).all():
        raise InputError("a score is not finite", remedy="train with a lower learning rate")
    large = ((corners[:, 2:] - corners[:, :2]) >= SMALLEST_SIDE).all(axis=1)
    keep = np.flatnonzero((values >= threshold) & large)
    keep = keep[np.argsort(-values[keep], kind="stable")]
    taken = nms(torch.from_numpy(corners[keep]), torch.from_numpy(values[keep]), SUPPRESSION).numpy()[:MOST]
    height, width = size
    scale = np.array([width - 1, height - 1, width - 1, height - 1]) / frame
    return _like(boxes, corners[keep[taken]] * scale)
