"""nnU-Net version 1: its U-Net in two or three dimensions under the names of its modules, and how it plans one.

Sources: nnU-Net 1.7; specifications adagrad-unet 3 and odex 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dart_core.errors import InputError

Norm = Literal["instance", "batch"]
Kernels: TypeAlias = tuple[tuple[int, ...], ...]

MINIMUM_EDGE = 4
"""Of the lowest resolution."""
CONVOLUTIONS = 2
"""In each block of the encoder and of the decoder."""
_SLOPE = 0.01
_CONVOLUTION: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, type[nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORMS: dict[tuple[str, int], type[nn.Module]] = {
    ("instance", 2): nn.InstanceNorm2d, ("instance", 3): nn.InstanceNorm3d,
    ("batch", 2): nn.BatchNorm2d, ("batch", 3): nn.BatchNorm3d,
}  # fmt: skip


# --- The network -----------------------------------------------------------------------------------------------------


class ConvNorm(nn.Module):
    """Convolution, normalisation, leaky ReLU. The norm is called `instnorm` whatever its kind, as in nnU-Net."""

    def __init__(
        self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], norm: Norm = "instance"
    ) -> None:
        super().__init__()
        axes = len(kernel)
        make: Any = _CONVOLUTION[axes]
        self.conv = make(inputs, outputs, tuple(kernel), tuple(stride), padding=tuple(side // 2 for side in kernel))
        make_norm: Any = _NORMS[norm, axes]
        self.instnorm = make_norm(outputs, eps=1e-5, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, ...) -> (N, outputs, ... / stride)."""
        # In place on the norm's own output, which its backward pass does not need.
        return F.leaky_relu(self.instnorm(self.conv(x)), _SLOPE, inplace=True)


class Stack(nn.Module):
    """Convolutions one after the other, the first with a stride."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        count: int,
        stride: Sequence[int] | None = None,
        norm: Norm = "instance",
    ) -> None:
        super().__init__()
        one = (1,) * len(kernel)
        first = ConvNorm(inputs, outputs, kernel, one if stride is None else stride, norm)
        self.blocks = nn.Sequential(first, *(ConvNorm(outputs, outputs, kernel, one, norm) for _ in range(count - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, ...) -> (N, outputs, ... / stride)."""
        return cast("Tensor", self.blocks(x))


