from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from dart_core.adapt import PolicyNet, PolicyStatistics, gumbel_policy, policy_penalty
from dart_core.adapt.policy import greedy_policy
from dart_core.checkpoint import load_checkpoint, save_checkpoint
from dart_core.errors import InputError, SettingError


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# --- the network -----------------------------------------------------------------------------------------------------


def test_parameter_counts() -> None:
    assert count(PolicyNet()) == 1_180_320
    # The first convolution has 9 * 32 more weights for every further channel.
    assert count(PolicyNet(3)) == 1_180_320 + 2 * 288
    assert all(p.requires_grad for p in PolicyNet().parameters())


def plain_policy(net: PolicyNet, x: torch.Tensor) -> torch.Tensor:
    """The network written out once more from the specification, filled with its tensors in registration order."""
    stream = iter([tensor for tensor in net.state_dict().values() if tensor.dtype.is_floating_point])

    def norm(t: torch.Tensor) -> torch.Tensor:
        weight, bias, mean, variance = (next(stream).view(1, -1, 1, 1) for _ in range(4))
        return (t - mean) / torch.sqrt(variance + 1e-5) * weight + bias

    x = norm(F.conv2d(x, next(stream), padding=1))
    for _ in range(3):
        main = norm(F.conv2d(x, next(stream), stride=2, padding=1)).clamp(min=0)
        main = norm(F.conv2d(main, next(stream), padding=1))
        pooled = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        x = (torch.cat([pooled, torch.zeros_like(pooled)], 1) + main).clamp(min=0)
    x = norm(x).clamp(min=0).mean((2, 3))
    x = x @ next(stream).T + next(stream)
    assert next(stream, None) is None
    return x


def test_agrees_with_the_network_written_out() -> None:
    torch.manual_seed(0)
    net = PolicyNet(2)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if "running" in name or tensor.ndim == 1:
                tensor.copy_(torch.rand_like(tensor) + 0.5) if tensor.dtype.is_floating_point else None
    net = net.double().eval()
    x = torch.randn(3, 2, 16, 24, dtype=torch.float64)
    torch.testing.assert_close(net(x), plain_policy(net, x), rtol=1e-10, atol=1e-10)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    convolutions = [m for m in PolicyNet().modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [32, 64, 64, 128, 128, 256, 256]
    for conv in convolutions[1:]:
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * conv.out_channels)), rel=0.03)
        assert conv.bias is None


@pytest.mark.parametrize("sides", [(8, 8), (9, 13), (21, 40), (1, 1)])
def test_slices_of_any_size(sides: tuple[int, int]) -> None:
    assert PolicyNet().eval()(torch.randn(2, 1, *sides)).shape == (2, 64)


