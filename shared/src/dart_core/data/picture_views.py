"""Views of pictures that classifiers are trained, validated and tested with.

Training: a random part of the picture, mirrored and turned. What is drawn for a picture follows from the generator that
`dart_core.batches.Batches` gives its loading, so that neither loading processes nor a resume change it; what is drawn may be
carried out at once (`crop_view`, pictures of any size) or for a batch on the device (`random_views`, pictures of one size)::

    def load(index, generator):
        return {"image": pictures[index], "view": draw_view(generator, height, width)}

    images = normalise(random_views(batch["image"], batch["view"], 224))

Validation: resized, and the middle cut out. Test: the mean of the probabilities of ten crops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as transforms

from dart_core.errors import InputError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of red, green and blue over ImageNet, of values in [0, 1]."""
CHESTXRAY14 = ((0.5056, 0.5056, 0.5056), (0.252, 0.252, 0.252))
"""The same over ChestX-ray14."""
ATTEMPTS = 10
"""Parts that are drawn before the middle of the picture is taken (torchvision's RandomResizedCrop)."""
TEN = 10
"""Crops of `ten_crop`."""


@dataclass(frozen=True)
class ViewRanges:
    """What `draw_view` draws; the defaults are those that the group of BenchmarkTransformers and POPAR fine-tunes with."""

    area: tuple[float, float] = (0.08, 1.0)
    """Share of the picture's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height; its logarithm is uniform."""
    flip: float = 0.5
    """Chance to mirror left and right."""
    degrees: float = 7.0
    """Largest turn to either side."""


RANGES = ViewRanges()


# --- Training --------------------------------------------------------------------------------------------------------


def draw_view(
    generator: np.random.Generator, height: int, width: int, ranges: ViewRanges = RANGES
) -> NDArray[np.float32]:
    """Draw a view of a picture.

    Args:
        generator: that of the sample.
        height: of the picture in pixels.
        width: likewise.
        ranges: what to draw from.

    Returns:
        (6,): top, left, height and width of the part in pixels (whole numbers), 1 to mirror it or 0, degrees to turn it
        counter-clockwise.
    """
    box = draw_part(generator, height, width, ranges)
    flip, angle = generator.random() < ranges.flip, generator.uniform(-ranges.degrees, ranges.degrees)
    return np.array([*box, flip, angle], dtype=np.float32)


