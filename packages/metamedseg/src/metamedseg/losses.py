"""Losses of meta-training and fine-tuning (specification 2.5).

All take logits and masks of equal shape (N, ...), p = sigmoid(logits), g = mask; sums run over the whole batch unless said.
float16 and bfloat16 logits are computed in float32; float32 and float64 stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

PosWeight = Literal["ratio", "none"]
Loss = Callable[[Tensor, Tensor], Tensor]


def bce(logits: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy, mean over pixels."""
    logits, g = _prepared(logits, mask)
    return F.binary_cross_entropy_with_logits(logits, g)


def weighted_bce(logits: Tensor, mask: Tensor, pos_weight: PosWeight = "ratio") -> Tensor:
    """Binary cross-entropy whose positive term counts n_neg / n_pos of its image, mean over pixels.

    Args:
        logits: (N, ...), or one image (H, W).
        mask: likewise.
        pos_weight: "ratio", an image without foreground getting weight 1; "none": plain BCE, as the authors' program
            effectively computes.
    """
    if pos_weight == "none":
        return bce(logits, mask)
    logits, g = _prepared(logits, mask)
    images = g.flatten(1) if g.ndim > 2 else g.reshape(1, -1)
    positive = images.sum(1, keepdim=True)
    ratio = torch.where(positive > 0, (images.shape[1] - positive) / positive.clamp(min=1e-12), 1.0)
    return F.binary_cross_entropy_with_logits(logits.reshape(images.shape), images, pos_weight=ratio)


def iou(logits: Tensor, mask: Tensor, per_image: bool = False) -> Tensor:
    """1 - (I + 1) / (U + 1) with I = sum p g and U = sum (p + g) - I (Rahman and Wang).

    Args:
        logits: (N, ...).
        mask: likewise.
        per_image: sums over each image and the mean of their losses, instead of sums over the batch.
    """
    return (1 - _soft_iou(logits, mask, per_image)).mean()


def combined(logits: Tensor, mask: Tensor, pos_weight: PosWeight = "ratio") -> Tensor:
    """Eq. 4: BCE - ln(2 IoU / (IoU + 1)); the logarithm's argument is the Dice coefficient.

    Args:
        logits: (N, ...).
        mask: likewise.
        pos_weight: of the BCE, as in `weighted_bce`.
    """
    overlap = _soft_iou(logits, mask)
    return weighted_bce(logits, mask, pos_weight) - torch.log(2 * overlap / (overlap + 1))  # Eq. 4


def dice(logits: Tensor, mask: Tensor) -> Tensor:
    """1 - (2 sum p g + 1) / (sum p + sum g + 1)."""
    logits, g = _prepared(logits, mask)
    p = torch.sigmoid(logits)
    return 1 - (2 * (p * g).sum() + 1) / (p.sum() + g.sum() + 1)


def generalised_dice(logits: Tensor, mask: Tensor) -> Tensor:
    """Generalised Dice of foreground and background, each weighted by 1 / (sum g)^2 (Sudre et al.)."""
    logits, g = _prepared(logits, mask)
    p = torch.sigmoid(logits)
    pairs = ((p, g), (1 - p, 1 - g))
    weights = [1 / (truth.sum() ** 2 + 1e-6) for _, truth in pairs]
    both = sum(w * (found * truth).sum() for w, (found, truth) in zip(weights, pairs, strict=True))
    total = sum(w * (found + truth).sum() for w, (found, truth) in zip(weights, pairs, strict=True))
    return torch.as_tensor(1 - 2 * both / (total + 1e-6))


def tversky(logits: Tensor, mask: Tensor, fn: float = 0.8, fp: float = 0.2, smooth: float = 1.0) -> Tensor:
    """1 - (TP + s) / (TP + fn FN + fp FP + s); the defaults are those of the authors' program.

    Args:
        logits: (N, ...).
        mask: likewise.
        fn: weight of missed foreground.
        fp: weight of false foreground.
        smooth: s.
    """
    logits, g = _prepared(logits, mask)
    p = torch.sigmoid(logits)
    true = (p * g).sum()
    missed, false = ((1 - p) * g).sum(), (p * (1 - g)).sum()
    return 1 - (true + smooth) / (true + fn * missed + fp * false + smooth)


def focal_tversky(
    logits: Tensor, mask: Tensor, fn: float = 0.7, fp: float = 0.3, power: float = 0.75, smooth: float = 1.0
) -> Tensor:
    """`tversky` to the power 3/4 (Abraham and Khan, gamma = 4/3); other arguments as there."""
    loss = tversky(logits, mask, fn, fp, smooth)
    # The power has no derivative at 0, where a perfect prediction arrives.
    return loss.clamp_min(torch.finfo(loss.dtype).tiny) ** power


LOSSES: Mapping[str, Loss] = MappingProxyType(
    {
        "bce": bce,
        "weighted_bce": weighted_bce,
        "iou": iou,
        "iou_per_image": partial(iou, per_image=True),
        "combined": combined,
        "combined_unweighted": partial(combined, pos_weight="none"),
        "dice": dice,
        "generalised_dice": generalised_dice,
        "tversky_code": tversky,
        "focal_tversky": focal_tversky,
    }
)
"""By the names that `--loss` takes."""


def _soft_iou(logits: Tensor, mask: Tensor, per_image: bool = False) -> Tensor:
    logits, g = _prepared(logits, mask)
    p = torch.sigmoid(logits)
    if per_image:
        p, g = p.flatten(1), g.flatten(1)
        both, either = (p * g).sum(1), (p + g).sum(1)
    else:
        both, either = (p * g).sum(), (p + g).sum()
    return (both + 1) / (either - both + 1)


def _prepared(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    if logits.shape != mask.shape:
        raise ValueError(f"logits have shape {tuple(logits.shape)}, the mask {tuple(mask.shape)}; they must be equal")
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return logits, mask.to(logits.dtype)
