"""Pictures for reports: restored cubes, predicted masks, curves over the fraction of labels (Fig. 4), gains (Fig. 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dart_core.figures import Panel, comparison, wrapped
from dart_core.report import COLOURS

SHOWN = 6
"""Cubes in a picture."""


def middle(cube: NDArray[Any]) -> NDArray[np.float32]:
    """The middle axial slice (H, W) of a cube (..., H, W, D)."""
    volume = np.asarray(cube, dtype=np.float32).reshape(-1, *cube.shape[-3:])[0]
    return np.asarray(volume[:, :, volume.shape[2] // 2])


def restored_figure(rows: Mapping[str, NDArray[Any]]) -> Figure:
    """Middle slices of cubes: a row for each of "original", "seen by the network", "restored", ...

    Args:
        rows: name -> cubes (n, 1, H, W, D) in [0, 1].
    """
    count = min(SHOWN, max(len(cubes) for cubes in rows.values()))
    figure = Figure(figsize=(1.15 * count + 0.4, 1.2 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), count, squeeze=False)
    for (name, cubes), cells in zip(rows.items(), axes, strict=True):
        for cell in cells:
            cell.set_xticks([])
            cell.set_yticks([])
            cell.spines[:].set_visible(False)
        for cube, cell in zip(cubes, cells, strict=False):
            cell.imshow(middle(cube).T, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        cells[0].set_ylabel(name, fontsize=8)
    return figure


def masks_figure(cubes: NDArray[Any], truth: NDArray[Any], predicted: NDArray[Any]) -> Figure:
    """Slices with most foreground: true outline green, predicted one red.

    Args:
        cubes: (n, 1, H, W, D).
        truth: masks (n, H, W, D), whole numbers.
        predicted: likewise.
    """
    panels = []
    for cube, true, found in list(zip(cubes, truth, predicted, strict=True))[:SHOWN]:
        z = int((true > 0).sum((0, 1)).argmax()) if (true > 0).any() else true.shape[2] // 2
        panels.append(Panel("", np.asarray(cube[0, :, :, z]), true[:, :, z] > 0, found[:, :, z] > 0))
    return comparison([("", panels)])


def label_curves(curves: Mapping[str, Mapping[float, Sequence[float]]], measure: str) -> Figure:
    """Fig. 4: a measure against the share of the labels, mean and standard deviation over seeds.

    Args:
        curves: initialisation -> fraction -> values of the seeds.
        measure: name of the values.
    """
    figure = Figure(figsize=(5.0, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for i, (name, points) in enumerate(curves.items()):
        fractions = sorted(points)
        means = [float(np.mean(points[f])) for f in fractions]
        spread = [float(np.std(points[f], ddof=1)) if len(points[f]) > 1 else 0.0 for f in fractions]
        colour = COLOURS[i % len(COLOURS)]
        axes.errorbar([100 * f for f in fractions], means, spread, marker="o", color=colour, capsize=3, label=name)
    axes.set_xlabel("labels used, %")
    axes.set_ylabel(measure)
    axes.grid(visible=True, alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    legend = axes.legend(fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def increments_figure(bars: Mapping[str, Sequence[tuple[str, float, float]]], measure: str) -> Figure:
    """Fig. 3: for each target a bar per pretext task: (D)+R, and on top of it what the adversary adds or takes away.

    Args:
        bars: target -> (pretext, measure of (D)+R, measure of ((D)+R)+A).
        measure: name of the values.
    """
    figure = Figure(figsize=(2.4 * len(bars) + 0.8, 3.2), layout="constrained")
    for (target, entries), axes in zip(bars.items(), figure.subplots(1, len(bars), squeeze=False)[0], strict=True):
        places = np.arange(len(entries))
        base = np.array([before for _, before, _ in entries])
        change = np.array([after - before for _, before, after in entries])
        axes.bar(places, base, color=COLOURS[0], width=0.6, label="(D)+R")
        colours = [COLOURS[2] if value >= 0 else COLOURS[1] for value in change]
        axes.bar(places, change, bottom=base, color=colours, width=0.6)
        for x, b, c in zip(places, base, change, strict=True):
            axes.text(x, max(b, b + c), f"{c:+.3f}", ha="center", va="bottom", fontsize=7)
        low = float(min(base.min(), (base + change).min()))
        high = float(max(base.max(), (base + change).max()))
        room = max(high - low, 1e-3)
        axes.set_ylim(max(0.0, low - room), high + 0.4 * room)
        axes.set_xticks(places, [name for name, _, _ in entries], fontsize=7, rotation=20)
        axes.set_title(wrapped(target, 2.4, 9), fontsize=9, parse_math=False)
        axes.set_ylabel(measure)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
