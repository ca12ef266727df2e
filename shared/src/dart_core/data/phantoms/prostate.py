"""Prostate MR: T2-weighted pelvises of made-up men on six made-up scanners, in thick axial slices.

The prostate has a bright peripheral zone and a nodular central gland, and lies between bladder, rectum, pelvic muscles and
bones. Three sites use an endorectal coil: a balloon in the rectum, and a signal that falls steeply with distance from it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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

_FIELD_OF_VIEW = (180.0, 180.0, 66.0)  # mm, right-left, back-front, bottom-top
_CENTRE = (0.0, -2.0, 3.0)  # of the field of view, mm from the middle of the prostate
_PARTS = 3  # sub-slices that a slice is averaged over
_TISSUES = ("fat", "muscle", "bone", "fluid", "peripheral", "central")


def _scanner(contrasts: tuple[float, ...], *rest: Any) -> ScannerModel:
    return ScannerModel(dict(zip(_TISSUES, contrasts, strict=True)), *rest)


PROSTATE_SCANNERS: dict[str, ScannerModel] = {
    # Fat stands for marrow too, muscle for the walls of bladder and rectum, fluid is urine.
    "RUNMC": _scanner((0.70, 0.20, 0.05, 1.00, 0.80, 0.40), 1.0, 0.15, 0.025, 0.45, (1.0, 1.0, 1.0), 420.0, "LPS"),
    "BMC": _scanner((0.85, 0.24, 0.06, 0.95, 0.72, 0.42), 1.0, 0.20, 0.050, 0.60, (0.85, 0.85, 0.95), 900.0, "LPS"),
    "I2CVB": _scanner((0.55, 0.16, 0.04, 1.10, 0.90, 0.36), 1.2, -0.10, 0.035, 0.50, (1.1, 1.1, 0.92), 260.0, "LPS"),
    "UCL": _scanner((0.90, 0.22, 0.05, 1.00, 0.75, 0.46), 0.85, 0.05, 0.020, 0.80, (1.0, 1.0, 0.95), 1500.0, "RAS"),
    "BIDMC": _scanner((0.60, 0.18, 0.05, 0.90, 0.78, 0.34), 1.1, 0.10, 0.045, 0.35, (0.80, 0.80, 0.92), 3100.0, "LPS"),
    "HK": _scanner((0.80, 0.26, 0.07, 0.85, 0.70, 0.44), 1.0, 0.25, 0.040, 0.70, (0.95, 0.95, 1.05), 180.0, "LAS"),
}
"""The six made-up scanners, named as the sites A to F of the SAML collection."""

COIL_SITES = ("BMC", "BIDMC", "HK")
"""Sites with an endorectal coil."""

ZONE_SITES = ("RUNMC", "BMC")
"""Sites whose files tell peripheral zone (1) and central gland (2) apart; the others store the whole prostate as 1."""


def prostate_mr(
    subject: int, site: str, shape: tuple[int, int, int] = (96, 96, 16), seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.uint8], tuple[float, float, float]]:
    """Make a T2-weighted pelvis of one subject at one site, in RAS.

    Args:
        subject: number of the subject; its anatomy, in mm, depends on this and `seed`, and the filling of the rectum
            also on whether the site uses a coil.
        site: one of PROSTATE_SCANNERS.
        shape: voxels (H, W, Z) of the field of view of 180 x 180 x 66 mm (up to a fifth less or a tenth more by site).
        seed: changes all subjects.

    Returns:
        image (H, W, Z) float32, not negative; zones (H, W, Z) uint8, the truth in the middle of each slice: 0 outside,
        1 peripheral zone, 2 central gland; voxel size in mm.

    Raises:
        SettingError: an unknown site, a side below 8 voxels, or fewer than 4 slices.
    """
    scanner = find_scanner(PROSTATE_SCANNERS, site, shape, least_slices=4)
    spacing = scanner.voxel_size(_FIELD_OF_VIEW, shape)
    x, y, z = spacing
    axes = grid_axes((*shape[:2], shape[2] * _PARTS), (x, y, z / _PARTS), _CENTRE)
    coil = site in COIL_SITES
    layers, prostate, central, near_coil = _pelvis(np.random.default_rng([seed, subject]), axes, (x + y) / 2, coil)
    zones = np.where(prostate > 0, np.where(central > 0, 2, 1), 0).astype(np.uint8)[..., _PARTS // 2 :: _PARTS]
    rng = np.random.default_rng([seed, subject, 1 + list(PROSTATE_SCANNERS).index(site)])
    sensitivity = 0.75 + 1.6 * near_coil[..., _PARTS // 2 :: _PARTS] if coil else None
    image = scan(scanner, slice_mean(cover(layers), _PARTS), rng, spacing, "peripheral", (0.04, 6), sensitivity)
    return image, zones, spacing


def write_prostate_mr(
    folder: str | os.PathLike[str],
    sites: Sequence[str] = tuple(PROSTATE_SCANNERS),
    subjects_per_site: int = 5,
    shape: tuple[int, int, int] = (96, 96, 16),
    seed: int = 0,
) -> Path:
    """Write pelvises and prostate masks of several sites as NIfTI files, with a datalist.

    Every site has its own subjects and stores its files in its own orientation, voxel size and intensity scale (int16).
    The masks of ZONE_SITES hold 1 (peripheral zone) and 2 (central gland), the others 1 (prostate). Of the subjects of a
    site, one fifth (at least one, when there are three or more) each is validation and test.

    Returns:
        the path of `datalist.csv` in `folder`, with columns image, mask, subject, site, split.

    Raises:
        SettingError: an unknown site, no site, no subject, or too small a shape.
        OutputError: the files cannot be written.
    """

    def make(subject: int, site: str) -> list[Phantom]:
        image, zones, spacing = prostate_mr(subject, site, shape, seed)
        return [Phantom(image, zones if site in ZONE_SITES else zones > 0, spacing)]

    return write_sites(folder, PROSTATE_SCANNERS, sites, subjects_per_site, _CENTRE, make)


def _pelvis(
    rng: np.random.Generator, axes: Sequence[Field], pixel: float, coil: bool
) -> tuple[list[Layer], Field, Field, Field]:
    """Make the anatomy of one subject.

    Returns:
        layers from below to above; distances to the surfaces of prostate and central gland; and nearness to the coil,
        from 0 to 1.
    """
    pitch, roll, yaw = np.deg2rad(rng.normal(scale=(4.0, 2.0, 2.0)).clip(-8, 8))
    turn = rotation(1, 2, pitch) @ rotation(0, 2, roll) @ rotation(0, 1, yaw)
    space = Space(axes, turn, rng.normal(1.0, (0.04, 0.04, 0.03)).clip(0.9, 1.1))
    voxel = max(0.7, 0.8 * pixel)  # mm over which an edge is spread
    size = float(np.exp(rng.normal(0.0, 0.08)))
    growth = float(rng.uniform(0.75, 1.25))  # of the central gland, with age
    filled = float(rng.uniform(0.5, 1.2))  # bladder

    lumps = np.clip(smooth_field(rng, axes, 34), -2.5, 2.5)
    prostate = space.ellipsoid((0, 1, 0), (25 * size, 17 * size, 20 * size), 2.3) + 0.9 * lumps
    gap = 15 * size  # from the middle of the prostate to its back
    balloon = (19.0, 15.0) if coil else (12.0, 10.0)
    middle = -gap - 3 - balloon[1]
    rectum = space.ellipsoid((0, middle, -10), (balloon[0], balloon[1], 90)) + 0.5 * lumps
    prostate = np.minimum(prostate, -rectum - 3.5)  # the rectum dents it
    central = join(
        space.ellipsoid((0, 3.5 * size, 3), (15.5 * size * growth, 10.5 * size * growth, 14 * size * growth**0.5)),
        space.ellipsoid((0, 12 * size, 4), (14, 7, 15)),
        4,
    )
    central = np.minimum(central + 0.4 * lumps, prostate - 1.5)

    layers = _surroundings(rng, axes, space, voxel)
    layers += _sheath(space, prostate, rectum, voxel)
    layers += _rectum(rng, axes, rectum, voxel, coil)
    layers += _bladder(rng, axes, space, voxel, size, filled)
    layers += _glands(rng, axes, space, prostate, central, voxel, size)
    nearness = np.exp(-np.maximum(-rectum, 0) / 22)
    return layers, prostate, central, nearness


def _surroundings(rng: np.random.Generator, axes: Sequence[Field], space: Space, voxel: float) -> list[Layer]:
    """Fat, muscles and bones."""
    x, y, z = np.abs(space.x), space.y, space.z
    wander = 1.2 * smooth_field(rng, axes, 45)
    strands = inside(smooth_field(rng, axes, 16, stretch=(1, 0.5, 0.5)) - 1.4, 1.0)
    body = space.ellipsoid((0, -4, 0), (190, 98, 500)) + wander

    joint = space.pair((90, 6, 22), (25, 25, 27))  # head of the femur; its cup is the outside of it
    cup = np.minimum(space.pair((86, 4, 18), (33, 36, 46)), -joint - 1)
    ischium = space.pair((66, -24, -10), (14, 20, 42))
    pubis = join(space.pair((20, 52, -6), (17, 9, 15)), space.pair((46, 42, 8), (24, 9, 12)), 8)
    pubis = np.minimum(pubis, x - 2.5)
    bones = np.maximum.reduce([cup, ischium, pubis, space.ellipsoid((0, -76, 14), (16, 8, 34))]) + 0.5 * wander
    disc = np.minimum(space.ellipsoid((0, 52, -6), (6, 9, 14)), 3.5 - x)

    hip = np.minimum(space.pair((66, 4, 0), (33, 42, 70)), x - 35 - 0.15 * y)  # obturators and others around the bones
    gluteus = np.minimum(space.pair((66, -72, -8), (58, 30, 80)), -48 - y + 0.35 * x)
    thigh = np.maximum(space.pair((56, 58, -6), (27, 17, 60)), space.pair((92, 46, 0), (24, 30, 60)))
    rectus = np.minimum(space.pair((19, 72, 60), (20, 6, 70)), z - 2)
    outer = space.pair((104, -28, 6), (24, 34, 70))
    seams = np.abs(smooth_field(rng, axes, 30, stretch=(1, 1, 0.3))) * 5 - 0.6  # fat between neighbouring muscles
    muscle = np.minimum(np.maximum.reduce([hip, gluteus, thigh, rectus, outer]) + wander, seams + 0.25)
    streaks = inside(smooth_field(rng, axes, 11, stretch=(0.4, 1, 1)) - 1.35, 0.8)
    vessels = np.maximum(space.pair((46, 70, 0), (4, 4, 90)), space.pair((36, 6, 24), (3, 3, 40)))

    grain = 0.1 * np.clip(smooth_field(rng, axes, 9), -2, 2)
    marrow, head = inside(bones - 2.2, voxel), inside(joint - 1.5, voxel)
    return [
        (inside(body, voxel), {"fat": 1 - 0.5 * strands, "muscle": 0.5 * strands}),
        (inside(muscle, voxel) * inside(body - 14, voxel), {"muscle": 1 - 0.4 * streaks, "fat": 0.4 * streaks}),
        (inside(vessels, voxel), {"bone": 0.8, "muscle": 0.2}),
        (inside(bones, voxel), {"bone": 1 - marrow, "fat": marrow * (0.72 + grain), "muscle": marrow * (0.28 - grain)}),
        (inside(joint + 1, voxel), {"bone": 0.7 * (1 - head), "fat": head * (0.8 + grain), "muscle": head * 0.2}),
        (inside(disc, voxel), {"muscle": 0.8, "fluid": 0.2}),
    ]


def _sheath(space: Space, prostate: Field, rectum: Field, voxel: float) -> list[Layer]:
    """The levator muscle around prostate and rectum, and the dark capsule."""
    funnel = join(prostate + 7, rectum + 7, 14)
    levator = np.minimum(2.2 - np.abs(funnel), 12 - space.z)
    return [(inside(levator, voxel), {"muscle": 1.0})]


def _rectum(rng: np.random.Generator, axes: Sequence[Field], rectum: Field, voxel: float, coil: bool) -> list[Layer]:
    wall = inside(rectum, voxel)
    lining = inside(rectum - 2.0, voxel)
    content = inside(rectum - 3.2, voxel)
    if coil:  # the balloon is filled with a liquid that gives no signal; the coil's wires show as a dim ring
        return [(wall, {"muscle": 1.0}), (lining, {"peripheral": 0.6}), (content, {})]
    stool = inside(smooth_field(rng, axes, 14) + rng.uniform(-1.0, 0.4), 0.5)
    return [
        (wall, {"muscle": 1.0}),
        (lining, {"peripheral": 0.7}),
        (content, {"muscle": 0.9 * stool, "fat": 0.25 * stool}),
    ]


def _bladder(
    rng: np.random.Generator, axes: Sequence[Field], space: Space, voxel: float, size: float, filled: float
) -> list[Layer]:
    """Bladder above the prostate, seminal vesicles behind it."""
    bladder = space.ellipsoid((0, 15, 16 * size + 24 * filled), (38 * filled**0.5, 30 * filled**0.5, 26 * filled), 2.3)
    bladder = bladder + 0.8 * smooth_field(rng, axes, 60)
    vesicles = join(space.pair((17, -11, 23 * size), (17, 6, 7)), space.pair((5, -11, 19 * size), (6, 5, 7)), 3)
    tubes = inside(np.abs(smooth_field(rng, axes, 9)) * 3 - 1.0, 1.0)
    return [
        (inside(vesicles, voxel), {"fluid": 0.75 * tubes, "muscle": 1 - 0.75 * tubes}),
        (inside(bladder, voxel), {"muscle": 1.0}),
        (inside(bladder - 3.0, voxel), {"fluid": 1.0}),
    ]


def _glands(
    rng: np.random.Generator,
    axes: Sequence[Field],
    space: Space,
    prostate: Field,
    central: Field,
    voxel: float,
    size: float,
) -> list[Layer]:
    """Veins around the prostate, its capsule, peripheral zone, central gland with nodules, urethra, and a lesion."""
    front = inside(space.y - 4 + 0.3 * np.abs(space.x), 6.0)
    side = inside(np.abs(space.x) - 14, 6.0)
    veins = inside(smooth_field(rng, axes, 9) - 0.5, 0.6) * inside(prostate + 8, 2.0) * np.maximum(front, 0.7 * side)
    septa = inside(smooth_field(rng, axes, 10) - 1.2, 0.8)
    nodules = np.clip(0.5 + 0.42 * smooth_field(rng, axes, 13), 0, 1)
    rims = inside(0.35 - np.abs(smooth_field(rng, axes, 15)), 0.3)
    stroma = np.minimum(space.ellipsoid((0, 15 * size, 3), (13, 6.5, 17)), prostate - 0.8)
    urethra = space.ellipsoid((0, 3, -2), (2.6, 2.2, 22))
    side_sign = 1 if rng.random() < 0.5 else -1
    radius = float(rng.uniform(3.5, 6.5)) if rng.random() < 0.5 else 0.0
    lesion = space.ellipsoid(
        (side_sign * rng.uniform(10, 17) * size, -rng.uniform(6, 10) * size, rng.uniform(-9, 9)),
        (max(radius, 0.1) * 1.2, max(radius, 0.1), max(radius, 0.1) * 1.2),
    )
    in_peripheral = 1 - inside(central, voxel)
    return [
        (veins, {"fluid": 0.9, "fat": 0.1}),
        (inside(prostate + 0.9, voxel), {"muscle": 1.0}),
        (inside(prostate, voxel), {"peripheral": 1 - 0.35 * septa, "central": 0.35 * septa}),
        (inside(central + 0.8, voxel) * inside(prostate, voxel), {"muscle": 1.0}),
        (
            inside(central, voxel),
            {
                "central": (1 - rims) * (1 - 0.6 * nodules),
                "peripheral": (1 - rims) * 0.6 * nodules,
                "muscle": 0.6 * rims,
            },
        ),
        (inside(stroma, 1.5 * voxel), {"muscle": 0.9, "central": 0.1}),
        (inside(urethra, voxel), {"peripheral": 0.8}),
        (inside(lesion, 1.5) * in_peripheral * inside(prostate, voxel) * (radius > 0), {"central": 0.7, "muscle": 0.2}),
    ]
