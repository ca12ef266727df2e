"""Labelled pictures: from a datalist or a folder to what a training draws.

A datalist's rows become `Pictures` (rows and a table of truth), `split_pictures` divides them, and `PictureFiles` opens
the files, all as 8-bit colour.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as transforms

from dart_core.data.datalist import Datalist, Row
from dart_core.data.images import ENDINGS as ENDINGS
from dart_core.data.images import find_pictures as find_pictures
from dart_core.data.images import read_image
from dart_core.errors import InputError

SplitBy = Literal["patient", "image"]
_CELLS = {"": math.nan, "0": 0.0, "0.0": 0.0, "1": 1.0, "1.0": 1.0}
LABEL_SHARE = 0.9
"""Of a column's filled cells; from this on it is taken for a label column."""
_NO_ADVICE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures of one data set with their labels."""

    name: str
    """The data set (a datalist's site)."""
    labels: tuple[str, ...]
    rows: tuple[Row, ...]
    truth: NDArray[np.float32]
    """(images, labels) of 0 and 1; nan = unknown."""

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: Iterable[int]) -> Pictures:
        """Some of the images, in the order given."""
        places = list(places)
        return dataclasses.replace(self, rows=tuple(self.rows[i] for i in places), truth=self.truth[places])


# --- Datalists -------------------------------------------------------------------------------------------------------


def sites_of(datalist: Datalist) -> tuple[str, ...]:
    """The data sets of a datalist; one without a site column is one data set with the file's name."""
    return datalist.sites or (datalist.source.stem,)


def site_rows(datalist: Datalist, site: str) -> tuple[Row, ...]:
    """The rows of one of `sites_of`.

    Raises:
        InputError: no such site.
    """
    if not datalist.sites and site == datalist.source.stem:
        return datalist.rows
    return datalist.select(site=site).rows


def read_pictures(
    datalist: Datalist,
    site: str,
    labels: Sequence[str] = (),
    labelled: bool = True,
    advice: Mapping[str, str] = _NO_ADVICE,
) -> Pictures:
    """The images of one data set and their labels. Opens no image.

    Args:
        datalist: one column per label.
        site: the data set, one of `sites_of`.
        labels: the label columns; empty: every column that holds nothing but 0, 1 and empty cells at this site.
        labelled: every image must have a label.
        advice: cells that a kind of data writes where others write 0 or 1 -> what a message says about them; see
            `label_columns`.

    Raises:
        InputError: no such site or column, a cell that is no label, no label at all.
    """
    rows = site_rows(datalist, site)
    there = list(dict.fromkeys(name for row in rows for name in row.labels))
    for name in labels:
        if name not in there:
            known = ", ".join(there) or "none with a filled cell"
            raise InputError(f"site {site} has no column {name!r}", where=datalist.source, remedy=f"there are: {known}")
    columns = tuple(labels) or label_columns(rows, advice)
    if labelled and not columns:
        raise InputError(
            f"site {site} has no label column",
            where=datalist.source,
            remedy="add one column per label with 0 and 1, or name them: --labels",
        )
    truth = np.full((len(rows), len(columns)), np.nan, dtype=np.float32)
    for i, row in enumerate(rows):
        for j, name in enumerate(columns):
            truth[i, j] = _label(row, name, advice)
        if labelled and np.isnan(truth[i]).all():
            raise InputError("no label is filled in", where=row.where(columns[0]), remedy="fill in 0 or 1")
    return Pictures(site, columns, rows, truth)


def label_columns(rows: Sequence[Row], advice: Mapping[str, str] = _NO_ADVICE) -> tuple[str, ...]:
    """The columns of which at least nine in ten filled cells are 0 or 1, or something that `advice` knows.

    Reading the column points the others out: a slip of the pen must not make a label disappear.
    """
    there = dict.fromkeys(name for row in rows for name in row.labels)
    allowed = {*_CELLS, *advice}

    def is_label(name: str) -> bool:
        filled = [row.labels[name] for row in rows if row.labels.get(name)]
        return sum(cell in allowed for cell in filled) >= LABEL_SHARE * len(filled)

    return tuple(name for name in there if is_label(name))


def label_problems(
    row: Row, labels: Sequence[str], advice: Mapping[str, str] = _NO_ADVICE
) -> Iterator[tuple[str, InputError]]:
    """What is wrong with the label cells of a row, as (column, error)."""
    for name in labels:
        try:
            _label(row, name, advice)
        except InputError as error:
            yield name, InputError(error.problem, remedy=error.remedy)


def _label(row: Row, name: str, advice: Mapping[str, str]) -> float:
    cell = row.labels.get(name, "")
    if cell not in _CELLS:
        hint = f"; {advice[cell]}" if cell in advice else ""
        raise InputError(f"{cell!r} is no label", where=row.where(name), remedy=f"give 0 or 1{hint}")
    return _CELLS[cell]


