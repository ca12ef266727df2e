"""For tests of packages on the core, here and elsewhere."""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from filelock import FileLock

from dart_core.checkpoint import load_checkpoint, load_weights
from dart_core.cli import Commands, main
from dart_core.run import CHECKPOINTS

if TYPE_CHECKING:
    import pytest

PATIENCE = 240.0
"""Seconds after which a command that does not get on is given up."""

# --- States ----------------------------------------------------------------------------------------------------------


def assert_equal_states(one: Any, other: Any, where: str = "state") -> None:
    """Compare two nested states, as checkpoints hold them, bit for bit.

    Args:
        one: tensors, numbers, texts, and dicts, lists and tuples of them.
        other: likewise.
        where: what the error calls the whole.

    Raises:
        AssertionError: they differ; names the places.
    """
    places = list(_differences(one, other, where))
    if places:
        raise AssertionError(f"these differ: {', '.join(places)}")


def _differences(one: Any, other: Any, where: str) -> Iterator[str]:
    if isinstance(one, torch.Tensor):
        if not isinstance(other, torch.Tensor) or one.dtype != other.dtype or not torch.equal(one, other):
            yield where
    elif isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key in one:
            yield from _differences(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple) and isinstance(other, type(one)) and len(one) == len(other):
        for place, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from _differences(a, b, f"{where}.{place}")
    elif isinstance(one, dict | list | tuple) or type(one) is not type(other) or _unequal(one, other):
        yield where


def _unequal(one: Any, other: Any) -> bool:
    return bool(one != other and (one == one or other == other))  # nan equals nan


# --- Runs ------------------------------------------------------------------------------------------------------------


