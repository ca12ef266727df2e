"""DSCSI GAN: the similarity against a plain NumPy version, sizes, features, losses (specification 4.5 and 11)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve

from stain_aglr import DSCSIDiscriminator, DSCSIGenerator, dscsi_similarity
from stain_aglr.dscsi import FeatureKeeper, feature_loss, levels_of, shifted


def lab(seed: int, size: int = 20) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    values = np.stack(
        [rng.uniform(20, 95, (size, size)), rng.uniform(-20, 60, (size, size)), rng.uniform(-60, 20, (size, size))]
    )
    return torch.from_numpy(values)[None]


def by_the_formulas(one: Any, other: Any) -> float:
    """Specification 4.5 with the corrections of 11, literally, Hc included."""
    grid = np.arange(7) - 3
    w = np.exp(-(grid[:, None] ** 2 + grid[None] ** 2) / 2)
    w /= w.sum()

    def conv(x: Any, window: Any = w) -> Any:
        return convolve(x, window, mode="constant")

    def parts(image: Any) -> tuple[Any, ...]:
        light, a, b = image
        h, c = np.arctan(b / a), np.hypot(a, b)
        hue = np.arctan(conv(np.sin(h)) / conv(np.cos(h)))
        v = 1 - np.sqrt(conv(np.cos(h) ** 2, w**2) + conv(np.sin(h) ** 2, w**2)) / 49
        return (
            hue,
            v,
            conv(c),
            np.sqrt(conv((c - conv(c)) ** 2)),
            np.sqrt(conv((light - conv(light)) ** 2)),
            light - conv(light),
        )

    h1, v1, c1, s1, l1, d1 = parts(one)
    h2, v2, c2, s2, l2, d2 = parts(other)
    d = np.pi - np.abs(np.pi - np.abs(h1 - h2))
    hl = 1 - (0.5 + 0.5 * np.tanh((d - 0.2 * np.pi) / (0.35 * 0.2 * np.pi)))
    hc = (2 * v1 * v2 + 8e-4) / (v1**2 + v2**2 + 8e-4)
    cl = 1 / (8e-4 * (c1 - c2) ** 2 + 1)
    cc = (2 * s1 * s2 + 16) / (s1**2 + s2**2 + 16)
    lc = (2 * l1 * l2 + 0.8) / (l1**2 + l2**2 + 0.8)
    ls = (np.abs(conv(d1 * d2)) + 0.8) / (l1 * l2 + 0.8)
    return float(lc.mean() * ls.mean() * (hl.mean() * hc.mean() * cl.mean() * cc.mean()) ** 0.8)


@pytest.mark.parametrize("seed", range(3))
def test_similarity_by_the_formulas(seed: int) -> None:
    one, other = lab(seed), lab(seed) * 0.9 + 0.1 * lab(seed + 10)
    assert float(dscsi_similarity(one, other)) == pytest.approx(
        by_the_formulas(one[0].numpy(), other[0].numpy()), rel=1e-9
    )


def test_a_patch_with_itself_has_0_9974() -> None:
    expected = (1 - (0.5 + 0.5 * np.tanh(-1 / 0.35))) ** 0.8
    assert expected == pytest.approx(0.9974, abs=5e-5)
    assert float(dscsi_similarity(lab(0), lab(0))) == pytest.approx(expected, abs=1e-9)


def test_mean_over_the_batch_symmetric_and_below_one() -> None:
    a, b = torch.cat([lab(0), lab(1)]), torch.cat([lab(2), lab(1)])
    both = dscsi_similarity(a, b)
    assert both.shape == ()
    assert float(both) == pytest.approx(float(dscsi_similarity(a[:1], b[:1]) + dscsi_similarity(a[1:], b[1:])) / 2)
    assert float(both) == pytest.approx(float(dscsi_similarity(b, a)))
    assert float(dscsi_similarity(a[:1], b[:1])) < 0.9


@pytest.mark.parametrize("colour", [(100.0, 0.0, 0.0), (0.0, 0.0, 0.0), (50.0, 0.0, 10.0)])
def test_gradient_is_finite_where_nothing_varies(colour: tuple[float, ...]) -> None:
    flat = torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 12, 12).clone().requires_grad_(True)
    value = dscsi_similarity(lab(0, 12).float(), flat)
    value.backward()
    assert value.isfinite()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_gradient_of_the_similarity() -> None:
    other = lab(1, 8).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: dscsi_similarity(lab(0, 8), x), (other,), atol=1e-5)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="give two batches"):
        dscsi_similarity(lab(0), lab(0)[0])


def test_sizes_are_those_of_the_authors() -> None:
    assert sum(p.numel() for p in DSCSIGenerator().parameters()) == 3_362_307
    assert sum(p.numel() for p in DSCSIDiscriminator().parameters()) == 11_197_793


@pytest.mark.parametrize("size", [16, 32, 64])
def test_shapes(size: int) -> None:
    x = torch.rand(2, 3, size, size) * 2 - 1
    made = DSCSIGenerator(4)(x)
    assert made.shape == x.shape
    assert made.abs().max() <= 1
    assert DSCSIDiscriminator(size, 2)(x).shape == (2,)
    with pytest.raises(ValueError, match="divisible by 8"):
        DSCSIGenerator(4)(x[:, :, :12])
    with pytest.raises(ValueError, match="power of two"):
        DSCSIDiscriminator(size + 1)


@pytest.mark.parametrize(("size", "values"), [(256, 4), (128, 4), (64, 4), (32, 1)])
def test_features_of_the_classifier(size: int, values: int) -> None:
    """A 7x7 window on the 8x8 map of 256 pixels; smaller maps keep 2x2 values as well."""
    keeper = FeatureKeeper("resnet10t", size=size).eval()
    with torch.no_grad():
        assert keeper.features(torch.zeros(1, 3, size, size)).shape == (1, 512 * values)


def test_feature_loss_averages_over_all_elements() -> None:
    real, made = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    p, q = real.softmax(1), made.softmax(1)
    assert float(feature_loss(real, made)) == pytest.approx(float((p * (p / q).log()).mean()), rel=1e-5)
    assert float(feature_loss(real, real)) == pytest.approx(0, abs=1e-7)


def test_scales() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(levels_of(shifted(every)), every)
    assert float(shifted(torch.tensor([0], dtype=torch.uint8))) == -1
