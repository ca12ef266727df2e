"""Trainings that are killed at some moment and resumed, against the ones that nothing happened to: equal to the last bit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aiva import epoch
from aiva.epoch import clusterings
from aiva.features import FeatureStore
from aiva.method import train_aiva
from aiva.settings import Alignment, Training
from aiva.slices import Slices
from aiva.training import Selection
from dart_core.errors import CheckpointError
from dart_core.nets import ResidualUNet2d
from dart_core.run import Run
from dart_core.settings import RunSettings
from dart_core.testing import Trainings, assert_same_run, last_checkpoint

STEPS = {"aiva": 30, "seg-jdot": 20, "adaptsegnet": 14, "target": 24}

Pair = tuple[Slices, Slices]


def assert_same_clusters(one: Path, other: Path) -> None:
    assert (one / "clusters").exists() == (other / "clusters").exists()
    if (one / "clusters").exists():
        for found, expected in zip(clusterings(one), clusterings(other), strict=True):
            assert found.keys() == expected.keys()
            assert all(np.array_equal(found[name], expected[name]) for name in found)


# A crash at every kind of moment, in this process


SETTINGS = Alignment(clusters=3, perplexity=8, iterations_per_epoch=6, acc_amount=7)


def train(out: Path, pair: Pair, resume: bool = False, settings: Alignment = SETTINGS) -> None:
    torch.manual_seed(0)
    network = ResidualUNet2d(out_channels=2, width=2)
    selection = Selection("highest_source", lambda net: float(next(iter(net.parameters())).detach().sum()), 4, 21, 6)
    training = Training(steps=21, batch_size=4, learning_rate=1e-2, log_every=1)
    with Run(RunSettings(out, device="cpu", seed=1, checkpoint_every=4, resume=resume)) as run:
        train_aiva(run, network, *pair, training, settings, selection)


@pytest.fixture(scope="module")
def undisturbed(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    train(out, pair)
    return out


class Crash(Exception):
    """The power fails."""


def crash_at(step: int, moment: str, patch: pytest.MonkeyPatch) -> None:
    """Let a run fail in one of its steps: before it, between the sites' features, while clustering, or just after it."""
    current = [0]

    def counting(run: Run, batch: Any, to_device: Any = Run.to_device) -> Any:
        current[0] = run.step
        if moment == "before" and run.step == step:
            raise Crash
        return to_device(run, batch)

    patch.setattr(Run, "to_device", counting)
    if moment == "between":

        def put(store: FeatureStore, index: Any, features: Any, put: Any = FeatureStore.put) -> None:
            if current[0] == step and store.path.stem == "target":
                raise Crash
            put(store, index, features)

        patch.setattr(FeatureStore, "put", put)
    if moment == "clustering":

        def cluster(*arguments: Any, cluster: Any = epoch.cluster_sites, **options: Any) -> Any:
            if current[0] == step:
                raise Crash
            return cluster(*arguments, **options)

        patch.setattr(epoch, "cluster_sites", cluster)
    if moment == "clustered":

        def save(run: Run, save: Any = Run.save) -> None:
            if current[0] == step and run.step == step:
                raise Crash  # the stores have been cleared, the checkpoint that follows is not there
            save(run)

        patch.setattr(Run, "save", save)
    if moment == "aligned":

        def zero_grad(optimizer: Any, zero_grad: Any = torch.optim.SGD.zero_grad, **options: Any) -> None:
            if current[0] >= step:
                raise Crash
            zero_grad(optimizer, **options)

        patch.setattr(torch.optim.SGD, "zero_grad", zero_grad)


