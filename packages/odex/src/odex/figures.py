"""Pictures: cases with outlines, Dice by stage (Fig. 3 left), training time (Fig. 3 right), one case through the stages (Fig. 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dart_core.figures import Panel, comparison
from dart_core.report import COLOURS

Case: TypeAlias = tuple[str, NDArray[Any], NDArray[Any], NDArray[Any]]
"""Title, image, predicted and true labels, each (z, y, x)."""


def cases_figure(cases: Sequence[tuple[str, NDArray[Any], NDArray[Any]]], columns: int = 3) -> Figure:
    """Axial slices with the most foreground.

    Args:
        cases: title, image (z, y, x), labels (z, y, x).
        columns: panels in a row.
    """
    panels = [case_panel(*case) for case in cases]
    return comparison([("", panels[i : i + columns]) for i in range(0, len(panels), columns)])


def case_panel(
    title: str, image: NDArray[Any], labels: NDArray[Any], truth: NDArray[Any] | None = None, z: int | None = None
) -> Panel:
    """One axial slice, brightness between the 1st and 99th percentile."""
    if z is None:
        z = int(((labels if truth is None else truth) > 0).sum((1, 2)).argmax())
    plane = image[z].T
    low, high = np.percentile(plane, (1, 99))
    shown = np.clip((plane - low) / max(high - low, 1e-9), 0, 1)
    return Panel(title, shown, None if truth is None else truth[z].T > 0, labels[z].T > 0)


def states_figure(first: tuple[str, Sequence[Case]], second: tuple[str, Sequence[Case]]) -> Figure:
    """Two rows of one image: a method after each stage, and all methods after the last (Fig. 4).

    Args:
        first: label of the row, and its cases.
        second: likewise.
    """
    z = int((first[1][0][3] > 0).sum((1, 2)).argmax())
    return comparison(
        [(label, [case_panel(*case[:3], truth=case[3], z=z) for case in cases]) for label, cases in (first, second)]
    )


def stage_figure(
    matrices: Mapping[str, NDArray[np.float64]],
    stages: Sequence[str],
    at_once: Mapping[str, NDArray[np.float64]] | None = None,
) -> Figure:
    """Dice on the test images of each stage as the stages are learned: one panel per stage (Fig. 3 left).

    Args:
        matrices: method -> (N, N), row = after stage i, column = test images of stage j.
        stages: names.
        at_once: method -> (N,) of methods that learn all stages at once: a level line.
    """
    n = len(stages)
    figure = Figure(figsize=(max(4.0, 2.2 * n), 2.9), layout="constrained")
    axes = figure.subplots(1, n, sharey=True, squeeze=False)[0]
    for j, cell in enumerate(axes):
        for i, (method, matrix) in enumerate(matrices.items()):
            cell.plot(
                range(1, len(matrix) + 1), matrix[:, j], marker="o", color=COLOURS[i % len(COLOURS)], markersize=3, linewidth=1.4,
                linestyle=("-", "--", ":")[i // len(COLOURS) % 3], label=method,
            )  # fmt: skip
        for method, row in (at_once or {}).items():
            cell.axhline(row[j], color="0.2", linewidth=1, linestyle="-.", label=method)
        cell.axvline(j + 1, color="0.6", linewidth=0.8, linestyle=":")
        cell.set_title(stages[j], fontsize=8, parse_math=False)
        cell.set_xticks(range(1, n + 1))
        cell.tick_params(labelsize=7)
        cell.grid(visible=True, alpha=0.15)
        cell.set_ylim(-0.02, 1.02)
    axes[0].set_ylabel("Dice", fontsize=8)
    axes[0].set_xlabel("learned up to stage", fontsize=8)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(6, len(names)), fontsize=7)
    return figure


def time_figure(seconds: Mapping[str, Sequence[float]]) -> Figure:
    """Training time by method, stage upon stage (Fig. 3 right)."""
    figure = Figure(figsize=(5.6, 0.6 + 0.34 * len(seconds)), layout="constrained")
    axes = figure.add_subplot()
    stages = max(len(values) for values in seconds.values())
    left = np.zeros(len(seconds))
    for j in range(stages):
        width = np.array([values[j] if j < len(values) else 0.0 for values in seconds.values()])
        axes.barh(range(len(seconds)), width, left=left, color=COLOURS[j % len(COLOURS)], label=f"stage {j + 1}")
        left += width
    axes.set_yticks(range(len(seconds)), list(seconds), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("seconds", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=6, ncols=min(5, stages), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure
