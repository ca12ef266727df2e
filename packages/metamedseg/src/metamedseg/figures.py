"""Pictures: slices with outlines, the comparison of Fig. 2, the heat map of Fig. 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dart_core.figures import wrapped
from metamedseg.slices import minmax

TRUE_POSITIVE, FALSE_NEGATIVE, FALSE_POSITIVE = (0.17, 0.63, 0.17), (0.84, 0.15, 0.16), (0.95, 0.85, 0.1)
"""Colours of Fig. 2: green, red, yellow."""


def slices_figure(rows: Sequence[tuple[str, Sequence[tuple[str, NDArray[Any], NDArray[Any]]]]]) -> Figure:
    """Rows of slices with outlines.

    Args:
        rows: (label, [(title, image (h, w), mask (h, w)), ...]).
    """
    columns = max(len(panels) for _, panels in rows)
    figure = Figure(figsize=(1.7 * columns + 0.3, 1.9 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for (label, panels), line in zip(rows, axes, strict=True):
        for cell, (title, image, mask) in zip(line, panels, strict=False):
            _grey(cell, image, title)
            if mask.any() and not mask.all():
                cell.contour(turned(mask).astype(float), levels=[0.5], colors="#2ca02c", linewidths=1)
        for cell in line:
            cell.axis("off")
        _label(line[0], label)
    return figure


def overlay_figure(
    rows: Sequence[tuple[str, NDArray[Any], NDArray[Any], Sequence[tuple[str, NDArray[Any]]]]],
) -> Figure:
    """Fig. 2: one row per target, the truth and what each method finds: true green, missed red, false yellow.

    Args:
        rows: (label, image (h, w), truth (h, w) bool, [(title, prediction (h, w) bool), ...]).
    """
    columns = 1 + max(len(found) for *_, found in rows)
    figure = Figure(figsize=(1.7 * columns + 0.3, 1.95 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for (label, image, truth, found), line in zip(rows, axes, strict=True):
        for cell, (title, prediction) in zip(line, [("truth", truth), *found], strict=False):
            _grey(cell, image, title)
            colours = np.zeros((*truth.shape, 4))
            for colour, inside in (
                (TRUE_POSITIVE, truth & prediction),
                (FALSE_NEGATIVE, truth & ~prediction),
                (FALSE_POSITIVE, ~truth & prediction),
            ):
                colours[inside] = (*colour, 0.55)
            cell.imshow(turned(colours), interpolation="nearest")
        for cell in line:
            cell.axis("off")
        _label(line[0], label)
    return figure


def heat_map(names: Sequence[str], values: NDArray[np.float64]) -> Figure:
    """Fig. 3: a symmetric matrix (n, n) of distances with its numbers."""
    side = max(3.5, 0.62 * len(names) + 1.6)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(values, cmap="viridis")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2 if np.isfinite(values).any() else 0.0
    for i in range(len(names)):
        for j in range(len(names)):
            if np.isfinite(values[i, j]):
                colour = "white" if values[i, j] < middle else "black"
                axes.text(j, i, f"{values[i, j]:.0f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(names)), list(names), rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), list(names), fontsize=8)
    figure.colorbar(shown, ax=axes, label="mean distance", shrink=0.8)
    return figure


def turned(image: NDArray[Any]) -> NDArray[Any]:
    """A slice (x, y, ...) of a volume as it is usually seen: the second axis upwards."""
    return np.swapaxes(image, 0, 1)[::-1]


def _grey(axes: Any, image: NDArray[Any], title: str) -> None:
    low, high = np.percentile(image, (1, 99))
    axes.imshow(turned(minmax(np.clip(image.astype(np.float32), low, high))), cmap="gray", vmin=0, vmax=1)
    axes.set_title(wrapped(title, 1.7, 7), fontsize=7, parse_math=False)


def _label(axes: Any, text: str) -> None:
    axes.text(
        -0.06, 0.5, text, rotation=90, ha="right", va="center", transform=axes.transAxes, fontsize=7, parse_math=False
    )
