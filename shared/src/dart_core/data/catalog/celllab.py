"""Folders like CellLab's: fibroblasts under a phase-contrast microscope, one folder per state of the cells.

CellLab itself (224 training and 5 test pictures of L929 cells, Elbatel et al., DART 2022) is owned by a test institute and is not
public. A folder of the same kind can hold anybody's pictures:

    alive/ dead/ inhib/                      training pictures
    test_labelled/                           test pictures
    weak_labels_reduced_nms/<state>/*.txt    weak labels, lines of "class xmin ymin xmax ymax" (optional)

The readers' labels are COCO files, which `dart_core.data.boxes.read_boxes` reads; leave the class "fibre" out.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from dart_core.data.boxes import BoxedPicture, read_box_text
from dart_core.data.images import find_pictures
from dart_core.errors import InputError

STATES = {"alive": "watershed", "dead": "circles", "inhib": "edges"}
"""State of the cells in a picture -> the pipeline that makes its weak labels."""
TEST, WEAK, IGNORED = "test_labelled", "weak_labels_reduced_nms", "fibre"
ORIGIN = "CellLab is not public; lay out your own pictures like it, see dart_core.data.catalog.celllab"


def recognise(root: str | os.PathLike[str]) -> bool:
    """Whether a folder has this layout."""
    return any((Path(root) / state).is_dir() for state in STATES)


def index(root: str | os.PathLike[str]) -> list[BoxedPicture]:
    """List the pictures that are there, with their weak labels where there are any.

    Returns:
        pictures with site (the state of the cells) and split: train, or test, which has no boxes here.

    Raises:
        InputError: no picture, or a damaged label file.
    """
    root = Path(root)
    found = []
    for state in (*STATES, TEST):
        if not (root / state).is_dir():
            continue
        for image in find_pictures(root / state):
            labels = root / WEAK / state / f"{image.stem}.txt"
            picture = BoxedPicture(image, np.zeros((0, 4)), (), where=str(image))
            if labels.is_file():
                picture = read_box_text(labels, image)
            found.append(
                replace(picture, split="test" if state == TEST else "train", site="" if state == TEST else state)
            )
    if not found:
        raise InputError(f"no folder {', '.join(STATES)} with pictures", where=root, remedy=ORIGIN)
    return found
