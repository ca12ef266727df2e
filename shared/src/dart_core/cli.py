"""The command line of every DART package: flags from frozen dataclasses, YAML files, and errors of one line.

A package lists its commands as (dataclass, "module:function"). The fields of the dataclass, and of the dataclasses
nested in it, are the flags; its docstrings are the help. A class variable POSITIONAL names the flag that takes the
words before the first flag. The function's module is imported only when the command runs, so `--help` answers without
importing torch.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import difflib
import errno
import importlib
import inspect
import io
import os
import re
import signal
import sys
import textwrap
import traceback
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias

from dart_core.errors import DartError, Interrupted, SettingError
from dart_core.memory import keep_freed_memory

Commands: TypeAlias = Mapping[str, tuple[type[Any], str]]
# Name without dashes -> type, and whether it must be given.
Flags: TypeAlias = dict[str, tuple[Any, bool]]

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
GLOBAL_FLAGS = (
    "Any flag may also stand in a YAML file, without its dashes: --config FILE. The command line wins over the file. "
    "--debug shows the traceback of an error."
)


@dataclass(frozen=True)
class _Given:
    """One flag as somebody gave it: its setting, the word for it, the values, and the place in a file if it has one."""

    name: str
    word: str
    values: list[str]
    where: str | None = None
    key: str | None = None

    @property
    def label(self) -> str:
        return self.word if self.key is None else f"key {self.key!r}"

    @property
    def tokens(self) -> list[str]:
        # The form with = also carries a value that begins with a dash.
        return [f"{self.word}={self.values[0]}"] if len(self.values) == 1 else [self.word, *self.values]


def say(line: str) -> None:
    """One line for the person at the terminal: on stderr, so that it never mixes with a command's results."""
    print(line, file=sys.stderr, flush=True)


def main(prog: str, commands: Commands, version: str, description: str, argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status; `leave(main(...))` is the whole entry point.

    Args:
        prog: name of the program as the user types it.
        commands: for each command its settings (a frozen dataclass) and "module:function". The function gets an
            instance of the settings and returns None (success) or an exit status.
        version: printed by `--version`.
        description: what the program does, printed by `--help`.
        argv: the arguments; None takes those of the process.

    Returns:
        0 for success, 2 for what the user can put right (one line on stderr), 1 for an internal error, 130 and 143
        for Ctrl-C and SIGTERM, otherwise what the command's function returned.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    keep_freed_memory()
    try:
        with sigterm_as_exception():
            status = _dispatch(prog, commands, version, description, [word for word in arguments if word != "--debug"])
            sys.stdout.flush()
            return status
    except BrokenPipeError:
        if debug:
            traceback.print_exc()
        # The interpreter flushes stdout once more when it ends, and would complain then.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        # So ends a process of several whose first one says why.
        return end.code
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        status, line = _explain(error)
        if status == 2 and "dart_core.run" in sys.modules:
            sys.modules["dart_core.run"].give_back_folders()
        line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(line.split()))
        print(f"{prog}: {line}" if status > 128 else f"{prog}: error: {line}", file=sys.stderr, flush=True)
        return status


