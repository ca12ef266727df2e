"""`united-ssl pretrain` and `fine-tune`, killed or stopped and resumed, against the runs that nothing happened to."""

from __future__ import annotations

import sys

import pytest

from dart_core.testing import Trainings

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")

SIZES = ("--width", 1, "--batch-size", 4, "--log-every", 1, "--checkpoint-every", 2, "--device", "cpu", "--seed", 1)
PRETRAINING = {
    "jigsaw": ("--pretext", "jigsaw", "--form", "as-coded", "--permutations", 10, "--steps", "DRA", "--max-epochs", 2,
               "--critic-steps", 2, "--show-every", 0),
    "deep-clustering": ("--pretext", "deep-clustering", "--clusters", 4, "--components", 4, "--steps", "joint",
                        "--max-epochs", 3, "--critic-steps", 2, "--show-every", 0),
    "rubik": ("--pretext", "rubik", "--permutations", 10, "--masking", "--steps", "joint", "--adversarial", "log",
              "--max-epochs", 4, "--critic-steps", 2, "--show-every", 0),
    "transvw": ("--pretext", "transvw", "--steps", "DR", "--max-epochs", 3, "--show-every", 0),
    "rotation": ("--pretext", "rotation", "--genesis", "--steps", "joint-DR", "--halve-on-plateau", 1, "--max-epochs", 4,
                 "--show-every", 0),
}  # fmt: skip
TUNING = ("--max-epochs", 6, "--plateau", 1)


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    with Trainings(
        "united-ssl", tmp_path_factory.mktemp("trainings"), ("united_ssl.commands", "united_ssl.tuning")
    ) as made:
        yield made


@pytest.mark.parametrize(
    "name",
    [
        "deep-clustering",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("jigsaw", "rubik", "transvw", "rotation")),
    ],
)
def test_pretraining_is_killed(name, trainings, cubes, tmp_path):
    words = ("pretrain", "--cubes", cubes, *SIZES, *PRETRAINING[name])
    trainings.assert_survives_kill(words, tmp_path / "run")


@pytest.mark.slow
def test_pretraining_is_stopped(trainings, cubes, tmp_path):
    words = ("pretrain", "--cubes", cubes, *SIZES, *PRETRAINING["deep-clustering"])
    trainings.assert_survives_interrupt(words, tmp_path / "run")


def test_fine_tuning_is_killed(trainings, cubes, tmp_path):
    trainings.assert_survives_kill(("fine-tune", "--cubes", cubes, *SIZES, *TUNING), tmp_path / "run")


@pytest.mark.slow
def test_fine_tuning_is_stopped(trainings, cubes, tmp_path):
    trainings.assert_survives_interrupt(("fine-tune", "--cubes", cubes, *SIZES, *TUNING), tmp_path / "run")


@pytest.mark.slow
def test_making_visual_words_is_killed(trainings, luna16, tmp_path):
    """The auto-encoder goes on, and the cubes are those of the undisturbed run."""
    words = (
        "prepare", "--data", luna16, "--size", 16, 16, 16, "--margin", 8, 8, 4, "--words", 3, "--instances", 4, 2,
        "--scan-size", 16, 16, 16, "--width", 1, "--max-epochs", 12, "--batch-size", 2, "--checkpoint-every", 2, "--device",
        "cpu", "--seed", 1,
    )  # fmt: skip
    trainings.assert_survives_kill(words, tmp_path / "run")
    whole = trainings.whole(words)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*.npy"))
    assert files == sorted(path.relative_to(tmp_path / "run") for path in (tmp_path / "run").rglob("*.npy"))
    assert len(files) > 6
    for file in (*files, "index.csv"):
        assert (tmp_path / "run" / file).read_bytes() == (whole / file).read_bytes(), file
