"""Schedule, optimisers, mini-batches and the loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adagrad_unet import AvaGrad, GenericUNet2d, poly_lr
from adagrad_unet import settings as of
from adagrad_unet.baselines import RUNS, printed_table
from adagrad_unet.cases import Case, Recipe
from adagrad_unet.method import (
    _start_anew,
    gradient_clipper,
    make_optimizer,
    run_name,
    train_network,
    training_batches,
)
from adagrad_unet.plan import Plan
from dart_core.data.datalist import Row
from dart_core.data.nnunet import OUTSIDE
from dart_core.run import Run
from dart_core.settings import RunSettings


def recipe(
    batch: int = 6, patch: tuple[int, int] = (16, 16), labels: tuple[str, ...] = ("a", "b"), **changes: Any
) -> Recipe:
    plan = Plan(patch, batch, ((2, 2), (2, 2)), ((3, 3),) * 3, (4, 8, 16))
    values = {
        "spacing": (1.0, 1.0, 1.0), "slice_axis": 0, "nonzero": False, "channels": 1, "labels": labels,
        "orientation": "RAS", "merge_labels": False, "plan": plan,
    }  # fmt: skip
    return Recipe(**{**values, **changes})


def cases(count: int = 3, shape: tuple[int, int, int] = (5, 20, 14)) -> list[Case]:
    """Label 1 is a square in slice 2, label 2 a pixel in slice 4 of the first case only; the image shows the labels."""
    found = []
    for number in range(count):
        labels = np.zeros(shape, np.int8)
        labels[2, 4:9, 3:7] = 1
        if number == 0:
            labels[4, 15, 12] = 2
        image = np.random.default_rng(number).normal(size=(1, *shape)).astype(np.float32) * 0.1 + labels
        found.append(Case(Row(Path(f"{number}.nii")), image, labels))
    return found


# Schedule


def test_poly_lr():
    assert poly_lr(0, 50, 10.0) == 10.0
    assert poly_lr(50, 50, 10.0) == 0.0
    assert poly_lr(25, 50, 10.0) == pytest.approx(5.35887, rel=1e-6)
    assert poly_lr(3.0, 4, 2.0, exponent=2) == 0.125
    epochs = np.arange(5)
    np.testing.assert_allclose(poly_lr(epochs, 4, 0.01), [poly_lr(int(e), 4, 0.01) for e in epochs])
    torch.testing.assert_close(poly_lr(torch.arange(5.0), 4, 0.01), torch.tensor(poly_lr(epochs, 4, 0.01)).float())


@pytest.mark.parametrize(("step", "total"), [(-1, 5), (6, 5), (0, 0), (np.array([1, 9]), 5)])
def test_epochs_outside_the_schedule(step, total):
    with pytest.raises(ValueError, match="epoch"):
        poly_lr(step, total, 0.1)


# Optimisers


def test_optimisers_of_the_paper():
    w = [nn.Parameter(torch.ones(3))]
    sgd = make_optimizer(w, of.Optimisation("sgd")).param_groups[0]
    assert (sgd["lr"], sgd["momentum"], sgd["nesterov"], sgd["weight_decay"]) == (0.01, 0.99, True, 3e-5)
    adam = make_optimizer(w, of.Optimisation("adam")).param_groups[0]
    assert (adam["lr"], adam["betas"], adam["eps"], adam["amsgrad"]) == (3e-4, (0.9, 0.999), 1e-8, True)
    control = make_optimizer(w, of.Optimisation("sgdm-10")).param_groups[0]
    assert (control["lr"], control["momentum"], control["dampening"], control["nesterov"]) == (10, 0.9, 0.9, False)
    ours = make_optimizer(
        w, of.Optimisation("avagrad", eps=0.2, variant="printed", norm_scope="tensor", decoupled=True)
    )
    assert isinstance(ours, AvaGrad)
    group = ours.param_groups[0]
    assert (group["lr"], group["eps"], group["weight_decay"], group["decoupled"]) == (10, 0.2, 3e-5, True)
    assert (group["variant"], group["norm_scope"]) == ("printed", "tensor")


def test_the_control_is_avagrad_without_adaptivity():
    """With a huge eps, printed AvaGrad differs from the control only by PyTorch's first momentum, which is undampened."""
    torch.manual_seed(0)
    w, u = (nn.Parameter(torch.ones(5, dtype=torch.float64)) for _ in range(2))
    ours = AvaGrad([w], 10.0, eps=1e8, variant="printed")
    control = make_optimizer([u], of.Optimisation("sgdm-10", weight_decay=0.0))
    gradients = torch.randn(5, 5, dtype=torch.float64)
    for g in gradients:
        w.grad, u.grad = g.clone(), g.clone()
        ours.step()
        control.step()
    first = 10 * 0.9 * gradients[0] * sum(0.9**k for k in range(5))
    torch.testing.assert_close(u.detach(), w.detach() - first, rtol=1e-6, atol=1e-6)


