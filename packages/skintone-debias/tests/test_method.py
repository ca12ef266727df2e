"""Losses against closed forms and SciPy; steps against a second implementation that knows the paper's table by heart."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from skintone_debias.method import (
    auxiliary_loss,
    class_weights,
    confusion_loss,
    debias_optimizers,
    debias_step,
    lntl_loss,
    main_loss,
    negative_entropy,
    reverse_gradient,
)
from skintone_debias.recipes import RECIPES

P = torch.tensor([[0.8, 0.2]], dtype=torch.float64).log()
METHODS = tuple(RECIPES)


def gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(x), x)
    return found


# --- Losses ----------------------------------------------------------------------------------------------------------


def test_negative_entropy_by_hand():
    assert float(negative_entropy(P)) == pytest.approx(-0.500402, abs=1e-6)
    assert gradient(negative_entropy, P).tolist()[0] == pytest.approx([0.221807, -0.221807], abs=1e-6)


def test_confusion_by_hand():
    assert float(confusion_loss(P)) == pytest.approx(0.0274887, abs=1e-7)
    assert gradient(confusion_loss, P).tolist()[0] == pytest.approx([0.009, -0.009], abs=1e-9)


@pytest.mark.parametrize(("n", "confusion"), [(2, 0.020794), (6, 0.053753)])
def test_a_uniform_head_is_the_optimum_of_both(n, confusion):
    logits = torch.full((3, n), 1.7, dtype=torch.float64)
    assert float(negative_entropy(logits)) == pytest.approx(-math.log(n), rel=1e-12)
    assert float(confusion_loss(logits)) == pytest.approx(confusion, abs=1e-6)
    for loss in (negative_entropy, confusion_loss):
        assert gradient(loss, logits).abs().max() < 1e-15


@given(st.integers(1, 5), st.integers(2, 6), st.integers(0, 2**31), st.sampled_from([torch.float32, torch.float64]))
def test_losses_equal_scipy(samples, n, seed, dtype):
    rng = np.random.default_rng(seed)
    logits, main = rng.normal(scale=3, size=(samples, n)), rng.normal(scale=3, size=samples)
    y, s, w = rng.integers(0, 2, samples), rng.integers(0, n, samples), rng.uniform(0.1, 1, n)
    u = rng.uniform(size=(samples, n))
    log_p = log_softmax(logits, axis=1)
    entropy = (np.exp(log_p) * log_p).sum(1).mean()
    cross = np.mean(np.logaddexp(0, main) - y * main)
    q, z = torch.tensor(logits, dtype=dtype), torch.tensor(main, dtype=dtype)
    close = {"rel": 1e-5 if dtype == torch.float32 else 1e-12, "abs": 1e-6 if dtype == torch.float32 else 1e-14}
    for shape in ((-1,), (-1, 1)):
        found = lntl_loss(z.reshape(shape), torch.tensor(y), q, weight=0.3)
        assert found.dtype == dtype
        assert found.shape == ()
        assert float(found) == pytest.approx(cross + 0.3 * entropy, **close)
    assert float(confusion_loss(q, 0.5)) == pytest.approx(-0.5 * log_p.mean(), **close)
    noisy = confusion_loss(q, 0.5, "noise", torch.tensor(u, dtype=dtype))
    assert float(noisy) == pytest.approx(-0.5 * (u * log_p).sum() / samples, **close)
    weighted = -(w[s] * log_p[np.arange(samples), s]).sum() / w[s].sum()
    assert float(auxiliary_loss(q, torch.tensor(s), torch.tensor(w))) == pytest.approx(weighted, **close)
    assert float(auxiliary_loss(q, torch.tensor(s), w)) == pytest.approx(weighted, **close)


def test_gradient_with_a_noise_target():
    u = torch.tensor([[0.3, 0.9], [0.5, 0.1]], dtype=torch.float64)
    logits = torch.tensor([[0.2, -0.4], [1.0, 3.0]], dtype=torch.float64)
    found = gradient(lambda q: confusion_loss(q, 0.03, "noise", u), logits)
    p = logits.softmax(1)
    assert torch.allclose(found, 0.03 * (p * u.sum(1, keepdim=True) - u) / 2, atol=1e-15)


@pytest.mark.parametrize("n", [2, 6])
def test_expected_gradient_of_the_noise_target_is_n_half_times_the_uniform_one(n):
    logits = torch.randn(4, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # The gradient is linear in the noise: that of its mean, 1/2, is the expectation.
    mean = torch.full((4, n), 0.5, dtype=torch.float64)
    expected = gradient(lambda q: confusion_loss(q, 0.03, "noise", mean), logits)
    assert torch.allclose(expected, n / 2 * gradient(confusion_loss, logits), atol=1e-15)


def test_noise_is_drawn_from_the_unit_interval():
    logits = torch.zeros(2000, 2, dtype=torch.float64)
    torch.manual_seed(0)
    drawn = [float(confusion_loss(logits, 1.0, "noise")) for _ in range(2)]
    assert drawn[0] != drawn[1]
    # At p = 1/2 the loss is log 2 times the sum of two draws, whose mean is 1.
    assert np.mean(drawn) == pytest.approx(math.log(2), rel=0.03)


def test_confident_heads_give_numbers():
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = negative_entropy(logits) + confusion_loss(logits)
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_half_precision_heads_are_scored_in_single_precision():
    logits = torch.tensor([[0.5, -0.25]], dtype=torch.bfloat16)
    for loss in (negative_entropy(logits), confusion_loss(logits), main_loss(logits[:, 0], torch.ones(1))):
        assert loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: confusion_loss(P, target="noise", noise=torch.rand(3, 2)), "shape"),
        (lambda: confusion_loss(P, noise=torch.rand(1, 2)), "uniform"),
        (lambda: confusion_loss(P, target="gauss"), "uniform or noise"),  # type: ignore[arg-type]
        (lambda: auxiliary_loss(P, torch.zeros(1), torch.ones(3)), "3 class weights for 2 classes"),
        (lambda: class_weights([3, 0, 1]), "class 1 has no training picture"),
        (lambda: class_weights([]), "list of numbers"),
        (lambda: class_weights([1, -2]), "list of numbers"),
        (lambda: class_weights([1.0, math.nan]), "list of numbers"),
    ],
)
def test_what_cannot_be_computed_is_said(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_class_weights_by_hand():
    assert class_weights([1, 3]).tolist() == [0.75, 0.25]
    assert class_weights(torch.tensor([2.0, 2.0])).dtype == torch.float32


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=8))
def test_class_weights_are_inverse_shares(counts):
    weights = class_weights(counts)
    assert float(weights.sum()) == pytest.approx(1)
    products = weights * torch.tensor(counts)
    assert torch.allclose(products, products[0].expand_as(products))


# --- Gradient reversal -----------------------------------------------------------------------------------------------


def test_reversal_turns_the_encoder_s_gradient_and_leaves_the_head_s():
    torch.manual_seed(0)
    encoder, head = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()
    x, s, w = torch.randn(5, 3).double(), torch.tensor([0, 1, 1, 0, 1]), torch.tensor([0.6, 0.4])
    plain, turned = [], []
    for found, between in ((plain, lambda f: f), (turned, reverse_gradient)):
        features = encoder(x)
        assert torch.equal(between(features), features)
        parameters = [*encoder.parameters(), *head.parameters()]
        found += torch.autograd.grad(auxiliary_loss(head(between(features)), s, w), parameters)
    for a, b in zip(plain[:2], turned[:2], strict=True):
        assert torch.allclose(b, -0.1 * a, atol=1e-16)
    assert all(torch.equal(a, b) for a, b in zip(plain[2:], turned[2:], strict=True))


def test_reversal_of_another_scale_and_type():
    x = torch.ones(2, requires_grad=True)
    reverse_gradient(x, -2.0).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [-2.0, -2.0]


# --- Optimisers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "confusion", "rates"),
    [
        ("none", False, []),
        ("lntl", False, [3e-4]),
        ("lntl-nogr", False, [3e-4]),
        ("tabe", True, [3e-3]),
        ("clgr", True, [3e-3]),
        ("both", True, [3e-4, 3e-3]),
        ("double-tabe", True, [3e-3, 3e-3]),
        ("double-lntl", False, [3e-4, 3e-4]),
    ],
)
def test_optimisers_of_the_paper(method, confusion, rates):
    encoder, main, heads = nn.Linear(2, 3), nn.Linear(3, 1), [nn.Linear(3, 2) for _ in rates]
    found = debias_optimizers(encoder, main, heads, method)
    assert found.keys() == {"main", "confusion", "auxiliary"}
    every = [found["main"], *found["auxiliary"], *([found["confusion"]] if confusion else [])]
    for optimizer in every:
        assert type(optimizer) is torch.optim.SGD
        for group in optimizer.param_groups:
            assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 0, False)

    def held(optimizer: torch.optim.Optimizer) -> list[int]:
        return [id(p) for group in optimizer.param_groups for p in group["params"]]

    assert held(found["main"]) == [id(p) for p in (*encoder.parameters(), *main.parameters())]
    assert {group["lr"] for group in found["main"].param_groups} == {3e-4}
    assert (found["confusion"] is not None) == confusion
    if confusion:
        assert held(found["confusion"]) == [id(p) for p in encoder.parameters()]
        assert found["confusion"].param_groups[0]["lr"] == 3e-3
    for optimizer, head, rate in zip(found["auxiliary"], heads, rates, strict=True):
        assert held(optimizer) == [id(p) for p in head.parameters()]
        assert optimizer.param_groups[0]["lr"] == rate


def test_learning_rate_control_has_its_own_rate_for_the_encoder():
    encoder, main = nn.Linear(2, 3), nn.Linear(3, 1)
    optimizer = debias_optimizers(encoder, main, [], "none", encoder_lr=3.3e-3)["main"]
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rates[id(p)] for p in encoder.parameters()} == {3.3e-3}
    assert {rates[id(p)] for p in main.parameters()} == {3e-4}


# --- Steps -----------------------------------------------------------------------------------------------------------

TABLE: dict[str, dict[str, Any]] = {
    "none": {},
    "lntl": {"entropy": [0], "grl": True, "rates": [0.03]},
    "lntl-nogr": {"entropy": [0], "rates": [0.03]},
    "tabe": {"confusion": [0], "rates": [0.3]},
    "clgr": {"confusion": [0], "grl": True, "rates": [0.3]},
    "both": {"entropy": [0], "confusion": [1], "grl": True, "rates": [0.03, 0.3]},
    "double-tabe": {"confusion": [0, 1], "grl": True, "rates": [0.3, 0.3]},
    "double-lntl": {"entropy": [0, 1], "grl": True, "rates": [0.03, 0.03]},
}
LR, LR_CLASS = 0.03, 0.3


class Linear:
    """Three matrices and their momenta: the second implementation has no modules, optimisers or autograd functions."""

    def __init__(self, encoder: Tensor, main: Tensor, heads: Sequence[Tensor]) -> None:
        self.weights = {"encoder": encoder.clone(), "main": main.clone()}
        self.weights |= {f"head{k}": head.clone() for k, head in enumerate(heads)}
        self.momenta: dict[tuple[str, str], Tensor] = {}

    def sgd(self, optimizer: str, name: str, gradient: Tensor, lr: float, momentum: float) -> None:
        key = (optimizer, name)
        self.momenta[key] = gradient + momentum * self.momenta.get(key, torch.zeros_like(gradient))
        self.weights[name] = self.weights[name] - lr * self.momenta[key]


def reference_step(
    net: Linear, x: Tensor, y: Tensor, s: Sequence[Tensor], w: Sequence[Tensor], method: str, momentum: float,
    lam: float, alpha: float, noise: Sequence[Tensor] | None, zero: bool, authors_both: bool,
) -> None:  # fmt: skip
    """B6 with the gradients written out by hand for a linear encoder and linear heads without bias."""
    row, batch = TABLE[method], len(x)
    confused = row.get("confusion", [])
    if method == "both" and authors_both:
        confused = [0]
    features = x @ net.weights["encoder"].T
    z = (features @ net.weights["main"].T)[:, 0]
    dz = (torch.sigmoid(z) - y) / batch
    d_main = (dz[:, None] * features).sum(0, keepdim=True)
    d_features = dz[:, None] * net.weights["main"]
    for k in sorted({*row.get("entropy", []), *confused}):
        head = net.weights[f"head{k}"]
        log_p = torch.log_softmax(features @ head.T, 1)
        p = log_p.exp()
        dq = torch.zeros_like(p)
        if k in row.get("entropy", []):
            dq += lam * p * (log_p - (p * log_p).sum(1, keepdim=True)) / batch
        if k in confused:
            target = torch.full_like(p, 1 / p.shape[1]) if noise is None else noise[k]
            dq += alpha * (p * target.sum(1, keepdim=True) - target) / batch
        d_features = d_features + dq @ head
    d_encoder = d_features.T @ x
    net.sgd("main", "encoder", d_encoder, LR, momentum)
    net.sgd("main", "main", d_main, LR, momentum)
    if row.get("confusion"):
        net.sgd("confusion", "encoder", d_encoder, LR_CLASS, momentum)
    if not row:
        return
    features = x @ net.weights["encoder"].T
    d_features = torch.zeros_like(features)
    d_heads = []
    for k in range(len(row["rates"])):
        head = net.weights[f"head{k}"]
        p = torch.softmax(features @ head.T, 1)
        share = w[k][s[k]] / w[k][s[k]].sum()
        dq = share[:, None] * (p - nn.functional.one_hot(s[k], p.shape[1]))
        d_heads.append(dq.T @ features)
        d_features = d_features + dq @ head
    if row.get("grl"):
        d_features = -0.1 * d_features
    net.sgd("main", "encoder", d_features.T @ x, LR, momentum)
    if zero:
        net.sgd("main", "main", torch.zeros_like(d_main), LR, momentum)
    for k, (d_head, rate) in enumerate(zip(d_heads, row["rates"], strict=True)):
        net.sgd(f"head{k}", f"head{k}", d_head, rate, momentum)


def modules(method: str, seed: int = 0) -> tuple[nn.Linear, nn.Linear, list[nn.Linear]]:
    torch.manual_seed(seed)
    heads = [nn.Linear(4, 2 + k, bias=False).double() for k in range(len(RECIPES[method].heads))]
    return nn.Linear(5, 4, bias=False).double(), nn.Linear(4, 1, bias=False).double(), heads


def data(step: int, heads: int) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 2, (6,), generator=generator)
    s = [torch.randint(0, 2 + k, (6,), generator=generator) for k in range(heads)]
    noise = [torch.rand(6, 2 + k, generator=generator, dtype=torch.float64) for k in range(heads)]
    return x, y, s, noise


WEIGHTS = [torch.tensor([0.75, 0.25], dtype=torch.float64), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("target", ["uniform", "noise"])
def test_trajectory_equals_the_second_implementation(method, zero, target):
    for authors_both in (False, True) if method == "both" else (False,):
        encoder, main, heads = modules(method)
        net = Linear(encoder.weight.detach(), main.weight.detach(), [head.weight.detach() for head in heads])
        optimizers = debias_optimizers(encoder, main, heads, method, LR, LR_CLASS)
        for step in range(4):
            x, y, s, noise = data(step, len(heads))
            w = WEIGHTS[: len(heads)]
            noises = noise if target == "noise" else None
            found = debias_step(
                encoder, main, heads, optimizers, x, y, s, method, w, weight=0.5, alpha=0.7, target=target, noise=noises,
                authors_both=authors_both, zero_grad_mode="zero" if zero else "none",
            )  # fmt: skip
            reference_step(net, x, y, s, w, method, 0.9, 0.5, 0.7, noises, zero, authors_both)
            assert len(found["loss_auxiliary"]) == len(heads)
            for name, module in (("encoder", encoder), ("main", main), *((f"head{k}", h) for k, h in enumerate(heads))):
                assert torch.allclose(module.weight, net.weights[name], rtol=1e-10, atol=1e-13), (name, step)


def test_reported_losses_are_those_of_the_phases():
    encoder, main, heads = modules("lntl")
    x, y, s, _ = data(0, 1)
    first = lntl_loss(main(encoder(x)), y, heads[0](encoder(x)))
    optimizers = debias_optimizers(encoder, main, heads, "lntl", 0.1, 0.1)
    found = debias_step(encoder, main, heads, optimizers, x, y, s, "lntl", WEIGHTS[:1])
    assert torch.equal(found["loss_first"], first.detach())
    assert not found["loss_first"].requires_grad
    # Phase 2 sees the encoder that phase 1 left, so its loss is not that of the first weights.
    encoder, main, heads = modules("lntl")
    assert float(found["loss_auxiliary"][0]) != float(auxiliary_loss(heads[0](encoder(x)), s[0], WEIGHTS[0]).detach())


def beside_the_baseline(method: str, momentum: float, lr_confusion: float | None = None, **options: Any) -> Any:
    """Encoder, main head and auxiliary heads after five steps, and what the baseline makes of the same start."""
    encoder, main, heads = modules(method)
    base_encoder, base_main = copy.deepcopy(encoder), copy.deepcopy(main)
    ours = debias_optimizers(encoder, main, heads, method, LR, LR_CLASS, momentum)
    if lr_confusion is not None:
        ours["confusion"].param_groups[0]["lr"] = lr_confusion
    base = debias_optimizers(base_encoder, base_main, [], "none", LR, LR_CLASS, momentum)
    for step in range(5):
        x, y, s, _ = data(step, len(heads))
        debias_step(encoder, main, heads, ours, x, y, s, method, WEIGHTS[: len(heads)], **options)
        found = debias_step(base_encoder, base_main, [], base, x, y, [], "none", [])
        assert found["loss_auxiliary"] == []
    return encoder, main, heads, base_encoder, base_main


NOTHING: dict[str, dict[str, Any]] = {
    "lntl": {"weight": 0.0, "scale": 0.0},
    "double-lntl": {"weight": 0.0, "scale": 0.0},
    "clgr": {"alpha": 0.0, "scale": 0.0, "lr_confusion": 0.0},
    "tabe": {"alpha": 0.0, "aux_updates_encoder": False, "lr_confusion": 0.0},
}


@pytest.mark.parametrize("method", NOTHING)
def test_without_its_parts_a_method_is_the_baseline(method):
    encoder, main, heads, base_encoder, base_main = beside_the_baseline(method, 0.0, **NOTHING[method])
    assert torch.equal(encoder.weight, base_encoder.weight)
    assert torch.equal(main.weight, base_main.weight)
    for head, first in zip(heads, modules(method)[2], strict=True):
        assert not torch.equal(head.weight, first.weight)


def test_with_momentum_the_encoder_coasts_in_phase_2():
    encoder, _, _, base_encoder, _ = beside_the_baseline("lntl", 0.9, **NOTHING["lntl"])
    assert not torch.allclose(encoder.weight, base_encoder.weight, rtol=1e-3)


def test_zeroed_gradients_let_momentum_move_the_main_head():
    _, main, *_ = beside_the_baseline("lntl", 0.9)
    _, coasting, *_ = beside_the_baseline("lntl", 0.9, zero_grad_mode="zero")
    assert not torch.allclose(main.weight, coasting.weight, rtol=1e-3)


def test_learning_rate_control_is_tabe_s_first_phase():
    """With alpha 0 and heads that reach no encoder, TABE steps the encoder with 3e-4 + 3e-3 (paragraph 4.4)."""
    encoder, main, *_ = beside_the_baseline("tabe", 0.9, alpha=0.0, aux_updates_encoder=False)
    control_encoder, control_main, _ = modules("tabe")
    optimizers = debias_optimizers(control_encoder, control_main, [], "none", LR, encoder_lr=LR + LR_CLASS)
    for step in range(5):
        x, y, _, _ = data(step, 1)
        debias_step(control_encoder, control_main, [], optimizers, x, y, [], "none", [])
    assert torch.allclose(encoder.weight, control_encoder.weight, rtol=1e-12)
    assert torch.allclose(main.weight, control_main.weight, rtol=1e-12)


def test_the_paper_s_order_trains_the_head_first():
    encoder, main, heads = modules("tabe")
    first_heads = copy.deepcopy(heads)
    x, y, s, _ = data(0, 1)
    optimizers = debias_optimizers(encoder, main, heads, "tabe", LR, LR_CLASS)
    expected = auxiliary_loss(heads[0](encoder(x)), s[0], WEIGHTS[0]).detach()
    found = debias_step(
        encoder, main, heads, optimizers, x, y, s, "tabe", WEIGHTS[:1], aux_first=True, aux_updates_encoder=False
    )
    assert torch.equal(found["loss_auxiliary"][0], expected)
    # The confusion loss sees the head after its step.
    fresh_encoder, fresh_main, _ = modules("tabe")
    features = fresh_encoder(x)
    after = main_loss(fresh_main(features), y) + confusion_loss(heads[0](features))
    before = main_loss(fresh_main(features), y) + confusion_loss(first_heads[0](features))
    assert torch.allclose(found["loss_first"], after.detach(), rtol=1e-12)
    assert not torch.allclose(found["loss_first"], before.detach(), rtol=1e-9)


def test_reversal_can_be_turned_on_and_off():
    for on, off in (("lntl", "lntl-nogr"), ("clgr", "tabe")):
        for method, plain, reverse in ((on, off, False), (off, on, True)):
            ours = beside_the_baseline(method, 0.9, reverse=reverse)
            theirs = beside_the_baseline(plain, 0.9)
            assert torch.equal(ours[0].weight, theirs[0].weight)


class Convolutions(nn.Module):
    """Dropout, batch norm and a shape change: any module that returns (B, K) will do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.body(x), 1)