def split_pictures(
    pictures: Pictures, split_by: SplitBy = "patient", test_share: float = 0.1, val_share: float = 0.0, seed: int = 0
) -> dict[str, Pictures]:
    """Training, validation and test images of a data set.

    Splits that the datalist names are kept, and images without one are for training, except for what is drawn: where no
    image is named for test, each patient goes there with a chance of `test_share` if the datalist names no split for one
    of their images; and then, where no image is named for validation, each patient left for training (named so or not)
    goes there with a chance of `val_share`.

    Args:
        pictures: of one data set.
        split_by: "image" draws image by image, so that the images of one person can be on both sides.
        test_share: chance of being a test case.
        val_share: chance of a training case to be one for validation.
        seed: of the draws, and of the order of the training images.

    Returns:
        train, val and test; each may be empty. The training images come in a random order, so that the first n are a
        sample.

    Raises:
        InputError: the split is to be drawn by patient and an image names none.
    """
    named = {row.split for row in pictures.rows}
    splits = [row.split or "train" for row in pictures.rows]
    if "test" not in named:
        settled = {row.subject for row in pictures.rows if row.split and row.subject and split_by == "patient"}
        free = [place for place, row in enumerate(pictures.rows) if not row.split and row.subject not in settled]
        _draw(pictures, splits, free, "test", split_by, test_share, np.random.default_rng(seed))
    if "val" not in named and val_share > 0:
        free = [place for place, split in enumerate(splits) if split == "train"]
        _draw(pictures, splits, free, "val", split_by, val_share, np.random.default_rng([seed, 1]))
    places = {name: [i for i, split in enumerate(splits) if split == name] for name in ("train", "val", "test")}
    parts = {name: pictures.take(found) for name, found in places.items()}
    parts["train"] = parts["train"].take(np.random.default_rng(seed).permutation(len(parts["train"])))
    return parts


def _draw(
    pictures: Pictures, splits: list[str], places: Sequence[int], split: str, split_by: SplitBy, share: float,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """Send some of the images at `places` to another split, all of a patient together; changes `splits`."""
    drawn: dict[str, bool] = {}
    for place in places:
        row = pictures.rows[place]
        if split_by == "patient" and not row.subject:
            raise InputError(
                "the row names no subject, so that a split by patient cannot be drawn",
                where=row.where("subject"),
                remedy="fill the column subject in, add a column split, or give --split-by image",
            )
        unit = row.subject if split_by == "patient" else str(place)
        if unit not in drawn:
            drawn[unit] = bool(rng.random() < share)
        if drawn[unit]:
            splits[place] = split


def filled(pictures: Pictures, split: str, datalist: Datalist) -> Pictures:
    """The pictures of a split, of which there must be one.

    Raises:
        InputError: there is none.
    """
    if not len(pictures):
        raise InputError(
            f"site {pictures.name} has no image with split {split}",
            where=datalist.source,
            remedy=f"write {split} into the column split of some rows",
        )
    return pictures


# --- Files -----------------------------------------------------------------------------------------------------------


class PictureFiles(Dataset[dict[str, Any]]):
    """The pictures of some rows as 8-bit colour; grey, RGBA, palette, CMYK and 16-bit files become that too.

    Item i is {"image": uint8 (3, H, W), "index": i}; a file that cannot be read raises the `InputError` of
    `dart_core.data.images.read_image`, which names it.

    Args:
        rows: of a datalist.
        size: side that the pictures are resized to, bilinear with antialiasing; None leaves them as they are. Without
            `square` a picture that is not square is squeezed.
        square: cut the middle square of the shorter side out first (of an odd rest, the larger half goes at the bottom
            or on the right).
        memory: keep the pictures once they are read (each loading process keeps its own).
    """

    def __init__(
        self, rows: Sequence[Row], size: int | None = None, *, square: bool = False, memory: bool = False
    ) -> None:
        if size is not None and size < 1:
            raise ValueError(f"size is {size}; a picture has at least 1 pixel")
        self.rows = tuple(rows)
        self.size = size
        self.square = square
        self._kept: dict[int, Tensor] | None = {} if memory else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = range(len(self.rows))[index]  # IndexError behind the end, which also ends a plain loop
        image = None if self._kept is None else self._kept.get(place)
        if image is None:
            image = resized(
                torch.from_numpy(read_image(self.rows[place].image)).permute(2, 0, 1), self.size, self.square
            )
            if self._kept is not None:
                self._kept[place] = image
        # Whoever changes a picture in place must not change what is kept.
        return {"image": image if self._kept is None else image.clone(), "index": place}


def resized(image: Tensor, size: int | None, square: bool = False) -> Tensor:
    """A picture (3, H, W) as `PictureFiles` gives it: (3, size, size), contiguous, of the same type."""
    if square:
        height, width = image.shape[-2:]
        side = min(height, width)
        image = transforms.crop(image, (height - side) // 2, (width - side) // 2, side, side)
    if size is not None:
        image = transforms.resize(image, [size, size], antialias=True)
    return image.contiguous()
