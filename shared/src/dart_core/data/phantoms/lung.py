"""Chest CT: made-up patients on four made-up scanners, in Hounsfield units, with nodules whose places and sizes are known.

The scan reaches from the shoulders to the upper abdomen: body wall, ribs, spine, lungs with vessels and airways, heart and great
vessels, liver, spleen and stomach. The same subject has the same anatomy, and the same nodules, on every scanner and grid.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dart_core.data.phantoms.chest_anatomy import CENTRE, FIELD_OF_VIEW, Chest, Nodule, Plan, ball, tubes_distance
from dart_core.data.phantoms.scanner import split_of
from dart_core.data.phantoms.shapes import Field, grid_axes
from dart_core.errors import SettingError
from dart_core.files import atomic_write

Structure = Literal["labels", "lung", "liver", "nodule", "vessel", "embolus"]

LABELS: Mapping[int, str] = MappingProxyType({1: "lung", 2: "liver", 3: "nodule", 4: "vessel", 5: "embolus"})
"""Of the map of labels; lung is what is neither vessel nor nodule in it, and vessels are those in the lungs."""


@dataclass(frozen=True)
class CtScanner:
    """How a scanner takes, reconstructs and stores its scans."""

    spacing: tuple[float, float, float]
    """Voxel size along each axis, relative to a grid that just holds the field of view."""
    blur: float
    """Standard deviation of the reconstruction kernel in mm, in the slice."""
    sharpening: float
    """Strength with which the kernel raises edges; 0 for a soft one."""
    noise: float
    """Standard deviation of the noise in HU, in the middle of the body."""
    grain: float
    """Standard deviation of the noise's own blur in mm: fine for a sharp kernel, coarse for a soft one."""
    contrast: float
    """HU that a contrast agent adds to blood; 0: none is given."""
    padding: float | None
    """What is stored outside the round field of measurement; None: the reconstruction fills the whole square."""
    orientation: str
    """Axis codes in which its NIfTI files are stored."""


CT_SCANNERS: dict[str, CtScanner] = {
    "GE": CtScanner((1.0, 1.0, 1.0), 0.7, 0.35, 26.0, 0.5, 0.0, -2000.0, "LPS"),
    "Siemens": CtScanner((0.96, 0.96, 0.92), 0.9, 0.15, 18.0, 0.9, 0.0, None, "LPS"),
    "Philips": CtScanner((1.03, 1.03, 1.0), 1.2, 0.0, 11.0, 1.4, 150.0, None, "RAS"),
    "Toshiba": CtScanner((1.0, 1.0, 1.04), 0.8, 0.5, 34.0, 0.4, 0.0, None, "LAS"),
}
"""The four made-up scanners, named after the makers of those in LUNA16; Philips gives contrast agent."""


