"""`fda-mri train`, killed or stopped at a random step and resumed, against the run that nothing happened to."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from dart_core.checkpoint import load_checkpoint, load_weights
from dart_core.testing import assert_equal_states

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")

STEPS = 45
PATIENCE = 120.0


class Started(NamedTuple):
    """A command in a process of its own."""

    process: ForkServerProcess
    stderr: Path

    def status(self) -> int | None:
        self.process.join(PATIENCE)
        return self.process.exitcode

    def wait_for(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.exitcode is None, self.stderr.read_text()
            assert time.monotonic() < end, "the training does not get on"
            time.sleep(0.002)


Start = Callable[..., Started]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start `fda-mri`; a fork server that has imported PyTorch already saves seconds each time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "fda_mri.commands", "tyro"])
    every: list[Started] = []

    def run(*words: object) -> Started:
        stderr = tmp_path_factory.mktemp("stderr") / "stderr.txt"
        names = {"ARGUMENTS": [str(word) for word in words], "STDERR": str(stderr)}
        program = str(Path(__file__).parent / "programs" / "child.py")
        process = context.Process(target=runpy.run_path, args=(program, names))
        process.start()
        every.append(Started(process, stderr))
        return every[-1]

    yield run
    for started in every:
        started.process.kill()
        started.process.join()


@pytest.fixture(scope="module")
def words(datalist: Path) -> list[object]:
    return ["train", "--datalist", datalist, "--site", "sm15", "--width", 2, "--epochs", 3, "--iterations", 15,
            "--batch-size", 2, "--crop-size", 40, "--drop-epoch", 1, "--log-every", 1, "--checkpoint-every", 3,
            "--device", "cpu", "--learning-rate", 0.01]  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(start: Start, words: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    started = start(*words, "--out", out)
    assert started.status() == 0, started.stderr.read_text()
    return out


def logged(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without their time; the last may be half-written in a run that was killed."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [{key: value for key, value in json.loads(line).items() if key != "time"} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    weights, others = (load_weights(run / "model.safetensors")[0] for run in (one, other))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    last, other_last = (load_checkpoint(max((run / "checkpoints").iterdir())) for run in (one, other))
    assert last["step"] == other_last["step"] == STEPS
    assert_equal_states(last["state"], other_last["state"])
    assert logged(one) == logged(other)
    assert json.loads((one / "metrics.json").read_text()) == json.loads((other / "metrics.json").read_text())


def stop(started: Started, out: Path, number: int) -> int:
    """Send a signal at a random place of the training; give the number of steps logged by then."""
    place = random.SystemRandom().randint(1, STEPS - 20)
    started.wait_for(lambda: len(logged(out)) >= place)
    time.sleep(random.SystemRandom().uniform(0, 0.03))
    assert started.process.pid is not None
    os.kill(started.process.pid, number)
    return place


def test_killed_at_a_random_step(start: Start, words: list[object], uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    started = start(*words, "--out", out)
    place = stop(started, out, signal.SIGKILL)
    assert started.status() == -signal.SIGKILL
    resumed = start(*words, "--out", out, "--resume")
    assert resumed.status() == 0, (place, resumed.stderr.read_text())
    assert_same_run(out, uninterrupted)
    assert not list(out.rglob("*tmp*"))


def test_stopped_by_ctrl_c(start: Start, words: list[object], uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    started = start(*words, "--out", out)
    place = stop(started, out, signal.SIGINT)
    assert started.status() == 130, (place, started.stderr.read_text())
    (line,) = started.stderr.read_text().splitlines()
    # "of 45" is missing if this process was so slow that the last step was over.
    assert re.fullmatch(rf"fda-mri: stopped by Ctrl-C after step \d+( of {STEPS})?; --resume continues", line)
    # The step that was under way is in the checkpoint: nothing is done twice.
    done = len([entry for entry in logged(out) if "loss" in entry])
    assert load_checkpoint(max((out / "checkpoints").iterdir()))["step"] == done
    resumed = start(*words, "--out", out, "--resume")
    assert resumed.status() == 0, (place, resumed.stderr.read_text())
    assert_same_run(out, uninterrupted)
