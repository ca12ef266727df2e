"""CateNorm in the order of the paper: the layer, the residual block, both stages, prediction, schedule (the losses are in `losses.py`).

Xiao et al., "CateNorm: Categorical Normalization for Robust Medical Image Segmentation", DART 2022; paragraphs in brackets are
those of the specification. Shapes: N images, C channels, K classes with the background, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Protocol, get_args, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dart_core.data import scans
from dart_core.data.slices import evaluating
from dart_core.errors import InputError, SettingError

MaskMode = Literal["soft", "nearest", "hard"]
Form = Literal["one_plus_gamma", "paper"]
Norm = Literal["bn", "in", "gn"]
Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits (N, K, H, W), labels (N, H, W)) -> scalar."""

GROUPS = 16
CLIP = 0.1


# --- The layer (paper eq. 2; 2.1) -------------------------------------------------------------------------------------


class CateNorm2d(nn.Module):
    """Batch norm without parameters, then a scale and a shift per pixel that two convolutions read from a class mask.

    Its running statistics are its own: what comes here is distributed otherwise than in the BN branch beside it.

    Args:
        channels: C of the input.
        classes: K of the mask, with the background.
        mask_mode: how the mask gets the size of the input. soft: bilinear, corners aligned; nearest: nearest pixel of the soft
            mask (what the authors' code calls hard); hard: one-hot of the largest class, then nearest.
        form: one_plus_gamma: xhat (1 + gamma) + beta (authors' code); paper: xhat gamma + beta (eq. 2), which starts near 0.
        reduction: the shared convolution has C // reduction channels.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        mask_mode: MaskMode = "soft",
        form: Form = "one_plus_gamma",
        reduction: int = 2,
    ) -> None:
        super().__init__()
        _one_of("mask_mode", mask_mode, MaskMode)
        _one_of("form", form, Form)
        if reduction < 1 or channels // reduction < 1:
            raise SettingError(f"{channels} channels divided by {reduction} leave none", remedy="lower the reduction")
        self.classes, self.mask_mode, self.form = classes, mask_mode, form
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.shared = nn.Conv2d(classes, channels // reduction, 3, padding=1)
        self.gamma = nn.Conv2d(channels // reduction, channels, 3, padding=1)
        self.beta = nn.Conv2d(channels // reduction, channels, 3, padding=1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Normalise.

        Args:
            x: (N, C, H, W).
            mask: (N, K, h, w) probabilities, of any size.

        Returns:
            (N, C, H, W).

        Raises:
            ValueError: another number of images or classes.
        """
        if mask.ndim != 4 or mask.shape[0] != x.shape[0] or mask.shape[1] != self.classes:
            raise InputError(
                f"the mask has shape {tuple(mask.shape)} for an input of {tuple(x.shape)}",
                remedy=f"give the probabilities of {self.classes} classes for each image",
            )
        gamma, beta = self.modulation(mask, x.shape[-2:])
        scale = 1 + gamma if self.form == "one_plus_gamma" else gamma
        normalised: Tensor = self.norm(x)
        return normalised * scale + beta  # Eq. 2

    def modulation(self, mask: Tensor, size: Iterable[int]) -> tuple[Tensor, Tensor]:
        """gamma and beta (N, C, H, W) for a mask (N, K, h, w) and the size (H, W) of the input (Fig. 6)."""
        activated = F.relu(self.shared(resize_mask(mask, size, self.mask_mode)))
        return self.gamma(activated), self.beta(activated)


def resize_mask(mask: Tensor, size: Iterable[int], mode: MaskMode = "soft") -> Tensor:
    """A mask (N, K, h, w) at another size (H, W); see `CateNorm2d`."""
    sides = [int(side) for side in size]
    if mode == "soft":
        if list(mask.shape[2:]) == sides:
            return mask
        return F.interpolate(mask, sides, mode="bilinear", align_corners=True)
    if mode == "hard":
        mask = F.one_hot(mask.argmax(1), mask.shape[1]).movedim(-1, 1).to(mask.dtype)
    return F.interpolate(mask, sides, mode="nearest")


# --- The residual block (paper Fig. 2b; 2.2) --------------------------------------------------------------------------


class PairedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with one affine and, for either pass, running statistics of its own (option of 2.3)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.second = nn.BatchNorm2d(channels, affine=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The first pass's statistics without mask, the second's with one."""
        if mask is None:
            return super().forward(x)
        assert self.weight is not None  # it is affine
        assert self.bias is not None
        normalised: Tensor = self.second(x)
        return normalised * self.weight[:, None, None] + self.bias[:, None, None]


def make_norm(norm: Norm, channels: int, separate_statistics: bool = False) -> nn.Module:
    """A normalisation with the affine that the baselines have (4): bn, in (no affine, no running statistics), gn (16 groups).

    Where 16 does not divide the channels, there are as many groups as divide both.
    """
    _one_of("norm", norm, Norm)
    if norm == "in":
        return nn.InstanceNorm2d(channels)
    if norm == "gn":
        return nn.GroupNorm(math.gcd(GROUPS, channels), channels)
    return PairedBatchNorm2d(channels) if separate_statistics else nn.BatchNorm2d(channels)


def normalise(norm: nn.Module, cate: nn.Module | None, x: Tensor, mask: Tensor | None) -> Tensor:
    """One branch of a pair: categorical where there is a mask and a CN layer to read it, else the other."""
    if cate is not None and mask is not None:
        return _tensor(cate(x, mask))
    return _tensor(norm(x, mask) if isinstance(norm, PairedBatchNorm2d) else norm(x))


class CateNormResidualBlock(nn.Module):
    """Pre-activation block C -> C with a pair of branches in each of its two places; both branches share the convolutions.

    Without mask both places normalise by BN, with a mask both by CateNorm; branches are never mixed.

    Args:
        channels: C.
        classes: K of the mask, with the background.
        categorical: False leaves the CN layers out: the mask is ignored.
        norm: what the other branch is.
        mask_mode: see `CateNorm2d`.
        form: see `CateNorm2d`.
        reduction: see `CateNorm2d`.
        bias: of the convolutions.
        separate_statistics: a block without CN layers keeps running statistics for each pass.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        categorical: bool = True,
        norm: Norm = "bn",
        mask_mode: MaskMode = "soft",
        form: Form = "one_plus_gamma",
        reduction: int = 2,
        bias: bool = True,
        separate_statistics: bool = False,
    ) -> None:
        super().__init__()

        def cate() -> CateNorm2d | None:
            return CateNorm2d(channels, classes, mask_mode, form, reduction) if categorical else None

        separate = separate_statistics and not categorical
        self.norm1, self.cate1 = make_norm(norm, channels, separate), cate()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=bias)
        self.norm2, self.cate2 = make_norm(norm, channels, separate), cate()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W); mask (N, K, h, w) of any size."""
        out = self.conv1(F.relu(normalise(self.norm1, self.cate1, x, mask)))
        out = self.conv2(F.relu(normalise(self.norm2, self.cate2, out, mask)))
        return _tensor(out + x)


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """theta_NC: all of the CN layers; theta_NB: the affine beside CN layers, used in the first pass only; theta_s: all others.

    Args:
        model: with CN layers named cate, cate1, ... whose other branch is norm, norm1, ... (or the module that holds it).

    Returns:
        "shared", "bn", "catenorm"; every parameter in one of them.
    """
    modules = dict(model.named_modules())
    cate = [name for name, module in modules.items() if isinstance(module, CateNorm2d)]
    groups: dict[str, list[nn.Parameter]] = {"shared": [], "bn": [], "catenorm": []}
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        if any(name.startswith(f"{layer}.") for layer in cate):
            groups["catenorm"].append(parameter)
        elif isinstance(getattr(modules[owner], "cate", None), CateNorm2d) or _replaced(owner, cate):
            groups["bn"].append(parameter)
        else:
            groups["shared"].append(parameter)
    return groups


def _replaced(owner: str, cate: list[str]) -> bool:
    """Whether a module stands beside a CN layer: a.norm1 beside a.cate1."""
    prefix, _, last = owner.rpartition(".")
    return last.startswith("norm") and f"{prefix}.{last.replace('norm', 'cate', 1)}".lstrip(".") in cate


# --- Both stages (paper Algorithm 1, eqs 3-5; 2.3) --------------------------------------------------------------------


class Descend(Protocol):
    """Backward pass of a loss and one step of the optimiser."""

    def __call__(self, loss: Tensor, clip: float | None) -> None:
        """Descend; every element of the gradients is cut to [-clip, clip] before the step where `clip` is given."""


def descend_with(optimizer: torch.optim.Optimizer) -> Descend:
    """In full precision. Gradients are forgotten first, not set to 0: Adam then leaves what has none alone."""

    def descend(loss: Tensor, clip: float | None) -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if clip is not None:
            nn.utils.clip_grad_value_([p for group in optimizer.param_groups for p in group["params"]], clip)
        optimizer.step()
        # Autocast keeps its copies of the weights until it is left: a second pass inside it would go by the old ones.
        torch.clear_autocast_cache()

    return descend


def two_stage_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    loss: Loss,
    *,
    clip: float = CLIP,
    clip_first: bool = False,
    mask: Tensor | None = None,
) -> dict[str, Tensor]:
    """One iteration: a BN pass and a step, then a CN pass with the updated weights and a step, on the same batch.

    The mask is the softmax of the first pass's logits: of the weights before the first step, in training mode, detached.

    Args:
        model: forward(x, mask=None) -> logits (N, K, H, W); put into training mode.
        optimizer: one, over all parameters.
        x: (N, C, H, W).
        y: (N, H, W) labels.
        loss: (logits, y) -> scalar.
        clip: limit of every element of the second stage's gradients.
        clip_first: cut the first stage's gradients too (off in the authors' code).
        mask: (N, K, h, w) instead of the softmax, such as the true labels (an upper bound).

    Returns:
        "loss_first" and "loss_second", scalars without gradient; "logits" (N, K, H, W) of the second pass.
    """
    model.train()
    descend = descend_with(optimizer)
    logits = model(x)  # Eq. 3
    first = loss(logits, y)
    # Before the step: logits may share memory with weights.
    mask = class_probabilities(logits) if mask is None else mask
    descend(first, clip if clip_first else None)  # Eq. 5, alpha = 1: theta_s and theta_NB
    logits = model(x, mask)  # Eq. 4
    second = loss(logits, y)
    descend(second, clip)  # Eq. 5, alpha = 0: theta_s and theta_NC
    return {"loss_first": first.detach(), "loss_second": second.detach(), "logits": logits.detach()}


def one_stage_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    loss: Loss,
    clip: float = CLIP,
    *more: Tensor,
) -> dict[str, Tensor]:
    """One iteration of a network with one pass (warm-up and the baselines BN, IN, GN, DSBN): "loss" and "logits".

    What `more` holds, such as the sites of the images, the network gets behind x.
    """
    model.train()
    logits = model(x, *more)
    value = loss(logits, y)
    descend_with(optimizer)(value, clip)
    return {"loss": value.detach(), "logits": logits.detach()}


def class_probabilities(logits: Tensor) -> Tensor:
    """The mask that the second pass gets: softmax over classes, no gradient."""
    return logits.detach().softmax(1)


# --- Prediction (2.4) -------------------------------------------------------------------------------------------------


@torch.no_grad()
def two_pass(model: nn.Module, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Logits (N, K, H, W) of the BN pass and of the CN pass, in evaluation mode; modes are put back.

    Args:
        model: forward(x, mask=None).
        x: (N, C, H, W).
        mask: (N, K, h, w) instead of the first pass's softmax.
    """
    with evaluating(model):
        first = model(x)
        return first, model(x, first.softmax(1) if mask is None else mask)


