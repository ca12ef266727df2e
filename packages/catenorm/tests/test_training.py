"""Batches, the warm-up, weights that are taken over, and what a training learns."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from catenorm import CateNormUNet, MSNet, SiteNetwork, WNet
from catenorm.cases import Case, load_cases
from catenorm.models import Model, build, initialise, load_model, plain_network, take_over
from catenorm.rows import divide, open_cases
from catenorm.settings import Cases, Network, Train, Training
from catenorm.training import SiteBatches, fit, parameter_ratio, train
from dart_core.run import Run
from dart_core.settings import RunSettings
from dart_core.testing import last_checkpoint


@pytest.fixture(scope="module")
def sites(cases: Cases) -> list[list[Case]]:
    training, _ = divide(open_cases(cases), None)
    return [load_cases(rows, cases, training=True) for rows in training.values()]


# Batches


def test_batches_are_ordered_by_site(sites: list[list[Case]]) -> None:
    batches = SiteBatches(sites, 2, augments=False, flips=False, seed=0)
    batch = batches.batch(0)
    assert batch["site"].tolist() == [0, 0, 1, 1]
    assert batch["image"].shape == (4, 3, 32, 32)
    assert batch["label"].shape == (4, 32, 32)
    places = set()
    for step in range(12):
        batch = batches.batch(step)
        for image, label, site in zip(batch["image"], batch["label"], batch["site"].tolist(), strict=True):
            found = [
                (n, z)
                for n, case in enumerate(sites[site])
                for z in range(1, len(case.image) - 1)
                if np.array_equal(case.image[z - 1 : z + 2], image) and np.array_equal(case.truth[z], label)
            ]
            assert len(found) == 1  # a slice with both neighbours, and its own labels
            places.add((site, *found[0]))
    assert len({(site, n) for site, n, _ in places}) == 6
    assert len(places) > 12


def test_every_case_once_per_round(sites: list[list[Case]]) -> None:
    batches = SiteBatches(sites, 1, augments=False, flips=False, seed=3)
    for part in batches.parts:
        order = [index for step in range(3) for _, index in part.plan(step)]
        assert sorted(order) == [0, 1, 2]


def test_batches_are_a_function_of_seed_and_step(sites: list[list[Case]]) -> None:
    one, two = (SiteBatches(sites, 1, True, True, seed=1).batch(7) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_batches_can_be_sent_to_loading_processes(sites: list[list[Case]]) -> None:
    """Spawned ones get them pickled; the grids of the files stay here."""
    batches = SiteBatches(sites, 1, True, True, seed=1)
    content = pickle.dumps(batches)
    sent = pickle.loads(content)
    for name, value in batches.batch(5).items():
        assert torch.equal(sent.batch(5)[name], value)
    assert len(content) < 20_000 + sum(case.image.nbytes + case.truth.nbytes for own in sites for case in own)


class Stopped(Exception):
    """Raised where batches would be made."""


@pytest.mark.parametrize(
    ("count", "classes", "options", "expected"),
    [
        (1, 2, {}, (4, True, True)),
        (2, 7, {}, (3, True, False)),  # left and right organs do not change sides (2.7)
        (3, 2, {}, (2, True, True)),
        (4, 3, {}, (2, True, False)),
        (2, 3, {"flip": "on"}, (3, True, True)),
        (2, 2, {"flip": "off"}, (3, True, False)),
        (1, 2, {"batch_size": 5, "augment": False}, (5, False, True)),
    ],
)
def test_slices_of_each_site_and_their_augmentation(
    count: int, classes: int, options: dict[str, Any], expected: tuple[int, bool, bool], cases: Cases, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    handed: list[Any] = []

    def made(*values: Any) -> None:
        handed.append(values)
        raise Stopped

    monkeypatch.setattr("catenorm.training.SiteBatches", made)
    model = Model(network("bn"), "bn", ("a",) * (classes - 1), ("s",) * count, cases)
    own = [[] for _ in range(count)]  # type: list[list[Case]]
    with Run(RunSettings(tmp_path / "run", device="cpu", seed=5)) as run, pytest.raises(Stopped):
        fit(run, build(model.network, classes, model.sites), own, model, Training(**options))
    assert handed == [(own, *expected, 5)]


# Weights that are taken over (2.6)


def network(method: Any, **options: Any) -> Network:
    return Network(method, width=4, blocks=(1, 2), **options)


def test_a_network_starts_from_the_plain_one() -> None:
    settings = network("catenorm")
    plain, own = plain_network(settings, 3), build(settings, 3, ("a", "b"))
    state = {name: value.clone() for name, value in own.state_dict().items()}
    assert take_over(own, plain.state_dict()) == sum(p.ndim == 4 for p in plain.parameters())
    for name, value in own.state_dict().items():
        assert torch.equal(value, plain.state_dict().get(name, state[name]))


def test_sites_and_both_networks_start_from_the_plain_one() -> None:
    plain = plain_network(network("bn"), 3)
    x = torch.randn(2, 3, 32, 32)
    plain(x)  # statistics
    plain.eval()
    dsbn = build(network("dsbn"), 3, ("a", "b"))
    assert initialise(dsbn, network("dsbn"), 3, plain.state_dict()) == sum(p.ndim == 4 for p in plain.parameters())
    assert isinstance(dsbn, SiteNetwork)
    assert torch.equal(dsbn.eval()(x, torch.tensor([0, 1])), plain(x))
    double = build(network("w-net"), 3, ())
    initialise(double, network("w-net"), 3, plain.state_dict())
    assert isinstance(double, WNet)
    double.eval()
    assert torch.equal(double(x), plain(x))
    assert torch.equal(double.second(x), plain(x))


def test_weights_of_other_shapes_are_left_out() -> None:
    wide = plain_network(dataclasses.replace(network("bn"), width=8), 3)
    assert take_over(plain_network(network("bn"), 3), wide.state_dict()) == 0


# The warm-up


def test_the_warm_up_is_the_training_of_the_plain_network(
    trained: dict[str, Path], tmp_path: Path, data: Any, tiny: Any
) -> None:
    """The same two steps whatever the method, and a file of what they end with."""
    networks = {name: load_model(trained[name] / "warmup") for name in ("catenorm", "w-net", "bn")}
    reference, model = networks["bn"]
    assert model.name == "bn warm-up"
    assert networks["catenorm"][1].network.method == "bn"
    for network_, _ in networks.values():
        for name, value in reference.state_dict().items():
            assert torch.equal(network_.state_dict()[name], value)


def test_a_run_goes_on_from_the_warm_up_of_another(trained: dict[str, Path], cases: Cases, tmp_path: Path) -> None:
    settings = Training(steps=1, warmup_steps=0, warm_start=trained["bn"] / "warmup", batch_size=1, learning_rate=0.0)
    run = RunSettings(tmp_path / "run", device="cpu", seed=1)
    train(Train(run, cases, Network(width=4), settings))
    found, model = load_model(tmp_path / "run")
    assert model.name == "catenorm 1-4"
    warm, _ = load_model(trained["bn"] / "warmup")
    for name, value in warm.named_parameters():
        assert torch.equal(found.get_parameter(name), value)


def test_a_new_adam_after_the_warm_up(sites: list[list[Case]], cases: Cases, tmp_path: Path) -> None:
    """The step after the warm-up is Adam's first: every touched weight moves by about the rate."""
    torch.manual_seed(0)
    model = Model(network("bn"), "bn", ("a",) * 6, ("CT", "CT-native"), cases)
    net = build(model.network, 7, model.sites)
    weights: list[dict[str, torch.Tensor]] = []
    with Run(RunSettings(tmp_path / "run", device="cpu", seed=0)) as run:
        net.register_forward_pre_hook(
            lambda *_: weights.append({n: p.detach().clone() for n, p in net.named_parameters()})
        )
        fit(run, net, sites, model, Training(steps=1, warmup_steps=3, batch_size=1, learning_rate=1e-3))
    last = {n: p.detach() for n, p in net.named_parameters()}
    moved = torch.cat([(last[n] - w).abs().flatten() for n, w in weights[-1].items() if w.ndim == 4])
    assert moved.max().item() == pytest.approx(1e-3, rel=1e-3)
    before = torch.cat([(weights[3][n] - w).abs().flatten() for n, w in weights[2].items() if w.ndim == 4])
    assert before.median() < 0.9 * moved.median()


