"""Multi-organ labels of abdominal CTs: 47 of BTCV and 43 of TCIA Pancreas-CT.

Gibson E. et al., "Multi-organ abdominal CT reference standard segmentations", Zenodo 2018, doi:10.5281/zenodo.1169361.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from dart_core.data import itk_volumes
from dart_core.data.volumes import Volume, read_grid, read_labels, read_volume
from dart_core.errors import InputError

CODES = {
    "spleen": 1, "right kidney": 2, "left kidney": 3, "gallbladder": 4, "oesophagus": 5, "liver": 6, "stomach": 7, "aorta": 8,
    "inferior vena cava": 9, "portal and splenic vein": 10, "pancreas": 11, "right adrenal gland": 12, "left adrenal gland": 13,
    "duodenum": 14,
}  # fmt: skip
"""Organ -> value in a label file, here and (but for the duodenum) in BTCV's own. Gibson et al. drew 1, 3 to 7, 11 and 14 in all scans."""

ANNOTATION = "zenodo-1169361"
"""What the readers write into the column `annotation` of a row whose labels are of this set."""

ORIGIN = "the multi-organ labels are at https://doi.org/10.5281/zenodo.1169361; cite Gibson et al. 2018"

_NAME = re.compile(r"label(\d{4})\.nii(?:\.gz)?")


def label_files(folders: Iterable[Path]) -> dict[int, Path]:
    """Number of a case -> label0001.nii.gz in any of some folders (not below them).

    Raises:
        InputError: a number that is there twice.
    """
    found: dict[int, Path] = {}
    for folder in folders:
        for path in sorted(folder.iterdir()):
            match = _NAME.fullmatch(path.name)
            if match is None:
                continue
            number = int(match[1])
            if number in found:
                raise InputError(
                    f"it is there twice, also as {found[number]}", where=path, remedy="remove one of the two"
                )
            found[number] = path
    return found


def label_folders(root: Path, word: str) -> list[Path]:
    """Folders below `root` whose names hold "multiorgan" (or multi-organ, multi_organ) and a word such as "tcia"."""
    folders = []
    for place, names, _ in os.walk(root):
        for name in sorted(names):
            plain = re.sub(r"[^a-z0-9]", "", name.lower())
            if "multiorgan" in plain and word in plain:
                folders.append(Path(place, name))
    return folders


def read_codes(path: str | os.PathLike[str], image: Volume, reverse_slices: bool) -> NDArray[np.int16]:
    """The codes of a label file on the grid of its CT.

    Where the affines agree they decide. Those of the published files do not always: then the voxels are taken in the order in
    which they are stored, for Pancreas-CT with the slices reversed (catenorm 5.2).

    Args:
        path: label file.
        image: the CT as `read_volume` or `read_grid` gives it in RAS, with its path.
        reverse_slices: the label file counts slices from the other end than the CT's stored order.

    Returns:
        int16 (H, W, Z) in RAS.

    Raises:
        InputError: what `read_labels` finds wrong, or another number of voxels than the CT.
    """
    path = Path(path)
    if image.path is None or _same_grid(path, image):
        return read_labels(path, image)
    stored = read_volume(path, orientation=None).array
    shape, affine = _stored(image.path)
    if stored.shape != shape:
        raise InputError(
            f"the labels have {_times(stored.shape)} voxels, the image {image.path.name} {_times(shape)}",
            where=path,
            remedy="give the labels of this scan",
        )
    codes = np.rint(stored).astype(np.int16)
    orientations: Any = nibabel.orientations
    ordered = orientations.apply_orientation(
        codes[..., ::-1] if reverse_slices else codes, orientations.io_orientation(affine)
    )
    return np.ascontiguousarray(ordered, dtype=np.int16)


def _same_grid(path: Path, image: Volume) -> bool:
    grid = read_grid(path)
    return grid.array.shape == image.array.shape and bool(np.abs(grid.affine - image.affine).max() <= 1e-3)


def _stored(path: Path) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Shape and affine of a CT in the order in which its voxels are stored."""
    if itk_volumes.is_itk(path):
        return itk_volumes.read_header(path)
    grid = read_grid(path, orientation=None)
    return grid.array.shape, grid.affine


def _times(shape: Iterable[int]) -> str:
    return " x ".join(str(side) for side in shape)
