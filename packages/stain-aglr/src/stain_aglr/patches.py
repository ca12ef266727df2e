"""`stain-aglr patches`: labelled patches out of whole slides with outlines, or around labelled cells (specification 5)."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dart_core.cli import say
from dart_core.data.catalog import camelyon17, tupac16
from dart_core.data.datalist import Datalist, Row
from dart_core.data.images import read_image, write_image
from dart_core.data.slides import Slide
from dart_core.errors import InputError
from dart_core.files import write_atomic, write_csv
from dart_core.log import Log
from dart_core.run import METRICS, claim_folder, flat_settings
from stain_aglr import settings as of
from stain_aglr.grid import (
    CELLS,
    NEITHER,
    TUMOUR,
    Grid,
    assign_splits,
    choose_patches,
    cut_points,
    label_patches,
    outline_mask,
    saturation,
    tissue_mask,
)

STRIP = 1024
"""Rows of pixels of a slide that are read at a time."""
EFFORT = 3
"""Of PNG's compression: the default is twice as slow and saves 3 % of a stained patch."""
OVERVIEW = 900
"""Longest side of an overview in pixels."""
SLIDE_PATCH, CELL_PATCH = 256, 128
"""Sides of the paper's patches in pixels: of CAMELYON17's slides, and around TUPAC16's cells (section 2.1)."""
COLUMNS = ("slide", "subject", "site", "split", "label_1", "label_0", "reason")


Writer: TypeAlias = Callable[[Path, Sequence[tuple[int, str]]], None]
"""Writes into a folder the patches of these numbers under these names."""


@dataclass(frozen=True, eq=False)
class Survey:
    """What a look at a slide at low resolution found."""

    row: Row
    name: str
    grid: Grid
    labels: NDArray[np.int8]
    """(rows, columns), of `label_patches`."""
    picture: NDArray[np.uint8]
    """(h, w, 3), a small picture of the grid's area."""
    tissue: NDArray[np.bool_]
    """(h, w)."""
    tumour: NDArray[np.bool_]
    """(h, w)."""


@dataclass(frozen=True, eq=False)
class Job:
    """The patches of one slide."""

    row: Row
    name: str
    labels: NDArray[np.int8]
    """(n,), 0 or 1."""
    points: NDArray[np.int64]
    """(n, 2), x and y that the datalist gives: of a slide's patch the corner, of a cell its middle; pixels of level 0."""
    write: Writer
    found: Survey | None = None
    places: NDArray[np.intp] | None = None
    """(n,), the patches in the slide's grid."""


# --- Looking at a slide ----------------------------------------------------------------------------------------------


