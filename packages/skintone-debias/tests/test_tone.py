"""The labeller against the values of the specification (section 9), SciPy, OpenCV, Pillow and scikit-image."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2lab

from dart_core.errors import InputError
from skintone_debias import fitzpatrick_type, individual_typology_angle, label_skin_tone, remove_hair
from skintone_debias.tone import CORNERS, PATCH, hair_free_patches, middle_square, tone_of_square

Skin = Callable[..., np.ndarray]
INFINITE = math.inf


def uniform(*colour: int, size: tuple[int, int] = (256, 256)) -> np.ndarray:
    return np.full((*size, 3), colour, np.uint8)


def patches_of(picture: np.ndarray) -> np.ndarray:
    """Rows and columns as the specification lists them (A4)."""
    return np.stack([
        picture[230:250, 115:135], picture[5:25, 115:135], picture[115:135, 5:25], picture[115:135, 230:250],
        picture[216:236, 216:236], picture[216:236, 20:40], picture[20:40, 20:40], picture[20:40, 216:236],
    ])  # fmt: skip


def near_patches(distance: int) -> np.ndarray:
    """Pixels at most so far from a patch, along rows and columns."""
    near = np.zeros((256, 256), bool)
    for row, column in CORNERS:
        rows, columns = ((max(0, s - distance), s + PATCH + distance) for s in (row, column))
        near[slice(*rows), slice(*columns)] = True
    return near


def all_itas(hair_free: np.ndarray) -> np.ndarray:
    """As the authors compute them: CIELAB of the whole picture, patch by patch."""
    lab = patches_of(rgb2lab(hair_free))
    return np.array([math.degrees(math.atan((p[..., 0].mean() - 50) / p[..., 2].mean())) for p in lab])


# Angle and type


@pytest.mark.parametrize(
    ("colour", "lightness", "yellow", "ita", "kind"),
    [
        ((210, 170, 140), 72.460, 21.005, 46.917, 2), ((180, 140, 120), None, None, 34.846, 3),
        ((230, 190, 160), None, None, 55.364, 1), ((160, 110, 80), None, None, 2.153, 6),
        ((100, 70, 50), None, None, -45.555, 6), ((127, 127, 127), None, None, 89.950, 1),
        ((118, 118, 118), None, None, -89.584, 6), ((0, 0, 0), None, None, -90.0, 6),
    ],
)  # fmt: skip
def test_uniform_pictures(
    colour: tuple[int, int, int], lightness: float | None, yellow: float | None, ita: float, kind: int
) -> None:
    tone = label_skin_tone(uniform(*colour), pre_sized=True)
    assert tone.ita == pytest.approx(ita, abs=6e-4)
    assert (tone.fitzpatrick, tone.patch) == (kind, 0)  # the first one of equals
    np.testing.assert_allclose(tone.patch_itas, tone.ita, rtol=0, atol=1e-9)
    if lightness is not None:
        lab = rgb2lab(uniform(*colour))[0, 0]
        assert lab[[0, 2]] == pytest.approx([lightness, yellow], abs=6e-4)
        assert individual_typology_angle(lightness, yellow) == pytest.approx(ita, abs=2e-3)


def test_angle() -> None:
    assert individual_typology_angle(60.0, 10.0) == pytest.approx(45)
    assert individual_typology_angle(60.0, -10.0) == pytest.approx(-45)  # bluish and light: dark
    assert individual_typology_angle(40.0, -10.0) == pytest.approx(45)
    for zero in (0.0, -0.0):
        assert individual_typology_angle(60.0, zero) == 90
        assert individual_typology_angle(40.0, zero) == -90
        assert math.isnan(individual_typology_angle(50.0, zero))
    assert individual_typology_angle(60.0, -10.0, "atan2") == pytest.approx(135)
    assert individual_typology_angle(40.0, -10.0, angle="atan2") == pytest.approx(-135)
    assert individual_typology_angle(60.0, 0.0, "atan2") == 90
    with pytest.raises(ValueError, match="give atan or atan2"):
        individual_typology_angle(1, 2, "tan")  # type: ignore[arg-type]


def test_angle_and_type_element_by_element() -> None:
    lightness, yellow = np.array([[60.0], [40.0]], np.float32), np.array([10.0, 5.0, 20.0], np.float32)
    angles = individual_typology_angle(lightness, yellow)
    assert angles.dtype == np.float64
    expected = [[math.degrees(math.atan((L - 50) / b)) for b in (10, 5, 20)] for L in (60, 40)]
    np.testing.assert_allclose(angles, expected)
    types = fitzpatrick_type(angles)
    assert types.shape == (2, 3)
    assert types.dtype == np.int64
    assert types.tolist() == [[2, 1, 4], [6, 6, 6]]
    tensors = torch.from_numpy(lightness).requires_grad_(), torch.from_numpy(yellow)
    np.testing.assert_array_equal(individual_typology_angle(*tensors), angles)
    np.testing.assert_array_equal(fitzpatrick_type(torch.from_numpy(angles)), types)


def test_bounds_belong_to_the_darker_type() -> None:
    assert [fitzpatrick_type(v) for v in (55, 41, 28, 19, 10)] == [2, 3, 4, 5, 6]
    above = [float(np.nextafter(v, 90)) for v in (55.0, 41.0, 28.0, 19.0, 10.0)]
    assert [fitzpatrick_type(v) for v in above] == [1, 2, 3, 4, 5]
    assert [fitzpatrick_type(v) for v in (INFINITE, -INFINITE, 90, -90)] == [1, 6, 1, 6]
    # Of the empirical bounds the first one belongs to the lighter type.
    assert [fitzpatrick_type(v, "empirical") for v in (45, 28, 17, 5, -20)] == [1, 3, 4, 5, 6]
    above = [float(np.nextafter(v, 90)) for v in (28.0, 17.0, 5.0, -20.0)]
    assert [fitzpatrick_type(v, "empirical") for v in above] == [2, 3, 4, 5]
    assert fitzpatrick_type(float(np.nextafter(45.0, 0)), bands="empirical") == 2
    for bands in ("kinyanjui", "empirical"):
        assert fitzpatrick_type(math.nan, bands) == -1
        assert type(fitzpatrick_type(np.float32(50), bands)) is int
    with pytest.raises(ValueError, match="kinyanjui or empirical"):
        fitzpatrick_type(1.0, "other")  # type: ignore[arg-type]


# Hair


def test_hair_mask_is_a_closing_with_a_cross(skin: Skin) -> None:
    picture = skin(3)
    _, mask = remove_hair(picture, return_mask=True)
    red, green, blue = picture.astype(np.int64).transpose(2, 0, 1)
    grey = (299 * red + 587 * green + 114 * blue + 500) // 1000
    cross = np.zeros((17, 17), bool)
    cross[8] = cross[:, 8] = True
    blackhat = ndimage.grey_closing(grey, footprint=cross, mode="nearest") - grey
    clear = abs(blackhat - 10.5) > 1  # Grey values that end in exactly one half may be rounded either way.
    assert mask.dtype == bool
    assert 0.02 < mask.mean() < 0.5
    assert np.array_equal(mask[clear], (blackhat > 10)[clear])
    square = ndimage.grey_closing(grey, size=(17, 17), mode="nearest") - grey
    assert (mask != (square > 10)).sum() > 100  # a square finds other pixels


def test_the_threshold_is_strict() -> None:
    for depth, found in ((10, False), (11, True)):
        picture = uniform(100, 100, 100, size=(60, 60))
        picture[:, 30] -= depth
        _, mask = remove_hair(picture, return_mask=True)
        expected = np.zeros((60, 60), bool)
        expected[:, 30] = found
        assert np.array_equal(mask, expected)


@pytest.mark.parametrize("shape", [(256, 256), (90, 140), (1, 1), (3, 300)])
def test_inpainting_is_telea_s(skin: Skin, shape: tuple[int, int]) -> None:
    picture = skin(1, height=shape[0], width=shape[1])
    before = picture.copy()
    clean, mask = remove_hair(picture, return_mask=True)
    assert np.array_equal(picture, before)
    assert clean.dtype == np.uint8
    assert np.array_equal(clean, cv2.inpaint(picture, mask.astype(np.uint8) * 255, 1, cv2.INPAINT_TELEA))
    assert np.array_equal(clean[~mask], picture[~mask])
    assert np.array_equal(remove_hair(picture), clean)
    assert np.array_equal(remove_hair(torch.from_numpy(picture)), clean)  # type: ignore[call-overload]


def test_hair_removal_saves_the_angle() -> None:
    picture = uniform(210, 170, 140)
    picture[:, 125] = 40  # a line through the top and bottom patches
    truth, raw = 46.917, tone_of_square(picture, patches=patches_of)
    assert 2 < truth - raw.patch_itas[0] < 5
    clean = label_skin_tone(picture, pre_sized=True)
    assert abs(clean.patch_itas[:2] - truth).max() < 0.5


@given(st.integers(0, 2**32 - 1), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_patches_are_those_of_the_hair_free_picture(skin: Skin, seed: int, hairs: int) -> None:
    """Painting over the connected hairs that lie in the patches is painting over all of them."""
    picture = skin(seed, hairs)
    assert np.array_equal(hair_free_patches(picture), patches_of(remove_hair(picture)))


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 4, 8, 16]))
@settings(max_examples=40, deadline=None)
def test_patches_in_noise(seed: int, grain: int) -> None:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (256 // grain, 256 // grain, 3), dtype=np.uint8)
    picture = small.repeat(grain, 0).repeat(grain, 1)
    assert np.array_equal(hair_free_patches(picture), patches_of(remove_hair(picture)))


@pytest.mark.real
@pytest.mark.skipif("DART_DATA" not in os.environ, reason="DART_DATA does not say where the real data sets are")
def test_real_pictures_have_the_authors_angles() -> None:
    files = sorted((Path(os.environ["DART_DATA"]) / "ham10000_sites/images").glob("*.jpg"))[::9]
    assert len(files) > 70
    hairy = 0
    for file in files:
        picture = np.asarray(Image.open(file).resize((600, 450), Image.Resampling.BICUBIC))
        square = np.asarray(Image.fromarray(picture[:, 75:525]).resize((256, 256), Image.Resampling.LANCZOS))
        clean, mask = remove_hair(square, return_mask=True)
        hairy += bool(patches_of(mask).any())
        tone = label_skin_tone(picture)
        np.testing.assert_allclose(tone.patch_itas, all_itas(clean), rtol=0, atol=1e-9)
    assert hairy > len(files) // 4


# A picture's tone


@pytest.mark.parametrize("size", [(450, 600), (600, 450), (301, 200), (256, 256), (100, 101), (40, 40), (1, 1)])
def test_any_size(skin: Skin, size: tuple[int, int]) -> None:
    picture = skin(2, height=size[0], width=size[1])
    side = min(size)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    square = Image.fromarray(picture[top : top + side, left : left + side])
    expected = np.asarray(square.resize((256, 256), Image.Resampling.LANCZOS))
    assert np.array_equal(middle_square(Image.fromarray(picture)), expected)
    tone = label_skin_tone(picture)
    np.testing.assert_allclose(tone.patch_itas, all_itas(remove_hair(expected)), rtol=0, atol=1e-9)
    assert tone.patch == tone.patch_itas.argmax()
    assert tone.ita == tone.patch_itas.max()
    assert tone.fitzpatrick == fitzpatrick_type(tone.ita)
    assert label_skin_tone(torch.from_numpy(picture)).ita == tone.ita  # type: ignore[arg-type]


def test_the_lightest_patch_wins() -> None:
    for place, (row, column) in enumerate(CORNERS):
        picture = uniform(160, 110, 80)
        picture[row : row + PATCH, column : column + PATCH] = (230, 190, 160)
        tone = label_skin_tone(picture, pre_sized=True)
        assert (tone.patch, tone.fitzpatrick) == (place, 1)
        assert tone.ita == pytest.approx(55.364, abs=6e-4)


def test_means_come_first() -> None:
    """The mean of the pixels' angles would be another number."""
    picture = uniform(210, 170, 140)
    picture[:, ::2] = (218, 162, 96)
    lab = rgb2lab(picture[:1, :2])[0]
    expected = math.degrees(math.atan((lab[:, 0].mean() - 50) / lab[:, 2].mean()))
    pixelwise = np.degrees(np.arctan((lab[:, 0] - 50) / lab[:, 2])).mean()
    tone = tone_of_square(picture, patches=patches_of)
    assert tone.ita == pytest.approx(expected, abs=1e-9)
    assert abs(expected - pixelwise) > 1


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_nothing_far_from_the_patches_matters(skin: Skin, seed: int) -> None:
    picture = skin(seed, hairs=0)
    edited, far = picture.copy(), ~near_patches(20)
    edited[far] = np.random.default_rng(seed).integers(0, 256, (far.sum(), 3), dtype=np.uint8)
    before, after = (label_skin_tone(p, pre_sized=True) for p in (picture, edited))
    assert np.array_equal(before.patch_itas, after.patch_itas)


