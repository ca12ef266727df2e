"""Rotation, flip and shift of image and labels together (2.7; 8.1, 8.2)."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from catenorm.augment import augment, rotate


def pair(size: int = 40) -> tuple[np.ndarray, np.ndarray]:
    label = np.zeros((size, size), np.int64)
    label[8:20, 10:30] = 6
    label[24:30, 5:12] = 3
    return np.repeat(label[None].astype(np.float32), 3, 0), label


def test_rotated_labels_keep_their_values() -> None:
    image, label = pair()
    turned, labels = rotate(image, label, 10)
    assert set(np.unique(labels)) == {0, 3, 6}  # bilinear rotation would make 1 to 5 beside 6
    assert labels.dtype == label.dtype
    for number in (3, 6):
        assert (labels == number).sum() == pytest.approx((label == number).sum(), rel=0.1)
    # The bilinear image of a label map agrees with the labels wherever it has a label's value.
    inside = np.isin(turned[0], (0, 3, 6))
    assert (turned[0][inside] == labels[inside]).mean() > 0.99
    np.testing.assert_allclose(turned[1], ndimage.rotate(image[1], 10, reshape=False, order=1), atol=1e-4)


def test_a_quarter_turn_is_exact() -> None:
    image, label = pair()
    turned, labels = rotate(image, label, 90)
    np.testing.assert_array_equal(labels, np.rot90(label))
    np.testing.assert_allclose(turned[0], np.rot90(image[0]), atol=1e-4)


@pytest.mark.parametrize("flips", [False, True])
def test_image_and_labels_move_together(flips: bool) -> None:
    """The image is the label map, so that after all draws each pixel's value still agrees (but at rotated borders)."""
    image, label = pair()
    flipped = shifted = still = 0
    for seed in range(60):
        moved, labels = augment(image, label, np.random.default_rng(seed), flips)
        assert (np.abs(moved[0] - labels) < 3.1).mean() > 0.999
        assert (moved[0] == labels).mean() > 0.93
        still += np.array_equal(labels, label)
        flipped += np.array_equal(labels, label[:, ::-1])
        shifted += labels.sum() == label.sum() and not np.array_equal(labels, label)
    assert still
    if not flips:
        assert flipped == 0
        assert still > 20  # half are not rotated, some by 0 degrees
    else:
        assert flipped
        assert shifted > flipped


def test_it_is_a_function_of_the_generator() -> None:
    image, label = pair()
    one, two = (augment(image, label, np.random.default_rng(5), True) for _ in range(2))
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])
