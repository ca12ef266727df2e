"""The authors' preprocessing of CTs, with hand-made volumes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from catenorm import preprocess_ct
from catenorm.preprocess import ORGANS, resize_linear, resize_nearest


def volume(depth: int = 8, side: int = 16) -> tuple[Any, Any]:
    image = np.random.default_rng(0).uniform(-400, 400, (depth, side, side))
    label = np.zeros((depth, side, side), np.uint8)
    for code in range(1, 15):
        label[3 + code % 2, code % side, 2] = code
    return image, label


@pytest.mark.parametrize(
    ("organs", "expected"),
    [
        ("single", {1: 1, 2: 2, 3: 3, 4: 4, 11: 5, 6: 6, 7: 7, 8: 8}),
        ("multi", {1: 1, 3: 2, 4: 3, 6: 4, 7: 5, 11: 6}),
    ],
)
def test_labels(organs: Any, expected: dict[int, int]) -> None:
    image, label = volume()
    _, found, _ = preprocess_ct(image, label, (1, 1, 1), organs, 16)
    turned = label[2:6, ::-1]
    for code in range(15):
        assert set(found[turned == code]) == {expected.get(code, 0)}
    assert list(ORGANS[organs].values()) == list(expected)


def test_slices_rows_and_window() -> None:
    """First - 1 to last + 1, y reversed, clipped; the size stays."""
    image, label = volume()
    found, classes, spacing = preprocess_ct(image, label, (0.7, 0.8, 3), size=16)
    np.testing.assert_array_equal(found, np.clip(image[2:6, ::-1], -125, 275))
    assert found.dtype == np.float64
    assert classes.dtype == np.uint8
    assert spacing == (0.7, 0.8, 3)


def test_organs_in_the_first_slice() -> None:
    """Where the authors' start is -1, and their result empty."""
    image, label = volume()
    label[0, 0, 0] = label[-1, 0, 0] = 6
    assert preprocess_ct(image, label, (1, 1, 1), size=16)[0].shape == (8, 16, 16)


def test_no_half_pixel_shift() -> None:
    """Sample i lies at i old / new: 0, 4/3, 8/3, ..."""
    line = np.array([0.0, 10, 20, 30])
    np.testing.assert_allclose(resize_linear(line, (3,)), [0, 40 / 3, 80 / 3])
    np.testing.assert_allclose(
        resize_linear(line, (8,)), [0, 5, 10, 15, 20, 25, 30, 30]
    )  # behind the last voxel it counts
    np.testing.assert_array_equal(resize_nearest(np.arange(4), (3,)), [0, 1, 3])
    np.testing.assert_array_equal(resize_nearest(np.arange(4), (8,)), [0, 1, 1, 2, 2, 3, 3, 3])  # halves go up


def test_size_and_spacing() -> None:
    image, label = volume(side=8)
    found, classes, spacing = preprocess_ct(image, label, (1.5, 3, 2), size=6)
    kept = np.clip(image[2:6, ::-1], -125, 275)
    at = np.arange(6) * 8 / 6
    low = at.astype(int)
    weight = at - low
    columns = kept[:, :, low] * (1 - weight) + kept[:, :, np.minimum(low + 1, 7)] * weight
    rows = columns[:, low] * (1 - weight)[:, None] + columns[:, np.minimum(low + 1, 7)] * weight[:, None]
    np.testing.assert_allclose(found, rows)
    assert classes.shape == (4, 6, 6)
    assert spacing == pytest.approx((2, 4, 2))


def test_a_third_of_the_slices() -> None:
    image, label = volume(20)
    label[5:15, 5, 5] = 1
    found, classes, spacing = preprocess_ct(image, label, (1, 1, 1), size=16, z_divisor=3)
    assert found.shape == classes.shape == (13 // 3, 16, 16)  # slices 2 to 15 are kept: 14
    assert spacing[2] == pytest.approx(14 / 4)


def test_whole_numbers_become_float32() -> None:
    image, label = volume()
    assert preprocess_ct(image.astype(np.int16), label, (1, 1, 1), size=16)[0].dtype == np.float32


@pytest.mark.parametrize(
    ("label", "options", "words"),
    [
        (np.zeros((8, 16, 16), int), {}, "holds none of the organs"),
        (np.full((8, 16, 16), 13), {}, "holds none of the organs"),
        (np.zeros((7, 16, 16), int), {}, "do not fit"),
        (np.ones((8, 16, 16), int), {"organs": "all"}, "give single or multi"),
    ],
)
def test_bad_input(label: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        preprocess_ct(volume()[0], label, (1, 1, 1), **options)
