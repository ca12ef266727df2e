"""nnU-Net's preprocessing in three dimensions (that of slices is tested in adagrad-unet, against scikit-image too)."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.transform import resize

from dart_core.data.nnunet import bounding_box, crop_patch, normalise, patch_limits, resample_image, resample_labels


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("shape", [(7, 9, 5), (4, 12, 8)])
def test_volumes_are_resampled_as_by_scikit_image(order, shape):
    volume = np.random.default_rng(0).normal(size=(6, 10, 7)).astype(np.float32)
    expected = resize(volume, shape, order, mode="edge", clip=True, anti_aliasing=False, preserve_range=True)
    np.testing.assert_allclose(resample_image(volume[None], shape, order)[0], expected, atol=2e-4)


def test_labels_of_a_volume():
    labels = np.zeros((4, 4, 4), np.int8)
    labels[:2] = 3
    found = resample_labels(labels, (8, 4, 2))
    assert found.shape == (8, 4, 2)
    assert (found[:4] == 3).all()
    assert (found[4:] == 0).all()
    assert resample_labels(labels, (4, 4, 4)) is not labels


def test_crop_and_normalise():
    mask = np.zeros((4, 5, 6), bool)
    mask[1:3, 2, 4:] = True
    assert bounding_box(mask) == (slice(1, 3), slice(2, 3), slice(4, 6))
    image = np.random.default_rng(1).normal(5, 3, (1, 4, 5, 6))
    whole, inside = normalise(image), normalise(image, mask)
    assert (whole.mean(), whole.std()) == (pytest.approx(0, abs=1e-6), pytest.approx(1, abs=1e-6))
    assert inside[0][mask].std() == pytest.approx(1, abs=1e-6)
    assert not inside[0][~mask].any()


def test_patches_reach_beyond_the_image_as_far_as_they_must():
    # as in the data loader of nnU-Net: a side of 6 in a patch of 8 may start one voxel outside, of 20 only inside
    assert patch_limits(6, 8, 8) == (-1, -1)
    assert patch_limits(20, 8, 8) == (0, 12)
    assert patch_limits(20, 12, 8) == (-2, 10)
    cut = crop_patch(np.arange(6.0).reshape(1, 6), [-2], [4], -1)
    assert cut.tolist() == [[-1, -1, 0, 1]]
    volume = np.arange(27.0).reshape(1, 3, 3, 3)
    np.testing.assert_array_equal(crop_patch(volume, [1, 1, 1], [2, 2, 2], 0), volume[:, 1:, 1:, 1:])
