"""`mmtl-octl adapt` and `pretrain`, killed or stopped and resumed, against the runs that nothing happened to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dart_core.testing import Trainings, last_checkpoint, logged

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")

EPOCHS, BATCHES = 6, 6
STEPS = EPOCHS * BATCHES
METHODS: dict[str, tuple[object, ...]] = {
    "mmtl": ("--method", "mmtl", "--keep", "best"),
    "octl": ("--method", "octl", "--patients", 2),
    "spottune": ("--method", "spottune"),
}

Words = Callable[[str], list[object]]


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainings]:
    with Trainings("mmtl-octl", tmp_path_factory.mktemp("trainings"), ("mmtl_octl.segmentation",)) as made:
        yield made


@pytest.fixture(scope="module")
def words(heads: Any, source_model: Any) -> Words:
    sizes = ("--epochs", EPOCHS, "--batches", BATCHES, "--batch-size", 2, "--drop-epoch", 2, "--log-every", 1,
             "--checkpoint-every", 4, "--learning-rate", 0.01, "--device", "cpu")  # fmt: skip

    def of(method: str) -> list[object]:
        if method == "pretrain":
            return ["pretrain", *heads, *sizes, "--width", 2, "--source", "sm3", "--optimizer", "adam"]
        optimizer = "adam" if method == "octl" else "sgd"
        start = ("--source-model", source_model[optimizer], "--target", "ge15")
        return ["adapt", *heads, *sizes, *start, *METHODS[method]]

    return of


@pytest.mark.parametrize("method", ["mmtl", "octl", "spottune", "pretrain"])
def test_killed_at_a_random_step(method: str, trainings: Trainings, words: Words, tmp_path: Path) -> None:
    trainings.assert_survives_kill(words(method), tmp_path / "run")
    assert last_checkpoint(tmp_path / "run")["step"] == STEPS


def test_states_of_both_spottune_optimisers_are_in_the_checkpoint(trainings: Trainings, words: Words) -> None:
    state = last_checkpoint(trainings.whole(words("spottune")))["state"]
    assert state.keys() == {"network", "optimizer", "best", "policy_optimizer", "policy_statistics"}
    assert all("exp_avg" in value for value in state["policy_optimizer"]["state"].values())
    assert state["policy_statistics"]["samples"] == 2 * STEPS


def test_stopped_by_ctrl_c_in_mid_schedule(trainings: Trainings, words: Words, tmp_path: Path) -> None:
    trainings.assert_survives_interrupt(words("mmtl"), tmp_path / "run")
    shares = [line["target_samples"] for line in logged(tmp_path / "run") if "loss" in line]
    assert shares == [count for count in (0, 0, 1, 1, 1, 2) for _ in range(BATCHES)]


def test_other_settings_are_refused(trainings: Trainings, words: Words) -> None:
    done = trainings.whole(words("mmtl"))
    resumed = trainings.start(*words("mmtl"), "--schedule", "release", "--out", done, "--resume")
    assert resumed.status() == 2
    assert "schedule was paper when the run started and is release now" in resumed.stderr.read_text()
