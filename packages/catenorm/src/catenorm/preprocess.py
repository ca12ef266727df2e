"""The authors' preprocessing of abdominal CTs (specification 5.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dart_core.errors import InputError, SettingError

ORGANS: dict[str, dict[str, int]] = {
    "single": {
        "spleen": 1, "right-kidney": 2, "left-kidney": 3, "gallbladder": 4, "pancreas": 11, "liver": 6, "stomach": 7, "aorta": 8,
    },
    "multi": {"spleen": 1, "left-kidney": 3, "gallbladder": 4, "liver": 6, "stomach": 7, "pancreas": 11},
}  # fmt: skip
"""Organ -> code in the published label files; the classes are numbered in this order from 1 (5.2)."""

WINDOW = (-125.0, 275.0)
"""HU."""

Organs = Literal["single", "multi"]


@dataclass(frozen=True)
class Place:
    """Where a preprocessed CT lies in its file."""

    first: int
    """First slice that was kept."""
    shape: tuple[int, int, int]
    """(z, y, x) before resizing, of the kept slices."""


def preprocess_ct(
    image: Any,
    label: Any,
    spacing: Sequence[float],
    organs: Organs = "single",
    size: int = 384,
    *,
    z_divisor: int = 1,
) -> tuple[NDArray[Any], NDArray[Any], tuple[float, float, float]]:
    """The authors' steps (5.2): labels, slices with organs and one more at each side, rows reversed, window, size.

    Sample i of a resized axis lies at i old / new: there is no half-pixel shift. Images are interpolated linearly, labels take
    the nearest voxel; behind the last voxel that one counts.

    Args:
        image: (z, y, x) HU.
        label: (z, y, x) codes of the published label files.
        spacing: (x, y, z) mm.
        organs: single: eight organs of BTCV; multi: the six that BTCV and Pancreas-CT share.
        size: side of the slices that come out.
        z_divisor: the number of slices is divided by this (3 for Pancreas-CT).

    Returns:
        image (z', size, size) floating-point, labels of the same shape and their own type, spacing (x, y, z) in mm.

    Raises:
        ValueError: shapes that do not fit, or none of the organs.
    """
    pixels, codes = np.asarray(image), np.asarray(label)
    if organs not in ORGANS:
        raise SettingError(f"organs is {organs!r}", remedy="give single or multi")
    if pixels.ndim != 3 or pixels.shape != codes.shape:
        raise InputError(f"image {pixels.shape} and label {codes.shape} do not fit", remedy="give (z, y, x) for both")
    classes = relabel(codes, list(ORGANS[organs].values()))
    place = place_of(classes)
    shape = (max(place.shape[0] // z_divisor, 1), size, size)
    x, y, z = (float(side) for side in spacing)
    depth, rows, columns = place.shape
    new_spacing = (x * (columns / shape[2]), y * (rows / shape[1]), z * (depth / shape[0]))
    return kept_image(pixels, place, shape, True), kept_labels(classes, place, shape, True), new_spacing


def relabel(codes: NDArray[Any], kept: Sequence[int]) -> NDArray[Any]:
    """Number some codes from 1 in the order given; all others become 0."""
    classes = np.zeros_like(codes)
    for number, code in enumerate(kept, 1):
        classes[codes == code] = number
    return classes


def place_of(classes: NDArray[Any]) -> Place:
    """The slices with organs, with one slice of context at each side where the volume has one."""
    filled = np.flatnonzero(classes.any((1, 2)))
    if not len(filled):
        raise InputError("holds none of the organs", remedy="check the label file and --preprocessing")
    # The authors' start is -1 where the first slice has an organ, and their result then is empty.
    first, last = max(int(filled[0]) - 1, 0), min(int(filled[-1]) + 1, len(classes) - 1)
    return Place(first, (last - first + 1, classes.shape[1], classes.shape[2]))


def kept_image(pixels: NDArray[Any], place: Place, shape: Sequence[int], is_ct: bool) -> NDArray[Any]:
    """The kept slices of an image, for CT reversed in y and cut to the window, at their new size."""
    kept = pixels[place.first : place.first + place.shape[0]]
    kept = kept if kept.dtype.kind == "f" and kept.dtype.itemsize >= 4 else kept.astype(np.float32)
    return resize_linear(np.clip(kept[:, ::-1], *WINDOW) if is_ct else kept, shape)


def kept_labels(classes: NDArray[Any], place: Place, shape: Sequence[int], is_ct: bool) -> NDArray[Any]:
    """The same of its classes, by the nearest voxel."""
    kept = classes[place.first : place.first + place.shape[0]]
    return resize_nearest(kept[:, ::-1] if is_ct else kept, shape)


def resize_linear(array: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Resize without half-pixel shift: sample i at i old / new, linearly."""
    for axis, (old, new) in enumerate(zip(array.shape, shape, strict=True)):
        if old == new:
            continue
        at = np.minimum(np.arange(new) * (old / new), old - 1)
        low = np.minimum(at.astype(np.int64), max(old - 2, 0))
        weight = (at - low).astype(array.dtype).reshape([-1 if other == axis else 1 for other in range(array.ndim)])
        upper = np.minimum(low + 1, old - 1)
        array = array.take(low, axis) * (1 - weight) + array.take(upper, axis) * weight
    return np.ascontiguousarray(array)


def resize_nearest(array: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Resize without half-pixel shift: sample i is the voxel nearest to i old / new, the upper one of two."""
    for axis, (old, new) in enumerate(zip(array.shape, shape, strict=True)):
        if old != new:
            at = np.floor(np.arange(new) * (old / new) + 0.5).astype(np.int64)
            array = array.take(np.minimum(at, old - 1), axis)
    return np.ascontiguousarray(array)
