"""A small ViT learns eight pictures by heart; labels that mean nothing it cannot learn (specification 9.12)."""

from __future__ import annotations

import math

import pytest
import torch

from dart_core.data.phantoms import chest_xray
from popar import POPAR
from popar.method import Objective, objective_loss
from popar.patches import patchify, show_patches

STEPS, PATCHES = 250, 16


def pictures():
    found = [torch.from_numpy(chest_xray(subject, "chestxray14", shape=(32, 32))) for subject in range(8)]
    return torch.stack(found)[:, None].expand(-1, 3, -1, -1)


def trained(labels_of):
    """Trained on labels made of the true order of patches; accuracy in the true order, of permutations that it has not seen."""
    torch.manual_seed(0)
    network = POPAR("vit_b", 32, 0.0, patch_size=8, embed_dim=64, depth=2, num_heads=4)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(0)
    objective, images = Objective(("poc",), statistics=((0.5,) * 3, (0.25,) * 3)), pictures()
    network.train()
    for _ in range(STEPS):
        views = objective.views(images, 8, generator)
        views["labels"] = labels_of(views["labels"], generator)
        loss = objective_loss(*network(views["input"]), views, 1.0, "mean")[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    hits = []
    target = (images.float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        for _ in range(10):
            permutation = torch.rand(8, PATCHES, generator=generator).argsort(1)
            logits, _ = network(show_patches(patchify(target, 8), permutation, 4))
            hits.append((logits.argmax(-1) == permutation).float().mean())
    return float(torch.stack(hits).mean())


@pytest.mark.slow
def test_order_of_eight_pictures():
    assert trained(lambda labels, _: labels) > 0.95
    shuffled = trained(lambda labels, generator: torch.rand(labels.shape, generator=generator).argsort(1))
    # What has nothing to go by still names some position for what it sees: of the 128 patches, right by chance.
    chance = 1 / PATCHES
    assert shuffled == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / (8 * PATCHES)))
