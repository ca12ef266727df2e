"""Dice as the authors' evaluator takes it: from random patches, not from whole images (specification 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from dart_core.nets.nnunet import GenericUNet
from odex.cases import Case
from odex.plan import Plan
from odex.training import training_batches


@torch.no_grad()
def patch_dice(
    networks: Sequence[GenericUNet],
    chosen: Sequence[int],
    cases: Sequence[Case],
    plan: Plan,
    batches: int = 100,
    seed: int = 0,
) -> list[float | None]:
    """Dice of each case from the voxels of all its patches together, at the resolution of the network.

    Batches of half the training's size are drawn as in training, without augmentation: the last third of a batch shows foreground.
    The whole foreground is one structure. It differs from draw to draw, and voxels count as often as they are drawn.

    Args:
        networks: in evaluation mode, on one device.
        chosen: for each case the number of its network.
        cases: with labels.
        plan: gives batch and patch size.
        batches: how many (the authors: 100, or 150).
        seed: of the draws.

    Returns:
        for each case its Dice, 1 where neither patches nor predictions show foreground; None for a case that was never drawn.
    """
    device = next(networks[0].parameters()).device
    drawn = training_batches(cases, replace(plan, batch_size=max(plan.batch_size // 2, 1)), seed, plan.patch_size)
    both, sizes, seen = np.zeros(len(cases)), np.zeros(len(cases)), np.zeros(len(cases), dtype=bool)
    for step in range(batches):
        batch = drawn.batch(step)
        for image, labels, number in zip(batch["image"], batch["labels"], batch["case"].tolist(), strict=True):
            predicted = networks[chosen[number]](image[None].to(device)).argmax(1)[0].cpu() > 0
            truth = labels > 0
            both[number] += int((predicted & truth).sum())
            sizes[number] += int(predicted.sum()) + int(truth.sum())
            seen[number] = True
    return [
        None if not found else float(2 * overlap / size) if size else 1.0
        for found, overlap, size in zip(seen, both, sizes, strict=True)
    ]
