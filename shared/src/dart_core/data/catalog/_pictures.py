"""What the readers of picture collections share: where files are, what a cell may hold, which pictures are missing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from dart_core.data.datalist import Datalist, Row
from dart_core.errors import InputError

Value = TypeVar("Value")

BINARY = {"0": "0", "0.0": "0", "1": "1", "1.0": "1"}
"""Cells of a yes-or-no column."""
SKIN_TYPES = {text: kind for kind in "123456" for text in (kind, f"{kind}.0")} | dict.fromkeys(("-1", "-1.0", ""), "")
"""Cells of a column of Fitzpatrick types; unknown ones become empty."""

_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
_COPIES = (".png", ".jpeg", ".jpg", ".dicom", ".dcm")  # the first is taken where a picture is there several times


def check_root(root: Path, name: str, origin: str) -> None:
    """Refuse what is no folder.

    Raises:
        InputError: there is no such folder.
    """
    if not root.is_dir():
        problem = f"this is a file, not the folder of {name}" if root.exists() else f"the folder of {name} is missing"
        raise InputError(problem, where=root, remedy=f"check the path; {origin}")


def find_first(root: Path, names: Iterable[str]) -> Path | None:
    """The first of some paths below `root` that is there."""
    return next((root / name for name in names if (root / name).exists()), None)


def pictures_below(folder: Path) -> dict[str, Path]:
    """Every picture below a folder in sorted order; keys are paths relative to it in lower case, with slashes.

    Owners' tables and archives do not always agree in capitals (NEL025.JPG, Nel025.jpg).
    """
    found = {}
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith(_ENDINGS) and not name.startswith("."):
                path = Path(place, name)
                found[path.relative_to(folder).as_posix().lower()] = path
    return found


def files_by_id(folders: Iterable[Path]) -> dict[str, Path]:
    """Name without ending -> file in any of some folders (not below them); copies as PNG or JPEG come before DICOM."""
    found: dict[str, tuple[int, Path]] = {}
    for folder in folders:
        if not folder.is_dir():
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                stem, ending = os.path.splitext(entry.name)
                if ending.lower() not in _COPIES or stem.startswith("."):
                    continue
                rank = _COPIES.index(ending.lower())
                if stem not in found or rank < found[stem][0]:
                    found[stem] = rank, Path(entry.path)
    return {name: path for name, (_, path) in found.items()}


def pick(table: Path, line: int, cells: Mapping[str, str], column: str, allowed: Mapping[str, Value]) -> Value:
    """What a cell stands for.

    Raises:
        InputError: the cell holds something else than the keys of `allowed`.
    """
    text = cells.get(column, "")
    if text not in allowed:
        raise InputError(
            f"{text!r} is not expected here" if text else "the cell is empty",
            where=f"{table}, row {line}, column {column}",
            remedy=f"cells are {', '.join(key for key in allowed if key)}" + (" or empty" if "" in allowed else ""),
        )
    return allowed[text]


def filled(table: Path, line: int, cells: Mapping[str, str], column: str) -> str:
    """A cell that must not be empty.

    Raises:
        InputError: it is.
    """
    if not cells[column]:
        raise InputError("the cell is empty", where=f"{table}, row {line}, column {column}", remedy="fill it in")
    return cells[column]


def present(rows: Iterable[Row], source: Path, origin: str) -> Datalist:
    """The rows whose pictures are there.

    Raises:
        InputError: there is none.
    """
    there = tuple(row for row in rows if row.image.is_file())
    if not there:
        raise InputError("none of the pictures in the table is there", where=source, remedy=f"check the path; {origin}")
    return Datalist(there, source)


def missing(rows: Sequence[Row], name: str) -> list[str]:
    """One line that counts the pictures that are not there; none when all are."""
    absent = [row.image for row in rows if not row.image.is_file()]
    if not absent:
        return []
    return [f"{name}: {len(absent)} of {len(rows)} pictures are missing, the first is {absent[0].name}"]
