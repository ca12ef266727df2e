"""LUNA16: 888 CTs of the chest, their nodules, and candidates to tell nodules from what looks like them.

Setio A. A. A. et al., "Validation, comparison, and combination of algorithms for automatic detection of pulmonary nodules in
computed tomography images: the LUNA16 challenge", Medical Image Analysis 42:1-13, 2017, doi:10.1016/j.media.2017.06.015. The
scans are those of LIDC-IDRI with slices of at most 2.5 mm.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dart_core.data.catalog._pictures import BINARY, check_root, filled, find_first, pick
from dart_core.data.catalog._tables import each_row
from dart_core.data.datalist import Datalist, Row
from dart_core.errors import InputError

COUNTS = (89, 89, 89, 89, 89, 89, 89, 89, 88, 88)
"""Scans of each subset."""

SPLITS = {"train": (0, 1, 2, 3, 4), "val": (5, 6), "test": (7, 8, 9)}
"""Subsets of each split (united-ssl 5)."""

ORIGIN = (
    "the owners give it under CC BY 3.0 at https://luna16.grand-challenge.org/Download/ (subset0.zip to subset9.zip,"
    " annotations.csv, candidates_V2.csv); cite Setio et al., Medical Image Analysis 42:1-13, 2017, and Armato et al., Medical"
    " Physics 38:915-931, 2011"
)

_SUBSET = re.compile(r"subset(\d)")
_CANDIDATES = ("candidates_V2.csv", "candidates.csv")
_PLACE = ("coordX", "coordY", "coordZ")


class Nodules(NamedTuple):
    """The nodules of one scan."""

    places: NDArray[np.float64]
    """(n, 3) centres in mm to the right, front and top, as `Volume.affine` counts (the table counts to the left and back)."""
    diameters: NDArray[np.float64]
    """(n,) in mm."""


class Candidates(NamedTuple):
    """What detectors found in one scan."""

    places: NDArray[np.float64]
    """(n, 3) in mm to the right, front and top, as `Volume.affine` counts."""
    labels: NDArray[np.int64]
    """(n,) 1 for a nodule, else 0."""


def index(root: str | os.PathLike[str]) -> Datalist:
    """List the scans that are there, subset by subset.

    Layout: subset0/<seriesuid>.mhd and .raw to subset9/ (also subset0/subset0/, as some unpack them), beside annotations.csv
    and candidates_V2.csv.

    Returns:
        rows with image (.mhd), subject (the series; patients are not told), site "luna16", split (SPLITS) and labels: subset.

    Raises:
        InputError: another folder, a scan that is there twice, no scan whose voxels are there.
    """
    folder = Path(root)
    rows = []
    for series, (path, subset) in _scans(folder).items():
        if not _has_voxels(path):
            continue
        split = next(name for name, subsets in SPLITS.items() if subset in subsets)
        rows.append(
            Row(path, subject=series, site="luna16", split=split, labels={"subset": str(subset)}, source=folder)
        )
    if not rows:
        raise InputError(
            "there are .mhd files, but none of the .raw files with their voxels",
            where=folder,
            remedy=f"unpack the archives whole; {ORIGIN}",
        )
    return Datalist(tuple(rows), folder)


def report_missing(root: str | os.PathLike[str]) -> list[str]:
    """Say how many scans of each subset, and which tables, are missing; empty when all are there.

    Raises:
        InputError: another folder.
    """
    folder = Path(root)
    there = [subset for path, subset in _scans(folder).values() if _has_voxels(path)]
    lines = []
    for subset, count in enumerate(COUNTS):
        missing = count - there.count(subset)
        if missing > 0:
            lines.append(f"subset{subset}: {missing} of {count} scans are missing")
    half = [path for path, _ in _scans(folder).values() if not _has_voxels(path)]
    if half:
        lines.append(f"the voxels (.raw) of {len(half)} scans are missing, the first is {half[0].stem}")
    tables = [
        name
        for name in ("annotations.csv", "candidates_V2.csv")
        if find_first(folder, (name, f"CSVFILES/{name}")) is None
    ]
    lines += [f"{name} is missing" for name in tables]
    return [*lines, f"LUNA16: {ORIGIN}"] if lines else []


def read_nodules(root: str | os.PathLike[str]) -> dict[str, Nodules]:
    """The 1,186 nodules, by series; a scan without any is not in it.

    Raises:
        InputError: no annotations.csv, or a cell in it that does not fit.
    """
    table = _table(Path(root), ("annotations.csv",))
    places: dict[str, list[list[float]]] = {}
    diameters: dict[str, list[float]] = {}
    for line, cells in each_row(table, ("seriesuid", *_PLACE, "diameter_mm")):
        series = filled(table, line, cells, "seriesuid")
        places.setdefault(series, []).append(_place(table, line, cells))
        diameter = _number(table, line, cells, "diameter_mm")
        if diameter <= 0:
            raise InputError(
                f"the diameter is {diameter:g} mm",
                where=f"{table}, row {line}, column diameter_mm",
                remedy="correct it",
            )
        diameters.setdefault(series, []).append(diameter)
    return {
        series: Nodules(np.asarray(found, dtype=np.float64), np.asarray(diameters[series], dtype=np.float64))
        for series, found in places.items()
    }


def read_candidates(root: str | os.PathLike[str]) -> dict[str, Candidates]:
    """The candidates, by series: of candidates_V2.csv (754,975), or of candidates.csv (551,065) where that is all there is.

    Raises:
        InputError: neither table, or a cell that does not fit.
    """
    table = _table(Path(root), _CANDIDATES)
    places: dict[str, list[list[float]]] = {}
    labels: dict[str, list[int]] = {}
    for line, cells in each_row(table, ("seriesuid", *_PLACE, "class")):
        series = filled(table, line, cells, "seriesuid")
        places.setdefault(series, []).append(_place(table, line, cells))
        labels.setdefault(series, []).append(int(pick(table, line, cells, "class", BINARY)))
    return {
        series: Candidates(np.asarray(found, dtype=np.float64), np.asarray(labels[series], dtype=np.int64))
        for series, found in places.items()
    }


def _scans(root: Path) -> dict[str, tuple[Path, int]]:
    """Series -> header file and subset."""
    check_root(root, "LUNA16", ORIGIN)
    found: dict[str, tuple[Path, int]] = {}
    for folder in sorted(root.glob("subset*")):
        match = _SUBSET.fullmatch(folder.name)
        if match is None or not folder.is_dir():
            continue
        for path in sorted([*folder.glob("*.mhd"), *folder.glob(f"{folder.name}/*.mhd")]):
            if path.stem in found:
                raise InputError(
                    f"{path.stem} is there twice, also as {found[path.stem][0]}",
                    where=path,
                    remedy="remove one of the two",
                )
            found[path.stem] = path, int(match[1])
    if not found:
        raise InputError(
            "this is not the folder of LUNA16 (no subset0/<seriesuid>.mhd)",
            where=root,
            remedy=f"give the folder that holds subset0 to subset9; {ORIGIN}",
        )
    return found


def _has_voxels(path: Path) -> bool:
    return any(path.with_suffix(ending).is_file() for ending in (".raw", ".zraw"))


def _table(root: Path, names: tuple[str, ...]) -> Path:
    check_root(root, "LUNA16", ORIGIN)
    table = find_first(root, [f"{place}{name}" for name in names for place in ("", "CSVFILES/")])
    if table is None:
        raise InputError(f"{names[0]} is missing", where=root, remedy=f"put it beside subset0; {ORIGIN}")
    return table


def _place(table: Path, line: int, cells: dict[str, str]) -> list[float]:
    x, y, z = (_number(table, line, cells, column) for column in _PLACE)
    return [-x, -y, z]


def _number(table: Path, line: int, cells: dict[str, str], column: str) -> float:
    try:
        value = float(cells[column])
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise InputError(
            f"{cells[column]!r} is no number" if cells[column] else "the cell is empty",
            where=f"{table}, row {line}, column {column}",
            remedy="copy the owners' table again",
        )
    return value
