"""Which pictures there are, as files or as owners publish them, and what their cells mean. Free of torch, for `label`."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path

from dart_core.data.catalog import asan, atlas, fitzpatrick17k, isic, mclass
from dart_core.data.datalist import Datalist

Reader = Callable[[Path], Datalist]
_UNKNOWN = ("-1", "nan")
"""Cells that say nothing, as empty ones; nan is how pandas writes a gap."""


def normalised(cell: str) -> str:
    """What a cell says: whole numbers lose the decimals that spreadsheets give them, an unknown value (-1, nan) is empty."""
    cell = cell.strip()
    if re.fullmatch(r"-?\d+\.0+", cell):
        cell = cell.partition(".")[0]
    return "" if cell.lower() in _UNKNOWN else cell


def open_cases(path: Path) -> Datalist:
    """A CSV datalist, or the folder of Fitzpatrick17k, ISIC, the Interactive Atlas (both views), ASAN or MClass as published.

    Raises:
        InputError: none of these, or one with something missing.
    """
    # The last resort says what a folder should have held.
    read: Reader = reader_of(path) or (isic.index if path.is_dir() else Datalist.read)
    return read(path)


def reader_of(path: Path) -> Reader | None:
    """What reads a datalist or a folder as published; None for another file or folder, such as one of photographs."""
    if not path.is_dir():
        if path.suffix.lower() not in (".csv", ".json"):
            return None
        columns = _columns(path)
        return fitzpatrick17k.index if "md5hash" in columns and "image" not in columns else Datalist.read
    if (path / "dataset.json").is_file():
        return Datalist.read

    def holds(*patterns: str) -> bool:
        return any(next(path.glob(pattern), None) is not None for pattern in patterns)

    if holds("fitzpatrick17k.csv"):
        return fitzpatrick17k.index
    if holds("meta/meta.csv", "*/meta/meta.csv", "atlas_processed.csv"):
        return _atlas
    if holds(
        "BenchmarkDermoscopic", "BenchmarkClinical", "MClass[CD]/Benchmark*", "MClass[CD].csv", "csv/MClass[CD].csv"
    ):
        return mclass.index
    if holds("asan.csv", "malignantmelanoma", "*/malignantmelanoma"):
        return asan.index
    # Its tables may be called train.csv, as may others; MEL is a column of 2019's.
    tables = (_columns(path / name) for name in isic.TABLES)
    return isic.index if any(columns & {"image_name", "image_id", "MEL"} for columns in tables) else None


def _columns(path: Path) -> set[str]:
    """The header of a CSV file; empty where it cannot be read, of which its reader will complain."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
            return {cell.strip() for cell in next(csv.reader(file), [])}
    except (OSError, csv.Error):
        return set()


def _atlas(path: Path) -> Datalist:
    derm, clinic = atlas.index(path, "derm"), atlas.index(path, "clinic")
    # One case has a picture of each view: the subject stays the same, and both are test pictures.
    return Datalist((*derm, *clinic), derm.source)
