"""Skin tone after Groh et al. 2021: the mean over the pixels of skin colour, or over the whole picture (specification 4.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2lab, rgb2ycbcr

from skintone_debias.settings import Angle
from skintone_debias.tone import checked, individual_typology_angle

_PART = 2**20


def groh_skin_mask(rgb_uint8: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels of skin colour, by bounds on red, green and blue and on YCbCr (ITU-R BT.601, Y from 16 to 235).

    The notebook sets the channels of a refused pixel to zero one after the other, and each zero drags the other two
    along, so that a pixel either passes untouched or turns black; black fails the bound on Y. Therefore the steps are
    one condition here.

    Args:
        rgb_uint8: uint8 (H, W, 3) in red, green, blue, of any size.

    Returns:
        bool (H, W).

    Raises:
        InputError: another type or shape.
    """
    rgb = checked(rgb_uint8)
    red, green, blue = np.moveaxis(rgb.astype(np.int16), -1, 0)
    mask: NDArray[np.bool_] = (red >= 95) & (green >= 40) & (blue >= 20) & (red >= blue) & (red - green >= 15)
    luma, cb, cr = rgb2ycbcr(rgb[mask]).T
    mask[mask] = (
        (luma >= 80) & (cb >= 85) & (cr >= 135)
        & (cr < 1.5862 * cb + 20) & (cr > 0.3448 * cb + 76.2069) & (cr > -4.5652 * cb + 234.5652)
        & (cr < -1.15 * cb + 301.75) & (cr < -2.2857 * cb + 432.85)
    )  # fmt: skip
    return mask


def groh_ita(rgb_uint8: NDArray[Any], masked: bool = True, *, angle: Angle = "atan2") -> float:
    """Individual typology angle of a whole picture: means of L* and b* without outliers.

    L* and b* each lose their exact zeros, then what is farther than one standard deviation from their mean.

    Args:
        rgb_uint8: uint8 (H, W, 3) in red, green, blue, of any size; neither resized nor freed of hair.
        masked: only pixels of `groh_skin_mask`; else all of them.
        angle: see `individual_typology_angle`.

    Returns:
        Degrees; nan where no pixel is left.

    Raises:
        InputError: another type or shape.
    """
    rgb = checked(rgb_uint8)
    pixels = rgb[groh_skin_mask(rgb)] if masked else rgb.reshape(-1, 3)
    # In parts, because CIELAB of a large photograph takes gigabytes.
    parts = [rgb2lab(pixels[start : start + _PART])[:, ::2] for start in range(0, len(pixels), _PART)]
    lightness, yellow = np.concatenate(parts).T if parts else np.zeros((2, 0))
    means = _mean_without_outliers(lightness), _mean_without_outliers(yellow)
    return float(individual_typology_angle(*means, angle=angle))


def _mean_without_outliers(values: NDArray[np.float64]) -> float:
    values = values[values != 0]
    if not len(values):
        return np.nan
    # Equal values have a spread of rounding errors only, which must not refuse them.
    kept = values[np.abs(values - values.mean()) <= values.std() + 1e-9]
    return float(kept.mean()) if len(kept) else np.nan
