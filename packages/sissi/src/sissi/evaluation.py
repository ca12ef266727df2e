"""The command `evaluate`: COCO's measures of detections and labels against every reader, and of the readers against each other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dart_core.cli import say
from dart_core.data.boxes import BoxedPicture, read_boxes
from dart_core.errors import InputError
from dart_core.files import packaged_table, write_atomic, write_csv
from dart_core.metrics import coco_summary
from dart_core.report import Report
from dart_core.run import METRICS, claim_folder, flat_settings
from sissi import settings as of
from sissi.detectors import PACKAGE
from sissi.figures import Look, label_sheet
from sissi.pictures import Files, image_size, open_list
from sissi.prediction import FILE, SHOWN

MEASURES = ("AP50", "AP75", "AP", "AR")
AUTHORS_LIMIT = 100
"""Detections of a picture in the authors' AP (specification 6)."""


@dataclass(frozen=True)
class Scored:
    """Boxes that are scored."""

    name: str
    """Method, or file."""
    seed: int | None
    pictures: Mapping[str, BoxedPicture]
    """By file name of the picture."""


def by_name(pictures: Sequence[BoxedPicture], where: Path) -> dict[str, BoxedPicture]:
    """Pictures by the name of their file.

    Raises:
        InputError: two of one name.
    """
    found: dict[str, BoxedPicture] = {}
    for picture in pictures:
        if picture.image.name in found:
            raise InputError(f"two pictures of the name {picture.image.name}", where=where, remedy="rename one")
        found[picture.image.name] = picture
    return found


def read_scored(path: Path) -> Scored:
    """What `predict` wrote into a folder, or a list of boxes.

    Raises:
        InputError: no such thing.
    """
    if path.is_dir() and (path / METRICS).is_file() and (path / FILE).is_file():
        metrics = json.loads((path / METRICS).read_text(encoding="utf-8"))
        model = metrics.get("model", {})
        name = f"{model.get('method', path.name)}" + " (detected in 20 views)" * (metrics.get("views") == "all")
        return Scored(name, model.get("seed"), by_name(with_area(read_boxes(path / FILE), path / FILE), path / FILE))
    if path.is_dir():
        raise InputError(
            f"holds no {FILE}", where=path, remedy=f"give a folder of `{PACKAGE} predict`, or a list of boxes"
        )
    return Scored(path.stem, None, by_name(with_area(read_boxes(path), path), path))


def read_all(paths: Sequence[Path]) -> list[Scored]:
    """`read_scored` of each; lists of the same file name are called by their folders, too.

    Raises:
        InputError: one that cannot be read, or two that would count as one run.
    """
    scored = [read_scored(path) for path in paths]
    lists = [path for path in paths if path.is_file()]
    seen: set[tuple[str, int | None]] = set()
    for place, (path, item) in enumerate(zip(paths, scored, strict=True)):
        if path.is_file():
            scored[place] = item = replace(item, name=_called(path, lists))
        if (item.name, item.seed) in seen:
            run = item.name if item.seed is None else f"{item.name} with seed {item.seed}"
            raise InputError(
                f"{run} is there twice", where=path, remedy="give each run once; runs of a method need other seeds"
            )
        seen.add((item.name, item.seed))
    return scored


def _called(path: Path, lists: Sequence[Path]) -> str:
    """The stem of a list's file, with as many of its folders as tell it from the other lists."""
    own = path.resolve().with_suffix("").parts
    others = [other.resolve().with_suffix("").parts for other in lists if other.resolve() != path.resolve()]
    depth = 1
    while depth < len(own) and any(other[-depth:] == own[-depth:] for other in others):
        depth += 1
    return "/".join(own[-depth:])


def with_area(pictures: Sequence[BoxedPicture], where: Path) -> list[BoxedPicture]:
    """The pictures without boxes that have no area or swapped corners; says how many there were."""
    keep = [np.asarray((picture.boxes[:, 2:] > picture.boxes[:, :2]).all(axis=1)) for picture in pictures]
    count = sum(int((~mask).sum()) for mask in keep)
    if count:
        say(
            f"{where}: boxes left out: {count} without an area or with swapped corners; `{PACKAGE} check-data` lists them"
        )
    return [picture.take(mask) for picture, mask in zip(pictures, keep, strict=True)]