def leave(status: int) -> NoReturn:
    """End the program with an exit status: `sys.exit`, and for a process that torchrun started a way past its trap.

    A thread of gloo may still hold the tensors of its last message. Where it lets go of them while the interpreter is
    being taken down, PyTorch aborts the process ("terminate called without an active exception",
    pytorch/pytorch#190489) and torchrun reports a run that has ended well as failed.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not (distributed.is_torchelastic_launched() and distributed.is_initialized()):
        sys.exit(status)
    atexit._run_exitfuncs()
    # What a broken pipe leaves unwritten is not worth a second error.
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _dispatch(prog: str, commands: Commands, version: str, description: str, arguments: list[str]) -> int:
    arguments, files = _take_config(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview(prog, commands, description))
        if not arguments:
            raise SettingError("no command given", remedy=f"choose one of {', '.join(commands)}")
        return 0
    name, *words = arguments
    if name == "--version":
        print(f"{prog} {version}")
        return 0
    if name.startswith("-"):
        raise SettingError(f"{name} stands before the command", remedy=f"write {prog} COMMAND {name} ...")
    if name not in commands:
        remedy = _nearest(name, commands) or f"choose one of {', '.join(commands)}"
        raise SettingError(f"unknown command {name!r}", remedy=remedy)
    settings, target = commands[name]
    if "-h" in words or "--help" in words:
        for paragraph in (inspect.getdoc(settings) or "").split("\n\n"):
            print(textwrap.fill(paragraph, 80), end="\n\n")
        _tyro(f"{prog} {name}", settings, ["--help"])
        print(textwrap.fill(GLOBAL_FLAGS, 80))
        return 0
    parsed = _parse(f"{prog} {name}", settings, words, files)
    module, _, function = target.partition(":")
    try:
        status = getattr(importlib.import_module(module), function)(parsed)
    except OSError as error:
        # A write to a full disk does not say which file; the folder it writes to is the next best.
        if error.filename is None and error.errno in DISK_FULL:
            error.filename = getattr(parsed, "out", None) or getattr(getattr(parsed, "run", None), "out", None)
        raise
    return 0 if status is None else int(status)


def _overview(prog: str, commands: Commands, description: str) -> str:
    width = max(map(len, commands)) + 4
    lines = []
    for name, (settings, _) in commands.items():
        summary = (inspect.getdoc(settings) or "").partition("\n")[0]
        lines.append(textwrap.fill(f"  {name:<{width - 2}}{summary}", 80, subsequent_indent=" " * width))
    above = [f"usage: {prog} COMMAND [--flag VALUE ...]", "", textwrap.fill(description, 80), "", "commands:"]
    return "\n".join([*above, *lines, "", textwrap.fill(f"{prog} COMMAND --help lists the flags. {GLOBAL_FLAGS}", 80)])


def _take_config(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Take every `--config FILE` and `--config=FILE` out of the line."""
    rest: list[str] = []
    files: list[str] = []
    words = iter(arguments)
    for word in words:
        flag, equals, file = word.partition("=")
        if flag != "--config":
            rest.append(word)
            continue
        file = file if equals else next(words, "")
        if not file or file.startswith("-"):
            raise SettingError("--config needs a file", remedy="write --config FILE.yaml")
        files.append(file)
    return rest, files


def _parse(prog: str, settings: type[Any], words: list[str], files: list[str]) -> Any:
    """Check what tyro would report in a box, in our own words; then let tyro convert the values."""
    flags = _flags(settings)
    positional = getattr(settings, "POSITIONAL", None)
    if positional and words and not _is_flag(words[0]):
        words = [f"--{positional}", *words]
    given = [*(flag for file in files for flag in _read_yaml(file, flags)), *_read_words(words, flags)]
    for name, (_, required) in flags.items():
        if required and all(flag.name != name for flag in given):
            raise SettingError(f"--{name} is missing", remedy=f"give --{name} (see {prog} --help)")
    for flag in given:
        hint, required = flags[flag.name]
        _check(flag, hint)
        if required and not flag.values and _takes_many(hint):
            raise SettingError(f"{flag.label} has no value", where=flag.where, remedy=f"give --{flag.name} VALUE ...")
    try:
        return _tyro(prog, settings, [token for flag in given for token in flag.tokens])
    except DartError as error:
        # Where did the value come from that the settings themselves refuse? The last of several counted.
        last = {flag.name: flag for flag in given if re.search(rf"--{flag.name}(?![\w-])", error.problem)}
        for flag in last.values():
            if flag.where is not None:
                raise SettingError(error.problem, where=flag.where, remedy=error.remedy) from error
        raise


def _flags(settings: type[Any]) -> Flags:
    """Every flag of the settings, those of nested dataclasses beside the others."""
    flags: Flags = {}
    hints = typing.get_type_hints(settings)
    for field in dataclasses.fields(settings):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        nested = dataclasses.is_dataclass(hints[field.name])
        new = _flags(hints[field.name]) if nested else {field.name.replace("_", "-"): (hints[field.name], required)}
        if twice := new.keys() & flags.keys():
            raise TypeError(f"{settings.__name__}: two settings would both be --{twice.pop()}")
        flags |= new
    return flags


