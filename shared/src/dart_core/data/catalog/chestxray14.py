"""ChestX-ray14: 112,120 frontal chest radiographs of 30,805 patients with 14 findings mined from reports.

Wang X. et al., "ChestX-ray8: hospital-scale chest X-ray database and benchmarks on weakly-supervised classification and
localization of common thorax diseases", CVPR 2017, doi:10.1109/CVPR.2017.369. From the NIH Clinical Center, which asks to be
acknowledged.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from dart_core.data.catalog._pictures import check_root
from dart_core.data.catalog._splits import Lists, read_lists
from dart_core.data.catalog._tables import read_rows
from dart_core.data.datalist import Datalist, Row
from dart_core.errors import InputError

LABELS = (
    "Cardiomegaly",
    "Emphysema",
    "Effusion",
    "Hernia",
    "Infiltration",
    "Mass",
    "Nodule",
    "Atelectasis",
    "Pneumothorax",
    "Pleural_Thickening",
    "Pneumonia",
    "Fibrosis",
    "Edema",
    "Consolidation",
)
"""The 14 findings, in the order of mmtl-octl's specification (5.3)."""

LIST_ORDER = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
"""The same findings in the order of the owners' paper and of popar's and benchmark-transformers' lists."""

ORIGIN = (
    "the NIH Clinical Center gives it at https://nihcc.app.box.com/v/ChestXray-NIHCC (12 archives of pictures, the table"
    " Data_Entry_2017_v2020.csv, test_list.txt); cite Wang et al., CVPR 2017"
)

_TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
_COLUMNS = ("Image Index", "Finding Labels", "Patient ID")


def index(root: str | os.PathLike[str], lists: Lists | None = None, exclude: Collection[str] = frozenset()) -> Datalist:
    """List the pictures that are there, in the order of the table.

    Layout: Data_Entry_2017_v2020.csv (or Data_Entry_2017.csv) beside images/, or beside images_001/images/ to
    images_012/images/ as the archives unpack.

    Args:
        root: the folder that holds the table.
        lists: lists of authors that name validation pictures too: split -> text file. Pictures in none of them are left out.
            None: the owners' test_list.txt decides.
        exclude: file names to leave out, such as the pictures of RSNA Pneumonia that a later test is to hold
            (`rsna_pneumonia.read_mapping`).

    Returns:
        rows with image, subject (the patient's number), site "chestxray14" and labels: one of LABELS each "0" or "1" (no
        finding: all "0"), and view (PA or AP) where the table gives it. Without `lists`, and where the owners'
        test_list.txt lies beside the table, the split is test for its pictures and train for all others.

    Raises:
        InputError: another folder, a table that does not fit, no picture, lists that name none.
    """
    table = _table(Path(root))
    pictures = _pictures(table.parent)
    left_out = set(exclude)
    rows = tuple(row for row in _rows(table, pictures) if row.image.name in pictures and row.image.name not in left_out)
    if lists is not None and rows:
        split_of = read_lists(lists)
        rows = tuple(replace(row, split=split_of[row.image.stem]) for row in rows if row.image.stem in split_of)
        if not rows:
            raise InputError("none of its pictures is in the lists", where=table, remedy="give lists of this data set")
    if not rows:
        raise InputError(
            "none of the pictures in the table is there", where=table, remedy=f"unpack the archives beside it; {ORIGIN}"
        )
    return Datalist(rows, table)


def report_missing(root: str | os.PathLike[str]) -> list[str]:
    """Say how many pictures of the table are missing, and where they come from; empty when all are there.

    Raises:
        InputError: another folder, or a table that does not fit.
    """
    table = _table(Path(root))
    pictures = _pictures(table.parent)
    names = [row.image.name for row in _rows(table, pictures)]
    missing = [name for name in names if name not in pictures]
    lines = []
    if missing:
        lines.append(f"{len(missing)} of {len(names)} pictures are missing, the first is {missing[0]}")
    if not (table.parent / "test_list.txt").is_file():
        lines.append("test_list.txt is missing: there is no official split")
    return [*lines, f"ChestX-ray14: {ORIGIN}"] if lines else []


def _table(root: Path) -> Path:
    check_root(root, "ChestX-ray14", ORIGIN)
    for name in _TABLES:
        if (root / name).is_file():
            return root / name
    raise InputError(
        f"this is not a ChestX-ray14 folder (no {_TABLES[0]})",
        where=root,
        remedy=f"give the folder that holds it; {ORIGIN}",
    )


def _pictures(folder: Path) -> dict[str, Path]:
    """Name -> file of every picture in the folders of pictures."""
    found: dict[str, Path] = {}
    for images in sorted(folder.glob("images*")):
        for place in (images, images / "images"):
            if place.is_dir():
                with os.scandir(place) as entries:
                    found.update({entry.name: Path(entry.path) for entry in entries if entry.name.endswith(".png")})
    return found


def _rows(table: Path, pictures: dict[str, Path]) -> Iterator[Row]:
    """All rows of the table; a picture that is not there gets the path where it is expected."""
    test = _test_list(table.parent / "test_list.txt")
    for line, entry in read_rows(table, _COLUMNS):
        for column in _COLUMNS:
            if not entry[column]:
                raise InputError(
                    "the cell is empty", where=f"{table}, row {line}, column {column}", remedy="fill it in"
                )
        name = entry["Image Index"]
        findings = [part.strip() for part in entry["Finding Labels"].split("|")]
        for finding in findings:
            if finding not in (*LABELS, "No Finding"):
                raise InputError(
                    f"unknown finding {finding!r}",
                    where=f"{table}, row {line}, column Finding Labels",
                    remedy=f"the findings are {', '.join(LABELS)}",
                )
        labels = {label: str(int(label in findings)) for label in LABELS}
        if entry.get("View Position"):
            labels["view"] = entry["View Position"]
        split = "" if test is None else "test" if name in test else "train"
        yield Row(
            pictures.get(name, table.parent / "images" / name),
            subject=entry["Patient ID"],
            site="chestxray14",
            split=split,
            labels=labels,
            line=line,
            source=table,
        )


def _test_list(path: Path) -> set[str] | None:
    if not path.is_file():
        return None
    try:
        return set(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})", where=path, remedy="copy the owners' list again") from error
