from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dart_core import metrics


def by_pairs(labels: np.ndarray, scores: np.ndarray) -> float:
    """The definition: share of (positive, negative) pairs in order, ties half."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    if not len(positive) or not len(negative):
        return float("nan")
    wins = sum((p > n) + 0.5 * (p == n) for p, n in itertools.product(positive, negative))
    return float(wins / (len(positive) * len(negative)))


def test_by_hand() -> None:
    labels = np.array([[1, 0], [0, 1], [1, 1], [0, 0]])
    scores = np.array([[0.9, 0.2], [0.8, 0.2], [0.3, 0.7], [0.1, 0.9]])
    # First label: 0.9 beats both negatives, 0.3 beats one of two. Second: 0.2 ties with 0.2, 0.7 beats it; both lose to 0.9.
    np.testing.assert_allclose(metrics.roc_auc(labels, scores), [3 / 4, 1.5 / 4])
    assert metrics.mean_auc(labels, scores) == pytest.approx((0.75 + 0.375) / 2)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_equals_the_share_of_ordered_pairs(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 4)))
    labels = data.draw(hnp.arrays(np.float64, shape, elements=st.sampled_from([0.0, 1.0, np.nan])))
    scores = data.draw(hnp.arrays(np.float32, shape, elements=st.sampled_from([-np.inf, -1.0, 0.0, 0.25, 3.0])))
    expected = [by_pairs(labels[:, k], scores[:, k]) for k in range(shape[1])]
    found = metrics.roc_auc(labels, scores)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    # Turning the scores round turns the area round.
    np.testing.assert_allclose(metrics.roc_auc(labels, -scores), 1 - found, rtol=1e-12)
    mean = np.nan if np.isnan(expected).all() else np.nanmean(expected)
    np.testing.assert_allclose(metrics.mean_auc(labels, scores), mean, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_scikit_learn(dtype: type[np.floating]) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    labels = (rng.random((500, 14)) < 0.2).astype(int)
    scores = np.round(rng.random((500, 14)) + 0.2 * labels, 2).astype(dtype)
    expected = sklearn.roc_auc_score(labels, scores, average=None)
    np.testing.assert_allclose(metrics.roc_auc(labels, scores), expected, rtol=1e-12)
    assert metrics.mean_auc(labels, scores) == pytest.approx(expected.mean(), rel=1e-12)


def test_a_label_with_one_class_is_undefined_and_left_out_of_the_mean() -> None:
    labels = np.array([[1, 1, 0], [0, 1, 0], [1, 1, 0]])
    scores = np.array([[0.7, 0.1, 0.2], [0.6, 0.2, 0.3], [0.2, 0.3, 0.4]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(metrics.roc_auc(labels, scores), [0.5, np.nan, np.nan])
        assert metrics.mean_auc(labels, scores) == 0.5
        assert np.isnan(metrics.mean_auc(labels[:, 1:], scores[:, 1:]))
        assert np.isnan(metrics.roc_auc(np.zeros((0, 2)), np.zeros((0, 2)))).all()


def test_tensors_of_any_type() -> None:
    labels = torch.tensor([[1, 0], [0, 1], [1, 1]], dtype=torch.bool)
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.4], [0.1, 0.2]], dtype=torch.bfloat16, requires_grad=True)
    found = metrics.roc_auc(labels, scores)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [0.5, 1.0])


def test_large_sets_keep_their_precision() -> None:
    """The rank sum of 200,000 samples is beyond the whole numbers that float32 holds."""
    n = 200_000
    labels = np.zeros((n, 1))
    labels[n // 2 :] = 1
    scores = np.arange(n, dtype=np.float64)[:, None]
    assert metrics.roc_auc(labels, scores)[0] == 1
    scores[0] = n
    assert metrics.roc_auc(labels, scores)[0] == pytest.approx(1 - 2 / n, rel=1e-12)


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        (np.zeros(3), np.zeros(3), r"labels have shape \(3,\)"),
        (np.zeros((3, 2)), np.zeros((3, 1)), r"shape \(3, 2\), scores \(3, 1\)"),
        (np.full((2, 1), 2), np.zeros((2, 1)), "labels hold 2; they must be 0, 1 or nan"),
        (np.full((2, 1), -1.0), np.zeros((2, 1)), "labels hold -1"),
        (np.zeros((2, 1)), np.full((2, 1), np.nan), "scores hold nan"),
    ],
)
def test_what_cannot_be_scored(labels: np.ndarray, scores: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.roc_auc(labels, scores)


@pytest.mark.parametrize(
    ("auc", "positives", "negatives", "error"),
    [
        (0.872, 757, 840, 0.009),
        (0.835, 205, 201, 0.020),
        (0.819, 252, 759, 0.017),
        (0.616, 252, 759, 0.021),
        (0.768, 59, 793, 0.037),
        (0.853, 20, 80, 0.056),
        (0.744, 20, 80, 0.068),
    ],
)
def test_errors_of_printed_areas(auc: float, positives: int, negatives: int, error: float) -> None:
    """As specification skintone-debias 6 gives them, to three decimals."""
    assert metrics.auc_standard_error(auc, positives, negatives) == pytest.approx(error, abs=6e-4)


def test_error_equals_the_spread_of_areas() -> None:
    """Where both classes score exponentially Hanley and McNeil's formula is exact."""
    rng = np.random.default_rng(0)
    positives, negatives, repeats, rate = 20, 35, 4000, 0.4
    scores = np.concatenate(
        (rng.exponential(1 / rate, (positives, repeats)), rng.exponential(1.0, (negatives, repeats)))
    )
    labels = np.repeat([1, 0], (positives, negatives))[:, None].repeat(repeats, 1)
    areas = metrics.roc_auc(labels, scores)
    truth = 1 / (1 + rate)
    assert areas.mean() == pytest.approx(truth, abs=5 * areas.std() / np.sqrt(repeats))
    # The relative error of a standard deviation of n values is about 1 / sqrt(2 n).
    expected = metrics.auc_standard_error(truth, positives, negatives)
    assert areas.std(ddof=1) == pytest.approx(expected, rel=5 / np.sqrt(2 * repeats))