def logged(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl without their time; of a run that was killed without a half-written last line."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [{key: value for key, value in json.loads(line).items() if key != "time"} for line in lines]


def last_checkpoint(run: Path) -> dict[str, Any]:
    """The newest checkpoint of a run: "step", "state" and what else `dart_core.run.Run` keeps."""
    return load_checkpoint(max((run / CHECKPOINTS).iterdir()))


def assert_same_run(one: Path, other: Path) -> None:
    """Compare two runs bit for bit, with the runs inside their folders: weights, newest checkpoints, logged lines, results.

    Args:
        one: folder of a run.
        other: likewise.

    Raises:
        AssertionError: they differ, or there is nothing to compare.
    """
    found, others = (_outputs(run) for run in (one, other))
    assert found.keys() == others.keys(), f"files of one run only: {sorted(found.keys() ^ others.keys())}"
    assert found, f"{one} holds no run"
    for name in found:
        assert_equal_states(found[name], others[name], name)


def _outputs(run: Path) -> dict[str, Any]:
    """What a run left, by path."""
    readers: dict[str, Callable[[Path], Any]] = {
        "*.safetensors": lambda path: load_weights(path)[0],
        "metrics.jsonl": lambda path: logged(path.parent),
        "metrics.json": lambda path: json.loads(path.read_text()),
        CHECKPOINTS: lambda path: {key: last_checkpoint(path.parent)[key] for key in ("step", "state")},
    }
    found = {path: read for pattern, read in readers.items() for path in run.rglob(pattern)}
    return {str(path.relative_to(run)): read(path) for path, read in found.items()}


# --- Commands in this process ----------------------------------------------------------------------------------------


class Finished(NamedTuple):
    """What a command gave back."""

    status: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line on stderr."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        return lines[0]

    @property
    def last_line(self) -> str:
        """The last line on stderr, where others before it say what was left out."""
        assert "Traceback" not in self.err, self.err
        return self.err.splitlines()[-1]


class Capture(Protocol):
    """pytest's `capsys`."""

    def readouterr(self) -> tuple[str, str]:
        """What was printed since the last call, on stdout and stderr."""
        ...


class InProcess:
    """A package's command, run in this process: `InProcess("fda-mri")("train", "--out", folder)` gives the exit status."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __call__(self, *words: object) -> int:
        """Run it with these words."""
        package = self.command.replace("-", "_")
        cli, version = importlib.import_module(f"{package}.cli"), importlib.import_module(package).__version__
        return main(self.command, cli.COMMANDS, version, cli.DESCRIPTION, [str(word) for word in words])

    def captured(self, capsys: Capture) -> Callable[..., Finished]:
        """The same, with what it prints."""

        def run(*words: object) -> Finished:
            capsys.readouterr()
            status = self(*words)
            return Finished(status, *capsys.readouterr())

        return run


def readme_commands(readme: Path, command: str) -> list[list[str]]:
    """The words of each call of a command in the shell examples of a README."""
    blocks = readme.read_text(encoding="utf-8").split("```sh\n")[1:]
    lines = [line for block in blocks for line in block.split("```")[0].splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith(f"{command} ")]


def config_words(path: Path, command: str) -> list[str]:
    """The words of the call that the first lines of a settings file show, `--config` naming the file where it lies.

    Raises:
        AssertionError: it shows no call of the command with this file.
    """
    shown = re.sub(r"\\\n#\s*", "", path.read_text(encoding="utf-8"))
    for line in shown.splitlines():
        name, found, call = line.removeprefix("#").strip().partition(f"{command} ")
        words = shlex.split(call) if found and (not name or name.endswith(" -m ")) else []  # torchrun ... -m popar
        if f"configs/{path.name}" in words:
            words[words.index(f"configs/{path.name}")] = str(path)
            return words
    raise AssertionError(f"{path.name} shows no call of {command} with it")


def settings_given(command: str, commands: Commands, words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The settings that a verb gets from the words of a call, which is not carried out.

    Args:
        command: such as "fda-mri".
        commands: its verbs.
        words: verb, flags and values.
        monkeypatch: pytest's.

    Raises:
        AssertionError: the words are not understood.
    """
    verb, *rest = words
    settings, _ = commands[verb]
    seen: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setitem(commands, verb, (settings, f"{__name__}:unused"))
        patch.setattr("importlib.import_module", lambda name: type("Module", (), {"unused": seen.append}))
        status = main(command, commands, "0", "", argv=[verb, *map(str, rest)])
    assert status == 0, f"{shlex.join(words)}: status {status}"
    assert type(seen[0]) is settings
    return seen[0]


def assert_help_is_light(module: str, verb: str) -> None:
    """`--help` of a verb imports no heavy package, so that it answers at once."""
    heavy = {
        "torch",
        "torchvision",
        "timm",
        "monai",
        "numpy",
        "scipy",
        "sklearn",
        "skimage",
        "nibabel",
        "matplotlib",
        "PIL",
        "ot",
        "cv2",
    }
    code = (
        f"import sys; from {module}.cli import main; sys.argv = ['{module}', '{verb}', '--help']\n"
        "try: main()\nexcept SystemExit as end: assert end.code == 0\n"
        f"sys.exit(', '.join({heavy} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("--") > 2


def assert_commands_answer(command: str, run: Callable[..., Finished]) -> None:
    """`--help` names every verb, each verb's `--help` shows its flags, `--version` says which.

    Args:
        command: such as "fda-mri".
        run: as `InProcess.captured` gives it.
    """
    module = command.replace("-", "_")
    overview = run("--help")
    assert overview.status == 0
    for verb in importlib.import_module(f"{module}.cli").COMMANDS:
        assert f"  {verb}" in overview.out
        shown = run(verb, "--help")
        assert (shown.status, shown.err) == (0, "")
        assert shown.out.count("--") > 2
    assert run("--version").out == f"{command} {importlib.import_module(module).__version__}\n"


def assert_exports(module: str, *names: str) -> None:
    """A package has all that it says it has, and these names among them."""
    package = importlib.import_module(module)
    assert set(package.__all__) >= set(names)
    for name in package.__all__:
        assert getattr(package, name) is not None


def is_report(path: Path, *words: str) -> bool:
    """A whole report, with these words in it."""
    text = path.read_text(encoding="utf-8")
    return text.rstrip().endswith("</html>") and all(word in text for word in words)


def demo_once(command: str, base: Path) -> Path:
    """The folder of a package's demo, which is run once however many processes of pytest-xdist ask.

    Args:
        command: such as "fda-mri".
        base: pytest's base folder of this process (`tmp_path_factory.getbasetemp()`).
    """
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # the processes share what lies above
    out = folder / f"{command}-demo"
    with FileLock(folder / f"{command}-demo.lock"):
        if not (out / "report.html").is_file():
            assert InProcess(command)("demo", "--out", out) == 0
    return out


def torchrun(*words: object, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Run a program or `-m module` with words in several processes on the CPU, one thread each.

    Raises:
        AssertionError: one of them failed.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*command, *map(str, words)], check=False, timeout=PATIENCE, capture_output=True, encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


# --- Commands that are killed and resumed ----------------------------------------------------------------------------


class Started(NamedTuple):
    """A command in a process of its own."""

    process: ForkServerProcess
    stderr: Path

    def status(self) -> int | None:
        """Exit status, waited for; negative if a signal ended the command."""
        self.process.join(PATIENCE)
        return self.process.exitcode

    def stop(self, out: Path, lines: int, number: int) -> None:
        """Send a signal some milliseconds after the run in `out` has logged that many lines."""
        end = time.monotonic() + PATIENCE
        while sum(len(logged(path.parent)) for path in out.rglob("metrics.jsonl")) < lines:
            assert self.process.exitcode is None, self.stderr.read_text()
            assert time.monotonic() < end, "the training does not get on"
            time.sleep(0.002)
        time.sleep(random.SystemRandom().uniform(0, 0.03))
        assert self.process.pid is not None
        os.kill(self.process.pid, number)


class Trainings:
    """Training commands of a package as processes that are killed or stopped and resumed, against undisturbed ones.

    Use it as a context; what still runs at its end is killed. A fork server that has imported PyTorch already saves seconds
    for each process.

    Args:
        command: such as "fda-mri"; `main` is in the module `cli` of the package of that name.
        folder: an empty one, for what the commands print and for the undisturbed runs.
        preload: modules that the commands import.
    """

    def __init__(self, command: str, folder: Path, preload: Sequence[str] = ()) -> None:
        self.command = command
        self.folder = folder
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["torch._dynamo", "tyro", *preload])
        self._started: list[Started] = []
        self._whole: dict[tuple[str, ...], Path] = {}

    def __enter__(self) -> Trainings:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for started in self._started:
            started.process.kill()
            started.process.join()

    def start(self, *words: object) -> Started:
        """Start the command with these words."""
        stderr = self.folder / f"stderr{len(self._started)}.txt"
        arguments = (self.command, [str(word) for word in words], str(stderr))
        process = self._context.Process(target=_run_command, args=arguments)
        process.start()
        self._started.append(Started(process, stderr))
        return self._started[-1]

    def finish(self, *words: object) -> None:
        """Run the command to its end, which must be a good one."""
        started = self.start(*words)
        assert started.status() == 0, started.stderr.read_text()

    def whole(self, words: Sequence[object]) -> Path:
        """The undisturbed run of a command (without --out), made once."""
        key = tuple(map(str, words))
        if key not in self._whole:
            out = self.folder / f"whole{len(self._whole)}"
            self.finish(*words, "--out", out)
            self._whole[key] = out
        return self._whole[key]

    def assert_survives_kill(self, words: Sequence[object], out: Path) -> None:
        """kill -9 at a random moment of the first half, then --resume: the run is as the undisturbed one."""
        lines = self._some_lines(words)
        started = self.start(*words, "--out", out)
        started.stop(out, lines, signal.SIGKILL)
        assert started.status() == -signal.SIGKILL, started.stderr.read_text()
        self.finish(*words, "--out", out, "--resume")
        assert_same_run(out, self.whole(words))
        assert not list(out.rglob("*tmp*"))

    def assert_survives_interrupt(self, words: Sequence[object], out: Path) -> None:
        """Ctrl-C at a random moment of the first half gives one line and status 130; --resume goes on, as above."""
        lines = self._some_lines(words)
        started = self.start(*words, "--out", out)
        started.stop(out, lines, signal.SIGINT)
        printed = started.stderr
        assert started.status() == 130, printed.read_text()
        # "of N" is missing where the process was so slow that the last step was over.
        expected = rf"{self.command}: stopped by Ctrl-C after step \d+( of \d+)?; --resume continues"
        assert re.fullmatch(expected, printed.read_text().splitlines()[-1]), printed.read_text()
        self.finish(*words, "--out", out, "--resume")
        assert_same_run(out, self.whole(words))

    def _some_lines(self, words: Sequence[object]) -> int:
        lines = sum(len(logged(path.parent)) for path in self.whole(words).rglob("metrics.jsonl"))
        assert lines > 3, "log more often: --log-every 1"
        return random.SystemRandom().randint(1, lines // 2)


def _run_command(command: str, words: list[str], stderr: str) -> None:
    """In a process of the fork server: as if the command had been started by itself."""
    os.setsid()
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
    sys.argv = [command, *words]
    importlib.import_module(f"{command.replace('-', '_')}.cli").main()


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A running Chromium without a window (a Playwright browser); the test is skipped where there is none."""
    import pytest

    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = os.environ.get("DART_CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.skip("no Chromium: install it, or name it in DART_CHROMIUM")
    flags = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync"
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=flags.split())
        try:
            yield running
        finally:
            running.close()


def assert_reports_render(folder: Path, width: int) -> None:
    """Every report.html in a folder shows itself in a browser of that width whole, without complaint and without the network.

    Raises:
        AssertionError: there is none, one is wider than the window, a picture is broken, or something else was asked for.
    """
    reports = sorted(folder.rglob("report.html"))
    assert reports, folder
    with chromium() as browser:
        page = browser.new_page(viewport={"width": width, "height": 844})
        complaints: list[str] = []
        requests: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        for report in reports:
            page.goto(report.as_uri(), wait_until="load")
            assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth"), report
            assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)"), report
            assert complaints == [], report
            assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]
            requests.clear()
