"""OCTL's optimisers against plain loops and the closed forms of specification 9, and the history file."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dart_core.checkpoint import load_checkpoint, load_weights, save_checkpoint, save_tensors
from dart_core.errors import CheckpointError
from mmtl_octl import OCTLSGD, OCTLAdam, load_history, save_history

SHAPES = ((3, 2), (4,), (2, 1, 3))


def parameters(seed: int = 0, dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in SHAPES]


def like(params, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in params]


def steps(optimizer, params, count: int, first_seed: int = 100) -> None:
    for step in range(count):
        for parameter, gradient in zip(params, like(params, first_seed + step), strict=True):
            parameter.grad = gradient
        optimizer.step()


def values(params) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in params])


def flat_gradients(params, count: int, first_seed: int = 100) -> list[np.ndarray]:
    return [np.concatenate([g.numpy().ravel() for g in like(params, first_seed + step)]) for step in range(count)]


# SGD


def test_sgd_is_algorithm_2() -> None:
    params = parameters()
    history = like(params, 7)
    theta, h = values(params), values(history)
    steps(OCTLSGD(params, 0.03, 0.99, history), params, 5)
    for gradient in flat_gradients(params, 5):
        h = 0.99 * h + gradient
        theta = theta - 0.03 * h
    np.testing.assert_allclose(values(params), theta, rtol=1e-12)


def test_sgd_float32_agrees_with_the_formula() -> None:
    params = parameters(dtype=torch.float32)
    history = like(params, 7)
    theta, h = values(params).astype(np.float64), values(history).astype(np.float64)
    steps(OCTLSGD(params, 1e-3, history=history), params, 4)
    for gradient in flat_gradients(params, 4):
        h = 0.99 * h + gradient
        theta = theta - 1e-3 * h
    assert params[0].dtype == torch.float32
    np.testing.assert_allclose(values(params), theta, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 10, 4000])
def test_sgd_without_gradient_coasts(count: int) -> None:
    """theta_T = theta_0 - lr H_0 mu (1 - mu^T) / (1 - mu), in the end -99 lr H_0."""
    params = parameters()
    history, theta = like(params, 7), values(params)
    optimizer = OCTLSGD(params, 0.01, history=history)
    for parameter in params:
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(count):
        optimizer.step()
    reach = 0.99 * (1 - 0.99**count) / (1 - 0.99)
    np.testing.assert_allclose(values(params), theta - 0.01 * values(history) * reach, rtol=1e-9)
    if count == 4000:
        np.testing.assert_allclose(values(params), theta - 0.01 * 99 * values(history), rtol=1e-9)


def test_sgd_without_history_is_momentum_sgd() -> None:
    ours, theirs = parameters(), parameters()
    steps(OCTLSGD(ours, 0.02), ours, 6)
    steps(torch.optim.SGD(theirs, 0.02, momentum=0.99), theirs, 6)
    np.testing.assert_array_equal(values(ours), values(theirs))


def test_sgd_with_momentum_0_is_gradient_descent() -> None:
    ours, theirs = parameters(), parameters()
    steps(OCTLSGD(ours, 0.02, 0.0, like(ours, 7)), ours, 3)
    steps(torch.optim.SGD(theirs, 0.02), theirs, 3)
    np.testing.assert_array_equal(values(ours), values(theirs))


# Adam


def adam(theta, m, v, gradients, lr, b1, b2, eps, offset):
    for t, g in enumerate(gradients, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        theta = theta - lr * (m / (1 - b1 ** (t + offset))) / (np.sqrt(v / (1 - b2 ** (t + offset))) + eps)
    return theta


def moments(params) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(0.1 * m, 0.01 * v.square()) for m, v in zip(like(params, 7), like(params, 8), strict=True)]


@pytest.mark.parametrize(("betas", "offset"), [((0.99, 0.999), 100), ((0.9, 0.999), 0), ((0.99, 0.999), 6000)])
def test_adam_is_algorithm_3(betas, offset: int) -> None:
    params = parameters()
    history, theta = moments(params), values(params)
    steps(OCTLAdam(params, 1e-3, betas, history=history, start_step=offset), params, 5)
    m, v = (values([pair[i] for pair in history]) for i in (0, 1))
    expected = adam(theta, m, v, flat_gradients(params, 5), 1e-3, *betas, 1e-8, offset)
    np.testing.assert_allclose(values(params), expected, rtol=1e-12)


def test_adam_first_step_without_gradient() -> None:
    params = parameters()
    history, theta = moments(params), values(params)
    for parameter in params:
        parameter.grad = torch.zeros_like(parameter)
    OCTLAdam(params, 1e-3, history=history).step()
    m, v = (values([pair[i] for pair in history]) for i in (0, 1))
    first, second = 1 - 0.99**101, 1 - 0.999**101
    assert (round(first, 4), round(second, 4)) == (0.6376, 0.0961)
    np.testing.assert_allclose(
        values(params), theta - 1e-3 * (0.99 * m / first) / (np.sqrt(0.999 * v / second) + 1e-8), rtol=1e-12
    )


def test_adam_fresh_is_adam() -> None:
    ours, theirs = parameters(), parameters()
    steps(OCTLAdam(ours, 1e-2, start_step=0), ours, 6)
    steps(torch.optim.Adam(theirs, 1e-2, betas=(0.99, 0.999)), theirs, 6)
    np.testing.assert_array_equal(values(ours), values(theirs))


def test_adam_keeps_the_counters_it_is_given() -> None:
    params = parameters()
    history = [(m, v, 6000) for m, v in moments(params)]
    optimizer = OCTLAdam(params, 1e-3, history=history, start_step="keep")
    assert {float(optimizer.state[p]["step"]) for p in params} == {6000}
    with pytest.raises(ValueError, match="parameter 0 come without the step counter"):
        OCTLAdam(params, 1e-3, history=moments(params), start_step="keep")


# Both


@pytest.mark.parametrize("kind", [OCTLSGD, OCTLAdam])
def test_history_is_never_changed_in_place(kind) -> None:
    params = parameters()
    history = like(params, 7) if kind is OCTLSGD else moments(params)
    before = copy.deepcopy(history)
    steps(kind(params, 0.1, history=history), params, 3)
    assert str(history) == str(before)


@pytest.mark.parametrize("kind", [OCTLSGD, OCTLAdam])
def test_bad_history(kind) -> None:
    params = parameters()
    history = like(params, 7) if kind is OCTLSGD else moments(params)
    with pytest.raises(ValueError, match="2 entries for 3 parameters"):
        kind(params, 0.1, history=history[:2])
    with pytest.raises(ValueError, match=r"parameter 0 has shape \(2, 1, 3\), the parameter \(3, 2\)"):
        kind(params, 0.1, history=history[::-1])


@pytest.mark.parametrize("start", [-1, 1.5, "fresh"])
def test_bad_start_step(start) -> None:
    with pytest.raises(ValueError, match="start_step"):
        OCTLAdam(parameters(), 0.1, start_step=start)


@pytest.mark.parametrize("kind", [OCTLSGD, OCTLAdam])
def test_parameter_groups_share_one_history(kind) -> None:
    params, grouped = parameters(), parameters()
    history = like(params, 7) if kind is OCTLSGD else moments(params)
    steps(kind(params, 0.1, history=history), params, 2)
    groups = [{"params": grouped[:1]}, {"params": grouped[1:]}]
    steps(kind(groups, 0.1, history=history), grouped, 2)
    np.testing.assert_array_equal(values(params), values(grouped))


@pytest.mark.parametrize("kind", [OCTLSGD, OCTLAdam])
def test_state_makes_a_round_trip_and_the_run_goes_on_exactly(kind, tmp_path: Path) -> None:
    params = parameters()
    history = like(params, 7) if kind is OCTLSGD else moments(params)
    optimizer = kind(params, 0.05, history=history)
    steps(optimizer, params, 3)
    save_checkpoint(tmp_path / "state.pt", {"optimizer": optimizer.state_dict(), "params": [p.data for p in params]})
    steps(optimizer, params, 3, first_seed=200)
    saved = load_checkpoint(tmp_path / "state.pt")
    resumed = [nn.Parameter(p) for p in saved["params"]]
    again = kind(resumed, 9.0)
    again.load_state_dict(saved["optimizer"])
    steps(again, resumed, 3, first_seed=200)
    np.testing.assert_array_equal(values(resumed), values(params))


# History file


def network(order: tuple[str, ...] = ("first", "second", "third")) -> nn.Sequential:
    parts = {"first": nn.Linear(3, 4), "second": nn.Linear(4, 4, bias=False), "third": nn.Linear(4, 2)}
    model = nn.Sequential(OrderedDict((name, parts[name]) for name in order)).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            seed = sum(map(ord, name))
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)).double())
    return model


def train(model: nn.Sequential, optimizer, count: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        for name in ("first", "second", "third"):
            x = model.get_submodule(name)(x)
        x.square().mean().backward()
        optimizer.step()


def source_training(kind: str, path: Path, model: nn.Sequential | None = None) -> torch.optim.Optimizer:
    model = network() if model is None else model
    optimizer: torch.optim.Optimizer
    if kind == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), 1e-2, momentum=0.9, nesterov=True)
    else:
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    train(model, optimizer, 4)
    save_history(optimizer, model, path)
    return optimizer


def fine_tuning(kind: str, model: nn.Module, **options) -> torch.optim.Optimizer:
    return OCTLSGD(model.parameters(), 1e-3) if kind == "sgd" else OCTLAdam(model.parameters(), 1e-3, **options)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_parameters_are_matched_by_name(kind: str, tmp_path: Path) -> None:
    """Specification 9: registered in another order, the trajectory is the same."""
    source_training(kind, tmp_path / "history.safetensors")
    trained = []
    for order in (("first", "second", "third"), ("third", "first", "second")):
        model = network(order)
        optimizer = fine_tuning(kind, model)
        load_history(optimizer, model, tmp_path / "history.safetensors")
        train(model, optimizer, 3, seed=1)
        trained.append(model.state_dict())
    assert list(trained[0]) != list(trained[1])
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_file_gives_what_the_lists_give(kind: str, tmp_path: Path) -> None:
    source = source_training(kind, tmp_path / "history.safetensors")
    states = list(source.state.values())
    model, other = network(), network()
    by_list: torch.optim.Optimizer
    if kind == "sgd":
        by_list = OCTLSGD(other.parameters(), 1e-3, history=[s["momentum_buffer"] for s in states])
    else:
        by_list = OCTLAdam(other.parameters(), 1e-3, history=[(s["exp_avg"], s["exp_avg_sq"]) for s in states])
    optimizer = fine_tuning(kind, model)
    load_history(optimizer, model, tmp_path / "history.safetensors")
    train(model, optimizer, 3, seed=1)
    train(other, by_list, 3, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_hyper_parameters_stay_those_of_the_fine_tuning(kind: str, tmp_path: Path) -> None:
    """Specification 2.3, item 4: forgetting to put them back silently trains with momentum 0.9 and Nesterov."""
    source_training(kind, tmp_path / "history.safetensors")
    model = network()
    optimizer = fine_tuning(kind, model)
    before = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    load_history(optimizer, model, tmp_path / "history.safetensors")
    assert {k: v for k, v in optimizer.param_groups[0].items() if k != "params"} == before
    assert before["lr"] == 1e-3
    if kind == "sgd":
        assert (before["momentum"], before["nesterov"]) == (0.99, False)
    else:
        assert before["betas"] == (0.99, 0.999)


def test_sgd_with_momentum_0_takes_a_history_and_does_not_use_it(tmp_path: Path) -> None:
    source_training("sgd", tmp_path / "history.safetensors")
    model, plain = network(), network()
    optimizer = OCTLSGD(model.parameters(), 0.1, 0.0)
    load_history(optimizer, model, tmp_path / "history.safetensors")
    train(model, optimizer, 3)
    train(plain, torch.optim.SGD(plain.parameters(), 0.1), 3)
    torch.testing.assert_close(list(model.parameters()), list(plain.parameters()))
    with pytest.raises(ValueError, match="SGD without momentum keeps no history"):
        save_history(optimizer, model, tmp_path / "none.safetensors")


@pytest.mark.parametrize(("start", "expected"), [(100, 100), (0, 0), ("keep", 4)])
def test_step_counters_follow_start_step(start, expected: int, tmp_path: Path) -> None:
    source_training("adam", tmp_path / "history.safetensors")
    model = network()
    optimizer = fine_tuning("adam", model, start_step=start)
    load_history(optimizer, model, tmp_path / "history.safetensors")
    assert {float(state["step"]) for state in optimizer.state.values()} == {expected}


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_pytorchs_own_optimisers_go_on_where_they_were(kind: str, tmp_path: Path) -> None:
    """A history in a fresh optimiser of the same kind is the source training going on."""
    model = network()
    optimizer = source_training(kind, tmp_path / "history.safetensors", model)
    again = copy.deepcopy(model)
    fresh: torch.optim.Optimizer
    if kind == "sgd":
        fresh = torch.optim.SGD(again.parameters(), 1e-2, momentum=0.9, nesterov=True)
    else:
        fresh = torch.optim.Adam(again.parameters(), 1e-2)
    load_history(fresh, again, tmp_path / "history.safetensors")
    train(model, optimizer, 3, seed=1)
    train(again, fresh, 3, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def untouched(optimizer: torch.optim.Optimizer, before: str) -> bool:
    return str(optimizer.state_dict()["state"]) == before


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_history_of_another_network(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "history.safetensors"
    source_training(kind, path)

    def refused(model: nn.Module, *words: str, **options) -> None:
        optimizer = fine_tuning(kind, model)
        before = str(optimizer.state_dict()["state"])
        with pytest.raises(ValueError, match="belongs to another network") as caught:
            load_history(optimizer, model, path, **options)
        assert untouched(optimizer, before)
        assert str(path) in str(caught.value)
        assert "; give the history that was saved with this network's weights" in str(caught.value)
        assert all(word in str(caught.value) for word in words), str(caught.value)

    larger = network()
    larger.add_module("head", nn.Linear(2, 2).double())
    refused(larger, "no 'head.weight'")
    smaller = network()
    del smaller.third
    refused(smaller, "it has 'third.weight'")
    wide = network()
    wide.second = nn.Linear(4, 5, bias=False).double()
    refused(wide, "'second.weight' has shape (4, 4), in this network (5, 4)")
    refused(wide, "'second.weight' has shape", missing="zeros")
    refused(nn.Linear(2, 2), "none of its parameters", missing="zeros")


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_new_head_starts_with_zeros_on_request(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "history.safetensors"
    source_training(kind, path)
    model = network()
    del model.third
    model.add_module("head", nn.Linear(4, 7).double())
    optimizer = fine_tuning(kind, model)
    load_history(optimizer, model, path, missing="zeros")
    buffer = "momentum_buffer" if kind == "sgd" else "exp_avg"
    assert not optimizer.state[model.head.weight][buffer].any()
    assert optimizer.state[model.first.weight][buffer].abs().min() > 0


def test_history_of_another_optimiser(tmp_path: Path) -> None:
    source_training("sgd", tmp_path / "sgd.safetensors")
    source_training("adam", tmp_path / "adam.safetensors")
    model = network()
    with pytest.raises(ValueError, match="is the history of SGD; the optimiser here is Adam"):
        load_history(fine_tuning("adam", model), model, tmp_path / "sgd.safetensors")
    with pytest.raises(ValueError, match="is the history of Adam; the optimiser here is SGD"):
        load_history(fine_tuning("sgd", model), model, tmp_path / "adam.safetensors")


def test_files_that_are_no_history(tmp_path: Path) -> None:
    model = network()
    optimizer = fine_tuning("sgd", model)
    with pytest.raises(CheckpointError, match="no such file"):
        load_history(optimizer, model, tmp_path / "absent.safetensors")
    (tmp_path / "text.safetensors").write_text("history")
    with pytest.raises(CheckpointError, match="damaged"):
        load_history(optimizer, model, tmp_path / "text.safetensors")
    save_tensors(tmp_path / "weights.safetensors", {"a": torch.zeros(1)}, {"network": "ResidualUNet2d"})
    with pytest.raises(ValueError, match="holds no gradient history"):
        load_history(optimizer, model, tmp_path / "weights.safetensors")
    save_tensors(tmp_path / "odd.safetensors", {"a": torch.zeros(1)}, {"history": "sgd", "parameters": '["b"]'})
    with pytest.raises(ValueError, match="does not fit its tensors"):
        load_history(optimizer, model, tmp_path / "odd.safetensors")
    for names in ("{[", "7", '[["b"]]'):
        save_tensors(tmp_path / "odd.safetensors", {"a": torch.zeros(1)}, {"history": "sgd", "parameters": names})
        with pytest.raises(ValueError, match="does not fit its tensors"):
            load_history(optimizer, model, tmp_path / "odd.safetensors")
    source_training("sgd", tmp_path / "sgd.safetensors")
    tensors, about = load_weights(tmp_path / "sgd.safetensors")
    tensors["momentum_buffer/second.weight"][0, 0] = torch.nan
    save_tensors(tmp_path / "odd.safetensors", tensors, about)
    with pytest.raises(ValueError, match=r"momentum_buffer of 'second.weight' is not finite; train the source"):
        load_history(optimizer, model, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match="'error' or 'zeros'"):
        load_history(optimizer, model, tmp_path / "odd.safetensors", missing="ones")  # type: ignore[arg-type]


def test_nothing_to_save(tmp_path: Path) -> None:
    model, path = network(), tmp_path / "history.safetensors"
    with pytest.raises(ValueError, match="holds no history yet"):
        save_history(torch.optim.Adam(model.parameters(), 1e-3), model, path)
    with pytest.raises(ValueError, match="without momentum"):
        save_history(torch.optim.SGD(model.parameters(), 1e-3), model, path)
    with pytest.raises(ValueError, match="known of Adagrad"):
        save_history(torch.optim.Adagrad(model.parameters(), 1e-3), model, path)
    with pytest.raises(ValueError, match="known of Adam as it is set up"):
        save_history(torch.optim.Adam(model.parameters(), 1e-3, amsgrad=True), model, path)
    other = network()
    optimizer = torch.optim.SGD(other.parameters(), 1e-3, momentum=0.9)
    train(other, optimizer, 1)
    with pytest.raises(ValueError, match="trains 5 parameters and the model has 0 of them"):
        save_history(optimizer, model, path)
    assert not path.exists()


def test_frozen_parameters_have_no_part_in_it(tmp_path: Path) -> None:
    """A history of the whole network serves an optimiser of a part of it; what never had a gradient has zeros."""
    path = tmp_path / "history.safetensors"
    model = network()
    model.second.requires_grad_(False)
    source_training("sgd", path, model)
    part = network()
    optimizer = OCTLSGD(part.first.parameters(), 1e-3)
    load_history(optimizer, part, path)
    assert len(optimizer.state) == 2
    whole = network()
    optimizer = OCTLSGD(whole.parameters(), 1e-3)
    load_history(optimizer, whole, path)
    assert not optimizer.state[whole.second.weight]["momentum_buffer"].any()
