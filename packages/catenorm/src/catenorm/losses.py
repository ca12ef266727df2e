"""Losses: Dice with cross-entropy in the forms of the authors' code and of the paper (2.5)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dart_core.errors import InputError, SettingError

EPSILON = 1e-6
LEAST_PROBABILITY = 0.005


def segmentation_loss(
    logits: Tensor,
    target: Tensor,
    form: Literal["code", "paper"] = "code",
    balance: float = 0.5,
    class_weights: bool = False,
) -> Tensor:
    """Dice and cross-entropy.

    code, two classes: 1 - mean over images and both classes of (2 sum p y + 1e-6) / (sum p + sum y + 1e-6), nothing else.
    code, more: Dice over the batch with squared denominators, mean over classes, plus the mean over pixels of
    -log max(p, 0.005): no gradient where the true class has less. paper: balance Dice + (1 - balance) CE, Dice over the batch
    with squared denominators, CE divided by the number of classes.

    Args:
        logits: (N, K, H, W).
        target: (N, H, W) int64, 0 to K - 1.
        form: code or paper.
        balance: the paper's lambda (0.5 for organs, 1 for prostates); paper form only.
        class_weights: weigh each class by 1 - its share of the batch's pixels.

    Returns:
        scalar.

    Raises:
        ValueError: shapes that do not fit, a label that is no class.
    """
    if logits.ndim != 4 or target.shape != (len(logits), *logits.shape[2:]):
        raise InputError(
            f"logits {tuple(logits.shape)} and labels {tuple(target.shape)} do not fit",
            remedy="give (N, K, H, W) and (N, H, W)",
        )
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    classes = wide.shape[1]
    p, y = wide.softmax(1), one_hot(target, classes).to(wide.dtype)
    weights = 1 - y.mean((0, 2, 3)) if class_weights else wide.new_ones(classes)
    if form == "paper":
        overlap, size = 2 * (p * y).sum((0, 2, 3)), (p.square() + y.square()).sum((0, 2, 3))
        dice = (weights * (1 - overlap / size.clamp(min=torch.finfo(size.dtype).tiny))).mean()
        # The weight of each pixel is that of its class; all are 1 where classes have no weights.
        entropy = -(y * wide.log_softmax(1) * weights[:, None, None]).sum(1).mean() / classes
        return balance * dice + (1 - balance) * entropy
    if form != "code":
        raise SettingError(f"form is {form!r}", remedy="give code or paper")
    if classes == 2:
        overlap, size = 2 * (p * y).sum((2, 3)), (p + y).sum((2, 3))
        return (weights * (1 - (overlap + EPSILON) / (size + EPSILON))).mean()
    overlap, size = 2 * (p * y).sum((0, 2, 3)), (p.square() + y.square()).sum((0, 2, 3))
    dice = (weights * (1 - (overlap + EPSILON) / (size + EPSILON))).mean()
    true = p.clamp(LEAST_PROBABILITY, 1).log() * y * weights[:, None, None]
    return dice - true.sum(1).mean()


def hard_dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Dice loss of the largest class over the batch, mean over classes with the background; for the scheduler and the log."""
    classes = logits.shape[1]
    p, y = one_hot(logits.argmax(1), classes).float(), one_hot(target, classes).float()
    overlap, size = 2 * (p * y).sum((0, 2, 3)), (p + y).sum((0, 2, 3))
    return (1 - (overlap + EPSILON) / (size + EPSILON)).mean()


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """(N, H, W) whole numbers -> (N, K, H, W) bool.

    Raises:
        ValueError: a label that is no class.
    """
    # On a GPU the comparison would wait for everything queued there; labels are checked where files are read.
    if labels.device.type == "cpu" and labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, there are {classes} classes",
            remedy="number the classes from 0 (background)",
        )
    return labels[:, None] == torch.arange(classes, device=labels.device)[:, None, None]
