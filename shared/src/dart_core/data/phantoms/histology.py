"""Histology: made-up fields of lymph node with metastases, stained and scanned by several laboratories.

Tissue is two amounts per pixel, of haematoxylin and of eosin, laid out as nuclei on jittered grids: small dark lymphocytes,
large pale tumour cells with nucleoli in pink cytoplasm, fibres with spindle-shaped nuclei, holes. A laboratory turns them into
colour by Beer's and Lambert's law with its own stain vectors, so that one tissue can be seen as each laboratory shows it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dart_core.data.phantoms.scanner import split_of
from dart_core.data.phantoms.shapes import Field, grid_axes, inside, smooth_picture
from dart_core.errors import SettingError


@dataclass(frozen=True)
class Laboratory:
    """How a laboratory stains and scans."""

    haematoxylin: tuple[float, float, float]
    """Optical density in red, green and blue of one unit of haematoxylin; of length 1."""
    eosin: tuple[float, float, float]
    """The same of eosin."""
    strength: tuple[float, float]
    """Amount of each stain that the laboratory's protocol leaves in the tissue."""
    white: tuple[float, float, float]
    """Light of the scanner without tissue, 0 to 1."""
    blur: float
    """Standard deviation of the point spread in micrometres."""
    noise: float
    """Standard deviation of the noise in grey levels."""


LABORATORIES: dict[str, Laboratory] = {
    "RUMC": Laboratory((0.58, 0.74, 0.34), (0.14, 0.92, 0.37), (1.00, 1.00), (0.95, 0.94, 0.95), 0.2, 2.0),
    "CWZ": Laboratory((0.70, 0.66, 0.27), (0.10, 0.96, 0.26), (0.80, 0.85), (0.97, 0.95, 0.97), 0.25, 2.0),
    "RST": Laboratory((0.53, 0.75, 0.40), (0.24, 0.82, 0.52), (1.25, 1.20), (0.93, 0.91, 0.90), 0.35, 3.0),
    "UMCU": Laboratory((0.66, 0.68, 0.32), (0.12, 0.80, 0.59), (0.65, 0.70), (0.93, 0.95, 0.93), 0.3, 2.5),
    "LPON": Laboratory((0.68, 0.69, 0.24), (0.22, 0.91, 0.35), (1.0, 0.90), (0.91, 0.92, 0.96), 0.4, 3.0),
}
"""Five made-up laboratories, named as the medical centres of CAMELYON17."""

_PATCHES_PER_SLIDE = 4


