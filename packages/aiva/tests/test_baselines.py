"""Seg-JDOT against an assignment solver, AdaptSegNet's losses and network, and the printed tables."""

from __future__ import annotations

import csv
from importlib import resources
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F

from aiva import OutputDiscriminator, adversarial_losses, seg_jdot_loss, seg_jdot_plan
from aiva.baselines import printed_table
from dart_core.errors import InputError, SettingError

TABLES = resources.files("aiva") / "tables"


class Batch:
    """Random features, masks and logits of n source and n target slices, in float64."""

    def __init__(self, n: int, seed: int = 0) -> None:
        draws = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=draws, dtype=torch.float64)

        self.features_s, self.features_t = normal(n, 3, 2, 2), normal(n, 3, 2, 2)
        self.labels = (normal(n, 1, 8, 8) > 0).double()
        self.logits_s, self.logits_t = normal(n, 2, 8, 8), normal(n, 2, 8, 8)

    @property
    def probabilities(self) -> torch.Tensor:
        return self.logits_t.softmax(1)[:, 1:]

    def cost(self, alpha: float, beta: float) -> np.ndarray:
        f, g, y, p = (
            part.flatten(1).numpy() for part in (self.features_s, self.features_t, self.labels, self.probabilities)
        )
        return np.asarray(alpha * np.square(f[:, None] - g).sum(-1) + beta * np.square(y[:, None] - p).sum(-1))

    def plan(self, alpha: float, beta: float, **options: Any) -> torch.Tensor:
        return seg_jdot_plan(self.features_s, self.features_t, self.labels, self.probabilities, alpha, beta, **options)


# Plan


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 10), st.integers(0, 2**20), st.floats(1e-4, 1), st.floats(1e-4, 1))
def test_exact_plan_is_the_best_permutation(n: int, seed: int, alpha: float, beta: float) -> None:
    batch = Batch(n, seed)
    plan = batch.plan(alpha, beta)
    assert plan.dtype == torch.float64
    expected = np.zeros((n, n))
    expected[linear_sum_assignment(batch.cost(alpha, beta))] = 1 / n
    np.testing.assert_allclose(plan.numpy(), expected, atol=1e-12)
    for axis in (0, 1):
        np.testing.assert_allclose(plan.sum(axis).numpy(), 1 / n, atol=1e-12)


def test_entropic_plan_tends_to_the_exact_one() -> None:
    batch = Batch(6, 3)
    exact = batch.plan(0.01, 0.02)
    plans = [batch.plan(0.01, 0.02, ot="sinkhorn", reg=reg) for reg in (1.0, 0.1, 0.01)]
    differences = [float((plan - exact).abs().max()) for plan in plans]
    assert differences == sorted(differences, reverse=True)
    assert differences[-1] < differences[0] / 2
    for plan in plans[:2]:
        torch.testing.assert_close(plan.sum(0), torch.full((6,), 1 / 6, dtype=torch.float64), rtol=0, atol=1e-6)


def test_entropic_plan_in_numpy() -> None:
    """Sinkhorn's iteration on exp(-C / (reg max C)), written out."""
    batch = Batch(5, 1)
    cost = batch.cost(0.3, 0.1)
    kernel = np.exp(-cost / cost.max() / 0.1)
    u = v = np.ones(5)
    for _ in range(5000):
        u = 0.2 / (kernel @ v)
        v = 0.2 / (kernel.T @ u)
    plan = batch.plan(0.3, 0.1, ot="sinkhorn")
    np.testing.assert_allclose(plan.numpy(), u[:, None] * kernel * v, atol=1e-7)


def test_plan_has_no_gradient_and_the_type_of_the_features() -> None:
    batch = Batch(3)
    features = batch.features_s.float().requires_grad_()
    plan = seg_jdot_plan(features, batch.features_t.float(), batch.labels, batch.probabilities, 1, 1)
    assert plan.dtype == torch.float32
    assert not plan.requires_grad


@pytest.mark.parametrize("ot", ["emd", "sinkhorn"])
def test_plan_of_arrays(ot: Any) -> None:
    batch = Batch(4)
    expected = batch.plan(0.1, 0.2, ot=ot)
    arrays: Any = [part.numpy() for part in (batch.features_s, batch.features_t, batch.labels, batch.probabilities)]
    plan = seg_jdot_plan(*arrays, 0.1, 0.2, ot=ot)
    assert isinstance(plan, np.ndarray)
    np.testing.assert_array_equal(plan, expected.numpy())


def test_plan_of_identical_batches() -> None:
    """All costs equal where everything is the same: any plan with the right marginals will do, and no division by zero."""
    same = torch.ones(4, 2)
    masks = torch.zeros(4, 1, 4, 4)
    for ot in ("emd", "sinkhorn"):
        plan = seg_jdot_plan(same, same, masks, masks, 1, 1, ot=ot)  # type: ignore[arg-type]
        torch.testing.assert_close(plan.sum(0), torch.full((4,), 0.25))


def test_plan_of_bad_input() -> None:
    batch = Batch(3)
    with pytest.raises(SettingError, match="unknown transport 'exact'"):
        batch.plan(1, 1, ot="exact")
    with pytest.raises(InputError, match="do not fit"):
        seg_jdot_plan(batch.features_s[:, :2], batch.features_t, batch.labels, batch.probabilities, 1, 1)
    with pytest.raises(InputError, match="cost is not finite"):
        seg_jdot_plan(batch.features_s * torch.nan, batch.features_t, batch.labels, batch.probabilities, 1, 1)


# Loss


