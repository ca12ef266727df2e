"""AvaGrad against the formulas of specification 2.1, written out in NumPy, and against its own promises."""

from __future__ import annotations

import io
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adagrad_unet import AvaGrad
from dart_core.checkpoint import load_checkpoint, save_checkpoint

VARIANTS = ("official", "printed")


class Oracle:
    """One parameter group of the specification in float64, a list of arrays at a time; None = no gradient this time."""

    def __init__(self, weights, lr, b1=0.9, b2=0.999, eps=0.1, variant="official", scope="group", correction=None,
                 decay=0.0, decoupled=False):  # fmt: skip
        self.w = [np.array(w, dtype=np.float64) for w in weights]
        self.m = [np.zeros_like(w) for w in self.w]
        self.v = [np.zeros_like(w) for w in self.w]
        self.t = [0] * len(self.w)
        self.gamma: Any = [None] * len(self.w) if scope == "tensor" else None
        self.lr, self.b1, self.b2, self.eps, self.variant, self.scope = lr, b1, b2, eps, variant, scope
        self.correction = (variant == "official") if correction is None else correction
        self.decay, self.decoupled = decay, decoupled

    def corrected(self, value, beta, power):
        return value / (1 - beta**power) if self.correction and power > 0 else value

    def step(self, gradients):
        here = [i for i, g in enumerate(gradients) if g is not None]
        groups = [[i] for i in here] if self.scope == "tensor" else [here] if here else []
        for members in groups:
            old = self.gamma[members[0]] if self.scope == "tensor" else self.gamma
            g = {i: np.array(gradients[i], dtype=np.float64) for i in members}
            for i in members:
                self.t[i] += 1
                if self.decay and not self.decoupled:
                    g[i] = g[i] + self.decay * self.w[i]
                self.m[i] = self.b1 * self.m[i] + (1 - self.b1) * g[i]
            if self.variant == "printed":
                eta = {i: 1 / (np.sqrt(self.corrected(self.v[i], self.b2, self.t[i] - 1)) + self.eps) for i in members}
                new = 1 / np.sqrt(np.mean(np.concatenate([eta[i].ravel() for i in members]) ** 2))
                for i in members:
                    self.move(i, new * eta[i])
            else:
                for i in members:
                    if self.t[i] > 1:
                        eta_i = 1 / (np.sqrt(self.corrected(self.v[i], self.b2, self.t[i] - 1)) + self.eps)
                        self.move(i, old * eta_i)
                late = [1 / (np.sqrt(self.corrected(self.v[i], self.b2, self.t[i])) + self.eps) for i in members]
                new = 1 / np.sqrt(np.mean(np.concatenate([eta_i.ravel() for eta_i in late]) ** 2))
            for i in members:
                self.v[i] = self.b2 * self.v[i] + (1 - self.b2) * g[i] ** 2
            if self.scope == "tensor":
                self.gamma[members[0]] = new
            else:
                self.gamma = new

    def move(self, i, eta):
        if self.decay and self.decoupled:
            self.w[i] = self.w[i] * (1 - self.lr * self.decay)
        self.w[i] = self.w[i] - self.lr * eta * self.corrected(self.m[i], self.b1, self.t[i])


