"""Pictures with boxes around objects: CSV tables, datalists, COCO JSON, Pascal VOC XML, and instance masks.

Boxes are [x1, y1, x2, y2] in pixels as the file gives them. Reading opens no picture (masks excepted), and keeps boxes that
make no sense, with the place they come from, so that `box_problems` can list them and a training can leave them out aloud.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dart_core.data.datalist import SPLITS, Datalist
from dart_core.errors import InputError
from dart_core.files import relative, write_csv

if TYPE_CHECKING:
    from torch import Tensor

CORNERS = ("xmin", "ymin", "xmax", "ymax")
_OTHER_CORNERS = ("x1", "y1", "x2", "y2")
CELL = "cell"
"""Label of boxes whose file names none."""


@dataclass(frozen=True, eq=False)
class BoxedPicture:
    """A picture and the boxes in it."""

    image: Path
    boxes: NDArray[np.float64]
    """(n, 4)."""
    labels: tuple[str, ...]
    """The class of each box."""
    split: str = ""
    site: str = ""
    scores: NDArray[np.float64] | None = None
    """(n,), of detections."""
    places: tuple[str, ...] = field(default=())
    """Where each box stands in its file, such as "boxes.csv, row 7"."""
    where: str = ""
    """The file and the place in it that name the picture."""
    mask: Path | None = None
    """The instance mask that the boxes were made from, where they were."""

    def take(self, keep: NDArray[Any]) -> BoxedPicture:
        """The same picture with some of its boxes: a mask (n,) or positions."""
        index = np.flatnonzero(keep) if np.asarray(keep).dtype == bool else np.asarray(keep, dtype=int)
        return replace(
            self, boxes=self.boxes[index], labels=tuple(self.labels[i] for i in index),
            scores=None if self.scores is None else self.scores[index],
            places=tuple(self.places[i] for i in index) if self.places else (),
        )  # fmt: skip


def read_boxes(
    path: str | os.PathLike[str], images: str | os.PathLike[str] | None = None, scores: bool = False
) -> list[BoxedPicture]:
    """Read pictures with boxes.

    Args:
        path: one of

            - a CSV file with a row for each box: image, xmin, ymin, xmax, ymax, and if there are any label, split, site, score;
              a row without corners is a picture without boxes;
            - a CSV datalist with a column boxes (a Pascal VOC file, or a text file of lines "class xmin ymin xmax ymax") or
              mask (a picture of instance numbers);
            - a COCO file (.json);
            - a Pascal VOC file (.xml), or a folder of them (below it Annotations/, with JPEGImages/ and ImageSets/Main/).
        images: folder of the pictures; None: beside the file, or in a folder images/ there.
        scores: every box must have a score.

    Returns:
        the pictures in the order of the file.

    Raises:
        InputError: one line with file, row or key, and remedy.
    """
    path = Path(path)
    folder = None if images is None else Path(images)
    if not path.exists():
        raise InputError("no such file or folder", where=path, remedy="check the path")
    if path.is_dir():
        found = _read_voc_folder(path, folder)
    elif path.suffix.lower() == ".json":
        found = _read_coco(path, folder)
    elif path.suffix.lower() == ".xml":
        found = [_read_voc(path, folder)]
    else:
        found = _read_csv(path, folder)
    if not found:
        raise InputError("names no picture", where=path, remedy="give a list with at least one")
    for picture in found:
        if scores and picture.scores is None and len(picture.boxes):
            raise InputError("the boxes have no scores", where=path, remedy="add a column score")
        if picture.split not in ("", *SPLITS):
            raise InputError(f"unknown split {picture.split!r}", where=picture.where, remedy="use train, val or test")
    return found


def write_boxes(path: str | os.PathLike[str], pictures: Iterable[BoxedPicture]) -> Path:
    """Write pictures with boxes as a CSV file that `read_boxes` reads; it appears whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    path = Path(path)
    pictures = list(pictures)
    scored = any(picture.scores is not None for picture in pictures)
    path.parent.mkdir(parents=True, exist_ok=True)

    def rows() -> Iterator[list[object]]:
        for picture in pictures:
            start: list[object] = [relative(picture.image, path.parent), picture.split, picture.site]
            if not len(picture.boxes):
                yield [*start, *[""] * (5 + scored)]
            for i, box in enumerate(picture.boxes):
                score = [f"{picture.scores[i]:.6g}"] if picture.scores is not None else [""] * scored
                yield [*start, picture.labels[i], *(f"{value:.8g}" for value in box), *score]

    write_csv(path, ("image", "split", "site", "label", *CORNERS, *["score"] * scored), rows())
    return path


