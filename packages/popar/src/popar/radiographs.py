"""Radiographs: from a datalist to what a training draws (specification 2.1, 5)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dart_core.batches import Batches
from dart_core.data.catalog import radiographs, rsna_pneumonia
from dart_core.data.datalist import Datalist, Row
from dart_core.data.images import ENDINGS, read_image
from dart_core.data.picture_views import CHESTXRAY14, IMAGENET
from dart_core.errors import InputError
from popar.settings import DataSettings, LabelSettings, Normalisation

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]] | None
STATISTICS: dict[Normalisation, Statistics] = {"chestxray14": CHESTXRAY14, "imagenet": IMAGENET, "none": None}
"""Mean and standard deviation of each channel, of values in [0, 1]."""
_LABELS = re.compile(r"(\.[A-Za-z]\w*)(?:[\s,]+-?\d+(?:\.\d+)?)+$")
"""Numbers behind the name of a file, as in the authors' lists."""


# --- Datalists -------------------------------------------------------------------------------------------------------


def open_datalist(data: DataSettings, label: LabelSettings) -> Datalist:
    """A CSV, or the folder of a published data set.

    Raises:
        InputError: neither, or no row of the site asked for.
    """
    found = radiographs.open_radiographs(data.datalist, "keep", label.test, label.frontal, data.lists, label.split_seed)
    return found.select(site=label.site) if label.site else found


def listed_names(lists: Mapping[str, Path] | None) -> dict[str, tuple[str, ...]]:
    """What the authors' lists say, for a network to keep: split -> names of pictures without ending, sorted.

    Args:
        lists: split -> text file that `open_datalist` has read.
    """
    found = {}
    for split, path in (lists or {}).items():
        lines = path.read_text("utf-8-sig").splitlines()
        names = {Path(re.split(r"[\s,]", line.strip(), maxsplit=1)[0]).stem for line in lines}
        found[split] = tuple(sorted(names - {""}))
    return found


def in_lists(datalist: Datalist, lists: Mapping[str, Sequence[str]]) -> Datalist:
    """The rows that lists name, in their splits, as if the lists had been given.

    Args:
        datalist: the folder of a data set, opened without lists.
        lists: of `listed_names`.

    Raises:
        InputError: none of the pictures is in the lists.
    """
    split_of = {name.upper(): split for split, names in lists.items() for name in names}
    named = [(row, split_of.get(row.image.stem.upper())) for row in datalist]
    rows = tuple(replace(row, split=split) for row, split in named if split)
    if not rows:
        raise InputError(
            "none of its pictures is in the lists of the training", where=datalist.source, remedy="check the folder"
        )
    return Datalist(rows, datalist.source)


def excluded(path: Path | None, datalist: Datalist) -> frozenset[Path]:
    """Pictures that a pretraining leaves out: those that a list, or the RSNA's JSON file, names.

    A line of the list is a name, or a path with so many folders as tell the picture from others (CheXpert calls nearly all of
    them view1_frontal.jpg); endings do not count. Behind a name with its ending, labels may stand.

    Raises:
        InputError: the file cannot be read, or names none of the pictures.
    """
    if path is None:
        return frozenset()
    if path.suffix.lower() == ".json":
        lines = list(rsna_pneumonia.read_mapping(path).values())
    else:
        try:
            lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot be read ({error})", where=path, remedy="give a text file") from error
    if not lines:
        raise InputError("names no picture", where=path, remedy="write the name of a picture in each line")
    names = {_parts(Path(_LABELS.sub(r"\1", line))) for line in lines}
    depths = {len(name) for name in names}
    pictures = {row.image: _parts(row.image.absolute()) for row in datalist}
    found = frozenset(image for image, parts in pictures.items() if any(parts[-depth:] in names for depth in depths))
    if not found:
        raise InputError(
            f"names none of the pictures of {datalist.source}", where=path,
            remedy="write names or the ends of paths, one in each line",
        )  # fmt: skip
    return found


def _parts(path: Path) -> tuple[str, ...]:
    """Folders and name, without the ending of a picture."""
    return path.with_suffix("").parts if path.suffix.lower() in ENDINGS else path.parts


