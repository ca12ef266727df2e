"""Every loss learns a handful of slices by heart, and a meta-model learns faster than random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metamedseg import iou_score
from metamedseg.losses import LOSSES
from metamedseg.method import Hardware, local_network, train_on
from metamedseg.settings import Inner, Network


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_one_task(loss):
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    masks = torch.stack([((y - 4 - 2 * i) ** 2 + (x - 8) ** 2 < 14).float()[None] for i in range(4)])
    images = 0.5 * torch.randn(4, 1, 16, 16) + 2 * masks
    hardware = Hardware()
    network = local_network(Network(width=4), hardware)
    before = float(iou_score(network(images), masks).mean())
    inner = Inner(inner_epochs=25, inner_lr=0.03, factor=0.8, every=5, weight_decay=0.0, loss=loss)
    found = train_on(network, images, masks, inner, inner.inner_lr, np.random.default_rng(0), hardware)
    assert len(found) == 25
    assert found[-1] < 0.6 * found[0]
    with torch.no_grad():
        assert float(iou_score(network(images), masks).mean()) > max(0.8, before)
