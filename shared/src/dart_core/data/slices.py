"""Slices of a volume. They run along the last axis: slice z of a volume (H, W, Z) is `volume[..., z]`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from dart_core.errors import InputError, SettingError

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", "torch.Tensor", NDArray[Any])
Crop = tuple[EllipsisType, slice, slice]


def pad_to_multiple(x: Array, multiple: int = 8) -> tuple[Array, Crop]:
    """Pad images so that both sides are multiples of `multiple`, with the minimum of each image.

    Half of the padding, rounded down, goes before, the rest behind (fda-mri 2.5, item 4).

    Args:
        x: images (..., h, w), a tensor or an array.
        multiple: what both sides become a multiple of.

    Returns:
        the padded images (..., H, W) and an index that cuts the original out of them: `padded[crop]`.
    """
    height, width = int(x.shape[-2]), int(x.shape[-1])
    if multiple < 1 or not height or not width:
        raise InputError(f"cannot pad {height} x {width} to a multiple of {multiple}", remedy="give positive numbers")
    new_height, new_width = -(-height // multiple) * multiple, -(-width // multiple) * multiple
    top, left = (new_height - height) // 2, (new_width - width) // 2
    crop = (..., slice(top, top + height), slice(left, left + width))
    if (new_height, new_width) == (height, width):
        return x, crop
    shape = (*x.shape[:-2], new_height, new_width)
    padded: Any
    if isinstance(x, np.ndarray):
        padded = np.broadcast_to(x.min((-2, -1), keepdims=True), shape).copy()
    else:
        padded = x.amin((-2, -1), keepdim=True).expand(shape).clone()
    padded[crop] = x
    return cast("Array", padded), crop


def crop_or_pad(
    image: NDArray[Any], mask: NDArray[Any], size: int | Sequence[int], rng: np.random.Generator
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Cut a random window out of a slice and its mask, both alike.

    A side shorter than the window is centred in it and padded, half of the padding (rounded down) before: the image with
    its minimum, the mask with 0 (fda-mri 3).

    Args:
        image: (h, w).
        mask: (h, w).
        size: sides of the window, one number or two.
        rng: draws the place of the window, uniform over all places.

    Returns:
        image and mask of `size`, of the types they had.

    Raises:
        InputError: image and mask differ in shape, or are not 2-D.
    """
    if image.ndim != 2 or image.shape != mask.shape:
        raise InputError(
            f"image {image.shape} and mask {mask.shape} must be 2-D and equal in shape",
            remedy="give a slice with its mask",
        )
    window = tuple(int(side) for side in np.broadcast_to(np.asarray(size), 2))
    reading, writing = [], []
    for side, wanted in zip(image.shape, window, strict=True):
        start = int(rng.integers(0, max(side - wanted, 0) + 1))
        before = max(wanted - side, 0) // 2
        length = min(side, wanted)
        reading.append(slice(start, start + length))
        writing.append(slice(before, before + length))
    if image.shape[0] >= window[0] and image.shape[1] >= window[1]:
        return image[tuple(reading)], mask[tuple(reading)]
    new_image = np.full(window, image.min(), dtype=image.dtype)
    new_mask = np.zeros(window, dtype=mask.dtype)
    new_image[tuple(writing)] = image[tuple(reading)]
    new_mask[tuple(writing)] = mask[tuple(reading)]
    return new_image, new_mask


def predict_slices(
    network: Callable[[torch.Tensor], torch.Tensor],
    volume: torch.Tensor,
    batch_size: int = 16,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Run a 2-D network over all slices of a volume.

    Slices are padded to multiples of 8 with their own minimum, and the output is cropped back. The network works in eval
    mode without gradients and gets back the training modes that its modules had.

    Args:
        network: maps (B, 1, h, w) to logits (B, 1, h, w); usually a module.
        volume: (H, W, Z), on any device.
        batch_size: slices per forward pass.
        device: where the network is; None asks its first parameter.

    Returns:
        logits (H, W, Z), of the type and on the device of `volume`.

    Raises:
        InputError: the volume is not 3-D, or the network's output has another shape.
        SettingError: a batch without slices.
    """
    import torch

    if batch_size < 1:
        raise SettingError(f"the batch size is {batch_size}", remedy="give at least 1")
    if volume.ndim != 3:
        raise InputError(f"a volume (H, W, Z) is needed, not shape {tuple(volume.shape)}", remedy="give one 3-D volume")
    if device is None:
        parameters = network.parameters() if isinstance(network, torch.nn.Module) else ()
        device = next((parameter.device for parameter in parameters), volume.device)
    logits_HWZ = torch.empty_like(volume, memory_format=torch.contiguous_format)
    with evaluating(network), torch.inference_mode():
        for start in range(0, volume.shape[-1], batch_size):
            part_HWB = volume[..., start : start + batch_size].to(device)
            x_BHW, crop = pad_to_multiple(part_HWB.permute(2, 0, 1))
            output = network(x_BHW[:, None])
            if output.shape != (len(x_BHW), 1, *x_BHW.shape[-2:]):
                raise InputError(
                    f"the network gave {tuple(output.shape)} for {tuple(x_BHW[:, None].shape)}",
                    remedy="use a network with one output channel of the input's size",
                )
            logits_HWZ[..., start : start + batch_size] = output[:, 0][crop].permute(1, 2, 0)
    return logits_HWZ


@contextlib.contextmanager
def evaluating(network: object) -> Generator[None]:
    """Put a module into eval mode, and give every part of it back the mode it had; other callables are left alone."""
    import torch

    module = network if isinstance(network, torch.nn.Module) else None
    modes = [(part, part.training) for part in module.modules()] if module is not None else []
    if module is not None:
        module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def all_zero_slices(volume: torch.Tensor | NDArray[Any]) -> list[int]:
    """List the slices along the last axis of a volume (H, W, Z) in which every voxel is zero."""
    if isinstance(volume, np.ndarray):
        return [int(z) for z in np.flatnonzero(~(volume != 0).any(axis=(0, 1)))]
    return [int(z) for z in (~(volume != 0).flatten(0, 1).any(dim=0)).nonzero()[:, 0].tolist()]
