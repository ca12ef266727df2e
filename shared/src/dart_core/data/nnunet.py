"""Cropping, resampling and normalisation as nnU-Net version 1 prepares data (specifications adagrad-unet 2.5, odex 3).

Arrays have nnU-Net's axes: those of a NIfTI file reversed (z, y, x). Resampling acts on the last axes, as many as the new
shape has: two for slices, three for volumes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dart_core.data.volumes import Volume

OUTSIDE = -1
"""Label outside the image's non-zero mask."""
ANISOTROPY = 3.0
"""Voxels that are longer by more than this factor make a set anisotropic."""


def nonzero_mask(image: NDArray[Any]) -> NDArray[np.bool_]:
    """Where any channel of (C, ...) is not zero, with holes filled."""
    from scipy import ndimage

    return np.asarray(ndimage.binary_fill_holes((image != 0).any(0)))


def bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest box that holds a mask; all of it where the mask is empty."""
    box = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1) if len(filled) else slice(0, mask.shape[axis]))
    return tuple(box)


@dataclass(frozen=True, eq=False)
class CroppedCase:
    """A case, cropped to the box of its non-zero voxels."""

    image: NDArray[np.float32]
    """(C, z, y, x)"""
    labels: NDArray[np.int8] | None
    """(z, y, x), OUTSIDE where the image is zero and no label says otherwise."""
    inside: NDArray[np.bool_]
    """(z, y, x) the non-zero mask."""
    box: tuple[slice, ...]
    """Of the crop, in the file's (z, y, x)."""
    file: Volume
    """The file's grid; its voxels are not held."""

    @property
    def spacing(self) -> tuple[float, ...]:
        """(3,) mm for z, y, x."""
        return tuple(reversed(self.file.spacing))

    @property
    def known_labels(self) -> NDArray[np.int8]:
        """The labels; without a mask 0 inside the non-zero mask and OUTSIDE elsewhere."""
        return np.where(self.inside, 0, OUTSIDE).astype(np.int8) if self.labels is None else self.labels

    def on_file_grid(self, labels: NDArray[Any]) -> NDArray[np.uint8]:
        """Labels (z, y, x) of the crop as (x, y, z) of the file, 0 outside the box."""
        full = np.zeros(tuple(reversed(self.file.array.shape)), dtype=np.uint8)
        full[self.box] = labels
        return np.ascontiguousarray(full.T)


def crop_case(channels: Sequence[Volume], labels: NDArray[Any] | None) -> CroppedCase:
    """Crop a case to the box of its non-zero voxels.

    Args:
        channels: volumes (x, y, z) on one grid.
        labels: (x, y, z), 0 to 127.
    """
    image = np.stack([volume.array.T for volume in channels])
    inside = nonzero_mask(image)
    box = bounding_box(inside)
    if labels is not None:
        labels = labels.T[box].astype(np.int8)
        labels[(labels == 0) & ~inside[box]] = OUTSIDE
    first = channels[0]
    empty = dataclasses.replace(first, array=np.broadcast_to(np.float32(0), first.array.shape))
    return CroppedCase(np.ascontiguousarray(image[:, *box]), labels, inside[box], box, empty)


def target_spacing(spacings: ArrayLike, sizes: ArrayLike) -> tuple[float, ...]:
    """The voxel size that a set of cases is resampled to.

    The median of each axis. Where one axis has voxels more than three times as long as the others, and less than a third of
    their number, it gets the 10th percentile, but not less than the others.

    Args:
        spacings: (cases, 3) mm.
        sizes: (cases, 3) voxels after cropping.
    """
    steps, sides = np.atleast_2d(np.asarray(spacings, float)), np.atleast_2d(np.asarray(sizes, float))
    target, size = np.median(steps, 0), np.median(sides, 0)
    worst = int(target.argmax())
    others = [axis for axis in range(len(target)) if axis != worst]
    longest = target[others].max()
    if target[worst] > ANISOTROPY * longest and ANISOTROPY * size[worst] < size[others].min():
        coarse = float(np.percentile(steps[:, worst], 10))
        target[worst] = coarse if coarse >= longest else longest + 1e-5
    return tuple(float(step) for step in target)


