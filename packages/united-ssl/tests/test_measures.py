"""Frechet distance, overlap, label savings, schedules (specification 6, 9.9, 9.11)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from united_ssl import annotation_saving, frechet_distance, halving_lr
from united_ssl.measures import case_iou, curve_saving, pooled_iou
from united_ssl.schedules import Plateau

RNG = np.random.default_rng(0)


def white(n: int, d: int) -> np.ndarray:
    """Samples with mean 0 and covariance exactly the identity."""
    x = RNG.normal(size=(n, d))
    x -= x.mean(0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T


def test_distance_of_a_set_to_itself_and_of_shifted_sets():
    a, shift = white(40, 3), np.array([1.0, -2.0, 0.5])
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(a, white(60, 3) + shift) == pytest.approx(shift @ shift)
    assert frechet_distance(2 * a, a) == pytest.approx(3.0)  # tr(4 + 1 - 2 * 2)
    assert frechet_distance(torch.from_numpy(a).float(), a) == pytest.approx(0, abs=1e-6)


def test_distance_against_scipys_matrix_root():
    a, b = RNG.normal(size=(30, 4)) @ RNG.normal(size=(4, 4)), RNG.normal(size=(25, 4)) + 1
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert frechet_distance(a, b) == pytest.approx(expected)


def test_distance_refuses():
    for a, b in (
        (white(9, 2), white(9, 3)),
        (np.zeros((1, 2)), np.zeros((4, 2))),
        (np.full((3, 2), np.inf), np.zeros((3, 2))),
    ):
        with pytest.raises(ValueError, match="features"):
            frechet_distance(a, b)


def test_annotation_saving():
    fractions, base = [0.25, 0.5, 1.0], [0.6, 0.7, 0.8]
    assert annotation_saving(fractions, base, base) == 0
    assert annotation_saving(fractions, base, [0.7, 0.8, 0.9]) == pytest.approx(0.5)
    assert annotation_saving(fractions, base, [0.7, 0.75, 0.85]) == pytest.approx(1 - 0.75)
    assert annotation_saving(fractions, base, [0.9, 0.9, 0.9]) == pytest.approx(0.75)
    assert math.isnan(annotation_saving(fractions, base, [0.5, 0.6, 0.7]))
    assert annotation_saving([1.0, 0.25, 0.5], [0.8, 0.6, 0.7], [0.9, 0.7, 0.8]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="2 fractions"):
        annotation_saving([0.5, 1], [1], [1])


def test_saving_between_curves_of_other_fractions():
    base = {0.2: 0.5, 0.6: 0.7, 0.8: 0.8}
    # The level is 0.8, that of the baseline at its largest share; ours is there half way from 0.4 to 0.6.
    assert curve_saving(base, {0.2: 0.6, 0.4: 0.7, 0.6: 0.9}) == pytest.approx(1 - 0.5 / 0.8)
    assert curve_saving({1.0: 0.8}, {0.4: 0.7, 0.8: 1.1}) == pytest.approx(0.5)
    assert curve_saving(base, {0.8: 0.7, 1.0: 0.9}) == pytest.approx(1 - 0.9 / 0.8)
    assert curve_saving(base, dict(base)) == 0
    assert math.isnan(curve_saving(base, {0.2: 0.7, 1.0: 0.79}))


def test_overlap():
    assert pooled_iou([1, 3], [4, 4]) == 0.5
    assert pooled_iou([0], [0]) == 1
    assert case_iou([0, 1, 0], [0, 4, 2]).tolist() == [1, 0.25, 0]


def test_halving():
    assert halving_lr(30, 1e-4, 32) == 1e-4
    assert halving_lr(31, 1e-4, 32) == 5e-5
    assert halving_lr(8, 1e-3, 10) == 1e-3
    assert halving_lr(9, 1e-3, 10) == 5e-4
    assert halving_lr(np.array([30, 31, 63]), 1.0, 32).tolist() == [1, 0.5, 0.25]
    assert halving_lr(1000, 1e-4, 0) == 1e-4
    with pytest.raises(ValueError, match="halved every -1"):
        halving_lr(0, 1, -1)


def test_plateau_as_keras_counts():
    plateau = Plateau(1.0, patience=2)
    losses = [None, 5.0, 4.0, 4.0, 4.0, 4.0, 4.0, 3.0]
    rates = [plateau(epoch, loss) for epoch, loss in enumerate(losses)]
    assert rates == [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25]
    assert plateau(7, 3.0) == 0.25  # asking twice counts once
    other = Plateau(1.0, patience=2)
    other.load_state_dict(plateau.state_dict())
    assert [other(e, 3.0) for e in (8, 9)] == [plateau(e, 3.0) for e in (8, 9)] == [0.25, 0.125]
    assert Plateau(1e-6, patience=1)(1, 1.0) == 1e-6
