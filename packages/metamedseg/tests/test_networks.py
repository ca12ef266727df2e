from __future__ import annotations

import pytest
import torch
from torch import nn

from dart_core.errors import InputError, SettingError
from metamedseg import MetaUNet


def test_size_and_initialisation():
    torch.manual_seed(0)
    network = MetaUNet()
    parameters = list(network.parameters())
    assert len(parameters) == 22
    assert sum(parameter.numel() for parameter in parameters) == 470_977
    assert sum(parameter.numel() for parameter in MetaUNet(affine=True).parameters()) == 472_257
    assert not list(network.buffers())
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            assert not module.bias.any()
    weights = torch.cat([p.flatten() for p in parameters if p.ndim == 4]).detach()
    assert abs(float(weights.mean())) < 0.01
    assert float(weights.std()) == pytest.approx(1, abs=0.01)


def test_shapes():
    network = MetaUNet(width=4)
    x = torch.randn(2, 1, 16, 24)
    logits, features = network(x, return_bottleneck=True)
    assert logits.shape == x.shape
    assert features.shape == (2, 16, 4, 6)
    torch.testing.assert_close(network(x), logits)
    deep = MetaUNet(depth=4, width=2)
    assert deep(x).shape == x.shape
    assert deep(x, return_bottleneck=True)[1].shape == (2, 16, 2, 3)
    for shape in ((1, 1, 16, 18), (1, 3, 16, 16), (16, 16)):
        with pytest.raises(InputError, match="sides that 4 divides"):
            network(torch.zeros(shape))
    with pytest.raises(SettingError, match="depth 0"):
        MetaUNet(depth=0)


def test_a_bottleneck_of_one_pixel_has_no_variance():
    one, two = torch.zeros(1, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    for x in (one, two):
        for network in (MetaUNet(width=2), MetaUNet(width=2).eval()):
            with pytest.raises(InputError, match="shrink to a single pixel over 3 levels"):
                network(x)
    network = MetaUNet(width=2, norm="batch")
    with pytest.raises(InputError, match="smaller --depth"):
        network(one)
    assert network(two).shape == two.shape  # two values of each channel
    assert network.eval()(one).shape == one.shape  # running statistics
    assert MetaUNet(width=2)(torch.zeros(1, 1, 4, 8)).shape == (1, 1, 4, 8)


def test_batch_norm_has_statistics_and_no_parameters():
    network = MetaUNet(width=4, norm="batch")
    assert len(list(network.parameters())) == 22
    assert [name for name, _ in network.named_buffers() if name.endswith("running_mean")]
    assert network.eval()(torch.randn(1, 1, 8, 8)).shape == (1, 1, 8, 8)


def test_what_stands_before_a_norm_has_no_scale_and_no_offset():
    torch.manual_seed(1)
    network = MetaUNet(width=4).double()
    x = torch.randn(1, 1, 16, 16, dtype=torch.float64)
    logits = network(x)
    logits.square().mean().backward()
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)][:-1]
    for convolution in convolutions:
        assert convolution.bias.grad.abs().max() < 1e-12
    with torch.no_grad():
        for number, convolution in enumerate(convolutions):
            convolution.weight *= 2 + number
            convolution.bias *= 2 + number
            convolution.bias += 3 - number
    torch.testing.assert_close(network(x), logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("part", "lower_levels_matter"), [(slice(None, 8), False), (slice(8, None), True)])
def test_the_decoder_takes_the_upsampled_features_first_and_the_skip_second(part, lower_levels_matter):
    torch.manual_seed(2)
    network = MetaUNet(width=4)
    x = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        network.up[1][0].weight[:, part] = 0
        before = network(x)
        network.up[0][3].weight.normal_()
        assert torch.equal(network(x), before) != lower_levels_matter
