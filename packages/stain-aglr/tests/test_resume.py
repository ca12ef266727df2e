"""`stain-aglr train`, killed or stopped and resumed, against the runs that nothing happened to."""

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

PATIENCE = 180.0
GAN = ("--max-epochs", 3, "--gan-size", 32, "--gan-width", 2, "--gan-epochs", 4, "--gan-log-every", 1)
METHODS: dict[str, tuple[object, ...]] = {
    "vanilla": ("--max-epochs", 12),
    "macenko": ("--max-epochs", 12, "--balanced"),
    "stain-aglr": ("--max-epochs", 12, "--patience", 1, "--stop-lr", 1e-4, "--learning-rate", 1e-2),
    "stst-gan": GAN,
    "dscsi-gan": (*GAN, "--feature-epochs", 2, "--gan-backbone", "test_resnet"),
}
"""stain-aglr ends by its plateaus; the GANs are trained first, before the classifier."""


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
    """Start `stain-aglr`; a fork server that has imported PyTorch already saves seconds each time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "stain_aglr.commands", "stain_aglr.normalisation", "tyro"])
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
def words(datalist: Path) -> Callable[[str], list[object]]:
    sizes = ("--datalist", datalist, "--site", "RUMC", "--width", 2, "--batch-size", 4, "--log-every", 1, "--checkpoint-every", 3, "--device", "cpu", "--seed", 1)  # fmt: skip
    return lambda method: ["train", *sizes, "--method", method, *METHODS[method]]


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


def progress(run: Path) -> int:
    """Lines logged so far, by the training of a GAN and that of the classifier."""
    return len(logged(run / "normaliser")) + len(logged(run))


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("model.safetensors", "generator.safetensors", "normaliser/normaliser.safetensors"):
        assert (one / name).exists() == (other / name).exists()
        if (one / name).exists():
            weights, others = (load_weights(run / name)[0] for run in (one, other))
            assert weights.keys() == others.keys()
            assert all(torch.equal(weights[key], others[key]) for key in weights)
    last, other_last = (load_checkpoint(max((run / "checkpoints").iterdir())) for run in (one, other))
    assert last["step"] == other_last["step"]
    assert_equal_states(last["state"], other_last["state"])
    assert logged(one) == logged(other)
    assert logged(one / "normaliser") == logged(other / "normaliser")
    assert json.loads((one / "metrics.json").read_text()) == json.loads((other / "metrics.json").read_text())


def stop(started: Started, out: Path, number: int, most: int) -> int:
    """Send a signal at a random place of the training; give the number of lines logged by then."""
    place = random.SystemRandom().randint(1, most)
    started.wait_for(lambda: progress(out) >= place)
    time.sleep(random.SystemRandom().uniform(0, 0.03))
    assert started.process.pid is not None
    os.kill(started.process.pid, number)
    return place


@pytest.mark.parametrize("method", METHODS)
def test_killed_at_a_random_step(method: str, start: Start, words: Any, uninterrupted: Any, tmp_path: Path) -> None:
    whole = uninterrupted(method)
    out = tmp_path / "run"
    started = start(*words(method), "--out", out)
    place = stop(started, out, signal.SIGKILL, progress(whole) // 2)
    assert started.status() == -signal.SIGKILL
    resumed = start(*words(method), "--out", out, "--resume")
    assert resumed.status() == 0, (place, resumed.stderr.read_text())
    assert_same_run(out, whole)
    assert not list(out.rglob("*tmp*"))
    assert not list(out.glob("*.npy"))


def test_plateaus_ended_the_training(uninterrupted: Any) -> None:
    """Otherwise the resumed run would not have shown that the schedule goes on where it was."""
    rates = [line["learning_rate"] for line in logged(uninterrupted("stain-aglr")) if "learning_rate" in line]
    assert len(set(rates)) > 1


def test_stopped_by_ctrl_c(start: Start, words: Any, uninterrupted: Any, tmp_path: Path) -> None:
    whole = uninterrupted("vanilla")
    out = tmp_path / "run"
    started = start(*words("vanilla"), "--out", out)
    place = stop(started, out, signal.SIGINT, progress(whole) // 2)
    assert started.status() == 130, (place, started.stderr.read_text())
    (line,) = started.stderr.read_text().splitlines()
    assert re.fullmatch(r"stain-aglr: stopped by Ctrl-C after step \d+( of \d+)?; --resume continues", line)
    assert not (out / "model.safetensors").exists()
    resumed = start(*words("vanilla"), "--out", out, "--resume")
    assert resumed.status() == 0, (place, resumed.stderr.read_text())
    assert_same_run(out, whole)


def test_other_settings_are_refused(start: Start, words: Any, uninterrupted: Any) -> None:
    resumed = start(*words("vanilla"), "--space", "od", "--out", uninterrupted("vanilla"), "--resume")
    assert resumed.status() == 2
    assert "space was offset2 when the run started and is od now" in resumed.stderr.read_text()