@dataclass(frozen=True, eq=False)
class LungCT:
    """One made-up scan with its truth. Indices grow to the right, front and top (RAS)."""

    image: NDArray[np.int16]
    """(H, W, Z) in HU."""
    labels: NDArray[np.uint8]
    """(H, W, Z), see LABELS."""
    spacing: tuple[float, float, float]
    """Voxel size in mm."""
    nodules: tuple[Nodule, ...]
    lookalikes: NDArray[np.float64]
    """(n, 3) places in mm, as a nodule's centre, that are not nodules but vessels, and forks of vessels."""

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4) from voxel indices to mm; the middle of the scan is at 0."""
        affine = np.diag([*self.spacing, 1.0])
        affine[:3, 3] = CENTRE - (np.asarray(self.image.shape) - 1) / 2 * np.asarray(self.spacing)
        return affine


def lung_ct(
    subject: int, site: str, shape: tuple[int, int, int] = (160, 160, 100), seed: int = 0, emboli: int = 0
) -> LungCT:
    """Make a chest CT of one subject on one scanner.

    Args:
        subject: number of the subject; its anatomy and nodules (one to five), in mm, depend on this and `seed` alone.
        site: one of CT_SCANNERS.
        shape: voxels (H, W, Z) of the field of view of 360 x 360 x 300 mm (some per cent more or less by site).
        seed: changes all subjects.
        emboli: number of clots in the arteries of the lungs, which then hold contrast agent whatever the scanner.

    Raises:
        SettingError: an unknown site, a side below 16 voxels, or a negative number of emboli.
    """
    if site not in CT_SCANNERS:
        raise SettingError(f"no scanner {site!r}", remedy=f"choose from {', '.join(CT_SCANNERS)}")
    if len(shape) != 3 or min(shape) < 16:
        raise SettingError(f"a chest of shape {tuple(shape)}", remedy="give three sides of at least 16 voxels")
    if emboli < 0:
        raise SettingError(f"{emboli} emboli", remedy="give 0 or more")
    scanner = CT_SCANNERS[site]
    x, y, z = (a / n * f for a, n, f in zip(FIELD_OF_VIEW, shape, scanner.spacing, strict=True))
    spacing = (x, y, z)
    key = [seed, subject]
    plan = Plan.draw(key)
    axes = grid_axes(shape, spacing, CENTRE)
    chest = Chest(key, axes)
    voxel = max(1.0, 0.8 * float(np.mean(spacing)))
    vessels = tubes_distance(axes, plan.vessels)
    airways = tubes_distance(axes, plan.airways)
    clots = tubes_distance(axes, plan.clots[:emboli])
    contrast = max(scanner.contrast, 220.0 if emboli else 0.0)
    hu = chest.render(voxel, vessels, airways, clots if emboli else None, plan.nodules, contrast)
    rng = np.random.default_rng([*key, 1 + list(CT_SCANNERS).index(site)])
    image = _reconstruct(scanner, hu, rng, axes, spacing, chest.body)
    labels = np.zeros(shape, dtype=np.uint8)
    labels[chest.lungs > 0] = 1
    labels[chest.liver > 0] = 2
    labels[(vessels > 0) & (chest.lungs > 0)] = 4
    if emboli:
        labels[np.minimum(clots, np.maximum(vessels, chest.vessels)) > 0] = 5
    for nodule in plan.nodules:
        box, distance = ball(axes, nodule)
        # A nodule at the wall ends there.
        labels[box][np.minimum(distance, chest.lungs[box] + 1.5) > 0] = 3
    return LungCT(image, labels, spacing, plan.nodules, plan.lookalikes)


def _reconstruct(
    scanner: CtScanner,
    hu: Field,
    rng: np.random.Generator,
    axes: Sequence[Field],
    spacing: Sequence[float],
    body: Field,
) -> NDArray[np.int16]:
    """Kernel, noise with its grain, streaks between the shoulders, and what is stored outside the round field."""
    from scipy import ndimage

    sigma = [scanner.blur / spacing[0], scanner.blur / spacing[1], 0.35]
    image = ndimage.gaussian_filter(hu, sigma)
    if scanner.sharpening:
        wide = ndimage.gaussian_filter(image, [1.6 / spacing[0], 1.6 / spacing[1], 0])
        image = image + scanner.sharpening * (image - wide)
    noise = rng.standard_normal(hu.shape, dtype=np.float32)
    noise = ndimage.gaussian_filter(noise, [scanner.grain / spacing[0], scanner.grain / spacing[1], 0.2])
    noise /= noise.std()
    streaks = ndimage.gaussian_filter1d(rng.standard_normal(hu.shape, dtype=np.float32), 7, axis=0)
    streaks /= streaks.std()
    shoulders = np.clip((axes[2] - 95) / 45, 0, 1)
    strength = scanner.noise * (0.35 + 0.65 * np.clip(body / 90, 0, 1))
    image = image + strength * (noise * (1 + 0.5 * shoulders) + 1.1 * shoulders * streaks)
    image = np.clip(np.rint(image), -1024, 3071)
    if scanner.padding is not None:
        radius = np.hypot(axes[0][:, None] / axes[0][-1], axes[1] / axes[1][-1])
        image[radius > 1.0] = scanner.padding
    return np.asarray(image, dtype=np.int16)


# --- Files -----------------------------------------------------------------------------------------------------------


def write_lung_ct(
    folder: str | os.PathLike[str],
    sites: Sequence[str] = tuple(CT_SCANNERS),
    subjects_per_site: int = 5,
    shape: tuple[int, int, int] = (160, 160, 100),
    seed: int = 0,
    structure: Structure = "labels",
    emboli: Sequence[int] = (0,),
) -> Path:
    """Write chest CTs of several sites as NIfTI files, with masks, a datalist and a table of nodules.

    Every site has its own subjects and stores its files in its own orientation. Of the subjects of a site, one fifth (at
    least one, when there are three or more) each is validation and test. annotations.csv beside the datalist has the columns
    of LUNA16's: the subject, and place (mm to the left, back and top) and diameter of each nodule.

    Args:
        folder: where images/, masks/, datalist.csv and annotations.csv go.
        sites: some of CT_SCANNERS.
        subjects_per_site: how many.
        shape: as for `lung_ct`.
        seed: changes all subjects.
        structure: what the masks hold: one structure, or the numbers of LABELS.
        emboli: of the first, second, ... subject of a site, and from the start again.

    Returns:
        the path of `datalist.csv` in `folder`, with columns image, mask, subject, site, split, emboli (their number).

    Raises:
        SettingError: an unknown site or structure, no site, no subject, or too small a shape.
        OutputError: the files cannot be written.
    """
    from dart_core.data.datalist import Datalist, Row
    from dart_core.data.volumes import Volume, write_volume

    _check_sites(sites, subjects_per_site)
    names = {name: number for number, name in LABELS.items()}
    if structure != "labels" and structure not in names:
        raise SettingError(f"no structure {structure!r}", remedy=f"choose labels, {', '.join(names)}")
    if not emboli:
        raise SettingError("no number of emboli", remedy="give at least one, such as 0")
    folder = Path(folder)
    rows, found = [], []
    for site in dict.fromkeys(sites):
        for number in range(subjects_per_site):
            subject = _number(site, number)
            count = emboli[number % len(emboli)]
            scan = lung_ct(subject, site, shape, seed, count)
            grid = Volume(scan.image, scan.affine, original_orientation=CT_SCANNERS[site].orientation)
            mask = scan.labels if structure == "labels" else scan.labels == names[structure]
            name = f"{site}_{subject}.nii.gz"
            found += [(f"phantom{subject}", nodule) for nodule in scan.nodules]
            rows.append(
                Row(
                    image=write_volume(folder / "images" / name, scan.image, grid),
                    mask=write_volume(folder / "masks" / name, mask, grid),
                    subject=f"phantom{subject}",
                    site=site,
                    split=split_of(number, subjects_per_site),
                    labels={"emboli": str(count)},
                )
            )
    _write_table(folder / "annotations.csv", _ANNOTATIONS, [[who, *_lps(n.centre), n.diameter] for who, n in found])
    return Datalist(tuple(rows)).write(folder / "datalist.csv")


_ANNOTATIONS = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")
_CANDIDATES = ("seriesuid", "coordX", "coordY", "coordZ", "class")


def write_luna16(
    folder: str | os.PathLike[str],
    scans: int = 10,
    subsets: int = 10,
    shape: tuple[int, int, int] = (160, 160, 100),
    seed: int = 0,
) -> Path:
    """Write chest CTs as the owners of LUNA16 publish theirs.

    Args:
        folder: where subset0/ and so on go, with <seriesuid>.mhd and <seriesuid>.raw, and annotations.csv (the nodules),
            candidates.csv and candidates_V2.csv (the nodules, class 1, and places that look like them, class 0; the second
            table has twice as many of those).
        scans: how many; they are dealt to the subsets, and their scanners differ.
        subsets: number of subsets, at most 10.
        shape: as for `lung_ct`.
        seed: changes all subjects.

    Returns:
        `folder`.

    Raises:
        SettingError: no scan, more than ten subsets or none, or too small a shape.
        OutputError: the files cannot be written.
    """
    if scans < 1 or not 1 <= subsets <= 10:
        raise SettingError(f"{scans} scans in {subsets} subsets", remedy="give scans, and 1 to 10 subsets")
    folder = Path(folder)
    sites = list(CT_SCANNERS)
    tables: dict[str, list[list[Any]]] = {"annotations.csv": [], "candidates.csv": [], "candidates_V2.csv": []}
    for number in range(scans):
        site = sites[number % len(sites)]
        scan = lung_ct(_number(site, number), site, shape, seed)
        series = f"2.25.{16 * 10**9 + seed * 10**5 + number}"  # "2.25" is the root of UIDs that nobody has to ask for
        write_metaimage(folder / f"subset{number % subsets}" / f"{series}.mhd", scan.image, scan.affine)
        nodules = [[series, *_lps(nodule.centre)] for nodule in scan.nodules]
        others = [[series, *_lps(place), 0] for place in scan.lookalikes]
        tables["annotations.csv"] += [
            [*row, nodule.diameter] for row, nodule in zip(nodules, scan.nodules, strict=True)
        ]
        tables["candidates.csv"] += [*([*row, 1] for row in nodules), *others[: len(others) // 2]]
        tables["candidates_V2.csv"] += [*([*row, 1] for row in nodules), *others]
    for name, rows in tables.items():
        _write_table(folder / name, _ANNOTATIONS if name == "annotations.csv" else _CANDIDATES, rows)
    return folder


def write_metaimage(path: str | os.PathLike[str], array: NDArray[np.int16], affine: NDArray[np.float64]) -> Path:
    """Write a volume as MetaImage: a text file (.mhd) and its voxels (.raw) beside it, in the axes of DICOM (LPS).

    Args:
        path: the .mhd file.
        array: (H, W, Z), indices growing to the right, front and top.
        affine: (4, 4), without rotation.
    """
    path = Path(path)
    spacing = np.diag(affine)[:3]
    last = affine @ [array.shape[0] - 1, array.shape[1] - 1, 0, 1]
    header = {
        "ObjectType": "Image",
        "NDims": 3,
        "BinaryData": True,
        "BinaryDataByteOrderMSB": False,
        "CompressedData": False,
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": " ".join(repr(float(value)) for value in (-last[0], -last[1], last[2])),
        "CenterOfRotation": "0 0 0",
        "AnatomicalOrientation": "RAI",
        "ElementSpacing": " ".join(repr(float(step)) for step in spacing),
        "DimSize": " ".join(map(str, array.shape)),
        "ElementType": "MET_SHORT",
        "ElementDataFile": f"{path.stem}.raw",
    }
    voxels = np.ascontiguousarray(array[::-1, ::-1].T, dtype="<i2")
    with atomic_write(path.with_suffix(".raw")) as temporary:
        temporary.write_bytes(voxels.tobytes())
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{key} = {value}\n" for key, value in header.items()), encoding="utf-8")
    return path


def _write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([columns, *rows])


def _lps(place: Sequence[float]) -> list[float]:
    return [round(-float(place[0]), 4), round(-float(place[1]), 4), round(float(place[2]), 4)]


def _number(site: str, number: int) -> int:
    # Numbered within the site, so that a subject does not depend on which other sites are written.
    return 1000 * (1 + list(CT_SCANNERS).index(site)) + number


def _check_sites(sites: Sequence[str], subjects: int) -> None:
    if not sites or subjects < 1:
        raise SettingError("no site or no subject to write", remedy="give at least one of each")
    for site in sites:
        if site not in CT_SCANNERS:
            raise SettingError(f"no scanner {site!r}", remedy=f"choose from {', '.join(CT_SCANNERS)}")
