"""Labelled radiographs: from a datalist to what a training draws (specification 5.3)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from dart_core.data.catalog import chestxray14, chexpert
from dart_core.data.datalist import Datalist, Row
from dart_core.data.images import read_image
from dart_core.errors import InputError
from mmtl_octl.schedules import MixedBatches, Schedule, TrainingBatches
from mmtl_octl.settings import Training

TEST_SHARE = 0.1
"""Chance of a patient (or image) to be a test case where the datalist has no test split."""
SPLIT_SEED = 0
"""Of that draw and of the order of the training list: the same for every run, so that runs can be compared."""
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""Of the random crops: share of the picture's area, and width by height."""

SplitBy = Literal["patient", "image"]
_UNCERTAIN = ("-1", "-1.0")
_CELLS = {"": math.nan, "0": 0.0, "0.0": 0.0, "1": 1.0, "1.0": 1.0}


@dataclass(frozen=True, eq=False)
class Pictures:
    """Radiographs of one data set with their labels."""

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


# --- Reading ---------------------------------------------------------------------------------------------------------


def open_pictures(path: Path) -> Datalist:
    """A CSV datalist, or the folder of CheXpert or ChestX-ray14 as its owners publish it.

    CheXpert has no test split (its test labels are not published): its training images come without a split, so that
    `split_pictures` draws one.

    Raises:
        InputError: none of these.
    """
    if not path.is_dir():
        return Datalist.read(path)
    if any(path.glob("Data_Entry_2017*.csv")):
        return chestxray14.index(path)
    try:
        found = chexpert.index(path)
        rows = (dataclasses.replace(row, split="" if row.split == "train" else row.split) for row in found)
        return Datalist(tuple(rows), found.source)
    except InputError as error:
        if "not a CheXpert folder" not in error.problem:
            raise
        raise InputError(
            "this folder is neither CheXpert nor ChestX-ray14",
            where=path,
            remedy="give a CSV datalist, or the folder with train.csv or Data_Entry_2017_v2020.csv",
        ) from error


def sites_of(datalist: Datalist) -> tuple[str, ...]:
    """The data sets of a datalist; one without a site column is one data set with the file's name."""
    return datalist.sites or (datalist.source.stem,)


def read_pictures(datalist: Datalist, site: str, labels: Sequence[str] = (), labelled: bool = True) -> Pictures:
    """The images of one data set and their labels. Opens no image.

    Args:
        datalist: one column per label.
        site: the data set, one of `sites_of`.
        labels: the label columns; empty: every column that holds nothing but 0, 1 and empty cells at this site.
        labelled: every image must have a label.

    Raises:
        InputError: no such site or column, a cell that is no label, no label at all.
    """
    rows = site_rows(datalist, site)
    there = list(dict.fromkeys(name for row in rows for name in row.labels))
    for name in labels:
        if name not in there:
            known = ", ".join(there) or "none"
            raise InputError(f"site {site} has no column {name!r}", where=datalist.source, remedy=f"there are: {known}")
    columns = tuple(labels) or label_columns(rows)
    if labelled and not columns:
        raise InputError(
            f"site {site} has no label column",
            where=datalist.source,
            remedy="add one column per label with 0 and 1, or name them: --labels",
        )
    truth = np.full((len(rows), len(columns)), np.nan, dtype=np.float32)
    for i, row in enumerate(rows):
        for j, name in enumerate(columns):
            truth[i, j] = _label(row, name)
        if labelled and np.isnan(truth[i]).all():
            raise InputError("no label is filled in", where=row.where(columns[0]), remedy="fill in 0 or 1")
    return Pictures(site, columns, rows, truth)


def site_rows(datalist: Datalist, site: str) -> tuple[Row, ...]:
    """The rows of one of `sites_of`.

    Raises:
        InputError: no such site.
    """
    if not datalist.sites and site == datalist.source.stem:
        return datalist.rows
    return datalist.select(site=site).rows


def label_columns(rows: Sequence[Row]) -> tuple[str, ...]:
    """The columns that hold nothing but 0, 1 and empty cells.

    A -1, with which CheXpert's tables mark an uncertain label, does not make a column one of no labels: reading it points
    the cell out.
    """
    there = dict.fromkeys(name for row in rows for name in row.labels)
    allowed = {*_CELLS, *_UNCERTAIN}
    return tuple(name for name in there if all(row.labels.get(name, "") in allowed for row in rows))


def label_problems(row: Row, labels: Sequence[str]) -> Iterator[tuple[str, InputError]]:
    """What is wrong with the label cells of a row, as (column, error)."""
    for name in labels:
        try:
            _label(row, name)
        except InputError as error:
            yield name, InputError(error.problem, remedy=error.remedy)


def _label(row: Row, name: str) -> float:
    cell = row.labels.get(name, "")
    if cell not in _CELLS:
        advice = "; an uncertain one counts as 1 in the paper" if cell in _UNCERTAIN else ""
        raise InputError(f"{cell!r} is no label", where=row.where(name), remedy=f"give 0 or 1{advice}")
    return _CELLS[cell]


