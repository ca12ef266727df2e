"""The schedules of MMTL against the specification's sums and lists, and what a mini-batch holds."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmtl_octl import MixedBatches, learning_rate, target_count
from mmtl_octl.schedules import SCHEDULES, TrainingBatches

SIZES = st.integers(1, 64)


def counts(epochs: int, batch_size: int, schedule, **options) -> list[int]:
    return [target_count(e, epochs, batch_size, schedule, **options) for e in range(epochs)]


def test_sums_of_the_papers_setting() -> None:
    assert sum(counts(60, 16, "paper")) == 460
    assert sum(counts(60, 16, "paper0")) == 444
    assert sum(counts(60, 16, "release")) == 480


def test_course_of_the_papers_schedules() -> None:
    paper = counts(60, 16, "paper")
    assert paper[:3] == [0, 0, 0]
    assert paper[3] == 1
    assert paper[56:] == [15, 15, 15, 16]
    paper0 = counts(60, 16, "paper0")
    assert paper0[:5] == [0, 0, 0, 0, 1]
    assert max(paper0) == 15
    release = counts(60, 16, "release")
    assert release == [n for n in range(1, 16) for _ in range(4)]
    assert counts(60, 4, "release")[12:] == [4] * 48


def test_xray_schedule_is_one_epoch_late() -> None:
    assert counts(16, 32, "xray") == [4, 4, 6, 8, 10, 12, 14, 16, 18, 21, 23, 25, 27, 29, 31, 32]


@given(SIZES, SIZES, st.data())
def test_whole_numbers_are_exact(batch_size: int, epochs: int, data: st.DataObject) -> None:
    epoch = data.draw(st.integers(0, epochs - 1))
    assert target_count(epoch, epochs, batch_size) == math.floor(Fraction(epoch + 1, epochs) * batch_size)
    assert target_count(epoch, epochs, batch_size, "paper0") == math.floor(Fraction(epoch, epochs) * batch_size)


def test_floating_point_would_be_one_lower() -> None:
    assert int(15 / 22 * 22) == 14
    assert target_count(15, 22, 22, "paper0") == 15


@given(SIZES, SIZES, st.sampled_from(SCHEDULES), st.booleans())
def test_properties_of_every_schedule(batch_size: int, epochs: int, schedule, keep_source: bool) -> None:
    found = counts(epochs, batch_size, schedule, keep_source=keep_source)
    assert all(0 <= count <= batch_size for count in found)
    assert found == sorted(found)
    if schedule == "target":
        assert found == [batch_size] * epochs
    elif keep_source:
        assert max(found) < batch_size
    elif schedule == "paper":
        assert found[-1] == batch_size


@given(SIZES, SIZES, st.sampled_from(SCHEDULES), st.booleans())
def test_many_epochs_at_once(batch_size: int, epochs: int, schedule, keep_source: bool) -> None:
    expected = counts(epochs, batch_size, schedule, keep_source=keep_source)
    assert all(type(count) is int for count in expected)
    for numbers in (np.arange(epochs), torch.arange(epochs)):
        found = target_count(numbers, epochs, batch_size, schedule, keep_source)
        assert type(found) is type(numbers)
        assert found.dtype == numbers.dtype
        assert found.tolist() == expected


@pytest.mark.parametrize(
    "arguments",
    [(-1, 60, 16), (np.array([3, -1]), 60, 16), (0, 0, 16), (0, 60, 0), (0, 60, 16, "linear")],
    ids=["epoch", "one of many", "epochs", "batch", "name"],
)
def test_bad_arguments(arguments) -> None:
    with pytest.raises(ValueError, match=";"):
        target_count(*arguments)


def test_learning_rate_drops_at_epoch_index_45() -> None:
    assert learning_rate(44) == 1e-3
    assert learning_rate(45) == pytest.approx(1e-4, rel=1e-12)
    assert learning_rate(59, 1e-4, 30) == pytest.approx(1e-5, rel=1e-12)
    expected = [1e-3, 1e-3, 1e-4, 1e-4]
    np.testing.assert_allclose(learning_rate(np.array([0, 44, 45, 59])), expected, rtol=1e-12)
    np.testing.assert_allclose(learning_rate(torch.tensor([0, 44, 45, 59])), expected, rtol=1e-6)


# Mini-batches

SOURCE = [[f"s{p}.{k}" for k in range(5)] for p in range(7)]
TARGET = [[f"t{p}.{k}" for k in range(3 + p)] for p in range(2)]


def test_a_batch_follows_the_schedule() -> None:
    mixed = MixedBatches(SOURCE, TARGET)
    for epoch in (0, 2, 3, 30, 59):
        target, source = mixed.batch(epoch, 99)
        assert len(target) == target_count(epoch, 60, 16)
        assert len(target) + len(source) == 16
        assert all(sample.startswith("t") for sample in target)
        assert all(sample.startswith("s") for sample in source)


def test_a_batch_is_a_pure_function_of_seed_epoch_and_index() -> None:
    one, other = MixedBatches(SOURCE, TARGET, seed=3), MixedBatches(SOURCE, TARGET, seed=3)
    for _ in range(5):
        other.batch(7, 7)
    assert one.batch(31, 4) == other.batch(31, 4)
    different = [MixedBatches(SOURCE, TARGET, seed=4).batch(31, 4), one.batch(31, 5), one.batch(32, 4)]
    assert all(batch != one.batch(31, 4) for batch in different)


def test_both_streams_are_independent() -> None:
    """Specification 8.2: with one stream for both, equal pools would give equal picks."""
    pool = [list(range(100 * p, 100 * p + 100)) for p in range(50)]
    mixed = MixedBatches(pool, pool, epochs=2, batches=400)  # half and half in epoch 0
    pairs = [(t, s) for index in range(400) for t, s in zip(*mixed.batch(0, index), strict=True)]
    same = sum(t // 100 == s // 100 for t, s in pairs)
    # 3,200 pairs with probability 1/50: 64, standard deviation 7.9.
    assert 24 < same < 104


def test_patients_then_samples_are_drawn_uniformly() -> None:
    mixed = MixedBatches([], TARGET, schedule="target", epochs=1, batches=500)
    seen = Counter(sample for index in range(500) for sample in mixed.batch(0, index)[0])
    assert set(seen) == {sample for patient in TARGET for sample in patient}
    # 8,000 draws: one half for each patient, whatever the number of its samples.
    for patient in TARGET:
        expected = 8000 / 2 / len(patient)
        assert all(abs(seen[sample] - expected) < 5 * expected**0.5 for sample in patient)
        assert abs(sum(seen[sample] for sample in patient) - 4000) < 5 * 2000**0.5


def test_schedule_that_is_constant_is_plain_fine_tuning() -> None:
    """Specification 9: the target samples do not depend on the source, and a pure target batch is that of fine-tuning."""
    plain = MixedBatches([], TARGET, epochs=4, schedule="target", seed=5)
    mixed = MixedBatches(SOURCE, TARGET, epochs=4, schedule="paper", seed=5)
    assert mixed.batch(3, 8) == plain.batch(3, 8)
    assert plain.batch(1, 8)[0][: len(mixed.batch(1, 8)[0])] == mixed.batch(1, 8)[0]


def test_pools_that_cannot_be_drawn_from() -> None:
    with pytest.raises(ValueError, match="source pool holds no patient"):
        MixedBatches([], TARGET)
    with pytest.raises(ValueError, match="target pool holds no patient"):
        MixedBatches(SOURCE, [])
    with pytest.raises(ValueError, match="target patient 1 has no samples"):
        MixedBatches(SOURCE, [["a"], []])
    with pytest.raises(ValueError, match="no batch 100 of epoch 0"):
        MixedBatches(SOURCE, TARGET).batch(0, 100)
    with pytest.raises(ValueError, match="no batch 0 of epoch 60"):
        MixedBatches(SOURCE, TARGET).batch(60, 0)
    with pytest.raises(ValueError, match="0 batches an epoch"):
        MixedBatches(SOURCE, TARGET, batches=0)


def test_loaded_batches_follow_the_plan_and_draw_their_own_numbers() -> None:
    def load(sample: int, rng: np.random.Generator) -> dict[str, float]:
        return {"sample": sample, "draw": float(rng.random())}

    mixed = MixedBatches([[0, 1], [2]], [[3]], batch_size=4, epochs=2, batches=3, schedule="paper", seed=1)
    batches = TrainingBatches(load, mixed)
    assert batches.size == 4
    draws = []
    for step in range(6):
        target, source = mixed.batch(step // 3, step % 3)
        batch = batches.batch(step)
        assert batch["sample"].tolist() == [*target, *source]
        draws += batch["draw"].tolist()
    # A target sample that comes often is cropped anew each time.
    assert len(set(draws)) == 24
    assert batches.batch(4)["draw"].tolist() == draws[16:20]
    assert [s for s, _ in zip(batches.batch(3, 1, 2)["sample"].tolist(), range(2), strict=True)] == (
        batches.batch(3)["sample"].tolist()[2:]
    )
