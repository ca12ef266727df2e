"""nnU-Net's U-Net in two and three dimensions, and its planning of a patch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dart_core.nets.nnunet import GenericUNet, feature_map_memory, plan_patch, plan_topology

PLANS = {
    # specification odex 3: pools, features, classes, parameters, tensors
    "Task004": (((2, 2, 2),) * 3, (32, 64, 128, 256), 3, 5_602_944, 62),
    "two classes": (((2, 2, 2),) * 3, (32, 64, 128, 256), 2, 5_602_720, 62),
    "64x64x48": (((2, 2, 2),) * 3 + ((2, 2, 1),), (32, 64, 128, 256, 320), 2, 16_219_424, 80),
}


def network(pool, features, classes=2, norm="instance"):
    torch.manual_seed(0)
    axes = len(pool[0])
    return GenericUNet(1, classes, pool, ((3,) * axes,) * (len(pool) + 1), features, norm)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_parameters(name, norm):
    pool, features, classes, count, tensors = PLANS[name]
    with torch.device("meta"):
        own = network(pool, features, classes, norm)
    assert sum(p.numel() for p in own.parameters()) == count
    assert len(list(own.parameters())) == tensors
    assert own.conv_blocks_context[-2].blocks[0].conv.weight.shape[2:] == (3, 3, 3)


def test_names_are_the_same_for_both_norms_and_dimensions():
    two, three = network(((2, 2),) * 2, (4, 8, 16)), network(((2, 2, 2),) * 2, (4, 8, 16))
    assert list(two.state_dict()) == list(three.state_dict())
    batch = network(((2, 2, 2),) * 2, (4, 8, 16), norm="batch")
    assert [name for name, _ in batch.named_parameters()] == [name for name, _ in three.named_parameters()]
    assert "conv_blocks_context.0.blocks.0.instnorm.running_mean" in batch.state_dict()
    assert isinstance(batch.conv_blocks_context[0].blocks[0].instnorm, nn.BatchNorm3d)
    assert batch.conv_blocks_context[0].blocks[0].instnorm.momentum == 0.1


def test_outputs_of_three_dimensions():
    own = network(((2, 2, 2), (2, 2, 1)), (4, 8, 16), classes=3)
    x = torch.randn(2, 1, 8, 12, 6)
    assert [tuple(y.shape) for y in own.train()(x)] == [(2, 3, 8, 12, 6), (2, 3, 4, 6, 3)]
    assert own.scales == [(1, 1, 1), (0.5, 0.5, 0.5)]
    assert own.eval()(x).shape == (2, 3, 8, 12, 6)
    with pytest.raises(ValueError, match="patches are 8 x 10 x 6"):
        own(torch.randn(1, 1, 8, 10, 6))


def test_kernels_must_have_one_length():
    with pytest.raises(ValueError, match="unequal length"):
        GenericUNet(1, 2, ((2, 2),), ((3, 3, 3), (3, 3, 3)), (4, 8))


def test_topology_of_the_hippocampus():
    pool, conv, patch = plan_topology((1, 1, 1), (36, 50, 35))
    assert (pool, patch) == (((2, 2, 2),) * 3, [40, 56, 40])
    assert conv == ((3, 3, 3),) * 4
    pool, _, patch = plan_topology((1, 1, 1), (48, 64, 64))
    assert (pool, patch) == (((2, 2, 2),) * 3 + ((1, 2, 2),), [48, 64, 64])


def test_memory_by_hand():
    # 8 x 8, one halving, 2 then 4 maps: 64 (5 x 2 + 1 + 3) + 2 x 16 x 4
    assert feature_map_memory((8, 8), ((2, 2),), 2, 99, 1, 3) == 64 * 14 + 128
    assert feature_map_memory((8, 8), ((2, 2),), 2, 3, 1, 3) == 64 * 14 + 96


def test_a_patch_shrinks_until_it_fits():
    def memory(patch, pool, again):
        return feature_map_memory(patch, pool, 32, 320, 1, 2)

    whole = memory((64, 64, 64), plan_topology((1, 1, 1), (64, 64, 64))[0], False)
    pool, conv, patch, needed = plan_patch((1, 1, 1), (64, 64, 64), memory, whole - 1)
    # of equal axes the last one; a side of 48 could be halved three times, so that its grid has steps of 8
    assert patch == [64, 64, 56]
    assert needed < whole
    assert len(conv) == len(pool) + 1
