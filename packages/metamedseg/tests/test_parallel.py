"""Tasks in several processes give the result of one, and leave nothing running."""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dart_core.errors import DartError
from dart_core.testing import assert_same_run
from metamedseg.method import Pending, TaskResult
from metamedseg.parallel import TaskProcessError, results_of

WORDS = ("--exclude", "spleen", "--width", 2, "--shots", 3, "--per-epoch", 3, "--inner-epochs", 2, "--meta-epochs", 2,
         "--device", "cpu")  # fmt: skip


def test_the_result_is_that_of_one_process_bit_for_bit(command, slices, tmp_path):
    for processes in (1, 2):
        out = tmp_path / f"run{processes}"
        finished = command("meta-train", "--slices", slices, *WORDS, "--processes", processes, "--out", out)
        assert finished.status == 0, finished.err
    assert_same_run(tmp_path / "run1", tmp_path / "run2")
    assert not multiprocessing.active_children()


@pytest.fixture
def results(monkeypatch) -> Callable[[str], list[TaskResult]]:
    """Results of four tasks in two processes, which are given `sys.path` and can thus import `doubtful_tasks`."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    doubtful = importlib.import_module("doubtful_tasks")

    def train(failure: str) -> list[TaskResult]:
        with results_of(doubtful.Doubtful(failure), torch.device("cpu"), 2, 1) as trained:
            return list(trained(range(1, 5), {"w": torch.zeros(3)}, {}))

    return train


def test_results_come_in_order(results):
    found = results("")
    assert [result.dataset for result in found] == ["set 1", "set 2", "set 3", "set 4"]
    assert [float(result.state["w"][0]) for result in found] == [1, 2, 3, 4]


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_there_already_is_not_trained_again(processes, monkeypatch):
    """Results that came before their turn, and were in the checkpoint."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    doubtful = importlib.import_module("doubtful_tasks")
    ahead = {2: TaskResult({"w": torch.full((3,), 20.0)}, "kept", [0.0])}
    # Step 2 fails where it is trained.
    with results_of(doubtful.Doubtful("bug"), torch.device("cpu"), processes, 1) as trained:
        found = list(trained(range(1, 4), {"w": torch.zeros(3)}, ahead))
    assert [float(result.state["w"][0]) for result in found] == [1, 20, 3]
    assert not ahead


def test_results_that_come_before_their_turn_are_in_the_checkpoint(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    doubtful = importlib.import_module("doubtful_tasks")
    pending = Pending()
    with results_of(doubtful.Doubtful("slow"), torch.device("cpu"), 2, 1) as trained:
        arriving = trained(range(1, 5), {"w": torch.zeros(3)}, pending.ahead)
        pending.results.append(next(arriving))  # step 1 waits for the others
        kept = Pending()
        kept.load_state_dict(pending.state_dict())
    assert sorted(kept.ahead) == [2, 3, 4]
    assert [float(kept.ahead[step].state["w"][0]) for step in (2, 3, 4)] == [2, 3, 4]
    assert [result.dataset for result in kept.results] == ["set 1"]


@pytest.mark.parametrize(
    ("failure", "kind", "text"),
    [
        ("bad input", DartError, "x.npy: a slice is missing; prepare it"),
        ("bug", RuntimeError, "ZeroDivisionError: oops"),
        ("death", TaskProcessError, "ended with status 7"),
    ],
)
def test_what_goes_wrong_in_a_process_is_told(failure, kind, text, results):
    with pytest.raises(kind, match=text):
        results(failure)
    assert not multiprocessing.active_children()
