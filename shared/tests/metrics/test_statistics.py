from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from dart_core import metrics


def student_p(t: float, freedom: float) -> float:
    """Two-sided p of Student's t by integrating its density."""
    factor = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    tail, _ = integrate.quad(lambda x: factor * (1 + x * x / freedom) ** (-(freedom + 1) / 2), abs(t), math.inf)
    return 2 * float(tail)


def test_t_test_from_its_formula() -> None:
    a, b = np.array([1.0, 2.0, 4.0, 7.0]), np.array([2.0, 6.0, 9.0])
    n, m = len(a), len(b)
    va, vb = a.var(ddof=1), b.var(ddof=1)
    pooled = ((n - 1) * va + (m - 1) * vb) / (n + m - 2)
    t = (a.mean() - b.mean()) / math.sqrt(pooled * (1 / n + 1 / m))
    assert metrics.two_sample_t_test(a, b) == pytest.approx((t, student_p(t, n + m - 2)))
    welch = (a.mean() - b.mean()) / math.sqrt(va / n + vb / m)
    freedom = (va / n + vb / m) ** 2 / ((va / n) ** 2 / (n - 1) + (vb / m) ** 2 / (m - 1))
    assert metrics.two_sample_t_test(a, b, equal_variances=False) == pytest.approx((welch, student_p(welch, freedom)))


def test_t_test_of_constant_samples() -> None:
    t, p = metrics.two_sample_t_test([1, 1, 1], [1, 1, 1])
    assert math.isnan(t)
    assert math.isnan(p)
    assert metrics.two_sample_t_test([2, 2, 2], [1, 1, 1]) == (math.inf, 0.0)


@pytest.mark.parametrize(("kind", "divisor"), [("sample", 1), ("population", 0)])
def test_summary_agrees_with_the_samples(kind: str, divisor: int) -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(1, 2, 10), rng.normal(2, 1, 10)
    summary = metrics.two_sample_t_test_from_summary(
        a.mean(), a.std(ddof=divisor), b.mean(), b.std(ddof=divisor), n=10, std=kind
    )
    assert summary == pytest.approx(metrics.two_sample_t_test(a, b))


def test_published_example_whose_verdict_turns() -> None:
    # benchmark-transformers, Table 2: SimMIM against supervised Swin-B on CheXpert, ten runs each.
    printed = (88.16, 0.31, 87.80, 0.42, 10)
    assert metrics.two_sample_t_test_from_summary(*printed)[1] == pytest.approx(0.0427, abs=5e-5)
    assert metrics.two_sample_t_test_from_summary(*printed, std="population")[1] == pytest.approx(0.0532, abs=5e-5)


def signed_rank_by_enumeration(differences: list[float]) -> tuple[float, float, float, float]:
    """Rank sums and both one-sided p-values from all sign patterns (no zeros, no ties)."""
    order = sorted(abs(d) for d in differences)
    ranks = [order.index(abs(d)) + 1 for d in differences]
    plus = sum(rank for rank, d in zip(ranks, differences, strict=True) if d > 0)
    sums = [sum(itertools.compress(ranks, signs)) for signs in itertools.product((0, 1), repeat=len(ranks))]
    greater = sum(total >= plus for total in sums) / len(sums)
    less = sum(total <= plus for total in sums) / len(sums)
    return plus, sum(ranks) - plus, greater, less


@settings(deadline=None)
@given(st.lists(st.integers(-40, 40).filter(bool), min_size=1, max_size=8, unique_by=abs), st.integers(0, 3))
def test_wilcoxon_by_enumeration_with_zeros_dropped(differences: list[int], zeros: int) -> None:
    a = np.array([*differences, *[0] * zeros], float)
    b = np.zeros_like(a)
    plus, minus, greater, less = signed_rank_by_enumeration([float(d) for d in differences])
    assert metrics.wilcoxon_signed_rank(a, b, alternative="greater") == pytest.approx((plus, greater))
    assert metrics.wilcoxon_signed_rank(a, b, alternative="less") == pytest.approx((plus, less))
    assert metrics.wilcoxon_signed_rank(a, b) == pytest.approx((min(plus, minus), min(1.0, 2 * min(greater, less))))


def test_wilcoxon_greater_means_a_above_b() -> None:
    a, b = np.arange(10) + 1.0, np.arange(10) * 0.9
    assert metrics.wilcoxon_signed_rank(a, b, alternative="greater") == pytest.approx((55.0, 1 / 1024))
    assert metrics.wilcoxon_signed_rank(b, a, alternative="greater") == pytest.approx((0.0, 1.0))


def test_wilcoxon_without_any_difference() -> None:
    for alternative in ("two-sided", "greater", "less"):
        assert metrics.wilcoxon_signed_rank([1, 2, 3], [1, 2, 3], alternative=alternative) == (0.0, 1.0)


def test_bonferroni() -> None:
    assert metrics.bonferroni([0.01, 0.2, 0.5]).tolist() == pytest.approx([0.03, 0.6, 1.0])
    assert metrics.bonferroni([0.01, 0.2], m=7).tolist() == pytest.approx([0.07, 1.0])
    assert metrics.bonferroni(0.01, m=7) == pytest.approx(0.07)
    assert math.isnan(metrics.bonferroni([math.nan, 0.1])[0])


def test_tensors_give_the_same() -> None:
    a, b = np.array([1.0, 2.0, 4.5]), np.array([2.0, 2.5, 9.0])
    for function in (metrics.two_sample_t_test, metrics.wilcoxon_signed_rank):
        result = function(torch.from_numpy(a), torch.from_numpy(b))
        assert result == function(a, b)
        assert all(type(value) is float for value in result)
    assert metrics.bonferroni(torch.tensor([0.25, 0.5])).tolist() == [0.5, 1.0]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="a has 1 values; at least 2"):
        metrics.two_sample_t_test([1], [1, 2])
    with pytest.raises(ValueError, match="b holds nan"):
        metrics.two_sample_t_test([1, 2], [1, math.nan])
    with pytest.raises(ValueError, match="n is 1"):
        metrics.two_sample_t_test_from_summary(1, 1, 2, 1, 1)
    with pytest.raises(ValueError, match="cannot be negative"):
        metrics.two_sample_t_test_from_summary(1, -1, 2, 1, 10)
    with pytest.raises(ValueError, match="std is 'both'"):
        metrics.two_sample_t_test_from_summary(1, 1, 2, 1, 10, std="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a has 2 values, b 3"):
        metrics.wilcoxon_signed_rank([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="a has 0 values"):
        metrics.wilcoxon_signed_rank([], [])
    with pytest.raises(ValueError, match="alternative is 'above'"):
        metrics.wilcoxon_signed_rank([1, 2], [1, 2], alternative="above")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="outside"):
        metrics.bonferroni([1.2])
    with pytest.raises(ValueError, match="m is 0"):
        metrics.bonferroni([0.2], m=0)
