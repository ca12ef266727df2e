"""The command `label`: files to a table of skin tones, with a report, a sheet of pictures and the distribution."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from dart_core.cli import say
from dart_core.data.datalist import Datalist, Row
from dart_core.data.images import find_pictures
from dart_core.errors import DartError, InputError, OutputError
from dart_core.files import atomic_write, output_errors, write_atomic
from dart_core.log import Log, plain_number
from dart_core.report import Report
from skintone_debias import settings as of
from skintone_debias.datalists import normalised, reader_of
from skintone_debias.photos import LabelOptions, Photo, label_photo, start_process
from skintone_debias.recipes import PACKAGE
from skintone_debias.scores import TYPES, Agreement, agreements, confusion
from skintone_debias.tables import printed_table
from skintone_debias.tone import CORNERS
from skintone_debias.tone_figures import (
    PUBLISHED_SHARES,
    contact_sheet,
    distribution_figure,
    shares,
    tile,
)

COLUMNS = ("ita", "fitzpatrick", "patch", *(f"ita_{k}" for k in range(len(CORNERS))), "reason")
"""What `label` adds to a datalist; a column of the same name that was there before is kept as `given_<name>`."""
TRUTHS = ("fitzpatrick", "fitzpatrick_scale")
"""Columns that hold human types, where --truth does not name one."""
LABELLED_SITES = {f"isic{year}" for year in (2017, 2018, 2019, 2020)}
"""Sites whose types come from a labeller, not from people."""
_CHUNK = 8
_LISTED = 50


def label(command: of.Label) -> None:
    """Label files and write what was found."""
    outputs = outputs_of(command.out)
    datalist = find_files(command.pictures, outputs.values())
    truth = human_types(datalist, command.truth)
    _claim(outputs, datalist, command.overwrite)
    options = LabelOptions(**{f.name: getattr(command, f.name) for f in dataclasses.fields(LabelOptions)})
    workers = sensible_workers(len(datalist)) if command.workers is None else command.workers
    with contextlib.closing(Log(command.out.parent)) as log, Labellers(workers) as labellers:
        found = labellers.label([row.image for row in datalist], options)
        photos = list(log.progress(found, "labelling", len(datalist)))
    _refuse_nothing(datalist, photos)
    tones_table(datalist, photos).write(outputs["table"])
    tables = agreements({command.method: [photo.fitzpatrick for photo in photos]}, truth) if truth else []
    write_atomic(outputs["numbers"], json.dumps(_numbers(photos, tables), indent=1) + "\n")
    _write_pictures(datalist, photos, options, command, outputs)
    _write_report(datalist, photos, truth, tables, command, outputs)
    say(_summary(photos))
    say(f"table: {outputs['table']}   report: {outputs['report']}")


# --- What to read and where to write ---------------------------------------------------------------------------------


def find_files(paths: Sequence[Path], leave_out: Iterable[Path] = ()) -> Datalist:
    """The pictures of folders and files as a datalist, each once; or the datalist or folder as published that is given.

    Args:
        paths: folders, files, one datalist, or one folder as published.
        leave_out: files that are none of the pictures (what an earlier `label` wrote).

    Raises:
        InputError: nothing there, no picture in a folder, or a datalist that cannot be read.
    """
    if not paths:
        raise InputError("no picture is given", remedy=f"write {PACKAGE} label FOLDER")
    readers = {path: read for path in paths if (read := reader_of(path)) is not None}
    for path, read in readers.items():
        if len(paths) > 1:
            kind = "data set as published" if path.is_dir() else "datalist"
            raise InputError(f"a {kind}, and more beside it", where=path, remedy=f"give the {kind} alone")
        datalist = read(path)
        if path.is_dir():
            say(f"{path}: read as {', '.join(datalist.sites) or 'dataset.json'}: {len(datalist)} pictures")
        return datalist
    for path in paths:
        if not path.exists():
            raise InputError("not found", where=path, remedy="check the path")
    files = [file for path in paths for file in (find_pictures(path) if path.is_dir() else [path])]
    once = {os.path.abspath(file): file for file in files}
    for file in leave_out:
        once.pop(os.path.abspath(file), None)
    if not once:
        raise InputError("holds no picture but those of an earlier table", where=paths[0], remedy="give another folder")
    return Datalist(tuple(Row(file) for file in once.values()), paths[0])


def human_types(datalist: Datalist, column: str) -> list[int]:
    """The human types of a datalist, -1 where unknown; an empty list where there is nothing to compare with.

    Args:
        datalist: all rows.
        column: its name, "auto" or "none" (see `settings.Label`).

    Raises:
        InputError: no such column, or a cell that is no type.
    """
    there = {name for row in datalist for name in row.labels}
    if column == "auto" and any(row.site in LABELLED_SITES for row in datalist):
        column = "none"
    if column == "auto":
        column = next((name for name in TRUTHS if name in there), "none")
    if column == "none":
        return []
    if column not in there:
        raise InputError(
            f"no row has a value in column {column!r}", where=datalist.source, remedy="give --truth COLUMN, or none"
        )
    return [_human_type(row, column) for row in datalist]


def _human_type(row: Row, column: str) -> int:
    text = row.labels.get(column, "")
    cell = normalised(text)
    if not cell:
        return -1
    if cell in map(str, TYPES):
        return int(cell)
    raise InputError(
        f"{text!r} is no Fitzpatrick type", where=row.where(column), remedy="write 1 to 6, or -1 for unknown"
    )


def outputs_of(table: Path) -> dict[str, Path]:
    """What `label` writes, named like its table."""
    stem = table.with_suffix("")
    return {
        "table": table,
        "numbers": table.with_suffix(".json"),
        "report": table.with_suffix(".html"),
        "sheet": stem.with_name(f"{stem.name}_sheet.png"),
        "distribution": stem.with_name(f"{stem.name}_distribution.png"),
    }


def _claim(outputs: Mapping[str, Path], datalist: Datalist, overwrite: bool) -> None:
    """Refuse to replace what must stay, before any work is done."""
    for path in outputs.values():
        if path.is_dir():
            raise OutputError("is a folder", where=path, remedy="give another --out")
        if path.exists() and datalist.source.exists() and path.samefile(datalist.source):
            raise OutputError("is what the command reads", where=path, remedy="give another --out")
        if path.exists() and not overwrite:
            raise OutputError("is there already", where=path, remedy="--overwrite replaces it, or give another --out")
    folder = outputs["table"].parent
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


# --- Work ------------------------------------------------------------------------------------------------------------


class Labellers:
    """Processes that label files, as a context manager.

    Args:
        workers: how many; 0 labels in this process.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Labellers:
        if self.workers:
            # Not forked: this process may hold threads of torch and OpenCV, whose locks a forked child would inherit.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=start_process)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            # After an error or Ctrl-C nobody waits for what has not begun.
            self._pool.shutdown(cancel_futures=True)

    def label(self, files: Sequence[Path], options: LabelOptions) -> Iterator[Photo]:
        """Label files; the results come in the order of the files, and do not depend on the number of processes.

        Raises:
            InputError: a process was ended from outside.
        """
        work = functools.partial(label_photo, options=options)
        if self._pool is None:
            yield from map(work, files)
            return
        try:
            yield from self._pool.map(work, files, chunksize=_CHUNK)
        except BrokenProcessPool as error:
            raise InputError(
                "a process that reads pictures was ended from outside, perhaps for lack of memory",
                remedy="give fewer --workers",
            ) from error


