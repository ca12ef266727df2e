"""Pictures with boxes as the detector learns from them: reading, the clone, the square frame, augmentation (specification D4, Y6)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dart_core.batches import Batches
from dart_core.cli import say
from dart_core.data.boxes import (
    BoxedPicture,
    box_problems,
    boxes_from_labels,
    check_mask,
    read_boxes,
    read_instances,
    select_classes,
)
from dart_core.data.catalog import celllab, cellpose
from dart_core.data.images import find_pictures, read_image
from dart_core.errors import InputError, OutputError
from sissi import settings as of
from sissi.boxes import valid_boxes
from sissi.cloning import hard_paste, seamless_synthetic
from sissi.settings import BLUR, Background, Paste

LARGEST_SHIFT, LARGEST_TURN = 0.2, 45.0
"""Of the augmentation: share of the side, and degrees."""
DARK = 32
"""Grey value that some pixel of a picture should reach."""
NAMED = 5
"""Nearly black pictures that are named; of more the rest is counted."""
SMALLEST = 2.0
"""Side in pixels of the frame below which a box that was cut by the frame's edge goes."""


# --- Lists -----------------------------------------------------------------------------------------------------------


def open_list(
    path: Path, classes: Sequence[str] = (), ignore: Sequence[str] = (), tell: Callable[[str], None] = say
) -> list[BoxedPicture]:
    """Read a list of pictures with boxes: what `dart_core.data.boxes.read_boxes` reads, Cellpose, or a folder like CellLab.

    Args:
        path: file or folder.
        classes: of boxes that are kept; none given: all.
        ignore: classes that are not.
        tell: gets a line about pictures of a folder like CellLab that lie elsewhere in it and are left out.

    Raises:
        InputError: one line with file, row or key, and remedy.
    """
    if path.is_dir() and celllab.recognise(path):
        found = celllab.index(path)
        others = _count_others(path, found)
        if others:
            known = ", ".join(f"{name}/" for name in (*celllab.STATES, celllab.TEST))
            tell(f"{path}: laid out like CellLab; pictures left out, which lie in none of {known}: {others}")
    elif path.is_dir() and cellpose.recognise(path):
        found = cellpose.index(path)
    else:
        found = read_boxes(path)
    if classes or ignore:
        found = select_classes(found, classes, ignore)
    return found


def _count_others(folder: Path, found: Sequence[BoxedPicture]) -> int:
    """Pictures in a folder that are not among those found there."""
    try:
        there = find_pictures(folder)
    except InputError:  # none but in links to folders, which are not followed
        return 0
    return len(set(there) - {picture.image for picture in found})


def open_pictures(path: Path, split: str = "all") -> list[BoxedPicture]:
    """Pictures of a list or folder; their boxes are not asked for.

    Raises:
        InputError: none of that split, or a list that cannot be read.
    """
    if path.is_dir() and not celllab.recognise(path) and not cellpose.recognise(path) and not _is_voc(path):
        return [BoxedPicture(file, np.zeros((0, 4)), (), where=str(file)) for file in find_pictures(path)]
    found = open_list(path)
    if split != "all" and any(picture.split for picture in found):
        found = [picture for picture in found if picture.split == split]
        if not found:
            raise InputError(f"no picture has split {split}", where=path, remedy="give another --split")
    return found


def _is_voc(folder: Path) -> bool:
    """Whether a folder holds Pascal VOC files, rather than pictures beside which some other XML lies."""
    if (folder / "Annotations").is_dir():
        return True
    return any(_is_annotation(path) for path in sorted(folder.glob("*.xml")) if not path.name.startswith("."))


