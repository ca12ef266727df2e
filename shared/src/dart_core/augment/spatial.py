"""Crop, rotation with scaling, and mirroring of image batches together with their label maps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dart_core.augment.splines import coefficients, cubic_weights, volume_coefficients

OUTSIDE = -1
"""Label of pixels that lie outside the image."""
BORDER = 1e-3
"""Positions up to this many pixels beyond the outermost ones still count as inside: they are rounded."""


def centre_crop(images: Tensor, labels: Tensor, patch_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The middle of the images; of an odd margin the smaller half lies in front.

    Args:
        images: (N, C, H, W), or volumes (N, C, D, H, W).
        labels: (N, H, W), or (N, D, H, W).
        patch_size: (h, w), at most (H, W); or (d, h, w).

    Returns:
        (N, C, h, w) and (N, h, w), or with a depth; views.
    """
    for axis, (n, p) in enumerate(zip(labels.shape[1:], patch_size, strict=True)):
        start = (n - p) // 2
        images, labels = images.narrow(axis + 2, start, p), labels.narrow(axis + 1, start, p)
    return images, labels


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


def rotate_and_scale_volumes(
    images: Tensor, labels: Tensor, patch_size: Sequence[int], angles: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Read a rotated and scaled patch out of the middle of each volume, as `rotate_and_scale` does for images.

    The voxel at p = (z, y, x) from the patch's centre comes from scale * p R from the volume's centre, R = R_z R_y R_x being rotations
    about the three axes in turn. Labels: each one's indicator is interpolated linearly and the largest wins.

    Args:
        images: (N, C, D, H, W) float32 or float64.
        labels: (N, D, H, W), a signed integer type.
        patch_size: (d, h, w).
        angles: (N, 3) radians, about the axes of depth, height and width.
        scale: (N,); above 1 zooms out.

    Returns:
        (N, C, d, h, w) and (N, d, h, w).
    """
    (n, channels), sides = images.shape[:2], images.shape[2:]
    turn = rotation_matrices(angles) * scale.double().cpu()[:, None, None]
    axes = [torch.arange(p, dtype=torch.float64) - (p - 1) / 2 for p in patch_size]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, 3)
    centre = torch.tensor([side / 2 - 0.5 for side in sides], dtype=torch.float64)
    places = ((grid @ turn) + centre).to(images)  # (N, voxels, 3)
    last = torch.tensor(sides, device=images.device, dtype=images.dtype) - 1
    outside = ((places < -BORDER) | (places > last + BORDER)).any(-1)
    places = places.clamp(min=torch.zeros_like(last), max=last)

    whole = places.floor().clamp(max=(last - 1).clamp(min=0))
    t, first = places - whole, whole.long()
    # Coefficients from one voxel before the first to one behind the last, as for images.
    padded = volume_coefficients(images, beyond=1)
    strides = [(sides[1] + 2) * (sides[2] + 2), sides[2] + 2, 1]
    flat = padded.flatten(2)
    start = (first * torch.tensor(strides, device=first.device)).sum(-1)
    weights = [cubic_weights(t[..., axis]) for axis in range(3)]
    values = images.new_zeros(n, channels, grid.shape[0])
    for i in range(4):
        for j in range(4):
            line = torch.zeros_like(values)
            for k in range(4):
                at = start + (i * strides[0] + j * strides[1] + k)
                line.addcmul_(flat.gather(2, at[:, None].expand(-1, channels, -1)), weights[2][k][:, None])
            values.addcmul_(line, (weights[0][i] * weights[1][j])[:, None])
    moved = values.masked_fill_(outside[:, None], 0).view(n, channels, *patch_size)

    best = torch.zeros_like(outside, dtype=labels.dtype)
    most = torch.full_like(t[..., 0], -1)
    flat_labels = labels.flatten(1)
    upper = torch.minimum(first + 1, last.long())
    corners = []
    for corner in itertools.product((0, 1), repeat=3):
        index = [upper[..., axis] if up else first[..., axis] for axis, up in enumerate(corner)]
        weight = math.prod([t[..., axis] if up else 1 - t[..., axis] for axis, up in enumerate(corner)])
        corners.append((flat_labels.gather(1, (index[0] * sides[1] + index[1]) * sides[2] + index[2]), weight))
    for label in labels.unique():
        votes = sum(weight * (found == label) for found, weight in corners)
        wins = votes > most
        best, most = torch.where(wins, label, best), torch.where(wins, votes, most)
    return moved, best.masked_fill_(outside, OUTSIDE).view(n, *patch_size)


def rotation_matrices(angles: Tensor) -> Tensor:
    """(N, 3) radians about the axes of depth, height and width -> (N, 3, 3) float64 for row vectors (z, y, x)."""
    result = torch.eye(3, dtype=torch.float64).expand(len(angles), 3, 3)
    # The signs of batchgenerators: positive angles turn axis 2 to 1, 0 to 2, and 1 to 0.
    for axis, (i, j) in enumerate(((1, 2), (2, 0), (0, 1))):
        cos, sin = angles[:, axis].double().cpu().cos(), angles[:, axis].double().cpu().sin()
        turn = torch.eye(3, dtype=torch.float64).repeat(len(angles), 1, 1)
        turn[:, i, i] = turn[:, j, j] = cos
        turn[:, i, j], turn[:, j, i] = -sin, sin
        result = result @ turn
    return result


def mirror(images: Tensor, labels: Tensor, flips: Tensor) -> tuple[Tensor, Tensor]:
    """Reverse the axes of single images.

    Args:
        images: (N, C, H, W), or volumes (N, C, D, H, W).
        labels: (N, H, W), or (N, D, H, W).
        flips: (N, 2) bool: reverse the height, reverse the width; or (N, 3) with the depth first.

    Returns:
        new tensors of the same shapes.
    """
    images, labels = images.clone(), labels.clone()
    axes = flips.shape[1]
    for axis in range(axes):
        at = flips[:, axis].nonzero()[:, 0].to(images.device)
        images[at], labels[at] = images[at].flip(axis - axes), labels[at].flip(axis - axes)
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
