"""The residual 2-D U-Net with additive skips of the SpotTUNet and fda-mri papers (deep-pipe layers)."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor, nn
from torch.nn import functional as F


class PreActivation(nn.Module):
    """BatchNorm -> ReLU -> convolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H', W')."""
        # In place on BatchNorm's own output, which its backward pass does not need: a quarter less time on CPU.
        out: Tensor = self.conv(F.relu(self.norm(x), inplace=True))
        return out


class ResidualBlock(nn.Module):
    """x plus two 3x3 pre-activation units of the same width; nothing after the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = PreActivation(channels, channels, 3, padding=1)
        self.second = PreActivation(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> the same shape."""
        out: Tensor = x + self.second(self.first(x))
        return out

    def with_inner(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same output, and with it what the second BatchNorm puts out (before its ReLU)."""
        inner: Tensor = self.second.norm(self.first(x))
        return x + self.second.conv(F.relu(inner)), inner


class ResidualUNet2d(nn.Module):
    """Pre-activation residual U-Net whose skips are added; its logits are the output of a final BatchNorm.

    1,561,491 parameters at one input channel, one output channel and width 16. Initial weights are PyTorch's defaults.
    Parts are registered in the order init_path, shortcut0, down1, shortcut1, down2, shortcut2, bottleneck, up2, up1,
    out_path. Source: neuro-ml/domain_shift_anatomy and kechua/Feather-Light-Fourier-Domain-Adaptation.

    Args:
        in_channels: channels of the image.
        out_channels: number of logits per pixel.
        width: channels at full resolution; each of the three levels below doubles them.
    """

    def __init__(self, in_channels: int = 1, out_channels: int = 1, width: int = 16) -> None:
        super().__init__()
        n = width
        self.init_path = nn.Sequential(nn.Conv2d(in_channels, n, 3, padding=1, bias=False), *_blocks(n))
        self.shortcut0 = nn.Conv2d(n, n, 1)
        self.down1 = nn.Sequential(PreActivation(n, 2 * n, 2, stride=2), *_blocks(2 * n))
        self.shortcut1 = nn.Conv2d(2 * n, 2 * n, 1)
        self.down2 = nn.Sequential(PreActivation(2 * n, 4 * n, 2, stride=2), *_blocks(4 * n))
        self.shortcut2 = nn.Conv2d(4 * n, 4 * n, 1)
        self.bottleneck = nn.Sequential(
            PreActivation(4 * n, 8 * n, 2, stride=2), *_blocks(8 * n), _double_resolution(8 * n, 4 * n)
        )
        self.up2 = nn.Sequential(*_blocks(4 * n), _double_resolution(4 * n, 2 * n))
        self.up1 = nn.Sequential(*_blocks(2 * n), _double_resolution(2 * n, n))
        self.out_path = nn.Sequential(
            *_blocks(n), PreActivation(n, out_channels, 1, bias=True), nn.BatchNorm2d(out_channels)
        )

    @overload
    def forward(self, x: Tensor, return_bottleneck: Literal[False] = False) -> Tensor: ...

    @overload
    def forward(self, x: Tensor, return_bottleneck: Literal[True]) -> tuple[Tensor, Tensor]: ...

    def forward(self, x: Tensor, return_bottleneck: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Segment a batch of slices.

        Args:
            x: (N, in_channels, H, W), H and W divisible by 8.
            return_bottleneck: also return the features of the lowest level, from the same pass.

        Returns:
            Logits (N, out_channels, H, W); with `return_bottleneck` also the features (N, 8 width, H/8, W/8) behind the
            second BatchNorm of the third bottleneck block, before its ReLU, with gradient.

        Raises:
            ValueError: a side is not divisible by 8.
        """
        height, width = x.shape[-2:]
        if height % 8 or width % 8:
            raise ValueError(f"slices are {height} x {width}; both sides must be divisible by 8: pad them")
        x0 = self.init_path(x)
        x1 = self.down1(x0)
        x2 = self.down2(x1)
        if return_bottleneck:
            block = self.bottleneck[3]
            assert isinstance(block, ResidualBlock)
            y, features = block.with_inner(self.bottleneck[:3](x2))
            y = self.bottleneck[4](y)
        else:
            y = self.bottleneck(x2)
        y = self.up2(y + self.shortcut2(x2))
        y = self.up1(y + self.shortcut1(x1))
        logits: Tensor = self.out_path(y + self.shortcut0(x0))
        return (logits, features) if return_bottleneck else logits


def _blocks(channels: int) -> tuple[ResidualBlock, ...]:
    return tuple(ResidualBlock(channels) for _ in range(3))


def _double_resolution(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2, bias=False)
