from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dart_core.errors import InputError, SettingError
from metamedseg import dawoud_losses, losses
from metamedseg.baselines import DawoudTrainer, Pooled
from metamedseg.datasets import read_slices
from metamedseg.method import ReptileTrainer, cpu_state, local_network
from metamedseg.settings import Dawoud, Inner, Network, Tasks

NETWORK, INNER = Network(width=2), Inner(inner_epochs=2)


def tensors(n: int, m: int, k: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return draw(n, 1, 4, 4), (draw(n, 1, 4, 4) > 0.5).double(), draw(m, 1, 4, 4), draw(n, 3, 2, 2), draw(k, 3, 2, 2)


class TestDawoudLosses:
    def test_by_hand(self):
        logits, mask, other, features, further = tensors(3, 2, 5)
        found = dawoud_losses(logits, mask, other, features, further, alpha=0.1, beta=2.0)
        p = torch.sigmoid(other)
        torch.testing.assert_close(found["bce"], losses.weighted_bce(logits, mask))
        torch.testing.assert_close(found["entropy"], (-p * torch.log(p)).mean())
        torch.testing.assert_close(found["distance"], ((features - further[:3]) ** 2).mean())
        torch.testing.assert_close(found["total"], found["bce"] + 0.1 * found["entropy"] + 2 * found["distance"])

    def test_full_entropy_and_certainty(self):
        logits, mask, other, features, further = tensors(2, 2, 2)
        even = dawoud_losses(logits, mask, other * 0, features, further, entropy="full")["entropy"]
        assert float(even) == pytest.approx(math.log(2), rel=1e-12)
        certain = dawoud_losses(logits, mask, other.sign() * 800, features, further, entropy="full")["entropy"]
        assert float(certain) == pytest.approx(0, abs=1e-12)

    def test_gradient_goes_into_both_features(self):
        logits, mask, other, features, further = tensors(2, 2, 3)
        features.requires_grad_()
        further.requires_grad_()
        dawoud_losses(logits, mask, other, features, further)["total"].backward()
        torch.testing.assert_close(features.grad, -further.grad[:2])
        assert not further.grad[2].any()


class TestTrainers:
    @pytest.fixture
    def sources(self, slices):
        return [one for one in read_slices(slices).values() if one.name != "spleen"]

    def make(self, kind: str, sources, definition=Tasks(shots=3)):  # noqa: B008 (frozen)
        if kind == "dawoud":
            return DawoudTrainer(sources, definition, INNER, Dawoud(), NETWORK, 0)
        return ReptileTrainer(sources, definition, INNER, NETWORK, 0)

    @pytest.mark.parametrize("kind", ["reptile", "dawoud"])
    def test_a_task_is_a_function_of_step_and_weights(self, kind, sources):
        torch.manual_seed(0)
        trainer = self.make(kind, sources)
        theta = cpu_state(local_network(NETWORK, trainer.hardware))
        before = {name: value.clone() for name, value in theta.items()}
        first = trainer.train(3, theta, torch.device("cpu"))
        trainer.train(4, theta, torch.device("cpu"))
        again = self.make(kind, sources).train(3, theta, torch.device("cpu"))
        assert (first.dataset, first.losses) == (again.dataset, again.losses)
        for name, value in theta.items():
            assert torch.equal(value, before[name])
            assert torch.equal(first.state[name], again.state[name])
        assert any(not torch.equal(first.state[name], theta[name]) for name in theta)

    def test_dawoud_takes_every_source_in_turn(self, sources):
        trainer = self.make("dawoud", sources)
        assert trainer.per_epoch == 3
        theta = cpu_state(local_network(NETWORK, trainer.hardware))
        names = [trainer.train(step, theta, torch.device("cpu")).dataset for step in range(3)]
        assert names == [source.name for source in sources]
        with pytest.raises(SettingError, match="two or more"):
            self.make("dawoud", sources[:1])

    def test_only_the_task_of_dawoud_is_of_one_volume(self, sources):
        trainer = self.make("dawoud", sources, Tasks("volumetric", shots=4))
        counts = []
        for step in range(12):
            drawn, _ = trainer.draw(step)
            assert {one.name for one, _ in drawn} == {source.name for source in sources}
            assert [len(places) for _, places in drawn] == [4, 4, 4]
            assert {one.rows[place].split for one, places in drawn for place in places} == {"train"}
            counts.append([len({one.rows[place].volume for place in places}) for one, places in drawn])
        assert {task for task, _, _ in counts} == {1}
        assert all(max(others) > 1 for others in zip(*((b, c) for _, b, c in counts), strict=True))

    def test_volumetric_tasks_hold_one_volume_and_standard_ones_several(self, sources):
        for tasks, count in (("volumetric", 1), ("standard", 2)):
            trainer = self.make("reptile", sources, Tasks(tasks, shots=3))
            volumes = []
            for step in range(12):
                source, places, _ = trainer.draw(step)
                assert len(set(places)) == len(places) <= 3
                assert {source.rows[place].split for place in places} == {"train"}
                volumes.append(len({source.rows[place].volume for place in places}))
            assert max(volumes) >= count
            assert tasks == "standard" or max(volumes) == 1

    def test_organs_are_drawn_alike(self, sources):
        trainer = self.make("reptile", sources)
        drawn = [trainer.draw(step)[0].organ for step in range(400)]
        assert 0.4 < drawn.count("kidney") / 400 < 0.6  # two of the three data sets

    def test_visits_slow_a_task_down(self, sources):
        theta = cpu_state(local_network(NETWORK, self.make("reptile", sources).hardware))
        moved = []
        for decay in (False, True):
            trainer = ReptileTrainer(sources[:1], Tasks(shots=3), Inner(inner_epochs=1, visit_decay=decay), NETWORK, 0)
            state = trainer.train(9, theta, torch.device("cpu")).state
            moved.append(max(float((state[name] - theta[name]).abs().max()) for name in theta))
        assert moved[1] < 0.2 * moved[0]  # the tenth visit: a tenth of the learning rate

    def test_replacement(self, sources):
        trainer = self.make("reptile", sources, Tasks("standard", shots=40, replacement="on"))
        assert len(trainer.draw(0)[1]) == 40
        assert len(self.make("reptile", sources, Tasks("standard", shots=40)).draw(0)[1]) == 12


def test_pooled_slices(slices):
    sets = [one.split("train") for one in read_slices(slices).values()]
    assert len(Pooled(sets)) == 48
    few = Pooled(sets, most=3)
    assert len(few) == 12
    assert [place for number, place in few.places if number == 0] == [0, 6, 11]
    sample = few(5, np.random.default_rng(0))
    assert sample["image"].shape == sample["mask"].shape == (1, 16, 16)
    with pytest.raises(InputError, match="no training slice"):
        Pooled([])
