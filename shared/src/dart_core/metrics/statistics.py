"""Tests of significance, with the conventions that the papers use."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dart_core.metrics._masks import to_numpy


def two_sample_t_test(a: npt.ArrayLike, b: npt.ArrayLike, equal_variances: bool = True) -> tuple[float, float]:
    """Two-sided t-test of two independent samples.

    Args:
        a: first sample (n,), n at least 2.
        b: second sample (m,), m at least 2.
        equal_variances: pool the variances (Student); False: Welch's test.

    Returns:
        t (positive where the mean of `a` is higher) and p. Two constant samples: t is nan when they are equal, else
        infinite with p = 0.

    Raises:
        ValueError: a sample with fewer than two values, or with nan or infinite values.
    """
    from scipy import stats

    first, second = _sample(a, "a", least=2), _sample(b, "b", least=2)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # constant samples: the result says it
        result = stats.ttest_ind(first, second, equal_var=equal_variances)
    return float(result.statistic), float(result.pvalue)


def two_sample_t_test_from_summary(
    mean1: float,
    std1: float,
    mean2: float,
    std2: float,
    n: int,
    std: Literal["sample", "population"] = "sample",
) -> tuple[float, float]:
    """Two-sided t-test with equal variances from printed means and standard deviations.

    Args:
        mean1: mean of the first sample.
        std1: its standard deviation.
        mean2: mean of the second sample.
        std2: its standard deviation.
        n: size of each of the two samples, at least 2.
        std: divisor of the standard deviations: "sample" n - 1, "population" n. It can turn a verdict.

    Returns:
        t and p.

    Raises:
        ValueError: n below 2, a negative standard deviation, or an unknown `std`.
    """
    from scipy import stats

    if n < 2:
        raise ValueError(f"n is {n}; a t-test needs at least 2 values in each sample")
    if not (std1 >= 0 and std2 >= 0):
        raise ValueError(f"standard deviations are {std1} and {std2}; they cannot be negative")
    if std not in ("sample", "population"):
        raise ValueError(f"std is {std!r}; it is 'sample' or 'population'")
    scale = math.sqrt(n / (n - 1)) if std == "population" else 1.0
    with np.errstate(all="ignore"):
        result = stats.ttest_ind_from_stats(mean1, std1 * scale, n, mean2, std2 * scale, n, equal_var=True)
    return float(result.statistic), float(result.pvalue)


def wilcoxon_signed_rank(
    a: npt.ArrayLike, b: npt.ArrayLike, alternative: Literal["two-sided", "greater", "less"] = "two-sided"
) -> tuple[float, float]:
    """Wilcoxon signed-rank test of paired samples.

    Pairs without a difference are dropped before the ranking, so SciPy picks the exact distribution by the size of what
    is left.

    Args:
        a: first value of each pair (n,).
        b: second value of each pair (n,).
        alternative: "greater" = `a` lies above `b`.

    Returns:
        The statistic as SciPy gives it (one-sided: sum of the ranks where a > b; two-sided: the smaller of the two
        sums) and p. No difference at all: 0 and p = 1.

    Raises:
        ValueError: lengths differ, nothing in the samples, nan or infinite values, or an unknown `alternative`.
    """
    from scipy import stats

    first, second = _sample(a, "a"), _sample(b, "b")
    if len(first) != len(second):
        raise ValueError(f"a has {len(first)} values, b {len(second)}; pairs need as many in both")
    if alternative not in ("two-sided", "greater", "less"):
        raise ValueError(f"alternative is {alternative!r}; it is 'two-sided', 'greater' or 'less'")
    differences = first - second
    differences = differences[differences != 0]
    if not len(differences):
        return 0.0, 1.0
    result = stats.wilcoxon(differences, alternative=alternative)
    return float(result.statistic), float(result.pvalue)


def bonferroni(p: npt.ArrayLike, m: int | None = None) -> Any:
    """Bonferroni's correction min(1, m p).

    Args:
        p: one p-value or an array of them, in [0, 1]; nan stays nan.
        m: number of comparisons; None: as many as `p` holds.

    Returns:
        Corrected values: a float for one p-value, else an array of the shape of `p`.

    Raises:
        ValueError: a p-value outside [0, 1], or m below 1.
    """
    values = to_numpy(p).astype(np.float64)
    count = values.size if m is None else m
    if np.any((values < 0) | (values > 1)):
        raise ValueError("p holds values outside [0, 1]; these are no p-values")
    if count < 1:
        raise ValueError(f"m is {count}; it must be at least 1")
    corrected = np.minimum(1.0, count * values)
    return float(corrected) if corrected.ndim == 0 else corrected


def _sample(values: npt.ArrayLike, name: str, least: int = 1) -> npt.NDArray[np.float64]:
    sample = to_numpy(values).astype(np.float64).ravel()
    if len(sample) < least:
        raise ValueError(f"{name} has {len(sample)} values; at least {least} are needed")
    if not np.isfinite(sample).all():
        raise ValueError(f"{name} holds nan or infinite values; leave those cases out first")
    return sample
