"""The networks (specification 3, 9.8)."""

from __future__ import annotations

import pytest
import torch

from united_ssl import Critic3d, UnitedUNet3d
from united_ssl.networks import ClassificationHead, SiameseUNet3d, TargetClassifier, TargetSegmenter


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters():
    with torch.device("meta"):
        network = UnitedUNet3d()
        assert [count(part) for part in network.children()] == [7_027_776, 9_292_481, 7_079_424 + 525_312 + 8_200]
        assert [name for name, _ in network.named_children()] == ["encoder", "decoder", "head"]
        assert count(UnitedUNet3d(up="transposed").decoder) == 12_045_889
        assert count(UnitedUNet3d(1000).head) == 7_079_424 + 525_312 + 1_025_000
        assert count(ClassificationHead(44, "linear")) == 512 * 44 + 44
        assert count(ClassificationHead(8, "plain")) == 513 * 2048 + 2049 * 8
        assert round(count(ClassificationHead(1000, "fully_connect")) / 1e6) == 540
        assert count(Critic3d()) == count(Critic3d("batch")) == 7_029_153


def test_shapes():
    network = UnitedUNet3d(5, width=1).eval()
    for sides, feature in (((64, 64, 64), (8, 8, 8)), ((64, 64, 32), (8, 8, 4)), ((16, 24, 8), (2, 3, 1))):
        x = torch.rand(1, 1, *sides)
        logits, restored = network(x)
        assert logits.shape == (1, 5)
        assert restored.shape == x.shape
        assert restored.min() >= 0
        assert restored.max() <= 1
        assert network.encoder(x)[-1].shape == (1, 16, *feature)
    assert torch.equal(network.classify(x), logits)
    assert Critic3d(width=1)(torch.rand(2, 2, 16, 16, 16)).shape == (2, 1, 2, 2, 2)
    assert TargetClassifier(1, 1)(torch.rand(2, 1, 16, 16, 16)).shape == (2, 1)
    assert TargetSegmenter(3, 1, "transposed")(torch.rand(2, 1, 16, 16, 16)).shape == (2, 3, 16, 16, 16)


@pytest.mark.parametrize("sides", [(12, 16, 16), (16, 16, 4), (0, 8, 8)])
def test_sides_that_are_no_multiple_of_8(sides):
    with pytest.raises(ValueError, match="multiples of 8"):
        UnitedUNet3d(width=1)(torch.rand(1, 1, *sides))


def test_first_weights_are_glorot_uniform_and_biases_0():
    convolution = UnitedUNet3d(width=4).encoder.levels[1][0]
    limit = (6 / (27 * (convolution.in_channels + convolution.out_channels))) ** 0.5
    assert 0.9 * limit < float(convolution.weight.detach().abs().max()) <= limit
    assert not convolution.bias.any()
    norm = UnitedUNet3d(width=1).encoder.levels[0][1]
    assert (norm.eps, norm.momentum) == (1e-3, 0.01)


def test_siamese():
    network = SiameseUNet3d((8, 10), width=1).eval()
    x = torch.rand(2, 1, 32, 32, 32)
    (flags, orders), restored = network(x)
    assert flags.shape == (2, 8)
    assert orders.shape == (2, 10)
    assert restored.shape == x.shape
    one = network.decoder(network.encoder(x[:1, :, 16:, :16, 16:]))
    assert torch.allclose(restored[:1, :, 16:, :16, 16:], one, atol=1e-6)


def test_instance_normalisation_keeps_samples_apart():
    critic, x = Critic3d(width=1), torch.rand(3, 2, 16, 16, 16)
    assert torch.allclose(critic(x)[:1], critic(x[:1]), atol=1e-5)
    mixing = Critic3d("batch", width=1)
    assert not torch.allclose(mixing(x)[:1], mixing(x[:1]), atol=1e-3)


def test_refusals():
    for call in (lambda: UnitedUNet3d(head="x"), lambda: UnitedUNet3d(up="x", width=1), lambda: Critic3d("x", 1)):
        with pytest.raises(ValueError, match="give"):
            call()
