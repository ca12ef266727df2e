from __future__ import annotations

from collections import Counter

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy import ndimage

from dart_core.data.datalist import Datalist, problems
from dart_core.data.phantoms import SCANNERS, head_mr, write_head_mr
from dart_core.data.volumes import Volume, read_mask, read_volume, resample_to, scale_percentile
from dart_core.errors import OutputError, SettingError

SAME_GRID = ("sm15", "ge3", "ph15", "ph3")


def histogram(site: str) -> np.ndarray:
    """Share of each intensity, after scaling to 0..1, over the heads of three subjects."""
    heads = [scale_percentile(head_mr(subject, site)[0]) for subject in range(3)]
    return np.histogram(np.concatenate([head[head > 0.05] for head in heads]), bins=50, range=(0, 1))[0] / 1e4


class TestHead:
    @given(subject=st.integers(0, 10_000), site=st.sampled_from(sorted(SCANNERS)), seed=st.integers(0, 99))
    @settings(deadline=None, max_examples=15)
    def test_a_head_is_a_plausible_head(self, subject, site, seed):
        image, brain, spacing = head_mr(subject, site, seed=seed)
        assert image.shape == brain.shape == (64, 72, 48)
        assert (image.dtype, brain.dtype) == (np.float32, np.bool_)
        assert np.isfinite(image).all()
        assert image.min() >= 0
        # An adult brain with its sulci: about 1.1 to 1.7 litres, in one piece, away from the border.
        millilitres = brain.sum() * np.prod(spacing) / 1000
        assert 1000 < millilitres < 1900
        _, pieces = ndimage.label(brain)
        assert pieces == 1
        inner = brain.copy()
        inner[2:-2, 2:-2, 2:-2] = False
        assert not inner.any()
        # The corners are air; the head is much brighter.
        corners = np.concatenate([image[x, y].ravel() for x in (0, -1) for y in (0, -1)])
        assert corners.mean() < 0.25 * image[brain].mean()

    def test_the_same_call_gives_the_same_head_and_other_calls_do_not(self):
        image, brain, _ = head_mr(3, "sm15")
        again, brain_again, _ = head_mr(3, "sm15")
        assert_array_equal(image, again)
        assert_array_equal(brain, brain_again)
        for other in (head_mr(4, "sm15"), head_mr(3, "sm15", seed=1)):
            assert (other[1] != brain).mean() > 0.005
        assert not np.array_equal(head_mr(3, "ph3")[0], image)

    def test_a_subject_has_the_same_anatomy_at_every_site(self):
        _, brain, spacing = head_mr(5, "sm15")
        reference = Volume(brain, centred(brain.shape, spacing))
        for site in SCANNERS:
            _, other, other_spacing = head_mr(5, site)
            if site in SAME_GRID:
                assert_array_equal(other, brain)
            moved = resample_to(Volume(other, centred(other.shape, other_spacing)), reference).array
            overlap = 2 * (moved & brain).sum() / (moved.sum() + brain.sum())
            assert overlap > 0.97
            _, stranger, stranger_spacing = head_mr(6, site)
            strange = resample_to(Volume(stranger, centred(brain.shape, stranger_spacing)), reference).array
            assert 2 * (strange & brain).sum() / (strange.sum() + brain.sum()) < overlap

    def test_tissues_have_the_order_of_a_t1_image(self):
        for site in ("sm15", "sm3", "ge3", "ph15", "ph3"):
            image, brain, _ = head_mr(1, site)
            deep = ndimage.binary_erosion(brain, iterations=4)
            white, fluid = np.percentile(image[deep], [90, 1])
            skull = image[ndimage.binary_dilation(brain, iterations=3) & ~ndimage.binary_dilation(brain)]
            assert white > 2 * fluid
            assert white > 1.5 * np.median(skull)

    def test_sites_differ_and_severe_pairs_more_than_subtle_ones(self):
        histograms = {site: histogram(site) for site in SCANNERS}

        def distance(a: str, b: str) -> float:
            return float(
                np.abs(np.cumsum(histograms[a] / histograms[a].sum() - histograms[b] / histograms[b].sum())).mean()
            )

        assert distance("ph3", "sm15") < 0.5 * distance("sm3", "ge15")
        every = {(a, b): distance(a, b) for a in SCANNERS for b in SCANNERS if a < b}
        assert min(every.values()) > 0.002
        assert min(every, key=every.get) == ("ph3", "sm15")

    def test_finer_grids_show_the_same_head(self):
        _, coarse, coarse_spacing = head_mr(2, "ph3", shape=(32, 36, 24))
        _, fine, fine_spacing = head_mr(2, "ph3", shape=(96, 108, 72))
        assert np.allclose(np.multiply(fine_spacing, 3), coarse_spacing)
        # The centre of each coarse voxel is the centre of the middle one of 3 x 3 x 3 fine voxels.
        agreement = (fine[1::3, 1::3, 1::3] == coarse).mean()
        assert agreement > 0.9999

    @pytest.mark.parametrize("shape", [(7, 64, 64), (64, 64), (64, 64, 64, 64)])
    def test_bad_shape(self, shape):
        with pytest.raises(SettingError, match="at least 8"):
            head_mr(0, "sm15", shape=shape)

    def test_unknown_site(self):
        with pytest.raises(SettingError, match=r"'sm7'.*sm15, sm3, ge15"):
            head_mr(0, "sm7")


