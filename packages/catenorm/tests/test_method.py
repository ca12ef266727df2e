"""The residual block, both stages, prediction and the schedule."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from catenorm import (
    CateNorm2d,
    CateNormResidualBlock,
    CateNormUNet,
    hard_dice_loss,
    parameter_groups,
    segmentation_loss,
    two_pass,
    two_stage_step,
)
from catenorm.method import CLIP, Plateau, one_stage_step


def unet(blocks: Any = (1, 2), **options: Any) -> CateNormUNet:
    torch.manual_seed(0)
    return CateNormUNet(3, 3, blocks, width=4, **options)


def batch(n: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, 3, 32, 32, generator=generator)
    return x, (x[:, 1] > 0.3).long() + (x[:, 1] > 1).long()


def adam(model: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), 1e-3)


def copies(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


# The block (2.2)


def test_block_by_hand() -> None:
    torch.manual_seed(0)
    block = CateNormResidualBlock(4, 3).double()
    x, mask = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.rand(2, 3, 4, 4, dtype=torch.float64)
    out = block.conv1(F.relu(block.norm1(x)))
    torch.testing.assert_close(block(x), block.conv2(F.relu(block.norm2(out))) + x)
    out = block.conv1(F.relu(block.cate1(x, mask)))  # type: ignore[misc]
    torch.testing.assert_close(block(x, mask), block.conv2(F.relu(block.cate2(out, mask))) + x)  # type: ignore[misc]


def test_a_pass_touches_its_own_statistics_only() -> None:
    block = CateNormResidualBlock(4, 2)
    x, mask = torch.randn(2, 4, 8, 8), torch.rand(2, 2, 8, 8)
    before = {name: value.clone() for name, value in block.state_dict().items()}
    block(x)
    changed = {name for name, value in block.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {
        f"norm{i}.{name}" for i in (1, 2) for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    before = {name: value.clone() for name, value in block.state_dict().items()}
    block(x, mask)
    changed = {name for name, value in block.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {"cate1", "cate2"}


def test_a_block_without_categories_ignores_the_mask() -> None:
    block = CateNormResidualBlock(4, 2, categorical=False).eval()
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(block(x), block(x, torch.rand(2, 2, 8, 8)))


def test_separate_statistics() -> None:
    """Outside categorical blocks each pass has running statistics, and one affine serves both."""
    network = unet((1,), separate_statistics=True)
    x, _ = batch()
    first = network(x)
    out = network.out.norm
    mean = out.running_mean.clone()  # type: ignore[union-attr, operator]
    second = network(x, first.softmax(1))
    assert torch.equal(mean, out.running_mean)  # type: ignore[arg-type]
    assert not torch.equal(mean, out.second.running_mean)  # type: ignore[union-attr, arg-type]
    second.sum().backward()
    assert out.weight.grad is not None  # type: ignore[union-attr]
    shared = unet((1,))
    shared(x)
    mean = shared.out.norm.running_mean.clone()  # type: ignore[union-attr, operator]
    shared(x, first.softmax(1))
    assert not torch.equal(mean, shared.out.norm.running_mean)  # type: ignore[arg-type]


# Parameter groups and both stages (2.3; 9.5 to 9.7)


@pytest.mark.parametrize("blocks", [(1,), (1, 2, 3, 4), (6, 10)])
def test_parameter_groups(blocks: tuple[int, ...]) -> None:
    network = unet(blocks)
    groups = parameter_groups(network)
    every = [parameter for group in groups.values() for parameter in group]
    assert len(every) == len({id(p) for p in every}) == len(list(network.parameters()))
    layers = [module for module in network.modules() if isinstance(module, CateNorm2d)]
    assert {id(p) for p in groups["catenorm"]} == {id(p) for layer in layers for p in layer.parameters()}
    assert len(groups["bn"]) == 2 * len(layers)
    assert [p.shape for p in parameter_groups(unet(()))["bn"]] == []


def test_first_pass_is_the_plain_network() -> None:
    network, plain = unet(range(1, 11)), unet(())
    own = network.state_dict()
    assert plain.state_dict().keys() <= own.keys()
    plain.load_state_dict({name: own[name] for name in plain.state_dict()})
    x, _ = batch()
    assert torch.equal(network(x), plain(x))
    assert torch.equal(network.eval()(x), plain.eval()(x))
    mask = torch.rand(2, 3, 8, 8)
    assert torch.equal(plain(x, mask), plain(x))
    assert not torch.allclose(network(x, mask), network(x))


def test_which_stage_changes_what() -> None:
    """Exact equality, also once Adam has momentum: theta_NC in stage 1, theta_NB in stage 2."""
    network = unet((1, 2))
    groups = parameter_groups(network)
    optimizer = adam(network)
    x, y = batch()
    moments: list[dict[str, list[Tensor]]] = []
    step = optimizer.step

    def watched(*_: Any, **__: Any) -> None:
        step()
        moments.append({name: copies(group) for name, group in groups.items()})

    optimizer.step = watched  # type: ignore[method-assign]
    before = {name: copies(group) for name, group in groups.items()}
    for _ in range(3):
        two_stage_step(network, optimizer, x, y, segmentation_loss)
    states = [before, *moments]
    assert len(states) == 7
    for number, (old, new) in enumerate(zip(states, moments, strict=False)):
        idle, active = ("catenorm", "bn") if number % 2 == 0 else ("bn", "catenorm")
        assert all(torch.equal(a, b) for a, b in zip(old[idle], new[idle], strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(old[active], new[active], strict=True))
        assert not any(
            torch.equal(a, b) for a, b in zip(old["shared"], new["shared"], strict=True) if a.ndim == 4
        )  # every convolution


class Watched(nn.Module):
    """Keeps what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.calls: list[tuple[Tensor | None, Tensor, bool]] = []

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits that are the weight."""
        self.calls.append((mask, self.weight.detach().clone(), self.training))
        return self.weight[:, None, None].expand(len(x), 2, 4, 4)


def test_the_order_of_an_iteration() -> None:
    """Two forwards, two steps; the mask is of the weights before the first step, the CN pass of those after it."""
    model = Watched().eval()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    gradients = [torch.tensor([3.0, -0.02]), torch.tensor([-5.0, 0.05])]

    def loss(logits: Tensor, _: Tensor) -> Tensor:
        return (logits.mean((0, 2, 3)) * gradients[len(model.calls) - 1]).sum()

    result = two_stage_step(model, optimizer, torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4), loss)
    (no_mask, start, training), (mask, updated, training_2) = model.calls
    assert no_mask is None
    assert training
    assert training_2
    assert mask is not None
    assert not mask.requires_grad
    torch.testing.assert_close(mask[0, :, 0, 0], start.softmax(0))
    torch.testing.assert_close(updated, -gradients[0])  # not clipped
    torch.testing.assert_close(model.weight.detach(), -gradients[0] - torch.tensor([-0.1, 0.05]))  # clipped by element
    assert set(result) >= {"loss_first", "loss_second"}
    assert float(result["loss_first"]) == 0
    assert not result["loss_second"].requires_grad


def test_under_autocast_the_second_pass_goes_by_the_new_weights() -> None:
    """Step 4 of 2.3: autocast keeps low-precision copies of the weights, and those of the first pass are old."""
    network = unet((1, 2))
    x, y = batch()
    calls: list[tuple[dict[str, Tensor], Any]] = []
    handle = network.register_forward_pre_hook(
        lambda _, inputs: calls.append((copy.deepcopy(network.state_dict()), inputs[1:]))
    )
    with torch.autocast("cpu", torch.bfloat16):
        found = two_stage_step(network, torch.optim.Adam(network.parameters(), 0.05), x, y, segmentation_loss)["logits"]
    handle.remove()
    _, (state, masks) = calls
    network.load_state_dict(state)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(found, network(x, *masks))


def test_clip_first_and_true_mask() -> None:
    model = Watched()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    truth = torch.ones(2, 2, 4, 4)
    two_stage_step(
        model,
        optimizer,
        torch.zeros(2, 3, 4, 4),
        torch.zeros(2, 4, 4),
        lambda a, _: 7 * a.mean(),
        clip_first=True,
        mask=truth,
    )
    assert model.calls[1][0] is truth
    torch.testing.assert_close(model.calls[1][1], torch.full((2,), -0.1))


def test_clipping_small_gradients_changes_nothing_and_first_step_has_the_size_of_the_rate() -> None:
    x, y = batch()
    one, two = unet((1,)), unet((1,))
    before = copies(list(one.parameters()))
    assert CLIP == 0.1
    for network, clip in ((one, 1e9), (two, CLIP)):
        one_stage_step(network, adam(network), x, y, lambda a, b: 1e-3 * segmentation_loss(a, b), clip)
    assert 0 < max(float(p.grad.abs().max()) for p in one.parameters() if p.grad is not None) < CLIP
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    moved = [(a - b).abs().max().item() for a, b in zip(one.parameters(), before, strict=True) if a.grad is not None]
    # Biases that only feed a batch norm have rounding noise for a gradient; Adam's eps keeps some of them below.
    assert max(moved) == pytest.approx(1e-3, rel=1e-3)
    assert all(value <= 1.001e-3 for value in moved)


# Prediction (2.4)


def test_two_passes() -> None:
    network = unet((1,)).train()
    x, _ = batch()
    state = copy.deepcopy(network.state_dict())
    first, second = two_pass(network, x)
    assert network.training
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    network.eval()
    assert torch.equal(first, network(x))
    assert torch.equal(second, network(x, network(x).softmax(1)))
    assert not torch.equal(two_pass(network, x, torch.ones_like(first))[1], second)


# The schedule (2.6)


def test_plateau() -> None:
    """Six windows without a better mean halve the rate, and nothing happens below 1e-5."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter], 1e-3)
    plateau = Plateau(optimizer, window=2)
    for number in range(14):
        plateau.step(torch.tensor(0.5))
        assert plateau.rate == (1e-3 if number < 13 else 5e-4)
    for _ in range(200):
        plateau.step(torch.tensor(0.5))
    assert plateau.rate == pytest.approx(1e-3 / 2**7)  # the first below 1e-5
    parameter.grad = torch.ones(1)
    optimizer.step()
    plateau.restart(1e-3)
    assert plateau.rate == 1e-3
    assert not optimizer.state
    assert plateau.losses == []


