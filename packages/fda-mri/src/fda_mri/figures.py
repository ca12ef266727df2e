"""The picture of the scheme (paper Fig. 1); the comparison of methods (Fig. 3) is `dart_core.figures.comparison`."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from dart_core.figures import Panel, oriented, show
from fda_mri.fourier import fourier_transfer


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
        show(row[0], Panel(name, image))
        row[1].imshow(oriented(_centre(_amplitude(image), reach)), cmap="magma", extent=extent)
        row[1].add_patch(Circle((0, 0), radius, fill=False, color="white", linewidth=1.5))
        row[1].set_title(f"amplitude of {name[-1]}, window", fontsize=8)
        row[1].axis("off")
    axes[0, 2].imshow(oriented(_centre(_amplitude(result), reach)), cmap="magma", extent=extent)
    axes[0, 2].set_title("amplitude of the result", fontsize=8)
    axes[0, 2].axis("off")
    show(axes[1, 2], Panel("result, phase of t", result))
    change = result - target
    limit = max(float(np.abs(change).max()), 1e-6)
    axes[0, 3].imshow(oriented(change), cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes[0, 3].set_title(f"result - t (±{limit:.2g})", fontsize=8)
    axes[0, 3].axis("off")
    show(axes[1, 3], Panel("segmentation", result, prediction=prediction))
    return figure


def _amplitude(image: np.ndarray) -> np.ndarray:
    return np.log1p(np.abs(np.fft.fftshift(np.fft.fft2(image))))


def _centre(spectrum: np.ndarray, reach: int) -> np.ndarray:
    h, w = spectrum.shape
    return spectrum[h // 2 - reach : h // 2 + reach + 1, w // 2 - reach : w // 2 + reach + 1]
