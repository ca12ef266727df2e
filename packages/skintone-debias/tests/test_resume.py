"""`skintone-debias train`, killed or stopped and resumed, against the runs that nothing happened to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dart_core.testing import Trainings, last_checkpoint

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")

EPOCHS, PER_EPOCH = 12, 3
STEPS = EPOCHS * PER_EPOCH
METHODS: dict[str, tuple[object, ...]] = {
    "clgr": ("--debias", "clgr", "--confusion-target", "noise"),
    "both": ("--debias", "both", "--zero-grad-mode", "zero", "--deep-heads"),
}


Words = Callable[[str], list[object]]


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainings]:
    with Trainings("skintone-debias", tmp_path_factory.mktemp("trainings"), ("skintone_debias.commands",)) as made:
        yield made


@pytest.fixture(scope="module")
def words(lesions: Path) -> Words:
    sizes = ("--epochs", EPOCHS, "--batch-size", 4, "--log-every", 1, "--checkpoint-every", 4, "--device", "cpu",
             "--encoder", "test_resnet", "--image-size", 32, "--datalist", lesions, "--seed", 3)  # fmt: skip

    def of(method: str) -> list[object]:
        return ["train", *sizes, *METHODS[method]]

    return of


@pytest.mark.parametrize("method", METHODS)
def test_killed_at_a_random_step(method: str, trainings: Trainings, words: Words, tmp_path: Path) -> None:
    trainings.assert_survives_kill(words(method), tmp_path / "run")


def test_every_optimiser_and_head_is_in_the_checkpoint(trainings: Trainings, words: Words) -> None:
    checkpoint = last_checkpoint(trainings.whole(words("both")))
    assert checkpoint["step"] == STEPS
    state = checkpoint["state"]
    assert state.keys() == {
        "encoder", "main_head", "optimizer", "confusion_optimizer", "head_0", "head_0_optimizer", "head_1",
        "head_1_optimizer", "best",
    }  # fmt: skip
    for name in ("optimizer", "confusion_optimizer", "head_0_optimizer", "head_1_optimizer"):
        assert state[name]["state"]
        assert all("momentum_buffer" in value for value in state[name]["state"].values())


def test_stopped_by_ctrl_c(trainings: Trainings, words: Words, tmp_path: Path) -> None:
    trainings.assert_survives_interrupt(words("clgr"), tmp_path / "run")


def test_other_settings_are_refused(trainings: Trainings, words: Words) -> None:
    done = trainings.whole(words("clgr"))
    resumed = trainings.start(*words("clgr"), "--alpha", 0.1, "--out", done, "--resume")
    assert resumed.status() == 2
    assert "alpha was 0.03 when the run started and is 0.1 now" in resumed.stderr.read_text()
