"""Cells under two microscopes: made-up pictures in phase contrast and of a stained smear, with the box of every cell.

In phase contrast cells are grey bodies with a bright halo on a grey ground, in the smear pink discs with a pale middle, some with a
dark nucleus, on a light ground.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dart_core.data.phantoms.shapes import Field, inside, smooth_picture
from dart_core.errors import SettingError


@dataclass(frozen=True)
class Microscope:
    """How a microscope shows cells."""

    ground: tuple[float, float, float]
    """Red, green and blue of the empty field, from 0 to 255."""
    body: tuple[float, float, float]
    """Of a cell."""
    nucleus: tuple[float, float, float]
    """Of the nucleus."""
    nuclei: float
    """Share of cells with a nucleus that shows."""
    pallor: float
    """How far the middle of a cell without nucleus fades towards the ground."""
    halo: float
    """Brightness of the rim of light around a cell, in grey levels."""
    shading: float
    """Uneven light, relative."""
    noise: float
    """Standard deviation of the noise in grey levels."""


MICROSCOPES: dict[str, Microscope] = {
    "phase": Microscope((138, 138, 138), (112, 112, 112), (92, 92, 92), 0.7, 0.0, 70, 0.10, 4.0),
    "smear": Microscope((226, 232, 224), (214, 138, 150), (96, 62, 138), 0.15, 0.5, 0, 0.05, 3.0),
}
"""The two made-up microscopes."""
RADIUS = (0.05, 0.085)
"""Smallest and largest radius of a cell in sides of the picture."""


def cell_picture(
    subject: int, microscope: str = "phase", size: int = 256, cells: int = 12, seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Make a picture of cells that hardly touch each other.

    Args:
        subject: number of the field of view.
        microscope: one of MICROSCOPES.
        size: side in pixels; the same cells are seen at any size.
        cells: how many are tried; fewer find room where they are many.
        seed: changes all pictures.

    Returns:
        uint8 (size, size, 3), and boxes (n, 4): first and last-but-one column and row of each cell's body, cut to the picture.

    Raises:
        SettingError: an unknown microscope, no cell, or a side below 32 pixels.
    """
    from scipy import ndimage

    if microscope not in MICROSCOPES:
        raise SettingError(f"no microscope {microscope!r}", remedy=f"choose from {', '.join(MICROSCOPES)}")
    if size < 32 or cells < 0:
        raise SettingError(f"{cells} cells in {size} pixels", remedy="give a side of at least 32 pixels")
    model = MICROSCOPES[microscope]
    rng = np.random.default_rng([seed, subject, list(MICROSCOPES).index(microscope)])
    axis = np.asarray((np.arange(size) + 0.5) / size, dtype=np.float32)
    picture = np.broadcast_to(np.array(model.ground, dtype=np.float32), (size, size, 3)).copy()
    mottle = smooth_picture(rng, axis, axis, 0.05, 24)[..., None]
    picture += 2.0 * mottle
    boxes = []
    for y, x, radius in _places(rng, cells):
        # Nothing of a cell reaches farther than two radii.
        (top, bottom), (left, right) = (np.searchsorted(axis, (c - 2 * radius, c + 2 * radius)) for c in (y, x))
        part, ground = picture[top:bottom, left:right], mottle[top:bottom, left:right]
        depth = _cell(rng, axis[top:bottom], axis[left:right], y, x, radius)
        body = inside(depth, 1.5 / size)
        rows, columns = np.flatnonzero((body > 0.5).any(1)), np.flatnonzero((body > 0.5).any(0))
        if len(rows) < 3 or len(columns) < 3:
            continue
        boxes.append((left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1))
        colour = np.array(model.body) * rng.uniform(0.93, 1.05)
        part += (model.halo * np.exp(-((depth / (0.22 * radius)) ** 2)) * (depth < 0.1 * radius))[..., None]
        _cover(part, body, colour + 4 * ground)
        if rng.random() < model.nuclei:
            _cover(part, inside(depth - rng.uniform(0.35, 0.5) * radius, 0.2 * radius), np.array(model.nucleus))
        else:
            _cover(part, model.pallor * inside(depth - 0.55 * radius, 0.5 * radius), np.array(model.ground))
    turn = rng.uniform(0, 2 * math.pi)
    slope = math.cos(turn) * (axis[:, None] - 0.5) + math.sin(turn) * (axis[None] - 0.5)
    picture = ndimage.gaussian_filter(picture * (1 + model.shading * slope)[..., None], [size / 400, size / 400, 0])
    noise = model.noise * rng.standard_normal((size, size, 1 if microscope == "phase" else 3))
    return np.rint(np.clip(picture + noise, 0, 255)).astype(np.uint8), np.array(boxes, dtype=np.int64).reshape(-1, 4)


