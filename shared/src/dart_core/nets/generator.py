"""The residual image-to-image generator of CycleGAN (after Johnson et al. 2016)."""

from __future__ import annotations

from torch import Tensor, nn

from dart_core.nets.patchgan import initialise_normal


class GeneratorBlock(nn.Module):
    """x plus two reflection-padded 3x3 convolutions with InstanceNorm, ReLU between them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect"),
            nn.InstanceNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect"),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> the same shape."""
        out: Tensor = x + self.body(x)
        return out


class ResnetGenerator(nn.Module):
    """Two strided convolutions down, residual blocks, two transposed convolutions up (Zhu et al. 2017).

    Reflection padding and InstanceNorm throughout; initial weights N(0, 0.02), biases 0. With nine blocks, width 64 and
    one channel in and out it has 11,365,633 parameters. No library on our list of dependencies has this network.

    Args:
        in_channels: channels of the input image.
        out_channels: channels of the output image.
        width: channels of the first convolution.
        blocks: number of residual blocks (CycleGAN: 9 at 256 x 256, 6 at 128 x 128).
        tanh: end in tanh, so that the output lies in [-1, 1].
    """

    def __init__(
        self, in_channels: int = 1, out_channels: int = 1, width: int = 64, blocks: int = 9, tanh: bool = True
    ) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(in_channels, width, 7, padding=3, padding_mode="reflect"),
            nn.InstanceNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.InstanceNorm2d(2 * width),
            nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
            nn.InstanceNorm2d(4 * width),
            nn.ReLU(),
        )
        self.blocks = nn.Sequential(*(GeneratorBlock(4 * width) for _ in range(blocks)))
        self.up = nn.Sequential(
            nn.ConvTranspose2d(4 * width, 2 * width, 3, stride=2, padding=1, output_padding=1),
            nn.InstanceNorm2d(2 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 3, stride=2, padding=1, output_padding=1),
            nn.InstanceNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, out_channels, 7, padding=3, padding_mode="reflect"),
        )
        self.activation = nn.Tanh() if tanh else nn.Identity()
        initialise_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to images (N, out_channels, H, W); H and W divisible by 4, from 8.

        Raises:
            ValueError: a side is not divisible by 4 or shorter than 8.
        """
        height, width = x.shape[-2:]
        if height % 4 or width % 4 or min(height, width) < 8:
            raise ValueError(f"images are {height} x {width}; both sides must be divisible by 4 and at least 8")
        out: Tensor = self.activation(self.up(self.blocks(self.down(x))))
        return out
