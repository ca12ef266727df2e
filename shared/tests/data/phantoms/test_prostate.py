from __future__ import annotations

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy import ndimage

from dart_core.data.datalist import Datalist, problems
from dart_core.data.phantoms import PROSTATE_SCANNERS, prostate_mr, write_prostate_mr
from dart_core.data.phantoms.prostate import COIL_SITES, ZONE_SITES
from dart_core.data.volumes import read_mask, read_volume
from dart_core.errors import SettingError

SITES = tuple(PROSTATE_SCANNERS)


def test_the_sites_are_those_of_the_collection():
    from dart_core.data.catalog import prostate

    assert SITES == prostate.SITES


class TestPelvis:
    @given(subject=st.integers(0, 10_000), site=st.sampled_from(SITES), seed=st.integers(0, 99))
    @settings(deadline=None, max_examples=15)
    def test_a_prostate_is_a_plausible_prostate(self, subject, site, seed):
        image, zones, spacing = prostate_mr(subject, site, (64, 64, 16), seed)
        assert image.shape == zones.shape == (64, 64, 16)
        assert (image.dtype, zones.dtype) == (np.float32, np.uint8)
        assert np.isfinite(image).all()
        assert image.min() >= 0
        # Adult prostates: 15 to 100 ml, in one piece, away from the sides of the picture, over several slices.
        prostate = zones > 0
        assert 15 < prostate.sum() * np.prod(spacing) / 1000 < 100
        pieces, count = ndimage.label(prostate)
        assert count == 1 or np.bincount(pieces.ravel())[1:].max() > 0.99 * prostate.sum()
        assert not prostate[[0, -1]].any()
        assert not prostate[:, [0, -1]].any()
        assert prostate.any((0, 1)).sum() >= 7
        # The central gland takes up to about half, and lies in front of the peripheral zone.
        assert set(np.unique(zones)) == {0, 1, 2}
        assert 0.08 < (zones == 2).sum() / prostate.sum() < 0.65
        assert np.argwhere(zones == 2)[:, 1].mean() > np.argwhere(zones == 1)[:, 1].mean()

    def test_the_same_call_gives_the_same_pelvis_and_other_calls_do_not(self):
        image, zones, _ = prostate_mr(3, "UCL", (32, 32, 8))
        again, zones_again, _ = prostate_mr(3, "UCL", (32, 32, 8))
        assert_array_equal(image, again)
        assert_array_equal(zones, zones_again)
        for other in (prostate_mr(4, "UCL", (32, 32, 8)), prostate_mr(3, "UCL", (32, 32, 8), seed=1)):
            assert (other[1] != zones).mean() > 0.005

    def test_a_subject_has_the_same_size_at_every_site(self):
        def volume(subject: int, site: str) -> float:
            _, zones, spacing = prostate_mr(subject, site, (64, 64, 30))
            return float((zones > 0).sum() * np.prod(spacing))

        coiled = [volume(5, site) for site in COIL_SITES]
        others = [volume(5, site) for site in SITES if site not in COIL_SITES]
        # The balloon of a coil dents the prostate, so the two groups may differ.
        assert np.ptp(coiled) < 0.04 * np.mean(coiled)
        assert np.ptp(others) < 0.04 * np.mean(others)

    @pytest.mark.parametrize("site", SITES)
    def test_tissues_have_the_order_of_a_t2_image(self, site):
        image, zones, _ = prostate_mr(2, site, (96, 96, 16))
        inner = ndimage.binary_erosion(zones > 0, iterations=2)
        peripheral, central = image[inner & (zones == 1)], image[inner & (zones == 2)]
        assert np.median(peripheral) > 1.25 * np.median(central)
        # Muscle (the darkest of the bulk tissues) is darker than both.
        ring = ndimage.binary_dilation(zones > 0, iterations=12)
        assert np.percentile(image[ring & (zones == 0)], 10) < np.median(central)

    def test_an_endorectal_coil_brightens_what_is_near_and_leaves_a_hole(self):
        for site in SITES:
            image, zones, _ = prostate_mr(7, site, (96, 96, 16))
            x, y, z = (int(value) for value in np.argwhere(zones > 0).mean(0))
            column = image[x - 3 : x + 4, :, z].mean(0)
            back = y - np.flatnonzero((zones[x, :y, z] == 0)[::-1])[0]  # the first place behind the prostate
            behind, front = column[max(0, back - 12) : back].max(), column[y + 30 :].mean()
            assert (behind > 1.8 * front) == (site in COIL_SITES)

    def test_slices_are_thick(self):
        # The sum over three sub-slices is the slice: fine slices averaged by three look like coarse ones.
        coarse, zones, _ = prostate_mr(1, "UCL", (48, 48, 10))
        fine, fine_zones, _ = prostate_mr(1, "UCL", (48, 48, 30))
        assert_array_equal(zones, fine_zones[..., 1::3])
        averaged = fine.reshape(48, 48, 10, 3).mean(-1)
        assert np.corrcoef(averaged.ravel(), coarse.ravel())[0, 1] > 0.97

    @pytest.mark.parametrize("shape", [(7, 64, 16), (64, 64, 3), (64, 64), (64, 64, 16, 2)])
    def test_bad_shape(self, shape):
        with pytest.raises(SettingError, match="at least 8, 8 and 4"):
            prostate_mr(0, "UCL", shape)

    def test_unknown_site(self):
        with pytest.raises(SettingError, match=r"'A'.*RUNMC, BMC"):
            prostate_mr(0, "A")


class TestWriting:
    def test_files_conventions_and_datalist(self, tmp_path):
        shape = (24, 24, 8)
        path = write_prostate_mr(tmp_path, subjects_per_site=3, shape=shape, seed=4)
        datalist = Datalist.read(path, required=("image", "mask", "subject", "site", "split"))
        assert datalist.sites == SITES
        assert len(datalist.subjects) == len(datalist) == 18
        assert problems(datalist, require_mask=True) == []
        for row in datalist:
            subject = int(row.subject.removeprefix("phantom"))
            image, zones, spacing = prostate_mr(subject, row.site, shape, 4)
            volume = read_volume(row.image)
            assert_array_equal(volume.array, np.rint(image))
            assert np.allclose(volume.spacing, spacing, rtol=1e-6)
            assert volume.original_orientation == PROSTATE_SCANNERS[row.site].orientation
            # Some sites store two zones: readers of a mask merge them.
            stored = set(np.unique(np.asarray(nibabel.load(row.mask).dataobj)))
            assert stored == ({0, 1, 2} if row.site in ZONE_SITES else {0, 1})
            assert_array_equal(read_mask(row.mask, volume), zones > 0)

    def test_mistakes(self, tmp_path):
        with pytest.raises(SettingError, match="no scanner 'x'"):
            write_prostate_mr(tmp_path / "x", ("x",))
        with pytest.raises(SettingError, match="no site or no subject"):
            write_prostate_mr(tmp_path / "x", ())
        with pytest.raises(SettingError, match="of shape"):
            write_prostate_mr(tmp_path / "x", ("UCL",), 1, (4, 4, 4))
        assert not (tmp_path / "x").exists()
