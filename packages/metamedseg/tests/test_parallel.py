"""Tasks in several processes give the result of one, and leave nothing running."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass

import pytest
import torch

from dart_core.errors import DartError, InputError
from dart_core.testing import assert_same_run
from metamedseg.method import State, TaskResult
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


@dataclass
class Doubtful:
    """Trains nothing; says which step it was, or fails at step 2."""

    failure: str = ""
    per_epoch: int = 4

    def train(self, step: int, theta: State, device: torch.device) -> TaskResult:
        """The weights plus the step."""
        if step == 2 and self.failure == "bad input":
            raise InputError("a slice is missing", where="x.npy", remedy="prepare it")
        if step == 2 and self.failure == "bug":
            raise ZeroDivisionError("oops")
        if step == 2 and self.failure == "death":
            import os

            os._exit(7)
        return TaskResult({"w": theta["w"] + step}, f"set {step}", [float(step)])


def results(failure: str) -> list[TaskResult]:
    with results_of(Doubtful(failure), torch.device("cpu"), 2, 1) as train:
        return list(train(range(1, 5), {"w": torch.zeros(3)}))


def test_results_come_in_order():
    found = results("")
    assert [result.dataset for result in found] == ["set 1", "set 2", "set 3", "set 4"]
    assert [float(result.state["w"][0]) for result in found] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("failure", "kind", "text"),
    [
        ("bad input", DartError, "x.npy: a slice is missing; prepare it"),
        ("bug", RuntimeError, "ZeroDivisionError: oops"),
        ("death", TaskProcessError, "ended with status 7"),
    ],
)
def test_what_goes_wrong_in_a_process_is_told(failure, kind, text):
    with pytest.raises(kind, match=text):
        results(failure)
    assert not multiprocessing.active_children()
