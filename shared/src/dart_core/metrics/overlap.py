"""Overlap of two masks: Dice coefficient and intersection over union."""

from __future__ import annotations

import numpy as np

from dart_core.metrics._masks import Mask, mask_pair


def dice(pred: Mask, truth: Mask) -> float:
    """Dice coefficient 2 |A and B| / (|A| + |B|).

    Args:
        pred: predicted mask of any shape, 0 and 1 in any type (array or tensor).
        truth: true mask of the same shape.

    Returns:
        A number in [0, 1]; 1 if both masks are empty, 0 if exactly one is.

    Raises:
        ValueError: the shapes differ, or a mask holds something else than 0 and 1.
    """
    pred_mask, truth_mask = mask_pair(pred, truth)
    total = np.count_nonzero(pred_mask) + np.count_nonzero(truth_mask)
    return float(2 * np.count_nonzero(pred_mask & truth_mask) / total) if total else 1.0


def iou(pred: Mask, truth: Mask) -> float:
    """Intersection over union |A and B| / |A or B| (Jaccard index).

    Args:
        pred: predicted mask of any shape, 0 and 1 in any type (array or tensor).
        truth: true mask of the same shape.

    Returns:
        A number in [0, 1]; 1 if both masks are empty, 0 if exactly one is.

    Raises:
        ValueError: the shapes differ, or a mask holds something else than 0 and 1.
    """
    pred_mask, truth_mask = mask_pair(pred, truth)
    union = np.count_nonzero(pred_mask | truth_mask)
    return float(np.count_nonzero(pred_mask & truth_mask) / union) if union else 1.0
