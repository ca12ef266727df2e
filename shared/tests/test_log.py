from __future__ import annotations

import io
import json
import math
import resource
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dart_core.errors import OutputError, SettingError
from dart_core.log import Log


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lines(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.write(0, loss=0.5, site="A", best=True)
    log.write(1, loss=torch.tensor(0.25), dice=np.float32(0.5), worst=math.nan, far=math.inf, count=np.int64(3))
    log.close()
    first, second = lines(tmp_path)
    assert first.pop("time") > 1.7e9
    assert first == {"step": 0, "loss": 0.5, "site": "A", "best": True}
    second.pop("time")
    assert second == {"step": 1, "loss": 0.25, "dice": 0.5, "worst": None, "far": None, "count": 3}


def test_only_the_main_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    log = Log(tmp_path, "wandb", main=False)
    log.write(0, loss=0.5)
    log.flush()
    log.truncate(0)
    assert list(log.progress(range(3), "training")) == [0, 1, 2]
    log.close()
    assert list(tmp_path.iterdir()) == []
    assert sys.stderr.getvalue() == ""


@pytest.mark.parametrize("torn", ['{"step": 9, "lo', "null", '{"step": "x"}', '{"loss": 1}', "", "\x00\x00"])
def test_truncate_drops_later_and_torn_lines(tmp_path: Path, torn: str) -> None:
    log = Log(tmp_path)
    log.truncate(3)
    for step in range(6):
        log.write(step, loss=step)
    log.flush()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(torn)
    log.truncate(4)
    log.write(4, loss=40)
    log.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 40)]


def test_truncate_ends_a_line_that_lost_its_end(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}')
    log = Log(tmp_path)
    log.truncate(2)
    log.write(2)
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2]


def test_full_disk(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    log = Log(tmp_path)
    with pytest.raises(OutputError, match=r"metrics\.jsonl: the disk is full; free some space"):
        log.write(0, loss=1)
    log.close()


def test_a_line_that_is_cut_short(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.write(0, text="x" * 3000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OutputError, match="the disk is full"):
            log.write(1, text="x" * 3000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.truncate(1)
    log.write(1)
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [0, 1]


def test_progress_is_quiet_where_there_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = Log(tmp_path)
    assert list(log.progress(iter("abc"), "reading")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_progress_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    log = Log(tmp_path)
    for step in log.progress(range(3, 5), "training", total=5, done=3):
        log.write(step, loss=0.125)
        assert list(log.progress(["x", "y"], "validation")) == ["x", "y"]
        assert log._progress is not None
        log._progress.refresh()
    shown = terminal.getvalue()
    assert "training" in shown
    assert "validation" in shown
    assert "4/5" in shown
    assert "loss 0.125" in shown
    assert log._progress is None
    log.close()


def test_progress_ends_with_the_log_and_on_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    log = Log(tmp_path)
    with pytest.raises(ZeroDivisionError):
        next(1 / 0 for _ in log.progress(range(3), "training"))
    bar = log.progress(range(3), "training")
    next(bar)
    log.close()
    assert log._progress is None
    assert list(bar) == [1, 2]


@pytest.mark.parametrize("package", ["tensorboard", "mlflow", "wandb"])
def test_absent_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for module in (package, "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SettingError, match=f"--track {package}: .* not installed .*; pip install {package}"):
        Log(tmp_path, package)
    assert list(tmp_path.iterdir()) == []


def test_trackers_are_imported_only_on_request(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.write(0, loss=1)
    log.close()
    assert not {"mlflow", "wandb"} & sys.modules.keys()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Stand-ins with the functions of the two services that are used; they record what they get."""
    seen: list[tuple[Any, ...]] = []
    mlflow, wandb = types.ModuleType("mlflow"), types.ModuleType("wandb")

    def metrics(values: dict[str, float], step: int) -> None:
        seen.append((step, values))

    vars(mlflow).update(
        start_run=lambda run_name: seen.append(("start", run_name)),
        log_metrics=metrics,
        end_run=lambda: seen.append(("end",)),
    )

    def init(name: str, dir: str) -> Any:
        seen.append(("start", name))
        return types.SimpleNamespace(log=metrics, finish=lambda: seen.append(("end",)))

    vars(wandb).update(init=init)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return seen


@pytest.mark.parametrize("track", ["mlflow", "wandb"])
def test_trackers_get_the_numbers(tmp_path: Path, calls: list[tuple[Any, ...]], track: str) -> None:
    log = Log(tmp_path, track)
    assert calls == []
    log.write(2, loss=torch.tensor(0.5), site="A", bad=math.nan, best=True)
    log.write(3, loss=0.25)
    log.close()
    assert calls == [("start", tmp_path.name), (2, {"loss": 0.5}), (3, {"loss": 0.25}), ("end",)]


# TensorBoard's own modules use what newer versions of Python and NumPy deprecate.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, loss in ((0, 1.0), (2, 2.0)):
        log = Log(tmp_path, "tensorboard")
        log.truncate(first)
        for step in range(first, 4):
            log.write(step, loss=loss, site="A")
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(0, 1.0), (1, 1.0), (2, 2.0), (3, 2.0)]
