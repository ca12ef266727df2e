"""Unlearning a nuisance variable: losses, gradient reversal, and one step of every configuration, in the order of the paper.

Bevan, Atapour-Abarghouei, "Detecting Melanoma Fairly: Skin Tone Detection and Debiasing for Skin Lesion Classification",
DART 2022, section 3.1; after "Learning Not to Learn" (LNTL, Kim et al. 2019) and "Turning a Blind Eye" (TABE, Alvi et al.
2018). Paragraph numbers are those of the specification. Features F (B, K) come from the encoder, the main head gives a
logit for malignant, each auxiliary head n logits for the nuisance (skin type).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from dart_core.errors import InputError, SettingError
from skintone_debias.recipes import ALPHA, LR_BASE, LR_CLASS, MOMENTUM, RECIPES, SCALE, WEIGHT, Recipe

if TYPE_CHECKING:
    from dart_core.run import Run

Target = Literal["uniform", "noise"]
ZeroGradMode = Literal["none", "zero"]

# --- Losses (B1 to B5) -----------------------------------------------------------------------------------------------


def main_loss(main_logits: Tensor, y: Tensor) -> Tensor:
    """Mean binary cross-entropy (B1).

    Args:
        main_logits: (B, 1) or (B,).
        y: (B, 1) or (B,) of 0 and 1, any type.
    """
    logits = _full(main_logits).reshape(-1)
    return F.binary_cross_entropy_with_logits(logits, y.reshape(-1).to(logits.dtype))


def negative_entropy(aux_logits: Tensor) -> Tensor:
    """Mean over samples of sum_k p_k log p_k, from -log n (uniform) to 0 (B3).

    Args:
        aux_logits: (B, n).
    """
    # log_softmax, not the log of a softmax: confident heads would give 0 * -inf.
    log_p = F.log_softmax(_full(aux_logits), dim=1)
    return (log_p.exp() * log_p).sum(1).mean()


def lntl_loss(main_logits: Tensor, y: Tensor, aux_logits: Tensor, weight: float = WEIGHT) -> Tensor:
    """First loss of LNTL: the main loss plus the weighted negative entropy of the auxiliary head (B3).

    Args:
        main_logits: (B, 1) or (B,).
        y: (B, 1) or (B,) of 0 and 1.
        aux_logits: (B, n).
        weight: lambda.
    """
    return main_loss(main_logits, y) + weight * negative_entropy(aux_logits)


def confusion_loss(
    aux_logits: Tensor, alpha: float = ALPHA, target: Target = "uniform", noise: Tensor | None = None
) -> Tensor:
    """TABE's confusion loss: cross-entropy of the auxiliary head with a target that knows nothing (B5).

    Args:
        aux_logits: (B, n).
        alpha: weight, part of the result.
        target: uniform: 1/n, as in the paper; noise: a random number for each sample and class, as in the authors' program.
            Its expectation is n/2 times the uniform one.
        noise: (B, n), the random numbers; None draws them from U(0, 1).

    Raises:
        ValueError: noise of another shape, noise for the uniform target, or an unknown target.
    """
    log_p = F.log_softmax(_full(aux_logits), dim=1)
    if target == "uniform":
        if noise is not None:
            raise SettingError("noise has no meaning for the target 'uniform'", remedy="leave it out")
        return -alpha * log_p.mean(1).mean()
    if target != "noise":
        raise SettingError(f"unknown confusion target {target!r}", remedy="give uniform or noise")
    if noise is None:
        noise = torch.rand_like(log_p)
    if noise.shape != log_p.shape:
        raise InputError(f"noise has shape {tuple(noise.shape)}", remedy=f"give {tuple(log_p.shape)}")
    return -alpha * (noise.to(log_p) * log_p).sum(1).mean()


def auxiliary_loss(aux_logits: Tensor, s: Tensor, class_weights: Tensor | ArrayLike) -> Tensor:
    """Weighted cross-entropy of an auxiliary head, divided by the sum of the samples' weights (B2).

    Args:
        aux_logits: (B, n).
        s: (B,) int64, from 0 to n-1.
        class_weights: (n,).

    Raises:
        ValueError: not one weight per class.
    """
    logits = _full(aux_logits)
    weights = torch.as_tensor(class_weights, dtype=logits.dtype, device=logits.device)
    if weights.shape != logits.shape[1:]:
        raise InputError(
            f"there are {weights.numel()} class weights for {logits.shape[1]} classes",
            remedy="give one weight for each type in the training table",
        )
    return F.cross_entropy(logits, s.long(), weights)


def class_weights(counts: Tensor | ArrayLike) -> Tensor:
    """Weights of the nuisance's classes: inverse shares, scaled to a sum of 1 (B2).

    Args:
        counts: (n,) pictures of each class in the training table.

    Returns:
        (n,) float64, or the type of a floating tensor.

    Raises:
        ValueError: a class without pictures, or nothing that counts.
    """
    given = torch.as_tensor(counts)
    values = given if given.is_floating_point() else given.double()
    if values.dim() != 1 or not len(values) or not bool(torch.isfinite(values).all()) or bool((values < 0).any()):
        raise InputError("the counts of the classes must be a list of numbers from 1 on")
    empty = [k for k, count in enumerate(values.tolist()) if count == 0]
    if empty:
        raise InputError(f"class {empty[0]} has no training picture", remedy="leave the class out, or add pictures")
    inverse = 1 / values
    return inverse / inverse.sum()


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.scale * gradient, None


def reverse_gradient(x: Tensor, scale: float = SCALE) -> Tensor:
    """The same values; their gradient comes back multiplied by `scale` (B4)."""
    reversed_: Tensor = _ReverseGradient.apply(x, scale)
    return reversed_


def _full(logits: Tensor) -> Tensor:
    """Losses are computed in float32 or float64 whatever the networks run in."""
    return logits if logits.dtype == torch.float64 else logits.float()


# --- Optimisers (B7) -------------------------------------------------------------------------------------------------


def debias_optimizers(
    encoder: nn.Module,
    main_head: nn.Module,
    aux_heads: Sequence[nn.Module],
    method: str,
    lr_base: float = LR_BASE,
    lr_class: float = LR_CLASS,
    momentum: float = MOMENTUM,
    *,
    encoder_lr: float | None = None,
) -> dict[str, Any]:
    """The optimisers of a configuration: plain SGD with momentum, no weight decay, no schedule (B7).

    Args:
        encoder: gives the features.
        main_head: for malignant.
        aux_heads: one per nuisance; none for method "none".
        method: a key of RECIPES.
        lr_base: of encoder and main head, and of LNTL's heads.
        lr_class: of TABE's heads and of the encoder's second optimiser.
        momentum: of all of them.
        encoder_lr: the encoder's rate in the main optimiser where it is another than `lr_base`: the learning-rate control
            (paragraph 4.4) is method "none" with `lr_base` + `lr_class` here.

    Returns:
        "main": encoder + main head; "confusion": encoder, or None; "auxiliary": a list with one per head.

    Raises:
        ValueError: unknown method, or another number of heads than it has.
    """
    recipe = _recipe(method, len(aux_heads))
    rates = {"base": lr_base, "class": lr_class}
    encoder_group: dict[str, Any] = {
        "params": list(encoder.parameters()),
        "lr": lr_base if encoder_lr is None else encoder_lr,
    }
    groups = [encoder_group, {"params": list(main_head.parameters())}]
    confusion = torch.optim.SGD(encoder.parameters(), lr_class, momentum) if recipe.confusion else None
    heads = zip(aux_heads, recipe.heads, strict=True)
    return {
        "main": torch.optim.SGD(groups, lr_base, momentum),
        "confusion": confusion,
        "auxiliary": [torch.optim.SGD(head.parameters(), rates[rate], momentum) for head, rate in heads],
    }


def _recipe(method: str, heads: int) -> Recipe:
    if method not in RECIPES:
        raise SettingError(f"unknown method {method!r}", remedy=f"give one of {', '.join(RECIPES)}")
    recipe = RECIPES[method]
    if heads != len(recipe.heads):
        raise SettingError(f"method {method!r} has {len(recipe.heads)} auxiliary heads, {heads} are given")
    return recipe


# --- One step (B6) ---------------------------------------------------------------------------------------------------


def debias_step(
    encoder: nn.Module,
    main_head: nn.Module,
    aux_heads: Sequence[nn.Module],
    optimizers: Mapping[str, Any],
    x: Tensor,
    y: Tensor,
    s: Sequence[Tensor],
    method: str,
    class_weights: Sequence[Tensor],
    *,
    reverse: bool | None = None,
    weight: float = WEIGHT,
    alpha: float = ALPHA,
    target: Target = "uniform",
    noise: Sequence[Tensor | None] | None = None,
    authors_both: bool = False,
    scale: float = SCALE,
    zero_grad_mode: ZeroGradMode = "none",
    aux_first: bool = False,
    aux_updates_encoder: bool = True,
    run: Run | None = None,
) -> dict[str, Any]:
    """One iteration: two phases on the same mini-batch, each with its own forward pass (B6).

    Phase 1 steps encoder and main head on the first loss, then (TABE, CLGR) the encoder a second time, by an optimiser of
    its own, on the same gradients. Phase 2 trains the auxiliary heads, and steps the encoder once more by the gradient
    that comes back from them, reversed or not. Method "none" is phase 1 alone.

    Args:
        encoder: x -> features (B, K); any module.
        main_head: features -> (B, 1) or (B,).
        aux_heads: features -> (B, n), one per nuisance.
        optimizers: of `debias_optimizers`.
        x: pictures, whatever the encoder takes.
        y: (B,) or (B, 1), 1 = malignant.
        s: for each head (B,) int64.
        method: none, lntl, lntl-nogr, tabe, clgr, both, double-tabe, double-lntl.
        class_weights: for each head (n,).
        reverse: reverse gradients in phase 2; None: as the method does (off for none, lntl-nogr and tabe).
        weight: of the negative entropy.
        alpha: of the confusion loss.
        target: of the confusion loss.
        noise: target "noise": for each head (B, n); None draws them.
        authors_both: method both: confusion from the first head as well, as the authors' program has it, not from the
            second (B7).
        scale: factor of reversed gradients.
        zero_grad_mode: how gradients are cleared before each phase. none: forgotten, so that phase 2 leaves the main head
            alone; zero: set to 0 as PyTorch did before version 2, so that its momentum moves it in phase 2 too (B8).
        aux_first: phase 2 before phase 1, the order of the paper's text.
        aux_updates_encoder: False: phase 2 trains the heads alone, as in the original TABE; then nothing is reversed.
        run: its precision and gradient scaling are used where it is given; of several processes each gives its share of the
            mini-batch, and the mean of their losses is that of the whole.

    Returns:
        "loss_first": the scalar of phase 1; "loss_auxiliary": one scalar for each head; both without gradient.

    Raises:
        ValueError: unknown method; another number of heads, labels or weights than it has; gradients that are to be
            reversed and never reach the encoder; noise for the uniform target.
    """
    recipe = _recipe(method, len(aux_heads))
    heads = len(recipe.heads)
    for name, given in (
        ("s", s),
        ("class_weights", class_weights),
        ("optimizers['auxiliary']", optimizers["auxiliary"]),
    ):
        if heads and len(given) != heads:
            raise SettingError(f"{name} holds {len(given)}; method {method!r} has {heads} auxiliary heads")
    reverse = recipe.reverse if reverse is None else reverse
    if reverse and heads and not aux_updates_encoder:
        raise SettingError(
            "gradients cannot be reversed where the auxiliary loss does not reach the encoder",
            remedy="leave aux_updates_encoder on, or give reverse=False",
        )
    if target == "uniform" and any(drawn is not None for drawn in noise or ()):
        raise SettingError("noise has no meaning for the target 'uniform'", remedy="leave it out")
    if zero_grad_mode not in ("none", "zero"):
        raise SettingError(f"unknown zero_grad_mode {zero_grad_mode!r}", remedy="give none or zero")
    main, confusion, auxiliary = optimizers["main"], optimizers["confusion"], list(optimizers["auxiliary"])
    every = [main, *([] if confusion is None else [confusion]), *auxiliary]
    from_heads = recipe.entropy if method == "both" and authors_both else recipe.confusion
    noises = list(noise) if noise is not None else [None] * heads

    def first_loss() -> Tensor:
        features = encoder(x)
        loss = main_loss(main_head(features), y)
        logits = {k: aux_heads[k](features) for k in sorted({*recipe.entropy, *from_heads})}
        for k in recipe.entropy:
            loss = loss + weight * negative_entropy(logits[k])
        for k in from_heads:
            loss = loss + confusion_loss(logits[k], alpha, target, noises[k])
        return loss

    def auxiliary_losses() -> list[Tensor]:
        with contextlib.nullcontext() if aux_updates_encoder else torch.no_grad():
            features = encoder(x)
        features = reverse_gradient(features, scale) if reverse else features
        losses = [auxiliary_loss(aux_heads[k](features), s[k], class_weights[k]) for k in range(heads)]
        return [_joint(run, loss, s[k], class_weights[k]) for k, loss in enumerate(losses)]

    def phase_1() -> Tensor:
        _clear(every, zero_grad_mode)
        with _autocast(run):
            loss = first_loss()
        # Both optimisers of the encoder use the same gradients; those of the auxiliary heads go unused.
        _descend(run, loss, [main] if confusion is None else [main, confusion])
        return loss.detach()

    def phase_2() -> list[Tensor]:
        _clear(every, zero_grad_mode)
        with _autocast(run):
            losses = auxiliary_losses()
        _descend(run, torch.stack(losses).sum(), [main, *auxiliary] if aux_updates_encoder else auxiliary)
        return [loss.detach() for loss in losses]

    if not heads:
        return {"loss_first": phase_1(), "loss_auxiliary": []}
    if aux_first:
        losses = phase_2()
        return {"loss_first": phase_1(), "loss_auxiliary": losses}
    return {"loss_first": phase_1(), "loss_auxiliary": phase_2()}


def _joint(run: Run | None, loss: Tensor, s: Tensor, weights: Tensor | ArrayLike) -> Tensor:
    """A process's auxiliary loss, so that the mean over processes is divided by the weights of all samples, not of its own (B2)."""
    if run is None or run.world_size == 1:
        return loss
    own = torch.as_tensor(weights, dtype=loss.dtype, device=loss.device)[s.long()].sum()
    return loss * (own / run.mean(own))


def _clear(optimizers: Iterable[torch.optim.Optimizer], mode: ZeroGradMode) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=mode == "none")


def _autocast(run: Run | None) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if run is None else run.autocast()


def _descend(run: Run | None, loss: Tensor, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    if run is not None:
        run.backward(loss)
        run.step_optimizers(*optimizers)
        return
    torch.autograd.backward(loss)
    for optimizer in optimizers:
        optimizer.step()