def ms_net_run(
    dice: list[float], sites: list[list[Case]], cases: Cases, folder: Path, patch: pytest.MonkeyPatch, **options: Any
) -> list[float]:
    """The rate at every step of an MS-Net of two scanners whose batches have these hard Dice losses."""
    losses = iter(dice)
    patch.setattr("catenorm.training.hard_dice_loss", lambda *_: torch.tensor(next(losses)))
    model = Model(network("ms-net"), "ms-net", ("a",) * 6, ("CT", "CT-native"), cases)
    training = Training(steps=len(dice) - options.get("warmup_steps", 0), batch_size=1, log_every=1, **options)
    with Run(RunSettings(folder, device="cpu", seed=0)) as run:
        fit(run, build(model.network, 7, model.sites), sites, model, training)
    return [json.loads(line)["learning_rate"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_schedule_forgets_the_auxiliary_decoders(
    sites: list[list[Case]], cases: Cases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are good from the start, for a window of three steps and a third of the next; the universal decoder begins badly."""
    dice = [0.1] * 4 + [*(0.9 - 0.01 * step for step in range(3 * 9))]
    options = {"warmup_steps": 0, "ms_net_warmup": 4, "plateau_window": 3}
    assert set(ms_net_run(dice, sites, cases, tmp_path / "run", monkeypatch, **options)) == {1e-3}


def test_ms_net_starts_again_after_the_warm_up(
    sites: list[list[Case]], cases: Cases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the others: the rate, both Adams, and a file of the network (2.6)."""
    options = {"warmup_steps": 9, "ms_net_warmup": 0, "plateau_window": 1}
    rates = ms_net_run([0.5] * 12, sites, cases, tmp_path / "run", monkeypatch, **options)
    assert rates == [1e-3] * 7 + [5e-4] * 2 + [1e-3] * 3
    state = last_checkpoint(tmp_path / "run")["state"]
    for number in (0, 1):
        assert {float(own["step"]) for own in state[f"optimizer{number}"]["state"].values()} == {3.0}
    assert isinstance(load_model(tmp_path / "run" / "warmup")[0], MSNet)


@pytest.mark.parametrize(("method", "ratio"), [("catenorm", 1.0913), ("w-net", 2.0913), ("bn", 1.0)])
def test_parameter_ratio(method: Any, ratio: float, cases: Cases) -> None:
    settings = Network(method)
    model = Model(settings, "", ("prostate",), ("",), cases)
    with torch.device("meta"):
        _, found = parameter_ratio(model, build(settings, 2, ("",)))
    assert found == pytest.approx(ratio, abs=5e-5)


def test_what_a_run_writes(trained: dict[str, Path]) -> None:
    for method, keys in {
        "bn": {"loss"}, "catenorm": {"loss", "loss_first", "loss_second"}, "dsbn": {"loss"},
        "ms-net": {"loss_auxiliary", "loss_universal"}, "w-net": {"loss", "loss_first", "loss_second"},
    }.items():  # fmt: skip
        lines = [json.loads(line) for line in (trained[method] / "metrics.jsonl").read_text().splitlines()]
        assert len(lines) == 5
        assert {key for line in lines for key in line if key.startswith("loss")} == keys
        assert ("loss_second" in lines[1], "loss_second" in lines[2]) == (False, "loss_second" in keys)
        content = json.loads((trained[method] / "metrics.json").read_text())
        assert content["training_cases"] == 6
        assert content["organs"] == ["spleen", "left-kidney", "gallbladder", "liver", "stomach", "pancreas"]


# Learning one batch by heart


@pytest.mark.parametrize("method", ["catenorm", "bn"])
def test_overfit(method: Any, sites: list[list[Case]], cases: Cases, tmp_path: Path) -> None:
    """Three slices of one case are learnt by heart."""
    case = sites[0][0]
    middle = len(case.image) // 2
    short = dataclasses.replace(
        case, image=case.image[middle - 1 : middle + 2], label=case.truth[middle - 1 : middle + 2]
    )
    torch.manual_seed(0)
    model = Model(network(method), method, ("a",) * 6, ("CT",), cases)
    net = CateNormUNet(3, 7, model.network.blocks if method == "catenorm" else (), width=4)
    training = Training(steps=60, warmup_steps=0, batch_size=2, learning_rate=1e-2, augment=False, log_every=1)
    with Run(RunSettings(tmp_path / "run", device="cpu", seed=0)) as run:
        fit(run, net, [[short]], model, training)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    key = "loss_second" if method == "catenorm" else "loss"
    assert lines[0][key] > 1.5
    assert np.mean([line[key] for line in lines[-5:]]) < 0.45 * lines[0][key]
