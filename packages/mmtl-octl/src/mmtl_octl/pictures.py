"""Labelled radiographs: from a datalist to what a training draws (specification 5.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from dart_core.data import pictures as core
from dart_core.data.catalog import chestxray14, chexpert
from dart_core.data.datalist import Datalist, Row
from dart_core.data.images import read_image
from dart_core.data.picture_views import draw_part
from dart_core.data.pictures import Pictures, SplitBy, filled, site_rows, sites_of, split_pictures
from dart_core.errors import InputError
from mmtl_octl.schedules import MixedBatches, Schedule, TrainingBatches
from mmtl_octl.settings import Training

__all__ = [
    "Pictures", "SplitBy", "filled", "label_columns", "label_problems", "load_picture", "open_pictures",
    "outputs_of", "picture_batches", "read_pictures", "site_rows", "sites_of", "split_pictures",
    "training_view", "whole_view",
]  # fmt: skip

_UNCERTAIN = dict.fromkeys(("-1", "-1.0"), "an uncertain one counts as 1 in the paper")
"""How CheXpert's tables mark an uncertain label, and what a message says about it."""


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


def read_pictures(datalist: Datalist, site: str, labels: Sequence[str] = (), labelled: bool = True) -> Pictures:
    """The images of one data set and their labels, see `dart_core.data.pictures.read_pictures`."""
    return core.read_pictures(datalist, site, labels, labelled, _UNCERTAIN)


def label_columns(rows: Sequence[Row]) -> tuple[str, ...]:
    """The columns that hold nothing but 0, 1, empty cells, and the -1 of an uncertain label, which reading points out."""
    return core.label_columns(rows, _UNCERTAIN)


def label_problems(row: Row, labels: Sequence[str]) -> Iterator[tuple[str, InputError]]:
    """What is wrong with the label cells of a row, as (column, error)."""
    return core.label_problems(row, labels, _UNCERTAIN)


# --- Images ----------------------------------------------------------------------------------------------------------


def load_picture(row: Row) -> Tensor:
    """uint8 (1, H, W).

    Raises:
        InputError: not a picture.
    """
    return torch.from_numpy(read_image(row.image, "L"))[None]


def training_view(image: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """A random crop of 8 % to all of the picture, resized, and mirrored in every second case.

    Args:
        image: uint8 (1, H, W).
        size: side of the result.
        rng: draws.

    Returns:
        float32 (1, size, size) in [0, 1].
    """
    top, left, height, width = draw_part(rng, image.shape[-2], image.shape[-1])
    view: Tensor = transforms.resized_crop(image, top, left, height, width, [size, size], antialias=True)
    if rng.random() < 0.5:
        view = view.flip(-1)
    return view.float() / 255


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
