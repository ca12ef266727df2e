"""The 2-D U-Net of Dawoud et al. with instance normalisation (specification 3)."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dart_core.errors import InputError, SettingError

Norm = Literal["instance", "batch"]


class MetaUNet(nn.Module):
    """U-Net for one input channel and one logit per pixel; 470,977 parameters in 22 tensors at the defaults.

    Parts: double convolutions `down` (32, 64, ... filters; the last is the bottleneck), `up` (from the lowest), and the 1x1
    convolution `last`. Convolution weights start as N(0, 1), biases as 0.

    Args:
        depth: levels; each halves the sides and doubles the filters.
        norm: "instance" (without running statistics) or "batch".
        width: filters of the first level.
        affine: the norms have weights (from 0.1) and biases.
    """

    def __init__(self, depth: int = 3, norm: Norm = "instance", width: int = 32, affine: bool = False) -> None:
        super().__init__()
        if depth < 1 or width < 1 or norm not in ("instance", "batch"):
            raise SettingError(
                f"a U-Net with depth {depth}, width {width} and norm {norm!r}",
                remedy="give a depth and a width of at least 1, and instance or batch",
            )
        self.depth, self.norm = depth, norm
        filters = [width * 2**level for level in range(depth)]
        pairs = zip([1, *filters[:-1]], filters, strict=True)
        self.down = nn.ModuleList(_double(before, after, norm, affine) for before, after in pairs)
        self.up = nn.ModuleList(
            _double(filters[level + 1] + filters[level], filters[level], norm, affine)
            for level in reversed(range(depth - 1))
        )
        self.last = nn.Conv2d(filters[0], 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
            elif affine and isinstance(module, nn.GroupNorm | nn.BatchNorm2d):
                nn.init.constant_(module.weight, 0.1)

    @overload
    def forward(self, x: Tensor, return_bottleneck: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, return_bottleneck: Literal[True]) -> tuple[Tensor, Tensor]: ...
    def forward(self, x: Tensor, return_bottleneck: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """(N, 1, H, W) -> logits (N, 1, H, W), with `return_bottleneck` also its features (N, 128, H/4, W/4).

        Raises:
            InputError: a side that is no multiple of 2^(depth - 1), another number of channels, or a bottleneck of one pixel,
                of which a norm has no variance.
        """
        multiple = 2 ** (self.depth - 1)
        if x.ndim != 4 or x.shape[1] != 1 or x.shape[2] % multiple or x.shape[3] % multiple:
            raise InputError(
                f"images of shape {tuple(x.shape)}", remedy=f"give (N, 1, H, W) with sides that {multiple} divides"
            )
        values = (x.shape[2] // multiple) * (x.shape[3] // multiple) * (1 if self.norm == "instance" else len(x))
        if values == 1 and (self.norm == "instance" or self.training):
            raise InputError(
                f"images of shape {tuple(x.shape)} shrink to a single pixel over {self.depth} levels",
                remedy="give larger slices (prepare --size), or a smaller --depth",
            )
        skips = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        features = skips.pop()
        for block in self.up:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = block(torch.cat([x, skips.pop()], dim=1))
        logits: Tensor = self.last(x)
        return (logits, features) if return_bottleneck else logits


def _double(before: int, after: int, norm: Norm, affine: bool) -> nn.Sequential:
    """(convolution 3x3, norm, ReLU) twice."""
    layers: list[nn.Module] = []
    for channels in (before, after):
        # A group a channel is instance norm; on the CPU PyTorch has it three times as fast by this name.
        layer = (
            nn.GroupNorm(after, after, affine=affine) if norm == "instance" else nn.BatchNorm2d(after, affine=affine)
        )
        layers += [nn.Conv2d(channels, after, 3, padding=1), layer, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
