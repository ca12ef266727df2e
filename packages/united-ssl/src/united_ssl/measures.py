"""Frechet distance of restorations, overlap over a set of cubes, and annotation saving (specification 6)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dart_core.errors import InputError
from dart_core.metrics import to_numpy


def frechet_distance(a: Any, b: Any) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) with sample covariances.

    Args:
        a: features (n, d) of one set, array or tensor.
        b: features (m, d) of the other.

    Raises:
        InputError: fewer than two rows in a set, other shapes, or features that are not finite.
    """
    x, y = (to_numpy(values).astype(np.float64) for values in (a, b))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise InputError(
            f"features have the shapes {x.shape} and {y.shape}", remedy="give (n, d) and (m, d), two rows at least"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError("features are not finite", remedy="check the extractor")
    shift = float(((x.mean(0) - y.mean(0)) ** 2).sum())
    s1, s2 = (np.cov(values, rowvar=False).reshape(values.shape[1], -1) for values in (x, y))
    # tr (S1 S2)^(1/2) from the symmetric matrix of the same eigenvalues: no complex roots.
    values, vectors = np.linalg.eigh(s1)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    mixed = np.sqrt(np.clip(np.linalg.eigvalsh(root @ s2 @ root), 0, None)).sum()
    return max(0.0, shift + float(np.trace(s1) + np.trace(s2) - 2 * mixed))


def annotation_saving(fractions: ArrayLike, baseline: ArrayLike, ours: ArrayLike) -> float:
    """Share of the labels that are saved: 1 - f / f_base.

    f_base is the largest fraction, f the smallest one at which our curve reaches what the baseline has there; curves are
    linear between their points. A curve compared with itself saves nothing.

    Args:
        fractions: of the labels (k,), in any order.
        baseline: measure of the baseline (k,), higher is better.
        ours: measure of ours (k,).

    Returns:
        nan if ours never reaches it.

    Raises:
        InputError: lists of unequal length, none, or fractions that are not positive.
    """
    f, base, own = (np.asarray(to_numpy(values), dtype=np.float64) for values in (fractions, baseline, ours))
    if f.ndim != 1 or f.shape != base.shape or f.shape != own.shape or not len(f) or (f <= 0).any():
        raise InputError(
            f"there are {f.size} fractions, {base.size} and {own.size} values", remedy="give as many, fractions above 0"
        )
    return curve_saving(*(dict(zip(f.tolist(), curve.tolist(), strict=True)) for curve in (base, own)))


def curve_saving(baseline: Mapping[float, float], ours: Mapping[float, float]) -> float:
    """`annotation_saving` of curves that need not be measured at the same fractions.

    Args:
        baseline: fraction of the labels -> measure, higher is better; its largest fraction counts.
        ours: likewise.

    Returns:
        nan if ours never reaches it; negative if it needs more labels than the baseline had.
    """
    if baseline == ours:
        return 0.0
    largest = max(baseline)
    level = baseline[largest]
    f = sorted(ours)
    reached = [i for i, fraction in enumerate(f) if ours[fraction] >= level]
    if not reached:
        return math.nan
    i = reached[0]
    at = f[i]
    if i > 0:
        before = ours[f[i - 1]]
        at = f[i - 1] + (f[i] - f[i - 1]) * (level - before) / (ours[f[i]] - before)
    return 1 - at / largest


def pooled_iou(intersections: ArrayLike, unions: ArrayLike) -> float:
    """Foreground IoU over all cubes together: sum of intersections over sum of unions; 1 if all are empty.

    Args:
        intersections: voxels (n,) in both masks.
        unions: voxels (n,) in either.
    """
    union = float(np.sum(np.asarray(unions, dtype=np.float64)))
    return float(np.sum(np.asarray(intersections, dtype=np.float64)) / union) if union else 1.0


def case_iou(intersections: ArrayLike, unions: ArrayLike) -> NDArray[np.float64]:
    """IoU (n,) of each cube; 1 where both masks are empty."""
    inter, union = np.asarray(intersections, dtype=np.float64), np.asarray(unions, dtype=np.float64)
    return np.where(union > 0, inter / np.where(union > 0, union, 1), 1.0)
