"""Phantoms: seeded, made-up data with known truth, for tests, demos and pictures.

Head MR: T1-weighted heads of made-up subjects on six made-up scanners. A head is a set of smooth shapes in mm (skull,
brain, ventricles, ...) whose cortex is folded along the zero surfaces of a random field; a scanner model turns its tissues
into intensities. The same subject has the same anatomy on every scanner.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dart_core.errors import SettingError

Field = NDArray[np.floating[Any]]

_FIELD_OF_VIEW = (188.0, 228.0, 174.0)  # mm, right-left, back-front, bottom-top
_CENTRE = (0.0, 4.0, -6.0)  # of the field of view, mm from the middle of the brain


@dataclass(frozen=True)
class ScannerModel:
    """How a scanner shows tissues. Contrasts are relative to its own scale; sites differ in all of these."""

    fat: float
    """Contrast of fat and marrow."""
    muscle: float
    """Contrast of muscle and skin."""
    bone: float
    """Contrast of compact bone."""
    fluid: float
    """Contrast of cerebrospinal fluid and the eyes."""
    grey: float
    """Contrast of grey matter."""
    white: float
    """Contrast of white matter."""
    gamma: float
    """Exponent of the intensity curve applied to the contrasts."""
    bias: float
    """Strength of the bias field: its logarithm falls by this much from the middle to 90 mm out (negative: it rises)."""
    noise: float
    """Standard deviation of the Rician noise, relative to white matter."""
    blur: float
    """Standard deviation of the point spread in mm."""
    spacing: tuple[float, float, float]
    """Voxel size along each axis, relative to a grid that just holds the field of view."""
    gain: float
    """Intensity that contrast 1 has in the stored image."""
    orientation: str
    """Axis codes in which the site stores its files."""


SCANNERS: dict[str, ScannerModel] = {
    "sm15": ScannerModel(0.95, 0.42, 0.08, 0.16, 0.52, 0.80, 1.0, 0.10, 0.025, 0.9, (1.0, 1.0, 1.0), 620.0, "RAS"),
    "sm3": ScannerModel(0.50, 0.34, 0.05, 0.10, 0.58, 1.00, 1.15, 0.55, 0.015, 0.5, (0.98, 0.98, 1.0), 900.0, "LPS"),
    "ge15": ScannerModel(1.30, 0.45, 0.08, 0.16, 0.46, 0.68, 1.0, -0.10, 0.030, 1.0, (1.02, 1.02, 1.0), 240.0, "RAS"),
    "ge3": ScannerModel(0.75, 0.52, 0.10, 0.22, 0.44, 0.86, 1.4, 0.70, 0.030, 0.8, (1.0, 1.0, 1.0), 4200.0, "LAS"),
    "ph15": ScannerModel(1.15, 0.48, 0.10, 0.20, 0.56, 0.76, 0.9, -0.25, 0.045, 1.1, (1.0, 1.0, 1.0), 310.0, "RAS"),
    "ph3": ScannerModel(0.90, 0.40, 0.08, 0.14, 0.53, 0.83, 1.05, 0.22, 0.020, 0.8, (1.0, 1.0, 1.0), 760.0, "PSR"),
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
    if site not in SCANNERS:
        raise SettingError(f"no scanner {site!r}", remedy=f"choose from {', '.join(SCANNERS)}")
    if len(shape) != 3 or min(shape) < 8:
        raise SettingError(f"a head of shape {tuple(shape)}", remedy="give three sides of at least 8 voxels")
    scanner = SCANNERS[site]
    x, y, z = (
        length / side * factor for length, side, factor in zip(_FIELD_OF_VIEW, shape, scanner.spacing, strict=True)
    )
    tissues, brain = _head(np.random.default_rng([seed, subject]), shape, (x, y, z))
    rng = np.random.default_rng([seed, subject, 1 + list(SCANNERS).index(site)])
    return _scan(scanner, tissues, rng, (x, y, z)), brain, (x, y, z)


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
    from dart_core.data.datalist import Datalist, Row
    from dart_core.data.volumes import Volume, write_volume

    if not sites or subjects_per_site < 1:
        raise SettingError("no site or no subject to write", remedy="give at least one of each")
    folder = Path(folder)
    rows = []
    for site in dict.fromkeys(sites):
        for number in range(subjects_per_site):
            if site not in SCANNERS:
                raise SettingError(f"no scanner {site!r}", remedy=f"choose from {', '.join(SCANNERS)}")
            # Numbered within the site, so that a subject does not depend on which other sites are written.
            subject = 1000 * (1 + list(SCANNERS).index(site)) + number
            image, brain, spacing = head_mr(subject, site, shape, seed)
            affine = np.diag([*spacing, 1.0])
            affine[:3, 3] = np.asarray(_CENTRE) - (np.asarray(shape) - 1) / 2 * np.asarray(spacing)
            head = Volume(image, affine, original_orientation=SCANNERS[site].orientation)
            name = f"{site}_{subject}"
            rows.append(
                Row(
                    image=write_volume(folder / "images" / f"{name}.nii.gz", np.rint(image), head, dtype=np.int16),
                    mask=write_volume(folder / "masks" / f"{name}.nii.gz", brain, head),
                    subject=f"phantom{subject}",
                    site=site,
                    split=_split(number, subjects_per_site),
                )
            )
    return Datalist(tuple(rows)).write(folder / "datalist.csv")


def _split(number: int, count: int) -> str:
    held_out = max(1, count // 5) if count >= 3 else 0
    if number >= count - held_out:
        return "test"
    return "val" if number >= count - 2 * held_out else "train"


def _smooth_field(
    rng: np.random.Generator,
    axes: Sequence[Field],
    wavelength: float,
    count: int = 48,
    stretch: Sequence[float] = (1, 1, 1),
) -> Field:
    """Random field (H, W, Z) of mean 0 and variance 1: plane waves of about one wavelength (mm) in random directions.

    A plane wave is a product of one factor per axis, so that the sum over waves is one matrix product.
    """
    direction = rng.normal(size=(count, 3)) * np.asarray(stretch)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    angular = direction * (2 * math.pi / (wavelength * rng.uniform(0.8, 1.25, size=(count, 1))))
    phase = rng.uniform(0, 2 * math.pi, size=count)
    x, y, z = (np.exp(1j * np.outer(axis, angular[:, i])).astype(np.complex64) for i, axis in enumerate(axes))
    plane = (x[:, None] * y[None]).reshape(-1, count)
    waves = plane @ (z * np.exp(1j * phase).astype(np.complex64)).T
    return np.asarray(waves.real.reshape(len(x), len(y), len(z)) * math.sqrt(2 / count), dtype=np.float32)


class _Space:
    """Coordinates of a head in mm, turned by a few degrees, and distances to shapes in it."""

    def __init__(self, axes: Sequence[Field], turn: NDArray[np.float64], scale: NDArray[np.float64]) -> None:
        grid = np.meshgrid(*axes, indexing="ij", sparse=True)
        matrix = (np.diag(1 / scale) @ turn).astype(np.float32)
        self.x, self.y, self.z = (sum(matrix[i, j] * grid[j] for j in range(3)) for i in range(3))

    def ellipsoid(self, centre: Sequence[float], half: Sequence[float], power: float = 2.0) -> Field:
        """Distance (mm, along rays from the centre) to the surface, positive inside; power above 2 is boxier."""
        p = [c - m for c, m in zip((self.x, self.y, self.z), centre, strict=True)]
        if power == 2.0:
            level = np.sqrt(sum((c / h) ** 2 for c, h in zip(p, half, strict=True)))
        else:
            level = sum(np.abs(c / h) ** power for c, h in zip(p, half, strict=True))
            level = level ** (1 / power)
        radius = np.sqrt(sum(c * c for c in p))
        return np.asarray(radius / np.maximum(level, 1e-3) - radius)

    def pair(self, centre: Sequence[float], half: Sequence[float]) -> Field:
        """The same shape on the left and on the right."""
        x, y, z = centre
        return np.maximum(self.ellipsoid((x, y, z), half), self.ellipsoid((-x, y, z), half))


def _inside(distance: Field, width: float) -> Field:
    """Share of a voxel that lies inside a surface (partial volume), from 0 to 1 over about `width` mm."""
    return np.asarray(np.clip(distance / width + 0.5, 0, 1))


def _join(a: Field, b: Field, rounding: float) -> Field:
    """Union of two shapes with a rounded seam (polynomial smooth maximum)."""
    overlap = np.maximum(rounding - np.abs(a - b), 0) / rounding
    return np.asarray(np.maximum(a, b) + overlap * overlap * (rounding / 4))


def _head(
    rng: np.random.Generator, shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> tuple[dict[str, Field], NDArray[np.bool_]]:
    """Make the anatomy of one subject: the share of each tissue in each voxel (air is the rest), and the brain."""
    axes = [
        np.asarray((np.arange(n) - (n - 1) / 2) * step + middle, dtype=np.float32)
        for n, step, middle in zip(shape, spacing, _CENTRE, strict=True)
    ]
    pitch, roll, yaw = np.deg2rad(rng.normal(scale=(2.0, 1.2, 1.2)).clip(-4, 4))
    turn = _rotation(1, 2, pitch) @ _rotation(0, 2, roll) @ _rotation(0, 1, yaw)
    space = _Space(axes, turn, rng.normal(0.98, (0.03, 0.03, 0.025)).clip(0.91, 1.04))
    voxel = max(1.0, 0.8 * float(np.mean(spacing)))  # mm over which an edge is spread
    atrophy = float(rng.uniform(0.5, 1.5))

    lumps = np.clip(1.4 * _smooth_field(rng, axes, 110) + 0.8 * _smooth_field(rng, axes, 50), -4, 4)
    cerebrum = space.ellipsoid((0, 0, 6), (66, 85, 60), 2.2)
    orbits = space.z + 24 + 0.12 * np.abs(space.y - 10)  # on which the frontal lobes lie
    cerebrum = _join(np.minimum(cerebrum, orbits), space.pair((39, 8, -26), (25, 40, 21)), 10) + lumps
    cerebellum = _join(space.pair((21, -50, -42), (29, 28, 23)), space.ellipsoid((0, -48, -40), (14, 24, 20)), 8)
    cerebellum = cerebellum + 0.3 * lumps
    stem = _join(space.ellipsoid((0, -16, -40), (17, 16, 20)), space.ellipsoid((0, -20, -56), (11, 11, 40)), 8)
    stem = np.minimum(stem, space.z + 72)
    brain = _join(_join(cerebrum, cerebellum, 2), stem, 4)

    fluid, white = _brain_tissues(rng, axes, space, cerebrum, cerebellum, stem, voxel, atrophy)
    layers = _surroundings(rng, axes, space, cerebrum, cerebellum, stem, voxel, atrophy)
    layers.append(
        (_inside(brain, voxel), {"fluid": fluid, "white": (1 - fluid) * white, "grey": (1 - fluid) * (1 - white)})
    )
    tissues: dict[str, Field] = {}
    for share, parts in layers:  # each layer covers those before it
        tissues = {name: value * (1 - share) for name, value in tissues.items()}
        for name, part in parts.items():
            tissues[name] = np.asarray(tissues.get(name, 0.0) + share * part)
    return tissues, brain > 0


def _brain_tissues(
    rng: np.random.Generator,
    axes: Sequence[Field],
    space: _Space,
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
    fold = np.abs(_smooth_field(rng, axes, wavelength)) * (wavelength / (2 * math.pi) * 1.1)
    sulcus = fold + np.maximum(cerebrum - 17, 0) * 0.35
    wander = 1.2 * _smooth_field(rng, axes, 60)
    callosum = space.ellipsoid((0, -4, 2), (60, 44, 28))
    fissure = np.abs(x + wander) + np.maximum(callosum, 0) + np.maximum(-24 - z, 0)
    sylvian = np.abs(z + 8 - 0.45 * (y - 5) + wander)
    sylvian = sylvian + np.maximum(38 - np.abs(x), 0) + np.maximum(np.abs(y - 2) - 26, 0)
    tent = np.where((cerebrum > 0) & (cerebellum > 0), np.abs(cerebrum - cerebellum) * 0.6, 50.0)
    surface = np.minimum.reduce([sulcus, fissure, sylvian, tent, cerebrum])
    fluid = _inside(0.5 + 0.5 * atrophy - surface, 1.5 * voxel)
    white = _inside(surface - cortex, voxel)

    # The cerebellum has a white core with branches, and grey leaves around it; the stem is nearly white.
    leaves = _smooth_field(rng, axes, 16, count=32, stretch=(0.35, 0.8, 1.0))
    in_cerebellum = _inside(cerebellum - cerebrum, voxel) * _inside(cerebellum - stem, voxel)
    white = white * (1 - in_cerebellum) + in_cerebellum * _inside(cerebellum + 3 * leaves - 13, 2 * voxel)
    fluid = fluid * (1 - in_cerebellum) + in_cerebellum * 0.35 * _inside(-leaves - 1, 0.5)
    in_stem = _inside(stem, voxel) * _inside(stem - cerebrum + 8, 4.0)
    white = white * (1 - in_stem) + 0.8 * in_stem
    fluid = fluid * (1 - in_stem)

    thalamus = space.ellipsoid((0, -14, 1), (21, 17, 11))
    deep = np.maximum.reduce([thalamus, space.pair((26, 6, 3), (7, 19, 11)), space.pair((13, 20, 10), (6, 11, 9))])
    white = white * (1 - 0.8 * _inside(deep, voxel))
    lateral = _join(
        space.pair((8 + 2 * size, 4, 18), (6 * size, 28, 8 * size)),
        space.pair((16 + 4 * size, -30, 12), (7 * size, 18, 10 * size)),
        5,
    )
    lateral = np.minimum(lateral, np.abs(x) - 1)
    third, fourth = space.ellipsoid((0, -10, -2), (2.5 * size, 15, 12)), space.ellipsoid((0, -35, -40), (7, 4, 8))
    return np.maximum(fluid, _inside(np.maximum.reduce([lateral, third, fourth]), voxel)), white


def _surroundings(
    rng: np.random.Generator,
    axes: Sequence[Field],
    space: _Space,
    cerebrum: Field,
    cerebellum: Field,
    stem: Field,
    voxel: float,
    atrophy: float,
) -> list[tuple[Field, dict[str, Field | float]]]:
    """Give what lies around the brain as layers from below to above: the share of a voxel covered, and with what."""
    z = space.z
    cord = space.ellipsoid((0, -22, -90), (7, 7, 60))
    cavity = _join(_join(cerebrum, cerebellum, 30), stem + 1, 10) + 1.2 + 1.2 * atrophy
    cavity = np.maximum(cavity, np.minimum(cord + 3.5, -60 - z))
    thickness = 6.5 + 0.8 * _smooth_field(rng, axes, 70)
    bone = np.maximum(cavity + thickness, np.minimum(cord + 11, -66 - z))
    neck = np.minimum(space.ellipsoid((0, -20, -90), (58, 66, 85), 2.4), -20 - z)
    face = space.ellipsoid((0, 40, -58), (58, 58, 62), 2.2)
    head = _join(_join(cerebrum + 17 + 1.2 * _smooth_field(rng, axes, 80), neck, 24), face, 20)
    soft = _inside(head, voxel)

    under_skin = _inside(np.minimum(head - 1, 7 + 1.5 * _smooth_field(rng, axes, 60) - head), voxel)
    strands = _inside(_smooth_field(rng, axes, 34) - 0.9, 0.8) * _inside(-18 - z, 10)
    behind_eyes = _inside(space.pair((28, 62, -32), (17, 26, 16)), voxel)
    fat = np.maximum.reduce([under_skin, 0.6 * strands, behind_eyes])
    marrow = 0.6 * _inside(np.minimum(bone - 1.5, thickness - 1.5 - bone), voxel)
    nose, throat, sinuses = (
        space.pair((9, 64, -46), (8, 24, 14)),
        space.ellipsoid((0, 30, -80), (12, 9, 32)),
        space.pair((31, 56, -54), (12, 14, 14)),
    )
    eyes = space.pair((31, 74, -32), (12.5, 12.5, 12.5))
    return [
        (soft, {"fat": fat, "muscle": 1 - fat}),
        (_inside(np.maximum.reduce([nose, throat, sinuses]), voxel), {}),
        (_inside(eyes, voxel), {"fluid": 1.0}),
        (soft * _inside(np.minimum(bone, head - 4), voxel), {"bone": 1 - marrow, "fat": marrow}),
        (_inside(cavity, voxel), {"fluid": 1.0}),
        (_inside(cord, voxel) * _inside(-70 - z, voxel), {"white": 0.8, "grey": 0.2}),
    ]


def _rotation(i: int, j: int, angle: float) -> NDArray[np.float64]:
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = math.cos(angle)
    matrix[i, j], matrix[j, i] = -math.sin(angle), math.sin(angle)
    return matrix


def _scan(
    scanner: ScannerModel, tissues: dict[str, Field], rng: np.random.Generator, spacing: tuple[float, float, float]
) -> Field:
    """Turn tissues into an image: contrast and gamma, blur, bias field, Rician noise, gain."""
    from scipy import ndimage

    shape = next(iter(tissues.values())).shape
    axes = [
        np.asarray((np.arange(n) - (n - 1) / 2) * step, dtype=np.float32)
        for n, step in zip(shape, spacing, strict=True)
    ]
    signal = np.zeros(shape, dtype=np.float32)
    for name, share in tissues.items():
        signal += getattr(scanner, name) ** scanner.gamma * share
    signal *= 1 + 0.03 * _smooth_field(rng, axes, 12)
    signal = ndimage.gaussian_filter(signal, [scanner.blur / step for step in spacing])
    square = axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2
    uneven = _smooth_field(rng, axes, 260, count=12)
    signal *= np.exp((-scanner.bias / 90**2) * square + (0.12 + 0.1 * abs(scanner.bias)) * uneven)
    deviation = scanner.noise * scanner.white**scanner.gamma
    noise = deviation * rng.standard_normal((2, *shape), dtype=np.float32)
    gain = scanner.gain * math.exp(rng.normal(0, 0.1))
    return np.asarray(gain * np.hypot(signal + noise[0], noise[1]), dtype=np.float32)
