"""Pictures: organs in colour, maps of gamma and beta, Dice against the block, gains per organ (paper Figs 3 to 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from catenorm.cases import Case
from dart_core.figures import oriented, wrapped
from dart_core.report import COLOURS

PALETTE = (
    "#e41a1c", "#4daf4a", "#377eb8", "#ff7f00", "#f0e442", "#a65628", "#984ea3", "#00bcd4", "#f781bf", "#66c2a5", "#999999",
)  # fmt: skip


def colour(number: int) -> str:
    """Of the class 1, 2, ..."""
    return PALETTE[(number - 1) % len(PALETTE)]


def fullest(label: NDArray[Any] | None) -> int:
    """The slice with the most labelled pixels; the middle one of an empty map."""
    if label is None:
        return 0
    areas = (label > 0).sum((1, 2))
    return int(areas.argmax()) if areas.any() else len(label) // 2


def grey(case: Case, z: int) -> NDArray[np.float32]:
    """A slice as (x, y) from 0 to 1, between the volume's 1st and 99th percentile."""
    low, high = np.percentile(case.image, (1, 99))
    scaled = np.clip((np.asarray(case.image[z]) - low) / max(high - low, 1e-9), 0, 1)
    return np.asarray(case.shown(scaled), dtype=np.float32)


def _draw(axes: Any, case: Case, z: int, classes: NDArray[Any] | None, title: str) -> None:
    axes.imshow(oriented(grey(case, z)), cmap="gray", vmin=0, vmax=1)
    if classes is not None:
        shown = oriented(case.shown(classes[z]))
        for number in np.unique(shown[shown > 0]):
            mask = (shown == number).astype(float)
            axes.contourf(mask, levels=[0.5, 1.5], colors=[colour(int(number))], alpha=0.4)
            if not mask.all():
                axes.contour(mask, levels=[0.5], colors=[colour(int(number))], linewidths=0.8)
    axes.set_title(wrapped(title, 1.9), fontsize=8, parse_math=False)
    axes.axis("off")


def _legend(figure: Figure, organs: Sequence[str]) -> None:
    handles = [Line2D([], [], color=colour(n), linewidth=4, label=name) for n, name in enumerate(organs, 1)]
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=min(len(organs), 6), fontsize=7)
    for text in legend.get_texts():
        text.set_parse_math(False)


