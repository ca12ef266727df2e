"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
import re
import secrets
from collections.abc import Generator, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dart_core.errors import OutputError, SettingError

if TYPE_CHECKING:  # the command line is there without NumPy, in half the time
    from numpy.typing import NDArray

_HALF_WRITTEN = ".tmp-"


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Generator[Path]:
    """Yield a temporary path beside `path`; when the block ends well the file takes the name `path` in one step.

    Args:
        path: the file to write; its folder is made where it is missing.

    Raises:
        OutputError: the file cannot be written (disk full, no permission, a folder of that name). What lay at `path`
            stays as it was, and nothing half-written is left.
    """
    path = Path(path)
    temporary = path.with_name(f"{_HALF_WRITTEN}{secrets.token_hex(8)}{path.suffix}")
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


def is_half_written(path: Path) -> bool:
    """Whether this is a file that `atomic_write` has begun; where no process writes now, the one that did was killed."""
    return re.fullmatch(re.escape(_HALF_WRITTEN) + r"[0-9a-f]{16}(\..*)?", path.name) is not None and path.is_file()


def write_atomic(path: str | os.PathLike[str], data: bytes | memoryview | str) -> None:
    """Write a whole file by `atomic_write`; text is written as UTF-8."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)


def write_csv(path: str | os.PathLike[str], columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table with a header by `atomic_write`; None becomes an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomic(path, text.getvalue())


def write_npy(path: str | os.PathLike[str], array: NDArray[Any]) -> None:
    """Write an array as NumPy's .npy, atomically.

    Raises:
        OutputError: see `atomic_write`.
    """
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_atomic(path, buffer.getbuffer())


def packaged_table(package: str, name: str, names: Sequence[str]) -> list[dict[str, str | float]]:
    """A CSV table that a package brings along in its folder `tables`.

    Args:
        package: import name.
        name: of the table, without .csv.
        names: those there are.

    Returns:
        A dict for each row; cells that are numbers are floats.

    Raises:
        SettingError: no such table.
    """
    if name not in names:
        raise SettingError(f"no printed table {name!r}", remedy=f"give one of {', '.join(names)}")
    text = resources.files(package).joinpath("tables", f"{name}.csv").read_text(encoding="utf-8")
    return [{key: _number_or_text(value) for key, value in row.items()} for row in csv.DictReader(text.splitlines())]


def _number_or_text(value: str) -> str | float:
    try:
        return float(value)
    except ValueError:
        return value


def relative(path: Path, folder: Path) -> str:
    """A path as seen from a folder."""
    try:
        return os.path.relpath(path.resolve(), folder.resolve())
    except ValueError:  # another drive on Windows
        return str(path.resolve())


@contextlib.contextmanager
def output_errors(where: Path) -> Generator[None]:
    """Turn a write that the system refuses into an `OutputError` about `where`."""
    try:
        yield
    except OSError as error:
        match error.errno:
            case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
                problem, remedy = "the disk is full", "free some space and run again (training continues with --resume)"
            case errno.EACCES | errno.EPERM | errno.EROFS:
                problem, remedy = "no permission to write here", "write elsewhere"
            case errno.EISDIR | errno.ENOTDIR | errno.EEXIST:
                problem, remedy = "a file or folder of this name is in the way", "move it or write elsewhere"
            case _:
                problem, remedy = f"cannot be written ({error.strerror or error})", "check the folder and the disk"
        raise OutputError(problem, where=where, remedy=remedy) from error


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system lets a folder be opened."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
