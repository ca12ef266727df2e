from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fda_mri import circular_mask, fourier_transfer

Transfer = Callable[..., Any]
quick = settings(deadline=None, max_examples=25, derandomize=True)
SHAPES = [(24, 30), (25, 31), (30, 25), (8, 8), (7, 9), (48, 41), (40, 50)]
# Nothing, the mean only, narrow windows (the last with radius 5 at side 40, a whole number), wide windows, everything.
BETAS = [0.0, 0.03, 0.09, 0.11, 0.125, 0.3, 0.55, 1.0, 2.0]
shapes = st.tuples(st.integers(5, 40), st.integers(5, 40))
betas = st.floats(0, 1.2)
seeds = st.integers(0, 2**32 - 1)


def slices(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape))


def centred_spectrum(image: Tensor) -> Tensor:
    spectrum: Tensor = torch.fft.fftshift(torch.fft.fft2(image), dim=(-2, -1))
    return spectrum


# Against plain numpy, slice by slice


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("output", ["authors", "formula", "clip"])
def test_equals_the_specification_in_numpy(shape: tuple[int, int], output: Any, numpy_transfer: Transfer) -> None:
    t, s = slices(0, 3, *shape) * 1.3 - 0.1, slices(1, 3, *shape)
    for beta in BETAS:
        found = fourier_transfer(t, s, beta, output=output)
        expected = [numpy_transfer(t[i].numpy(), s[i].numpy(), beta, output) for i in range(3)]
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("phase", [False, True])
@pytest.mark.parametrize("average_styles", [False, True])
@pytest.mark.parametrize("window", ["circle", "authors_rectangle"])
@pytest.mark.parametrize("output", ["authors", "formula", "clip"])
def test_options_equal_the_specification(
    phase: bool, average_styles: bool, window: Any, output: Any, numpy_transfer: Transfer
) -> None:
    for shape in ((24, 30), (25, 31)):
        t, s = slices(2, *shape), slices(3, *((3, *shape) if average_styles else shape))
        for beta in (0.0, 0.05, 0.1, 0.45):
            options = {"output": output, "average_styles": average_styles, "phase": phase, "window": window}
            found = fourier_transfer(t, s, beta, **options)
            expected = numpy_transfer(t.numpy(), s.numpy(), beta, **options)
            np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-12)


def test_styles_are_averaged_per_target_of_a_batch(numpy_transfer: Transfer) -> None:
    t, s = slices(4, 2, 24, 30), slices(5, 2, 3, 24, 30)
    found = fourier_transfer(t, s, 0.1, average_styles=True)
    for i in range(2):
        expected = numpy_transfer(t[i].numpy(), s[i].numpy(), 0.1, average_styles=True)
        np.testing.assert_allclose(found[i].numpy(), expected, rtol=0, atol=1e-12)


def test_averaged_styles_are_not_averaged_results() -> None:
    t, s = slices(6, 24, 30), slices(7, 3, 24, 30)
    once = fourier_transfer(t, s, 0.2, output="formula", average_styles=True)
    same = fourier_transfer(t, s[:1].expand(3, -1, -1), 0.2, output="formula", average_styles=True)
    torch.testing.assert_close(same, fourier_transfer(t, s[0], 0.2, output="formula"))
    # In the formula the result is linear in the amplitudes of s, so there the two agree; behind the modulus they do not.
    torch.testing.assert_close(once, fourier_transfer(t, s, 0.2, output="formula").mean(0))
    once, each = fourier_transfer(t, s, 0.2, average_styles=True), fourier_transfer(t, s, 0.2).mean(0)
    assert (once - each).abs().max() > 1e-4


def test_rectangle_wider_than_the_slice_holds_everything() -> None:
    t, s = slices(8, 24, 30), slices(9, 24, 30)
    whole = fourier_transfer(t, s, 2.0, output="formula")
    torch.testing.assert_close(fourier_transfer(t, s, 0.9, output="formula", window="authors_rectangle"), whole)


def test_authors_rectangle_is_not_symmetric() -> None:
    """Its result is complex, so the modulus is more than the real part (specification 2.1, item 9 c)."""
    t, s = slices(10, 24, 30), slices(11, 24, 30)
    modulus = fourier_transfer(t, s, 0.1, window="authors_rectangle")
    real = fourier_transfer(t, s, 0.1, output="formula", window="authors_rectangle").abs()
    assert (modulus - real / real.max()).abs().max() > 1e-4


# Types and shapes


