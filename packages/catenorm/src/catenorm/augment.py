"""Augmentation of a slice with its neighbours and its labels (specification 2.7).

The published loader rotates label maps bilinearly and shifts image and labels by different amounts; here labels keep their values and
everything moves together (8.1, 8.2).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

DEGREES = 10
SHIFT = 4.0
"""Standard deviation in pixels."""

Pair = tuple[NDArray[Any], NDArray[Any]]


def augment(image: NDArray[Any], label: NDArray[Any], rng: np.random.Generator, flips: bool) -> Pair:
    """Rotate; where left and right may be exchanged, also flip and shift; each with probability 0.5.

    Args:
        image: (C, H, W).
        label: (H, W).
        rng: draws.
        flips: flip and shift too.
    """
    if rng.random() < 0.5:
        image, label = rotate(image, label, int(rng.integers(-DEGREES, DEGREES + 1)))
    if flips and rng.random() < 0.5:
        image, label = image[..., ::-1], label[..., ::-1]
    if flips and rng.random() < 0.5:
        pixels, axis = round(rng.normal(0, SHIFT)), int(rng.integers(1, 3))
        image, label = np.roll(image, pixels, axis), np.roll(label, pixels, axis - 1)
    return np.ascontiguousarray(image), np.ascontiguousarray(label)


def rotate(image: NDArray[Any], label: NDArray[Any], degrees: float) -> Pair:
    """Turn about the centre: the image bilinearly, labels by the nearest pixel, 0 from outside."""
    from scipy import ndimage

    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix = np.array([[cos, sin], [-sin, cos]])
    centre = (np.array(label.shape) - 1) / 2
    offset = centre - matrix @ centre
    turned = [ndimage.affine_transform(channel, matrix, offset, order=1, mode="constant") for channel in image]
    return np.stack(turned), ndimage.affine_transform(label, matrix, offset, order=0, mode="constant")
