"""Closed-form cases of the specification (section 9), the losses with hand-made numbers, and parameter counts (3.1)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from catenorm import CateNorm2d, CateNormUNet, WNet, largest_component, segmentation_loss
from catenorm.losses import hard_dice_loss
from dart_core.metrics import average_surface_distance


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def logits_of(probabilities: Tensor) -> Tensor:
    return probabilities.clamp(min=1e-30).log()


# Parameter counts (3.1, 9.11)


@pytest.fixture
def shapes_only() -> Iterator[None]:
    """Networks without memory."""
    with torch.device("meta"):
        yield


@pytest.mark.usefixtures("shapes_only")
@pytest.mark.parametrize(
    ("classes", "bn", "block_1", "block_1_4"),
    [(2, 17_286_786, 17_305_954, 18_864_546), (7, 17_286_951, 17_307_559, 18_886_311), (9, 17_287_017, 17_308_201, 18_895_017)],
)  # fmt: skip
def test_parameters(classes: int, bn: int, block_1: int, block_1_4: int) -> None:
    found = [count(CateNormUNet(3, classes, blocks)) for blocks in ((), (1,), (1, 2, 3, 4))]
    assert found == [bn, block_1, block_1_4]
    assert round(block_1_4 / bn, 3) in (1.091, 1.092, 1.093)


@pytest.mark.usefixtures("shapes_only")
def test_parameters_of_more_blocks_and_other_norms() -> None:
    assert count(CateNormUNet(3, 2, (1, 2, 3, 4, 5))) == 23_594_914
    assert count(CateNormUNet(3, 2, range(1, 11))) == 29_903_042
    assert count(CateNormUNet(3, 2, (), "in")) == 17_276_866
    assert count(CateNormUNet(3, 2, (), "gn")) == 17_286_786
    assert f"{count(CateNormUNet(3, 2)) / 17_286_786:.4f}" == "1.0913"
    assert f"{count(WNet(3, 2)) / 17_286_786:.3f}" == "2.091"


@pytest.mark.usefixtures("shapes_only")
@pytest.mark.parametrize(
    ("blocks", "extra"),
    [((1, 10), 21_184), ((2, 9), 79_232), ((3, 8), 305_920), ((4, 7), 1_201_664), ((5, 6), 4_762_624)],
)
def test_parameters_of_one_block(blocks: tuple[int, int], extra: int) -> None:
    assert [count(CateNormUNet(3, 9, (block,))) - 17_287_017 for block in blocks] == [extra, extra]


@pytest.mark.usefixtures("shapes_only")
def test_parameters_by_part() -> None:
    parts = {name: count(module) for name, module in CateNormUNet(3, 2, (1, 2, 3, 4)).named_children()}
    assert list(parts.items()) == [
        ("inc", 37_920), ("down1", 167_808), ("down2", 667_392), ("down3", 2_661_888), ("down4", 5_901_824), ("mid", 4_721_664),
        ("up1", 3_542_016), ("up2", 886_272), ("up3", 221_952), ("up4", 55_680), ("out", 130),
    ]  # fmt: skip


@pytest.mark.parametrize(("channels", "classes"), [(8, 2), (32, 9)])
def test_parameters_of_a_layer(channels: int, classes: int) -> None:
    """(9 K + 1)(C / 2) + 2 (9 C / 2 + 1) C (2.1)."""
    half = channels // 2
    assert count(CateNorm2d(channels, classes)) == (9 * classes + 1) * half + 2 * (9 * half + 1) * channels


# The layer (9.1 to 9.4)


def layer(**options: Any) -> CateNorm2d:
    torch.manual_seed(0)
    return CateNorm2d(6, 3, **options).double()


def inputs(size: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = 3 + 2 * torch.randn(2, 6, size, size, generator=generator, dtype=torch.float64)
    return x, torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64).softmax(1)


def zero(*modules: nn.Module) -> None:
    for module in modules:
        for parameter in module.parameters():
            nn.init.zeros_(parameter)


def test_without_gamma_and_beta_it_is_plain_normalisation() -> None:
    x, mask = inputs()
    cate, paper = layer(), layer(form="paper")
    for found in (cate, paper):
        zero(found.gamma, found.beta)
    expected = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(cate(x, mask), expected)
    assert not paper(x, mask).any()


def test_running_statistics() -> None:
    """Momentum 0.1, unbiased variance, used in evaluation."""
    x, mask = inputs()
    cate = layer()
    zero(cate.gamma, cate.beta)
    cate(x, mask)
    mean, variance = 0.1 * x.mean((0, 2, 3)), 0.9 + 0.1 * x.var((0, 2, 3), correction=1)
    torch.testing.assert_close(cate.norm.running_mean, mean)
    torch.testing.assert_close(cate.norm.running_var, variance)
    expected = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
    torch.testing.assert_close(cate.eval()(x, mask), expected)


def test_both_forms_from_the_same_maps() -> None:
    x, mask = inputs()
    cate, paper = layer(), layer(form="paper")
    gamma, beta = cate.modulation(mask, (16, 16))
    normalised = cate.norm(x)
    torch.testing.assert_close(cate(x, mask), normalised * (1 + gamma) + beta)
    torch.testing.assert_close(paper(x, mask), normalised * gamma + beta)
    activated = F.relu(F.conv2d(mask, cate.shared.weight, cate.shared.bias, padding=1))
    torch.testing.assert_close(gamma, F.conv2d(activated, cate.gamma.weight, cate.gamma.bias, padding=1))


def test_a_constant_mask_gives_constant_maps_inside() -> None:
    mask = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)[None, :, None, None].expand(1, 3, 12, 12)
    gamma, _ = layer().modulation(mask, (12, 12))
    inside = gamma[..., 2:-2, 2:-2]
    torch.testing.assert_close(inside, inside[..., :1, :1].expand_as(inside))
    assert not torch.allclose(gamma, gamma[..., 5:6, 5:6].expand_as(gamma))


def test_maps_see_five_pixels() -> None:
    _, mask = inputs()
    other = mask.clone()
    other[..., :, 11:] = other.flip(1)[..., :, 11:]
    one, two = (layer().modulation(m, (16, 16)) for m in (mask, other))
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a[..., :9], b[..., :9], rtol=0, atol=0)
        assert not torch.equal(a[..., 9], b[..., 9])


def test_mean_and_variance_of_the_output() -> None:
    x, mask = inputs()
    cate = layer()
    zero(cate.gamma)
    _, beta = cate.modulation(mask, (16, 16))
    out = cate(x, mask)
    torch.testing.assert_close(out.mean((0, 2, 3)), beta.mean((0, 2, 3)))
    variance = x.var((0, 2, 3), correction=0)
    torch.testing.assert_close((out - beta).var((0, 2, 3), correction=0), variance / (variance + 1e-5))


@pytest.mark.parametrize("mode", ["soft", "nearest", "hard"])
def test_modes_of_the_mask(mode: Any) -> None:
    mask = torch.tensor([[0.6, 0.1], [0.3, 0.8]], dtype=torch.float64)
    mask = torch.stack((mask, 1 - mask))[None]
    cate = CateNorm2d(2, 2, mode).double()
    cate.shared.weight.data.zero_()
    cate.shared.weight.data[:, 0, 1, 1] = 1
    cate.shared.bias.data.zero_()
    cate.gamma.weight.data.zero_()
    cate.gamma.weight.data[:, 0, 1, 1] = 1
    cate.gamma.bias.data.zero_()
    found = cate.modulation(mask, (3, 3))[0][0, 0]
    expected = {
        "soft": [[0.6, 0.35, 0.1], [0.45, 0.45, 0.45], [0.3, 0.55, 0.8]],
        "nearest": [[0.6, 0.6, 0.1], [0.6, 0.6, 0.1], [0.3, 0.3, 0.8]],
        "hard": [[1, 1, 0], [1, 1, 0], [0, 0, 1]],
    }[mode]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


# Losses (9.8)


def test_dice_of_a_perfect_prediction() -> None:
    target = torch.tensor([[[0, 1], [1, 1]], [[0, 0], [0, 0]]])
    perfect = logits_of(F.one_hot(target, 2).movedim(-1, 1).double())
    assert segmentation_loss(perfect, target).item() == pytest.approx(0, abs=1e-12)


def test_a_slice_without_foreground_costs_half() -> None:
    target = torch.zeros(1, 8, 8, dtype=torch.int64)
    assert segmentation_loss(torch.zeros(1, 2, 8, 8), target).item() == pytest.approx(1 - (1 / 1.5 + 0) / 2, abs=1e-6)


def test_paper_form_of_a_uniform_prediction() -> None:
    """9.8: class 0 costs 0.2, class 1 costs 1; cross-entropy log(L) / L."""
    target, uniform = torch.zeros(2, 4, 4, dtype=torch.int64), torch.zeros(2, 2, 4, 4, dtype=torch.float64)
    assert segmentation_loss(uniform, target, "paper", 1.0).item() == pytest.approx(0.6)
    assert segmentation_loss(uniform, target, "paper", 0.0).item() == pytest.approx(math.log(2) / 2)
    assert segmentation_loss(uniform, target, "paper", 0.5).item() == pytest.approx(0.3 + math.log(2) / 4)


def test_code_form_of_several_classes() -> None:
    """Uniform over four classes, everything is background."""
    target, uniform = torch.zeros(1, 4, 4, dtype=torch.int64), torch.zeros(1, 4, 4, 4, dtype=torch.float64)
    dice = ((1 - 2 * 4 / (16 + 1)) + 3) / 4
    assert segmentation_loss(uniform, target).item() == pytest.approx(dice + math.log(4), abs=1e-5)


def test_clamp_of_small_probabilities() -> None:
    target = torch.zeros(1, 1, 1, dtype=torch.int64)
    logits = torch.tensor([0.001, 0.5, 0.499], dtype=torch.float64).log()[None, :, None, None].requires_grad_()
    p = logits.detach().softmax(1)[0, :, 0, 0]
    dice = 1 - (2 * p[0] + 1e-6) / (1 + p[0] ** 2 + 1e-6)
    dice = (dice + sum(1 - 1e-6 / (q**2 + 1e-6) for q in p[1:])) / 3
    loss = segmentation_loss(logits, target)
    assert loss.item() == pytest.approx(5.298317 + dice.item(), abs=1e-6)
    loss.backward()
    with_gradient = logits.grad
    small = logits.detach().clone().requires_grad_()
    probabilities = small.softmax(1)
    y = F.one_hot(target, 3).movedim(-1, 1)
    overlap, size = 2 * (probabilities * y).sum((0, 2, 3)), (probabilities**2 + y).sum((0, 2, 3))
    (1 - (overlap + 1e-6) / (size + 1e-6)).mean().backward()
    torch.testing.assert_close(with_gradient, small.grad)  # the Dice's alone


def test_class_weights() -> None:
    """Three quarters background: weights 1/4 and 3/4."""
    target = torch.tensor([[[0, 0], [0, 1]]])
    uniform = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    overlap = [(2 * 1.5 + 1e-6) / (2 + 3 + 1e-6), (1 + 1e-6) / (2 + 1 + 1e-6)]
    expected = (0.25 * (1 - overlap[0]) + 0.75 * (1 - overlap[1])) / 2
    assert segmentation_loss(uniform, target, class_weights=True).item() == pytest.approx(expected)


def test_loss_of_half_precision_is_computed_in_full() -> None:
    target = torch.zeros(1, 4, 4, dtype=torch.int64)
    assert segmentation_loss(torch.zeros(1, 3, 4, 4, dtype=torch.bfloat16), target).dtype == torch.float32


@pytest.mark.parametrize("form", ["code", "paper"])
def test_gradient(form: Any) -> None:
    logits = torch.randn(
        2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    target = torch.arange(32).view(2, 4, 4) % 3
    assert torch.autograd.gradcheck(lambda x: segmentation_loss(x, target, form), (logits,))


@pytest.mark.parametrize(("target", "words"), [((1, 4, 5), "do not fit"), ((1, 4, 4), "there are 2 classes")])
def test_bad_labels(target: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        segmentation_loss(torch.zeros(1, 2, 4, 4), torch.full(target, 2))


def test_hard_dice() -> None:
    """Half of the foreground found: background 2 3 / (3 + 4) ..."""
    target = torch.tensor([[[1, 1], [0, 0]]])
    logits = F.one_hot(torch.tensor([[[1, 0], [0, 0]]]), 2).movedim(-1, 1).float()
    expected = 1 - (2 * 2 / (3 + 2) + 2 * 1 / (1 + 2)) / 2
    assert hard_dice_loss(logits, target).item() == pytest.approx(expected, abs=1e-5)


# Metrics (9.10)


def test_surface_distance_of_a_shifted_cube() -> None:
    truth = np.zeros((14, 14, 14), bool)
    truth[2:12, 2:12, 2:12] = True
    moved = np.zeros_like(truth)
    moved[3:11, 3:11, 4:12] = True
    assert average_surface_distance(truth, truth, (1, 1, 1)) == 0
    one, two = (average_surface_distance(moved, truth, (k, k, 2.5 * k)) for k in (1.0, 3.0))
    assert 0 < one < 2.5
    assert two == pytest.approx(3 * one)
    assert average_surface_distance(truth, moved, (1, 1, 2.5)) != pytest.approx(one)


def test_largest_component() -> None:
    corner = np.zeros((3, 3, 3), int)
    corner[0, 0, 0] = corner[1, 1, 1] = corner[1, 1, 2] = 1
    kept = largest_component(corner)
    assert kept.dtype == bool
    assert kept.sum() == 2
    assert not kept[0, 0, 0]
    assert not largest_component(np.zeros((4, 4))).any()  # and not all ones
    assert largest_component(np.eye(3)).sum() == 1
    for tensor in (torch.from_numpy(corner), torch.from_numpy(corner).to(torch.bfloat16)):
        found = largest_component(tensor)
        assert (found.dtype, found.device) == (torch.bool, tensor.device)
        np.testing.assert_array_equal(found.numpy(), kept)
