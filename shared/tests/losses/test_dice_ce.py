from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dart_core.losses import deep_supervision_weights, dice_ce_loss, downsample_labels

SHAPES = [(3, 2, 7), (2, 4, 5, 6), (2, 3, 4, 3, 5)]


def example(shape: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(shape[1], (shape[0], 1, *shape[2:]), generator=generator)
    return logits, labels


def oracle(logits: np.ndarray, labels: np.ndarray, batch_dice: bool) -> float:
    """nnU-Net's formulas with counts of true and false positives and false negatives, pixel by pixel."""
    n, classes = logits.shape[:2]
    x, y = logits.reshape(n, classes, -1), labels.reshape(n, -1)
    tp, fp, fn = (np.zeros((n, classes)) for _ in range(3))
    cross_entropy = []
    for i in range(n):
        for pixel in range(x.shape[2]):
            e = np.exp(x[i, :, pixel] - x[i, :, pixel].max())
            p = e / e.sum()
            cross_entropy.append(-math.log(p[y[i, pixel]]))
            for c in range(classes):
                if y[i, pixel] == c:
                    tp[i, c] += p[c]
                    fn[i, c] += 1 - p[c]
                else:
                    fp[i, c] += p[c]
    if batch_dice:
        tp, fp, fn = (values.sum(0, keepdims=True) for values in (tp, fp, fn))
    dice = (2 * tp + 1e-5) / (2 * tp + fp + fn + 1e-5 + 1e-8)
    return float(np.mean(cross_entropy) - dice[:, 1:].mean())


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_counts(shape: tuple[int, ...], batch_dice: bool) -> None:
    logits, labels = example(shape)
    expected = oracle(logits.numpy(), labels.numpy(), batch_dice)
    result = dice_ce_loss(logits, labels, batch_dice=batch_dice)
    assert result.dtype == torch.float64
    assert result.shape == ()
    assert float(result) == pytest.approx(expected, rel=1e-12)
    single = dice_ce_loss(logits.float(), labels, batch_dice=batch_dice)
    assert single.dtype == torch.float32
    assert float(single) == pytest.approx(expected, rel=1e-5)


def test_closed_form() -> None:
    # Two classes, logits 0: p = 1/2 in each of 4 pixels, 1 of them foreground: CE log 2, dice (1 + s) / (2 + 1 + s + 1e-8).
    labels = torch.tensor([[[1, 0], [0, 0]]])[None]
    expected = math.log(2) - (1 + 1e-5) / (3 + 1e-5 + 1e-8)
    assert float(dice_ce_loss(torch.zeros(1, 2, 2, 2, dtype=torch.float64), labels)) == pytest.approx(
        expected, rel=1e-14
    )


@pytest.mark.parametrize("batch_dice", [True, False])
def test_a_perfect_prediction_costs_minus_one(batch_dice: bool) -> None:
    _, labels = example((2, 3, 6, 6))
    logits = 1e4 * torch.nn.functional.one_hot(labels[:, 0], 3).movedim(-1, 1).double()
    assert float(dice_ce_loss(logits, labels, batch_dice=batch_dice)) == pytest.approx(-1.0, abs=1e-9)


def test_a_class_that_is_absent_from_labels_and_prediction() -> None:
    # dice_1 = 1e-5 / (1e-5 + 1e-8); the cross-entropy is 0.
    logits = torch.zeros(2, 2, 4, 4, dtype=torch.float64)
    logits[:, 0] = 1e4
    loss = dice_ce_loss(logits, torch.zeros(2, 1, 4, 4, dtype=torch.int64))
    assert float(loss) == pytest.approx(-1e-5 / (1e-5 + 1e-8), rel=1e-12)


def test_dice_is_taken_over_the_batch() -> None:
    # One sample has foreground everywhere and the other none: in the batch 2 TP / (2 TP + FP + FN) = 8 / (8 + 4).
    logits = torch.zeros(2, 2, 2, 2, dtype=torch.float64)
    logits[:, 1] = 1e3
    logits[1, :, 0, 0] = torch.tensor([1e3, 0.0])
    labels = torch.stack([torch.ones(1, 2, 2), torch.zeros(1, 2, 2)]).long()
    cross_entropy = 3 * 1e3 / 8
    dice = (8 + 1e-5) / (8 + 3 + 1e-5 + 1e-8)
    assert float(dice_ce_loss(logits, labels)) == pytest.approx(cross_entropy - dice, rel=1e-12)
    single = ((8 + 1e-5) / (8 + 1e-5 + 1e-8) + 1e-5 / (3 + 1e-5 + 1e-8)) / 2
    assert float(dice_ce_loss(logits, labels, batch_dice=False)) == pytest.approx(cross_entropy - single, rel=1e-12)


@given(
    st.integers(0, 2**31), st.integers(2, 5), st.booleans(), st.sampled_from([torch.uint8, torch.int16, torch.int64])
)
@settings(max_examples=30, deadline=None)
def test_properties(seed: int, classes: int, batch_dice: bool, dtype: torch.dtype) -> None:
    logits, labels = example((2, classes, 4, 3), seed)
    loss = float(dice_ce_loss(logits, labels, batch_dice=batch_dice))
    assert loss >= -1
    # a constant added to all channels changes nothing, neither does the order of samples and foreground classes
    shifted = logits + torch.randn(2, 1, 4, 3, dtype=torch.float64)
    assert float(dice_ce_loss(shifted, labels.to(dtype), batch_dice=batch_dice)) == pytest.approx(loss, rel=1e-9)
    order = torch.tensor([0, *range(classes - 1, 0, -1)])
    swapped = dice_ce_loss(logits.flip(0)[:, order], order[labels].flip(0), batch_dice=batch_dice)
    assert float(swapped) == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("batch_dice", [True, False])
def test_gradient(batch_dice: bool) -> None:
    logits, labels = example((2, 3, 2, 3))
    assert torch.autograd.gradcheck(lambda x: dice_ce_loss(x, labels, batch_dice=batch_dice), logits.requires_grad_())


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4, 1e30])
def test_gradient_is_finite(scale: float) -> None:
    logits, labels = example((2, 3, 4, 4))
    x = (scale * logits).float().requires_grad_()
    dice_ce_loss(x, labels).backward()
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits, labels = example((1, 2, 300, 300))
    low = logits.to(dtype)
    result = dice_ce_loss(low, labels)
    assert result.dtype == torch.float32
    assert float(result) == pytest.approx(float(dice_ce_loss(low.double(), labels)), rel=1e-5)


