"""Cellpose's data set: 540 training and 68 test pictures of cells and cell-like objects with instance masks.

Stringer C., Wang T., Michaelos M., Pachitariu M., "Cellpose: a generalist algorithm for cellular segmentation", Nature Methods
18:100-106, 2021. From https://www.cellpose.org/dataset, for non-commercial use (CC BY-NC), after asking there.
"""

from __future__ import annotations

import os
from pathlib import Path

from dart_core.data.boxes import BoxedPicture, picture_of_mask
from dart_core.errors import InputError

COUNTS = {"train": 540, "test": 68}
"""Pictures of the whole set; the sissi paper counts 539 training pictures."""
ORIGIN = "https://www.cellpose.org/dataset gives it for non-commercial use"


def recognise(root: str | os.PathLike[str]) -> bool:
    """Whether a folder looks like this data set."""
    return any(any((Path(root) / part).glob("*_img.png")) for part in ("train", "test"))


def index(root: str | os.PathLike[str]) -> list[BoxedPicture]:
    """List the pictures that are there, with one box per instance (see `dart_core.data.boxes.boxes_from_labels`).

    Args:
        root: folder with train/ and test/, which hold NNN_img.png and NNN_masks.png.

    Returns:
        pictures with split train or val: the authors of sissi validate on the test part.

    Raises:
        InputError: no picture, or one without its mask.
    """
    found = []
    for part, split in (("train", "train"), ("test", "val")):
        for image in sorted((Path(root) / part).glob("*_img.png")):
            mask = image.with_name(image.name.replace("_img.png", "_masks.png"))
            if not mask.is_file():
                raise InputError(f"no mask {mask.name}", where=image, remedy=f"complete the data set; {ORIGIN}")
            found.append(picture_of_mask(image, mask, str(image), split=split, site="cellpose"))
    if not found:
        raise InputError("no picture train/NNN_img.png", where=root, remedy=ORIGIN)
    return found


def report_missing(root: str | os.PathLike[str]) -> list[str]:
    """What the folder lacks of the whole set, a line for each part."""
    lines = []
    for part, count in COUNTS.items():
        there = len(list((Path(root) / part).glob("*_img.png")))
        if there < count:
            lines.append(f"{part}: {there} of {count} pictures; {ORIGIN}")
    return lines
