"""Pictures of the report: the scheme (paper Fig. 1) and the comparison of methods (paper Fig. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from fda_mri.fourier import fourier_transfer

TRUTH, PREDICTION = "#2ca02c", "#d62728"


class Panel(NamedTuple):
    """One picture of a comparison."""

    title: str
    image: np.ndarray
    """(h, w), shown from 0 to 1."""
    truth: np.ndarray | None = None
    """(h, w) bool, drawn as a green outline."""
    prediction: np.ndarray | None = None
    """(h, w) bool, drawn as a red outline."""


def scheme(source: np.ndarray, target: np.ndarray, beta: float, prediction: np.ndarray | None = None) -> Figure:
    """Fig. 1 of the paper with real slices: spectra, exchanged window, result, segmentation.

    Args:
        source: (h, w) style slice in [0, 1].
        target: (h, w) content slice in [0, 1].
        beta: window radius as a fraction of the shorter side.
        prediction: (h, w) bool mask of the result.
    """
    result = fourier_transfer(torch.from_numpy(target), torch.from_numpy(source), beta).numpy()
    radius = beta * min(target.shape)
    # The window is a few pixels wide: show the centre of the spectra only.
    reach = int(min(max(8, 4 * radius), (min(target.shape) - 1) // 2))
    extent = (-reach - 0.5, reach + 0.5, -reach - 0.5, reach + 0.5)
    figure = Figure(figsize=(9.6, 4.6), layout="constrained")
    axes = figure.subplots(2, 4)
    rows = ((source, "source slice s"), (target, "target slice t"))
    for (image, name), row in zip(rows, axes, strict=True):
        _show(row[0], Panel(name, image))
        row[1].imshow(_oriented(_centre(_amplitude(image), reach)), cmap="magma", extent=extent)
        row[1].add_patch(Circle((0, 0), radius, fill=False, color="white", linewidth=1.5))
        row[1].set_title(f"amplitude of {name[-1]}, window", fontsize=8)
        row[1].axis("off")
    axes[0, 2].imshow(_oriented(_centre(_amplitude(result), reach)), cmap="magma", extent=extent)
    axes[0, 2].set_title("amplitude of the result", fontsize=8)
    axes[0, 2].axis("off")
    _show(axes[1, 2], Panel("result, phase of t", result))
    change = result - target
    limit = max(float(np.abs(change).max()), 1e-6)
    axes[0, 3].imshow(_oriented(change), cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes[0, 3].set_title(f"result - t (±{limit:.2g})", fontsize=8)
    axes[0, 3].axis("off")
    _show(axes[1, 3], Panel("segmentation", result, prediction=prediction))
    return figure


def comparison(rows: Sequence[tuple[str, Sequence[Panel]]]) -> Figure:
    """Fig. 3 of the paper: one row per source-target pair, one column per method."""
    columns = max(len(panels) for _, panels in rows)
    figure = Figure(figsize=(1.9 * columns, 2.35 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for (label, panels), row in zip(rows, axes, strict=True):
        for panel, cell in zip(panels, row, strict=False):
            _show(cell, panel)
        for cell in row[len(panels) :]:
            cell.axis("off")
        row[0].text(-0.06, 0.5, label, rotation=90, ha="right", va="center", transform=row[0].transAxes, fontsize=8)
    return figure


def _show(axes, panel: Panel) -> None:  # type: ignore[no-untyped-def]
    axes.imshow(_oriented(panel.image), cmap="gray", vmin=0, vmax=1)
    for mask, colour in ((panel.truth, TRUTH), (panel.prediction, PREDICTION)):
        if mask is not None and mask.any() and not mask.all():
            axes.contour(_oriented(mask).astype(float), levels=[0.5], colors=colour, linewidths=1)
    axes.set_title(panel.title, fontsize=8, parse_math=False)
    axes.axis("off")


def _oriented(slice_: np.ndarray) -> np.ndarray:
    """An axial RAS slice as it is usually seen: front up, patient's left on the right."""
    return np.asarray(slice_).T[::-1, ::-1]


def _amplitude(image: np.ndarray) -> np.ndarray:
    return np.log1p(np.abs(np.fft.fftshift(np.fft.fft2(image))))


def _centre(spectrum: np.ndarray, reach: int) -> np.ndarray:
    h, w = spectrum.shape
    return spectrum[h // 2 - reach : h // 2 + reach + 1, w // 2 - reach : w // 2 + reach + 1]
