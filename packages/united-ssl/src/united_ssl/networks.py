"""The 3-D U-Net with its heads, its siamese form for Rubik's Cube, the critic, and the networks of the target tasks
(specification 3).

Cubes are (N, 1, H, W, D). `width` is the number of filters of the first convolution; the paper's networks have 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dart_core.errors import InputError, SettingError
from united_ssl.blocks import join_blocks, split_blocks

Head = Literal["conv", "fully_connect", "plain", "linear"]
Up = Literal["nearest", "transposed"]
Logits: TypeAlias = Tensor | tuple[Tensor, ...]

WIDTH = 32
LEVELS = 4
REDUCTION = 2 ** (LEVELS - 1)
"""Sides of a cube are multiples of this."""
EPSILON, MOMENTUM = 1e-3, 0.01
"""Of batch normalisation; Keras writes the momentum as 0.99."""


def _block(channels_in: int, channels_out: int, norm: Literal["batch", "instance"] = "batch") -> list[nn.Module]:
    """Convolution, normalisation, ReLU."""
    layer: nn.Module
    if norm == "batch":
        layer = nn.BatchNorm3d(channels_out, EPSILON, MOMENTUM)
    else:
        layer = nn.InstanceNorm3d(channels_out, EPSILON, affine=True)
    return [nn.Conv3d(channels_in, channels_out, 3, padding=1), layer, nn.ReLU(inplace=True)]


def _glorot(module: nn.Module) -> None:
    """Glorot-uniform kernels and zero biases."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Encoder(nn.Module):
    """Four levels of two convolutions, with max-pooling between them.

    Args:
        in_channels: of the cubes.
        width: see the module; level i (from 0) ends with width * 2^(i+1) channels.
        norm: batch, or instance with scale and shift.
    """

    def __init__(self, in_channels: int = 1, width: int = WIDTH, norm: Literal["batch", "instance"] = "batch") -> None:
        super().__init__()
        levels = []
        before = in_channels
        for level in range(LEVELS):
            first, last = width * 2**level, width * 2 ** (level + 1)
            levels.append(nn.Sequential(*_block(before, first, norm), *_block(first, last, norm)))
            before = last
        self.levels = nn.ModuleList(levels)
        self.channels = before
        self.apply(_glorot)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Activations of all levels, full resolution first; the last (N, 16 width, H/8, W/8, D/8) is the feature.

        Raises:
            InputError: a side that is no multiple of 8 (a ValueError).
        """
        check_sides(x.shape[-3:])
        levels: list[Tensor] = []
        for level in self.levels:
            x = level(F.max_pool3d(x, 2) if levels else x)
            levels.append(x)
        return levels


class Decoder(nn.Module):
    """Three levels: upsampling, the encoder's activation beside it, two convolutions; then one channel in [0, 1].

    Args:
        width: see the module.
        up: nearest voxels, or transposed convolutions (Models Genesis, TransVW).
        channels: of the output.
        sigmoid: the output goes through one.
    """

    def __init__(self, width: int = WIDTH, up: Up = "nearest", channels: int = 1, sigmoid: bool = True) -> None:
        super().__init__()
        if up not in ("nearest", "transposed"):
            raise SettingError(f"up is {up!r}", remedy="give nearest or transposed")
        levels, ups = [], []
        before = width * 16
        for skip in (width * 8, width * 4, width * 2):
            ups.append(nn.Upsample(scale_factor=2) if up == "nearest" else nn.ConvTranspose3d(before, before, 2, 2))
            levels.append(nn.Sequential(*_block(before + skip, skip), *_block(skip, skip)))
            before = skip
        self.steps = nn.ModuleList([layer for pair in zip(ups, levels, strict=True) for layer in pair])
        self.out = nn.Conv3d(before, channels, 1)
        self.sigmoid = sigmoid
        self.apply(_glorot)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Output (N, channels, H, W, D) from the encoder's activations."""
        x = levels[-1]
        for i, skip in enumerate(reversed(levels[:-1])):
            x = self.steps[2 * i + 1](torch.cat([self.steps[2 * i](x), skip], 1))
        x = self.out(x)
        return torch.sigmoid(x) if self.sigmoid else x


