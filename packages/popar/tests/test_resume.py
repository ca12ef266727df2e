"""`popar pretrain` and `fine-tune`, killed or stopped and resumed, against the runs that nothing happened to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dart_core.testing import Trainings

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")

Words = Callable[[str], list[object]]
SIZES = ("--batch-size", 8, "--log-every", 1, "--checkpoint-every", 3, "--device", "cpu", "--seed", 1)


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainings]:
    with Trainings("popar", tmp_path_factory.mktemp("trainings"), ("popar.pretraining", "popar.transfer")) as made:
        yield made


@pytest.fixture(scope="module")
def words(datalist: Path, pretrained: dict[str, Path], networks: dict[str, tuple[object, ...]]) -> Words:
    data = ("--datalist", datalist, *SIZES)
    made = {
        "pretrain-vit": ["pretrain", *data, *networks["vit"], "--epochs", 4, "--measure-every", 2],
        "pretrain-swin": ["pretrain", *data, *networks["swin"], "--epochs", 4, "--measure-every", 2],
        "fine-tune": ["fine-tune", *data, "--init", pretrained["vit"], "--epochs", 6, "--patience", 3],
    }
    return lambda name: made[name]


@pytest.mark.parametrize("name", ["pretrain-vit", "fine-tune"])
def test_killed_at_a_random_step(name: str, trainings: Trainings, words: Words, tmp_path: Path) -> None:
    trainings.assert_survives_kill(words(name), tmp_path / "run")


def test_stopped_by_ctrl_c(trainings: Trainings, words: Words, tmp_path: Path) -> None:
    trainings.assert_survives_interrupt(words("pretrain-swin"), tmp_path / "run")


def test_other_settings_are_refused(trainings: Trainings, words: Words) -> None:
    done = trainings.whole(words("pretrain-vit"))
    resumed = trainings.start(*words("pretrain-vit"), "--subtasks", "poc", "--out", done, "--resume")
    assert resumed.status() == 2
    assert "subtasks was ['poc', 'mpr', 'mgr'] when the run started and is ['poc'] now" in resumed.stderr.read_text()
