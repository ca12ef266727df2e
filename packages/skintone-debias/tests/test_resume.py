"""`skintone-debias train`, killed or stopped and resumed, against the runs that nothing happened to."""

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

EPOCHS, PER_EPOCH = 12, 3
STEPS = EPOCHS * PER_EPOCH
PATIENCE = 240.0
METHODS: dict[str, tuple[object, ...]] = {
    "clgr": ("--debias", "clgr", "--confusion-target", "noise"),
    "both": ("--debias", "both", "--zero-grad-mode", "zero", "--deep-heads"),
}


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
    """Start `skintone-debias`; a fork server that has imported PyTorch already saves seconds each time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "skintone_debias.commands", "tyro"])
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
def words(lesions: Path) -> Callable[[str], list[object]]:
    sizes = ("--epochs", EPOCHS, "--batch-size", 4, "--log-every", 1, "--checkpoint-every", 4, "--device", "cpu",
             "--encoder", "test_resnet", "--image-size", 32, "--datalist", lesions, "--seed", 3)  # fmt: skip

    def of(method: str) -> list[object]:
        return ["train", *sizes, *METHODS[method]]

    return of


@pytest.fixture(scope="module")
def uninterrupted(start: Start, words: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    finished: dict[str, Path] = {}

    def run(method: str) -> Path:
        if method not in finished:
            out = tmp_path_factory.mktemp("uninterrupted") / "run"
            started = start(*words(method), "--out", out)
            assert started.status() == 0, started.stderr.read_text()
            finished[method] = out
        return finished[method]

    return run


def logged(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without their time; the last may be half-written in a run that was killed."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [{key: value for key, value in json.loads(line).items() if key != "time"} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("model.safetensors", "best.safetensors"):
        weights, others = (load_weights(run / name)[0] for run in (one, other))
        assert weights.keys() == others.keys()
        assert all(torch.equal(weights[key], others[key]) for key in weights)
    last, other_last = (load_checkpoint(max((run / "checkpoints").iterdir())) for run in (one, other))
    assert last["step"] == other_last["step"] == STEPS
    assert_equal_states(last["state"], other_last["state"])
    assert logged(one) == logged(other)
    assert json.loads((one / "metrics.json").read_text()) == json.loads((other / "metrics.json").read_text())


def stop(started: Started, out: Path, number: int) -> int:
    """Send a signal at a random place of the training; give the number of lines logged by then."""
    place = random.SystemRandom().randint(1, STEPS - 16)
    started.wait_for(lambda: len(logged(out)) >= place)
    time.sleep(random.SystemRandom().uniform(0, 0.03))
    assert started.process.pid is not None
    os.kill(started.process.pid, number)
    return place


@pytest.mark.parametrize("method", METHODS)
def test_killed_at_a_random_step(method: str, start: Start, words: Any, uninterrupted: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    started = start(*words(method), "--out", out)
    place = stop(started, out, signal.SIGKILL)
    assert started.status() == -signal.SIGKILL
    resumed = start(*words(method), "--out", out, "--resume")
    assert resumed.status() == 0, (place, resumed.stderr.read_text())
    assert_same_run(out, uninterrupted(method))
    assert not list(out.rglob("*tmp*"))


def test_every_optimiser_and_head_is_in_the_checkpoint(uninterrupted: Any) -> None:
    state = load_checkpoint(max((uninterrupted("both") / "checkpoints").iterdir()))["state"]
    assert state.keys() == {
        "encoder", "main_head", "optimizer", "confusion_optimizer", "head_0", "head_0_optimizer", "head_1",
        "head_1_optimizer", "best",
    }  # fmt: skip
    for name in ("optimizer", "confusion_optimizer", "head_0_optimizer", "head_1_optimizer"):
        assert state[name]["state"]
        assert all("momentum_buffer" in value for value in state[name]["state"].values())


def test_stopped_by_ctrl_c(start: Start, words: Any, uninterrupted: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    started = start(*words("clgr"), "--out", out)
    place = stop(started, out, signal.SIGINT)
    assert started.status() == 130, (place, started.stderr.read_text())
    line = started.stderr.read_text().splitlines()[-1]
    # "of 36" is missing if this process was so slow that the last step was over.
    assert re.fullmatch(rf"skintone-debias: stopped by Ctrl-C after step \d+( of {STEPS})?; --resume continues", line)
    resumed = start(*words("clgr"), "--out", out, "--resume")
    assert resumed.status() == 0, (place, resumed.stderr.read_text())
    assert_same_run(out, uninterrupted("clgr"))


def test_other_settings_are_refused(start: Start, words: Any, uninterrupted: Any) -> None:
    resumed = start(*words("clgr"), "--alpha", 0.1, "--out", uninterrupted("clgr"), "--resume")
    assert resumed.status() == 2
    assert "alpha was 0.03 when the run started and is 0.1 now" in resumed.stderr.read_text()
