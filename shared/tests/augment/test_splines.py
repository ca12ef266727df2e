from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from dart_core.augment.splines import coarse_grid, coefficients, cubic_weights, prefilter, separable


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


@pytest.mark.parametrize("shape", [(3, 2, 20, 33), (1, 2), (4, 1, 5), (2, 2), (150, 31)])
def test_coefficients_are_scipys(shape: tuple[int, ...]) -> None:
    x = images(*shape)
    flat = x.reshape(-1, *shape[-2:])
    expected = np.stack([ndimage.spline_filter(image, 3, mode="mirror") for image in flat]).reshape(shape)
    result = coefficients(torch.from_numpy(x))
    assert result.dtype == torch.float64
    np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=1e-12)
    single = coefficients(torch.from_numpy(x).float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 10, 64, 150])
def test_prefilter_is_the_inverse_of_sampling(size: int) -> None:
    # A spline with coefficients c has the values (c[i-1] + 4 c[i] + c[i+1]) / 6 at the pixels; mirrored ends.
    sampling = np.zeros((size, size))
    for i in range(size):
        for j, weight in ((i - 1, 1 / 6), (i, 4 / 6), (i + 1, 1 / 6)):
            inside = abs(j) if j < size else 2 * (size - 1) - j
            sampling[i, abs(inside) if size > 1 else 0] += weight
    np.testing.assert_allclose(sampling @ prefilter(size).numpy(), np.eye(size), atol=1e-13)


def test_cubic_weights() -> None:
    # values of the cubic B-spline: 2/3 at 0, 1/6 at 1, 23/48 at 1/2, 1/48 at 3/2
    weights = cubic_weights(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    expected = [[1 / 6, 4 / 6, 1 / 6, 0], [1 / 48, 23 / 48, 23 / 48, 1 / 48], [0, 1 / 6, 4 / 6, 1 / 6]]
    np.testing.assert_allclose(weights.T.numpy(), expected, atol=1e-15)
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    # partition of unity, and linear functions are reproduced
    np.testing.assert_allclose(cubic_weights(t).sum(0).numpy(), 1, atol=1e-15)
    np.testing.assert_allclose((torch.arange(-1, 3.0).double() @ cubic_weights(t)).numpy(), t.numpy(), atol=1e-15)


@pytest.mark.parametrize(("size", "pixels"), [(128, 64), (150, 97), (33, 20), (64, 1), (7, 7), (1, 1), (40, 39)])
def test_coarse_grid_is_scipys_zoom_there_and_back(size: int, pixels: int) -> None:
    row = images(size)
    # ndimage.zoom pads by 12 repeated pixels, where the response of the prefilter is down to 1e-7
    coarse = ndimage.zoom(row, pixels / size, order=0, mode="nearest", grid_mode=True)
    assert len(coarse) == pixels
    expected = ndimage.zoom(coarse, size / pixels, order=3, mode="nearest", grid_mode=True)
    matrices, taken = coarse_grid(size, torch.tensor([pixels, size]))
    np.testing.assert_allclose((matrices[0] @ torch.from_numpy(row)).numpy(), expected, atol=1e-6)
    np.testing.assert_array_equal(row[taken[0].numpy()], coarse)
    # as many pixels as before: nothing changes
    np.testing.assert_allclose(matrices[1].numpy(), np.eye(size), atol=1e-14)
    assert bool(taken[1].all())


def test_separable_works_on_both_axes() -> None:
    x, rows, columns = images(2, 3, 5, 6), images(4, 5), images(7, 6)
    result = separable(*map(torch.from_numpy, (x, rows, columns)))
    np.testing.assert_allclose(result.numpy(), np.einsum("abhw,ih,jw->abij", x, rows, columns), atol=1e-13)


def test_response_is_gone_where_it_ends() -> None:
    from dart_core.augment.splines import POLE, REACH

    assert math.sqrt(3) * abs(POLE) ** REACH < 1e-16
