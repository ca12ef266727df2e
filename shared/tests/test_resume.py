"""Runs that are killed or stopped from outside, as processes of their own."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from dart_core.checkpoint import load_checkpoint, load_weights

PROGRAMS = Path(__file__).parent / "programs"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
STEPS = 40
PATIENCE = 120.0

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


@dataclass
class Started:
    """A run in one process or several."""

    processes: list[ForkServerProcess]
    stderr: Path

    def wait(self) -> list[int | None]:
        """The exit status of each process, those it started included: none of them is left over."""
        for process in self.processes:
            process.join(PATIENCE)
        return [process.exitcode for process in self.processes]

    def kill(self) -> None:
        for process in self.processes:
            for pid in (process.pid, *descendants(process.pid)):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        self.wait()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert all(process.exitcode is None for process in self.processes), self.stderr.read_text()
            assert time.monotonic() < end, "the program does not get on"
            time.sleep(0.002)


Start = Callable[..., Started]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start the program in the background. A fork server that has imported PyTorch already saves many seconds each time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "torch.distributed", "dart_core.run", "tyro"])
    every: list[Started] = []

    def start(out: Path, *flags: str, processes: int = 1) -> Started:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        names = {
            "PROGRAM": str(PROGRAMS / "train.py"),
            "ARGUMENTS": ["--out", str(out), "--device", "cpu", *flags],
            "STDERR": str(tmp_path_factory.mktemp("stderr") / "stderr.txt"),
        }
        started = Started([], Path(names["STDERR"]))
        every.append(started)
        for rank in range(processes):
            environment = {"OMP_NUM_THREADS": "1"}
            if processes > 1:
                ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
                environment |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in ranks.items()}}
            process = context.Process(
                target=runpy.run_path, args=(str(PROGRAMS / "child.py"), names | {"ENVIRONMENT": environment})
            )
            process.start()
            started.processes.append(process)
        return started

    yield start
    for started in every:
        started.kill()


@pytest.fixture(scope="module", params=[1, 2])
def uninterrupted(
    request: pytest.FixtureRequest, start: Start, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Path]:
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    finish(start(out, processes=request.param))
    return request.param, out


def finish(started: Started) -> None:
    assert set(started.wait()) == {0}, started.stderr.read_text()


def descendants(pid: int | None) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [int(child) for child in children] + [d for child in children for d in descendants(int(child))]


def metrics(out: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in found]


def lines(out: Path) -> int:
    file = out / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def newest_step(out: Path) -> int:
    checkpoint = load_checkpoint(max((out / "checkpoints").iterdir()))
    assert isinstance(checkpoint["step"], int)
    return checkpoint["step"]


def assert_same_result(out: Path, expected: Path) -> None:
    weights, reference = (load_weights(folder / "weights.safetensors")[0] for folder in (out, expected))
    assert weights.keys() == reference.keys()
    assert all(torch.equal(weights[key], reference[key]) for key in weights)
    assert metrics(out) == metrics(expected)
    assert len(metrics(out)) == STEPS


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_runs_resume_bit_for_bit(
    uninterrupted: tuple[int, Path], workers: int, start: Start, tmp_path: Path
) -> None:
    processes, expected = uninterrupted
    out = tmp_path / "run"
    flags = ("--workers", str(workers), "--checkpoint-every", "3", "--pause", "0.01")
    step = random.SystemRandom().randrange(1, STEPS - 1)
    print(f"killed after {step} lines")
    killed = start(out, *flags, processes=processes)
    killed.wait_until(lambda: lines(out) >= step)
    killed.kill()
    assert set(killed.wait()) == {-signal.SIGKILL}
    assert not (out / "metrics.json").exists()
    finish(start(out, *flags, "--resume", processes=processes))
    assert_same_result(out, expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_saves_and_resumes(
    uninterrupted: tuple[int, Path], number: signal.Signals, start: Start, tmp_path: Path
) -> None:
    """As Ctrl-C in a terminal does it, or a scheduler: the loading processes get the signal too."""
    processes, expected = uninterrupted
    out = tmp_path / "run"
    flags = ("--workers", "2", "--pause", "0.01")
    stopped = start(out, *flags, processes=processes)
    stopped.wait_until(lambda: lines(out) >= 7)
    for process in stopped.processes:
        assert process.pid is not None
        os.killpg(process.pid, number)
    assert set(stopped.wait()) == {128 + number}
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert stopped.stderr.read_text() == f"stopped by {name} after step {lines(out)} of {STEPS}; --resume continues\n"
    assert newest_step(out) == lines(out)
    finish(start(out, *flags, "--resume", processes=processes))
    assert_same_result(out, expected)


def test_a_signal_to_one_of_two_processes_stops_both(start: Start, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stopped = start(out, "--pause", "0.01", processes=2)
    stopped.wait_until(lambda: lines(out) >= 7)
    pid = stopped.processes[1].pid
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    assert stopped.wait() == [143, 143]
    assert newest_step(out) == lines(out)


def test_an_error_of_several_processes_is_said_once(start: Start, tmp_path: Path) -> None:
    failed = start(tmp_path / "run", processes=3)
    assert failed.wait() == [2, 2, 2]
    text = "a batch of 8 samples cannot be shared equally by 3 processes"
    assert failed.stderr.read_text() == f"{text}; change the batch size or the number of processes\n"


@pytest.mark.slow
def test_a_signal_to_torchrun_saves_and_resumes(
    start: Start, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path / "run"
    command = [*TORCHRUN, str(PROGRAMS / "train.py"), "--out", str(out), "--device", "cpu", "--pause", "0.01"]
    torchrun = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        end = time.monotonic() + PATIENCE
        while lines(out) < 7 and torchrun.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        torchrun.send_signal(signal.SIGTERM)
        _, error = torchrun.communicate(timeout=PATIENCE)
    finally:
        torchrun.kill()
    assert error.count("--resume continues") == 1, error
    assert newest_step(out) == lines(out)
    finish(start(out, "--pause", "0.01", "--resume", processes=2))
    finish(start(tmp_path / "whole", processes=2))
    assert_same_result(out, tmp_path / "whole")
