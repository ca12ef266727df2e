"""Cubes on disk, and the rule by which Models Genesis accepts a crop of a CT (specification 5).

A folder of cubes holds index.csv and .npy files. Each row of index.csv names a file, the place of the cube in it, its split
(train, val, test), and what is known: subject, site, label, the scan and the corner it was cut at. Cubes are (H, W, D) = x,
y, z with values in [0, 1]; a file NAME.npy (n, H, W, D) may have NAME.masks.npy beside it, whole numbers from 0. Folders with
the files of Models Genesis (bat_32_s_64x64x64_<subset>.npy) and of TransVW's owners are read as they are.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dart_core.errors import InputError
from dart_core.files import write_csv, write_npy
from dart_core.metrics import to_numpy
from united_ssl.networks import REDUCTION

INDEX = "index.csv"
COLUMNS = ("file", "place", "split", "subject", "site", "label", "scan", "x", "y", "z")
MASKS = ".masks.npy"
SPLITS = ("train", "val", "test")
LOW_HU, HIGH_HU = -1000.0, 1000.0
TISSUE_HU = -150.0
"""From here on a voxel counts as tissue; as a share of the window it is the authors' 0.425."""
MOST_TISSUE = 0.15
_GENESIS = re.compile(r"bat_\d+_s_(\d+)x(\d+)x(\d+)_(\d+)\.npy")
_WORDS = re.compile(r"(train|val)_data(\d+)_vwGen_ex_ref_fold[\d.]+\.npy")
TRAIN_SUBSETS, VALIDATION_SUBSETS = range(5), range(5, 7)


def crop_accepted(hu: Any, depth: int) -> tuple[bool, float]:
    """Whether Models Genesis keeps a crop: little of it may be tissue.

    A voxel counts 1 if it is tissue (-150 HU or more), 1/2 if the next slice is tissue there, else 0; a crop is rejected if
    the mean is above 0.15. The crop comes with three further slices; only the first of them can matter.

    Args:
        hu: (x, y, depth + 3) Hounsfield units, array or tensor.
        depth: slices of the crop.

    Returns:
        Accepted or not, and the mean.

    Raises:
        InputError: fewer slices than depth + 1.
    """
    values = to_numpy(hu)
    if values.ndim != 3 or values.shape[2] < depth + 1 or depth < 1:
        raise InputError(
            f"a crop of shape {values.shape} has too few slices for depth {depth}", remedy=f"give {depth + 3} slices"
        )
    tissue = values >= TISSUE_HU
    here, behind = tissue[:, :, :depth], tissue[:, :, 1 : depth + 1]
    fraction = float(np.where(here, 1.0, np.where(behind, 0.5, 0.0)).mean())
    return fraction <= MOST_TISSUE, fraction


def scale_hu(hu: NDArray[Any]) -> NDArray[np.float32]:
    """Hounsfield units clipped to [-1000, 1000], as [0, 1]."""
    return np.asarray((np.clip(hu, LOW_HU, HIGH_HU) - LOW_HU) / (HIGH_HU - LOW_HU), dtype=np.float32)


# --- Folders of cubes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CubeRow:
    """One cube and what is known of it."""

    file: Path
    place: int
    split: str = "train"
    subject: str = ""
    site: str = ""
    label: str = ""
    """Class or visual word, as text; empty = unknown."""
    scan: str = ""
    corner: tuple[str, str, str] = ("", "", "")
    """First voxel of the cube in the scan, before its first one where a small scan was padded."""


