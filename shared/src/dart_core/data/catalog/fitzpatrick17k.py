"""Fitzpatrick17k: 16,577 clinical pictures of skin conditions with Fitzpatrick types from annotators.

Groh M. et al., "Evaluating deep neural networks trained on clinical images in dermatology with the Fitzpatrick 17k dataset",
CVPR Workshops 2021, doi:10.1109/CVPRW53098.2021.00201. The owners publish the table (CC BY-NC-SA 3.0) with the addresses of
the pictures, which belong to two atlases; nothing here downloads them.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from dart_core.data.catalog._pictures import (
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

PARTITIONS = ("benign", "malignant", "non-neoplastic")
"""Cells of the column three_partition_label."""

ORIGIN = (
    "the table fitzpatrick17k.csv is at https://github.com/mattgroh/fitzpatrick17k and names the address of every picture;"
    " save each as its md5hash with the ending .jpg; cite Groh et al., CVPR Workshops 2021"
)

_TABLE = "fitzpatrick17k.csv"
_FOLDERS = (
    "images",
    "fitzpatrick17k_256",
    "images/fitzpatrick17k_256",
    "../images/fitzpatrick17k_256",
    "fitzpatrick17k",
)
_WRONG = "3 Wrongly labelled"
_SPLITS = {"1": "train", "2": "train", "3": "test", "4": "test", "5": "test", "6": "test"}


def index(
    table: str | os.PathLike[str], images: str | os.PathLike[str] | None = None, neoplastic: bool = True
) -> Datalist:
    """List the pictures that are there, in the order of the table.

    The column of skin types is called fitzpatrick_scale, in older versions fitzpatrick. A picture is found under its md5hash;
    failing that under url_alphanum, the last part of its address, or atlas<i>.jpg (i: place among the rows kept, from 0) for an
    address at Atlas Dermatologico. An address whose last part another row has too is not looked for under it.

    Args:
        table: fitzpatrick17k.csv, or the folder that holds it.
        images: folder of the pictures; None: images/ or fitzpatrick17k_256/ beside the table.
        neoplastic: keep benign and malignant rows that are not marked as wrongly labelled and have an address and a skin
            type: 4,311 rows (where a table has no addresses: all of these, 4,315). False: every row with a skin type,
            16,012, as the evaluation of skin-tone labels wants.

    Returns:
        rows with image, subject (the md5hash), site "fitzpatrick17k" and labels: label ("1" malignant), fitzpatrick ("1" to
        "6"), diagnosis, and partition (the coarser one of nine) where the table gives it. Split (skintone-debias, 5): train
        for skin types 1 and 2, test for 3 to 6; none with `neoplastic` false.

    Raises:
        InputError: no such table or folder, a table that does not fit, no picture.
    """
    source = _find_table(table)
    return present(_rows(source, _find_images(source, images), neoplastic), source, ORIGIN)


def listed(
    table: str | os.PathLike[str], images: str | os.PathLike[str] | None = None, neoplastic: bool = True
) -> Datalist:
    """As `index`, but with the rows whose pictures are missing as well: for counts and statistics of the table."""
    source = _find_table(table)
    folder = _find_images(source, images, must_exist=images is not None)
    return Datalist(tuple(_rows(source, folder, neoplastic)), source)


def report_missing(
    table: str | os.PathLike[str], images: str | os.PathLike[str] | None = None, neoplastic: bool = True
) -> list[str]:
    """Say how many pictures are missing, and where they come from; empty when all are there.

    Raises:
        InputError: no such table or folder, or a table that does not fit.
    """
    lines = missing(listed(table, images, neoplastic), "Fitzpatrick17k")
    return [*lines, f"Fitzpatrick17k: {ORIGIN}"] if lines else []


def _find_table(table: str | os.PathLike[str]) -> Path:
    path = Path(table)
    if path.is_dir():
        path = find_first(path, (_TABLE, f"csv/{_TABLE}")) or path / _TABLE
    if not path.is_file():
        raise InputError("the table of Fitzpatrick17k is missing", where=path, remedy=f"check the path; {ORIGIN}")
    return path


def _find_images(table: Path, images: str | os.PathLike[str] | None, must_exist: bool = True) -> Path:
    if images is not None:
        check_root(Path(images), "Fitzpatrick17k's pictures", ORIGIN)
        return Path(images)
    found = find_first(table.parent, _FOLDERS)
    if found is None and must_exist:
        raise InputError(
            f"no folder of pictures beside the table ({' or '.join(_FOLDERS[:2])})",
            where=table,
            remedy=f"name the folder; {ORIGIN}",
        )
    return found or table.parent / _FOLDERS[0]


def _rows(table: Path, images: Path, neoplastic: bool) -> list[Row]:
    rows = read_rows(table, ("md5hash", "label", "three_partition_label"))
    columns = rows[0][1] if rows else {}
    tone = next((name for name in ("fitzpatrick_scale", "fitzpatrick") if name in columns), None)
    if tone is None:
        raise InputError(
            "no column 'fitzpatrick_scale'" if rows else "the table has no rows",
            where=table,
            remedy=f"get it again; {ORIGIN}",
        )
    partitions = {name: name for name in PARTITIONS}
    kept = []
    for line, cells in rows:
        kind = pick(table, line, cells, tone, SKIN_TYPES)
        partition = pick(table, line, cells, "three_partition_label", partitions)
        addressed = "http" in cells.get("url", "http")
        proper = partition != "non-neoplastic" and cells.get("qc", "") != _WRONG and addressed
        if kind and (proper or not neoplastic):
            kept.append((line, cells, kind, partition))
    there = pictures_below(images)
    ends = Counter(_end(cells) for _, cells, _, _ in kept)
    found = []
    for place, (line, cells, kind, partition) in enumerate(kept):
        key = filled(table, line, cells, "md5hash")
        names = [f"{key}.jpg", f"{key}.png", cells.get("url_alphanum", "")]
        if "atlasderm" in cells.get("url", ""):
            names.append(f"atlas{place}.jpg")
        elif ends[_end(cells)] == 1:
            names.append(_end(cells))
        labels = {
            "label": str(int(partition == "malignant")),
            "fitzpatrick": kind,
            "diagnosis": cells["label"],
            "partition": cells.get("nine_partition_label", ""),
        }
        found.append(
            Row(
                next((there[name.lower()] for name in names if name.lower() in there), images / names[0]),
                subject=key,
                site="fitzpatrick17k",
                split=_SPLITS[kind] if neoplastic else "",
                labels={name: value for name, value in labels.items() if value},
                line=line,
                source=table,
            )
        )
    return found


def _end(cells: dict[str, str]) -> str:
    """Last part of the address of a picture."""
    return cells.get("url", "").rsplit("/", 1)[-1].lower()
