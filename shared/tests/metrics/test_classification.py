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
