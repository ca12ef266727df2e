"""The baselines' losses against values by hand and independent forms; what must vanish, and what must have a gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dart_core.losses import deep_supervision_weights
from odex import (
    RWTracker,
    as_coded,
    ewc_penalty,
    fisher_information,
    lwf_loss,
    mib_loss,
    plop_loss,
    plop_thresholds,
    pod_loss,
    prediction_entropy,
    rw_normalise,
    rw_penalty,
    unbiased_ce,
    unbiased_kd,
)
from odex.baselines import entropy_histogram, pseudo_label_loss, thresholds_of


def named(*values: float) -> dict[str, torch.Tensor]:
    return {"a": torch.tensor(values[:2]), "b": torch.tensor(values[2:])}


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- EWC and RW ------------------------------------------------------------------------------------------------------


def test_ewc_by_hand():
    theta = {name: value.requires_grad_() for name, value in named(1.0, 2.0, 3.0).items()}
    star, fisher = named(0.0, 2.0, 1.0), named(2.0, 5.0, 1.0)
    penalty = ewc_penalty(theta, [star], [fisher])
    assert penalty.item() == pytest.approx(0.2 * (2 + 0 + 4))
    penalty.backward()
    torch.testing.assert_close(theta["a"].grad, torch.tensor([0.4 * 2 * 1, 0.0]))
    # every old stage counts, not the first alone
    assert ewc_penalty(theta, [star, star], [fisher, fisher]).item() == pytest.approx(2 * penalty.item())
    assert ewc_penalty(theta, star, fisher, lam=0).item() == 0
    assert ewc_penalty(theta, [], []).item() == 0
    with pytest.raises(ValueError, match="parameter b"):
        ewc_penalty(theta, [star], [{"a": fisher["a"]}])


def test_rw_has_no_half_and_adds_the_score():
    theta, star = named(1.0, 2.0, 3.0), named(0.0, 2.0, 1.0)
    found = rw_penalty(theta, [star], [named(2.0, 5.0, 1.0)], [named(1.0, 0.0, 0.5)])
    assert found.item() == pytest.approx(0.4 * (3 * 1 + 1.5 * 4))
    assert rw_penalty(theta, [star], [named(1, 1, 1)], [named(1, 1, 1)], lam=0).item() == 0


def test_fisher_of_a_linear_model():
    """Gradient of (w x - y)^2 is 2 x (w x - y)."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    unused = nn.Parameter(torch.ones(2))
    model.register_parameter("unused", unused)
    x, y = torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0], [7.0]])
    each = [2 * 1 * (2 - 1), 2 * 3 * (6 - 7)]
    found = fisher_information(model, [(x, y)], lambda out, t: F.mse_loss(out, t))
    assert found["weight"].item() == pytest.approx(np.mean(np.square(each)))
    assert not found["unused"].any()
    batch = fisher_information(model, [(x, y)], lambda out, t: F.mse_loss(out, t), per="batch")
    assert batch["weight"].item() == pytest.approx(np.mean(each) ** 2)
    assert model.weight.grad is None
    with pytest.raises(ValueError, match="no batch"):
        fisher_information(model, [], F.mse_loss)
    with pytest.raises(ValueError, match="per is"):
        fisher_information(model, [(x, y)], F.mse_loss, per="voxel")


def test_lists_of_outputs_are_cut_with_their_labels():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor(1.0))

        def forward(self, x):
            return [self.w * x, self.w * x[:, :1]]

    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found = fisher_information(
        Two(), [(x, [x * 0, x[:, :1] * 0])], lambda out, t: sum((a - b).sum() for a, b in zip(out, t, strict=True))
    )
    assert found["w"].item() == pytest.approx((4**2 + 10**2) / 2)


