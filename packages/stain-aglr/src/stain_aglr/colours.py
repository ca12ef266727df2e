"""Hue, saturation and value of a laboratory's patches, as the paper's Fig. 1 compares them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def hsv_histogram(image: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How many pixels of a picture have each hue, saturation and value; histograms of several pictures can be added up.

    Args:
        image: uint8 (H, W, 3).

    Returns:
        (3, 256): 8-bit levels of hue, saturation and value, as Pillow converts them; a grey pixel has hue 0.
    """
    return np.array(Image.fromarray(image).convert("HSV").histogram(), dtype=np.int64).reshape(3, 256)


def hsv_moments(histogram: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation over all pixels of hue, saturation and value, each (3,) in [0, 1].

    Args:
        histogram: (3, 256), of at least one pixel.
    """
    levels = np.arange(256) / 255
    shares = histogram / histogram.sum(1, keepdims=True)
    mean = shares @ levels
    deviation = np.sqrt((shares * (levels - mean[:, None]) ** 2).sum(1))
    return mean, deviation
