"""`popar pretrain` in two processes on the CPU (gloo): its network in both of them, or spread over them by FSDP2."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dart_core.checkpoint import load_weights
from dart_core.testing import logged, torchrun


@pytest.mark.slow
def test_a_network_spread_over_processes_learns_the_same(
    datalist: Path, networks: dict[str, tuple[object, ...]], pretrain_words: tuple[object, ...], tmp_path: Path
) -> None:
    """Not the same as in one process: each draws the distortions of its own share."""
    words = ("-m", "popar", "pretrain", "--datalist", datalist, *networks["vit"], *pretrain_words)
    for name in ("none", "fsdp"):
        torchrun(*words, "--sharding", name, "--out", tmp_path / name)
    whole, spread = (load_weights(tmp_path / name / "model.safetensors")[0] for name in ("none", "fsdp"))
    torch.testing.assert_close(spread, whole, rtol=1e-5, atol=1e-6)
    losses = [[line["loss"] for line in logged(tmp_path / name) if "loss" in line] for name in ("none", "fsdp")]
    assert len(losses[0]) > 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
