"""What the regularisers remember of a stage."""

from __future__ import annotations

import weakref

import pytest
import torch

from odex import settings as of
from odex.networks import build_unet
from odex.regularisers import learning, regulariser_of


@pytest.mark.parametrize("method", ["rw", "ewc"])
def test_the_output_that_does_not_learn_is_not_remembered(method):
    """Deep supervision gives the coarsest of several outputs no weight: the loop freezes it, and frees it at the end."""
    network = build_unet((2, 4, 8), ((2, 2, 2), (2, 2, 2)))
    image, labels = torch.rand(1, 1, 8, 8, 8), [torch.ones(1, 1, side, side, side, dtype=torch.long) for side in (8, 4)]
    memory: dict[str, torch.Tensor] = {}
    for stage in range(2):
        found = regulariser_of(method, of.Baselines(), memory, stage)
        network.seg_outputs[0].requires_grad_(False)
        loss = found.loss(network, image, network(image), labels)
        loss.backward()
        found.end_step(network)
        frozen = {name for name, value in network.named_parameters() if not value.requires_grad}
        network.seg_outputs[0].requires_grad_(True)
        found.end(network, lambda: [(image, labels)])
        memory = found.memory
        names = [
            {name.split("/")[2] for name in memory if name.startswith(f"{stage}/{kind}/")}
            for kind in ("star", "fisher")
        ]
        assert names[0] == names[1] == learning(network).keys() - frozen
        assert frozen


def test_the_only_output_of_a_network_is_remembered():
    """With one reduction there is one output, and it learns."""
    network = build_unet((2, 4), ((2, 2, 2),))
    image, labels = torch.rand(1, 1, 8, 8, 8), [torch.ones(1, 1, 8, 8, 8, dtype=torch.long)]
    found = regulariser_of("ewc", of.Baselines(), {}, 0)
    found.end(network, lambda: [(image, labels)])
    assert any(name.startswith("0/fisher/seg_outputs.0") for name in found.memory)


def test_batches_for_the_last_one_alone_are_not_kept():
    """As coded, EWC takes the last mini-batch of an epoch that would not fit into memory."""
    network = build_unet((2, 4), ((2, 2, 2),))
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def batches():
        nonlocal most
        for _ in range(5):
            image = torch.rand(1, 1, 8, 8, 8)
            alive.append(weakref.ref(image))
            yield image, [torch.ones(1, 1, 8, 8, 8, dtype=torch.long)]
            del image
            most = max(most, sum(one() is not None for one in alive))

    found = regulariser_of("ewc", of.Baselines(compat="lifelong-nnunet"), {}, 0)
    found.end(network, batches)
    assert len(alive) == 5
    assert most == 1
    assert any(name.startswith("0/fisher/") for name in found.memory)


def test_an_overflow_is_no_gradient_to_remember():
    network = build_unet((2, 4), ((2, 2, 2),))
    found = regulariser_of("rw", of.Baselines(), {}, 0)
    for value in network.parameters():
        value.grad = torch.full_like(value, torch.inf)
    found.end_step(network)
    for value in network.parameters():
        value.grad = torch.ones_like(value)
    found.end_step(network)
    assert all(bool(torch.isfinite(value).all()) for value in found.tracker.fisher.values())
    assert found.tracker.fisher
