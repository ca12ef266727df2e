"""HED jitter: another stain for every patch (paper section 1.2, specification 2.2).

A colour is taken apart into amounts of haematoxylin, eosin and DAB, each amount is changed by s (1 + alpha) + beta, and the
colour is put together again. Three conventions exist for what an amount is; two of them are logarithms of a shifted colour,

    L = ln(x + c),  s = -L M^-1,  s' = s diag(1 + alpha) + beta,  x' = exp(-s' M) - c,

so that the whole change is one affine map of the logarithms per patch: L' = L K - beta M with K = M^-1 diag(1 + alpha) M.
That is what is computed. The third (scikit-image from 0.18 on) cuts negative amounts off in between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from dart_core.errors import InputError, SettingError
from dart_core.threads import sample_by_sample
from stain_aglr.settings import Space

STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
"""Rows haematoxylin, eosin, DAB; columns red, green, blue; not normalised (Ruifrok and Johnston, as in scikit-image)."""
CUTOFF = (0.15, 0.85)
"""A patch whose mean lies outside shows no tissue, or nothing but ink: it is left as it is."""
SPACES: tuple[Space, ...] = ("offset2", "skimage", "od")
_SHIFT = {"offset2": 2.0, "od": 1 / 255}
# ln((255 x + 1) / 256) = ln(x + 1/255) + ln(255/256): optical density is the shifted logarithm plus a constant.
_CONSTANT = {"offset2": 0.0, "od": math.log(255 / 256)}
_DARKEST = 1e-6
_UNIT = math.log(_DARKEST)
_MATRIX = np.array(STAINS)
_INVERSE = np.linalg.inv(_MATRIX)
# From logarithms to base 2 to the stains of scikit-image from 0.18 on, whose unit is ln(1e-6).
_TO_STAINS = _INVERSE.T * math.log(2) / _UNIT


def hed_jitter(
    images: Tensor,
    alpha: Tensor | ArrayLike,
    beta: Tensor | ArrayLike,
    space: Space = "offset2",
    cutoff: Sequence[float] | None = None,
) -> Tensor:
    """Change the stains of patches by given amounts (specification 2.2).

    Args:
        images: float (N, 3, H, W) RGB in [0, 1], on any device.
        alpha: relative change of haematoxylin, eosin and DAB, (N, 3) or (3,) for all patches alike.
        beta: absolute change, likewise, in the units of the space.
        space: "offset2" (scikit-image before 0.18), "skimage" (from 0.18 on: negative stains are cut, so that even alpha =
            beta = 0 changes colours), "od" (optical density with I0 = 256).
        cutoff: (low, high): a patch whose mean over all values lies outside comes back unchanged; None changes every patch.

    Returns:
        Like `images`, clipped to [0, 1], not rounded to grey levels.

    Raises:
        ValueError: another shape or type, or an unknown space.
    """
    check_images(images)
    if space not in SPACES:
        raise SettingError(f"no space {space!r}", remedy=f"give one of {', '.join(SPACES)}")
    change, shift = _per_patch(alpha, images, "alpha"), _per_patch(beta, images, "beta")
    plain = images.device.type == "cpu" and images.dtype == torch.float32
    compiled = plain and not any(t.requires_grad for t in (images, change, shift))
    altered = (_compiled if compiled else _whole)(images, change, shift, space)
    if cutoff is None:
        return altered
    mean = images.mean((1, 2, 3))
    outside = (mean < cutoff[0]) | (mean > cutoff[1])
    return torch.where(outside[:, None, None, None], images, altered)


def random_hed_jitter(
    images: Tensor,
    strength: float = 0.05,
    generator: torch.Generator | None = None,
    space: Space = "offset2",
    cutoff: Sequence[float] | None = CUTOFF,
) -> Tensor:
    """Change the stains of each patch by its own random amounts: alpha and beta uniform in [-strength, strength].

    Args:
        images: float (N, 3, H, W) RGB in [0, 1].
        strength: 0.05 is HED-light, 0.2 HED-strong.
        generator: draws; on the CPU or on the images' device. None takes PyTorch's global one.
        space: see `hed_jitter`.
        cutoff: see `hed_jitter`.

    Returns:
        Like `images`, clipped, not rounded.
    """
    alpha, beta = uniform((2, len(images), 3), -strength, strength, images, generator)
    return hed_jitter(images, alpha, beta, space, cutoff)


def uniform(
    shape: Sequence[int], low: float, high: float, like: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Uniform numbers of the type and on the device of `like`, drawn where the generator lives."""
    device = like.device if generator is None else generator.device
    drawn = torch.rand(tuple(shape), generator=generator, dtype=like.dtype, device=device)
    return (low + (high - low) * drawn).to(like.device)


