"""Two processes on the CPU (gloo), started by torchrun, against one process with the joint batch."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dart_core.checkpoint import load_weights

PROGRAM = Path(__file__).parent / "programs" / "joint.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")]


def torchrun(processes: int, *arguments: str, program: Path = PROGRAM) -> subprocess.CompletedProcess[str]:
    command = [*TORCHRUN, str(processes), str(program), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=False, timeout=200, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The trainings of the program in two processes; the last of them finds its folder taken."""
    folder = tmp_path_factory.mktemp("two")
    return folder, torchrun(2, str(folder)).stderr


@pytest.fixture(scope="module")
def train() -> Any:
    return runpy.run_path(str(PROGRAM))["train"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_weights(folder / "weights.safetensors")[0]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["plain", "accumulated", "workers"])
def test_two_processes_equal_one_with_the_joint_batch(
    two: tuple[Path, str], train: Any, tmp_path: Path, name: str
) -> None:
    folder, _ = two
    assert load_weights(folder / name / "weights.safetensors")[1] == {"processes": "2"}
    train(tmp_path / "one")
    torch.testing.assert_close(weights(folder / name), weights(tmp_path / "one"), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(losses(folder / name), losses(tmp_path / "one"), rtol=1e-6, atol=1e-6)
    assert len(losses(folder / name)) == 15


def test_only_one_process_writes(two: tuple[Path, str]) -> None:
    folder, _ = two
    files = {path.name for path in (folder / "plain").rglob("*") if path.is_file()}
    assert files == {"config.yaml", "metrics.jsonl", "weights.safetensors", "step-000000015.pt"}


def test_batch_norm_works(two: tuple[Path, str], train: Any, tmp_path: Path) -> None:
    """Each process normalises with its own share, so only the course of the training is alike."""
    folder, _ = two
    train(tmp_path / "one", norm=True)
    both, alone = losses(folder / "norm"), losses(tmp_path / "one")
    assert len(both) == 15
    assert both[-1] < both[0]
    assert both[0] == pytest.approx(alone[0], rel=0.2)
    assert weights(folder / "norm").keys() == weights(tmp_path / "one").keys()


def test_an_error_is_said_once(two: tuple[Path, str]) -> None:
    _, error = two
    assert error.count("holds a run already") == 1
    assert "exitcode  : 2" in error


@pytest.mark.parametrize("status", [0, 3])
def test_the_interpreter_is_not_taken_down_beside_the_threads_of_gloo(status: int) -> None:
    """They may still hold tensors, and PyTorch aborts a process whose interpreter has gone by then."""
    done = torchrun(2, str(status), program=PROGRAM.parent / "leaving.py")
    assert done.returncode == (1 if status else 0), done.stderr
    assert "taken down" not in done.stdout
    if status:
        assert f"exitcode  : {status}" in done.stderr
    else:
        assert all(f"at exit {rank}" in done.stdout for rank in (0, 1))
        assert done.stdout.count("unflushed") == 2


def test_a_run_that_goes_on_between_two_loops_draws_the_same(tmp_path: Path) -> None:
    """Of every process: the state of its generator is that of the checkpoint, in the unbroken run as well."""
    program = PROGRAM.parent / "epochs.py"
    for words in (("whole", 2, "begin"), ("parts", 1, "begin"), ("parts", 2, "resume")):
        done = torchrun(2, str(tmp_path / words[0]), *map(str, words[1:]), program=program)
        assert done.returncode == 0, done.stderr
    draws = {name: [(tmp_path / f"{name}-{rank}.txt").read_text() for rank in (0, 1)] for name in ("whole", "parts")}
    assert draws["whole"] == draws["parts"]
    assert draws["whole"][0] != draws["whole"][1]
    assert len(set(draws["whole"][1].split())) == 12  # six steps, six numbers
