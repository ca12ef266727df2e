"""Boxes [x1, y1, x2, y2] in pixels: the filter at loading, boxes of instances, and the suppression of weak labels (W4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dart_core.data import boxes as core
from dart_core.errors import InputError

Boxes = TypeVar("Boxes", NDArray[Any], Tensor)
Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Machine code by numba, made at the first call and kept on the disk."""
    compiler: Any = numba.njit(cache=True)
    made: Function = compiler(function)
    return made


def array_of(values: Any) -> NDArray[np.float64]:
    """Numbers of a list, array or tensor on any device."""
    values = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return np.asarray(values, dtype=np.float64)


def boxes_from_labels(labels: ArrayLike | Tensor) -> NDArray[np.int64]:
    """`dart_core.data.boxes.boxes_from_labels`, of tensors on any device."""
    return core.boxes_from_labels(labels.cpu().numpy() if isinstance(labels, Tensor) else labels)


def boxes_of(values: Any) -> NDArray[np.float64]:
    """Boxes (n, 4) of a list, array or tensor, which may be empty.

    Raises:
        InputError: another shape, or values that are no numbers.
    """
    boxes = array_of(values)
    if boxes.size == 0:
        return boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise InputError(f"boxes have shape {boxes.shape}", remedy="give (n, 4): x1, y1, x2, y2")
    if not np.isfinite(boxes).all():
        raise InputError(f"box {int(np.argmin(np.isfinite(boxes).all(1)))} is not finite", remedy="remove it")
    return boxes


def valid_boxes(boxes: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Which boxes the training keeps (specification 5): 0 <= x1 < x2 < W and 0 <= y1 < y2 < H."""
    height, width = size
    x1, y1, x2, y2 = boxes.reshape(-1, 4).T
    return np.asarray((x1 >= 0) & (x1 < x2) & (x2 < width) & (y1 >= 0) & (y1 < y2) & (y2 < height))


def _taken(boxes: Any, places: NDArray[np.int64]) -> Any:
    """Some of the boxes of a list, array or tensor; array for a list."""
    given = boxes if isinstance(boxes, np.ndarray | Tensor) else array_of(boxes)
    return given.reshape(-1, 4)[places]


@overload
def filter_boxes(boxes: Boxes, size: tuple[int, int]) -> Boxes: ...
@overload
def filter_boxes(boxes: Sequence[Sequence[float]], size: tuple[int, int]) -> NDArray[np.float64]: ...
def filter_boxes(boxes: Any, size: tuple[int, int]) -> Any:
    """Drop boxes that leave the picture, touch its right or bottom edge, or have no area (specification 5).

    Args:
        boxes: (n, 4), list, array or tensor.
        size: (H, W) of the picture.

    Returns:
        (m, 4), those with 0 <= x1 < x2 < W and 0 <= y1 < y2 < H, in their order; array for a list.
    """
    return _taken(boxes, np.flatnonzero(valid_boxes(array_of(boxes), size)))


@overload
def weak_nms(boxes: Boxes, threshold: float = 0.15, scores: Any = None) -> Boxes: ...
@overload
def weak_nms(boxes: Sequence[Sequence[float]], threshold: float = 0.15, scores: Any = None) -> NDArray[np.float64]: ...
def weak_nms(boxes: Any, threshold: float = 0.15, scores: Any = None) -> Any:
    """Non-maximum suppression of weak labels (W4): widths and heights count one more, in a stable order.

    Args:
        boxes: (n, 4), list, array or tensor.
        threshold: survivors overlap those taken before by less than this (IoU).
        scores: (n,); None: all the same, so that the last box of the list is taken first.

    Returns:
        (m, 4), the boxes that are left, in the order in which they are taken; array for a list.

    Raises:
        InputError: boxes of another shape or not finite, or another number of scores.
    """
    corners = boxes_of(boxes)
    values = np.ones(len(corners)) if scores is None else array_of(scores).reshape(-1)
    if len(values) != len(corners):
        raise InputError(f"{len(values)} scores for {len(corners)} boxes", remedy="give one score per box")
    order = np.argsort(values, kind="stable")[::-1].copy()
    return _taken(boxes, _suppress(corners, order, threshold))


@compiled
def _suppress(boxes: Any, order: Any, threshold: float) -> Any:
    n = len(order)
    dead = np.zeros(n, dtype=np.bool_)
    kept = np.empty(n, dtype=np.int64)
    count = 0
    for a in range(n):
        if dead[a]:
            continue
        i = order[a]
        kept[count] = i
        count += 1
        area = (boxes[i, 2] - boxes[i, 0] + 1) * (boxes[i, 3] - boxes[i, 1] + 1)
        for b in range(a + 1, n):
            if dead[b]:
                continue
            j = order[b]
            width = min(boxes[i, 2], boxes[j, 2]) - max(boxes[i, 0], boxes[j, 0]) + 1
            height = min(boxes[i, 3], boxes[j, 3]) - max(boxes[i, 1], boxes[j, 1]) + 1
            if width > 0 and height > 0:
                shared = width * height
                other = (boxes[j, 2] - boxes[j, 0] + 1) * (boxes[j, 3] - boxes[j, 1] + 1)
                dead[b] = shared / (area + other - shared) >= threshold
    return kept[:count]
