"""A grid of runs in one folder: what is finished is never repeated, what was interrupted goes on, wherever it runs.

    if __name__ == "__main__":
        train = Job("fda-mri", ("train", "--datalist", Path("scans.csv"), "--site", "sm3", "--seed", 0))
        predict = Job("fda-mri", ("predict", "--model", train, "--datalist", Path("scans.csv"), "--site", "sm15"))
        outcomes = run([train, predict], Path("experiment"), LocalExecutor(processes=2))

The address of a job is a digest of everything that its result depends on: command and version, words, the content of its data, and the
addresses of the jobs whose results it reads. Folder of the experiment: `runs/<address>/` with `job.json`, the run itself in `out/`,
`log.txt`, and `done.json` or `failed.json` once it has ended; `experiment.html` shows where everything stands, and `digests.json` keeps what is
known of the data, so that no file is read twice for its digest.

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
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, TypeAlias

from filelock import FileLock, Timeout
from rich.console import Console
from rich.live import Live

from dart_core import __version__
from dart_core.cli import say, sigterm_as_exception
from dart_core.errors import DartError, InputError, SettingError
from dart_core.files import write_atomic
from dart_core.processes import process_context

State = Literal["waiting", "queued", "running", "done", "failed", "skipped", "unfinished"]
"""Queued: with the executor, not begun. Unfinished: of an earlier call, which did not bring it to its end."""
LAST_LINES = 12
PAGE = "experiment.html"
DIGESTS = "digests.json"
_JUST_WRITTEN = 2_000_000_000
"""Nanoseconds in which a file may change once more without a new time of writing."""
_WORTH_SAYING = 10 * 10**9
"""Bytes that take long enough to read for a person to wonder."""
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
        """Digest of all that the result depends on, 16 hexadecimal digits; of the data as they were at the first look or the last `run`.

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


@dataclass
class _Looks:
    """What one call knows of the data."""

    kept: Path
    digests: dict[str, tuple[int, int, str]]
    """Path of a file -> size, time of writing, digest."""
    fingerprints: dict[Path, str] = field(default_factory=dict)
    news: bool = False

    def known(self, path: Path, about: os.stat_result) -> bytes | None:
        """Digest of a file whose size and time of writing are those of when it was read; None of others."""
        size, modified, digest = self.digests.get(str(path), (-1, 0, ""))
        return bytes.fromhex(digest) if (size, modified) == (about.st_size, about.st_mtime_ns) else None

    def save(self) -> None:
        """Write the digests down for later calls, with those that another call has found meanwhile."""
        if self.news:
            write_atomic(self.kept, json.dumps({**_read(self.kept), **self.digests}))
            self.news = False


_looks: ContextVar[_Looks | None] = ContextVar("_looks", default=None)


@contextmanager
def data_looked_at_once(folder: Path) -> Iterator[None]:
    """Within it, the data of all jobs are looked at once for each path; a call after it sees what has changed since.

    Inside another one it does nothing, so that everything in a call sees the same data.

    Args:
        folder: of the experiment; the digests of single files are kept there by path, size and time of writing.
    """
    if _looks.get() is not None:
        yield
        return
    kept = folder.resolve() / DIGESTS
    looks = _Looks(kept, _read(kept))
    token = _looks.set(looks)
    try:
        yield
    finally:
        _looks.reset(token)
        looks.save()


def fingerprint(data: Path) -> str:
    """Digest of a file, a folder, or a list (CSV, JSON) with all files that it names; of an nnU-Net dataset.json with those beside it.

    The whole content counts. Where the files lie, and when they were written, does not.

    Raises:
        InputError: there is no such file or folder.
    """
    data = data.resolve()
    looks = _looks.get()
    if looks is not None and data in looks.fingerprints:
        return looks.fingerprints[data]
    if not data.exists():
        raise InputError("no such file or folder", where=data)
    folder = data if data.is_dir() else data.parent
    files = [(path, path.stat()) for path in _files(data)]
    known = [looks.known(path, about) if looks else None for path, about in files]
    unread = sum(about.st_size for (_, about), found in zip(files, known, strict=True) if found is None)
    if unread >= _WORTH_SAYING:
        say(f"{data}: reading {unread / 1e9:.0f} GB to know its content")
    digest = hashlib.sha256()
    for (path, about), found in zip(files, known, strict=True):
        digest.update(b"" if path == data else os.path.relpath(path, folder).encode() + b"\0")
        digest.update(_digest(path, about, looks) if found is None else found)
    result = digest.hexdigest()
    if looks is not None:
        looks.fingerprints[data] = result
    return result


