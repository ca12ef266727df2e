from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dart_core import cli
from dart_core.errors import CheckpointError, InputError, Interrupted, SettingError
from dart_core.run import claim_folder
from dart_core.settings import RunSettings


@dataclass(frozen=True)
class Inner:
    """How the network looks."""

    width: int = 16
    """Channels of the first stage."""
    depth: int = 4
    """Number of stages."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise SettingError(f"--width is {self.width}", remedy="give at least 1")


@dataclass(frozen=True)
class Train:
    """Train the source model.

    It needs a datalist.
    """

    run: RunSettings
    data: Path
    """The datalist."""
    network: Inner = field(default_factory=Inner)
    betas: tuple[float, ...] = (0.1, 0.2)
    """Betas to try."""
    sites: tuple[str, ...] = ()
    """Sites to use; none means all."""
    modes: tuple[Literal["2d", "3d"], ...] = ("3d",)
    """Modes of the search."""
    size: tuple[int, int] = (160, 160)
    """Crop."""
    limit: int | None = None
    """At most this many scans."""
    maybe: tuple[int, ...] | None = None
    """Perhaps some numbers."""
    rate: float = 1e-3
    """Learning rate."""
    name: str = "a"
    """Name of the run."""
    flip: bool = True
    """Flip images."""
    shuffle: bool | None = None
    """Shuffle the scans."""


@dataclass(frozen=True)
class Check:
    """Open every file and list every problem."""

    data: Path
    """The datalist."""


COMMANDS: cli.Commands = {"train": (Train, "dart_cli_target:train"), "check-data": (Check, "dart_cli_target:check")}
REQUIRED = ["--data", "list.csv", "--out", "runs/a"]


class Target:
    """Stands for the module of a method: takes the settings, then returns or raises what the test says."""

    settings: Any = None
    outcome: Any = None

    def __call__(self, settings: Any) -> Any:
        self.settings = settings
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome() if callable(self.outcome) else self.outcome


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> Target:
    call = Target()
    module = types.ModuleType("dart_cli_target")
    module.train = module.check = call  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dart_cli_target", module)
    return call


def main(*words: str) -> int:
    return cli.main("prog", COMMANDS, "1.2.3", "Does a thing, and well.", list(words))


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str], target: Target) -> Callable[..., str]:
    """Run the words, check that they end in one line on stderr, and return the line without "prog: error: "."""

    def run(*words: str, status: int = 2, begin: str = "prog: error: ") -> str:
        assert main(*words) == status
        printed = capsys.readouterr()
        assert printed.err.startswith(begin)
        assert printed.err.endswith("\n")
        assert printed.err.count("\n") == 1
        return printed.err[len(begin) : -1]

    return run


def settings_of(target: Target, *words: str, command: str = "train", required: bool = True) -> Any:
    target.settings = None
    assert main(command, *words, *(REQUIRED if required else [])) == 0
    return target.settings


# What is understood


def test_defaults(target: Target) -> None:
    assert settings_of(target) == Train(run=RunSettings(out=Path("runs/a")), data=Path("list.csv"))


def test_flags_of_nested_settings_are_flat_and_in_any_order(target: Target) -> None:
    words = [
        "--device",
        "cpu",
        "--width=3",
        "--betas",
        "1",
        "-2e-3",
        "--rate",
        "-1",
        "--sites",
        "x",
        "y",
        "--limit",
        "5",
    ]
    words += ["--resume", "--no-flip", "--checkpoint_every", "7", "--size", "3", "4", "--maybe", "1", "2", "--name=--x"]
    settings = settings_of(target, *words)
    assert settings.run == RunSettings(out=Path("runs/a"), device="cpu", resume=True, checkpoint_every=7)
    assert settings.network == Inner(width=3)
    assert (settings.betas, settings.sites, settings.rate) == ((1.0, -0.002), ("x", "y"), -1.0)
    assert (settings.limit, settings.maybe, settings.size) == (5, (1, 2), (3, 4))
    assert (settings.flip, settings.name) == (False, "--x")


def test_words_before_the_first_flag(target: Target) -> None:
    @dataclass(frozen=True)
    class Look:
        """Look at files."""

        POSITIONAL: ClassVar[str] = "files"
        files: tuple[Path, ...]
        """Files."""
        limit: int = 1
        """At most so many."""

    for words in (["a", "-1", "b", "--limit", "2"], ["--limit", "2", "--files", "a", "-1", "b"]):
        assert cli.main("prog", {"look": (Look, "dart_cli_target:train")}, "1", "", ["look", *words]) == 0
        assert target.settings == Look((Path("a"), Path("-1"), Path("b")), 2)


def test_the_last_of_two_equal_flags_counts(target: Target) -> None:
    settings = settings_of(target, "--resume", "--betas", "1", "2", "--no-resume", "--betas", "3", "--limit", "None")
    assert (settings.run.resume, settings.betas, settings.limit) == (False, (3.0,), None)


YAML = """\
# a comment
out: from-yaml
seed: 0xff
channels-last: yes
flip: off
betas: [0, 1.e-3, -.5, .inf]
sites: [on, 010, "2020-01-01", "a b"]
modes: 2d
width: 1_0
limit: null
rate: 1e-2
name: "no"
"""


@pytest.mark.parametrize("place", ["first", "before", "after", "equals"])
def test_yaml_keys_are_flags_and_the_command_line_wins(place: str, target: Target, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(YAML)
    own = ["--data", "d.csv", "--seed", "3", "--flip"]
    words = {
        "first": ["--config", str(file), "train", *own],
        "before": ["train", "--config", str(file), *own],
        "after": ["train", *own, "--config", str(file)],
        "equals": ["train", *own[:2], f"--config={file}", *own[2:]],
    }[place]
    assert main(*words) == 0
    assert target.settings == Train(
        run=RunSettings(out=Path("from-yaml"), seed=3, channels_last=True),
        data=Path("d.csv"),
        network=Inner(width=10),
        betas=(0.0, 1e-3, -0.5, float("inf")),
        sites=("on", "010", "2020-01-01", "a b"),
        modes=("2d",),
        rate=1e-2,
        name="no",
        flip=True,
    )


def test_a_later_file_wins_over_an_earlier_one(target: Target, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("width: 3\ndepth: 2\n")
    (tmp_path / "b.yaml").write_text("width: 5\n")
    settings = settings_of(target, "--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml"))
    assert settings.network == Inner(width=5, depth=2)


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "null\n", "{}\n", "\ufeffwidth: 16\n"])
def test_yaml_that_changes_nothing(text: str, target: Target, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    assert settings_of(target, "--config", str(tmp_path / "a.yaml")).network == Inner()


@given(values=st.lists(st.floats(allow_nan=False), max_size=4), number=st.integers())
def test_yaml_gives_what_the_command_line_gives(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], number: int
) -> None:
    folder = tmp_path_factory.mktemp("yaml")
    (folder / "a.yaml").write_text(f"betas: [{', '.join(map(repr, values))}]\nlimit: {number}\n")
    flags = cli._flags(Train)
    (typed,) = cli._read_words([f"--limit={number}"], flags)
    betas, limit = cli._read_yaml(str(folder / "a.yaml"), flags)
    assert betas.values == list(map(repr, values))
    assert limit.tokens == typed.tokens


@pytest.mark.parametrize(("outcome", "status"), [(None, 0), (0, 0), (3, 3), (True, 1)])
def test_exit_status_of_the_function(outcome: Any, status: int, target: Target) -> None:
    target.outcome = outcome
    assert main("check-data", "--data", "x") == status
    assert target.settings == Check(Path("x"))


# Help


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("--version") == 0
    assert capsys.readouterr().out == "prog 1.2.3\n"


def test_help_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("--help") == 0
    text = capsys.readouterr().out
    assert "Does a thing, and well." in text
    assert re.search(r"^  train +Train the source model\.$", text, re.MULTILINE)
    assert re.search(r"^  check-data +Open every file and list every problem\.$", text, re.MULTILINE)
    assert all(word in text for word in ("--config", "--debug", "prog COMMAND --help"))
    assert max(map(len, text.splitlines())) <= 80


def test_no_command_prints_the_help_and_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main() == 2
    printed = capsys.readouterr()
    assert "Train the source model." in printed.out
    assert printed.err == "prog: error: no command given; choose one of train, check-data\n"


@pytest.mark.parametrize("words", [["train", "--help"], ["train", "-h"], ["train", "--device", "--help"]])
def test_help_of_a_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(*words) == 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    plain = " ".join(re.sub(r"[│─╭╮╰╯]", " ", text).split())
    assert plain.startswith("Train the source model. It needs a datalist. usage: prog train")
    assert (
        "--precision {fp32,bf16,fp16} Arithmetic of the forward and backward pass; weights stay fp32. (default: fp32)"
        in plain
    )
    assert "--resume, --no-resume" in plain
    assert "--width INT Channels of the first stage. (default: 16)" in plain
    assert "--data PATH The datalist. (required)" in plain
    assert "--config FILE" in plain
    assert "--debug" in plain
    assert max(map(len, text.splitlines())) <= 80


def test_help_leaves_the_heavy_packages_alone(tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(
        textwrap.dedent(
            """
            import sys
            from dataclasses import dataclass
            from dart_core import cli
            from dart_core.settings import RunSettings

            @dataclass(frozen=True)
            class Train:
                '''Train.'''
                run: RunSettings

            for words in (["--help"], ["train", "--help"]):
                assert cli.main("small", {"train": (Train, "no_such_module:train")}, "1", "Small.", words) == 0
            heavy = {"torch", "numpy", "matplotlib", "rich", "yaml", "monai", "nibabel"} & set(sys.modules)
            assert not heavy, heavy
            """
        )
    )
    subprocess.run([sys.executable, str(tmp_path / "small.py")], check=True, capture_output=True)


# What is refused, each in one line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["trian"], "unknown command 'trian'; did you mean train?"),
        (["zzz"], "unknown command 'zzz'; choose one of train, check-data"),
        (["--device", "cpu", "train"], "--device stands before the command; write prog COMMAND --device ..."),
        (["train", *REQUIRED, "--precison", "fp16"], "unknown flag --precison; did you mean --precision?"),
        (["train", *REQUIRED, "--check_point_every=3"], "unknown flag --check_point_every; did you mean --checkpoint-every?"),
        (["train", *REQUIRED, "--no-resum"], "unknown flag --no-resum; did you mean --no-resume?"),
        (["train", *REQUIRED, "--confg", "x"], "unknown flag --confg; did you mean --config?"),
        (["train", *REQUIRED, "--run.device", "cpu"], "unknown flag --run.device; did you mean --device?"),
        (["train", *REQUIRED, "--no-width"], "unknown flag --no-width; did you mean --width?"),
        (["train", *REQUIRED, "-q"], "unknown flag -q; see --help for the flags"),
        (["train", *REQUIRED, "--"], "unknown flag --; see --help for the flags"),
        (["train", "list.csv"], "unexpected argument 'list.csv'; values follow their flag: --flag VALUE"),
        (["train", *REQUIRED, "--device", "a", "b"], "--device takes one value, but 'b' follows"),
        (["train", *REQUIRED, "--resume", "yes"], "--resume takes no value, but 'yes' follows; write --resume or --no-resume"),
        (["train", *REQUIRED, "--no-flip=1"], "--no-flip takes no value, but '1' follows; write --flip or --no-flip"),
        (["train", *REQUIRED, "--device"], "--device has no value; write --device VALUE"),
        (["train", *REQUIRED, "--device", "--resume"], "--device has no value; write --device VALUE"),
        (["train", "--data", "x"], "--out is missing; give --out (see prog train --help)"),
        (["train", *REQUIRED, "--precision", "fp61"], "--precision is 'fp61', not one of fp32, bf16, fp16; did you mean fp16?"),
        (["train", *REQUIRED, "--modes", "2d", "x"], "--modes is 'x', not one of 2d, 3d"),
        (["train", *REQUIRED, "--accumulate", "two"], "--accumulate is 'two', not a whole number"),
        (["train", *REQUIRED, "--accumulate", "2.0"], "--accumulate is '2.0', not a whole number"),
        (["train", *REQUIRED, "--size", "1"], "--size takes 2 values, not 1"),
        (["train", *REQUIRED, "--size", "1", "2", "3"], "--size takes 2 values, not 3"),
        (["train", *REQUIRED, "--maybe", "1", "x"], "--maybe is 'x', not a whole number"),
        (["train", *REQUIRED, "--limit", "x"], "--limit is 'x', not a whole number"),
        (["train", *REQUIRED, "--betas", "1", "a"], "--betas is 'a', not a number"),
        (["train", *REQUIRED, "--accumulate", "0"], "--accumulate is 0; give at least 1"),
        (["train", *REQUIRED, "--width", "0"], "--width is 0; give at least 1"),
        (["train", *REQUIRED, "--resume", "--overwrite"], "--resume and --overwrite contradict each other; give one of them"),
        (["train", *REQUIRED, "--config"], "--config needs a file; write --config FILE.yaml"),
        (["train", "--config", "--data", "x"], "--config needs a file; write --config FILE.yaml"),
        (["train", "--config=", "--data", "x"], "--config needs a file; write --config FILE.yaml"),
    ],
)  # fmt: skip
def test_bad_words(words: list[str], line: str, fails: Callable[..., str], target: Target) -> None:
    assert fails(*words) == line
    assert target.settings is None


def test_what_only_tyro_refuses_is_one_line_too(fails: Callable[..., str]) -> None:
    line = fails("train", *REQUIRED, "--shuffle", "perhaps")
    assert "'perhaps'" in line
    assert "--shuffle" in line
    assert line.endswith("; see prog train --help")
    assert not re.search(r"[│─╭╮╰╯]", line)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("width: 1\nprecison: fp16\n", ", line 2: unknown key 'precison'; did you mean precision?"),
        ("check_point_every: 1\n", ", line 1: unknown key 'check_point_every'; did you mean checkpoint_every?"),
        ("check-point-every: 1\n", ", line 1: unknown key 'check-point-every'; did you mean checkpoint-every?"),
        ("no-resume: true\n", ", line 1: unknown key 'no-resume'; did you mean resume?"),
        ("<<: {width: 2}\n", ", line 1: unknown key '<<'; known keys: "),
        ("? [a, b]\n: 1\n", ", line 1: unknown key '?'; known keys: "),
        ("run: 3\n", ", line 1: unknown key 'run'; known keys: "),
        ("width: 1\n\nwidth: 2\n", ", line 3: key 'width' appears twice; remove one of them"),
        ("channels_last: on\nchannels-last: on\n", ", line 2: key 'channels-last' appears twice; remove one of them"),
        ("width: two\n", ", line 1: key 'width' is 'two', not a whole number"),
        ("width: true\n", ", line 1: key 'width' is 'true', not a whole number"),
        ("width: [1, 2]\n", ", line 1: key 'width' takes one value, but '2' follows"),
        ("width: []\n", ", line 1: key 'width' has no value; write --width VALUE"),
        ("width: {a: 1}\n", ", line 1: key 'width' holds a mapping; write a value or a list of values"),
        ("betas: [[1]]\n", ", line 1: key 'betas' holds seq; write a value or a list of values"),
        ("betas: [1, null]\n", ", line 1: key 'betas' holds null; write a value or a list of values"),
        ("betas: [1, x]\n", ", line 1: key 'betas' is 'x', not a number"),
        ("sites: [a, --overwrite]\n", ", line 1: key 'sites' holds '--overwrite'; a value in a list cannot begin with a dash"),
        ("resume: 1\n", ", line 1: key 'resume' is '1'; write true or false"),
        ("resume: 'true'\n", ", line 1: key 'resume' is 'true'; write true or false"),
        ("precision: fp61\n", ", line 1: key 'precision' is 'fp61', not one of fp32, bf16, fp16; did you mean fp16?"),
        ("\n\naccumulate: 0\n", ", line 3: --accumulate is 0; give at least 1"),
        ("- width\n", ", line 1: holds no keys; write one `key: value` a line"),
        ("width\n", ", line 1: holds no keys; write one `key: value` a line"),
        ("a: b: c\n", ", line 1: not a YAML file: mapping values are not allowed here; write one `key: value` a line"),
        ("a: 1\n--- \nb: 1\n", ", line 2: not a YAML file: but found another document; write one `key: value` a line"),
        ("width: !!python/object/apply:os.system ['touch hacked']\n", ", line 1: key 'width' is 'touch hacked', not"),
        ("name: !!python/name:os.system x\n", ", line 1: key 'name' holds python/name:os.system; write a value"),
        ("a: *b\n", ", line 1: not a YAML file: found undefined alias 'b'; write"),
    ],
)  # fmt: skip
def test_bad_yaml(text: str, line: str, fails: Callable[..., str], target: Target, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    assert fails("train", *REQUIRED, "--config", str(file)).startswith(f"{file}{line}")
    assert target.settings is None


def test_a_bad_key_is_refused_although_the_command_line_wins(fails: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("width: two\n")
    assert (
        fails("train", *REQUIRED, "--width", "2", "--config", str(file))
        == f"{file}, line 1: key 'width' is 'two', not a whole number"
    )


def test_a_bad_flag_is_not_blamed_on_the_file(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("accumulate: 2\nwidth: 3\n")
    line = fails("train", *REQUIRED, "--config", str(tmp_path / "a.yaml"), "--accumulate", "0")
    assert line == "--accumulate is 0; give at least 1"


def test_yaml_that_cannot_be_read(fails: Callable[..., str], tmp_path: Path) -> None:
    missing = tmp_path / "no.yaml"
    words = ["train", *REQUIRED, "--config"]
    assert fails(*words, str(missing)) == f"{missing}: cannot be read (No such file or directory); check --config"
    assert fails(*words, str(tmp_path)) == f"{tmp_path}: cannot be read (Is a directory); check --config"
    (tmp_path / "binary.yaml").write_bytes(b"a: \xff\xfe\x00")
    assert "binary.yaml: not a YAML file" in fails(*words, str(tmp_path / "binary.yaml"))


def test_two_settings_of_one_name_are_a_programming_error() -> None:
    @dataclass(frozen=True)
    class Twice:
        run: RunSettings
        device: str = "x"

    with pytest.raises(TypeError, match="--device"):
        cli._flags(Twice)


# What a command can raise


def error_of_a_loader_process() -> InputError:
    return InputError("Caught InputError in worker process 0.\nOriginal Traceback (most recent call last):\n  File x\ndart_core.errors.InputError: a.nii: bad\n")  # fmt: skip


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("mask is\nempty", where="a.nii", remedy="draw one"), 2, "error: a.nii: mask is empty; draw one"),
        (CheckpointError("damaged", where="c.pt"), 2, "error: c.pt: damaged"),
        (InputError("\x1b[31mred"), 2, "error: ?[31mred"),
        (error_of_a_loader_process(), 2, "error: a.nii: bad"),
        (Interrupted("stopped at step 3", signal_number=2, remedy="--resume continues"), 130, "stopped at step 3; --resume continues"),
        (Interrupted("stopped", signal_number=15), 143, "stopped"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
        (OSError(errno.ENOSPC, "No space", "/big/file"), 2, "error: /big/file: the disk is full; free some space or write to another disk"),
        (OSError(errno.ENOSPC, "No space"), 2, "error: runs/a: the disk is full; free some space or write to another disk"),
        (OSError(errno.EDQUOT, "Quota"), 2, "error: runs/a: the disk is full; free some space or write to another disk"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "error: /x: Permission denied"),
        (MemoryError(), 2, "error: out of memory; use a smaller batch, fewer --workers, or fewer scans at a time"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "error: out of memory; use a smaller batch, fewer --workers, or fewer scans at a time"),
        (ModuleNotFoundError("No module named 'monai'", name="monai"), 1, "error: the Python package monai is not installed; install this program again with its dependencies"),
        (ValueError("a\nb"), 1, "error: internal error: ValueError: a b; run again with --debug for the traceback, and report it"),
        (OSError("odd"), 1, "error: internal error: OSError: odd; run again with --debug for the traceback, and report it"),
    ],
)  # fmt: skip
def test_errors_of_a_command(
    error: BaseException, status: int, line: str, target: Target, fails: Callable[..., str]
) -> None:
    target.outcome = error
    assert fails("train", *REQUIRED, status=status, begin="prog: ") == line


def test_gpu_out_of_memory(target: Target, fails: Callable[..., str]) -> None:
    torch = pytest.importorskip("torch")
    target.outcome = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\n ...")
    line = "the GPU is out of memory; use a smaller batch, a larger --accumulate, or --precision bf16"
    assert fails("train", *REQUIRED) == line


@pytest.mark.parametrize("words", [["--debug", "train", *REQUIRED], ["train", *REQUIRED, "--debug"]])
def test_debug_shows_the_traceback(words: list[str], target: Target, capsys: pytest.CaptureFixture[str]) -> None:
    target.outcome = InputError("bad", where="a.nii")
    assert main(*words) == 2
    text = capsys.readouterr().err
    assert "Traceback (most recent call last)" in text
    assert text.endswith("prog: error: a.nii: bad\n")


def test_a_command_may_exit_itself(target: Target) -> None:
    target.outcome = SystemExit(7)
    assert main("train", *REQUIRED) == 7
    target.outcome = SystemExit("for the interpreter to print")
    with pytest.raises(SystemExit, match="to print"):
        main("train", *REQUIRED)


@pytest.mark.parametrize("there", [False, True])
def test_a_command_that_refuses_its_input_leaves_no_folder(target: Target, tmp_path: Path, there: bool) -> None:
    out = tmp_path / "run"
    if there:
        out.mkdir()

    def refuse() -> None:
        claim_folder(out, {"seed": 0})
        raise InputError("not a NIfTI file", where="a.nii")

    target.outcome = refuse
    assert main("train", *REQUIRED) == 2
    assert not (out / "config.yaml").exists()
    assert out.exists() == there


@pytest.mark.parametrize(("error", "status"), [(InputError("bad", where="b.nii"), 2), (KeyboardInterrupt(), 130)])
def test_what_a_command_has_written_stays(target: Target, tmp_path: Path, error: BaseException, status: int) -> None:
    out = tmp_path / "run"

    def stop() -> None:
        claim_folder(out, {"seed": 0})
        if status == 2:
            (out / "metrics.jsonl").write_text("{}")
        raise error

    target.outcome = stop
    assert main("train", *REQUIRED) == status
    assert (out / "config.yaml").is_file()


def test_broken_pipe_is_silent(
    target: Target, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target.outcome = BrokenPipeError(errno.EPIPE, "Broken pipe")
    assert main("train", *REQUIRED) == 141
    assert capsys.readouterr().err == ""


def test_sigterm(target: Target, fails: Callable[..., str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    target.outcome = lambda: os.kill(os.getpid(), signal.SIGTERM)
    assert fails("train", *REQUIRED, status=143, begin="prog: ") == "stopped by SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


def test_somebody_elses_sigterm_handler_stays(target: Target) -> None:
    def own(number: int, frame: object) -> None: ...

    before = signal.signal(signal.SIGTERM, own)
    try:
        target.outcome = lambda: int(signal.getsignal(signal.SIGTERM) is not own)
        assert main("train", *REQUIRED) == 0
    finally:
        signal.signal(signal.SIGTERM, before)


SCRIPT = """
import os, signal, sys, time
from dataclasses import dataclass
from dart_core import cli

