"""Losses and networks learn a handful of cubes by heart, with one answer and with two."""

from __future__ import annotations

import math

import pytest
import torch

from united_ssl.losses import united_loss
from united_ssl.networks import set_momentum
from united_ssl.settings import Network, Pretext
from united_ssl.tasks import Task


@pytest.mark.parametrize("name", ["rotation", "rubik"])
def test_one_batch(name):
    torch.manual_seed(0)
    task = Task(Pretext(name, permutations=8, clusters=8), 8)
    axis = torch.linspace(0, 1, 16)
    ramp = (axis[:, None, None] + 0.5 * axis[:, None] ** 2 + 0.25 * axis) / 1.75
    cube = (0.7 * ramp + 0.3 * torch.rand(8, 1, 16, 16, 16)).clamp(0, 1)
    given = {"cube": cube, "index": torch.arange(8), "pseudo": torch.arange(8), "word": torch.arange(8)}
    views = task.views(given, True, torch.Generator().manual_seed(0))
    network = task.network(Network(width=2), (16, 16, 16))
    set_momentum(network, 0.1)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    first = None
    for _ in range(30):
        logits, restored = network(views.seen)
        labels = views.labels[0] if isinstance(logits, torch.Tensor) else list(views.labels)
        loss = united_loss(logits, labels, restored, views.target)
        first = float(loss.detach()) if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    answers = logits if isinstance(logits, torch.Tensor) else logits[1]
    truth = views.labels[-1]
    assert float(torch.nn.functional.cross_entropy(answers, truth).detach()) < math.log(8) / 2
    assert float(loss.detach()) < 0.6 * first
