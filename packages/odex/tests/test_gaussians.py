"""Gaussians of stages and distances to them, against closed forms (specification 9), NumPy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from odex import Gaussian, fit_gaussian, mahalanobis
from odex.gaussians import summed_distance


def draw(n: int, d: int = 4, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (n, d))


# --- Gaussians and distances -----------------------------------------------------------------------------------------


def test_mean_and_covariance_by_hand():
    mean, sigma = fit_gaussian(np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [2.0, 4.0]]))
    np.testing.assert_allclose(mean, [1, 2])
    np.testing.assert_allclose(sigma, [[1, 0], [0, 4]], atol=1e-15)
    distance = mahalanobis(np.array([[3.0, 2.0], [1.0, 4.0]]), mean, sigma)
    np.testing.assert_allclose(distance, [4, 1])
    np.testing.assert_allclose(mahalanobis(np.array([[3.0, 2.0]]), mean, sigma, squared=False), [2])


@given(st.integers(2, 7), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_full_rank_mean_training_distance_is_the_dimension(d, seed):
    z = draw(4 * d + 3, d, seed=seed)
    mean, sigma = fit_gaussian(z)
    assert mahalanobis(z, mean, sigma).mean() == pytest.approx(d, rel=1e-9)
    np.testing.assert_allclose(sigma, np.cov(z.T, bias=True), atol=1e-12)
    # bare and through the directions that the pool keeps
    found = Gaussian.fit(torch.from_numpy(z))
    np.testing.assert_allclose(found.distance(torch.from_numpy(z)), mahalanobis(z, mean, sigma), rtol=1e-8)
    assert found.rank == d


@given(st.integers(3, 9), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_few_images_all_training_distances_are_n_minus_1(n, seed):
    z = draw(n, 12, seed=seed)
    with pytest.warns(UserWarning, match=f"of {n} images with 12 features has rank {n - 1}"):
        mean, sigma = fit_gaussian(z)
    np.testing.assert_allclose(mahalanobis(z, mean, sigma), n - 1, rtol=1e-6)
    np.testing.assert_allclose(Gaussian.fit(torch.from_numpy(z)).distance(torch.from_numpy(z)), n - 1, rtol=1e-8)
    # a shift along a direction that no training image had is invisible
    _, _, right = np.linalg.svd(z - mean)
    assert mahalanobis(mean[None] + 100 * right[-1:], mean, sigma)[0] == pytest.approx(0, abs=1e-6)


@given(
    hnp.arrays(float, (4, 4), elements=st.floats(-1, 1)),
    hnp.arrays(float, 4, elements=st.floats(-5, 5)),
    st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_invariant_under_affine_maps(a, b, seed):
    a = a + 3 * np.sign(np.linalg.det(a + 3 * np.eye(4))) * np.eye(4)
    if abs(np.linalg.det(a)) < 0.1:
        return
    z, other = draw(30, seed=seed), draw(5, shift=1.0, seed=seed + 1)
    before = mahalanobis(other, *fit_gaussian(z))
    after = mahalanobis(other @ a.T + b, *fit_gaussian(z @ a.T + b))
    np.testing.assert_allclose(after, before, rtol=1e-6)


def test_distance_of_the_mean_is_0():
    z = draw(20)
    mean, sigma = fit_gaussian(z)
    assert mahalanobis(mean[None], mean, sigma)[0] == pytest.approx(0, abs=1e-20)


def test_singular_covariance_is_the_pseudo_inverse():
    z = draw(40, 3)
    z = np.column_stack((z, z[:, 0] + z[:, 1]))  # rank 3 of 4
    with pytest.warns(UserWarning, match="rank 3"):
        mean, sigma = fit_gaussian(z)
    other = draw(6, 4, shift=2.0, seed=1)
    centred = other - mean
    expected = np.einsum("ni,ij,nj->n", centred, np.linalg.pinv(sigma, rcond=1e-10, hermitian=True), centred)
    np.testing.assert_allclose(mahalanobis(other, mean, sigma), expected, rtol=1e-6)
    np.testing.assert_allclose(Gaussian.fit(torch.from_numpy(z)).distance(torch.from_numpy(other)), expected, rtol=1e-6)


def test_shrinkage_as_scikit_learn_has_it():
    from sklearn.covariance import ledoit_wolf, shrunk_covariance

    z = draw(9, 12)  # fewer images than features
    empirical = np.cov(z.T, bias=True)
    mean, sigma = fit_gaussian(z, "shrunk", 0.3)
    np.testing.assert_allclose(sigma, shrunk_covariance(empirical, 0.3), atol=1e-12)
    np.testing.assert_allclose(fit_gaussian(z, "ledoit_wolf")[1], ledoit_wolf(z)[0], atol=1e-12)
    other = draw(5, 12, shift=1.0, seed=3)
    through_directions = Gaussian.fit(torch.from_numpy(z), "shrunk", 0.3).distance(torch.from_numpy(other))
    np.testing.assert_allclose(through_directions, mahalanobis(other, mean, sigma), rtol=1e-8)


def test_single_precision_and_kinds_of_arrays():
    z = draw(200, 8)
    mean, sigma = fit_gaussian(torch.from_numpy(z).float())
    assert mean.dtype == sigma.dtype == torch.float32
    other = torch.from_numpy(draw(50, 8, seed=5))
    found = mahalanobis(other.float(), mean, sigma)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, mahalanobis(other.numpy(), *fit_gaussian(z)), rtol=2e-5)
    assert isinstance(mahalanobis(z, *fit_gaussian(z)), np.ndarray)


def test_badly_conditioned_single_precision_is_computed_in_double():
    scales = np.array([1.0, 3e-2])
    z = draw(500, 2) * scales
    mean, sigma = (torch.from_numpy(part) for part in fit_gaussian(z))
    exact = mahalanobis(torch.from_numpy(z).float().double(), mean.float().double(), sigma.float().double())
    np.testing.assert_allclose(mahalanobis(torch.from_numpy(z).float(), mean.float(), sigma.float()), exact, rtol=1e-5)


@pytest.mark.parametrize("squared", [True, False])
def test_sum_over_a_history(squared):
    """One quadratic form instead of one for each stage."""
    z = torch.from_numpy(draw(30, 5, shift=1.0, seed=9))
    history = [Gaussian.fit(torch.from_numpy(draw(25, 5, shift, seed))) for seed, shift in enumerate((0, 3, 40))]
    expected = sum(mahalanobis(z, stage.mean, stage.covariance, squared) for stage in history)
    torch.testing.assert_close(summed_distance(history, z, squared), expected, rtol=1e-9, atol=1e-9)


def test_what_gives_no_gaussian():
    for z in (np.zeros((1, 4)), np.zeros((3, 2, 2)), np.array([[np.nan, 1], [1, 2]])):
        with pytest.raises(ValueError, match=r"images|shape|finite|one image"):
            fit_gaussian(z)
    with pytest.raises(ValueError, match="shrinkage is 2"):
        fit_gaussian(draw(5), "shrunk", 2)
    with pytest.raises(ValueError, match="covariance is 'full'"):
        fit_gaussian(draw(5), "full")
    with pytest.raises(ValueError, match="features have 3 columns"):
        mahalanobis(draw(5, 3), *fit_gaussian(draw(9, 2)))
    with pytest.raises(ValueError, match="negative eigenvalues"):
        mahalanobis(draw(5, 2), np.zeros(2), np.diag([1.0, -1.0]))


# --- Several Gaussians at once ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size"), [(3, 4), (2, 32), (3, 70), (1, 33)])
def test_several_gaussians_at_once(count, size):
    """One product over blocks of columns, against the inverse of each covariance; sizes around those of the blocks."""
    z = draw(1100, size, shift=1.0, seed=9)
    fitted = [fit_gaussian(draw(4 * size, size, shift, seed)) for seed, shift in enumerate(range(count))]
    means, sigmas = (np.stack(part) for part in zip(*fitted, strict=True))
    found = mahalanobis(z, means, sigmas)
    for k in range(count):
        centred = z - means[k]
        np.testing.assert_allclose(found[k], (centred @ np.linalg.inv(sigmas[k]) * centred).sum(1), rtol=1e-9)
    single = mahalanobis(*(torch.from_numpy(part).float() for part in (z, means, sigmas)))
    assert single.shape == (count, 1100)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single, found, rtol=1e-5)
    np.testing.assert_allclose(mahalanobis(z, means, sigmas, squared=False), np.sqrt(found), rtol=1e-12)


def test_a_singular_one_among_several():
    z = draw(40, 3)
    flat = np.column_stack((z, z[:, 0] - z[:, 1]))
    with pytest.warns(UserWarning, match="rank 3"):
        fitted = [fit_gaussian(draw(30, 4, seed=1)), fit_gaussian(flat), fit_gaussian(draw(30, 4, 2.0, seed=2))]
    other = draw(6, 4, shift=1.0, seed=3)
    found = mahalanobis(other, *(np.stack(part) for part in zip(*fitted, strict=True)))
    for distances, (mean, sigma) in zip(found, fitted, strict=True):
        np.testing.assert_allclose(distances, mahalanobis(other, mean, sigma), rtol=1e-9)


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_means_far_apart_in_single_precision(offset):
    """Distances of images beside a mean that is a thousand deviations from the other means."""
    means = np.stack((np.zeros(5), np.full(5, 1e3), np.full(5, -3e3))) + offset
    sigmas = np.stack([np.eye(5) * v for v in (1.0, 4.0, 0.25)])
    steps = np.array([[1.0, 0, 0, 0, 0], [0, 2.0, 0, 0, 1.0]])
    for k in range(3):
        z = (means[k] + steps).astype(np.float32)
        found = mahalanobis(torch.from_numpy(z), *(torch.from_numpy(part).float() for part in (means, sigmas)))
        np.testing.assert_allclose(found[k], np.array([1.0, 5.0]) / sigmas[k, 0, 0], rtol=1e-5)


def test_gradient():
    """2 Sigma^-1 (z - mu)."""
    mean, sigma = (torch.from_numpy(part) for part in fit_gaussian(draw(200, 40)))
    z = torch.from_numpy(draw(7, 40, 1.0, seed=1)).requires_grad_()
    mahalanobis(z, mean, sigma).sum().backward()
    torch.testing.assert_close(z.grad, 2 * torch.linalg.solve(sigma, (z.detach() - mean).T).T)