def split_pictures(pictures: Pictures, split_by: SplitBy) -> dict[str, Pictures]:
    """Training, validation and test images of a data set.

    Splits that the datalist names are kept. Images without one are for training; but where no image is named for test, each
    patient of theirs goes to test with a chance of 0.1. (The authors draw image by image, so that one person's images are
    on both sides; that is `split_by` "image".)

    Returns:
        train, val and test; each may be empty. The training images come in a fixed random order, so that the first n
        are a sample (specification 2.4, item 3).

    Raises:
        InputError: the split is to be drawn by patient and an image names none.
    """
    splits = [row.split or "train" for row in pictures.rows]
    rng = np.random.default_rng(SPLIT_SEED)
    if "test" not in splits:
        test: dict[str, bool] = {}
        for place, row in enumerate(pictures.rows):
            if row.split:
                continue
            if split_by == "patient" and not row.subject:
                raise InputError(
                    "the row names no subject, so that a split by patient cannot be drawn",
                    where=row.where("subject"),
                    remedy="fill the column subject in, add a column split, or give --split-by image",
                )
            unit = row.subject if split_by == "patient" else str(place)
            if unit not in test:
                test[unit] = bool(rng.random() < TEST_SHARE)
            splits[place] = "test" if test[unit] else "train"
    places = {name: [i for i, split in enumerate(splits) if split == name] for name in ("train", "val", "test")}
    parts = {name: pictures.take(found) for name, found in places.items()}
    parts["train"] = parts["train"].take(np.random.default_rng(SPLIT_SEED).permutation(len(parts["train"])))
    return parts


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


# --- Images ----------------------------------------------------------------------------------------------------------


def load_picture(row: Row) -> Tensor:
    """uint8 (1, H, W).

    Raises:
        InputError: not a picture.
    """
    return torch.from_numpy(read_image(row.image, "L"))[None]


def training_view(image: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """A random crop of 8 % to all of the picture, resized, and mirrored in every second case.

    The crop is drawn as torchvision's RandomResizedCrop draws it: ten tries, then the largest fitting middle.

    Args:
        image: uint8 (1, H, W).
        size: side of the result.
        rng: draws.

    Returns:
        float32 (1, size, size) in [0, 1].
    """
    top, left, height, width = random_crop(image.shape[-2], image.shape[-1], rng)
    view: Tensor = transforms.resized_crop(image, top, left, height, width, [size, size], antialias=True)
    if rng.random() < 0.5:
        view = view.flip(-1)
    return view.float() / 255


def random_crop(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop."""
    for _ in range(10):
        area = height * width * rng.uniform(*SCALE)
        ratio = math.exp(rng.uniform(*np.log(RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    low, high = RATIO
    w, h = min(width, round(height * high)), min(height, round(width / low))
    return (height - h) // 2, (width - w) // 2, h, w


def whole_view(image: Tensor, size: int) -> Tensor:
    """The whole picture (1, H, W) resized to float32 (1, size, size) in [0, 1]."""
    view: Tensor = transforms.resize(image, [size, size], antialias=True)
    return view.float() / 255


# --- Batches ---------------------------------------------------------------------------------------------------------


def picture_batches(
    label_sets: Mapping[str, Sequence[str]], sources: Sequence[Pictures], targets: Sequence[Pictures],
    training: Training, image_size: int, seed: int, schedule: Schedule, keep_source: bool = False,
) -> TrainingBatches:  # fmt: skip
    """Batches of "image" (B, 1, size, size) in [0, 1] and "label" (B, all labels), float32, target samples first.

    A label is nan where it is unknown, and at the outputs of the other data sets. Every image counts as a patient of its
    own, so that images are drawn uniformly.

    Args:
        label_sets: data set -> its labels, in the order of the network's outputs.
        sources: training images of the sources; none where the schedule takes target samples only.
        targets: those of the target (in source training: of the sources).
        training: sizes.
        image_size: side of the pictures.
        seed: of the draws.
        schedule: see `target_count`.
        keep_source: see `target_count`.

    Raises:
        InputError: a data set without its outputs, or without images.
    """
    rows: list[Row] = []
    tables: list[NDArray[np.float32]] = []
    pools: list[list[list[int]]] = []
    for group in (targets, sources):
        pools.append([])
        for pictures in group:
            pools[-1] += [[len(rows) + place] for place in range(len(pictures))]
            rows += pictures.rows
            tables.append(outputs_of(label_sets, pictures))
    labels = np.concatenate(tables) if tables else np.zeros((0, 0), dtype=np.float32)

    def load(sample: int, rng: np.random.Generator) -> dict[str, Tensor | NDArray[np.float32]]:
        return {"image": training_view(load_picture(rows[sample]), image_size, rng), "label": labels[sample]}

    mixed = MixedBatches(
        pools[1], pools[0], training.batch_size, training.epochs, training.batches, schedule, keep_source, seed
    )
    return TrainingBatches(load, mixed)


def outputs_of(label_sets: Mapping[str, Sequence[str]], pictures: Pictures) -> NDArray[np.float32]:
    """The labels (images, all outputs) of a data set at its own outputs, nan elsewhere.

    Raises:
        InputError: the network has no outputs for this data set or one of its labels.
    """
    own = label_sets.get(pictures.name, ())
    absent = [name for name in pictures.labels if name not in own]
    if absent or not pictures.labels:
        raise InputError(f"the network has no output for {absent[0] if absent else 'anything'} of {pictures.name}")
    start = 0
    for name, labels in label_sets.items():
        if name == pictures.name:
            break
        start += len(labels)
    table = np.full((len(pictures), sum(map(len, label_sets.values()))), np.nan, dtype=np.float32)
    for column, name in enumerate(pictures.labels):
        table[:, start + list(own).index(name)] = pictures.truth[:, column]
    return table
