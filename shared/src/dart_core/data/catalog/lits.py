"""LiTS: 131 CTs of the abdomen with outlines of the liver and its tumours.

Bilic P. et al., "The liver tumor segmentation benchmark (LiTS)", Medical Image Analysis 84:102680, 2023,
doi:10.1016/j.media.2022.102680.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from dart_core.data.catalog._pictures import check_root
from dart_core.data.datalist import Datalist, Row
from dart_core.errors import InputError

COUNT = 131
"""Scans with outlines, numbered from 0."""

SPLITS = {"train": range(100), "val": range(100, 115), "test": range(115, 130)}
"""Numbers of each split (united-ssl 5); the last scan, 130, is in none."""

ORIGIN = (
    "the owners give it under CC BY-NC-ND 4.0 at https://competitions.codalab.org/competitions/17094 (Training Batch 1 and 2);"
    " cite Bilic et al., Medical Image Analysis 84:102680, 2023"
)

_NAME = re.compile(r"(volume|segmentation)-(\d+)\.nii(?:\.gz)?")


def index(root: str | os.PathLike[str]) -> Datalist:
    """List the scans that are there, by number.

    Layout: volume-0.nii and segmentation-0.nii (or .nii.gz) to 130, in one folder or in several below `root`, as the archives
    unpack. A mask holds 1 (liver) and 2 (tumour): whatever is above 0 is liver. Scan 130, which no split has, is left out.

    Returns:
        rows with image, mask, subject (the number), site "lits" and split (SPLITS).

    Raises:
        InputError: another folder, a scan without outline, a file that is there twice.
    """
    folder = Path(root)
    files = _files(folder)
    rows = []
    for number in sorted(number for kind, number in files if kind == "volume"):
        split = next((name for name, numbers in SPLITS.items() if number in numbers), "")
        if not split:
            continue
        image, mask = files["volume", number], files.get(("segmentation", number))
        if mask is None:
            raise InputError(
                f"there is no outline segmentation-{number}.nii", where=image, remedy="add it or move the scan away"
            )
        rows.append(Row(image, mask, subject=str(number), site="lits", split=split, source=folder))
    if not rows:
        raise InputError("there is no scan of LiTS from 0 to 129", where=folder, remedy=ORIGIN)
    return Datalist(tuple(rows), folder)


def report_missing(root: str | os.PathLike[str]) -> list[str]:
    """Say which scans and outlines are missing, and where they come from; empty when all are there.

    Raises:
        InputError: another folder, or a file that is there twice.
    """
    files = _files(Path(root))
    lines = []
    for kind, what in (("volume", "scans"), ("segmentation", "outlines")):
        missing = [number for number in range(COUNT) if (kind, number) not in files]
        if missing:
            lines.append(f"{len(missing)} of {COUNT} {what} are missing, the first is {kind}-{missing[0]}.nii")
    return [*lines, f"LiTS: {ORIGIN}"] if lines else []


def _files(root: Path) -> dict[tuple[str, int], Path]:
    """(volume or segmentation, number) -> file."""
    check_root(root, "LiTS", ORIGIN)
    found: dict[tuple[str, int], Path] = {}
    for path in sorted(root.rglob("*-*.nii*")):
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue
        key = match[1], int(match[2])
        if key in found:
            raise InputError(f"it is there twice, also as {found[key]}", where=path, remedy="remove one of the two")
        found[key] = path
    if not any(kind == "volume" for kind, _ in found):
        raise InputError(
            "this is not the folder of LiTS (no volume-0.nii)",
            where=root,
            remedy=f"give the folder that holds the volumes and segmentations; {ORIGIN}",
        )
    return found
