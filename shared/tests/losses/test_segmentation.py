from __future__ import annotations

import math

import pytest
import torch

from dart_core import losses

SHAPES = [(2, 5), (3, 1, 4, 6), (2, 1, 3, 4, 5)]
ALL = [losses.binary_cross_entropy, losses.soft_dice, losses.bce_dice]


def example(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(shape))
    logits = 2 * torch.randn(shape, generator=generator, dtype=dtype)
    return logits, (torch.rand(shape, generator=generator) > 0.5).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_definitions(shape: tuple[int, ...]) -> None:
    logits, target = example(shape)
    p = 1 / (1 + torch.exp(-logits))
    bce = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    per_sample = [
        1 - 2 * float((p[i] * target[i]).sum()) / (float((p[i] ** 2 + target[i] ** 2).sum()) + 1e-7)
        for i in range(shape[0])
    ]
    dice = sum(per_sample) / shape[0]
    assert float(losses.binary_cross_entropy(logits, target)) == pytest.approx(float(bce), rel=1e-12)
    assert float(losses.soft_dice(logits, target)) == pytest.approx(dice, rel=1e-12)
    assert float(losses.bce_dice(logits, target)) == pytest.approx(0.4 * float(bce) + 0.6 * dice, rel=1e-12)
    assert float(losses.bce_dice(logits, target, 0.0, 2.0)) == pytest.approx(2 * dice, rel=1e-12)


def test_closed_forms() -> None:
    zeros, ones = torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    assert float(losses.binary_cross_entropy(zeros, ones)) == pytest.approx(math.log(2))
    # p = 1/2 everywhere, target all 1: 1 - 2 * 8 / (4 + 16)
    assert float(losses.soft_dice(zeros, ones)) == pytest.approx(0.2)
    assert float(losses.soft_dice(40 * ones, ones)) == pytest.approx(0.0, abs=1e-6)
    # epsilon stands in the denominator: 1 - 16 / (20 + 12)
    assert float(losses.soft_dice(zeros, ones, epsilon=12.0)) == pytest.approx(0.5)


@pytest.mark.parametrize("logit", [-200.0, -3.0, 0.0, 5.0])
def test_empty_mask_costs_one(logit: float) -> None:
    assert float(losses.soft_dice(torch.full((2, 1, 3, 3), logit), torch.zeros(2, 1, 3, 3))) == 1.0


def test_dice_is_taken_per_sample() -> None:
    logits, target = example((4, 1, 5, 5))
    single = [float(losses.soft_dice(logits[i : i + 1], target[i : i + 1])) for i in range(4)]
    assert float(losses.soft_dice(logits, target)) == pytest.approx(sum(single) / 4, rel=1e-12)


@pytest.mark.parametrize("loss", ALL)
def test_gradient(loss: object) -> None:
    assert callable(loss)
    logits, target = example((2, 1, 3, 4))
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits.requires_grad_())


@pytest.mark.parametrize("loss", ALL)
def test_types(loss: object) -> None:
    assert callable(loss)
    logits, target = example((2, 1, 8, 8))
    expected = float(loss(logits, target))
    assert loss(logits, target).dtype == torch.float64
    assert loss(logits.float(), target).dtype == torch.float32
    for low in (torch.float16, torch.bfloat16):
        rounded = logits.to(low)
        result = loss(rounded, target)
        assert result.dtype == torch.float32
        assert float(result) == pytest.approx(float(loss(rounded.double(), target)), rel=1e-6)
    for other in (torch.bool, torch.uint8, torch.int64):
        assert float(loss(logits, target.to(other))) == expected


@pytest.mark.parametrize("loss", ALL)
def test_large_half_precision_batch_does_not_overflow(loss: object) -> None:
    assert callable(loss)
    logits = torch.full((1, 1, 512, 512), 10.0, dtype=torch.float16)
    assert math.isfinite(float(loss(logits, torch.ones(1, 1, 512, 512))))


@pytest.mark.parametrize("loss", ALL)
def test_bad_shapes(loss: object) -> None:
    assert callable(loss)
    with pytest.raises(ValueError, match=r"logits have shape \(2, 1, 4, 4\), the target \(2, 4, 4\)"):
        loss(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match="batch axis"):
        loss(torch.zeros(4), torch.zeros(4))
