"""What `stain-aglr patches` shows: each slide with its tissue, tumour and chosen patches, and examples of the patches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from dart_core.data.datalist import Row
from dart_core.data.images import read_image
from dart_core.files import atomic_write
from dart_core.report import Report
from stain_aglr import settings as of
from stain_aglr.grid import TUMOUR
from stain_aglr.patches import COLUMNS, Job

TISSUE_COLOUR, TUMOUR_COLOUR, NORMAL_COLOUR = "#0072b2", "#d62728", "#2ca02c"
DPI = 120
MOST_LINES = 120
"""A finer grid than so many patches across would hide the slide."""
SHOWN_SLIDES, EXAMPLES, EXAMPLE = 6, 8, 80


def overview(job: Job) -> Figure:
    """A slide with the edge of its tissue, the outlines of its tumour, the grid, and the patches that were chosen."""
    found, places = job.found, job.places
    assert found is not None
    assert places is not None
    rows, columns = found.labels.shape
    height, width = found.picture.shape[:2]
    scale = 7 / max(height, width)
    wide, high = max(3.5, width * scale), height * scale
    figure = Figure(figsize=(wide + 0.1, high + 0.35))
    axes = figure.add_axes((0.05 / (wide + 0.1), 0.05 / (high + 0.35), wide / (wide + 0.1), high / (high + 0.35)))
    # One unit is one patch.
    axes.imshow(found.picture, extent=(0, columns, rows, 0), interpolation="antialiased")
    x, y = (np.arange(count) + 0.5 for count in (width, height))
    for mask, colour, line in ((found.tissue, TISSUE_COLOUR, 0.6), (found.tumour, TUMOUR_COLOUR, 1.6)):
        if mask.any() and not mask.all():
            grid = (x * columns / width, y * rows / height, mask.astype(float))
            axes.contour(*grid, levels=[0.5], colors=colour, linewidths=line)
    if max(rows, columns) <= MOST_LINES:
        lines: dict[str, Any] = {"colors": "0.3", "linewidths": 0.25, "alpha": 0.6}
        axes.hlines(np.arange(rows + 1), 0, columns, **lines)
        axes.vlines(np.arange(columns + 1), 0, rows, **lines)
    for label, colour in ((0, NORMAL_COLOUR), (TUMOUR, TUMOUR_COLOUR)):
        squares = [
            Rectangle((place % columns, place // columns), 1, 1) for place in places[job.labels == label].tolist()
        ]
        axes.add_collection(PatchCollection(squares, facecolor=to_rgba(colour, 0.12), edgecolor=colour, linewidth=0.8))
    counts = {label: int((job.labels == label).sum()) for label in (TUMOUR, 0)}
    title = f"{job.name}: {counts[TUMOUR]} patches with tumour (red), {counts[0]} without (green)"
    axes.set_title(title, fontsize=8, parse_math=False)
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    return figure


def examples(rows: Sequence[Row]) -> NDArray[np.uint8]:
    """Patches of one laboratory, evenly taken from the datalist: those with label 0 above those with label 1.

    Returns:
        uint8 (h, w, 3).
    """
    picture = np.full((2, EXAMPLE + 4, EXAMPLES, EXAMPLE + 4, 3), 255, np.uint8)
    for label in (0, 1):
        own = [row for row in rows if row.labels["label"] == str(label)]
        numbers = np.unique(np.linspace(0, len(own) - 1, min(EXAMPLES, len(own))).round().astype(int))
        for place, number in enumerate(numbers):
            patch = Image.fromarray(read_image(own[number].image)).resize((EXAMPLE, EXAMPLE), Image.Resampling.BOX)
            picture[label, 2:-2, place, 2:-2] = np.asarray(patch)
    return picture.reshape(2 * (EXAMPLE + 4), EXAMPLES * (EXAMPLE + 4), 3)


def write_report(
    out: Path, rows: Sequence[Row], jobs: Sequence[Job], table: Sequence[Sequence[str | int]], command: of.Patches
) -> None:
    """Write overviews/<slide>.png for every slide, and report.html.

    Args:
        out: the run's folder.
        rows: the patches.
        jobs: the slides or pictures that were cut.
        table: of `patches.slide_table`.
        command: its settings.
    """
    report = Report("Patches", f"{len(rows)} patches from {len(jobs)} slides", package="stain-aglr")
    sites = dict.fromkeys((row.site, row.split) for row in rows)
    report.table(
        ("laboratory", "split", "slides", "subjects", "label 1", "label 0"),
        [
            (site, split, *_counts([row for row in rows if (row.site, row.split) == (site, split)]))
            for site, split in sites
        ],
        "Patches by laboratory",
    )
    for site in dict.fromkeys(row.site for row in rows):
        caption = f"Patches of {site or 'the slides'}: label 0 above, label 1 below"
        report.picture(examples([row for row in rows if row.site == site]), caption, caption)
    slides = [job for job in jobs if job.found is not None]
    if slides:
        report.section("Slides")
        report.text(
            "Red line: tumour. Blue line: edge of the tissue. Squares: patches that were cut, red with tumour in their "
            "central third, green without any tumour."
        )
    shown = {
        slides[place].name
        for place in np.linspace(0, len(slides) - 1, min(SHOWN_SLIDES, len(slides))).round().astype(int)
    }
    for job in slides:
        figure = overview(job)
        with atomic_write(out / "overviews" / f"{job.name}.png") as temporary:
            figure.savefig(temporary, dpi=DPI)
        if job.name in shown:
            report.picture(out / "overviews" / f"{job.name}.png", job.name, f"overview of {job.name}")
    if len(slides) > len(shown):
        report.text(f"The folder overviews/ has the pictures of all {len(slides)} slides.")
    report.table(COLUMNS, table, "All slides")
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")


def _counts(rows: Sequence[Row]) -> tuple[int, int, int, int]:
    labels = [row.labels["label"] for row in rows]
    slides, subjects = ({row.labels["slide"] for row in rows}, {row.subject for row in rows})
    return len(slides), len(subjects), labels.count("1"), labels.count("0")
