"""Changes of the grey values of single images, each with explicit parameters.

Images are (..., H, W), or with `axes` = 3 volumes (..., D, H, W), of float32 or float64, one number of each parameter for each
of them (shape `...`), on any device. Results are new tensors. Source: batchgenerators, as nnU-Net version 1 uses it; specification adagrad-unet 2.4, steps 2 to 8.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dart_core.augment.splines import coarse_grid, separable

BLUR_TRUNCATE = 4.0
"""Standard deviations after which the Gaussian kernel ends (SciPy's default)."""
GAMMA_EPSILON = 1e-7
"""Added to the range of grey values before dividing by it."""
STD_EPSILON = 1e-8
"""Added to the standard deviation before dividing by it."""


def gaussian_blur(images: Tensor, sigma: Tensor, axes: int = 2) -> Tensor:
    """Gaussian filter with a standard deviation of its own for each image (step 3).

    The kernel ends at int(4 sigma + 1/2) pixels and sums to 1; borders are reflected about the pixels' edges
    (`scipy.ndimage.gaussian_filter`).

    Args:
        images: (..., H, W).
        sigma: (...) pixels, above 0.
        axes: spatial ones, 2 or 3.
    """
    sigma = sigma.to(images.device, torch.float64)[..., None]
    radius = (BLUR_TRUNCATE * sigma + 0.5).floor()
    reach = int(radius.max())
    offsets = torch.arange(-reach, reach + 1, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2) * (offsets.abs() <= radius)
    kernel = (kernel / kernel.sum(-1, keepdim=True)).to(images.dtype)
    for axis in range(-axes, 0):
        size = images.shape[axis]
        source = torch.arange(-reach, size + reach, device=images.device) % (2 * size)
        padded = images.index_select(axis, torch.minimum(source, 2 * size - 1 - source))
        images = torch.zeros_like(images)
        for k in range(2 * reach + 1):
            images.addcmul_(padded.narrow(axis, k, size), kernel[(..., k, *([None] * axes))])
    return images


def brightness(images: Tensor, factor: Tensor, axes: int = 2) -> Tensor:
    """Multiply each image by its factor (step 4).

    Args:
        images: (..., H, W).
        factor: (...).
        axes: spatial ones, 2 or 3.
    """
    return images * _per_image(factor, images, axes)


def contrast(images: Tensor, factor: Tensor, axes: int = 2) -> Tensor:
    """(x - mean) * factor + mean, cut to the range that the image had (step 5).

    Args:
        images: (..., H, W).
        factor: (...).
        axes: spatial ones, 2 or 3.
    """
    last = tuple(range(-axes, 0))
    mean = images.mean(last, keepdim=True)
    low, high = images.amin(last, keepdim=True), images.amax(last, keepdim=True)
    return ((images - mean) * _per_image(factor, images, axes) + mean).clamp(low, high)


def low_resolution(images: Tensor, zoom: Tensor, axes: int = 2) -> Tensor:
    """Simulate a coarser image: down by nearest neighbour, up again by cubic spline (step 6).

    The coarse grid has round(H zoom) x round(W zoom) pixels of the same extent; the spline goes on beyond the borders with
    the outermost values, and the result is cut to the range of the coarse image (`skimage.transform.resize`).

    Args:
        images: (..., H, W).
        zoom: (...), above 0 and at most 1.
        axes: spatial ones, 2 or 3.
    """
    sides, last = images.shape[-axes:], tuple(range(-axes, 0))
    x, zoom = images.reshape(-1, *sides), zoom.flatten().cpu().double()
    grids = [coarse_grid(size, (size * zoom).round().clamp(1, size)) for size in sides]
    (rows, kept_rows), (columns, kept_columns) = grids[-2:]
    kept = kept_rows[:, :, None] & kept_columns[:, None, :]
    if axes == 2:
        result = separable(x, rows.to(x), columns.to(x))
    else:
        result = separable(x, rows.to(x)[:, None], columns.to(x)[:, None])
        result = (grids[0][0].to(x) @ result.flatten(2)).view_as(x)
        kept = grids[0][1][:, :, None, None] & kept[:, None]
    kept = kept.to(x.device)
    low = x.masked_fill(~kept, torch.inf).amin(last, keepdim=True)
    high = x.masked_fill(~kept, -torch.inf).amax(last, keepdim=True)
    return result.clamp(low, high).view_as(images)


def gamma(images: Tensor, exponent: Tensor, invert: bool = False, axes: int = 2) -> Tensor:
    """Gamma correction that keeps mean and standard deviation (steps 7 and 8).

    With r = max - min + 1e-7: ((x - min) / r)^exponent * r + min, then shifted and scaled to the mean and standard deviation (of the
    population) that the image had. The released code shifted before it scaled, so its mean was off; this is exact.

    Args:
        images: (..., H, W).
        exponent: (...), above 0.
        invert: work on -x.
        axes: spatial ones, 2 or 3.
    """
    x, last = -images if invert else images, tuple(range(-axes, 0))
    std, mean = torch.std_mean(x, last, correction=0, keepdim=True)
    low = x.amin(last, keepdim=True)
    extent = x.amax(last, keepdim=True) - low + GAMMA_EPSILON
    bent = ((x - low) / extent) ** _per_image(exponent, images, axes) * extent + low
    bent_std, bent_mean = torch.std_mean(bent, last, correction=0, keepdim=True)
    result = (bent - bent_mean) * (std / (bent_std + STD_EPSILON)) + mean
    return -result if invert else result


def _per_image(values: Tensor, images: Tensor, axes: int) -> Tensor:
    """(...) -> (..., 1, 1) of the images' type and device."""
    return values.to(images)[(..., *([None] * axes))]
