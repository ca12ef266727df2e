"""Two processes on the CPU (gloo), started by torchrun."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dart_core.testing import assert_equal_states, torchrun

PROGRAM = Path(__file__).parent / "programs" / "two.py"


@pytest.mark.slow
def test_processes_learn_from_the_same_labels(cells: dict[str, Path], tmp_path: Path) -> None:
    """Left to themselves they go back to other epochs, correct in other ones and to other boxes, and differ in batch norm."""
    torchrun(PROGRAM, cells["phase"], cells["weak"], tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert_equal_states(first, second)
    progress = {name: ended["progress"] for name, ended in first.items()}
    assert (progress["validation"]["best_epoch"], progress["validation"]["cycles"]) == (0, 2)
    assert (progress["adele"]["memorised"], progress["adele"]["cycles"]) == (3, 1)
    assert [len(ended["validated"]) for ended in first.values()] == [4, 5]
