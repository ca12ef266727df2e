"""CIE Lab (D65): for the tissue mask of Vahadane's method, luminosity standardisation and the DSCSI similarity."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

# Rows X, Y, Z over the white point; columns linear red, green, blue (the constants of OpenCV).
_XYZ = ((0.412453 / 0.950456, 0.357580 / 0.950456, 0.180423 / 0.950456), (0.212671, 0.715160, 0.072169),
        (0.019334 / 1.088754, 0.119193 / 1.088754, 0.950227 / 1.088754))  # fmt: skip
_KNEE, _SLOPE = 216 / 24389, 841 / 108
TISSUE_BELOW = 204
"""First of the 8-bit lightnesses that is glass: 0.8 of 255 (specification 4.2a)."""


def rgb_to_lab(images: Tensor) -> Tensor:
    """sRGB (N, 3, H, W) in [0, 1] to L in [0, 100], a and b (N, 3, H, W), with finite gradients."""
    linear = torch.where(images <= 0.04045, images / 12.92, ((images.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)
    xyz = torch.einsum("ij,njhw->nihw", torch.tensor(_XYZ).to(linear), linear)
    # The clamp keeps the infinite slope of the cube root at 0 out of the gradient.
    f = torch.where(xyz > _KNEE, xyz.clamp(min=_KNEE) ** (1 / 3), _SLOPE * xyz + 4 / 29)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """The inverse of `rgb_to_lab`; colours that sRGB does not have are clipped to [0, 1]."""
    y = (lab[:, 0] + 16) / 116
    f = torch.stack([y + lab[:, 1] / 500, y, y - lab[:, 2] / 200], 1)
    xyz = torch.where(f > 6 / 29, f**3, (f - 4 / 29) / _SLOPE)
    inverse = torch.linalg.inv(torch.tensor(_XYZ, dtype=torch.float64)).to(xyz)
    linear = torch.einsum("ij,njhw->nihw", inverse, xyz).clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)


def tissue_mask(images: Tensor) -> Tensor:
    """Pixels whose 8-bit lightness L is below 0.8 of 255 (specification 4.2a).

    Lightness as OpenCV computes it for 8-bit pictures, in whole numbers; it grows with the luminance Y alone, so that a
    limit for L is one for Y.

    Args:
        images: uint8 (N, 3, H, W).

    Returns:
        bool (N, H, W).
    """
    linear, weights, limit = _luminance_limit()
    # Sums stay below 2^24, so that float32 is exact; a look-up by index is slower than computing on a few hundred values.
    table = torch.from_numpy(linear).to(images.device)
    red, green, blue = table[images.long()].unbind(1)
    return red * weights[0] + green * weights[1] + blue * weights[2] < limit


@functools.cache
def _luminance_limit() -> tuple[np.ndarray[tuple[int], np.dtype[np.float32]], tuple[int, int, int], int]:
    """OpenCV's fixed-point tables: linear light of a pixel value times 2040, weights of Y times 4096, limit of their sum."""
    value = np.arange(256) / 255
    linear = np.rint(2040 * np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4))
    weights = tuple(round(4096 * weight) for weight in _XYZ[1])
    y = np.arange(2041) / 2040
    root = np.rint(32768 * np.where(y < _KNEE, _SLOPE * y + 4 / 29, np.cbrt(y))).astype(np.int64)
    lightness = (296 * root - (16 * 255 * 32768 + 50) // 100 + 16384) >> 15
    first = int(np.flatnonzero(lightness >= TISSUE_BELOW)[0])
    # Y is the sum over 4096, rounded: it reaches `first` half a step earlier.
    return linear.astype(np.float32), (weights[0], weights[1], weights[2]), first * 4096 - 2048