def test_plateau_continues() -> None:
    plateaus = []
    for stop in (5, 100):
        optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], 1e-3)
        plateau = Plateau(optimizer, window=3)
        for number in range(40):
            if number == stop:
                saved, old = plateau.state_dict(), optimizer.state_dict()
                optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], 1e-3)
                plateau = Plateau(optimizer, window=3)
                optimizer.load_state_dict(old)
                plateau.load_state_dict(saved)
            plateau.step(torch.tensor(0.4 + 0.01 * (number % 4)))
        plateaus.append((plateau.rate, plateau.state_dict()))
    assert plateaus[0] == plateaus[1]


# Bad input


def test_mask_of_other_classes() -> None:
    with pytest.raises(ValueError, match="give the probabilities of 3 classes"):
        CateNorm2d(4, 3)(torch.zeros(1, 4, 8, 8), torch.zeros(1, 2, 8, 8))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mask_mode": "smooth"}, "mask_mode is 'smooth'"),
        ({"form": "x"}, "form is 'x'"),
        ({"reduction": 9}, "leave none"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CateNorm2d(4, 3, **options)


def test_labels_of_the_hard_dice_are_those_of_the_largest_class() -> None:
    assert hard_dice_loss(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64)).item() == pytest.approx(
        0, abs=1e-6
    )
