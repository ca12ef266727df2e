"""VinDr-CXR: 18,000 frontal chest radiographs from two hospitals in Hanoi, labelled by radiologists.

Nguyen H. Q. et al., "VinDr-CXR: an open dataset of chest X-rays with radiologist's annotations", Scientific Data 9:429, 2022,
doi:10.1038/s41597-022-01498-w. For registered users who sign its data use agreement; nothing here downloads it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dart_core.data.catalog._pictures import BINARY, check_root, files_by_id, filled, find_first, missing, pick, present
from dart_core.data.catalog._splits import draw_splits
from dart_core.data.catalog._tables import read_rows
from dart_core.data.datalist import Datalist, Row
from dart_core.errors import InputError, SettingError

LABELS = ("Pleural effusion", "Lung tumor", "Pneumonia", "Tuberculosis", "Other diseases", "No finding")
"""The six labels of the benchmark (benchmark-transformers 5), in its order."""

FINDINGS = (
    "Aortic enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Clavicle fracture",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Enlarged PA",
    "ILD",
    "Infiltration",
    "Lung Opacity",
    "Lung cavity",
    "Lung cyst",
    "Mediastinal shift",
    "Nodule/Mass",
    "Pleural effusion",
    "Pleural thickening",
    "Pneumothorax",
    "Pulmonary fibrosis",
    "Rib fracture",
    "Other lesion",
    "COPD",
    "Lung tumor",
    "Pneumonia",
    "Tuberculosis",
    "Other diseases",
    "No finding",
)
"""All labels of the owners' tables: 22 of places in the picture, then six of the whole picture."""

VAL_SHARE = 0.1
"""Of the training pictures; the owners name none for validation."""

ORIGIN = (
    "registered users who sign the data use agreement (PhysioNet Credentialed Health Data License) download it from"
    " https://physionet.org/content/vindr-cxr/1.0.0/; cite Nguyen et al., Scientific Data 9:429, 2022"
)

_SPLITS = ("train", "test")
_TABLE = "image_labels_{}.csv"
FOLDERS = ("", "1.0.0", "vindr-cxr/1.0.0", "vindr-cxr-1.0.0", "vindr-cxr")
"""Where annotations/ is, below the folder that a user gives."""
_PLACES = ("{}_png", "{}_jpeg", "{}_jpg", "{}")
# The owners' two tables do not call this column alike.
_OTHER_NAMES = {"Other diseases": "Other disease"}


@dataclass
class _Picture:
    table: Path
    line: int
    split: str
    positive: dict[str, bool] = field(default_factory=dict)


def index(
    root: str | os.PathLike[str], labels: Sequence[str] = LABELS, val_share: float = VAL_SHARE, seed: int = 0
) -> Datalist:
    """List the pictures that are there, in the order of the tables.

    Layout: train/<id>.dicom, test/<id>.dicom, annotations/image_labels_train.csv and annotations/image_labels_test.csv.
    Copies as PNG or JPEG are taken instead of the DICOM files where they are there, in the same folder or in train_png,
    train_jpeg, ... Every training picture was read by three radiologists: a label is 1 if at least one of them gave it, so
    that a picture can be "No finding" and ill at once. The test table holds the consensus.

    Args:
        root: the folder that holds annotations/, or one that holds vindr-cxr/1.0.0.
        labels: the label columns, some of FINDINGS.
        val_share: share of the training pictures for validation, drawn with `seed`.
        seed: of that draw.

    Returns:
        rows with image, subject (the picture's id; patients are not told), site "vindr-cxr", split and labels, "0" or "1".

    Raises:
        InputError: another folder, a table that does not fit, no picture.
        SettingError: an unknown label, or a share that leaves nothing to train on.
    """
    folder = _folder(Path(root))
    return present(_rows(folder, labels, val_share, seed), folder, ORIGIN)


def report_missing(root: str | os.PathLike[str]) -> list[str]:
    """Say how many pictures of each table are missing, and where they come from; empty when all are there.

    Raises:
        InputError: another folder, or a table that does not fit.
    """
    folder = _folder(Path(root))
    rows = list(_rows(folder, LABELS, 0.0, 0))
    lines = []
    for split in _SPLITS:
        if not (folder / "annotations" / _TABLE.format(split)).is_file():
            lines.append(f"annotations/{_TABLE.format(split)} is missing")
        lines += missing([row for row in rows if row.split == split], _TABLE.format(split))
    return [*lines, f"VinDr-CXR: {ORIGIN}"] if lines else []


def _folder(root: Path) -> Path:
    check_root(root, "VinDr-CXR", ORIGIN)
    tables = [f"{name}/annotations/{_TABLE.format(split)}" for name in FOLDERS for split in _SPLITS]
    table = find_first(root, [name.lstrip("/") for name in tables])
    if table is None:
        raise InputError(
            "this is not a VinDr-CXR folder (no annotations/image_labels_train.csv)",
            where=root,
            remedy=f"give the folder that holds annotations/, train/ and test/; {ORIGIN}",
        )
    return table.parent.parent


def _rows(folder: Path, labels: Sequence[str], val_share: float, seed: int) -> Iterator[Row]:
    for label in labels:
        if label not in FINDINGS:
            raise SettingError(f"VinDr-CXR has no label {label!r}", remedy=f"choose from {', '.join(FINDINGS)}")
    pictures: dict[str, _Picture] = {}
    for split in _SPLITS:
        _collect(folder / "annotations" / _TABLE.format(split), split, labels, pictures)
    training = {name: "" for name, picture in pictures.items() if picture.split == "train"}
    split_of = draw_splits(training, 0.0, val_share, seed)
    files = {split: files_by_id(folder / place.format(split) for place in _PLACES) for split in _SPLITS}
    for name, picture in pictures.items():
        yield Row(
            files[picture.split].get(name, folder / picture.split / f"{name}.dicom"),
            subject=name,
            site="vindr-cxr",
            split=split_of.get(name, picture.split),
            labels={label: str(int(picture.positive[label])) for label in labels},
            line=picture.line,
            source=picture.table,
        )


def _collect(table: Path, split: str, labels: Sequence[str], pictures: dict[str, _Picture]) -> None:
    if not table.is_file():
        return
    rows = read_rows(table, ("image_id",))
    names = _columns(table, labels, rows[0][1] if rows else dict.fromkeys(labels, ""))
    for line, cells in rows:
        name = filled(table, line, cells, "image_id")
        picture = pictures.setdefault(name, _Picture(table, line, split))
        if picture.split != split:
            raise InputError(
                f"{name} is in the table of {picture.split} too", where=f"{table}, row {line}", remedy="keep it in one"
            )
        for label, column in names.items():
            given = pick(table, line, cells, column, BINARY) == "1"
            picture.positive[label] = given or picture.positive.get(label, False)


def _columns(table: Path, labels: Sequence[str], cells: dict[str, str]) -> dict[str, str]:
    """Label -> the table's column."""
    names = {}
    for label in labels:
        column = next((name for name in (label, _OTHER_NAMES.get(label, label)) if name in cells), None)
        if column is None:
            raise InputError(f"no column {label!r}", where=table, remedy="copy the owners' table again")
        names[label] = column
    return names
