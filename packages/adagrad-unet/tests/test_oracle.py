"""Closed forms of the specification, section 9, through the public names."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from adagrad_unet import (
    AvaGrad,
    deep_supervision_weights,
    dice_ce_loss,
    downsample_labels,
    loader_patch_size,
    plan_unet_2d,
    poly_lr,
    sliding_window_predict,
)


def test_poly_lr_by_hand():
    assert [poly_lr(epoch, 50, 10.0) for epoch in (0, 50)] == [10.0, 0.0]
    assert poly_lr(25, 50, 10.0) == pytest.approx(10 * 0.5**0.9)


def test_weights_of_deep_supervision():
    weights = deep_supervision_weights(6)
    np.testing.assert_allclose(weights, [0.5161, 0.2581, 0.1290, 0.0645, 0.0323, 0], atol=5e-5)
    assert sum(weights) == pytest.approx(1)
    assert deep_supervision_weights(1) == [1.0]


def test_perfect_prediction_and_absent_class():
    """A perfect hard prediction costs -1; a class in neither batch nor prediction has a Dice of 1e-5 / (1e-5 + 1e-8)."""
    labels = torch.randint(0, 2, (2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    logits = torch.where(torch.cat((labels == 0, labels == 1), 1), 200.0, -200.0).double()
    assert dice_ce_loss(logits, labels).item() == pytest.approx(-1, abs=1e-6)
    absent = torch.cat((logits, torch.full((2, 1, 8, 8), -500.0, dtype=torch.float64)), 1)
    lone = 1e-5 / (1e-5 + 1e-8)
    assert dice_ce_loss(absent, labels).item() == pytest.approx(-(1 + lone) / 2, abs=1e-6)


def test_lists_are_weighted_outputs():
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (2, 1, 8, 8))
    outputs = [torch.randn(2, 3, 8, 8), torch.randn(2, 3, 4, 4), torch.randn(2, 3, 2, 2)]
    targets = downsample_labels(labels, [1, 0.5, 0.25])
    parts = [dice_ce_loss(x, y) for x, y in zip(outputs, targets, strict=True)]
    torch.testing.assert_close(dice_ce_loss(outputs, targets), (2 * parts[0] + parts[1]) / 3)


@pytest.mark.parametrize(
    ("patch", "size"), [((256, 256), (301, 301)), ((320, 320), (376, 376)), ((224, 256), (301, 301))]
)
def test_loaded_patches(patch, size):
    assert tuple(loader_patch_size(patch)) == size


@pytest.mark.parametrize("mirror", [True, False])
def test_a_network_that_is_constant_in_space_does_not_see_tiles(mirror):
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([0.3, -0.2, 1.0]).view(1, 3, 1, 1).expand(len(x), 3, *x.shape[2:])

    found = sliding_window_predict(Constant(), torch.zeros(1, 2, 110, 50), (64, 24), mirror)
    expected = torch.tensor([0.3, -0.2, 1.0]).softmax(0).view(3, 1, 1, 1).expand(3, 2, 110, 50)
    torch.testing.assert_close(found, expected)


def test_two_tensors_run_with_a_mean_over_all_their_numbers():
    """Steps 0 and 1 of the official variant: nothing moves, gamma is 0.1; then gamma mixes both tensors."""
    a, b = nn.Parameter(torch.ones(2, dtype=torch.float64)), nn.Parameter(torch.full((3,), 2.0, dtype=torch.float64))
    optimizer = AvaGrad([a, b], lr=10.0, eps=0.1)
    gradients = (torch.tensor([0.3, -0.1], dtype=torch.float64), torch.tensor([1.0, 2.0, -0.5], dtype=torch.float64))
    for step in range(2):
        a.grad, b.grad = gradients
        optimizer.step()
        if step == 0:
            assert optimizer.param_groups[0]["gamma"] == pytest.approx(0.1, rel=1e-14)
            assert torch.equal(b.detach(), torch.full((3,), 2.0, dtype=torch.float64))
    size = np.abs(np.concatenate([g.numpy() for g in gradients]))
    eta = 1 / (size * np.sqrt(0.001 / (1 - 0.999**2)) + 0.1)
    assert optimizer.param_groups[0]["gamma"] == pytest.approx(1 / np.sqrt(np.mean(eta**2)), rel=1e-12)
    moved = 10 * 0.1 * gradients[1] / (gradients[1].abs() + 0.1)
    torch.testing.assert_close(b.detach(), 2 - moved, rtol=1e-12, atol=0)


def test_planner_and_network_caps_differ():
    """The estimate of memory doubles to 512, the network stops at 480."""
    plan = plan_unet_2d({"spacing": (1, 1, 1), "shape": (200, 256, 256), "cases": 100, "channels": 1, "classes": 2})
    assert max(plan.features) == 480
    memory = 65536 * (30 * 5 + 3) + 5 * sum(65536 // 4**p * min(30 * 2**p, 512) for p in range(1, 6)) + 2 * 16 * 512
    assert plan.batch_size == 2 * (19_739_648 * 25 // memory) == 50
