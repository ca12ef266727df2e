"""Cubic B-splines for batches of images: the interpolation that SciPy calls order 3, coefficients and all.

A cubic B-spline interpolates only after its coefficients have been found by a recursive filter (the prefilter of
`scipy.ndimage`). Its impulse response is known, sqrt(3) z^|k| with z = sqrt(3) - 2, and gone below float64's precision after
30 pixels, so everything here is a banded matrix per axis: P X Q^T filters or resizes all images of a batch at once.
Source: Unser, Aldroubi and Eden, B-spline signal processing, IEEE Transactions on Signal Processing 41 (1993).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

POLE = math.sqrt(3) - 2
REACH = 30
"""Pixels after which the impulse response of the prefilter is below 1e-17."""


def cubic_weights(t: Tensor) -> Tensor:
    """Weights of the coefficients at -1, 0, 1 and 2 for a position t between 0 and 1.

    Args:
        t: (...), values in [0, 1].

    Returns:
        (4, ...), sum 1.
    """
    s = 1 - t
    return torch.stack([s**3, (3 * t - 6) * t**2 + 4, (3 * s - 6) * s**2 + 4, t**3]) / 6


def coefficients(images: Tensor, beyond: int = 0) -> Tensor:
    """Spline coefficients of images that go on beyond their borders as if mirrored about the outermost pixels.

    Args:
        images: (..., H, W) float32 or float64.
        beyond: how many of the mirrored coefficients to put out on each side.

    Returns:
        (..., H + 2 beyond, W + 2 beyond); with beyond = 0 what `scipy.ndimage.spline_filter` gives with mode="mirror".
    """
    rows, columns = (prefilter(n)[_mirrored(torch.arange(-beyond, n + beyond), n)] for n in images.shape[-2:])
    return separable(images, rows.to(images), columns.to(images))


def volume_coefficients(volumes: Tensor, beyond: int = 0) -> Tensor:
    """As `coefficients`, for (..., D, H, W)."""
    depth = volumes.shape[-3]
    matrix = prefilter(depth)[_mirrored(torch.arange(-beyond, depth + beyond), depth)].to(volumes)
    found = coefficients(volumes, beyond)
    product = matrix @ found.flatten(-2)
    return product.view(*product.shape[:-1], *found.shape[-2:])


def separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Apply one matrix to the columns of images and one to their rows.

    Args:
        images: (..., H, W).
        rows: (..., h, H), acts along the height.
        columns: (..., w, W), acts along the width.

    Returns:
        (..., h, w).
    """
    return rows @ images @ columns.mT


def prefilter(size: int) -> Tensor:
    """The matrix that turns a row of pixels, mirrored about its ends, into spline coefficients.

    Args:
        size: pixels.

    Returns:
        (size, size) float64.
    """
    offsets = torch.arange(-REACH, REACH + 1)
    source = _mirrored(torch.arange(size)[:, None] + offsets, size)
    return torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, source, _response(offsets).expand(size, -1))


def coarse_grid(size: int, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Go to fewer pixels by nearest neighbour and back by cubic spline with repeated borders, along one axis.

    New pixels lie evenly in the same extent, so pixel i of `pixels` takes the old one in which its centre lies.

    Args:
        size: pixels of the axis.
        pixels: (M,) integers in 1..size, how many remain.

    Returns:
        (M, size, size) float64, the matrices of the way there and back, and (M, size) bool, which old pixels are taken.
    """
    pixels = pixels.cpu().long()[:, None]
    i = torch.arange(size)
    position = (i + 0.5) * pixels.double() / size - 0.5
    base = position.floor().long()
    # weight of the value at base + r: B-spline weights at -1..2, each spread by the prefilter
    r = torch.arange(-REACH, REACH + 1)
    spread = torch.stack([_response(r - j) for j in (-1, 0, 1, 2)])
    weights = cubic_weights(position - base).movedim(0, -1) @ spread
    kept = (base[..., None] + r).clamp(torch.zeros_like(pixels[..., None]), pixels[..., None] - 1)
    source = (2 * kept + 1) * size // (2 * pixels[..., None])
    matrices = torch.zeros(len(pixels), size, size, dtype=torch.float64).scatter_add_(2, source, weights)
    taken = torch.zeros(len(pixels), size, dtype=torch.bool).scatter_(1, source.flatten(1), True)
    return matrices, taken


def _response(offsets: Tensor) -> Tensor:
    """Impulse response of the prefilter; its sum is 1."""
    return math.sqrt(3) * POLE ** offsets.abs().double()


def _mirrored(index: Tensor, size: int) -> Tensor:
    """Positions beyond the ends of an axis, mirrored about its outermost pixels."""
    if size == 1:
        return torch.zeros_like(index)
    period = 2 * (size - 1)
    index = index % period
    return torch.minimum(index, period - index)
