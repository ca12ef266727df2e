"""Scanners: how a site shows tissues, and how it stores its files."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dart_core.data.phantoms.shapes import Field, grid_axes, smooth_field
from dart_core.errors import SettingError


@dataclass(frozen=True)
class ScannerModel:
    """How a scanner shows tissues. Contrasts are relative to its own scale; sites differ in all of these."""

    contrasts: Mapping[str, float]
    """Contrast of each tissue; air has none."""
    gamma: float
    """Exponent of the intensity curve applied to the contrasts."""
    bias: float
    """Strength of the bias field: its logarithm falls by this much from the middle to 90 mm out (negative: it rises)."""
    noise: float
    """Standard deviation of the Rician noise, relative to the brightest tissue of interest."""
    blur: float
    """Standard deviation of the point spread in mm."""
    spacing: tuple[float, float, float]
    """Voxel size along each axis, relative to a grid that just holds the field of view."""
    gain: float
    """Intensity that contrast 1 has in the stored image."""
    orientation: str
    """Axis codes in which the site stores its files."""

    def voxel_size(self, field_of_view: Sequence[float], shape: Sequence[int]) -> tuple[float, float, float]:
        """Voxel size in mm of a grid of `shape` voxels on this scanner."""
        x, y, z = (
            length / side * factor for length, side, factor in zip(field_of_view, shape, self.spacing, strict=True)
        )
        return x, y, z


@dataclass(frozen=True, eq=False)
class Phantom:
    """One made-up scan, to be written."""

    image: Field
    """(H, W, Z), in RAS."""
    mask: NDArray[Any]
    """(H, W, Z), bool or labels."""
    spacing: tuple[float, float, float]
    """Voxel size in mm."""
    suffix: str = ""
    """What its file names have behind that of the subject."""
    labels: dict[str, str] = field(default_factory=dict)
    """Further columns of the datalist."""


def find_scanner(
    scanners: Mapping[str, ScannerModel], site: str, shape: Sequence[int], least_slices: int = 8
) -> ScannerModel:
    """The scanner of a site.

    Raises:
        SettingError: an unknown site, or a shape other than two sides of at least 8 voxels and `least_slices` slices.
    """
    if site not in scanners:
        raise SettingError(f"no scanner {site!r}", remedy=f"choose from {', '.join(scanners)}")
    if len(shape) != 3 or min(shape[:2]) < 8 or shape[2] < least_slices:
        raise SettingError(
            f"a phantom of shape {tuple(shape)}",
            remedy=f"give three sides, of at least 8, 8 and {least_slices} voxels",
        )
    return scanners[site]


def scan(
    scanner: ScannerModel,
    tissues: Mapping[str, Field],
    rng: np.random.Generator,
    spacing: tuple[float, float, float],
    reference: str,
    grain: tuple[float, float] = (0.03, 12),
    sensitivity: Field | None = None,
    noise_rng: np.random.Generator | None = None,
) -> Field:
    """Turn tissues into an image: contrast and gamma, blur, bias field, Rician noise, gain.

    Args:
        scanner: the scanner.
        tissues: share of each tissue in each voxel (H, W, Z).
        rng: draws grain, bias, noise and gain.
        spacing: voxel size in mm.
        reference: the tissue that the noise is relative to.
        grain: strength and wavelength (mm) of the texture that all tissues have.
        sensitivity: (H, W, Z) of a further coil; multiplies the signal before the noise.
        noise_rng: draws the noise instead of `rng`: for frames that differ in noise alone.
    """
    from scipy import ndimage

    shape = next(iter(tissues.values())).shape
    axes = grid_axes(shape, spacing)
    signal = np.zeros(shape, dtype=np.float32)
    for name, share in tissues.items():
        signal += scanner.contrasts[name] ** scanner.gamma * share
    signal *= 1 + grain[0] * smooth_field(rng, axes, grain[1])
    signal = ndimage.gaussian_filter(signal, [scanner.blur / step for step in spacing])
    square = axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2
    uneven = smooth_field(rng, axes, 260, count=12)
    signal *= np.exp((-scanner.bias / 90**2) * square + (0.12 + 0.1 * abs(scanner.bias)) * uneven)
    if sensitivity is not None:
        signal *= sensitivity
    deviation = scanner.noise * scanner.contrasts[reference] ** scanner.gamma
    noise = deviation * (noise_rng or rng).standard_normal((2, *shape), dtype=np.float32)
    gain = scanner.gain * math.exp(rng.normal(0, 0.1))
    return np.asarray(gain * np.hypot(signal + noise[0], noise[1]), dtype=np.float32)


def write_sites(
    folder: str | os.PathLike[str],
    scanners: Mapping[str, ScannerModel],
    sites: Sequence[str],
    subjects_per_site: int,
    centre: Sequence[float],
    make: Callable[[int, str], Iterable[Phantom]],
) -> Path:
    """Write scans and masks of several sites as NIfTI files, with a datalist.

    Every site has its own subjects and stores its files in its own orientation, voxel size and intensity scale (int16).

    Args:
        folder: where images/, masks/ and datalist.csv go.
        scanners: all sites there are.
        sites: those to write.
        subjects_per_site: how many; `split_of` says who belongs to which split.
        centre: of the field of view, in mm.
        make: the scans of a subject (number, site).

    Raises:
        SettingError: an unknown site, no site, or no subject.
        OutputError: the files cannot be written.
    """
    from dart_core.data.datalist import Datalist, Row
    from dart_core.data.volumes import Volume, write_volume

    if not sites or subjects_per_site < 1:
        raise SettingError("no site or no subject to write", remedy="give at least one of each")
    for site in sites:
        if site not in scanners:
            raise SettingError(f"no scanner {site!r}", remedy=f"choose from {', '.join(scanners)}")
    folder = Path(folder)
    rows = []
    for site in dict.fromkeys(sites):
        for number in range(subjects_per_site):
            # Numbered within the site, so that a subject does not depend on which other sites are written.
            subject = 1000 * (1 + list(scanners).index(site)) + number
            for phantom in make(subject, site):
                affine = np.diag([*phantom.spacing, 1.0])
                affine[:3, 3] = np.asarray(centre) - (np.asarray(phantom.image.shape) - 1) / 2 * np.asarray(
                    phantom.spacing
                )
                grid = Volume(phantom.image, affine, original_orientation=scanners[site].orientation)
                name = f"{site}_{subject}{phantom.suffix}.nii.gz"
                rows.append(
                    Row(
                        image=write_volume(folder / "images" / name, np.rint(phantom.image), grid, dtype=np.int16),
                        mask=write_volume(folder / "masks" / name, phantom.mask, grid),
                        subject=f"phantom{subject}",
                        site=site,
                        split=split_of(number, subjects_per_site),
                        labels=phantom.labels,
                    )
                )
    return Datalist(tuple(rows)).write(folder / "datalist.csv")


def split_of(number: int, count: int) -> str:
    """Split of subject `number` of `count`: one fifth (at least one, of three or more) each validation and test."""
    held_out = max(1, count // 5) if count >= 3 else 0
    if number >= count - held_out:
        return "test"
    return "val" if number >= count - 2 * held_out else "train"
