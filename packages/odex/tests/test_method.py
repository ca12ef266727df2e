"""Normalisation and the pool, against closed forms (specification 9) and streams whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odex import (
    Gaussian,
    ModelPool,
    dice_ex,
    fit_gaussian,
    gram_distance,
    gram_matrix,
    mahalanobis,
    normalisation_bounds,
    normalise_distance,
)


def draw(n: int, d: int = 4, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (n, d))


# --- Normalisation ---------------------------------------------------------------------------------------------------


def test_bounds_by_hand():
    lo, hi, mu = normalisation_bounds([2.0, 4.0, 6.0])
    assert (lo, hi, mu) == (2, 12, pytest.approx((0 + 2 + 4) / 10 / 3))
    np.testing.assert_allclose(normalise_distance(np.array([1.0, 7.0, 99.0]), lo, hi), [0, 0.5, 1])
    assert normalise_distance(7.0, lo, hi) == 0.5
    assert normalise_distance(torch.tensor(7.0), lo, hi).dtype == torch.float32


@given(st.lists(st.floats(0.1, 100), min_size=2, max_size=20), st.floats(0.01, 100), st.floats(0.01, 300))
def test_threshold_in_raw_units_and_invariance(reference, c, s):
    lo, hi, mu = normalisation_bounds(reference)
    assert 0 <= 2 * mu <= 1 + 1e-12
    n = normalise_distance(s, lo, hi)
    raw = 2 * np.mean(reference) - min(reference)
    if abs(s - raw) > 1e-6 and lo < s < hi:
        assert (n >= 2 * mu) == (s >= raw)
    scaled = normalise_distance(c * s, *normalisation_bounds([c * r for r in reference])[:2])
    assert scaled == pytest.approx(n, abs=1e-9)


def test_equality_of_the_threshold_with_1():
    assert 2 * normalisation_bounds([0.0, 0.0])[2] == 0
    assert normalise_distance(np.array([0.0, 1.0]), 0.0, 0.0).tolist() == [0, 1]
    for bad in ([], [np.nan], [-1.0]):
        with pytest.raises(ValueError, match="in-distribution"):
            normalisation_bounds(bad)


def test_dice_ex():
    assert not dice_ex(0.9, 0.81)
    assert dice_ex(0.9, 0.8)
    assert not dice_ex(0.5, 0.42, mode="absolute")
    assert dice_ex(0.5, 0.42)
    assert not dice_ex(0.5, 0.9)
    with pytest.raises(ValueError, match="do not lie"):
        dice_ex(1.2, 0.5)
    with pytest.raises(ValueError, match="mode is"):
        dice_ex(0.9, 0.5, mode="both")


# --- The pool --------------------------------------------------------------------------------------------------------


def run(shifts, seed=0, n=60, held_out=20, **options):
    pool = ModelPool(**options)
    trained = []
    for i, shift in enumerate(shifts):
        pool.observe(draw(n, shift=shift, seed=seed + 10 * i), draw(held_out, shift=shift, seed=seed + 10 * i + 1))
        trained.append(pool.last["index"])
    return pool, trained


@pytest.mark.parametrize("seed", range(5))
def test_streams_with_a_known_answer(seed):
    pool, trained = run((0, 0, 0, 0, 0), seed)
    assert len(pool) == 1, trained
    pool, trained = run((0, 0, 8, 8, 8), seed)
    assert trained == [0, 0, 1, 1, 1]
    assert pool.stages == [[0, 1], [0, 1, 2, 3, 4]]
    pool, trained = run((0, 8, 0, 8, 0), seed)
    assert trained == [0, 1, 0, 1, 0]


def test_decisions_are_invariant_under_scaling():
    shifts = (0, 0.5, 1.0, 2.0, 8.0)
    pools = [ModelPool(), ModelPool()]
    for i, shift in enumerate(shifts):
        z, held_out = draw(60, shift=shift, seed=i), draw(20, shift=shift, seed=100 + i)
        assert pools[0].observe(z, held_out) == pools[1].observe(7 * z + 3, 7 * held_out + 3)
        assert pools[0].last["score"] == pytest.approx(pools[1].last["score"], nan_ok=True)


def test_always_expanding():
    pool, trained = run((0, 0, 0, 0, 0), threshold=-math.inf)
    assert trained == [0, 1, 2, 3, 4]
    assert len(pool.histories[0]) == 1
    for history, stages in zip(pool.histories, pool.stages, strict=True):
        assert len(history) == len(stages) == len(set(stages))


def test_without_history():
    pool, _ = run((0, 0, 8, 8, 8), history=False)
    assert [len(history) for history in pool.histories] == [1] * len(pool)
    assert pool.stages[0] == [1]


def test_a_literal_sum_never_lets_a_clone_win():
    """Specification 2.7: all terms of the parent are in the clone's sum."""
    pool, trained = run((0, 8, 8, 8), selection="sum", normalisation="raw")
    assert trained == [0, 1, 2, 3]
    for shift in (0.0, 8.0):
        assert not pool.infer(draw(20, shift=shift, seed=77)).any()
    by_mean, _ = run((0, 8, 8, 8), normalisation="raw")
    assert by_mean.infer(draw(20, shift=8.0, seed=77)).all()