def test_rw_tracker_by_hand():
    tracker = RWTracker(every=2, alpha=0.9, eps=1e-8)
    theta, g = torch.tensor([1.0]), torch.tensor([2.0])
    tracker.update({"w": theta}, {"w": g})  # 0: snapshot, F = 0.9 g^2
    assert tracker.fisher["w"].item() == pytest.approx(3.6)
    assert tracker.score["w"].item() == 0
    tracker.update({"w": theta - 5}, {"w": g})  # 1: not looked at
    assert tracker.fisher["w"].item() == pytest.approx(3.6)
    moved = torch.tensor([0.5])
    tracker.update({"w": moved}, {"w": torch.tensor([3.0])})  # 2
    assert tracker.score["w"].item() == pytest.approx(3 * 0.5 / (0.5 * 3.6 * 0.25 + 1e-8))
    assert tracker.fisher["w"].item() == pytest.approx(0.9 * 9 + 0.1 * 3.6)
    again = RWTracker(every=2)
    again.load_state_dict(tracker.state_dict())
    tracker.update({"w": moved}, {"w": None})
    again.update({"w": moved}, {"w": None})
    tracker.update({"w": moved * 3}, {"w": torch.tensor([5.0])})
    again.update({"w": moved * 3}, {"w": torch.tensor([5.0])})
    assert again.score["w"] == tracker.score["w"]  # moving against the gradient's sign adds nothing


def test_rw_normalisation_is_over_all_parameters():
    found = rw_normalise(named(1.0, 2.0, 5.0))
    torch.testing.assert_close(found["a"], torch.tensor([0.0, 0.25]))
    torch.testing.assert_close(found["b"], torch.tensor([1.0]))
    assert torch.isfinite(rw_normalise(torch.ones(3))).all()


# --- LwF and MiB -----------------------------------------------------------------------------------------------------


def test_lwf():
    new, old = logits(2, 3, 4, 4, seed=1).requires_grad_(), logits(2, 3, 4, 4, seed=2)
    p, q = (old / 2).softmax(1), (new.detach() / 2).softmax(1)
    assert lwf_loss(new, old).item() == pytest.approx(4 * (p * (p / q).log()).sum(1).mean().item())
    assert lwf_loss(old, old).item() == pytest.approx(0, abs=1e-15)
    lwf_loss(new, old).backward()
    assert new.grad.abs().sum() > 0
    assert lwf_loss(new, [old, old]).item() == pytest.approx(2 * lwf_loss(new, old).item())
    # outputs of deep supervision: the first alone
    assert lwf_loss([new, new], [old, new]).item() == pytest.approx(lwf_loss(new, old).item())


def test_unbiased_losses_of_equal_classes():
    new, old = logits(2, 3, 4, 5, 6, seed=1), logits(2, 3, 4, 5, 6, seed=2)
    labels = torch.randint(0, 3, (2, 4, 5, 6))
    assert unbiased_ce(new, labels, 1).item() == pytest.approx(F.cross_entropy(new, labels).item())
    expected = -((0.9 * old).softmax(1) * new.log_softmax(1)).sum(1).mean() / 3
    assert unbiased_kd(new, old, 0.9).item() == pytest.approx(expected.item())


def test_unbiased_losses_with_a_new_class():
    """Two old classes with the background, and one new: background of the labels is background or class 1."""
    new, old = logits(1, 3, 2, 2, seed=1), logits(1, 2, 2, 2, seed=2)
    p, q = new.softmax(1)[0], old.softmax(1)[0]
    labels = torch.tensor([[[0, 2], [2, 0]]])
    log = torch.stack([(p[0] + p[1]).log(), p[2].log()])
    expected = -(log[0, 0, 0] + log[1, 0, 1] + log[1, 1, 0] + log[0, 1, 1]) / 4
    assert unbiased_ce(new, labels, 2).item() == pytest.approx(expected.item())
    kd = -(q[0] * (p[0] + p[2]).log() + q[1] * p[1].log()).mean() / 2
    assert unbiased_kd(new, old).item() == pytest.approx(kd.item())
    total = mib_loss(new, labels, old, alpha=1.0, lkd=0.5)
    assert total.item() == pytest.approx((expected + 0.5 * kd).item())
    with pytest.raises(ValueError, match="2 classes now, 3 before"):
        unbiased_kd(old, new)


def test_distillation_of_equal_logits_has_no_gradient():
    new = logits(2, 3, 4, 4).requires_grad_()
    unbiased_kd(new, new.detach().clone(), 1.0).backward()
    assert new.grad.abs().max() < 1e-15