@dataclass(frozen=True)
class Cubes:
    """Cubes of one size, opened when they are asked for."""

    rows: tuple[CubeRow, ...]
    shape: tuple[int, int, int]
    source: Path = field(default_factory=Path)

    def __len__(self) -> int:
        return len(self.rows)

    def cube(self, index: int) -> NDArray[np.float32]:
        """(1, H, W, D) in [0, 1]."""
        row = self.rows[index]
        values = np.array(_opened(row.file)[row.place], dtype=np.float32)
        if not np.isfinite(values).all():
            raise InputError(
                f"cube {row.place} holds voxels that are no numbers", where=row.file, remedy="prepare it anew"
            )
        return values[None]

    def mask(self, index: int) -> NDArray[np.uint8]:
        """(H, W, D), 0 for background.

        Raises:
            InputError: there is none.
        """
        row = self.rows[index]
        return np.array(_opened(masks_file(row.file))[row.place], dtype=np.uint8)

    @property
    def has_masks(self) -> bool:
        """Every cube has a mask."""
        return bool(self.rows) and all(masks_file(file).is_file() for file in {row.file for row in self.rows})

    def take(self, places: Iterable[int]) -> Cubes:
        """Some of the cubes, in the order given."""
        return Cubes(tuple(self.rows[i] for i in places), self.shape, self.source)

    def split(self, name: str) -> Cubes:
        """The cubes of a split.

        Raises:
            InputError: there are none.
        """
        found = self.take(i for i, row in enumerate(self.rows) if row.split == name)
        if not len(found):
            there = ", ".join(dict.fromkeys(row.split for row in self.rows))
            raise InputError(f"holds no cube with split {name}", where=self.source, remedy=f"there are: {there}")
        return found

    def stack(self, places: Iterable[int]) -> torch.Tensor:
        """Some cubes as one tensor (n, 1, H, W, D)."""
        return torch.from_numpy(np.stack([self.cube(i) for i in places]))

    def labels(self) -> NDArray[np.int64]:
        """Class of each cube, -1 where it is unknown.

        Raises:
            InputError: a label that is no whole number from 0.
        """
        found = np.full(len(self), -1, dtype=np.int64)
        for i, row in enumerate(self.rows):
            if row.label and not re.fullmatch(r"\d{1,9}", row.label):
                raise InputError(
                    f"{row.label!r} is no label", where=f"{self.source / INDEX} (cube {row.place} of {row.file.name})",
                    remedy="give whole numbers from 0",
                )  # fmt: skip
            if row.label:
                found[i] = int(row.label)
        return found


def masks_file(file: Path) -> Path:
    """Where the masks of a file of cubes lie."""
    return file.with_name(file.name.removesuffix(".npy") + MASKS)


@lru_cache(maxsize=256)
def _opened(file: Path) -> NDArray[Any]:
    """A file of cubes, mapped into memory."""
    try:
        array: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError("is not there", where=file, remedy="check the folder of cubes, or prepare it anew") from error
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"is no file of cubes ({error})", where=file, remedy="prepare it anew") from error
    if array.ndim == 5 and 1 in (
        array.shape[1],
        array.shape[4],
    ):  # with an axis of one channel, as the authors save them
        array = array[:, 0] if array.shape[1] == 1 else array[..., 0]
    if array.ndim != 4 or array.dtype.kind not in "fiub":
        raise InputError(
            f"holds an array of shape {array.shape} and type {array.dtype}", where=file, remedy="cubes are (n, H, W, D)"
        )
    return array


def read_cubes(folder: Path) -> Cubes:
    """Read the index of a folder of cubes; opens each file once to compare sizes.

    Args:
        folder: what `prepare` wrote, or a folder with the files of Models Genesis (subsets 0-4 train, 5 and 6 validate) or
            of TransVW's owners.

    Raises:
        InputError: nothing of the kind, a row that does not fit, cubes of several sizes, or a side that is no multiple of 8.
    """
    if not folder.is_dir():
        raise InputError("there is no such folder", where=folder, remedy="give what `united-ssl prepare` wrote")
    rows = _read_index(folder) if (folder / INDEX).is_file() else _published(folder)
    if not rows:
        raise InputError("holds no cubes", where=folder, remedy="give what `united-ssl prepare` wrote")
    shapes: dict[tuple[int, ...], Path] = {}
    for file in dict.fromkeys(row.file for row in rows):
        array = _opened(file)
        shapes.setdefault(array.shape[1:], file)
        if masks_file(file).is_file() and _opened(masks_file(file)).shape != array.shape:
            raise InputError("the masks have another shape than the cubes", where=file, remedy="prepare them anew")
    if len(shapes) > 1:
        listed = "; ".join(f"{' x '.join(map(str, shape))} ({file.name})" for shape, file in shapes.items())
        raise InputError(f"holds cubes of several sizes: {listed}", where=folder, remedy="prepare them with one size")
    h, w, d = next(iter(shapes))
    if any(side % REDUCTION for side in (h, w, d)):
        raise InputError(
            f"the cubes have {h} x {w} x {d} voxels",
            where=folder,
            remedy=f"give sides that are multiples of {REDUCTION}",
        )
    for row in rows:
        if not 0 <= row.place < len(_opened(row.file)):
            raise InputError(f"has no cube {row.place}", where=row.file, remedy="prepare the folder anew")
    return Cubes(tuple(rows), (h, w, d), folder)


