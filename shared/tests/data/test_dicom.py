from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from dart_core.data.dicom import apply_window, is_dicom, read_dicom, read_hounsfield
from dart_core.data.images import find_pictures, read_image
from dart_core.errors import InputError

pydicom = pytest.importorskip("pydicom")

DEEP = np.random.default_rng(0).integers(0, 4096, (64, 70), dtype=np.uint16)
RAMP = np.arange(256, dtype=np.uint16).reshape(16, 16)


def save(
    path: Path,
    array: np.ndarray,
    photometric: str = "MONOCHROME2",
    bits: int | None = None,
    change: Callable[[Any], object] = lambda data: None,
    **values: Any,
) -> Path:
    """A radiograph as DICOM with what a test needs to be said in its header."""
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    for where, name in ((data, "SOP"), (data.file_meta, "MediaStorageSOP")):
        setattr(where, f"{name}ClassUID", pydicom.uid.DigitalXRayImageStorageForPresentation)
        setattr(where, f"{name}InstanceUID", "1.2.3.4")
    data.set_pixel_data(array, photometric, bits or array.dtype.itemsize * 8)
    for name, value in values.items():
        setattr(data, name, value)
    change(data)
    data.save_as(path, enforce_file_format=True)
    return path


def table(values: np.ndarray, first: int, bits: int) -> Any:
    item = pydicom.Dataset()
    item.LUTDescriptor = [len(values), first, bits]
    item.add_new("LUTData", "OW", values.astype("<u2").tobytes())
    return pydicom.Sequence([item])


def fails(path: Path, *parts: str, read: Callable[[Path], object] = read_image) -> None:
    with pytest.raises(InputError) as error:
        read(path)
    for part in (str(path), *parts):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