def _read_words(words: list[str], flags: Flags) -> list[_Given]:
    given: list[_Given] = []
    negative = {f"no-{name}": name for name, (hint, _) in flags.items() if hint is bool}
    for word in words:
        if not _is_flag(word):
            if not given:
                raise SettingError(f"unexpected argument {word!r}", remedy="values follow their flag: --flag VALUE")
            given[-1].values.append(word)
            continue
        spelling, equals, value = word.partition("=")
        name = spelling.lstrip("-").replace("_", "-")
        if not spelling.startswith("--") or name not in {*flags, *negative}:
            remedy = _nearest(name, [*flags, *negative, "config", "debug"], "--") or "see --help for the flags"
            raise SettingError(f"unknown flag {spelling}", remedy=remedy)
        given.append(_Given(negative.get(name, name), f"--{name}", [value] if equals else []))
    return given


def _is_flag(word: str) -> bool:
    """Whether a word is a flag and not a value; -0.5 and -inf are values."""
    try:
        float(word)
    except ValueError:
        return len(word) > 1 and word.startswith("-")
    return False


def _read_yaml(file: str, flags: Flags) -> list[_Given]:
    """The keys of a YAML file as flags. The file is composed, never constructed, so that no tag can run code."""
    import yaml

    advice = "write one `key: value` a line"
    try:
        root = yaml.compose(Path(file).read_bytes(), Loader=yaml.SafeLoader)
    except OSError as error:
        raise SettingError(f"cannot be read ({error.strerror})", where=file, remedy="check --config") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = file if mark is None else f"{file}, line {mark.line + 1}"
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
        raise SettingError(f"not a YAML file: {problem}", where=where, remedy=advice) from error
    if root is None or root.tag == "tag:yaml.org,2002:null":
        return []
    if not isinstance(root, yaml.MappingNode):
        raise SettingError("holds no keys", where=f"{file}, line {root.start_mark.line + 1}", remedy=advice)
    given: dict[str, _Given] = {}
    for key_node, value in root.value:
        where = f"{file}, line {key_node.start_mark.line + 1}"
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
        name = key.replace("_", "-")
        if name not in flags:
            known = [flag if "-" in key else flag.replace("-", "_") for flag in flags]
            remedy = _nearest(key, known) or f"known keys: {', '.join(known)}"
            raise SettingError(f"unknown key {key!r}", where=where, remedy=remedy)
        if name in given:
            raise SettingError(f"key {key!r} appears twice", where=where, remedy="remove one of them")
        given[name] = _yaml_flag(_Given(name, f"--{name}", [], where, key), value, flags[name][0])
    return [flag for flag in given.values() if flag.word]


def _yaml_flag(flag: _Given, node: Any, hint: Any) -> _Given:
    """The flag with what somebody would type for the value of its key; no word for null, that is, the default."""
    import yaml

    values = []
    for item in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        kind = str(item.tag).removeprefix("tag:yaml.org,2002:")
        if kind == "null" and item is node:
            return dataclasses.replace(flag, word="")
        if kind not in ("str", "int", "float", "bool", "timestamp"):
            problem = f"{flag.label} holds {'a mapping' if kind == 'map' else kind}"
            raise SettingError(problem, where=flag.where, remedy="write a value or a list of values")
        # YAML writes numbers in more ways than a command line does (0xff, .inf); all else stays as it is written.
        number = kind in ("int", "float") and {int, float} & set(_leaves(hint))
        values.append(str(yaml.SafeLoader("").construct_object(item) if number else item.value))
    if hint is bool and node.tag == "tag:yaml.org,2002:bool":
        on = yaml.SafeLoader.bool_values[node.value.lower()]
        return dataclasses.replace(flag, word=flag.word if on else f"--no-{flag.name}")
    dashed = [value for value in values if _is_flag(value)]
    if dashed and len(values) > 1:
        raise SettingError(
            f"{flag.label} holds {dashed[0]!r}", where=flag.where, remedy="a value in a list cannot begin with a dash"
        )
    return dataclasses.replace(flag, values=values)