def box_problems(picture: BoxedPicture, size: tuple[int, int]) -> list[tuple[str, str]]:
    """What is wrong with the boxes of a picture: (place, problem) for each that does not lie in it with an area.

    Args:
        picture: the boxes.
        size: (H, W).
    """
    height, width = size
    found = []
    for i, (x1, y1, x2, y2) in enumerate(picture.boxes.tolist()):
        problem = ""
        if not all(map(math.isfinite, (x1, y1, x2, y2))):
            problem = "is not finite"
        elif x2 < x1 or y2 < y1:
            problem = "has its corners swapped"
        elif x2 == x1 or y2 == y1:
            problem = "has no area"
        elif x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
            problem = f"lies outside of the picture ({width} x {height})"
        elif x1 < 0 or y1 < 0 or x2 > width or y2 > height:
            problem = f"reaches beyond the picture ({width} x {height})"
        if problem:
            box = ", ".join(f"{value:g}" for value in (x1, y1, x2, y2))
            found.append((picture.places[i] if picture.places else picture.where, f"box [{box}] {problem}"))
    return found


def check_mask(picture: BoxedPicture, size: tuple[int, int]) -> None:
    """Refuse a picture whose mask, if its boxes come from one, has another size.

    Args:
        picture: its mask has been read before.
        size: (H, W) of the picture.

    Raises:
        InputError: names the mask.
    """
    from PIL import Image

    if picture.mask is None:
        return
    with Image.open(picture.mask) as mask:
        width, height = mask.size
    if (height, width) != size:
        raise InputError(
            f"the mask has {width} x {height} pixels, the picture {size[1]} x {size[0]}", where=picture.mask,
            remedy="save them in one size",
        )  # fmt: skip


def select_classes(
    pictures: Sequence[BoxedPicture], classes: Sequence[str] = (), ignore: Sequence[str] = ()
) -> list[BoxedPicture]:
    """Keep the boxes of some classes (none given: all), and drop those of others.

    Raises:
        InputError: a class that no box has.
    """
    there = list(dict.fromkeys(label for picture in pictures for label in picture.labels))
    for name in classes:
        if name not in there:
            raise InputError(
                f"no box has the class {name!r}", where=pictures[0].where if pictures else None,
                remedy=f"classes there: {', '.join(there) or 'none'}",
            )  # fmt: skip
    wanted = set(classes or there) - set(ignore)
    return [picture.take(np.array([label in wanted for label in picture.labels], dtype=bool)) for picture in pictures]


def boxes_from_labels(labels: ArrayLike | Tensor) -> NDArray[np.int64]:
    """One box per instance of a label picture.

    Args:
        labels: (H, W) integers, 0 = background, any other number = an instance.

    Returns:
        (n, 4) by rising number: smallest and largest column and row, so that x2 and y2 are the last pixel. Instances that are
        one pixel wide or high are left out.

    Raises:
        InputError: not a picture of integers.
    """
    from scipy import ndimage

    picture = np.asarray(labels)
    if picture.ndim != 2 or picture.dtype.kind not in "iub":
        raise InputError(
            f"a label picture of type {picture.dtype} and shape {picture.shape}", remedy="give integers of shape (H, W)"
        )
    numbers, dense = np.unique(picture, return_inverse=True)
    # Background keeps the number 0 also where there is none of it.
    dense = np.where(picture == 0, 0, dense.reshape(picture.shape) + 1)
    found = [
        (place[1].start, place[0].start, place[1].stop - 1, place[0].stop - 1)
        for number, place in zip(numbers, ndimage.find_objects(dense), strict=False)
        if number != 0 and place is not None
    ]
    boxes = np.array(found, dtype=np.int64).reshape(-1, 4)
    return boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]


