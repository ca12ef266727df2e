"""ISIC 2017, 2019 and 2020: dermoscopic pictures for the classification of melanoma.

Codella N. et al., "Skin lesion analysis toward melanoma detection", ISBI 2018, doi:10.1109/ISBI.2018.8363547 (2017); Rotemberg
V. et al., "A patient-centric dataset of images and metadata for identifying melanomas using clinical context", Sci Data 8:34,
2021, doi:10.1038/s41597-021-00815-z (2020, CC BY-NC 4.0); 2019 (CC BY-NC 4.0) brings together pictures of Codella et al., of
Tschandl P. et al., "The HAM10000 dataset", Sci Data 5:180161, 2018, doi:10.1038/sdata.2018.161, and of Hernández-Pérez C. et al.,
"BCN20000", Sci Data 11:641, 2024, doi:10.1038/s41597-024-03387-w.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from dart_core.data.catalog import mclass
from dart_core.data.catalog._pictures import (
    BINARY,
    SKIN_TYPES,
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

ORIGIN = (
    "the tables and pictures of 2017, 2019 and 2020 are at https://challenge.isic-archive.com/data/, copies of 256 x 256 pixels at"
    " Kaggle (cdeotte/jpeg-melanoma-256x256 and cdeotte/jpeg-isic2019-256x256); cite Codella et al., ISBI 2018, and Rotemberg"
    " et al., Sci Data 2021"
)

TUNING_SHARE = 0.33
"""Share of the pictures of 2018 that the authors' table gives for tuning."""

FOLDS_2020 = {
    fold: group
    for group, folds in enumerate(((2, 4, 5), (1, 10, 13), (0, 9, 12), (3, 8, 11), (6, 7, 14)))
    for fold in folds
}
"""Fold of cross validation of each tfrecord of 2020; in the other years it is tfrecord modulo 5."""

_AUTHORS = ("isic_train_20-19-18-17.csv", "csv/isic_train_20-19-18-17.csv")
_TABLE_2020 = (
    "train.csv",
    "ISIC_2020_Training_GroundTruth_v2.csv",
    "ISIC_2020_Training_GroundTruth.csv",
    "jpeg-melanoma-256x256/train.csv",
)
_TABLE_2017 = ("ISIC-2017_Training_Part3_GroundTruth.csv",)
_TABLE_2019 = ("ISIC_2019_Training_GroundTruth.csv",)
_METADATA_2019 = "ISIC_2019_Training_Metadata.csv"
CLASSES_2019 = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")
"""Diagnoses of 2019, a column each; MEL is melanoma."""
TABLES = (*_AUTHORS, *_TABLE_2020, *_TABLE_2017, *_TABLE_2019)
"""Where `index` looks for tables, below the folder that it is given."""

_FOLDERS_2020 = (
    "images/isic_20_train_256",
    "isic_20_train_256",
    "jpeg-melanoma-256x256/train",
    "ISIC_2020_Training_JPEG/train",
    "ISIC_2020_Training_JPEG",
    "jpeg/train",
    "train",
)
_FOLDERS_2017 = (
    "images/isic_19_train_256",
    "isic_19_train_256",
    "jpeg-isic2019-256x256/train",
    "ISIC-2017_Training_Data",
)
_FOLDERS_2019 = ("ISIC_2019_Training_Input/ISIC_2019_Training_Input", "ISIC_2019_Training_Input")
"""Kaggle's copy has the folder twice."""
_YEARS = {text: year for year in (2017, 2018, 2019, 2020) for text in (str(year), f"{year}.0")}


