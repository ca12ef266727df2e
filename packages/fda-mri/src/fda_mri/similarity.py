"""SR-SIM, the spectral residual similarity of Zhang & Li (ICIP 2012), with the constants of piq (specification 2.2).

Everything is per image: a score never depends on what else is in the batch (piq's own batches do, specification 2.2,
first trap). Each step that acts on rows and columns separately (resizing, 3 x 3 mean, blur) is a pair of small matrices,
so that a whole scan is a few batched matrix products on CPU and GPU alike.

Shapes: N images, h x w pixels, p x q pixels of the saliency map before it is enlarged.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dart_core.arrays import accepts_arrays
from dart_core.errors import InputError

SALIENCY_SCALE = 0.25
SALIENCY_CONSTANT = 0.40
GRADIENT_CONSTANT = 225.0
BLUR_SIZE, BLUR_SIGMA = 10, 3.8
SMALLEST_SIDE = 40


class Maps(NamedTuple):
    """What SR-SIM needs of an image: computed once, compared with any number of others."""

    saliency: Tensor
    """(N, p, q) spectral residual saliency in [0, 1], a quarter of the image's size."""
    gradient: Tensor
    """(N, h, w) Scharr gradient magnitude of the image in 0..255."""


@accepts_arrays
def sr_sim(x: Tensor, y: Tensor, data_range: float = 1.0) -> Tensor:
    """Spectral residual similarity of image pairs.

    Args:
        x: (..., h, w) images with values in [0, data_range], float32 or float64.
        y: the same shape.
        data_range: the value that stands for white.

    Returns:
        (...) scores, 1 for identical images; symmetric in x and y.

    Raises:
        ValueError: shapes differ, or a side (after the reduction that sides of 384 and more get) is under 40.

    Source: specification 2.2; equal to piq.srsim on single pairs to 2e-5.
    """
    if x.shape != y.shape:
        raise InputError(f"images have shapes {tuple(x.shape)} and {tuple(y.shape)}", remedy="give equal shapes")
    if not x.is_floating_point():
        x, y = x.float(), y.float()
    batch, (h, w) = x.shape[:-2], x.shape[-2:]
    maps_x, maps_y = (maps(image.reshape(-1, h, w), data_range) for image in (x, y))
    size = maps_x.gradient.shape[-2:]
    return compare(prepare(maps_x, size), prepare(maps_y, size)).reshape(batch)


def maps(images: Tensor, data_range: float = 1.0) -> Maps:
    """Saliency and gradient maps (steps 1 to 4) of (N, h, w) images.

    Raises:
        ValueError: a side is under 40 pixels.
    """
    if images.dtype not in (torch.float32, torch.float64):
        images = images.float()
    images = _reduce_large(images * (255.0 / data_range))
    h, w = images.shape[-2:]
    if min(h, w) < SMALLEST_SIDE:
        raise InputError(
            f"SR-SIM needs sides of at least {SMALLEST_SIDE} pixels, the image has {h} x {w}",
            remedy="use larger slices or a larger crop",
        )
    return Maps(_saliency(images), _gradient(images))