def resample_image(image: NDArray[Any], shape: Sequence[int], order: Literal[0, 1, 3]) -> NDArray[np.float32]:
    """Resample as `skimage.transform.resize` does (edge mode, no smoothing, clipped to the old range).

    Args:
        image: (..., H, W) for slices, (..., D, H, W) for volumes.
        shape: new sides of the last axes.
        order: of the spline.

    Returns:
        float32, the last axes resampled.
    """
    image = np.asarray(image, dtype=np.float32)
    if image.shape[-len(shape) :] == tuple(shape):
        return image
    # nnU-Net resizes the volume of each channel as a whole, so the range that it keeps to is the volume's.
    axes = tuple(range(-min(image.ndim, 3), 0))
    low, high = image.min(axes, keepdims=True), image.max(axes, keepdims=True)
    return np.asarray(np.clip(_interpolate(image, shape, order), low, high), dtype=np.float32)


def resample_labels(labels: NDArray[Any], shape: Sequence[int]) -> NDArray[np.int8]:
    """Resample a label map (S, H, W): each label linearly, the last one from one half on wins."""
    if labels.shape[-len(shape) :] == tuple(shape):
        return labels.astype(np.int8)
    result = np.zeros((*labels.shape[: labels.ndim - len(shape)], *shape), dtype=np.int8)
    for label in np.unique(labels):
        result[_interpolate((labels == label).astype(np.float64), shape, 1) >= 0.5] = label
    return result


def normalise(image: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
    """Subtract the mean of each channel and divide by its standard deviation plus 1e-8.

    Args:
        image: (C, S, H, W).
        mask: (S, H, W): take both inside it only, and set what lies outside to 0; None: all voxels.
    """
    result = np.zeros(image.shape, dtype=np.float32)
    inside = np.ones(image.shape[1:], dtype=bool) if mask is None else mask
    for channel, normalised in zip(image, result, strict=True):
        values = channel[inside].astype(np.float64)
        if len(values):
            normalised[inside] = (values - values.mean()) / (values.std() + 1e-8)
    return result


# --- Patches ---------------------------------------------------------------------------------------------------------


def patch_limits(side: int, wide: int, final: int) -> tuple[int, int]:
    """First and last start of a window of `wide` voxels: what is needed beyond the final patch may lie outside."""
    need = max(wide - final, wide - side)
    return -((need + 1) // 2), side + (need + 1) // 2 - wide


def crop_patch(image: NDArray[Any], starts: Sequence[int], size: Sequence[int], fill: float) -> NDArray[Any]:
    """A window of the last axes, filled up outside.

    Args:
        image: (..., sides).
        starts: first voxel along each of the last axes; negative ones lie outside.
        size: voxels along each of them.
        fill: value outside.
    """
    result = np.full((*image.shape[: image.ndim - len(size)], *size), fill, image.dtype)
    reading: list[Any] = [...]
    writing: list[Any] = [...]
    for start, wide, side in zip(starts, size, image.shape[-len(size) :], strict=True):
        inside = slice(max(start, 0), min(start + wide, side))
        reading.append(inside)
        writing.append(slice(inside.start - start, inside.stop - start))
    result[tuple(writing)] = image[tuple(reading)]
    return result


def _interpolate(image: NDArray[Any], shape: Sequence[int], order: int) -> NDArray[Any]:
    """A spline is linear in its data and separable: a matrix product for each axis."""
    for axis, m in enumerate(shape, image.ndim - len(shape)):
        matrix = _matrix(image.shape[axis], m, order).astype(image.dtype)
        image = np.moveaxis(np.moveaxis(image, axis, -1) @ matrix.T, -1, axis)
    return image


@functools.lru_cache(maxsize=32)
def _matrix(old: int, new: int, order: int) -> NDArray[np.float64]:
    """(new, old) interpolation along one axis; the outer faces of the end voxels stay where they are."""
    from scipy import ndimage

    return np.asarray(ndimage.zoom(np.eye(old), (new / old, 1), order=order, mode="nearest", grid_mode=True))
