"""ASAN test set: 852 clinical pictures of eight diagnoses from the Asan Medical Center in Seoul.

Han S. S. et al., "Classification of the clinical images for benign and malignant cutaneous tumors using a deep learning
algorithm", J Invest Dermatol 138:1529, 2018, doi:10.1016/j.jid.2018.01.028.
"""

from __future__ import annotations

import os
from pathlib import Path

from dart_core.data.catalog._pictures import (
    BINARY,
    check_root,
    filled,
    find_first,
    missing,
    pick,
    pictures_below,
    present,
)
from dart_core.data.catalog._tables import read_rows
from dart_core.data.datalist import Datalist, Row
from dart_core.errors import InputError

DIAGNOSES = (
    "actinickeratosis",
    "basalcellcarcinoma",
    "dermatofibroma",
    "lentigo",
    "malignantmelanoma",
    "pigmentednevus",
    "seborrheickeratosis",
    "squamouscellcarcinoma",
)
"""Folders of the owners' archive."""

PICTURES = 852
"""Pictures of the whole test set; 59 of them are melanomas."""

ORIGIN = (
    "the owners give the test part of the Asan data set at figshare (https://ndownloader.figshare.com/files/9328573); cite Han"
    " et al., J Invest Dermatol 2018"
)

_ROOTS = (".", "test-asan test", "ASAN/test-asan test")
_TABLES = ("asan.csv", "csv/asan.csv")
_FOLDERS = ("images/asan_256", "asan_256")


def index(root: str | os.PathLike[str]) -> Datalist:
    """List the pictures, diagnosis by diagnosis.

    Layout: a folder per diagnosis (DIAGNOSES), as the archive unpacks; or the table asan.csv of the code of Bevan and
    Atapour-Abarghouei beside asan_256/.

    Returns:
        rows with image, subject (the file's name: the owners name no patients), site "asan", split "test" (it is a test set)
        and labels: label ("1" melanoma alone; carcinomas and actinic keratosis are "0") and diagnosis.

    Raises:
        InputError: another folder, a table that does not fit, no picture.
    """
    return present(_rows(Path(root)), Path(root), ORIGIN)


def report_missing(root: str | os.PathLike[str]) -> list[str]:
    """Say how many pictures are missing, and where they come from; empty when all 852 are there.

    Raises:
        InputError: another folder, or a table that does not fit.
    """
    rows = _rows(Path(root))
    lines = missing(rows, "ASAN")
    diagnoses = {row.labels["diagnosis"] for row in rows}
    if diagnoses & set(DIAGNOSES):
        lines += [f"the folder {name} is missing" for name in DIAGNOSES if name not in diagnoses]
    if len(rows) < PICTURES:
        lines.append(f"ASAN: {len(rows)} of {PICTURES} pictures are there")
    return [*lines, f"ASAN: {ORIGIN}"] if lines else []


def _rows(root: Path) -> list[Row]:
    check_root(root, "ASAN", ORIGIN)
    table = find_first(root, _TABLES)
    if table is not None:
        return _prepared(root, table)
    for name in _ROOTS:
        found = {
            part.name.lower(): part
            for part in sorted((root / name).glob("*"))
            if part.is_dir() and part.name.lower() in DIAGNOSES
        }
        if found:
            return [row for diagnosis in DIAGNOSES if diagnosis in found for row in _folder(found[diagnosis])]
    raise InputError(
        f"this is not the ASAN test set (none of the folders {', '.join(DIAGNOSES)})",
        where=root,
        remedy=f"give the folder that holds them; {ORIGIN}",
    )


def _folder(folder: Path) -> list[Row]:
    diagnosis = folder.name.lower()
    label = str(int(diagnosis == "malignantmelanoma"))
    return [
        Row(
            image,
            subject=f"{diagnosis}/{image.stem}",
            site="asan",
            split="test",
            labels={"label": label, "diagnosis": diagnosis},
            source=folder,
        )
        for image in pictures_below(folder).values()
    ]


def _prepared(root: Path, table: Path) -> list[Row]:
    images = find_first(root, _FOLDERS) or root / _FOLDERS[-1]
    there = pictures_below(images)
    rows = []
    for line, cells in read_rows(table, ("image_name", "diagnosis", "target")):
        name = filled(table, line, cells, "image_name")
        rows.append(
            Row(
                there.get(name.lower(), images / name),
                subject=Path(name).stem,
                site="asan",
                split="test",
                labels={
                    "label": pick(table, line, cells, "target", BINARY),
                    "diagnosis": filled(table, line, cells, "diagnosis"),
                },
                line=line,
                source=table,
            )
        )
    return rows
