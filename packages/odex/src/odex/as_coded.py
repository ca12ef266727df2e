"""The baselines as the authors' program computes them (specification 4.2 to 4.6, "as coded"), to explain the printed numbers.

Several hardly regularise: EWC protects stage 1 only, RW's penalty acts in a single iteration, the terms of LwF and POD have no
gradient. The loops that use these functions are in `regularisers.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from odex.baselines import BINS, FLOOR, GUARD, Named

LOSS_SCALE = 65536.0
"""Initial scale of mixed precision, which is still in the gradients that EWC squares."""


def fisher_of_the_last_batch(gradients: Mapping[str, Tensor | None], parameters: Named) -> dict[str, Tensor]:
    """Squared gradients of one mini-batch with the loss scale in them; 1 where no gradient arrives.

    Args:
        gradients: of the loss with its penalty, un-scaled.
        parameters: by name.
    """
    found = {}
    for name, value in parameters.items():
        gradient = gradients.get(name)
        found[name] = torch.ones_like(value) if gradient is None else (LOSS_SCALE * gradient.detach()).square()
    return found


def normalise_by_scores(values: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """(v - min) / (max - min + 1e-8) with the extremes of the maxima of the score's tensors: not of the values themselves.

    Args:
        values: Fisher information or score by name.
        scores: by name.
    """
    maxima = torch.stack([score.max() for score in scores.values()])
    low, high = maxima.min(), maxima.max()
    return {name: (value - low) / (high - low + GUARD) for name, value in values.items()}


def lwf_loss(logits: Tensor, old_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """KL(softmax(old / T) || softmax(new / T)) without T^2, summed over voxels and divided by the batch size; no gradient.

    Args:
        logits: (N, C, ...).
        old_logits: (N, C, ...), in the program of another batch.
        temperature: T.
    """
    log_new = F.log_softmax(logits.detach() / temperature, 1)
    return F.kl_div(log_new, (old_logits.detach() / temperature).softmax(1), reduction="batchmean")


def prediction_entropy(p: Tensor) -> Tensor:
    """The mean over classes instead of the sum, divided by log C twice: at most 0.72 for two classes.

    Args:
        p: (N, C, ...) probabilities.

    Returns:
        (N, ...).
    """
    return -(p * (p + GUARD).log()).mean(1) / math.log(p.shape[1]) ** 2


def plop_thresholds(entropies: Tensor, classes: Tensor, n_classes: int) -> Tensor:
    """Medians whose running sum adds the number of each bin instead of its count.

    Args:
        entropies: of any shape.
        classes: predicted classes, of the same shape.
        n_classes: with the background.

    Returns:
        (n_classes,) float64.
    """
    from odex.baselines import entropy_histogram

    return thresholds_of(entropy_histogram(entropies, classes, n_classes))


def thresholds_of(histogram: Tensor) -> Tensor:
    """The thresholds of histograms (n, 100)."""
    found = []
    for counts in histogram.tolist():
        half, running, median = sum(counts) / 2, 0.0, 0.0
        if half:
            for index, count in enumerate(counts):
                if running <= half <= running + count:
                    break
                running += index
            median = (index + (half - running) / max(count, GUARD)) / BINS
        found.append(max(median, FLOOR))
    return torch.tensor(found, dtype=torch.float64)


def pod_loss(new: list[Tensor], old: list[Tensor], scales: int = 3) -> Tensor:
    """Windows whose loops end at W - w, so that scale 0 gives nothing and the last row and column of windows are missing; the
    division by the number of layers happens after each layer; and no gradient.

    Args:
        new: features of each layer, (N, C, H, W) or (N, C, D, H, W), square maps.
        old: likewise.
        scales: number of scales.
    """
    total = new[0].new_zeros(())
    for a, b in zip(new, old, strict=True):
        difference = (a - b).detach()
        side = difference.shape[-1]
        parts = []
        for scale in range(scales):
            w = side >> scale
            for i in range(0, side - w, max(w, 1)):
                for j in range(0, side - w, max(w, 1)):
                    window = difference[..., i : i + w, j : j + w]
                    parts += [window.mean(-1).flatten(1), window.mean(-2).flatten(1)]
        if parts:
            total = total + torch.linalg.vector_norm(torch.cat(parts, 1), dim=1).mean()
        total = total / len(new)
    return total
