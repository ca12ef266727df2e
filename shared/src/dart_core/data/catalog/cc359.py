"""Calgary-Campinas-359: T1-weighted heads from three vendors at 1.5 T and 3 T, with silver-standard brain masks.

Souza R. et al., "An open, multi-vendor, multi-field-strength brain MR dataset and analysis of publicly available skull
stripping methods agreement", NeuroImage 170:482-494, 2018, doi:10.1016/j.neuroimage.2017.08.021. The owners give it to
registered users; nothing here downloads it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from dart_core.data.catalog._tables import Splits, collect, published_table, read_rows
from dart_core.data.datalist import Datalist, Row
from dart_core.errors import InputError

SITES = ("sm15", "sm3", "ge15", "ge3", "ph15", "ph3")
"""The six domains; their place here is the number ("fold") that meta.csv gives them."""

IDS = {
    "sm15": range(120, 180),
    "sm3": range(180, 240),
    "ge15": range(240, 300),
    "ge3": range(300, 360),
    "ph15": range(1, 60),
    "ph3": range(60, 120),
}
"""Scan numbers of each domain: CC0001 to CC0359."""

ORIGIN = (
    "registered users download it (Original.zip and Silver-standard-machine-learning.zip) from"
    " https://sites.google.com/view/calgary-campinas-dataset; cite Souza et al., NeuroImage 170:482-494, 2018"
)

_NAME = re.compile(r"(CC(\d{4}))_(philips|siemens|ge)_(15|3)_(\d+)_([MF])")
_VENDORS = {"siemens": "sm", "ge": "ge", "philips": "ph"}
_ENDINGS = (".nii.gz", ".nii")
# As unpacked from the owners' archives (each holds a folder of its own name), or as registered and gathered by hand.
_PARENTS = ("", "Reconstructed", "CC359/Reconstructed")
_LAYOUTS = (
    ("Original/Original", "Silver-standard-machine-learning/Silver-standard"),
    ("Original", "Silver-standard-machine-learning/Silver-standard"),
    ("Original/Original", "Silver-standard"),
    ("Original", "Silver-standard"),
    ("images", "masks"),
)


def index(root: str | os.PathLike[str]) -> Datalist:
    """List the scans that are there, in ascending number.

    Layouts: `Original/` with CC0001_philips_15_55_M.nii.gz (number, vendor, field, age, sex) and `Silver-standard/` with
    CC0001_philips_15_55_M_ss.nii.gz, also as the owners' archives unpack; or `images/` and `masks/` with these names; or
    any layout that a `meta.csv` with columns id, MRI, brain_mask, fold, tomograph_model, tesla_value, x, y, z describes.

    Returns:
        rows with image, mask, subject (CC0001), site (one of SITES) and, where the name gives them, labels age and sex.

    Raises:
        InputError: another folder, a name that does not fit, an image without mask.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError("the folder of CC359 is missing", where=root, remedy=f"check the path; {ORIGIN}")
    if (root / "meta.csv").is_file():
        rows = _read_meta(root / "meta.csv")
    else:
        images, masks = _folders(root)
        rows = [_row(image, masks) for image in _scans(images)]
    if not rows:
        raise InputError("no scan of CC359 in this folder", where=root, remedy=f"check the path; {ORIGIN}")
    rows.sort(key=lambda row: row.subject)
    for row, following in pairwise(rows):
        if row.subject == following.subject:
            raise InputError(
                f"{row.subject} is there twice, also as {row.image.name}", where=following.image, remedy="remove one"
            )
    return Datalist(tuple(rows), root)


def report_missing(root: str | os.PathLike[str]) -> list[str]:
    """Say which of the 359 scans are missing, one line per domain, and where they come from; empty when all are there.

    Raises:
        InputError: as `index`.
    """
    there = {row.subject for row in index(root)}
    lines = []
    for site, numbers in IDS.items():
        missing = [f"CC{number:04d}" for number in numbers if f"CC{number:04d}" not in there]
        if missing:
            lines.append(f"{site}: {len(missing)} of {len(numbers)} scans are missing: {', '.join(missing)}")
    return [*lines, f"CC359: {ORIGIN}"] if lines else []


