"""Patches: from a datalist to what a training draws and a classifier scores."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dart_core.batches import Batches
from dart_core.data.catalog import wilds_camelyon17
from dart_core.data.datalist import Datalist, Row
from dart_core.data.pictures import PictureFiles, Pictures, filled, read_pictures, sites_of, split_pictures
from dart_core.errors import InputError, SettingError
from dart_core.files import output_errors
from stain_aglr.grid import VAL_SHARE, draw_validation
from stain_aglr.light import as_float
from stain_aglr.method import BalancedBatches
from stain_aglr.networks import PatchClassifier, pooled
from stain_aglr.settings import SplitBy

LABEL = "label"
SPLIT_SEED = 0
"""Of the validation patches where the datalist names none: the same for every run, so that runs can be compared."""
HALVINGS = 32
_MEMORY = 1 << 30
"""Bytes of decoded patches that are kept; more are read again in every epoch."""

Normalise = Callable[[Tensor], Tensor]
"""uint8 (N, 3, H, W) -> uint8 (N, 3, H, W) on the same device."""


def open_patches(path: Path) -> Datalist:
    """A datalist, or the folder of Camelyon17-WILDS as its owners publish it.

    Raises:
        InputError: neither, or it does not fit.
    """
    wilds = any((path / place).is_file() for place in ("metadata.csv", "camelyon17_v1.0/metadata.csv"))
    return wilds_camelyon17.index(path) if wilds else Datalist.read(path)


def training_site(datalist: Datalist, site: str) -> str:
    """The laboratory to train on.

    Raises:
        SettingError: none is named and the datalist holds several.
        InputError: no such laboratory.
    """
    there = sites_of(datalist)
    if not site and len(there) > 1:
        raise SettingError(
            f"{datalist.source} holds {len(there)} laboratories", remedy=f"name the one to train on: --site {there[0]}"
        )
    if site and site not in there:
        raise InputError(f"no site {site!r}", where=datalist.source, remedy=f"there are: {', '.join(there)}")
    return site or there[0]


def site_parts(datalist: Datalist, site: str, split_by: SplitBy) -> tuple[dict[str, Pictures], tuple[str, ...] | None]:
    """Train, val and test patches of the training laboratory, all labelled, files all there.

    Where its rows name no validation patches, a fifth of the training subjects (or patches) is drawn, at least one.

    Returns:
        The parts, and the subjects (or patches) that were drawn; None where the rows name the validation patches.

    Raises:
        InputError: a file or label is missing, a split is empty, or one class is missing from the training patches.
    """
    pictures = read_pictures(datalist, site, (LABEL,))
    for row in pictures.rows:
        exists(row)
    drawn = None
    if all(row.split != "val" for row in pictures.rows):
        units = {_unit(row, split_by) for row in pictures.rows if row.split != "test"}
        drawn = tuple(sorted(draw_validation(units, SPLIT_SEED)))
    parts = own_splits(pictures, split_by, drawn)
    for name in ("train", "val"):
        filled(parts[name], name, datalist)
    labels = labels_of(parts["train"])
    for k in (0, 1):
        if k not in labels:
            raise InputError(
                f"no training patch of {site} has label {k}", where=datalist.source, remedy="both classes are needed"
            )
    return parts, drawn


def own_splits(pictures: Pictures, split_by: SplitBy, validation: Collection[str] | None = None) -> dict[str, Pictures]:
    """train, val and test of the training laboratory: the same for the training and every later command.

    Args:
        pictures: of the laboratory.
        split_by: what was drawn.
        validation: the subjects (or patches) that the training drew. None: the rows name the splits; if they do not, as with
            runs that stored no draw, each subject (or patch) is drawn by itself, in the order of the rows.
    """
    by: Literal["patient", "image"] = "patient" if split_by == "subject" else "image"
    if validation is not None:
        chosen = frozenset(validation)
        rows = (
            row if row.split == "test" else replace(row, split="val" if _unit(row, split_by) in chosen else "train")
            for row in pictures.rows
        )
        pictures = replace(pictures, rows=tuple(rows))
    return split_pictures(pictures, by, test_share=0.0, val_share=VAL_SHARE, seed=SPLIT_SEED)


def _unit(row: Row, split_by: SplitBy) -> str:
    """What is drawn as a whole: the row's subject, or its patch by its path from the datalist.

    Raises:
        InputError: the row names no subject.
    """
    if split_by == "image":
        image, folder = (Path(os.path.abspath(path)) for path in (row.image, row.source.parent))
        return (image.relative_to(folder) if image.is_relative_to(folder) else image).as_posix()
    if not row.subject:
        raise InputError(
            "the row names no subject, so that a split by subject cannot be drawn",
            where=row.where("subject"),
            remedy="fill the column subject in, add a column split, or give --split-by image",
        )
    return row.subject


def exists(row: Row) -> None:
    """Raise an InputError unless the row's file is there."""
    if not row.image.is_file():
        raise InputError(f"{row.image} is not there", where=row.where("image"), remedy="check the path")


