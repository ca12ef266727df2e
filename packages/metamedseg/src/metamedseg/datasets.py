"""Folders of slices: what `prepare` writes, and what every other command reads (specification 5).

A folder holds slices.csv and one folder per data set with images/NAME.npy (half precision) and masks/NAME.npy (0 and 1),
NAME being <volume>_slice<number>. Each row of slices.csv names the data set, its organ, the slice, its volume and number, its
split, and how many pixels of the mask are foreground.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dart_core.errors import InputError
from dart_core.files import write_csv, write_npy
from dart_core.run import METRICS
from metamedseg.settings import Slicing

INDEX = "slices.csv"
SLICING, CHANNELS = "slicing", "channels"
"""Keys of metrics.json in a folder of slices that were made from volumes: how, and data set -> channel of the volumes."""
COLUMNS = ("dataset", "organ", "name", "volume", "slice", "split", "pixels")
SPLITS = ("train", "val", "test")
TEST_SHARE, VAL_SHARE, SPLIT_SEED = 0.2, 0.1, 6
"""A fifth is for test, a tenth of the rest for validation, drawn with the authors' seed (specification 2.2)."""

_NAME = re.compile(r"(.+)_slice(\d+)(?:\.\w+)*")


def slices_by_volume(names: Iterable[str]) -> dict[str, list[str]]:
    """Group names of slices by volume, in numeric order.

    Args:
        names: <stem>_slice<number>, with or without an ending.

    Returns:
        volume -> its names. The volume is what stands behind the underscore of the stem (003 of la_003); the whole stem where
        it has none, or where two stems would share it.

    Raises:
        InputError: a name of another form.
    """
    numbered: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None:
            raise InputError(f"{name!r} is no name of a slice", remedy="name slices like la_003_slice10")
        numbered.setdefault(match[1], []).append((int(match[2]), name))
    short = {stem: stem.partition("_")[2] or stem for stem in numbered}
    unique = len(set(short.values())) == len(short)
    return {short[stem] if unique else stem: [name for _, name in sorted(found)] for stem, found in numbered.items()}


@dataclass(frozen=True)
class SliceRow:
    """One slice."""

    name: str
    volume: str
    number: int
    split: str
    pixels: int
    """Foreground pixels of the mask."""


