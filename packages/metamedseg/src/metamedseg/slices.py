"""From volumes to slices: normalisation, which slices are kept, resizing, and the authors' grey pictures (specification 2.1).

Slices run along the third axis of a volume (H, W, Z) as it is stored. All functions take arrays, or tensors, which they
answer with tensors on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dart_core.metrics import to_numpy

Stage = Literal["native", "resized"]
SIZE = 256


def normalise_nonzero(volume: Any) -> Any:
    """(x - mu) / sigma of all voxels, mu and sigma (population) being those of the voxels that are not 0 (paper 3.1).

    Args:
        volume: of any shape.

    Returns:
        The same shape; float32 stays float32, all else becomes float64. Zeros where no voxel or no spread is there.
    """

    def normalise(values: NDArray[Any]) -> NDArray[Any]:
        kind = values.dtype if values.dtype == np.float32 else np.float64
        inside = values[values != 0].astype(np.float64)
        # One value many times: the rounding of its mean would pass for a spread.
        sigma = inside.std() if inside.size and inside.min() < inside.max() else 0.0
        if sigma == 0:
            return np.zeros(values.shape, kind)
        return np.asarray((values - inside.mean()) / sigma, dtype=kind)

    return _like(volume, normalise)


def kept_slices(
    label: Any,
    region: int,
    threshold: int,
    stage: Stage = "native",
    size: int = SIZE,
    cut: float = 0.5,
    of_maximum: bool = False,
) -> Any:
    """Which slices hold enough of a region.

    Args:
        label: (H, W, Z) label values.
        region: the value of the region.
        threshold: least number of its pixels in a slice.
        stage: "native": counted as stored (the authors' program); "resized": in the resized mask (paper 3.1).
        size: side of the resized mask.
        cut: where it is cut, see `resize_mask`.
        of_maximum: likewise.

    Returns:
        Numbers of the slices, ascending.
    """

    def keep(values: NDArray[Any]) -> NDArray[Any]:
        inside = values == region
        counts = np.count_nonzero(inside, axis=(0, 1))
        if stage == "resized":
            counts = np.array(
                [
                    np.count_nonzero(resize_mask(inside[..., z], size, cut, of_maximum)) if counts[z] else 0
                    for z in range(len(counts))
                ]
            )
        return np.flatnonzero(counts >= threshold)

    return _like(label, keep)


def resize_slice(image: Any, size: int = SIZE) -> Any:
    """Resize a slice (h, w) to (size, size): bilinear, smoothed first where it shrinks (scikit-image's `resize`, order 1)."""
    return _like(image, lambda values: _resize(values, size))


def resize_mask(mask: Any, size: int = SIZE, cut: float = 0.5, of_maximum: bool = False) -> Any:
    """Resize a mask (h, w) of 0 and 1 as `resize_slice` does, then cut it.

    Args:
        mask: 0 and 1 in any type.
        size: side of the result.
        cut: foreground is what lies above it.
        of_maximum: `cut` is a share of the largest value of the resized mask, as the authors' pictures, which are scaled to their
            own range, have it; theirs is 0.4235.

    Returns:
        bool (size, size).
    """

    def cut_at(values: NDArray[Any]) -> NDArray[Any]:
        resized = _resize(values.astype(np.float64), size)
        return np.asarray(resized > (cut * resized.max() if of_maximum else cut))

    return _like(mask, cut_at)


def greys_r(levels: Any) -> Any:
    """Grey levels (0 to 255) that matplotlib's colour map Greys_r turns 8-bit levels into; it is not linear.

    The authors' slices went through it on their way to the network.
    """
    import matplotlib

    def look_up(values: NDArray[Any]) -> NDArray[Any]:
        colours = np.asarray(matplotlib.colormaps["Greys_r"](values.astype(np.int64)))
        return np.asarray(np.rint(255 * colours[..., 0]), dtype=np.uint8)

    return _like(levels, look_up)


def minmax(image: NDArray[Any]) -> NDArray[np.float32]:
    """A slice scaled to [0, 1]; zeros where it is flat."""
    low, high = float(image.min()), float(image.max())
    if high <= low:
        return np.zeros(image.shape, np.float32)
    return np.asarray((image - low) / (high - low), dtype=np.float32)


def authors_picture(image: NDArray[Any]) -> NDArray[np.float32]:
    """A slice as the authors' network saw it: scaled to its own range, 256 levels, Greys_r, and back to [0, 1]."""
    levels = np.minimum((minmax(image) * 256).astype(np.int64), 255)
    return np.asarray(greys_r(levels) / 255.0, dtype=np.float32)


def _resize(values: NDArray[Any], size: int) -> NDArray[Any]:
    from skimage.transform import resize

    resized: Any = resize(values, (size, size), order=1, preserve_range=True)
    return np.asarray(resized)


def _like(values: Any, rule: Callable[[NDArray[Any]], NDArray[Any]]) -> Any:
    found = rule(to_numpy(values))
    return torch.from_numpy(found) if isinstance(values, torch.Tensor) else found