def parameters(seed: int = 0, dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    """A matrix, a vector, a scalar and a convolution in channels-last order."""
    rng = np.random.default_rng(seed)
    shapes = [(3, 4), (5,), (), (4, 3, 3, 2)]
    tensors = [torch.tensor(rng.normal(size=shape), dtype=dtype) for shape in shapes]
    tensors[-1] = tensors[-1].contiguous(memory_format=torch.channels_last)
    return [nn.Parameter(tensor) for tensor in tensors]


def gradients(count: int, steps: int, seed: int = 1, holes: bool = False) -> list[list[np.ndarray | None]]:
    """Gradients of very unequal size; with holes, some tensors have none now and then, the second none at first."""
    rng = np.random.default_rng(seed)
    shapes = [tuple(p.shape) for p in parameters()][:count]
    rows: list[list[np.ndarray | None]] = []
    for step in range(steps):
        row: list[np.ndarray | None] = [10.0 ** (i - 2) * rng.normal(size=s) for i, s in enumerate(shapes)]
        if holes:
            row = [None if (i == 1 and step < 3) or (i == 2 and step % 3 == 1) else g for i, g in enumerate(row)]
        rows.append(row)
    return rows


def feed(optimizer: torch.optim.Optimizer, row: list[np.ndarray | None]) -> None:
    for p, g in zip(optimizer.param_groups[0]["params"], row, strict=True):
        p.grad = (
            None if g is None else torch.tensor(g, dtype=p.dtype).as_strided(p.shape, p.stride()).copy_(torch.tensor(g))
        )
    optimizer.step()


@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize("scope", ["group", "tensor"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("correction", "decay", "decoupled"), [(None, 0, False), (True, 0.01, False), (False, 0.003, True)]
)
def test_follows_the_formulas(foreach, scope, variant, correction, decay, decoupled):
    own = parameters()
    optimizer = AvaGrad(own, 2.0, (0.8, 0.99), 0.05, decay, foreach, variant, scope, correction, decoupled)
    oracle = Oracle(
        [p.detach().numpy() for p in own], 2.0, 0.8, 0.99, 0.05, variant, scope, correction, decay, decoupled
    )
    for row in gradients(4, 8, holes=True):
        feed(optimizer, row)
        oracle.step(row)
        for p, w in zip(own, oracle.w, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-12, atol=1e-14)
        if scope == "group":
            assert optimizer.param_groups[0]["gamma"] == pytest.approx(oracle.gamma, rel=1e-12)
    for p, m, v, t in zip(own, oracle.m, oracle.v, oracle.t, strict=True):
        state = optimizer.state[p]
        assert state["step"] == t
        np.testing.assert_allclose(state["exp_avg"].numpy(), m, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(state["exp_avg_sq"].numpy(), v, rtol=1e-12)


@given(
    seed=st.integers(0, 2**32 - 1),
    lr=st.floats(1e-3, 20),
    eps=st.floats(1e-4, 100),
    variant=st.sampled_from(VARIANTS),
    scope=st.sampled_from(["group", "tensor"]),
)
@settings(max_examples=40, deadline=None)
def test_any_setting_follows_the_formulas(seed, lr, eps, variant, scope):
    own = parameters(seed)
    optimizer = AvaGrad(own, lr, eps=eps, variant=variant, norm_scope=scope)
    oracle = Oracle([p.detach().numpy() for p in own], lr, eps=eps, variant=variant, scope=scope)
    for row in gradients(4, 5, seed):
        feed(optimizer, row)
        oracle.step(row)
    for p, w in zip(own, oracle.w, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-9, atol=1e-9 * (1 + np.abs(w).max()))


# Closed forms of specification 9


@pytest.mark.parametrize("eps", [1e-8, 0.1, 1e3])
def test_first_printed_step_is_a_tenth_of_the_gradient(eps):
    own = parameters()
    before = [p.detach().clone() for p in own]
    row = gradients(4, 1)[0]
    feed(AvaGrad(own, 3.0, eps=eps, variant="printed"), row)
    for p, w, g in zip(own, before, row, strict=True):
        torch.testing.assert_close(p.detach(), w - 0.1 * 3.0 * torch.tensor(g), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("foreach", [None, True, False])
def test_first_official_step_moves_nothing(dtype, foreach):
    own = [*parameters(dtype=dtype), nn.Parameter(torch.ones(300_000, dtype=dtype))]
    before = [p.detach().clone() for p in own]
    optimizer = AvaGrad(own, eps=0.1, foreach=foreach)
    assert optimizer.param_groups[0]["gamma"] is None
    feed(optimizer, [*gradients(4, 1)[0], np.ones(300_000)])
    for p, w in zip(own, before, strict=True):
        assert torch.equal(p.detach(), w)
    # gamma_1 is eps; in single precision its root mean square of 300,000 equal numbers must not lose digits.
    assert optimizer.param_groups[0]["gamma"] == pytest.approx(0.1, rel=1e-6 if dtype == torch.float32 else 1e-14)


def test_second_official_step_by_hand():
    """One number, g = 1 twice: m = 1 after correction, v_1 / (1 - b2) = 1, gamma_1 = eps."""
    w = nn.Parameter(torch.tensor([0.0], dtype=torch.float64))
    optimizer = AvaGrad([w], lr=10.0, eps=0.1)
    for _ in range(2):
        w.grad = torch.ones_like(w)
        optimizer.step()
    assert w.item() == pytest.approx(-10 * 0.1 * 1 / (1 + 0.1), rel=1e-12)
    # sqrt(v_1 / (1 - b2^2)) = sqrt(0.001 / 0.001999)
    assert optimizer.param_groups[0]["gamma"] == pytest.approx(math.sqrt(0.001 / 0.001999) + 0.1, rel=1e-12)


def test_scaling_gradients_and_eps_scales_the_update():
    """Unlike Adam: c times the gradients and c times eps gives c times the update."""
    c, moved = 7.0, []
    for factor in (1.0, c):
        w = nn.Parameter(torch.zeros(6, dtype=torch.float64))
        optimizer = AvaGrad([w], 0.5, eps=0.1 * factor)
        for row in np.random.default_rng(0).normal(size=(5, 6)):
            w.grad = torch.tensor(row * factor)
            optimizer.step()
        moved.append(w.detach().clone())
    torch.testing.assert_close(moved[1], c * moved[0], rtol=1e-12, atol=0)


def test_huge_eps_is_sgd_with_averaged_momentum():
    w, u = (nn.Parameter(torch.ones(6, dtype=torch.float64)) for _ in range(2))
    optimizer = AvaGrad([w], 0.5, eps=1e6, variant="printed")
    m = torch.zeros_like(u)
    for row in np.random.default_rng(0).normal(size=(20, 6)):
        w.grad = torch.tensor(row)
        optimizer.step()
        m = 0.9 * m + 0.1 * torch.tensor(row)
        u.data -= 0.5 * m
    torch.testing.assert_close(w.detach(), u.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_splitting_a_tensor(variant):
    """The group's norm does not care how numbers are spread over tensors; a norm of each tensor does."""
    start = np.random.default_rng(3).normal(size=8)
    rows = np.random.default_rng(4).normal(size=(6, 8)) * np.logspace(-3, 1, 8)

    def run(scope: Any, *cuts: int) -> np.ndarray:
        own = [nn.Parameter(torch.tensor(part)) for part in np.split(start, cuts)]
        optimizer = AvaGrad(own, 1.0, variant=variant, norm_scope=scope)
        for row in rows:
            for p, g in zip(own, np.split(row, cuts), strict=True):
                p.grad = torch.tensor(g)
            optimizer.step()
        return np.concatenate([p.detach().numpy() for p in own])

    np.testing.assert_allclose(run("group", 3), run("group"), rtol=1e-12)
    np.testing.assert_allclose(run("tensor"), run("group"), rtol=1e-12)
    assert np.abs(run("tensor", 3) - run("group")).max() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_mean_square_of_normalised_eta_is_one(variant):
    own = parameters()
    optimizer = AvaGrad(own, 1.0, variant=variant)
    for row in gradients(4, 6):
        before = [optimizer.state[p]["exp_avg_sq"].clone() if optimizer.state[p] else torch.zeros_like(p) for p in own]
        feed(optimizer, row)
        t = optimizer.state[own[0]]["step"]
        c = 1 - 0.999**t if variant == "official" else 1.0
        eta = torch.cat([1 / ((v / c).sqrt() + 0.1).flatten() for v in before])
        assert (eta * optimizer.param_groups[0]["gamma"]).square().mean().item() == pytest.approx(1, rel=1e-12)


def test_two_groups_have_two_norms_and_their_own_settings():
    a, b = (nn.Parameter(torch.ones(4, dtype=torch.float64)) for _ in range(2))
    optimizer = AvaGrad([{"params": [a]}, {"params": [b], "lr": 1.0, "eps": 0.5}], lr=10.0, eps=0.1)
    oracles = [Oracle([np.ones(4)], 10.0, eps=0.1), Oracle([np.ones(4)], 1.0, eps=0.5)]
    for step in range(4):
        optimizer.param_groups[1]["lr"] = oracles[1].lr = 1.0 / (step + 1)  # as a scheduler writes it
        for p, oracle, factor in zip((a, b), oracles, (1.0, 30.0), strict=True):
            g = factor * np.arange(4.0)
            p.grad = torch.tensor(g)
            oracle.step([g])
        optimizer.step()
    for p, group, oracle in zip((a, b), optimizer.param_groups, oracles, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), oracle.w[0], rtol=1e-12)
        assert group["gamma"] == pytest.approx(oracle.gamma, rel=1e-12)


def test_a_group_without_gradients_divides_by_nothing():
    a, b = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = AvaGrad([{"params": [a]}, {"params": [b]}])
    optimizer.step()
    assert [group["gamma"] for group in optimizer.param_groups] == [None, None]
    a.grad = torch.ones(3)
    optimizer.step()
    optimizer.zero_grad()
    optimizer.step()  # no gradient any more: gamma stays
    assert optimizer.param_groups[0]["gamma"] == pytest.approx(0.1)
    assert optimizer.param_groups[1]["gamma"] is None
    assert not optimizer.state[b]


# Where the numbers lie, and of what type they are


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_way_of_computing_gives_the_same_numbers(variant):
    """More numbers than a block holds, in single precision."""
    results = []
    for foreach in (None, True, False):
        torch.manual_seed(0)
        own = [nn.Parameter(torch.randn(s)) for s in ((500, 600), (7,), (20, 30, 3, 3))]
        own[2].data = own[2].data.contiguous(memory_format=torch.channels_last)
        optimizer = AvaGrad(own, 10.0, foreach=foreach, variant=variant, weight_decay=3e-5)
        for _ in range(4):
            for p in own:
                p.grad = torch.randn(p.shape).as_strided(p.shape, p.stride()) * 1e-2
            optimizer.step()
        results.append([p.detach().clone() for p in own])
    for other in results[1:]:
        for p, q in zip(results[0], other, strict=True):
            torch.testing.assert_close(p, q, rtol=2e-6, atol=2e-7)


def test_gradient_in_another_memory_order():
    w = nn.Parameter(torch.randn(4, 3, 3, 2, dtype=torch.float64).contiguous(memory_format=torch.channels_last))
    oracle = Oracle([w.detach().numpy()], 1.0)
    optimizer = AvaGrad([w], 1.0)
    for row in np.random.default_rng(0).normal(size=(4, 4, 3, 3, 2)):
        w.grad = torch.tensor(row)
        optimizer.step()
        oracle.step([row])
    np.testing.assert_allclose(w.detach().numpy(), oracle.w[0], rtol=1e-12)


def test_parameters_that_are_no_dense_block():
    w = nn.Parameter(torch.ones(3, 8, dtype=torch.float64)[:, ::2])
    optimizer = AvaGrad([w], 1.0)
    oracle = Oracle([np.ones((3, 4))], 1.0)
    for row in np.random.default_rng(0).normal(size=(4, 3, 4)):
        w.grad = torch.tensor(row)
        optimizer.step()
        oracle.step([row])
    np.testing.assert_allclose(w.detach().numpy(), oracle.w[0], rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_parameters_keep_their_digits(dtype):
    """Steps far below the resolution of the parameter still add up in its master copy."""
    w = nn.Parameter(torch.full((64,), 256.0, dtype=dtype))
    u = nn.Parameter(torch.full((64,), 256.0))
    ours, exact = AvaGrad([w], 0.01), AvaGrad([u], 0.01)
    for _ in range(400):
        w.grad, u.grad = torch.ones_like(w), torch.ones_like(u)
        ours.step()
        exact.step()
    state = ours.state[w]
    assert {state[key].dtype for key in ("exp_avg", "exp_avg_sq", "master")} == {torch.float32}
    torch.testing.assert_close(state["master"], u.detach(), rtol=0, atol=0)
    assert torch.equal(w.detach(), u.detach().to(dtype))
    assert u[0].item() < 255.0


def test_weights_changed_from_outside_count():
    w = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = AvaGrad([w], 1.0)
    for _ in range(2):
        w.grad = torch.ones_like(w)
        optimizer.step()
    w.data.fill_(5.0)
    optimizer.step()
    assert (w > 3).all()


def test_a_decay_does_not_change_the_gradient():
    w = nn.Parameter(torch.ones(3))
    w.grad = torch.ones(3)
    AvaGrad([w], weight_decay=0.5).step()
    assert torch.equal(w.grad, torch.ones(3))


# Keeping and resuming


def _train(optimizer: torch.optim.Optimizer, rows: list[list[np.ndarray | None]]) -> None:
    for row in rows:
        feed(optimizer, row)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scope", ["group", "tensor"])
@pytest.mark.parametrize("stop", [0, 1, 5])
def test_resumes_exactly(tmp_path, dtype, scope, stop):
    rows = gradients(4, 9, holes=True)
    whole, first, second = (parameters(dtype=dtype) for _ in range(3))
    straight = AvaGrad(whole, norm_scope=scope)
    _train(straight, rows)
    before = AvaGrad(first, norm_scope=scope)
    _train(before, rows[:stop])
    save_checkpoint(tmp_path / "c.pt", {"optimizer": before.state_dict(), "weights": [p.data for p in first]})
    loaded = load_checkpoint(tmp_path / "c.pt")
    for p, data in zip(second, loaded["weights"], strict=True):
        p.data.copy_(data)
    after = AvaGrad(second, lr=1.0, norm_scope=scope)
    after.load_state_dict(loaded["optimizer"])
    assert after.param_groups[0]["lr"] == 10.0
    if stop == 0:
        assert after.param_groups[0]["gamma"] is None
    _train(after, rows[stop:])
    for p, q in zip(whole, second, strict=True):
        assert torch.equal(p, q)


def test_plain_torch_save_needs_no_code():
    own = parameters()
    optimizer = AvaGrad(own)
    for count in range(2):
        buffer = io.BytesIO()
        torch.save(optimizer.state_dict(), buffer)
        buffer.seek(0)
        state = torch.load(buffer, weights_only=True)
        assert (state["param_groups"][0]["gamma"] is None) == (count == 0)
        feed(optimizer, gradients(4, 1)[0])


def test_state_of_an_older_release_takes_the_defaults():
    own = parameters()
    optimizer = AvaGrad(own, decoupled=True)
    state = optimizer.state_dict()
    del state["param_groups"][0]["decoupled"], state["param_groups"][0]["gamma"]
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["decoupled"] is True
    assert set(optimizer.param_groups[0]) == set(AvaGrad(parameters()).param_groups[0])
    assert optimizer.param_groups[0]["gamma"] is None


# As a PyTorch optimiser


def test_closure_and_maximize():
    w, u = (nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64)) for _ in range(2))
    down, up = AvaGrad([w], 0.1), AvaGrad([u], 0.1, maximize=True)

    def loss() -> Tensor:
        down.zero_grad()
        value = (w**2).sum()
        value.backward()
        return value

    def gain() -> Tensor:
        up.zero_grad()
        value = -(u**2).sum()
        value.backward()
        return value

    first = down.step(loss)
    assert first.item() == 5.0
    for _ in range(50):
        up.step(gain)
        last = down.step(loss)
    up.step(gain)
    assert last.item() < 4.0
    torch.testing.assert_close(w, u)


def test_a_quadratic_is_minimised():
    w = nn.Parameter(torch.tensor([3.0, -1.5, 0.5]))
    optimizer = AvaGrad([w], 1.0)
    scale = torch.tensor([1.0, 10.0, 0.1])
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 1.0 - step / 400
        optimizer.zero_grad()
        (scale * w**2).sum().backward()
        optimizer.step()
    assert (scale * w**2).sum().item() < 1e-3


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"lr": -1}, "lr is -1"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"eps": 0.0}, "eps is 0.0; give more than 0"),
        ({"betas": (0.9, 1.0)}, "betas is"),
        ({"betas": (0.9,)}, "betas is"),
        ({"weight_decay": -1e-4}, "weight_decay is"),
        ({"variant": "paper"}, "variant is paper; give official or printed"),
        ({"norm_scope": "layer"}, "norm_scope is layer"),
    ],
)
def test_settings_out_of_range(setting, message):
    with pytest.raises(ValueError, match=message):
        AvaGrad(parameters(), **setting)


def test_settings_of_a_group_are_checked_too():
    with pytest.raises(ValueError, match="eps is 0"):
        AvaGrad([{"params": parameters(), "eps": 0}])


def test_sparse_and_complex_gradients():
    w = nn.Parameter(torch.ones(3))
    w.grad = torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match="dense, real"):
        AvaGrad([w]).step()
    z = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    z.grad = torch.ones(3, dtype=torch.complex64)
    with pytest.raises(RuntimeError, match="dense, real"):
        AvaGrad([z]).step()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("variant", "scope"), [*itertools.product(VARIANTS, ["group", "tensor"])])
def test_cuda_gives_the_numbers_of_the_cpu(variant, scope):
    results = []
    for device in ("cpu", "cuda"):
        own = [nn.Parameter(p.detach().to(device)) for p in parameters()]
        optimizer = AvaGrad(own, 1.0, variant=variant, norm_scope=scope, weight_decay=0.01)
        for row in gradients(4, 6, holes=True):
            for p, g in zip(own, row, strict=True):
                p.grad = None if g is None else torch.tensor(g, device=device)
            optimizer.step()
        results.append([p.detach().cpu() for p in own])
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