def degrade_boxes(
    boxes: NDArray[np.int64] | NDArray[np.float64],
    size: tuple[int, int],
    generator: np.random.Generator,
    missing: float = 0.5,
    jitter: float = 0.1,
    false: float = 0.1,
) -> NDArray[np.float64]:
    """Make good boxes imperfect, by a rule that can be stated.

    Args:
        boxes: (n, 4).
        size: (H, W) of the picture.
        generator: of the draws.
        missing: share of boxes that go, each on its own.
        jitter: standard deviation of each corner's shift, relative to the side of the box.
        false: boxes that are added where a true one of the picture is copied to a random place, relative to n (rounded).

    Returns:
        (m, 4), inside of the picture and with an area.
    """
    height, width = size
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    kept = boxes[generator.random(len(boxes)) >= missing]
    sides = np.tile(kept[:, 2:] - kept[:, :2], 2)
    moved = kept + jitter * sides * generator.standard_normal(kept.shape)
    count = round(false * len(boxes))
    copied = boxes[generator.integers(0, len(boxes), count)] if count else np.zeros((0, 4))
    extent = copied[:, 2:] - copied[:, :2]
    corner = generator.random((count, 2)) * np.maximum(np.array([width, height]) - extent, 1)
    together = np.concatenate([moved, np.concatenate([corner, corner + extent], axis=1)])
    found: NDArray[np.float64] = together.clip(0, np.array([width - 1, height - 1] * 2)).round()
    return found[((found[:, 2:] - found[:, :2]) >= 3).all(axis=1)]


def write_cells(
    folder: str | os.PathLike[str],
    microscopes: Sequence[str] = ("phase", "smear"),
    pictures: int = 24,
    size: int = 256,
    cells: int = 12,
    seed: int = 0,
) -> dict[str, Path]:
    """Write pictures of several microscopes as PNG files, with a table of boxes for each.

    Args:
        folder: where <microscope>/*.png and <microscope>.csv go.
        microscopes: some of MICROSCOPES.
        pictures: of each; the last sixth is for validation and the third before it for test.
        size: side in pixels.
        cells: tried in each picture.
        seed: changes all pictures.

    Returns:
        microscope -> CSV file with the columns image, split, site, label, xmin, ymin, xmax, ymax.

    Raises:
        SettingError: an unknown microscope, no picture, or a side below 32 pixels.
        OutputError: the files cannot be written.
    """
    from dart_core.data.boxes import CELL, BoxedPicture, write_boxes
    from dart_core.data.images import write_image

    if pictures < 1 or not microscopes:
        raise SettingError("no picture to write", remedy="give at least one")
    written = {}
    for name in dict.fromkeys(microscopes):
        listed = []
        for number in range(pictures):
            image, boxes = cell_picture(number, name, size, cells, seed)
            left = pictures - number
            split = "val" if left <= pictures // 6 else "test" if left <= pictures // 6 + pictures // 3 else "train"
            path = write_image(Path(folder) / name / f"{name}{number:04d}.png", image)
            listed.append(BoxedPicture(path, boxes.astype(np.float64), (CELL,) * len(boxes), split, name))
        written[name] = write_boxes(Path(folder) / f"{name}.csv", listed)
    return written


def _places(rng: np.random.Generator, cells: int) -> list[tuple[float, float, float]]:
    """Middle and radius of cells that overlap by a tenth of their radii at most."""
    found: list[tuple[float, float, float]] = []
    for _ in range(cells):
        for _ in range(30):
            radius = rng.uniform(*RADIUS)
            y, x = rng.uniform(0.3 * radius, 1 - 0.3 * radius, 2)
            if all(math.hypot(y - v, x - u) > 0.95 * (radius + other) for v, u, other in found):
                found.append((float(y), float(x), float(radius)))
                break
    return found


def _cover(picture: Field, share: Field, colour: Field) -> None:
    """Lay a colour onto a picture (h, w, 3), in place, where and as far as `share` (h, w) says."""
    picture += share[..., None] * (colour - picture)


def _cell(rng: np.random.Generator, rows: Field, columns: Field, y: float, x: float, radius: float) -> Field:
    """Distance to the outline, positive inside."""
    down, across = rows[:, None] - y, columns[None] - x
    angle, distance = np.arctan2(down, across), np.hypot(down, across)
    outline = np.ones_like(distance)
    for wave in range(2, 5):
        outline += rng.uniform(0, 0.12 / (wave - 1)) * np.cos(wave * angle + rng.uniform(0, 2 * math.pi))
    return np.asarray(radius * outline - distance)
