"""Trainings that are killed or stopped and resumed, against those that nothing happened to."""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dart_core.testing import Trainings, assert_equal_states, last_checkpoint, logged

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")

OFTEN = ("--checkpoint-every", 3, "--seed", 1)


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainings]:
    preload = ("benchmark_transformers.training", "benchmark_transformers.pretraining", "timm")
    with Trainings("benchmark-transformers", tmp_path_factory.mktemp("trainings"), preload) as made:
        yield made


def without_speed(run: Path) -> list[dict[str, Any]]:
    """What was logged, but for the throughput, which no two runs share."""
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in logged(run)]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_pretraining(number: int, trainings: Trainings, datalist: Path, small: Any, tmp_path: Path) -> None:
    drop = ("--drop-path", 0.2, "--epochs", 5)  # draws from PyTorch's own generator too
    words = ("pretrain", "--pictures", datalist, *small["pretrain"], *OFTEN, *drop)
    whole, out = trainings.whole(words), tmp_path / "run"
    started = trainings.start(*words, "--out", out)
    started.stop(out, random.SystemRandom().randint(1, len(logged(whole)) // 2), number)
    assert started.status() == (130 if number == signal.SIGINT else -number), started.stderr.read_text()
    trainings.finish(*words, "--out", out, "--resume")
    assert_equal_states(last_checkpoint(out)["state"], last_checkpoint(whole)["state"])
    assert without_speed(out) == without_speed(whole)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    last = "restored/epoch-0005.png"
    assert (out / last).read_bytes() == (whole / last).read_bytes()


def test_fine_tuning_killed_in_any_of_its_trials(
    trainings: Trainings, datalist: Path, pretrained: Path, small: Any, tmp_path: Path
) -> None:
    """The choice of the learning rate, early stopping and the schedule that looks at the validation loss included."""
    recipe = (
        "--learning-rate",
        0.5,
        0.05,
        "--epochs",
        4,
        "--patience",
        0,
        "--schedule",
        "as_coded",
        "--drop-path",
        0.2,
    )
    words = (
        "fine-tune",
        "--datalist",
        datalist,
        "--weights",
        pretrained,
        *small["fine-tune"],
        *OFTEN,
        *recipe,
        "--trials",
        2,
    )
    trainings.assert_survives_kill(words, tmp_path / "run")


def test_other_settings_are_refused(trainings: Trainings, datalist: Path, small: Any) -> None:
    words = ("pretrain", "--pictures", datalist, *small["pretrain"], *OFTEN, "--drop-path", 0.2, "--epochs", 5)
    resumed = trainings.start(*words, "--mask-ratio", 0.5, "--out", trainings.whole(words), "--resume")
    assert resumed.status() == 2
    assert "mask_ratio was 0.6 when the run started and is 0.5 now" in resumed.stderr.read_text()
