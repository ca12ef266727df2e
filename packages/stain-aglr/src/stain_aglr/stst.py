"""The STST GAN: pix2pix from grey to the training laboratory's colours (Salehi and Chalechale 2020; specification 4.4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dart_core.errors import InputError
from dart_core.nets.patchgan import initialise_normal
from dart_core.run import Run

LUMA = (0.299, 0.587, 0.114)
L1_WEIGHT = 100.0
LEVELS = 8
"""Halvings of a patch of 256 pixels down to one."""


class STSTGenerator(nn.Module):
    """U-Net from grey to colour. With the defaults 54,419,459 parameters.

    Encoder: 4x4 stride-2 convolutions of width, 2, 4, 8, 8, ... times width, batch norm except in the first, leaky ReLU 0.2;
    one more without norm, with ReLU; decoder: transposed convolutions with batch norm, dropout 0.5 in the first three,
    concatenation with the encoder's output of the same size, ReLU; a last one to three channels, tanh.

    Batch norm always uses the statistics of the patches at hand, and dropout is always active, also at test time. Its noise
    stands for what a grey patch does not tell about its colours.

    Args:
        levels: halvings; patches have sides divisible by 2 ** levels, and 2 ** levels itself is what training uses.
        width: filters of the first convolution.
    """

    def __init__(self, levels: int = LEVELS, width: int = 64) -> None:
        super().__init__()
        filters = [width * min(2**level, 8) for level in range(levels)]
        self.levels = levels
        self.encoder = nn.ModuleList()
        for level, (channels, out) in enumerate(zip([3, *filters], filters[:-1], strict=False)):
            convolution = nn.Conv2d(channels, out, 4, 2, 1)
            self.encoder.append(nn.ModuleList([convolution, _batch_norm(out)] if level else [convolution]))
        self.bottleneck = nn.Conv2d(filters[-2], filters[-1], 4, 2, 1)
        self.decoder = nn.ModuleList()
        channels = filters[-1]
        for out in reversed(filters[:-1]):
            self.decoder.append(nn.ModuleList([nn.ConvTranspose2d(channels, out, 4, 2, 1), _batch_norm(out)]))
            channels = 2 * out
        self.output = nn.ConvTranspose2d(channels, 3, 4, 2, 1)
        initialise_normal(self)

    def forward(self, grey: Tensor, seed: int | None = None) -> Tensor:
        """Colour patches.

        Args:
            grey: (N, 3, H, W) in [-1, 1], the luma in every channel.
            seed: None: batch norm over the whole batch, and dropout from the global generator, as in training. A number: each
                patch as if it were alone (the authors' batch size is 1), and all with the dropout of this seed, so that a
                patch's colours do not depend on its neighbours.

        Returns:
            (N, 3, H, W) in [-1, 1].

        Raises:
            ValueError: a side that cannot be halved so often.
        """
        if any(side % 2**self.levels for side in grey.shape[2:]):
            problem = f"patches of {grey.shape[2]} x {grey.shape[3]} cannot be halved {self.levels} times"
            raise InputError(problem, remedy=f"give sides divisible by {2**self.levels}")
        alone = seed is not None
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        x, skips = grey, []
        block: Any
        for block in self.encoder:
            x = block[0](x)
            if len(block) > 1:
                x = _normalised(block[1], x, alone)
            x = F.leaky_relu(x, 0.2)
            skips.append(x)
        x = F.relu(self.bottleneck(x))
        for level, (block, skip) in enumerate(zip(self.decoder, reversed(skips), strict=True)):
            x = _normalised(block[1], block[0](x), alone)
            if level < 3:
                x = F.dropout(x) if generator is None else x * _mask(x, generator)
            x = F.relu(torch.cat([x, skip], 1))
        return torch.tanh(self.output(x))


class STSTDiscriminator(nn.Module):
    """PatchGAN on grey and colour patch together. With the defaults 6,965,441 parameters.

    4x4 convolutions of 64, 128, 256, 512 filters with stride 2, of 512 and 1 with stride 1, padded so that the side only shrinks
    by the strides; batch norm except in the first and last, leaky ReLU 0.2.

    Args:
        width: filters of the first convolution.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(6, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for channels, filters, stride in ((1, 2, 2), (2, 4, 2), (4, 8, 2), (8, 8, 1)):
            layers += [] if stride == 2 else [nn.ZeroPad2d((1, 2, 1, 2))]
            layers += [nn.Conv2d(channels * width, filters * width, 4, stride, 1 if stride == 2 else 0)]
            layers += [nn.BatchNorm2d(filters * width), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(8 * width, 1, 4))
        initialise_normal(self)

    def logits(self, grey: Tensor, colour: Tensor) -> Tensor:
        """What `forward` puts through the sigmoid."""
        out: Tensor = self.layers(torch.cat([grey, colour], 1))
        return out

    def forward(self, grey: Tensor, colour: Tensor) -> Tensor:
        """(N, 3, H, W) and (N, 3, H, W) in [-1, 1] -> chance of being real (N, 1, H / 16, W / 16)."""
        return self.logits(grey, colour).sigmoid()


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, track_running_stats=False)


def _normalised(norm: nn.BatchNorm2d, x: Tensor, alone: bool) -> Tensor:
    """Batch norm over the batch, or over each patch alone, which is the same for a batch of one."""
    if alone:
        return F.instance_norm(x, weight=norm.weight, bias=norm.bias, eps=norm.eps)
    out: Tensor = norm(x)
    return out


def _mask(x: Tensor, generator: torch.Generator) -> Tensor:
    """Dropout 0.5 as factors 0 and 2, the same for all patches; drawn on the CPU, so that devices agree."""
    return 2 * (torch.rand(x.shape[1:], generator=generator) < 0.5).to(x)


def luma(images: Tensor) -> Tensor:
    """The grey version of colour patches uint8 (N, 3, H, W), rounded to whole levels, in [-1, 1] on three channels."""
    weights = torch.tensor(LUMA, device=images.device)[:, None, None]
    grey = (images.float() * weights).sum(1, keepdim=True).round()
    return (grey / 127.5 - 1).expand(-1, 3, -1, -1)


def centred(images: Tensor) -> Tensor:
    """uint8 to [-1, 1]."""
    return images.float() / 127.5 - 1


def levels_of(images: Tensor) -> Tensor:
    """[-1, 1] to uint8, rounded."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def stst_step(
    run: Run, generator: nn.Module, discriminator: STSTDiscriminator, optimizers: Mapping[str, torch.optim.Optimizer],
    images: Tensor,
) -> dict[str, Tensor]:  # fmt: skip
    """One step of the discriminator, then one of the generator against the new discriminator.

    Args:
        run: gives precision and gradient scaling.
        generator: grey to colour.
        discriminator: judges pairs.
        optimizers: "generator" and "discriminator".
        images: uint8 (B, 3, H, W).

    Returns:
        Losses by name, without gradient.
    """
    grey, real = luma(images).contiguous(), centred(images)
    with run.autocast():
        fake = generator(grey)
        judged = discriminator.logits(grey, real), discriminator.logits(grey, fake.detach())
    judging = 0.5 * (binary_cross_entropy(judged[0], 1.0) + binary_cross_entropy(judged[1], 0.0))
    optimizers["discriminator"].zero_grad(set_to_none=True)
    run.backward(judging)
    run.step_optimizers(optimizers["discriminator"])

    discriminator.requires_grad_(False)
    with run.autocast():
        verdict = discriminator.logits(grey, fake)
    adversarial = binary_cross_entropy(verdict, 1.0)
    distance = (fake.float() - real).abs().mean()
    optimizers["generator"].zero_grad(set_to_none=True)
    run.backward(adversarial + L1_WEIGHT * distance)
    run.step_optimizers(optimizers["generator"])
    discriminator.requires_grad_(True)
    return {"discriminator": judging.detach(), "adversarial": adversarial.detach(), "l1": distance.detach()}


def binary_cross_entropy(logits: Tensor, wanted: float) -> Tensor:
    """BCE of the sigmoid of logits against one number, in at least float32."""
    logits = logits.float()
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, wanted))
