"""A grid of runs in one folder: what is finished is never repeated, what was interrupted goes on, wherever it runs.

    train = Job("fda-mri", ("train", "--datalist", Path("scans.csv"), "--source", "sm3", "--seed", 0))
    predict = Job("fda-mri", ("predict", "--model", train, "--datalist", Path("scans.csv"), "--target", "sm15"))
    outcomes = run([train, predict], Path("experiment"), LocalExecutor(processes=2))

The address of a job is a digest of everything that its result depends on: command and version, words, the content of its data, and the
addresses of the jobs whose results it reads. Folder of the experiment: `runs/<address>/` with `job.json`, the run itself in `out/`,
`log.txt`, and `done.json` or `failed.json` once it has ended; `experiment.html` shows where everything stands.

A job runs in a process of its own (`python -m dart_core.experiment FOLDER`) that holds a lock on its folder and writes how it ended. So
nothing depends on the process that started it: where that dies, a second attempt waits for the first, finds it done, and does nothing. What
an executor tells is only that there is no point in waiting any longer; what happened is read from the folder. All nodes must see it.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from filelock import FileLock, Timeout
from rich.console import Console
from rich.live import Live

from dart_core import __version__
from dart_core.cli import say, sigterm_as_exception
from dart_core.errors import InputError, SettingError
from dart_core.files import write_atomic
from dart_core.processes import process_context

State = Literal["waiting", "queued", "running", "done", "failed", "skipped"]
"""Queued: with the executor, not begun."""
LAST_LINES = 12
PAGE = "experiment.html"
_ENDS = 64 * 1024
_STOPPED = (130, 143)
"""Exit status after Ctrl-C and SIGTERM: such a run is not over."""


# --- Jobs and their addresses ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One command with its words, without `--out`.

    Args:
        command: such as "fda-mri"; its package has the same name with underscores.
        words: verb, flags and values. A Path is data, whose content counts and not its name; a Job stands for the folder that
            it writes, an Output for something in it, and either has to be done before.
        name: for people; not part of the address.
        out: what it writes: a folder, or a file such as "network.onnx" where the command writes one.
    """

    command: str
    words: tuple[Word, ...]
    name: str = field(default="", compare=False)
    out: str = "out"

    @property
    def needs(self) -> tuple[Job, ...]:
        """Jobs whose results this one reads."""
        found = (word.job if isinstance(word, Output) else word for word in self.words)
        return tuple(word for word in found if isinstance(word, Job))

    @cached_property
    def address(self) -> str:
        """Digest of all that the result depends on, 16 hexadecimal digits.

        Raises:
            InputError: data that are not there.
            SettingError: the package of the command is not installed.
        """
        content = [self.command, _version(self.command), __version__, *map(_identity, self.words)]
        if self.out != "out":
            content.append(["out", self.out])
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        shown = (f"<{word.address}>" if isinstance(word, Job) else str(word) for word in self.words)
        return self.name or shlex.join((self.command, *shown))

    def file(self, path: str) -> Output:
        """A file or folder that the job writes, `path` being relative to its folder; a word for other jobs."""
        return Output(self, path)


@dataclass(frozen=True)
class Output:
    """Part of what a job writes."""

    job: Job
    path: str

    def __str__(self) -> str:
        return f"<{self.job.address}>/{self.path}"


Word: TypeAlias = str | int | float | Path | Job | Output


def grid(command: str, words: Sequence[Word], **axes: Sequence[Word]) -> list[Job]:
    """Jobs for every combination of some flags' values: `grid("aiva", ("adapt", ...), method=("aiva", "adabn"), seed=(0, 1, 2))`."""
    found: list[tuple[tuple[Word, ...], str]] = [(tuple(words), "")]
    for flag, values in axes.items():
        option = f"--{flag.replace('_', '-')}"
        found = [((*given, option, value), f"{name} {flag} {value}") for given, name in found for value in values]
    return [Job(command, given, f"{command} {words[0]}{name}") for given, name in found]