def with_cells(pictures: Sequence[BoxedPicture], where: Path) -> list[BoxedPicture]:
    """A reader's pictures without boxes that cannot be found: no area, swapped corners, or outside of the picture; says how many.

    Where a picture's file is not there, nobody knows whether a box lies outside of it.
    """
    pictures, found, outside = with_area(pictures, where), [], 0
    for picture in pictures:
        if len(picture.boxes) and picture.image.is_file():
            height, width = image_size(picture.image)
            inside = (picture.boxes[:, 2:] > 0).all(axis=1) & (picture.boxes[:, :2] < [width, height]).all(axis=1)
            outside += int((~inside).sum())
            picture = picture.take(np.asarray(inside))
        found.append(picture)
    if outside:
        say(f"{where}: boxes left out: {outside} outside of the picture; `{PACKAGE} check-data` lists them")
    if not any(len(picture.boxes) for picture in found):
        say(f"{where}: no box in any picture, so that nothing can be scored against it")
    return found


def measure(truth: Sequence[BoxedPicture], scored: Scored, limit: int = 400) -> dict[str, float]:
    """AP50, AP75, AP and AR (specification 6), and AP as the authors computed it; in per cent.

    Only ratios of areas count, so that pictures need not be brought into the detector's frame.

    Args:
        truth: one reader's boxes.
        scored: detections; boxes without a score count as sure.
        limit: detections of a picture that count.

    Raises:
        InputError: a picture that was not predicted.
    """
    detections = []
    for picture in truth:
        found = scored.pictures.get(picture.image.name)
        if found is None:
            raise InputError(f"{scored.name} has no picture {picture.image.name}", where=picture.where, remedy="predict it, or check --split")  # fmt: skip
        scores = np.ones(len(found.boxes)) if found.scores is None else found.scores
        detections.append({"boxes": found.boxes, "scores": scores})
    boxes = [{"boxes": picture.boxes} for picture in truth]
    summary = coco_summary(boxes, detections, (limit,))
    percent = {name: summary[f"AR{limit}" if name == "AR" else name] for name in MEASURES}
    percent["AP of the best 100"] = coco_summary(boxes, detections, (AUTHORS_LIMIT,))["AP"]
    percent["recall"] = recall_at_half(boxes, detections)
    return {name: value if value < 0 else 100 * value for name, value in percent.items()}