def test_each_phase_has_a_forward_pass_of_its_own():
    encoder = Convolutions()
    main, heads = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 1)), [nn.Linear(4, 2)]
    x, y = torch.rand(6, 3, 8, 8), torch.tensor([0.0, 1, 0, 1, 1, 0])
    s, w = [torch.tensor([0, 1, 1, 0, 0, 1])], [torch.tensor([0.5, 0.5])]
    for method, passes in (("none", 1), ("clgr", 2)):
        seen: list[int] = []
        handle = encoder.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        aux = heads if method == "clgr" else []
        optimizers = debias_optimizers(encoder, main, aux, method)
        found = debias_step(encoder, main, aux, optimizers, x, y, s[: len(aux)], method, w[: len(aux)])
        handle.remove()
        assert len(seen) == passes
        assert torch.isfinite(found["loss_first"])


@pytest.mark.parametrize(
    ("method", "heads", "options", "words"),
    [
        ("melt", 0, {}, "unknown method 'melt'"),
        ("lntl", 2, {}, "method 'lntl' has 1 auxiliary heads, 2 are given"),
        ("both", 1, {}, "method 'both' has 2"),
        ("clgr", 1, {"aux_updates_encoder": False}, "cannot be reversed"),
        ("clgr", 1, {"zero_grad_mode": "keep"}, "give none or zero"),
        ("clgr", 1, {"noise": [torch.rand(2, 2)]}, "noise has no meaning for the target 'uniform'"),
        ("both", 2, {"noise": [None, torch.rand(2, 2)]}, "noise has no meaning for the target 'uniform'"),
    ],
)
def test_steps_that_make_no_sense_are_refused(method, heads, options, words):
    encoder, main, aux = nn.Linear(5, 4), nn.Linear(4, 1), [nn.Linear(4, 2) for _ in range(heads)]
    optimizers = {"main": torch.optim.SGD(encoder.parameters(), 0.1), "confusion": None, "auxiliary": [None] * heads}
    x, y, s = torch.rand(2, 5), torch.tensor([0, 1]), [torch.tensor([0, 1])] * heads
    with pytest.raises(ValueError, match=words):
        debias_step(encoder, main, aux, optimizers, x, y, s, method, [torch.ones(2)] * heads, **options)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_of_one(method):
    """The authors' heads lose their first axis there (specification 8.10)."""
    encoder, main, heads = modules(method)
    net = Linear(encoder.weight.detach(), main.weight.detach(), [head.weight.detach() for head in heads])
    x, y, s, _ = data(0, len(heads))
    x, y, s, w = x[:1], y[:1], [labels[:1] for labels in s], WEIGHTS[: len(heads)]
    optimizers = debias_optimizers(encoder, main, heads, method, LR, LR_CLASS)
    found = debias_step(encoder, main, heads, optimizers, x, y, s, method, w, weight=0.5, alpha=0.7)
    reference_step(net, x, y, s, w, method, 0.9, 0.5, 0.7, None, False, False)
    assert [loss.shape for loss in found["loss_auxiliary"]] == [()] * len(heads)
    for name, module in (("encoder", encoder), ("main", main), *((f"head{k}", h) for k, h in enumerate(heads))):
        assert torch.allclose(module.weight, net.weights[name], rtol=1e-10, atol=1e-13), name


