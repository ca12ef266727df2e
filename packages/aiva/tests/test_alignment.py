"""The alignment loss and its gradient, lambda, and the accumulation, against the specification's closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aiva import AlignmentAccumulator, LambdaNormaliser, alignment_loss
from dart_core.errors import InputError, SettingError

FORMS: Any = ("count_weighted_mean", "paper_sum", "per_sample_l1")


def numpy_loss(v: np.ndarray, assignment: np.ndarray, nu: np.ndarray, match: np.ndarray, form: str) -> float:
    """Cluster by cluster, as the formulas are written."""
    total, count = 0.0, 0
    for cluster in range(len(nu)):
        members = v[assignment == cluster]
        if len(members) == 0:
            continue
        goal = nu[match[cluster]]
        difference = members.mean(0) - goal
        if form == "count_weighted_mean":
            total += len(members) * np.square(difference).mean()
            count += len(members)
        elif form == "paper_sum":
            total += np.square(difference).sum()
        else:
            total += sum(np.abs(member - goal).mean() for member in members)
    if form == "count_weighted_mean":
        return total / count if count else 0.0
    return total


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 5), st.sampled_from(FORMS))
def test_value_and_gradient(seed: int, samples: int, k: int, form: Any) -> None:
    rng = np.random.default_rng(seed)
    v, nu = rng.normal(size=(samples, 3, 2, 2)), rng.normal(size=(k, 3, 2, 2))
    assignment, match = rng.integers(-1, k, samples), rng.permutation(k)
    features = torch.from_numpy(v).requires_grad_()
    loss = alignment_loss(features, *map(torch.from_numpy, (assignment, nu, match)), form)
    assert loss.dtype == torch.float64
    assert float(loss.detach()) == pytest.approx(numpy_loss(v, assignment, nu, match, form), rel=1e-12, abs=1e-14)
    (gradient,) = torch.autograd.grad(loss, features)
    expected = np.zeros_like(v)
    assigned = (assignment >= 0).sum()
    for b, cluster in enumerate(assignment):
        if cluster >= 0:
            members = assignment == cluster
            mean, goal = v[members].mean(0), nu[match[cluster]]
            if form == "count_weighted_mean":
                expected[b] = 2 * (mean - goal) / (12 * assigned)  # D = 12 numbers per feature
            elif form == "paper_sum":
                expected[b] = 2 * (mean - goal) / members.sum()
            else:
                expected[b] = np.sign(v[b] - goal) / 12
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("form", FORMS[:2])
def test_zero_when_cluster_means_meet_their_goals(form: Any) -> None:
    """Though no single slice does."""
    nu = torch.randn(2, 5)
    offset = torch.randn(2, 5)
    features = torch.cat([nu[[1]] + offset[[0]], nu[[1]] - offset[[0]], nu[[0]] + offset[[1]], nu[[0]] - offset[[1]]])
    loss = alignment_loss(features, torch.tensor([0, 0, 1, 1]), nu, torch.tensor([1, 0]), form)
    assert float(loss) == pytest.approx(0, abs=1e-12)
    assert float(alignment_loss(features[:1], torch.tensor([0]), nu, torch.tensor([1, 0]), form)) > 0.01


@pytest.mark.parametrize("form", FORMS)
def test_nothing_assigned(form: Any) -> None:
    features = torch.full((3, 4), torch.inf, requires_grad=True)
    loss = alignment_loss(features, torch.tensor([-1, -1, -1]), torch.randn(2, 4), torch.tensor([0, 1]), form)
    assert float(loss.detach()) == 0
    loss.backward()
    assert features.grad is not None
    assert not features.grad.any()


def test_source_means_get_no_gradient() -> None:
    nu = torch.randn(2, 4, requires_grad=True)
    features = torch.randn(3, 4, requires_grad=True)
    alignment_loss(features, torch.tensor([0, 1, 1]), nu, torch.tensor([0, 1])).backward()
    assert nu.grad is None


def test_one_cluster_is_the_distance_of_means() -> None:
    source, target = torch.randn(30, 6), torch.randn(9, 6)
    mean = source.mean(0, keepdim=True)
    zeros = torch.zeros(9, dtype=torch.long)
    loss = alignment_loss(target, zeros, mean, torch.zeros(1, dtype=torch.long), "paper_sum")
    torch.testing.assert_close(loss, (target.mean(0) - mean[0]).square().sum())


def test_half_precision_is_computed_in_float32() -> None:
    features = torch.full((4, 1000), 200.0, dtype=torch.float16)
    loss = alignment_loss(features, torch.zeros(4), torch.zeros(1, 1000), torch.zeros(1), "paper_sum")
    assert float(loss) == 200.0**2 * 1000
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((torch.zeros(2, 3), torch.zeros(2), torch.zeros(1, 4), torch.zeros(1)), "do not fit"),
        ((torch.zeros(2, 3), torch.zeros(3), torch.zeros(1, 3), torch.zeros(1)), "do not fit"),
        ((torch.zeros(2, 3), torch.tensor([0, 1]), torch.zeros(1, 3), torch.zeros(1)), "outside -1 to k-1"),
        ((torch.zeros(2, 3), torch.tensor([0, -2]), torch.zeros(1, 3), torch.zeros(1)), "outside -1 to k-1"),
    ],
)
def test_shapes_that_do_not_fit(arguments: Any, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        alignment_loss(*arguments)


def test_unknown_form() -> None:
    with pytest.raises(SettingError, match="unknown alignment 'mean'"):
        alignment_loss(torch.zeros(1, 1), torch.zeros(1), torch.zeros(1, 1), torch.zeros(1), "mean")  # type: ignore[arg-type]


# Lambda


def test_warm_up() -> None:
    normalise = LambdaNormaliser(0.9, 6)
    assert [normalise(value) for value in (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0)] == [1, 1, 1, 1, 1, 1, 1.8]


def test_zeros_are_not_counted() -> None:
    normalise = LambdaNormaliser(factor=1.0, warmup=2)
    assert [normalise(value) for value in (0.0, 4.0, 0.0, 0.0, 8.0, 3.0, 0.0)] == [0, 4, 0, 0, 8, 0.5, 0]
    assert normalise.normaliser == 6


def test_gradient_is_scaled_and_the_normaliser_fixed() -> None:
    normalise = LambdaNormaliser(0.8, 2)
    weights = torch.tensor(3.0, requires_grad=True)
    normalise(weights * 1)
    normalise(weights * 3)  # mean 6
    value = normalise(weights * 5)
    (gradient,) = torch.autograd.grad(value, weights)
    assert float(value.detach()) == pytest.approx(0.8 * 15 / 6)
    assert float(gradient) == pytest.approx(0.8 * 5 / 6)


def test_normaliser_goes_on_where_it_was() -> None:
    one, other = LambdaNormaliser(), LambdaNormaliser()
    values = [0.5, 0.25, 1.5, 0.0, 0.125, 2.0, 1.0, 3.0, 4.0]
    for value in values[:4]:
        one(value)
    other.load_state_dict(one.state_dict())
    assert [one(value) for value in values[4:]] == [other(value) for value in values[4:]]
    with pytest.raises(SettingError, match="warm-up is 0"):
        LambdaNormaliser(warmup=0)


# Accumulation


def test_updates_come_every_fifth_iteration() -> None:
    accumulator = AlignmentAccumulator(35)
    assert [i for i in range(1, 21) if accumulator.ready(8)] == [5, 10, 15, 20]


def test_exactly_the_threshold_is_not_enough() -> None:
    accumulator = AlignmentAccumulator()
    assert not accumulator.ready(35)
    assert accumulator.ready(1)
    assert not accumulator.ready(0)


def test_zero_means_every_iteration_with_a_slice() -> None:
    accumulator = AlignmentAccumulator(0)
    assert [accumulator.ready(n) for n in (3, 0, 1)] == [True, False, True]
    with pytest.raises(SettingError, match="threshold is -1"):
        AlignmentAccumulator(-1)


def test_held_batches_survive_a_checkpoint() -> None:
    one, other = AlignmentAccumulator(10), AlignmentAccumulator(10)
    one.ready(7)
    one.hold(torch.randn(2, 1, 8, 8), torch.randn(2, 4), torch.tensor([0, -1]))
    one.hold(torch.randn(2, 1, 8, 8), torch.randn(2, 4), torch.tensor([-1, -1]))
    assert len(one.pending) == 1  # a batch without assigned slice gets no gradient
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.pending[0]["images"], one.pending[0]["images"])
    assert other.ready(4)
    other.clear()
    assert other.pending == []
    assert one.pending