def recall_at_half(truth: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> float:
    """Share of the true boxes that some box overlaps by more than half (IoU); -1 without any."""
    hits = total = 0
    for true, other in zip(truth, found, strict=True):
        a, b = np.asarray(true["boxes"], float).reshape(-1, 4), np.asarray(other["boxes"], float).reshape(-1, 4)
        total += len(a)
        if not len(a) or not len(b):
            continue
        low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
        shared = (high - low).clip(0).prod(2)
        union = (a[:, 2:] - a[:, :2]).prod(1)[:, None] + (b[:, 2:] - b[:, :2]).prod(1) - shared
        hits += int((shared / union > 0.5).any(1).sum())
    return hits / total if total else -1.0


def readers_of(command: of.Evaluate) -> dict[str, list[BoxedPicture]]:
    """The readers' boxes of the chosen pictures.

    Raises:
        InputError: a list without such pictures, or two lists of one name.
    """
    found: dict[str, list[BoxedPicture]] = {}
    for path in command.readers:
        pictures = open_list(path, command.classes, command.ignore)
        if command.split != "all" and any(picture.split for picture in pictures):
            pictures = [picture for picture in pictures if picture.split == command.split]
        if not pictures:
            raise InputError(f"no picture with split {command.split}", where=path, remedy="give --split all")
        name = path.stem if len(command.readers) > 1 else "reader"
        if name in found:
            raise InputError(f"two readers called {name}", where=path, remedy="rename one of the files")
        found[name] = with_cells(pictures, path)
    return found


def over_seeds(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and sample standard deviation over the runs of a method."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["reader"]), []).append(row)
    result = []
    for (method, reader), group in groups.items():
        means: dict[str, Any] = {"method": method, "reader": reader, "runs": len(group)}
        for name in (*MEASURES, "AP of the best 100", "recall"):
            values = np.array([row[name] for row in group])
            means[name] = float(values.mean())
            means[f"{name} std"] = float(values.std(ddof=1)) if len(values) > 1 else None
        result.append(means)
    return result


def evaluate(command: of.Evaluate) -> None:
    """Score everything against every reader; write scores.csv, metrics.json and report.html."""
    readers = readers_of(command)
    scored = read_all(command.predictions)
    rows: list[dict[str, Any]] = []
    for item in scored:
        for reader, truth in readers.items():
            rows.append(
                {"method": item.name, "seed": item.seed, "reader": reader, **measure(truth, item, command.limit)}
            )
    agreement: list[dict[str, Any]] = []
    for one, pictures in readers.items():
        for other, truth in readers.items():
            if one != other:
                as_scored = Scored(one, None, by_name(pictures, Path(one)))
                agreement.append({"method": one, "reader": other, **measure(truth, as_scored, command.limit)})
    means = over_seeds(rows)
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    columns = ("method", "seed", "reader", *MEASURES, "AP of the best 100", "recall")
    write_csv(out / "scores.csv", columns, [[row[name] for name in columns] for row in rows])
    content = {"scores": rows, "means": means, "agreement_of_readers": agreement}
    write_atomic(out / METRICS, json.dumps(content, indent=2) + "\n")
    _report(command, readers, scored, means, agreement)
    for row in means:
        print(f"{row['method']}, {row['reader']}: " + ", ".join(f"{name} {cell(row, name)}" for name in MEASURES))
    say(f"scores: {out}   report: {out / 'report.html'}")


def cell(row: Mapping[str, Any], name: str) -> str:
    """A mean, with its deviation where there are several runs."""
    if row[name] < 0:
        return "–"
    spread = row.get(f"{name} std")
    return f"{row[name]:.1f}" if spread is None else f"{row[name]:.1f} ± {spread:.1f}"


def score_section(report: Report, means: Sequence[Mapping[str, Any]]) -> None:
    """The table of scores."""
    names = (*MEASURES, "AP of the best 100", "recall")
    rows = [(row["method"], row["reader"], row["runs"], *(cell(row, name) for name in names)) for row in means]
    report.table(("method", "reader", "runs", *names), rows, "Per cent; mean ± sample standard deviation over runs")
    report.text(
        "AP50 and AP75: average precision where a detection counts as a hit from an overlap (intersection over union) of 0.50 and "
        "0.75 on; AP: mean over 0.50 to 0.95; AR: recall, likewise. AP of the best 100: the same with 100 detections of a picture "
        "at most, which is how the authors' program computed it. recall: share of the true boxes that any box hits at 0.50, "
        "whatever its score. Boxes without scores (labels) count as sure, and AP depends on their order."
    )


def printed_table() -> list[dict[str, str | float]]:
    """Table 1 of the paper."""
    return packaged_table("sissi", "table1", ("table1",))


def _report(
    command: of.Evaluate, readers: Mapping[str, Sequence[BoxedPicture]], scored: Sequence[Scored],
    means: Sequence[Mapping[str, Any]], agreement: Sequence[Mapping[str, Any]],
) -> None:  # fmt: skip
    count = len(next(iter(readers.values())))
    report = Report(
        "Evaluation", f"{len(scored)} sets of boxes, {len(readers)} readers, {count} pictures", package=PACKAGE
    )
    report.section("Scores")
    score_section(report, means)
    if agreement:
        report.section("Readers against each other")
        names = (*MEASURES, "recall")
        report.table(
            ("boxes of", "against", *names),
            [(row["method"], row["reader"], *(cell(row, name) for name in names)) for row in agreement],
            "What a reader would score, judged by another: no detector can be expected to do better",
        )
    report.section("Pictures")
    sheet = detection_sheet(next(iter(readers.values())), scored)
    if sheet is not None:
        report.picture(sheet, "Boxes of the first reader (green) and detections with a score above 0.5 (orange)", "microscope pictures with boxes")  # fmt: skip
    if command.table:
        report.section("Printed in the paper")
        rows = printed_table()
        report.table(
            tuple(rows[0]),
            [tuple(row.values()) for row in rows],
            "Table 1: five pictures of CellLab, three readers, one seed",
        )
        report.text(
            "The authors scored their detectors in training mode, which adds true boxes to the proposals and draws some of them at "
            "random; the numbers are not comparable with those above."
        )
    report.section("Settings")
    report.settings(command)
    report.write(command.output.out / "report.html")


def detection_sheet(
    truth: Sequence[BoxedPicture], scored: Sequence[Scored], shown: int = 2, columns: int = SHOWN
) -> Any:
    """Rows of pictures, a column for each set of boxes; None where no picture file is there."""
    rows = []
    for picture in truth:
        path = next((p for p in (picture.image, scored[0].pictures[picture.image.name].image) if p.is_file()), None)
        if path is None or not len(picture.boxes):
            continue
        image = Files(False, "rgb")(path)
        row = []
        for item in scored[:columns]:
            found = item.pictures[picture.image.name]
            boxes = found.boxes if found.scores is None else found.boxes[found.scores > 0.5]
            row.append(Look(item.name, image, {"reader": picture.boxes, "detected": boxes}))
        rows.append(row)
        if len(rows) == shown:
            break
    return label_sheet(rows) if rows else None
