from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal

from metamedseg import greys_r, kept_slices, normalise_nonzero, resize_mask, resize_slice
from metamedseg.slices import authors_picture, minmax

VOLUME = np.array([0, 0, 2, 4, 6, 0, 8, 0, 10, 0, 0, 12.0]).reshape(3, 2, 2)


class TestNormalising:
    def test_the_example_of_the_specification(self):
        found = normalise_nonzero(VOLUME)
        assert_allclose(found[VOLUME == 0], -2.04939, rtol=1e-5)
        assert_allclose(found, (VOLUME - 7) / 3.41565, rtol=1e-5)

    @pytest.mark.parametrize(
        "volume",
        [
            np.zeros((2, 2, 2)), np.full((2, 2, 2), 5.0), np.array([[[0, 3.0, 3.0]]]),
            np.array([0, 0.1, 0.1, 0.1]),  # whose mean is not 0.1
        ],
    )  # fmt: skip
    def test_without_spread_there_are_zeros(self, volume):
        assert not normalise_nonzero(volume).any()

    def test_types(self):
        assert normalise_nonzero(VOLUME.astype(np.float32)).dtype == np.float32
        found = normalise_nonzero(torch.from_numpy(VOLUME))
        assert found.dtype == torch.float64
        assert_array_equal(found.numpy(), normalise_nonzero(VOLUME))
        assert_allclose(normalise_nonzero(VOLUME.astype(np.int16)), normalise_nonzero(VOLUME))

    @given(arrays(np.float64, (3, 3, 2), elements=st.floats(1, 1e4)), st.floats(0.01, 100))
    def test_a_scale_does_not_matter(self, volume, factor):
        if volume.std() > 1e-3 * volume.mean():
            assert_allclose(normalise_nonzero(volume * factor), normalise_nonzero(volume), rtol=1e-6, atol=1e-8)


class TestKeptSlices:
    def test_counts_are_inclusive_and_of_the_region_alone(self):
        label = np.zeros((6, 6, 5), np.uint8)
        for z, count in enumerate((0, 3, 4, 5, 4)):
            label[..., z].flat[:count] = 1
        label[3:, :, 1] = 2
        assert kept_slices(label, 1, 4).tolist() == [2, 3, 4]
        assert kept_slices(label, 2, 18).tolist() == [1]
        assert kept_slices(torch.from_numpy(label), 1, 5).tolist() == [3]

    def test_after_resizing_small_slices_have_more_pixels(self):
        label = np.zeros((8, 8, 2), np.uint8)
        label[2:6, 2:6, 1] = 1
        assert kept_slices(label, 1, 100).tolist() == []
        # 16 of 64 pixels become a fourth of the resized slice, up to its rounded corners.
        assert kept_slices(label, 1, 900, stage="resized", size=64).tolist() == [1]
        assert kept_slices(label, 1, 1025, stage="resized", size=64).tolist() == []

    @pytest.mark.parametrize("cut", [0.2, 0.5, 0.9])
    @pytest.mark.parametrize("of_maximum", [False, True])
    def test_what_is_counted_after_resizing_is_the_mask_in_use(self, cut, of_maximum):
        label = np.zeros((20, 20, 3), np.uint8)
        label[4:15, 6, 0] = label[4:15, 6:9, 1] = label[4:15, 3:14, 2] = 1
        counts = [int(resize_mask(label[..., z], 8, cut, of_maximum).sum()) for z in range(3)]
        assert len(set(counts)) > 1
        for least in range(1, 30):
            expected = [z for z, count in enumerate(counts) if count >= least]
            assert kept_slices(label, 1, least, "resized", 8, cut, of_maximum).tolist() == expected


class TestResizing:
    def test_a_ramp_stays_a_ramp(self):
        ramp = np.tile(np.arange(8.0), (8, 1))
        found = resize_slice(ramp, 32)
        assert found.shape == (32, 32)
        # Pixel centres keep their place: (i + 0.5) / 4 - 0.5.
        assert_allclose(found[:, 2:-2], np.tile((np.arange(32) + 0.5) / 4 - 0.5, (32, 1))[:, 2:-2], atol=1e-9)
        assert_allclose(resize_slice(torch.from_numpy(ramp), 32).numpy(), found)

    def test_shrinking_smooths(self):
        stripes = np.tile(np.array([0.0, 1.0]), (64, 32))
        inner = resize_slice(stripes, 16)[4:-4, 4:-4]
        assert abs(inner - 0.5).max() < 0.1

    def test_masks_are_cut_at_a_half(self):
        mask = np.zeros((10, 10), bool)
        mask[2:8, 3:7] = True
        found = resize_mask(mask, 40)
        assert found.dtype == bool
        assert abs(found.mean() - mask.mean()) < 0.02
        assert resize_mask(mask.astype(np.uint8), 40, cut=0.3).sum() > found.sum()
        assert resize_mask(torch.from_numpy(mask), 40).dtype == torch.bool

    def test_a_cut_of_the_maximum_keeps_what_is_thin(self):
        line = np.zeros((32, 32))
        line[:, 9] = 1
        resized = resize_slice(line, 8)
        assert 0 < resized.max() < 0.4235
        assert not resize_mask(line, 8, 0.4235).any()
        assert_array_equal(resize_mask(line, 8, 0.4235, of_maximum=True), resized > 0.4235 * resized.max())
        assert not resize_mask(np.zeros((32, 32)), 8, 0.4235, of_maximum=True).any()


class TestGreys:
    def test_what_the_specification_says(self):
        levels = np.arange(256)
        found = greys_r(levels)
        assert (found[0], found[128], found[160], found[255]) == (0, 151, 190, 255)
        assert 28 <= abs(found.astype(int) - levels).max() <= 30
        assert (np.diff(found.astype(int)) >= 0).all()
        assert min(levels[found > 127.5]) / 255 == pytest.approx(0.4235, abs=1e-4)
        assert_array_equal(greys_r(torch.arange(256)).numpy(), found)

    def test_pictures(self):
        image = np.linspace(-3, 5, 64).reshape(8, 8)
        found = authors_picture(image)
        assert (found.min(), found.max()) == (0, 1)
        assert (found - minmax(image)).max() > 0.08
        assert not minmax(np.full((2, 2), 7.0)).any()