@dataclass(frozen=True)
class Say:
    '''Say it.'''
    child: bool = False
    '''In a child process.'''

def say(settings):
    if settings.child:
        if (child := os.fork()) == 0:
            print("ready", flush=True)
            time.sleep(60)
        os.kill(child, signal.SIGTERM) if sys.stdin.readline() else None
        return os.WTERMSIG(os.waitpid(child, 0)[1])
    for _ in range(100000):
        print("a line of some length")

if __name__ == "__main__":
    sys.exit(cli.main("say", {"say": (Say, "say_it:say")}, "1", "Say."))
"""


@pytest.fixture
def script(tmp_path: Path) -> list[str]:
    (tmp_path / "say_it.py").write_text(SCRIPT)
    return [sys.executable, str(tmp_path / "say_it.py"), "say"]


def test_a_closed_pipe_ends_a_process_silently(script: list[str]) -> None:
    process = subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_process_dies_of_sigterm_without_a_word(script: list[str]) -> None:
    process = subprocess.Popen(
        [*script, "--child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    _, errors = process.communicate("go\n", timeout=60)
    assert (process.returncode, errors) == (signal.SIGTERM, "")


@dataclass(frozen=True)
class Score:
    """Score folders."""

    folders: tuple[Path, ...]
    """What to score."""


def test_a_required_list_needs_a_value(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """As an empty variable of the shell leaves it."""
    (tmp_path / "a.yaml").write_text("folders: []\n")
    for words in (["--folders"], ["--config", str(tmp_path / "a.yaml")]):
        assert cli.main("prog", {"score": (Score, "unused:unused")}, "1", "Scores.", ["score", *words]) == 2
        assert "has no value; give --folders VALUE ..." in capsys.readouterr().err
