"""Pictures for reports: slices with outlines, scatter plots, violins, training curves."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from dart_core.report import COLOURS, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRUTH, PREDICTION = "#2ca02c", "#d62728"


# --- Slices ----------------------------------------------------------------------------------------------------------


class Panel(NamedTuple):
    """One picture of a comparison."""

    title: str
    image: NDArray[Any]
    """(h, w), shown from 0 to 1."""
    truth: NDArray[Any] | None = None
    """(h, w) bool, drawn as a green outline."""
    prediction: NDArray[Any] | None = None
    """(h, w) bool, drawn as a red outline."""
    outlines: Mapping[str, NDArray[Any]] | None = None
    """Further outlines: colour -> (h, w) bool."""


def comparison(rows: Sequence[tuple[str, Sequence[Panel]]]) -> Figure:
    """Rows of slices with outlines: usually one row per pair of sites, one column per method.

    Args:
        rows: (label, panels); rows may differ in length.
    """
    columns, side = max(len(panels) for _, panels in rows), 1.9
    rows = [(label, [panel._replace(title=wrapped(panel.title, side)) for panel in panels]) for label, panels in rows]
    lines = [1 + max((panel.title.count("\n") for panel in panels), default=0) for _, panels in rows]
    figure = Figure(figsize=(side * columns, sum(2.15 + 0.13 * max(2, n) for n in lines)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for (label, panels), row in zip(rows, axes, strict=True):
        for panel, cell in zip(panels, row, strict=False):
            show(cell, panel)
        for cell in row[len(panels) :]:
            cell.axis("off")
        row[0].text(
            -0.06, 0.5, label, rotation=90, ha="right", va="center", transform=row[0].transAxes, fontsize=8,
            parse_math=False,
        )  # fmt: skip
    return figure


def wrapped(title: str, inches: float, points: float = 8) -> str:
    """A title in lines that fit above a picture: names of methods tell their settings and may be long.

    Args:
        title: its own line breaks stay.
        inches: width of the picture.
        points: size of the font.
    """
    characters = max(1, int(inches * 72 / (0.6 * points)))
    return "\n".join(textwrap.fill(line, characters) for line in title.split("\n"))


def show(axes: Axes, panel: Panel) -> None:
    """Draw one panel: image, outlines, title, no axes."""
    axes.imshow(oriented(panel.image).astype(np.float32), cmap="gray", vmin=0, vmax=1)
    outlines = [(TRUTH, panel.truth), (PREDICTION, panel.prediction), *(panel.outlines or {}).items()]
    for colour, mask in outlines:
        if mask is not None and mask.any() and not mask.all():
            axes.contour(oriented(mask).astype(float), levels=[0.5], colors=colour, linewidths=1)
    axes.set_title(panel.title, fontsize=8, parse_math=False)
    axes.axis("off")


def oriented(image: NDArray[Any]) -> NDArray[Any]:
    """An axial RAS slice (h, w) as it is usually seen: front up, patient's left on the right."""
    return np.asarray(image).T[::-1, ::-1]


# --- Points and distributions ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Points:
    """Points of one kind in a scatter plot."""

    points: ArrayLike
    """(n, 2)."""
    colours: Sequence[str] | str = COLOURS[0]
    """One matplotlib colour, or one per point."""
    name: str = ""
    """Entry in the legend; empty for none."""
    marker: str = "o"
    size: float = 6.0
    """Area in square points."""


