"""SpotTUNet: per slice, each layer of the U-Net is either fine-tuned or frozen at its source weights.

Zakazov et al., MICCAI 2021; paragraphs are those of the specification sheet of SpotTUNet.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Literal, TypeAlias, overload

import torch
from torch import Tensor, nn

from dart_core.adapt.policy import SWITCHES, PolicyNet, greedy_policy, gumbel_policy, mix
from dart_core.errors import InputError, SettingError
from dart_core.nets.unet import ResidualBlock, ResidualUNet2d

_FIRST = {"init_path": 0, "down1": 4, "down2": 8, "bottleneck": 12, "up2": 17, "up1": 21, "out_path": 25,
          "shortcut0": 29, "shortcut1": 30, "shortcut2": 31}  # fmt: skip
"""Index of each part's first layer in a policy (3.3)."""

LAYERS: tuple[str, ...] = (
    *(f"{part} {layer}" for part, layers in {
        "init": ("conv", "RB 1", "RB 2", "RB 3"),
        "down1": ("conv", "RB 1", "RB 2", "RB 3"),
        "down2": ("conv", "RB 1", "RB 2", "RB 3"),
        "bottleneck": ("conv", "RB 1", "RB 2", "RB 3", "up"),
        "up2": ("RB 1", "RB 2", "RB 3", "up"),
        "up1": ("RB 1", "RB 2", "RB 3", "up"),
        "out": ("RB 1", "RB 2", "RB 3", "1x1"),
    }.items() for layer in layers),
    "shortcut0", "shortcut1", "shortcut2",
)  # fmt: skip
"""Names of the 32 switchable layers by their index in a policy (3.3)."""

Switch: TypeAlias = Tensor | Literal[0, 1]


