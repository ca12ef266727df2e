"""Distortions, losses and schedules against the closed forms of the specification (9.2, 9.3, 9.6 to 9.8, 9.10)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from popar import distort, fine_tune_lr, patchify, popar_loss, pretrain_lr
from popar import method as module
from popar.method import FixedDistortions, Objective, objective_loss, visible
from popar.radiographs import STATISTICS

# --- Losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "expected"), [(196, 5.278115), (49, 3.891820)])
def test_uniform_logits(n, expected):
    x, logits, labels = torch.rand(2, 3, 8, 8), torch.zeros(2, n, n), torch.arange(n).expand(2, n)
    assert popar_loss(logits, labels, x, x, weight=1.0) == pytest.approx(expected, abs=1e-5)
    assert popar_loss(logits, labels, x, x, weight=1.0, reduction="paper") == pytest.approx(n * math.log(n), rel=1e-6)
    assert popar_loss(logits, labels, x, x) == pytest.approx(expected / 2, abs=1e-5)


@given(st.floats(-3, 3))
def test_restoration_off_by_a_constant(c):
    x, logits = torch.rand(2, 3, 16, 16, dtype=torch.float64), torch.zeros(2, 4, 4, dtype=torch.float64)
    labels = torch.arange(4).repeat(2)
    assert popar_loss(logits.flatten(0, 1), labels, x + c, x, 0.0) == pytest.approx(c**2, abs=1e-12)
    assert popar_loss(logits, labels, x + c, x, 0.0, "paper") == pytest.approx(3 * 16**2 * c**2, abs=1e-9)


def test_loss_against_loops():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[0, 1, 2, 3], [3, 1, 0, 2], [2, 2, 1, 0]])
    target, restored = torch.rand(2, 3, 3, 8, 8, generator=generator, dtype=torch.float64)
    order = sum(
        float((torch.logsumexp(logits[b, j], 0) - logits[b, j, labels[b, j]]).detach())
        for b in range(3)
        for j in range(4)
    )
    patches = zip(patchify(target, 4).flatten(0, 1), patchify(restored, 4).flatten(0, 1), strict=True)
    squares = sum(float(((p - r) ** 2).sum()) for p, r in patches)
    paper = popar_loss(logits, labels, restored, target, 0.3, "paper")
    assert paper.item() == pytest.approx(0.3 * order / 3 + 0.7 * squares / 3)
    mean = popar_loss(logits, labels, restored, target, 0.3)
    assert mean.item() == pytest.approx(0.3 * order / 12 + 0.7 * squares / (3 * 3 * 64))
    (gradient,) = torch.autograd.grad(mean, logits)
    expected = logits.softmax(-1) - torch.nn.functional.one_hot(labels, 4)
    assert torch.allclose(gradient, 0.3 * expected / 12)


def test_refused_losses():
    x, logits, labels = torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4), torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="reduction is 'sum'; give mean or paper"):
        popar_loss(logits, labels, x, x, reduction="sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give equal ones"):
        popar_loss(logits, labels, x, x[..., :2])
    with pytest.raises(ValueError, match=r"give \(B, n, n\) and \(B, n\)"):
        popar_loss(logits, labels[:, :3], x, x)


# --- Schedules -------------------------------------------------------------------------------------------------------


def test_pretraining_schedule():
    rates = [pretrain_lr(epoch, 300) for epoch in range(1, 301)]
    assert rates[0] == pytest.approx(0.02)
    assert rates[4] == pytest.approx(0.1)
    assert rates[151] == pytest.approx(0.0502662, abs=1e-7)
    assert rates[299] == pytest.approx(0, abs=1e-12)
    assert max(rates) == pytest.approx(0.1)
    assert pretrain_lr(3, 3) == pytest.approx(0.06)  # shorter than its warm-up
    assert pretrain_lr(1, 10, warmup=0) == pytest.approx(0.1 * 0.5 * (1 + math.cos(math.pi / 10)))


def test_fine_tuning_schedule():
    assert fine_tune_lr(100) == pytest.approx(0.5e-4)
    assert fine_tune_lr(200) == pytest.approx(0, abs=1e-15)
    assert fine_tune_lr(1, 200, 0.01) == pytest.approx(0.01 * 0.5 * (1 + math.cos(math.pi / 200)))


@pytest.mark.parametrize("schedule", [lambda epoch: pretrain_lr(epoch, 10), lambda epoch: fine_tune_lr(epoch, 10)])
def test_schedules_of_many_epochs(schedule):
    epochs = [1, 4, 5, 6, 10]
    rates = [schedule(epoch) for epoch in epochs]
    np.testing.assert_allclose(schedule(np.array(epochs)), rates, rtol=1e-15)
    torch.testing.assert_close(schedule(torch.tensor(epochs)), torch.tensor(rates))


# --- Appearance distortion -------------------------------------------------------------------------------------------


def grey(count, side=48, seed=0):
    field = torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(seed))
    return (0.2 + 0.6 * field).expand(-1, 3, -1, -1).contiguous()


def test_distortion_is_out_of_place_seeded_and_in_range():
    x = grey(16)
    before = x.clone()
    one, other = (distort(x, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(x, before)
    assert torch.equal(one, other)
    assert not torch.equal(one, distort(x, torch.Generator().manual_seed(4)))
    assert one.min() >= 0
    assert one.max() <= 1
    assert one.dtype == x.dtype
    assert distort(x[:0]).shape == (0, 3, 48, 48)
    assert distort(x.double()).dtype == torch.float64


def test_images_have_draws_of_their_own():
    same = grey(1).expand(8, -1, -1, -1)
    found = distort(same, torch.Generator().manual_seed(0))
    assert all(not torch.equal(found[0], found[i]) for i in range(1, 8))


def test_frequencies_of_the_parts(monkeypatch):
    """Shuffling always; the map 0.9, half of all falling; painting 0.9: outside 0.72, inside 0.18."""
    n, seen = 20_000, {}

    def stand_in(x, curves, shuffled, mapped, outer, inner, decreasing, *, channels, points, generator):
        assert torch.equal(curves[:, [0, 3]], torch.tensor([[0.0, 0.0], [1.0, 1.0]]).expand(n, 2, 2))
        assert (channels, points) == ("mixed", 500)
        seen.update(shuffle=shuffled, map=mapped, falling=mapped & decreasing, outer=outer, inner=inner)
        return x

    monkeypatch.setattr(module.genesis, "distort", stand_in)
    distort(torch.zeros(n, 3, 1, 1), torch.Generator().manual_seed(0))
    assert seen["shuffle"].all()
    assert not (seen["outer"] & seen["inner"]).any()
    for name, chance in (("map", 0.9), ("falling", 0.45), ("outer", 0.72), ("inner", 0.18)):
        assert int(seen[name].sum()) == pytest.approx(n * chance, abs=4 * math.sqrt(n * chance * (1 - chance))), name


def test_order_of_the_parts(monkeypatch):
    real, expected = module.genesis.distort, grey(20).clone()

    def one_after_the_other(x, curves, shuffled, mapped, outer, inner, decreasing, *, generator, **rest):
        same = torch.Generator().set_state(generator.get_state())
        for rows, part in (
            (shuffled, lambda some, rows: module.genesis.local_pixel_shuffle(some, generator=same)),
            (mapped, lambda some, rows: module.genesis.nonlinear_intensity(some, curves[rows], decreasing[rows])),
            (outer, lambda some, rows: module.genesis.outer_cutout(some, same)),
            (inner, lambda some, rows: module.genesis.inner_cutout(some, same)),
        ):
            expected[rows] = part(expected[rows], rows)
        return real(x, curves, shuffled, mapped, outer, inner, decreasing, generator=generator, **rest)

    monkeypatch.setattr(module.genesis, "distort", one_after_the_other)
    found = distort(expected.clone(), torch.Generator().manual_seed(0))
    assert torch.equal(found, expected)


def test_shuffling_alone_leaves_a_subset_of_the_values(monkeypatch):
    monkeypatch.setattr(module, "NONLINEAR", 0.0)
    monkeypatch.setattr(module, "PAINT", 0.0)
    x = grey(2)
    for channels in ("mixed", "together"):
        found = distort(x, torch.Generator().manual_seed(0), channels)
        assert all(np.isin(found[i].numpy(), x[i].numpy()).all() for i in range(2))
        same = bool((found[:, 0] == found[:, 1]).all())
        assert same == (channels == "together")  # grey becomes coloured noise only where channels are mixed
    assert torch.equal(distort(torch.full((1, 3, 20, 20), 0.4)), torch.full((1, 3, 20, 20), 0.4))


@pytest.mark.parametrize(
    "x", [torch.zeros(3, 20, 20), torch.zeros(1, 3, 20, 20, dtype=torch.uint8), torch.zeros(1, 3, 8, 20)]
)
def test_refused_images(x):
    with pytest.raises(ValueError, match=r"shape|type"):
        distort(x)


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf])
def test_values_outside_the_range_are_refused(value):
    """One of them is enough: the intensity map would cut it off without a word."""
    x = grey(2)
    x[1, 2, 3, 4] = value
    with pytest.raises(ValueError, match=r"the images have values from .*; give values in \[0, 1\]"):
        distort(x)


# --- Branches --------------------------------------------------------------------------------------------------------


def views_of(objective, count=64, seed=0):
    x = (grey(count, 32) * 255).to(torch.uint8)
    return x, objective.views(x, 8, torch.Generator().manual_seed(seed))


def test_each_image_is_in_one_branch():
    objective = Objective(statistics=STATISTICS["chestxray14"])
    x, views = views_of(objective)
    target = (x.float() / 255 - 0.5056) / 0.252
    assert torch.allclose(views["target"], target, atol=1e-6)
    permuted = views["permuted"]
    assert 0 < permuted.sum() < len(x)
    identity = torch.arange(16)
    assert bool((views["labels"][~permuted] == identity).all())
    assert not bool((views["labels"][permuted] == identity).all(1).any())
    moved = views["input"][permuted]
    patches = patchify(views["target"], 8)[permuted]
    rows = torch.arange(len(moved))[:, None]
    assert torch.equal(patchify(moved, 8), patches[rows, views["labels"][permuted]])
    assert not bool((views["input"][~permuted] == views["target"][~permuted]).flatten(1).all(1).any())


def test_branch_frequency():
    objective = Objective()
    coins = torch.cat([views_of(objective, 400, seed)[1]["permuted"] for seed in range(5)])
    assert coins.float().mean() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(2000))


def test_permutations_are_uniform():
    labels = torch.cat([views_of(Objective(("poc",)), 500, seed)[1]["labels"] for seed in range(4)])
    counts = torch.stack([torch.bincount(labels[:, j], minlength=16) for j in range(16)])
    assert bool(((counts - 2000 / 16).abs() < 5 * math.sqrt(2000 / 16)).all())


@pytest.mark.parametrize(
    ("subtasks", "permuted", "order", "restoration", "weight"),
    [
        (("poc",), "all", "permuted", "none", 1.0),
        (("mpr",), "all", "none", "permuted", 0.0),
        (("mgr",), "none", "none", "appearance", 0.0),
        (("poc", "mpr"), "all", "permuted", "permuted", 0.5),
        (("poc", "mgr"), "some", "both", "appearance", 0.5),
        (("mpr", "mgr"), "some", "none", "both", 0.0),
        (("poc", "mpr", "mgr"), "some", "both", "both", 0.5),
    ],
)
def test_subtasks(subtasks, permuted, order, restoration, weight):
    """The table of specification 2.1 and every other subset."""
    objective = Objective(subtasks)
    _, views = views_of(objective)
    branch = views["permuted"]
    assert {"all": bool(branch.all()), "none": not branch.any(), "some": bool(branch.any() and not branch.all())}[
        permuted
    ]
    members = {
        "permuted": branch, "appearance": ~branch, "both": torch.ones_like(branch), "none": torch.zeros_like(branch),
    }  # fmt: skip
    assert torch.equal(views["order_weight"] > 0, members[order])
    assert torch.equal(views["restoration_weight"] > 0, members[restoration])
    assert objective.weight_of_order(0.5) == weight


def test_order_loss_on_permuted_images_only():
    _, views = views_of(Objective(order_loss_on_appearance=False))
    assert torch.equal(views["order_weight"] > 0, views["permuted"])
    assert views["order_weight"].mean() == pytest.approx(1)


def test_loss_of_parts_adds_up_to_that_of_the_whole():
    """So that accumulating gradients over parts of a batch changes nothing."""
    _, views = views_of(Objective(order_loss_on_appearance=False), 12)
    logits, restored = torch.randn(12, 16, 16), torch.randn(12, 3, 32, 32)
    whole = objective_loss(logits, restored, views, 0.5, "mean")[0]
    parts = [
        objective_loss(logits[s], restored[s], {k: v[s] for k, v in views.items()}, 0.5, "mean")[0] * size / 12
        for s, size in ((slice(0, 5), 5), (slice(5, 12), 7))
    ]
    assert torch.stack(parts).sum() == pytest.approx(whole.item(), rel=1e-5)
    counted = views["permuted"]
    everything = objective_loss(logits, restored, views, 1.0, "mean")[1]
    only = torch.nn.functional.cross_entropy(logits[counted].flatten(0, 1), views["labels"][counted].flatten())
    assert everything.item() == pytest.approx(only.item(), rel=1e-5)


# --- Fixed distortions -----------------------------------------------------------------------------------------------


class Oracle(torch.nn.Module):
    """Knows every patch of some pictures: names where each comes from, and paints it where it belongs."""

    def __init__(self, pictures, statistics):
        super().__init__()
        values = pictures.float() / 255
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in statistics)
        self.known = patchify((values - mean) / std, 8).flatten(2)

    def forward(self, x):
        patches = patchify(x, 8).flatten(2)
        logits = []
        for patch_set in patches:
            # The picture that holds the same patches in whatever order.
            distances = torch.stack([torch.cdist(patch_set, known).min(1).values.sum() for known in self.known])
            logits.append(-torch.cdist(patch_set, self.known[int(distances.argmin())]))
        return torch.stack(logits), torch.zeros_like(x)


def test_fixed_distortions_are_measured_rightly():
    pictures = (grey(5, 32) * 255).to(torch.uint8)
    statistics = STATISTICS["chestxray14"]
    objective = Objective(statistics=statistics)
    fixed = FixedDistortions(pictures, 8, objective)
    again = FixedDistortions(pictures, 8, objective)
    assert torch.equal(fixed.permutation, again.permutation)
    assert torch.equal(fixed.distorted, again.distorted)
    found = fixed.measure(Oracle(pictures, statistics).eval(), torch.device("cpu"))
    target = (pictures.float() / 255 - 0.5056) / 0.252
    assert found["order_accuracy"] == found["identity_accuracy"] == 1
    assert found["mse_permuted"] == pytest.approx(float(target.square().mean()), rel=1e-5)
    assert found["mse_appearance"] == found["mse_permuted"]  # the answer is always 0
    assert set(FixedDistortions(pictures, 8, Objective(("mgr",))).measure(Oracle(pictures, statistics), torch.device("cpu"))) == {"mse_appearance"}  # fmt: skip


def test_examples_can_be_seen():
    pictures = (grey(3, 32) * 255).to(torch.uint8)
    objective = Objective(statistics=STATISTICS["imagenet"])
    rows = FixedDistortions(pictures, 8, objective).examples(
        Oracle(pictures, STATISTICS["imagenet"]), torch.device("cpu"), 2
    )
    assert list(rows) == [
        "radiograph", "patches permuted", "patches permuted: restored", "appearance distorted",
        "appearance distorted: restored",
    ]  # fmt: skip
    assert all(images.shape == (2, 3, 32, 32) for images in rows.values())
    assert torch.allclose(rows["radiograph"], pictures[:2].float() / 255, atol=1e-6)
    assert visible(torch.full((1, 3, 1, 1), 9.0), None).max() == 1
