from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy import ndimage

from dart_core.data.datalist import Datalist
from dart_core.data.phantoms import VENDORS, cardiac_mr, write_cardiac_mr
from dart_core.data.volumes import read_labels, read_volume
from dart_core.errors import SettingError


def millilitres(labels: np.ndarray, spacing: tuple[float, ...]) -> dict[int, float]:
    return {label: float((labels == label).sum() * np.prod(spacing) / 1000) for label in (1, 2, 3)}


def test_vendors_and_labels_are_those_of_mms():
    from dart_core.data.catalog import mms
    from dart_core.data.phantoms import cardiac

    assert tuple(VENDORS) == tuple(mms.VENDORS)
    assert cardiac.LABELS == mms.LABELS


class TestHeart:
    @given(subject=st.integers(0, 10_000), vendor=st.sampled_from(sorted(VENDORS)), seed=st.integers(0, 99))
    @example(subject=98, vendor="A", seed=98)  # contracts least of all
    @settings(deadline=None, max_examples=12)
    def test_a_heart_is_a_plausible_heart(self, subject, vendor, seed):
        shape = (80, 80, 10)
        image, labels, spacing = cardiac_mr(subject, vendor, shape, seed)
        assert image.shape == labels.shape == shape
        assert (image.dtype, labels.dtype) == (np.float32, np.uint8)
        assert np.isfinite(image).all()
        assert image.min() >= 0
        assert set(np.unique(labels)) == {0, 1, 2, 3}
        assert not labels[[0, -1]].any()
        assert not labels[:, [0, -1]].any()
        # The left cavity is closed: in a slice it touches its muscle only.
        for z in range(shape[2]):
            cavity = labels[..., z] == 1
            around = ndimage.binary_dilation(cavity) & ~cavity
            assert set(np.unique(labels[..., z][around])) <= {2}
        # Enough slices have all three labels, and the upper ones show atria without label.
        complete = [set(np.unique(labels[..., z])) == {0, 1, 2, 3} for z in range(shape[2])]
        assert sum(complete) >= 4
        diastole = millilitres(labels, spacing)
        assert 40 < diastole[1] < 250
        assert 30 < diastole[2] < 260
        assert 70 < diastole[3] < 320
        # The heart contracts; its muscle does not shrink as its cavities do.
        _, systole_labels, _ = cardiac_mr(subject, vendor, shape, seed, "ES")
        systole = millilitres(systole_labels, spacing)
        assert systole[1] < 0.8 * diastole[1]
        assert systole[3] < 0.85 * diastole[3]
        assert systole[2] > 0.75 * diastole[2]

    def test_the_same_call_gives_the_same_heart_and_other_calls_do_not(self):
        image, labels, _ = cardiac_mr(3, "B", (32, 32, 6))
        again, labels_again, _ = cardiac_mr(3, "B", (32, 32, 6))
        assert_array_equal(image, again)
        assert_array_equal(labels, labels_again)
        for other in (cardiac_mr(4, "B", (32, 32, 6)), cardiac_mr(3, "B", (32, 32, 6), seed=1)):
            assert (other[1] != labels).mean() > 0.005

    def test_the_right_ventricle_is_on_the_right(self):
        _, labels, _ = cardiac_mr(1, "A")
        # In RAS the first index grows to the patient's right.
        assert np.argwhere(labels == 3)[:, 0].mean() > np.argwhere(labels == 1)[:, 0].mean() + 8

    @pytest.mark.parametrize("vendor", sorted(VENDORS))
    def test_blood_is_bright_and_muscle_dark(self, vendor):
        image, labels, _ = cardiac_mr(2, vendor, (128, 128, 10))
        inner = {label: ndimage.binary_erosion(labels == label, np.ones((3, 3, 1))) for label in (1, 2, 3)}
        for blood in (1, 3):
            assert np.median(image[inner[blood]]) > 1.5 * np.median(image[inner[2]])

    def test_both_phases_are_one_scan(self):
        first, labels, _ = cardiac_mr(2, "A", (64, 64, 8))
        second, later, _ = cardiac_mr(2, "A", (64, 64, 8), phase="ES")
        far = ~ndimage.binary_dilation((labels > 0) | (later > 0), iterations=12)
        far &= np.arange(8) < 4  # not the atria
        # Far from the heart the frames differ by noise alone, which is not the same in both.
        assert np.corrcoef(first[far], second[far])[0, 1] > 0.97
        assert not np.array_equal(first[far], second[far])

    def test_mistakes(self):
        with pytest.raises(SettingError, match=r"'Siemens'.*A, B, C, D"):
            cardiac_mr(0, "Siemens")
        with pytest.raises(SettingError, match=r"'es'.*ED or ES"):
            cardiac_mr(0, "A", phase="es")
        with pytest.raises(SettingError, match="at least 8, 8 and 4"):
            cardiac_mr(0, "A", (64, 64, 3))


class TestWriting:
    def test_files_labels_and_datalist(self, tmp_path):
        shape = (24, 24, 6)
        path = write_cardiac_mr(tmp_path, ("B", "D"), subjects_per_vendor=3, shape=shape, seed=5)
        assert path.read_text().startswith(
            "image,mask,subject,site,split,phase\nimages/B_2000_ED.nii.gz,masks/B_2000_ED"
        )
        datalist = Datalist.read(path, required=("image", "mask", "subject", "site", "split", "phase"))
        assert datalist.sites == ("B", "D")
        assert len(datalist) == 12
        assert set(Counter(row.subject for row in datalist).values()) == {2}
        assert Counter(row.split for row in datalist) == {"train": 4, "val": 4, "test": 4}
        for row in datalist:
            subject = int(row.subject.removeprefix("phantom"))
            image, labels, spacing = cardiac_mr(subject, row.site, shape, 5, row.labels["phase"])
            volume = read_volume(row.image)
            assert_array_equal(volume.array, np.rint(image))
            assert np.allclose(volume.spacing, spacing, rtol=1e-6)
            assert volume.original_orientation == VENDORS[row.site].orientation
            assert_array_equal(read_labels(row.mask, volume), labels)

    def test_nothing_to_write(self, tmp_path):
        with pytest.raises(SettingError, match="no site or no subject"):
            write_cardiac_mr(tmp_path / "x", (), 2)
        assert not (tmp_path / "x").exists()
