"""nnU-Net's loss: soft Dice over the batch plus cross-entropy, with deep supervision.

Source: nnU-Net version 1; specification adagrad-unet 2.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

SMOOTH = 1e-5
"""Added to numerator and denominator of the Dice quotient."""
SAFE = 1e-8
"""Added to the denominator only."""


def dice_ce_loss(
    logits: Tensor | Sequence[Tensor],
    labels: Tensor | Sequence[Tensor],
    weights: Sequence[float] | None = None,
    batch_dice: bool = True,
) -> Tensor:
    """Minus the soft Dice of the foreground plus the cross-entropy, 1:1 (specification adagrad-unet 2.3).

    With p = softmax(logits), y = one-hot labels, and sums over the pixels of the whole batch:
    dice_c = (2 TP_c + 1e-5) / (2 TP_c + FP_c + FN_c + 1e-5 + 1e-8), averaged over the classes 1, 2, ...; the cross-entropy is
    the mean over all pixels, background included. A perfect prediction costs -1.

    Lists are deep supervision: one entry per output, full resolution first. Outputs of weight 0 are not looked at, so
    nothing behind them gets a gradient (nnU-Net's lowest output).

    Args:
        logits: (N, K, ...), any number of spatial axes, K >= 2; or a list. float16 and bfloat16 are computed in float32.
        labels: (N, 1, ...) of an integer type with values 0..K-1; or a list. The -1 of nnU-Net's padding has to be
            mapped to 0 before (`augment.nnunet.augment` does so). Values are checked on the CPU only: on a GPU the
            check would stop the queue.
        weights: one per output; None: `deep_supervision_weights`.
        batch_dice: False: Dice of each sample, then the mean over samples and classes.

    Returns:
        scalar of the logits' type.

    Raises:
        ValueError: shapes, types or values do not fit, or lists of unequal length.
    """
    if isinstance(logits, Tensor) != isinstance(labels, Tensor):
        raise ValueError("logits and labels must both be tensors, or both lists (deep supervision)")
    outputs = [logits] if isinstance(logits, Tensor) else list(logits)
    targets = [labels] if isinstance(labels, Tensor) else list(labels)
    factors = deep_supervision_weights(len(outputs)) if weights is None else [float(w) for w in weights]
    if not len(outputs) == len(targets) == len(factors):
        raise ValueError(f"{len(outputs)} outputs, {len(targets)} label maps and {len(factors)} weights do not fit")
    losses = [w * _one(x, y, batch_dice) for w, x, y in zip(factors, outputs, targets, strict=True) if w != 0]
    if not losses:
        raise ValueError("every weight is 0; give one output a positive weight")
    return torch.stack(losses).sum()


def deep_supervision_weights(levels: int) -> list[float]:
    """Weights of the outputs, full resolution first: 1/2^k, the lowest one 0, sum 1; [1] for one output.

    Args:
        levels: number of outputs, as many as the network has poolings.

    Raises:
        ValueError: levels < 1.
    """
    if levels < 1:
        raise ValueError(f"{levels} levels; a network has at least one output")
    kept = max(levels - 1, 1)
    total = sum(0.5**k for k in range(kept))
    return [0.5**k / total if k < kept else 0.0 for k in range(levels)]


@overload
def downsample_labels(labels: Tensor, scales: Sequence[float | Sequence[float]]) -> list[Tensor]: ...
@overload
def downsample_labels(
    labels: NDArray[np.integer], scales: Sequence[float | Sequence[float]]
) -> list[NDArray[np.integer]]: ...
def downsample_labels(
    labels: Tensor | NDArray[np.integer], scales: Sequence[float | Sequence[float]]
) -> list[Tensor] | list[NDArray[np.integer]]:
    """Label maps at the resolutions of the outputs, order 0 (specification adagrad-unet 2.3).

    An axis of n pixels becomes round(n s); new pixel i takes the pixel in which its centre lies, the upper one when that is
    a border between two (at s = 1/2 pixel 2 i + 1), like `skimage.transform.resize` at order 0, which nnU-Net calls.

    Args:
        labels: (N, 1, ...), tensor or array of any type.
        scales: one per output, at most 1: a number for all spatial axes, or one number for each.

    Returns:
        One label map per scale, of the type of `labels`; at scale 1 it is `labels` itself.

    Raises:
        ValueError: a scale that has another number of axes, or is not in (0, 1].
    """
    if isinstance(labels, np.ndarray):
        return [small.numpy() for small in downsample_labels(torch.from_numpy(np.ascontiguousarray(labels)), scales)]
    results = []
    for scale in scales:
        axes = labels.ndim - 2
        factors = [float(s) for s in np.atleast_1d(scale)] * (axes if np.ndim(scale) == 0 else 1)
        if len(factors) != axes or not all(0 < s <= 1 for s in factors):
            raise ValueError(
                f"scale {scale} for labels of shape {tuple(labels.shape)}; give {axes} numbers in (0, 1], or one for all"
            )
        small = labels
        for axis, s in enumerate(factors, start=2):
            n = labels.shape[axis]
            m = max(round(n * s), 1)
            if m != n:
                index = (2 * torch.arange(m, device=labels.device) + 1) * n // (2 * m)
                small = small.index_select(axis, index)
        results.append(small)
    return results


def _one(logits: Tensor, labels: Tensor, batch_dice: bool) -> Tensor:
    """The loss of one output."""
    if logits.ndim < 3 or labels.shape != (logits.shape[0], 1, *logits.shape[2:]):
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}, the labels {tuple(labels.shape)}; (N, K, ...) and (N, 1, ...) fit"
        )
    classes = logits.shape[1]
    if classes < 2:
        raise ValueError(f"logits have {classes} channel; background and at least one foreground class are needed")
    if labels.dtype.is_floating_point or labels.dtype.is_complex:
        raise ValueError(f"labels are of type {labels.dtype}; give an integer type")
    labels = labels.long()
    if labels.device.type == "cpu" and labels.numel():
        low, high = (int(value) for value in labels.aminmax())
        if low < 0 or high >= classes:
            raise ValueError(
                f"labels run from {low} to {high}, the logits have classes 0 to {classes - 1}; map other labels (-1) first"
            )
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()

    log_p = F.log_softmax(logits, dim=1)
    cross_entropy = -log_p.gather(1, labels).mean()

    p = log_p.exp()
    y = torch.zeros_like(p).scatter_(1, labels, 1)
    axes = [0, *range(2, logits.ndim)] if batch_dice else list(range(2, logits.ndim))
    overlap = (p * y).sum(axes)
    sizes = p.sum(axes) + y.sum(axes)  # 2 TP + FP + FN
    dice = (2 * overlap + SMOOTH) / (sizes + SMOOTH + SAFE)
    return cross_entropy - dice[..., 1:].mean()