class TestPictures:
    def test_without_a_window_from_the_darkest_to_the_brightest(self, tmp_path):
        path = save(tmp_path / "a.dcm", DEEP // 2 + 100)
        low, high = float((DEEP // 2 + 100).min()), float((DEEP // 2 + 100).max())
        expected = np.rint((DEEP // 2 + 100.0 - low) / (high - low) * 255)
        assert_array_equal(read_image(path, "L"), expected)
        assert_array_equal(read_image(path), np.repeat(expected[..., None], 3, 2))

    def test_padding_does_not_count_as_the_darkest(self, tmp_path):
        deep = DEEP % 1000 + 3000
        deep[:4] = 0
        grey = read_image(save(tmp_path / "a.dcm", deep, PixelPaddingValue=0), "L")
        assert (grey[:4] == 0).all()
        expected = np.rint((deep[4:] - float(deep[4:].min())) / float(np.ptp(deep[4:])) * 255)
        assert_array_equal(grey[4:], expected)

    @pytest.mark.parametrize("value", [0, 1000])
    def test_one_value_is_black(self, tmp_path, value):
        path = save(tmp_path / "a.dcm", np.full((8, 8), value, np.uint16))
        assert (read_image(path) == 0).all()

    @pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
    @pytest.mark.parametrize(("centre", "width"), [(2000, 1500), (127.5, 1), ([600, 50], [400.5, 2])])
    def test_the_first_window_as_pydicom_applies_it(self, tmp_path, function, centre, width):
        values = {} if function is None else {"VOILUTFunction": function}
        path = save(tmp_path / "a.dcm", DEEP, bits=12, WindowCenter=centre, WindowWidth=width, **values)
        windowed = pydicom.pixels.processing.apply_windowing(DEEP, pydicom.dcmread(path))
        assert np.abs(read_image(path, "L") - windowed / 4095 * 255).max() <= 0.5 + 1e-9

    def test_a_window_in_rescaled_values(self, tmp_path):
        path = save(
            tmp_path / "a.dcm", DEEP, WindowCenter=0, WindowWidth=400, RescaleSlope=2, RescaleIntercept=-4000,
            VOILUTFunction="LINEAR_EXACT", RescaleType="HU",
        )  # fmt: skip
        assert_array_equal(read_image(path, "L"), np.clip(np.rint((DEEP * 2.0 - 3800) / 400 * 255), 0, 255))

    @pytest.mark.parametrize(("centre", "width"), [(100, 0), (100, 0.5), (None, 100), (None, None)])
    def test_a_window_that_is_none(self, tmp_path, centre, width):
        path = save(tmp_path / "a.dcm", RAMP, WindowCenter=centre, WindowWidth=width)
        assert_array_equal(read_image(path, "L"), RAMP)

    def test_signed_values(self, tmp_path):
        path = save(tmp_path / "a.dcm", RAMP.astype(np.int16) - 128)
        assert_array_equal(read_image(path, "L"), RAMP)

    @pytest.mark.parametrize("window", [{}, {"WindowCenter": 128, "WindowWidth": 256}])
    def test_monochrome1_is_inverted(self, tmp_path, window):
        path = save(tmp_path / "a.dcm", RAMP, "MONOCHROME1", **window)
        assert_array_equal(read_image(path, "L"), 255 - RAMP)

    def test_tables(self, tmp_path):
        # The modality's table doubles, the VOI's turns 10-bit values round.
        path = save(
            tmp_path / "a.dcm", RAMP, ModalityLUTSequence=table(np.arange(256) * 2, 0, 16),
            VOILUTSequence=table(1023 - 2 * np.arange(512), 0, 10), WindowCenter=3, WindowWidth=2,
        )  # fmt: skip
        assert_array_equal(read_image(path, "L"), np.rint((1023 - 4.0 * RAMP) / 1023 * 255))

    def test_colour(self, tmp_path):
        colour = np.random.default_rng(1).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        path = save(tmp_path / "a.dcm", colour, "RGB")
        assert_array_equal(read_image(path), colour)
        assert_array_equal(read_image(path, "L"), np.asarray(Image.fromarray(colour).convert("L")))

    def test_palette(self, tmp_path):
        rng = np.random.default_rng(2)
        palette, places = (
            rng.integers(0, 65536, (3, 256), dtype=np.uint16),
            rng.integers(0, 256, (9, 12), dtype=np.uint8),
        )

        def colour(data: Any) -> None:
            data.PhotometricInterpretation = "PALETTE COLOR"
            for name, values in zip(("Red", "Green", "Blue"), palette, strict=True):
                setattr(data, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
                setattr(data, f"{name}PaletteColorLookupTableData", values.astype("<u2").tobytes())

        found = read_image(save(tmp_path / "a.dcm", places, change=colour))
        assert np.abs(found - np.moveaxis(palette[:, places], 0, 2) / 257).max() <= 0.5 + 1e-9

    @pytest.mark.parametrize("syntax", ["JPEG2000Lossless", "RLELossless"])
    def test_compressed(self, tmp_path, syntax):
        plain = read_image(save(tmp_path / "a.dcm", DEEP))
        path = save(tmp_path / "b.dcm", DEEP, change=lambda data: data.compress(getattr(pydicom.uid, syntax)))
        assert_array_equal(read_image(path), plain)

    def test_the_content_counts_not_the_ending(self, tmp_path):
        path = save(tmp_path / "a.png", RAMP)
        assert is_dicom(path)
        assert_array_equal(read_image(path, "L"), RAMP)
        Image.fromarray(RAMP.astype(np.uint8)).save(tmp_path / "b.dcm", format="PNG")
        assert not is_dicom(tmp_path / "b.dcm")
        assert_array_equal(read_image(tmp_path / "b.dcm", "L"), RAMP)

    def test_folders_list_them(self, tmp_path):
        paths = [save(tmp_path / name, RAMP) for name in ("a.dcm", "b.DICOM")]
        (tmp_path / "c.txt").touch()
        assert find_pictures(tmp_path) == paths

    def test_implicit_transfer_syntax(self, tmp_path):
        data = pydicom.dcmread(save(tmp_path / "a.dcm", RAMP))
        data.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        data.save_as(tmp_path / "b.dcm", implicit_vr=True, little_endian=True, enforce_file_format=True)
        assert_array_equal(read_image(tmp_path / "b.dcm", "L"), RAMP)


class TestBadFiles:
    def test_without_pydicom(self, tmp_path, monkeypatch):
        path = save(tmp_path / "a.png", RAMP)
        monkeypatch.setitem(sys.modules, "pydicom", None)
        fails(path, "DICOM", "pydicom", "dart-core[dicom]")

    @pytest.mark.parametrize("share", [0.2, 0.5, 0.99])
    def test_truncated(self, tmp_path, share):
        content = save(tmp_path / "a.dcm", DEEP).read_bytes()
        (tmp_path / "b.dcm").write_bytes(content[: int(len(content) * share)])
        fails(tmp_path / "b.dcm", "truncated")

    @pytest.mark.parametrize("length", [132, 140, 200, 300])
    def test_truncated_header(self, tmp_path, length):
        content = save(tmp_path / "a.dcm", DEEP).read_bytes()
        (tmp_path / "b.dcm").write_bytes(content[:length])
        fails(tmp_path / "b.dcm", "DICOM")

    def test_damaged(self, tmp_path):
        content = save(tmp_path / "a.dcm", DEEP).read_bytes()
        rng = np.random.default_rng(0)
        for trial in range(30):
            changed = bytearray(content)
            for place in rng.integers(132, 500, 6):
                changed[place] = rng.integers(256)
            path = tmp_path / f"{trial}.dcm"
            path.write_bytes(changed)
            # Nothing or a line; any other error fails the test.
            with contextlib.suppress(InputError):
                read_image(path)

    def test_several_frames(self, tmp_path):
        path = save(tmp_path / "a.dcm", np.stack([RAMP] * 3), NumberOfFrames=3)
        fails(path, "3 frames")

    def test_no_picture(self, tmp_path):
        def empty(data: Any) -> None:
            del data.PixelData

        fails(save(tmp_path / "a.dcm", RAMP, change=empty), "no picture")

    def test_a_compression_that_nobody_reads(self, tmp_path):
        def claim(data: Any) -> None:
            data.compress(pydicom.uid.RLELossless)
            data.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1

        fails(save(tmp_path / "a.dcm", RAMP, change=claim), "JPEG Lossless", "uncompressed")

    def test_damaged_compression(self, tmp_path):
        path = save(tmp_path / "a.dcm", DEEP, change=lambda data: data.compress(pydicom.uid.JPEG2000Lossless))
        content = path.read_bytes()
        path.write_bytes(content[:-300])
        fails(path, "DICOM")

    def test_too_large(self, tmp_path):
        fails(save(tmp_path / "a.dcm", RAMP, Rows=60000, Columns=60000), "too large")

    def test_a_table_that_does_not_fit(self, tmp_path):
        broken = table(np.arange(4), 0, 16)
        del broken[0].LUTDescriptor
        fails(save(tmp_path / "a.dcm", RAMP, VOILUTSequence=broken), "tables")

    def test_text_with_a_dicom_ending(self, tmp_path):
        (tmp_path / "a.dcm").write_text("no picture")
        fails(tmp_path / "a.dcm", "not a picture")


class TestCT:
    def test_hounsfield_units(self, tmp_path):
        stored = (DEEP.astype(np.int16) - 500).astype(np.int16)
        path = save(tmp_path / "a.dcm", stored, RescaleSlope="0.5", RescaleIntercept=-1024)
        found = read_hounsfield(path)
        assert found.dtype == np.float32
        assert_array_equal(found, stored / np.float32(2) - 1024)

    def test_without_slope(self, tmp_path):
        fails(save(tmp_path / "a.dcm", DEEP), "RescaleSlope", read=read_hounsfield)

    def test_no_dicom(self, tmp_path):
        (tmp_path / "a.dcm").write_text("no picture")
        fails(tmp_path / "a.dcm", "damaged", read=read_hounsfield)
        fails(tmp_path / "b.dcm", "cannot be read", read=read_hounsfield)

    def test_window(self):
        # The window of pulmonary embolism: -250 to 450.
        values = np.array([-1000, -250, 100, 450, 3000])
        assert apply_window(values, 100, 700).tolist() == [0, 0, 128, 255, 255]

    @pytest.mark.parametrize(("width", "function"), [(0, "LINEAR_EXACT"), (-1, "SIGMOID"), (0.5, "LINEAR")])
    def test_no_window(self, width, function):
        with pytest.raises(ValueError, match="narrow"):
            apply_window(RAMP, 0, width, function)


def test_a_whole_file_comes_back_as_array(tmp_path):
    found = read_dicom(save(tmp_path / "a.dcm", RAMP))
    assert found.shape == (16, 16)
    assert found.dtype == np.uint8
