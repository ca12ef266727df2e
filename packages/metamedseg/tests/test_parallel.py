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
from metamedseg.method import TaskResult
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
            return list(trained(range(1, 5), {"w": torch.zeros(3)}))

    return train


def test_results_come_in_order(results):
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
def test_what_goes_wrong_in_a_process_is_told(failure, kind, text, results):
    with pytest.raises(kind, match=text):
        results(failure)
    assert not multiprocessing.active_children()
