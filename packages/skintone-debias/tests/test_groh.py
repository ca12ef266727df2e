"""Groh's labeller against its steps taken one after the other, as the notebook takes them (specification 4.1)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.color import rgb2lab, rgb2ycbcr

from skintone_debias import groh_ita, groh_skin_mask


def masked_step_by_step(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mask, and the picture whose other pixels are black; every assignment is one of the specification."""
    R, G, B = (rgb[..., k].astype(int) for k in range(3))
    R[R < 95] = 0
    G[G < 40] = 0
    B[B < 20] = 0
    R[R < G] = 0
    R[R < B] = 0
    R[abs(R - G) < 15] = 0
    R[(G == 0) | (B == 0)] = 0
    B[(R == 0) | (G == 0)] = 0
    G[(R == 0) | (B == 0)] = 0
    Y, Cb, Cr = rgb2ycbcr(np.stack([R, G, B], -1).astype(np.uint8)).transpose(2, 0, 1)
    Y[Y < 80] = 0
    Cb[Cb < 85] = 0
    Cr[Cr < 135] = 0
    Cr[Cr >= 1.5862 * Cb + 20] = 0
    Cr[Cr <= 0.3448 * Cb + 76.2069] = 0
    Cr[Cr <= -4.5652 * Cb + 234.5652] = 0
    Cr[Cr >= -1.15 * Cb + 301.75] = 0
    Cr[Cr >= -2.2857 * Cb + 432.85] = 0
    mask = (Y != 0) & (Cb != 0) & (Cr != 0)
    return mask, rgb * mask[..., None]


def ita_step_by_step(picture: np.ndarray) -> float:
    lab = rgb2lab(picture)
    means = []
    for channel in (0, 2):
        values = lab[..., channel][lab[..., channel] != 0]
        mean, std = values.mean(), values.std()
        values = values[values >= mean - std]
        values = values[values <= mean + std]
        means.append(values.mean())
    return math.degrees(math.atan2(means[0] - 50, means[1]))


@st.composite
def pictures(draw: Any) -> np.ndarray:
    """Noise around a colour, mostly one of skin, where the bounds lie."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    middle = rng.integers((90, 30, 10), (256, 220, 200))
    return np.clip(middle + rng.normal(0, 30, (24, 31, 3)), 0, 255).astype(np.uint8)


@given(pictures())
@settings(max_examples=80, deadline=None)
def test_mask(picture: np.ndarray) -> None:
    mask = groh_skin_mask(picture)
    assert mask.dtype == bool
    assert np.array_equal(mask, masked_step_by_step(picture)[0])


def test_mask_over_all_colours() -> None:
    values = np.arange(0, 256, 3, dtype=np.uint8)
    cube = np.stack(np.meshgrid(values, values, values, indexing="ij"), -1).reshape(len(values), -1, 3)
    mask = groh_skin_mask(cube)
    assert np.array_equal(mask, masked_step_by_step(cube)[0])
    assert 0.02 < mask.mean() < 0.2


@given(pictures())
@settings(max_examples=50, deadline=None)
def test_ita(picture: np.ndarray) -> None:
    assert groh_ita(picture, masked=False) == pytest.approx(ita_step_by_step(picture), abs=1e-8)
    mask, masked = masked_step_by_step(picture)
    if mask.sum() > 3:
        assert groh_ita(picture) == pytest.approx(ita_step_by_step(masked), abs=1e-8)


def test_uniform_skin() -> None:
    picture = np.full((40, 60, 3), (210, 170, 140), np.uint8)
    assert groh_skin_mask(picture).all()
    assert groh_ita(picture) == pytest.approx(46.917, abs=6e-4)
    picture[:, :25] = (0, 0, 255)
    assert groh_ita(picture) == pytest.approx(46.917, abs=6e-4)  # what is no skin does not matter
    assert groh_ita(torch.from_numpy(picture)) == pytest.approx(46.917, abs=6e-4)  # type: ignore[arg-type]


def test_a_large_picture_is_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.random.default_rng(0).integers(60, 256, (50, 40, 3), dtype=np.uint8)
    whole = groh_ita(picture), groh_ita(picture, False)
    monkeypatch.setattr("skintone_debias.groh._PART", 300)
    assert (groh_ita(picture), groh_ita(picture, False)) == pytest.approx(whole, abs=1e-9)


def test_angle_goes_all_the_way_round() -> None:
    bluish = np.full((9, 9, 3), (200, 205, 220), np.uint8)
    assert 90 < groh_ita(bluish, masked=False) < 180
    assert -90 < groh_ita(bluish, False, angle="atan") < 0


def test_no_pixel_left() -> None:
    for colour in ((0, 0, 255), (0, 0, 0), (127, 127, 127)):
        picture = np.full((8, 8, 3), colour, np.uint8)
        assert not groh_skin_mask(picture).any()
        assert math.isnan(groh_ita(picture))
    assert math.isnan(groh_ita(np.zeros((8, 8, 3), np.uint8), masked=False))  # exact zeros go


def test_what_is_no_picture() -> None:
    for picture in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3))):
        for function in (groh_skin_mask, groh_ita):
            with pytest.raises(ValueError, match=r"not uint8 \(H, W, 3\)"):
                function(picture)