def prepare(image_maps: Maps, size: tuple[int, int] | torch.Size) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `compare` reads: saliency enlarged to `size`, gradient, and the two squares that every pair shares."""
    p, q = image_maps.saliency.shape[-2:]
    saliency = _both_sides(
        image_maps.saliency, *((_resize, small, large) for small, large in zip((p, q), size, strict=True))
    )
    gradient = image_maps.gradient
    return (
        saliency,
        gradient,
        saliency.square().add_(SALIENCY_CONSTANT / 2),
        gradient.square().add_(GRADIENT_CONSTANT / 2),
    )


def compare(x: tuple[Tensor, ...], y: tuple[Tensor, ...]) -> Tensor:
    """Scores (N,) of N prepared pairs (steps 5 and 6)."""
    count, h, w = x[0].shape
    # Pieces that stay in a core's cache are several times faster than whole scans; a GPU wants them whole.
    piece = count if x[0].is_cuda else max(1, (1 << 16) // (h * w))
    scores = x[0].new_empty(count)
    for first in range(0, count, piece):
        part = slice(first, first + piece)
        saliency_x, gradient_x, saliency_x2, gradient_x2 = (term[part] for term in x)
        saliency_y, gradient_y, saliency_y2, gradient_y2 = (term[part] for term in y)
        # V = (2 sx sy + C1) / (sx^2 + sy^2 + C1), G = (2 gx gy + C2) / (gx^2 + gy^2 + C2), each halved above and below.
        v = torch.mul(saliency_x, saliency_y).add_(SALIENCY_CONSTANT / 2).div_(saliency_x2 + saliency_y2)
        g = torch.mul(gradient_x, gradient_y).add_(GRADIENT_CONSTANT / 2).div_(gradient_x2 + gradient_y2)
        m = torch.maximum(saliency_x, saliency_y)
        # The two halvings leave V and G at half their value: 2 V sqrt(2 G).
        weighted = v.mul_(g.sqrt_()).mul_(m).sum((-2, -1)).mul_(2 * math.sqrt(2))
        scores[part] = weighted / (m.sum((-2, -1)) + torch.finfo(m.dtype).eps)
    return scores


def _reduce_large(images: Tensor) -> Tensor:
    """Step 2: k x k means so that the shorter side comes near 256; nothing below 384 pixels."""
    k = max(1, round(min(images.shape[-2:]) / 256))
    if k == 1:
        return images
    before, after = (k - 1) // 2, k // 2
    padded = torch.nn.functional.pad(images, (before, after, before, after))
    return torch.nn.functional.avg_pool2d(padded[:, None], k)[:, 0]


def _saliency(images: Tensor) -> Tensor:
    """Step 3 a to f: (N, h, w) in 0..255 -> (N, p, q) in [0, 1]."""
    h, w = images.shape[-2:]
    p, q = (math.ceil(SALIENCY_SCALE * side) for side in (h, w))
    small = _both_sides(images, (_reduce, h, p), (_reduce, w, q))
    eps = torch.finfo(images.dtype).eps
    spectrum = torch.fft.fft2(small)
    log_amplitude = torch.log(spectrum.abs() + eps)
    residual = log_amplitude - _both_sides(log_amplitude, (_mean_of_three, p, p), (_mean_of_three, q, q))
    energy = torch.fft.ifft2(torch.polar(residual.exp(), spectrum.angle())).abs().square()
    energy = _both_sides(energy, (_blur, p, p), (_blur, q, q))
    low, high = energy.amin((-2, -1), keepdim=True), energy.amax((-2, -1), keepdim=True)
    return (energy - low) / (high - low + eps)


def _gradient(images: Tensor) -> Tensor:
    """Step 4: Scharr gradient magnitude with zero padding."""
    # The kernel is (3, 10, 3) / 16 along one side times (-1, 0, 1) along the other. Written out it takes a tenth of the
    # time of a convolution with a single channel.
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    rows = (padded[:, :-2] + padded[:, 2:]).mul_(3 / 16).add_(padded[:, 1:-1], alpha=10 / 16)
    columns = (padded[:, :, :-2] + padded[:, :, 2:]).mul_(3 / 16).add_(padded[:, :, 1:-1], alpha=10 / 16)
    across, down = rows[:, :, 2:] - rows[:, :, :-2], columns[:, 2:] - columns[:, :-2]
    return across.square().addcmul_(down, down).sqrt()


def _both_sides(images: Tensor, rows: tuple, columns: tuple) -> Tensor:  # type: ignore[type-arg]
    """rows_matrix @ image @ columns_matrix^T for each image; a matrix is given as (function, from, to)."""
    left, right = (_matrix(*spec, images.dtype, images.device) for spec in (rows, columns))
    return left @ (images @ right.T)


@lru_cache(maxsize=64)
def _matrix(function, source: int, target: int, dtype: torch.dtype, device: torch.device) -> Tensor:  # type: ignore[no-untyped-def]
    return torch.from_numpy(function(source, target)).to(device=device, dtype=dtype)


def _reduce(source: int, target: int) -> np.ndarray:
    """MATLAB's imresize by exactly 0.25 with antialiasing: (target, source)."""
    return _cubic(source, target, SALIENCY_SCALE, widening=1 / SALIENCY_SCALE)


def _resize(source: int, target: int) -> np.ndarray:
    """Bicubic enlargement: (target, source)."""
    return _cubic(source, target, target / source, widening=1.0)


def _cubic(source: int, target: int, scale: float, widening: float) -> np.ndarray:
    centres = (np.arange(target) + 0.5) / scale - 0.5
    reach = math.ceil(2 * widening) + 1
    taps = np.floor(centres).astype(int)[:, None] + np.arange(-reach, reach + 1)
    distance = np.abs(centres[:, None] - taps) / widening
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    weights /= weights.sum(1, keepdims=True)
    # Symmetric reflection that repeats the edge sample: ... 1 0 | 0 1 2 ... n-1 | n-1 n-2 ...
    folded = np.mod(taps, 2 * source)
    folded = np.where(folded < source, folded, 2 * source - 1 - folded)
    matrix = np.zeros((target, source))
    np.add.at(matrix, (np.arange(target)[:, None], folded), weights)
    return matrix


def _mean_of_three(size: int, _: int) -> np.ndarray:
    """Mean of a sample and its two neighbours, borders replicated: (size, size)."""
    matrix = np.zeros((size, size))
    neighbours = np.clip(np.arange(size)[:, None] + (-1, 0, 1), 0, size - 1)
    np.add.at(matrix, (np.arange(size)[:, None], neighbours), 1 / 3)
    return matrix


def _blur(size: int, _: int) -> np.ndarray:
    """Step 3 e: ten Gaussian taps behind one zero tap, so they reach from -4 to +5; zero padding: (size, size)."""
    coordinates = np.arange(BLUR_SIZE) - (BLUR_SIZE - 1) / 2
    taps = np.exp(-(coordinates**2) / (2 * BLUR_SIGMA**2))
    taps /= taps.sum()
    return np.asarray(
        np.sum([tap * np.eye(size, k=offset) for tap, offset in zip(taps, range(-4, 6), strict=True)], axis=0)
    )
