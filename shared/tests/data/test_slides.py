from __future__ import annotations

import os

import numpy as np
import openslide
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dart_core.data.slides import Slide, write_slide
from dart_core.errors import InputError, OutputError

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (304, 424, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    with Slide(write_slide(tmp_path_factory.mktemp("slides") / "slide.tif", COLOURS, tile=64)) as opened:
        yield opened


def fails(parts, call, *arguments):
    with pytest.raises(InputError) as error:
        call(*arguments)
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


class TestReading:
    def test_sizes(self, slide):
        assert slide.size == (424, 304)
        assert slide.level_sizes == ((424, 304), (212, 152), (106, 76))
        assert slide.downsamples == (1, 2, 4)

    def test_a_region_is_the_array(self, slide):
        assert (slide.read_region(17, 40, 90, 70) == COLOURS[40:110, 17:107]).all()

    def test_levels_are_means(self, slide):
        region = slide.read_region(0, 0, 212, 152, level=1)
        four = COLOURS.reshape(152, 2, 212, 2, 3).mean(axis=(1, 3))
        assert np.abs(region - four).max() <= 0.5
        assert slide.read_region(0, 0, 106, 76, level=2).shape == (76, 106, 3)

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
    @given(st.integers(-60, 423), st.integers(-60, 303), st.integers(1, 100), st.integers(1, 100))
    def test_beyond_the_edge_it_is_mirrored(self, slide, x, y, width, height):
        if x + width <= 0 or y + height <= 0:
            with pytest.raises(ValueError, match="do not touch"):
                slide.read_region(x, y, width, height)
            return
        # Seen from the array: pixel -1 is pixel 1, and so on; what is mirrored is the part inside the slide.
        top, bottom, left, right = max(y, 0), min(y + height, 304), max(x, 0), min(x + width, 424)
        inside = COLOURS[top:bottom, left:right]
        margins = ((top - y, y + height - bottom), (left - x, x + width - right), (0, 0))
        assert (slide.read_region(x, y, width, height) == np.pad(inside, margins, mode="reflect")).all()

    def test_mirrored_at_another_level(self, slide):
        whole = slide.read_region(0, 0, 212, 10, level=1)
        region = slide.read_region(412, 0, 10, 10, level=1)
        assert (region[:, :6] == whole[:, 206:]).all()
        assert (region[:, 6:] == whole[:, [210, 209, 208, 207]]).all()

    def test_what_was_not_scanned_is_white(self, tmp_path):
        class Holes:
            level_dimensions = ((8, 4),)
            level_downsamples = (1.0,)

            def __init__(self, path: str) -> None:
                pass

            def read_region(self, location, level, size):
                pixels = np.zeros((size[1], size[0], 4), np.uint8)
                pixels[:, :2] = (10, 20, 30, 255)
                pixels[:, 2:4] = (10, 20, 30, 128)
                return Image.fromarray(pixels)

            def close(self) -> None:
                pass

        file = tmp_path / "slide.abc"
        file.write_bytes(b"x")
        with Slide(file, Holes) as opened:
            region = opened.read_region(0, 0, 8, 4)
            assert (opened.read_region(0, 0, 8, 4, background=0)[:, 4:] == 0).all()
        assert (region[:, 4:] == 255).all()
        assert (region[:, :2] == (10, 20, 30)).all()
        assert np.abs(region[0, 2] - (255 - (255 - np.array([10, 20, 30])) * 128 / 255)).max() <= 1

    def test_level_for(self, slide):
        assert [slide.level_for(factor) for factor in (0.5, 1, 1.9, 2, 3.9, 4, 100)] == [0, 0, 0, 1, 1, 2, 2]

    def test_other_readers_have_the_same_interface(self, tmp_path):
        tiffslide = pytest.importorskip("tiffslide")
        path = write_slide(tmp_path / "slide.tif", COLOURS, tile=64)
        with Slide(path, tiffslide.TiffSlide) as opened:
            assert opened.size == (424, 304)
            assert (opened.read_region(400, 280, 64, 64)[:20, :21] == COLOURS[280:300, 400:421]).all()


class TestOtherFiles:
    def test_tiles_without_a_pyramid(self, tmp_path):
        with Slide(write_slide(tmp_path / "plain.tif", COLOURS, levels=1)) as opened:
            assert opened.downsamples == (1.0,)
            assert (opened.read_region(0, 0, 424, 304) == COLOURS).all()

    @pytest.mark.parametrize("name", ["strips.tif", "picture.png"])
    def test_pictures(self, tmp_path, name):
        Image.fromarray(COLOURS).save(tmp_path / name)
        with Slide(tmp_path / name) as opened:
            assert opened.size == (424, 304)
            assert (opened.read_region(400, 290, 20, 10) == COLOURS[290:300, 400:420]).all()

    def test_jpeg_tiles(self, tmp_path):
        # As CAMELYON17 has them, written by a library that is not ours.
        tifffile = pytest.importorskip("tifffile")
        pytest.importorskip("imagecodecs")
        smooth = np.linspace(40, 200, 300 * 421).reshape(300, 421, 1).repeat(3, axis=2).astype(np.uint8)
        tifffile.imwrite(tmp_path / "jpeg.tif", smooth, tile=(64, 64), photometric="rgb", compression="jpeg")
        with Slide(tmp_path / "jpeg.tif") as opened:
            assert np.abs(opened.read_region(0, 0, 421, 300).astype(int) - smooth).max() < 12


class TestMistakes:
    def test_no_file(self, tmp_path):
        fails(["none.tif: file not found"], Slide, tmp_path / "none.tif")
        fails(["this is a folder"], Slide, tmp_path)

    @pytest.mark.parametrize("content", [b"", b"II*\0", b"patient,stage\n", b"\x89PNG\r\n\x1a\n"])
    def test_no_slide(self, tmp_path, content):
        path = tmp_path / "slide.tif"
        path.write_bytes(content)
        fails(["slide.tif: not a slide, or truncated; copy it again"], Slide, path)

    def test_no_such_level(self, slide):
        fails(["has no level 3; its levels are 0 to 2"], slide.read_region, 0, 0, 5, 5, 3)

    def test_truncated(self, tmp_path):
        path = write_slide(tmp_path / "slide.tif", COLOURS, tile=64)
        os.truncate(path, path.stat().st_size * 2 // 3)
        fails(["slide.tif: not a slide, or truncated; copy it again"], Slide, path)

    def test_a_damaged_tile(self, tmp_path):
        path = write_slide(tmp_path / "slide.tif", COLOURS, tile=64)
        content = bytearray(path.read_bytes())
        content[100_000:100_200] = bytes(200)  # in the middle of level 0
        path.write_bytes(content)
        with Slide(path) as opened:
            assert (opened.read_region(0, 0, 64, 64) == COLOURS[:64, :64]).all()
            fails(["slide.tif: the slide is damaged near (0, 64)"], opened.read_region, 0, 64, 424, 240)

    def test_a_truncated_picture(self, tmp_path):
        path = tmp_path / "picture.png"
        Image.fromarray(COLOURS).save(path)
        os.truncate(path, path.stat().st_size // 2)
        fails(["picture.png: the picture is truncated or damaged"], Slide, path)

    def test_too_large_a_picture(self, tmp_path, monkeypatch):
        Image.fromarray(COLOURS).save(tmp_path / "picture.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        fails(["picture.png: the picture is too large to be read safely"], Slide, tmp_path / "picture.png")


class TestWriting:
    @pytest.mark.parametrize("shape", [(300, 421, 3), (65, 64), (1, 5, 3), (500, 130)])
    def test_others_read_it(self, tmp_path, shape):
        pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
        path = write_slide(tmp_path / "slide.tif", pixels, tile=64)
        assert openslide.OpenSlide.detect_format(path) == "generic-tiff"
        with Image.open(path) as image:
            assert (np.asarray(image) == pixels).all()
            assert image.n_frames == 3
        tifffile = pytest.importorskip("tifffile")
        with tifffile.TiffFile(path) as file:
            assert (file.pages[0].asarray() == pixels).all()
            assert all(page.is_tiled for page in file.pages)

    def test_a_mask_keeps_its_values(self, tmp_path):
        mask = RNG.integers(0, 3, (200, 300), dtype=np.uint8)
        with Slide(write_slide(tmp_path / "mask.tif", mask, tile=64)) as opened:
            for level in range(3):
                width, height = opened.level_sizes[level]
                region = opened.read_region(0, 0, width, height, level)
                assert (region == mask[:: 2**level, :: 2**level, None]).all()

    def test_what_is_no_picture(self, tmp_path):
        with pytest.raises(ValueError, match="expected uint8"):
            write_slide(tmp_path / "a.tif", np.zeros((4, 4), np.float32))
        with pytest.raises(ValueError, match="no multiple of 16"):
            write_slide(tmp_path / "a.tif", np.zeros((4, 4), np.uint8), tile=100)

    def test_full_disk(self, tmp_path, file_size_limit):
        with file_size_limit(10_000), pytest.raises(OutputError, match="disk is full"):
            write_slide(tmp_path / "a.tif", COLOURS)
        assert list(tmp_path.iterdir()) == []
