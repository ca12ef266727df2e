from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dart_core.batches import Batches
from dart_core.errors import SettingError
from dart_core.fine_tuning import BestEpoch, FineTuning, clip_gradients, fine_tune, step_generator
from dart_core.run import Run
from dart_core.settings import RunSettings


def load(index: int, generator: np.random.Generator) -> dict[str, Any]:
    x = np.random.default_rng(index).normal(size=4)
    return {"x": x.astype(np.float32), "y": np.float32(x.sum() + 0.1 * generator.normal())}


def squared(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return F.mse_loss(network(batch["x"]).squeeze(1), batch["y"])


def series(values: list[float], seen: list[bool] | None = None) -> Callable[[nn.Module], Mapping[str, float]]:
    """A validation that gives these numbers in turn."""
    rest = iter(values)

    def validate(network: nn.Module) -> Mapping[str, float]:
        if seen is not None:
            seen.append(network.training or torch.is_grad_enabled())
        return {"validation_loss": next(rest)}

    return validate


def network_of(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))


def train(
    out: Path, recipe: FineTuning, resume: bool = False, size: int = 10, **functions: Any
) -> tuple[nn.Module, BestEpoch, list[dict[str, Any]]]:
    settings = RunSettings(out, resume=resume, device="cpu", seed=3, checkpoint_every=2)
    given: dict[str, Any] = {"loss": squared, "learning_rate": lambda epoch, loss: 0.05, **functions}
    with Run(settings) as run:
        network = run.prepare(network_of())
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0, momentum=0.9)
        best = fine_tune(run, network, optimizer, Batches(load, size, 4, seed=3), recipe, **given)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return network, best, lines


def test_stops_at_the_eleventh_epoch_without_a_better_one(tmp_path: Path) -> None:
    losses = [3.0, 2.0, *[2.0 + k for k in range(40)]]
    _, best, lines = train(tmp_path / "run", FineTuning(epochs=60, patience=10), validate=series(losses))
    assert (best.epoch, best.value, best.bad_epochs) == (2, 2.0, 11)
    assert [line["epoch"] for line in lines if "epoch" in line] == list(range(1, 14))


def test_all_epochs_run_without_patience(tmp_path: Path) -> None:
    _, best, lines = train(tmp_path / "run", FineTuning(epochs=15), validate=series([float(k) for k in range(15)]))
    assert best.epoch == 1
    assert sum("epoch" in line for line in lines) == 15


def test_the_network_holds_the_best_epoch_afterwards(tmp_path: Path) -> None:
    states: list[dict[str, Tensor]] = []
    numbers = iter([3.0, 1.0, 2.0])

    def validate(network: nn.Module) -> Mapping[str, float]:
        states.append({key: value.clone() for key, value in network.state_dict().items()})
        return {"validation_loss": next(numbers)}

    network, best, _ = train(tmp_path / "run", FineTuning(epochs=3), validate=validate)
    for key, value in network.state_dict().items():
        assert torch.equal(value, states[1][key]), key
        assert torch.equal(value, best.weights[key]), key
    assert not torch.equal(states[1]["0.weight"], states[2]["0.weight"])
    assert best.numbers == {"validation_loss": 1.0}


def test_without_validation_the_last_weights_stay(tmp_path: Path) -> None:
    _, best, lines = train(tmp_path / "run", FineTuning(epochs=2, log_every=1))
    assert best.weights == {}
    assert best.epoch == 0
    assert len(lines) == 6  # ceil(10 / 4) = 3 batches in an epoch


def test_another_measure_may_be_the_higher_the_better(tmp_path: Path) -> None:
    aucs = iter([0.5, 0.9, 0.9, 0.7])
    recipe = FineTuning(epochs=4, measure="auc", higher_is_better=True)
    _, best, _ = train(tmp_path / "run", recipe, validate=lambda network: {"auc": next(aucs)})
    assert (best.epoch, best.value, best.bad_epochs) == (2, 0.9, 2)


def test_validation_sees_evaluation_mode_without_gradient_and_training_goes_on_in_training_mode(tmp_path: Path) -> None:
    seen: list[bool] = []
    modes: list[bool] = []

    def loss(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        modes.append(network.training)
        return squared(network, batch)

    train(tmp_path / "run", FineTuning(epochs=3), validate=series([1.0, 2.0, 3.0], seen), loss=loss)
    assert seen == [False] * 3
    assert all(modes)


def test_learning_rate_function_gets_epoch_and_last_validation_loss(tmp_path: Path) -> None:
    asked: list[tuple[float, float | None]] = []

    def rate(epoch: float, validation_loss: float | None) -> float:
        asked.append((epoch, validation_loss))
        return 0.01 * (1 + epoch)

    recipe = FineTuning(epochs=2, log_every=1)
    _, _, lines = train(tmp_path / "a", recipe, learning_rate=rate, validate=series([0.5, 0.25]))
    assert asked == [(0, None)] * 3 + [(1, 0.5)] * 3
    assert [line["learning_rate"] for line in lines if "loss" in line] == pytest.approx([0.01] * 3 + [0.02] * 3)
    asked.clear()
    train(tmp_path / "b", FineTuning(epochs=2, rate_per_step=True), learning_rate=rate)
    assert [epoch for epoch, _ in asked] == pytest.approx([0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3])


def test_groups_have_their_own_scale_of_the_rate(tmp_path: Path) -> None:
    with Run(RunSettings(tmp_path / "run", device="cpu")) as run:
        network = run.prepare(network_of())
        groups = [
            {"params": network[0].parameters(), "lr_scale": 0.25},  # type: ignore[index]
            {"params": network[4].parameters()},  # type: ignore[index]
        ]
        optimizer = torch.optim.SGD(groups, lr=1.0)
        batches = Batches(load, 8, 4, seed=0)
        fine_tune(run, network, optimizer, batches, FineTuning(1), loss=squared, learning_rate=lambda epoch, loss: 0.08)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.08])


