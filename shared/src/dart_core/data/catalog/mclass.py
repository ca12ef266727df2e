"""MClass: the melanoma classification benchmark, 100 dermoscopic and 100 clinical pictures, 20 melanomas each.

Brinker T. J. et al., "Comparing artificial intelligence algorithms to 157 German dermatologists: the melanoma classification
benchmark", Eur J Cancer 111:30, 2019, doi:10.1016/j.ejca.2018.12.016. The dermoscopic pictures are part of the ISIC archive,
the clinical ones of MED-NODE.
"""

from __future__ import annotations

import os
from pathlib import Path

from dart_core.data.catalog._pictures import (
    BINARY,
    check_root,
    filled,
    find_first,
    missing,
    pick,
    pictures_below,
    present,
)
from dart_core.data.catalog._tables import published_table, read_rows
from dart_core.data.datalist import Datalist, Row
from dart_core.errors import InputError

PICTURES = 100
"""Pictures of each part; 20 of them are melanomas."""

ORIGIN = (
    "the owners give the pictures (MClass-D.zip and MClass-ND.zip) at https://skinclass.de/mclass/; cite Brinker et al., Eur J"
    " Cancer 2019"
)

_PARTS = {
    "mclass-d": ("BenchmarkDermoscopic", "MClassD.csv", "MClassD_256"),
    "mclass-c": ("BenchmarkClinical", "MClassC.csv", "MClassC_256"),
}
_CLASSES = {"benign": "0", "malign": "1", "malignant": "1"}


def index(root: str | os.PathLike[str]) -> Datalist:
    """List the pictures of the parts that are there, the dermoscopic ones first.

    Layout: BenchmarkDermoscopic/ and BenchmarkClinical/, each with the folders benign/ and malign/ (or malignant/), as the
    archives unpack; or the tables MClassD.csv and MClassC.csv of the code of Bevan and Atapour-Abarghouei beside MClassD_256/
    and MClassC_256/.

    Returns:
        rows with image, subject (the file's name, with the site before it), site ("mclass-d" dermoscopic, "mclass-c"
        clinical), split "test" (they are test sets) and label ("1" melanoma).

    Raises:
        InputError: another folder, a table that does not fit, no picture.
    """
    return present(_rows(Path(root)), Path(root), ORIGIN)


def report_missing(root: str | os.PathLike[str]) -> list[str]:
    """Say how many pictures of each part are missing, and where they come from; empty when all are there.

    Raises:
        InputError: another folder, or a table that does not fit.
    """
    rows = _rows(Path(root))
    lines = []
    for site, (folder, _, _) in _PARTS.items():
        part = [row for row in rows if row.site == site]
        lines += missing(part, site)
        if len(part) < PICTURES:
            lines.append(f"{site}: {len(part)} of {PICTURES} pictures are there ({folder})")
    return [*lines, f"MClass: {ORIGIN}"] if lines else []


def dermoscopic_names() -> frozenset[str]:
    """ISIC names of the dermoscopic pictures (ISIC_0000003, ...): who tests on them must not train on them."""
    return frozenset(row["image"] for row in published_table("mclass_d"))


def _rows(root: Path) -> list[Row]:
    check_root(root, "MClass", ORIGIN)
    rows = []
    for site, (folder, table, prepared) in _PARTS.items():
        listed = find_first(root, (table, f"csv/{table}"))
        official = root if root.name == folder else find_first(root, (folder, f"MClass{site[-1].upper()}/{folder}"))
        if listed is not None:
            rows += _table(root, listed, site, prepared)
        elif official is not None:
            rows += _folders(official, site)
    if not rows:
        raise InputError(
            "this is not MClass (neither BenchmarkDermoscopic nor BenchmarkClinical with folders benign and malign)",
            where=root,
            remedy=f"give the folder that holds them; {ORIGIN}",
        )
    return rows


def _folders(folder: Path, site: str) -> list[Row]:
    rows = []
    for name, label in _CLASSES.items():
        for image in pictures_below(folder / name).values():
            rows.append(_row(image, site, label, folder))
    return rows


def _table(root: Path, table: Path, site: str, prepared: str) -> list[Row]:
    images = find_first(root, (f"images/{prepared}", prepared)) or root / prepared
    there = pictures_below(images)
    rows = []
    for line, cells in read_rows(table, ("image_name", "target")):
        name = filled(table, line, cells, "image_name")
        label = pick(table, line, cells, "target", BINARY)
        rows.append(_row(there.get(name.lower(), images / name), site, label, table, line))
    return rows


def _row(image: Path, site: str, label: str, source: Path, line: int = 0) -> Row:
    return Row(
        image,
        subject=f"{site}/{image.stem}",
        site=site,
        split="test",
        labels={"label": label},
        line=line,
        source=source,
    )
