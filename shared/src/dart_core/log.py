"""What a run reports while it works: metrics.jsonl, a progress bar on a terminal, and a tracker on request."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dart_core.errors import SettingError
from dart_core.files import output_errors, write_atomic

Item = TypeVar("Item")
FILE = "metrics.jsonl"


def plain_number(value: Any) -> Any:
    """A value as JSON can hold it: one-element tensors and arrays become numbers, nan and infinity None."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Log:
    """Writes the metrics of a run.

    Args:
        folder: output folder of the run; must exist.
        track: also send the metrics to this tracker ("none", "tensorboard", "mlflow", "wandb").
        main: False in all processes but the first: nothing is written or shown there.

    Raises:
        SettingError: the tracker's package is not installed.
    """

    def __init__(self, folder: Path, track: str = "none", main: bool = True) -> None:
        self.path = Path(folder) / FILE
        self._main = main
        self._start_tracker = _TRACKERS[track](Path(folder)) if main and track != "none" else None
        self._tracker: _Tracker | None = None
        self._first = 0
        self._file: FileIO | None = None
        self._progress: Progress | None = None

    def write(self, step: int, **values: Any) -> None:
        """Append one line: step, time (seconds since the epoch), values.

        Args:
            step: the step that `Run.steps` gave out (so that a resumed run knows which lines it will write again).
            values: numbers, one-element tensors or arrays; nan and infinity are written as null.

        Raises:
            OutputError: the disk is full.
        """
        if not self._main:
            return
        numbers = {name: plain_number(value) for name, value in values.items()}
        data = json.dumps({"step": step, "time": round(time.time(), 3), **numbers}).encode() + b"\n"
        with output_errors(self.path):
            # Unbuffered: a line is in the file as soon as it is written, and nothing is left to fail when it is closed.
            self._file = self._file or FileIO(self.path, "ab")
            if self._file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._start_tracker is not None:
            self._tracker = self._tracker or self._start_tracker(self._first)
            self._tracker.send(step, {name: number for name, number in numbers.items() if _is_number(number)})
        if self._progress is not None:
            shown = "  ".join(f"{name} {number:.4g}" for name, number in numbers.items() if _is_number(number))
            self._progress.update(self._progress.task_ids[-1], latest=shown)

    def flush(self) -> None:
        """Put what was written onto the disk, so that a checkpoint never knows more than the metrics file."""
        if self._file is not None:
            with output_errors(self.path):
                os.fsync(self._file.fileno())

    def truncate(self, step: int) -> None:
        """Drop the lines of `step` and later, and a half-written last line: the resumed run writes them again."""
        self._first = step
        self._close_file()
        if not self._main or not self.path.exists():
            return
        text = self.path.read_text(encoding="utf-8", errors="replace")
        kept = "".join(line + "\n" for line in text.splitlines() if _step_of(line) < step)
        if kept != text:
            write_atomic(self.path, kept)

    def progress(self, items: Iterable[Item], label: str, total: int | None = None, done: int = 0) -> Iterator[Item]:
        """Pass the items on, with a progress bar on stderr where that is a terminal.

        Args:
            items: what to go through.
            label: name of the activity.
            total: how many there will be, counting `done`; None = the length of `items`, if it has one.
            done: how many were done before.
        """
        if not self._main or not sys.stderr.isatty():
            yield from items
            return
        if total is None and isinstance(items, Sized):
            total = done + len(items)
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[latest]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._progress.start()
        progress = self._progress
        task = progress.add_task(label, total=total, completed=done, latest="")
        try:
            for item in items:
                yield item
                progress.advance(task)
        finally:
            progress.remove_task(task)
            if not progress.task_ids:
                self.close_progress()

    def close_progress(self) -> None:
        """Take the progress bar off the terminal."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        """End the progress bar and the tracker, and close the file."""
        self.close_progress()
        self._close_file()
        if self._tracker is not None:
            self._tracker.close()
            self._tracker = None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


class _Tracker:
    """A started tracker: where to send a step's numbers, and how to end."""

    def __init__(self, send: Callable[[int, Mapping[str, Any]], None], close: Callable[[], None]) -> None:
        self.send, self.close = send, close


def _absent(package: str, error: ImportError) -> SettingError:
    return SettingError(
        f"--track {package}: the package {package} is not installed ({error})", remedy=f"pip install {package}"
    )


def _tensorboard(folder: Path) -> Callable[[int], _Tracker]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise _absent("tensorboard", error) from error

    def start(first: int) -> _Tracker:
        writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first or None)

        def send(step: int, numbers: Mapping[str, Any]) -> None:
            for name, number in numbers.items():
                writer.add_scalar(name, number, step)

        return _Tracker(send, writer.close)

    return start


def _mlflow(folder: Path) -> Callable[[int], _Tracker]:
    try:
        import mlflow
    except ImportError as error:
        raise _absent("mlflow", error) from error

    def start(first: int) -> _Tracker:
        mlflow.start_run(run_name=folder.name)
        return _Tracker(lambda step, numbers: mlflow.log_metrics(dict(numbers), step=step), mlflow.end_run)

    return start


def _wandb(folder: Path) -> Callable[[int], _Tracker]:
    try:
        import wandb
    except ImportError as error:
        raise _absent("wandb", error) from error

    def start(first: int) -> _Tracker:
        run = wandb.init(name=folder.name, dir=str(folder))
        return _Tracker(lambda step, numbers: run.log(dict(numbers), step=step), run.finish)

    return start


_TRACKERS: dict[str, Callable[[Path], Callable[[int], _Tracker]]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