class SpotTUNet(nn.Module):
    """Two copies of a trained U-Net, one fine-tuned and one frozen, and the network that chooses between them (2.1 - 2.6).

    In each layer l and for each sample b both copies work on the same, already mixed input, and
    out = fine_tuned(x) (1 - P[b, l]) + frozen(x) P[b, l]. The final batch norm is switched together with a layer (3.3).

    The frozen copy takes part in training mode like everything else: it normalises with the statistics of the batch and
    its running statistics move, as in the authors' code (8.3). "All frozen" is the source network only in evaluation mode
    and only until then, unless `frozen_bn_eval` is set.

    Args:
        source: trained network; it is copied, not changed.
        policy: network that gives the logits (B, 64); None makes a `PolicyNet` with random weights.
        switch_top_skip: switch the skip of full resolution; False always fine-tunes it (the MMTL comparison).
        final_norm_index: the layer that the final batch norm follows: 29, the top skip (authors' code), or 28, the 1x1
            convolution before it.
        frozen_bn_eval: keep the frozen copy in evaluation mode.
        temperature: of the Gumbel-softmax in training.

    Attributes:
        fine_tuned: the copy that learns.
        frozen: the copy with requires_grad False.
        policy: the policy network.

    Raises:
        SettingError: an impossible `final_norm_index` or `temperature`.
    """

    def __init__(
        self,
        source: ResidualUNet2d,
        policy: nn.Module | None = None,
        *,
        switch_top_skip: bool = True,
        final_norm_index: int = 29,
        frozen_bn_eval: bool = False,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        if not 0 <= final_norm_index < SWITCHES:
            raise SettingError(f"there is no layer {final_norm_index}", remedy="tie the final norm to 29 or 28")
        if not temperature > 0:
            raise SettingError(f"the temperature of the policy is {temperature}", remedy="give a positive one")
        self.fine_tuned = copy.deepcopy(source).requires_grad_(True)
        self.frozen = copy.deepcopy(source).requires_grad_(False)
        first = source.init_path[0]
        assert isinstance(first, nn.Conv2d)
        self.policy = PolicyNet(first.in_channels).to(first.weight) if policy is None else policy
        self.switch_top_skip = switch_top_skip
        self.final_norm_index = final_norm_index
        self.frozen_bn_eval = frozen_bn_eval
        self.temperature = temperature
        self.train()

    def train(self, mode: bool = True) -> SpotTUNet:
        """Set training or evaluation mode; the frozen copy stays in evaluation mode with `frozen_bn_eval`."""
        super().train(mode)
        if self.frozen_bn_eval:
            self.frozen.eval()
        return self

    def unet_parameters(self) -> Iterator[nn.Parameter]:
        """What the U-Net's optimiser gets: the parameters of the fine-tuned copy."""
        return self.fine_tuned.parameters()

    def policy_parameters(self) -> Iterator[nn.Parameter]:
        """What the policy's optimiser gets."""
        return self.policy.parameters()

    @overload
    def forward(self, x: Tensor, policy: Tensor | None = None, return_policy: Literal[False] = False) -> Tensor: ...

    @overload
    def forward(
        self, x: Tensor, policy: Tensor | None = None, *, return_policy: Literal[True]
    ) -> tuple[Tensor, Tensor]: ...

    def forward(
        self, x: Tensor, policy: Tensor | None = None, return_policy: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Segment a batch of slices.

        Args:
            x: (B, in_channels, H, W), H and W divisible by 8.
            policy: (B, 32), 1 = frozen, 0 = fine-tuned, fractions mix; None asks the policy network, which is sampled in
                training mode and takes the more probable choice in evaluation mode.
            return_policy: also return the policy, for `policy_penalty` and `PolicyStatistics`.

        Returns:
            Logits (B, out_channels, H, W); with `return_policy` also the policy (B, 32).

        Raises:
            ValueError: a side is not divisible by 8, the policy has another shape, or the policy network gives nan.
        """
        height, width = x.shape[-2:]
        if height % 8 or width % 8:
            raise InputError(f"slices are {height} x {width}", remedy="pad them: both sides must be divisible by 8")
        chosen = policy
        if chosen is None:
            logits = self.policy(x)
            chosen = gumbel_policy(logits, self.temperature) if self.training else greedy_policy(logits)
        if chosen.shape != (len(x), SWITCHES):
            raise InputError(
                f"the policy has shape {tuple(chosen.shape)}", remedy=f"for these slices it is ({len(x)}, {SWITCHES})"
            )
        p = self._switches(chosen)
        x0 = self._path("init_path", x, p)
        x1 = self._path("down1", x0, p)
        x2 = self._path("down2", x1, p)
        y = self._path("bottleneck", x2, p)
        y = self._path("up2", y + self._shortcut("shortcut2", x2, p), p)
        y = self._path("up1", y + self._shortcut("shortcut1", x1, p), p)
        y = self._path("out_path", y + self._shortcut("shortcut0", x0, p), p)
        return (y, chosen) if return_policy else y

    def _switches(self, policy: Tensor) -> list[Switch]:
        """One switch per layer: P as (B, 1, 1, 1), or just 0 or 1 where one copy is enough."""
        switches: list[Switch] = list(policy[:, :, None, None, None].unbind(1))
        if not self.training and not torch.is_grad_enabled():
            # No statistics move and nobody asks for gradients: a layer on which all samples agree is done once.
            agreed = torch.stack([(policy == 0).all(0), (policy == 1).all(0)]).tolist()
            for layer in range(SWITCHES):
                if agreed[0][layer] or agreed[1][layer]:
                    switches[layer] = 1 if agreed[1][layer] else 0
        return switches

    def _path(self, part: str, x: Tensor, p: list[Switch]) -> Tensor:
        for layer, (fine_tuned, frozen) in enumerate(
            zip(getattr(self.fine_tuned, part), getattr(self.frozen, part), strict=True), _FIRST[part]
        ):
            index = self.final_norm_index if isinstance(fine_tuned, nn.BatchNorm2d | nn.SyncBatchNorm) else layer
            x = _switched(fine_tuned, frozen, x, p[index])
        return x

    def _shortcut(self, part: str, x: Tensor, p: list[Switch]) -> Tensor:
        index = _FIRST[part]
        switch = p[index] if self.switch_top_skip or part != "shortcut0" else 0
        return _switched(getattr(self.fine_tuned, part), getattr(self.frozen, part), x, switch)


def _switched(fine_tuned: nn.Module, frozen: nn.Module, x: Tensor, p: Switch) -> Tensor:
    """fine_tuned(x) (1 - P) + frozen(x) P (2.5)."""
    if not isinstance(p, Tensor):
        out: Tensor = frozen(x) if p else fine_tuned(x)
    elif isinstance(fine_tuned, ResidualBlock) and isinstance(frozen, ResidualBlock):
        # Both have x as their shortcut, so it is added once.
        out = x + mix(fine_tuned.second(fine_tuned.first(x)), frozen.second(frozen.first(x)), p)
    else:
        out = mix(fine_tuned(x), frozen(x), p)
    return out