def levels(shape: tuple[int, ...], count: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    pairs = [example((*shape[:2], *(n // 2**k for n in shape[2:])), k) for k in range(count)]
    return [x for x, _ in pairs], [y for _, y in pairs]


@pytest.mark.parametrize("weights", [None, [0.5, 0.0, 0.25], (3, 2, 1)])
def test_deep_supervision(weights: list[float] | None) -> None:
    logits, labels = levels((2, 3, 16, 8), 3)
    used = [2 / 3, 1 / 3, 0.0] if weights is None else weights
    expected = sum(w * oracle(x.numpy(), y.numpy(), True) for w, x, y in zip(used, logits, labels, strict=True))
    assert float(dice_ce_loss(logits, labels, weights)) == pytest.approx(expected, rel=1e-12)


def test_one_output_in_a_list() -> None:
    logits, labels = example((2, 3, 4, 4))
    assert float(dice_ce_loss([logits], [labels])) == float(dice_ce_loss(logits, labels))
    assert float(dice_ce_loss(logits, labels, weights=[0.5])) == pytest.approx(
        0.5 * float(dice_ce_loss(logits, labels))
    )


def test_the_lowest_output_gets_no_gradient() -> None:
    heads = nn.ModuleList(nn.Conv2d(1, 2, 1) for _ in range(3))
    _, labels = levels((2, 2, 16, 16), 3)
    dice_ce_loss([head(y.float()) for head, y in zip(heads, labels, strict=True)], labels).backward()
    gradients = [head.weight.grad for head in heads]
    assert gradients[0] is not None
    assert gradients[1] is not None
    assert gradients[2] is None


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(2, 2, 4), torch.zeros(2, 4, dtype=torch.int64), r"\(2, 2, 4\), the labels \(2, 4\)"),
        (torch.zeros(2, 2, 4), torch.zeros(2, 1, 5, dtype=torch.int64), r"the labels \(2, 1, 5\)"),
        (torch.zeros(2, 2), torch.zeros(2, 1, dtype=torch.int64), r"logits have shape \(2, 2\)"),
        (torch.zeros(2, 1, 4), torch.zeros(2, 1, 4, dtype=torch.int64), "at least one foreground class"),
        (torch.zeros(2, 2, 4), torch.zeros(2, 1, 4), "integer type"),
        (torch.zeros(2, 2, 4), torch.full((2, 1, 4), -1), "run from -1 to -1"),
        (torch.zeros(2, 2, 4), torch.full((2, 1, 4), 2), "classes 0 to 1"),
        ([torch.zeros(2, 2, 4)], torch.zeros(2, 1, 4, dtype=torch.int64), "both lists"),
        ([torch.zeros(2, 2, 4)] * 2, [torch.zeros(2, 1, 4, dtype=torch.int64)], "2 outputs, 1 label maps"),
    ],
)
def test_bad_input(logits: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dice_ce_loss(logits, labels)


def test_bad_weights() -> None:
    logits, labels = levels((2, 2, 8, 8), 2)
    with pytest.raises(ValueError, match="3 weights"):
        dice_ce_loss(logits, labels, [1, 1, 1])
    with pytest.raises(ValueError, match="every weight is 0"):
        dice_ce_loss(logits, labels, [0, 0])


def test_deep_supervision_weights() -> None:
    # specification adagrad-unet 2.3, printed with four digits
    assert deep_supervision_weights(6) == pytest.approx([0.5161, 0.2581, 0.1290, 0.0645, 0.0323, 0], abs=5e-5)
    assert deep_supervision_weights(6)[:5] == pytest.approx([16 / 31, 8 / 31, 4 / 31, 2 / 31, 1 / 31], rel=1e-15)
    assert deep_supervision_weights(1) == [1]
    assert deep_supervision_weights(2) == [1, 0]
    for count in range(2, 9):
        weights = deep_supervision_weights(count)
        assert len(weights) == count
        assert sum(weights) == pytest.approx(1, rel=1e-15)
        assert weights[-1] == 0
    with pytest.raises(ValueError, match="0 levels"):
        deep_supervision_weights(0)


def test_downsampled_labels_take_the_pixel_under_their_centre() -> None:
    labels = torch.arange(32)[None, None, :, None].expand(2, 1, 32, 3)
    full, half, quarter = downsample_labels(labels, [1, (0.5, 1), (0.25, 1 / 3)])
    assert full is labels
    assert half.shape == (2, 1, 16, 3)
    assert half[0, 0, :, 0].tolist() == list(range(1, 32, 2))
    assert quarter.shape == (2, 1, 8, 1)
    assert quarter[1, 0, :, 0].tolist() == list(range(2, 32, 4))


@pytest.mark.parametrize("shape", [(2, 1, 9, 14), (1, 1, 7, 8, 10), (3, 1, 11)])
@pytest.mark.parametrize("scale", [1.0, 0.5, 0.4, 0.125, 0.01])
def test_downsampled_labels_against_a_search_for_the_nearest(shape: tuple[int, ...], scale: float) -> None:
    labels = np.random.default_rng(0).integers(-1, 4, shape)
    expected = labels
    for axis in range(2, len(shape)):
        n = shape[axis]
        m = max(round(n * scale), 1)
        # centre of new pixel i in the old grid; an equal distance goes to the upper pixel
        chosen = [n - 1 - int(np.argmin(np.abs(np.arange(n)[::-1] - ((i + 0.5) * n / m - 0.5)))) for i in range(m)]
        expected = expected.take(chosen, axis)
    (result,) = downsample_labels(labels, [scale])
    assert isinstance(result, np.ndarray)
    assert result.dtype == labels.dtype
    np.testing.assert_array_equal(result, expected)
    (tensor,) = downsample_labels(torch.from_numpy(labels), [scale])
    np.testing.assert_array_equal(tensor.numpy(), expected)


def test_downsampled_labels_keep_blocks() -> None:
    small = torch.randint(4, (2, 1, 4, 6), generator=torch.Generator().manual_seed(0))
    large = small.repeat_interleave(8, 2).repeat_interleave(4, 3)
    assert torch.equal(downsample_labels(large, [(1 / 8, 1 / 4)])[0], small)


@pytest.mark.parametrize("scale", [(1.0, 0.5, 0.5), 0.0, 2.0, (0.5, -1)])
def test_bad_scales(scale: float | tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="numbers in"):
        downsample_labels(torch.zeros(1, 1, 4, 4), [scale])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_agrees_with_cpu() -> None:
    logits, labels = example((2, 3, 16, 16))
    result = dice_ce_loss(logits.cuda(), labels.cuda())
    assert result.device.type == "cuda"
    assert float(result) == pytest.approx(float(dice_ce_loss(logits, labels)), rel=1e-12)
    (small,) = downsample_labels(labels.cuda(), [0.5])
    assert torch.equal(small.cpu(), downsample_labels(labels, [0.5])[0])