def test_error_of_one_pair_and_of_many() -> None:
    """With one sample of each class the area is 0 or 1: a coin with this chance."""
    areas = np.array([0.0, 0.3, 0.5, 1.0])
    np.testing.assert_allclose(metrics.auc_standard_error(areas, 1, 1), np.sqrt(areas * (1 - areas)))
    found = metrics.auc_standard_error(torch.tensor([0.8, 0.8, float("nan"), 1.0]), [10, 0, 5, 7], [20, 5, 5, 3])
    assert found[0] == pytest.approx(metrics.auc_standard_error(0.8, 10, 20), rel=1e-6)
    np.testing.assert_array_equal(np.isnan(found), [False, True, True, False])
    assert found[3] == 0
    assert isinstance(metrics.auc_standard_error(0.8, 10, 20), float)
    # Turning the scores round makes the positives the negatives.
    assert metrics.auc_standard_error(0.3, 9, 4) == pytest.approx(metrics.auc_standard_error(0.7, 4, 9))


@given(st.floats(0, 1), st.integers(1, 1000), st.integers(1, 1000))
def test_error_is_finite_and_falls_with_the_samples(auc: float, positives: int, negatives: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        error = metrics.auc_standard_error(auc, positives, negatives)
        assert 0 <= error <= 0.5
        assert metrics.auc_standard_error(auc, 2 * positives, 2 * negatives) <= error + 1e-12


@pytest.mark.parametrize(
    ("auc", "positives", "negatives", "message"),
    [(1.2, 3, 3, "outside"), (-0.1, 3, 3, "outside"), (0.5, -1, 3, "negative"), (0.5, 3, -1, "negative")],
)
def test_what_has_no_error(auc: float, positives: int, negatives: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.auc_standard_error(auc, positives, negatives)
