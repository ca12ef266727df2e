"""nnU-Net's augmentation of 2-D and 3-D patches ("moreDA" of version 1), for whole batches on CPU or GPU.

Sources: specifications adagrad-unet 2.4, odex 3. What that leaves open: cubic interpolation is the B-spline with prefilter that SciPy
calls order 3, in the rotation and in the simulation of low resolution.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dart_core.augment import intensity, spatial

LOADER_SCALE = 0.85
"""The patch that is loaded is larger by 1 / 0.85, although images are scaled by 0.7 to 1.4."""
Range = tuple[float, float]


@dataclass(frozen=True)
class Recipe:
    """Probabilities and ranges, in the order of the steps. Every draw is uniform and each sample's own.

    A `..._channel_probability` decides for each channel of a sample that was chosen; other values of a chosen sample are
    drawn for each channel too, except noise, rotation and scale.
    """

    rotation_probability: float = 0.2
    rotation_degrees: float = 180.0
    """Angles lie between minus this and this."""
    elongated_above: float = 1.5
    """Patches whose longer side exceeds the shorter by more than this factor are elongated."""
    elongated_rotation_degrees: float = 15.0
    """The angles of elongated patches."""
    volume_rotation_degrees: float = 30.0
    """The angles of 3-D patches, about each of their axes."""
    scale_probability: float = 0.2
    scale: Range = (0.7, 1.4)
    """Below 1 and above 1 with equal probability, uniform in either part. Above 1 zooms out."""
    noise_probability: float = 0.1
    noise_std: Range = (0.0, 0.1)
    """nnU-Net calls it variance."""
    blur_probability: float = 0.2
    blur_channel_probability: float = 0.5
    blur_sigma: Range = (0.5, 1.0)
    brightness_probability: float = 0.15
    brightness: Range = (0.75, 1.25)
    contrast_probability: float = 0.15
    contrast: Range = (0.75, 1.25)
    """Below 1 and above 1 with equal probability."""
    low_resolution_probability: float = 0.25
    low_resolution_channel_probability: float = 0.5
    low_resolution_zoom: Range = (0.5, 1.0)
    inverted_gamma_probability: float = 0.1
    gamma_probability: float = 0.3
    gamma: Range = (0.7, 1.5)
    """Below 1 and above 1 with equal probability; of the inverted gamma too."""
    mirror_probability: float = 0.5
    """Of each axis."""


def loader_patch_size(patch: Sequence[int]) -> tuple[int, ...]:
    """Size to load so that a patch rotated by 90 degrees (in 3-D by 30, about one axis) and scaled by 1 / 0.85 still fits.

    (256, 256) gives (301, 301), (224, 256) too. Elongated patches turn by 15 degrees only and would need less; they get the same.

    Args:
        patch: (h, w), or (d, h, w).
    """
    if len(patch) == 2:
        side = int(max(patch) / LOADER_SCALE)
        return side, side
    limit = torch.eye(3) * math.radians(Recipe.volume_rotation_degrees)
    corner = torch.tensor(patch, dtype=torch.float64)
    # The corner alone, turned about each axis, as there.
    turned = torch.cat([corner[None], (corner @ spatial.rotation_matrices(limit)).abs()]).amax(0)
    return tuple(int(side / LOADER_SCALE) for side in turned.tolist())


def augment(
    images: Tensor,
    labels: Tensor,
    patch_size: Sequence[int],
    generator: torch.Generator | None = None,
    recipe: Recipe = Recipe(),
    nonzero_mask: bool = False,
) -> tuple[Tensor, Tensor]:
    """The whole recipe, steps 1 to 11, on a batch as it was loaded.

    The result depends on the arguments and the generator's state alone. With every probability 0 it is the centre crop,
    bit by bit.

    Args:
        images: (N, C, H, W) or (N, C, D, H, W) float32 or float64, not smaller than the patch: `loader_patch_size`, padded
            with 0.
        labels: (N, H, W) or (N, D, H, W) of a signed integer type, -1 outside the scan or its mask.
        patch_size: (h, w) or (d, h, w).
        generator: on any device; None is the global one.
        recipe: probabilities and ranges.
        nonzero_mask: the scan was normalised inside its non-zero mask: set the image to 0 where the label is -1 (step 10).

    Returns:
        images (N, C, h, w) and labels (N, h, w), with a depth in 3-D, new tensors; -1 has become 0 in the labels.

    Raises:
        ValueError: shapes or types do not fit.
    """
    _check(images, labels, patch_size)
    n, channels = images.shape[:2]
    axes = len(patch_size)
    draw = _Draws(generator)

    # 1: rotation and scaling; what is neither rotated nor scaled is cropped and stays as it is
    elongated = max(patch_size) > recipe.elongated_above * min(patch_size)
    degrees = recipe.elongated_rotation_degrees if elongated else recipe.rotation_degrees
    limit = math.radians(degrees if axes == 2 else recipe.volume_rotation_degrees)
    rotated = draw.chance(recipe.rotation_probability, n)
    angle = draw.uniform((-limit, limit), *((n,) if axes == 2 else (n, 3)))
    scaled, scale = draw.chance(recipe.scale_probability, n), draw.two_sided(recipe.scale, n)
    x, y = (
        part.clone(memory_format=torch.contiguous_format) for part in spatial.centre_crop(images, labels, patch_size)
    )
    moved = (rotated | scaled).nonzero()[:, 0]
    if len(moved):
        angle, scale = (
            angle.where(rotated.view(n, *([1] * (angle.ndim - 1))), 0.0)[moved],
            scale.where(scaled, 1.0)[moved],
        )
        at = moved.to(x.device)
        read = spatial.rotate_and_scale if axes == 2 else spatial.rotate_and_scale_volumes
        x[at], y[at] = read(images[at], labels[at], patch_size, angle, scale)

    # 2: noise
    noisy, std = draw.chance(recipe.noise_probability, n).nonzero()[:, 0], draw.uniform(recipe.noise_std, n)
    if len(noisy):
        noise = draw.normal(x, len(noisy))
        x[noisy.to(x.device)] += intensity.brightness(noise, std[noisy, None], axes)

    planes = x.view(n * channels, *x.shape[2:])

    def change(
        function: Callable[..., Tensor],
        values: Tensor,
        probability: float,
        channel_probability: float = 1.0,
    ) -> None:
        """Apply a function with `values` (N, C) to the channels that are drawn."""
        chosen = draw.chance(probability, n, 1) & draw.chance(channel_probability, n, channels)
        at = chosen.flatten().nonzero()[:, 0]
        if len(at):
            planes[at.to(x.device)] = function(planes[at.to(x.device)], values.flatten()[at], axes=axes)

    # 3 to 8
    one_each = (n, channels)
    change(
        intensity.gaussian_blur,
        draw.uniform(recipe.blur_sigma, *one_each),
        recipe.blur_probability,
        recipe.blur_channel_probability,
    )
    change(intensity.brightness, draw.uniform(recipe.brightness, *one_each), recipe.brightness_probability)
    change(intensity.contrast, draw.two_sided(recipe.contrast, *one_each), recipe.contrast_probability)
    change(
        intensity.low_resolution,
        draw.uniform(recipe.low_resolution_zoom, *one_each),
        recipe.low_resolution_probability,
        recipe.low_resolution_channel_probability,
    )
    change(
        functools.partial(intensity.gamma, invert=True),
        draw.two_sided(recipe.gamma, *one_each),
        recipe.inverted_gamma_probability,
    )
    change(intensity.gamma, draw.two_sided(recipe.gamma, *one_each), recipe.gamma_probability)

    # 9 to 11
    x, y = spatial.mirror(x, y, draw.chance(recipe.mirror_probability, n, axes))
    if nonzero_mask:
        x = x.masked_fill((y < 0)[:, None], 0)
    return x, y.masked_fill(y == spatial.OUTSIDE, 0)


class _Draws:
    """Random numbers as float64 on the CPU, where they decide what is computed at all."""

    def __init__(self, generator: torch.Generator | None) -> None:
        self.generator = generator
        self.device = torch.device("cpu") if generator is None else generator.device

    def uniform(self, limits: Range, *shape: int) -> Tensor:
        low, high = limits
        u = torch.rand(shape, generator=self.generator, dtype=torch.float64, device=self.device).cpu()
        return low + (high - low) * u

    def two_sided(self, limits: Range, *shape: int) -> Tensor:
        """Below or above 1 with equal probability, uniform in either part."""
        low, high = limits
        below = self.chance(0.5, *shape)
        return torch.where(below, self.uniform((low, 1.0), *shape), self.uniform((1.0, high), *shape))

    def chance(self, probability: float, *shape: int) -> Tensor:
        return self.uniform((0.0, 1.0), *shape) < probability

    def normal(self, like: Tensor, samples: int) -> Tensor:
        """Standard normal numbers for so many samples of `like` (N, C, h, w), on its device."""
        shape = (samples, *like.shape[1:])
        return torch.randn(shape, generator=self.generator, dtype=like.dtype, device=self.device).to(like.device)


def _check(images: Tensor, labels: Tensor, patch_size: Sequence[int]) -> None:
    if images.ndim not in (4, 5) or labels.shape != (len(images), *images.shape[2:]):
        raise ValueError(
            f"images have shape {tuple(images.shape)}, the labels {tuple(labels.shape)}; (N, C, H, W) and (N, H, W) fit, and these with a depth"
        )
    if images.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"images are of type {images.dtype}; give float32 or float64")
    if labels.dtype not in (torch.int8, torch.int16, torch.int32, torch.int64):
        raise ValueError(f"labels are of type {labels.dtype}; give a signed integer type, -1 stands for outside")
    if (
        len(patch_size) != images.ndim - 2
        or min(patch_size) < 1
        or any(p > n for p, n in zip(patch_size, images.shape[2:], strict=True))
    ):
        raise ValueError(f"a patch of {tuple(patch_size)} pixels does not fit into images of {tuple(images.shape[2:])}")