def test_symmetry_of_the_patches() -> None:
    marks = near_patches(0)
    assert marks.sum() == 8 * 400
    assert np.array_equal(marks, marks.T)
    corners = np.zeros_like(marks)
    for row, column in CORNERS[4:]:
        corners[row : row + PATCH, column : column + PATCH] = True
    for axis in (0, 1):
        assert np.array_equal(corners, np.flip(corners, axis))
        assert not np.array_equal(marks, np.flip(marks, axis))


def test_angle_option(skin: Skin) -> None:
    picture = uniform(200, 205, 220)  # bluish
    assert label_skin_tone(picture).fitzpatrick == 6
    tone = label_skin_tone(picture, angle="atan2", bands="empirical")
    assert 90 < tone.ita < 180
    assert tone.fitzpatrick == 1


def test_neutral_patches_can_be_left_out() -> None:
    for background in ((255, 255, 255), (190, 190, 190), (0, 0, 0), (4, 3, 1), (150, 150, 170)):
        picture = uniform(180, 140, 120)
        picture[:, :64] = background  # left, bottom left and top left
        tone = label_skin_tone(picture, reject_neutral=True)
        assert tone.neutral.tolist() == [False, False, True, False, False, True, True, False]
        assert (tone.patch, tone.fitzpatrick) == (0, 3)
        assert tone.ita == pytest.approx(34.846, abs=6e-4)
        assert np.isfinite(tone.patch_itas).all()
    picture = uniform(180, 140, 120)
    picture[:, :64] = 190
    assert label_skin_tone(picture).fitzpatrick == 1  # without the option
    tone = label_skin_tone(uniform(127, 127, 127), reject_neutral=True)
    assert (tone.fitzpatrick, tone.patch) == (-1, -1)
    assert math.isnan(tone.ita)
    assert np.isfinite(tone.patch_itas).all()