def index(root: str | os.PathLike[str], seed: int = 0) -> Datalist:
    """List the pictures that are there, in the order of the tables.

    Layout, one of: the table isic_train_20-19-18-17.csv of Bevan and Atapour-Abarghouei; or the owners' tables, that of 2020
    (train.csv or ISIC_2020_Training_GroundTruth.csv) and that of 2017 (ISIC-2017_Training_Part3_GroundTruth.csv), or one of
    the two. Pictures are <image_name>.jpg, those of 2020 and those of the other years in a folder each: isic_20_train_256 and
    isic_19_train_256, or jpeg-melanoma-256x256/train and jpeg-isic2019-256x256/train, or as the owners' archives unpack.
    Or 2019 by itself: ISIC_2019_Training_GroundTruth.csv, the folder ISIC_2019_Training_Input, and where it is there
    ISIC_2019_Training_Metadata.csv.

    What is left out (skintone-debias, 5): pictures that MClass-D tests on, those without tfrecord (-1) where there is such a
    column, and the whole of 2019 beside any other table: the paper does not train on it, and it holds pictures of 2017 and 2018
    again.

    Args:
        root: the folder that holds tables and folders of pictures.
        seed: draws the third of the pictures of 2018 that is for tuning; the rest of them is left out.

    Returns:
        rows with image, subject (patient_id, in 2019 lesion_id; the picture's name where there is none), site ("isic2017",
        "isic2018", "isic2019", "isic2020"), split (train; 2018: val) and labels: label ("1" melanoma), and where the tables give
        them fitzpatrick ("1" to "6": made by a labeller, not by people), marked ("1": ink on the skin), diagnosis, sex, age, and
        fold (0 to 4, of cross validation).

    Raises:
        InputError: another folder, a table that does not fit, no picture.
    """
    return present(_rows(Path(root), seed), Path(root), ORIGIN)


def report_missing(root: str | os.PathLike[str], seed: int = 0) -> list[str]:
    """Say which tables are missing, how many pictures of each year, and where they come from; empty when all are there.

    Raises:
        InputError: another folder, or a table that does not fit.
    """
    rows = _rows(Path(root), seed)
    lines = []
    if any(row.site == "isic2019" for row in rows):
        lines = missing(rows, "ISIC 2019")
        return [*lines, f"ISIC: {ORIGIN}"] if lines else []
    for year in (2017, 2018, 2020):
        part = [row for row in rows if row.site == f"isic{year}"]
        lines += missing(part, f"ISIC {year}")
        if not part and year != 2018:  # the owners' tables have no part for tuning
            lines.append(f"ISIC {year}: there is no table")
    return [*lines, f"ISIC: {ORIGIN}"] if lines else []


def _rows(root: Path, seed: int) -> list[Row]:
    check_root(root, "ISIC", ORIGIN)
    folders = {
        year: find_first(root, names) or root / names[0]
        for year, names in ((2020, _FOLDERS_2020), (2017, _FOLDERS_2017))
    }
    there = {year: pictures_below(folder) for year, folder in folders.items()}

    def row(table: Path, line: int, cells: dict[str, str], name: str, year: int, label: str) -> Row:
        kind = 2020 if year == 2020 else 2017
        patient = cells.get("patient_id", "")
        labels = {
            "label": label,
            "fitzpatrick": pick(table, line, cells, "fitzpatrick", SKIN_TYPES),
            "marked": pick(table, line, cells, "marked", BINARY | dict.fromkeys(("-1", "-1.0", ""), "")),
            "diagnosis": cells.get("diagnosis", ""),
            "sex": cells.get("sex", ""),
            "age": cells.get("age_approx", ""),
            "fold": _fold(table, line, cells, year),
        }
        return Row(
            there[kind].get(f"{name.lower()}.jpg", folders[kind] / f"{name}.jpg"),
            subject=patient if patient not in ("", "-1", "-1.0") else name,
            site=f"isic{year}",
            split="val" if year == 2018 else "train",
            labels={column: value for column, value in labels.items() if value},
            line=line,
            source=table,
        )

    table = find_first(root, _AUTHORS)
    if table is not None:
        columns = ("image_name", "target", "tfrecord", "year", "mclassd")
        rows = []
        for line, cells in read_rows(table, columns):
            year = pick(table, line, cells, "year", _YEARS)
            in_mclass = pick(table, line, cells, "mclassd", BINARY | {"": "0"}) == "1"
            if year != 2019 and not in_mclass and _tfrecord(table, line, cells) != -1:
                name = filled(table, line, cells, "image_name")
                rows.append(row(table, line, cells, name, year, pick(table, line, cells, "target", BINARY)))
        return _tuning(rows, seed)

    tested, rows = mclass.dermoscopic_names(), []
    for names, year, key, target in (
        (_TABLE_2020, 2020, "image_name", "target"),
        (_TABLE_2017, 2017, "image_id", "melanoma"),
    ):
        table = find_first(root, names)
        if table is None:
            continue
        for line, cells in read_rows(table, (key, target)):
            name = filled(table, line, cells, key)
            if name not in tested and ("tfrecord" not in cells or _tfrecord(table, line, cells) != -1):
                rows.append(row(table, line, cells, name, year, pick(table, line, cells, target, BINARY)))
    table = find_first(root, _TABLE_2019)
    if table is not None and find_first(root, (*_TABLE_2020, *_TABLE_2017)) is None:
        return _rows_2019(root, table)
    if not rows:
        raise InputError(
            f"this is not ISIC (none of {_AUTHORS[0]}, {_TABLE_2020[0]}, {_TABLE_2020[2]}, {_TABLE_2017[0]}, {_TABLE_2019[0]})",
            where=root,
            remedy=f"give the folder that holds the tables; {ORIGIN}",
        )
    return rows


