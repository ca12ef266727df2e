"""Hippocampus MR: crops around one hippocampus of made-up people on three made-up scanners, with anterior and posterior part.

The three sources are named as those of the continual-learning study that mixes them (specification odex 5): their images differ in
contrast between tissues, noise and blur, so that a network which has learnt one does worse on another, and a stream can shift
from one to the next smoothly.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dart_core.data.phantoms.scanner import Phantom, ScannerModel, find_scanner, scan, split_of, write_sites
from dart_core.data.phantoms.shapes import Field, Layer, Space, cover, grid_axes, inside, join, rotation, smooth_field
from dart_core.errors import SettingError

_FIELD_OF_VIEW = (36.0, 52.0, 36.0)  # mm, right-left, back-front, bottom-top
_CENTRE = (0.0, 0.0, 0.0)
_TISSUES = ("white", "grey", "hippocampus", "fluid")


def _scanner(
    contrasts: tuple[float, ...], gamma: float, bias: float, noise: float, blur: float, gain: float, codes: str
) -> ScannerModel:
    return ScannerModel(
        dict(zip(_TISSUES, contrasts, strict=True)), gamma, bias, noise, blur, (1.0, 1.0, 1.0), gain, codes
    )


HIPPOCAMPUS_SOURCES: dict[str, ScannerModel] = {
    "HarP": _scanner((1.00, 0.62, 0.68, 0.20), 1.0, 0.10, 0.03, 0.6, 300.0, "LPS"),
    "Dryad": _scanner((0.95, 0.70, 0.80, 0.45), 1.0, 0.25, 0.05, 0.4, 900.0, "RAS"),
    "Decathlon": _scanner((0.55, 0.75, 0.95, 0.90), 1.1, -0.10, 0.09, 0.8, 120.0, "RAS"),
}
"""The three made-up sources. In the last one fluid is bright, as in T2-weighted images."""


def hippocampus_mr(
    subject: int, source: str, shape: tuple[int, int, int] = (36, 52, 36), seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.uint8], tuple[float, float, float]]:
    """Make a crop around the hippocampus of one subject, in RAS.

    Args:
        subject: number of the subject; the anatomy, in mm, depends on this and `seed` alone.
        source: one of HIPPOCAMPUS_SOURCES.
        shape: voxels (H, W, Z) of the field of view of 36 x 52 x 36 mm.
        seed: changes all subjects.

    Returns:
        image (H, W, Z) float32, not negative; labels (H, W, Z) uint8: 0 outside, 1 anterior, 2 posterior; voxel size in mm.

    Raises:
        SettingError: an unknown source, or a side below 8 voxels.
    """
    scanner = find_scanner(HIPPOCAMPUS_SOURCES, source, shape)
    spacing = scanner.voxel_size(_FIELD_OF_VIEW, shape)
    axes = grid_axes(shape, spacing, _CENTRE)
    layers, surface, front = _crop(np.random.default_rng([seed, subject]), axes, max(spacing))
    labels = np.where(surface > 0, np.where(front, 1, 2), 0).astype(np.uint8)
    rng = np.random.default_rng([seed, subject, 1 + list(HIPPOCAMPUS_SOURCES).index(source)])
    return scan(scanner, cover(layers), rng, spacing, "hippocampus", (0.04, 6)), labels, spacing


def write_hippocampus(
    folder: str | os.PathLike[str],
    sources: Sequence[str] = tuple(HIPPOCAMPUS_SOURCES),
    subjects_per_source: int = 5,
    shape: tuple[int, int, int] = (36, 52, 36),
    seed: int = 0,
) -> Path:
    """Write crops and labels of several sources as NIfTI files, with a datalist.

    Of the subjects of a source, one fifth (at least one, when there are three or more) each is validation and test.

    Returns:
        the path of `datalist.csv` in `folder`, with columns image, mask, subject, site (the source), split.

    Raises:
        SettingError: an unknown source, no source, no subject, or too small a shape.
        OutputError: the files cannot be written.
    """

    def make(subject: int, source: str) -> list[Phantom]:
        return [Phantom(*hippocampus_mr(subject, source, shape, seed))]

    return write_sites(folder, HIPPOCAMPUS_SOURCES, sources, subjects_per_source, _CENTRE, make)


def write_hippocampus_stream(
    folder: str | os.PathLike[str],
    stages: int = 5,
    cases: int = 6,
    shape: tuple[int, int, int] = (36, 52, 36),
    seed: int = 0,
    sources: tuple[str, str] = ("HarP", "Decathlon"),
) -> list[Path]:
    """Write a stream of stages that shifts from one source to another: all cases of the first one, then ever more of the second.

    Args:
        folder: where the stages go.
        stages: how many.
        cases: of each stage, new subjects in each; of them one fifth (at least one) each is validation and test.
        shape: voxels of a crop.
        seed: changes all subjects.
        sources: from and to.

    Returns:
        a datalist for each stage: stage-1/datalist.csv, ...; the column site names the source.

    Raises:
        SettingError: an unknown source, fewer than one stage or three cases, or too small a shape.
        OutputError: the files cannot be written.
    """
    from dart_core.data.datalist import Datalist, Row
    from dart_core.data.volumes import Volume, write_volume

    if stages < 1 or cases < 3:
        raise SettingError(f"{stages} stages of {cases} cases", remedy="give at least one stage of three cases")
    lists = []
    for stage in range(stages):
        share = stage / max(stages - 1, 1)
        place, rows = Path(folder) / f"stage-{stage + 1}", []
        for number in range(cases):
            # Spread evenly, so that training, validation and test have their share of both.
            source = sources[int((number + 1) * share + 1e-9) - int(number * share + 1e-9) > 0]
            subject = 1000 * (stage + 1) + number
            image, labels, spacing = hippocampus_mr(subject, source, shape, seed)
            grid = Volume(
                image,
                np.diag([*spacing, 1.0]),
                original_orientation=HIPPOCAMPUS_SOURCES[source].orientation,
            )
            name = f"{source}-{subject}.nii.gz"
            rows.append(
                Row(
                    image=write_volume(place / "images" / name, np.rint(image), grid, dtype=np.int16),
                    mask=write_volume(place / "masks" / name, labels, grid),
                    subject=f"phantom{subject}",
                    site=source,
                    split=split_of(number, cases),
                )
            )
        lists.append(Datalist(tuple(rows)).write(place / "datalist.csv"))
    return lists


def _crop(
    rng: np.random.Generator, axes: Sequence[Field], voxel: float
) -> tuple[list[Layer], Field, NDArray[np.bool_]]:
    """Make the anatomy of one subject.

    Returns:
        layers from below to above, distance to the surface of the hippocampus, and what lies in its anterior part.
    """
    pitch, roll, yaw = np.deg2rad(rng.normal(scale=(8.0, 6.0, 6.0)).clip(-15, 15))
    turn = rotation(1, 2, pitch) @ rotation(0, 2, roll) @ rotation(0, 1, yaw)
    space = Space(axes, turn, rng.normal(1.0, 0.07, 3).clip(0.85, 1.15))
    dx, dz = rng.normal(0, 1.0, 2).clip(-2, 2)
    lumps = np.clip(smooth_field(rng, axes, 11), -2.5, 2.5)

    head = space.ellipsoid((dx - 1, 9, dz - 2), (6.5, 7.5, 6.0))
    body = space.ellipsoid((dx + 1, -4, dz), (4.6, 13, 4.4))
    tail = space.ellipsoid((dx + 3, -14, dz + 3), (4.0, 6, 4.0))
    surface = join(join(head, body, 3), tail, 3) + 0.35 * lumps
    front = np.broadcast_to(space.y > rng.normal(2.5, 0.8), surface.shape)

    horn = np.minimum(space.ellipsoid((dx - 7, 2, dz + 2), (4, 18, 7)) + 0.4 * lumps, -surface - 0.4)
    cistern = space.ellipsoid((dx + 14, 4, dz - 4), (6, 14, 9)) + 0.5 * lumps
    folds = inside(1.2 - np.abs(smooth_field(rng, axes, 20)) * 3, 1.5)
    cortex = inside(-space.z - 8 + 0.8 * lumps, 2.0) * folds
    grain = 0.06 * np.clip(smooth_field(rng, axes, 7), -2, 2)
    layers: list[Layer] = [
        (np.ones_like(surface), {"white": 1.0}),
        (np.asarray(cortex), {"grey": 1.0}),
        (inside(cistern, voxel), {"fluid": 1.0}),
        (inside(horn, voxel), {"fluid": 1.0}),
        (inside(surface, voxel), {"hippocampus": 0.94 + grain, "fluid": 0.06 - grain}),
    ]
    return layers, surface, np.asarray(front)