@pytest.mark.parametrize(("gap", "patch"), [(0, 1), (5, 0), (slice(None), -1)])
def test_a_patch_without_angle_does_not_decide(
    gap: int | slice, patch: int, monkeypatch: pytest.MonkeyPatch, skin: Skin
) -> None:
    """L* 50 with b* 0 has none; where it stands in the list must not matter."""

    def lab(patches: np.ndarray) -> np.ndarray:
        found = np.full(patches.shape, (60.0, 0.0, 10.0))
        found[gap] = (50.0, 0.0, 0.0)
        return found

    monkeypatch.setattr("skintone_debias.tone.rgb2lab", lab)
    tone = label_skin_tone(skin())
    assert (tone.patch, tone.fitzpatrick) == (patch, 2 if patch >= 0 else -1)
    assert np.isnan(tone.patch_itas).any()


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((300, 300), np.uint8), np.zeros((300, 300, 4), np.uint8), np.zeros((300, 300, 1), np.uint8),
        np.zeros((300, 300, 3), np.float32), np.zeros((300, 300, 3), np.uint16), np.zeros((0, 300, 3), np.uint8),
        np.zeros((2, 300, 300, 3), np.uint8), "picture.png", None, [[[1, 2, 3]], [[1, 2, 3], [1, 2, 3]]],
    ],
    ids=["grey", "rgba", "one channel", "float", "16-bit", "empty", "two", "name", "none", "ragged"],
)  # fmt: skip
def test_what_is_no_picture(picture: Any) -> None:
    for function in (label_skin_tone, remove_hair):
        with pytest.raises(
            InputError, match=r"(not uint8 \(H, W, 3\)|the picture is no array \(.*\)); convert it to 8-bit"
        ):
            function(picture)
    tone = label_skin_tone(picture, on_error=-1)
    assert (tone.fitzpatrick, tone.patch) == (-1, -1)
    assert math.isnan(tone.ita)
    assert np.isnan(tone.patch_itas).all()
    assert tone.patch_itas.shape == (8,)


def test_only_a_picture_can_be_an_error_that_becomes_a_label() -> None:
    """A mistake in the call is one, however errors are taken (A8)."""
    picture = uniform(210, 170, 140)
    with pytest.raises(InputError, match="on_error is 0; give raise or -1"):
        label_skin_tone(picture, on_error=0)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="bands is 'groh'"):
        label_skin_tone(picture, on_error=-1, bands="groh")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="angle is 'tan'"):
        label_skin_tone(picture, on_error=-1, angle="tan")  # type: ignore[arg-type]


def test_pre_sized_takes_one_size_only() -> None:
    """At 224 the first patch would be empty; from a larger picture the top left corner would be taken."""
    for size in ((224, 224), (512, 512), (256, 257)):
        with pytest.raises(ValueError, match=f"is {size[1]} x {size[0]}, not 256 x 256 pixels; leave out pre_sized"):
            label_skin_tone(uniform(210, 170, 140, size=size), True)
        assert label_skin_tone(uniform(210, 170, 140, size=size), True, -1).fitzpatrick == -1
        assert label_skin_tone(uniform(210, 170, 140, size=size)).fitzpatrick == 2
