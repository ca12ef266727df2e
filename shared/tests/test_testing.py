from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from dart_core.checkpoint import save_checkpoint, save_tensors
from dart_core.testing import assert_equal_states, assert_same_run, logged


def state(value: float = 0.0, nan: float = float("nan")) -> dict[str, Any]:
    weight = torch.zeros(40, 40)
    weight[20, 20] = value  # str() of the tensor would not show it
    return {"optimizer": [{"step": 3, "weight": weight}, "sgd", nan]}


def test_equal_states() -> None:
    assert_equal_states(state(), state())


@pytest.mark.parametrize(
    ("other", "place"),
    [
        (state(1e-7), "run.optimizer.0.weight"),
        (state(nan=0.0), "run.optimizer.2"),
        ({"optimizer": state()["optimizer"][:2]}, "run.optimizer"),
        ({"optimiser": []}, "run"),
        (
            {"optimizer": [{"step": 3, "weight": torch.zeros(40, 40).double()}, "sgd", 0]},
            "run.optimizer.0.weight, run.optimizer.2",
        ),
    ],
)
def test_the_place_that_differs_is_named(other: dict[str, Any], place: str) -> None:
    with pytest.raises(AssertionError, match=f"^these differ: {re.escape(place)}$"):
        assert_equal_states(state(), other, "run")


def run_of(folder: Path, loss: float = 1.0, weight: float = 0.0, momentum: float = 0.0, dice: float = 0.5) -> Path:
    """What a run leaves, with another run inside its folder."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "part").mkdir()
    (folder / "metrics.jsonl").write_text(
        f'{{"step": 1, "time": {len(str(folder))}, "loss": {loss}}}\n{{"step": 2, "ti'
    )
    (folder / "part" / "metrics.json").write_text(f'{{"dice": {dice}}}')
    save_tensors(folder / "part" / "model.safetensors", {"w": torch.full((2,), weight)}, {})
    for step, value in ((1, 7.0), (2, momentum)):
        content = {"step": step, "state": {"m": torch.tensor(value)}, "scaler": {}, "rng": []}
        save_checkpoint(folder / "checkpoints" / f"step-{step:08d}.pt", content)
    return folder


def test_equal_runs(tmp_path: Path) -> None:
    assert_same_run(run_of(tmp_path / "one"), run_of(tmp_path / "the other"))
    assert logged(tmp_path / "one") == [{"step": 1, "loss": 1.0}]


@pytest.mark.parametrize(
    ("difference", "place"),
    [
        ({"loss": 2.0}, "metrics.jsonl.0.loss"),
        ({"weight": 1.0}, "part/model.safetensors.w"),
        ({"momentum": 1.0}, "checkpoints.state.m"),
        ({"dice": 0.6}, "part/metrics.json.dice"),
    ],
)
def test_runs_that_differ(difference: dict[str, float], place: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=re.escape(place)):
        assert_same_run(run_of(tmp_path / "one"), run_of(tmp_path / "other", **difference))


def test_runs_with_other_files(tmp_path: Path) -> None:
    run_of(tmp_path / "one")
    (run_of(tmp_path / "other") / "part" / "metrics.json").unlink()
    with pytest.raises(AssertionError, match=r"files of one run only: \['part/metrics.json'\]"):
        assert_same_run(tmp_path / "one", tmp_path / "other")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AssertionError, match="holds no run"):
        assert_same_run(tmp_path / "empty", tmp_path / "empty")
