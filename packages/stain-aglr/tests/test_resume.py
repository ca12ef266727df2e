"""`stain-aglr train`, killed or stopped and resumed, against the runs that nothing happened to."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dart_core.testing import Trainings, last_checkpoint, logged

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")

GAN = ("--max-epochs", 3, "--gan-size", 32, "--gan-width", 2, "--gan-epochs", 4, "--gan-log-every", 1)
METHODS: dict[str, tuple[object, ...]] = {
    "vanilla": ("--max-epochs", 12),
    "macenko": ("--max-epochs", 12, "--balanced"),
    "stain-aglr": ("--max-epochs", 12, "--patience", 1, "--stop-lr", 1e-4, "--learning-rate", 1e-2),
    "stst-gan": GAN,
    "dscsi-gan": (*GAN, "--feature-epochs", 2, "--gan-backbone", "test_resnet"),
}
"""stain-aglr ends by its plateaus; the GANs are trained first, before the classifier."""

Words = Callable[[str], list[object]]


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainings]:
    preload = ("stain_aglr.commands", "stain_aglr.normalisation")
    with Trainings("stain-aglr", tmp_path_factory.mktemp("trainings"), preload) as made:
        yield made


@pytest.fixture(scope="module")
def words(datalist: Path) -> Words:
    sizes = ("--datalist", datalist, "--site", "RUMC", "--width", 2, "--batch-size", 4, "--log-every", 1, "--checkpoint-every", 3, "--device", "cpu", "--seed", 1)  # fmt: skip
    return lambda method: ["train", *sizes, "--method", method, *METHODS[method]]


@pytest.mark.parametrize("method", METHODS)
def test_killed_at_a_random_step(method: str, trainings: Trainings, words: Words, tmp_path: Path) -> None:
    out = tmp_path / "run"
    trainings.assert_survives_kill(words(method), out)
    assert not list(out.glob("*.npy"))


def test_plateaus_ended_the_training(trainings: Trainings, words: Words) -> None:
    """Otherwise the resumed run would not have shown that the schedule goes on where it was."""
    lines = logged(trainings.whole(words("stain-aglr")))
    assert len({line["learning_rate"] for line in lines if "learning_rate" in line}) > 1


def test_a_training_that_plateaus_ended_is_complete(trainings: Trainings, words: Words, tmp_path: Path) -> None:
    """Also before its first regular checkpoint; asked to go on, it does not train any further."""
    flags = [*words("stain-aglr"), "--checkpoint-every", 1000]
    done = trainings.start(*flags, "--out", tmp_path / "run")
    assert done.status() == 0, done.stderr.read_text()
    lines = logged(tmp_path / "run")
    steps = 1 + max(line["step"] for line in lines)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == steps
    assert last_checkpoint(tmp_path / "run")["step"] == steps
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    again = trainings.start(*flags, "--out", tmp_path / "run", "--resume")
    assert again.status() == 0, again.stderr.read_text()
    assert logged(tmp_path / "run") == lines
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights


def test_stopped_by_ctrl_c(trainings: Trainings, words: Words, tmp_path: Path) -> None:
    trainings.assert_survives_interrupt(words("vanilla"), tmp_path / "run")


def test_other_settings_are_refused(trainings: Trainings, words: Words) -> None:
    done = trainings.whole(words("stain-aglr"))
    resumed = trainings.start(*words("stain-aglr"), "--space", "od", "--out", done, "--resume")
    assert resumed.status() == 2
    assert "space was offset2 when the run started and is od now" in resumed.stderr.read_text()
