"""`sissi train`, killed or stopped inside and between cycles and resumed, against the run that nothing happened to."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dart_core.data.boxes import read_boxes
from dart_core.testing import Trainings, assert_same_run, logged

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")

Words = Callable[[str], list[object]]


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainings]:
    with Trainings("sissi", tmp_path_factory.mktemp("trainings"), ("sissi.training",)) as made:
        yield made


@pytest.fixture(scope="module")
def words(data: tuple[object, ...], tiny: tuple[object, ...]) -> Words:
    """Two epochs with the first labels, three with corrected ones; and a run in which memorisation is found at once."""
    low = ("--least-score", 0.01, "--skip-score", 0.01, "--views", "one", "--checkpoint-every", 2)
    made = {
        "validation": ["train", *data, *tiny, *low, "--configuration", "sissi-w", "--epochs", 5, "--supervised", 2],
        "adele": ["train", *data, *tiny, *low, "--configuration", "plain-a", "--epochs", 5, "--memorisation", 0],
    }
    return lambda name: made[name]


def test_killed_at_a_random_step(trainings: Trainings, words: Words, tmp_path: Path) -> None:
    """The AP50 curve goes on where it was."""
    trainings.assert_survives_kill(words("adele"), tmp_path / "run")


@pytest.mark.parametrize(("cycle", "steps"), [(0, 2), (1, 0)], ids=["inside", "between"])
def test_killed_in_a_cycle(cycle: int, steps: int, trainings: Trainings, words: Words, tmp_path: Path) -> None:
    """After a correction: labels, best epoch and optimiser come back, and the same labels are written again."""
    whole, out = trainings.whole(words("validation")), tmp_path / "run"
    corrections = [i for i, line in enumerate(logged(whole)) if "boxes" in line]
    started = trainings.start(*words("validation"), "--out", out)
    started.stop(out, corrections[cycle] + 1 + steps, signal.SIGKILL)
    assert started.status() == -signal.SIGKILL
    trainings.finish(*words("validation"), "--out", out, "--resume")
    assert_same_run(out, whole)
    files = sorted(path.name for path in (whole / "labels").iterdir())
    assert files == sorted(path.name for path in (out / "labels").iterdir()) == ["epoch-0002.csv", "epoch-0003.csv", "epoch-0004.csv"]  # fmt: skip
    for name in files:
        one, other = (read_boxes(run / "labels" / name) for run in (whole, out))
        assert all((a.boxes == b.boxes).all() for a, b in zip(one, other, strict=True))


def test_stopped_by_ctrl_c(trainings: Trainings, words: Words, tmp_path: Path) -> None:
    trainings.assert_survives_interrupt(words("validation"), tmp_path / "run")


def test_other_settings_are_refused(trainings: Trainings, words: Words) -> None:
    done = trainings.whole(words("validation"))
    resumed = trainings.start(*words("validation"), "--background", "strong", "--out", done, "--resume")
    assert resumed.status() == 2
    assert "background was None when the run started and is strong now" in resumed.stderr.read_text()
