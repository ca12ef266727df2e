from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from dart_core.errors import SettingError
from metamedseg import MetaUNet, fine_tune_lr, iou_score, reptile_update, task_probabilities, volumetric_indices
from metamedseg.method import task_weights

SOURCES = [
    *["brain"] * 12, *["hippocampus"] * 2, "lung", *["pancreas"] * 2, *["vessel"] * 2, "colon",
]  # fmt: skip
WEIGHTINGS = ("average", "inverse_distance", "complement")
PLACES = ("meta", "mean", "leave_one_out")


def vectors(seed: int, tasks: int, size: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    theta, thetas = torch.randn(size, generator=generator), torch.randn(tasks, size, generator=generator)
    return theta.double(), thetas.double()


class TestTasks:
    @pytest.mark.parametrize(
        ("slices", "step", "count"),
        [
            (1, 1, 1), (7, 1, 7), (15, 1, 15), (16, 2, 8), (20, 2, 10), (29, 2, 15), (30, 2, 15), (31, 3, 11),
            (45, 3, 15), (46, 4, 12), (100, 7, 15), (155, 11, 15),
        ],
    )  # fmt: skip
    def test_the_table_of_the_specification(self, slices, step, count):
        found = volumetric_indices(slices, 15)
        assert list(found) == [step * i for i in range(count)]

    @given(slices=st.integers(0, 400), shots=st.integers(1, 40))
    def test_evenly_spaced_and_never_too_many(self, slices, shots):
        found = volumetric_indices(slices, shots)
        assert len(found) <= min(shots, slices)
        assert len(set(np.diff(found).tolist())) <= 1
        assert list(found[:1]) == [0] * bool(slices)
        if slices:
            assert slices - 1 - found[-1] < max(1, -(-slices // shots))

    def test_no_shots(self):
        with pytest.raises(SettingError, match="at least 1 shot"):
            volumetric_indices(4, 0)

    def test_organs_are_equally_likely(self):
        found = task_probabilities(SOURCES)
        assert found.sum() == pytest.approx(1, abs=1e-12)
        assert found[0] == pytest.approx(1 / 72, rel=1e-12)
        assert found[-1] == pytest.approx(1 / 6, rel=1e-12)
        all24 = [*SOURCES, "heart", "spleen", "prostate", "prostate"]
        assert task_probabilities(all24)[0] == pytest.approx(1 / 108, rel=1e-12)
        assert task_probabilities(all24)[-3] == pytest.approx(1 / 9, rel=1e-12)
        draws = np.random.default_rng(0).choice(len(SOURCES), 100_000, p=found)
        assert (draws < 12).mean() == pytest.approx(1 / 6, abs=0.005)
        with pytest.raises(SettingError, match="no data set"):
            task_probabilities([])


class TestUpdate:
    def test_inverse_distances_by_hand(self):
        theta = torch.zeros(2, dtype=torch.float64)
        thetas = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
        weights, distances = task_weights(theta, thetas)
        assert distances.tolist() == [1, 4]
        assert_allclose(weights, [0.8, 0.2])
        assert_allclose(reptile_update(theta, thetas, 0.5), [0.4, 0.2])

    @pytest.mark.parametrize("weighting", WEIGHTINGS)
    @pytest.mark.parametrize("place", PLACES)
    @given(seed=st.integers(0, 1000), tasks=st.integers(2, 6), factor=st.floats(0.1, 10))
    def test_weights(self, weighting, place, seed, tasks, factor):
        theta, thetas = vectors(seed, tasks)
        weights, _ = task_weights(theta, thetas, weighting, place)
        assert float(weights.sum()) == pytest.approx(1, abs=1e-12)
        order = torch.randperm(tasks, generator=torch.Generator().manual_seed(seed))
        moved, _ = task_weights(theta, thetas[order], weighting, place)
        assert_allclose(moved, weights[order], rtol=1e-10)
        if weighting != "complement":  # which adds 1e-4
            scaled, _ = task_weights(theta * factor, thetas * factor, weighting, place)
            assert_allclose(scaled, weights, rtol=1e-9)
        else:
            assert float(weights.max()) <= 1 / (tasks - 1) + 1e-9

    @pytest.mark.parametrize("weighting", WEIGHTINGS)
    def test_equal_tasks_are_averaged(self, weighting):
        theta, thetas = vectors(3, 1)
        target = thetas[0]
        found = reptile_update(theta, [target, target, target], 0.3, weighting)
        assert_allclose(found, theta + 0.3 * (target - theta), rtol=1e-12)
        equal = torch.stack([theta + unit for unit in torch.eye(7, dtype=torch.float64)])
        assert_allclose(reptile_update(theta, equal, 0.3, weighting), reptile_update(theta, equal, 0.3, "average"))

    @pytest.mark.parametrize("weighting", [*WEIGHTINGS, "as_coded"])
    @pytest.mark.parametrize("place", PLACES)
    def test_one_task_and_the_whole_way(self, weighting, place):
        theta, thetas = vectors(4, 1)
        assert_allclose(reptile_update(theta, thetas, 1.0, weighting, place), thetas[0], rtol=1e-12)

    def test_distances(self):
        theta, thetas = vectors(5, 3)
        _, to_mean = task_weights(theta, thetas, distance_to="mean")
        assert_allclose(to_mean, ((thetas - thetas.mean(0)) ** 2).sum(1))
        _, to_others = task_weights(theta, thetas, distance_to="leave_one_out")
        assert float(to_others[0]) == pytest.approx(float(((thetas[0] - (thetas[1] + thetas[2]) / 2) ** 2).sum()))

    def test_a_task_that_did_not_move_gets_the_limit(self):
        theta, thetas = vectors(6, 2)
        weights, _ = task_weights(theta, torch.stack([theta, thetas[1]]))
        assert_allclose(weights, [1, 0], atol=1e-11)
        even, _ = task_weights(theta, torch.stack([theta, theta]))
        assert_allclose(even, [0.5, 0.5])

    @pytest.mark.parametrize("weighting", [*WEIGHTINGS, "as_coded"])
    @pytest.mark.parametrize("place", PLACES)
    def test_no_task_moved(self, weighting, place):
        theta, _ = vectors(7, 1)
        if weighting != "as_coded":
            assert_allclose(task_weights(theta, theta.expand(3, -1), weighting, place)[0], [1 / 3] * 3)
        assert_allclose(reptile_update(theta, [theta] * 3, 0.5, weighting, place), theta)

    def test_complement_by_hand(self):
        theta = torch.zeros(1, dtype=torch.float64)
        thetas = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
        shares = (np.array([1.0, 4.0, 9.0]) + 1e-4) / (14 + 1e-4)
        expected = (1 - shares) / (1 - shares).sum()
        assert_allclose(task_weights(theta, thetas, "complement")[0], expected, rtol=1e-12)

    def test_the_update_as_coded_depends_on_the_order(self):
        # Five tasks at equal distance have weight 0.2 each; the authors' loop multiplies the running sum.
        theta = torch.zeros(5, dtype=torch.float64)
        found = reptile_update(theta, torch.eye(5, dtype=torch.float64), 1.0, "as_coded")
        assert_allclose(found, [0.00032, 0.0016, 0.008, 0.04, 0.2], rtol=1e-6)

    def test_state_dicts(self):
        torch.manual_seed(0)
        networks = [MetaUNet(width=2, norm="batch") for _ in range(3)]
        theta, *others = (network.state_dict() for network in networks)
        for number, state in enumerate(others, 1):
            state["down.0.1.num_batches_tracked"] = torch.tensor(100 * number)
        found = reptile_update(theta, others, 0.5)
        assert found.keys() == theta.keys()
        assert found["down.0.1.num_batches_tracked"] == 0
        names = [name for name, value in theta.items() if value.is_floating_point()]
        flat = [torch.cat([state[name].flatten() for name in names]) for state in (theta, *others)]
        expected = reptile_update(flat[0], flat[1:], 0.5)
        torch.testing.assert_close(torch.cat([found[name].flatten() for name in names]), expected)
        for name, value in networks[0].state_dict().items():
            assert torch.equal(value, theta[name])

    def test_arrays_and_mistakes(self):
        theta, thetas = vectors(8, 3)
        found = reptile_update(theta.numpy(), list(thetas.numpy()), 0.2)
        assert isinstance(found, np.ndarray)
        assert_allclose(found, reptile_update(theta, list(thetas), 0.2))
        for arguments in ({"weighting": "far"}, {"distance_to": "far"}):
            with pytest.raises(SettingError, match="'far' is unknown"):
                reptile_update(theta, thetas, 0.1, **arguments)
        with pytest.raises(SettingError, match="no task"):
            reptile_update(theta, [], 0.1)


def test_learning_rates():
    rates = [fine_tune_lr(epoch) for epoch in range(20)]
    assert rates == pytest.approx([0.005 * 0.7 ** (epoch // 2) for epoch in range(20)])
    assert rates[-1] == pytest.approx(2.0177e-4, rel=1e-4)
    assert fine_tune_lr(7, 0.01, 0.8, 1) == pytest.approx(0.01 * 0.8**7)


def test_intersection_over_union():
    mask = torch.zeros(4, 1, 4, 4)
    mask[:2, :, :2] = 1
    logits = torch.full((4, 1, 4, 4), -5.0)
    logits[0, :, 1:3] = 5
    logits[2] = 0  # probability 0.5 is background
    logits[3, 0, 0, 0] = 1e-9  # so is one that cannot be told from it
    found = iou_score(logits, mask)
    assert_allclose(found, [(4 + 1e-4) / (12 + 1e-4), 1e-4 / (8 + 1e-4), 1, 1], rtol=1e-5)
    assert_allclose(iou_score(logits.numpy(), mask.numpy()), found)
    assert iou_score(logits.double(), mask.bool()).dtype == torch.float64
