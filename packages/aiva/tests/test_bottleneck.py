"""Bottleneck features from the encoder alone, and the layers that shape them."""

from __future__ import annotations

import pytest
import torch

from aiva import bottleneck_features, freeze_for_adaptation
from aiva.bottleneck import bottleneck_width, statistics_kept
from dart_core.nets import ResidualUNet2d


def test_bottleneck_features_are_those_of_the_whole_pass() -> None:
    network, images = ResidualUNet2d(out_channels=2, width=2).train(), torch.randn(3, 1, 32, 48)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with statistics_kept(network):
        alone = bottleneck_features(network, images)
        _, expected = network(images, return_bottleneck=True)
    assert torch.equal(alone, expected)
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())
    network(images)
    assert not torch.equal(
        network.get_buffer("init_path.1.first.norm.running_mean"), before["init_path.1.first.norm.running_mean"]
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_trainable_parameters(channels: int) -> None:
    network = ResidualUNet2d(channels, 2)
    assert sum(parameter.numel() for parameter in network.parameters()) == {1: 1_561_510, 3: 1_561_798}[channels]
    count = freeze_for_adaptation(network)
    assert count == 1_087_670 + (channels - 1) * 144
    assert sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad) == count
    assert sum(parameter.requires_grad for parameter in network.parameters()) == 103


def test_width_is_that_of_the_features() -> None:
    network = ResidualUNet2d(3, 2, width=5)
    assert bottleneck_width(network) == bottleneck_features(network, torch.zeros(1, 3, 16, 16)).shape[1] == 40
