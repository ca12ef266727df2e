from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from dart_core.adapt import adapt_batch_norm
from dart_core.nets import ResidualUNet2d


def batches(*sizes: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [3 + 2 * torch.randn(n, 2, 4, 5, generator=generator, dtype=torch.float64) for n in sizes]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1), nn.Dropout(0.5), nn.BatchNorm2d(3)).double()
    with torch.no_grad():
        for norm in (model[0], model[3]):
            norm.running_mean.uniform_(-5, 5)
            norm.running_var.uniform_(1, 5)
            norm.num_batches_tracked.fill_(40)
    return model


def first_statistics(
    images: list[torch.Tensor], momentum: float | None, start: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    mean, variance = start
    for i, x in enumerate(images):
        weight = 1 / (i + 1) if momentum is None else momentum
        mean = (1 - weight) * mean + weight * x.numpy().mean((0, 2, 3))
        variance = (1 - weight) * variance + weight * x.numpy().var((0, 2, 3), ddof=1)
    return mean, variance


@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
@pytest.mark.parametrize("reset", [True, False])
def test_statistics_by_hand(momentum: float | None, reset: bool) -> None:
    model, images = net(), batches(4, 2, 3)
    start = (
        (np.zeros(2), np.ones(2))
        if reset
        else (model[0].running_mean.numpy().copy(), model[0].running_var.numpy().copy())
    )
    if momentum is None and not reset:
        model[0].num_batches_tracked.zero_()
    mean, variance = first_statistics(images, momentum, start)
    assert adapt_batch_norm(model, iter(images), momentum, reset) is model
    np.testing.assert_allclose(model[0].running_mean, mean)
    np.testing.assert_allclose(model[0].running_var, variance)


def test_default_is_momentum_a_tenth_from_a_fresh_start() -> None:
    one, other, images = net(), net(), batches(4, 2)
    adapt_batch_norm(one, images)
    adapt_batch_norm(other, images, momentum=0.1, reset=True)
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), other.buffers(), strict=True))
    assert one[0].num_batches_tracked == 2


def test_deeper_layers_see_batch_statistics_and_no_dropout() -> None:
    model, images = net(), batches(6)
    x = images[0]
    hidden = (x - x.mean((0, 2, 3), keepdim=True)) / torch.sqrt(x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5)
    hidden = model[1](hidden).detach()
    adapt_batch_norm(model, images, momentum=1.0)
    np.testing.assert_allclose(model[3].running_mean, hidden.mean((0, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(model[3].running_var, hidden.var((0, 2, 3)), rtol=1e-9)


def test_cumulative_average_makes_equal_batches_exact() -> None:
    """Equal halves: the average of their means is the mean of the whole."""
    images = batches(4, 4)
    model = adapt_batch_norm(net(), images, momentum=None)
    np.testing.assert_allclose(model[0].running_mean, torch.cat(images).mean((0, 2, 3)))


@pytest.mark.parametrize("training", [True, False])
def test_everything_else_is_put_back(training: bool) -> None:
    model = net().train(training)
    model[3].train(not training)
    model[3].momentum = 0.7
    weights = copy.deepcopy(list(model.parameters()))
    adapt_batch_norm(model, batches(3, 3), momentum=None)
    assert model[0].momentum == 0.1
    assert model[3].momentum == 0.7
    assert [m.training for m in model] == [training, training, training, not training]
    assert model.training == training
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_a_failure_leaves_the_network_as_it_was() -> None:
    model = net().eval()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError):
        adapt_batch_norm(model, [*batches(2), torch.zeros(2, 7, 4, 5, dtype=torch.float64)], momentum=0.3)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert model[0].momentum == 0.1
    bad = batches(2)[0].clone()
    bad[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        adapt_batch_norm(model, [*batches(2), bad])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_nothing_to_adapt_to_or_with() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="no batch to adapt to; give images of the target site"):
        adapt_batch_norm(model, [])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="no batch norm with running statistics"):
        adapt_batch_norm(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, track_running_stats=False)), batches(2))


def test_all_47_norms_of_the_unet_adapt() -> None:
    torch.manual_seed(0)
    model = ResidualUNet2d(width=2).eval()
    before = copy.deepcopy(dict(model.named_buffers()))
    adapt_batch_norm(model, [torch.rand(2, 1, 16, 16) for _ in range(2)])
    moved = [name for name, b in model.named_buffers() if "running" in name and not torch.equal(b, before[name])]
    assert len(moved) == 94
    assert not model.training


def test_one_and_three_dimensions() -> None:
    for norm, shape in ((nn.BatchNorm1d(3), (4, 3)), (nn.BatchNorm3d(3), (2, 3, 2, 2, 2))):
        x = torch.randn(shape)
        adapt_batch_norm(nn.Sequential(norm), [x], momentum=None)
        torch.testing.assert_close(norm.running_mean, x.transpose(0, 1).flatten(1).mean(1))