def test_views_change_the_batch_and_follow_from_seed_and_step(tmp_path: Path) -> None:
    def record(into: list[Tensor]) -> Callable[[dict[str, Tensor], torch.Generator], dict[str, Tensor]]:
        def views(batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
            into.append(torch.rand(3, generator=generator))
            return {"x": torch.zeros_like(batch["x"]), "y": batch["y"]}

        return views

    def loss(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        assert not batch["x"].any()
        return squared(network, batch)

    first: list[Tensor] = []
    second: list[Tensor] = []
    train(tmp_path / "a", FineTuning(2), views=record(first), loss=loss)
    train(tmp_path / "b", FineTuning(2), views=record(second), loss=loss)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len({tuple(draw.tolist()) for draw in first}) == 6


@pytest.mark.parametrize("stop", range(1, 12))
def test_resumed_training_is_the_undisturbed_one(tmp_path: Path, stop: int) -> None:
    """Also where it ends early (after 4 epochs of 3 steps), and with a schedule that looks at the validation loss."""

    def rate(epoch: float, validation_loss: float | None) -> float:
        return 0.05 if validation_loss is None else 0.01 * validation_loss

    def views(batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        return {**batch, "x": batch["x"] + 0.1 * torch.randn(batch["x"].shape, generator=generator)}

    def validate(network: nn.Module) -> Mapping[str, float]:
        x = torch.stack([torch.from_numpy(load(i, np.random.default_rng(0))["x"]) for i in range(6)])
        steps = network.state_dict()["1.num_batches_tracked"]
        # Lowest after the second epoch whatever the weights, which add less than 1.
        return {"validation_loss": (4.0, 2.0, 3.0, 5.0)[int(steps) // 3 - 1] + float(network(x).square().mean().tanh())}

    recipe = FineTuning(epochs=5, patience=1, log_every=1)
    common = {"learning_rate": rate, "validate": validate, "views": views}
    whole, best, lines = train(tmp_path / "whole", recipe, **common)
    assert (best.epoch, best.bad_epochs, lines[-1]["epoch"]) == (2, 2, 4)
    count = 0

    def failing(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        nonlocal count
        count += 1
        if count > stop:
            raise KeyboardInterrupt
        return squared(network, batch)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", recipe, **common, loss=failing)
    again, resumed, found = train(tmp_path / "run", recipe, resume=True, **common)
    assert (resumed.epoch, resumed.value, resumed.bad_epochs) == (best.epoch, best.value, best.bad_epochs)
    assert [{**line, "time": 0} for line in found] == [{**line, "time": 0} for line in lines]
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_resuming_a_training_that_has_ended_trains_no_further(tmp_path: Path) -> None:
    recipe = FineTuning(epochs=9, patience=0)
    first, best, lines = train(tmp_path / "run", recipe, validate=series([1.0, 2.0]))
    assert best.bad_epochs == 1
    again, resumed, found = train(tmp_path / "run", recipe, resume=True, validate=series([]))
    assert resumed.epoch == best.epoch == 1
    assert found == lines
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


@pytest.mark.parametrize(
    ("functions", "match"),
    [
        ({"validate": lambda network: {"auc": 1.0}}, "gives no validation_loss"),
        ({"validate": lambda network: {"validation_loss": math.nan}}, "validation_loss of epoch 1 is no number"),
        ({"loss": lambda network, batch: squared(network, batch) * math.nan}, "the loss of step 0 is no number"),
    ],
)
def test_what_is_no_number_is_pointed_out(tmp_path: Path, functions: dict[str, Any], match: str) -> None:
    with pytest.raises(SettingError, match=match):
        train(tmp_path / "run", FineTuning(2), **functions)


def test_no_epochs(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="0 epochs"):
        train(tmp_path / "run", FineTuning(0))


def test_step_generators_differ_between_steps_only(tmp_path: Path) -> None:
    with Run(RunSettings(tmp_path / "run", device="cpu")) as run:
        one, same, other = (torch.rand(4, generator=step_generator(run, step)) for step in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_clipped_gradients_have_the_limit_as_norm() -> None:
    long, short = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([{"params": [long]}, {"params": [short]}], lr=1.0)
    clip_gradients(optimizer, 5.0)
    long.grad, short.grad = torch.tensor([30.0, 0.0]), torch.tensor([0.0, 40.0])
    optimizer.step()
    assert torch.cat([long, short]).detach().tolist() == pytest.approx([-3.0, 0.0, 0.0, -4.0], rel=1e-5)
    long.grad, short.grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    with torch.no_grad():
        long.zero_()
        short.zero_()
    optimizer.step()
    assert torch.cat([long, short]).detach().tolist() == pytest.approx([-3.0, 0.0, 0.0, -4.0], rel=1e-5)
