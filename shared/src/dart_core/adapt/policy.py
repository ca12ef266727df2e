"""Which layers each sample fine-tunes: the policy network, its Gumbel-softmax sample, the penalty and the statistics.

A policy is a tensor (B, layers) of 0 and 1: **1 = frozen, 0 = fine-tuned**. Source: Zakazov et al., MICCAI 2021, and
neuro-ml/domain_shift_anatomy; paragraphs are those of the specification sheet of SpotTUNet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dart_core.errors import InputError, SettingError

SWITCHES = 32
"""Switchable layers of the U-Net (3.3)."""


class PolicyNet(nn.Module):
    """Looks at a slice and gives two logits for each of 32 layers: component 0 "fine-tuned", component 1 "frozen" (3.2).

    Small backbone: a convolution with batch norm, three residual blocks of stride 2 (64, 128, 256 channels), batch norm,
    global average pool, a linear layer; 1,180,320 parameters at one input channel. The blocks that the authors' object
    holds besides and never calls are left out (8.6).

    Args:
        in_channels: channels of the slice.
        backbone: "small" is the authors' code; "resnet34" the network that the AvaGrad paper names (torchvision's, random
            weights, first convolution for `in_channels`). Needs torchvision.

    Raises:
        SettingError: another backbone.
    """

    def __init__(self, in_channels: int = 1, backbone: Literal["small", "resnet34"] = "small") -> None:
        super().__init__()
        if backbone == "small":
            self.layers: nn.Module = nn.Sequential(
                nn.Conv2d(in_channels, 32, 3, padding=1, bias=False),
                nn.BatchNorm2d(32),
                *(_Block(channels) for channels in (32, 64, 128)),
                nn.BatchNorm2d(256),
                nn.ReLU(inplace=True),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(256, 2 * SWITCHES),
            )
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.normal_(module.weight, 0, math.sqrt(2 / (9 * module.out_channels)))
        elif backbone == "resnet34":
            from torchvision.models import resnet34

            network = resnet34(weights=None, num_classes=2 * SWITCHES)
            if in_channels != 3:
                network.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
                nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.layers = network
        else:
            raise SettingError(f"unknown policy backbone {backbone!r}", remedy="give small or resnet34")
        # A quarter less time on CPU, whatever the format of the slices.
        self.layers.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) of any size -> logits (B, 64)."""
        logits: Tensor = self.layers(x)
        return logits


class _Block(nn.Module):
    """Two 3x3 convolutions, the first of stride 2, beside a pooled shortcut; doubles the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(2 * channels)
        self.conv2 = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        # Rounding up keeps odd sides at the size that the convolution of stride 2 gives.
        shortcut = F.avg_pool2d(x, 2, ceil_mode=True)
        main = F.relu(self.norm1(self.conv1(x)), inplace=True)
        main = self.norm2(self.conv2(main))
        # The further channels of the shortcut are zero.
        return F.relu(main + F.pad(shortcut, (0, 0, 0, 0, 0, x.shape[1])), inplace=True)


def gumbel_policy(
    logits: Tensor,
    temperature: float = 0.1,
    uniform: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw a policy from its logits, with the straight-through gradient of the soft sample (2.3, 2.4).

    g = -log(-log(u + 1e-20) + 1e-20), s = softmax((z + g) / T), value one-hot(argmax s), gradient that of s.

    Args:
        logits: (B, 64), read as (B, 32, 2), or (B, 32, 2) itself (any number of layers); component 1 = frozen.
        temperature: T.
        uniform: (B, 32, 2) draws from [0, 1); None draws them.
        generator: of these draws, on the device of the logits.

    Returns:
        (B, 32) of exactly 0 and 1, 1 = frozen; float32, or float64 where the logits are.

    Raises:
        ValueError: nan among the logits, a temperature that is not positive, or shapes that do not fit.
    """
    z = _pairs(logits)
    if not temperature > 0:
        raise SettingError(f"the temperature of the policy is {temperature}", remedy="give a positive one")
    if uniform is None:
        uniform = torch.rand(z.shape, dtype=z.dtype, device=z.device, generator=generator)
    elif uniform.shape != z.shape:
        raise InputError(f"uniform has shape {tuple(uniform.shape)}, the logits {tuple(z.shape)}")
    noise = -torch.log(-torch.log(uniform.to(z) + 1e-20) + 1e-20)
    soft = torch.softmax((z + noise) / temperature, dim=-1)
    frozen = soft[..., 1]
    # The first index wins a tie. `frozen - frozen.detach()` is exactly zero, so the value stays exactly 0 or 1.
    return (frozen > soft[..., 0]).to(z) + (frozen - frozen.detach())


