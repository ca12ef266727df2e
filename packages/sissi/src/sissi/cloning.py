"""Synthetic-like pictures: the boxed cells cloned onto a blurred copy of the picture (specification 2E, paper 3.5).

The clone is OpenCV's `seamlessClone` (Perez et al. 2003, mixed gradients), computed here with sine transforms.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import fft

from dart_core.errors import InputError, SettingError
from sissi.boxes import boxes_of

Mode = Literal["mixed", "normal"]
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
    corners = np.trunc(boxes_of(boxes)).clip(0, [width, height, width, height]).astype(np.int64)
    for x1, y1, x2, y2 in corners.tolist():
        mask[y1:y2, x1:x2] = 255
    return mask


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
    image: NDArray[np.uint8],
    boxes: Any,
    kernel: tuple[int, int] = (21, 21),
    sigma: float | None = None,
    mode: Mode = "mixed",
) -> NDArray[np.uint8]:
    """Hide what is in no box: clone the boxed cells onto a blurred copy of the picture, all in one clone (Y1 to Y5).

    Args:
        image: uint8 (H, W, 3).
        boxes: (n, 4) in pixels. A box with a side of 6 pixels or less leaves no trace.
        kernel: of the blur, width and height, odd; the paper's weak one is (21, 21), the authors' strong one (71, 71).
        sigma: of the blur in pixels (authors, strong: 30); None: OpenCV's rule, 3.5 for 21.
        mode: mixed: of both gradients the one with more contrast; normal: those of the picture.

    Returns:
        uint8 (H, W, 3); without a box the blurred picture.

    Raises:
        InputError: not such a picture, or boxes of another shape.
        SettingError: an even kernel, or another mode.
    """
    if mode not in ("mixed", "normal"):
        raise SettingError(f"mode is {mode!r}", remedy="give mixed or normal")
    _check(image)
    return clone(image, blurred(image, kernel, sigma), clone_mask(boxes, image.shape[:2]), mode)


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
    cells = cv2.bitwise_and(source[place], source[place], mask=inner)
    divergence = _divergence(cells, ground, eroded > 0, mode)
    result[place][1:-1, 1:-1] = _poisson(divergence, ground)
    return result


def _gradients(picture: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Forward differences along columns and rows, mirrored at the last one."""
    across, down = np.empty_like(picture), np.empty_like(picture)
    np.subtract(picture[:, 1:], picture[:, :-1], out=across[:, :-1])
    np.subtract(picture[:, -2], picture[:, -1], out=across[:, -1])
    np.subtract(picture[1:], picture[:-1], out=down[:-1])
    np.subtract(picture[-2], picture[-1], out=down[-1])
    return across, down


def _divergence(
    cells: NDArray[np.uint8], ground: NDArray[np.uint8], mask: NDArray[np.bool_], mode: Mode
) -> NDArray[np.float32]:
    """Divergence (h-2, w-2, 3) of the gradients that the clone shall have."""
    source_x, source_y = _gradients(cells.astype(np.float32))
    x, y = _gradients(ground.astype(np.float32))
    take = np.broadcast_to(mask[..., None], x.shape)
    if mode == "mixed":
        # OpenCV compares |gx - gy|, not the length of the gradient.
        take = take & (np.abs(source_x - source_y) > np.abs(x - y))
    np.copyto(x, source_x, where=take)
    np.copyto(y, source_y, where=take)
    return x[1:-1, 1:-1] - x[1:-1, :-2] + y[1:-1, 1:-1] - y[:-2, 1:-1]


def _poisson(divergence: NDArray[np.float32], border: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Solve the 5-point equation inside a rectangle (h, w, 3) whose border is given; (h-2, w-2, 3) in grey levels."""
    right = divergence
    edge = border.astype(np.float32)
    right[0] -= edge[0, 1:-1]
    right[-1] -= edge[-1, 1:-1]
    right[:, 0] -= edge[1:-1, 0]
    right[:, -1] -= edge[1:-1, -1]
    height, width = right.shape[:2]
    waves = fft.dstn(right.transpose(2, 0, 1), type=1, axes=(1, 2), overwrite_x=True)
    waves /= _eigenvalues(height)[:, None] + _eigenvalues(width)
    solved = fft.idstn(waves, type=1, axes=(1, 2), overwrite_x=True)
    return np.clip(solved, 0, 255).astype(np.uint8).transpose(1, 2, 0)


@functools.lru_cache(maxsize=64)
def _eigenvalues(n: int) -> NDArray[np.float32]:
    """Of the second difference of n points between zeros."""
    return (2 * np.cos(np.pi * np.arange(1, n + 1) / (n + 1)) - 2).astype(np.float32)
