"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dart_core.errors import OutputError


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well the file takes the name `path` in one step.

    Args:
        path: the file to write; its folder is made where it is missing.

    Raises:
        OutputError: the file cannot be written (disk full, no permission, a folder of that name). What lay at `path`
            stays as it was, and nothing half-written is left.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{secrets.token_hex(8)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _output_error(path, error) from error


def _output_error(path: Path, error: OSError) -> OutputError:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            problem, remedy = "the disk is full", "free some space or write elsewhere"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            problem, remedy = "no permission to write here", "write elsewhere"
        case errno.EISDIR | errno.ENOTDIR | errno.EEXIST:
            problem, remedy = "a file or folder of this name is in the way", "move it or write elsewhere"
        case _:
            problem, remedy = f"cannot be written ({error.strerror or error})", "check the folder and the disk"
    return OutputError(problem, where=path, remedy=remedy)