def test_mib_over_levels():
    new = [logits(2, 2, 8, 8), logits(2, 2, 4, 4, seed=1), logits(2, 2, 2, 2, seed=2)]
    old = [x + 1 + x**2 for x in new]
    labels = [torch.randint(0, 2, (2, 1, *x.shape[2:])) for x in new]
    weights = deep_supervision_weights(3)
    expected = sum(
        w * (F.cross_entropy(x, y[:, 0]) + 0.1 * unbiased_kd(x, o, 0.9))
        for w, x, y, o in zip(weights, new, labels, old, strict=True)
    )
    assert mib_loss(new, labels, old, lkd=0.1).item() == pytest.approx(expected.item())
    base = sum(w * F.cross_entropy(x, y[:, 0]) for w, x, y in zip(weights, new, labels, strict=True))
    assert mib_loss(new, labels, old, lkd=0).item() == pytest.approx(base.item())
    with pytest.raises(ValueError, match="give one of each per level"):
        mib_loss(new, labels[:2], old)


# --- PLOP ------------------------------------------------------------------------------------------------------------


def test_entropy():
    assert prediction_entropy(torch.full((1, 4, 2), 0.25, dtype=torch.float64)).tolist()[0] == pytest.approx(
        [1, 1], abs=1e-7
    )
    assert prediction_entropy(torch.tensor([[1.0, 0.0]]).double()[..., None]).item() == pytest.approx(0, abs=1e-7)
    found = as_coded.prediction_entropy(torch.full((1, 2, 1), 0.5, dtype=torch.float64)).item()
    assert found == pytest.approx(0.5 / math.log(2), abs=1e-6)  # 0.72


def test_thresholds_are_medians():
    rng = np.random.default_rng(0)
    entropies = torch.from_numpy(rng.beta(2, 8, 4000))
    classes = torch.from_numpy(rng.integers(0, 2, 4000))
    found = plop_thresholds(entropies, classes, 3)
    for c in (0, 1):
        assert found[c].item() == pytest.approx(entropies[classes == c].median().item(), abs=0.005)
    assert found[2].item() == 0.001
    # histograms of parts add up
    parts = sum(entropy_histogram(e, c, 3) for e, c in zip(entropies.split(999), classes.split(999), strict=True))
    torch.testing.assert_close(thresholds_of(parts), found)
    # within its bin by the share of it: 3 of 4 values in bin 10, half of them reached after 2 of these
    assert plop_thresholds(
        torch.tensor([0.1, 0.1, 0.1, 0.5]) + 0.005, torch.zeros(4).long(), 1
    ).item() == pytest.approx((10 + 2 / 3) / 100)


def test_as_coded_thresholds_collapse():
    """Specification 4.6: the running sum of bin numbers never meets half of the counts, and the floor is left."""
    entropies = torch.from_numpy(np.random.default_rng(1).beta(2, 8, 4000))
    classes = torch.zeros(4000).long()
    assert plop_thresholds(entropies, classes, 1).item() == pytest.approx(entropies.median().item(), abs=0.005)
    assert as_coded.plop_thresholds(entropies, classes, 1).item() == 0.001


def test_pseudo_labels_by_hand():
    old = torch.tensor([[[8.0, -8.0, 0.0, 0.0]], [[-8.0, 8.0, 0.0, 0.0]]]).permute(
        1, 0, 2
    )  # sure of 0, sure of 1, unsure
    new = torch.zeros(1, 2, 4)
    labels = torch.tensor([[[0, 0, 0, 1]]])
    found = plop_loss(new, labels, old, torch.tensor([0.1, 0.1]), [], [])
    # two of three background voxels are sure; every CE is log 2
    assert found.item() == pytest.approx(2 / 3 * 2 * math.log(2))
    new = torch.tensor([[[0.0, 3.0, 1.0, 2.0], [0.0, 1.0, 0.0, 0.0]]])
    ce = F.cross_entropy(new, torch.tensor([[0, 1, 0, 1]]), reduction="none")[0]
    expected = 2 / 3 * (ce[:2].mean() + ce[2:].mean())
    assert plop_loss(new, labels, old, torch.tensor([0.1, 0.1]), [], []).item() == pytest.approx(expected.item())