def test_can_be_trained() -> None:
    torch.manual_seed(0)
    net = PolicyNet()
    net(torch.randn(2, 1, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters())


@pytest.mark.parametrize("channels", [1, 3])
def test_resnet34(channels: int) -> None:
    pytest.importorskip("torchvision")
    net = PolicyNet(channels, backbone="resnet34")
    # ResNet-34 has 21,797,672 parameters with 3 channels and 1000 classes.
    assert count(net) == 21_797_672 - 513 * (1000 - 64) - 64 * 49 * (3 - channels)
    assert net.eval()(torch.randn(2, channels, 40, 56)).shape == (2, 64)


def test_unknown_backbone() -> None:
    with pytest.raises(SettingError, match="unknown policy backbone 'resnet50'; give small or resnet34"):
        PolicyNet(backbone="resnet50")  # type: ignore[arg-type]


# --- the sample ------------------------------------------------------------------------------------------------------


def test_gumbel_noise_by_hand() -> None:
    z = torch.tensor([[[0.3, -0.2], [0.0, 0.0], [1.0, 2.0]]], dtype=torch.float64)
    u = torch.tensor([[[0.2, 0.7], [0.9, 0.1], [0.5, 0.5]]], dtype=torch.float64)
    gumbel = -np.log(-np.log(u.numpy()))
    expected = (z.numpy() + gumbel).argmax(-1)
    assert expected.tolist() == [[1, 0, 1]]
    assert gumbel_policy(z, uniform=u).tolist() == expected.tolist()
    assert gumbel_policy(z.flatten(1), uniform=u).tolist() == expected.tolist()  # row-major (B, 2 * layers)


def test_draws_of_exactly_zero_are_finite() -> None:
    z = torch.tensor([[0.0, 0.0]], requires_grad=True)
    p = gumbel_policy(z, uniform=torch.tensor([[[0.0, 0.5]]]))
    p.sum().backward()
    assert p.tolist() == [[1.0]]
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_the_first_index_wins_a_tie() -> None:
    assert gumbel_policy(torch.zeros(2, 6), uniform=torch.full((2, 3, 2), 0.4)).tolist() == [[0, 0, 0]] * 2
    assert greedy_policy(torch.zeros(2, 6)).tolist() == [[0, 0, 0]] * 2


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 20), st.sampled_from([torch.float32, torch.float64]))
def test_values_are_exactly_zero_or_one(seed: int, temperature: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(4, 64, generator=generator, dtype=dtype, requires_grad=True)
    p = gumbel_policy(z, temperature, generator=generator)
    assert p.shape == (4, 32)
    assert p.dtype == dtype
    assert ((p == 0) | (p == 1)).all()


def test_draws_come_from_the_generator_or_the_global_one() -> None:
    z = torch.zeros(64, 64)
    one, other = (gumbel_policy(z, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(gumbel_policy(z), gumbel_policy(z))
    torch.manual_seed(5)
    first = gumbel_policy(z)
    torch.manual_seed(5)
    assert torch.equal(gumbel_policy(z), first)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 5.0])
def test_straight_through_gradient(temperature: float) -> None:
    """For upstream (a, b) of the two components: d/dz0 = s0 s1 (a - b) / T = -d/dz1; only b reaches P."""
    generator = torch.Generator().manual_seed(1)
    z = (0.05 * torch.randn(3, 5, 2, generator=generator, dtype=torch.float64)).requires_grad_()
    u = 0.45 + 0.1 * torch.rand(3, 5, 2, generator=generator, dtype=torch.float64)
    upstream = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    (gumbel_policy(z, temperature, u) * upstream).sum().backward()
    noisy = (z.detach().numpy() - np.log(-np.log(u.numpy()))) / temperature
    s0 = 1 / (1 + np.exp(noisy[..., 1] - noisy[..., 0]))
    expected = s0 * (1 - s0) * (0 - upstream.numpy()) / temperature
    assert z.grad is not None
    np.testing.assert_allclose(z.grad[..., 0].numpy(), expected, rtol=1e-9)
    np.testing.assert_allclose(z.grad[..., 1].numpy(), -expected, rtol=1e-9)


def test_gradient_vanishes_when_the_soft_sample_saturates() -> None:
    z = torch.tensor([[40.0, -40.0]], requires_grad=True)
    gumbel_policy(z, 0.1).sum().backward()
    assert z.grad is not None
    assert z.grad.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("temperature", [0.1, 5.0])
def test_probability_of_frozen_is_the_sigmoid_of_the_difference(temperature: float) -> None:
    n = 200_000
    z = torch.tensor([0.0, 1.0]).expand(n, 1, 2)
    share = gumbel_policy(z, temperature, generator=torch.Generator().manual_seed(0)).mean().item()
    expected = 1 / (1 + math.exp(-1))
    assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / n)


def test_inference_takes_the_larger_logit() -> None:
    z = torch.randn(6, 64)
    assert torch.equal(greedy_policy(z), z.reshape(6, 32, 2).argmax(-1).float())


def test_half_precision_logits_give_a_float32_policy() -> None:
    z = torch.randn(2, 64, dtype=torch.bfloat16)
    assert gumbel_policy(z).dtype == torch.float32
    assert greedy_policy(z).dtype == torch.float32


@pytest.mark.parametrize("choose", [gumbel_policy, greedy_policy])
def test_nan_logits(choose) -> None:  # type: ignore[no-untyped-def]
    z = torch.zeros(2, 64)
    z[1, 7] = torch.nan
    with pytest.raises(ValueError, match="gives nan: its training has diverged"):
        choose(z)


def test_wrong_shapes_and_temperature() -> None:
    with pytest.raises(InputError, match=r"logits have shape \(2, 63\)"):
        gumbel_policy(torch.zeros(2, 63))
    with pytest.raises(InputError, match=r"uniform has shape \(2, 31, 2\), the logits \(2, 32, 2\)"):
        gumbel_policy(torch.zeros(2, 64), uniform=torch.zeros(2, 31, 2))
    for temperature in (0, -1, math.nan):
        with pytest.raises(SettingError, match="temperature"):
            gumbel_policy(torch.zeros(2, 64), temperature)