@dataclass(frozen=True)
class SliceSet:
    """The slices of one data set (a region of an organ in one modality), opened when they are asked for."""

    name: str
    organ: str
    rows: tuple[SliceRow, ...]
    folder: Path

    def __len__(self) -> int:
        return len(self.rows)

    def split(self, split: str) -> SliceSet:
        """The slices of a split; there may be none."""
        return SliceSet(self.name, self.organ, tuple(row for row in self.rows if row.split == split), self.folder)

    def volumes(self) -> dict[str, list[int]]:
        """Volume -> places of its slices, by number."""
        found: dict[str, list[int]] = {}
        for place in sorted(range(len(self.rows)), key=lambda i: self.rows[i].number):
            found.setdefault(self.rows[place].volume, []).append(place)
        return {volume: found[volume] for volume in sorted(found)}

    def image(self, place: int) -> NDArray[np.float32]:
        """(1, H, W) float32.

        Raises:
            InputError: the file is missing, damaged, or holds something that is no number.
        """
        path = self.folder / "images" / f"{self.rows[place].name}.npy"
        values = _load(path).astype(np.float32)
        if not np.isfinite(values).all():
            raise InputError("holds pixels that are no numbers", where=path, remedy="prepare the slices anew")
        return values[None]

    def mask(self, place: int) -> NDArray[np.float32]:
        """(1, H, W), 0 and 1.

        Raises:
            InputError: as `image`, or other values.
        """
        path = self.folder / "masks" / f"{self.rows[place].name}.npy"
        values = _load(path)
        if not np.isin(values, (0, 1)).all():
            raise InputError("a mask holds other values than 0 and 1", where=path, remedy="prepare the slices anew")
        return values.astype(np.float32)[None]

    def stack(self, places: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Images and masks (n, 1, H, W) of some slices.

        Raises:
            InputError: as `image`, or slices of unequal size.
        """
        images, masks = [], []
        for place in places:
            images.append(self.image(place))
            masks.append(self.mask(place))
            for kind, array in (("image", images[-1]), ("mask", masks[-1])):
                if array.shape != images[0].shape:
                    raise InputError(
                        f"the {kind} of {self.rows[place].name} has shape {array.shape[1:]}, others {images[0].shape[1:]}",
                        where=self.folder,
                        remedy="prepare all slices with one --size",
                    )
        return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(masks))


def read_slices(folder: Path) -> dict[str, SliceSet]:
    """Read the index of a folder of slices: name of a data set -> its slices, by name.

    Raises:
        InputError: nothing of the kind, or a row that does not fit.
    """
    path = folder / INDEX
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
        lines = list(reader)
    except FileNotFoundError as error:
        raise InputError(f"holds no {INDEX}", where=folder, remedy="give what `metamedseg prepare` wrote") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot be read ({error})", where=path, remedy="prepare the folder anew") from error
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise InputError(f"has no column {missing[0]}", where=path, remedy="prepare the folder anew")
    found: dict[str, tuple[str, list[SliceRow]]] = {}
    for number, line in enumerate(lines, 2):
        values = {key: line.get(key) or "" for key in COLUMNS}
        whole = values["slice"].isdecimal() and values["pixels"].isdecimal()
        if not whole or values["split"] not in SPLITS or not all(values[key] for key in ("dataset", "organ", "name")):
            raise InputError(
                f"slice {values['slice']!r}, pixels {values['pixels']!r}, split {values['split']!r} of {values['name']!r}",
                where=f"{path}, row {number}",
                remedy="give two numbers, and train, val or test",
            )
        row = SliceRow(values["name"], values["volume"], int(values["slice"]), values["split"], int(values["pixels"]))
        found.setdefault(values["dataset"], (values["organ"], []))[1].append(row)
    if not found:
        raise InputError("names no slice", where=path, remedy="prepare the folder with lower thresholds")
    return {name: SliceSet(name, found[name][0], tuple(found[name][1]), folder / name) for name in sorted(found)}


def find_set(sets: Mapping[str, SliceSet], name: str, folder: Path) -> SliceSet:
    """One of the data sets.

    Raises:
        InputError: there is none of this name.
    """
    if name not in sets:
        raise InputError(f"no data set {name!r}", where=folder, remedy=f"there are {', '.join(sets)}")
    return sets[name]


def read_slicing(folder: Path) -> Slicing | None:
    """How `prepare` made the slices from volumes; None where the folder does not say."""
    try:
        return Slicing(**_metrics(folder)[SLICING])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_channel(folder: Path, name: str) -> int:
    """The channel of the volumes that the slices of a data set were made from; 0 where the folder does not say."""
    try:
        return int(_metrics(folder)[CHANNELS][name])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _metrics(folder: Path) -> Any:
    return json.loads((folder / METRICS).read_text(encoding="utf-8"))


def write_slice(folder: Path, name: str, image: NDArray[Any], mask: NDArray[Any]) -> None:
    """Write one slice of a data set; the mask first, so that no image is without.

    Args:
        folder: of the data set.
        name: of the slice.
        image: (H, W).
        mask: (H, W) bool.
    """
    write_npy(folder / "masks" / f"{name}.npy", mask.astype(np.uint8))
    write_npy(folder / "images" / f"{name}.npy", image.astype(np.float16))


def write_index(folder: Path, sets: Sequence[SliceSet]) -> None:
    """Write slices.csv, the last file of a folder of slices."""
    write_csv(
        folder / INDEX,
        COLUMNS,
        [
            (one.name, one.organ, row.name, row.volume, row.number, row.split, row.pixels)
            for one in sets
            for row in one.rows
        ],
    )


def draw_split(units: Sequence[str], seed: int = SPLIT_SEED) -> dict[str, str]:
    """Volumes (or slices) -> train, val or test: a fifth test, then a tenth of the rest validation, both rounded up.

    The draws are those of scikit-learn's `train_test_split`, which the authors use, over the sorted units.

    Args:
        units: any order; they are sorted first.
        seed: of both draws.
    """
    train = sorted(units)
    split_of = dict.fromkeys(train, "train")
    for split, share in (("test", TEST_SHARE), ("val", VAL_SHARE)):
        if len(train) < 2:
            break
        order = np.random.RandomState(seed).permutation(len(train))
        count = math.ceil(share * len(train))
        split_of |= {train[i]: split for i in order[:count]}
        train = [train[i] for i in order[count:]]
    return split_of


def _load(path: Path) -> NDArray[Any]:
    try:
        values: NDArray[Any] = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError("is not there", where=path, remedy="prepare the slices anew") from error
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"is no slice ({error})", where=path, remedy="prepare the slices anew") from error
    if values.ndim != 2 or values.dtype.kind not in "fiub":
        raise InputError(
            f"holds an array of shape {values.shape} and type {values.dtype}", where=path, remedy="slices are (H, W)"
        )
    return values
