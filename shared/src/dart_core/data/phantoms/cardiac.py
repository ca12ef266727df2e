"""Cardiac MR: short-axis cine-like hearts of made-up subjects on four vendors' scanners, in few thick slices.

A heart has a left ventricle, its muscle, and a right ventricle, at end-diastole (ED) and end-systole (ES). The upper slices
show atria, which have no label, as in the data sets that this imitates.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dart_core.data.phantoms.scanner import Phantom, ScannerModel, find_scanner, scan, write_sites
from dart_core.data.phantoms.shapes import (
    Field,
    Layer,
    Space,
    cover,
    grid_axes,
    inside,
    join,
    rotation,
    slice_mean,
    smooth_field,
)
from dart_core.errors import SettingError

Phase = Literal["ED", "ES"]

_FIELD_OF_VIEW = (220.0, 220.0, 96.0)  # mm, right-left, back-front, apex-base
_CENTRE = (8.0, 0.0, 0.0)  # of the field of view, mm from the middle of the left ventricle
_PARTS = 3  # sub-slices that a slice is averaged over
_TISSUES = ("fat", "muscle", "lung", "blood", "liver")


def _scanner(contrasts: tuple[float, ...], *rest: Any) -> ScannerModel:
    return ScannerModel(dict(zip(_TISSUES, contrasts, strict=True)), *rest)


VENDORS: dict[str, ScannerModel] = {
    # Muscle stands for that of the heart and of the chest wall.
    "A": _scanner((0.85, 0.30, 0.05, 1.00, 0.42), 1.0, 0.30, 0.030, 0.9, (1.0, 1.0, 1.0), 220.0, "LPS"),
    "B": _scanner((0.60, 0.36, 0.06, 0.95, 0.40), 1.0, 0.10, 0.020, 1.0, (0.98, 0.98, 1.0), 480.0, "LPS"),
    "C": _scanner((1.05, 0.42, 0.10, 0.90, 0.52), 0.85, 0.55, 0.045, 1.3, (0.92, 0.92, 1.02), 1300.0, "RAS"),
    "D": _scanner((0.45, 0.20, 0.04, 0.85, 0.30), 1.25, -0.15, 0.055, 1.2, (1.08, 1.08, 1.0), 2600.0, "LAS"),
}
"""The four made-up scanners, named as the vendors of M&Ms."""

LABELS = {1: "LV", 2: "MYO", 3: "RV"}
"""Left ventricle (with its papillary muscles), its muscle, right ventricle; numbers as in M&Ms."""


def cardiac_mr(
    subject: int,
    vendor: str,
    shape: tuple[int, int, int] = (96, 96, 10),
    seed: int = 0,
    phase: Phase = "ED",
) -> tuple[NDArray[np.float32], NDArray[np.uint8], tuple[float, float, float]]:
    """Make the short-axis stack of one heart, indices growing as in RAS.

    Args:
        subject: number of the subject; its anatomy, in mm, depends on this and `seed` alone.
        vendor: one of VENDORS.
        shape: voxels (H, W, Z) of the field of view of 220 x 220 x 96 mm (some per cent more or less by vendor), slices
            from the apex to the base.
        seed: changes all subjects.
        phase: end-diastole or end-systole of the same heart.

    Returns:
        image (H, W, Z) float32, not negative; LABELS (H, W, Z) uint8, the truth in the middle of each slice; voxel size
        in mm.

    Raises:
        SettingError: an unknown vendor or phase, a side below 8 voxels, or fewer than 4 slices.
    """
    scanner = find_scanner(VENDORS, vendor, shape, least_slices=4)
    if phase not in ("ED", "ES"):
        raise SettingError(f"no phase {phase!r}", remedy="choose ED or ES")
    spacing = scanner.voxel_size(_FIELD_OF_VIEW, shape)
    x, y, z = spacing
    axes = grid_axes((*shape[:2], shape[2] * _PARTS), (x, y, z / _PARTS), _CENTRE)
    layers, labels = _chest(np.random.default_rng([seed, subject]), axes, (x + y) / 2, phase)
    key = [seed, subject, 1 + list(VENDORS).index(vendor)]
    rng, noise_rng = np.random.default_rng(key), np.random.default_rng([*key, 1 + (phase == "ES")])
    tissues = slice_mean(cover(layers), _PARTS)
    image = scan(scanner, tissues, rng, spacing, "blood", (0.04, 10), noise_rng=noise_rng)
    return image, labels[..., _PARTS // 2 :: _PARTS], spacing


def write_cardiac_mr(
    folder: str | os.PathLike[str],
    vendors: Sequence[str] = tuple(VENDORS),
    subjects_per_vendor: int = 5,
    shape: tuple[int, int, int] = (96, 96, 10),
    seed: int = 0,
) -> Path:
    """Write hearts of several vendors at both phases as NIfTI files with LABELS, with a datalist.

    Every vendor has its own subjects and stores its files in its own orientation, voxel size and intensity scale (int16).
    Of the subjects of a vendor, one fifth (at least one, when there are three or more) each is validation and test.

    Returns:
        the path of `datalist.csv` in `folder`, with columns image, mask, subject, site (the vendor), split, phase.

    Raises:
        SettingError: an unknown vendor, no vendor, no subject, or too small a shape.
        OutputError: the files cannot be written.
    """

    def make(subject: int, vendor: str) -> list[Phantom]:
        phases: tuple[Phase, ...] = ("ED", "ES")
        return [
            Phantom(*cardiac_mr(subject, vendor, shape, seed, phase), suffix=f"_{phase}", labels={"phase": phase})
            for phase in phases
        ]

    return write_sites(folder, VENDORS, vendors, subjects_per_vendor, _CENTRE, make)


def _chest(
    rng: np.random.Generator, axes: Sequence[Field], pixel: float, phase: Phase
) -> tuple[list[Layer], NDArray[np.uint8]]:
    """Make the anatomy of one subject: layers from below to above, and labels."""
    pitch, roll, yaw = np.deg2rad(rng.normal(scale=(4.0, 4.0, 8.0)).clip(-14, 14))
    turn = rotation(1, 2, pitch) @ rotation(0, 2, roll) @ rotation(0, 1, yaw)
    space = Space(axes, turn, rng.normal(1.0, (0.06, 0.06, 0.04)).clip(0.86, 1.14))
    voxel = max(1.2, 0.8 * pixel)  # mm over which an edge is spread
    thickness = float(np.exp(rng.normal(np.log(9.0), 0.18)))  # of the left ventricle's wall at end-diastole
    cavity = float(np.clip(rng.normal(24.0, 2.0), 19, 30))  # its radius at end-diastole
    ejection = float(rng.uniform(0.2, 0.42))  # part of the radius that the contraction takes
    lumps = np.clip(smooth_field(rng, axes, 40), -2.5, 2.5)
    sides = {name: float(rng.uniform(0.9, 1.1)) for name in ("right", "wall", "depth")}
    contraction = 0.0 if phase == "ED" else ejection

    base = 34.0 - 30 * contraction  # the valves move towards the apex
    bottom = -44.0
    inner = cavity * (1 - contraction)
    wall = ((cavity + thickness) ** 2 - cavity**2) * (34.0 - bottom) / (base - bottom)
    outer = (inner**2 + wall) ** 0.5  # the muscle keeps its volume
    endo = _bullet(space, inner, base, bottom + (outer - inner) * 0.9) + 0.5 * lumps
    epi = _bullet(space, outer, base, bottom) + 0.5 * lumps
    reach = outer + 6
    right = space.ellipsoid(
        (reach * 0.78, 11, 26), (34 * sides["right"] * (1 - 0.7 * contraction), 40 * (1 - 0.5 * contraction), 68), 2.2
    )
    right = np.minimum(right + 0.8 * lumps, -epi)
    below = (
        base - axes[2]
    )  # slices are planned along the valves, so that a slice has a ventricle all around or not at all
    labels = np.zeros(endo.shape, dtype=np.uint8)
    labels[np.minimum(right, below + 6) > 0] = 3
    labels[np.minimum(epi, below) > 0] = 2
    labels[np.minimum(endo, below) > 0] = 1

    layers = _surroundings(rng, axes, space, voxel, join(epi, right, 10), sides)
    layers += _atria(space, voxel, base)
    layers += _ventricles(rng, axes, space, voxel, endo, epi, right, below, inner)
    return layers, labels


def _bullet(space: Space, radius: float, base: float, bottom: float) -> Field:
    """Distance inside a shape that is round in every slice, widest at the base and closed at the bottom."""
    along = np.clip((base - space.z) / (base - bottom), 0, None)
    profile = radius * np.sqrt(np.clip(1 - along**2.4, 0, None))
    ends = (space.z - bottom) * 0.8
    return np.asarray(np.minimum(profile - np.hypot(space.x, space.y), ends))


def _surroundings(
    rng: np.random.Generator, axes: Sequence[Field], space: Space, voxel: float, heart: Field, sides: dict[str, float]
) -> list[Layer]:
    """Chest wall, lungs, fat around the heart, liver, stomach, spine and aorta."""
    wander = smooth_field(rng, axes, 60)
    body = space.ellipsoid((30, -14, 0), (150 * sides["wall"], 112 * sides["wall"], 600), 2.2) + 1.5 * wander
    fat = inside(np.minimum(body - 1.5, 11 * sides["depth"] + 2 * wander - body), voxel)
    between = inside(smooth_field(rng, axes, 26) - 0.3, 0.8) * inside(body - 13, voxel)
    chest = body - 25 * sides["depth"]
    vessels = inside(smooth_field(rng, axes, 13) - 1.5, 0.6)
    sack = heart + 5 + 2.5 * smooth_field(rng, axes, 45) + 6 * inside(space.y - 10, 30)
    sack = np.maximum(
        sack, join(heart + 4, space.ellipsoid((62, 62, 0), (34, 26, 80)), 24)
    )  # fat in front of the heart
    diaphragm = space.ellipsoid((66, -92, -40), (86, 52, 66)) + 1.5 * wander
    veins = inside(smooth_field(rng, axes, 18, stretch=(1, 1, 0.4)) - 1.3, 0.6)
    stomach = space.ellipsoid((-44, -96, -34), (44, 34, 44)) + 2 * wander
    spine = space.ellipsoid((34, -96, 20), (19, 16, 300))
    aorta = space.ellipsoid((-14, -76, 30), (11, 11, 300))
    content = np.clip(0.5 + 0.4 * smooth_field(rng, axes, 30), 0, 1)
    return [
        (inside(body, voxel), {"fat": fat + 0.4 * between, "muscle": 1 - fat - 0.4 * between}),
        (inside(chest, voxel), {"lung": 1 - vessels, "blood": 0.35 * vessels}),
        (inside(sack, voxel) * inside(chest + 3, voxel), {"fat": 1.0}),
        (inside(diaphragm, voxel) * inside(chest + 8, voxel), {"liver": 1 - 0.7 * veins, "blood": 0.7 * veins}),
        (inside(stomach, voxel) * inside(chest + 8, voxel), {"muscle": 0.3 + 0.5 * content, "blood": 0.25 * content}),
        (inside(spine, voxel), {"fat": 0.35, "muscle": 0.6}),
        (inside(aorta + 1.5, voxel), {"muscle": 1.0}),
        (inside(aorta, voxel), {"blood": 1.0}),
    ]


def _atria(space: Space, voxel: float, base: float) -> list[Layer]:
    """What lies above the valves: atria and the roots of the great vessels."""
    above = inside(space.z - base + 2, 3.0)
    left = space.ellipsoid((-6, -20, base + 26), (30, 24, 32))
    right = space.ellipsoid((50, -12, base + 26), (24, 28, 32))
    aorta = space.ellipsoid((10, 10, base + 20), (14, 14, 60))
    lung_artery = space.ellipsoid((14, 40, base + 22), (15, 13, 50))
    rooms = np.maximum.reduce([left, right, aorta, lung_artery])
    return [(above * inside(rooms + 2.5, voxel), {"muscle": 1.0}), (above * inside(rooms, voxel), {"blood": 1.0})]


def _ventricles(
    rng: np.random.Generator,
    axes: Sequence[Field],
    space: Space,
    voxel: float,
    endo: Field,
    epi: Field,
    right: Field,
    below: Field,
    radius: float,
) -> list[Layer]:
    """The two ventricles, with trabeculae on the right and two papillary muscles on the left."""
    strands = inside(smooth_field(rng, axes, 11) - 1.1, 0.6) * inside(9 - right, 6)
    place = radius * 0.62
    size = 0.17 * radius + 1.2
    papillary = np.maximum(
        space.ellipsoid((-place * 0.95, place * 0.35, -6), (size, size, 24)),
        space.ellipsoid((-place * 0.15, -place * 0.98, -6), (size, size, 24)),
    )
    columns = inside(papillary, voxel) * inside(smooth_field(rng, axes, 14) + 1.6, 0.6)
    left_cut, right_cut = inside(below, 2.0), inside(below + 6, 2.0)
    return [
        (right_cut * inside(right + 3, voxel), {"muscle": 1.0}),
        (right_cut * inside(right, voxel), {"blood": 1 - 0.7 * strands, "muscle": 0.7 * strands}),
        (left_cut * inside(epi, voxel), {"muscle": 1.0}),
        (left_cut * inside(endo, voxel), {"blood": 1 - 0.85 * columns, "muscle": 0.85 * columns}),
    ]
