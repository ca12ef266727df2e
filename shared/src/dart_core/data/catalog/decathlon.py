"""Medical Segmentation Decathlon (MSD): ten tasks of CT and MR volumes with labels; and folders of the same layout.

Antonelli M. et al., "The Medical Segmentation Decathlon", Nature Communications 13:4128, 2022,
doi:10.1038/s41467-022-30695-9; Simpson A. L. et al., arXiv:1902.09063, 2019.

`dart_core.data.datalist.Datalist` reads the lists of any dataset.json; here are the names of its modalities and labels, and
the files themselves.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dart_core.data.catalog._pictures import check_root
from dart_core.data.datalist import Datalist, Row
from dart_core.data.volumes import Volume, read_labels, read_volume
from dart_core.errors import InputError, SettingError

TASKS = (
    "Task01_BrainTumour",
    "Task02_Heart",
    "Task03_Liver",
    "Task04_Hippocampus",
    "Task05_Prostate",
    "Task06_Lung",
    "Task07_Pancreas",
    "Task08_HepaticVessel",
    "Task09_Spleen",
    "Task10_Colon",
)
"""The folders that the owners publish."""

ORIGIN = (
    "the owners give it under CC BY-SA 4.0 at http://medicaldecathlon.com; cite Antonelli et al., Nature Communications"
    " 13:4128, 2022"
)

_COMPANION = "._"  # what macOS puts beside the files of an archive


@dataclass(frozen=True)
class DecathlonTask:
    """One task: its cases, and what its channels and labels are called."""

    folder: Path
    """The folder that holds dataset.json."""
    modalities: tuple[str, ...]
    """Names of the channels, in their order."""
    labels: Mapping[int, str]
    """Label value -> name; 0 is the background."""
    cases: Datalist
    """Rows with image, mask (None for a test case), subject (hippocampus_001) and split (train, test; or val)."""

    @property
    def name(self) -> str:
        """Name of the folder, such as Task04_Hippocampus."""
        return self.folder.resolve().name

    def channel(self, modality: str | int) -> int:
        """Number of a channel that is named, or given by its number.

        Raises:
            SettingError: there is no such channel.
        """
        for number, name in enumerate(self.modalities):
            if modality in (number, name):
                return number
        listed = ", ".join(f"{number} = {name}" for number, name in enumerate(self.modalities))
        raise SettingError(f"no channel {modality!r}", where=self.folder / "dataset.json", remedy=f"there: {listed}")

    def read_image(self, row: Row, modality: str | int = 0, orientation: str | None = None) -> Volume:
        """Read one channel of a case, from a 3-D or 4-D (x, y, z, channel) file.

        Args:
            row: the case.
            modality: name or number of the channel.
            orientation: axis codes that the array gets, as in `read_volume`; None keeps the order of the file.

        Raises:
            InputError: as `read_volume`, or a file with fewer channels than dataset.json names.
            SettingError: there is no such channel.
        """
        return read_volume(row.image, orientation, frame=self.channel(modality))

    def read_labels(self, row: Row, like: Volume, negative_as_background: bool = False) -> NDArray[np.int16]:
        """Read the labels of a case on the grid of its image; every value is one that dataset.json lists.

        Args:
            row: the case.
            like: its image.
            negative_as_background: take stray values below 0 for 0 (hippocampus_243 has such), instead of refusing them.

        Raises:
            InputError: as `dart_core.data.volumes.read_labels`, a case without labels, or a value that is not listed.
        """
        if row.mask is None:
            raise InputError(
                "this case has no labels", where=row.image, remedy="test cases are unlabelled: take training cases"
            )
        labels = read_labels(row.mask, like, negative_as_background=negative_as_background)
        strange = sorted(set(np.unique(labels).tolist()) - set(self.labels))
        if strange:
            listed = ", ".join(f"{value} = {name}" for value, name in self.labels.items())
            raise InputError(
                f"the label {strange[0]} is not in dataset.json (there: {listed})",
                where=row.mask,
                remedy="add it to 'labels' in dataset.json, or correct the file",
            )
        return labels


def index(root: str | os.PathLike[str], test: bool = False) -> DecathlonTask:
    """Read the dataset.json of one task. Opens no volume, but looks whether the files are there.

    Layout: dataset.json, imagesTr/*.nii.gz, labelsTr/*.nii.gz, imagesTs/*.nii.gz, as dataset.json lists them. Files that macOS
    adds (._*) are passed over.

    Args:
        root: the folder of the task, or its dataset.json.
        test: take the unlabelled test cases as well.

    Raises:
        InputError: another folder, a dataset.json that is damaged or names no modality or label, or a listed file that is
            missing. One line with file, entry and remedy.
    """
    path = Path(root)
    folder = path.parent if path.name == "dataset.json" else path
    check_root(folder, "Medical Segmentation Decathlon", ORIGIN)
    path = folder / "dataset.json"
    if not path.is_file():
        raise InputError(
            "this folder holds no dataset.json",
            where=folder,
            remedy=f"give the folder of one task, such as Task04_Hippocampus; {ORIGIN}",
        )
    listed = Datalist.read(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    modalities = _numbered(path, content, "modality", '{"0": "MRI"}')
    if list(modalities) != list(range(len(modalities))):
        raise InputError(
            "the numbers under 'modality' are not 0, 1, 2 ...", where=path, remedy="number the channels from 0"
        )
    labels = _numbered(path, content, "labels", '{"0": "background", "1": "liver"}')
    rows = []
    for row in listed:
        if row.image.name.startswith(_COMPANION) or (row.split == "test" and not test):
            continue
        for column, file in (("image", row.image), ("label", row.mask)):
            if file is not None and not file.is_file():
                raise InputError(
                    f"{file} is listed and missing",
                    where=row.where(column),
                    remedy="unpack it again, or take the case out of dataset.json",
                )
        if row.mask is None and row.split != "test":
            raise InputError("a training case without label", where=row.where("label"), remedy="add its label")
        rows.append(row)
    if not rows:
        raise InputError("it lists no training case", where=path, remedy='list cases under "training"')
    return DecathlonTask(folder, tuple(modalities.values()), labels, Datalist(tuple(rows), path))


def task_folders(root: str | os.PathLike[str]) -> list[Path]:
    """The folders of tasks in `root`, sorted by name; `root` itself where it holds a dataset.json.

    Raises:
        InputError: no such folder, or none of its folders holds a dataset.json.
    """
    root = Path(root)
    check_root(root, "Medical Segmentation Decathlon", ORIGIN)
    if (root / "dataset.json").is_file():
        return [root]
    found = sorted(path.parent for path in root.glob("*/dataset.json"))
    if not found:
        raise InputError(
            "neither this folder nor a folder in it holds a dataset.json",
            where=root,
            remedy=f"give the folder that holds Task01_BrainTumour and the others; {ORIGIN}",
        )
    return found


def report_missing(root: str | os.PathLike[str]) -> list[str]:
    """Say which of the ten tasks are missing in `root`, and where they come from; empty when all are there.

    Raises:
        InputError: no such folder.
    """
    check_root(Path(root), "Medical Segmentation Decathlon", ORIGIN)
    missing = [name for name in TASKS if not (Path(root) / name / "dataset.json").is_file()]
    if not missing:
        return []
    return [
        f"{len(missing)} of {len(TASKS)} tasks are missing: {', '.join(missing)}",
        f"Medical Segmentation Decathlon: {ORIGIN}",
    ]


def _numbered(path: Path, content: Mapping[str, Any], key: str, example: str) -> dict[int, str]:
    """The names under a key of dataset.json, by number."""
    names = content.get(key)
    good = isinstance(names, dict) and names and all(number.isdecimal() for number in names)
    if not isinstance(names, dict) or not good:
        raise InputError(f"{key!r} is no list of names by number", where=path, remedy=f'write "{key}": {example}')
    return {number: str(name) for number, name in sorted((int(number), name) for number, name in names.items())}
