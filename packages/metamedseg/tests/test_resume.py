"""`metamedseg meta-train` and `fine-tune`, killed or stopped and resumed, against the runs that nothing happened to."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from dart_core.testing import Trainings, assert_same_run, last_checkpoint, logged

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")

META = ("--exclude", "spleen", "--width", 2, "--shots", 3, "--per-epoch", 3, "--inner-epochs", 2, "--meta-epochs", 2,
        "--device", "cpu", "--seed", 3)  # fmt: skip
TUNE = ("--target", "spleen", "--width", 2, "--shots", 4, "--epochs", 3, "--selections", 1, 6, "--device", "cpu",
        "--log-every", 1, "--checkpoint-every", 2)  # fmt: skip


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    preload = ("metamedseg.commands", "metamedseg.tuning")
    with Trainings("metamedseg", tmp_path_factory.mktemp("trainings"), preload) as made:
        yield made


def test_meta_training_survives_kill(trainings, slices, tmp_path):
    trainings.assert_survives_kill(("meta-train", "--slices", slices, *META), tmp_path / "run")


@pytest.mark.slow
def test_meta_training_survives_interrupt(trainings, slices, tmp_path):
    trainings.assert_survives_interrupt(("meta-train", "--slices", slices, *META), tmp_path / "run")


def test_a_task_that_is_done_is_not_trained_again(trainings, slices, tmp_path):
    """kill -9 between the second and the third task of a meta-epoch: the checkpoint holds both results."""
    words, out = ("meta-train", "--slices", slices, *META), tmp_path / "run"
    whole = trainings.whole(words)
    started = trainings.start(*words, "--out", out)
    while sum("dataset" in line for line in logged(out)) < 5:
        assert started.process.exitcode is None, started.stderr.read_text()
        time.sleep(0.001)
    os.kill(started.process.pid, 9)
    started.status()
    checkpoint = last_checkpoint(out)
    assert len(checkpoint["state"]["pending"]["results"]) == checkpoint["step"] % 3
    trainings.finish(*words, "--out", out, "--resume")
    assert logged(out) == logged(whole)


@pytest.mark.slow
def test_two_processes_are_killed_and_one_goes_on(trainings, slices, tmp_path):
    words, out = ("meta-train", "--slices", slices, *META), tmp_path / "run"
    started = trainings.start(*words, "--processes", 2, "--out", out)
    started.stop(out, 2, signal.SIGKILL)
    assert started.status() == -signal.SIGKILL, started.stderr.read_text()
    trainings.finish(*words, "--out", out, "--resume")
    assert_same_run(out, trainings.whole(words))


@pytest.mark.slow
def test_a_signal_to_the_whole_group_waits_for_the_task(trainings, slices, tmp_path):
    """As schedulers send it: the processes of the tasks go on until the main one has saved."""
    words, out = ("meta-train", "--slices", slices, *META), tmp_path / "run"
    started = trainings.start(*words, "--processes", 2, "--out", out)
    while not logged(out):
        assert started.process.exitcode is None, started.stderr.read_text()
        time.sleep(0.002)
    os.killpg(started.process.pid, signal.SIGTERM)
    assert started.status() == 143, started.stderr.read_text()
    assert "stopped by SIGTERM after step" in started.stderr.read_text().splitlines()[-1]
    trainings.finish(*words, "--out", out, "--resume")
    assert_same_run(out, trainings.whole(words))


@pytest.mark.slow
def test_fine_tuning_survives_kill(trainings, slices, tmp_path):
    trainings.assert_survives_kill(("fine-tune", "--slices", slices, *TUNE), tmp_path / "run")


def test_fine_tuning_survives_interrupt(trainings, slices, tmp_path):
    trainings.assert_survives_interrupt(("fine-tune", "--slices", slices, *TUNE), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "flags"),
    [
        ("transfer", ("--epochs", 2, "--slices-per-set", 6, "--checkpoint-every", 2)),
        ("dawoud", ("--shots", 3, "--inner-epochs", 2, "--meta-epochs", 2)),
    ],
)
def test_baselines_survive_kill(method, flags, trainings, slices, tmp_path):
    common = ("--exclude", "spleen", "--width", 2, "--device", "cpu", "--seed", 3)
    trainings.assert_survives_kill(
        ("meta-train", "--slices", slices, *common, "--method", method, *flags), tmp_path / "run"
    )
