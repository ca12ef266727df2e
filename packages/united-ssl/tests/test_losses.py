"""The losses (specification 2.1, 9.3 to 9.6)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from united_ssl import critic_loss, generator_loss, gradient_penalty, united_loss
from united_ssl.losses import discriminative_loss

X = torch.rand(3, 1, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LOGITS, LABELS = torch.zeros(3, 1000, dtype=torch.float64), torch.tensor([0, 5, 999])


def test_uniform_prediction_and_perfect_restoration():
    assert float(united_loss(LOGITS, LABELS, X, X)) == pytest.approx(math.log(1000))
    assert float(united_loss(LOGITS, LABELS, X, X, reduction="paper")) == pytest.approx(3 * math.log(1000))


@pytest.mark.parametrize("e", [0.1, -0.2])
def test_constant_error(e):
    only = (0.0, 100.0, 0.0)
    assert float(united_loss(LOGITS, LABELS, X + e, X, weights=only)) == pytest.approx(100 * e * e)
    assert float(united_loss(LOGITS, LABELS, X + e, X, weights=only, norm="l1")) == pytest.approx(100 * abs(e))
    cube = torch.zeros(2, 1, 64, 64, 64, dtype=torch.float64)
    paper = united_loss(LOGITS[:2], LABELS[:2], cube + e, cube, weights=(0, 1, 0), reduction="paper")
    assert float(paper) == pytest.approx(262_144 * e * e)


def test_terms_add_up_and_have_gradients():
    logits, restored = torch.randn(3, 8, requires_grad=True), torch.rand(3, 1, 4, 4, 4, requires_grad=True)
    labels, target = torch.tensor([1, 2, 3]), torch.rand(3, 1, 4, 4, 4)
    loss = united_loss(logits, labels, restored, target, 0.7, (2.0, 3.0, 5.0))
    expected = 2 * F.cross_entropy(logits, labels) + 3 * F.mse_loss(restored, target) + 5 * 0.7
    assert torch.allclose(loss, expected)
    loss.backward()
    assert logits.grad is not None
    assert restored.grad is not None


def test_rubik_has_flags_and_orders():
    flags, orders = torch.randn(3, 8), torch.randn(3, 10)
    truth = torch.randint(0, 2, (3, 8)), torch.tensor([1, 2, 3])
    expected = F.binary_cross_entropy_with_logits(flags, truth[0].float()) + F.cross_entropy(orders, truth[1])
    assert torch.allclose(discriminative_loss([flags, orders], list(truth)), expected)


def test_critic_losses():
    same = torch.full((2, 1, 8, 8, 8), 3.0)
    assert float(critic_loss(same, same)) == 0
    assert float(critic_loss(same, same - 1)) == pytest.approx(-1)
    half = torch.zeros(4)
    assert -float(critic_loss(half, half, "log")) == pytest.approx(2 * math.log(0.5))
    assert float(generator_loss(same)) == -3
    assert float(generator_loss(half, "log")) == pytest.approx(math.log(2))
    assert float(generator_loss(half, "log", minimax=True)) == pytest.approx(math.log(0.5))


class Linear(nn.Module):
    """c(x) = the same weighted sum of channel 0 at each of 8 places, and `second` times channel 1."""

    def __init__(self, weight: torch.Tensor, second: float) -> None:
        super().__init__()
        self.weight, self.second = nn.Parameter(weight), second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = (x[:, 0] * self.weight).flatten(1).sum(1) + self.second * x[:, 1].flatten(1).sum(1)
        return value[:, None].expand(-1, 8)


def test_corrected_penalty_of_a_linear_critic_of_norm_1_is_0():
    weight = torch.randn(4, 4, 4, dtype=torch.float64)
    penalty = gradient_penalty(Linear(weight / weight.norm(), 5.0), X, 1 - X, X)
    assert float(penalty.detach()) == pytest.approx(0, abs=1e-12)


def test_penalties_in_closed_form():
    weight = torch.randn(4, 4, 4, dtype=torch.float64)
    corrected = gradient_penalty(Linear(weight, 5.0), X, 1 - X, X)
    assert float(corrected.detach()) == pytest.approx(float((1 - weight.norm()) ** 2))
    # As coded: the sum over 8 places, and the interpolate in both channels.
    norm = 8 * (weight.square().sum() + 64 * 25).sqrt()
    coded = gradient_penalty(Linear(weight, 5.0), X, 1 - X, X, adversarial="wgan-gp-as-coded")
    assert float(coded.detach()) == pytest.approx(float((1 - norm) ** 2))


@pytest.mark.parametrize("adversarial", ["wgan-gp", "wgan-gp-as-coded"])
def test_the_critic_sees_the_interpolate_and_the_condition(adversarial):
    seen = []

    def critic(x):
        seen.append(x.detach().clone())
        return x.square().flatten(1).sum(1)

    alpha = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64).reshape(3, 1, 1, 1, 1)
    fake, condition = torch.rand_like(X), torch.rand_like(X)
    gradient_penalty(critic, X, fake, condition, alpha, adversarial)
    z = alpha * X + (1 - alpha) * fake
    assert torch.allclose(seen[0], torch.cat([z, condition if adversarial == "wgan-gp" else z], 1))


def test_the_penalty_reaches_the_critic_only():
    weight = torch.randn(4, 4, 4, dtype=torch.float64)
    critic, fake = Linear(weight, 0.0), X.clone().requires_grad_(True)
    gradient_penalty(critic, X, fake, X).backward()
    assert critic.weight.grad is not None
    assert fake.grad is None
    expected = -2 * (1 - weight.norm()) * weight / weight.norm()
    assert torch.allclose(critic.weight.grad, expected)


def test_a_constant_critic_has_penalty_1_and_finite_gradients():
    critic = Linear(torch.zeros(4, 4, 4, dtype=torch.float64), 0.0)
    penalty = gradient_penalty(critic, X, X, X)
    penalty.backward()
    assert float(penalty.detach()) == 1
    assert torch.isfinite(critic.weight.grad).all()


def test_refusals():
    for call in (
        lambda: critic_loss(X, X, "gan"), lambda: generator_loss(X, "wgan-gp", minimax=True),
        lambda: gradient_penalty(nn.Identity(), X, X, X, adversarial="log"),
        lambda: united_loss(LOGITS, LABELS, X, X, norm="l3"), lambda: united_loss(LOGITS, LABELS, X, X, reduction="sum"),
        lambda: united_loss(LOGITS, LABELS, X, X[:1]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="give"):
            call()
