"""Both trainings learn a single batch by heart."""

from __future__ import annotations

import torch

from benchmark_transformers import SimMIM, simmim_mask
from benchmark_transformers.method import classification_loss, make_optimizer
from benchmark_transformers.networks import Architecture
from benchmark_transformers.settings import FineTuneRecipe
from benchmark_transformers.simmim import parameter_groups

SWIN = {"patch_size": 2, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 4), "window_size": 4}


def test_simmim_reconstructs_one_batch() -> None:
    torch.manual_seed(0)
    network = SimMIM("swin_b", 16, **SWIN)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
    image = torch.stack([torch.stack([a * x + b * y] * 3) for a, b in ((1, 0), (0, 1), (1, 1), (-1, 1))])
    mask = simmim_mask(torch.stack([torch.randperm(16) for _ in range(4)]), 8, 4)
    optimizer = torch.optim.AdamW(parameter_groups(network, 0.0), lr=5e-3)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss, _ = network(image, mask)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.3
    assert losses[-1] < losses[0] / 4


def test_classifier_learns_one_batch() -> None:
    torch.manual_seed(0)
    network = Architecture("swin_base_patch4_window7_224", SWIN).build(3, 16)
    images = torch.randn(8, 3, 16, 16)
    labels = torch.randint(0, 2, (8, 3)).float()
    optimizer = make_optimizer(network, FineTuneRecipe(learning_rate=(0.05,)))
    for _ in range(150):
        optimizer.zero_grad()
        loss = classification_loss(network(images), labels, False)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