class ClassificationHead(nn.Module):
    """Logits from the encoder's last activation.

    Args:
        classes: one number, or several for several answers (Rubik's Cube: 8 flags and 1000 orders).
        head: conv: convolution, mean, dense layer, logits; fully_connect: two dense layers on all positions (540 million
            parameters at 64^3); plain: mean, dense layer, logits; linear: mean, logits.
        width: see the module.
        size: sides of the cubes, which fully_connect is built for.
        copies: activations beside each other (8 in the siamese network).
    """

    def __init__(
        self,
        classes: int | Sequence[int],
        head: Head = "conv",
        width: int = WIDTH,
        size: Sequence[int] = (64, 64, 64),
        copies: int = 1,
    ) -> None:
        super().__init__()
        channels = width * 16 * copies
        pool = [nn.AdaptiveAvgPool3d(1), nn.Flatten()]
        self.single = isinstance(classes, int)
        trunk: list[nn.Module]
        if head == "conv":
            dense = width * 32
            trunk = [*_block(channels, channels), *pool, nn.Linear(channels, dense), nn.ReLU(inplace=True)]
        elif head == "fully_connect":
            places = 1
            for side in size:
                places *= side // REDUCTION
            trunk, before = [nn.Flatten()], channels * places
            for dense in (width * 64, width * 32):
                trunk += [nn.Linear(before, dense), nn.BatchNorm1d(dense, EPSILON, MOMENTUM), nn.ReLU(inplace=True)]
                trunk.append(nn.Dropout(0.5))
                before = dense
        elif head == "plain":
            dense = width * 64
            trunk = [*pool, nn.Linear(channels, dense), nn.ReLU(inplace=True)]
        elif head == "linear":
            trunk, dense = pool, channels
        else:
            raise SettingError(f"head is {head!r}", remedy="give conv, fully_connect, plain or linear")
        self.trunk = nn.Sequential(*trunk)
        counts = (classes,) if isinstance(classes, int) else tuple(classes)
        self.outputs = nn.ModuleList(nn.Linear(dense, count) for count in counts)
        self.apply(_glorot)

    def forward(self, x: Tensor) -> Logits:
        """(N, classes) from (N, 16 width copies, h, w, d); a tuple of them for several answers."""
        x = self.trunk(x)
        found = tuple(layer(x) for layer in self.outputs)
        return found[0] if self.single else found

    def reset_outputs(self, generator: torch.Generator | None = None) -> None:
        """Draw the last layers anew (deep clustering does so whenever the labels are new)."""
        for layer in self.outputs:
            assert isinstance(layer, nn.Linear)
            with torch.no_grad():
                fresh = torch.empty(layer.weight.shape)
                nn.init.xavier_uniform_(fresh, generator=generator)
                layer.weight.copy_(fresh)
                layer.bias.zero_()


class UnitedUNet3d(nn.Module):
    """Encoder, decoder and head of the pretext tasks (specification 3).

    With the defaults: encoder 7,027,776 parameters, decoder 9,292,481 (transposed: 12,045,889).

    Args:
        classes: one number, or several for several answers.
        head: see `ClassificationHead`.
        up: see `Decoder`.
        width: filters of the first convolution.
        size: sides of the cubes, for head="fully_connect".
    """

    def __init__(
        self,
        classes: int | Sequence[int] = 8,
        head: Head = "conv",
        up: Up = "nearest",
        width: int = WIDTH,
        size: Sequence[int] = (64, 64, 64),
    ) -> None:
        super().__init__()
        self.encoder = Encoder(1, width)
        self.decoder = Decoder(width, up)
        self.head = ClassificationHead(classes, head, width, size)

    def forward(self, x: Tensor, restore: bool = True) -> tuple[Logits, Tensor | None]:
        """Logits (N, classes) and the restored cube (N, 1, H, W, D) in [0, 1]; without `restore` None in its place.

        Raises:
            ValueError: a side that is no multiple of 8.
        """
        levels = self.encoder(x)
        return self.head(levels[-1]), self.decoder(levels) if restore else None

    def classify(self, x: Tensor) -> Logits:
        """The logits alone."""
        logits: Logits = self.head(self.encoder(x)[-1])
        return logits


