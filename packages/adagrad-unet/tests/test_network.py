"""The 2-D U-Net of nnU-Net 1: names, order, shapes, and which weights learn."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adagrad_unet import GenericUNet2d, deep_supervision_weights, dice_ce_loss, downsample_labels
from adagrad_unet.network import GROUPS


def network(pools: int = 3, channels: int = 1, classes: int = 2) -> GenericUNet2d:
    torch.manual_seed(0)
    return GenericUNet2d(
        channels, classes, ((2, 2),) * pools, ((3, 3),) * (pools + 1), tuple(4 * 2**i for i in range(pools + 1))
    )


def test_layers_by_group_for_six_reductions():
    """Specification 2.8: 14, 12, 6 and 6 layers; 116 tensors."""
    names = [name for name, m in network(6).named_modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert [sum(name.startswith(f"{group}.") for name in names) for group in GROUPS] == [14, 12, 6, 6]
    assert len(list(network(6).parameters())) == 116


def test_parts_are_registered_in_the_order_of_the_specification():
    assert [name for name, _ in network().named_children()] == list(GROUPS)
    keys = list(network(2).state_dict())
    assert keys[0] == "conv_blocks_context.0.blocks.0.conv.weight"
    assert "conv_blocks_context.2.1.blocks.0.instnorm.bias" in keys
    assert "conv_blocks_localization.0.0.blocks.0.conv.bias" in keys
    assert keys[-3:] == ["tu.1.weight", "seg_outputs.0.weight", "seg_outputs.1.weight"]


def test_shapes_and_modes():
    own = network(pools=3, channels=2, classes=4)
    x = torch.randn(2, 2, 32, 48)
    outputs = own.train()(x)
    assert [tuple(y.shape) for y in outputs] == [(2, 4, 32, 48), (2, 4, 16, 24), (2, 4, 8, 12)]
    assert own.scales == [(1, 1), (0.5, 0.5), (0.25, 0.25)]
    torch.testing.assert_close(own.eval()(x), outputs[0])


def test_reductions_of_one_axis_and_kernels_from_behind():
    """A decoder level has the kernel of the encoder stage below it, as in nnU-Net."""
    own = GenericUNet2d(1, 2, ((2, 1), (2, 2)), ((3, 1), (3, 3), (3, 3)), (4, 8, 16))
    assert [tuple(y.shape[2:]) for y in own(torch.randn(1, 1, 16, 8))] == [(16, 8), (8, 8)]
    assert own.conv_blocks_context[0].blocks[0].conv.weight.shape == (4, 1, 3, 1)
    assert own.conv_blocks_localization[1][0].blocks[0].conv.weight.shape == (4, 8, 3, 3)
    assert own.scales == [(1, 1), (0.5, 1)]


def test_initial_weights():
    own = network(pools=3)
    for module in own.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            assert not module.bias.any()
        if isinstance(module, nn.InstanceNorm2d):
            assert (module.weight == 1).all()
            assert module.eps == 1e-5
    deepest = own.conv_blocks_context[3][1].blocks[0].conv.weight
    expected = (2 / ((1 + 0.01**2) * deepest[0].numel())) ** 0.5
    assert deepest.std().item() == pytest.approx(expected, rel=0.05)


def test_the_lowest_segmentation_gets_no_gradient():
    """Its weight in the loss is 0; PyTorch then hands it zeros or nothing, and everything else learns."""
    own = network()
    labels = torch.randint(0, 2, (2, 1, 32, 32))
    outputs = own(torch.randn(2, 1, 32, 32))
    weights = deep_supervision_weights(len(outputs))
    dice_ce_loss(outputs, downsample_labels(labels, own.scales), weights).backward()
    for name, parameter in own.named_parameters():
        silent = parameter.grad is None or not parameter.grad.any()
        # A bias in front of a norm has no effect, so its gradient is rounding error or nothing.
        assert silent == (name == "seg_outputs.0.weight") or name.endswith("conv.bias"), name


def test_what_cannot_be_built_or_segmented():
    with pytest.raises(ValueError, match="make no U-Net"):
        GenericUNet2d(1, 2, (), ((3, 3),), (8,))
    with pytest.raises(ValueError, match="make no U-Net"):
        GenericUNet2d(1, 2, ((2, 2),), ((3, 3),), (8, 16))
    with pytest.raises(ValueError, match="patches are 20 x 32"):
        network()(torch.randn(1, 1, 20, 32))
