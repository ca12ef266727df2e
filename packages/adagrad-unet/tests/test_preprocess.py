"""Cropping, resampling and normalisation of arrays, against SciPy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from adagrad_unet.preprocess import (
    bounding_box,
    nonzero_mask,
    normalise,
    resample_labels,
    resample_slices,
    target_spacing,
)


def test_holes_belong_to_the_mask():
    image = np.zeros((2, 5, 5, 5))
    image[0, 1:4, 1:4, 1:4] = 3
    image[0, 2, 2, 2] = 0
    image[1, 0, 0, 0] = -1  # of another channel
    mask = nonzero_mask(image)
    assert mask.sum() == 28
    assert mask[2, 2, 2]
    assert bounding_box(mask) == (slice(0, 4),) * 3
    assert bounding_box(np.zeros((2, 3), bool)) == (slice(0, 2), slice(0, 3))


@pytest.mark.parametrize(
    ("spacings", "sizes", "expected"),
    [
        # the median of each axis
        ([(1, 1, 1), (2, 1, 1), (1.5, 1, 0.9)], [(100, 200, 200)] * 3, (1.5, 1, 1)),
        # 8 > 3 * 1 and 3 * 20 < 200: the 10th percentile of 5, 8, 10
        ([(5, 1, 1), (8, 1, 1), (10, 1, 1)], [(20, 200, 200)] * 3, (5.6, 1, 1)),
        # long voxels, but many of them
        ([(5, 1, 1), (8, 1, 1), (10, 1, 1)], [(80, 200, 200)] * 3, (8, 1, 1)),
        # not below the others
        ([(0.5, 1, 1), (8, 1, 1), (8, 1, 1), (8, 1, 1)], [(20, 200, 200)] * 4, (2.75, 1, 1)),
        ([(0.5, 1, 2), (0.5, 1, 2), (8, 1, 2), (8, 1, 2), (8, 1, 2)], [(20, 200, 200)] * 5, (2.00001, 1, 2)),
    ],
)
def test_target_spacing(spacings, sizes, expected):
    np.testing.assert_allclose(target_spacing(spacings, sizes), expected)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_slices_are_resampled_as_a_volume_would_be(order):
    """SciPy's `zoom` of the whole volume, which is what `skimage.transform.resize` calls, then its clipping."""
    volume = np.random.default_rng(0).normal(size=(3, 17, 24)).astype(np.float32)
    shape = (23, 19)
    zoomed = ndimage.zoom(
        volume.astype(float), (1, 23 / 17, 19 / 24), order=order, mode="nearest", grid_mode=True, prefilter=order > 1
    )
    expected = zoomed.clip(volume.min(), volume.max())
    np.testing.assert_allclose(resample_slices(volume, shape, order), expected, atol=2e-5)
    both = resample_slices(np.stack([volume, 100 * volume]), shape, order)
    np.testing.assert_allclose(both[1], 100 * expected, atol=2e-3)


def test_slices_of_the_right_shape_stay_as_they_are():
    volume = np.random.default_rng(0).normal(size=(3, 17, 24)).astype(np.float32)
    np.testing.assert_array_equal(resample_slices(volume, (17, 24), 3), volume)
    labels = np.random.default_rng(0).integers(-1, 3, (3, 5, 6))
    np.testing.assert_array_equal(resample_labels(labels, (5, 6)), labels)


def test_labels_go_through_their_indicators():
    labels = np.random.default_rng(1).integers(-1, 3, (4, 10, 12)).astype(np.int8)
    expected = np.zeros((4, 7, 17), np.int8)
    for label in (-1, 0, 1, 2):
        indicator = ndimage.zoom(
            (labels == label).astype(float), (1, 0.7, 17 / 12), order=1, mode="nearest", grid_mode=True
        )
        expected[indicator >= 0.5] = label
    np.testing.assert_array_equal(resample_labels(labels, (7, 17)), expected)


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=20, deadline=None)
def test_normalised_images(seed, inside_only):
    rng = np.random.default_rng(seed)
    image = rng.normal(500, 30, (2, 3, 8, 8)).astype(np.float32)
    mask = rng.random((3, 8, 8)) < 0.5
    result = normalise(image, mask if inside_only else None)
    chosen = result[:, mask] if inside_only else result.reshape(2, -1)
    np.testing.assert_allclose(chosen.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(chosen.std(1), 1, rtol=1e-5)
    if inside_only:
        assert not result[:, ~mask].any()


def test_normalising_a_constant_or_nothing():
    assert not normalise(np.full((1, 2, 4, 4), 7.0)).any()
    assert not normalise(np.ones((1, 2, 4, 4)), np.zeros((2, 4, 4), bool)).any()