def test_names_of_runs():
    assert {name: run_name(training) for name, training in RUNS.items()} == {name: name for name in RUNS}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"eps": 1e6}, "AG-50 (eps 1e+06)"),
        ({"variant": "printed", "norm_scope": "tensor"}, "AG-50 (variant printed, norm scope tensor)"),
        ({"decoupled": True, "learning_rate": 0.5}, "AG-50 (learning rate 0.5, decoupled)"),
        ({"learning_rate": 10.0}, "AG-50"),  # the default written out
        ({"optimizer": "sgd", "learning_rate": 10.0}, "S-50 (learning rate 10)"),
        ({"optimizer": "adam", "weight_decay": 0.0}, "A-50 (weight decay 0)"),
    ],
)
def test_names_say_what_departs_from_the_defaults(changes, name):
    assert run_name(of.Training(of.Optimisation(**changes))) == name
    short = name.partition(" ")
    without = run_name(of.Training(of.Optimisation(**changes), augmentation=False))
    assert without == f"{short[0]}-noAug{short[1]}{short[2]}"


def test_printed_tables():
    assert {row["method"]: row["GE15"] for row in printed_table("table1")}["AG-1000"] == 0.8181
    assert printed_table("table2")[0]["RV_B Test"] == 0.8635
    assert [row["method"] for row in printed_table("table3")] == [
        "S-1000-noAug",
        "S-25-noAug",
        "A-25-noAug",
        "AG-25-noAug",
    ]
    assert set(RUNS) >= {str(row["method"]) for name in ("table1", "table2", "table3") for row in printed_table(name)}
    with pytest.raises(ValueError, match="no printed table 'table4'"):
        printed_table("table4")


def test_gradients_are_clipped_before_the_step():
    w = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([w], lr=1.0)
    optimizer.register_step_pre_hook(gradient_clipper([w], 12.0))
    w.grad = torch.full((4,), 300.0)
    optimizer.step()
    assert w.norm().item() == pytest.approx(12, rel=1e-5)
    w.data.zero_()
    w.grad = torch.full((4,), 2.0)
    optimizer.step()
    assert w.norm().item() == pytest.approx(4)


# Mini-batches


def test_batches_are_whole_and_follow_from_seed_and_step():
    one, other = (training_batches(cases(), recipe(), 7, (20, 20)) for _ in range(2))
    for step in (0, 5):
        first, second = one.batch(step), other.batch(step)
        assert first["image"].shape == (6, 1, 20, 20)
        assert first["labels"].shape == (6, 20, 20)
        assert first["labels"].dtype == torch.int8
        for name in first:
            assert torch.equal(first[name], second[name])
    assert not torch.equal(one.batch(0)["image"], one.batch(1)["image"])
    assert sorted(sample for _, sample in one.plan(3)) == list(range(6))


def test_image_and_labels_are_cut_alike():
    batch = training_batches(cases(), recipe(), 0, (24, 24)).batch(0)
    outside = batch["labels"] == OUTSIDE
    assert outside.any()
    assert not batch["image"][:, 0][outside].any()
    shown = batch["image"][:, 0].round()[~outside]
    assert torch.equal(shown, batch["labels"][~outside].float())


