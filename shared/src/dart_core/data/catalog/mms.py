"""M&Ms: short-axis cine MR of 345 hearts from scanners of four vendors, with three labels at two phases.

Campello V. M. et al., "Multi-centre, multi-vendor and multi-disease cardiac segmentation: the M&Ms challenge", IEEE
Transactions on Medical Imaging 40:3543-3554, 2021, doi:10.1109/TMI.2021.3090082. The owners give it to registered users;
nothing here downloads it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from dart_core.data.catalog._tables import read_rows
from dart_core.data.datalist import Datalist, Row
from dart_core.errors import InputError

VENDORS = {"A": "Siemens", "B": "Philips", "C": "GE", "D": "Canon"}
"""The four vendors; their letters are the sites."""

LABELS = {1: "LV", 2: "MYO", 3: "RV"}
"""Left ventricle, its muscle, right ventricle (ACDC has 1 and 3 the other way round)."""

PHASES = ("ED", "ES")
"""End-diastole and end-systole: the frames with labels, and the columns that number them (from 0)."""

PARTS = {"Training/Labeled": "train", "Validation": "val", "Testing": "test"}
"""Folders with labels, and their splits (adagrad-unet 5)."""

ORIGIN = "registered users download it (OpenDataset) from https://www.ub.edu/mnms/; cite Campello et al., IEEE TMI 40:3543, 2021"

_UNLABELLED = "Training/Unlabeled"
# Of the owners' releases of the table the youngest is taken: names begin with the date, as in
# 211230_M&Ms_Dataset_information_diagnosis_opendataset.csv.
_TABLE = "*M&Ms*nformation*opendataset.csv"
_CENTRE = ("Centre", "Center")
_ENDINGS = (".nii.gz", ".nii")


def index(root: str | os.PathLike[str]) -> Datalist:
    """List the labelled frames that are there: two rows per heart, in ascending order of its code.

    Layout: OpenDataset/ with Training/Labeled/A0S9V9/A0S9V9_sa.nii.gz (all frames, 4-D) and A0S9V9_sa_gt.nii.gz,
    Validation/, Testing/, and the owners' table in it or beside it. The hearts in Training/Unlabeled have no labels and
    are left out.

    Args:
        root: the folder OpenDataset, or the one that holds it.

    Returns:
        rows with image and mask (both 4-D), subject (the code), site (the vendor's letter), split (PARTS) and labels:
        frame (place in the files, from 0), phase (ED or ES), vendor (name) and centre.

    Raises:
        InputError: another folder, a table that does not fit, a heart without labels or that the table lacks.
    """
    folder, table = _find(Path(root))
    entries = _entries(table)
    rows = []
    for part, split in PARTS.items():
        for heart in _hearts(folder / part):
            code = heart.name
            if code not in entries:
                raise InputError(f"the table {table.name} lacks {code}", where=heart, remedy="get the youngest table")
            line, entry = entries[code]
            image, mask = _file(heart, f"{code}_sa"), _file(heart, f"{code}_sa_gt")
            for phase in PHASES:
                labels = {
                    "frame": _frame(table, line, entry, phase),
                    "phase": phase,
                    "vendor": VENDORS[entry["Vendor"]],
                    "centre": next((entry[name] for name in _CENTRE if entry.get(name)), ""),
                }
                rows.append(
                    Row(
                        image,
                        mask,
                        subject=code,
                        site=entry["Vendor"],
                        split=split,
                        labels={name: value for name, value in labels.items() if value},
                        line=line,
                        source=table,
                    )
                )
    if not rows:
        raise InputError(
            f"no heart with labels in {', '.join(PARTS)}", where=folder, remedy=f"unpack the archives there; {ORIGIN}"
        )
    rows.sort(key=lambda row: (row.subject, PHASES.index(row.labels["phase"])))
    _check_unique(rows)
    return Datalist(tuple(rows), table)


def report_missing(root: str | os.PathLike[str]) -> list[str]:
    """Say which hearts of the table are missing, one line per vendor, and where they come from; empty when none is.

    Raises:
        InputError: another folder, or a table that does not fit.
    """
    folder, table = _find(Path(root))
    there = {heart.name for part in (*PARTS, _UNLABELLED) for heart in _hearts(folder / part)}
    lines = []
    entries = _entries(table)
    for vendor, name in VENDORS.items():
        listed = sorted(code for code, (_, entry) in entries.items() if entry["Vendor"] == vendor)
        missing = [code for code in listed if code not in there]
        if missing:
            lines.append(f"{vendor} ({name}): {len(missing)} of {len(listed)} hearts are missing: {', '.join(missing)}")
    return [*lines, f"M&Ms: {ORIGIN}"] if lines else []


def _find(root: Path) -> tuple[Path, Path]:
    """Give the folder that holds Training/, Validation/, Testing/, and the table."""
    if not root.is_dir():
        raise InputError("the folder of M&Ms is missing", where=root, remedy=f"check the path; {ORIGIN}")
    folder = root / "OpenDataset" if (root / "OpenDataset").is_dir() else root
    if not any((folder / part).is_dir() for part in PARTS):
        raise InputError(
            f"this is not the folder of M&Ms (none of {', '.join(PARTS)})",
            where=root,
            remedy=f"give the folder OpenDataset; {ORIGIN}",
        )
    tables = [path for place in {folder, root, folder.parent} for path in place.glob(_TABLE)]
    if not tables:
        raise InputError(
            "the owners' table (211230_M&Ms_Dataset_information_diagnosis_opendataset.csv) is missing",
            where=root,
            remedy=f"put it there; {ORIGIN}",
        )
    return folder, max(tables, key=lambda path: path.name)


def _entries(table: Path) -> dict[str, tuple[int, dict[str, str]]]:
    """Code -> line and cells of the table."""
    entries = {}
    for line, entry in read_rows(table, ("External code", "Vendor", *PHASES)):
        code, vendor = entry["External code"], entry["Vendor"]
        if not code:
            raise InputError(
                "the cell is empty", where=f"{table}, row {line}, column External code", remedy="fill it in"
            )
        if vendor not in VENDORS:
            raise InputError(
                f"unknown vendor {vendor!r}",
                where=f"{table}, row {line}, column Vendor",
                remedy=f"the vendors are {', '.join(VENDORS)}",
            )
        entries[code] = line, entry
    return entries


def _hearts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _file(folder: Path, stem: str) -> Path:
    for ending in _ENDINGS:
        if (folder / f"{stem}{ending}").is_file():
            return folder / f"{stem}{ending}"
    raise InputError(f"no {stem}.nii.gz in this folder", where=folder, remedy="add the file or move the folder away")


def _frame(table: Path, line: int, entry: Mapping[str, str], phase: str) -> str:
    text = entry[phase]
    try:
        frame = float(text)
        if frame < 0 or frame != int(frame):
            raise ValueError
    except ValueError:
        raise InputError(
            f"{text!r} is no number of a frame",
            where=f"{table}, row {line}, column {phase}",
            remedy="frames are numbered from 0",
        ) from None
    return str(int(frame))


def _check_unique(rows: list[Row]) -> None:
    first: dict[tuple[str, str], Row] = {}
    for row in rows:
        earlier = first.setdefault((row.subject, row.labels["phase"]), row)
        if earlier is not row:
            raise InputError(
                f"{row.subject} is in two folders, also in {earlier.image.parent}",
                where=row.image.parent,
                remedy="remove one of them",
            )
