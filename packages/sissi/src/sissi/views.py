"""Test-time views of a picture and the way back (specification 2D P1, P2): five scales times four flips."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Flip = Literal["both", "rows", "columns", "none"]
Picture = TypeVar("Picture", NDArray[Any], Tensor)
SCALES = (0.8, 0.9, 1.0, 1.1, 1.2)
FLIPS: tuple[Flip, ...] = ("both", "rows", "columns", "none")


@dataclass(frozen=True)
class View:
    """One version of a picture: scaled first, then flipped."""

    scale: float
    flip: Flip

    @property
    def flips(self) -> tuple[bool, bool]:
        """Whether rows (top to bottom) and columns (left to right) are reversed."""
        return self.flip in ("both", "rows"), self.flip in ("both", "columns")

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of this view of a picture of that size."""
        # The product is nudged: 0.7 * 10 is a little less than 7 in binary.
        height, width = (max(1, math.floor(side * self.scale + 1e-9)) for side in size)
        return height, width


VIEWS = tuple(View(scale, flip) for scale in SCALES for flip in FLIPS)
"""The 20 views in their order."""


def tta_views(image: Picture) -> list[tuple[View, Picture]]:
    """The 20 versions of a picture.

    Args:
        image: (3, H, W) (leading dimensions are kept), tensor or array of any type.

    Returns:
        (view, image) pairs; the sizes are floor(H s), floor(W s), the pixels the nearest ones.
    """
    height, width = image.shape[-2:]
    return [(view, view_of(image, view, view.size((height, width)))) for view in VIEWS]


def view_of(image: Picture, view: View, size: tuple[int, int]) -> Picture:
    """One version (..., height, width) of a picture."""
    device = image.device if isinstance(image, Tensor) else torch.device("cpu")
    rows, columns = (_nearest(old, new, device) for old, new in zip(image.shape[-2:], size, strict=True))
    down, across = view.flips
    rows, columns = rows.flip(0) if down else rows, columns.flip(0) if across else columns
    if isinstance(image, Tensor):
        return image.index_select(-2, rows).index_select(-1, columns)
    return image[..., rows.numpy()[:, None], columns.numpy()]


def _nearest(old: int, new: int, device: torch.device) -> Tensor:
    return torch.arange(new, device=device).mul(old).div(new, rounding_mode="floor")


def undo_tta(boxes: Any, view: View, size: tuple[int, int]) -> Any:
    """Bring boxes of a view back to the picture (P2): flip with the view's size, then divide by the true ratio of sizes.

    Args:
        boxes: (n, 4) in pixels of the view, tensor or array.
        view: as `tta_views` gave it.
        size: (H, W) of the picture.

    Returns:
        (n, 4) in pixels of the picture, of the same kind and floating-point type.
    """
    given = boxes if isinstance(boxes, Tensor) else np.asarray(boxes)
    tensor = given if isinstance(given, Tensor) else torch.from_numpy(given.astype(np.float64))
    tensor = tensor if tensor.dtype.is_floating_point else tensor.float()
    tensor = tensor.reshape(-1, 4)
    index = torch.full((len(tensor),), VIEWS.index(view), device=tensor.device)
    found = undo_views(tensor, index, size)
    if isinstance(given, Tensor):
        return found
    return found.numpy().astype(given.dtype if given.dtype.kind == "f" else np.float64)


def undo_views(boxes: Tensor, index: Tensor, size: tuple[int, int]) -> Tensor:
    """`undo_tta` of boxes of many views at once.

    Args:
        boxes: (n, 4) in pixels of each one's view.
        index: (n,) place of its view in VIEWS.
        size: (H, W) of the picture.
    """
    table = torch.tensor(
        [(*view.size(size)[::-1], *map(float, view.flips[::-1])) for view in VIEWS],
        dtype=boxes.dtype, device=boxes.device,
    )  # fmt: skip
    sides, flipped = table[index, :2], table[index, 2:].bool()
    low, high = boxes[:, :2], boxes[:, 2:]
    low, high = torch.where(flipped, sides - high, low), torch.where(flipped, sides - low, high)
    ratio = sides / torch.tensor(size[::-1], dtype=boxes.dtype, device=boxes.device)
    return torch.cat([low / ratio, high / ratio], dim=1)
