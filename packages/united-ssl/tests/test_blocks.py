"""Jigsaw and Rubik's Cube (specification 2.3, 9.2 to 9.4)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from united_ssl import permutation_set, rubik, shuffle_blocks
from united_ssl.blocks import (
    JIGSAW_GAP,
    RUBIK_GAP,
    draw_axes,
    draw_permutations,
    gap_for,
    join_blocks,
    random_permutations,
    split_blocks,
    with_gap,
)
from united_ssl.losses import discriminative_loss

ORDERS = st.permutations(range(8))
CUBE = torch.arange(4 * 6 * 2, dtype=torch.float32).reshape(1, 4, 6, 2)


def test_blocks_are_numbered_by_halves_of_h_w_d():
    cube = torch.arange(8.0).reshape(2, 2, 2)
    assert split_blocks(cube).ravel().tolist() == list(range(8))
    assert torch.equal(join_blocks(split_blocks(CUBE)), CUBE)


@given(ORDERS)
def test_argsort_puts_the_blocks_back(order):
    shuffled = shuffle_blocks(CUBE, order)
    assert torch.equal(shuffle_blocks(shuffled, np.argsort(order)), CUBE)
    assert torch.equal(split_blocks(shuffled)[0], split_blocks(CUBE)[0][list(order)])
    assert np.array_equal(shuffle_blocks(CUBE.numpy(), order), shuffled.numpy())


def test_identity_and_batches():
    assert torch.equal(shuffle_blocks(CUBE, list(range(8))), CUBE)
    orders = permutation_set(5)
    batch = torch.rand(5, 1, 4, 4, 4)
    whole = shuffle_blocks(batch, orders, gap=(1, 1))
    assert all(torch.equal(whole[i], shuffle_blocks(batch[i], orders[i], (1, 1))) for i in range(5))


@pytest.mark.parametrize(("gap", "zeros"), [(JIGSAW_GAP, 56_765), (RUBIK_GAP, 104_680)])
def test_gaps(gap, zeros):
    cube = torch.ones(1, 64, 64, 64)
    assert int((with_gap(cube, gap) == 0).sum()) == zeros
    assert int((shuffle_blocks(cube, torch.arange(8), gap) == 0).sum()) == zeros
    assert gap_for(gap, (64, 64, 64)) == (gap,) * 3
    assert torch.equal(with_gap(cube, gap_for(gap, cube.shape[-3:])), with_gap(cube, gap))


def test_gaps_of_other_sizes_are_as_wide_in_proportion():
    assert gap_for(JIGSAW_GAP, (64, 32, 16)) == ((30, 34), (15, 17), (7, 8))


def test_permutation_set():
    found = permutation_set()
    assert found.shape == (1000, 8)
    assert len({tuple(row) for row in found.tolist()}) == 1000
    assert (found.sort(1).values == torch.arange(8)).all()
    distance = (found[:, None] != found[None]).sum(-1)
    distance.fill_diagonal_(8)
    assert int(distance.min()) == 4
    pairs = (found[:, None] != found[None]).sum(-1)[torch.triu_indices(1000, 1000, 1).unbind()]
    assert float(pairs.double().mean()) == pytest.approx(6.848, abs=5e-4)
    assert torch.equal(found, permutation_set())


def test_how_many_there_are():
    assert len(permutation_set(2144)) == 2144
    assert len(permutation_set(311, 5)) == 311
    with pytest.raises(ValueError, match="only 2144 permutations"):
        permutation_set(2145)
    with pytest.raises(ValueError, match="only 311 permutations"):
        permutation_set(312, 5)


def test_the_authors_set_is_random_and_holds_the_identity():
    found = random_permutations(1000)
    assert found[0].tolist() == list(range(8))
    assert len({tuple(row) for row in found.tolist()}) == 1000
    distance = (found[:, None] != found[None]).sum(-1).fill_diagonal_(8)
    assert int(distance.min()) == 2


def test_no_order_twice_in_a_batch():
    numbers, orders = draw_permutations(10, permutation_set(10), torch.Generator().manual_seed(0), torch.device("cpu"))
    assert sorted(numbers.tolist()) == list(range(10))
    assert torch.equal(orders, permutation_set(10)[numbers])
    more, _ = draw_permutations(12, permutation_set(10), None, torch.device("cpu"))
    assert len(set(more[:10].tolist())) == 10


@given(st.lists(st.integers(0, 3), min_size=8, max_size=8), ORDERS)
def test_rubik(axes, order):
    cube, flags = rubik(CUBE, axes, order)
    assert flags.tolist() == [int(axes[block] > 0) for block in order]
    blocks = split_blocks(CUBE)[0]
    planes = {0: (), 1: (-3, -2), 2: (-3, -1), 3: (-2, -1)}
    for shown, block in zip(split_blocks(cube)[0], order, strict=True):
        assert torch.equal(shown, torch.rot90(blocks[block], 2, planes[axes[block]]) if axes[block] else blocks[block])
    again, _ = rubik(rubik(CUBE, axes, list(range(8)))[0], axes, list(range(8)))
    assert torch.equal(again, CUBE)


def test_rubik_batches():
    axes = draw_axes(6, torch.Generator().manual_seed(0), torch.device("cpu"))
    orders = permutation_set(6)
    batch = torch.rand(6, 1, 4, 4, 4)
    cubes, flags = rubik(batch, axes, orders, (1, 2))
    for i in range(6):
        cube, own = rubik(batch[i], axes[i], orders[i], (1, 2))
        assert torch.equal(cubes[i], cube)
        assert torch.equal(flags[i], own)


def test_three_blocks_in_four_are_turned():
    axes = draw_axes(4000, torch.Generator().manual_seed(1), torch.device("cpu"))
    share = float((axes > 0).double().mean())
    assert abs(share - 0.75) < 4 * math.sqrt(0.75 * 0.25 / axes.numel())


def test_always_answering_three_in_four_costs_the_entropy_of_the_flags():
    flags = torch.tensor([1, 1, 1, 0] * 2).repeat(5, 1)
    always = torch.full((5, 8), math.log(3))  # sigmoid 0.75
    certain = torch.zeros(5, 1)  # one order: nothing to learn
    loss = discriminative_loss((always, certain), (flags, torch.zeros(5, dtype=torch.int64)))
    assert float(loss) == pytest.approx(0.5623, abs=5e-5)


def test_refusals():
    for order in ([0] * 8, list(range(7)), [1, 2, 3, 4, 5, 6, 7, 8]):
        with pytest.raises(ValueError, match="no permutation of 0 to 7"):
            shuffle_blocks(CUBE, order)
    with pytest.raises(ValueError, match="has no middle; give even sides"):
        shuffle_blocks(torch.zeros(3, 4, 4), list(range(8)))
    with pytest.raises(ValueError, match="not eight numbers from 0 to 3"):
        rubik(CUBE, [4] * 8, list(range(8)))