def overlays(cases: Sequence[tuple[Case, NDArray[Any]]], organs: Sequence[str]) -> Figure:
    """Truth and prediction beside each other; two cases in a row.

    Args:
        cases: case, and its classes (Z, H, W).
        organs: names of the classes.
    """
    lines = -(-len(cases) // 2)
    figure = Figure(figsize=(2.1 * 4, 2.3 * lines + 0.4), layout="constrained")
    axes = figure.subplots(lines, 4, squeeze=False)
    for cell in axes.ravel():
        cell.axis("off")
    for place, (case, classes) in enumerate(cases):
        z = fullest(classes if case.label is None else case.label)
        pair = axes[place // 2, 2 * (place % 2) : 2 * (place % 2) + 2]
        _draw(pair[0], case, z, case.label, f"{case.row.site} {case.row.subject or case.name}".strip())
        _draw(pair[1], case, z, classes, "prediction")
    _legend(figure, organs)
    return figure


def comparison(rows: Sequence[tuple[Case, Mapping[str, NDArray[Any]]]], organs: Sequence[str]) -> Figure:
    """Fig. 4: one case per row: the slice, its labels, and what each method says.

    Args:
        rows: case, and name of a method -> classes (Z, H, W).
        organs: names of the classes.
    """
    columns = 2 + max(len(methods) for _, methods in rows)
    figure = Figure(figsize=(1.9 * columns, 2.1 * len(rows) + 0.4), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for (case, methods), row in zip(rows, axes, strict=True):
        for cell in row:
            cell.axis("off")
        z = fullest(case.label)
        _draw(row[0], case, z, None, f"{case.row.site} {case.row.subject or case.name}".strip())
        _draw(row[1], case, z, case.label, "labels")
        for cell, (name, classes) in zip(row[2:], methods.items(), strict=False):
            _draw(cell, case, z, classes, name)
    _legend(figure, organs)
    return figure


def maps(case: Case, gamma: NDArray[Any], beta: NDArray[Any], z: int, channels: int) -> Figure:
    """Fig. 6: gamma above, beta below, of the channels whose gamma varies most; each map on its own scale.

    Args:
        case: whose slice z it is.
        gamma: (C, h, w).
        beta: (C, h, w).
        z: slice.
        channels: how many.
    """
    chosen = np.argsort(-gamma.std((1, 2)), kind="stable")[:channels]
    figure = Figure(figsize=(1.6 * (len(chosen) + 1), 3.5), layout="constrained")
    axes = figure.subplots(2, len(chosen) + 1, squeeze=False)
    _draw(axes[0, 0], case, z, None, "slice")
    _draw(axes[1, 0], case, z, case.label, "labels")
    for line, (name, values) in enumerate((("gamma", gamma), ("beta", beta))):
        for place, channel in enumerate(chosen, 1):
            cell = axes[line, place]
            drawn = cell.imshow(oriented(case.shown(values[channel])), cmap="viridis")
            bar = figure.colorbar(drawn, ax=cell, shrink=0.75, aspect=12, pad=0.02)
            bar.ax.tick_params(labelsize=5)
            cell.set_title(f"{name} {channel}", fontsize=7)
            cell.axis("off")
    return figure


def positions(points: Mapping[int, float], baseline: float | None, names: Sequence[str]) -> Figure:
    """Fig. 5: mean Dice of networks with one categorical block against its number.

    Args:
        points: block -> Dice in per cent.
        baseline: of batch norm, drawn as a line.
        names: of the blocks 1, 2, ...
    """
    figure = Figure(figsize=(4.8, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(sorted(points), [points[block] for block in sorted(points)], "o-", color=COLOURS[0], label="one CN block")
    if baseline is not None:
        axes.axhline(baseline, linestyle="--", color="0.4", linewidth=1, label="batch norm")
    axes.set_xticks(sorted(points), [f"{block}\n{names[block - 1]}" for block in sorted(points)], fontsize=7)
    axes.set_xlabel("block")
    axes.set_ylabel("Dice (%)")
    axes.grid(visible=True, alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7)
    return figure


def gains(bars: Mapping[str, Mapping[str, float]]) -> Figure:
    """Fig. 3: gain in Dice over batch norm per organ, for several numbers of annotated classes.

    Args:
        bars: "3 classes" -> organ -> difference in per cent.
    """
    organs = list(dict.fromkeys(organ for values in bars.values() for organ in values))
    figure = Figure(figsize=(max(4.0, 1.0 + 0.9 * len(organs)), 3.0), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(bars)
    for place, (name, values) in enumerate(bars.items()):
        at = [organs.index(organ) + (place - (len(bars) - 1) / 2) * width for organ in values]
        axes.bar(at, list(values.values()), width, color=COLOURS[place % len(COLOURS)], label=name)
    axes.axhline(0, color="0.2", linewidth=0.8)
    axes.set_xticks(range(len(organs)), organs, fontsize=7)
    axes.set_ylabel("Dice, CateNorm - BN (%)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7)
    return figure


def histograms(before: Mapping[str, NDArray[Any]], after: Mapping[str, NDArray[Any]]) -> Figure:
    """Fig. 1: intensities of the classes of every site before and after the alignment.

    Args:
        before: "site, class" -> pixels.
        after: the same after.
    """
    classes = list(dict.fromkeys(name.split(", ", 1)[1] for name in before))
    sites = list(dict.fromkeys(name.split(", ", 1)[0] for name in before))
    figure = Figure(figsize=(2.6 * len(classes), 4.2), layout="constrained")
    axes = figure.subplots(2, len(classes), squeeze=False)
    for line, (title, pixels) in enumerate((("before", before), ("after", after))):
        for column, organ in enumerate(classes):
            found = {site: pixels[f"{site}, {organ}"] for site in sites if f"{site}, {organ}" in pixels}
            low, high = np.percentile(np.concatenate(list(found.values())), (0.5, 99.5))
            edges = np.linspace(low, max(high, low + 1e-6), 60)
            for site, values in found.items():
                heights, _ = np.histogram(values, edges, density=True)
                axes[line, column].plot(
                    (edges[1:] + edges[:-1]) / 2,
                    heights,
                    color=COLOURS[sites.index(site) % len(COLOURS)],
                    linewidth=1,
                    label=site,
                )
            axes[line, column].set_title(f"{organ}, {title}", fontsize=8, parse_math=False)
            axes[line, column].set_yticks([])
            axes[line, column].tick_params(labelsize=6)
    axes[0, 0].legend(fontsize=6)
    return figure