def _files(data: Path) -> list[Path]:
    if data.is_dir():
        return sorted(path for path in data.rglob("*") if path.is_file())
    names: set[str] = set()
    if data.suffix.lower() == ".csv":
        with data.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            names = {cell for row in csv.reader(file) for cell in row}
    elif data.suffix.lower() == ".json":
        try:
            content = json.loads(data.read_text(encoding="utf-8-sig", errors="replace"))
        except json.JSONDecodeError:  # the command that reads it will say so
            content = None
        if isinstance(content, dict) and {"channel_names", "file_ending"} & content.keys():
            return [data, *(path for path in _files(data.parent) if path != data)]
        names = set(_texts(content))
    # os.path.isfile says no to what can be no name; Path.is_file raises.
    return [data, *sorted(path for name in names if name and os.path.isfile(path := data.parent / name))]


def _texts(content: object) -> Iterator[str]:
    """Every text in what a JSON file holds, but for the keys."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, (dict, list)):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _texts(value)


def _digest(path: Path, about: os.stat_result, looks: _Looks | None) -> bytes:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.sha256(f"{about.st_size}\0".encode()))
    if looks is not None and about.st_mtime_ns < time.time_ns() - _JUST_WRITTEN:
        looks.digests[str(path)] = (about.st_size, about.st_mtime_ns, found.hexdigest())
        looks.news = True
    return found.digest()


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

    Waits where another process is at it. A run that has checkpoints is continued; what another left half-written is removed. Where the data
    are no longer those of the address, it fails: its result would stand for others.

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
        status = _changed_data(content, folder.parent.parent) or _status(content["command"])
        ended = {
            "status": status,
            "seconds": round(time.time() - started, 3),
            "attempts": attempts,
            "host": socket.gethostname(),
        }
        if status not in _STOPPED:
            write_atomic(folder / ("failed.json" if status else "done.json"), json.dumps(ended))
        return status


def _changed_data(content: Mapping[str, Any], experiment: Path) -> int:
    """Exit status of a job whose data have changed since it was given its address, 0 where they have not."""
    try:
        with data_looked_at_once(experiment):
            for path, expected in content.get("data", {}).items():  # none in folders of earlier versions
                if fingerprint(Path(path)) != expected:
                    raise InputError(
                        "has changed since this run was asked for",
                        where=path,
                        remedy="call the script again: it runs on what is there now",
                    )
    except (DartError, OSError) as error:
        print(f"{content['command']}: error: {error}", file=sys.stderr, flush=True)
        return DartError.exit_status
    return 0


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
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}


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
    data = {str(word.resolve()): fingerprint(word) for word in job.words if isinstance(word, Path)}
    content = {"command": job.command, "words": words, "out": job.out, "name": str(job), "data": data}
    before = _read(home / "job.json")
    if before == content or (before and ((home / "done.json").is_file() or _taken(home))):
        return
    if before and before["words"] != words:  # a run that has begun would refuse them
        out = home / job.out
        shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    write_atomic(home / "job.json", json.dumps(content, indent=1))


def _outcome(job: Job, folder: Path, state: State, old_failure: Mapping[str, Any] | None = None) -> Outcome:
    """What the folder of a job tells; `state` where it tells nothing, or only of a failure before this call."""
    attempts = int(_read(folder / "attempts.json").get("attempts", 0))
    if done := _read(folder / "done.json"):
        return Outcome(job, folder, "done", done["seconds"], attempts)
    failed = _read(folder / "failed.json")
    if failed and failed != old_failure:
        return Outcome(job, folder, "failed", failed["seconds"], attempts, "\n".join(_last_lines(folder)))
    return Outcome(job, folder, state, None, attempts)


def _last_lines(folder: Path) -> list[str]:
    log = folder / "log.txt"
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:] if log.is_file() else []


def _given_up(found: Outcome, begun: bool) -> Outcome:
    """Of a job whose process ended, more often than is allowed, without saying how."""
    if begun:
        why = "(its process ended without a word: killed, out of memory, or its machine was lost)"
    else:
        why = "(its process ended before the run began; why may stand on the terminal or in the files of the cluster)"
    return replace(found, state="failed", last_lines="\n".join([*_last_lines(found.folder), why]))


def _of_other_calls(folder: Path, known: set[str]) -> list[Outcome]:
    """How the other jobs of an experiment stand, as far as their folders tell."""
    found = []
    for home in (file.parent for file in folder.glob("runs/*/job.json")):
        if home.name not in known:
            content = _read(home / "job.json")
            job = Job(content["command"], tuple(content["words"]), content["name"], content["out"])
            outcome = _outcome(job, home, "unfinished")
            if outcome.state == "unfinished" and _taken(home):
                outcome = replace(outcome, state="running")
            found.append(outcome)
    return sorted(found, key=lambda outcome: str(outcome.job))


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


_starting = threading.Lock()


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
        # The new process would import the script that calls, and one without `if __name__ == "__main__"` would start its runs there again.
        with _starting:
            script, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
            try:
                process.start()
            finally:
                sys.modules["__main__"] = script
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
        gpus: of each job; 0.25 lets four share one. None: one where a node of the cluster has any, else none.

    Raises:
        SettingError: Ray is not installed, there is no cluster at the address, or none of its nodes has what a job needs.
    """

    def __init__(self, address: str | None = "auto", cpus: float = 1, gpus: float | None = 0) -> None:
        if gpus is not None and (gpus < 0 or (gpus > 1 and gpus != int(gpus))):
            raise SettingError(f"Ray gives no {gpus:g} GPUs", remedy="ask for a share below 1 or for a whole number")
        ray = _optional("ray")
        try:
            ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level="error")
        except ConnectionError as error:
            raise SettingError(f"no Ray cluster at {address!r}", remedy="start one: ray start --head") from error
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if gpus is None:
            gpus = 1 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0
        if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
            raise SettingError(
                f"no node of the Ray cluster has {cpus:g} CPUs and {gpus:g} GPUs, which each run would wait for",
                remedy="ask for less, or start a node that has them",
            )
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
        SettingError: submitit is not installed, there is no SLURM, or a parameter that submitit does not know.
    """

    def __init__(self, logs: Path, cluster: str | None = None, **parameters: Any) -> None:
        self._executor = _optional("submitit").AutoExecutor(folder=logs, cluster=cluster)
        if cluster is None and self._executor.cluster != "slurm":  # submitit would run everything here, at once
            raise SettingError("there is no SLURM on this machine", remedy="start this where sbatch and srun are")
        try:
            self._executor.update_parameters(**parameters)
        except NameError as error:
            raise SettingError(str(error).partition("\n")[0], remedy="give one of these") from None
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
    folder = folder.resolve()  # jobs start in whatever folder their executor is in
    with data_looked_at_once(folder):
        everything = _with_needs(jobs)
        runs = folder / "runs"
        for job in everything:
            _describe(job, runs)
        if (looks := _looks.get()) is not None:
            looks.save()  # the jobs compare their data with it
        return _run(everything, folder, executor, retries, every)


def _run(everything: list[Job], folder: Path, executor: Executor, retries: int, every: float) -> dict[Job, Outcome]:
    homes = {job: folder / "runs" / job.address for job in everything}
    # They are tried again. The files stay: another call may be at a job, and the process that begins it removes its own.
    old = {job: _read(home / "failed.json") for job, home in homes.items()}

    def look(job: Job, state: State) -> Outcome:
        return _outcome(job, homes[job], state, old[job])

    state = {job: look(job, "waiting") for job in everything}
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
                            state[job] = look(job, "queued")  # another call may have brought it to its end
                            if state[job].state == "queued":
                                handles[job] = executor.start(before.folder)
                    elif job in handles and executor.ended(handles[job]):
                        del handles[job]
                        state[job] = look(job, "waiting")
                        if state[job].state == "waiting":
                            lost[job] += 1
                            if lost[job] > retries:
                                state[job] = _given_up(state[job], begun=state[job].attempts > before.attempts)
                    elif before.state == "queued":
                        begun = look(job, "running").attempts > before.attempts
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
    """Each once, after those that it needs, and with an address that is to be determined anew: the data may have changed since."""
    found: dict[Job, None] = {}

    def add(job: Job) -> None:
        for other in job.needs:
            add(other)
        vars(job).pop("address", None)
        found.setdefault(job)

    for job in jobs:
        add(job)
    return list(found)


def summary(outcomes: Iterable[Outcome]) -> str:
    """How many are done, running, failed and waiting, and about how much time is left."""
    outcomes = list(outcomes)
    counts = {
        state: sum(found.state == state for found in outcomes)
        for state in ("done", "running", "queued", "failed", "skipped", "waiting", "unfinished")
    }
    text = ", ".join(f"{count} {state}" for state, count in counts.items() if count or state == "done")
    times = [found.seconds for found in outcomes if found.state == "done" and found.seconds]
    left = counts["running"] + counts["queued"] + counts["waiting"]
    if left and times:
        seconds = sum(times) / len(times) * left / max(1, counts["running"])
        text += f"; about {seconds / 60:.0f} min left" if seconds >= 60 else f"; about {seconds:.0f} s left"
    return text


class _Progress:
    """A line that is kept up to date on a terminal, one line for each change elsewhere; the page in both, which shows other calls' jobs too."""

    def __init__(self, state: dict[Job, Outcome], folder: Path) -> None:
        self.state, self.folder = state, folder
        self.others = self._others()
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
        self.others = self._others()  # not at every change: there may be thousands
        self._page()

    def __call__(self) -> None:
        text = summary(self.state.values())
        if self.live is not None:
            self.live.update(text, refresh=True)
        else:
            say(text)
        self._page()

    def _others(self) -> list[Outcome]:
        return _of_other_calls(self.folder, {found.folder.name for found in self.state.values()})

    def _page(self) -> None:
        write_page([*self.state.values(), *self.others], self.folder)


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