def labels_of(pictures: Pictures) -> NDArray[np.int64]:
    """(n,) 0 or 1; -1 where there is none."""
    if not pictures.labels:
        return np.full(len(pictures), -1)
    return np.nan_to_num(pictures.truth[:, 0], nan=-1).astype(np.int64)


class PatchFiles:
    """Patches of one size, read from their files; small sets stay in memory.

    Args:
        rows: of a datalist.
        size: side that they are resized to; None: all must have the size of the first.

    Raises:
        InputError: the first patch cannot be read or has a side that is no multiple of 32.
    """

    def __init__(self, rows: Sequence[Row], size: int | None = None) -> None:
        self.rows = tuple(rows)
        shape = PictureFiles(rows, size)[0]["image"].shape
        self.shape = (int(shape[1]), int(shape[2]))
        if any(side % HALVINGS for side in self.shape):
            nearest = max(HALVINGS, round(min(self.shape) / HALVINGS) * HALVINGS)
            raise InputError(
                f"the patch has {self.shape[0]} x {self.shape[1]} pixels, and the network halves the side five times",
                where=rows[0].where("image"),
                remedy=f"give --image-size {nearest}",
            )
        self._files = PictureFiles(rows, size, memory=len(rows) * 3 * shape[1] * shape[2] <= _MEMORY)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        """uint8 (3, H, W).

        Raises:
            InputError: a file that cannot be read, or of another size.
        """
        image: Tensor = self._files[index]["image"]
        if tuple(image.shape[1:]) != self.shape:
            raise InputError(
                f"the patch has {image.shape[1]} x {image.shape[2]} pixels, the first one {self.shape[0]} x {self.shape[1]}",
                where=self.rows[index].where("image"),
                remedy="give --image-size, or leave it out of the datalist",
            )
        return image

    def in_batches(self, size: int) -> Iterator[Tensor]:
        """All patches in order, uint8 (n, 3, H, W) each; files are decoded by several threads."""
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(self), size):
                yield torch.stack(list(pool.map(self.__getitem__, range(start, min(start + size, len(self))))))


class StoredPatches:
    """Normalised patches, worked out once and kept in one file that is mapped into memory.

    Args:
        file: `.npy` to write.
        patches: what to normalise.
        normalise: how.
        batch_size: patches at a time.
        device: where.

    Raises:
        OutputError: the disk is full.
    """

    def __init__(
        self, file: Path, patches: PatchFiles, normalise: Normalise, batch_size: int, device: torch.device
    ) -> None:
        self.shape = patches.shape
        with output_errors(file):
            self._array = np.lib.format.open_memmap(file, "w+", np.uint8, (len(patches), 3, *patches.shape))
            start = 0
            for images in patches.in_batches(batch_size):
                done = normalise(images.to(device)).cpu().numpy()
                self._array[start : start + len(done)] = done
                start += len(done)
            self._array.flush()

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index: int) -> Tensor:
        """uint8 (3, H, W)."""
        return torch.from_numpy(np.array(self._array[index]))

    def in_batches(self, size: int) -> Iterator[Tensor]:
        """All patches in order, uint8 (n, 3, H, W) each."""
        for start in range(0, len(self), size):
            yield torch.from_numpy(np.array(self._array[start : start + size]))


Patches = PatchFiles | StoredPatches


def training_batches(
    patches: Patches, labels: NDArray[np.int64], batch_size: int, seed: int, balanced: bool
) -> Batches:
    """Batches of "image" uint8 (B, 3, H, W) and "label" int64 (B,)."""

    def load(sample: int, rng: np.random.Generator) -> dict[str, Any]:
        return {"image": patches[sample], "label": labels[sample]}

    if balanced:
        return BalancedBatches(load, labels, batch_size, seed)
    return Batches(load, len(patches), batch_size, seed)


@torch.no_grad()
def classify(
    network: PatchClassifier,
    patches: Patches,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    normalise: Normalise | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits of all patches, without augmentation.

    Args:
        network: in evaluation mode, on `device`.
        patches: n of them.
        batch_size: of a forward pass.
        device: where the network lies.
        normalise: what is done to the patches first.

    Returns:
        Logits (n, 2) and pooled features (n, 16 width), float32, on the CPU.
    """
    logits, features = [], []
    for images in patches.in_batches(batch_size):
        images = images.to(device)
        found = network.features(as_float(images if normalise is None else normalise(images)))
        logits.append(network.classifier(found).float().cpu())
        features.append(pooled(found).float().cpu())
    return torch.cat(logits), torch.cat(features)


def validation_loss(logits: Tensor, labels: NDArray[np.int64]) -> float:
    """Plain cross-entropy, the same quantity for all rows of the tables (specification 2.5).

    Raises:
        SettingError: it is no number.
    """
    loss = float(F.cross_entropy(logits.double(), torch.from_numpy(labels)))
    if not math.isfinite(loss):
        raise SettingError(f"the validation loss is {loss}", remedy="lower --learning-rate")
    return loss