class GenericUNet(nn.Module):
    """U-Net with two convolutions per resolution, strided reductions, transposed convolutions and deep supervision.

    In train mode it gives the logits of every decoder level, full resolution first, in eval mode those of full resolution.

    Args:
        in_channels: channels of the image.
        classes: classes with the background.
        pool: kernel (and stride) of each reduction, from full resolution downwards; two or three numbers each, which makes
            the network 2-D or 3-D.
        conv: kernels of the convolutions of each stage, one more than reductions.
        features: feature maps of each stage.
        norm: instance (nnU-Net) or batch; as many parameters, under the same names.

    Raises:
        ValueError: lists of lengths that do not fit, or no reduction.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        pool: Sequence[Sequence[int]],
        conv: Sequence[Sequence[int]],
        features: Sequence[int],
        norm: Norm = "instance",
    ) -> None:
        super().__init__()
        if not pool or not len(pool) + 1 == len(conv) == len(features):
            raise InputError(
                f"{len(pool)} reductions, {len(conv)} kernels and {len(features)} widths make no U-Net",
                remedy="give at least one reduction, and one kernel and one width more than reductions",
            )
        axes = len(pool[0])
        if axes not in _CONVOLUTION or any(len(kernel) != axes for kernel in (*pool, *conv)):
            raise InputError(
                "kernels of unequal length make no U-Net", remedy="give two numbers for each of them, or three"
            )
        self.pool = tuple(tuple(int(side) for side in kernel) for kernel in pool)
        context: list[nn.Module] = []
        for stage, (kernel, width) in enumerate(zip(conv, features, strict=True)):
            inputs = features[stage - 1] if stage else in_channels
            stride = self.pool[stage - 1] if stage else None
            if stage < len(pool):
                context.append(Stack(inputs, width, kernel, CONVOLUTIONS, stride, norm))
            else:
                parts = (Stack(inputs, width, kernel, 1, stride, norm), Stack(width, width, kernel, 1, norm=norm))
                context.append(nn.Sequential(*parts))
        make: Any = _TRANSPOSED[axes]
        make_output: Any = _CONVOLUTION[axes]
        # nnU-Net counts the kernels from behind: a decoder level has the kernel of the encoder stage below it.
        localization, transposed, outputs = [], [], []
        for level in range(len(pool) - 1, -1, -1):
            width, kernel = features[level], conv[level + 1]
            transposed.append(make(features[level + 1], width, self.pool[level], self.pool[level], bias=False))
            parts = (Stack(2 * width, width, kernel, 1, norm=norm), Stack(width, width, kernel, 1, norm=norm))
            localization.append(nn.Sequential(*parts))
            outputs.append(make_output(width, classes, 1, bias=False))
        self.conv_blocks_context = nn.ModuleList(context)
        self.conv_blocks_localization = nn.ModuleList(localization)
        self.tu = nn.ModuleList(transposed)
        self.seg_outputs = nn.ModuleList(outputs)
        self.initialise()

    def initialise(self) -> None:
        """Give all convolutions new weights: He's normal initialisation, biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
                nn.init.kaiming_normal_(module.weight, a=_SLOPE)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def scales(self) -> list[tuple[float, ...]]:
        """Size of each training output against full resolution: [(1, 1), (0.5, 0.5), ...]."""
        scales = [(1.0,) * len(self.pool[0])]
        for kernel in self.pool[:-1]:
            scales.append(tuple(scale / side for scale, side in zip(scales[-1], kernel, strict=True)))
        return scales

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Segment a batch of patches.

        Args:
            x: (N, in_channels, ...), sides multiples of all reductions together.

        Returns:
            Logits (N, classes, ...); in train mode a list of them, one per decoder level, full resolution first.

        Raises:
            ValueError: a size that the reductions do not divide.
        """
        for side, kernels in zip(x.shape[2:], zip(*self.pool, strict=True), strict=True):
            if side % math.prod(kernels):
                raise InputError(
                    f"patches are {' x '.join(map(str, x.shape[2:]))}, the network halves them {len(self.pool)} times",
                    remedy="pad them to the patch size of the plan",
                )
        skips = []
        for stage in self.conv_blocks_context:
            x = stage(x)
            skips.append(x)
        skips.pop()
        logits: list[Tensor] = []
        for up, block, output in zip(self.tu, self.conv_blocks_localization, self.seg_outputs, strict=True):
            x = block(torch.cat((up(x), skips.pop()), dim=1))
            if self.training:
                logits.append(output(x))
        return logits[::-1] if self.training else cast("Tensor", self.seg_outputs[-1](x))


# --- The planner -----------------------------------------------------------------------------------------------------


def plan_topology(
    spacing: Sequence[float], size: Sequence[int], max_pools: int | None = None
) -> tuple[Kernels, Kernels, list[int]]:
    """Reductions, convolution kernels and padded patch for images of a size (specification adagrad-unet 3, rules 2 and 3).

    Args:
        spacing: voxel size along each axis.
        size: voxels along each axis.
        max_pools: at most so many reductions of an axis.
    """
    axes = range(len(spacing))
    steps, sides, counts = list(spacing), list(size), [0] * len(spacing)
    pool, conv = [], []
    while True:
        # Axes within a factor of two of each other are convolved together; of equal groups the first one counts.
        groups = [[i for i in axes if steps[i] / step < 2 and step / steps[i] < 2] for step in steps]
        largest = max(groups, key=len)
        kernel = tuple(3 if i in largest else 1 for i in axes)
        halved = [
            steps[i] / min(steps) < 2 and sides[i] >= 2 * MINIMUM_EDGE and (max_pools is None or counts[i] < max_pools)
            for i in axes
        ]
        if not any(halved):
            break
        for i in axes:
            if halved[i]:
                # An odd side is rounded up: 15 voxels become 8, which can be halved once more.
                steps[i], sides[i], counts[i] = steps[i] * 2, math.ceil(sides[i] / 2), counts[i] + 1
        pool.append(tuple(2 if half else 1 for half in halved))
        conv.append(kernel)
    conv.append((3,) * len(spacing))
    grid = [2**count for count in counts]
    return tuple(pool), tuple(conv), [-(-side // step) * step for side, step in zip(size, grid, strict=True)]


def feature_map_memory(
    patch: Sequence[int], pool: Kernels, features: int, cap: int, channels: int, classes: int
) -> int:
    """Numbers in the feature maps of one patch, as nnU-Net estimates them (specification adagrad-unet 3, rule 4).

    Args:
        patch: voxels along each axis.
        pool: reductions.
        features: feature maps at full resolution.
        cap: most feature maps of a stage.
        channels: of the image.
        classes: with the background.
    """
    blocks = 2 * CONVOLUTIONS + 1  # of encoder and decoder, and the transposed convolution
    pixels = math.prod(patch)
    total = pixels * (features * blocks + channels + classes)
    for stage, kernel in enumerate(pool, 1):
        pixels //= math.prod(kernel)
        features = min(2 * features, cap)
        total += (blocks if stage < len(pool) else CONVOLUTIONS) * pixels * features
    return total


def plan_patch(
    spacing: Sequence[float],
    size: Sequence[int],
    memory: Callable[[Sequence[int], Kernels, bool], int],
    limit: int,
    max_pools: int | None = None,
) -> tuple[Kernels, Kernels, list[int], int]:
    """The topology for the largest patch whose feature maps keep to a limit.

    Args:
        spacing: voxel size along each axis.
        size: median size of the images.
        memory: of a patch and its reductions; its last argument is False for the first patch that is tried.
        limit: of the memory.
        max_pools: at most so many reductions of an axis.

    Returns:
        reductions, kernels, patch, and its memory.
    """
    pool, conv, patch = plan_topology(spacing, size, max_pools)
    needed = memory(patch, pool, False)
    while needed > limit:
        # The axis that is largest against the median shrinks by one step of the then valid grid.
        axis = max(range(len(size)), key=lambda i: (patch[i] / size[i], i))
        smaller = list(patch)
        smaller[axis] -= math.prod(kernel[axis] for kernel in pool)
        steps, _, _ = plan_topology(spacing, smaller, max_pools)
        patch[axis] -= math.prod(kernel[axis] for kernel in steps)
        pool, conv, patch = plan_topology(spacing, patch, max_pools)
        needed = memory(patch, pool, True)
    return pool, conv, patch, needed