def _identity(word: Word) -> str | list[str]:
    if isinstance(word, Job):
        return ["job", word.address]
    if isinstance(word, Output):
        return ["output", word.job.address, word.path]
    if isinstance(word, Path):
        return ["data", fingerprint(word)]
    return str(word)


def _version(command: str) -> str:
    package = command.replace("-", "_")
    try:
        return str(importlib.import_module(package).__version__)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise SettingError(f"there is no package of the command {command!r}", remedy="install it") from None


def fingerprint(data: Path) -> str:
    """Digest of a file, a folder, or a table with all files that its cells name.

    Small files count with their content; of those above 128 KiB the size and both ends, so that large sets are not read whole.
    Where the files lie, and when they were written, does not count.

    Raises:
        InputError: there is no such file or folder.
    """
    data = data.resolve()
    if not data.exists():
        raise InputError("no such file or folder", where=data)
    if data.is_dir():
        files = sorted(path for path in data.rglob("*") if path.is_file())
    elif data.suffix == ".csv":
        with data.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            cells = {cell for row in csv.reader(file) for cell in row if cell}
        files = [data, *sorted(path for cell in cells if len(cell) < 4096 and (path := data.parent / cell).is_file())]
    else:
        files = [data]
    folder = data if data.is_dir() else data.parent
    digest = hashlib.sha256()
    for path in files:
        about = path.stat()
        digest.update(b"" if path == data else os.path.relpath(path, folder).encode() + b"\0")
        digest.update(_digest(path, about.st_size, about.st_mtime_ns))
    return digest.hexdigest()


@lru_cache(maxsize=1_000_000)
def _digest(path: Path, size: int, modified: int) -> bytes:
    """Of the content; size and time are there so that a file that has changed is read anew."""
    with path.open("rb") as file:
        start = file.read(_ENDS if size > 2 * _ENDS else -1)
        if size > 2 * _ENDS:
            file.seek(-_ENDS, os.SEEK_END)
        return hashlib.sha256(str(size).encode() + b"\0" + start + file.read()).digest()


# --- One job, in a process of its own --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """How a job stands, as its folder tells."""

    job: Job
    folder: Path
    state: State
    seconds: float | None = None
    """Of the last attempt."""
    attempts: int = 0
    last_lines: str = ""
    """Of what a failed job printed."""

    @property
    def out(self) -> Path:
        """What the run writes."""
        return self.folder / self.job.out


def perform(folder: Path) -> int:
    """Run the job whose `job.json` lies in a folder, unless it is done.

    Waits where another process is at it. A run that has checkpoints is continued; what another left half-written is removed.

    Returns:
        Exit status of the command.
    """
    with FileLock(folder / "lock"):
        if (folder / "done.json").is_file():
            return 0
        (folder / "failed.json").unlink(missing_ok=True)
        content = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        out = folder / content["out"]
        words = [*content["words"], "--out", str(out)]
        if any(out.rglob("checkpoints/*")):
            words.append("--resume")
        elif out.is_dir():
            shutil.rmtree(out)
        else:
            out.unlink(missing_ok=True)
        attempts = _read(folder / "attempts.json").get("attempts", 0) + 1
        write_atomic(folder / "attempts.json", json.dumps({"attempts": attempts}))
        print(
            f"--- attempt {attempts} on {socket.gethostname()}: {shlex.join([content['command'], *words])}", flush=True
        )
        sys.argv = [content["command"], *words]
        started = time.time()
        status = _status(content["command"])
        ended = {
            "status": status,
            "seconds": round(time.time() - started, 3),
            "attempts": attempts,
            "host": socket.gethostname(),
        }
        if status not in _STOPPED:
            write_atomic(folder / ("failed.json" if status else "done.json"), json.dumps(ended))
        return status


