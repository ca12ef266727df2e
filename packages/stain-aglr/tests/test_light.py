"""HED-light's operations against SciPy and Pillow, and the recipe as a whole (specification 2.3, 11)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from scipy import ndimage

from stain_aglr import (
    HEDLight,
    add_noise,
    adjust_brightness,
    adjust_contrast,
    elastic_deform,
    gaussian_blur,
    scale_patches,
)
from stain_aglr.light import displacements, quantised, quarter_turns_and_flips, random_turns

RNG = np.random.default_rng(0)
PATCHES = RNG.random((4, 3, 24, 31))
X = torch.from_numpy(PATCHES)


def pillow(enhancer, patch, factor):
    image = Image.fromarray((patch.transpose(1, 2, 0) * 255).astype(np.uint8))
    return np.asarray(enhancer(image).enhance(factor), dtype=float).transpose(2, 0, 1)


def test_brightness_is_pillows():
    x = np.floor(PATCHES * 255) / 255
    factors = (0.65, 0.9, 1.2, 1.35)
    found = adjust_brightness(torch.from_numpy(x), factors).numpy() * 255
    expected = np.stack([pillow(ImageEnhance.Brightness, p, f) for p, f in zip(x + 1e-9, factors, strict=True)])
    assert np.abs(found - expected).max() < 1 + 1e-9  # Pillow cuts fractions of a grey level off


def test_contrast_is_pillows():
    x = np.floor(PATCHES * 255) / 255
    factors = (0.5, 0.9, 1.2, 1.5)
    found = adjust_contrast(torch.from_numpy(x), factors).numpy() * 255
    expected = np.stack([pillow(ImageEnhance.Contrast, p, f) for p, f in zip(x + 1e-9, factors, strict=True)])
    assert np.abs(found - expected).max() < 1 + 1e-9


def test_contrast_by_hand():
    x = torch.tensor([0.2, 0.4, 0.6], dtype=torch.float64).view(1, 3, 1, 1)
    m = math.floor(255 * (0.299 * 0.2 + 0.587 * 0.4 + 0.114 * 0.6) + 0.5) / 255
    np.testing.assert_allclose(
        adjust_contrast(x, [1.5]).ravel(), [m + 1.5 * (v - m) for v in (0.2, 0.4, 0.6)], rtol=1e-12
    )


@pytest.mark.parametrize("operation", [adjust_brightness, adjust_contrast, scale_patches])
def test_factor_one_is_the_identity(operation):
    x = X if operation is not adjust_contrast else X * 0.98 + 0.01
    torch.testing.assert_close(operation(x, torch.ones(4)), x, rtol=1e-12, atol=1e-12)


def test_blur_is_scipys():
    sigmas = (0.1, 0.6, 1.0, 3.0)
    expected = [ndimage.gaussian_filter(p, (0, s, s)) for p, s in zip(PATCHES, sigmas, strict=True)]
    np.testing.assert_allclose(gaussian_blur(X, sigmas), expected, rtol=1e-12)
    np.testing.assert_allclose(gaussian_blur(X.float(), sigmas), expected, rtol=1e-5)
    assert torch.equal(gaussian_blur(X, 0.1), X)
    torch.testing.assert_close(gaussian_blur(X, 0.0), X)


def scaled(patch, factor):
    """As the specification says it, with NumPy and SciPy."""
    size = patch.shape[1:]
    if factor < 1:
        pads = [math.ceil(side * (1 / factor - 1) / 2) for side in size]
        patch = np.pad(patch, ((0, 0), *((p, p) for p in pads)), mode="reflect")
    zoomed = ndimage.zoom(patch, (1, factor, factor), order=1, mode="reflect")
    top, left = ((big - side) // 2 for big, side in zip(zoomed.shape[1:], size, strict=True))
    return zoomed[:, top : top + size[0], left : left + size[1]]


def test_scaling_is_scipys():
    factors = (0.8, 0.93, 1.07, 1.2)
    expected = [scaled(p, f) for p, f in zip(PATCHES, factors, strict=True)]
    np.testing.assert_allclose(scale_patches(X, factors), expected, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(scale_patches(X.float(), factors), expected, rtol=1e-5, atol=1e-6)


def test_elastic_deformation_is_scipys():
    drow, dcol = RNG.normal(0, 6, (2, 24, 31))
    places = np.mgrid[:24, :31] + (drow, dcol)
    expected = [[ndimage.map_coordinates(c, places, order=1, mode="reflect") for c in p] for p in PATCHES]
    np.testing.assert_allclose(elastic_deform(X, drow, dcol), expected, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(elastic_deform(X.float(), drow, dcol), expected, rtol=1e-5, atol=2e-6)
    own = elastic_deform(X, np.stack([drow, drow, drow * 0, drow]), np.stack([dcol, dcol, dcol * 0, dcol]))
    np.testing.assert_allclose(own[1], expected[1], rtol=1e-11, atol=1e-13)
    assert torch.equal(own[2], X[2])


def test_displacements_are_scipys():
    noise = RNG.uniform(-1, 1, (2, 2, 24, 31))
    expected = [
        [a * ndimage.gaussian_filter(c, s, mode="constant") for c in n]
        for n, s, a in zip(noise, (9, 11), (80, 120), strict=True)
    ]
    np.testing.assert_allclose(
        displacements(torch.from_numpy(noise), (9, 11), (80, 120)), expected, rtol=1e-10, atol=1e-12
    )


def test_displacements_move_about_a_pixel_and_a_half():
    noise = torch.rand((4, 2, 256, 256), generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert 1.4 < float(displacements(noise, 10.0, 100.0).std()) < 1.8


def test_noise():
    noise = RNG.normal(size=PATCHES.shape)
    expected = np.clip(PATCHES + np.array([0, 0.05, 0.1, 0.5])[:, None, None, None] * noise, 0, 1)
    np.testing.assert_allclose(add_noise(X, [0, 0.05, 0.1, 0.5], torch.from_numpy(noise)), expected, rtol=1e-12)


def test_turns_and_flips():
    x = torch.rand(16, 3, 6, 6)
    turns = torch.arange(4).repeat(4)
    across, down = torch.arange(16) // 4 % 2 == 1, torch.arange(16) // 8 == 1
    found = quarter_turns_and_flips(x, turns, across, down)
    for i in range(16):
        expected = torch.rot90(x[i], int(turns[i]), (1, 2))
        expected = expected.flip(-1) if across[i] else expected
        assert torch.equal(found[i], expected.flip(-2) if down[i] else expected)


def test_turns_of_patches_that_are_not_square():
    found = quarter_turns_and_flips(
        X, torch.tensor([0, 1, 2, 3]), torch.zeros(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)
    )
    assert torch.equal(found[:2], X[:2])
    assert torch.equal(found[2:], X[2:].flip(-1, -2))


def test_all_eight_positions_are_drawn_alike():
    x = torch.arange(9.0).view(1, 1, 3, 3).expand(4000, 3, 3, 3)
    found, counts = random_turns(x, torch.Generator().manual_seed(0)).flatten(1).unique(dim=0, return_counts=True)
    assert len(found) == 8
    assert (counts - 500).abs().max() < 100  # 4.5 standard deviations


@pytest.mark.parametrize(("how", "level"), [("round", 128), ("truncate", 127), ("none", 127.6)])
def test_quantise(how, level):
    assert float(quantised(torch.tensor(127.6 / 255, dtype=torch.float64), how) * 255) == pytest.approx(level)


def test_quantise_refuses_other_words():
    with pytest.raises(ValueError, match="quantise is 'up'"):
        quantised(X, "up")  # type: ignore[arg-type]


def test_recipe_shares_its_geometry():
    """Without any change of appearance the two come out alike: the geometry is drawn once."""
    recipe = HEDLight(strength=0.0, quantise="none")
    x = torch.rand(6, 3, 48, 48) * 0.5 + 0.25
    raw, altered = recipe(x, torch.Generator().manual_seed(1))
    assert raw.shape == altered.shape == x.shape
    assert not torch.allclose(raw, x, atol=0.05)
    # Undo brightness, contrast and noise roughly: the pictures stay correlated pixel by pixel.
    for one, other in zip(raw, altered, strict=True):
        smooth = [gaussian_blur(t[None].double(), 2.0).flatten().numpy() for t in (one, other)]
        assert np.corrcoef(*smooth)[0, 1] > 0.6


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_recipe_range_type_and_draws(dtype):
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (x * 255).to(torch.uint8) if dtype == torch.uint8 else x.to(dtype)
    results = [HEDLight(strength=0.2)(x, torch.Generator().manual_seed(5)) for _ in range(2)]
    for raw, altered in results:
        for images in (raw, altered):
            assert images.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
            assert images.min() >= 0
            assert images.max() <= 1
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert not torch.equal(results[0][0], HEDLight()(x, torch.Generator().manual_seed(6))[0])


def test_recipe_with_rigid_geometry_only_turns():
    x = torch.rand(8, 3, 16, 16)
    raw, _ = HEDLight(spatial=False)(x, torch.Generator().manual_seed(0))
    torch.testing.assert_close(raw.flatten(2).sort(-1).values, x.flatten(2).sort(-1).values)


def test_patches_draw_for_themselves():
    x = torch.rand(1, 3, 32, 32).expand(5, -1, -1, -1)
    for images in HEDLight()(x, torch.Generator().manual_seed(0)):
        assert len({round(float(patch.mean()), 6) for patch in images}) > 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: scale_patches(X, torch.zeros(4)), "not positive"),
        (lambda: scale_patches(X, 0.2), "mirror image"),
        (lambda: gaussian_blur(X, -1.0), "negative"),
        (lambda: adjust_brightness(X, torch.ones(3)), r"factor has shape \(3,\); give \(4,\)"),
        (lambda: elastic_deform(X, np.zeros((3, 3)), np.zeros((24, 31))), "displacements have shape"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda():
    x = torch.rand(3, 3, 32, 32)
    ours = HEDLight()(x, torch.Generator().manual_seed(0))
    theirs = HEDLight()(x.cuda(), torch.Generator().manual_seed(0))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b.cpu(), atol=2 / 255, rtol=0)
