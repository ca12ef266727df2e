from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy import ndimage

from dart_core.data.catalog import decathlon
from dart_core.data.datalist import Datalist, problems
from dart_core.data.phantoms import ABDOMEN_SCANNERS, ORGANS, abdominal_scan, write_abdomen, write_decathlon
from dart_core.data.phantoms.abdomen import CT_SITES
from dart_core.data.volumes import read_labels, read_volume
from dart_core.errors import SettingError

SITES = tuple(ABDOMEN_SCANNERS)
NUMBER = {name: number for number, name in ORGANS.items()}
SMALL = (48, 36, 24)


def medians(site: str, subject: int = 2) -> dict[str, float]:
    """Intensity inside each organ, away from its edge."""
    image, labels, _ = abdominal_scan(subject, site, (96, 72, 32))
    found = {}
    for number, name in ORGANS.items():
        inner = ndimage.binary_erosion(labels == number)
        if inner.any():
            found[name] = float(np.median(image[inner]))
    return found


class TestScan:
    @given(subject=st.integers(0, 10_000), site=st.sampled_from(SITES), seed=st.integers(0, 99))
    @settings(deadline=None, max_examples=12)
    def test_an_abdomen_is_a_plausible_abdomen(self, subject, site, seed):
        image, labels, spacing = abdominal_scan(subject, site, SMALL, seed)
        assert image.shape == labels.shape == SMALL
        assert (image.dtype, labels.dtype) == (np.float32, np.uint8)
        assert np.isfinite(image).all()
        assert image.min() >= (-1024 if site in CT_SITES else 0)
        assert set(np.unique(labels)) <= {0, *ORGANS}
        # The sizes (ml) that adults' organs have, widely taken; the scan need not hold all of the liver.
        millilitres = {name: (labels == number).sum() * np.prod(spacing) / 1000 for number, name in ORGANS.items()}
        assert 700 < millilitres["liver"] < 2600
        assert 50 < millilitres["spleen"] < 450
        assert 30 < millilitres["left_kidney"] < 260
        assert 5 < millilitres["pancreas"] < 160
        # Liver on the right, spleen on the left; each organ keeps clear of the sides of the picture.
        centres = {name: np.argwhere(labels == number).mean(0) for number, name in ORGANS.items() if millilitres[name]}
        assert centres["liver"][0] > SMALL[0] / 2 > centres["spleen"][0]
        assert centres["right_kidney"][0] > centres["aorta"][0] > centres["left_kidney"][0]
        assert centres["stomach"][1] > centres["left_kidney"][1]
        assert not labels[[0, -1]].any()
        assert not labels[:, [0, -1]].any()

    def test_the_same_call_gives_the_same_abdomen_and_other_calls_do_not(self):
        image, labels, _ = abdominal_scan(3, "T1", SMALL)
        again, labels_again, _ = abdominal_scan(3, "T1", SMALL)
        assert_array_equal(image, again)
        assert_array_equal(labels, labels_again)
        for other in (abdominal_scan(4, "T1", SMALL), abdominal_scan(3, "T1", SMALL, seed=1)):
            assert (other[1] != labels).mean() > 0.01

    def test_a_subject_has_organs_of_the_same_size_at_every_site(self):
        sizes = []
        for site in SITES:
            _, labels, spacing = abdominal_scan(5, site, (72, 54, 32))
            sizes.append([(labels == NUMBER[name]).sum() * np.prod(spacing) for name in ("liver", "spleen", "stomach")])
        assert np.ptp(sizes, axis=0).max() < 0.06 * np.max(sizes)

    def test_contrasts(self):
        venous, native, t1, t2 = (medians(site) for site in SITES)
        assert venous["right_kidney"] > venous["aorta"] > venous["liver"] > venous["gallbladder"]
        assert venous["aorta"] > native["aorta"] + 80  # contrast agent
        assert abs(native["liver"] - 60) < 10
        assert t1["liver"] > t1["spleen"] > t1["aorta"]
        assert t2["spleen"] > t2["liver"] > t2["aorta"]

    def test_mistakes(self):
        with pytest.raises(SettingError, match=r"'PET'.*CT, CT-native"):
            abdominal_scan(0, "PET")
        with pytest.raises(SettingError, match="at least 8, 8 and 8"):
            abdominal_scan(0, "CT", (48, 36, 4))


class TestWriting:
    def test_sites(self, tmp_path):
        path = write_abdomen(tmp_path, subjects_per_site=3, shape=SMALL, seed=4)
        datalist = Datalist.read(path, required=("image", "mask", "subject", "site", "split"))
        assert datalist.sites == SITES
        assert problems(datalist, require_mask=True) == []
        for row in (datalist[0], datalist[-1]):
            image, labels, _ = abdominal_scan(int(row.subject.removeprefix("phantom")), row.site, SMALL, 4)
            volume = read_volume(row.image)
            assert_array_equal(volume.array, np.rint(image))
            assert_array_equal(read_labels(row.mask, volume), labels)
            assert volume.original_orientation == ABDOMEN_SCANNERS[row.site].orientation

    def test_a_decathlon_task(self, tmp_path):
        folder = write_decathlon(
            tmp_path, "Task41_Kidneys", ("right_kidney", "left_kidney"), ("T1", "T2"), 2, SMALL, seed=1, first=7
        )
        assert folder == tmp_path / "Task41_Kidneys"
        task = decathlon.index(folder, test=True)
        assert (task.name, task.modalities) == ("Task41_Kidneys", ("T1", "T2"))
        assert dict(task.labels) == {0: "background", 1: "right_kidney", 2: "left_kidney"}
        assert [row.subject for row in task.cases] == ["kidneys_000", "kidneys_001", "kidneys_002"]
        assert json.loads((folder / "dataset.json").read_text())["numTest"] == 1
        assert nibabel.load(task.cases[0].image).shape == (*SMALL, 2)
        for channel, site in enumerate(task.modalities):
            image = abdominal_scan(8, site, SMALL, 1)[0]
            assert_array_equal(task.read_image(task.cases[1], channel).array, np.rint(image))
        truth = abdominal_scan(8, "T1", SMALL, 1)[1]
        labels = task.read_labels(task.cases[1], task.read_image(task.cases[1]))
        assert_array_equal(labels == 2, truth == NUMBER["left_kidney"])
        single = decathlon.index(write_decathlon(tmp_path, "Task42_Liver", ("liver",), cases=1, shape=SMALL))
        assert nibabel.load(single.cases[0].image).shape == SMALL

    def test_mistakes(self, tmp_path):
        for arguments, part in (
            ({"organs": ("heart",)}, "'heart'.*spleen"),
            ({"organs": ()}, "no organ, site or case"),
            ({"organs": ("liver",), "sites": ("PET",)}, "'PET'"),
            ({"organs": ("liver",), "cases": 0}, "no organ, site or case"),
            ({"organs": ("liver",), "shape": (4, 4, 4)}, "of shape"),
        ):
            with pytest.raises(SettingError, match=part):
                write_decathlon(tmp_path / "x", "Task41_X", **arguments)
        with pytest.raises(SettingError, match="no site or no subject"):
            write_abdomen(tmp_path / "x", ())
        assert not (tmp_path / "x").exists()