@pytest.mark.parametrize(("size", "forced"), [(50, 16), (2, 1), (6, 2), (1, 0)])
def test_share_of_forced_foreground(size, forced):
    """round(0.67 B) random samples, the others show foreground; 1 in 5 slices of each case does by itself."""
    batches = training_batches(cases(), recipe(size), 1, (16, 16))
    shown = np.zeros(size)
    for step in range(30):
        order = [slot for _, slot in batches.plan(step)]
        here = (batches.batch(step)["labels"] > 0).flatten(1).any(1).numpy()
        shown[order] += here
    assert (shown == 30).sum() == forced
    assert (shown[size - forced :] == 30).all()


def test_classes_and_slices_are_drawn_uniformly():
    """The lone pixel of label 2 comes up in half of the forced patches of its case, though label 1 is 20 times as large."""
    batches = training_batches(cases(1), recipe(100, patch=(8, 8)), 3, (8, 8))
    labels = torch.cat([batches.batch(step)["labels"] for step in range(6)])
    alone = (labels == 2).flatten(1).any(1).sum().item()
    forced = 6 * 33
    assert 0.4 * forced < alone < 0.6 * forced + 600 * 0.2


def test_forced_patches_are_centred_and_held_back_at_the_lower_border_only():
    only = cases(1)
    assert only[0].labels is not None
    only[0].labels[:] = 0
    only[0].labels[1, 19, 13] = 1
    batch = training_batches(only, recipe(3, patch=(8, 8)), 0, (8, 8)).batch(0)
    places = (batch["labels"] == 1).nonzero()
    # In the patch's middle, reaching beyond the upper border.
    assert [4, 4] in places[:, 1:].tolist()
    only[0].labels[:] = 0
    only[0].labels[1, 0, 1] = 1
    batch = training_batches(only, recipe(3, patch=(8, 8)), 0, (8, 8)).batch(0)
    assert [0, 1] in (batch["labels"] == 1).nonzero()[:, 1:].tolist()


def test_a_case_without_foreground_is_drawn_at_random():
    empty = cases(1)
    assert empty[0].labels is not None
    empty[0].labels[:] = 0
    assert not (training_batches(empty, recipe(), 0, (16, 16)).batch(0)["labels"] > 0).any()


def test_random_patches_reach_beyond_the_slice_by_what_was_asked_for_only():
    """A slice as large as the patch, loaded with a margin of 5: it starts 2 or 3 pixels outside."""
    whole = cases(1, (5, 16, 16))
    batches = training_batches(whole, recipe(40), 0, (21, 21))
    starts = set()
    for step in range(20):
        inside = batches.batch(step)["labels"] != OUTSIDE
        starts |= {
            int(rows.nonzero()[0]) for rows, lone in zip(inside.any(2), batches.plan(step), strict=True) if lone[1] < 27
        }
    assert starts == {2, 3}


# The loop


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def run_training(out: Path, training: of.Training, validation: bool = True, seed: int = 0, labels=("a", "b")):
    own, network = recipe(labels=labels), None
    with Run(RunSettings(out, device="cpu", seed=seed)) as run:
        network = GenericUNet2d(1, own.classes, own.plan.pool, own.plan.conv, own.plan.features)
        updates, rates = train_network(run, network, cases(), cases() if validation else [], own, training)
    return network, updates, rates


def test_schedule_and_log(tmp_path):
    training = of.Training(of.Optimisation("avagrad"), epochs=3, batches=2, validation_batches=2, log_every=1)
    network, updates, rates = run_training(tmp_path / "run", training)
    logged = lines(tmp_path / "run")
    rates_logged = [line["learning_rate"] for line in logged if "learning_rate" in line]
    np.testing.assert_allclose(rates_logged, np.repeat([poly_lr(e, 3, 10.0) for e in range(3)], 2))
    epochs = [line for line in logged if "epoch" in line]
    assert [line["epoch"] for line in epochs] == [0, 1, 2]
    assert all(0 <= line["validation_dice"] <= 1 and "validation_loss" in line for line in epochs)
    assert epochs[-1]["rate_p50"] == pytest.approx(rates["rate_p50"])
    assert updates.recorded == 6
    # Two outputs: the lower one has weight 0 and is neither trained nor recorded.
    assert "seg_outputs.0" not in updates.layers
    assert "seg_outputs.1" in updates.layers
    assert network.training


