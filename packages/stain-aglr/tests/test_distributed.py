"""Two processes on the CPU (gloo), started by torchrun."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dart_core.fine_tuning import validated
from dart_core.testing import assert_equal_states, torchrun
from stain_aglr.models import load_model
from stain_aglr.networks import PatchClassifier

PROGRAM = Path(__file__).parent / "programs" / "two.py"


@pytest.mark.slow
def test_processes_come_to_the_same_verdicts(datalist: Path, tmp_path: Path) -> None:
    """The validation loss of process 0 alone would lower its learning rate; the mean falls in every epoch."""
    torchrun(PROGRAM, datalist, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert_equal_states(first, second)
    assert (first["rate"], first["epoch"]) == (0.01, 4)
    assert first["loss"] == (1 + 1 / 4) / 2
    assert load_model(tmp_path / "run")[1].epoch == 4


def test_validation_is_averaged_over_the_processes() -> None:
    other = torch.tensor([3.0, 1.0], dtype=torch.float64)
    run = SimpleNamespace(world_size=2, mean=lambda value: (value + other) / 2)
    network = PatchClassifier(1)

    def validate(classifier: PatchClassifier) -> dict[str, float]:
        assert not classifier.training
        return {"validation_loss": 1.0, "validation_auc": 0.5}

    found = validated(run, network, validate)  # type: ignore[arg-type]
    assert found == {"validation_loss": 2.0, "validation_auc": 0.75}
    assert network.training
