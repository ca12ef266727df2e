from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dart_core.losses import bce_dice
from dart_core.nets import ResidualUNet2d


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "width", "parameters"),
    [
        (1, 1, 16, 1_561_491),
        (1, 1, 8, 391_563),
        (1, 1, 2, 24_921),
        (3, 1, 16, 1_561_779),
        (1, 2, 16, 1_561_510),
        (3, 2, 16, 1_561_798),
    ],
)
def test_parameter_counts(in_channels: int, out_channels: int, width: int, parameters: int) -> None:
    assert count(ResidualUNet2d(in_channels, out_channels, width)) == parameters


def test_parameters_of_each_part_and_their_order() -> None:
    net = ResidualUNet2d()
    expected = {
        "init_path": 14160,
        "shortcut0": 272,
        "down1": 57760,
        "shortcut1": 1056,
        "down2": 230208,
        "shortcut2": 4160,
        "bottleneck": 951936,
        "up2": 230144,
        "up1": 57728,
        "out_path": 14067,
    }
    assert {name: count(part) for name, part in net.named_children()} == expected
    assert [name for name, _ in net.named_children()] == list(expected)


def test_layers_inside_the_parts() -> None:
    net = ResidualUNet2d()
    sizes = {
        name: [count(layer) for layer in part] for name, part in net.named_children() if isinstance(part, nn.Sequential)
    }
    assert sizes == {
        "init_path": [144, 4672, 4672, 4672],
        "down1": [2080, 18560, 18560, 18560],
        "down2": [8256, 73984, 73984, 73984],
        "bottleneck": [32896, 295424, 295424, 295424, 32768],
        "up2": [73984, 73984, 73984, 8192],
        "up1": [18560, 18560, 18560, 2048],
        "out_path": [4672, 4672, 4672, 49, 2],
    }
    assert len(list(net.parameters())) == 151
    modules = list(net.modules())
    assert sum(isinstance(m, nn.BatchNorm2d) for m in modules) == 47
    assert sum(isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)) for m in modules) == 53
    assert all(m.eps == 1e-5 and m.momentum == 0.1 for m in modules if isinstance(m, nn.BatchNorm2d))
    # Within a pre-activation unit the normalisation is registered before the convolution.
    first_unit = [tuple(p.shape) for p in net.down1[0].parameters()]
    assert first_unit == [(16,), (16,), (32, 16, 2, 2)]


def plain_forward(net: ResidualUNet2d, x: torch.Tensor) -> torch.Tensor:
    """The network written out once more from the specification, filled with the parameters in registration order."""
    values = [tensor for tensor in net.state_dict().values() if tensor.dtype.is_floating_point]
    stream = iter(values)

    def norm(t: torch.Tensor) -> torch.Tensor:
        weight, bias, mean, variance = (next(stream).view(1, -1, 1, 1) for _ in range(4))
        return (t - mean) / torch.sqrt(variance + 1e-5) * weight + bias

    def convolution(t: torch.Tensor, bias: bool = False, **options: int) -> torch.Tensor:
        weight = next(stream)
        return nn.functional.conv2d(t, weight, next(stream) if bias else None, **options)

    def unit(t: torch.Tensor, bias: bool = False, **options: int) -> torch.Tensor:
        return convolution(norm(t).clamp(min=0), bias, **options)

    def blocks(t: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            t = t + unit(unit(t, padding=1), padding=1)
        return t

    def rise(t: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv_transpose2d(t, next(stream), stride=2)

    x0 = blocks(convolution(x, padding=1))
    short0 = convolution(x0, bias=True)
    x1 = blocks(unit(x0, stride=2))
    short1 = convolution(x1, bias=True)
    x2 = blocks(unit(x1, stride=2))
    short2 = convolution(x2, bias=True)
    y = rise(blocks(unit(x2, stride=2)))
    y = rise(blocks(y + short2))
    y = rise(blocks(y + short1))
    y = norm(unit(blocks(y + short0), bias=True))
    assert next(stream, None) is None
    return y


def test_agrees_with_the_network_written_out() -> None:
    torch.manual_seed(0)
    net = ResidualUNet2d(2, 3, width=2)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.dtype.is_floating_point:
                tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in name else torch.randn_like(tensor) * 0.5)
    net = net.double().eval()
    x = torch.randn(2, 2, 16, 24, dtype=torch.float64)
    torch.testing.assert_close(net(x), plain_forward(net, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(1, 1, 16, 16), (2, 1, 184, 224), (3, 1, 8, 24)])
def test_output_shape(shape: tuple[int, ...]) -> None:
    net = ResidualUNet2d(width=2).eval()
    assert net(torch.zeros(shape)).shape == shape


@pytest.mark.parametrize("sides", [(182, 218), (16, 12), (4, 8)])
def test_sides_that_are_not_divisible_by_8(sides: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{sides[0]} x {sides[1]}; both sides must be divisible by 8"):
        ResidualUNet2d(width=2)(torch.zeros(1, 1, *sides))


@pytest.mark.parametrize("training", [False, True])
def test_bottleneck_features_come_from_the_same_pass(training: bool) -> None:
    torch.manual_seed(0)
    net = ResidualUNet2d(width=4).train(training)
    twin = copy.deepcopy(net)
    seen: list[torch.Tensor] = []
    x = torch.randn(2, 1, 32, 16)
    hook = net.bottleneck[3].second.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    logits, features = net(x, return_bottleneck=True)
    hook.remove()
    assert len(seen) == 1
    assert features is seen[0]
    assert features.shape == (2, 32, 4, 2)
    assert (features < 0).any()  # before the ReLU
    assert torch.equal(logits, twin(x))
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[name])
    features.sum().backward()
    assert net.init_path[0].weight.grad is not None
    assert net.bottleneck[3].second.conv.weight.grad is None  # behind the features


def test_both_forms_give_the_same_gradients() -> None:
    torch.manual_seed(0)
    net = ResidualUNet2d(width=2)
    twin = copy.deepcopy(net)
    x = torch.randn(2, 1, 16, 16)
    net(x).square().mean().backward()
    twin(x, return_bottleneck=True)[0].square().mean().backward()
    for one, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad, other.grad)


def test_overfits_one_batch() -> None:
    torch.manual_seed(0)
    x = torch.rand(4, 1, 32, 32)
    y = torch.zeros(4, 1, 32, 32)
    y[:, :, 8:20, 4:28] = 1
    x = x + y
    net = ResidualUNet2d(width=4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    for _ in range(40):
        optimizer.zero_grad()
        loss = bce_dice(net(x), y)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.15
    assert float(((net(x) > 0) == (y > 0.5)).float().mean()) > 0.98


def test_channels_last_gives_the_same() -> None:
    torch.manual_seed(0)
    net = ResidualUNet2d(width=4).eval()
    x = torch.randn(2, 1, 32, 40)
    expected = net(x)
    result = net.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_runs_under_bfloat16_autocast() -> None:
    torch.manual_seed(0)
    net = ResidualUNet2d(width=4)
    x, y = torch.randn(2, 1, 32, 32), torch.zeros(2, 1, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = bce_dice(net(x), y)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_agrees_with_cpu() -> None:
    torch.manual_seed(0)
    net = ResidualUNet2d().double().eval()
    x = torch.randn(2, 1, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(copy.deepcopy(net).cuda()(x.cuda()).cpu(), net(x), rtol=1e-8, atol=1e-8)
