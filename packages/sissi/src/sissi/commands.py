"""The commands `check-data` and `weak-label`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dart_core.cli import say
from dart_core.data.boxes import CELL, BoxedPicture, box_problems, check_mask, write_boxes
from dart_core.data.catalog import celllab, cellpose
from dart_core.data.images import read_image
from dart_core.errors import DartError, InputError, OutputError
from sissi import settings as of
from sissi.boxes import valid_boxes
from sissi.pictures import dark_note, is_dark, open_list, open_pictures
from sissi.weak import weak_labels


def check_data(command: of.CheckData) -> int:
    """Print every problem of a list; 0 if there is none, else 2."""
    pictures = open_list(command.boxes, command.classes, command.ignore)
    found: list[str] = []
    sizes: Counter[str] = Counter()
    dark: list[Path] = []
    at_edge = 0
    for picture in pictures:
        try:
            image = read_image(picture.image)
            height, width = image.shape[:2]
            check_mask(picture, (height, width))
        except DartError as error:
            found.append(f"{picture.where}: {error}")
            continue
        sizes[f"{width} x {height}"] += 1
        dark += [picture.image] * is_dark(image)
        problems = box_problems(picture, (height, width))
        found += [f"{place}: {problem}" for place, problem in problems]
        at_edge += int((~valid_boxes(picture.boxes, (height, width))).sum()) - len(problems)
    splits = Counter(picture.split or "no split" for picture in pictures)
    listed = ", ".join(f"{count} {split}" for split, count in splits.items())
    boxes = [len(picture.boxes) for picture in pictures]
    print(f"{len(pictures)} pictures ({listed}), {sum(boxes)} boxes, {boxes.count(0)} pictures without a box")
    labels = Counter(label for picture in pictures for label in picture.labels)
    print("classes: " + (", ".join(f"{name} {count}" for name, count in labels.most_common()) or "none"))
    sides = np.concatenate([picture.boxes[:, 2:] - picture.boxes[:, :2] for picture in pictures])
    if sizes:
        print(
            f"sizes: {', '.join(f'{size} ({count})' for size, count in sizes.most_common(5))}; all are resized to a square"
        )
    if len(sides):
        low, middle, high = np.percentile(sides, [5, 50, 95])
        print(f"sides of the boxes: {middle:.0f} pixels (5 % below {low:.0f}, 5 % above {high:.0f})")
    if at_edge:
        say(f"note: {at_edge} boxes touch the right or bottom edge; `sissi train` drops them unless --edges is clip")
    if dark:
        say(f"note: {dark_note(dark)}")
    if command.boxes.is_dir() and cellpose.recognise(command.boxes):
        for line in cellpose.report_missing(command.boxes):
            say(f"note: {line}")
    for line in found:
        print(line)
    print(f"{len(found) or 'no'} problem{'s' * (len(found) != 1)}")
    return 2 if found else 0


def weak_label(command: of.WeakLabel) -> None:
    """Write weak labels as a CSV file."""
    out = command.out
    if out.suffix.lower() != ".csv":
        raise OutputError("the file name must end in .csv", where=out, remedy="rename --out")
    if out.exists() and not command.overwrite:
        raise OutputError("is there already", where=out, remedy="--overwrite replaces it")
    if out.resolve() == command.pictures.resolve():
        raise OutputError("is the list of the pictures itself", where=out, remedy="labels are new files: rename --out")
    pictures = open_pictures(command.pictures)
    chosen = [command.split in ("all", picture.split) for picture in pictures]
    if not any(chosen):
        raise InputError(f"no picture has split {command.split}", where=command.pictures, remedy="give --split all")
    # A picture in which nobody looks for cells stays out unless it has boxes: in the list it would say that there are none.
    kept = [pair for pair in zip(pictures, chosen, strict=True) if pair[1] or len(pair[0].boxes)]
    found = [
        label_picture(picture, command.pipeline, command.rec, command.grey, command.without_state) if label else picture
        for picture, label in kept
    ]
    write_boxes(out, found)
    labelled = [picture for picture, (_, label) in zip(found, kept, strict=True) if label]
    dark = [picture.image for picture in labelled if is_dark(read_image(picture.image))]
    if dark:
        say(f"note: {dark_note(dark)}")
    _say_counts(labelled, len(pictures) - len(found), out)


def label_picture(
    picture: BoxedPicture, pipeline: of.Pipeline, rec: of.Reconstruction = "and", grey: of.Grey = "swapped",
    without_state: of.Kind | None = None,
) -> BoxedPicture:  # fmt: skip
    """A picture with the boxes that a pipeline finds; `rec` and `grey` as in `sissi.weak_labels`.

    Raises:
        InputError: by-state without `without_state` for a picture that does not lie in a folder of CellLab's names, or an
            unreadable picture.
    """
    kind: of.Kind
    if pipeline == "by-state":
        state = picture.site or Path(picture.image).parent.name
        if state not in celllab.STATES and without_state is None:
            raise InputError(
                f"the state of its cells is not known ({state or 'no site'})", where=picture.image,
                remedy=f"lay the pictures out in folders {', '.join(celllab.STATES)}, or give --without-state or another --pipeline",
            )  # fmt: skip
        kind = celllab.STATES.get(state, without_state)  # type: ignore[assignment]
    else:
        kind = pipeline
    image = np.ascontiguousarray(read_image(picture.image)[..., ::-1])
    boxes = weak_labels(image, kind, rec=rec, grey=grey)
    return replace(picture, boxes=boxes, labels=(CELL,) * len(boxes), scores=None, places=(), mask=None)


def _say_counts(labelled: Sequence[BoxedPicture], left_out: int, out: Path) -> None:
    counts = [len(picture.boxes) for picture in labelled]
    empty = counts.count(0)
    none = f"; {empty} of them without any" if empty else ""
    say(f"weak labels: {out}: {sum(counts)} boxes in {len(counts)} picture{'s' * (len(counts) != 1)}{none}")
    if left_out:
        say(f"left out of the list: {left_out} picture{'s' * (left_out != 1)} of other splits, without boxes")
