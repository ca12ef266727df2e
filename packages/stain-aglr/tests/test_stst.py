"""STST GAN: sizes, order of layers, alone or in a batch, one step (specification 4.4)."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from stain_aglr import STSTDiscriminator, STSTGenerator
from stain_aglr.stst import centred, levels_of, luma


def test_sizes_are_those_of_the_authors() -> None:
    assert sum(p.numel() for p in STSTGenerator().parameters()) == 54_419_459
    assert sum(p.numel() for p in STSTDiscriminator().parameters()) == 6_965_441


def test_shapes() -> None:
    generator, judge = STSTGenerator(5, 4), STSTDiscriminator(4)
    x = torch.rand(2, 3, 64, 32) * 2 - 1
    made = generator(x)
    assert made.shape == x.shape
    assert made.abs().max() <= 1
    verdict = judge(x, made)
    assert verdict.shape == (2, 1, 4, 2)
    judge.eval()  # batch statistics are those of the patches while training
    torch.testing.assert_close(judge(x, made), judge.logits(x, made).sigmoid())
    with pytest.raises(ValueError, match="divisible by 32"):
        generator(x[:, :, :48])


def test_discriminator_by_the_formulas() -> None:
    judge = STSTDiscriminator(2).eval()
    a, b = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    weights = [p for p in judge.parameters() if p.dim() == 4]
    x = torch.cat([a, b], 1)
    for index, weight in enumerate(weights):
        last = index == 5
        x = (
            F.conv2d(F.pad(x, (1, 1, 1, 1)), weight, stride=2)
            if index < 4
            else F.conv2d(F.pad(x, (1, 2, 1, 2)), weight)
        )
        if 0 < index < 5:
            x = x / (1 + 1e-5) ** 0.5  # batch norm that has seen nothing
        x = x if last else F.leaky_relu(x, 0.2)
    torch.testing.assert_close(judge(a, b), x.sigmoid(), rtol=1e-5, atol=1e-6)


def test_a_patch_alone_does_not_see_its_neighbours() -> None:
    generator = STSTGenerator(5, 4).eval()
    x = torch.rand(3, 3, 32, 32) * 2 - 1
    together = generator(x, seed=0)
    torch.testing.assert_close(together, torch.cat([generator(one[None], seed=0) for one in x]), rtol=1e-4, atol=1e-5)
    assert not torch.equal(together, generator(x, seed=1))


def test_dropout_and_batch_statistics_stay_on_in_evaluation() -> None:
    generator = STSTGenerator(5, 4).eval()
    x = torch.rand(3, 3, 32, 32) * 2 - 1
    torch.manual_seed(0)
    first = generator(x)
    assert not torch.equal(first, generator(x))
    torch.manual_seed(0)
    assert torch.equal(first, generator(x))
    torch.manual_seed(0)
    assert not torch.allclose(first[:1], generator(x[:1]), atol=1e-3)


def test_luma_and_scales() -> None:
    colour = torch.tensor([200, 100, 50], dtype=torch.uint8).view(1, 3, 1, 1)
    grey = luma(colour)
    assert grey.shape == (1, 3, 1, 1)
    torch.testing.assert_close(grey, torch.full_like(grey, 124 / 127.5 - 1))  # 59.8 + 58.7 + 5.7 = 124.2
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(levels_of(centred(every)), every)