def pretraining_rows(
    datalist: Datalist, splits: Sequence[str], left_out: frozenset[Path], held_out: int, seed: int
) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Rows to train on, and rows that fixed distortions are measured on.

    Measured are rows of the other splits. Where there are none, a tenth of the rows at most is taken out, all pictures of a
    subject together.

    Args:
        datalist: all rows.
        splits: to train on; rows without a split count as train.
        left_out: pictures that are in neither.
        held_out: most rows to measure.
        seed: of the draws.

    Raises:
        InputError: nothing to train on.
    """
    rows = [row for row in datalist if row.image not in left_out]
    training = [row for row in rows if (row.split or "train") in splits]
    if not training:
        raise InputError(
            f"no picture has a split of {', '.join(splits)}", where=datalist.source, remedy="give other --splits"
        )
    others = [row for row in rows if (row.split or "train") not in splits]
    rng = np.random.default_rng([seed, 1])
    if others:
        measured = [others[i] for i in sorted(rng.permutation(len(others))[:held_out])]
        return tuple(training), tuple(measured)
    units = [row.subject or str(place) for place, row in enumerate(training)]
    wanted, taken = min(held_out, len(training) // 10), set[str]()
    counts = {unit: units.count(unit) for unit in dict.fromkeys(units)} if wanted else {}
    for unit in (list(counts)[i] for i in rng.permutation(len(counts))):
        if wanted >= counts[unit]:
            taken.add(unit)
            wanted -= counts[unit]
    pairs = list(zip(units, training, strict=True))
    return tuple(row for unit, row in pairs if unit not in taken), tuple(row for unit, row in pairs if unit in taken)


# --- Pictures --------------------------------------------------------------------------------------------------------


class Radiographs:
    """The pictures of some rows as 8-bit tensors, whatever their files' kind and size.

    Args:
        rows: of a datalist.
        size: side that pictures are resized to by area, without keeping the aspect ratio; None leaves them as they are.
        colour: three channels; otherwise one, the luma, which stands for three equal ones.
        memory: keep what is read.
    """

    def __init__(
        self, rows: Sequence[Row], size: int | None = None, colour: bool = False, memory: bool = False
    ) -> None:
        self.rows, self.size, self.colour = tuple(rows), size, colour
        self._kept: dict[int, Tensor] | None = {} if memory else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        """uint8 (1, H, W) or (3, H, W).

        Raises:
            InputError: the file cannot be read; names it.
        """
        found = None if self._kept is None else self._kept.get(index)
        if found is None:
            found = read_radiograph(self.rows[index].image, self.size, self.colour)
            if self._kept is not None:
                self._kept[index] = found
        return found

    def stack(self, places: Iterable[int]) -> Tensor:
        """Several pictures of one size: (N, C, H, W)."""
        return torch.stack([self[place] for place in places])

    def read_all(self, threads: int = 4) -> None:
        """Read what is kept in memory, before loading processes are started, which then share it; see that the others are there.

        A mistake is found here before it costs an output folder; `check-data` opens all pictures in any case.

        Raises:
            InputError: a file that is missing; of those that are kept, also one that cannot be read.
        """
        if self._kept is not None:
            with ThreadPoolExecutor(threads) as pool:
                for _ in pool.map(self.__getitem__, range(len(self))):
                    pass
            return
        for row in self.rows:
            if not row.image.is_file():
                raise InputError(f"{row.image} is not there", where=row.where("image"), remedy="check the path")
        self[0]


def read_radiograph(path: Path, size: int | None = None, colour: bool = False) -> Tensor:
    """One picture, see `Radiographs`."""
    array: NDArray[np.uint8] = read_image(path, "RGB" if colour else "L")
    if size is not None and array.shape[:2] != (size, size):
        # Not PyTorch's "area", which gives every pixel that a window touches the same weight: up to 3 grey levels off.
        array = np.asarray(cv2.resize(array, (size, size), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.permute(2, 0, 1).contiguous() if colour else tensor[None]


def three_channels(images: Tensor) -> Tensor:
    """(N, 3, H, W) of grey or colour pictures; grey ones are not copied."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def picture_batches(pictures: Radiographs, batch_size: int, seed: int) -> Batches:
    """Batches of "image" uint8 (B, C, H, H): nothing is drawn for them (no flip, no crop; specification 2.1)."""

    def load(index: int, generator: np.random.Generator) -> Mapping[str, Any]:
        return {"image": pictures[index]}

    return Batches(load, len(pictures), batch_size, seed)


def kinds_of(shapes: Mapping[tuple[int, ...], int]) -> str:
    """Sizes of pictures with their counts, the commonest first."""
    listed = sorted(shapes.items(), key=lambda item: (-item[1], item[0]))
    texts = [f"{height} x {width} ({count})" for (height, width), count in listed[:5]]
    return ", ".join(texts) + (f", and {len(listed) - 5} other sizes" if len(listed) > 5 else "")
