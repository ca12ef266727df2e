from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from dart_core.data import itk_volumes
from dart_core.data.datalist import Datalist, Row, problems
from dart_core.data.phantoms import lung_ct, write_luna16
from dart_core.data.volumes import read_grid, read_labels, read_mask, read_volume, write_volume
from dart_core.errors import InputError

itk = pytest.importorskip("SimpleITK")
pydicom = pytest.importorskip("pydicom")

SHAPE = (5, 6, 4)
RNG = np.random.default_rng(0)
VOXELS = RNG.integers(-1000, 1000, SHAPE).astype(np.int16)


def header(**changes: str | None) -> str:
    lines = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "-10 20.5 -300",
        "ElementSpacing": "0.7 0.8 2.5",
        "DimSize": "5 6 4",
        "ElementType": "MET_SHORT",
        "ElementDataFile": "a.raw",
    }
    return "".join(f"{key} = {value}\n" for key, value in {**lines, **changes}.items() if value is not None)


def build(folder: Path, **changes: str | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.raw").write_bytes(VOXELS.T.tobytes())
    (folder / "a.mhd").write_text(header(**changes))
    return folder / "a.mhd"


def fails(path: Path, *parts: str) -> None:
    for read in (read_volume, read_grid):
        with pytest.raises(InputError) as error:
            read(path)
        for part in parts:
            assert part in str(error.value)
        assert "\n" not in str(error.value)


class TestMetaImage:
    def test_axes_and_places(self, tmp_path):
        volume = read_volume(build(tmp_path), orientation=None)
        assert volume.original_orientation == volume.orientation == "LPS"
        assert_array_equal(volume.array, VOXELS)
        assert_allclose(volume.spacing, (0.7, 0.8, 2.5))
        # The first voxel is 10 mm to the right, 20.5 mm to the back.
        assert_allclose(volume.affine @ [0, 0, 0, 1], [10, -20.5, -300, 1])
        assert_allclose(volume.affine @ [1, 2, 3, 1], [10 - 0.7, -20.5 - 1.6, -300 + 7.5, 1])
        turned = read_volume(tmp_path / "a.mhd")
        assert turned.orientation == "RAS"
        assert_array_equal(turned.array, VOXELS[::-1, ::-1])

    @pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
    def test_every_order_of_axes_as_simpleitk_understands_it(self, tmp_path, order):
        matrix = np.eye(3)[list(order)] * [[1], [-1], [1]]
        build(tmp_path, TransformMatrix=" ".join(f"{value:g}" for value in matrix.ravel()))
        volume = read_volume(tmp_path / "a.mhd", orientation=None)
        image = itk.ReadImage(str(tmp_path / "a.mhd"))
        for index in ((0, 0, 0), (4, 0, 0), (1, 5, 3)):
            left, back, up = image.TransformIndexToPhysicalPoint(index)
            assert_allclose((volume.affine @ [*index, 1])[:3], [-left, -back, up], atol=1e-9)
            assert volume.array[index] == image[index]

    def test_the_header_alone(self, tmp_path):
        path = build(tmp_path)
        grid, volume = read_grid(path), read_volume(path)
        assert grid.array.shape == volume.array.shape
        assert_array_equal(grid.affine, volume.affine)
        assert grid.array.strides == (0, 0, 0)

    @pytest.mark.parametrize("compressed", [False, True])
    def test_mha(self, tmp_path, compressed):
        image = itk.GetImageFromArray(VOXELS.T)
        image.SetSpacing((0.7, 0.8, 2.5))
        itk.WriteImage(image, str(tmp_path / "a.mha"), useCompression=compressed)
        assert_array_equal(read_volume(tmp_path / "a.mha", orientation=None).array, VOXELS)
        if not compressed:
            content = (tmp_path / "a.mha").read_bytes()
            (tmp_path / "a.mha").write_bytes(content[:-10])
            fails_to_read(tmp_path / "a.mha", "truncated (230 of 240 bytes)")

    def test_floats_and_masks(self, tmp_path):
        for name, array in (("scan", VOXELS.astype(np.float64) / 7), ("mask", (VOXELS > 0).astype(np.uint8) * 3)):
            image = itk.GetImageFromArray(array.T)
            image.SetSpacing((2.0, 1.0, 1.0))
            itk.WriteImage(image, str(tmp_path / f"{name}.mhd"))
        scan = read_volume(tmp_path / "scan.mhd")
        assert scan.array.dtype == np.float32
        assert_allclose(scan.array, VOXELS[::-1, ::-1] / 7, rtol=1e-6)
        assert_array_equal(read_mask(tmp_path / "mask.mhd", scan), VOXELS[::-1, ::-1] > 0)
        assert_array_equal(read_labels(tmp_path / "mask.mhd", scan), 3 * (VOXELS[::-1, ::-1] > 0))
        row = Row(tmp_path / "scan.mhd", tmp_path / "mask.mhd")
        assert problems(Datalist((row,)), require_mask=True) == []

    def test_results_are_written_as_nifti_on_its_grid(self, tmp_path):
        volume = read_volume(build(tmp_path))
        written = write_volume(tmp_path / "out.nii.gz", volume.array > 0, volume)
        again = read_volume(written, orientation=None)
        assert again.orientation == "LPS"
        assert_allclose(again.affine, read_volume(tmp_path / "a.mhd", orientation=None).affine, atol=1e-4)
        assert_array_equal(again.array, VOXELS > 0)

    def test_a_phantom_of_luna16_comes_back(self, tmp_path):
        write_luna16(tmp_path, 1, 1, (32, 32, 24))
        (path,) = tmp_path.rglob("*.mhd")
        volume, scan = read_volume(path), lung_ct(1000, "GE", (32, 32, 24))
        assert_array_equal(volume.array, scan.image)
        assert_allclose(volume.affine, scan.affine, atol=1e-9)

    @pytest.mark.parametrize(
        ("changes", "parts"),
        [
            ({"ElementSpacing": None}, ("voxel size is missing", "no ElementSpacing", "add its three numbers")),
            ({"ElementSpacing": "0.7 0 2.5"}, ("voxel size in the header is 0.7 0 2.5", "correct ElementSpacing")),
            ({"ElementSpacing": "0.7 -0.7 2.5"}, ("voxel size in the header is 0.7 -0.7 2.5",)),
            ({"ElementSpacing": "0.7 nan 2.5"}, ("ElementSpacing is 0.7 nan 2.5",)),
            ({"ElementSpacing": "0.7 0.7"}, ("ElementSpacing is 0.7 0.7", "three numbers")),
            ({"DimSize": "5 6"}, ("DimSize is 5 6",)),
            ({"DimSize": "5 6 0"}, ("DimSize is 5 6 0",)),
            ({"DimSize": None}, ("DimSize is missing",)),
            ({"DimSize": "5 6 40"}, ("truncated (240 of 2400 bytes in a.raw)", "copy the file again")),
            ({"NDims": "2"}, ("NDims is 2, not 3",)),
            ({"ElementType": "MET_STRING"}, ("ElementType is STRING",)),
            ({"ElementDataFile": "b.raw"}, ("the file of its voxels, b.raw, is missing",)),
            ({"ElementDataFile": None}, ("no ElementDataFile",)),
            ({"ElementNumberOfChannels": "2", "DimSize": "5 3 4"}, ("grey values",)),
            ({"TransformMatrix": "1 0 0 0 1 0 0 0 0"}, ("a.mhd: the axes in the header collapse",)),
        ],
    )
    def test_damaged_headers(self, tmp_path, changes, parts):
        last = {"ElementDataFile": "a.raw"} if "ElementNumberOfChannels" in changes else {}
        text = header(**{**changes, "ElementDataFile": changes.get("ElementDataFile", "a.raw")})
        if last:  # what follows the name of the file is not read
            lines = text.splitlines()
            text = "\n".join(sorted(lines, key=lambda line: line.startswith("ElementDataFile")))
        build(tmp_path)
        (tmp_path / "a.mhd").write_text(text)
        fails(tmp_path / "a.mhd", "a.mhd: ", *parts)

    def test_other_files(self, tmp_path):
        fails(tmp_path / "no.mhd", "file not found")
        (tmp_path / "a.mhd").write_bytes(b"")
        fails(tmp_path / "a.mhd", "the file is empty")
        (tmp_path / "a.mhd").write_bytes(b"\x1f\x8b not a header" * 30)
        fails(tmp_path / "a.mhd", "not a MetaImage file")

    def test_too_few_slices_and_frames(self, tmp_path):
        path = build(tmp_path)
        with pytest.raises(InputError, match="5 x 6 x 4 voxels, at least 1 x 1 x 128"):
            read_volume(path, minimum_size=(1, 1, 128))
        assert_array_equal(read_volume(path, orientation=None, frame=0).array, VOXELS)
        with pytest.raises(InputError, match="no frame 1"):
            read_volume(path, frame=1)

    def test_nothing_is_said_on_the_side(self, tmp_path, capfd):
        path = build(tmp_path, TransformMatrix="1 0 0 0 1 0 0 0 0")
        fails(path, "collapse")
        assert capfd.readouterr() == ("", "")
        assert itk.ProcessObject.GetGlobalWarningDisplay()

    def test_without_simpleitk(self, tmp_path, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "SimpleITK", None)
        fails(build(tmp_path), "SimpleITK", "pip install")


def fails_to_read(path: Path, part: str) -> None:
    with pytest.raises(InputError) as error:
        read_volume(path)
    assert part in str(error.value)


# --- DICOM -----------------------------------------------------------------------------------------------------------


def write_series(
    folder: Path,
    heights=(0.0, 2.5, 5.0, 7.5),
    series: str = "1.2.3",
    tilt: float = 0.0,
    leave_out: tuple[str, ...] = (),
) -> Path:
    """CT slices (6 rows, 5 columns), whose names say nothing of their order; stored values are 1024 above HU."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, height in enumerate(heights):
        slice_ = pydicom.Dataset()
        slice_.file_meta = pydicom.dataset.FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        slice_.SOPClassUID = pydicom.uid.CTImageStorage
        slice_.SOPInstanceUID = f"{series}.{place}"
        slice_.SeriesInstanceUID, slice_.StudyInstanceUID = series, "1.2"
        slice_.Modality, slice_.Rows, slice_.Columns = "CT", 6, 5
        slice_.PixelSpacing, slice_.SliceThickness = [0.8, 0.7], 2.5  # between rows, then between columns
        slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        slice_.ImagePositionPatient = [-10.0, 20.0 + tilt * place, height]
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
        slice_.RescaleSlope, slice_.RescaleIntercept = 1, -1024
        slice_.PixelData = (VOXELS[:, :, place % 4].T + 1024).astype("<i2").tobytes()
        for name in leave_out:
            delattr(slice_, name)
        slice_.save_as(folder / f"{(7 * place) % 5}-{place}.dcm", enforce_file_format=True)
    return folder


class TestDicomSeries:
    def test_slices_along_the_body_in_hu(self, tmp_path):
        volume = read_volume(write_series(tmp_path / "s"), orientation=None)
        assert_array_equal(volume.array, VOXELS)
        assert_allclose(volume.spacing, (0.7, 0.8, 2.5))
        assert_allclose(volume.affine @ [0, 0, 0, 1], [10, -20, 0, 1])
        assert_allclose(volume.affine @ [1, 1, 1, 1], [10 - 0.7, -20.8, 2.5, 1])
        assert_array_equal(read_grid(tmp_path / "s").affine, read_volume(tmp_path / "s").affine)

    def test_a_tilted_gantry_shears_the_grid(self, tmp_path):
        volume = read_volume(write_series(tmp_path / "s", tilt=0.5), orientation=None)
        assert_allclose(volume.affine @ [0, 0, 3, 1], [10, -21.5, 7.5, 1])

    def test_results_are_written_as_nifti(self, tmp_path):
        volume = read_volume(write_series(tmp_path / "s"))
        again = read_volume(write_volume(tmp_path / "out.nii.gz", volume.array, volume))
        assert_array_equal(again.array, volume.array)
        assert_allclose(again.affine, volume.affine, atol=1e-4)

    def test_tags_of_a_series(self, tmp_path):
        write_series(tmp_path / "s")
        (tmp_path / "s/.notes.txt").write_text("not a slice")
        assert itk_volumes.series_tags(tmp_path / "s", ("0020|000e", "0008|0060", "0010|0010")) == ["1.2.3", "CT", ""]
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match="no DICOM file"):
            itk_volumes.series_tags(tmp_path / "empty", ("0020|000e",))

    @pytest.mark.parametrize(
        ("arguments", "parts"),
        [
            ({"heights": (0, 2.5, 7.5, 10)}, ("not evenly spaced: 5 mm behind slice 2", "2.5 mm elsewhere", "add the missing")),
            ({"heights": (0, 2.5, 2.5, 5, 7.5)}, ("not evenly spaced: 0 mm behind slice 2",)),
            ({"heights": (0,)}, ("a single slice",)),
            ({"leave_out": ("PixelSpacing",)}, ("no voxel size (PixelSpacing)",)),
            ({"leave_out": ("ImagePositionPatient",)}, ("no position",)),
        ],
    )  # fmt: skip
    def test_mistakes(self, tmp_path, arguments, parts):
        fails(write_series(tmp_path / "s", **arguments), *parts)

    def test_folders(self, tmp_path):
        write_series(tmp_path / "s")
        write_series(tmp_path / "t", series="1.2.4")
        for slice_ in (tmp_path / "t").iterdir():
            slice_.rename(tmp_path / "s" / f"t{slice_.name}")
        fails(tmp_path / "s", "2 DICOM series", "folder of its own")
        fails(tmp_path / "t", "holds no DICOM series")

    def test_a_truncated_slice(self, tmp_path):
        write_series(tmp_path / "s")
        slice_ = next((tmp_path / "s").glob("*-2.dcm"))
        slice_.write_bytes(slice_.read_bytes()[:-20])
        fails_to_read(tmp_path / "s", f"{slice_.name}: the slice is truncated or damaged")