def survey(row: Row, name: str, size: int, level: int, least_tissue: float) -> Survey:
    """Look at a slide: where its tissue and its tumour are, and which patches could be cut.

    Args:
        row: image is the slide, mask its outlines (XML) or its mask (TIFF).
        name: of the slide.
        size: side of the patches in pixels of `level`.
        level: level of the pyramid.
        least_tissue: see `label_patches`.

    Raises:
        InputError: a slide that cannot be read or has no such level; no, damaged or foreign annotations; no tissue.
    """
    if row.mask is None:
        raise InputError("no annotation", where=row.image, remedy="name its outlines or its mask in the column mask")
    outlines = camelyon17.read_outlines(row.mask) if row.mask.suffix.lower() == ".xml" else None
    with Slide(row.image) as slide:
        if level >= len(slide.downsamples):
            levels = len(slide.downsamples) - 1
            raise InputError(f"has no level {level}", where=row.image, remedy=f"its levels are 0 to {levels}")
        extent = slide.size
        grid = Grid.over(extent, size * slide.downsamples[level])
        reduction = max(1, -(-max(grid.cells) // OVERVIEW))
        saturations = np.empty(grid.cells, dtype=np.uint8)
        pictures = []
        for top, strip in _strips(slide, grid, Image.Resampling.BOX, 255):
            saturations[top : top + len(strip)] = saturation(strip)
            pictures.append(strip[-top % reduction :: reduction, ::reduction])
    tissue = tissue_mask(saturations)
    if not tissue.any():
        raise InputError("no tissue on this slide (nothing on it has colour)", where=row.image, remedy="leave it out")
    if outlines is None:
        tumour = _mask_cells(row.mask, extent, grid)
    else:
        _check_inside(row.mask, (*outlines.tumour, *outlines.normal), extent)
        tumour = outline_mask(outlines, grid.cells, grid.step / CELLS)
    labels = label_patches(tumour, tissue, least_tissue)
    if (labels == NEITHER).all():
        problem = f"no patch of {size} pixels has tumour in its middle or {least_tissue:.0%} tissue"
        raise InputError(problem, where=row.image, remedy="give a smaller --tissue or --size")
    tissue, tumour = (mask[::reduction, ::reduction].copy() for mask in (tissue, tumour))
    return Survey(row, name, grid, labels, np.concatenate(pictures), tissue, tumour)


def _strips(
    slide: Slide, grid: Grid, resampling: Image.Resampling, background: int, scale: tuple[float, float] = (1.0, 1.0)
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """The area of the grid in cells, strip by strip: first row of cells, and (n * CELLS, columns * CELLS, 3).

    What reaches beyond the slide is mirrored, as in the patches themselves.

    Args:
        slide: read at its smallest level that is finer than the cells.
        grid: over the slide.
        resampling: from pixels to cells.
        background: of what the file leaves out.
        scale: pixels of this slide's level 0 per pixel of the grid, across and down.
    """
    level = slide.level_for(grid.step * min(scale) / CELLS)
    across, down = (grid.step * factor / slide.downsamples[level] for factor in scale)
    at_once = max(1, int(STRIP // down))
    for first in range(0, grid.rows, at_once):
        rows = min(at_once, grid.rows - first)
        top = round(first * grid.step * scale[1])
        strip = slide.read_region(0, top, round(grid.columns * across), round(rows * down), level, background)
        resized = Image.fromarray(strip).resize((grid.columns * CELLS, rows * CELLS), resampling)
        yield first * CELLS, np.asarray(resized)


def _mask_cells(path: Path, size: tuple[int, int], grid: Grid) -> NDArray[np.bool_]:
    """The tumour of a mask TIFF: 1 (as ASAP writes CAMELYON17's; 2 is its normal tissue), or 128 and more."""
    with Slide(path) as mask:
        scale = (mask.size[0] / size[0], mask.size[1] / size[1])
        # Converters round the sizes of levels differently; anything more belongs to another slide.
        if not all(0.98 <= factor <= 1.02 for factor in scale):
            raise InputError(
                f"the mask has {mask.size[0]} x {mask.size[1]} pixels, the slide {size[0]} x {size[1]}",
                where=path,
                remedy="give the mask of this slide, at its full resolution",
            )
        tumour = np.empty(grid.cells, dtype=bool)
        for top, strip in _strips(mask, grid, Image.Resampling.NEAREST, 0, scale):
            values = strip[..., 0]
            tumour[top : top + len(strip)] = (values == 1) | (values >= 128)
    return tumour


def _check_inside(path: Path, outlines: Iterable[NDArray[np.float64]], size: tuple[int, int]) -> None:
    for corners in outlines:
        outside = ((corners < 0) | (corners > size)).any(axis=1)
        if outside.mean() > 0.5:
            x, y = np.rint(corners[outside][0]).astype(int)
            raise InputError(
                f"an outline lies outside the slide of {size[0]} x {size[1]} pixels (at {x}, {y})",
                where=path,
                remedy="give the outlines of this slide, in pixels of its largest level",
            )


# --- From slides and cells to jobs -----------------------------------------------------------------------------------


def _slide_jobs(command: of.Patches, datalist: Datalist, failed: dict[str, tuple[Row, str]], log: Log) -> list[Job]:
    """Look at all slides and choose patches; slides that cannot be used go to `failed`."""
    size = command.size or SLIDE_PATCH
    surveys = []
    named = list(zip(datalist, slide_names(datalist), strict=True))
    for row, name in log.progress(named, "looking at slides"):
        try:
            surveys.append(survey(row, name, size, command.level, command.tissue))
        except InputError as error:
            _fail(failed, row, name, error)
    if not surveys:
        return []
    sites = tuple(dict.fromkeys(found.row.site for found in surveys))
    places = [np.flatnonzero(found.labels != NEITHER) for found in surveys]
    labels = [found.labels.ravel()[own] for found, own in zip(surveys, places, strict=True)]
    site_of = [np.full(len(own), sites.index(found.row.site)) for found, own in zip(surveys, places, strict=True)]
    all_labels, all_sites = np.concatenate(labels), np.concatenate(site_of)
    for number, site in enumerate(sites):
        if command.balance and TUMOUR not in all_labels[all_sites == number]:
            say(f"{site or command.slides}: no patch with tumour, so none without; --no-balance takes those")
    chosen = choose_patches(all_labels, all_sites, command.balance, command.limit, command.seed)
    by_slide = np.split(chosen, np.cumsum([len(own) for own in places])[:-1])
    return [
        _grid_job(found, own[kept], size, command) for found, own, kept in zip(surveys, places, by_slide, strict=True)
    ]


def _grid_job(found: Survey, places: NDArray[np.intp], size: int, command: of.Patches) -> Job:
    points = found.grid.corners(places)

    def write(folder: Path, todo: Sequence[tuple[int, str]]) -> None:
        with Slide(found.row.image) as slide:

            def one(number: int, name: str) -> None:
                x, y = points[number].tolist()
                write_image(folder / name, slide.read_region(x, y, size, size, command.level), EFFORT)

            _in_threads(one, todo, command.workers)

    return Job(found.row, found.name, found.labels.ravel()[places], points, write, found, places)


def _cell_jobs(command: of.Patches, cells: Datalist) -> list[Job]:
    """One job for each picture of TUPAC16."""
    size = command.size or CELL_PATCH
    jobs = []
    for name, group in groupby(cells, key=lambda row: row.labels["slide"]):
        rows = list(group)
        points = np.array([(int(row.labels["x"]), int(row.labels["y"])) for row in rows])
        labels = np.array([int(row.labels["label"]) for row in rows], dtype=np.int8)
        jobs.append(Job(rows[0], name, labels, points, _cell_writer(rows[0].image, points, size, command.workers)))
    return jobs


def _cell_writer(path: Path, points: NDArray[np.int64], size: int, workers: int) -> Writer:
    def write(folder: Path, todo: Sequence[tuple[int, str]]) -> None:
        image = read_image(path)
        height, width = image.shape[:2]
        outside = points[((points < 0) | (points >= (width, height))).any(axis=1)]
        if len(outside):
            x, y = outside[0].tolist()
            raise InputError(
                f"a labelled cell at ({x}, {y}) lies outside the picture of {width} x {height} pixels",
                where=path,
                remedy="take pictures and labels of the same data set",
            )
        cut = cut_points(image, points[[number for number, _ in todo]], size)
        _in_threads(
            lambda patch, name: write_image(folder / name, patch, EFFORT),
            [(patch, name) for patch, (_, name) in zip(cut, todo, strict=True)],
            workers,
        )

    return write


def slide_names(datalist: Iterable[Row]) -> list[str]:
    """A name for every slide: what the datalist calls it, else that of its file, with the site where two have the same.

    Raises:
        InputError: two slides of one site have the same name.
    """
    rows = list(datalist)
    short = [row.labels.get("slide") or row.image.stem for row in rows]
    often = Counter(short)
    names = [
        f"{row.site}_{name}" if often[name] > 1 and row.site else name for row, name in zip(rows, short, strict=True)
    ]
    for row, name in zip(rows, names, strict=True):
        if names.count(name) > 1:
            remedy = "rename one of the files, or name the slides in a column slide"
            raise InputError(f"two slides have the name {name}", where=row.image, remedy=remedy)
    return names


# --- Writing ---------------------------------------------------------------------------------------------------------


def _in_threads(work: Callable[..., object], items: Sequence[tuple[Any, ...]], workers: int) -> None:
    """Do `work(*item)` for all items; after an error, or Ctrl-C, no further one is begun."""
    with ThreadPoolExecutor(max_workers=workers) as pool:
        tasks = [pool.submit(work, *item) for item in items]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write(job: Job, folder: Path) -> list[Path]:
    """Write a job's patches, all but those that an earlier run wrote.

    Returns:
        the files, in the order of the job's points.

    Raises:
        InputError: the slide is damaged; then nothing of it is left.
        OutputError: a file cannot be written.
    """
    seen: Counter[str] = Counter()
    names = []
    for x, y in job.points.tolist():
        stem = f"{job.name}_x{x}_y{y}"
        seen[stem] += 1
        names.append(f"{stem}.png" if seen[stem] == 1 else f"{stem}_{seen[stem]}.png")
    there = set(os.listdir(folder)) if folder.is_dir() else set()
    for name in there:
        if name.startswith(".tmp-"):  # a run that was killed left it
            (folder / name).unlink()
    todo = [(number, name) for number, name in enumerate(names) if name not in there]
    try:
        if todo:
            job.write(folder, todo)
    except InputError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return [folder / name for name in names]


def _fail(failed: dict[str, tuple[Row, str]], row: Row, name: str, error: InputError) -> None:
    say(str(error))
    failed[name] = row, str(error).removeprefix(f"{row.image}: ")


# --- The command -----------------------------------------------------------------------------------------------------


def patches(command: of.Patches) -> None:
    """Cut patches; write them with a datalist, a table of slides, overviews and a report."""
    from stain_aglr.overviews import write_report

    out, config = command.output.out, flat_settings(command)
    # What cannot be written to is found out before slides are read; what is to be replaced stays until they have been.
    occupied = out.is_dir() and any(out.iterdir()) and not command.output.overwrite
    if command.resume or occupied:
        claim_folder(out, config, resume=command.resume)
    datalist, default_site = _open(command)
    if command.site:
        datalist.select(site=command.site)
    training_site = command.site or default_site
    log = Log(out)
    failed: dict[str, tuple[Row, str]] = {}
    jobs = _cell_jobs(command, datalist) if command.labels else _slide_jobs(command, datalist, failed, log)
    if not any(len(job.points) for job in jobs):
        raise _nothing(command, failed)
    if not command.resume:
        claim_folder(out, config, overwrite=command.output.overwrite)
    rows: list[Row] = []
    for job in log.progress(jobs, "cutting patches"):
        try:
            files = _write(job, out / "patches" / job.name)
        except InputError as error:
            _fail(failed, job.row, job.name, error)
            continue
        for file, label, (x, y) in zip(files, job.labels.tolist(), job.points.tolist(), strict=True):
            about = {"label": str(label), "slide": job.name, "x": str(x), "y": str(y)}
            rows.append(Row(file, subject=job.row.subject, site=job.row.site, split=job.row.split, labels=about))
    if not rows:
        raise _nothing(command, failed)
    if training_site:
        splits = assign_splits([row.subject for row in rows], [row.site for row in rows], training_site, command.seed)
        rows = [dataclasses.replace(row, split=split) for row, split in zip(rows, splits, strict=True)]
    path = Datalist(tuple(rows)).write(out / "datalist.csv")
    table = slide_table(rows, jobs, failed)
    write_csv(out / "slides.csv", COLUMNS, table)
    positive = sum(row.labels["label"] == "1" for row in rows)
    counts = {"patches": len(rows), "label_1": positive, "label_0": len(rows) - positive, "left_out": len(failed)}
    write_atomic(out / METRICS, json.dumps(counts, indent=2) + "\n")
    write_report(out, rows, [job for job in jobs if job.name not in failed], table, command)
    say(f"{len(rows)} patches ({positive} with label 1): {path}   report: {out / 'report.html'}")


def _open(command: of.Patches) -> tuple[Datalist, str]:
    """The slides or cells, and the laboratory that is for training where nobody says otherwise; empty where none is."""
    if command.labels is not None:
        if tupac16.edition(command.labels) == "augmented":
            say(f"{command.labels}: this is the augmented edition, not the one of the paper's tables")
        return tupac16.index(command.slides, command.labels), "centre1"
    if command.slides.is_dir():
        return camelyon17.index(command.slides), "RUMC"
    datalist = Datalist.read(command.slides)
    if command.site and datalist.splits:
        raise InputError(
            "names the splits, so that --site has nothing to split",
            where=command.slides,
            remedy="leave one of them out",
        )
    return datalist, ""


def _nothing(command: of.Patches, failed: Mapping[str, tuple[Row, str]]) -> InputError:
    first = next(iter(failed.values()), None)
    reason = f" ({first[0].image.name}: {first[1]})" if first else ""
    return InputError(f"no slide gives a patch{reason}", where=command.slides, remedy="see the reasons above")


def slide_table(
    rows: Sequence[Row], jobs: Sequence[Job], failed: Mapping[str, tuple[Row, str]]
) -> list[tuple[str, str, str, str, int, int, str]]:
    """One line per slide, see COLUMNS; those that could not be used are the last."""
    counts = Counter((row.labels["slide"], row.labels["label"]) for row in rows)
    split_of = {row.labels["slide"]: row.split for row in rows}
    used = {job.name: (job.row, "" if len(job.points) else "no patch was chosen") for job in jobs}
    return [
        (name, row.subject, row.site, split_of.get(name, ""), counts[name, "1"], counts[name, "0"], reason)
        for name, (row, reason) in {**{n: v for n, v in used.items() if n not in failed}, **failed}.items()
    ]
