"""When the detector starts to learn the noise of its labels by heart: ADELE's rule on the AP50 curve (specification 2C)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeWarning, curve_fit

from sissi.boxes import array_of

LEAST = 3
"""Points below which a fit means nothing."""
_START, _SIGMA = (1.0, 1.0, 1.0), (1.0, 0.1)


def saturation(x: Any, a: float, b: float, c: float) -> Any:
    """The fitted curve a (1 - exp(-x^b / c)) (S2)."""
    return a * (1 - np.exp(-(x**b) / c))


def fit_saturation(curve: Sequence[float] | NDArray[Any]) -> tuple[float, float, float] | None:
    """Fit `saturation` to a curve by weighted least squares within bounds (S2); None where that gives nothing finite.

    Args:
        curve: AP50 at the start of each epoch from 0 on, in [0, 1].

    Returns:
        a, b, c of the curve over positions spread evenly from 0 to the number of points.
    """
    y = array_of(curve)
    if len(y) < LEAST or not np.isfinite(y).all():
        return None
    x = np.linspace(0, len(y), len(y))
    sigma = np.geomspace(*_SIGMA, len(y))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", OptimizeWarning)
        try:
            found, _ = curve_fit(
                saturation, x, y, p0=_START, sigma=sigma, absolute_sigma=True, method="trf",
                bounds=([0, 0, 0], [1, 1, np.inf]),
            )  # fmt: skip
        except (RuntimeError, ValueError):
            return None
    a, b, c = (float(value) for value in found)
    return (a, b, c) if np.isfinite([a, b, c]).all() else None


def memorisation_epoch(
    ap50_curve: Sequence[float] | NDArray[Any], n_epochs: int, threshold: float = 0.9
) -> tuple[bool, int]:
    """Whether memorisation has begun, and in which epoch (S2 to S4).

    The slope of the fitted curve falls; the first epoch whose relative change against epoch 1 exceeds the threshold is the
    one. A curve that never slows down gives `n_epochs`, which no epoch reaches.

    Args:
        ap50_curve: AP50 against the weak labels at the start of epochs 0, 1, ..., up to now.
        n_epochs: epochs that are planned.
        threshold: relative change of the slope.

    Returns:
        flag and epoch. The flag is the bare test of now; the training keeps it once it is true. Fewer than three points, or
        points that no curve fits, give False and `n_epochs`.
    """
    fitted = fit_saturation(ap50_curve)
    if fitted is None:
        return False, n_epochs
    a, b, c = fitted
    t = np.arange(1, n_epochs) + 1e-6
    with np.errstate(all="ignore"):
        slope = np.abs(a * b / c * np.exp(-(t**b) / c) * t ** (b - 1))  # g of S3
        change = np.abs(slope - slope[:1]) / slope[:1]
    if not np.isfinite(change).all():  # a flat curve has no slope to compare with
        return False, n_epochs
    change[change > 1] = 0
    update = 1 + int((change <= threshold).sum())
    return len(ap50_curve) - 1 >= update, update
