"""PE-CAD: candidates of a detector of pulmonary emboli, in patches that are turned along their vessel. Private.

Tajbakhsh N., Gotway M. B., Liang J., "Computer-aided pulmonary embolism detection using a novel vessel-aligned multi-planar image
representation and convolutional neural networks", MICCAI 2015, doi:10.1007/978-3-319-24571-3_8. The owners give the data to
nobody, so that the task ECC of united-ssl cannot be reproduced; this reader is for those who have data of the same kind.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from dart_core.data.catalog._pictures import BINARY, check_root, filled, pick, present
from dart_core.data.catalog._tables import each_row
from dart_core.data.datalist import Datalist, Row
from dart_core.errors import InputError, SettingError

FOLDS = 3
VAL_SHARE = 4 / 78
"""Of the patients who are not for test; the paper's parts have 74, 4 and 39 (united-ssl 5)."""

ORIGIN = (
    "PE-CAD (Tajbakhsh et al., MICCAI 2015) is private and nobody gives it; of data of your own, write candidates.csv with the"
    " columns patient, cube (a NIfTI or MetaImage file) and label (1: embolus, 0: none)"
)

_TABLE = "candidates.csv"
_COLUMNS = ("patient", "cube", "label")


def index(root: str | os.PathLike[str], fold: int = 0, seed: int = 0) -> Datalist:
    """List the candidates whose cubes are there, in the order of the table.

    Layout: candidates.csv with the columns patient, cube and label; cubes are paths relative to it.

    Args:
        root: the folder that holds candidates.csv.
        fold: which third of the patients is for test, 0 to 2; a twentieth of the others is for validation.
        seed: of the draw of the folds.

    Returns:
        rows with image (the cube), subject (the patient), site "pe-cad", split and labels: label ("1" or "0").

    Raises:
        InputError: another folder, a table that does not fit, fewer than five patients, no cube.
        SettingError: another fold.
    """
    if fold not in range(FOLDS):
        raise SettingError(f"there is no fold {fold}", remedy="choose 0, 1 or 2")
    folder = Path(root)
    check_root(folder, "PE-CAD", ORIGIN)
    table = folder / _TABLE
    if not table.is_file():
        raise InputError(f"holds no {_TABLE}", where=folder, remedy=ORIGIN)
    found: list[tuple[int, str, str, str]] = []
    for line, cells in each_row(table, _COLUMNS):
        patient, cube = (filled(table, line, cells, column) for column in _COLUMNS[:2])
        found.append((line, patient, cube, pick(table, line, cells, "label", BINARY)))
    split_of = _splits({patient for _, patient, _, _ in found}, table, fold, seed)
    rows = (
        Row(
            folder / cube,
            subject=patient,
            site="pe-cad",
            split=split_of[patient],
            labels={"label": label},
            line=line,
            source=table,
        )
        for line, patient, cube, label in found
    )
    return present(rows, table, ORIGIN)


def _splits(patients: set[str], table: Path, fold: int, seed: int) -> dict[str, str]:
    if len(patients) < 5:
        raise InputError(
            f"the table names {len(patients)} patients",
            where=table,
            remedy="three folds and validation need at least 5",
        )
    order = np.random.default_rng(seed).permutation(sorted(patients)).tolist()
    split_of = {patient: "test" if place % FOLDS == fold else "train" for place, patient in enumerate(order)}
    others = [patient for patient in order if split_of[patient] == "train"]
    return split_of | dict.fromkeys(others[: max(1, round(VAL_SHARE * len(others)))], "val")