@pytest.mark.parametrize("output", ["authors", "formula", "clip"])
def test_float32_agrees_with_float64(output: Any) -> None:
    for shape in (*SHAPES, (182, 218)):
        t, s = slices(12, 2, *shape), slices(13, 2, *shape)
        for beta in (0.0, 0.02, 0.1, 0.5, 1.5):
            found = fourier_transfer(t.float(), s.float(), beta, output=output)
            assert found.dtype == torch.float32
            torch.testing.assert_close(found.double(), fourier_transfer(t, s, beta, output=output), rtol=0, atol=1e-5)


def test_takes_the_type_of_the_target() -> None:
    t, s = slices(14, 24, 30), slices(15, 24, 30)
    assert fourier_transfer(t.float(), s, 0.1).dtype == torch.float32
    assert fourier_transfer(t, s.float(), 0.1).dtype == torch.float64
    whole = fourier_transfer((t * 255).to(torch.uint8), (s * 255).to(torch.uint8), 0.1)
    assert whole.dtype == torch.float32


@pytest.mark.parametrize("output", ["authors", "formula", "clip"])
def test_arrays_give_arrays(output: Any) -> None:
    t, s = slices(16, 2, 24, 30), slices(17, 2, 24, 30)
    found: Any = fourier_transfer(t.numpy(), s.numpy(), 0.1, output=output)  # type: ignore[arg-type]
    assert isinstance(found, np.ndarray)
    assert np.array_equal(found, fourier_transfer(t, s, 0.1, output=output).numpy())


@pytest.mark.parametrize("beta", [0.0, 0.05, 0.4])
def test_batches_broadcast(beta: float) -> None:
    t, s = slices(18, 4, 24, 30), slices(19, 2, 1, 24, 30)
    found = fourier_transfer(t, s, beta)
    assert found.shape == (2, 4, 24, 30)
    for i in range(2):
        for j in range(4):
            torch.testing.assert_close(found[i, j], fourier_transfer(t[j], s[i, 0], beta))
    assert fourier_transfer(t[0], s, beta).shape == (2, 1, 24, 30)
    assert fourier_transfer(t[:0], s[0], beta).shape == (0, 24, 30)


def test_inputs_stay_as_they_are() -> None:
    t, s = slices(20, 2, 24, 30), slices(21, 2, 24, 30)
    kept = t.clone(), s.clone()
    for beta in (0.0, 0.05, 0.4):
        for output in ("authors", "formula", "clip"):
            result = fourier_transfer(t, s, beta, output=output)
            result.zero_()
            assert torch.equal(t, kept[0]), (beta, output)
            assert torch.equal(s, kept[1]), (beta, output)


def test_slices_in_other_memory_orders() -> None:
    volume, sources = slices(22, 24, 30, 4), slices(23, 24, 30, 4)
    found = fourier_transfer(volume.movedim(-1, 0), sources.movedim(-1, 0), 0.1)
    for z in range(4):
        expected = fourier_transfer(volume[..., z].contiguous(), sources[..., z].contiguous(), 0.1)
        torch.testing.assert_close(found[z], expected)


# Properties (specification, section 9)


@quick
@given(seeds, shapes, betas)
def test_range_is_0_to_1_with_maximum_exactly_1(seed: int, shape: tuple[int, int], beta: float) -> None:
    for dtype in (torch.float32, torch.float64):
        result = fourier_transfer(slices(seed, *shape).to(dtype), slices(seed + 1, *shape).to(dtype), beta)
        assert result.min() >= 0
        assert result.max() == 1


@quick
@given(seeds, shapes, betas)
def test_amplitudes_inside_are_the_sources_outside_the_targets(seed: int, shape: tuple[int, int], beta: float) -> None:
    t, s = slices(seed, *shape), slices(seed + 1, *shape)
    result = fourier_transfer(t, s, beta, output="formula")
    spectrum, inside = centred_spectrum(t), circular_mask(shape, beta)
    amplitude = torch.where(inside, centred_spectrum(s).abs(), spectrum.abs())
    torch.testing.assert_close(centred_spectrum(result), torch.polar(amplitude, spectrum.angle()), rtol=0, atol=1e-9)
    # Parseval
    torch.testing.assert_close(result.square().sum(), amplitude.square().sum() / (shape[0] * shape[1]))


@quick
@given(seeds, shapes, betas)
def test_change_is_band_limited(seed: int, shape: tuple[int, int], beta: float) -> None:
    t, s = slices(seed, *shape), slices(seed + 1, *shape)
    change = centred_spectrum(fourier_transfer(t, s, beta, output="formula") - t)
    assert not (change.abs() > 1e-9)[~circular_mask(shape, beta)].any()


