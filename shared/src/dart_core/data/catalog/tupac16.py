"""TUPAC16's auxiliary set: mitotic figures of 73 breast cancers from three centres, with the alternative labels.

Pictures: Veta M. et al., "Predicting breast tumor proliferation from whole-slide images: the TUPAC16 challenge", Medical Image
Analysis 54:111-121, 2019. Labels: Bertram C. A. et al., "Are pathologist-defined labels reproducible? Comparison of the TUPAC16
mitotic figure dataset with an alternative set of labels", LABELS workshop at MICCAI 2020.
"""

from __future__ import annotations

import os
import pickletools
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from dart_core.data.datalist import Datalist, Row
from dart_core.errors import InputError

CENTRES = {"centre1": range(1, 24), "centre2": range(24, 49), "centre3": range(49, 74)}
"""Cases of the three centres (stain-aglr 5; the paper prints 48 twice)."""

CLASSES = {1: "1", 2: "0"}
"""The labels' classes, and what they become: 1 = mitotic figure, 2 = hard negative (looks like one)."""

EDITIONS = {"training": (1898, 5340), "augmented": (1999, 10483)}
"""Mitotic figures and hard negatives of the two editions. The first has the numbers of Stain-AgLr's paper; the second, to
which a detector contributed, is not the one of its tables."""

TILE = 2000
"""Side of the tiles of cases 1 to 23, in pixels."""

STITCH_FILE = "TUPACStitchInformation.p"

LABELS_ORIGIN = (
    "the labels are TUPAC_alternativeLabels_training.sqlite and TUPACStitchInformation.p of"
    " https://github.com/DeepMicroscopy/TUPAC16_AlternativeLabels; cite Bertram et al., LABELS 2020"
)
ORIGIN = (
    "the owners give the pictures at https://tupac.grand-challenge.org (auxiliary data set: mitoses); cite Veta et al., Medical"
    f" Image Analysis 54:111, 2019; {LABELS_ORIGIN}"
)

_FOLDERS = ("", "mitoses_image_data*/")
_STITCHED = re.compile(r"(\d{2})(_stitched\d+)?\.tiff?")
_QUERY = (
    "SELECT Annotations.uid, Slides.filename, Annotations.agreedClass, coordinates.coordinateX, coordinates.coordinateY"
    " FROM Annotations JOIN Slides ON Slides.uid = Annotations.slide"
    " JOIN Annotations_coordinates AS coordinates ON coordinates.annoId = Annotations.uid"
    " WHERE NOT COALESCE(Annotations.deleted, 0) AND Annotations.agreedClass IN (1, 2) ORDER BY Annotations.uid"
)

Stitching = dict[int, dict[str, tuple[int, int]]]
"""Case -> name of the tile's file -> its left and top edge in the mosaic, in pixels."""


def index(
    root: str | os.PathLike[str],
    labels_file: str | os.PathLike[str],
    stitching: str | os.PathLike[str] | None = None,
) -> Datalist:
    """List the labelled cells whose pictures are there: one row per cell, by case and picture.

    Layout: NN/MM.tif for the cases 01 to 73 (below the root, or below mitoses_image_data*/ as the archives unpack): several
    tiles each for 01 to 23, one 01.tif for the others.

    Several rows have the same picture, so this is no datalist to train from: `stain-aglr patches` cuts the cells out and writes
    one.

    Args:
        root: the folder of the pictures.
        labels_file: the SQLite file of the alternative labels.
        stitching: the file that places the tiles of cases 1 to 23 in their mosaic; None: STITCH_FILE beside the labels.

    Returns:
        rows with image (the tile), subject (the case, 01 to 73), site (centre1, centre2, centre3) and labels: label (1 mitotic
        figure, 0 hard negative), slide (01_03: case and picture), x and y (the cell's middle in the picture, in pixels).

    Raises:
        InputError: another folder, labels or stitching that cannot be read, a cell outside every tile, no picture.
    """
    root, labels = Path(root), Path(labels_file)
    pictures = _pictures(root)
    tiles: Stitching = {}
    rows = []
    for annotation, case, stitched, x, y, label in read_labels(labels):
        name = "01.tif"
        if stitched:
            tiles = tiles or read_stitching(labels.with_name(STITCH_FILE) if stitching is None else stitching)
            name, x, y = _tile(labels, tiles, annotation, case, x, y)
        picture = pictures.get((case, Path(name).stem))
        if picture is None:
            continue
        site = next(centre for centre, cases in CENTRES.items() if case in cases)
        cell = {"label": label, "slide": f"{case:02d}_{Path(name).stem}", "x": str(x), "y": str(y)}
        rows.append(Row(picture, subject=f"{case:02d}", site=site, labels=cell, source=labels))
    if not rows:
        raise InputError("none of the labelled pictures is there", where=root, remedy=f"unpack the archives; {ORIGIN}")
    rows.sort(key=lambda row: row.labels["slide"])
    return Datalist(tuple(rows), labels)


