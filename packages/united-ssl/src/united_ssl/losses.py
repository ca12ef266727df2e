"""The losses of the paper: discriminative, restorative, adversarial (Eq. 1 to 4, specification 2.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dart_core.errors import InputError, SettingError

Adversarial = Literal["wgan-gp", "wgan-gp-as-coded", "log"]
Norm = Literal["l2", "l1"]
Reduction = Literal["mean", "paper"]

WEIGHTS = (1.0, 100.0, 1.0)
"""Of the three losses (lambda_d, lambda_r, lambda_a)."""


def discriminative_loss(
    logits: Tensor | Sequence[Tensor], labels: Tensor | Sequence[Tensor], reduction: Reduction = "mean"
) -> Tensor:
    """L_d, Eq. 1: cross-entropy of the pretext classes.

    Args:
        logits: (N, K); for Rubik's Cube a pair: flags (N, 8), of which the binary cross-entropies are averaged, and orders
            (N, K).
        labels: (N,) integers; for Rubik's Cube the flags (N, 8) and (N,).
        reduction: mean over the batch as coded, or its sum (paper).

    Returns:
        Scalar; for Rubik's Cube the sum of both.
    """
    if isinstance(logits, Tensor):
        assert isinstance(labels, Tensor)
        return F.cross_entropy(logits, labels, reduction="mean" if reduction == "mean" else "sum")
    flags = F.binary_cross_entropy_with_logits(logits[0], labels[0].to(logits[0].dtype))
    if reduction == "paper":
        flags = flags * len(logits[0])
    return flags + discriminative_loss(logits[1], labels[1], reduction)


def restorative_loss(restored: Tensor, original: Tensor, norm: Norm = "l2", reduction: Reduction = "mean") -> Tensor:
    """L_r, Eq. 2, without its weight.

    Args:
        restored: (N, 1, H, W, D).
        original: of the same shape.
        norm: squared differences, or absolute ones.
        reduction: mean over the voxels as coded, or the sum over a cube's voxels and the mean over cubes (paper).
    """
    if restored.shape != original.shape:
        raise InputError(
            f"restored cubes have shape {tuple(restored.shape)}, the originals {tuple(original.shape)}",
            remedy="give the same",
        )
    if norm not in ("l2", "l1"):
        raise SettingError(f"norm is {norm!r}", remedy="give l2 or l1")
    difference = restored - original
    error = difference.square() if norm == "l2" else difference.abs()
    return error.mean() if reduction == "mean" else error.flatten(1).sum(1).mean()


def united_loss(
    logits: Tensor | Sequence[Tensor],
    labels: Tensor | Sequence[Tensor],
    restored: Tensor,
    original: Tensor,
    adversarial: float | Tensor = 0.0,
    weights: tuple[float, float, float] = WEIGHTS,
    norm: Norm = "l2",
    reduction: Reduction = "mean",
) -> Tensor:
    """Loss of encoder, head and decoder: lambda_d L_d + lambda_r L_r + lambda_a L_a (Eq. 4).

    Args:
        logits: see `discriminative_loss`.
        labels: see `discriminative_loss`.
        restored: (N, 1, H, W, D) in [0, 1].
        original: of the same shape.
        adversarial: what `generator_loss` gives; 0 without a critic.
        weights: lambda_d, lambda_r, lambda_a; 1, 100, 1 in the authors' program.
        norm: of L_r.
        reduction: means as coded, or the sums of Eq. 1 and 2.

    Returns:
        Scalar with gradient.

    Raises:
        SettingError: another norm or reduction.
        InputError: shapes differ.
    """
    if reduction not in ("mean", "paper"):
        raise SettingError(f"reduction is {reduction!r}", remedy="give mean or paper")
    loss = weights[0] * discriminative_loss(logits, labels, reduction)
    loss = loss + weights[1] * restorative_loss(restored, original, norm, reduction)
    return loss + weights[2] * adversarial


def _is_log(adversarial: str) -> bool:
    if adversarial not in ("wgan-gp", "wgan-gp-as-coded", "log"):
        raise SettingError(f"adversarial is {adversarial!r}", remedy="give wgan-gp, wgan-gp-as-coded or log")
    return adversarial == "log"


def critic_loss(real: Tensor, fake: Tensor, adversarial: Adversarial = "wgan-gp") -> Tensor:
    """What the critic minimises, without gradient penalty.

    Args:
        real: its values (N, ...) of original cubes.
        fake: of restored cubes.
        adversarial: wgan-gp: mean(fake) - mean(real). log: values are logits, and the loss is minus Eq. 3, which is the
            binary cross-entropy with 1 for real and 0 for restored cubes (2 ln 2 where it cannot tell).

    Raises:
        SettingError: another word.
    """
    if _is_log(adversarial):
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    return fake.mean() - real.mean()


def generator_loss(fake: Tensor, adversarial: Adversarial = "wgan-gp", minimax: bool = False) -> Tensor:
    """L_a, Eq. 3: what encoder and decoder minimise.

    Args:
        fake: the critic's values (N, ...) of restored cubes.
        adversarial: wgan-gp: mean(-fake). log: mean(-log A), which does not saturate.
        minimax: for log: mean(log(1 - A)), as Eq. 3 has it.

    Raises:
        SettingError: another word, or minimax without log.
    """
    if _is_log(adversarial):
        return -F.softplus(fake).mean() if minimax else F.softplus(-fake).mean()
    if minimax:
        raise SettingError("minimax is a form of the log loss", remedy="give adversarial='log'")
    return -fake.mean()


def gradient_penalty(
    critic: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    condition: Tensor,
    alpha: Tensor | None = None,
    adversarial: Adversarial = "wgan-gp",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean over the batch of (1 - |g|)^2, g the gradient of the critic at z = alpha real + (1 - alpha) fake.

    wgan-gp (corrected): the critic sees (z, condition); g is the gradient of the mean over its map with respect to z.
    wgan-gp-as-coded: the critic sees (z, z), and g is the gradient of the sum over its map with respect to both channels.

    Args:
        critic: gets (N, 2 C, ...), gives (N, ...).
        real: original cubes (N, C, ...).
        fake: restored cubes; no gradient goes back into them.
        condition: the distorted cubes that both belong to.
        alpha: (N, 1, 1, 1, 1), drawn from U(0, 1) if None.
        adversarial: see above.
        generator: of the draw.

    Returns:
        Scalar without weight, with gradient into the critic.

    Raises:
        SettingError: another word.
    """
    if _is_log(adversarial):
        raise SettingError("the log loss has no gradient penalty", remedy="give wgan-gp or wgan-gp-as-coded")
    if alpha is None:
        shape = (len(real), *[1] * (real.dim() - 1))
        alpha = torch.rand(shape, generator=generator, device=real.device, dtype=real.dtype)
    z = (alpha * real + (1 - alpha) * fake).detach()
    as_coded = adversarial == "wgan-gp-as-coded"
    if as_coded:
        z = torch.cat([z, z], 1)
    with torch.enable_grad():
        z.requires_grad_(True)
        values = critic(z if as_coded else torch.cat([z, condition.detach()], 1))
        whole = values.sum() if as_coded else values.reshape(len(z), -1).mean(1).sum()
        (gradient,) = torch.autograd.grad(whole, z, create_graph=True)
    # The root has no derivative at 0, where a critic that is constant would put it.
    square = gradient.flatten(1).square().sum(1)
    norm = torch.where(square > 0, square, 1.0).sqrt() * (square > 0)
    return (1 - norm).square().mean()