def _status(command: str) -> int:
    try:
        importlib.import_module(f"{command.replace('-', '_')}.cli").main()
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _taken(folder: Path) -> bool:
    """Whether another process is at a job now, as where two calls share the work."""
    try:
        with FileLock(folder / "lock", timeout=0):
            return False
    except Timeout:
        return True


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _argument(word: Word, runs: Path) -> str:
    if isinstance(word, Job):
        return str(runs / word.address / word.out)
    if isinstance(word, Output):
        return str(runs / word.job.address / word.job.out / word.path)
    return str(word.resolve() if isinstance(word, Path) else word)


def _describe(job: Job, runs: Path) -> None:
    """Write a job's `job.json`, anew where its data have moved since: the address stays, the words do not."""
    home = runs / job.address
    words = [_argument(word, runs) for word in job.words]
    content = {"command": job.command, "words": words, "out": job.out, "name": str(job)}
    before = _read(home / "job.json")
    if before == content or (before and ((home / "done.json").is_file() or _taken(home))):
        return
    if before and before["words"] != words:  # a run that has begun would refuse them
        out = home / job.out
        shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    write_atomic(home / "job.json", json.dumps(content, indent=1))


def _outcome(job: Job, runs: Path, state: State) -> Outcome:
    """What the folder of a job tells; `state` where it tells nothing."""
    folder = runs / job.address
    attempts = int(_read(folder / "attempts.json").get("attempts", 0))
    if done := _read(folder / "done.json"):
        return Outcome(job, folder, "done", done["seconds"], attempts)
    failed = _read(folder / "failed.json")
    lines: list[str] = []
    if failed or state == "failed":
        log = folder / "log.txt"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:] if log.is_file() else []
        if not failed:
            lines.append("(its process ended without a word: killed, out of memory, or its machine was lost)")
    return Outcome(job, folder, "failed" if failed else state, failed.get("seconds"), attempts, "\n".join(lines))


# --- Executors -------------------------------------------------------------------------------------------------------


class Executor(Protocol):
    """Where jobs run. None of its answers says whether a job succeeded."""

    @property
    def capacity(self) -> int:
        """Jobs handed over at a time."""
        ...

    def start(self, folder: Path) -> Any:
        """Have `perform(folder)` run; returns a handle at once."""
        ...

    def ended(self, handle: Any) -> bool:
        """Whether nothing is to be expected of it any more."""
        ...

    def stop(self, handle: Any) -> None:
        """Ask it to save and end (SIGTERM where there is such a thing)."""
        ...


def _process(folder: Path) -> list[str]:
    return [sys.executable, "-m", "dart_core.experiment", str(folder)]


@dataclass
class LocalExecutor:
    """Processes on this machine, forked where possible from one that has imported torch, which takes seconds each time."""

    processes: int = 1

    @property
    def capacity(self) -> int:
        """As many as there are processes."""
        return self.processes

    def start(self, folder: Path) -> BaseProcess:
        """A process in a session of its own, so that Ctrl-C reaches it once, through `stop`."""
        process = process_context("dart_core.run", "dart_core.report").Process(
            target=_in_own_session, args=(str(folder),)
        )
        process.start()
        return process

    def ended(self, handle: BaseProcess) -> bool:
        """Whether the process is over."""
        return handle.exitcode is not None

    def stop(self, handle: BaseProcess) -> None:
        """SIGTERM."""
        handle.terminate()


def _in_own_session(folder: str) -> None:
    if hasattr(os, "setsid"):
        os.setsid()
    sys.exit(main(folder))