def report_missing(root: str | os.PathLike[str], labels_file: str | os.PathLike[str]) -> list[str]:
    """Say which cases with labels have no picture, one line per centre, and whether the labels are those of the paper.

    Raises:
        InputError: another folder, or labels that cannot be read.
    """
    there = {case for case, _ in _pictures(Path(root))}
    labelled = {case for _, case, *_ in read_labels(Path(labels_file))}
    lines = []
    for centre, cases in CENTRES.items():
        missing = [f"{case:02d}" for case in cases if case in labelled and case not in there]
        if missing:
            lines.append(f"{centre}: {len(missing)} of {len(cases)} cases are missing: {', '.join(missing)}")
    found = edition(labels_file)
    if found != "training":
        lines.append(f"the labels are not those of the paper's tables (edition: {found or 'unknown'})")
    return [*lines, f"TUPAC16: {ORIGIN}"] if lines else []


def edition(labels_file: str | os.PathLike[str]) -> str | None:
    """Which of EDITIONS a labels file is, by its counts; None for neither.

    Raises:
        InputError: labels that cannot be read.
    """
    classes = [label for *_, label in read_labels(Path(labels_file))]
    counts = (classes.count("1"), classes.count("0"))
    return next((name for name, published in EDITIONS.items() if published == counts), None)


def read_labels(labels_file: str | os.PathLike[str]) -> list[tuple[int, int, bool, int, int, str]]:
    """Read all labels of an edition, in the order of their numbers.

    Returns:
        number of the label, case, whether x and y count in the case's mosaic of tiles (else in its one picture), x, y, "1" for
        a mitotic figure or "0" for a hard negative.

    Raises:
        InputError: no SQLite file of these labels, or a slide whose name is no case.
    """
    path = Path(labels_file)
    if not path.is_file():
        raise InputError("the file of labels is missing", where=path, remedy=f"check the path; {LABELS_ORIGIN}")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as database:
            entries = database.execute(_QUERY).fetchall()
    except sqlite3.Error as error:
        raise InputError(
            f"not an SQLite file of the alternative labels ({error})", where=path, remedy=LABELS_ORIGIN
        ) from error
    labels = []
    for annotation, name, kind, x, y in entries:
        match = _STITCHED.fullmatch(str(name))
        case = int(match[1]) if match else 0
        if match is None or not any(case in cases for cases in CENTRES.values()):
            raise InputError(
                f"label {annotation} is on the slide {name!r}, which is no case", where=path, remedy=LABELS_ORIGIN
            )
        if not all(isinstance(value, int | float) and value == value for value in (x, y)):
            raise InputError(f"label {annotation} has no coordinates", where=path, remedy=LABELS_ORIGIN)
        labels.append((int(annotation), case, match[2] is not None, round(x), round(y), CLASSES[kind]))
    return labels


