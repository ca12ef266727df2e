"""The policy map: the U-Net coloured by how often each layer was fine-tuned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dart_core.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LAYERS = 32
# (first index in the policy, layers, level, where the first cell stands); cells are one unit wide.
_PARTS = (
    (0, 4, 0, 0.0),
    (4, 4, 1, 1.5),
    (8, 4, 2, 3.0),
    (12, 5, 3, 6.5),
    (17, 4, 2, 11.0),
    (21, 4, 1, 12.5),
    (25, 4, 0, 14.0),
    (29, 1, 0, 8.5),
    (30, 1, 1, 8.5),
    (31, 1, 2, 8.5),
)
_STEP = 1.45
# Reading order of the network without its skips, and each skip's neighbours.
_LINES = (*((i, i + 1) for i in range(28)), (3, 29), (29, 25), (7, 30), (30, 21), (11, 31), (31, 17))


def policy_figure(fractions: Mapping[str, Any]) -> Figure:
    """Draw the U-Net once for each name, its 32 layers coloured by the fraction of samples that fine-tuned them.

    Colour map magma from 0, never fine-tuned, to 1, always (Figs 3 of the SpotTUNet and 5 of the AvaGrad paper). The cells
    carry the paper's numbers, 1 to 29 along the U and 30 to 32 for the skips; `LAYERS` names them.

    Args:
        fractions: name -> (32,) array or tensor in [0, 1], as `PolicyStatistics.fine_tuned` gives it; nan stays empty.

    Raises:
        ValueError: nothing to draw, another number of layers, or a value outside [0, 1].
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    values = {name: _checked(name, fraction) for name, fraction in fractions.items()}
    if not values:
        raise InputError("no policy to draw")
    columns = min(2, len(values))
    rows = -(-len(values) // columns)
    figure = Figure(figsize=(5.6 * columns + 0.6, 2.5 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    colours = ScalarMappable(Normalize(0, 1), colormaps["magma"])
    for axis in axes:
        axis.axis("off")
    for axis, (name, fraction) in zip(axes, values.items(), strict=False):
        _draw(axis, fraction, colours)
        axis.set_title(name, fontsize=9)
    bar = figure.colorbar(colours, ax=list(axes), fraction=0.03, pad=0.01)
    bar.set_label("fraction of slices fine-tuned", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def _checked(name: str, fraction: Any) -> NDArray[np.float64]:
    values = np.asarray(fraction.detach().cpu() if hasattr(fraction, "detach") else fraction, dtype=np.float64)
    if values.shape != (_LAYERS,):
        raise InputError(f"policy {name!r} has shape {values.shape}", remedy=f"give one fraction for each of {_LAYERS}")
    if ((values < 0) | (values > 1)).any():
        raise InputError(f"policy {name!r} holds values outside [0, 1]", remedy="give fractions")
    return values


def _draw(axis: Any, fraction: NDArray[np.float64], colours: Any) -> None:
    from matplotlib.patches import Rectangle

    centres = {first + i: (start + i, -_STEP * level) for first, count, level, start in _PARTS for i in range(count)}
    for one, other in _LINES:
        (x0, y0), (x1, y1) = centres[one], centres[other]
        axis.plot([x0, x1], [y0, y1], color="0.6", linewidth=0.8, zorder=0)
    for index, (x, y) in centres.items():
        value = fraction[index]
        empty = bool(np.isnan(value))
        face = "white" if empty else colours.to_rgba(value)
        axis.add_patch(Rectangle((x - 0.45, y - 0.45), 0.9, 0.9, facecolor=face, edgecolor="0.4", linewidth=0.6))
        ink = "black" if empty or value > 0.6 else "white"
        axis.text(x, y, str(index + 1), ha="center", va="center", fontsize=6, color=ink)
    axis.set_xlim(-0.7, 17.7)
    axis.set_ylim(-3 * _STEP - 0.7, 0.7)
    axis.set_aspect("equal")