@pytest.mark.parametrize(
    ("step", "moment"),
    [
        (3, "before"), (5, "between"), (6, "clustered"), (7, "between"), (11, "between"), (13, "between"), (14, "aligned"),
        (18, "clustering"), (20, "between"),
    ],
)  # fmt: skip
def test_crash(step: int, moment: str, pair: Pair, undisturbed: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        crash_at(step, moment, patch)
        with pytest.raises(Crash):
            train(tmp_path / "run", pair)
    train(tmp_path / "run", pair, resume=True)
    assert_same_run(tmp_path / "run", undisturbed)
    assert_same_clusters(tmp_path / "run", undisturbed)


def test_many_crashes(pair: Pair, undisturbed: Path, tmp_path: Path) -> None:
    for number, (step, moment) in enumerate(((4, "between"), (6, "clustered"), (10, "before"), (16, "between"))):
        with pytest.MonkeyPatch.context() as patch:
            crash_at(step, moment, patch)
            with pytest.raises(Crash):
                train(tmp_path / "run", pair, resume=number > 0)
    train(tmp_path / "run", pair, resume=True)
    assert_same_run(tmp_path / "run", undisturbed)
    assert_same_clusters(tmp_path / "run", undisturbed)


@pytest.mark.parametrize(("crash", "goes_on"), [(17, True), (13, False)])
def test_a_damaged_checkpoint(crash: int, goes_on: bool, pair: Pair, undisturbed: Path, tmp_path: Path) -> None:
    """The one before is taken, unless a clustering lies between: then rows of its features have been written over."""
    with pytest.MonkeyPatch.context() as patch:
        crash_at(crash, "before", patch)
        with pytest.raises(Crash):
            train(tmp_path / "run", pair)
    older, newest = sorted((tmp_path / "run" / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-10])
    if goes_on:
        train(tmp_path / "run", pair, resume=True)
        assert_same_run(tmp_path / "run", undisturbed)
        assert_same_clusters(tmp_path / "run", undisturbed)
    else:
        with pytest.raises(CheckpointError, match="written over after the clustering at step 12; start anew"):
            train(tmp_path / "run", pair, resume=True)
        assert older.exists()


def test_what_a_checkpoint_holds(pair: Pair, undisturbed: Path, tmp_path: Path) -> None:
    """Also in the middle of an epoch: pending slices, stored gradients, clusters, and which features are on disk."""
    with pytest.MonkeyPatch.context() as patch:
        crash_at(16, "before", patch)
        with pytest.raises(Crash):
            train(tmp_path / "run", pair)
    content = last_checkpoint(tmp_path / "run")
    assert content["step"] == 16
    state = content["state"]
    assert state["clusters"]["step"] == 12
    assert state["accumulator"]["pending"]
    assert state["accumulator"]["count"] > 0
    assert state["gradients"].keys() == {
        name for name, _ in ResidualUNet2d(out_channels=2).named_parameters()
        if not name.startswith(("up", "shortcut", "bottleneck.4", "bottleneck.3.second"))
    }  # fmt: skip
    assert int(state["source_features"]["seen"].sum()) == 16  # four steps of four slices
    assert (tmp_path / "run" / "features" / "source.f16").is_file()


# kill -9 and Ctrl-C, the whole command


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainings]:
    preload = ("aiva.adaptation", "sklearn.manifold", "sklearn.cluster")
    with Trainings("aiva", tmp_path_factory.mktemp("trainings"), preload) as made:
        yield made


@pytest.fixture(scope="module")
def words(datalist: Path, source_model: Path) -> Callable[[str], list[object]]:
    def make(method: str) -> list[object]:
        made: list[object] = ["adapt", "--datalist", datalist, "--preprocessing", "plain", "--target", "ge3"]
        made += ["--method", method, "--steps", STEPS[method], "--batch-size", 4, "--width", 2, "--patch-size", 40]
        made += [] if method == "target" else ["--source-model", source_model]
        if method == "aiva":
            made += ["--clusters", 3, "--perplexity", 8, "--iterations-per-epoch", 9, "--acc-amount", 9]
        made += ["--learning-rate", 1e-3, "--evaluate-every", 8, "--log-every", 1, "--checkpoint-every", 4]
        return [*made, "--device", "cpu"]

    return make


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_killed_at_a_random_step(
    name: str, trainings: Trainings, words: Callable[[str], list[object]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    trainings.assert_survives_kill(words(name), out)
    assert_same_clusters(out, trainings.whole(words(name)))
    assert not (out / "features").exists()


@pytest.mark.slow
def test_stopped_by_ctrl_c(trainings: Trainings, words: Callable[[str], list[object]], tmp_path: Path) -> None:
    trainings.assert_survives_interrupt(words("aiva"), tmp_path / "run")
