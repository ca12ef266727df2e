"""Abdomen: made-up people on two CT and two MR scanners, with ten organs whose outlines are known.

Organs differ in shape, size, place and contrast; the same subject has the same anatomy on every scanner and grid. Scans are
written as sites with a datalist, or as the tasks of the Medical Segmentation Decathlon.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dart_core.data.phantoms.scanner import Phantom, ScannerModel, find_scanner, scan, write_sites
from dart_core.data.phantoms.shapes import Field, Layer, Space, cover, grid_axes, inside, join, rotation, smooth_field
from dart_core.errors import SettingError

ORGANS: Mapping[int, str] = MappingProxyType(
    {
        1: "spleen",
        2: "right_kidney",
        3: "left_kidney",
        4: "gallbladder",
        5: "oesophagus",
        6: "liver",
        7: "stomach",
        8: "aorta",
        9: "vena_cava",
        10: "pancreas",
    }
)
"""Of the map of labels, numbered as in the BTCV collection (whose 10 is the portal vein)."""

_FIELD_OF_VIEW = (330.0, 250.0, 190.0)  # mm, left-right, back-front, bottom-top
_CENTRE = (0.0, 0.0, 0.0)
_TISSUES = ("fat", "muscle", "bone", "liver", "spleen", "kidney", "pancreas", "content", "blood", "bile")


def _scanner(contrasts: tuple[float, ...], *rest: Any) -> ScannerModel:
    return ScannerModel(dict(zip(_TISSUES, contrasts, strict=True)), *rest)


ABDOMEN_SCANNERS: dict[str, ScannerModel] = {
    # Of the CTs, contrasts are HU above air, the noise is in HU too, and contents are those of stomach and bowel.
    "CT": _scanner(
        (900, 1060, 1420, 1112, 1125, 1190, 1095, 1022, 1165, 1008), 1.0, 0.0, 14.0, 1.0, (1.0, 1.0, 1.0), 1.0, "LPS"
    ),
    "CT-native": _scanner(
        (895, 1052, 1400, 1060, 1048, 1033, 1040, 1018, 1042, 1006), 1.0, 0.0, 9.0, 1.4, (0.96, 0.96, 1.05), 1.0, "LAS"
    ),
    "T1": _scanner(
        (0.95, 0.36, 0.30, 0.56, 0.36, 0.43, 0.64, 0.24, 0.10, 0.16),
        1.0,
        0.15,
        0.035,
        1.0,
        (1.0, 1.0, 0.95),
        600.0,
        "LPS",
    ),
    "T2": _scanner(
        (0.70, 0.18, 0.32, 0.30, 0.58, 0.68, 0.42, 0.85, 0.06, 1.00),
        1.1,
        0.20,
        0.045,
        1.2,
        (1.05, 1.0, 1.0),
        320.0,
        "RAS",
    ),
}
"""Portal venous CT, CT without contrast agent, T1- and T2-weighted MR, each with its habits of storing."""

CT_SITES = ("CT", "CT-native")
"""Sites whose images are in Hounsfield units."""


def abdominal_scan(
    subject: int, site: str, shape: tuple[int, int, int] = (96, 72, 32), seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.uint8], tuple[float, float, float]]:
    """Make an abdomen of one subject at one site, in RAS.

    Args:
        subject: number of the subject; its anatomy, in mm, depends on this and `seed` alone.
        site: one of ABDOMEN_SCANNERS.
        shape: voxels (H, W, Z) of the field of view of 330 x 250 x 190 mm (a few per cent more or less by site).
        seed: changes all subjects.

    Returns:
        image (H, W, Z) float32, in HU or, of MR, not negative; labels (H, W, Z) uint8, see ORGANS; voxel size in mm.

    Raises:
        SettingError: an unknown site, or a side below 8 voxels.
    """
    scanner = find_scanner(ABDOMEN_SCANNERS, site, shape)
    spacing = scanner.voxel_size(_FIELD_OF_VIEW, shape)
    axes = grid_axes(shape, spacing, _CENTRE)
    layers, organs = _anatomy(np.random.default_rng([seed, subject]), axes, max(1.5, float(np.mean(spacing[:2]))))
    labels = np.zeros(shape, dtype=np.uint8)
    for name, distance in organs.items():  # in the order in which they are laid on each other
        labels[distance > 0] = next(number for number, organ in ORGANS.items() if organ == name)
    rng = np.random.default_rng([seed, subject, 1 + list(ABDOMEN_SCANNERS).index(site)])
    tissues = cover(layers)
    if site in CT_SITES:
        return _ct(scanner, tissues, rng, spacing), labels, spacing
    return scan(scanner, tissues, rng, spacing, "liver", (0.04, 14)), labels, spacing


def write_abdomen(
    folder: str | os.PathLike[str],
    sites: Sequence[str] = tuple(ABDOMEN_SCANNERS),
    subjects_per_site: int = 5,
    shape: tuple[int, int, int] = (96, 72, 32),
    seed: int = 0,
) -> Path:
    """Write abdomens of several sites as NIfTI files, with maps of all organs and a datalist.

    Every site has its own subjects and stores its files in its own orientation, voxel size and scale (int16). Of the subjects
    of a site, one fifth (at least one, when there are three or more) each is validation and test.

    Returns:
        the path of `datalist.csv` in `folder`, with columns image, mask (labels, see ORGANS), subject, site, split.

    Raises:
        SettingError: an unknown site, no site, no subject, or too small a shape.
        OutputError: the files cannot be written.
    """

    def make(subject: int, site: str) -> list[Phantom]:
        return [Phantom(*abdominal_scan(subject, site, shape, seed))]

    return write_sites(folder, ABDOMEN_SCANNERS, sites, subjects_per_site, _CENTRE, make)


def write_decathlon(
    folder: str | os.PathLike[str],
    task: str,
    organs: Sequence[str],
    sites: Sequence[str] = ("CT",),
    cases: int = 5,
    shape: tuple[int, int, int] = (96, 72, 32),
    seed: int = 0,
    first: int = 0,
    test_cases: int = 1,
) -> Path:
    """Write one task in the layout of the Medical Segmentation Decathlon: dataset.json, imagesTr, labelsTr, imagesTs.

    Args:
        folder: what the task's folder is written into.
        task: name of that folder, such as Task41_Kidneys; its files are kidneys_000.nii.gz and so on.
        organs: names from ORGANS; the first gets label 1, the second 2.
        sites: one gives 3-D images, several 4-D ones whose channels are the same subject at each site (with the voxel size of
            the first).
        cases: with labels.
        shape: as for `abdominal_scan`.
        seed: changes all subjects.
        first: number of the first subject, so that tasks need not share their people.
        test_cases: further cases without labels.

    Returns:
        the task's folder.

    Raises:
        SettingError: an unknown organ or site, none of them, no case, or too small a shape.
        OutputError: the files cannot be written.
    """
    import nibabel

    from dart_core.files import atomic_write, write_atomic

    numbers = {name: number for number, name in ORGANS.items()}
    for organ in organs:
        if organ not in numbers:
            raise SettingError(f"no organ {organ!r}", remedy=f"choose from {', '.join(numbers)}")
    if not organs or not sites or cases < 1:
        raise SettingError("no organ, site or case to write", remedy="give at least one of each")
    for site in sites:
        find_scanner(ABDOMEN_SCANNERS, site, shape)
    root = Path(folder) / task
    stem = task.partition("_")[2].lower() or task.lower()
    pairs: list[dict[str, str]] = []
    unlabelled: list[str] = []
    for number in range(cases + test_cases):
        scans = [abdominal_scan(first + number, site, shape, seed) for site in sites]
        spacing = scans[0][2]
        affine = np.diag([*spacing, 1.0])
        affine[:3, 3] = -(np.asarray(shape) - 1) / 2 * np.asarray(spacing)
        part = "Tr" if number < cases else "Ts"
        image = f"images{part}/{stem}_{number:03d}.nii.gz"
        channels = np.stack([np.rint(one[0]).astype(np.int16) for one in scans], axis=-1)
        files: dict[str, NDArray[Any]] = {image: channels if len(sites) > 1 else channels[..., 0]}
        if part == "Tr":
            label = f"labelsTr/{stem}_{number:03d}.nii.gz"
            values = np.zeros(shape, dtype=np.uint8)
            for value, organ in enumerate(organs, start=1):
                values[scans[0][1] == numbers[organ]] = value
            files[label] = values
            pairs.append({"image": f"./{image}", "label": f"./{label}"})
        else:
            unlabelled.append(f"./{image}")
        for name, array in files.items():
            with atomic_write(root / name) as temporary:
                target = temporary.with_name(f"{temporary.name}.nii.gz")
                nibabel.Nifti1Image(array, affine).to_filename(target)
                target.replace(temporary)
    content = {
        "name": stem,
        "description": "made-up abdomens (dart-core phantoms)",
        "reference": "none",
        "licence": "Apache-2.0",
        "release": "1.0",
        "tensorImageSize": "4D" if len(sites) > 1 else "3D",
        "modality": {str(number): site for number, site in enumerate(sites)},
        "labels": {"0": "background", **{str(value): organ for value, organ in enumerate(organs, start=1)}},
        "numTraining": len(pairs),
        "numTest": len(unlabelled),
        "training": pairs,
        "test": unlabelled,
    }
    write_atomic(root / "dataset.json", json.dumps(content, indent=1) + "\n")
    return root


def _ct(
    scanner: ScannerModel, tissues: Mapping[str, Field], rng: np.random.Generator, spacing: tuple[float, float, float]
) -> NDArray[np.float32]:
    """Reconstruct in HU; air is -1000."""
    from scipy import ndimage

    shape = next(iter(tissues.values())).shape
    hu = np.full(shape, -1000, dtype=np.float32)
    for name, share in tissues.items():
        hu += scanner.contrasts[name] * share
    hu = ndimage.gaussian_filter(hu, [scanner.blur / step for step in spacing])
    hu += scanner.noise * rng.standard_normal(shape, dtype=np.float32)
    return np.asarray(np.clip(hu, -1024, 3071), dtype=np.float32)


def _anatomy(rng: np.random.Generator, axes: Sequence[Field], voxel: float) -> tuple[list[Layer], dict[str, Field]]:
    """Make the anatomy of one subject; x grows to the right of the body, y to the front, z to the head.

    Returns:
        layers from below to above, and the distance to the surface of each organ in the same order.
    """
    turn = rotation(0, 1, float(np.deg2rad(rng.normal(0, 3)))) @ rotation(1, 2, float(np.deg2rad(rng.normal(0, 3))))
    space = Space(axes, turn, rng.normal(1.0, 0.05, 3).clip(0.9, 1.1))
    lumps = np.clip(smooth_field(rng, axes, 60), -2.5, 2.5)
    z = space.z

    def organ(centre: Sequence[float], half: Sequence[float], power: float = 2.0, wander: float = 4.0) -> Field:
        place = np.asarray(centre) + rng.normal(0, wander, 3).clip(-2 * wander, 2 * wander)
        size = np.asarray(half) * rng.normal(1.0, 0.07, 3).clip(0.85, 1.15)
        return space.ellipsoid(place.tolist(), size.tolist(), power) + 0.06 * min(half) * lumps

    body = space.ellipsoid((0, 0, 0), (148, 104, 900), 2.5) + lumps
    breath = float(rng.normal(0, 5))  # moves what lies below the diaphragm
    liver = join(organ((68, 4, 26 + breath), (64, 68, 62), 2.2), organ((2, 38, 38 + breath), (62, 34, 30)), 24)
    spleen = organ((-96, -30, 34 + breath), (24, 36, 40), 2.2)
    kidneys = {
        side: organ((sign * 60, -44, height), (25, 22, 50), 2.0)
        for side, sign, height in (("right", 1, -36.0 + breath), ("left", -1, -24.0 + breath))
    }
    stomach = join(organ((-62, 26, 36), (36, 40, 44)), organ((-22, 46, 0), (40, 22, 22)), 20)
    stomach = np.minimum(stomach, -np.maximum(liver, spleen) - 2)
    pancreas = join(
        join(organ((30, 2, -18), (19, 16, 22), wander=2), organ((-8, 8, -4), (36, 11, 12), wander=2), 12),
        organ((-50, -8, 10), (28, 10, 12), wander=2),
        12,
    )
    aorta = space.ellipsoid((-10, -34, 0), (11, 11, 2000))
    cava = space.ellipsoid((20, -30, 0), (13, 10, 2000))
    oesophagus = np.minimum(space.ellipsoid((-8, -14, 80), (10, 9, 300)), z - 44)
    gallbladder = organ((48, 42, -14), (14, 16, 30))
    spine = space.ellipsoid((0, -64, 0), (22, 20, 2000), 2.4)
    arch = space.ellipsoid((0, -88, 0), (7, 22, 2000))
    back = space.pair((34, -78, 0), (30, 20, 2000))
    wall = np.minimum(body - 16 - 5 * inside(-space.y - 20, 60), 13 - np.abs(body - 27))
    bowel = np.minimum(smooth_field(rng, axes, 42) * 16 - 2, np.minimum(body - 34, 4 - z))
    bowel = np.minimum(bowel, space.y + 20)
    folds = 0.5 + 0.5 * inside(smooth_field(rng, axes, 30), 1.0)

    organs = {
        "left_kidney": kidneys["left"],
        "right_kidney": kidneys["right"],
        "vena_cava": cava,
        "aorta": aorta,
        "pancreas": np.minimum(pancreas, -np.maximum(aorta, cava) - 1),
        "stomach": stomach,
        "oesophagus": oesophagus,
        "spleen": spleen,
        "liver": liver,
        "gallbladder": gallbladder,
    }
    solid = np.maximum.reduce([spine, wall]) + 1
    organs = {name: np.minimum(np.minimum(shape, -solid), body - 28) for name, shape in organs.items()}
    made_of: dict[str, Mapping[str, Field | float]] = {
        "left_kidney": {"kidney": 1.0},
        "right_kidney": {"kidney": 1.0},
        "vena_cava": {"blood": 0.9, "muscle": 0.1},
        "aorta": {"blood": 1.0},
        "pancreas": {"pancreas": 0.85, "fat": 0.15},
        "stomach": {"content": folds, "muscle": 1 - folds},
        "oesophagus": {"muscle": 1.0},
        "spleen": {"spleen": 1.0},
        "liver": {"liver": 1.0},
        "gallbladder": {"bile": 1.0},
    }
    layers: list[Layer] = [
        (inside(body, voxel), {"fat": 1.0}),
        (inside(wall, voxel), {"muscle": 1.0}),
        (inside(back, voxel) * inside(body - 12, voxel), {"muscle": 1.0}),
        (inside(bowel, voxel), {"content": folds, "muscle": 1 - folds}),
        *((inside(shape, voxel), made_of[name]) for name, shape in organs.items()),
        (inside(np.maximum(spine, arch), voxel) * inside(body - 14, voxel), {"bone": 1.0}),
    ]
    return layers, organs
