"""Segmentation loss, learning rates, optimisers, and the choice of the network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from aiva import learning_rate, segmentation_loss
from aiva.settings import Training
from aiva.training import Selection, make_optimizer
from dart_core.errors import InputError, SettingError

# Loss


def test_loss_leaves_255_out() -> None:
    logits = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    labels = torch.randint(0, 2, (2, 3, 3))
    labels[0, 1, 1] = labels[1, 2, 0] = 255
    logs = logits.log_softmax(1).numpy()
    values = [
        -logs[n, labels[n, i, j], i, j] for n in range(2) for i in range(3) for j in range(3) if labels[n, i, j] != 255
    ]
    loss = segmentation_loss(logits, labels)
    assert loss.dtype == torch.float64
    assert float(loss) == pytest.approx(np.mean(values), rel=1e-12)
    assert float(segmentation_loss(logits, labels[:, None])) == float(loss)
    assert float(segmentation_loss(logits, labels.to(torch.uint8))) == float(loss)


def test_loss_where_every_pixel_is_left_out() -> None:
    logits = torch.randn(1, 2, 2, 2, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((1, 2, 2), 255))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_loss_of_shapes_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="labels"):
        segmentation_loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 5))


# Learning rates


@pytest.mark.parametrize(("iteration", "rate"), [(0, 1e-3), (2500, 1e-3 * 0.5**0.9), (4999, 1e-3 * 0.0002**0.9)])
def test_pretraining_rate(iteration: int, rate: float) -> None:
    assert learning_rate(iteration, "pretrain") == pytest.approx(rate, rel=1e-9)
    assert learning_rate(5000, "pretrain") == 0


@pytest.mark.parametrize(
    ("iteration", "rate"), [(1000, 5e-6), (5999, 5e-6), (6000, 5e-7), (6499, 5e-7), (6999, 5e-7), (7000, 5e-8)]
)
def test_adaptation_rate_ticks_from_the_first_update_on(iteration: int, rate: float) -> None:
    assert learning_rate(iteration, "adapt") == pytest.approx(rate, rel=1e-12)


def test_rates_of_arrays_and_other_recipes() -> None:
    steps = np.arange(0, 8000, 250)
    for phase in ("pretrain", "adapt"):
        rates = learning_rate(steps, phase)
        assert isinstance(rates, np.ndarray)
        np.testing.assert_allclose(rates, [learning_rate(int(step), phase) for step in steps], rtol=1e-12)
        of_tensor = learning_rate(torch.from_numpy(steps).double(), phase)
        assert of_tensor.dtype == torch.float64
        np.testing.assert_allclose(of_tensor.numpy(), rates, rtol=1e-12)
        np.testing.assert_allclose(learning_rate(torch.tensor([[0], [3000]]), phase), rates[[[0], [12]]], rtol=1e-6)
        np.testing.assert_allclose(learning_rate([0, 3000], phase), rates[[0, 12]], rtol=1e-12)
    # AdaptSegNet's ticks from the start; prostate stays constant.
    assert learning_rate(5000, "adapt", start=0) == pytest.approx(5e-7)
    assert learning_rate(3499, "adapt", base=1e-6, milestones=()) == 1e-6
    assert learning_rate(1750, "pretrain", steps=3500) == pytest.approx(1e-3 * 0.5**0.9)
    with pytest.raises(SettingError, match="unknown phase 'train'"):
        learning_rate(0, "train")


# Optimisers


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_optimizer_takes_what_is_trainable(name: Any) -> None:
    weights = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3), requires_grad=False)]
    optimizer = make_optimizer(weights, Training(optimizer=name, learning_rate=0.1))
    (group,) = optimizer.param_groups
    assert group["params"] == weights[:1]
    assert group["lr"] == 0.1
    assert group["weight_decay"] == 5e-4
    if name == "sgd":
        assert (group["momentum"], group["nesterov"], group["dampening"]) == (0.9, True, 0)


# Choice of the network


class Log:
    """Stands for a run: takes the lines of metrics.jsonl."""

    is_main = True

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.log = self

    def write(self, step: int, **values: float) -> None:
        self.lines.append((step, values))


def go_through(
    selection: Selection, scores: dict[int, float], network: torch.nn.Module, log: Any, start: int = 0
) -> None:
    """Steps 0 to 20; the weight is the number of steps done."""
    for done in range(start, 21):
        with torch.no_grad():
            network.get_parameter("weight").fill_(done)
        selection.after(done, network, log)


@pytest.mark.parametrize(
    ("rule", "step", "words"),
    [
        ("highest_source", 10, "network of step 10, with the highest source score (0.8000)"),
        ("lowest_source", 15, "network of step 15, with the lowest source score (0.2000)"),
        ("last", 20, "network of the last step"),
    ],
)
def test_rules(
    rule: Any,
    step: int,
    words: str,
) -> None:
    scores = {0: 0.99, 5: 0.9, 10: 0.8, 15: 0.2, 20: 0.8}
    network, log = torch.nn.Linear(1, 1, bias=False), Log()
    selection = Selection(
        rule, lambda net: scores[int(net.get_parameter("weight").detach())], every=5, total=20, first=5
    )
    go_through(selection, scores, network, log)
    assert selection.take(network) == words
    assert float(network.weight.detach()) == step
    # Scores of networks that may not be chosen are written down as well; of equal ones the earlier is kept.
    assert log.lines == [(max(done - 1, 0), {"source_score": score}) for done, score in scores.items()]


def test_the_last_step_is_scored_in_any_case() -> None:
    network, log = torch.nn.Linear(1, 1, bias=False), Log()
    selection = Selection("highest_source", lambda net: float(net.get_parameter("weight").detach()), every=50, total=20)
    go_through(selection, {}, network, log)
    assert selection.take(network).startswith("network of step 20")


def test_choice_goes_through_a_checkpoint() -> None:
    scores = {0: 0.1, 5: 0.7, 10: 0.9, 15: 0.3, 20: 0.5}

    def make() -> Selection:
        return Selection(
            "highest_source", lambda net: scores[int(net.get_parameter("weight").detach())], every=5, total=20
        )

    network, log = torch.nn.Linear(1, 1, bias=False), Log()
    one, other = make(), make()
    go_through(one, scores, network, log)
    other.load_state_dict(one.state_dict())
    assert other.take(network) == "network of step 10, with the highest source score (0.9000)"


def test_undefined_scores_are_never_chosen() -> None:
    network, log = torch.nn.Linear(1, 1, bias=False), Log()
    selection = Selection("lowest_source", lambda net: float("nan"), every=5, total=20)
    go_through(selection, {}, network, log)
    assert selection.take(network) == "network of the last step, as no score is defined"


def test_rule_without_scans_to_score() -> None:
    with pytest.raises(SettingError, match="--checkpoint highest_source needs labelled source scans"):
        Selection("highest_source", None, every=5, total=20)
    assert Selection("last", None, every=5, total=20).take(torch.nn.Linear(1, 1)) == "network of the last step"


def test_recipes() -> None:
    """Settings resolve by method."""
    assert Training().resolved("aiva").steps == 6500
    assert Training().resolved("aiva").batch_size == 8
    assert Training().resolved("aiva").learning_rate == 5e-6
    assert Training(steps=7).resolved("pretrain").steps == 7
    assert Training().resolved("seg-jdot").learning_rate == 5e-4
    assert Training().resolved("none").steps is None
