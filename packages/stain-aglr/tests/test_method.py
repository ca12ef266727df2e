"""Losses against closed forms, their gradients, the schedule, balanced batches (specification 2.4, 2.5, 9)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax

from dart_core.errors import SettingError
from stain_aglr import PlateauUntil, consistency_loss, regeneration_loss, stain_aglr_loss
from stain_aglr.light import HEDLight
from stain_aglr.method import BalancedBatches, BestEpoch, batches_per_epoch, cross_entropy, views, weights_of
from stain_aglr.networks import PatchClassifier, StainAgLr
from stain_aglr.settings import ALTERED, GanTraining, Losses

LOGITS = st.lists(st.floats(-30, 30), min_size=2, max_size=2)


def double(values):
    return torch.tensor(values, dtype=torch.float64)


# --- Consistency -----------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(LOGITS, LOGITS), min_size=1, max_size=5))
def test_consistency_is_scipys_relative_entropy(pairs):
    raw, altered = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    expected = rel_entr(softmax(raw, 1), softmax(altered, 1)).sum() / len(pairs)
    found = float(consistency_loss(double(raw), double(altered)))
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert found >= -1e-12
    assert float(consistency_loss(double(raw), double(altered), reduction="mean")) == pytest.approx(
        expected / 2, abs=1e-12
    )


@pytest.mark.parametrize("e", [0.01, 0.2, 0.5])
def test_consistency_of_mirrored_predictions(e):
    raw, altered = double([[1 - e, e]]).log(), double([[e, 1 - e]]).log()
    assert float(consistency_loss(raw, altered)) == pytest.approx((1 - 2 * e) * math.log((1 - e) / e), abs=1e-12)


def test_consistency_looks_from_the_raw_patch():
    raw, altered = double([[3.0, 0.0]]), double([[0.5, 0.0]])
    assert float(consistency_loss(raw, altered)) != pytest.approx(float(consistency_loss(altered, raw)), rel=0.1)


def test_consistency_ignores_constants_and_stands_large_logits():
    raw, altered = double([[1.0, -2.0], [0.3, 0.1]]), double([[0.5, 0.2], [1.0, 3.0]])
    shifted = consistency_loss(raw + 7, altered - double([[3.0], [100.0]]))
    assert float(shifted) == pytest.approx(float(consistency_loss(raw, altered)))
    assert float(consistency_loss(raw, raw)) == 0
    extreme = torch.tensor([[1000.0, -1000.0]], requires_grad=True)
    loss = consistency_loss(extreme, -extreme)
    loss.backward()
    assert loss.item() == 2000
    assert torch.isfinite(extreme.grad).all()


@pytest.mark.parametrize("detach", [False, True])
def test_gradients_of_consistency(detach):
    raw, altered = (torch.randn(5, 2, dtype=torch.float64).requires_grad_() for _ in range(2))
    consistency_loss(raw, altered, detach_target=detach).backward()
    p, q = raw.detach().softmax(1), altered.detach().softmax(1)
    torch.testing.assert_close(altered.grad, (q - p) / 5)
    if detach:
        assert raw.grad is None
    else:
        ratio = p.log() - q.log()
        divergence = (p * ratio).sum(1, keepdim=True)
        torch.testing.assert_close(raw.grad, p * (ratio - divergence) / 5)


def test_consistency_refuses_nonsense():
    with pytest.raises(ValueError, match="reduction is 'sum'"):
        consistency_loss(torch.zeros(2, 2), torch.zeros(2, 2), reduction="sum")
    with pytest.raises(ValueError, match="shapes"):
        consistency_loss(torch.zeros(2, 2), torch.zeros(3, 2))


# --- Regeneration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "factor"), [("pixel", 3), ("element", 1)])
def test_regeneration(form, factor):
    raw = torch.rand(4, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    assert regeneration_loss(raw, raw, form).item() == 0
    assert regeneration_loss(raw + 0.1, raw, form).item() == pytest.approx(factor * 0.01)
    r = torch.rand(4, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    loss = regeneration_loss(r, raw, form)
    loss.backward()
    expected = ((r - raw) ** 2).sum((1, 2, 3)).mean() / (5 * 6) * factor / 3
    assert loss.item() == pytest.approx(expected.item())
    assert raw.grad is None
    torch.testing.assert_close(r.grad, 2 * (r - raw).detach() / (4 * 5 * 6) * factor / 3)


def test_regeneration_refuses_nonsense():
    with pytest.raises(ValueError, match="form is 'sum'"):
        regeneration_loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), "sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shapes"):
        regeneration_loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 4, 4))


# --- The sum ---------------------------------------------------------------------------------------------------------


def test_loss_is_the_weighted_sum():
    raw, altered, labels = double([[1.0, 0.2], [-1.0, 2.0]]), double([[0.5, 0.4], [0.0, 1.0]]), torch.tensor([0, 1])
    patches, regenerated = torch.rand(2, 2, 3, 4, 4, dtype=torch.float64)
    p = np.concatenate([softmax(raw, 1), softmax(altered, 1)])
    entropy = -np.log(p[np.arange(4), [0, 1, 0, 1]]).mean()
    parts = (
        entropy,
        0.3 * float(regeneration_loss(regenerated, patches)),
        7 * rel_entr(p[:2], p[2:]).sum() / 2,
    )
    found = stain_aglr_loss(raw, altered, labels, regenerated, patches, 0.3, 7.0)
    assert float(found) == pytest.approx(sum(parts))
    usual = stain_aglr_loss(raw, altered, labels, regenerated, patches)
    assert float(usual) == pytest.approx(parts[0] + parts[1] / 3 + parts[2] / 0.7)


def test_cross_entropy_of_both_is_ordinary_training_on_both():
    raw, altered, labels = torch.randn(3, 2), torch.randn(3, 2), torch.tensor([0, 1, 1])
    both = torch.nn.functional.cross_entropy(torch.cat([raw, altered]), torch.cat([labels, labels]))
    assert float(stain_aglr_loss(raw, altered, labels, None, None, 0.0, 0.0)) == pytest.approx(float(both))
    halves = [float(cross_entropy(raw, altered, labels, on)) for on in ("raw", "altered")]
    assert sum(halves) / 2 == pytest.approx(float(both), rel=1e-6)


def step(lambda1, lambda2, ce_on="both"):
    torch.manual_seed(0)
    network = StainAgLr(width=2)
    raw, altered = torch.rand(2, 4, 3, 32, 32)
    logits_raw, logits_altered, regenerated = network(raw, altered)
    for logits in (logits_raw, logits_altered):
        logits.retain_grad()
    stain_aglr_loss(
        logits_raw, logits_altered, torch.tensor([0, 1, 0, 1]), regenerated, raw, lambda1, lambda2, ce_on
    ).backward()
    return network, logits_raw, logits_altered


def test_no_gradient_reaches_what_a_weight_of_0_leaves_out():
    network, *_ = step(0.0, 10.0)
    assert all(p.grad is None for p in network.generator.parameters())
    _, logits_raw, logits_altered = step(0.1, 0.0, "altered")
    assert logits_raw.grad is None or not logits_raw.grad.any()
    assert logits_altered.grad.any()


def test_regeneration_sends_no_gradient_into_the_classifier():
    torch.manual_seed(0)
    network = StainAgLr(width=2)
    raw, altered = torch.rand(2, 4, 3, 32, 32)
    regeneration_loss(network(raw, altered)[2], raw).backward()
    assert all(p.grad is None for p in network.patch_classifier.classifier.parameters())
    assert all(p.grad is not None for p in network.patch_classifier.features.parameters())


def test_loss_needs_patches_to_regenerate():
    with pytest.raises(ValueError, match="needs patches"):
        stain_aglr_loss(torch.zeros(2, 2), torch.zeros(2, 2), torch.tensor([0, 1]), None, None)
    with pytest.raises(ValueError, match="ce_on is 'none'"):
        stain_aglr_loss(torch.zeros(2, 2), torch.zeros(2, 2), torch.tensor([0, 1]), None, None, 0, 0, "none")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("vanilla", (0.0, 0.0, "raw")),
        ("vahadane", (0.0, 0.0, "raw")),
        ("hed", (0.0, 0.0, "altered")),
        ("hed-reg", (0.1, 0.0, "both")),
        ("hed-cons", (0.0, 10.0, "both")),
        ("stain-aglr", (0.1, 10.0, "both")),
    ],
)
def test_rows_of_the_tables(method, expected):
    assert weights_of(method, Losses()) == expected
    assert weights_of("stain-aglr", Losses(0.5, 2.0, "altered")) == (0.5, 2.0, "altered")
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    raw, altered = views(images, method, HEDLight(), torch.Generator().manual_seed(0), expected[2] != "altered")
    assert (altered is not None) == (method in ALTERED)
    assert (raw is None) == (method == "hed")


# --- Schedule --------------------------------------------------------------------------------------------------------


def epochs(learning_rate, patience, losses):
    """Epochs until the end, and the learning rate then."""
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], learning_rate)
    plateau = PlateauUntil(optimizer, patience)
    for epoch, loss in enumerate(losses, 1):
        if plateau.step(loss):
            return epoch, optimizer.param_groups[0]["lr"]
    raise AssertionError("it does not end")


def test_constant_loss_lasts_as_long_as_the_specification_says():
    assert epochs(1e-2, 4, [1.0] * 100) == (16, pytest.approx(1e-5))
    assert epochs(5e-3, 15, [1.0] * 100) == (49, pytest.approx(5e-6))


def test_tiny_progress_does_not_count():
    assert epochs(1e-2, 4, [1.0 - 1e-6 * i for i in range(100)])[0] == 16
    with pytest.raises(AssertionError, match="does not end"):
        epochs(1e-2, 4, [0.99**i for i in range(100)])


def test_plateau_goes_on_where_it_was():
    def made():
        optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], 1e-2)
        return optimizer, PlateauUntil(optimizer, 2)

    first, plateau = made()
    ends = [plateau.step(1.0) for _ in range(20)]
    for stop in (1, 5, 7):
        one, before = made()
        for _ in range(stop):
            before.step(1.0)
        other, after = made()
        other.load_state_dict(one.state_dict())
        after.load_state_dict(before.state_dict())
        assert [after.step(torch.tensor(1.0)) for _ in range(20 - stop)] == ends[stop:]
        assert other.param_groups[0]["lr"] == first.param_groups[0]["lr"]


def test_best_epoch_is_the_first_of_the_lowest():
    best, network = BestEpoch(), PatchClassifier(width=1)
    for epoch, loss in enumerate([3.0, 1.0, 1.0, 2.0, float("nan")], 1):
        with torch.no_grad():
            network.classifier.logits.bias.fill_(epoch)
        best.offer(loss, epoch, network)
    assert (best.epoch, best.loss) == (2, 1.0)
    assert best.weights["classifier.logits.bias"].tolist() == [2, 2]
    other = BestEpoch()
    other.load_state_dict(best.state_dict())
    assert (other.epoch, other.loss) == (2, 1.0)


# --- Batches ---------------------------------------------------------------------------------------------------------


def test_balanced_batches():
    labels = np.array([0] * 90 + [1] * 10)
    batches = BalancedBatches(lambda i, rng: {"label": labels[i], "index": i}, labels, 16, 3)
    seen = set()
    for s in range(40):
        batch = batches.batch(s)
        assert int(batch["label"].sum()) == 8
        assert batch["index"].tolist() == batches.batch(s)["index"].tolist()
        halves = [batches.batch(s, rank, 2) for rank in range(2)]
        assert [int(half["label"].sum()) for half in halves] == [4, 4]
        assert torch.cat([half["index"] for half in halves]).tolist() == batch["index"].tolist()
        seen |= set(batch["index"].tolist())
    assert len(seen) > 90
    assert batches.batch(0)["index"].tolist() != batches.batch(1)["index"].tolist()


@pytest.mark.parametrize(("labels", "size", "words"), [([0, 0], 2, "a class has no patch"), ([0, 1], 3, "size is 3")])
def test_batches_that_cannot_be_balanced(labels, size, words):
    with pytest.raises(SettingError, match=words):
        BalancedBatches(lambda i, rng: {}, labels, size, 0)


def test_length_of_an_epoch():
    assert [batches_per_epoch(n, 64) for n in (64, 65, 4272)] == [1, 2, 67]


def test_a_gans_settings_of_zero_are_not_its_defaults():
    assert GanTraining(gan_learning_rate=0.0).rate_of("stst-gan") == 0
    assert GanTraining().rate_of("stst-gan") == 2e-4
    assert (GanTraining(gan_epochs=1).epochs_of("dscsi-gan"), GanTraining().epochs_of("dscsi-gan")) == (1, 8)
    with pytest.raises(SettingError, match="--gan-epochs is 0"):
        GanTraining(gan_epochs=0)
