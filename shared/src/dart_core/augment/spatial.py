"""Crop, rotation with scaling, and mirroring of image batches together with their label maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dart_core.augment.splines import coefficients, cubic_weights

OUTSIDE = -1
"""Label of pixels that lie outside the image."""
BORDER = 1e-3
"""Positions up to this many pixels beyond the outermost ones still count as inside: they are rounded."""


def centre_crop(images: Tensor, labels: Tensor, patch_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The middle of the images; of an odd margin the smaller half lies in front.

    Args:
        images: (N, C, H, W).
        labels: (N, H, W).
        patch_size: (h, w), at most (H, W).

    Returns:
        (N, C, h, w) and (N, h, w), views.
    """
    h, w = patch_size
    top, left = (images.shape[-2] - h) // 2, (images.shape[-1] - w) // 2
    window = (..., slice(top, top + h), slice(left, left + w))
    return images[window], labels[window]


def rotate_and_scale(
    images: Tensor, labels: Tensor, patch_size: Sequence[int], angle: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Read a rotated and scaled patch out of the middle of each image (specification adagrad-unet 2.4, step 1).

    The pixel at (y, x) from the patch's centre comes from scale * (y cos + x sin, x cos - y sin) from the image's
    centre H/2 - 1/2, W/2 - 1/2. Images are interpolated by cubic B-splines, as SciPy does at order 3 (mirrored borders), and are
    0 outside. Labels: each class's indicator is interpolated linearly and the largest wins, the lower label if two are
    equal; -1 outside.

    Args:
        images: (N, C, H, W) float32 or float64.
        labels: (N, H, W), a signed integer type.
        patch_size: (h, w).
        angle: (N,) radians; pi/2 is `torch.rot90(images, 1, (-2, -1))`.
        scale: (N,); above 1 zooms out.

    Returns:
        (N, C, h, w) and (N, h, w).
    """
    (n, channels, height, width), (h, w) = images.shape, patch_size
    y, x = _positions(patch_size, (height, width), angle.to(images.device), scale.to(images.device), images.dtype)
    outside = (y < -BORDER) | (y > height - 1 + BORDER) | (x < -BORDER) | (x > width - 1 + BORDER)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    # The last pixel belongs to the interval before it, so that all neighbours of both interpolations are there.
    row, column = y.floor().clamp(max=max(height - 2, 0)), x.floor().clamp(max=max(width - 2, 0))
    dy, dx = y - row, x - column
    row, column = row.long(), column.long()

    # Coefficients from one pixel before the first to one behind the last: all sixteen lie at fixed distances from one another.
    flat, stride = coefficients(images, beyond=1).flatten(2), width + 2
    first = (row * stride + column).flatten(1)[:, None].expand(-1, channels, -1)
    weights_y, weights_x = (cubic_weights(t.flatten(1)[:, None]) for t in (dy, dx))
    values = images.new_zeros(n, channels, h * w)
    for j in range(4):
        line = flat.gather(2, first + j * stride) * weights_x[0]
        for k in range(1, 4):
            line.addcmul_(flat.gather(2, first + (j * stride + k)), weights_x[k])
        values.addcmul_(line, weights_y[j])
    moved = values.view(n, channels, h, w).masked_fill_(outside[:, None], 0)
    return moved, _labels_at(labels, row, column, dy, dx).masked_fill_(outside, OUTSIDE)


def mirror(images: Tensor, labels: Tensor, flips: Tensor) -> tuple[Tensor, Tensor]:
    """Reverse the axes of single images.

    Args:
        images: (N, C, H, W).
        labels: (N, H, W).
        flips: (N, 2) bool: reverse the height, reverse the width.

    Returns:
        new tensors of the same shapes.
    """
    images, labels = images.clone(), labels.clone()
    for axis in (0, 1):
        at = flips[:, axis].nonzero()[:, 0].to(images.device)
        images[at], labels[at] = images[at].flip(axis - 2), labels[at].flip(axis - 2)
    return images, labels


def _positions(
    patch_size: Sequence[int], size: Sequence[int], angle: Tensor, scale: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(N, h, w) each: where in the image each pixel of the patch comes from."""
    y, x = ((torch.arange(n, device=angle.device, dtype=dtype) - (n - 1) / 2) for n in patch_size)
    y, x = y[:, None], x[None, :]
    cos, sin = (
        (scale.double() * turn).to(dtype)[:, None, None] for turn in (angle.double().cos(), angle.double().sin())
    )
    height, width = size
    return cos * y + sin * x + (height / 2 - 0.5), cos * x - sin * y + (width / 2 - 0.5)


def _labels_at(labels: Tensor, row: Tensor, column: Tensor, dy: Tensor, dx: Tensor) -> Tensor:
    """The label with the most weight among the four neighbours of each position; the lower one if two have the same."""
    height, width = labels.shape[-2:]
    flat = labels.flatten(1)
    lower, right = (row + 1).clamp(max=height - 1), (column + 1).clamp(max=width - 1)
    corners = [flat.gather(1, (r * width + c).flatten(1)) for r in (row, lower) for c in (column, right)]
    result = corners[0]
    # Most pixels lie within one region; the others are counted.
    at = ((result != corners[1]) | (result != corners[2]) | (result != corners[3])).nonzero(as_tuple=True)
    corners = [corner[at] for corner in corners]
    dy, dx = dy.flatten(1)[at], dx.flatten(1)[at]
    weights = [wy * wx for wy in (1 - dy, dy) for wx in (1 - dx, dx)]
    best, most = corners[0], torch.full_like(dy, -1)
    for candidate in corners:
        votes = torch.zeros_like(dy)
        for corner, weight in zip(corners, weights, strict=True):
            votes += weight * (corner == candidate)
        wins = (votes > most) | ((votes == most) & (candidate < best))
        best, most = torch.where(wins, candidate, best), torch.where(wins, votes, most)
    result[at] = best
    return result.view_as(row)
