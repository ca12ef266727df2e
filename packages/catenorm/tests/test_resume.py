"""`catenorm train`, killed or stopped and resumed, against the run that nothing happened to: equal to the last bit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dart_core.testing import Trainings, assert_same_run, last_checkpoint

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")

Words = Callable[[str], list[object]]


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainings]:
    with Trainings("catenorm", tmp_path_factory.mktemp("trainings"), ("catenorm.training", "scipy.ndimage")) as made:
        yield made


@pytest.fixture(scope="module")
def words(data: tuple[object, ...]) -> Words:
    def make(method: str) -> list[object]:
        made: list[object] = ["train", *data, "--method", method, "--width", 4, "--batch-size", 1, "--log-every", 1]
        made += ["--warmup-steps", 5, "--steps", 9, "--plateau-window", 3, "--checkpoint-every", 3]
        made += ["--ms-net-warmup", 4] if method == "ms-net" else []
        return [*made, "--learning-rate", 3e-3, "--device", "cpu", "--seed", 1]

    return make


@pytest.mark.parametrize(
    "method", ["catenorm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("w-net", "ms-net", "dsbn"))]
)
def test_killed_at_a_random_step(method: str, trainings: Trainings, words: Words, tmp_path: Path) -> None:
    trainings.assert_survives_kill(words(method), tmp_path / "run")


@pytest.mark.slow
def test_stopped_by_ctrl_c(trainings: Trainings, words: Words, tmp_path: Path) -> None:
    trainings.assert_survives_interrupt(words("catenorm"), tmp_path / "run")
    assert_same_run(tmp_path / "run", trainings.whole(words("catenorm")))


def test_what_a_checkpoint_holds(trainings: Trainings, words: Words) -> None:
    """The window of the schedule, and Adam's state since the warm-up."""
    content = last_checkpoint(trainings.whole(words("catenorm")))
    assert content["step"] == 14
    assert content["state"].keys() == {"network", "plateau", "optimizer0"}
    assert len(content["state"]["plateau"]["losses"]) == 9 % 3
    steps = {float(value["step"]) for value in content["state"]["optimizer0"]["state"].values()}
    assert steps == {9.0, 18.0}  # shared weights take two steps per iteration


def test_other_settings_are_refused(trainings: Trainings, words: Words) -> None:
    done = trainings.whole(words("catenorm"))
    resumed = trainings.start(*words("catenorm"), "--blocks", 1, "--out", done, "--resume")
    assert resumed.status() == 2
    assert "blocks was None when the run started and is [1] now" in resumed.stderr.read_text()