def draw_part(
    generator: np.random.Generator, height: int, width: int, ranges: ViewRanges = RANGES
) -> tuple[int, int, int, int]:
    """Draw a part of a picture as torchvision's RandomResizedCrop does: ten tries, then the largest fitting middle.

    Args:
        generator: that of the sample.
        height: of the picture in pixels.
        width: likewise.
        ranges: what to draw from.

    Returns:
        top, left, height and width of the part.
    """
    low, high = math.log(ranges.ratio[0]), math.log(ranges.ratio[1])
    for _ in range(ATTEMPTS):
        area = height * width * generator.uniform(*ranges.area)
        ratio = math.exp(generator.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(generator.integers(height - h + 1)), int(generator.integers(width - w + 1)), h, w
    ratio = min(max(width / height, ranges.ratio[0]), ranges.ratio[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    return (height - h) // 2, (width - w) // 2, h, w


def crop_view(image: Tensor, view: NDArray[np.float32], size: int) -> Tensor:
    """The part of one picture that a view names, resized; `turn_views` does the rest of the view for a batch.

    Args:
        image: (C, H, W), uint8 or float.
        view: (6,) of `draw_view`.
        size: side of the result.

    Returns:
        (C, size, size) of the same type; bilinear, smoothed where it becomes smaller.
    """
    top, left, height, width = (int(value) for value in view[:4])
    found: Tensor = transforms.resized_crop(image, top, left, height, width, [size, size], antialias=True)
    return found


def random_views(images: Tensor, views: Tensor, size: int) -> Tensor:
    """The views of pictures of one size: `crop_view` and `turn_views` for a whole batch.

    Args:
        images: (N, C, H, W), uint8 or float.
        views: (N, 6) of `draw_view`.
        size: side of the result.

    Returns:
        (N, C, size, size) of the same type and device.

    Raises:
        InputError: not one view for each picture.
    """
    _check(images, views)
    seen = images if images.is_floating_point() else images.float()
    top, left, height, width = views[:, :4].to(seen).unbind(1)
    rows = _resize_matrix(top, height, images.shape[-2], size)
    columns = _resize_matrix(left, width, images.shape[-1], size)
    parts = rows[:, None] @ seen @ columns[:, None].transpose(-1, -2)
    parts = parts if images.is_floating_point() else parts.round().clamp(0, 255).to(images.dtype)
    return turn_views(parts, views)


def _resize_matrix(start: Tensor, length: Tensor, side: int, size: int) -> Tensor:
    """(N, size, side): bilinear weights that bring `length` pixels from `start` on to `size`, as torchvision's antialias."""
    scale = (length / size)[:, None, None]
    reach = scale.clamp(min=1.0)
    centre = scale * (torch.arange(size, device=start.device, dtype=start.dtype)[:, None] + 0.5)
    place = torch.arange(side, device=start.device, dtype=start.dtype) + 0.5 - start[:, None, None]
    inside = (place > 0) & (place < length[:, None, None])
    weights = (1 - (place - centre).abs() / reach).clamp(min=0.0) * inside
    return weights / weights.sum(-1, keepdim=True)


def turn_views(images: Tensor, views: Tensor) -> Tensor:
    """Mirror and turn square pictures as their views say; the pixel nearest is taken, corners become black.

    Args:
        images: (N, C, S, S), uint8 or float.
        views: (N, 6) of `draw_view`.

    Returns:
        Pictures of the same shape and type.

    Raises:
        InputError: not one view for each picture.
    """
    _check(images, views)
    seen = images if images.is_floating_point() else images.float()
    angle = torch.deg2rad(views[:, 5].to(seen))
    sign = 1 - 2 * views[:, 4].to(seen)  # -1 reads columns from the right
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # An output pixel looks where it came from: turned back first, then mirrored back.
    matrix = torch.stack([sign * cos, sign * -sin, zero, sin, cos, zero], 1).unflatten(1, (2, 3))
    grid = F.affine_grid(matrix, list(seen.shape), align_corners=False)
    turned = F.grid_sample(seen, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return turned.to(images.dtype)


def _check(images: Tensor, views: Tensor) -> None:
    if images.dim() != 4 or views.shape != (len(images), 6):
        raise InputError(
            f"pictures have shape {tuple(images.shape)}, views {tuple(views.shape)}",
            remedy="give (N, C, H, W) and (N, 6)",
        )


# --- Validation and test ---------------------------------------------------------------------------------------------


def resize_to(images: Tensor, size: int, *, keep_aspect: bool = False) -> Tensor:
    """Resize pictures before a crop; bilinear, smoothed where they become smaller.

    Args:
        images: (..., C, H, W), uint8 or float.
        size: side of the result, or with `keep_aspect` its shorter side.
        keep_aspect: keep width over height; otherwise a picture that is not square is squeezed.

    Returns:
        (..., C, size, size) or, with `keep_aspect`, with one side that may be longer; of the same type.
    """
    found: Tensor = transforms.resize(images, [size] if keep_aspect else [size, size], antialias=True)
    return found


def middle_view(images: Tensor, resize: int, crop: int, *, keep_aspect: bool = False) -> Tensor:
    """The view of validation: resized, and the middle cut out.

    Args:
        images: (..., C, H, W), uint8 or float.
        resize: see `resize_to`.
        crop: side of the result.
        keep_aspect: see `resize_to`.

    Returns:
        (..., C, crop, crop) of the same type.

    Raises:
        InputError: a crop larger than what is resized to.
    """
    if crop > resize:
        raise InputError(f"a crop of {crop} pixels does not fit into {resize}", remedy="resize to more, or crop less")
    found: Tensor = transforms.center_crop(resize_to(images, resize, keep_aspect=keep_aspect), [crop, crop])
    return found.contiguous()


def ten_crop(images: Tensor, size: int) -> Tensor:
    """Corners and middle of pictures and of their mirror images.

    Args:
        images: (..., C, H, W), tensors of any type.
        size: side of the crops.

    Returns:
        (..., 10, C, size, size): top left, top right, bottom left, bottom right, middle; then the same of the mirror image.

    Raises:
        InputError: a picture smaller than the crop.
    """
    if images.dim() < 3 or min(images.shape[-2:]) < size:
        raise InputError(
            f"pictures of shape {tuple(images.shape)} have no crop of {size} x {size} pixels",
            remedy="resize them to more",
        )
    crops: Sequence[Tensor] = transforms.ten_crop(images, [size, size])
    return torch.stack(list(crops), -4)


def ten_crop_scores(logits: Tensor, multi_label: bool = True) -> Tensor:
    """Mean probability over the crops of each picture (the mean of probabilities, not of logits).

    Args:
        logits: (..., crops, K).
        multi_label: each class has a probability of its own (sigmoid); False: the classes exclude each other (softmax).

    Returns:
        (..., K) of the same type.
    """
    return (logits.sigmoid() if multi_label else logits.softmax(-1)).mean(-2)


def normalise(
    images: Tensor, statistics: tuple[tuple[float, float, float], tuple[float, float, float]] | None = IMAGENET
) -> Tensor:
    """Pictures as a network gets them.

    Args:
        images: (..., 3, H, W), uint8 (becomes float32 in [0, 1] first) or float in [0, 1].
        statistics: mean and standard deviation per channel; None leaves the values in [0, 1].

    Returns:
        Float pictures of the same shape.
    """
    values = images if images.is_floating_point() else images.float() / 255
    if statistics is None:
        return values
    mean, std = (values.new_tensor(numbers)[:, None, None] for numbers in statistics)
    return (values - mean) / std