@pytest.mark.parametrize("form", ["published", "authors"])
@pytest.mark.parametrize("four_axes", [True, False])
def test_loss_is_the_sum_over_pairs(form: Any, four_axes: bool) -> None:
    batch, alpha, beta = Batch(4, 2), 0.03, 0.01
    labels = batch.labels if four_axes else batch.labels[:, 0]
    loss = seg_jdot_loss(
        batch.logits_s, batch.logits_t, labels, batch.features_s, batch.features_t, alpha, beta, form
    )  # fmt: skip
    plan = batch.plan(alpha, beta).numpy()
    p_s = batch.logits_s.softmax(1)[:, 1].flatten(1).numpy()
    p_t, y = batch.probabilities.flatten(1).numpy(), batch.labels.flatten(1).numpy()
    f_s, f_t = batch.features_s.flatten(1).numpy(), batch.features_t.flatten(1).numpy()
    logs = batch.logits_s.log_softmax(1).numpy()
    one_hot = np.concatenate([1 - batch.labels.numpy(), batch.labels.numpy()], 1)
    expected = -(one_hot * logs).sum(1).mean()
    for i in range(4):
        for j in range(4):
            if form == "published":
                term = alpha * np.sum((f_s[i] - f_t[j]) ** 2) + beta * np.sum((y[i] - p_t[j]) ** 2)
            else:
                term = alpha * np.linalg.norm(p_s[i] - p_t[j]) + beta * np.linalg.norm(y[i] - p_t[j])
            expected += plan[i, j] * term
    assert loss.dtype == torch.float64
    assert float(loss) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("form", ["published", "authors"])
def test_gradient_of_the_loss(form: Any) -> None:
    """The plan is constant in the neighbourhood of a batch, so differences of the loss are its gradient."""
    batch = Batch(3, 5)
    inputs = [batch.logits_s, batch.logits_t, batch.features_s, batch.features_t]

    def loss(a: torch.Tensor, b: torch.Tensor, f: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        return seg_jdot_loss(a, b, batch.labels, f, g, 0.03, 0.01, form)

    assert torch.autograd.gradcheck(loss, [tensor.requires_grad_() for tensor in inputs])


@pytest.mark.parametrize("form", ["published", "authors"])
def test_gradient_is_finite_where_distances_vanish(form: Any) -> None:
    features = torch.ones(2, 3, requires_grad=True)
    logits = torch.zeros(2, 2, 4, 4, requires_grad=True)
    loss = seg_jdot_loss(logits, logits, torch.zeros(2, 1, 4, 4), features, features, 1, 1, form)
    gradients = torch.autograd.grad(loss, [logits, *([features] if form == "published" else [])])
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_unknown_form() -> None:
    batch = Batch(2)
    with pytest.raises(SettingError, match="unknown form 'squared'"):
        seg_jdot_loss(
            batch.logits_s, batch.logits_t, batch.labels, batch.features_s, batch.features_t, 1, 1, "squared"  # type: ignore[arg-type]
        )  # fmt: skip


# AdaptSegNet


def test_discriminator() -> None:
    network = OutputDiscriminator()
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_763_713
    maps = torch.rand(2, 2, 256, 256)
    with torch.no_grad():
        out = network(maps)
        assert out.shape == (2, 1, 8, 8)
        assert network(torch.rand(1, 2, 384, 384)).shape == (1, 1, 12, 12)
        # Layer by layer, in the order in which they are registered.
        x, weights = maps, list(network.parameters())
        for i in range(5):
            x = F.conv2d(x, weights[2 * i], weights[2 * i + 1], stride=2, padding=1)
            x = torch.where(x > 0, x, 0.2 * x) if i < 4 else x
    torch.testing.assert_close(out, x)
    assert OutputDiscriminator(5)(torch.rand(1, 5, 32, 32)).shape == (1, 1, 1, 1)


def test_adversarial_losses() -> None:
    torch.manual_seed(0)
    network = OutputDiscriminator().double()
    logits_s, logits_t = (torch.randn(2, 2, 64, 64, dtype=torch.float64, requires_grad=True) for _ in range(2))
    segmenter, discriminator = adversarial_losses(network, logits_s, logits_t)
    with torch.no_grad():
        of_source, of_target = (network(logits.softmax(1)).numpy() for logits in (logits_s, logits_t))
    # Binary cross-entropy with logits: log(1 + e^x) for label 0, log(1 + e^-x) for label 1.
    assert float(segmenter.detach()) == pytest.approx(0.001 * np.log1p(np.exp(of_target)).mean())
    expected = (np.log1p(np.exp(of_source)).mean() + np.log1p(np.exp(-of_target)).mean()) / 2
    assert float(discriminator.detach()) == pytest.approx(expected)

    segmenter.backward(retain_graph=True)
    assert logits_s.grad is None
    assert logits_t.grad is not None
    assert logits_t.grad.any()
    assert all(parameter.grad is None for parameter in network.parameters())
    before = logits_t.grad.clone()
    discriminator.backward()
    assert torch.equal(logits_t.grad, before)
    assert logits_s.grad is None
    assert all(parameter.grad is not None for parameter in network.parameters())


# Printed numbers


@pytest.mark.parametrize(("name", "methods"), [("table1", 6), ("table2", 5)])
def test_printed_tables(name: str, methods: int) -> None:
    table = printed_table(name)
    with (TABLES / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        assert [[str(value) for value in row.values()] for row in table] == [
            [row[0], *(str(float(cell)) for cell in row[1:])] for row in list(csv.reader(file))[1:]
        ]
    assert len(table) == methods
    for row in table:
        values = [value for key, value in row.items() if key not in ("method", "Average")]
        # The paper's 78.67 is 78.68 by its own row.
        assert float(np.mean(values)) == pytest.approx(row["Average"], abs=0.011)
    with pytest.raises(SettingError, match="no printed table 'table3'"):
        printed_table("table3")
