"""Shenzhen Hospital X-ray set: 662 frontal chest radiographs, 336 of them with tuberculosis.

Jaeger S. et al., "Two public chest X-ray datasets for computer-aided screening of pulmonary diseases", Quantitative Imaging in
Medicine and Surgery 4:475-477, 2014, doi:10.3978/j.issn.2223-4292.2014.11.20. From the National Library of Medicine (USA) and
Shenzhen No. 3 People's Hospital, which ask for the citation and an acknowledgement.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from dart_core.data.catalog._pictures import check_root, pictures_below
from dart_core.data.catalog._splits import Lists, draw_splits, read_lists
from dart_core.data.datalist import Datalist, Row
from dart_core.errors import InputError

LABEL = "Tuberculosis"
"""The one label; it is the last digit of a picture's name."""

COUNT = 662
"""Pictures of the whole set: numbers 1 to 326 are normal, the others show tuberculosis."""

TEST_SHARE, VAL_SHARE = 0.2, 0.1
"""Of each class, where no lists are given; those of popar's and benchmark-transformers' authors have 463/65/134 pictures."""

ORIGIN = (
    "the National Library of Medicine gives it at https://lhncbc.nlm.nih.gov/LHC-downloads/downloads.html"
    " (ChinaSet_AllFiles.zip), free for research with citation and acknowledgement; cite Jaeger et al., QIMS 4:475-477, 2014"
)

_NAME = re.compile(r"CHNCXR_(\d{4})_([01])", re.IGNORECASE)
_READING = re.compile(r"(fe)?male", re.IGNORECASE)
_AGE = re.compile(r"(\d{1,3})\s*(?:yrs?|years?)", re.IGNORECASE)


def index(root: str | os.PathLike[str], lists: Lists | None = None, seed: int = 0) -> Datalist:
    """List the pictures that are there, by number.

    Layout: CXR_png/CHNCXR_0001_0.png beside ClinicalReadings/CHNCXR_0001_0.txt, as the archive unpacks; pictures in any
    other folder below `root` are found too, and the readings are not needed.

    Args:
        root: the folder ChinaSet_AllFiles, or one that holds it.
        lists: the authors' lists, if you have them: split -> text file. Pictures in none of them are left out. None: a fifth
            of each class is for test and a tenth for validation, drawn with `seed`.
        seed: of that draw.

    Returns:
        rows with image, subject (CHNCXR_0001), site "shenzhen", split and labels: Tuberculosis ("0" or "1"), and sex (M or
        F) and age (years) where a reading tells them.

    Raises:
        InputError: another folder, a picture that is there twice, lists that name none of the pictures.
    """
    folder = Path(root)
    pictures = _pictures(folder)
    if lists is None:
        split_of = draw_splits({name: name[-1] for name in pictures}, TEST_SHARE, VAL_SHARE, seed)
    else:
        split_of = {name.upper(): split for name, split in read_lists(lists).items()}
    rows = tuple(_rows(folder, pictures, split_of))
    if not rows:
        raise InputError("none of its pictures is in the lists", where=folder, remedy="give lists of this data set")
    return Datalist(rows, folder)


def report_missing(root: str | os.PathLike[str]) -> list[str]:
    """Say how many of the 662 pictures are missing, and where they come from; empty when all are there.

    Raises:
        InputError: another folder.
    """
    numbers = {int(name.split("_")[1]) for name in _pictures(Path(root))}
    missing = [number for number in range(1, COUNT + 1) if number not in numbers]
    if not missing:
        return []
    line = f"{len(missing)} of {COUNT} pictures are missing, the first is number {missing[0]:04d}"
    return [line, f"Shenzhen: {ORIGIN}"]


def _pictures(root: Path) -> dict[str, Path]:
    """Name without ending, in capitals -> file."""
    check_root(root, "the Shenzhen set", ORIGIN)
    found: dict[str, Path] = {}
    for path in pictures_below(root).values():
        name = path.stem.upper()
        if not _NAME.fullmatch(name):
            continue
        if name in found:
            raise InputError(
                f"{path.stem} is there twice, also as {found[name]}", where=path, remedy="remove one of the two"
            )
        found[name] = path
    if not found:
        raise InputError(
            "this is not the Shenzhen set (no CXR_png/CHNCXR_0001_0.png)",
            where=root,
            remedy=f"give the folder ChinaSet_AllFiles; {ORIGIN}",
        )
    return found


def _rows(root: Path, pictures: dict[str, Path], split_of: dict[str, str]) -> Iterator[Row]:
    for name in sorted(pictures):
        if name not in split_of:
            continue
        path = pictures[name]
        yield Row(
            path,
            subject=name.rsplit("_", 1)[0],
            site="shenzhen",
            split=split_of[name],
            labels={LABEL: name[-1], **_reading(path)},
            source=root,
        )


def _reading(picture: Path) -> dict[str, str]:
    """Sex and age from the first lines of the clinical reading ("male 45yrs"), where there is one."""
    path = picture.parent.parent / "ClinicalReadings" / f"{picture.stem}.txt"
    try:
        text = path.read_text(encoding="utf-8", errors="replace")[:80]
    except OSError:
        return {}
    sex, age = _READING.search(text), _AGE.search(text)
    found = {"sex": ("F" if sex[1] else "M") if sex else "", "age": str(int(age[1])) if age else ""}
    return {name: value for name, value in found.items() if value}
