"""Intersection over union of a slice (specification 6)."""

from __future__ import annotations

import torch
from torch import Tensor

from dart_core.arrays import accepts_arrays

EPSILON = 1e-4


@accepts_arrays
def iou_score(logits: Tensor, mask: Tensor) -> Tensor:
    """(|P and G| + 1e-4) / (|P or G| + 1e-4) of each image, P being sigmoid(logits) > 0.5.

    Args:
        logits: (N, ...).
        mask: (N, ...), 0 and 1 in any type.

    Returns:
        (N,): 1 where both are empty, about 0 where one is.
    """
    found = (torch.sigmoid(logits) > 0.5).flatten(1)
    truth = (mask > 0.5).flatten(1)
    both, either = (found & truth).sum(1), (found | truth).sum(1)
    kind = logits.dtype if logits.dtype in (torch.float32, torch.float64) else torch.float32
    return (both.to(kind) + EPSILON) / (either.to(kind) + EPSILON)
