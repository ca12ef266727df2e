"""Microscope pictures with boxes, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dart_core.figures import wrapped

COLOURS = {"first": "#e69f00", "corrected": "#0072b2", "reader": "#009e73", "detected": "#d55e00"}
"""What a box is -> its colour."""


class Look(NamedTuple):
    """One picture with boxes."""

    title: str
    image: NDArray[np.uint8]
    boxes: Mapping[str, NDArray[np.float64]]
    """What the boxes are (see COLOURS) -> (n, 4)."""


def label_sheet(rows: Sequence[Sequence[Look]]) -> Figure:
    """Rows of pictures; those of one row belong together."""
    columns = max(map(len, rows))
    height, width = rows[0][0].image.shape[:2]
    titles = [[wrapped(look.title, 2.5) for look in row] for row in rows]
    highest = 1 + max(title.count("\n") for row in titles for title in row)
    figure = Figure(
        figsize=(2.5 * columns, len(rows) * (2.5 * height / width + 0.1 + 0.15 * highest)), layout="constrained"
    )
    for row, above, axes in zip(rows, titles, figure.subplots(len(rows), columns, squeeze=False), strict=True):
        for look, title, cell in zip(row, above, axes, strict=False):
            # Boxes count the edges of pixels, and a box at the picture's edge must not widen the axes.
            height, width = look.image.shape[:2]
            cell.imshow(look.image, extent=(0, width, height, 0))
            for name, boxes in look.boxes.items():
                x1, y1, x2, y2 = np.asarray(boxes).reshape(-1, 4).T
                lines = np.stack([x1, y1, x2, y1, x2, y2, x1, y2, x1, y1], axis=1).reshape(-1, 5, 2)
                cell.add_collection(LineCollection(list(lines), colors=COLOURS[name], linewidths=1.1), autolim=False)
            cell.set(xlim=(0, width), ylim=(height, 0))
            cell.set_title(title, fontsize=8, parse_math=False)
        for cell in axes:
            cell.axis("off")
    return figure
