"""`fda-mri train`, killed or stopped at a random step and resumed, against the run that nothing happened to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dart_core.testing import Trainings, last_checkpoint

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")

STEPS = 45


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainings]:
    with Trainings("fda-mri", tmp_path_factory.mktemp("trainings"), ("fda_mri.commands",)) as made:
        yield made


@pytest.fixture(scope="module")
def words(datalist: Path) -> list[object]:
    return ["train", "--datalist", datalist, "--site", "sm15", "--width", 2, "--epochs", 3, "--iterations", 15,
            "--batch-size", 2, "--crop-size", 40, "--drop-epoch", 1, "--log-every", 1, "--checkpoint-every", 3,
            "--device", "cpu", "--learning-rate", 0.01]  # fmt: skip


def test_killed_at_a_random_step(trainings: Trainings, words: list[object], tmp_path: Path) -> None:
    trainings.assert_survives_kill(words, tmp_path / "run")
    assert last_checkpoint(tmp_path / "run")["step"] == STEPS


def test_stopped_by_ctrl_c(trainings: Trainings, words: list[object], tmp_path: Path) -> None:
    trainings.assert_survives_interrupt(words, tmp_path / "run")