def test_missing_labels_of_a_head_are_refused():
    encoder, main, heads = modules("both")
    optimizers = debias_optimizers(encoder, main, heads, "both")
    x, y, s, _ = data(0, 2)
    with pytest.raises(ValueError, match="s holds 1; method 'both' has 2 auxiliary heads"):
        debias_step(encoder, main, heads, optimizers, x, y, s[:1], "both", WEIGHTS)


# --- The point of it all (specification 9) ---------------------------------------------------------------------------


def test_a_fresh_probe_finds_less_skin_type_after_unlearning():
    """Features mix a class signal and a type signal; the types are correlated with the class in training."""

    def samples(n: int, seed: int, correlation: float) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        y = torch.randint(0, 2, (n,), generator=generator)
        agree = torch.rand(n, generator=generator) < correlation
        s = torch.where(agree, y, 1 - y)
        x = torch.randn(n, 12, generator=generator)
        x[:, 0] += 1.0 * (2 * y - 1)
        x[:, 1] += 2.0 * (2 * s - 1)
        return x, y, s

    def trained(method: str, seed: int) -> tuple[float, float]:
        torch.manual_seed(seed)
        encoder, main, heads = nn.Linear(12, 4), nn.Linear(4, 1), [nn.Linear(4, 2) for _ in RECIPES[method].heads]
        optimizers = debias_optimizers(encoder, main, heads, method, 0.1, 0.1, momentum=0.0)
        x, y, s = samples(512, 2, 0.8)
        w = [class_weights(torch.bincount(s))] * len(heads)
        for step in range(400):
            chosen = torch.randperm(512, generator=torch.Generator().manual_seed(step))[:64]
            labels = [s[chosen]] * len(heads)
            debias_step(encoder, main, heads, optimizers, x[chosen], y[chosen], labels, method, w)
        x, y, s = samples(600, 3, 0.5)
        with torch.no_grad():
            features, score = encoder(x).numpy(), main(encoder(x)).numpy()[:, 0]
        probe = LogisticRegression().fit(features[:300], s[:300])
        return roc_auc_score(s[300:], probe.decision_function(features[300:])), roc_auc_score(y, score)

    mean = {
        method: np.mean([trained(method, seed) for seed in range(3)], axis=0) for method in ("none", "lntl", "clgr")
    }
    for method in ("lntl", "clgr"):
        assert mean[method][0] < mean["none"][0] - 0.05, mean
        assert mean[method][1] > mean["none"][1] - 0.02, mean