def test_no_background_and_a_batch_of_one():
    new = torch.zeros(1, 2, 3).requires_grad_()
    found = plop_loss(new, torch.ones(1, 1, 3).long(), torch.zeros(1, 2, 3), torch.ones(2), [], [])
    assert found.item() == 0
    found.backward()
    assert torch.isfinite(new.grad).all()
    assert pseudo_label_loss(new, torch.zeros(1, 3).long(), torch.zeros(1, 2, 3), torch.zeros(1, 3).bool()).item() == 0


def test_pod_by_hand():
    new, old = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    scale0 = [1.5, 3.5, 2.0, 3.0]  # means of rows, of columns
    scale1 = [1.0, 1, 2, 2, 3, 3, 4, 4]  # single pixels, twice each
    expected = math.sqrt(sum(v**2 for v in (*scale0, *scale1)))
    assert pod_loss([new], [old]).item() == pytest.approx(expected)  # a scale of four windows does not fit
    assert pod_loss([new], [old], scales=1).item() == pytest.approx(math.sqrt(sum(v**2 for v in scale0)))
    assert pod_loss([new, old], [old, old]).item() == pytest.approx(expected / 2)
    volumes = [torch.stack([x] * 3, 2) for x in (new, old)]
    assert pod_loss(volumes[:1], volumes[1:]).item() == pytest.approx(expected * math.sqrt(3))
    with pytest.raises(ValueError, match="1 new and 0 old"):
        pod_loss([new], [])


def test_pod_has_a_gradient_where_the_program_has_none():
    new, old = logits(2, 3, 8, 8).requires_grad_(), logits(2, 3, 8, 8, seed=1)
    pod_loss([new], [old]).backward()
    assert new.grad.abs().sum() > 0
    same = logits(2, 3, 8, 8).requires_grad_()
    pod_loss([same], [same.detach().clone()]).backward()
    assert torch.isfinite(same.grad).all()
    assert not as_coded.pod_loss([new], [old]).requires_grad
    assert as_coded.pod_loss([new], [old], scales=1).item() == 0  # scale 0 gives nothing
    assert not as_coded.lwf_loss(new, old).requires_grad


def test_plop_is_the_sum_of_its_parts():
    new, old = (
        [logits(2, 2, 8, 8), logits(2, 2, 4, 4, seed=1)],
        [logits(2, 2, 8, 8, seed=2), logits(2, 2, 4, 4, seed=3)],
    )
    labels = [torch.randint(0, 2, (2, 1, *x.shape[2:])) for x in new]
    features = [logits(2, 3, 8, 8, seed=4)], [logits(2, 3, 8, 8, seed=5)]
    base = plop_loss(new, labels, old, torch.tensor([0.9, 0.9]), *features, pod_lambda=0)
    assert base.item() == pytest.approx(plop_loss(new[0], labels[0], old[0], torch.tensor([0.9, 0.9]), [], []).item())
    whole = plop_loss(new, labels, old, torch.tensor([0.9, 0.9]), *features)
    assert whole.item() == pytest.approx((base + 0.01 * pod_loss(*features)).item())


# --- As coded --------------------------------------------------------------------------------------------------------


def test_fisher_of_the_last_batch_carries_the_loss_scale():
    found = as_coded.fisher_of_the_last_batch({"a": torch.tensor([2.0, 0.0]), "b": None}, named(1.0, 1.0, 1.0))
    assert found["a"].tolist() == [4 * 65536.0**2, 0]
    assert found["b"].tolist() == [1]


def test_normalisation_by_the_scores_maxima():
    found = as_coded.normalise_by_scores(named(0.0, 9.0, 5.0), named(1.0, 3.0, 2.0))
    # maxima of the tensors: 3 and 2; values below the minimum become negative
    torch.testing.assert_close(found["a"], torch.tensor([-2.0, 7.0]))
    torch.testing.assert_close(found["b"], torch.tensor([3.0]))