def _read_index(folder: Path) -> list[CubeRow]:
    path = folder / INDEX
    try:
        reader = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
        lines = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot be read ({error})", where=path, remedy="prepare the folder anew") from error
    missing = [name for name in ("file", "place", "split") if name not in (reader.fieldnames or ())]
    if missing:
        raise InputError(f"has no column {missing[0]}", where=path, remedy="prepare the folder anew")
    rows = []
    for number, line in enumerate(lines, 2):
        name, place, split = (line.get(key) or "" for key in ("file", "place", "split"))
        if not name or not place.isdecimal() or split not in SPLITS:
            raise InputError(
                f"file {name!r}, place {place!r}, split {split!r}", where=f"{path}, row {number}",
                remedy="name a file, a number, and train, val or test",
            )  # fmt: skip
        subject, site, label, scan = (line.get(key) or "" for key in ("subject", "site", "label", "scan"))
        corner = (line.get("x") or "", line.get("y") or "", line.get("z") or "")
        rows.append(CubeRow(folder / name, int(place), split, subject, site, label, scan, corner))
    return rows


def _published(folder: Path) -> list[CubeRow]:
    """Rows of the files that the owners of Models Genesis and TransVW hand out."""
    rows: list[CubeRow] = []
    for file in sorted(folder.glob("*.npy")):
        if match := _GENESIS.fullmatch(file.name):
            subset = int(match[4])
            split = "train" if subset in TRAIN_SUBSETS else "val" if subset in VALIDATION_SUBSETS else "test"
            rows += [CubeRow(file, i, split, site=f"subset{subset}") for i in range(len(_opened(file)))]
        elif match := _WORDS.fullmatch(file.name):
            split, number = match[1], match[2]
            found = sorted(folder.glob(f"{split}_label{number}_*.npy"))
            if len(found) != 1:
                raise InputError(f"there is no {split}_label{number}_*.npy", where=file, remedy="put it beside")
            try:
                labels = np.load(found[0], allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise InputError(f"cannot be read ({error})", where=found[0], remedy="fetch it anew") from error
            words = labels.argmax(-1) if labels.ndim > 1 and labels.shape[-1] > 1 else labels.ravel()
            if len(words) != len(_opened(file)):
                raise InputError(
                    f"{len(words)} labels for {len(_opened(file))} cubes", where=file, remedy="fetch it anew"
                )
            rows += [CubeRow(file, i, split, label=str(int(word))) for i, word in enumerate(words)]
    return rows


def write_cubes(file: Path, cubes: NDArray[Any], masks: NDArray[Any] | None = None) -> None:
    """Write a file of cubes (n, H, W, D) in half precision (a CT's grey values are kept to half a Hounsfield unit).

    Args:
        file: ends in .npy.
        cubes: values in [0, 1].
        masks: whole numbers of the same shape, written beside it first, so that a file of cubes is never without.
    """
    if masks is not None:
        write_npy(masks_file(file), masks.astype(np.uint8))
    write_npy(file, cubes.astype(np.float16))


def write_index(folder: Path, rows: Iterable[CubeRow]) -> Path:
    """Write index.csv of a folder of cubes."""
    lines = [
        (row.file.relative_to(folder).as_posix(), row.place, row.split, row.subject, row.site, row.label, row.scan, *row.corner)
        for row in rows
    ]  # fmt: skip
    write_csv(folder / INDEX, COLUMNS, lines)
    return folder / INDEX


def load_cube(
    cubes: Cubes, extra: Mapping[str, Sequence[Any] | NDArray[Any]] | None = None, masks: bool = False
) -> Any:
    """What `Batches` takes to load cubes: "cube", "index", and what `extra` knows of each."""
    return _Loader(cubes, dict(extra or {}), masks)


@dataclass(frozen=True)
class _Loader:
    cubes: Cubes
    extra: dict[str, Any]
    masks: bool

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        sample: dict[str, Any] = {"cube": self.cubes.cube(index), "index": index}
        for name, values in self.extra.items():
            sample[name] = values[index]
        if self.masks:
            sample["mask"] = self.cubes.mask(index)
        return sample