def _check(flag: _Given, hint: Any) -> None:
    """Refuse in one line, with the nearest right spelling, what tyro would refuse in a box."""

    def refuse(problem: str, remedy: str | None = None) -> NoReturn:
        raise SettingError(f"{flag.label} {problem}", where=flag.where, remedy=remedy)

    if hint is bool:
        if flag.values and flag.key is not None:
            refuse(f"is {flag.values[0]!r}", "write true or false")
        if flag.values:
            refuse(f"takes no value, but {flag.values[0]!r} follows", f"write --{flag.name} or --no-{flag.name}")
        return
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and ... not in parts and len(flag.values) != len(parts):
        refuse(f"takes {len(parts)} values, not {len(flag.values)}")
    if not _takes_many(hint):
        if not flag.values:
            refuse("has no value", f"write {flag.word} VALUE")
        if len(flag.values) > 1:
            refuse(f"takes one value, but {flag.values[1]!r} follows")
    leaves = _leaves(hint)
    choices = [str(leaf) for leaf in leaves if not isinstance(leaf, type)]
    kinds = {leaf for leaf in leaves if isinstance(leaf, type)}
    for value in flag.values:
        if value in choices or (types.NoneType in kinds and value == "None"):
            continue
        if choices and kinds <= {types.NoneType}:
            refuse(f"is {value!r}, not one of {', '.join(choices)}", _nearest(value, choices) or None)
        if kinds <= {int, float, types.NoneType}:
            try:
                float(value) if float in kinds else int(value)
            except ValueError:
                refuse(f"is {value!r}, not {'a' if float in kinds else 'a whole'} number")


def _takes_many(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(map(_takes_many, typing.get_args(hint)))
    return isinstance(origin, type) and issubclass(origin, Collection)


def _leaves(hint: Any) -> list[Any]:
    """The plain types and the literal values that a type is made of: tuple[int | None, ...] -> [int, NoneType]."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return list(parts)
    return [leaf for part in parts if part is not ... for leaf in _leaves(part)] if parts else [hint]


def _tyro(prog: str, settings: type[Any], tokens: list[str]) -> Any:
    """Let tyro build the settings or print the help; its boxed errors come out as one SettingError."""
    import tyro

    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                settings,
                prog=prog,
                description="",
                args=tokens,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as exit_:
        if not exit_.code:
            return None
        # A setting refused by the dataclass itself reaches tyro as a ValueError; its own words are the better ones.
        cause: BaseException | None = exit_
        while cause is not None:
            if isinstance(cause, DartError):
                raise cause from None
            cause = cause.__context__
    # What is left is rare (a type of its own); unwrap the box below its title.
    text = re.sub(r"[─│╭╮╰╯]|[-+|]{3,}|^\||\|$", " ", errors.getvalue().partition("\n")[2], flags=re.MULTILINE)
    body = re.split(r"Argument helptext|For full helptext", text)[0]
    raise SettingError(" ".join(body.split()), remedy=f"see {prog} --help")


def _nearest(word: str, known: Iterable[str], dashes: str = "") -> str:
    found = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {dashes}{found[0]}?" if found else ""


@contextlib.contextmanager
def sigterm_as_exception() -> Iterator[None]:
    """Turn SIGTERM into an exception so that temporary files go; Run puts its own handler on top while it trains."""
    owner = os.getpid()

    def stop(number: int, frame: types.FrameType | None) -> None:
        if os.getpid() == owner:
            raise Interrupted("stopped by SIGTERM", signal_number=number)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    try:
        before = signal.signal(signal.SIGTERM, stop) if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL else None
    except ValueError:  # not the main thread: signals are somebody else's
        before = None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _explain(error: BaseException) -> tuple[int, str]:
    """Exit status and one line for whatever a command raised."""
    if isinstance(error, KeyboardInterrupt):
        return 130, "stopped by Ctrl-C"
    if isinstance(error, DartError):
        # torch puts the traceback of a loader process into the message; its last line is the message proper.
        _, worker, message = error.problem.partition("Original Traceback")
        return error.exit_status, message.strip().splitlines()[-1].partition(": ")[2] if worker else str(error)
    cuda = sys.modules.get("torch.cuda")
    if isinstance(error, getattr(cuda, "OutOfMemoryError", ())):
        return 2, "the GPU is out of memory; use a smaller batch, a larger --accumulate, or --precision bf16"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return 2, "out of memory; use a smaller batch, fewer --workers, or fewer scans at a time"
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        file = f"{error.filename}: " if error.filename else ""
        return 2, f"{file}the disk is full; free some space or write to another disk"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return 2, f"{error.filename}: {error.strerror}"
    if isinstance(error, ModuleNotFoundError):
        return 1, f"the Python package {error.name} is not installed; install this program again with its dependencies"
    advice = "run again with --debug for the traceback, and report it"
    return 1, f"internal error: {type(error).__name__}: {error}; {advice}"