def read_stitching(path: str | os.PathLike[str]) -> Stitching:
    """Read where the tiles of cases 1 to 23 lie in their mosaics.

    The owners give this as a pickle. It is not unpickled: its bytes are read as nested dicts, lists, texts and whole numbers,
    and anything that would name or call code is refused.

    Raises:
        InputError: file missing, damaged, or not made of such values alone.
    """
    path = Path(path)
    try:
        content = _literal_pickle(path.read_bytes())
        return {
            int(case): {str(name): (int(place[0]), int(place[1])) for name, place in tiles.items()}
            for case, tiles in content.items()
        }
    except OSError as error:
        raise InputError(
            f"the tiles' places cannot be read ({error.strerror})", where=path, remedy=LABELS_ORIGIN
        ) from error
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise InputError(
            f"does not hold the tiles' places as plain values ({error})", where=path, remedy=LABELS_ORIGIN
        ) from error


# --- A pickle of plain values ----------------------------------------------------------------------------------------

_MARK = object()
_VALUES = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING"),
)
_EMPTY: dict[str, type[Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _literal_pickle(data: bytes) -> Any:
    """Value of a pickle that builds nothing but dicts, lists, tuples, texts and whole numbers.

    `pickletools.genops` only takes the bytes apart. The few operations that put plain values together are done here, so there
    is no operation by which the file could name or call anything.

    Raises:
        ValueError: any other operation, or a damaged file.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        place = max(i for i, value in enumerate(stack) if value is _MARK)
        taken = stack[place + 1 :]
        del stack[place:]
        return taken

    operations: Any = pickletools.genops(data)
    for operation, argument, _ in operations:
        name = operation.name
        if name in _VALUES:
            stack.append(argument)
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else int(argument)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument)])
        elif name in ("SETITEM", "SETITEMS", "DICT"):
            items = stack[-2:] if name == "SETITEM" else since_mark()
            if name == "SETITEM":
                del stack[-2:]
            if name == "DICT":
                stack.append({})
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name in ("APPEND", "APPENDS", "LIST"):
            items = [stack.pop()] if name == "APPEND" else since_mark()
            if name == "LIST":
                stack.append([])
            stack[-1].extend(items)
        elif name == "TUPLE" or name in _TUPLES:
            items = since_mark() if name == "TUPLE" else stack[-_TUPLES[name] :]
            if name in _TUPLES:
                del stack[-_TUPLES[name] :]
            stack.append(tuple(items))
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"it holds the operation {name}")
    raise ValueError("it has no end")


# --- Shared ----------------------------------------------------------------------------------------------------------


def _pictures(root: Path) -> dict[tuple[int, str], Path]:
    """(case, name of the picture without ending) -> file."""
    if not root.is_dir():
        raise InputError("the folder of TUPAC16 is missing", where=root, remedy=f"check the path; {ORIGIN}")
    found: dict[tuple[int, str], Path] = {}
    for folder in _FOLDERS:
        for path in sorted(root.glob(f"{folder}[0-9][0-9]/[0-9][0-9].tif")):
            found.setdefault((int(path.parent.name), path.stem), path)
    if not found:
        raise InputError(
            "this is not the folder of TUPAC16 (no 01/01.tif)",
            where=root,
            remedy=f"unpack the archives there; {ORIGIN}",
        )
    return found


def _tile(labels: Path, tiles: Stitching, annotation: int, case: int, x: int, y: int) -> tuple[str, int, int]:
    """The tile in which a cell of the mosaic lies, and its place there."""
    inside = [
        (name, x - left, y - top)
        for name, (left, top) in tiles.get(case, {}).items()
        if 0 <= x - left < TILE and 0 <= y - top < TILE
    ]
    if len(inside) != 1:
        raise InputError(
            f"label {annotation} at ({x}, {y}) lies in {len(inside)} tiles of case {case:02d}",
            where=labels,
            remedy=f"take labels and {STITCH_FILE} from the same place; {LABELS_ORIGIN}",
        )
    return inside[0]
