"""Losses of binary segmentation: cross-entropy, soft Dice and their weighted sum.

All take logits and targets (B, ...) of equal shape, the target of any type with values in [0, 1]. float16 and bfloat16
logits are computed in float32; float32 and float64 stay what they are.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def binary_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of sigmoid(logits), mean over all pixels of the batch.

    Args:
        logits: (B, ...).
        target: (B, ...), values in [0, 1].

    Raises:
        ValueError: the shapes differ.
    """
    logits, target = _prepared(logits, target)
    return F.binary_cross_entropy_with_logits(logits, target)


def soft_dice(logits: Tensor, target: Tensor, epsilon: float = 1e-7) -> Tensor:
    """Soft Dice loss, mean over the batch of 1 - 2 sum(p y) / (sum(p² + y²) + epsilon), p = sigmoid(logits).

    The sums run over each sample. A sample with an empty target costs 1 whatever is predicted (library deep-pipe,
    which the authors of fda-mri and SpotTUNet use).

    Args:
        logits: (B, ...).
        target: (B, ...), values in [0, 1].
        epsilon: keeps the quotient defined.

    Raises:
        ValueError: the shapes differ.
    """
    logits, target = _prepared(logits, target)
    p = torch.sigmoid(logits).flatten(1)
    y = target.flatten(1)
    overlap = (p * y).sum(1)
    size = (p * p).sum(1) + (y * y).sum(1)
    return (1 - 2 * overlap / (size + epsilon)).mean()


def bce_dice(logits: Tensor, target: Tensor, bce_weight: float = 0.4, dice_weight: float = 0.6) -> Tensor:
    """Weighted sum of `binary_cross_entropy` and `soft_dice`.

    Args:
        logits: (B, ...).
        target: (B, ...), values in [0, 1].
        bce_weight: weight of the cross-entropy.
        dice_weight: weight of the soft Dice loss.

    Raises:
        ValueError: the shapes differ.
    """
    return bce_weight * binary_cross_entropy(logits, target) + dice_weight * soft_dice(logits, target)


def _prepared(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if logits.shape != target.shape:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}, the target {tuple(target.shape)}; they must be equal"
        )
    if logits.ndim < 2:
        raise ValueError(f"logits have shape {tuple(logits.shape)}; they need a batch axis in front")
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return logits, target.to(logits.dtype)