def read_instances(path: str | os.PathLike[str]) -> NDArray[np.int64]:
    """Read a picture of instance numbers (H, W): 8, 16 or 32 bit grey, or a palette.

    Raises:
        InputError: missing or damaged file, or a picture of colours.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode not in ("1", "L", "P", "I", "F") and not image.mode.startswith("I;"):
                raise InputError(
                    f"a mask of mode {image.mode}", where=path, remedy="save instance numbers as grey values"
                )
            values = np.array(image)
    except FileNotFoundError:
        raise InputError("file not found", where=path, remedy="check the path") from None
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise InputError("not a picture, or damaged", where=path, remedy="export it again") from error
    return values.astype(np.int64)


def _make(
    image: Path,
    corners: Sequence[Sequence[float]],
    labels: Sequence[str],
    places: Sequence[str],
    where: str,
    **more: Any,
) -> BoxedPicture:
    boxes = np.array(corners, dtype=np.float64).reshape(-1, 4)
    return BoxedPicture(image, boxes, tuple(labels), places=tuple(places), where=where, **more)


def _find_image(name: str, folder: Path | None, beside: Path) -> Path:
    if folder is not None:
        return folder / name
    places = [beside / name, beside / "images" / name]
    return next((place for place in places if place.exists()), places[0])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})", where=path, remedy="save it as text in UTF-8") from error


# --- CSV -------------------------------------------------------------------------------------------------------------


def _read_csv(path: Path, folder: Path | None) -> list[BoxedPicture]:
    reader = csv.DictReader(io.StringIO(_text(path)))
    header = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = header
    corners = next((names for names in (CORNERS, _OTHER_CORNERS) if set(names) <= set(header)), None)
    if corners is None:
        if {"boxes", "mask"} & set(header):
            return _read_datalist(path)
        raise InputError(
            f"row 1: no columns {', '.join(CORNERS)}, boxes or mask (there: {', '.join(header) or 'nothing'})", where=path,
            remedy="name the columns so",
        )  # fmt: skip
    if "image" not in header:
        raise InputError(f"row 1: no column 'image' (there: {', '.join(header)})", where=path, remedy="add it")
    rows: dict[str, list[tuple[dict[str, str], str]]] = {}
    for row in reader:
        where = f"{path}, row {reader.line_num}"
        if None in row or None in row.values():
            raise InputError(f"not {len(header)} cells as the header has", where=where, remedy="fill in every column")
        if not row["image"]:
            raise InputError("the cell is empty", where=f"{where}, column image", remedy="name the picture")
        rows.setdefault(row["image"], []).append((row, where))
    return [
        _csv_picture(name, listed, corners, "score" in header, folder, path.parent) for name, listed in rows.items()
    ]


def _csv_picture(
    name: str, rows: Sequence[tuple[dict[str, str], str]], corners: Sequence[str], scored: bool, folder: Path | None,
    beside: Path,
) -> BoxedPicture:  # fmt: skip
    boxes, labels, scores, places = [], [], [], []
    first, start = rows[0]
    for row, where in rows:
        for column in ("split", "site"):
            if row.get(column, "") != first.get(column, ""):
                raise InputError(
                    f"{column} {row[column]!r} of {name}, which {start} gives as {first[column]!r}", where=where,
                    remedy="give one for all rows of a picture",
                )  # fmt: skip
        if not any(row[column].strip() for column in corners):
            continue
        boxes.append([_number(row[column], f"{where}, column {column}") for column in corners])
        labels.append(row.get("label") or CELL)
        scores.append(_number(row["score"], f"{where}, column score") if scored else 1.0)
        places.append(where)
    return _make(
        _find_image(name, folder, beside), boxes, labels, places, start, split=first.get("split", ""),
        site=first.get("site", ""), scores=np.array(scores, dtype=np.float64) if scored else None,
    )  # fmt: skip


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{text!r} is no number", where=where, remedy="correct it, or remove the box") from None
    if not math.isfinite(value):
        raise InputError(f"{text!r} is not finite", where=where, remedy="correct it, or remove the box")
    return value


def _read_datalist(path: Path) -> list[BoxedPicture]:
    pictures = []
    for row in Datalist.read(path):
        more: dict[str, Any] = {"split": row.split, "site": row.site}
        file = row.labels.get("boxes")
        if file is None and row.mask is None:
            pictures.append(_make(row.image, [], [], [], row.where("image"), **more))
        elif file is None:
            pictures.append(picture_of_mask(row.image, row.mask or Path(), row.where("mask"), **more))
        else:
            boxes = path.parent / file
            if not boxes.is_file():
                raise InputError(f"no file {boxes}", where=row.where("boxes"), remedy="check the path")
            read: Callable[[Path, Path], BoxedPicture] = _voc_of if boxes.suffix.lower() == ".xml" else read_box_text
            pictures.append(replace(read(boxes, row.image), **more))
    return pictures


def picture_of_mask(image: Path, mask: Path, where: str = "", **more: Any) -> BoxedPicture:
    """A picture with the boxes of the instances in its mask file."""
    found = boxes_from_labels(read_instances(mask)).tolist()
    return _make(image, found, [CELL] * len(found), [str(mask)] * len(found), where or str(mask), mask=mask, **more)


def read_box_text(path: Path, image: Path) -> BoxedPicture:
    """The boxes of one picture in a text file without header, "class xmin ymin xmax ymax" in each line.

    Raises:
        InputError: names the line.
    """
    boxes, labels, places = [], [], []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        where, cells = f"{path}, line {number}", line.split()
        if not cells:
            continue
        if len(cells) != 5:
            raise InputError(f"{len(cells)} words", where=where, remedy="give: class xmin ymin xmax ymax")
        labels.append(cells[0])
        boxes.append([_number(cell, where) for cell in cells[1:]])
        places.append(where)
    return _make(image, boxes, labels, places, str(path))


# --- COCO ------------------------------------------------------------------------------------------------------------


def _read_coco(path: Path, folder: Path | None) -> list[BoxedPicture]:
    try:
        content = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"row {error.lineno}: {error.msg}", where=path, remedy="mend the JSON there") from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise InputError("no list 'images'", where=path, remedy="give a COCO file with images, annotations, categories")
    names = {entry["id"]: str(entry["name"]) for _, entry in _coco_entries(path, content, "categories", "id", "name")}
    listed: dict[Any, list[tuple[list[float], str, str]]] = {}
    for where, image in _coco_entries(path, content, "images", "id", "file_name"):
        if not isinstance(image["file_name"], str):
            raise InputError("'file_name' is no text", where=where, remedy="give the name of the picture's file")
        if image["id"] in listed:
            raise InputError(
                f"id {image['id']} is that of an image before", where=where, remedy="number the images anew"
            )
        listed[image["id"]] = []
    for where, entry in _coco_entries(path, content, "annotations", "image_id", "category_id", "bbox"):
        if entry["image_id"] not in listed:
            raise InputError(
                f"image_id {entry['image_id']} is not among the images", where=where, remedy="add the image"
            )
        if entry["category_id"] not in names:
            known = ", ".join(map(str, names)) or "none"
            raise InputError(
                f"category_id {entry['category_id']} is not among the categories", where=where, remedy=f"there: {known}"
            )
        if entry.get("iscrowd"):
            continue  # one box around many
        box = entry["bbox"]
        if not isinstance(box, list) or len(box) != 4:
            raise InputError("'bbox' is not [x, y, width, height]", where=where, remedy="correct it")
        x, y, width, height = (_number(str(value), where) for value in box)
        listed[entry["image_id"]].append(([x, y, x + width, y + height], names[entry["category_id"]], where))
    return [
        _make(
            _find_image(image["file_name"], folder, path.parent), *_columns(listed[image["id"]]), f"{path}, images[{place}]",
            split=str(image.get("split", "")), site=str(image.get("site", "")),
        )
        for place, image in enumerate(content["images"])
    ]  # fmt: skip


def _coco_entries(
    path: Path, content: Mapping[str, Any], name: str, *keys: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The entries of a list of a COCO file, each with its place; numbers or texts under all keys that are ids."""
    entries = content.get(name) or []
    if not isinstance(entries, list):
        raise InputError(f"{name!r} is no list", where=path, remedy="give a COCO file")
    for place, entry in enumerate(entries):
        where = f"{path}, {name}[{place}]"
        if not isinstance(entry, Mapping) or not set(keys) <= entry.keys():
            listed = f"{', '.join(map(repr, keys[:-1]))} or {keys[-1]!r}"
            raise InputError(f"no {listed}", where=where, remedy="add them")
        for key in keys:
            if key.endswith("id") and not isinstance(entry[key], int | float | str):
                raise InputError(f"{key!r} is {entry[key]!r}", where=where, remedy="give a number or a name")
        yield where, entry