def _is_annotation(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            _, root = next(ElementTree.iterparse(opened, ("start",)))
    except (ElementTree.ParseError, OSError, UnicodeDecodeError, LookupError, StopIteration):
        return False
    return bool(root.tag == "annotation")


def refuse_to_delete(out: Path, pictures: Sequence[BoxedPicture]) -> None:
    """Keep --overwrite from deleting pictures and masks of a list; what the flags themselves name `claim_folder` keeps.

    Args:
        out: folder that is to be replaced.
        pictures: of the list.

    Raises:
        OutputError: one of them lies in `out`.
    """
    folder = out.resolve()
    for picture in pictures:
        for file in (picture.image, picture.mask):
            if file is not None and folder in file.resolve().parents:
                raise OutputError(f"holds {file}, which a list names", where=out, remedy="give another --out")


def refuse_twins(pictures: Sequence[BoxedPicture]) -> None:
    """Each picture has one set of labels, which a correction replaces as a whole.

    Raises:
        InputError: a file that a list names twice.
    """
    places: dict[Path, str] = {}
    for picture in pictures:
        file = picture.image.resolve()
        if file in places:
            raise InputError(
                f"picture {picture.image} is there twice, before as {places[file]}", where=picture.where,
                remedy="list it once, with all its boxes",
            )  # fmt: skip
        places[file] = picture.where


def divide_source(
    pictures: Sequence[BoxedPicture], where: Path, seed: int
) -> tuple[list[BoxedPicture], list[BoxedPicture]]:
    """Source pictures to train on and to validate with: as their splits say, or a tenth drawn for validation.

    Raises:
        InputError: nothing to train on, or to validate with.
    """
    used = [picture for picture in pictures if picture.split != "test"]
    validation = [picture for picture in used if picture.split == "val"]
    training = [picture for picture in used if picture.split != "val"]
    if not validation:
        order = np.random.default_rng(seed).permutation(len(training))
        count = max(1, len(training) // 10) if len(training) > 1 else 0
        validation = [training[i] for i in sorted(order[:count])]
        training = [training[i] for i in sorted(order[count:])]
    if not training or not validation:
        raise InputError(
            f"{len(training)} pictures to train on and {len(validation)} to validate with",
            where=where,
            remedy="give more",
        )
    return training, validation


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) of a picture."""
    height, width = read_image(path).shape[:2]
    return height, width


BEYOND = "reaching beyond the picture"
_WORDS = {
    "is not finite": "not finite", "has its corners swapped": "with swapped corners", "has no area": "without an area",
    "lies outside of the picture": "outside of the picture", "reaches beyond the picture": BEYOND,
}  # fmt: skip
"""A problem that `box_problems` finds -> the same of several boxes."""


def dark_note(dark: Sequence[Path]) -> str:
    """A line about pictures that `is_dark` found."""
    names = ", ".join(path.name for path in dark[:NAMED]) + f" and {len(dark) - NAMED} more" * (len(dark) > NAMED)
    return (
        f"nearly black pictures: {names} (no grey value above {DARK - 1} of 255), as 12 bits in a file of 16 look; "
        "stretch their grey values"
    )


@dataclass
class Noted:
    """What `open_data` did to pictures and boxes, for people."""

    left_out: Counter[str] = field(default_factory=Counter)
    """Why a box cannot be learned from -> how many."""
    cut: int = 0
    """Boxes that reached beyond the picture and were cut to it."""
    dark: list[Path] = field(default_factory=list)
    """Pictures that are nearly black."""
    lists: list[str] = field(default_factory=list)
    """Lines about the lists themselves."""


def is_dark(image: NDArray[np.uint8]) -> bool:
    """Whether less than an eighth of the grey values is used, as by 12 bits in a file of 16, in which nothing can be seen."""
    return int(image.max(initial=0)) < DARK


def usable_boxes(picture: BoxedPicture, size: tuple[int, int], edges: str, noted: Noted) -> BoxedPicture:
    """The boxes that can be trained on; counts in `noted` why others cannot.

    With edges "clip", boxes that reach beyond the picture or touch its edge are cut to it.
    """
    height, width = size
    reasons = {place: _WORDS[text.split("] ")[1].partition(" (")[0]] for place, text in box_problems(picture, size)}
    keep = valid_boxes(picture.boxes, size)
    if edges == "clip":
        cut = picture.boxes.clip(0, [width - 1, height - 1, width - 1, height - 1])
        whole = np.asarray((picture.boxes[:, 2:] > picture.boxes[:, :2]).all(axis=1))
        picture = replace(picture, boxes=np.where(whole[:, None], cut, picture.boxes))
        keep = np.asarray(whole & ((cut[:, 2:] - cut[:, :2]) >= 1).all(axis=1))
        noted.cut += sum(reasons.get(picture.places[i]) == BEYOND for i in np.flatnonzero(keep) if picture.places)
    for i in np.flatnonzero(~keep):
        noted.left_out[reasons.get(picture.places[i] if picture.places else "", "at the edge of the picture")] += 1
    return picture.take(keep)


class Files:
    """Reads pictures, keeps them in memory if asked to, and says what is wrong with one by name.

    Args:
        memory: keep them.
        colours: rgb or bgr.
    """

    def __init__(self, memory: bool, colours: str) -> None:
        self.memory, self.colours = memory, colours
        self._kept: dict[Path, NDArray[np.uint8]] = {}

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        """uint8 (H, W, 3)."""
        found = self._kept.get(path)
        if found is None:
            found = read_image(path)
            found = np.ascontiguousarray(found[..., ::-1]) if self.colours == "bgr" else found
            if self.memory:
                self._kept[path] = found
        return found


# --- Samples ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Augmentation:
    """Random changes, each with probability one half (specification D4)."""

    zoom: tuple[float, float] = (0.5, 1.5)
    blur: str = "box"
    """box or gaussian."""
    turned: str = "hull"
    """hull or ellipse: what the box of a turned picture's box is."""


def to_frame(
    image: NDArray[np.uint8], boxes: NDArray[np.float64], side: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Resize a picture and its boxes to a square."""
    height, width = image.shape[:2]
    if (height, width) != (side, side):
        shrinks = side * side < height * width
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        image = np.asarray(cv2.resize(image, (side, side), interpolation=how), np.uint8)
    return image, boxes * (side / np.array([width, height, width, height]))


def augment(
    image: NDArray[np.uint8], boxes: NDArray[np.float64], labels: NDArray[np.int32] | None, rng: np.random.Generator,
    how: Augmentation,
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:  # fmt: skip
    """Change a square picture and its boxes at random.

    Args:
        image: (S, S, 3).
        boxes: (n, 4).
        labels: (S, S) instance numbers, where there are any: boxes come from these afterwards, else they are the hulls of the
            transformed boxes, or of the ellipses in them.
        rng: of the draws.
        how: ranges.
    """
    side = image.shape[0]
    if rng.random() < 0.5:
        image = image[..., rng.permutation(3)]
    if rng.random() < 0.5:
        kernel = (int(rng.choice([3, 5, 7])),) * 2
        image = np.ascontiguousarray(image)
        blurred = cv2.blur(image, kernel) if how.blur == "box" else cv2.GaussianBlur(image, kernel, 0)
        image = np.asarray(blurred, np.uint8)
    # The way of a point, as one matrix.
    matrix = np.eye(3)
    if rng.random() < 0.5:
        matrix = np.array([[-1.0, 0, side], [0, 1, 0], [0, 0, 1]]) @ matrix
    if rng.random() < 0.5:
        matrix = np.array([[1.0, 0, 0], [0, -1, side], [0, 0, 1]]) @ matrix
    if rng.random() < 0.5:
        shift = rng.uniform(-LARGEST_SHIFT, LARGEST_SHIFT, 2) * side
        turned = np.eye(3)
        turned[:2] = cv2.getRotationMatrix2D(
            (side / 2, side / 2), rng.uniform(-LARGEST_TURN, LARGEST_TURN), rng.uniform(*how.zoom)
        )
        turned[:2, 2] += shift
        matrix = turned @ matrix
    # OpenCV's positions are the middles of pixels, boxes count their edges: half a pixel between them.
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    warp = (np.linalg.inv(half) @ matrix @ half)[:2]
    moved = cv2.warpAffine(np.ascontiguousarray(image), warp, (side, side), flags=cv2.INTER_LINEAR)
    image = np.asarray(moved, np.uint8)
    if labels is not None:
        labels = cv2.warpAffine(labels.astype(np.float32), warp, (side, side), flags=cv2.INTER_NEAREST).astype(np.int32)
        return image, boxes_from_labels(labels).astype(np.float64)
    linear, half = matrix[:2, :2], (boxes[:, 2:] - boxes[:, :2]) / 2
    middle = (boxes[:, :2] + half) @ linear.T + matrix[:2, 2]
    # How far the corners reach from the middle, or the rim of the ellipse that touches the box on all sides.
    reach = half @ np.abs(linear).T if how.turned == "hull" else np.sqrt(half**2 @ (linear**2).T)
    return image, np.concatenate([middle - reach, middle + reach], axis=1)


@dataclass(frozen=True)
class Samples:
    """Loads sample `index`: the picture in its frame, cloned onto its blur where asked for, augmented, with its boxes.

    A sample is `image` (3, S, S) uint8, `boxes` (most, 4) float32 and `count`, how many of them are boxes.
    """

    pictures: Sequence[BoxedPicture]
    files: Files
    side: int
    most: int
    """Rows of `boxes`; of more boxes the first ones are taken."""
    augmentation: Augmentation | None = None
    background: Background = "none"
    paste: Paste = "mixed"

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One sample; all its randomness is from `rng`."""
        picture = self.pictures[index]
        image, boxes = self.files(picture.image), picture.boxes
        if self.background != "none":
            image = synthetic(image, boxes, self.background, self.paste)
        labels = None
        if picture.mask is not None:
            labels = read_instances(picture.mask).astype(np.int32)
            labels = cv2.resize(
                labels.astype(np.float32), (self.side, self.side), interpolation=cv2.INTER_NEAREST
            ).astype(np.int32)
        image, boxes = to_frame(image, boxes, self.side)
        if self.augmentation is not None:
            image, boxes = augment(image, boxes, labels, rng, self.augmentation)
        boxes = boxes.clip(0, self.side)
        boxes = boxes[((boxes[:, 2:] - boxes[:, :2]) >= SMALLEST).all(axis=1)][: self.most]
        padded = np.zeros((self.most, 4), np.float32)
        padded[: len(boxes)] = boxes
        return {
            "image": np.ascontiguousarray(image.transpose(2, 0, 1)), "boxes": padded, "count": np.int64(len(boxes))
        }  # fmt: skip


def synthetic(
    image: NDArray[np.uint8], boxes: NDArray[np.float64], background: Background, paste: Paste = "mixed"
) -> NDArray[np.uint8]:
    """The picture in which only the cells with a box can be seen (specification 2E)."""
    kernel, sigma = BLUR[background]
    if paste == "hard":
        return hard_paste(image, boxes, kernel, sigma)
    if paste == "black":
        return hard_paste(image, boxes, ground=np.zeros_like(image))
    return seamless_synthetic(image, boxes, kernel, sigma, paste)


class MixedBatches(Batches):
    """Batches of as many target as source pictures, the target's first (D3).

    Args:
        target: batches of the target; None leaves that half out.
        source: batches of the source, of the same size.
        parts: into which a step divides the batch (--accumulate). Of several, each holds both halves as far as the pictures go:
            target and source take turns.
    """

    def __init__(self, target: Batches | None, source: Batches, parts: int = 1) -> None:
        super().__init__(source.load, source.size, source.batch_size, source.seed)
        self.halves = [half for half in (target, source) if half is not None]
        self.parts = parts

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> dict[str, Tensor]:
        """One process's share of a joint batch."""
        halves = [half.batch(step, rank, world_size) for half in self.halves]
        put = torch.cat if self.parts == 1 else _in_turns
        return {name: put([half[name] for half in halves]) for name in halves[0]}


def _in_turns(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors), dim=1).flatten(0, 1)


def targets_of(batch: Mapping[str, Tensor]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Pictures from 0 to 1 and their targets as torchvision's detectors take them."""
    images = list(batch["image"].float() / 255)
    targets = []
    for boxes, count in zip(batch["boxes"], batch["count"].tolist(), strict=True):
        own = boxes[:count]
        targets.append({"boxes": own, "labels": torch.ones(count, dtype=torch.int64, device=own.device)})
    return images, targets


def frame_tensor(image: NDArray[np.uint8], side: int) -> Tensor:
    """A picture as the detector sees it: uint8 (3, S, S)."""
    framed, _ = to_frame(image, np.zeros((0, 4)), side)
    return torch.from_numpy(np.ascontiguousarray(framed.transpose(2, 0, 1)))


def open_data(
    command: of.DataSettings, seed: int
) -> tuple[list[BoxedPicture], list[BoxedPicture], list[BoxedPicture], list[tuple[int, int]], Noted]:
    """Source pictures to train on and to validate with, target pictures to train on with their sizes, and what was done to them.

    Opens every picture once, so that a bad one is named before any work is done.

    Raises:
        InputError: one line about a list, a picture, one that a list names twice, or a list without anything to learn from.
    """
    noted = Noted()
    source = open_list(command.source, command.classes, command.ignore, noted.lists.append)
    target = open_list(command.target, command.classes, command.ignore, noted.lists.append)
    refuse_twins(source)
    refuse_twins(target)
    chosen = [picture for picture in target if picture.split in ("train", "")]
    if not chosen:
        raise InputError("no picture with split train", where=command.target, remedy="name the pictures to train on")
    training, validation = divide_source(source, command.source, seed)
    sizes: list[tuple[int, int]] = []

    def usable(pictures: Sequence[BoxedPicture], edges: str, keep: bool) -> list[BoxedPicture]:
        found = []
        for picture in pictures:
            if not picture.image.is_file():
                raise InputError(f"no picture {picture.image}", where=picture.where, remedy="check the path")
            image = read_image(picture.image)
            size = (image.shape[0], image.shape[1])
            noted.dark += [picture.image] * is_dark(image)
            check_mask(picture, size)
            sizes.extend([size] * keep)
            found.append(usable_boxes(picture, size, edges, noted))
        return found

    training, validation = usable(training, command.edges, False), usable(validation, command.edges, False)
    chosen = usable(chosen, command.edges, True)
    for pictures, path in ((training, command.source), (validation, command.source), (chosen, command.target)):
        if not any(len(picture.boxes) for picture in pictures):
            raise InputError("no usable box in any picture", where=path, remedy="see `sissi check-data`")
    return training, validation, chosen, sizes, noted