def test_without_validation_and_recording(tmp_path):
    training = of.Training(of.Optimisation("sgd"), epochs=1, batches=2, record_every=0, augmentation=False)
    _, updates, rates = run_training(tmp_path / "run", training, validation=False)
    assert updates.recorded == 0
    assert rates == {}
    assert "validation_dice" not in lines(tmp_path / "run")[-1]


def test_a_run_can_be_repeated(tmp_path):
    training = of.Training(of.Optimisation("adam"), epochs=1, batches=3, validation_batches=1)
    one, other = (run_training(tmp_path / name, training)[0] for name in ("a", "b"))
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
    third = run_training(tmp_path / "c", training, seed=1)[0]
    assert not torch.equal(next(one.parameters()), next(third.parameters()))


def test_sgd_that_has_found_nothing_starts_anew(tmp_path, monkeypatch):
    """nnU-Net: new weights and momentum 0.95 where the validation Dice is 0 after epoch 100 (here 1)."""
    monkeypatch.setattr("adagrad_unet.method.RESET_EPOCH", 1)
    seen: list[tuple[float, float]] = []
    training = of.Training(of.Optimisation("sgd", learning_rate=0.0), epochs=3, batches=1, validation_batches=1)
    started = GenericUNet2d.initialise
    monkeypatch.setattr(GenericUNet2d, "initialise", lambda self: (seen.append((0, 0)), started(self))[1])
    monkeypatch.setattr("adagrad_unet.method._validate", lambda *arguments: {"validation_dice": 0.0})
    made: list[torch.optim.Optimizer] = []

    def remember(*arguments: Any) -> torch.optim.Optimizer:
        made.append(make_optimizer(*arguments))
        return made[-1]

    monkeypatch.setattr("adagrad_unet.method.make_optimizer", remember)
    run_training(tmp_path / "a", training)
    assert len(seen) == 2
    assert made[0].param_groups[0]["momentum"] == 0.95
    run_training(tmp_path / "b", of.Training(of.Optimisation("avagrad"), epochs=3, batches=1, validation_batches=1))
    assert len(seen) == 3  # the other optimisers go on


def test_all_processes_start_anew_with_the_same_weights():
    """Each has a generator of its own, which the new start leaves as it was."""

    def weights(own: int, seed: int, step: int) -> Tensor:
        torch.manual_seed(own)
        network = GenericUNet2d(1, 2, ((2, 2),), ((3, 3),) * 2, (4, 8))
        before = torch.get_rng_state()
        _start_anew(network, make_optimizer(network.parameters(), of.Optimisation("sgd")), seed, step)
        assert torch.equal(torch.get_rng_state(), before)
        return nn.utils.parameters_to_vector(network.parameters()).detach()

    first = weights(1, 7, 100)
    assert torch.equal(weights(2, 7, 100), first)
    assert not torch.equal(weights(1, 8, 100), first)
    assert not torch.equal(weights(1, 7, 101), first)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eps": 0.0}, "--eps is 0"),
        ({"weight_decay": -1.0}, "--weight-decay is -1"),
        ({"learning_rate": -1.0}, "--learning-rate is -1"),
        ({"optimizer": "sgd", "decoupled": True}, "--decoupled is for avagrad, not sgd"),
        ({"decoupled": True, "weight_decay": 0.2}, "--decoupled at --learning-rate 10 multiplies weights by -1"),
    ],
)
def test_settings_that_cannot_be(values, message):
    with pytest.raises(ValueError, match=message):
        of.Optimisation(**values)


@pytest.mark.parametrize("values", [{"epochs": 0}, {"clip": 0.0}, {"batches": 0}, {"record_every": -1}])
def test_training_settings_that_cannot_be(values):
    with pytest.raises(ValueError, match="--"):
        of.Training(**values)