def _columns(rows: Sequence[tuple[list[float], str, str]]) -> tuple[list[list[float]], list[str], list[str]]:
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


# --- Pascal VOC ------------------------------------------------------------------------------------------------------


def _read_voc_folder(root: Path, folder: Path | None) -> list[BoxedPicture]:
    annotations = root / "Annotations" if (root / "Annotations").is_dir() else root
    files = sorted(path for path in annotations.glob("*.xml") if not path.name.startswith("."))
    if not files:
        raise InputError("holds no Pascal VOC file (*.xml)", where=annotations, remedy="give the file with the boxes")
    pictures = root / "JPEGImages"
    split_of: dict[str, str] = {}
    for split in SPLITS:
        lists = root / "ImageSets" / "Main" / f"{split}.txt"
        if lists.is_file():
            split_of |= {line.split()[0]: split for line in _text(lists).splitlines() if line.strip()}
    found = []
    for path in files:
        picture = _read_voc(path, folder or (pictures if pictures.is_dir() else None))
        found.append(replace(picture, split=split_of.get(path.stem, picture.split)))
    return found


def _read_voc(path: Path, folder: Path | None) -> BoxedPicture:
    root = _xml(path)
    name = root.findtext("filename") or ""
    if not name:
        raise InputError("no element 'filename'", where=path, remedy="add it")
    return _voc_of(path, _find_image(name, folder, path.parent))


def _xml(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise InputError(f"row {error.position[0]}: no XML ({error})", where=path, remedy="export it again") from error
    except (OSError, UnicodeDecodeError, LookupError) as error:
        raise InputError(f"cannot be read ({error})", where=path, remedy="export it again") from error


def _voc_of(path: Path, image: Path) -> BoxedPicture:
    boxes, labels, places = [], [], []
    for number, entry in enumerate(_xml(path).iter("object"), start=1):
        where = f"{path}, object {number}"
        corners = entry.find("bndbox")
        if corners is None:
            raise InputError("no element 'bndbox'", where=where, remedy="add it")
        boxes.append([_number(corners.findtext(name) or "", f"{where}, {name}") for name in CORNERS])
        labels.append(entry.findtext("name") or CELL)
        places.append(where)
    return _make(image, boxes, labels, places, str(path))
