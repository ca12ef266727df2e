"""The DSCSI GAN: colour to colour, with structure, features and colour similarity kept (Liang et al. 2020; specification 4.5)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dart_core.errors import InputError, SettingError
from dart_core.nets.backbones import create_backbone
from dart_core.run import Run
from stain_aglr.lab import rgb_to_lab
from stain_aglr.stst import binary_cross_entropy

WINDOW, SIGMA = 7, 1.0
HUE_TURN, HUE_WIDTH = 0.2 * math.pi, 0.35
"""Difference of hues at which their likeness is one half, and the width of the fall around it, relative to it."""
K_CHROMA, K_CHROMA_CONTRAST, K_LIGHTNESS, CHROMA_POWER = 8e-4, 16.0, 0.8, 0.8
ADVERSARIAL_WEIGHT, FEATURE_WEIGHT, SIMILARITY_WEIGHT = 0.2, 0.4, 0.4
_TINY = 1e-12


# --- Similarity ------------------------------------------------------------------------------------------------------


def dscsi_similarity(lab_a: Tensor, lab_b: Tensor) -> Tensor:
    """Directional statistics based colour similarity S, the mean over the batch; 1 for patches that are quite alike.

    S = (Lc Ls) (Hl Hc Cl Cc)^0.8 per pair of patches, each factor the mean of its map (specification 4.5 and 11: windows are
    zero-padded, hue is atan(b / a), deviations are from each pixel's own local mean). A patch with itself has 0.9974, not 1,
    because of the tanh in Hl.

    Hc compares v = 1 - sqrt(conv(cos², w²) + conv(sin², w²)) / 49 of the two patches. As cos² + sin² = 1, v depends on the place
    alone, and Hc is exactly 1; it is not computed.

    Args:
        lab_a: (N, 3, H, W), L in [0, 100].
        lab_b: (N, 3, H, W).

    Returns:
        Scalar with gradient, finite also at grey pixels, whose hue counts as 0.

    Raises:
        ValueError: other or different shapes.
    """
    if lab_a.shape != lab_b.shape or lab_a.dim() != 4 or lab_a.shape[1] != 3:
        problem = f"the patches have shapes {tuple(lab_a.shape)} and {tuple(lab_b.shape)}"
        raise InputError(problem, remedy="give two batches (N, 3, H, W) in Lab")
    hue_a, hue_b = _mean_hue(lab_a), _mean_hue(lab_b)
    apart = math.pi - (math.pi - (hue_a - hue_b).abs()).abs()
    hl = 1 - (0.5 + 0.5 * torch.tanh((apart - HUE_TURN) / (HUE_WIDTH * HUE_TURN)))
    mean_a, deviation_a, _ = _local(_chroma(lab_a))
    mean_b, deviation_b, _ = _local(_chroma(lab_b))
    cl = 1 / (K_CHROMA * (mean_a - mean_b) ** 2 + 1)
    cc = _alike(deviation_a, deviation_b, K_CHROMA_CONTRAST)
    _, light_a, from_a = _local(lab_a[:, :1])
    _, light_b, from_b = _local(lab_b[:, :1])
    lc = _alike(light_a, light_b, K_LIGHTNESS)
    ls = (_smooth(from_a * from_b).abs() + K_LIGHTNESS) / (light_a * light_b + K_LIGHTNESS)
    hl, cl, cc, lc, ls = (term.mean((1, 2, 3)) for term in (hl, cl, cc, lc, ls))
    return (lc * ls * (hl * cl * cc) ** CHROMA_POWER).mean()


def _alike(a: Tensor, b: Tensor, constant: float) -> Tensor:
    return (2 * a * b + constant) / (a * a + b * b + constant)


def _smooth(x: Tensor) -> Tensor:
    """Gaussian window over maps (N, 1, H, W), zeros outside."""
    line = torch.exp(-((torch.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * SIGMA**2)).to(x)
    window = torch.outer(line, line)
    return F.conv2d(x, (window / window.sum())[None, None], padding=WINDOW // 2)


def _local(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Local mean, local standard deviation, and each pixel's difference from its own local mean."""
    mean = _smooth(x)
    away = x - mean
    # Without the clamp, the slope of the root would be infinite where nothing varies.
    return mean, _smooth(away * away).clamp(min=_TINY).sqrt(), away


def _chroma(lab: Tensor) -> Tensor:
    return (lab[:, 1:] ** 2).sum(1, keepdim=True).clamp(min=_TINY).sqrt()


def _mean_hue(lab: Tensor) -> Tensor:
    """atan(sum of sin h / sum of cos h) with h = atan(b / a), so that cos h = |a| / c and sin h = b sign(a) / c.

    The sum of cosines is never negative: atan2 gives the same angle, and its slope is finite.
    """
    a, b = lab[:, 1:2], lab[:, 2:3]
    chroma = _chroma(lab)
    grey = chroma <= 1.01 * math.sqrt(_TINY)
    sign = torch.where(a < 0, -1.0, 1.0)
    cosine = torch.where(grey, torch.ones_like(a), a * sign / chroma)
    sine = torch.where(grey, torch.zeros_like(a), b * sign / chroma)
    return torch.atan2(_smooth(sine), _smooth(cosine).clamp(min=_TINY))


# --- Networks --------------------------------------------------------------------------------------------------------


class DSCSIGenerator(nn.Module):
    """U-Net with two 3x3 convolutions, batch norm and ReLU a stage, max pooling and bilinear upsampling.

    Stages of 64, 128, 256, 256 and back 128, 64, 64 filters, a 1x1 convolution to three channels, cut off at -1 and 1. With the
    default 3,362,307 parameters.

    Args:
        width: filters of the first stage.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        w = width
        self.down = nn.ModuleList([_double(3, w), _double(w, 2 * w), _double(2 * w, 4 * w), _double(4 * w, 4 * w)])
        self.up = nn.ModuleList([_double(8 * w, 2 * w), _double(4 * w, w), _double(2 * w, w)])
        self.output = nn.Conv2d(w, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> the same.

        Raises:
            ValueError: a side not divisible by 8.
        """
        if any(side % 8 for side in x.shape[2:]):
            raise InputError(f"patches of {x.shape[2]} x {x.shape[3]}", remedy="give sides divisible by 8")
        skips: list[Tensor] = []
        for stage in self.down:
            x = stage(F.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        for stage, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            wide = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = stage(torch.cat([skip, wide], 1))
        out: Tensor = self.output(x).clamp(-1, 1)
        return out


class DSCSIDiscriminator(nn.Module):
    """DCGAN's: 4x4 stride-2 convolutions with batch norm from the second on and leaky ReLU 0.2, then one value.

    With the defaults 32, 64, ..., 1024 filters for patches of 256 pixels and 11,197,793 parameters.

    Args:
        size: side of the patches, a power of two from 16; one stage less for each halving.
        width: filters of the first convolution.
    """

    def __init__(self, size: int = 256, width: int = 32) -> None:
        super().__init__()
        if size < 16 or size & (size - 1):
            raise InputError(f"patches of {size} pixels", remedy="give a power of two from 16 on")
        layers: list[nn.Module] = []
        channels = 3
        for stage in range(size.bit_length() - 3):
            filters = width * 2**stage
            norm = [nn.BatchNorm2d(filters)] if stage else []
            layers += [nn.Conv2d(channels, filters, 4, 2, 1), *norm, nn.LeakyReLU(0.2)]
            channels = filters
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 4))
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def logits(self, x: Tensor) -> Tensor:
        """What `forward` puts through the sigmoid, (N,)."""
        out: Tensor = self.layers(x).flatten()
        return out

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, size, size) in [-1, 1] -> chance of being real, (N,)."""
        return self.logits(x).sigmoid()


class FeatureKeeper(nn.Module):
    """The classifier R whose features the generator must keep: ResNet-34 on the training laboratory's patches.

    Features are the 7x7 stride-1 average pooling of its last map, flattened (2048 for 256 pixels). Smaller patches have smaller
    maps; the window is then one less than the map's side, so that 2x2 values of each channel remain.

    Args:
        name: of the network in timm.
        weights: local ImageNet weights; None starts from random ones.
        size: side of the patches.

    Raises:
        SettingError: no such network, or none with feature maps.
        CheckpointError: the weights do not fit.
    """

    def __init__(self, name: str = "resnet34", weights: Path | None = None, size: int = 256) -> None:
        super().__init__()
        encoder: Any = create_backbone(name, weights)
        self.encoder = encoder.eval()
        try:
            with torch.no_grad():
                shape = tuple(encoder.forward_features(torch.zeros(1, 3, size, size)).shape)
        except (AssertionError, RuntimeError):  # transformers want their own size
            shape = ()
        if len(shape) != 4 or shape[1] != encoder.num_features:
            raise SettingError(
                f"{name} gives no feature map of pictures of {size} pixels",
                remedy="give a convolutional network such as resnet34",
            )
        side = shape[-1]
        self.window = max(1, min(7, side - 1))
        self.classifier = nn.Linear(encoder.num_features * (side - self.window + 1) ** 2, 2)

    def features(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N, K)."""
        encoder: Any = self.encoder
        return F.avg_pool2d(encoder.forward_features(x), self.window, 1).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> logits (N, 2)."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


