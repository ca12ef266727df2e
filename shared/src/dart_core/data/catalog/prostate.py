"""Multi-site prostate collection (SAML): T2-weighted MR of 116 men from six sites, with outlines of the prostate.

Liu Q., Dou Q., Heng P.-A., "Shape-aware meta-learning for generalizing prostate MRI segmentation to unseen domains", MICCAI
2020, doi:10.1007/978-3-030-59713-9_46, gathered from NCI-ISBI 2013 (RUNMC, BMC), I2CVB, and PROMISE12 (UCL, BIDMC, HK).
"""

from __future__ import annotations

import os
import re
from itertools import pairwise
from pathlib import Path

from dart_core.data.catalog._tables import Splits, collect, published_table
from dart_core.data.datalist import Datalist, Row
from dart_core.errors import InputError

SITES = ("RUNMC", "BMC", "I2CVB", "UCL", "BIDMC", "HK")
"""Sites A to F; their place here is the number that the published lists give them."""

FOLDERS = {
    "RUNMC": ("RUNMC", "ISBI"),
    "BMC": ("BMC", "ISBI_1.5"),
    "I2CVB": ("I2CVB", "HCRUDB"),
    "UCL": ("UCL",),
    "BIDMC": ("BIDMC",),
    "HK": ("HK",),
}
"""Names of each site's folder: the present one first, then those of older downloads."""

COUNTS = {"RUNMC": 30, "BMC": 30, "I2CVB": 19, "UCL": 13, "BIDMC": 12, "HK": 12}
"""Scans of each site."""

ORIGIN = (
    "the owners give it at https://liuquande.github.io/SAML/; cite Liu, Dou and Heng, MICCAI 2020, and the data sets it was"
    " gathered from (NCI-ISBI 2013, I2CVB, PROMISE12)"
)

_NAME = re.compile(r"(Case\d{2,})\.nii(?:\.gz)?")
_ENDINGS = (".nii.gz", ".nii")


def index(root: str | os.PathLike[str]) -> Datalist:
    """List the scans that are there, site by site, in ascending number.

    Layout: a folder per site (FOLDERS) with Case00.nii.gz and Case00_segmentation.nii.gz (or _Segmentation; or .nii).
    The outlines of some sites tell two zones apart, as 1 and 2: whatever is above 0 is prostate. Cases of one number at
    different sites are different men.

    Returns:
        rows with image, mask, subject (RUNMC_Case00) and site (one of SITES); no splits (`published_split` has some).

    Raises:
        InputError: another folder, a site that is there under two names, a scan without outline.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(
            "the folder of the prostate collection is missing", where=root, remedy=f"check the path; {ORIGIN}"
        )
    folders = {site: [root / name for name in names if (root / name).is_dir()] for site, names in FOLDERS.items()}
    for found in folders.values():
        for folder, other in pairwise(found):
            raise InputError(
                f"{folder.name} and {other.name} are the same site",
                where=folder,
                remedy="remove one of the two folders",
            )
    if not any(folders.values()):
        raise InputError(
            f"this is not the prostate collection (none of the folders {', '.join(SITES)})",
            where=root,
            remedy=f"give the folder that holds them; {ORIGIN}",
        )
    rows = [row for site, found in folders.items() for folder in found for row in _rows(site, folder)]
    if not rows:
        raise InputError("no scan of the prostate collection in this folder", where=root, remedy=ORIGIN)
    return Datalist(tuple(rows), root)


def report_missing(root: str | os.PathLike[str]) -> list[str]:
    """Say which of the 116 scans are missing, one line per site, and where they come from; empty when all are there.

    Raises:
        InputError: as `index`.
    """
    there = {row.subject for row in index(root)}
    lines = []
    for site, parts in published_split().items():
        subjects = sorted(subject for names in parts.values() for subject in names)
        missing = [subject.removeprefix(f"{site}_") for subject in subjects if subject not in there]
        if missing:
            lines.append(f"{site}: {len(missing)} of {len(subjects)} scans are missing: {', '.join(missing)}")
    return [*lines, f"prostate collection: {ORIGIN}"] if lines else []


def published_split() -> Splits:
    """The split that the code of AIVA (Goodman et al., DART 2022) publishes.

    Returns:
        site -> "train" and "test" -> subjects as `index` names them, in the published order. There is no validation
        part: the authors' list of that name equals their test list.
    """
    entries = []
    for row in published_table("aiva_splits_prostate"):
        site = SITES[int(row["site"])]
        entries.append((site, row["split"], f"{site}_{Path(row['image_path']).name.split('.')[0]}"))
    return collect(entries)


def _rows(site: str, folder: Path) -> list[Row]:
    rows: list[Row] = []
    for image in sorted(folder.iterdir()):
        match = _NAME.fullmatch(image.name)
        if match is None:
            continue
        case = match[1]
        names = [f"{case}_{word}{ending}" for word in ("segmentation", "Segmentation") for ending in _ENDINGS]
        mask = next((folder / name for name in names if (folder / name).is_file()), None)
        if mask is None:
            raise InputError(
                f"no outline {case}_segmentation.nii.gz beside it",
                where=image,
                remedy="add the outline or move the scan away",
            )
        if rows and rows[-1].subject == f"{site}_{case}":
            raise InputError(
                f"{case} is there twice, also as {rows[-1].image.name}", where=image, remedy="remove one of the two"
            )
        rows.append(Row(image, mask, subject=f"{site}_{case}", site=site, source=folder))
    return rows
