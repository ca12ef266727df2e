from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dart_core.adapt import freeze, l2_sp_li_penalty, l2_sp_penalty
from dart_core.nets import ResidualUNet2d


def trained(net: nn.Module) -> dict[str, int]:
    return {name: p.numel() for name, p in net.named_parameters() if p.requires_grad}


# --- freezing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "numbers"), [(1, 4_816), (3, 5_104)])
def test_fine_tune_first(channels: int, numbers: int) -> None:
    net = ResidualUNet2d(channels)
    freeze(net, "first")
    found = trained(net)
    assert sum(found.values()) == numbers
    assert len(found) == 7
    assert {name.rsplit(".", 2)[0] for name in found} <= {"init_path", "init_path.1.first", "init_path.1.second"}


def test_fine_tune_last() -> None:
    net = ResidualUNet2d()
    freeze(net, "last")
    found = trained(net)
    assert sum(found.values()) == 4_721
    assert {name.split(".")[1] for name in found} == {"2", "3"}
    assert all(name.startswith("out_path.") for name in found)


def test_fine_tune_all_undoes_the_others() -> None:
    net = ResidualUNet2d()
    freeze(net, "first")
    freeze(net, "all")
    assert sum(trained(net).values()) == 1_561_491


def test_unknown_policy() -> None:
    with pytest.raises(ValueError, match="unknown fine-tuning policy 'middle'; give all, first or last"):
        freeze(ResidualUNet2d(width=1), "middle")  # type: ignore[arg-type]


def test_frozen_weights_stay_and_running_statistics_move() -> None:
    torch.manual_seed(0)
    net = ResidualUNet2d(width=2)
    freeze(net, "first")
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        net(torch.rand(2, 1, 16, 16)).sin().sum().backward()
        optimizer.step()
    changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    weights = {name for name, _ in net.named_parameters()}
    assert changed & weights == set(trained(net))
    assert sum("running" in name for name in changed) == 94


# --- L2-SP -----------------------------------------------------------------------------------------------------------


def test_l2_sp_at_the_start_is_zero_with_zero_gradient() -> None:
    net = ResidualUNet2d(width=2)
    penalty = l2_sp_penalty(net, copy.deepcopy(net.state_dict()))
    penalty.backward()
    assert penalty.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in net.parameters())


def test_l2_sp_of_a_shift() -> None:
    net = ResidualUNet2d().double()
    state = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.25)
        for name, buffer in net.named_buffers():
            if "running" in name:
                buffer.add_(7.0)  # buffers do not count
    penalty = l2_sp_penalty(net, state)
    assert penalty.item() == pytest.approx(0.1 * 1_561_491 * 0.25**2, rel=1e-9)
    assert penalty.dtype == torch.float64
    penalty.backward()
    for p in net.parameters():
        assert p.grad is not None
        torch.testing.assert_close(p.grad, torch.full_like(p, 2 * 0.1 * 0.25))
    assert l2_sp_penalty(net, state, alpha=0.3).item() == pytest.approx(3 * penalty.item())


def test_l2_sp_has_no_gradient_into_the_reference() -> None:
    net = nn.Linear(2, 1)
    reference = {name: (p.detach() + 1).requires_grad_() for name, p in net.named_parameters()}
    l2_sp_penalty(net, reference).backward()
    assert all(p.grad is None for p in reference.values())


def test_li_form_by_hand() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        net[1].weight.copy_(torch.tensor([[1.0, -1.0]]))
        net[1].bias.fill_(2.0)
    reference = {"0.weight": torch.tensor([[1.0, 0.0], [3.0, 1.0]])}
    penalty = l2_sp_li_penalty(net, reference, head=("1.weight", "1.bias"), alpha=0.2, beta=0.6)
    penalty.backward()
    assert penalty.item() == pytest.approx(0.2 / 2 * (4 + 9) + 0.6 / 2 * (1 + 1 + 4))
    torch.testing.assert_close(net[0].weight.grad, torch.tensor([[0.0, 0.4], [0.0, 0.6]]))
    torch.testing.assert_close(net[1].weight.grad, torch.tensor([[0.6, -0.6]]))


def test_li_defaults_and_no_head() -> None:
    net = nn.Linear(3, 2)
    reference = {name: p.detach() - 1 for name, p in net.named_parameters()}
    assert l2_sp_li_penalty(net, reference, head=()).item() == pytest.approx(0.05 * 8)
    expected = 0.05 * 6 + 0.005 * net.bias.square().sum().item()
    assert l2_sp_li_penalty(net, reference, head=("bias",)).item() == pytest.approx(expected)


def test_missing_or_foreign_parameters() -> None:
    net = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"'bias' has shape \(2,\), the reference holds nothing for it"):
        l2_sp_penalty(net, {"weight": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match=r"'weight' has shape \(2, 3\), the reference holds shape \(3, 2\) for it"):
        l2_sp_penalty(net, {"weight": torch.zeros(3, 2)})
    with pytest.raises(ValueError, match="no parameter 'classifier' for the head"):
        l2_sp_li_penalty(net, net.state_dict(), head=("classifier",))
