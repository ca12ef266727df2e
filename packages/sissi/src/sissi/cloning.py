"""Synthetic-like pictures: the boxed cells cloned onto a blurred copy of the picture (specification 2E, paper 3.5).

The clone is OpenCV's `seamlessClone` (Perez et al. 2003, mixed gradients), computed here with
sine transforms along the rows and one small equation per column.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft
from torch import Tensor

from dart_core.errors import InputError, SettingError
from sissi.boxes import boxes_of, compiled

Mode = Literal["mixed", "normal"]
Picture = TypeVar("Picture", NDArray[np.uint8], Tensor)
EROSIONS = 3
"""Of the mask, by a 3x3 square: what is thinner vanishes."""


def clone_mask(boxes: Any, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Where the cells are (Y1): the union of the boxes as full rectangles.

    Args:
        boxes: (n, 4) in pixels; coordinates are truncated to integers and cut to the picture.
        size: (H, W).

    Returns:
        uint8 (H, W), 255 in rows y1 to y2-1 and columns x1 to x2-1 of a box.
    """
    height, width = size
    mask = np.zeros((height, width), np.uint8)
    _fill(mask, np.trunc(boxes_of(boxes)).clip(0, [width, height, width, height]).astype(np.int64))
    return mask


@compiled
def _fill(mask: Any, corners: Any) -> None:
    for x1, y1, x2, y2 in corners:
        mask[y1:y2, x1:x2] = 255


def blurred(
    image: NDArray[np.uint8], kernel: tuple[int, int] = (21, 21), sigma: float | None = None
) -> NDArray[np.uint8]:
    """The background (Y2): Gaussian blur with mirrored border.

    Raises:
        SettingError: a kernel with an even side, as the paper prints one.
    """
    if min(kernel) < 1 or any(side % 2 == 0 for side in kernel):
        raise SettingError(f"the blur kernel is {kernel[0]}x{kernel[1]}", remedy="give two odd numbers")
    return np.asarray(cv2.GaussianBlur(image, kernel, 0 if sigma is None else sigma, borderType=cv2.BORDER_REFLECT_101))


def seamless_synthetic(
    image: Picture,
    boxes: Any,
    kernel: tuple[int, int] = (21, 21),
    sigma: float | None = None,
    mode: Mode = "mixed",
) -> Picture:
    """Hide what is in no box: clone the boxed cells onto a blurred copy of the picture, all in one clone (Y1 to Y5).

    Args:
        image: uint8 (H, W, 3), array or tensor.
        boxes: (n, 4) in pixels. A box with a side of 6 pixels or less leaves no trace.
        kernel: of the blur, width and height, odd; the paper's weak one is (21, 21), the authors' strong one (71, 71).
        sigma: of the blur in pixels (authors, strong: 30); None: OpenCV's rule, 3.5 for 21.
        mode: mixed: of both gradients the one with more contrast; normal: those of the picture.

    Returns:
        uint8 (H, W, 3), tensor for a tensor; without a box the blurred picture.

    Raises:
        InputError: not such a picture, or boxes of another shape.
        SettingError: an even kernel, or another mode.
    """
    if mode not in ("mixed", "normal"):
        raise SettingError(f"mode is {mode!r}", remedy="give mixed or normal")
    picture = image.detach().cpu().contiguous().numpy() if isinstance(image, Tensor) else image
    _check(picture)
    made = clone(picture, blurred(picture, kernel, sigma), clone_mask(boxes, picture.shape[:2]), mode)
    return torch.from_numpy(made).to(image.device) if isinstance(image, Tensor) else made


def hard_paste(
    image: NDArray[np.uint8],
    boxes: Any,
    kernel: tuple[int, int] = (21, 21),
    sigma: float | None = None,
    ground: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """The boxes pasted as they are, onto the blurred picture or another ground: the baseline without a Poisson clone."""
    _check(image)
    mask = clone_mask(boxes, image.shape[:2])
    return np.where(mask[..., None] > 0, image, blurred(image, kernel, sigma) if ground is None else ground)


def _check(image: NDArray[np.uint8]) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"a picture of type {image.dtype} and shape {image.shape}", remedy="give uint8 (H, W, 3)")


