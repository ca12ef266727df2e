"""Two processes on the CPU (gloo), started by torchrun, against one process with the joint batch."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch

from dart_core.checkpoint import load_weights
from dart_core.testing import torchrun

PROGRAM = Path(__file__).parent / "programs" / "joint.py"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trainings of the program in two processes."""
    folder = tmp_path_factory.mktemp("two")
    torchrun(PROGRAM, folder)
    return folder


@pytest.mark.parametrize("method", ["lntl", "clgr", "both"])
def test_two_processes_equal_one_with_the_joint_batch(method: str, two: Path, tmp_path: Path) -> None:
    """The heads' loss is divided by the weights of the joint batch, not by those of a process."""
    runpy.run_path(str(PROGRAM))["train"](method, tmp_path)
    found, meta = load_weights(two / method / "network.safetensors")
    assert meta == {"processes": "2"}
    torch.testing.assert_close(found, load_weights(tmp_path / "network.safetensors")[0], rtol=1e-5, atol=1e-6)
    losses = [json.loads((folder / "metrics.json").read_text())["losses"] for folder in (two / method, tmp_path)]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-5, atol=1e-6)