@overload
def largest_component(mask: Tensor) -> Tensor: ...


@overload
def largest_component(mask: NDArray[Any]) -> NDArray[np.bool_]: ...


def largest_component(mask: Any) -> Any:
    """The largest connected part of a mask, neighbours across faces; an empty mask stays empty (8.3).

    Args:
        mask: (H, W) or (D, H, W), an array, or a tensor on any device; what is not 0 counts.

    Returns:
        Of the same shape, bool: an array for an array, a tensor on the same device for a tensor.
    """
    if isinstance(mask, Tensor):
        return torch.from_numpy(scans.largest_component((mask != 0).cpu().numpy())).to(mask.device)
    return scans.largest_component(np.asarray(mask))


# --- Schedule (2.6) ---------------------------------------------------------------------------------------------------


class Plateau:
    """Halves the learning rate where the mean hard Dice loss of windows of iterations stops falling.

    Args:
        optimizer: whose rate it is.
        window: iterations whose mean it is told at once.
        factor: of the rate.
        patience: windows without a new best.
        stop_rate: nothing more is done from this rate on.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        window: int = 50,
        factor: float = 0.5,
        patience: int = 5,
        stop_rate: float = 1e-5,
    ) -> None:
        self.optimizer, self.window, self.stop_rate = optimizer, window, stop_rate
        self.options: dict[str, Any] = {"mode": "min", "factor": factor, "patience": patience}
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **self.options)
        self.losses: list[Tensor] = []

    @property
    def rate(self) -> float:
        """The learning rate now."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, loss: Tensor) -> None:
        """One iteration's hard Dice loss; it is looked at once per window, so that a GPU need not wait."""
        self.losses.append(loss.detach())
        if len(self.losses) == self.window:
            if self.rate > self.stop_rate:
                self.scheduler.step(float(torch.stack([loss.cpu() for loss in self.losses]).mean()))
            self.losses.clear()

    def restart(self, rate: float) -> None:
        """Begin again at a rate, with a new optimiser's empty state."""
        self.optimizer.state.clear()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.forget()

    def forget(self) -> None:
        """Look for a new best from here on; the rate and the optimiser stay as they are."""
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, **self.options)
        self.losses.clear()

    def state_dict(self) -> dict[str, Any]:
        """Window and scheduler."""
        return {"losses": [float(loss) for loss in self.losses], "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them on."""
        self.losses = [torch.tensor(loss) for loss in state["losses"]]
        self.scheduler.load_state_dict(dict(state["scheduler"]))


def _one_of(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise SettingError(f"{name} is {value!r}", remedy=f"give one of {', '.join(get_args(choices))}")


def _tensor(value: Any) -> Tensor:
    """What a module returned, for the type checker."""
    result: Tensor = value
    return result