def clone(
    source: NDArray[np.uint8], target: NDArray[np.uint8], mask: NDArray[np.uint8], mode: Mode = "mixed"
) -> NDArray[np.uint8]:
    """What `cv2.seamlessClone` gives where source and target lie on each other (Y4).

    Args:
        source: uint8 (H, W, 3).
        target: likewise; returned unchanged outside the mask's bounding rectangle.
        mask: uint8 (H, W); its outermost rows and columns do not count.
        mode: mixed or normal gradients.
    """
    inner = mask.copy()
    inner[[0, -1]] = 0
    inner[:, [0, -1]] = 0
    rows, columns = np.flatnonzero(inner.any(1)), np.flatnonzero(inner.any(0))
    result = target.copy()
    if not len(rows) or min(np.ptp(rows), np.ptp(columns)) < 2:
        return result
    place = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    inner, ground = inner[place], target[place]
    eroded = cv2.erode(
        inner, np.ones((3, 3), np.uint8), iterations=EROSIONS, borderType=cv2.BORDER_CONSTANT, borderValue=0
    )
    right = _right_side(source[place], ground, inner, eroded, mode == "mixed")
    waves = fft.dst(right, type=1, axis=-1, overwrite_x=True)
    _solve_columns(waves, 2 * np.cos(np.pi * np.arange(1, waves.shape[-1] + 1) / (waves.shape[-1] + 1)) - 4)
    solved = fft.idst(waves, type=1, axis=-1, overwrite_x=True)
    np.copyto(result[place][1:-1, 1:-1], solved.clip(0, 255, out=solved).transpose(1, 2, 0), casting="unsafe")
    return result


@compiled
def _right_side(source: Any, ground: Any, inner: Any, eroded: Any, mixed: bool) -> Any:
    """Divergence of the gradients that the clone shall have, less what the border brings in; (3, h-2, w-2).

    Gradients are forward differences, the divergence backward ones. The source counts as black outside of the mask.
    """
    height, width = inner.shape
    found = np.empty((3, height - 2, width - 2), np.float32)
    across, down = np.empty((2, width), np.float32), np.empty((2, width), np.float32)
    for c in range(3):
        for y in range(height - 1):
            now, before = y % 2, (y + 1) % 2
            for x in range(width - 1):
                gx = np.float32(ground[y, x + 1, c]) - np.float32(ground[y, x, c])
                gy = np.float32(ground[y + 1, x, c]) - np.float32(ground[y, x, c])
                if eroded[y, x]:  # and with it all neighbours are inside of the mask
                    sx = np.float32(source[y, x + 1, c]) - np.float32(source[y, x, c])
                    sy = np.float32(source[y + 1, x, c]) - np.float32(source[y, x, c])
                    # OpenCV compares |gx - gy|, not the length of the gradient.
                    if not mixed or abs(sx - sy) > abs(gx - gy):
                        gx, gy = sx, sy
                across[now, x] = gx
                down[now, x] = gy
            if y > 0:
                for x in range(1, width - 1):
                    value = across[now, x] - across[now, x - 1] + down[now, x] - down[before, x]
                    if y == 1:
                        value -= ground[0, x, c]
                    if y == height - 2:
                        value -= ground[height - 1, x, c]
                    if x == 1:
                        value -= ground[y, 0, c]
                    if x == width - 2:
                        value -= ground[y, width - 1, c]
                    found[c, y - 1, x - 1] = value
    return found


@compiled
def _solve_columns(waves: Any, diagonal: Any) -> None:
    """Solve u[y-1] + diagonal u[y] + u[y+1] = waves[y] for every channel and column of (3, h, w), in place.

    The transform along the rows has left one equation of three terms per column (Thomas's algorithm). Its sums are kept in double
    precision: for slow waves the diagonal is almost -2.
    """
    channels, height, width = waves.shape
    ratio = np.empty((height, width), np.float64)
    for k in range(width):
        ratio[0, k] = 1 / diagonal[k]
    for y in range(1, height):
        for k in range(width):
            ratio[y, k] = 1 / (diagonal[k] - ratio[y - 1, k])
    swept = np.empty((height, width), np.float64)
    for c in range(channels):
        for k in range(width):
            swept[0, k] = waves[c, 0, k] * ratio[0, k]
        for y in range(1, height):
            for k in range(width):
                swept[y, k] = (waves[c, y, k] - swept[y - 1, k]) * ratio[y, k]
        for k in range(width):
            waves[c, height - 1, k] = swept[height - 1, k]
        for y in range(height - 2, -1, -1):
            for k in range(width):
                swept[y, k] -= ratio[y, k] * swept[y + 1, k]
                waves[c, y, k] = swept[y, k]