def _rows_2019(root: Path, table: Path) -> list[Row]:
    """The pictures of 2019, whose table has a column of zeros and a one for each diagnosis."""
    folder = find_first(root, _FOLDERS_2019) or root / _FOLDERS_2019[-1]
    there, tested = pictures_below(folder), mclass.dermoscopic_names()
    about: dict[str, dict[str, str]] = {}
    if (root / _METADATA_2019).is_file():
        about = {cells["image"]: cells for _, cells in read_rows(root / _METADATA_2019, ("image",))}
    rows = []
    for line, cells in read_rows(table, ("image", *CLASSES_2019)):
        name = filled(table, line, cells, "image")
        found = [kind for kind in CLASSES_2019 if pick(table, line, cells, kind, BINARY) == "1"]
        if len(found) != 1:
            raise InputError(
                f"{len(found)} of the columns {', '.join(CLASSES_2019)} are 1",
                where=f"{table}, row {line}",
                remedy="a picture has one diagnosis: copy the owners' table again",
            )
        if name.removesuffix("_downsampled") in tested:
            continue
        known = about.get(name, {})
        labels = {
            "label": "1" if found == ["MEL"] else "0",
            "diagnosis": found[0],
            "sex": known.get("sex", ""),
            "age": known.get("age_approx", ""),
        }
        rows.append(
            Row(
                there.get(f"{name.lower()}.jpg", folder / f"{name}.jpg"),
                subject=known.get("lesion_id") or name,
                site="isic2019",
                split="train",
                labels={column: value for column, value in labels.items() if value},
                line=line,
                source=table,
            )
        )
    return rows


def _tuning(rows: list[Row], seed: int) -> list[Row]:
    """Keep a random third of the validation rows: those that scikit-learn's train_test_split would draw."""
    places = [place for place, row in enumerate(rows) if row.split == "val"]
    count = math.ceil(TUNING_SHARE * len(places))
    drawn = {places[i] for i in np.random.RandomState(seed).permutation(len(places))[:count]}
    return [row for place, row in enumerate(rows) if row.split != "val" or place in drawn]


def _tfrecord(table: Path, line: int, cells: dict[str, str]) -> int:
    try:
        number = float(cells["tfrecord"])
    except ValueError:
        number = math.nan
    if number != number or number != int(number):
        raise InputError(
            f"{cells['tfrecord']!r} is no whole number",
            where=f"{table}, row {line}, column tfrecord",
            remedy="tfrecords are -1, 0, 1, ...",
        )
    return int(number)


def _fold(table: Path, line: int, cells: dict[str, str], year: int) -> str:
    if "tfrecord" not in cells or year == 2018:
        return ""
    number = _tfrecord(table, line, cells)
    if year != 2020:
        return str(number % 5)
    if number not in FOLDS_2020:
        raise InputError(
            f"no tfrecord {number} in 2020",
            where=f"{table}, row {line}, column tfrecord",
            remedy="those of 2020 are 0 to 14",
        )
    return str(FOLDS_2020[number])
