"""The U-Net with residual blocks (specification 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from catenorm.method import CateNormResidualBlock, Form, MaskMode, Norm, make_norm, normalise
from dart_core.errors import SettingError

WIDTH = 32
BLOCKS = 10
NAMES = ("inc", "down1", "down2", "down3", "down4", "mid", "up1", "up2", "up3", "up4")
"""The blocks 1 to 10."""
LEVELS = (0, 1, 2, 3, 4, 4, 3, 2, 1, 0)
"""How often the resolution of each block's input was halved."""


@dataclass(frozen=True)
class Kind:
    """What blocks are made of, other than channels."""

    classes: int
    norm: Norm = "bn"
    mask_mode: MaskMode = "soft"
    form: Form = "one_plus_gamma"
    reduction: int = 2
    bias: bool = True
    separate_statistics: bool = False

    def block(self, channels: int, categorical: bool) -> CateNormResidualBlock:
        """A residual block."""
        return CateNormResidualBlock(
            channels, self.classes, categorical, self.norm, self.mask_mode, self.form, self.reduction, self.bias,
            self.separate_statistics,
        )  # fmt: skip

    def make_norm(self, channels: int) -> nn.Module:
        """A normalisation outside the blocks, never categorical."""
        return make_norm(self.norm, channels, self.separate_statistics)


class Level(nn.Module):
    """Encoder level: convolution, then the block."""

    def __init__(self, kind: Kind, in_channels: int, channels: int, categorical: bool, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=kind.bias)
        self.block = kind.block(channels, categorical)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, in_channels, H, W) -> (N, channels, H, W)."""
        out: Tensor = self.block(self.conv(x), mask)
        return out


class Middle(nn.Module):
    """The block at the lowest resolution."""

    def __init__(self, kind: Kind, channels: int, categorical: bool) -> None:
        super().__init__()
        self.block = kind.block(channels, categorical)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, channels, H, W), the same shape out."""
        out: Tensor = self.block(x, mask)
        return out


class Up(nn.Module):
    """Decoder level: norm, ReLU, transposed convolution; the skip before it; convolution, block."""

    def __init__(self, kind: Kind, channels: int, categorical: bool) -> None:
        super().__init__()
        half = channels // 2
        self.norm = kind.make_norm(channels)
        self.up = nn.ConvTranspose2d(channels, half, 3, stride=2, padding=1, output_padding=1, bias=kind.bias)
        self.conv = nn.Conv2d(channels, half, 3, padding=1, bias=kind.bias)
        self.block = kind.block(half, categorical)

    def forward(self, x: Tensor, skip: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, channels, h, w) and the skip (N, channels / 2, H, W) -> (N, channels / 2, H, W)."""
        x = self.up(F.relu(normalise(self.norm, None, x, mask)))
        rows, columns = skip.shape[-2] - x.shape[-2], skip.shape[-1] - x.shape[-1]
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        out: Tensor = self.block(self.conv(torch.cat((skip, x), 1)), mask)
        return out


class Output(nn.Module):
    """Norm, ReLU, convolution to classes."""

    def __init__(self, kind: Kind, channels: int, kernel: int = 1) -> None:
        super().__init__()
        self.norm = kind.make_norm(channels)
        self.conv = nn.Conv2d(channels, kind.classes, kernel, padding=kernel // 2, bias=kind.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, channels, H, W) -> (N, K, H, W)."""
        out: Tensor = self.conv(F.relu(normalise(self.norm, None, x, mask)))
        return out


class CateNormUNet(nn.Module):
    """U-Net of ten residual blocks, some of them categorical (block 1: inc, 2-5: down1-4, 6: mid, 7-10: up1-4).

    Every tensor of a network with `blocks=()` exists under the same name in one with categorical blocks.

    Args:
        in_channels: neighbouring slices.
        classes: K, with the background.
        blocks: numbers of the categorical blocks.
        norm: bn; in: instance norm without affine; gn: 16 groups.
        width: channels of the first level (32: 17,286,786 parameters at two classes).
        mask_mode: see `CateNorm2d`.
        form: see `CateNorm2d`.
        reduction: see `CateNorm2d`.
        separate_statistics: batch norms outside categorical blocks keep running statistics for each pass; off, both passes
            update the same (2.3).
        kernel: side of the first and the last convolution (MS-Net: 3).
        bias: convolutions have one (MS-Net: none).

    Raises:
        SettingError: no such block.
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 2,
        blocks: Sequence[int] = (1, 2, 3, 4),
        norm: Norm = "bn",
        *,
        width: int = WIDTH,
        mask_mode: MaskMode = "soft",
        form: Form = "one_plus_gamma",
        reduction: int = 2,
        separate_statistics: bool = False,
        kernel: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if wrong := [block for block in blocks if not 1 <= block <= BLOCKS]:
            raise SettingError(f"there is no block {wrong[0]}", remedy=f"give numbers from 1 to {BLOCKS}")
        self.blocks = tuple(sorted(set(blocks)))
        kind = Kind(classes, norm, mask_mode, form, reduction, bias, separate_statistics)
        has = [number in self.blocks for number in range(1, BLOCKS + 1)]
        self.inc = Level(kind, in_channels, width, has[0], kernel)
        self.down1 = Level(kind, width, 2 * width, has[1])
        self.down2 = Level(kind, 2 * width, 4 * width, has[2])
        self.down3 = Level(kind, 4 * width, 8 * width, has[3])
        self.down4 = Level(kind, 8 * width, 16 * width, has[4])
        self.mid = Middle(kind, 16 * width, has[5])
        self.up1 = Up(kind, 16 * width, has[6])
        self.up2 = Up(kind, 8 * width, has[7])
        self.up3 = Up(kind, 4 * width, has[8])
        self.up4 = Up(kind, 2 * width, has[9])
        self.out = Output(kind, width, kernel)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits.

        Args:
            x: (N, in_channels, H, W), sides of at least 16.
            mask: (N, K, h, w) probabilities for the CN pass; None: the BN pass.

        Returns:
            (N, K, H, W).
        """
        return decode(self, self.encode(x, mask), mask)

    def encode(self, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """The skips of the four higher levels, highest resolution first, and what the middle block gives."""
        features: list[Tensor] = [self.inc(x, mask)]
        for level in (self.down1, self.down2, self.down3, self.down4):
            features.append(level(F.max_pool2d(features[-1], 2), mask))
        features[-1] = self.mid(features[-1], mask)
        return features


def decode(parts: nn.Module, features: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
    """Logits (N, K, H, W) from what `encode` gives, by the modules up1 to up4 and out of `parts`."""
    *skips, x = features
    for name, skip in zip(("up1", "up2", "up3", "up4"), reversed(skips), strict=True):
        x = getattr(parts, name)(x, skip, mask)
    logits: Tensor = parts.get_submodule("out")(x, mask)
    return logits
