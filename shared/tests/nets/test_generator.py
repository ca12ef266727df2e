from __future__ import annotations

import pytest
import torch
from torch import nn

from dart_core.nets import ResnetGenerator


def closed_form(c_in: int, c_out: int, n: int, blocks: int) -> int:
    down = 49 * c_in * n + n + 9 * n * 2 * n + 2 * n + 9 * 2 * n * 4 * n + 4 * n
    middle = blocks * 2 * (9 * (4 * n) ** 2 + 4 * n)
    up = 9 * 4 * n * 2 * n + 2 * n + 9 * 2 * n * n + n + 49 * n * c_out + c_out
    return down + middle + up


@pytest.mark.parametrize(("channels", "parameters"), [(3, 11_378_179), (1, 11_365_633)])
def test_parameter_count(channels: int, parameters: int) -> None:
    # 11,378,179 is the well-known count of CycleGAN's generator with nine blocks for colour images.
    net = ResnetGenerator(channels, channels)
    assert sum(p.numel() for p in net.parameters()) == parameters == closed_form(channels, channels, 64, 9)


def test_number_of_blocks_and_width() -> None:
    net = ResnetGenerator(1, 2, width=4, blocks=6)
    assert sum(p.numel() for p in net.parameters()) == closed_form(1, 2, 4, 6)
    assert len(net.blocks) == 6


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (1, 1, 64, 40), (1, 1, 8, 8)])
def test_output_shape_and_range(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net = ResnetGenerator(1, 3, width=4, blocks=2)
    with torch.no_grad():
        net.up[-1].weight.mul_(1000)
    out = net(torch.randn(shape))
    assert out.shape == (shape[0], 3, *shape[2:])
    assert float(out.detach().abs().max()) <= 1
    net.activation = nn.Identity()
    assert float(net(torch.randn(shape)).detach().abs().max()) > 1


def test_without_tanh() -> None:
    torch.manual_seed(0)
    plain = ResnetGenerator(width=4, blocks=1, tanh=False)
    bounded = ResnetGenerator(width=4, blocks=1)
    bounded.load_state_dict(plain.state_dict())
    x = torch.randn(1, 1, 16, 16)
    torch.testing.assert_close(bounded(x), torch.tanh(plain(x)))


def test_reflection_keeps_a_constant_image_constant() -> None:
    torch.manual_seed(0)
    first = ResnetGenerator(width=4, blocks=1).down[0](torch.full((1, 1, 16, 16), 0.7))
    torch.testing.assert_close(first, first[..., :1, :1].expand_as(first))


def test_initial_weights() -> None:
    torch.manual_seed(0)
    net = ResnetGenerator()
    for convolution in (m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))):
        assert convolution.bias is not None
        assert not convolution.bias.any()
        if convolution.weight.numel() > 50_000:
            assert float(convolution.weight.detach().std()) == pytest.approx(0.02, rel=0.02)


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    net = ResnetGenerator(width=2, blocks=2)
    net(torch.randn(1, 1, 16, 16)).square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("sides", [(30, 32), (32, 34), (4, 32)])
def test_bad_sides(sides: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{sides[0]} x {sides[1]}; both sides must be divisible by 4 and at least 8"):
        ResnetGenerator(width=2, blocks=1)(torch.zeros(1, 1, *sides))
