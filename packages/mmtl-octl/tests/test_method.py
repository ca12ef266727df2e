"""The fine-tuning methods on random scans: what each changes, and how they are related (specification 4, 9)."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dart_core.adapt import SpotTUNet
from dart_core.errors import SettingError
from dart_core.nets import ResidualUNet2d
from dart_core.run import Run
from dart_core.settings import RunSettings, ScanSettings
from mmtl_octl import method as of_method
from mmtl_octl import save_history
from mmtl_octl.method import SEGMENTATION, Best, fine_tune, segmentation_loss, source_optimizer, train_source
from mmtl_octl.octl import OCTLSGD
from mmtl_octl.pools import make_pool, training_batches
from mmtl_octl.settings import Adaptation, Training

PLAIN = ScanSettings(Path("list.csv"), preprocessing="plain")
TRAINING = Training(width=2, epochs=2, batches=3, batch_size=4, drop_epoch=1, learning_rate=0.01, log_every=1)

Tune = Callable[..., Any]


@pytest.fixture
def source(make_scan: Any) -> ResidualUNet2d:
    torch.manual_seed(0)
    network = ResidualUNet2d(width=2)
    # Running statistics that are not those of a fresh network.
    network(torch.rand(4, 1, 16, 24))
    return network


@pytest.fixture
def tune(make_scan: Any, tmp_path: Path, source: ResidualUNet2d) -> Tune:
    """Fine-tune a copy of the source network; gives the network."""
    pools = {name: make_pool([make_scan(f"{name}{n}", site=name) for n in range(2)], PLAIN, 0) for name in "st"}
    runs = 0

    def run(
        schedule: str = "target",
        training: Training = TRAINING,
        history: Path | None = None,
        after: Any = None,
        settings: dict[str, Any] | None = None,
        **adaptation: Any,
    ) -> nn.Module:
        nonlocal runs
        runs += 1
        mixed: Any = schedule
        batches = training_batches(None if schedule == "target" else pools["s"], pools["t"], training, PLAIN, 3, mixed)
        with Run(RunSettings(tmp_path / f"run{runs}", device="cpu", seed=3, **(settings or {}))) as entered:
            return fine_tune(
                entered,
                copy.deepcopy(source),
                batches,
                SEGMENTATION,
                training,
                Adaptation(**adaptation),
                history,
                after,
            )

    return run


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def changed(one: nn.Module, other: nn.Module) -> set[str]:
    state = other.state_dict()
    return {name for name, value in one.state_dict().items() if not torch.equal(value, state[name])}


# Relations between the methods


def test_mmtl_with_a_constant_full_share_is_fta(tune: Tune, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tune(method="fta")
    assert not same(plain, tune("paper", method="mmtl"))
    monkeypatch.setattr("mmtl_octl.schedules.target_count", lambda epoch, epochs, batch_size, *_: batch_size)
    assert same(plain, tune("paper", method="mmtl"))


def test_fta_mu099_is_octl_without_history(tune: Tune, source: ResidualUNet2d, tmp_path: Path) -> None:
    control = tune(method="fta", momentum=0.99)
    network = copy.deepcopy(source)
    optimizer = OCTLSGD(network.parameters(), 1.0)
    save_history(optimizer, network, tmp_path / "zeros.safetensors")
    assert same(control, tune(method="octl", history=tmp_path / "zeros.safetensors"))
    assert not same(control, tune(method="fta"))


def test_octl_without_momentum_is_gradient_descent(tune: Tune, source: ResidualUNet2d, tmp_path: Path) -> None:
    """Specification 9: whatever the history."""
    network = copy.deepcopy(source)
    buffers = [torch.ones_like(parameter) for parameter in network.parameters()]
    save_history(OCTLSGD(network.parameters(), 1.0, history=buffers), network, tmp_path / "history.safetensors")
    descent = tune(method="octl", momentum=0.0, history=tmp_path / "history.safetensors")
    assert same(descent, tune(method="fta", momentum=0.0))


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_octl_starts_with_the_sources_history(tune: Tune, source: ResidualUNet2d, tmp_path: Path, name: Any) -> None:
    network = copy.deepcopy(source)
    optimizer = source_optimizer(network.parameters(), name, 0.01)
    network(torch.rand(4, 1, 16, 24)).square().mean().backward()
    optimizer.step()
    save_history(optimizer, network, tmp_path / "history.safetensors")
    training = Training(width=2, epochs=2, batches=3, batch_size=4, learning_rate=0.01, optimizer=name)
    with_history = tune(method="octl", history=tmp_path / "history.safetensors", training=training)
    assert not same(with_history, tune(method="fta", training=training))
    others = {"sgd": {"momentum": 0.5}, "adam": {"start_step": 0}}
    assert not same(
        with_history, tune(method="octl", history=tmp_path / "history.safetensors", training=training, **others[name])
    )


def test_octl_needs_a_history(tune: Tune) -> None:
    with pytest.raises(SettingError, match="octl needs the history"):
        tune(method="octl")


def test_target_trains_like_the_source_training(
    tune: Tune, source: ResidualUNet2d, make_scan: Any, tmp_path: Path
) -> None:
    network = copy.deepcopy(source)
    pool = make_pool([make_scan(f"t{n}", site="t") for n in range(2)], PLAIN, 0)
    with Run(RunSettings(tmp_path / "source", device="cpu", seed=3)) as run:
        batches = training_batches(None, pool, TRAINING, PLAIN, 3, "target")
        train_source(run, network, batches, SEGMENTATION, TRAINING)
    assert same(network, tune(method="target"))


# What each method changes


def test_ftf_trains_the_first_layers_and_all_running_statistics(tune: Tune, source: ResidualUNet2d) -> None:
    """Specification 4.4 and 9: 7 tensors change (4,816 numbers at width 16), and statistics everywhere."""
    tuned = tune(method="ftf")
    names = changed(tuned, source)
    parameters = {name for name, _ in source.named_parameters()} & names
    assert parameters == {
        "init_path.0.weight", "init_path.1.first.norm.weight", "init_path.1.first.norm.bias",
        "init_path.1.first.conv.weight", "init_path.1.second.norm.weight", "init_path.1.second.norm.bias",
        "init_path.1.second.conv.weight",
    }  # fmt: skip
    statistics = {name for name in source.state_dict() if name.endswith("running_mean")}
    assert statistics <= names
    full = ResidualUNet2d(width=16)
    SEGMENTATION.freeze_first(full)
    assert sum(p.numel() for p in full.parameters() if p.requires_grad) == 4816


def test_head_of_li_is_the_output_layer() -> None:
    network = ResidualUNet2d(width=4)
    head = {name for name, _ in network.out_path[3:].named_parameters(prefix="")}
    assert {f"out_path.{int(n.split('.')[0])}.{n.split('.', 1)[1]}" for n in head} == set(SEGMENTATION.head)


@pytest.mark.parametrize("form", ["all", "li2018"])
def test_l2sp_holds_the_weights_back(tune: Tune, source: ResidualUNet2d, form: Any) -> None:
    def distance(network: nn.Module) -> float:
        reference = source.state_dict()
        return sum(float((p.detach() - reference[n]).square().sum()) for n, p in network.named_parameters())

    training = Training(width=2, epochs=4, batches=5, batch_size=4, learning_rate=0.02)
    free = distance(tune(method="fta", training=training))
    held = distance(tune(method="l2sp", training=training, l2sp=form, alpha=2.0))
    assert held < 0.6 * free
    assert same(tune(method="l2sp", alpha=0.0, beta=0.0, l2sp=form), tune(method="fta"))


def test_l2sp_does_not_change_the_first_step(tune: Tune) -> None:
    """Specification 9: at theta = theta_0 value and gradient are those of plain fine-tuning."""
    training = Training(width=2, epochs=1, batches=1, batch_size=4)
    assert same(tune(method="l2sp", training=training), tune(method="fta", training=training))


def test_spottune_trains_both_networks_and_leaves_the_frozen_weights(tune: Tune, source: ResidualUNet2d) -> None:
    tuned = tune(method="spottune")
    assert isinstance(tuned, SpotTUNet)
    assert not tuned.switch_top_skip
    frozen = {name for name in changed(tuned.frozen, source) if not name.endswith(("mean", "var", "tracked"))}
    assert frozen == set()
    assert {"init_path.0.weight", "out_path.4.bias"} <= changed(tuned.fine_tuned, source)
    torch.manual_seed(3)
    assert changed(tuned.policy, SpotTUNet(source).policy)


def test_spottune_refuses_accumulation(tune: Tune) -> None:
    with pytest.raises(SettingError, match="--accumulate"):
        tune(method="spottune", settings={"accumulate": 2})


# The loop


def test_loss_is_the_mean_over_all_pixels() -> None:
    logits = torch.tensor([[[[0.0, 2.0]]], [[[-1.0, 3.0]]]])
    mask = torch.tensor([[[[1.0, 0.0]]], [[[0.0, 1.0]]]])
    expected = torch.nn.functional.softplus(torch.tensor([0.0, 2.0, -1.0, -3.0])).mean()
    torch.testing.assert_close(segmentation_loss(logits, {"mask": mask}), expected)


def test_log_holds_rate_and_share(tune: Tune, tmp_path: Path) -> None:
    tune("paper", method="mmtl")
    lines = [json.loads(line) for line in (tmp_path / "run1" / "metrics.jsonl").read_text().splitlines()]
    assert [line["target_samples"] for line in lines] == [2, 2, 2, 4, 4, 4]
    assert [line["learning_rate"] for line in lines] == pytest.approx([0.01] * 3 + [0.001] * 3)
    tune(method="fta")
    assert "target_samples" not in (tmp_path / "run2" / "metrics.jsonl").read_text()


def test_after_each_epoch(tune: Tune, source: ResidualUNet2d) -> None:
    seen = []

    def after(epoch: int, network: nn.Module) -> float:
        seen.append((epoch, copy.deepcopy(network)))
        return -float(epoch)

    last = tune(method="fta", after=after)
    assert [epoch for epoch, _ in seen] == [0, 1, 2]
    assert same(seen[0][1], source)
    assert same(seen[2][1], last)
    best = tune(method="fta", after=after, keep="best")
    assert same(best, seen[1][1])


def test_best_keeps_the_first_of_equal_ones(source: ResidualUNet2d) -> None:
    best, other = Best(), copy.deepcopy(source)
    best.offer(0.5, 1, source)
    nn.init.zeros_(other.init_path[0].weight)
    best.offer(0.5, 2, other)
    best.restore(other)
    assert same(other, source)
    again = Best()
    again.load_state_dict(copy.deepcopy(best.state_dict()))
    assert (again.score, again.epoch) == (0.5, 1)
    with pytest.raises(SettingError, match="--keep best"):
        Best().restore(other)


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam)])
def test_optimisers_of_the_paper(name: Any, kind: type) -> None:
    (group,) = source_optimizer([nn.Parameter(torch.zeros(1))], name, 1e-3).param_groups
    assert group["weight_decay"] == 0
    if name == "sgd":
        assert (group["momentum"], group["nesterov"], group["dampening"]) == (0.9, True, 0)
    else:
        assert (group["betas"], group["eps"]) == ((0.9, 0.999), 1e-8)
    assert of_method.POLICY_LEARNING_RATE == 1e-2
