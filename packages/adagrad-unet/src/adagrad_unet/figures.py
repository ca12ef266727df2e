"""Pictures: update magnitudes of the layers (Fig. 2), segmented slices (Fig. 1), bars over methods (Figs 3 and 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from adagrad_unet.analysis import by_group
from dart_core.figures import Panel, comparison, wrapped
from dart_core.report import COLOURS

LABEL_COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#ff7f0e", "#9467bd", "#17becf")
Y_LABELS = {
    "mean_abs": "mean |change| of a weight per step",
    "l2": "norm of the change per step",
    "relative": "norm of the change / norm of the weight",
}


def update_figure(runs: Mapping[str, Mapping[str, float]], form: str = "mean_abs") -> Figure:
    """Update magnitude of every layer, one panel per run, layers in forward order within their group (paper Fig. 2).

    Args:
        runs: name -> {module name: magnitude}.
        form: what the magnitudes are, for the axis.
    """
    columns = min(2, len(runs))
    lines = -(-len(runs) // columns)
    figure = Figure(figsize=(4.6 * columns + 0.6, 3.2 * lines + 0.2), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for cell in axes.flat[len(runs) :]:
        cell.axis("off")
    for (name, layers), cell in zip(runs.items(), axes.flat, strict=False):
        start = 0
        for (group, values), colour in zip(by_group(layers).items(), COLOURS, strict=False):
            places = np.arange(start, start + len(values))
            cell.plot(places, values, "-o", color=colour, label=group, markersize=3.5, linewidth=1.2)
            start += len(values)
        if any(value > 0 for value in layers.values()):
            cell.set_yscale("log")
        cell.set_title(wrapped(name, 4.6, 9), fontsize=9, parse_math=False)
        cell.set_xlabel("layer")
        cell.grid(visible=True, axis="y", which="both", alpha=0.2)
        cell.spines[["top", "right"]].set_visible(False)
    for row in axes:
        row[0].set_ylabel(Y_LABELS[form])
    axes[0, 0].legend(fontsize=7)
    return figure


def rates_figure(runs: Mapping[str, Mapping[str, float]]) -> Figure:
    """Spread of eta / rms(eta) at the end of each run: bars from the 1st to the 99th percentile, whiskers to the extremes.

    Args:
        runs: name -> what `rate_percentiles` gives.
    """
    figure = Figure(figsize=(6.4, 0.9 + 0.45 * len(runs)), layout="constrained")
    axes = figure.add_subplot()
    for place, values in enumerate(runs.values()):
        axes.plot([values["rate_min"], values["rate_max"]], [place, place], color="0.6", linewidth=1)
        axes.plot([values["rate_p1"], values["rate_p99"]], [place, place], color=COLOURS[0], linewidth=6, alpha=0.6)
        axes.plot([values["rate_p50"]], [place], "o", color="black", markersize=4)
    axes.axvline(1.0, color=COLOURS[1], linewidth=1, linestyle="--")
    axes.set_xscale("log")
    axes.set_yticks(range(len(runs)), list(runs), fontsize=8)
    axes.set_ylim(-0.6, len(runs) - 0.4)
    axes.set_xlabel("eta / rms(eta): relative learning rate of single weights")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def bars(groups: Mapping[str, Mapping[str, float]], y_label: str) -> Figure:
    """Bars of methods beside each other at every place (paper Figs 3 and 4).

    Args:
        groups: place -> {method: height}; nan is left out.
        y_label: name of the heights.
    """
    methods = list(dict.fromkeys(name for values in groups.values() for name in values))
    figure = Figure(figsize=(max(4.0, 0.9 + 0.32 * len(groups) * (len(methods) + 1)), 3.2), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / max(len(methods), 1)
    for number, method in enumerate(methods):
        heights = [values.get(method, np.nan) for values in groups.values()]
        places = np.arange(len(groups)) + (number - (len(methods) - 1) / 2) * width
        axes.bar(places, heights, width * 0.92, label=method, color=COLOURS[number % len(COLOURS)])
    axes.set_xticks(range(len(groups)), list(groups), fontsize=8)
    axes.set_ylabel(y_label)
    axes.set_ylim(0, 1)
    axes.grid(visible=True, axis="y", alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7)
    return figure


def label_panel(title: str, image: NDArray[Any], labels: NDArray[Any] | None) -> Panel:
    """A slice (h, w) with an outline for each label.

    Args:
        title: above it.
        image: any range.
        labels: (h, w) whole numbers, or None.
    """
    low, high = np.percentile(image, (1, 99))
    shown = np.clip((image - low) / max(high - low, 1e-9), 0, 1)
    outlines = {}
    for label in np.unique(labels) if labels is not None else ():
        if label > 0:
            outlines[LABEL_COLOURS[(int(label) - 1) % len(LABEL_COLOURS)]] = np.asarray(labels == label)
    return Panel(title, shown, outlines=outlines)


def slices_figure(rows: Sequence[tuple[str, Sequence[tuple[str, NDArray[Any], NDArray[Any] | None]]]]) -> Figure:
    """Rows of slices with outlines: (label of the row, [(title, image, labels), ...])."""
    return comparison([(name, [label_panel(*panel) for panel in panels]) for name, panels in rows])
