"""`train` and `spottune`, killed or stopped at a random step and resumed, against the run that nothing happened to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dart_core.testing import Trainings, last_checkpoint

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")

STEPS = 30

Commands = dict[str, list[object]]


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainings]:
    preload = ("adagrad_unet.commands", "adagrad_unet.spottune")
    with Trainings("adagrad-unet", tmp_path_factory.mktemp("trainings"), preload) as made:
        yield made


@pytest.fixture(scope="module")
def commands(heads: Path, spotted: dict[str, Path]) -> Commands:
    """Thirty steps of each training command."""
    common = ["--epochs", 3, "--batches", 10, "--log-every", 1, "--checkpoint-every", 4, "--device", "cpu"]
    train = ["train", "--channels-last", "--datalist", heads, "--site", "ge3", "--slice-axis", "z", "--base-features", 4, "--max-pools", 2,
             "--batch-size", 2, "--validation-batches", 1, *common]  # fmt: skip
    spot = ["spottune", "--datalist", heads, "--preprocessing", "plain", "--batch-size", 2, "--patch", 32, *common]
    tuned = ["--stage", "spottuned", "--site", "sm15", "--model", spotted["baseline"], "--slices", 9, "--drop-epoch", 1]
    return {
        "train": train,
        "train with adam": [*train, "--optimizer", "adam"],
        "baseline": [*spot, "--site", "ge3", "--width", 2, "--optimizer", "sgd"],
        "spottuned": [*spot, *tuned, "--policy-optimizer", "avagrad", "--policy-learning-rate", 0.1],
    }


@pytest.mark.parametrize(
    "name",
    [
        "train",
        "spottuned",
        pytest.param("train with adam", marks=pytest.mark.slow),
        pytest.param("baseline", marks=pytest.mark.slow),
    ],
)
def test_killed_at_a_random_step(name: str, trainings: Trainings, commands: Commands, tmp_path: Path) -> None:
    trainings.assert_survives_kill(commands[name], tmp_path / "run")
    assert last_checkpoint(tmp_path / "run")["step"] == STEPS


def test_stopped_by_ctrl_c(trainings: Trainings, commands: Commands, tmp_path: Path) -> None:
    trainings.assert_survives_interrupt(commands["train"], tmp_path / "run")


def test_recording_is_part_of_the_state(trainings: Trainings, commands: Commands) -> None:
    """The layers' updates and both optimisers of SpotTUNet lie in the checkpoints."""
    train = last_checkpoint(trainings.whole(commands["train"]))["state"]
    assert set(train) == {"network", "optimizer", "updates"}
    assert train["updates"]["recorded"] == STEPS
    tuned = last_checkpoint(trainings.whole(commands["spottuned"]))["state"]
    assert set(tuned) == {"network", "unet", "policy", "statistics"}
    assert tuned["policy"]["param_groups"][0]["gamma"] > 0