def sensible_workers(files: int) -> int:
    """One process per core; none for few files, because starting processes takes as long as labelling a hundred."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if files > 100 and cores > 1 else 0


def _refuse_nothing(datalist: Datalist, photos: Sequence[Photo]) -> None:
    if any(photo.fitzpatrick in TYPES for photo in photos):
        return
    (reason, _), *others = Counter(photo.reason for photo in photos).most_common()
    where = datalist[next(i for i, photo in enumerate(photos) if photo.reason == reason)].image
    more = f" (and {len(others)} other reason{'s' * (len(others) > 1)})" if others else ""
    problem, _, remedy = reason.partition("; ")
    raise InputError(
        f"{problem}{more}; none of the {len(photos)} files could be labelled", where=where, remedy=remedy or None
    )


# --- Results ---------------------------------------------------------------------------------------------------------


def tones_table(datalist: Datalist, photos: Sequence[Photo]) -> Datalist:
    """The datalist with what was found in COLUMNS, so that it can be trained on."""
    rows = []
    for row, photo in zip(datalist, photos, strict=True):
        found = dict.fromkeys(COLUMNS, "") | {"reason": photo.reason}
        found |= {f"ita_{k}": f"{value:.4f}" for k, value in enumerate(photo.patch_itas)}
        if photo.fitzpatrick in TYPES:
            found |= {"ita": f"{photo.ita:.4f}", "fitzpatrick": str(photo.fitzpatrick)}
        if photo.patch >= 0:
            found["patch"] = str(photo.patch)
        given = {f"given_{name}" if name in COLUMNS else name: text for name, text in row.labels.items()}
        # A table is UTF-8; a name that is not is written with its odd bytes spelled out.
        image = Path(str(row.image).encode("utf-8", "backslashreplace").decode())
        rows.append(dataclasses.replace(row, image=image, labels=found | given))
    return Datalist(tuple(rows), datalist.source)


def _numbers(photos: Sequence[Photo], tables: Iterable[Agreement]) -> dict[str, object]:
    types = [photo.fitzpatrick for photo in photos]
    return {
        "pictures": len(photos),
        "labelled": sum(kind in TYPES for kind in types),
        "types": {str(kind): types.count(kind) for kind in TYPES},
        "lightest_patch_is_neutral": len(_neutral(photos)),
        "agreement": [
            {
                **{name: plain_number(value) for name, value in dataclasses.asdict(row).items() if name != "per_type"},
                "mean_over_types": plain_number(row.mean_over_types),
                "per_type": [plain_number(value) for value in row.per_type],
            }
            for row in tables
        ],
    }


def _neutral(photos: Iterable[Photo]) -> list[Photo]:
    """Those whose tone comes from a patch that is grey, bluish, black or white."""
    return [photo for photo in photos if photo.patch >= 0 and photo.neutral[photo.patch]]


def _summary(photos: Sequence[Photo]) -> str:
    types = [photo.fitzpatrick for photo in photos]
    labelled = sum(kind in TYPES for kind in types)
    counts = ", ".join(f"{types.count(kind)} of type {kind}" for kind in TYPES if kind in types)
    line = f"{labelled} of {len(photos)} pictures labelled: {counts}"
    return line if labelled == len(photos) else f"{line}; the column reason says why the others are not"


def _write_pictures(
    datalist: Datalist, photos: Sequence[Photo], options: LabelOptions, command: of.Label, outputs: Mapping[str, Path]
) -> None:
    given = [i for i, photo in enumerate(photos) if photo.fitzpatrick in TYPES]
    shown = [given[i] for i in np.unique(np.linspace(0, len(given) - 1, min(command.sheet, len(given))).astype(int))]
    tiles = []
    for i in shown:
        with contextlib.suppress(DartError):  # a file that has gone in the meantime
            tiles.append(tile(datalist[i].image, photos[i], options))
    if tiles:
        with atomic_write(outputs["sheet"]) as temporary:
            contact_sheet(tiles).save(temporary, format="PNG", optimize=True)
    else:
        outputs["sheet"].unlink(missing_ok=True)
    groups = {"these pictures": shares(photo.fitzpatrick for photo in photos)}
    if command.published:
        groups["ISIC training pictures (paper)"] = list(PUBLISHED_SHARES)
    with atomic_write(outputs["distribution"]) as temporary:
        distribution_figure(groups).savefig(temporary, dpi=144)


def _write_report(
    datalist: Datalist,
    photos: Sequence[Photo],
    truth: Sequence[int],
    tables: Sequence[Agreement],
    command: of.Label,
    outputs: Mapping[str, Path],
) -> None:
    report = Report("Skin tones", _summary(photos), package=PACKAGE)
    report.section("Distribution")
    report.picture(
        outputs["distribution"], "How often each type occurs (after Fig. 4 of the paper)", "bars of the six types"
    )
    _group_table(report, "site", [row.site for row in datalist], photos)
    if neutral := _neutral(photos):
        dark = sum(photo.fitzpatrick == 6 for photo in neutral)
        report.text(
            f"In {len(neutral)} of {len(photos)} pictures the lightest patch is grey, bluish, black or white (b* <= 1, L* "
            f"< 5 or > 98), and {dark} of these were given type 6. That may be background, ink, a ruler, the dark rim of "
            "the optics, or a camera that sees skin pink or blue: a light patch with b* below 0 has a negative angle and "
            "becomes type 6, a grey one an angle near 90 or -90 degrees. The angle says nothing about the skin there; "
            "--reject-neutral leaves such patches out."
        )
    if tables:
        _truth_section(report, photos, truth, tables, command.published)
    if outputs["sheet"].exists():
        report.section("Pictures")
        report.picture(outputs["sheet"], _SHEET_CAPTIONS[command.method], "labelled pictures with their patches")
    _failures_section(report, datalist, photos)
    report.section("Settings")
    report.settings(command)
    report.text(
        "A type computed from a photograph is no dermatologist's: light, camera and white balance move the angle by more "
        "than the width of a band. Research software, not a medical device."
    )
    report.write(outputs["report"])


_SHEET_CAPTIONS = {
    "patches": "Pictures and what is left of them without hair, with the eight patches: the tone comes from the green one, "
    "grey ones were rejected as no skin (after Fig. 3 of the paper)",
    "groh": "Pictures, and the pixels of skin colour",
    "groh-full": "Pictures",
}


def _group_table(report: Report, kind: str, groups: Sequence[str], photos: Sequence[Photo]) -> None:
    names = list(dict.fromkeys(name for name in groups if name))
    if len(names) < 2:
        return
    rows: list[tuple[str | int | float | None, ...]] = []
    for name in names:
        members = [photo for group, photo in zip(groups, photos, strict=True) if group == name]
        itas = [photo.ita for photo in members if photo.fitzpatrick in TYPES]
        median = float(np.median(itas)) if itas else None
        rows.append((name, len(members), *shares(photo.fitzpatrick for photo in members), median))
    columns = (kind, "pictures", *(f"type {k} (%)" for k in TYPES), "median ITA (°)")
    report.table(
        columns, rows, f"Types by {kind}; cameras differ, so a difference between sites need not be one of skin"
    )


def _truth_section(
    report: Report, photos: Sequence[Photo], truth: Sequence[int], tables: Sequence[Agreement], published: bool
) -> None:
    report.section("Beside the human types")
    columns = ("labeller", "pictures", "within one (%)", "exact (%)", *(f"type {k}" for k in TYPES), "mean over types")
    rows: list[tuple[str | int | float, ...]] = [
        (row.name, row.labelled, *(100 * v for v in (row.within_one, row.exact, *row.per_type, row.mean_over_types)))
        for row in tables
    ]
    report.table(
        columns, rows,
        "Percent of the pictures with a human type that get it within one type: together, for each human type, and as "
        "unweighted mean over the types. Below, what one and the same answer for every picture reaches. A picture "
        "without label counts as wrong.",
    )  # fmt: skip
    table = confusion([photo.fitzpatrick for photo in photos], truth)
    report.table(
        ("human type", *(f"type {k}" for k in TYPES), "none"),
        [(f"type {k}", *(int(value) for value in line)) for k, line in zip(TYPES, table, strict=True)],
        "Pictures by human type (rows) and type given here (columns)",
    )
    for name, caption in _PUBLISHED.items() if published else ():
        printed = printed_table(name)
        report.table(list(printed[0]), [list(row.values()) for row in printed], caption)


_PUBLISHED = {
    "section4_2": "Section 4.2 of the paper, as printed: on Fitzpatrick17k",
    "released_labels": "Not in the paper: the labels that the authors released beside constant answers, on Fitzpatrick17k; percent",
}


def _failures_section(report: Report, datalist: Datalist, photos: Sequence[Photo]) -> None:
    names: dict[str, list[str]] = {}
    for row, photo in zip(datalist, photos, strict=True):
        if photo.reason:
            names.setdefault(photo.reason, []).append(row.image.name)
    if names:
        report.section("Without label")
        rows = [
            (reason, len(files), ", ".join(files[:3]) + ", …" * (len(files) > 3))
            for reason, files in sorted(names.items(), key=lambda item: -len(item[1]))
        ]
        rest = f"; {len(rows) - _LISTED} rarer reasons stand in the table only" if len(rows) > _LISTED else ""
        report.table(("reason", "files", "such as"), rows[:_LISTED], f"{sum(row[1] for row in rows)} files{rest}")