def published_split() -> Splits:
    """The split that the code of AIVA (Goodman et al., DART 2022) publishes: 45 / 5 / 10 scans of each domain (ph15: 9).

    Returns:
        site -> "train", "val", "test" -> subjects (CC0136) in the published order.
    """
    return collect([(SITES[int(row["site"])], row["split"], row["id"]) for row in published_table("aiva_splits_cc359")])


def _folders(root: Path) -> tuple[Path, Path]:
    for parent in _PARENTS:
        for images, masks in _LAYOUTS:
            if (root / parent / images).is_dir() and (root / parent / masks).is_dir():
                return root / parent / images, root / parent / masks
    raise InputError(
        "this is not a CC359 folder (no Original/ with Silver-standard/, no images/ with masks/, no meta.csv)",
        where=root,
        remedy=f"give the folder that holds them; {ORIGIN}",
    )


def _scans(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.name.endswith(_ENDINGS) and not f.name.startswith("."))


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _parse(path: Path) -> tuple[str, str, dict[str, str]]:
    """Give subject, site and labels of a file name."""
    match = _NAME.fullmatch(_stem(path))
    if match is None:
        raise InputError(
            "the name does not fit CC359",
            where=path,
            remedy="names are like CC0001_philips_15_55_M.nii.gz; move it away",
        )
    subject, number, vendor, field, age, sex = match.groups()
    site = _VENDORS[vendor] + field
    if int(number) not in IDS[site]:
        own = IDS[site]
        raise InputError(
            f"{subject} is none of the scans CC{own[0]:04d} to CC{own[-1]:04d} of {vendor} at {field.replace('15', '1.5')} T",
            where=path,
            remedy="restore the name that the owners gave the file",
        )
    return subject, site, {"age": age, "sex": sex}


def _row(image: Path, masks: Path) -> Row:
    subject, site, labels = _parse(image)
    mask = next((m for ending in _ENDINGS if (m := masks / f"{_stem(image)}_ss{ending}").is_file()), None)
    if mask is None:
        raise InputError(
            f"no mask {_stem(image)}_ss.nii.gz in {masks}", where=image, remedy="add the mask or move the image away"
        )
    return Row(image, mask, subject=subject, site=site, labels=labels, source=image.parent)


def _read_meta(path: Path) -> list[Row]:
    columns = ("id", "MRI", "brain_mask", "fold", "tomograph_model", "tesla_value", "x", "y", "z")
    return [_meta_row(path, line, entry) for line, entry in read_rows(path, columns)]


def _meta_row(path: Path, line: int, entry: Mapping[str, str]) -> Row:
    def cell(column: str) -> str:
        value = entry[column]
        if not value:
            raise InputError("the cell is empty", where=f"{path}, row {line}, column {column}", remedy="fill it in")
        return value

    fold = cell("fold")
    if fold not in ("0", "1", "2", "3", "4", "5"):
        raise InputError(
            f"unknown fold {fold!r}", where=f"{path}, row {line}, column fold", remedy=f"0 to 5 are {', '.join(SITES)}"
        )
    site, subject = SITES[int(fold)], cell("id")
    labels: dict[str, str] = {}
    image, mask = path.parent / cell("MRI"), path.parent / cell("brain_mask")
    for file, column in ((image, "MRI"), (mask, "brain_mask")):
        if not file.is_file():
            raise InputError(
                f"{file} is not there",
                where=f"{path}, row {line}, column {column}",
                remedy="add the file or remove the row",
            )
    # Registered scans may be named otherwise; the owners' names are checked against the table.
    if _NAME.fullmatch(_stem(image)):
        named_subject, named_site, labels = _parse(image)
        if (named_subject, named_site) != (subject, site):
            raise InputError(
                f"{image.name} is {named_subject} of {named_site}, the table says {subject} of {site}",
                where=f"{path}, row {line}, column MRI",
                remedy="correct the row",
            )
    return Row(image, mask, subject=subject, site=site, labels=labels, line=line, source=path)
