"""BTCV, Pancreas-CT, and the multi-organ labels of both."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from dart_core.data.catalog import btcv, multi_organ, pancreas_ct
from dart_core.data.volumes import read_grid, read_volume
from dart_core.errors import InputError

SHAPE = (5, 6, 4)
CODES = np.random.default_rng(0).integers(0, 15, SHAPE).astype(np.uint8)


def build_btcv(root: Path, numbers=(1, 2, 10, 21, 40)) -> Path:
    for folder, kind in (("img", "img"), ("label", "label")):
        (root / "RawData/Training" / folder).mkdir(parents=True)
        for number in numbers:
            (root / f"RawData/Training/{folder}/{kind}{number:04d}.nii.gz").touch()
    (root / "RawData/Testing/img").mkdir(parents=True)
    (root / "RawData/Testing/img/img0061.nii.gz").touch()
    return root


def build_tcia(root: Path, numbers=(1, 2, 3), labelled=(1, 3)) -> Path:
    for number in numbers:
        folder = root / f"manifest-1/Pancreas-CT/PANCREAS_{number:04d}/11-24-2015-1/Pancreas-1"
        folder.mkdir(parents=True)
        (folder / "1-001.dcm").touch()
    (root / "label_tcia_multiorgan").mkdir()
    for number in labelled:
        (root / f"label_tcia_multiorgan/label{number:04d}.nii.gz").touch()
    (root / "TCIA_pancreas_labels-02-05-2017").mkdir()  # of the pancreas alone
    (root / "TCIA_pancreas_labels-02-05-2017/label0002.nii.gz").touch()
    return root


class TestBTCV:
    def test_rows(self, tmp_path):
        datalist = btcv.index(build_btcv(tmp_path))
        assert [row.subject for row in datalist] == ["BTCV_0001", "BTCV_0002", "BTCV_0010", "BTCV_0021", "BTCV_0040"]
        assert datalist.sites == ("BTCV",)
        assert datalist[1].image == tmp_path / "RawData/Training/img/img0002.nii.gz"
        assert datalist[1].mask == tmp_path / "RawData/Training/label/label0002.nii.gz"
        assert datalist[1].labels == {"annotation": "official"}

    def test_labels_of_zenodo(self, tmp_path):
        build_btcv(tmp_path)
        assert {row.labels["annotation"] for row in btcv.index(tmp_path, "zenodo")} == {
            "official"
        }  # there are no others
        other = tmp_path / "label_btcv_multiorgan"
        other.mkdir()
        for number in (2, 61):
            (other / f"label{number:04d}.nii.gz").touch()
        assert len(btcv.index(tmp_path)) == 5
        found = btcv.index(tmp_path, "zenodo")
        assert [(row.subject, row.mask) for row in found] == [
            (f"BTCV_{n:04d}", other / f"label{n:04d}.nii.gz") for n in (2, 61)
        ]
        assert found[0].labels["annotation"] == multi_organ.ANNOTATION

    def test_what_is_missing(self, tmp_path):
        lines = btcv.report_missing(build_btcv(tmp_path))
        assert lines[0] == "25 of 30 training files are missing, the first is img0003.nii.gz"
        assert "Synapse" in lines[2]
        whole = build_btcv(tmp_path / "whole", btcv.NUMBERS)
        assert btcv.report_missing(whole) == []

    def test_mistakes(self, tmp_path):
        with pytest.raises(InputError, match="this is not the folder of BTCV"):
            btcv.index(tmp_path)
        with pytest.raises(InputError, match="folder of BTCV is missing"):
            btcv.index(tmp_path / "no")
        build_btcv(tmp_path)
        (tmp_path / "img0001.nii").touch()
        with pytest.raises(InputError, match="it is there twice"):
            btcv.index(tmp_path)
        for file in (tmp_path / "img0001.nii", *tmp_path.rglob("label*.gz")):
            file.unlink()
        with pytest.raises(InputError, match="none of its scans has a label file"):
            btcv.index(tmp_path)


class TestPancreasCT:
    def test_rows(self, tmp_path):
        datalist = pancreas_ct.index(build_tcia(tmp_path))
        assert [row.subject for row in datalist] == ["PANCREAS_0001", "PANCREAS_0003"]
        assert datalist[1].image.parts[-3:] == ("PANCREAS_0003", "11-24-2015-1", "Pancreas-1")
        assert datalist[1].mask == tmp_path / "label_tcia_multiorgan/label0003.nii.gz"
        assert datalist[0].labels == {"annotation": multi_organ.ANNOTATION, "z_divisor": "3"}
        assert pancreas_ct.index(tmp_path / "manifest-1", tmp_path / "label_tcia_multiorgan").sites == ("TCIA",)

    def test_what_is_missing(self, tmp_path):
        lines = pancreas_ct.report_missing(build_tcia(tmp_path))
        assert lines[0] == "2 of 43 scans with multi-organ labels are there (3 scans, 2 label files)"
        assert "zenodo" in lines[1]
        numbers = range(1, 44)
        assert pancreas_ct.report_missing(build_tcia(tmp_path / "whole", numbers, numbers)) == []

    def test_mistakes(self, tmp_path):
        with pytest.raises(InputError, match="this is not the folder of Pancreas-CT"):
            pancreas_ct.index(tmp_path)
        build_tcia(tmp_path)
        with pytest.raises(InputError, match="none of its scans has a multi-organ label file"):
            pancreas_ct.index(tmp_path / "manifest-1")
        second = tmp_path / "manifest-1/Pancreas-CT/PANCREAS_0002/other"
        second.mkdir()
        (second / "1-001.dcm").touch()
        with pytest.raises(InputError, match="PANCREAS_0002 has several series"):
            pancreas_ct.index(tmp_path)


class TestCodes:
    """Labels on the grid of their CT, whose affines agree or do not."""

    def save(self, path: Path, array, affine) -> Path:
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
        return path

    def test_affines_decide_where_they_agree(self, tmp_path):
        affine = np.diag([-0.7, -0.8, 2.5, 1])
        image = self.save(tmp_path / "img.nii.gz", np.ones(SHAPE, np.int16), affine)
        label = self.save(tmp_path / "same.nii.gz", CODES[::-1], affine @ np.array(
            [[-1, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
        ))  # fmt: skip
        found = multi_organ.read_codes(label, read_grid(image), reverse_slices=True)
        np.testing.assert_array_equal(found, CODES[::-1, ::-1])

    @pytest.mark.parametrize("reverse", [False, True])
    def test_the_stored_order_decides_where_they_do_not(self, tmp_path, reverse):
        image = self.save(tmp_path / "img.nii.gz", np.ones(SHAPE, np.int16), np.diag([-0.7, -0.8, 2.5, 1]))
        label = self.save(tmp_path / "label.nii.gz", CODES, np.eye(4))
        found = multi_organ.read_codes(label, read_grid(image), reverse_slices=reverse)
        np.testing.assert_array_equal(found, CODES[::-1, ::-1, ::-1] if reverse else CODES[::-1, ::-1])

    def test_a_series_of_slices(self, tmp_path):
        """Pancreas-CT: the label file counts slices from the other end than the series."""
        pydicom = pytest.importorskip("pydicom")
        pytest.importorskip("SimpleITK")
        voxels = np.random.default_rng(1).integers(-500, 500, SHAPE).astype(np.int16)
        folder = tmp_path / "series"
        folder.mkdir()
        for k in range(SHAPE[2]):
            slice_ = pydicom.Dataset()
            slice_.file_meta = pydicom.dataset.FileMetaDataset()
            slice_.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
            slice_.SOPClassUID, slice_.SOPInstanceUID = pydicom.uid.CTImageStorage, f"1.2.3.{k}"
            slice_.SeriesInstanceUID, slice_.StudyInstanceUID, slice_.Modality = "1.2.3", "1.2", "CT"
            slice_.Rows, slice_.Columns = SHAPE[1], SHAPE[0]
            slice_.PixelSpacing, slice_.SliceThickness = [0.8, 0.7], 1.0
            slice_.ImageOrientationPatient, slice_.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0.0, 0.0, float(k)]
            slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
            slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
            slice_.RescaleSlope, slice_.RescaleIntercept = 1, 0
            slice_.PixelData = voxels[..., k].T.tobytes()
            slice_.save_as(folder / f"1-{SHAPE[2] - k:03d}.dcm", enforce_file_format=True)
        image = read_volume(folder)
        np.testing.assert_array_equal(image.array, voxels[::-1, ::-1])
        codes = (np.abs(voxels[..., ::-1]) % 15).astype(np.uint8)
        label = self.save(tmp_path / "label0001.nii.gz", codes, np.eye(4))
        found = multi_organ.read_codes(label, image, reverse_slices=True)
        np.testing.assert_array_equal(found, np.abs(image.array).astype(int) % 15)

    def test_another_number_of_voxels(self, tmp_path):
        image = self.save(tmp_path / "img.nii.gz", np.ones((5, 6, 3), np.int16), np.eye(4))
        label = self.save(tmp_path / "label.nii.gz", CODES, np.eye(4))
        with pytest.raises(InputError, match=r"the labels have 5 x 6 x 4 voxels, the image img\.nii\.gz 5 x 6 x 3"):
            multi_organ.read_codes(label, read_grid(image), reverse_slices=False)