def numbers(value: Any, device: torch.device) -> Tensor:
    """float64 on a device; Python's own numbers would become float32 if PyTorch took them."""
    tensor: Tensor = torch.as_tensor(value if isinstance(value, Tensor) else np.array(value, dtype=np.float64))
    return tensor.to(device=device, dtype=torch.float64)


def check_images(images: Tensor) -> None:
    """Raise an InputError unless these are float patches (N, 3, H, W)."""
    if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise InputError(
            f"the patches are {images.dtype} of shape {tuple(images.shape)}",
            remedy="give a float tensor (N, 3, H, W) with values from 0 to 1",
        )


def _per_patch(value: Any, images: Tensor, name: str) -> Tensor:
    """(N, 3) float64 on the images' device."""
    found = numbers(value, images.device)
    if found.shape not in ((3,), (len(images), 3)):
        raise InputError(f"{name} has shape {tuple(found.shape)}", remedy=f"give (3,) or ({len(images)}, 3)")
    return found.expand(len(images), 3)


def _maps(alpha: Tensor, beta: Tensor, space: Space, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What acts on each patch's logarithms, or for "skimage" on its stains: matrix (N, 3, 3) and offset (N, 3, 1).

    Logarithms are to base 2 here, because those and powers of 2 are found faster than natural ones.
    """
    # In float64: both are small, and the pixels' type is left for the pixels.
    matrix, inverse = (torch.from_numpy(m).to(alpha.device) for m in (_MATRIX, _INVERSE))
    changed = (1 + alpha)[:, :, None] * matrix
    if space == "skimage":
        k, offset = _UNIT / math.log(2) * changed, _UNIT * beta @ matrix
    else:
        k = inverse @ changed
        # The constant of "od" belongs to the logarithm on both sides: (L + c) K - beta M - c.
        offset = _CONSTANT[space] * (k.sum(1) - 1) - beta @ matrix
    return k.mT.to(dtype), (offset / math.log(2))[:, :, None].to(dtype)


def _whole(images: Tensor, alpha: Tensor, beta: Tensor, space: Space) -> Tensor:
    k, offset = _maps(alpha, beta, space, images.dtype)
    if space == "skimage":
        inverse = torch.from_numpy(_TO_STAINS).to(images.device, images.dtype)
        source, shift = (inverse @ torch.log2(images.clamp(min=_DARKEST).flatten(2))).clamp(min=0), 0.0
    else:
        shift = _SHIFT[space]
        source = torch.log2((images + shift).flatten(2))
    return (torch.exp2(torch.baddbmm(offset, k, source)) - shift).clamp(0, 1).view(images.shape)


def _compiled(images: Tensor, alpha: Tensor, beta: Tensor, space: Space) -> Tensor:
    """The same on the CPU in float32, several times as fast, on as many threads as PyTorch may use."""
    from stain_aglr.hed_kernel import jitter  # Numba takes a second to import

    altered = torch.empty_like(images, memory_format=torch.contiguous_format)
    source, result = images.contiguous().flatten(2).numpy(), altered.flatten(2).numpy()
    k, offset = (values.numpy() for values in _maps(alpha, beta, space, images.dtype))
    to_stains, shift, darkest = _TO_STAINS.astype(np.float32), np.float32(_SHIFT.get(space, 0.0)), np.float32(_DARKEST)

    def patch(n: int) -> None:
        jitter(source[n], result[n], k[n], offset[n, :, 0], to_stains, space == "skimage", shift, darkest)

    sample_by_sample(patch, len(images))
    return altered