def _double(channels: int, filters: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs in (channels, filters):
        layers += [nn.Conv2d(inputs, filters, 3, padding=1), nn.BatchNorm2d(filters), nn.ReLU()]
    return nn.Sequential(*layers)


# --- Losses and step -------------------------------------------------------------------------------------------------


def shifted(images: Tensor) -> Tensor:
    """uint8 to (I - 128) / 128."""
    return (images.float() - 128) / 128


def levels_of(images: Tensor) -> Tensor:
    """The inverse of `shifted`, rounded, uint8."""
    return (images.float() * 128 + 128).round().clamp(0, 255).to(torch.uint8)


def to_lab(x: Tensor) -> Tensor:
    """Lab of (N, 3, H, W) in the generator's scale."""
    return rgb_to_lab(((x.float() * 128 + 128) / 255).clamp(0, 1))


def feature_loss(real: Tensor, made: Tensor) -> Tensor:
    """KL(softmax f(x) || softmax f(G(x))), averaged over all elements as in the authors' program.

    Args:
        real: f(x), (N, K).
        made: f(G(x)), (N, K).
    """
    return F.kl_div(made.float().log_softmax(1), real.float().log_softmax(1), reduction="none", log_target=True).mean()


def classifier_step(
    run: Run, keeper: nn.Module, optimizer: torch.optim.Optimizer, batch: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """One step of the classifier R on "image" uint8 and "label"."""
    with run.autocast():
        logits = keeper(shifted(batch["image"]))
    loss = F.cross_entropy(logits.float(), batch["label"].long())
    optimizer.zero_grad(set_to_none=True)
    run.backward(loss)
    run.step_optimizers(optimizer)
    return {"classifier": loss.detach()}


def dscsi_step(
    run: Run, generator: nn.Module, discriminator: DSCSIDiscriminator, keeper: FeatureKeeper,
    optimizers: Mapping[str, torch.optim.Optimizer], images: Tensor,
) -> dict[str, Tensor]:  # fmt: skip
    """One step of the discriminator, then one of the generator against the new discriminator.

    Args:
        run: gives precision and gradient scaling.
        generator: colour to colour.
        discriminator: judges patches.
        keeper: the trained classifier, frozen and in evaluation mode.
        optimizers: "generator" and "discriminator".
        images: uint8 (B, 3, H, W).

    Returns:
        Losses by name, without gradient.
    """
    real = shifted(images)
    with run.autocast():
        fake = generator(real)
        judged = discriminator.logits(real), discriminator.logits(fake.detach())
    judging = binary_cross_entropy(judged[0], 1.0) + binary_cross_entropy(judged[1], 0.0)
    optimizers["discriminator"].zero_grad(set_to_none=True)
    run.backward(judging)
    run.step_optimizers(optimizers["discriminator"])

    discriminator.requires_grad_(False)
    with run.autocast():
        verdict, made = discriminator.logits(fake), keeper.features(fake)
        with torch.no_grad():
            kept = keeper.features(real)
    adversarial = binary_cross_entropy(verdict, 1.0)
    features = feature_loss(kept, made)
    similarity = dscsi_similarity(to_lab(real), to_lab(fake))
    optimizers["generator"].zero_grad(set_to_none=True)
    run.backward(ADVERSARIAL_WEIGHT * adversarial + FEATURE_WEIGHT * features + SIMILARITY_WEIGHT * (1 - similarity))
    run.step_optimizers(optimizers["generator"])
    discriminator.requires_grad_(True)
    return {
        "discriminator": judging.detach(),
        "adversarial": adversarial.detach(),
        "features": features.detach(),
        "similarity": similarity.detach(),
    }
