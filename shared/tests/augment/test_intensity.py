from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from dart_core.augment.intensity import brightness, contrast, gamma, gaussian_blur, low_resolution

ALL: list[tuple[Callable[[Tensor, Tensor], Tensor], tuple[float, float]]] = [
    (gaussian_blur, (0.5, 1.0)),
    (brightness, (0.75, 1.25)),
    (contrast, (0.75, 1.25)),
    (low_resolution, (0.5, 1.0)),
    (gamma, (0.7, 1.5)),
]


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def parameters(shape: tuple[int, ...], limits: tuple[float, float]) -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).uniform(*limits, shape))


@pytest.mark.parametrize("sigma", [0.3, 0.5, 0.62, 0.63, 0.874, 0.876, 1.0, 3.0])
@pytest.mark.parametrize("size", [(20, 31), (3, 40), (1, 5)])
def test_blur_is_scipys(sigma: float, size: tuple[int, int]) -> None:
    x = images(2, *size)
    # with another sigma beside it, whose kernel has another radius
    result = gaussian_blur(x, torch.tensor([sigma, 0.7], dtype=torch.float64))
    np.testing.assert_allclose(result[0].numpy(), ndimage.gaussian_filter(x[0].numpy(), sigma), atol=1e-13)
    np.testing.assert_allclose(result[1].numpy(), ndimage.gaussian_filter(x[1].numpy(), 0.7), atol=1e-13)


def test_brightness() -> None:
    x, factor = images(3, 2, 4, 5), parameters((3, 2), (0.75, 1.25))
    assert torch.equal(brightness(x, factor), x * factor[..., None, None])


def test_contrast_closed_form() -> None:
    # mean 3, range 0..6: 2 (x - 3) + 3 = -3, 1, 5, 9 cut to 0..6; half of it 1.5, 2.5, 3.5, 4.5
    x = torch.tensor([[0.0, 2.0], [4.0, 6.0]]).expand(2, 2, 2)
    result = contrast(x, torch.tensor([2.0, 0.5]))
    assert result.flatten(1).tolist() == [[0, 1, 5, 6], [1.5, 2.5, 3.5, 4.5]]


def test_gamma_closed_form() -> None:
    # x in 0..1, squared: 0, 1/16, 1/4, 9/16, 1; then mean and standard deviation of x restored
    x = torch.linspace(0, 1, 5, dtype=torch.float64)[None, None]
    bent = np.array([0, 1 / 16, 1 / 4, 9 / 16, 1])
    expected = (bent - bent.mean()) / bent.std() * x.numpy().std() + 0.5
    result = gamma(x, torch.tensor([2.0]))
    np.testing.assert_allclose(result[0, 0].numpy(), expected, atol=1e-6)
    # inverted: on -x, whose order is the reverse
    inverted = gamma(x, torch.tensor([2.0]), invert=True)
    np.testing.assert_allclose(inverted[0, 0].numpy(), 1 - expected[::-1], atol=1e-6)


@given(st.integers(0, 2**31), st.floats(0.3, 3), st.booleans())
@settings(max_examples=30, deadline=None)
def test_gamma_keeps_mean_and_spread_and_order(seed: int, exponent: float, invert: bool) -> None:
    x = 5 + 3 * images(2, 6, 7, seed=seed)
    result = gamma(x, torch.full((2,), exponent), invert)
    for before, after in zip(x, result, strict=True):
        assert float(after.mean()) == pytest.approx(float(before.mean()), rel=1e-9)
        assert float(after.std(correction=0)) == pytest.approx(float(before.std(correction=0)), rel=1e-6)
        assert torch.equal(before.flatten().argsort(), after.flatten().argsort())


def test_gamma_of_one_does_nothing() -> None:
    x = images(2, 6, 7)
    for invert in (False, True):
        torch.testing.assert_close(gamma(x, torch.ones(2), invert), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("size", "zoom"), [((64, 64), 0.5), ((128, 96), 0.77), ((33, 50), 0.91), ((40, 40), 0.61)])
def test_low_resolution_is_zoom_there_and_back(size: tuple[int, int], zoom: float) -> None:
    x = images(2, *size)
    coarse_size = [round(n * zoom) for n in size]
    coarse = ndimage.zoom(
        x[0].numpy(), [m / n for m, n in zip(coarse_size, size, strict=True)], order=0, mode="nearest", grid_mode=True
    )
    assert coarse.shape == tuple(coarse_size)
    expected = ndimage.zoom(
        coarse, [n / m for m, n in zip(coarse_size, size, strict=True)], order=3, mode="nearest", grid_mode=True
    ).clip(coarse.min(), coarse.max())
    result = low_resolution(x, torch.tensor([zoom, 0.9], dtype=torch.float64))
    np.testing.assert_allclose(result[0].numpy(), expected, atol=1e-6)


def test_low_resolution_of_the_same_size_does_nothing() -> None:
    x = images(2, 3, 20, 30)
    torch.testing.assert_close(low_resolution(x, torch.ones(2, 3)), x, rtol=0, atol=1e-12)


def test_low_resolution_rounds_to_even() -> None:
    # 5 * 0.5 = 2.5 pixels become 2: the pixels 1 and 3 remain
    x = torch.arange(5.0)[None, None].expand(1, 5, 5).contiguous()
    result = low_resolution(x, torch.tensor([0.5]))
    assert (float(result.min()), float(result.max())) == (1, 3)


@pytest.mark.parametrize(("function", "limits"), ALL)
def test_types_shapes_and_independence(
    function: Callable[[Tensor, Tensor], Tensor], limits: tuple[float, float]
) -> None:
    x = images(3, 2, 24, 20)
    values = parameters((3, 2), limits)
    kept = x.clone()
    result = function(x, values)
    assert torch.equal(x, kept)
    assert result.shape == x.shape
    assert result.dtype == torch.float64
    single = function(x.float(), values)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), result, rtol=0, atol=2e-5)
    for i in range(3):
        for c in range(2):
            alone = function(x[i, c], values[i, c])
            torch.testing.assert_close(alone, result[i, c], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("function", "limits"), ALL)
def test_constant_images_stay_finite(function: Callable[[Tensor, Tensor], Tensor], limits: tuple[float, float]) -> None:
    x = torch.full((2, 16, 16), 2.5)
    result = function(x, parameters((2,), limits))
    if function is not brightness:
        torch.testing.assert_close(result, x, rtol=0, atol=1e-5)
    assert bool(torch.isfinite(result).all())