def histology_field(
    subject: int,
    laboratory: str,
    shape: tuple[int, int] = (512, 512),
    seed: int = 0,
    number: int = 0,
    pixel: float = 1.0,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Make a field of lymph node that a metastasis partly fills, and the mask of the tumour.

    The tissue depends on `seed`, `subject` and `number` alone; the laboratory gives it its colours.

    Args:
        subject: number of the slide; its stain is a little stronger or weaker than the laboratory's.
        laboratory: one of LABORATORIES.
        shape: pixels (H, W).
        seed: changes all slides.
        number: which field of the slide.
        pixel: size of a pixel in micrometres.

    Returns:
        uint8 (H, W, 3) and bool (H, W).

    Raises:
        SettingError: an unknown laboratory, a side below 16 pixels, or no size of a pixel.
    """
    model = _find_laboratory(laboratory)
    stains_2HW, tumour = _tissue(shape, pixel, np.random.default_rng([seed, subject, number, 2]), "part")
    return _stain(model, stains_2HW, pixel, subject, seed, number), tumour


def histology_patch(
    subject: int,
    laboratory: str,
    tumour: bool,
    size: int = 64,
    seed: int = 0,
    number: int = 0,
    pixel: float = 1.0,
) -> NDArray[np.uint8]:
    """Make a patch with tumour in its middle, or without any.

    Args:
        subject: see `histology_field`.
        laboratory: likewise.
        tumour: whether tumour fills the middle.
        size: side in pixels.
        seed: see `histology_field`.
        number: likewise.
        pixel: likewise.

    Returns:
        uint8 (size, size, 3).

    Raises:
        SettingError: an unknown laboratory, a side below 16 pixels, or no size of a pixel.
    """
    model = _find_laboratory(laboratory)
    rng = np.random.default_rng([seed, subject, number, int(tumour)])
    stains_2HW, _ = _tissue((size, size), pixel, rng, "middle" if tumour else "none")
    return _stain(model, stains_2HW, pixel, subject, seed, number)


def write_histology(
    folder: str | os.PathLike[str],
    laboratories: Sequence[str] = ("RUMC", "CWZ", "RST"),
    patches_per_laboratory: int = 48,
    size: int = 64,
    seed: int = 0,
) -> Path:
    """Write patches of several laboratories as PNG files, with a datalist.

    Every slide gives four patches, with and without tumour by turns. Of each laboratory's slides one fifth (at least one, when
    there are three or more) each is validation and test. Laboratories have slides of their own.

    Args:
        folder: where images/ and datalist.csv go.
        laboratories: some of LABORATORIES.
        patches_per_laboratory: how many.
        size: side in pixels; a pixel is one micrometre wide.
        seed: changes all patches.

    Returns:
        the path of `datalist.csv` in `folder`, with columns image, subject (the slide), site (the laboratory), split and
        label (1 tumour, 0 none).

    Raises:
        SettingError: an unknown laboratory, none, no patch, or a side below 16 pixels.
        OutputError: the files cannot be written.
    """
    from dart_core.data.datalist import Datalist, Row
    from dart_core.data.images import write_image

    if not laboratories or patches_per_laboratory < 1:
        raise SettingError("no laboratory or no patch to write", remedy="give at least one of each")
    for laboratory in laboratories:
        _find_laboratory(laboratory)
    folder = Path(folder)
    slides = -(-patches_per_laboratory // _PATCHES_PER_SLIDE)
    rows = []
    for laboratory in dict.fromkeys(laboratories):
        for patch in range(patches_per_laboratory):
            slide, number = divmod(patch, _PATCHES_PER_SLIDE)
            subject = 1000 * (1 + list(LABORATORIES).index(laboratory)) + slide
            tumour = number % 2 == 0
            picture = histology_patch(subject, laboratory, tumour, size, seed, number)
            rows.append(
                Row(
                    image=write_image(folder / "images" / f"{laboratory}_{subject}_{number}.png", picture),
                    subject=f"phantom{subject}",
                    site=laboratory,
                    split=split_of(slide, slides),
                    labels={"label": str(int(tumour))},
                )
            )
    return Datalist(tuple(rows)).write(folder / "datalist.csv")


def _find_laboratory(name: str) -> Laboratory:
    if name not in LABORATORIES:
        raise SettingError(f"no laboratory {name!r}", remedy=f"choose from {', '.join(LABORATORIES)}")
    return LABORATORIES[name]


@dataclass(frozen=True)
class _Kind:
    """Nuclei of one kind, one per cell of a grid."""

    pitch: float
    """Side of a grid cell in micrometres."""
    radius: tuple[float, float]
    """Smallest and largest radius in micrometres."""
    long: tuple[float, float]
    """Long half axis relative to the short one."""
    stain: tuple[float, float]
    """Least and most haematoxylin."""


_LYMPHOCYTE = _Kind(8.0, (2.7, 3.8), (1.0, 1.25), (0.8, 1.35))
_TUMOUR_CELL = _Kind(14.0, (3.8, 6.8), (1.05, 1.6), (0.45, 1.0))
_FIBROBLAST = _Kind(17.0, (1.6, 2.2), (3.0, 4.2), (0.7, 1.0))


def _tissue(
    shape: tuple[int, int], pixel: float, rng: np.random.Generator, tumour: str
) -> tuple[Field, NDArray[np.bool_]]:
    """Amount of haematoxylin and eosin (2, H, W), and where there is tumour (H, W)."""
    if len(shape) != 2 or min(shape) < 16:
        raise SettingError(f"a field of shape {tuple(shape)}", remedy="give two sides of at least 16 pixels")
    if not pixel > 0:
        raise SettingError(f"a pixel of {pixel} micrometres", remedy="give a size above 0")
    y, x = grid_axes(shape, (pixel, pixel), (0.0, 0.0))

    def texture(wavelength: float, count: int = 32) -> Field:
        return smooth_picture(rng, y, x, wavelength, count)

    nest = texture(150, 16)
    if tumour == "middle":
        extent = max(shape) * pixel / 2
        reach = np.hypot(y[:, None], x[None]) / extent
        nest = np.maximum(nest + 0.6, 2 - 2.5 * reach)
    invaded = inside(nest - 0.1, 0.1) if tumour != "none" else np.zeros(shape, dtype=np.float32)
    band = np.abs(texture(190, 16) + 0.2 * texture(40, 16))
    fibrous = inside(0.16 - band, 0.08) * (1 - invaded)
    nodal = (1 - invaded) * (1 - fibrous)

    streaks = texture(9)
    eosin = 0.30 * nodal + 0.55 * invaded + (0.75 + 0.14 * streaks) * fibrous
    haematoxylin = 0.14 * nodal + 0.18 * invaded + 0.08 * fibrous
    grain = texture(5, 48)
    eosin, haematoxylin = eosin * (1 + 0.12 * grain), haematoxylin * (1 + 0.15 * grain)
    for kind, where in ((_LYMPHOCYTE, nodal), (_FIBROBLAST, fibrous), (_TUMOUR_CELL, invaded)):
        level, dark, gap = _nuclei(kind, y - y[0], x - x[0], where, rng, pixel)
        nucleus = inside((1 - level) * kind.radius[0], max(pixel, 0.5))
        if kind is _TUMOUR_CELL:
            # Vesicular: stained along the membrane, pale within, one nucleolus; cells shrink from each other.
            rim = inside(0.18 - np.abs(level - 0.9), 0.25)
            nucleolus = inside(0.30 - level, 0.2) * inside(0.8 - dark, 0.1)
            amount = dark * (0.75 + 0.25 * rim + 0.28 * grain) + 0.45 * nucleolus
            eosin = eosin * (1 - 0.55 * where * inside(gap - 7.4, 1.2))
        else:
            amount = dark * (1 + 0.22 * grain)
            if kind is _LYMPHOCYTE:
                eosin = eosin * (1 - 0.5 * where * inside(gap - 4.6, 1.0))
        haematoxylin = haematoxylin * (1 - nucleus) + amount * nucleus
        eosin = eosin * (1 - 0.3 * nucleus)
    # Holes: sinuses and fat, more of them in some places.
    holes = inside(texture(70, 16) + 0.35 * texture(260, 8) - 1.55, 0.12)
    stains = np.stack([np.maximum(haematoxylin, 0), np.maximum(eosin, 0)]) * (1 - 0.97 * holes)
    return np.asarray(stains, dtype=np.float32), np.asarray(invaded > 0.5)


def _nuclei(
    kind: _Kind, position_y: Field, position_x: Field, where: Field, rng: np.random.Generator, pixel: float
) -> tuple[Field, Field, Field]:
    """Nuclei whose centres lie where the share `where` of their tissue is above one half.

    Returns:
        (H, W) each: elliptic distance to the nearest nucleus (1 at its border), haematoxylin of that nucleus, and distance
        to its centre in micrometres.
    """
    height, width = where.shape
    # Grid cells with a margin of one on every side: no nucleus reaches farther than to its neighbours' cells.
    row, column = (np.floor(position / kind.pitch).astype(int) + 1 for position in (position_y, position_x))
    cells = (row[-1] + 2, column[-1] + 2)
    centre_y = (np.arange(cells[0])[:, None] - 0.5 + rng.uniform(-0.33, 0.33, cells)) * kind.pitch
    centre_x = (np.arange(cells[1])[None] - 0.5 + rng.uniform(-0.33, 0.33, cells)) * kind.pitch
    radius, long, stain = (rng.uniform(*span, cells) for span in (kind.radius, kind.long, kind.stain))
    turn = rng.uniform(0, np.pi, cells)
    at_y = np.clip(np.rint(centre_y / pixel), 0, height - 1).astype(int)
    at_x = np.clip(np.rint(centre_x / pixel), 0, width - 1).astype(int)
    radius = np.where(where[at_y, at_x] > 0.5, radius, 1e-3)
    cosine, sine = np.cos(turn), np.sin(turn)
    level, dark, gap = (np.full(where.shape, start, dtype=np.float32) for start in (np.inf, 0, np.inf))
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            pick = np.ix_(row + down, column + right)
            y, x = position_y[:, None] - centre_y[pick], position_x[None] - centre_x[pick]
            along, across = cosine[pick] * y + sine[pick] * x, cosine[pick] * x - sine[pick] * y
            other = np.hypot(along / long[pick], across) / radius[pick]
            nearer = other < level
            level = np.where(nearer, other, level)
            dark = np.where(nearer, stain[pick], dark)
            gap = np.minimum(gap, np.hypot(y, x))
    return level, dark, gap


def _stain(
    model: Laboratory, stains_2HW: Field, pixel: float, subject: int, seed: int, number: int
) -> NDArray[np.uint8]:
    """Turn amounts of stain into colour: light falls off with the exponent of the optical density."""
    from scipy import ndimage

    slide = np.random.default_rng([seed, subject, 3])
    strength = np.asarray(model.strength) * np.exp(slide.normal(0, 0.12, 2))
    vectors_23 = np.asarray([model.haematoxylin, model.eosin]) * np.exp(slide.normal(0, 0.02, (2, 3)))
    density = np.einsum("shw,s,sc->hwc", stains_2HW, strength, vectors_23)
    light = np.asarray(model.white) * np.exp(-density)
    light = ndimage.gaussian_filter(light, [model.blur / pixel, model.blur / pixel, 0])
    noise = np.random.default_rng([seed, subject, number, 4]).standard_normal(light.shape)
    return np.asarray(np.rint(np.clip(255 * light + model.noise * noise, 0, 255)), dtype=np.uint8)