class RayExecutor:
    """Tasks of a Ray cluster (extra `ray`), which gives each the CPUs and the share of a GPU that it asks for.

    Args:
        address: of a running cluster (`ray start --head`, `ray start --address ...`): "auto" finds it; None starts one here.
        cpus: of each job.
        gpus: of each job; 0.25 lets four share one.

    Raises:
        SettingError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, address: str | None = "auto", cpus: float = 1, gpus: float = 0) -> None:
        ray = _optional("ray")
        try:
            ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level="error")
        except ConnectionError as error:
            raise SettingError(f"no Ray cluster at {address!r}", remedy="start one: ray start --head") from error
        self._ray = ray
        # Ray's own retries would repeat a job whose process lives on after its worker; ours look into the folder first.
        self._task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_start_and_wait)
        self.capacity = 10_000

    def start(self, folder: Path) -> Any:
        """Hand it to the cluster."""
        return self._task.remote(_process(folder)[1:])

    def ended(self, handle: Any) -> bool:
        """Whether the task has returned or its node is lost."""
        return bool(self._ray.wait([handle], timeout=0)[0])

    def stop(self, handle: Any) -> None:
        """Cancel it; SIGTERM to the process."""
        self._ray.cancel(handle)


def _start_and_wait(arguments: Sequence[str]) -> None:
    """The body of a Ray task: a process, because a worker of Ray is used again for the next task."""
    process = subprocess.Popen([sys.executable, *arguments], stdin=subprocess.DEVNULL)
    try:
        process.wait()
    finally:
        process.terminate()


class SlurmExecutor:
    """Jobs of SLURM through submitit (extra `slurm`).

    Args:
        logs: folder for submitit's own files, visible to all nodes.
        cluster: None finds SLURM; "local" runs submitit's jobs on this machine.
        parameters: of `submitit.AutoExecutor.update_parameters`, such as timeout_min, gpus_per_node, slurm_partition.

    Raises:
        SettingError: submitit is not installed.
    """

    def __init__(self, logs: Path, cluster: str | None = None, **parameters: Any) -> None:
        self._executor = _optional("submitit").AutoExecutor(folder=logs, cluster=cluster)
        self._executor.update_parameters(**parameters)
        self.capacity = 10_000

    def start(self, folder: Path) -> Any:
        """Submit it."""
        return self._executor.submit(subprocess.call, _process(folder))

    def ended(self, handle: Any) -> bool:
        """Whether SLURM has it no more."""
        return bool(handle.done())

    def stop(self, handle: Any) -> None:
        """Take it off the queue; one that runs gets SIGTERM."""
        handle.cancel()


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        extra = {"submitit": "slurm"}.get(name, name)
        raise SettingError(f"{name} is not installed", remedy=f'python -m pip install "dart-core[{extra}]"') from None


# --- The experiment --------------------------------------------------------------------------------------------------


def run(
    jobs: Iterable[Job], folder: Path, executor: Executor, *, retries: int = 1, every: float = 0.5
) -> dict[Job, Outcome]:
    """Bring all jobs to their end, those that others need first, and say how each ended.

    A job that fails with a status of its own (bad input, a bug) is not repeated in this call, and what needs it is skipped; a later call
    tries it again. One whose process vanishes is started again, up to `retries` times. Ctrl-C and SIGTERM let running jobs save.

    Args:
        jobs: in any order; jobs that they need are added.
        folder: of the experiment, visible to all nodes.
        executor: where they run.
        retries: see above.
        every: seconds between two looks.

    Raises:
        InputError, SettingError: see `Job.address`.
        KeyboardInterrupt, Interrupted: after Ctrl-C, SIGTERM.
    """
    everything = _with_needs(jobs)
    folder = folder.resolve()  # jobs start in whatever folder their executor is in
    runs = folder / "runs"
    for job in everything:
        home = runs / job.address
        _describe(job, runs)
        (home / "failed.json").unlink(missing_ok=True)
    state: dict[Job, Outcome] = {job: _outcome(job, runs, "waiting") for job in everything}
    handles: dict[Job, Any] = {}
    lost = dict.fromkeys(everything, 0)
    with sigterm_as_exception(), _Progress(state, folder) as show:
        show()
        try:
            while not {found.state for found in state.values()} <= {"done", "failed", "skipped"}:
                changed = False
                for job in everything:
                    before = state[job]
                    if before.state == "waiting":
                        needed = {state[other].state for other in job.needs}
                        if needed & {"failed", "skipped"}:
                            state[job] = replace(before, state="skipped")
                        elif needed <= {"done"} and len(handles) < executor.capacity and not _taken(before.folder):
                            state[job] = _outcome(job, runs, "queued")  # another call may have brought it to its end
                            if state[job].state == "queued":
                                handles[job] = executor.start(before.folder)
                    elif job in handles and executor.ended(handles[job]):
                        del handles[job]
                        state[job] = _outcome(job, runs, "waiting")
                        if state[job].state == "waiting":
                            lost[job] += 1
                            if lost[job] > retries:
                                state[job] = _outcome(job, runs, "failed")
                    elif before.state == "queued":
                        begun = _outcome(job, runs, "running").attempts > before.attempts
                        state[job] = replace(before, state="running") if begun else before
                    changed |= state[job].state != before.state
                if changed:
                    show()
                else:
                    time.sleep(every)
        except BaseException:
            for handle in handles.values():
                executor.stop(handle)
            end = time.monotonic() + 60
            while any(not executor.ended(handle) for handle in handles.values()) and time.monotonic() < end:
                time.sleep(0.1)
            raise
    return state


def _with_needs(jobs: Iterable[Job]) -> list[Job]:
    """Each once, after those that it needs."""
    found: dict[Job, None] = {}

    def add(job: Job) -> None:
        for other in job.needs:
            add(other)
        found.setdefault(job)

    for job in jobs:
        add(job)
    return list(found)


def summary(outcomes: Iterable[Outcome]) -> str:
    """How many are done, running, failed and waiting, and about how much time is left."""
    outcomes = list(outcomes)
    counts = {
        state: sum(found.state == state for found in outcomes)
        for state in ("done", "running", "queued", "failed", "skipped", "waiting")
    }
    text = ", ".join(f"{count} {state}" for state, count in counts.items() if count or state == "done")
    times = [found.seconds for found in outcomes if found.state == "done" and found.seconds]
    left = counts["running"] + counts["queued"] + counts["waiting"]
    if left and times:
        seconds = sum(times) / len(times) * left / max(1, counts["running"])
        text += f"; about {seconds / 60:.0f} min left" if seconds >= 60 else f"; about {seconds:.0f} s left"
    return text


class _Progress:
    """A line that is kept up to date on a terminal, one line for each change elsewhere; the page in both."""

    def __init__(self, state: dict[Job, Outcome], folder: Path) -> None:
        self.state, self.folder = state, folder
        self.live = (
            Live(console=Console(stderr=True), auto_refresh=False, transient=True) if sys.stderr.isatty() else None
        )

    def __enter__(self) -> _Progress:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()
        self._page()

    def __call__(self) -> None:
        text = summary(self.state.values())
        if self.live is not None:
            self.live.update(text, refresh=True)
        else:
            say(text)
        self._page()

    def _page(self) -> None:
        write_page(self.state.values(), self.folder)


def write_page(outcomes: Iterable[Outcome], folder: Path) -> Path:
    """`experiment.html`: every job with its state, and the last lines of those that failed."""
    from dart_core.report import Report

    outcomes = list(outcomes)
    page = Report("Experiment", summary(outcomes))
    failures = [found for found in outcomes if found.state == "failed"]
    if failures:
        page.section("Failures")
        for found in failures:
            lines = found.last_lines.splitlines() or ["It printed nothing."]
            caption = f"{found.job} ({found.folder.name}), attempt {found.attempts}"
            page.table(("last lines",), [(line,) for line in lines], caption)
    page.section("Runs")
    rows = [(str(found.job), found.state, found.seconds, found.attempts, found.folder.name) for found in outcomes]
    page.table(("run", "state", "seconds", "attempts", "folder"), rows)
    return page.write(folder / PAGE)


def main(folder: str) -> int:
    """`python -m dart_core.experiment FOLDER`: `perform` with everything that is printed in the folder's log."""
    log = os.open(Path(folder, "log.txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    return perform(Path(folder))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
