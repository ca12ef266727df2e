"""The 2-D U-Net of nnU-Net version 1 (specification 3), under the names that its modules have there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dart_core.errors import InputError

_SLOPE = 0.01

GROUPS = {
    "conv_blocks_context": "context",
    "conv_blocks_localization": "localization",
    "tu": "transpose",
    "seg_outputs": "segmentation",
}
"""Modules of the network, and what Fig. 2 of the paper calls them: encoder with bottleneck; convolutions behind each
concatenation; transposed convolutions; convolutions that give the segmentation at every resolution of the decoder."""


class ConvNorm(nn.Module):
    """Convolution, instance normalisation, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel[0] // 2, kernel[1] // 2))
        self.instnorm = nn.InstanceNorm2d(outputs, eps=1e-5, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        # In place on the norm's own output, which its backward pass does not need.
        return F.leaky_relu(self.instnorm(self.conv(x)), _SLOPE, inplace=True)


class Stack(nn.Module):
    """Convolutions one after the other, the first with a stride."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int], count: int, stride: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__()
        first = ConvNorm(inputs, outputs, kernel, stride)
        self.blocks = nn.Sequential(first, *(ConvNorm(outputs, outputs, kernel) for _ in range(count - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        return cast("Tensor", self.blocks(x))


class GenericUNet2d(nn.Module):
    """U-Net with two convolutions per resolution, strided reductions, transposed convolutions and deep supervision.

    In train mode it gives the logits of every decoder level, full resolution first, in eval mode those of full resolution.
    29,505,312 parameters at nnU-Net's plan for slices of 256 x 196, one channel and two classes.

    Args:
        in_channels: channels of the image.
        classes: classes with the background.
        pool: kernel (and stride) of each reduction, from full resolution downwards.
        conv: kernels of the convolutions of each stage, one more than reductions.
        features: feature maps of each stage.

    Raises:
        ValueError: lists of lengths that do not fit, or no reduction.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        pool: Sequence[tuple[int, int]],
        conv: Sequence[tuple[int, int]],
        features: Sequence[int],
    ) -> None:
        super().__init__()
        if not pool or not len(pool) + 1 == len(conv) == len(features):
            raise InputError(
                f"{len(pool)} reductions, {len(conv)} kernels and {len(features)} widths make no U-Net",
                remedy="give at least one reduction, and one kernel and one width more than reductions",
            )
        self.pool = tuple((int(rows), int(columns)) for rows, columns in pool)
        context: list[nn.Module] = []
        for stage, (kernel, width) in enumerate(zip(conv, features, strict=True)):
            inputs = features[stage - 1] if stage else in_channels
            stride = self.pool[stage - 1] if stage else (1, 1)
            if stage < len(pool):
                context.append(Stack(inputs, width, kernel, 2, stride))
            else:
                context.append(nn.Sequential(Stack(inputs, width, kernel, 1, stride), Stack(width, width, kernel, 1)))
        # nnU-Net counts the kernels from behind: a decoder level has the kernel of the encoder stage below it.
        localization, transposed, outputs = [], [], []
        for level in range(len(pool) - 1, -1, -1):
            width, kernel = features[level], conv[level + 1]
            transposed.append(
                nn.ConvTranspose2d(features[level + 1], width, self.pool[level], self.pool[level], bias=False)
            )
            localization.append(nn.Sequential(Stack(2 * width, width, kernel, 1), Stack(width, width, kernel, 1)))
            outputs.append(nn.Conv2d(width, classes, 1, bias=False))
        self.conv_blocks_context = nn.ModuleList(context)
        self.conv_blocks_localization = nn.ModuleList(localization)
        self.tu = nn.ModuleList(transposed)
        self.seg_outputs = nn.ModuleList(outputs)
        self.initialise()

    def initialise(self) -> None:
        """Give all convolutions new weights: He's normal initialisation, biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, a=_SLOPE)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def scales(self) -> list[tuple[float, float]]:
        """Size of each training output against full resolution: [(1, 1), (0.5, 0.5), ...]."""
        scales = [(1.0, 1.0)]
        for rows, columns in self.pool[:-1]:
            scales.append((scales[-1][0] / rows, scales[-1][1] / columns))
        return scales

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Segment a batch of slices.

        Args:
            x: (N, in_channels, H, W), H and W multiples of all reductions together.

        Returns:
            Logits (N, classes, H, W); in train mode a list of them, one per decoder level, full resolution first.

        Raises:
            ValueError: a size that the reductions do not divide.
        """
        for side, kernels in zip(x.shape[-2:], zip(*self.pool, strict=True), strict=True):
            if side % math.prod(kernels):
                raise InputError(
                    f"slices are {x.shape[-2]} x {x.shape[-1]}, the network halves them {len(self.pool)} times",
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
