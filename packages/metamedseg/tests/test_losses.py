from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from metamedseg import losses

ALL = sorted(losses.LOSSES)


def case(seed: int = 0, share: float = 0.3, shape=(2, 1, 6, 5)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    mask = (torch.rand(shape, generator=generator) < share).double()
    return logits, mask


@pytest.mark.parametrize("name", ALL)
def test_values_and_gradients_by_finite_differences(name):
    logits, mask = case()
    assert losses.LOSSES[name](logits, mask).ndim == 0
    assert torch.autograd.gradcheck(lambda x: losses.LOSSES[name](x, mask), (logits.requires_grad_(),))


@pytest.mark.parametrize("name", ALL)
def test_half_precision_and_masks_of_any_type(name):
    logits, mask = case()
    exact = losses.LOSSES[name](logits.float(), mask)
    half = losses.LOSSES[name](logits.to(torch.bfloat16), mask.bool())
    assert (half.dtype, exact.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(half, exact, rtol=0.02, atol=0.01)
    with pytest.raises(ValueError, match="must be equal"):
        losses.LOSSES[name](logits, mask[:1])


@pytest.mark.parametrize("name", [name for name in ALL if name != "generalised_dice"])
def test_a_perfect_prediction_costs_nothing(name):
    _, mask = case()
    logits = (80 * mask - 40).requires_grad_()
    loss = losses.LOSSES[name](logits, mask)
    loss.backward()
    assert 0 <= float(loss.detach()) < 1e-12
    assert torch.isfinite(logits.grad).all()


class TestIoU:
    @pytest.mark.parametrize("n", [0, 1, 7, 30])
    def test_even_prediction(self, n):
        mask = torch.zeros(1, 1, 6, 5, dtype=torch.float64)
        mask.view(-1)[:n] = 1
        expected = 1 - (n / 2 + 1) / (30 / 2 + n / 2 + 1)
        assert float(losses.iou(torch.zeros_like(mask), mask)) == pytest.approx(expected, rel=1e-12)

    def test_nothing_there_and_nothing_found(self):
        mask = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
        assert float(losses.iou(mask - 60, mask)) < 1e-12

    def test_over_the_batch_or_image_by_image(self):
        logits, mask = case()
        each = [float(losses.iou(logits[i : i + 1], mask[i : i + 1])) for i in range(2)]
        assert float(losses.iou(logits, mask, per_image=True)) == pytest.approx(np.mean(each), rel=1e-12)
        assert float(losses.iou(logits, mask)) != pytest.approx(np.mean(each), rel=1e-6)


class TestWeightedBCE:
    def test_by_hand(self):
        logits, mask = case()
        p = torch.sigmoid(logits).numpy()
        expected = []
        for image, g in zip(p, mask.numpy(), strict=True):
            ratio = (g == 0).sum() / g.sum()
            expected.append(-(ratio * g * np.log(image) + (1 - g) * np.log(1 - image)).mean())
        assert float(losses.weighted_bce(logits, mask)) == pytest.approx(np.mean(expected), rel=1e-12)

    def test_equals_bce_where_half_is_foreground(self):
        logits, mask = case()
        mask = torch.zeros_like(mask)
        mask.view(2, -1)[:, :15] = 1
        assert float(losses.weighted_bce(logits, mask)) == pytest.approx(float(losses.bce(logits, mask)), rel=1e-12)

    def test_an_empty_image_counts_once(self):
        logits, mask = case(share=0.0)
        assert float(losses.weighted_bce(logits, mask)) == pytest.approx(float(losses.bce(logits, mask)), rel=1e-12)

    def test_without_weight_and_one_image(self):
        logits, mask = case()
        expected = F.binary_cross_entropy_with_logits(logits, mask)
        assert losses.weighted_bce(logits, mask, pos_weight="none") == expected
        assert losses.bce(logits, mask) == expected
        one = losses.weighted_bce(logits[0, 0], mask[0, 0])
        assert float(one) == pytest.approx(float(losses.weighted_bce(logits[:1], mask[:1])), rel=1e-12)


@given(seed=st.integers(0, 1000), share=st.floats(0, 1))
def test_combined_is_bce_and_the_logarithm_of_dice(seed, share):
    logits, mask = case(seed, share)
    overlap = 1 - float(losses.iou(logits, mask))
    for pos_weight in ("ratio", "none"):
        expected = float(losses.weighted_bce(logits, mask, pos_weight)) - math.log(2 * overlap / (1 + overlap))
        assert float(losses.combined(logits, mask, pos_weight)) == pytest.approx(expected, rel=1e-12)


class TestDiceAndTversky:
    def test_dice_by_hand(self):
        logits, mask = case()
        p = torch.sigmoid(logits)
        expected = 1 - (2 * (p * mask).sum() + 1) / (p.sum() + mask.sum() + 1)
        torch.testing.assert_close(losses.dice(logits, mask), expected)

    def test_even_tversky_is_dice_up_to_the_smoothing(self):
        logits, mask = case()
        tversky = losses.focal_tversky(logits, mask, fn=0.5, fp=0.5, power=1.0, smooth=0.5)
        torch.testing.assert_close(tversky, losses.dice(logits, mask))

    def test_defaults(self):
        logits, mask = case()
        p, g = torch.sigmoid(logits), mask
        true, missed, false = (p * g).sum(), ((1 - p) * g).sum(), (p * (1 - g)).sum()
        torch.testing.assert_close(
            losses.tversky(logits, mask), 1 - (true + 1) / (true + 0.8 * missed + 0.2 * false + 1)
        )
        index = (true + 1) / (true + 0.7 * missed + 0.3 * false + 1)
        torch.testing.assert_close(losses.focal_tversky(logits, mask), (1 - index) ** 0.75)

    def test_generalised_dice_weighs_small_regions_up(self):
        logits, mask = case()
        p = torch.sigmoid(logits)
        above = below = 0.0
        for found, truth in ((p, mask), (1 - p, 1 - mask)):
            w = 1 / truth.sum() ** 2
            above, below = above + w * (found * truth).sum(), below + w * (found + truth).sum()
        torch.testing.assert_close(losses.generalised_dice(logits, mask), 1 - 2 * above / below, rtol=1e-4, atol=1e-6)
        perfect = losses.generalised_dice(80 * mask - 40, mask)
        assert abs(float(perfect)) < 1e-4  # 1e-6 in the denominator, which is small itself