# --- the penalty -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_frozen_policy_costs_nothing(norm: str, reduction: str) -> None:
    assert policy_penalty(torch.ones(3, 32), 0.7, norm, reduction).item() == 0  # type: ignore[arg-type]


def test_l1_values() -> None:
    k = 0.3
    half = torch.cat([torch.ones(5, 16), torch.zeros(5, 16)], 1)
    assert policy_penalty(torch.zeros(5, 32), k).item() == pytest.approx(k)
    assert policy_penalty(half, k).item() == pytest.approx(k / 2)
    # The AvaGrad paper's form: a sum over the 32 layers, averaged over the batch.
    assert policy_penalty(half, k, reduction="sum").item() == pytest.approx(16 * k)
    assert policy_penalty(half, k / 32, reduction="sum").item() == pytest.approx(policy_penalty(half, k).item())


def test_l2_values() -> None:
    half = torch.cat([torch.ones(3, 16), torch.zeros(3, 16)], 1)
    assert policy_penalty(half, 0.005, "l2").item() == pytest.approx(0.005 * math.sqrt(3 * 16) / (3 * 32))
    assert policy_penalty(half, 0.005, "l2").item() == pytest.approx(3.608e-4, rel=2e-4)
    assert policy_penalty(half, 0.005, "l2", "sum").item() == pytest.approx(32 * 3.6084e-4, rel=1e-4)


def test_gradients() -> None:
    p = torch.rand(4, 32, dtype=torch.float64, requires_grad=True)
    policy_penalty(p, 0.5).backward()
    assert p.grad is not None
    torch.testing.assert_close(p.grad, torch.full_like(p, -0.5 / 128))
    p.grad = None
    policy_penalty(p, 0.5, "l2").backward()
    expected = -0.5 / 128 * (1 - p.detach()) / (1 - p.detach()).square().sum().sqrt()
    torch.testing.assert_close(p.grad, expected)
    frozen = torch.ones(4, 32, requires_grad=True)
    policy_penalty(frozen, 0.5, "l2").backward()
    assert frozen.grad is not None
    assert frozen.grad.isfinite().all()


def test_unknown_norm_or_reduction() -> None:
    with pytest.raises(SettingError, match="unknown norm 'l3'"):
        policy_penalty(torch.ones(1, 32), 1.0, "l3")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="unknown reduction 'none'"):
        policy_penalty(torch.ones(1, 32), 1.0, reduction="none")  # type: ignore[arg-type]


# --- the statistics --------------------------------------------------------------------------------------------------


def test_statistics_count_samples_of_unequal_batches(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    policies = [torch.randint(2, (n, 32), generator=generator).float() for n in (3, 1, 5)]
    statistics = PolicyStatistics()
    assert statistics.fine_tuned().isnan().all()
    for policy in policies[:2]:
        statistics.update(policy.requires_grad_())
    before = statistics.state_dict()
    statistics.update(policies[2])
    every = torch.cat(policies).detach().double()
    torch.testing.assert_close(statistics.fine_tuned(), 1 - every.mean(0))
    torch.testing.assert_close(statistics.fine_tuned(since=before), 1 - policies[2].double().mean(0))
    assert statistics.fine_tuned(since=statistics.state_dict()).isnan().all()
    assert not statistics.fine_tuned().requires_grad  # 8.9
    save_checkpoint(tmp_path / "state.pt", statistics.state_dict())
    other = PolicyStatistics()
    other.load_state_dict(load_checkpoint(tmp_path / "state.pt"))
    assert torch.equal(other.fine_tuned(), statistics.fine_tuned())
    other.update(policies[0])
    assert other.samples == 12
    assert statistics.samples == 9
    statistics.reset()
    assert statistics.fine_tuned().isnan().all()
    torch.testing.assert_close(other.fine_tuned(), 1 - torch.cat([*policies, policies[0]]).detach().double().mean(0))


def test_statistics_of_another_number_of_layers() -> None:
    with pytest.raises(InputError, match=r"shape \(2, 31\) for 32 layers"):
        PolicyStatistics().update(torch.zeros(2, 31))
    with pytest.raises(InputError, match="statistics of 62 layers, here 32"):
        PolicyStatistics().load_state_dict(PolicyStatistics(62).state_dict())
