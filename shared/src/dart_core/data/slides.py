"""Whole-slide images: reading regions of a resolution pyramid as RGB, and writing a pyramid as tiled TIFF.

OpenSlide reads them; any reader of the same interface (tiffslide, cuCIM's) can take its place.
"""

from __future__ import annotations

import contextlib
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dart_core.data.images import read_image
from dart_core.errors import DartError, InputError
from dart_core.files import atomic_write


class Reader(Protocol):
    """What a slide is read with: the part of OpenSlide's interface that is used here."""

    @property
    def level_dimensions(self) -> Any:
        """(width, height) of every level, the largest first."""

    @property
    def level_downsamples(self) -> Any:
        """How many pixels of level 0 one pixel of each level is."""

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Any:
        """RGBA picture of `size` (width, height) at `level`, whose top left corner is `location` at level 0."""

    def close(self) -> None:
        """Give the file back."""


class Slide:
    """An open whole-slide image; a context manager.

    Args:
        path: a slide of any format of OpenSlide, a tiled TIFF without pyramid, or a picture that Pillow reads.
        reader: opens the file and gives an object of OpenSlide's interface. None: OpenSlide, and Pillow for pictures that
            are no slide.

    Raises:
        InputError: file missing, not a slide, truncated, or a picture too large to be read without tiles.
    """

    def __init__(self, path: str | os.PathLike[str], reader: Callable[[str], Reader] | None = None) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            problem = "this is a folder, not a file" if self.path.is_dir() else "file not found"
            raise InputError(problem, where=self.path, remedy="give a slide file")
        with self._errors("not a slide, or truncated"):
            self._reader: Reader = (reader or _open)(os.fspath(self.path))
            self.level_sizes = tuple((int(width), int(height)) for width, height in self._reader.level_dimensions)
            """(width, height) of every level, the largest first."""
            self.downsamples = tuple(float(factor) for factor in self._reader.level_downsamples)
            """Pixels of level 0 in one pixel of each level, along a side; 1.0 for level 0."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back."""
        self._reader.close()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) at level 0."""
        return self.level_sizes[0]

    def level_for(self, downsample: float) -> int:
        """The smallest level that is not coarser than `downsample` (pixels of level 0 per pixel)."""
        fine = [level for level, factor in enumerate(self.downsamples) if factor <= downsample * (1 + 1e-3)]
        return fine[-1] if fine else 0

    def read_region(
        self, x: int, y: int, width: int, height: int, level: int = 0, background: int = 255
    ) -> NDArray[np.uint8]:
        """Read a rectangle, part of which may lie beyond the slide's edges: there the slide is mirrored.

        What the scanner left out (transparent pixels) becomes white. The mirror does not repeat the edge pixel.

        Args:
            x: left edge in pixels of level 0; negative is left of the slide.
            y: top edge in pixels of level 0.
            width: columns of the result, in pixels of `level`.
            height: rows of the result, in pixels of `level`.
            level: level of the pyramid.
            background: grey value of what the file leaves out; 0 for masks, whose empty tiles are often not stored.

        Returns:
            uint8 (height, width, 3), red, green, blue.

        Raises:
            InputError: no such level, or the file is damaged there.
            ValueError: the rectangle does not touch the slide.
        """
        if not 0 <= level < len(self.downsamples):
            raise InputError(
                f"has no level {level}",
                where=self.path,
                remedy=f"its levels are 0 to {len(self.downsamples) - 1}",
            )
        factor = self.downsamples[level]
        left, top = round(x / factor), round(y / factor)
        (columns, before_x, after_x), (rows, before_y, after_y) = (
            _inside(start, length, end)
            for start, length, end in zip((left, top), (width, height), self.level_sizes[level], strict=True)
        )
        if columns < 1 or rows < 1:
            raise ValueError(f"{width} x {height} pixels at ({x}, {y}) do not touch the slide of {self.size}")
        with self._errors(f"the slide is damaged near ({x}, {y})"):
            # The place of a whole pixel of the level, so that the reader need not mix neighbours.
            corner = (round(max(left, 0) * factor), round(max(top, 0) * factor))
            region = self._reader.read_region(corner, level, (columns, rows)).convert("RGBA")
            pixels = np.asarray(region)
            if not (pixels[..., 3] == 255).all():
                behind = Image.new("RGBA", region.size, (background, background, background, 255))
                pixels = np.asarray(Image.alpha_composite(behind, region))
            pixels = np.ascontiguousarray(pixels[..., :3])
        if before_x or after_x or before_y or after_y:
            pixels = np.pad(pixels, ((before_y, after_y), (before_x, after_x), (0, 0)), mode="reflect")
        return pixels

    @contextlib.contextmanager
    def _errors(self, problem: str) -> Iterator[None]:
        """Whatever a reader raises for a file becomes one InputError; every reader has its own kinds."""
        try:
            yield
        except (DartError, ModuleNotFoundError, MemoryError):
            raise
        except Exception as error:
            raise InputError(problem, where=self.path, remedy="copy it again, or leave it out") from error


def _open(path: str) -> Reader:
    import openslide

    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice as many pixels are an error
            try:
                return openslide.ImageSlide(Image.fromarray(read_image(path)))
            except InputError as error:
                if "not a picture" not in error.problem:
                    raise
        raise


def _inside(start: int, length: int, end: int) -> tuple[int, int, int]:
    """How many of `length` pixels from `start` lie in [0, end), and how many before and behind."""
    before, behind = max(-start, 0), max(start + length - end, 0)
    return length - before - behind, before, behind


# --- Writing ---------------------------------------------------------------------------------------------------------


def write_slide(path: str | os.PathLike[str], pixels: NDArray[np.uint8], levels: int = 3, tile: int = 256) -> Path:
    """Write a picture as tiled TIFF with a pyramid of halved sizes (deflate), which every slide reader opens.

    Grey pictures are meant for masks: their smaller levels take every second pixel, those of colour pictures the mean of
    four.

    Args:
        path: the file.
        pixels: uint8 (H, W, 3) or (H, W).
        levels: levels of the pyramid, 1 or more.
        tile: side of the tiles, a multiple of 16.

    Raises:
        OutputError: the file cannot be written.
        ValueError: another type or shape, or a tile side that TIFF does not allow.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)) or not pixels.size:
        raise ValueError(f"expected uint8 (H, W, 3) or (H, W), got {pixels.dtype} {pixels.shape}")
    if tile % 16 or tile < 16 or levels < 1:
        raise ValueError(f"tile side {tile} is no multiple of 16, or {levels} levels")
    path = Path(path)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<2sHI", b"II", 42, 8))
        for level in range(levels):
            pixels = pixels if level == 0 else _halved(pixels)
            height, width = pixels.shape[:2]
            channels = pixels.shape[2] if pixels.ndim == 3 else 1
            tiles = [zlib.compress(part.tobytes(), 6) for part in _tiles(pixels, tile)]
            # Directory first, then its long values, then the tiles: places are known once the counts are.
            start = file.tell()
            long = start + 2 + 12 * 12 + 4
            bits, offsets, counts = long, long + 8, long + 8 + 4 * len(tiles)
            data = counts + 4 * len(tiles)
            places = np.cumsum([data, *map(len, tiles)])
            one = len(tiles) == 1
            entries = [
                (254, 4, 1, int(level > 0)),  # reduced picture
                (256, 4, 1, width),
                (257, 4, 1, height),
                (258, 3, channels, bits if channels == 3 else 8),
                (259, 3, 1, 8),  # deflate
                (262, 3, 1, 2 if channels == 3 else 1),  # RGB, or black is zero
                (277, 3, 1, channels),
                (284, 3, 1, 1),  # channels beside each other
                (322, 4, 1, tile),
                (323, 4, 1, tile),
                (324, 4, len(tiles), int(places[0]) if one else offsets),
                (325, 4, len(tiles), len(tiles[0]) if one else counts),
            ]
            file.write(struct.pack("<H", len(entries)))
            for tag, kind, count, value in entries:
                file.write(struct.pack("<HHII", tag, kind, count, value))
            after = int(places[-1]) + int(places[-1]) % 2
            file.write(struct.pack("<I", 0 if level == levels - 1 else after))
            file.write(struct.pack("<4H", 8, 8, 8, 0))
            file.write(places[:-1].astype("<u4").tobytes())
            file.write(np.array([len(part) for part in tiles], "<u4").tobytes())
            file.writelines(tiles)
            file.write(b"\0" * (after - file.tell()))
    return path


def _halved(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if pixels.ndim == 2 or min(pixels.shape[:2]) < 2:
        return pixels[::2, ::2]
    height, width = pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2
    four = pixels[:height, :width].reshape(height // 2, 2, width // 2, 2, 3).astype(np.uint16)
    return np.asarray((four.sum(axis=(1, 3)) + 2) // 4, dtype=np.uint8)


def _tiles(pixels: NDArray[np.uint8], side: int) -> Iterator[NDArray[np.uint8]]:
    """Tiles row by row; those at the right and bottom edge repeat the last pixels."""
    height, width = pixels.shape[:2]
    margins = [(0, -height % side), (0, -width % side), (0, 0)][: pixels.ndim]
    padded = np.pad(pixels, margins, mode="edge")
    for top in range(0, height, side):
        for left in range(0, width, side):
            yield padded[top : top + side, left : left + side]
