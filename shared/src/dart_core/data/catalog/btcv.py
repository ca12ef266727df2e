"""BTCV: abdominal CTs with thirteen organs, of the MICCAI 2015 challenge "Multi-Atlas Labeling Beyond the Cranial Vault".

Landman B. et al., doi:10.7303/syn3193805.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from dart_core.data.catalog import multi_organ
from dart_core.data.catalog._pictures import check_root
from dart_core.data.datalist import Datalist, Row
from dart_core.errors import InputError

SITE = "BTCV"
NUMBERS = (*range(1, 11), *range(21, 41))
"""Of the 30 training scans, the ones with published labels."""

ORIGIN = (
    "the owners give it to registered users at https://www.synapse.org/#!Synapse:syn3193805 (Abdomen, RawData.zip); cite Landman"
    " et al., doi:10.7303/syn3193805"
)

_NAME = re.compile(r"(img|label)(\d{4})\.nii(?:\.gz)?")


def index(
    root: str | os.PathLike[str],
    annotation: Literal["official", "zenodo"] = "official",
    labels: str | os.PathLike[str] | None = None,
) -> Datalist:
    """List the scans that have labels, by number.

    Layout: img0001.nii.gz in a folder img and label0001.nii.gz in a folder label beside it (RawData/Training), or all in one
    folder, at any depth below `root`. The test scans (61 to 80) have no labels and are left out.

    Args:
        root: the folder.
        annotation: official: the challenge's labels; zenodo: those of `multi_organ`, which also exist for test scans.
        labels: folder with the label files of `multi_organ`; None: a folder below `root` named like label_btcv_multiorgan, and
            where there is none, the official ones.

    Returns:
        rows with image, mask, subject (BTCV_0001), site BTCV and the column annotation; no split.

    Raises:
        InputError: another folder, a file that is there twice, or no labels.
    """
    folder = Path(root)
    images, official = _files(folder)
    masks, used = official, "official"
    if annotation == "zenodo":
        found = multi_organ.label_files(
            [Path(labels)] if labels is not None else multi_organ.label_folders(folder, "btcv")
        )
        masks, used = (found, multi_organ.ANNOTATION) if found else (official, "official")
    numbers = [number for number in sorted(images) if number in masks]
    if not numbers:
        raise InputError(
            "none of its scans has a label file",
            where=folder,
            remedy=f"copy the folder label; {ORIGIN}; {multi_organ.ORIGIN}",
        )
    rows = [
        Row(images[n], masks[n], subject=f"{SITE}_{n:04d}", site=SITE, labels={"annotation": used}, source=folder)
        for n in numbers
    ]
    return Datalist(tuple(rows), folder)


def report_missing(root: str | os.PathLike[str]) -> list[str]:
    """Say which of the 30 training scans and labels are missing, and where they come from; empty when all are there.

    Raises:
        InputError: as `index`.
    """
    images, labels = _files(Path(root))
    lines = []
    for found, what in ((images, "img"), (labels, "label")):
        missing = [number for number in NUMBERS if number not in found]
        if missing:
            lines.append(
                f"{len(missing)} of {len(NUMBERS)} training files are missing, the first is {what}{missing[0]:04d}.nii.gz"
            )
    return [*lines, f"BTCV: {ORIGIN}"] if lines else []


def _files(root: Path) -> tuple[dict[int, Path], dict[int, Path]]:
    """Number -> scan, and number -> official label file."""
    check_root(root, SITE, ORIGIN)
    other = set(multi_organ.label_folders(root, "btcv"))
    found: dict[str, dict[int, Path]] = {"img": {}, "label": {}}
    for path in sorted(root.rglob("*.nii*")):
        match = _NAME.fullmatch(path.name)
        if match is None or path.parent in other:
            continue
        own, number = found[match[1]], int(match[2])
        if number in own:
            raise InputError(f"it is there twice, also as {own[number]}", where=path, remedy="remove one of the two")
        own[number] = path
    if not found["img"]:
        raise InputError(
            "this is not the folder of BTCV (no img0001.nii.gz)",
            where=root,
            remedy=f"give the folder that holds img; {ORIGIN}",
        )
    return found["img"], found["label"]
