"""RSNA Pneumonia Detection Challenge (2018, stage 2): 26,684 frontal chest radiographs in three classes.

Shih G. et al., "Augmenting the National Institutes of Health chest radiograph dataset with expert annotations of possible
pneumonia", Radiology: Artificial Intelligence 1:e180041, 2019, doi:10.1148/ryai.2019180041. The pictures are from ChestX-ray14.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from dart_core.data.catalog._pictures import check_root, files_by_id, filled, find_first, missing, present
from dart_core.data.catalog._splits import Lists, draw_splits, read_lists
from dart_core.data.catalog._tables import read_rows
from dart_core.data.datalist import Datalist, Row
from dart_core.errors import InputError

CLASSES = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")
"""The three exclusive classes in the order of the authors' lists (0, 1, 2)."""

TEST_SHARE, VAL_SHARE = 0.1, 0.1
"""Of each class, where no lists are given; those of popar's and benchmark-transformers' authors have 21,295/2,680/2,709."""

ORIGIN = (
    "Kaggle gives it, under the rules of the competition, at"
    " https://www.kaggle.com/competitions/rsna-pneumonia-detection-challenge/data; cite Shih et al., Radiology: Artificial"
    " Intelligence 1:e180041, 2019, and Wang et al., CVPR 2017"
)

FOLDER = "rsna-pneumonia-detection-challenge"
"""The name under which Kaggle packs it."""

_TABLE = "stage_2_detailed_class_info.csv"
_PLACES = ("stage_2_train_images_png", "stage_2_train_images_jpg", "stage_2_train_images", "images", "")


def index(root: str | os.PathLike[str], lists: Lists | None = None, seed: int = 0) -> Datalist:
    """List the pictures that are there, each once, in the order of the table.

    Layout: stage_2_detailed_class_info.csv beside stage_2_train_images/<patientId>.dcm. Copies as PNG or JPEG are taken
    instead of the DICOM files where they are there, in the same folder or in stage_2_train_images_png. The table has a row
    for each box, so that patients with several boxes stand in it several times.

    Args:
        root: the folder that holds the table.
        lists: the authors' lists, if you have them: split -> text file. Pictures in none of them are left out. None: a tenth
            of each class is for test and a tenth for validation, drawn with `seed`.
        seed: of that draw.

    Returns:
        rows with image, subject (patientId), site "rsna-pneumonia", split and labels: one of CLASSES each, "1" for the
        picture's own class and "0" for the two others.

    Raises:
        InputError: another folder, a table that does not fit or gives a picture two classes, no picture, lists that name none.
    """
    table = _table(Path(root))
    return present(_rows(table, lists, seed), table, ORIGIN)


def report_missing(root: str | os.PathLike[str]) -> list[str]:
    """Say how many pictures of the table are missing, and where they come from; empty when all are there.

    Raises:
        InputError: another folder, or a table that does not fit.
    """
    table = _table(Path(root))
    lines = missing(list(_rows(table, None, 0)), _TABLE)
    return [*lines, f"RSNA Pneumonia: {ORIGIN}"] if lines else []


def read_mapping(path: str | os.PathLike[str]) -> dict[str, str]:
    """Which picture of ChestX-ray14 each picture is: patientId -> file name such as 00000165_001.png.

    With it, `chestxray14.index(..., exclude=...)` leaves out of a pre-training what a later test is to hold.

    Args:
        path: pneumonia-challenge-dataset-mappings_2018.json, which the RSNA publishes with the challenge's annotations.

    Raises:
        InputError: the file cannot be read, or is another.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path, remedy="check the file") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"no JSON file ({error})", where=path, remedy="copy the RSNA's file again") from error
    found: dict[str, str] = {}
    for number, entry in enumerate(content if isinstance(content, list) else (), start=1):
        match entry:
            case {"subset_img_id": str(name), "img_id": str(original)} if name and original:
                found[name] = original
            case _:
                raise InputError(
                    f"entry {number} lacks subset_img_id or img_id", where=path, remedy="copy the RSNA's file again"
                )
    if not found:
        raise InputError(
            "no list of pictures", where=path, remedy="give pneumonia-challenge-dataset-mappings_2018.json"
        )
    return found


def _table(root: Path) -> Path:
    check_root(root, "RSNA Pneumonia", ORIGIN)
    table = find_first(root, (_TABLE, f"{FOLDER}/{_TABLE}"))
    if table is None:
        raise InputError(
            f"this is not an RSNA Pneumonia folder (no {_TABLE})",
            where=root,
            remedy=f"give the folder that holds it; {ORIGIN}",
        )
    return table


def _rows(table: Path, lists: Lists | None, seed: int) -> Iterator[Row]:
    """Each picture once; one that is not there gets the path where it is expected."""
    found: dict[str, tuple[int, str]] = {}
    for line, cells in read_rows(table, ("patientId", "class")):
        name, kind = filled(table, line, cells, "patientId"), filled(table, line, cells, "class")
        if kind not in CLASSES:
            raise InputError(
                f"unknown class {kind!r}",
                where=f"{table}, row {line}, column class",
                remedy=f"the classes are {', '.join(CLASSES)}",
            )
        first, earlier = found.setdefault(name, (line, kind))
        if earlier != kind:
            raise InputError(
                f"{name} is {kind!r} here and {earlier!r} in row {first}",
                where=f"{table}, row {line}, column class",
                remedy="copy the owners' table again",
            )
    if lists is None:
        split_of = draw_splits({name: kind for name, (_, kind) in found.items()}, TEST_SHARE, VAL_SHARE, seed)
    else:
        split_of = read_lists(lists)
        if not found.keys() & split_of.keys():
            raise InputError("none of its pictures is in the lists", where=table, remedy="give lists of this data set")
    files = files_by_id(table.parent / place for place in _PLACES)
    for name, (line, kind) in found.items():
        if name not in split_of:
            continue
        yield Row(
            files.get(name, table.parent / "stage_2_train_images" / f"{name}.dcm"),
            subject=name,
            site="rsna-pneumonia",
            split=split_of[name],
            labels={other: str(int(other == kind)) for other in CLASSES},
            line=line,
            source=table,
        )