@pytest.mark.parametrize("options", [{}, {"selection": "normalised"}, {"squared": False}])
def test_images_go_to_the_model_of_their_domain(options):
    pool, trained = run((0, 8, 0, 8), **options)
    assert trained[:3] == [0, 1, 0]
    for shift, model in ((0.0, 0), (8.0, 1)):
        found = pool.infer(draw(20, shift=shift, seed=55))
        assert found.tolist() == [model] * 20
        assert pool.select(draw(20, shift=shift, seed=55)) == model
        assert pool.select(draw(1, shift=shift, seed=55)[0]) == model


def test_per_stage_terms_stay_far_for_ever():
    """Specification 2.6: why the sum of a model is normalised, not each term: 2 models are right here."""
    shifts = (0, 0, 8, 8, 8)
    assert len(run(shifts)[0]) == 2
    assert len(run(shifts, normalisation="per_stage_mean")[0]) > 2


def test_training_in_between():
    pool = ModelPool()
    assert pool.decide(draw(50)) == "expand"
    pool.record(0, draw(50), draw(20, seed=1))
    before = pool.histories[0][0]
    assert pool.decide(draw(50, shift=9.0, seed=2)) == "expand"
    assert pool.last["index"] == 0
    assert pool.last["score"] >= pool.last["threshold"]
    assert len(pool) == 1  # nothing is recorded yet
    pool.record(1, draw(50, shift=9.0, seed=2), draw(20, shift=9.0, seed=3))
    assert len(pool) == 2
    assert pool.histories[0] == [before]  # the parent's own list
    assert pool.histories[1][0] is before
    assert pool.last["index"] == 1
    # the index of the model that was to be cloned means the clone too
    assert pool.decide(draw(50, shift=-30.0, seed=4)) == "expand"
    pool.record(pool.last["index"], draw(50, shift=-30.0, seed=4))
    assert len(pool) == 3
    with pytest.raises(ValueError, match="no model 7"):
        pool.record(7, draw(50))


def test_a_decision_may_be_overruled():
    pool, _ = run((0,))
    assert pool.decide(draw(50, shift=9.0, seed=2)) == "expand"
    pool.record(0, draw(50, shift=9.0, seed=2), action="update")
    assert len(pool) == 1
    assert pool.stages == [[0, 1]]


def test_each_model_has_its_own_features():
    pool, _ = run((0, 8))
    near, far = draw(20, seed=3), draw(20, shift=30.0, seed=3)
    assert pool.decide([near, far]) == "update"
    assert pool.last["index"] == 0
    assert pool.infer([near, far]).tolist() == [0] * 20
    with pytest.raises(ValueError, match="features for 3 models"):
        pool.decide([near] * 3)


def test_leave_one_out_takes_the_place_of_held_out_images():
    """D of the left-out image in closed form (Sherman and Morrison): n / (n - 1) D / (1 - D / (n - 1))."""
    z = draw(30, 4)
    pool = ModelPool()
    pool.observe(z)
    d = mahalanobis(z, *fit_gaussian(z))
    expected = 30 / 29 * d / (1 - d / 29)
    bounds = pool.bounds[0][0]
    assert (bounds.lo, bounds.hi) == (pytest.approx(expected.min()), pytest.approx(2 * expected.max()))
    assert bounds.mean == pytest.approx(expected.mean())
    # few images: not constant, so that the threshold is not 0
    few = ModelPool()
    with pytest.warns(UserWarning, match="8 images with 12 features has rank 7"):
        few.observe(draw(8, 12))
    assert few.bounds[0][0].mu > 0.05


def test_gram_distance_is_the_isotropic_one():
    features = torch.randn(6, 3, 4, 4, dtype=torch.float64)
    gram = gram_matrix(features)
    stage = Gaussian.point(gram[:4].flatten(1))
    torch.testing.assert_close(stage.distance(gram.flatten(1)), gram_distance(features, gram[:4].mean(0)))
    pool = ModelPool(distance="gram")
    assert pool.observe(gram[:4].flatten(1)) == "expand"
    assert pool.decide(gram[:4].flatten(1)) == "update"
    assert pool.decide(100 * gram[:4].flatten(1)) == "expand"


def test_tensors_give_tensors():
    pool = ModelPool()
    pool.observe(torch.from_numpy(draw(30)), torch.from_numpy(draw(9, seed=1)))
    assert isinstance(pool.infer(torch.from_numpy(draw(3))), torch.Tensor)
    assert isinstance(pool.infer(draw(3)), np.ndarray)


def test_what_the_pool_refuses():
    for options in ({"selection": "max"}, {"normalisation": "none"}, {"threshold": "3mu"}, {"threshold": math.nan}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ModelPool(**options)
    with pytest.raises(ValueError, match="the pool is empty"):
        ModelPool().select(draw(3))
    with (
        pytest.warns(UserWarning, match="rank 1"),
        pytest.raises(ValueError, match="leave nothing to compare with"),
    ):
        ModelPool().observe(draw(2))
    pool, _ = run((0,))
    with pytest.raises(ValueError, match="features have 3 columns"):
        pool.record(0, draw(9, 3))
    with pytest.raises(ValueError, match="not finite"):
        pool.decide(np.full((3, 4), np.nan))
