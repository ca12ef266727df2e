from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from dart_core.data.images import read_image, write_image
from dart_core.errors import InputError, OutputError

COLOUR = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]


def fails(path: Path, *parts: object) -> None:
    with pytest.raises(InputError) as error:
        read_image(path)
    for part in (path, *parts):
        assert str(part) in str(error.value)
    assert "\n" not in str(error.value)


class TestReading:
    @pytest.mark.parametrize("ending", ["png", "tif", "bmp"])
    def test_colour_and_grey(self, tmp_path, ending):
        Image.fromarray(COLOUR).save(tmp_path / f"c.{ending}")
        Image.fromarray(GREY).save(tmp_path / f"g.{ending}")
        assert_array_equal(read_image(tmp_path / f"c.{ending}"), COLOUR)
        assert_array_equal(read_image(tmp_path / f"g.{ending}", mode="L"), GREY)
        assert_array_equal(read_image(tmp_path / f"g.{ending}"), np.repeat(GREY[..., None], 3, axis=2))
        luma = read_image(tmp_path / f"c.{ending}", mode="L")
        assert luma.shape == GREY.shape
        assert np.abs(luma - COLOUR @ [0.299, 0.587, 0.114]).max() <= 1
        assert read_image(tmp_path / f"c.{ending}").dtype == np.uint8
        assert read_image(tmp_path / f"c.{ending}").flags.writeable

    @pytest.mark.parametrize("mode", ["RGBA", "P", "1", "CMYK", "LA"])
    def test_other_modes_become_colour(self, tmp_path, mode):
        block = Image.new("RGB", (4, 6), (255, 255, 255)).convert(mode)
        block.save(tmp_path / "a.tif")
        assert_array_equal(read_image(tmp_path / "a.tif"), np.full((6, 4, 3), 255))

    def test_exif_orientation_is_applied(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees clockwise
        Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=exif)
        assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(COLOUR, k=-1))

    @pytest.mark.parametrize("ending", ["png", "tif"])
    def test_16_bit_grey_is_scaled_by_its_whole_range(self, tmp_path, ending):
        deep = np.array([[0, 128, 129, 257], [32768, 65535 - 129, 65535 - 128, 65535]], np.uint16)
        Image.fromarray(deep).save(tmp_path / f"a.{ending}")
        assert_array_equal(read_image(tmp_path / f"a.{ending}", mode="L"), [[0, 0, 1, 1], [128, 254, 255, 255]])

    @pytest.mark.parametrize("values", [np.float32([[0.5]]), np.int32([[70000]]), np.int32([[-1]])])
    def test_values_beyond_16_bits(self, tmp_path, values):
        Image.fromarray(values).save(tmp_path / "a.tif")
        fails(tmp_path / "a.tif", "16 bits")

    def test_missing_folder_and_other_files(self, tmp_path):
        fails(tmp_path / "no.png", "not found")
        fails(tmp_path, "folder")
        (tmp_path / "a.png").write_text("no picture")
        fails(tmp_path / "a.png", "not a picture")
        (tmp_path / "b.png").touch()
        fails(tmp_path / "b.png", "not a picture")

    @pytest.mark.parametrize("ending", ["png", "jpg", "tif", "bmp"])
    @pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
    def test_truncated(self, tmp_path, ending, share):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"whole.{ending}")
        content = (tmp_path / f"whole.{ending}").read_bytes()
        path = tmp_path / f"a.{ending}"
        path.write_bytes(content[: int(len(content) * share)])
        fails(path)

    def test_damaged(self, tmp_path):
        Image.fromarray(COLOUR).save(tmp_path / "a.png")
        content = bytearray((tmp_path / "a.png").read_bytes())
        content[50] ^= 0xFF
        (tmp_path / "a.png").write_bytes(content)
        fails(tmp_path / "a.png", "damaged")

    def test_several_pictures(self, tmp_path):
        frames = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
        frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
        fails(tmp_path / "a.tif", "2 pictures")

    def test_the_first_picture_of_a_camera_s_jpeg_is_the_one(self, tmp_path):
        frames = [Image.new("RGB", (8, 8), colour) for colour in ((200, 30, 90), (0, 0, 0))]
        frames[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=frames[1:])
        with Image.open(tmp_path / "a.jpg") as image:
            assert image.n_frames == 2
        assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - (200, 30, 90)).max() <= 3

    @pytest.mark.parametrize("mode", ["P", "L", "RGB"])
    def test_transparency_is_dropped_without_a_word(self, tmp_path, mode):
        image = Image.fromarray(COLOUR).convert(mode)
        transparency = {"P": b"\x00\xff\x80", "L": 7, "RGB": (1, 2, 3)}[mode]
        image.save(tmp_path / "a.png", transparency=transparency)
        assert_array_equal(read_image(tmp_path / "a.png"), np.asarray(image.convert("RGB")))

    def test_a_small_file_that_would_become_huge(self, tmp_path):
        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
        content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
        (tmp_path / "a.png").write_bytes(content)
        fails(tmp_path / "a.png", "too large")


class TestWriting:
    @pytest.mark.parametrize("array", [COLOUR, GREY, COLOUR[::-1, ::2]])
    def test_comes_back_as_it_was(self, tmp_path, array):
        path = write_image(tmp_path / "new" / "a.png", array)
        assert_array_equal(read_image(path, mode="L" if array.ndim == 2 else "RGB"), array)
        assert list(path.parent.iterdir()) == [path]

    def test_effort_changes_the_size_alone(self, tmp_path):
        sizes = []
        for compression in (0, 6):
            path = write_image(tmp_path / "a.png", GREY, compression)
            assert_array_equal(read_image(path, mode="L"), GREY)
            sizes.append(path.stat().st_size)
        assert sizes[0] > sizes[1]

    def test_bool_becomes_black_and_white(self, tmp_path):
        path = write_image(tmp_path / "a.png", GREY > 100)
        assert_array_equal(read_image(path, mode="L"), np.where(GREY > 100, 255, 0))

    @pytest.mark.parametrize(
        "array",
        [COLOUR / 255, COLOUR.astype(np.int64), COLOUR[..., :2], COLOUR[None], GREY[0], GREY[:0]],
        ids=["float", "int64", "two channels", "batch", "line", "empty"],
    )
    def test_no_picture(self, tmp_path, array):
        with pytest.raises(InputError, match="no picture"):
            write_image(tmp_path / "a.png", array)

    def test_other_ending(self, tmp_path):
        with pytest.raises(OutputError, match=r"\.png"):
            write_image(tmp_path / "a.jpg", COLOUR)

    def test_full_disk(self, tmp_path, file_size_limit):
        path = tmp_path / "a.png"
        path.write_bytes(b"old")
        noise = np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)
        with file_size_limit(4096), pytest.raises(OutputError, match="disk is full"):
            write_image(path, noise)
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.real
@pytest.mark.skipif("DART_DATA" not in os.environ, reason="DART_DATA does not say where the real data sets are")
def test_real_pictures_of_every_set_are_read():
    root = Path(os.environ["DART_DATA"])
    paths = [path for folder in sorted(root.iterdir()) for path in sorted(folder.rglob("*.[pj]*g"))[:3]]
    assert len(paths) > 10
    for path in paths:
        image = read_image(path)
        assert image.ndim == 3
        assert image.std() > 0
