"""Uncertain labels and fractions (specification 2.1.14 and 5, property 9.9)."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from benchmark_transformers import annotation_fraction, chexpert_labels

CELLS = [["1.0", "", "-1.0"], ["0", "-1", "1"]]


@pytest.mark.parametrize(("policy", "value"), [("ones", 1.0), ("zeros", 0.0)])
def test_fixed_policies(policy: str, value: float) -> None:
    expected = [[1.0, 0.0, value], [0.0, value, 1.0]]
    assert chexpert_labels(CELLS, policy).tolist() == expected
    numbers = np.array([[1, np.nan, -1], [0, -1, 1]])
    assert chexpert_labels(numbers, policy).tolist() == expected
    assert chexpert_labels(torch.from_numpy(numbers), policy).tolist() == expected


@pytest.mark.parametrize(("policy", "low", "high"), [("lsr-ones", 0.55, 0.85), ("lsr-zeros", 0.0, 0.3)])
def test_smoothed_policies(policy: str, low: float, high: float) -> None:
    drawn = chexpert_labels([-1] * 20000, policy, torch.Generator().manual_seed(0))
    assert low <= drawn.min()
    assert drawn.max() <= high
    assert drawn.mean() == pytest.approx((low + high) / 2, abs=0.003)
    assert drawn.std() == pytest.approx((high - low) / np.sqrt(12), rel=0.02)


def test_draws_change_between_reads_and_follow_from_the_generator() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (chexpert_labels([-1, 1], "lsr-ones", generator) for _ in range(2))
    assert first[0] != second[0]
    assert first[1] == second[1] == 1
    assert chexpert_labels([-1, 1], "lsr-ones", torch.Generator().manual_seed(0))[0] == first[0]
    assert chexpert_labels([-1], generator=np.random.default_rng(1)) == chexpert_labels(
        [-1], generator=np.random.default_rng(1)
    )


def test_bad_policies_and_cells() -> None:
    with pytest.raises(ValueError, match="no policy 'mean'"):
        chexpert_labels(["1"], "mean")
    for cell in ("2", "yes", 0.5):
        with pytest.raises(ValueError, match="is no label"):
            chexpert_labels([cell])


def test_fractions_are_those_of_pythons_generator() -> None:
    order = list(range(1000))
    random.Random(99).shuffle(order)
    assert annotation_fraction(1000, 25) == order[:250]
    assert annotation_fraction(999, 10) == annotation_fraction(999, 50)[:99]
    assert annotation_fraction(7, 100) == list(range(7))


@pytest.mark.parametrize(("count", "percent"), [(10, 0), (10, 101), (10, 5), (10, -1)])
def test_fractions_that_cannot_be(count: int, percent: float) -> None:
    with pytest.raises(ValueError, match="%"):
        annotation_fraction(count, percent)
