"""Head MR: T1-weighted heads of made-up subjects on six made-up scanners.

A head is a set of smooth shapes in mm (skull, brain, ventricles, ...) whose cortex is folded along the zero surfaces of a
random field. The same subject has the same anatomy on every scanner.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dart_core.data.phantoms.scanner import Phantom, ScannerModel, find_scanner, scan, write_sites
from dart_core.data.phantoms.shapes import Field, Layer, Space, cover, grid_axes, inside, join, rotation, smooth_field

_FIELD_OF_VIEW = (188.0, 228.0, 174.0)  # mm, right-left, back-front, bottom-top
_CENTRE = (0.0, 4.0, -6.0)  # of the field of view, mm from the middle of the brain
_TISSUES = ("fat", "muscle", "bone", "fluid", "grey", "white")


def _scanner(contrasts: tuple[float, ...], *rest: Any) -> ScannerModel:
    return ScannerModel(dict(zip(_TISSUES, contrasts, strict=True)), *rest)


SCANNERS: dict[str, ScannerModel] = {
    # Fat stands for marrow too, muscle for skin, bone is compact bone, fluid is that of the brain and of the eyes.
    "sm15": _scanner((0.95, 0.42, 0.08, 0.16, 0.52, 0.80), 1.0, 0.10, 0.025, 0.9, (1.0, 1.0, 1.0), 620.0, "RAS"),
    "sm3": _scanner((0.50, 0.34, 0.05, 0.10, 0.58, 1.00), 1.15, 0.55, 0.015, 0.5, (0.98, 0.98, 1.0), 900.0, "LPS"),
    "ge15": _scanner((1.30, 0.45, 0.08, 0.16, 0.46, 0.68), 1.0, -0.10, 0.030, 1.0, (1.02, 1.02, 1.0), 240.0, "RAS"),
    "ge3": _scanner((0.75, 0.52, 0.10, 0.22, 0.44, 0.86), 1.4, 0.70, 0.030, 0.8, (1.0, 1.0, 1.0), 4200.0, "LAS"),
    "ph15": _scanner((1.15, 0.48, 0.10, 0.20, 0.56, 0.76), 0.9, -0.25, 0.045, 1.1, (1.0, 1.0, 1.0), 310.0, "RAS"),
    "ph3": _scanner((0.90, 0.40, 0.08, 0.14, 0.53, 0.83), 1.05, 0.22, 0.020, 0.8, (1.0, 1.0, 1.0), 760.0, "PSR"),
}
"""The six made-up scanners, named as the domains of CC359. sm3 to ge15 is a severe shift, ph3 to sm15 a subtle one."""


def head_mr(
    subject: int, site: str, shape: tuple[int, int, int] = (64, 72, 48), seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.bool_], tuple[float, float, float]]:
    """Make a T1-weighted head of one subject on one scanner, in RAS.

    Args:
        subject: number of the subject; its anatomy, in mm, depends on this and `seed` alone.
        site: one of SCANNERS.
        shape: voxels (H, W, Z) of the field of view of 188 x 228 x 174 mm (a few per cent more or less by site).
        seed: changes all subjects.

    Returns:
        image (H, W, Z) float32, not negative; brain (H, W, Z) bool, the truth; voxel size in mm.

    Raises:
        SettingError: an unknown site, or a side below 8 voxels.
    """
    scanner = find_scanner(SCANNERS, site, shape)
    spacing = scanner.voxel_size(_FIELD_OF_VIEW, shape)
    tissues, brain = _head(np.random.default_rng([seed, subject]), shape, spacing)
    rng = np.random.default_rng([seed, subject, 1 + list(SCANNERS).index(site)])
    return scan(scanner, tissues, rng, spacing, "white"), brain, spacing


def write_head_mr(
    folder: str | os.PathLike[str],
    sites: Sequence[str] = tuple(SCANNERS),
    subjects_per_site: int = 5,
    shape: tuple[int, int, int] = (64, 72, 48),
    seed: int = 0,
) -> Path:
    """Write heads and brain masks of several sites as NIfTI files, with a datalist.

    Every site has its own subjects and stores its files in its own orientation, voxel size and intensity scale (int16).
    Of the subjects of a site, one fifth (at least one, when there are three or more) each is validation and test.

    Returns:
        the path of `datalist.csv` in `folder`, with columns image, mask, subject, site, split.

    Raises:
        SettingError: an unknown site, no site, or no subject.
        OutputError: the files cannot be written.
    """

    def make(subject: int, site: str) -> list[Phantom]:
        return [Phantom(*head_mr(subject, site, shape, seed))]

    return write_sites(folder, SCANNERS, sites, subjects_per_site, _CENTRE, make)


def _head(
    rng: np.random.Generator, shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> tuple[dict[str, Field], NDArray[np.bool_]]:
    """Make the anatomy of one subject: the share of each tissue in each voxel (air is the rest), and the brain."""
    axes = grid_axes(shape, spacing, _CENTRE)
    pitch, roll, yaw = np.deg2rad(rng.normal(scale=(2.0, 1.2, 1.2)).clip(-4, 4))
    turn = rotation(1, 2, pitch) @ rotation(0, 2, roll) @ rotation(0, 1, yaw)
    space = Space(axes, turn, rng.normal(0.98, (0.03, 0.03, 0.025)).clip(0.91, 1.04))
    voxel = max(1.0, 0.8 * float(np.mean(spacing)))  # mm over which an edge is spread
    atrophy = float(rng.uniform(0.5, 1.5))

    lumps = np.clip(1.4 * smooth_field(rng, axes, 110) + 0.8 * smooth_field(rng, axes, 50), -4, 4)
    cerebrum = space.ellipsoid((0, 0, 6), (66, 85, 60), 2.2)
    orbits = space.z + 24 + 0.12 * np.abs(space.y - 10)  # on which the frontal lobes lie
    cerebrum = join(np.minimum(cerebrum, orbits), space.pair((39, 8, -26), (25, 40, 21)), 10) + lumps
    cerebellum = join(space.pair((21, -50, -42), (29, 28, 23)), space.ellipsoid((0, -48, -40), (14, 24, 20)), 8)
    cerebellum = cerebellum + 0.3 * lumps
    stem = join(space.ellipsoid((0, -16, -40), (17, 16, 20)), space.ellipsoid((0, -20, -56), (11, 11, 40)), 8)
    stem = np.minimum(stem, space.z + 72)
    brain = join(join(cerebrum, cerebellum, 2), stem, 4)

    fluid, white = _brain_tissues(rng, axes, space, cerebrum, cerebellum, stem, voxel, atrophy)
    layers = _surroundings(rng, axes, space, cerebrum, cerebellum, stem, voxel, atrophy)
    layers.append(
        (inside(brain, voxel), {"fluid": fluid, "white": (1 - fluid) * white, "grey": (1 - fluid) * (1 - white)})
    )
    return cover(layers), brain > 0


def _brain_tissues(
    rng: np.random.Generator,
    axes: Sequence[Field],
    space: Space,
    cerebrum: Field,
    cerebellum: Field,
    stem: Field,
    voxel: float,
    atrophy: float,
) -> tuple[Field, Field]:
    """Give the share of fluid in the brain, and the share of white matter in what is not fluid."""
    x, y, z = space.x, space.y, space.z
    cortex = float(rng.normal(4.4, 0.2))
    size = float(np.exp(rng.normal(0.0, 0.18)))  # of the ventricles

    # Sulci are sheets, the zero surfaces of a random field, open to the outside and ending some way below it.
    wavelength = 30.0
    fold = np.abs(smooth_field(rng, axes, wavelength)) * (wavelength / (2 * math.pi) * 1.1)
    sulcus = fold + np.maximum(cerebrum - 17, 0) * 0.35
    wander = 1.2 * smooth_field(rng, axes, 60)
    callosum = space.ellipsoid((0, -4, 2), (60, 44, 28))
    fissure = np.abs(x + wander) + np.maximum(callosum, 0) + np.maximum(-24 - z, 0)
    sylvian = np.abs(z + 8 - 0.45 * (y - 5) + wander)
    sylvian = sylvian + np.maximum(38 - np.abs(x), 0) + np.maximum(np.abs(y - 2) - 26, 0)
    tent = np.where((cerebrum > 0) & (cerebellum > 0), np.abs(cerebrum - cerebellum) * 0.6, 50.0)
    surface = np.minimum.reduce([sulcus, fissure, sylvian, tent, cerebrum])
    fluid = inside(0.5 + 0.5 * atrophy - surface, 1.5 * voxel)
    white = inside(surface - cortex, voxel)

    # The cerebellum has a white core with branches, and grey leaves around it; the stem is nearly white.
    leaves = smooth_field(rng, axes, 16, count=32, stretch=(0.35, 0.8, 1.0))
    in_cerebellum = inside(cerebellum - cerebrum, voxel) * inside(cerebellum - stem, voxel)
    white = white * (1 - in_cerebellum) + in_cerebellum * inside(cerebellum + 3 * leaves - 13, 2 * voxel)
    fluid = fluid * (1 - in_cerebellum) + in_cerebellum * 0.35 * inside(-leaves - 1, 0.5)
    in_stem = inside(stem, voxel) * inside(stem - cerebrum + 8, 4.0)
    white = white * (1 - in_stem) + 0.8 * in_stem
    fluid = fluid * (1 - in_stem)

    thalamus = space.ellipsoid((0, -14, 1), (21, 17, 11))
    deep = np.maximum.reduce([thalamus, space.pair((26, 6, 3), (7, 19, 11)), space.pair((13, 20, 10), (6, 11, 9))])
    white = white * (1 - 0.8 * inside(deep, voxel))
    lateral = join(
        space.pair((8 + 2 * size, 4, 18), (6 * size, 28, 8 * size)),
        space.pair((16 + 4 * size, -30, 12), (7 * size, 18, 10 * size)),
        5,
    )
    lateral = np.minimum(lateral, np.abs(x) - 1)
    third, fourth = space.ellipsoid((0, -10, -2), (2.5 * size, 15, 12)), space.ellipsoid((0, -35, -40), (7, 4, 8))
    return np.maximum(fluid, inside(np.maximum.reduce([lateral, third, fourth]), voxel)), white


def _surroundings(
    rng: np.random.Generator,
    axes: Sequence[Field],
    space: Space,
    cerebrum: Field,
    cerebellum: Field,
    stem: Field,
    voxel: float,
    atrophy: float,
) -> list[Layer]:
    """Give what lies around the brain as layers from below to above: the share of a voxel covered, and with what."""
    z = space.z
    cord = space.ellipsoid((0, -22, -90), (7, 7, 60))
    cavity = join(join(cerebrum, cerebellum, 30), stem + 1, 10) + 1.2 + 1.2 * atrophy
    cavity = np.maximum(cavity, np.minimum(cord + 3.5, -60 - z))
    thickness = 6.5 + 0.8 * smooth_field(rng, axes, 70)
    bone = np.maximum(cavity + thickness, np.minimum(cord + 11, -66 - z))
    neck = np.minimum(space.ellipsoid((0, -20, -90), (58, 66, 85), 2.4), -20 - z)
    face = space.ellipsoid((0, 40, -58), (58, 58, 62), 2.2)
    head = join(join(cerebrum + 17 + 1.2 * smooth_field(rng, axes, 80), neck, 24), face, 20)
    soft = inside(head, voxel)

    under_skin = inside(np.minimum(head - 1, 7 + 1.5 * smooth_field(rng, axes, 60) - head), voxel)
    strands = inside(smooth_field(rng, axes, 34) - 0.9, 0.8) * inside(-18 - z, 10)
    behind_eyes = inside(space.pair((28, 62, -32), (17, 26, 16)), voxel)
    fat = np.maximum.reduce([under_skin, 0.6 * strands, behind_eyes])
    marrow = 0.6 * inside(np.minimum(bone - 1.5, thickness - 1.5 - bone), voxel)
    nose, throat, sinuses = (
        space.pair((9, 64, -46), (8, 24, 14)),
        space.ellipsoid((0, 30, -80), (12, 9, 32)),
        space.pair((31, 56, -54), (12, 14, 14)),
    )
    eyes = space.pair((31, 74, -32), (12.5, 12.5, 12.5))
    return [
        (soft, {"fat": fat, "muscle": 1 - fat}),
        (inside(np.maximum.reduce([nose, throat, sinuses]), voxel), {}),
        (inside(eyes, voxel), {"fluid": 1.0}),
        (soft * inside(np.minimum(bone, head - 4), voxel), {"bone": 1 - marrow, "fat": marrow}),
        (inside(cavity, voxel), {"fluid": 1.0}),
        (inside(cord, voxel) * inside(-70 - z, voxel), {"white": 0.8, "grey": 0.2}),
    ]
