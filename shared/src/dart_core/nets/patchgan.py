"""The 70x70 PatchGAN discriminator of pix2pix and CycleGAN."""

from __future__ import annotations

from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """Judges each 70x70 patch of an image: five 4x4 convolutions, InstanceNorm, LeakyReLU 0.2 (Isola et al. 2017).

    Widths are width, 2, 4, 8 times width, and one logit per patch. Initial weights are N(0, 0.02), biases 0. With one
    input channel and width 64 it has 2,762,689 parameters. MONAI's discriminator of the same name computes the same
    (the tests compare them), but importing MONAI takes ten seconds and it returns every feature map; hence these lines.

    Args:
        in_channels: channels of the image.
        width: channels of the first convolution.
    """

    def __init__(self, in_channels: int = 1, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            *_convolution_norm_activation(width, 2 * width, stride=2),
            *_convolution_norm_activation(2 * width, 4 * width, stride=2),
            *_convolution_norm_activation(4 * width, 8 * width, stride=1),
            nn.Conv2d(8 * width, 1, 4, padding=1),
        )
        initialise_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W), sides from 24, to logits (N, 1, H // 8 - 2, W // 8 - 2).

        Raises:
            ValueError: a side is shorter than 24, so that no patch would be left.
        """
        height, width = x.shape[-2:]
        if min(height, width) < 24:
            raise ValueError(f"images are {height} x {width}; the discriminator needs sides of 24 or more")
        out: Tensor = self.layers(x)
        return out


def initialise_normal(network: nn.Module, std: float = 0.02) -> None:
    """Draw the weights of all convolutions from N(0, std²) and set their biases to 0, in place (Zhu et al. 2017)."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _convolution_norm_activation(in_channels: int, out_channels: int, stride: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(in_channels, out_channels, 4, stride, padding=1),
        nn.InstanceNorm2d(out_channels),
        nn.LeakyReLU(0.2),
    )
