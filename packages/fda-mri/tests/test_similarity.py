from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dart_core.data.phantoms import head_mr
from fda_mri import sr_sim
from fda_mri.method import normalise_volume
from fda_mri.similarity import maps

quick = settings(deadline=None, max_examples=25, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
sides = st.tuples(st.integers(40, 72), st.integers(40, 72))


def image(seed: int, *shape: int) -> Tensor:
    """Smooth blobs with noise, 0 to 1, float64."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[-2], : shape[-1]] / 20
    a, b, c, d = rng.uniform(0.3, 3, 4)
    return torch.from_numpy(0.5 + 0.35 * np.sin(a * y + b) * np.cos(c * x + d) + 0.15 * rng.random(shape))


@pytest.fixture(scope="module")
def heads() -> Tensor:
    """Slices of two subjects on three scanners, (6, 88, 104) float64."""
    found = []
    for subject, site in [(1, "sm15"), (2, "sm15"), (1, "ge3"), (2, "ge3"), (1, "ph3"), (2, "sm3")]:
        volume, _, _ = head_mr(subject, site, (88, 104, 8))
        found.append(torch.from_numpy(normalise_volume(volume)[..., 4]))  # type: ignore[arg-type]
    return torch.stack(found).double()


# Against piq, pair by pair


@pytest.fixture(scope="module")
def piq_score() -> Any:
    piq = pytest.importorskip("piq")

    def score(x: Tensor, y: Tensor) -> float:
        # One pair per call: its batches mix the images (specification 2.2, first trap).
        return float(piq.srsim(x[None, None], y[None, None], data_range=1.0))

    return score


@pytest.mark.parametrize(
    "shape",
    [(40, 40), (48, 56), (41, 67), (120, 120), (182, 218), (383, 390), (384, 402), (641, 650), (700, 705), (897, 900)],
)
def test_equals_piq(shape: tuple[int, int], piq_score: Any) -> None:
    for seed in range(1 if max(shape) > 300 else 3):
        x, y = image(seed, *shape), image(seed + 100, *shape)
        expected = piq_score(x.float(), y.float())
        assert sr_sim(x.float(), y.float()).item() == pytest.approx(expected, abs=2e-5)
        assert sr_sim(x, y).item() == pytest.approx(piq_score(x, y), abs=1e-6)


def test_equals_piq_on_heads(heads: Tensor, piq_score: Any) -> None:
    pairs = [(i, j) for i in range(6) for j in range(6)]
    for images in (heads.float(), heads):
        first, second = (images[list(side)] for side in zip(*pairs, strict=True))
        expected = [piq_score(images[i], images[j]) for i, j in pairs]
        np.testing.assert_allclose(sr_sim(first, second).numpy(), expected, rtol=0, atol=2e-5)
    # The scores tell the pairs apart, so the tolerance means something.
    assert np.diff(np.unique(np.round(expected, 4))).min() > 5e-5
    assert len(np.unique(np.round(expected, 4))) == 16


def test_data_range() -> None:
    x, y = image(0, 48, 56), image(1, 48, 56)
    torch.testing.assert_close(sr_sim(255 * x, 255 * y, data_range=255), sr_sim(x, y))
    bytes_x, bytes_y = ((255 * i).round().to(torch.uint8) for i in (x, y))
    torch.testing.assert_close(
        sr_sim(bytes_x, bytes_y, data_range=255), sr_sim(bytes_x.float() / 255, bytes_y.float() / 255)
    )


# Properties (specification 9, item 7)


@quick
@given(seeds, sides)
def test_symmetric_and_1_on_identity(seed: int, shape: tuple[int, int]) -> None:
    x, y = image(seed, *shape), image(seed + 1, *shape)
    score = sr_sim(x, y)
    torch.testing.assert_close(sr_sim(y, x), score, rtol=0, atol=1e-14)
    assert 0 < score <= 1 + 1e-6
    assert sr_sim(x, x).item() == pytest.approx(1, abs=1e-9)
    assert sr_sim(x.float(), x.float()).item() == pytest.approx(1, abs=2e-6)


@quick
@given(seeds, st.integers(1, 6), st.sampled_from([torch.float32, torch.float64]))
def test_a_score_does_not_depend_on_its_batch(seed: int, count: int, dtype: torch.dtype) -> None:
    x, y = image(seed, count, 48, 56).to(dtype), image(seed + 1, count, 48, 56).to(dtype)
    # Images of quite other brightness beside the first; piq's batches differ by up to 0.01.
    x[1:] *= 0.05
    single = torch.stack([sr_sim(a, b) for a, b in zip(x, y, strict=True)])
    torch.testing.assert_close(sr_sim(x, y), single, rtol=0, atol=1e-12 if dtype == torch.float64 else 2e-6)


def test_float32_agrees_with_float64(heads: Tensor) -> None:
    x, y = heads, heads.roll(1, 0)
    found, expected = sr_sim(x.float(), y.float()), sr_sim(x, y)
    assert found.dtype == torch.float32
    assert expected.dtype == torch.float64
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_leading_dimensions_and_arrays(heads: Tensor) -> None:
    x = heads.reshape(2, 3, 88, 104)
    y = x.flip(1)
    assert sr_sim(x, y).shape == (2, 3)
    torch.testing.assert_close(sr_sim(x, y).flatten(), sr_sim(x.flatten(0, 1), y.flatten(0, 1)))
    assert sr_sim(x[0, 0], y[0, 0]).shape == ()
    found: Any = sr_sim(x.numpy(), y.numpy())  # type: ignore[arg-type]
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, sr_sim(x, y).numpy())
    assert isinstance(sr_sim(x.numpy(), y), np.ndarray)  # type: ignore[arg-type]


def test_inputs_stay_as_they_are(heads: Tensor) -> None:
    kept = heads.clone()
    sr_sim(heads, heads.flip(0))
    assert torch.equal(heads, kept)


def test_closer_scanners_score_higher(heads: Tensor) -> None:
    """Noise lowers the score step by step."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(88, 104, generator=rng, dtype=torch.float64)
    scores = [sr_sim(heads[0], heads[0] + level * noise).item() for level in (0, 0.01, 0.03, 0.1, 0.3)]
    assert scores == sorted(scores, reverse=True)


def test_maps_have_the_sizes_of_the_specification() -> None:
    found = maps(torch.rand(3, 41, 67, dtype=torch.float64))
    assert found.saliency.shape == (3, 11, 17)  # a quarter, rounded up
    assert found.gradient.shape == (3, 41, 67)
    assert found.saliency.amin((1, 2)).tolist() == [0, 0, 0]
    torch.testing.assert_close(found.saliency.amax((1, 2)), torch.ones(3, dtype=torch.float64))


def test_gradient_of_a_ramp() -> None:
    """Scharr: 16 times the slope across two pixels over 16; zero padding at the border."""
    ramp = torch.arange(56, dtype=torch.float64).expand(1, 48, 56) / 255
    gradient = maps(ramp).gradient
    torch.testing.assert_close(gradient[:, 1:-1, 1:-1], torch.full((1, 46, 54), 2.0, dtype=torch.float64))


# Bad input


@pytest.mark.parametrize("shape", [(39, 60), (60, 39), (2, 20, 20)])
def test_small_sides_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="SR-SIM needs sides of at least 40 pixels"):
        sr_sim(torch.rand(shape), torch.rand(shape))


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images have shapes \(48, 56\) and \(56, 48\)"):
        sr_sim(torch.rand(48, 56), torch.rand(56, 48))