class SiameseUNet3d(nn.Module):
    """One U-Net for the eight blocks of a Rubik's Cube; the head sees their eight features beside each other.

    Args:
        classes: see `UnitedUNet3d`.
        up: see `Decoder`.
        width: filters of the first convolution.
    """

    def __init__(self, classes: int | Sequence[int] = (8, 1000), up: Up = "nearest", width: int = WIDTH) -> None:
        super().__init__()
        self.encoder = Encoder(1, width)
        self.decoder = Decoder(width, up)
        self.head = ClassificationHead(classes, "linear", width, copies=8)

    def forward(self, x: Tensor, restore: bool = True) -> tuple[Logits, Tensor | None]:
        """Logits, and the restored blocks assembled to cubes, from cubes (N, 1, H, W, D) with sides divisible by 16."""
        levels = self._levels(x)
        if not restore:
            return self.head(self._beside(levels[-1])), None
        restored = self.decoder(levels).unflatten(0, (len(x), 8))
        return self.head(self._beside(levels[-1])), join_blocks(restored.transpose(1, 2))

    def classify(self, x: Tensor) -> Logits:
        """The logits alone."""
        logits: Logits = self.head(self._beside(self._levels(x)[-1]))
        return logits

    def _levels(self, x: Tensor) -> list[Tensor]:
        check_sides(x.shape[-3:], 2 * REDUCTION)
        levels: list[Tensor] = self.encoder(split_blocks(x).transpose(1, 2).flatten(0, 1))
        return levels

    def _beside(self, features: Tensor) -> Tensor:
        return features.reshape(-1, 8 * features.shape[1], *features.shape[2:])


class Critic3d(nn.Module):
    """The adversary: a U-Net encoder on two channels and a 1x1x1 convolution, 7,029,153 parameters.

    Args:
        norm: instance (default: samples stay apart, as the gradient penalty needs), or batch as coded.
        width: filters of the first convolution.
        in_channels: a cube and its condition; 16 for the eight blocks of the siamese Rubik's Cube.
    """

    def __init__(
        self, norm: Literal["instance", "batch"] = "instance", width: int = WIDTH, in_channels: int = 2
    ) -> None:
        super().__init__()
        if norm not in ("instance", "batch"):
            raise SettingError(f"norm is {norm!r}", remedy="give instance or batch")
        self.encoder = Encoder(in_channels, width, norm)
        self.out = nn.Conv3d(self.encoder.channels, 1, 1)
        self.apply(_glorot)

    def forward(self, x: Tensor) -> Tensor:
        """Values (N, 1, H/8, W/8, D/8), linear, of pairs (N, in_channels, H, W, D)."""
        value: Tensor = self.out(self.encoder(x)[-1])
        return value


class TargetClassifier(nn.Module):
    """Encoder, mean, dense layer with ReLU, logits: the network of the classification targets.

    Args:
        classes: number of logits (1 for two classes).
        width: filters of the first convolution.
    """

    def __init__(self, classes: int = 1, width: int = WIDTH) -> None:
        super().__init__()
        self.encoder = Encoder(1, width)
        dense = width * 32
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(width * 16, dense), nn.ReLU(inplace=True),
            nn.Linear(dense, classes),
        )  # fmt: skip
        self.head.apply(_glorot)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes)."""
        logits: Tensor = self.head(self.encoder(x)[-1])
        return logits


class TargetSegmenter(nn.Module):
    """Encoder and decoder with a new last layer: the network of the segmentation targets.

    Args:
        classes: number of foreground classes, each with its own logit.
        width: filters of the first convolution.
        up: see `Decoder`.
    """

    def __init__(self, classes: int = 1, width: int = WIDTH, up: Up = "nearest") -> None:
        super().__init__()
        self.encoder = Encoder(1, width)
        self.decoder = Decoder(width, up, classes, sigmoid=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes, H, W, D)."""
        logits: Tensor = self.decoder(self.encoder(x))
        return logits


def set_momentum(network: nn.Module, momentum: float) -> None:
    """Set the momentum of all batch normalisations."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm3d):
            module.momentum = momentum


def check_sides(shape: Sequence[int], multiple: int = REDUCTION) -> None:
    """Raise an InputError (a ValueError) unless all sides are multiples of 8."""
    if any(side % multiple or not side for side in shape):
        listed = " x ".join(str(side) for side in shape)
        raise InputError(f"the cubes have {listed} voxels", remedy=f"give sides that are multiples of {multiple}")
