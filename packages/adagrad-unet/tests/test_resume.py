"""`train` and `spottune`, killed or stopped at a random step and resumed, against the run that nothing happened to."""

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

STEPS = 30
PATIENCE = 200.0


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
    """Start `adagrad-unet`; a fork server that has imported PyTorch already saves seconds each time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "adagrad_unet.commands", "adagrad_unet.spottune", "tyro"])
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
def commands(heads: Path, spotted: dict[str, Path]) -> dict[str, list[object]]:
    """Thirty steps of each training command."""
    common = ["--epochs", 3, "--batches", 10, "--log-every", 1, "--checkpoint-every", 4, "--device", "cpu"]
    train = ["train", "--channels-last", "--datalist", heads, "--site", "ge3", "--slice-axis", "z", "--base-features", 4, "--max-pools", 2,
             "--batch-size", 2, "--validation-batches", 1, *common]  # fmt: skip
    spot = ["spottune", "--datalist", heads, "--preprocessing", "plain", "--batch-size", 2, "--patch", 32, *common]
    tuned = ["--stage", "spottuned", "--site", "sm15", "--model", spotted["baseline"], "--slices", 9, "--drop-epoch", 1]
    return {
        "train": train,
        "train with adam": [*train, "--optimizer", "adam"],
        "baseline": [*spot, "--site", "ge3", "--width", 2, "--optimizer", "sgd"],
        "spottuned": [*spot, *tuned, "--policy-optimizer", "avagrad", "--policy-learning-rate", 0.1],
    }


@pytest.fixture(scope="module")
def uninterrupted(
    start: Start, commands: dict[str, list[object]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The undisturbed run of a command, made once."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("uninterrupted") / "run"
            started = start(*commands[name], "--out", made[name])
            assert started.status() == 0, started.stderr.read_text()
        return made[name]

    return of


def logged(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without their time; the last may be half-written in a run that was killed."""
    path = run / "metrics.jsonl"
    found = path.read_text().split("\n")[:-1] if path.exists() else []
    return [{key: value for key, value in json.loads(line).items() if key != "time"} for line in found]


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
    """Send a signal at a random place of the training; give the number of lines logged by then."""
    place = random.SystemRandom().randint(1, STEPS - 12)
    started.wait_for(lambda: len(logged(out)) >= place)
    time.sleep(random.SystemRandom().uniform(0, 0.03))
    assert started.process.pid is not None
    os.kill(started.process.pid, number)
    return place


@pytest.mark.parametrize("name", ["train", "spottuned"])
def test_killed_at_a_random_step(name, start, commands, uninterrupted, tmp_path):
    _killed_and_resumed(name, start, commands, uninterrupted, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train with adam", "baseline"])
def test_others_killed_at_a_random_step(name, start, commands, uninterrupted, tmp_path):
    _killed_and_resumed(name, start, commands, uninterrupted, tmp_path / "run")


def _killed_and_resumed(name: str, start: Start, commands: Any, uninterrupted: Any, out: Path) -> None:
    started = start(*commands[name], "--out", out)
    place = stop(started, out, signal.SIGKILL)
    assert started.status() == -signal.SIGKILL
    resumed = start(*commands[name], "--out", out, "--resume")
    assert resumed.status() == 0, (place, resumed.stderr.read_text())
    assert_same_run(out, uninterrupted(name))
    assert not list(out.rglob("*tmp*"))


def test_stopped_by_ctrl_c(start, commands, uninterrupted, tmp_path):
    out = tmp_path / "run"
    started = start(*commands["train"], "--out", out)
    place = stop(started, out, signal.SIGINT)
    assert started.status() == 130, (place, started.stderr.read_text())
    (line,) = started.stderr.read_text().splitlines()
    # "of 30" is missing if this process was so slow that the last step was over.
    assert re.fullmatch(rf"adagrad-unet: stopped by Ctrl-C after step \d+( of {STEPS})?; --resume continues", line)
    resumed = start(*commands["train"], "--out", out, "--resume")
    assert resumed.status() == 0, (place, resumed.stderr.read_text())
    assert_same_run(out, uninterrupted("train"))


def test_recording_is_part_of_the_state(uninterrupted):
    """The layers' updates and both optimisers of SpotTUNet lie in the checkpoints."""
    train = load_checkpoint(max((uninterrupted("train") / "checkpoints").iterdir()))["state"]
    assert set(train) == {"network", "optimizer", "updates"}
    assert train["updates"]["recorded"] == STEPS
    tuned = load_checkpoint(max((uninterrupted("spottuned") / "checkpoints").iterdir()))["state"]
    assert set(tuned) == {"network", "unet", "policy", "statistics"}
    assert tuned["policy"]["param_groups"][0]["gamma"] > 0