@quick
@given(seeds, shapes, betas, st.integers(-40, 40), st.integers(-40, 40))
def test_cyclic_shifts(seed: int, shape: tuple[int, int], beta: float, down: int, right: int) -> None:
    t, s = slices(seed, *shape), slices(seed + 1, *shape)
    for output in ("authors", "formula"):
        result = fourier_transfer(t, s, beta, output=output)
        shifted_s, shifted_t = (image.roll((down, right), (0, 1)) for image in (s, t))
        torch.testing.assert_close(fourier_transfer(t, shifted_s, beta, output=output), result, rtol=0, atol=1e-10)
        moved = fourier_transfer(shifted_t, s, beta, output=output)
        torch.testing.assert_close(moved, result.roll((down, right), (0, 1)), rtol=0, atol=1e-10)


@quick
@given(seeds, shapes, betas, st.floats(1e-3, 1e3))
def test_common_scale(seed: int, shape: tuple[int, int], beta: float, scale: float) -> None:
    t, s = slices(seed, *shape), slices(seed + 1, *shape)
    scaled = fourier_transfer(scale * t, scale * s, beta)
    torch.testing.assert_close(scaled, fourier_transfer(t, s, beta), rtol=0, atol=1e-9)
    scaled = fourier_transfer(scale * t, scale * s, beta, output="formula")
    torch.testing.assert_close(scaled, scale * fourier_transfer(t, s, beta, output="formula"), rtol=1e-9, atol=1e-9)


@quick
@given(seeds, st.lists(betas, min_size=1, max_size=3))
def test_a_batch_is_its_slices(seed: int, several: list[float]) -> None:
    t, s = slices(seed, 5, 24, 30), slices(seed + 1, 5, 24, 30)
    for beta in several:
        single = torch.stack([fourier_transfer(a, b, beta) for a, b in zip(t, s, strict=True)])
        torch.testing.assert_close(fourier_transfer(t, s, beta), single, rtol=0, atol=1e-12)


@quick
@given(shapes, betas)
def test_window_is_a_disc_without_its_edge(shape: tuple[int, int], beta: float) -> None:
    h, w = shape
    mask = circular_mask(shape, beta)
    assert mask.shape == shape
    assert mask.dtype == torch.bool
    for y, x in ((h // 2, w // 2), (0, 0), (h - 1, 0), (h // 2, w - 1), (h // 3, w // 4)):
        distance = ((y - h // 2) ** 2 + (x - w // 2) ** 2) ** 0.5
        assert bool(mask[y, x]) == (distance < beta * min(h, w))


# Slices without content


@pytest.mark.parametrize("beta", [0.0, 0.01, 0.1, 0.5, 2.0])
def test_blank_target_stays_blank(beta: float) -> None:
    t, s = slices(24, 3, 48, 56), slices(25, 3, 48, 56)
    t[1] = 0
    result = fourier_transfer(t, s, beta)
    assert not result[1].any()
    assert (result[::2].amax((1, 2)) == 1).all()


@pytest.mark.parametrize("beta", [0.0, 0.01, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("value", [0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blank_source(beta: float, value: float, dtype: torch.dtype) -> None:
    t, s = slices(26, 48, 56).to(dtype), torch.zeros(48, 56, dtype=dtype)
    assert torch.isfinite(fourier_transfer(t, s, beta)).all()
    # A constant target has no other frequency than the one that is taken away.
    result = fourier_transfer(torch.full_like(t, value), s, beta)
    assert (result == (1 if beta == 0 else 0)).all()


# Bad input


def test_slices_of_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="source slices are 24 x 31, target slices 24 x 30"):
        fourier_transfer(torch.rand(24, 30), torch.rand(24, 31), 0.1)


@pytest.mark.parametrize("beta", [-0.1, float("nan"), float("inf")])
def test_bad_beta_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match="beta is"):
        fourier_transfer(torch.rand(24, 30), torch.rand(24, 30), beta)
    with pytest.raises(ValueError, match="beta is"):
        circular_mask((24, 30), beta)


@pytest.mark.parametrize("options", [{"output": "real"}, {"window": "square"}])
@pytest.mark.parametrize("beta", [0.0, 0.05, 0.5])
def test_unknown_options_are_refused(options: Any, beta: float) -> None:
    with pytest.raises(ValueError, match="unknown"):
        fourier_transfer(torch.rand(24, 30), torch.rand(24, 30), beta, **options)
