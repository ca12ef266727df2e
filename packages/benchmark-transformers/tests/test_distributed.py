"""SimMIM in two processes on the CPU (gloo), its network spread over them by FSDP2 or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dart_core.checkpoint import load_weights
from dart_core.testing import InProcess, logged, torchrun

pytestmark = pytest.mark.slow


def test_two_processes_equal_one_with_the_joint_batch(datalist: Path, small: Any, tmp_path: Path) -> None:
    words = ("pretrain", "--pictures", datalist, *small["pretrain"], "--drop-path", 0, "--out")
    assert InProcess("benchmark-transformers")(*words, tmp_path / "one") == 0
    expected = load_weights(tmp_path / "one" / "model.safetensors")[0]
    losses = [line["loss"] for line in logged(tmp_path / "one") if "loss" in line]
    for name in ("none", "fsdp"):
        torchrun("-m", "benchmark_transformers", *words, tmp_path / name, "--sharding", name)
        torch.testing.assert_close(
            load_weights(tmp_path / name / "model.safetensors")[0], expected, rtol=1e-5, atol=1e-5
        )
        assert [line["loss"] for line in logged(tmp_path / name) if "loss" in line] == pytest.approx(losses, rel=1e-4)