def greedy_policy(logits: Tensor) -> Tensor:
    """The policy of inference: argmax of the logits, no noise (2.8); arguments and result as in `gumbel_policy`."""
    z = _pairs(logits)
    return (z[..., 1] > z[..., 0]).to(z)


def mix(fine_tuned: Tensor, frozen: Tensor, p: Tensor) -> Tensor:
    """fine_tuned (1 - P) + frozen P, in one pass and exact at P = 0 and P = 1 (2.5).

    Args:
        fine_tuned: output of one copy of a layer, (B, ...).
        frozen: output of the other, same shape.
        p: P of this layer, broadcast against them: (B, 1, 1, 1) for images.
    """
    # lerp is a + P (b - a) below 1/2 and b - (1 - P) (b - a) above.
    return torch.lerp(fine_tuned, frozen, p.to(fine_tuned.dtype))


def _pairs(logits: Tensor) -> Tensor:
    """Logits as (B, layers, 2) of at least float32, none of them nan."""
    if logits.ndim == 2 and logits.shape[1] % 2 == 0:
        logits = logits.unflatten(1, (-1, 2))
    if logits.ndim != 3 or logits.shape[-1] != 2:
        raise InputError(f"policy logits have shape {tuple(logits.shape)}", remedy="give (B, 64) or (B, 32, 2)")
    if bool(logits.isnan().any()):
        raise InputError(
            "the policy network gives nan: its training has diverged", remedy="lower the policy's learning rate"
        )
    return logits if logits.dtype == torch.float64 else logits.float()


def policy_penalty(
    policy: Tensor, k: float, norm: Literal["l1", "l2"] = "l1", reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """What fine-tuning costs (2.7).

    l1: k sum(1 - P) / n; l2: k sqrt(sum (1 - P)²) / n, with sums over batch and layers.

    Args:
        policy: (B, layers), 1 = frozen.
        k: weight; 0 switches the penalty off.
        norm: "l1" or "l2".
        reduction: "mean": n = B * layers; "sum": n = B, the form of the AvaGrad paper (its lambda = k / 32).

    Returns:
        Scalar with gradient; at a wholly frozen policy l2 has the gradient 0.

    Raises:
        ValueError: another norm or reduction.
    """
    fine_tuned = 1 - policy
    if norm == "l1":
        total = fine_tuned.sum()
    elif norm == "l2":
        total = torch.linalg.vector_norm(fine_tuned)
    else:
        raise SettingError(f"unknown norm {norm!r} of the policy penalty", remedy="give l1 or l2")
    if reduction not in ("mean", "sum"):
        raise SettingError(f"unknown reduction {reduction!r} of the policy penalty", remedy="give mean or sum")
    return k * total / (policy.numel() if reduction == "mean" else policy.shape[0])


class PolicyStatistics:
    """How often each layer is fine-tuned: running sums over samples (2.11).

    Keep one object for training and one for validation; the latter is `reset` after each validation. In a run of several
    processes each counts its own samples.

    Args:
        layers: switchable layers.
    """

    def __init__(self, layers: int = SWITCHES) -> None:
        self.layers = layers
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._frozen = torch.zeros(self.layers, dtype=torch.float64)
        self.samples = 0

    def update(self, policy: Tensor) -> None:
        """Add the policies (B, layers) of a batch.

        Raises:
            ValueError: another number of layers.
        """
        if policy.ndim != 2 or policy.shape[1] != self.layers:
            raise InputError(f"a policy of shape {tuple(policy.shape)} for {self.layers} layers")
        # Summed on the policy's device, so that a step need not wait for it.
        total = policy.detach().sum(0, dtype=torch.float64)
        self._frozen = self._frozen.to(total.device) + total
        self.samples += policy.shape[0]

    def fine_tuned(self, since: Mapping[str, Any] | None = None) -> Tensor:
        """The fraction of samples that fine-tuned each layer, 1 - mean(P).

        Args:
            since: an earlier `state_dict` of this object; counts only what came after it (one epoch, for example).

        Returns:
            (layers,) float64 on the CPU; nan where there is no sample.
        """
        frozen, samples = self._frozen.cpu(), self.samples
        if since is not None:
            frozen, samples = frozen - since["frozen"].cpu(), samples - since["samples"]
        return 1 - frozen / samples if samples else torch.full((self.layers,), torch.nan, dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        """Sums and number of samples, for a checkpoint."""
        return {"frozen": self._frozen.clone(), "samples": self.samples}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take on what `state_dict` gave.

        Raises:
            ValueError: it belongs to another number of layers.
        """
        frozen = state_dict["frozen"]
        if frozen.shape != (self.layers,):
            raise InputError(f"policy statistics of {len(frozen)} layers, here {self.layers}")
        self._frozen, self.samples = frozen.to(torch.float64, copy=True), int(state_dict["samples"])
