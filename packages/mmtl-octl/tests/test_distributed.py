"""Two processes on the CPU (gloo), started by torchrun."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dart_core.testing import logged, torchrun

pytestmark = pytest.mark.slow


def test_the_best_epoch_is_kept_by_the_process_that_scored_it(
    heads: Any, recipe: Any, source_model: dict[str, Path], tmp_path: Path
) -> None:
    words = ("--source-model", source_model["sgd"], "--target", "ge15", "--method", "fta", "--keep", "best")
    torchrun("-m", "mmtl_octl", "adapt", *heads, *recipe, *words, "--out", tmp_path / "run")
    scores = [line["validation_dice"] for line in logged(tmp_path / "run") if "validation_dice" in line]
    assert len(scores) == 3
    kept = json.loads((tmp_path / "run" / "metrics.json").read_text())["validation_dice"]
    assert kept == pytest.approx(max(scores), abs=1e-6)
