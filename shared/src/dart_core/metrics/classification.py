"""Area under the ROC curve of multi-label classification, and its standard error."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dart_core.metrics._masks import to_numpy


def roc_auc(labels: Any, scores: Any) -> npt.NDArray[np.float64]:
    """Area under the ROC curve of each label: the chance that a positive scores higher than a negative, ties half.

    Args:
        labels: (n, k) array or tensor of 0 and 1; nan = unknown, this sample is left out for this label.
        scores: (n, k), higher = more likely; infinities are allowed.

    Returns:
        (k,) in [0, 1]; nan for a label that has not both classes, which has no such area.

    Raises:
        ValueError: other shapes, labels that are not 0, 1 or nan, or a score that is nan where the label is known.
    """
    from scipy.stats import rankdata

    truth = to_numpy(labels).astype(np.float64)
    values = to_numpy(scores).astype(np.float64)
    if truth.ndim != 2 or values.shape != truth.shape:
        raise ValueError(
            f"labels have shape {truth.shape}, scores {values.shape}; both must be (samples, labels) of one shape"
        )
    known = ~np.isnan(truth)
    other = known & (truth != 0) & (truth != 1)
    if other.any():
        raise ValueError(f"labels hold {truth[other][0]:g}; they must be 0, 1 or nan")
    if np.isnan(values[known]).any():
        raise ValueError("scores hold nan where the label is known; leave these samples out first")
    if not len(truth):
        return np.full(truth.shape[1], np.nan)
    # Ranks among the samples whose label is known.
    ranks = rankdata(np.where(known, values, np.nan), axis=0, nan_policy="omit")
    positive = truth == 1
    n_positive = positive.sum(0)
    n_negative = known.sum(0) - n_positive
    # The rank sum of the positives beyond its smallest possible value counts the pairs in order (Mann-Whitney's U).
    above = np.where(positive, ranks, 0.0).sum(0) - n_positive * (n_positive + 1) / 2
    pairs = n_positive * n_negative
    areas = np.full(truth.shape[1], np.nan)
    np.divide(above, pairs, out=areas, where=pairs > 0)
    return areas


def mean_auc(labels: Any, scores: Any) -> float:
    """Mean of `roc_auc` over the labels for which it is defined; nan if there is none.

    Args:
        labels: (n, k), see `roc_auc`.
        scores: (n, k).

    Raises:
        ValueError: see `roc_auc`.
    """
    areas = roc_auc(labels, scores)
    defined = areas[~np.isnan(areas)]
    return float(defined.mean()) if len(defined) else float("nan")


def auc_standard_error(auc: Any, positives: Any, negatives: Any) -> Any:
    """Standard error of an area under the ROC curve by Hanley and McNeil (Radiology 143, 1982), from its size alone.

    Args:
        auc: one area in [0, 1], or an array of them.
        positives: number of positive samples, of the shape of `auc` or one number.
        negatives: number of negative samples.

    Returns:
        A float for one area, else an array; nan where the area is nan or a class has no sample.

    Raises:
        ValueError: an area outside [0, 1] or a negative count.
    """
    areas = to_numpy(auc).astype(np.float64)
    n_positive, n_negative = to_numpy(positives).astype(np.float64), to_numpy(negatives).astype(np.float64)
    if np.any((areas < 0) | (areas > 1)):
        raise ValueError("auc holds values outside [0, 1]; these are no areas under a ROC curve")
    if np.any(n_positive < 0) or np.any(n_negative < 0):
        raise ValueError("a number of samples is negative")
    # Chance that two positives both score above one negative, and that one positive scores above two negatives.
    both_above, above_both = areas / (2 - areas), 2 * areas**2 / (1 + areas)
    variance = areas * (1 - areas)
    variance = variance + (n_positive - 1) * (both_above - areas**2) + (n_negative - 1) * (above_both - areas**2)
    pairs = n_positive * n_negative
    # Of a perfect area the differences are 0, but for rounding.
    variance = np.maximum(variance, 0.0)
    errors = np.sqrt(variance / np.where(pairs > 0, pairs, np.nan))
    return float(errors) if errors.ndim == 0 else errors
