"""Camelyon17-WILDS: 455,954 patches of 96 pixels from the fifty annotated slides of CAMELYON17.

Koh P. W. et al., "WILDS: a benchmark of in-the-wild distribution shifts", ICML 2021; slides: Bandi P. et al., "From detection
of individual metastases to classification of lymph node status at the patient level: the CAMELYON17 challenge", IEEE
Transactions on Medical Imaging 38:550-560, 2019. Public domain (CC0).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dart_core.data.catalog._tables import read_rows
from dart_core.data.catalog.camelyon17 import CENTRES
from dart_core.data.datalist import Datalist, Row
from dart_core.errors import InputError

ORIGIN = "the owners give it at https://wilds.stanford.edu/datasets/ (camelyon17_v1.0); cite Koh et al., ICML 2021"

TRAIN_CENTRE = 3
"""Centre whose slides are for training and validation (stain-aglr 5); WILDS itself trains on 0, 3 and 4."""

VAL_SHARE = 0.2
"""Share of that centre's slides that validates."""

_COLUMNS = ("patient", "node", "x_coord", "y_coord", "tumor", "slide", "center")


def index(root: str | os.PathLike[str], centres: Sequence[str] = CENTRES, seed: int = 0) -> Datalist:
    """List the patches that are there, in the order of the table.

    Layout: camelyon17_v1.0/ with metadata.csv and
    patches/patient_PPP_node_N/patch_patient_PPP_node_N_x_X_y_Y.png. The official split mixes centres and is not used: the
    training centre is split by slide, all others are for test (stain-aglr 5).

    Args:
        root: the folder camelyon17_v1.0, or the one that holds it.
        centres: names of the centres 0 to 4, which become the sites.
        seed: of the choice of validation slides.

    Returns:
        rows with image, subject (patient_004), site, split and labels: label (1: tumour in the central 32 x 32 pixels, else
        0), slide (patient_004_node_4), x and y (top left corner of that central square, in pixels of level 2).

    Raises:
        InputError: another folder, a table that does not fit, no patch.
    """
    folder = _folder(Path(root))
    if len(centres) != len(CENTRES):
        raise InputError(f"{len(centres)} names for {len(CENTRES)} centres", remedy="name each of them")
    there = _patches(folder)
    found: list[tuple[int, dict[str, str], str, int]] = []
    table = folder / "metadata.csv"
    for line, entry in read_rows(table, _COLUMNS):
        slide, name = _names(entry)
        if name in there.get(slide, ()):
            found.append((line, entry, slide, _centre(table, line, entry)))
    if not found:
        raise InputError(
            "none of the patches in the table is there", where=table, remedy=f"unpack patches/ beside it; {ORIGIN}"
        )
    validation = _validation_patients(
        {entry["patient"] for _, entry, _, centre in found if centre == TRAIN_CENTRE}, seed
    )
    rows = []
    for line, entry, slide, centre in found:
        patient = f"patient_{entry['patient'].zfill(3)}"
        part = "val" if entry["patient"] in validation else "train"
        rows.append(
            Row(
                folder / "patches" / slide / _names(entry)[1],
                subject=patient,
                site=centres[centre],
                split=part if centre == TRAIN_CENTRE else "test",
                labels={
                    "label": _label(table, line, entry),
                    "slide": slide,
                    "x": entry["x_coord"],
                    "y": entry["y_coord"],
                },
                line=line,
                source=table,
            )
        )
    return Datalist(tuple(rows), table)


def report_missing(root: str | os.PathLike[str]) -> list[str]:
    """Say how many patches of the table are missing, one line per slide; empty when all are there.

    Raises:
        InputError: another folder, or a table that does not fit.
    """
    folder = _folder(Path(root))
    there = _patches(folder)
    counts: dict[str, list[int]] = {}
    for _, entry in read_rows(folder / "metadata.csv", _COLUMNS):
        slide, name = _names(entry)
        count = counts.setdefault(slide, [0, 0])
        count[0] += name not in there.get(slide, ())
        count[1] += 1
    lines = [
        f"{slide}: {missing} of {all_} patches are missing" for slide, (missing, all_) in counts.items() if missing
    ]
    return [*lines, f"Camelyon17-WILDS: {ORIGIN}"] if lines else []


def _folder(root: Path) -> Path:
    if not root.is_dir():
        raise InputError("the folder of Camelyon17-WILDS is missing", where=root, remedy=f"check the path; {ORIGIN}")
    for folder in (root, root / "camelyon17_v1.0"):
        if (folder / "metadata.csv").is_file():
            return folder
    raise InputError(
        "this is not the folder of Camelyon17-WILDS (no metadata.csv)",
        where=root,
        remedy=f"give the folder camelyon17_v1.0; {ORIGIN}",
    )


def _patches(folder: Path) -> dict[str, set[str]]:
    """Slide -> names of the patches that are there."""
    if not (folder / "patches").is_dir():
        return {}
    return {slide.name: set(os.listdir(slide)) for slide in sorted((folder / "patches").iterdir()) if slide.is_dir()}


def _names(entry: dict[str, str]) -> tuple[str, str]:
    # A table that went through a spreadsheet has lost the leading zeros of the patients.
    slide = f"patient_{entry['patient'].zfill(3)}_node_{entry['node']}"
    return slide, f"patch_{slide}_x_{entry['x_coord']}_y_{entry['y_coord']}.png"


def _centre(table: Path, line: int, entry: dict[str, str]) -> int:
    if entry["center"] not in map(str, range(len(CENTRES))):
        raise InputError(
            f"unknown centre {entry['center']!r}",
            where=f"{table}, row {line}, column center",
            remedy=f"centres are numbered from 0 to {len(CENTRES) - 1}",
        )
    return int(entry["center"])


def _label(table: Path, line: int, entry: dict[str, str]) -> str:
    if entry["tumor"] not in ("0", "1"):
        raise InputError(
            f"{entry['tumor']!r} is no label", where=f"{table}, row {line}, column tumor", remedy="give 0 or 1"
        )
    return entry["tumor"]


def _validation_patients(patients: set[str], seed: int) -> set[str]:
    """A fifth of the patients, at least one, and never all; in this centre each has one slide."""
    if len(patients) < 2:
        return set()
    count = max(1, round(VAL_SHARE * len(patients)))
    return set(np.random.default_rng(seed).permutation(sorted(patients))[:count].tolist())