def scatter(panels: Sequence[tuple[str, Sequence[Points]]], columns: int = 3, same_axes: bool = True) -> Figure:
    """Scatter plots beside each other, without numbers on the axes (embeddings have no units).

    Args:
        panels: (title, kinds of points), drawn in the order given.
        columns: panels in a row.
        same_axes: all panels show the same range.
    """
    columns = min(columns, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(3.1 * columns, 3.2 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharex=same_axes, sharey=same_axes).ravel()
    for (title, kinds), cell in zip(panels, axes, strict=False):
        for kind in kinds:
            points = np.asarray(kind.points, dtype=float).reshape(-1, 2)
            colours = kind.colours if isinstance(kind.colours, str) else list(kind.colours)
            cell.scatter(*points.T, c=colours, s=kind.size, marker=kind.marker, linewidths=0, label=kind.name or None)
        cell.set_title(title, fontsize=9, parse_math=False)
        cell.set_xticks([])
        cell.set_yticks([])
        if any(kind.name for kind in kinds):
            cell.legend(fontsize=7, framealpha=0.6)
    for cell in axes[len(panels) :]:
        cell.axis("off")
    return figure


def violins(
    groups: Mapping[str, ArrayLike] | Mapping[str, Mapping[str, ArrayLike]],
    y_label: str,
    levels: Mapping[str, float] | None = None,
    y_range: tuple[float, float] | None = None,
) -> Figure:
    """Distributions as violins with their quartiles and mean; single points where there are too few for a violin.

    Args:
        groups: name -> values; or place on the x axis -> {series: values}, whose means are joined by lines per series.
            nan is left out.
        y_label: name (and unit) of the values.
        levels: name -> height of dashed lines across, for example an upper bound.
        y_range: of the axis.
    """
    nested = {place: dict(v) if isinstance(v, Mapping) else {"": v} for place, v in groups.items()}
    series = tuple(dict.fromkeys(name for values in nested.values() for name in values))
    figure = Figure(figsize=(max(3.6, 1.2 + 0.75 * len(nested) * max(1, len(series) * 0.6)), 3.4), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / max(len(series), 1)
    for i, name in enumerate(series):
        colour = COLOURS[i % len(COLOURS)]
        means = []
        for j, values in enumerate(nested.values()):
            array = np.asarray(values.get(name, ()), dtype=float).ravel()
            array = array[np.isfinite(array)]
            if not len(array):
                continue
            x = j + (i - (len(series) - 1) / 2) * width
            means.append((x, array.mean()))
            _violin(axes, array, x, width, colour)
        if means:
            line = "-" if len(series) > 1 else "None"
            axes.plot(
                *zip(*means, strict=True),
                linestyle=line,
                marker="o",
                color=colour,
                markersize=4,
                linewidth=1,
                label=name,
            )
    for name, height in (levels or {}).items():
        axes.axhline(height, linestyle="--", color="0.4", linewidth=1, label=name)
    axes.set_xticks(range(len(nested)), [str(place) for place in nested], fontsize=8)
    for label in axes.get_xticklabels():
        label.set_parse_math(False)
    axes.set_ylabel(y_label, parse_math=False)
    if y_range is not None:
        axes.set_ylim(*y_range)
    axes.grid(visible=True, axis="y", alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    if len(series) > 1 or levels:
        handles = [(h, text) for h, text in zip(*axes.get_legend_handles_labels(), strict=True) if text]
        axes.legend(*zip(*handles, strict=True), fontsize=7)
    return figure


def _violin(axes: Axes, values: NDArray[np.float64], x: float, width: float, colour: str) -> None:
    # A density needs spread: equal values have none.
    if len(values) < 3 or np.ptp(values) < 1e-9:
        axes.scatter(np.full(len(values), x), values, s=10, color=colour, alpha=0.6, linewidths=0)
        return
    parts: dict[str, Any] = axes.violinplot(
        [values], [x], widths=width * 0.9, showextrema=False, quantiles=[[0.25, 0.5, 0.75]]
    )
    for body in parts["bodies"]:
        body.set(facecolor=colour, alpha=0.35)
    parts["cquantiles"].set(color=colour, linewidth=1)


# --- Curves ----------------------------------------------------------------------------------------------------------


def training_curves(report: Report, out: Path, keys: Mapping[str, str], y_label: str, caption: str) -> None:
    """Add curves of what a run logged; nothing where it logged none of it.

    Args:
        report: where to.
        out: the run's folder with metrics.jsonl.
        keys: key in metrics.jsonl -> name of its curve.
        y_label: name of the values.
        caption: what the picture shows.
    """
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    series = {}
    for key, name in keys.items():
        points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        if points:
            steps, values = np.array(points, dtype=float).T
            series[name] = (steps, values)
    if series:
        report.curves(series, "step", y_label, caption)