def centred(shape: tuple[int, ...], spacing: tuple[float, ...]) -> np.ndarray:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.asarray(shape) - 1) / 2 * np.asarray(spacing)
    return affine


class TestWriting:
    def test_files_masks_orientations_and_datalist(self, tmp_path):
        path = write_head_mr(tmp_path / "heads", ("ph3", "sm3", "ge3"), subjects_per_site=4, shape=(24, 28, 20), seed=3)
        datalist = Datalist.read(path, required=("image", "mask", "subject", "site", "split"))
        assert path == tmp_path / "heads" / "datalist.csv"
        assert path.read_text().startswith(
            "image,mask,subject,site,split\nimages/ph3_6000.nii.gz,masks/ph3_6000.nii.gz,"
        )
        assert datalist.sites == ("ph3", "sm3", "ge3")
        assert len(datalist.subjects) == len(datalist) == 12
        assert problems(datalist, require_mask=True) == []
        orientations = set()
        for row in datalist:
            assert Counter(r.split for r in datalist.select(site=row.site)) == {"train": 2, "val": 1, "test": 1}
            volume = read_volume(row.image)
            subject = int(row.subject.removeprefix("phantom"))
            image, brain, spacing = head_mr(subject, row.site, shape=(24, 28, 20), seed=3)
            assert_array_equal(volume.array, np.rint(image))
            assert_array_equal(read_mask(row.mask, volume), brain)
            assert np.allclose(volume.spacing, spacing, rtol=1e-6)
            assert volume.original_orientation == SCANNERS[row.site].orientation
            assert nibabel.load(row.image).get_data_dtype() == np.int16
            orientations.add(volume.original_orientation)
        assert len(orientations) > 1

    def test_a_subject_does_not_depend_on_the_other_sites(self, tmp_path):
        write_head_mr(tmp_path / "a", ("sm3",), 1, (16, 16, 16))
        write_head_mr(tmp_path / "b", ("sm15", "sm3"), 1, (16, 16, 16))
        name = "images/sm3_2000.nii.gz"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()

    @pytest.mark.parametrize(
        ("count", "splits"),
        [(1, "train"), (2, "train train"), (3, "train val test"), (10, "train " * 6 + "val val test test")],
    )
    def test_splits(self, tmp_path, count, splits):
        datalist = Datalist.read(write_head_mr(tmp_path, ("sm15",), count, (8, 8, 8)))
        assert [row.split for row in datalist] == splits.split()

    def test_nothing_to_write(self, tmp_path):
        for sites, count in (((), 3), (("sm15",), 0)):
            with pytest.raises(SettingError, match="no site or no subject"):
                write_head_mr(tmp_path / "x", sites, count)
        with pytest.raises(SettingError, match="no scanner 'x'"):
            write_head_mr(tmp_path / "x", ("x",))
        assert not (tmp_path / "x").exists()

    def test_full_disk(self, tmp_path, file_size_limit):
        with file_size_limit(1000), pytest.raises(OutputError, match="disk is full"):
            write_head_mr(tmp_path / "x", ("sm15",), 1)
