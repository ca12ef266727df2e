"""RandAugment and mixup (specification 2.2.9)."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from benchmark_transformers.augmentation import mixup, rand_augment

PICTURE = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 24, 24), dtype=np.uint8))


def test_rand_augment_follows_from_its_generator_alone() -> None:
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = PICTURE.clone()
    first = [rand_augment(PICTURE, np.random.default_rng(seed)) for seed in range(6)]
    drawn = (random.random(), np.random.random())  # noqa: NPY002
    again = [rand_augment(PICTURE, np.random.default_rng(seed)) for seed in range(6)]
    assert torch.equal(PICTURE, before)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert all(found.shape == PICTURE.shape and found.dtype == torch.uint8 for found in first)
    assert sum(not torch.equal(found, PICTURE) for found in first) >= 4
    # The global generators go on as if nothing had been drawn from them.
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    assert drawn == (random.random(), np.random.random())  # noqa: NPY002


def test_mixup_in_closed_form() -> None:
    images = torch.eye(3)[:, None, None, :]  # the share of each picture can be read off
    targets = torch.tensor([[0.0, 1.0], [1.0, math.nan], [1.0, 0.0]])
    mixed, labels = mixup(images, targets, 0.8, torch.Generator().manual_seed(1))
    share = float(mixed[0, 0, 0, 0])
    assert 0 <= share <= 1
    assert mixed[:, 0, 0].tolist() == pytest.approx(
        np.array([[share, 0, 1 - share], [0, 1, 0], [1 - share, 0, share]]), abs=1e-6
    )
    assert labels[0].tolist() == pytest.approx([1 - share, share], abs=1e-6)
    assert labels[2].tolist() == pytest.approx([share, 1 - share], abs=1e-6)
    assert float(labels[1, 0]) == 1
    assert math.isnan(float(labels[1, 1]))


def test_shares_of_mixup_are_those_of_the_beta_distribution() -> None:
    images, targets = torch.tensor([0.0, 1.0])[:, None, None, None], torch.zeros(2, 1)
    generator = torch.Generator().manual_seed(0)
    shares = np.array([float(mixup(images, targets, 0.8, generator)[0][1, 0, 0, 0]) for _ in range(3000)])
    # Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1)).
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * 2.6), abs=0.006)
