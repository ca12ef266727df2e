from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dart_core.batches import Batches
from dart_core.errors import InputError, SettingError

# Python 3.12 and later warn of a fork where PyTorch has threads; the DataLoader forks by design.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

SIZES = st.integers(1, 40)
BATCH_SIZES = st.integers(1, 12)
SEEDS = st.integers(0, 2**64)
STEPS = st.integers(0, 60)


def noisy(index: int, generator: np.random.Generator) -> dict[str, Any]:
    return {"index": index, "noise": generator.normal(size=3)}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@given(SIZES, BATCH_SIZES, SEEDS, st.integers(1, 4))
def test_without_replacement_every_epoch_is_a_permutation(size: int, batch_size: int, seed: int, epochs: int) -> None:
    batches = Batches(noisy, size, batch_size, seed)
    steps = -(-epochs * size // batch_size)
    drawn = [pair for step in range(steps) for pair in batches.plan(step)][: epochs * size]
    for epoch in range(epochs):
        part = drawn[epoch * size : (epoch + 1) * size]
        assert {e for e, _ in part} == {epoch}
        assert sorted(sample for _, sample in part) == list(range(size))


def test_epochs_differ_and_seeds_differ() -> None:
    batches = Batches(noisy, 50, 50, 1)
    orders = [tuple(s for _, s in b.plan(step)) for b in (batches, Batches(noisy, 50, 50, 2)) for step in range(3)]
    assert len(set(orders)) == 6


@given(SIZES, BATCH_SIZES, SEEDS, STEPS, st.booleans())
def test_batch_is_a_pure_function_of_seed_and_step(size: int, batch: int, seed: int, step: int, repl: bool) -> None:
    visited = Batches(noisy, size, batch, seed, repl)
    for other in (step + 3, 0, step + 1):
        visited.batch(other)
    fresh = Batches(noisy, size, batch, seed, repl)
    assert visited.plan(step) == fresh.plan(step)
    assert equal(visited.batch(step), fresh.batch(step))


@given(SIZES, st.integers(1, 4), st.sampled_from([1, 2, 3, 5]), SEEDS, STEPS, st.booleans())
def test_shares_of_the_ranks_make_up_the_joint_batch(
    size: int, share: int, world: int, seed: int, step: int, repl: bool
) -> None:
    batches = Batches(noisy, size, share * world, seed, repl)
    joint = batches.batch(step)
    shares = [batches.batch(step, rank, world) for rank in range(world)]
    assert all(len(part["index"]) == share for part in shares)
    assert equal(joint, {name: torch.cat([part[name] for part in shares]) for name in joint})
    assert joint["index"].tolist() == [sample for _, sample in batches.plan(step)]


@given(SIZES, SEEDS, st.booleans())
def test_samples_do_not_depend_on_the_batch_size(size: int, seed: int, repl: bool) -> None:
    one, four = Batches(noisy, size, 1, seed, repl), Batches(noisy, size, 4, seed, repl)
    single = [one.batch(step) for step in range(12)]
    joint = [four.batch(step) for step in range(3)]
    for name in ("index", "noise"):
        assert torch.equal(torch.cat([b[name] for b in single]), torch.cat([b[name] for b in joint]))


def test_noise_is_drawn_anew_for_every_epoch_and_sample() -> None:
    for replacement in (False, True):
        batches = Batches(noisy, 10, 10, 0, replacement)
        noise = torch.cat([batches.batch(step)["noise"] for step in range(4)])
        assert len(noise.unique(dim=0)) == 40


def test_with_replacement_is_uniform_and_repeats() -> None:
    batches = Batches(noisy, 8, 100, seed=3, replacement=True)
    drawn = [sample for step in range(80) for _, sample in batches.plan(step)]
    counts = np.array([Counter(drawn)[sample] for sample in range(8)])
    # Chi-square with 7 degrees of freedom; 29.9 is its 99.99 % point.
    assert ((counts - 1000) ** 2 / 1000).sum() < 29.9
    assert max(Counter(drawn[:8]).values()) > 1


def test_global_generators_are_left_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    batches = Batches(noisy, 5, 2, 0)
    assert len(list(batches.loader(0, 3))) == 3
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("replacement", [False, True])
def test_loader_gives_the_same_batches_with_any_number_of_workers(replacement: bool) -> None:
    batches = Batches(noisy, 11, 4, 5, replacement)
    expected = [batches.batch(step, 1, 2) for step in range(3, 12)]
    for workers in (0, 1, 2):
        loaded = list(batches.loader(3, 12, workers, rank=1, world_size=2))
        assert len(loaded) == len(expected)
        assert all(equal(a, b) for a, b in zip(loaded, expected, strict=True))


def test_the_number_of_threads_changes_nothing() -> None:
    def load(index: int, generator: np.random.Generator) -> dict[str, Any]:
        return {"sum": torch.rand(1_000_000 + index, generator=torch.Generator().manual_seed(index)).sum()}

    batches = Batches(load, 16, 16, 0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        here = next(batches.loader(0, 1))
        elsewhere = next(batches.loader(0, 1, workers=1))
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
    assert equal(here, elsewhere)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_can_be_closed_early(workers: int) -> None:
    loader = Batches(noisy, 11, 4, 5).loader(0, 1000, workers)
    next(loader)
    loader.close()
    with pytest.raises(StopIteration):
        next(loader)


@settings(max_examples=20)
@given(SEEDS, STEPS)
def test_survives_pickling(seed: int, step: int) -> None:
    batches = Batches(noisy, 11, 4, seed)
    batches.plan(step)
    assert pickle.loads(pickle.dumps(batches)).plan(step) == batches.plan(step)


def test_arrays_that_torch_does_not_take_as_they_are() -> None:
    frozen = np.arange(6, dtype=np.float32).reshape(2, 3)
    frozen.setflags(write=False)

    def load(index: int, generator: np.random.Generator) -> dict[str, Any]:
        return {
            "flipped": np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::-1],
            "frozen": frozen,
            "big_endian": np.arange(3, dtype=">f4"),
            "number": 0.5,
            "tensor": torch.ones(2, dtype=torch.uint8),
        }

    batch = Batches(load, 3, 2, 0).batch(0)
    assert batch["flipped"].tolist() == [[[2, 1, 0], [5, 4, 3]]] * 2
    assert batch["frozen"].tolist() == [[[0, 1, 2], [3, 4, 5]]] * 2
    assert batch["big_endian"].tolist() == [[0, 1, 2]] * 2
    assert batch["number"].dtype == torch.float32
    assert batch["tensor"].dtype == torch.uint8
    assert all(type(tensor) is torch.Tensor for tensor in batch.values())


def test_tensor_subclasses_become_plain_tensors() -> None:
    class Labelled(torch.Tensor):
        pass

    batches = Batches(lambda i, g: {"x": torch.ones(2).as_subclass(Labelled)}, 2, 2, 0)
    assert type(batches.batch(0)["x"]) is torch.Tensor


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_loading_stay_one_line(workers: int) -> None:
    def load(index: int, generator: np.random.Generator) -> dict[str, Any]:
        raise InputError("cannot be read", where="scan.nii.gz", remedy="copy it again")

    with pytest.raises(InputError) as caught:
        list(Batches(load, 2, 2, 0).loader(0, 2, workers))
    assert str(caught.value) == "scan.nii.gz: cannot be read; copy it again"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (({"x": np.zeros((2, 2))}, {"x": np.zeros((2, 3))}), "shape"),
        (({"x": np.zeros(2)}, {"y": np.zeros(2)}), "'y'"),
        (({"x": "text"}, {"x": "text"}), "'x' of sample . is a str"),
        (({"x": np.array([None])}, {"x": np.array([None])}), "ndarray"),
    ],
)
def test_samples_that_do_not_fit_together(values: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Batches(lambda index, _: values[index], 2, 2, 0).batch(0)


def test_processes_must_share_equally() -> None:
    with pytest.raises(SettingError, match=r"6 samples .* 4 processes"):
        Batches(noisy, 10, 6, 0).batch(0, 0, 4)


@pytest.mark.parametrize(("size", "batch", "seed"), [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_bad_sizes(size: int, batch: int, seed: int) -> None:
    with pytest.raises(SettingError, match="at least"):
        Batches(noisy, size, batch, seed)
