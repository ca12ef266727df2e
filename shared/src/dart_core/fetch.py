"""Downloads with a mandatory checksum, and archives that cannot write where they should not.

Nothing here runs unless a caller asks for it. A download or an unpacked folder appears under its name only when it
is complete; until then it is a temporary neighbour, which is removed when anything fails.
"""

from __future__ import annotations

import logging
import lzma
import os
import re
import shutil
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from dart_core.errors import InputError, OutputError, SettingError
from dart_core.files import output_errors

GIBIBYTE = 2**30
CHUNK = 2**20


def download(url: str, sha256: str, folder: str | os.PathLike[str], name: str | None = None) -> Path:
    """Download a file unless it is there already, and check it.

    Args:
        url: an http or https address.
        sha256: its SHA-256 checksum, 64 hexadecimal digits.
        folder: where to put it; made where needed.
        name: file name; None takes the last part of the address.

    Returns:
        The path of the file.

    Raises:
        SettingError: no such checksum, address or file name.
        InputError: the address cannot be reached, holds no such file, or holds another one.
        OutputError: another file of that name is there, or the file cannot be written.
    """
    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise SettingError(f"sha256 is {sha256!r}", where=url, remedy="give 64 hexadecimal digits")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise SettingError("not an address to download from", where=url, remedy="give an http or https address")
    name = unquote(PurePosixPath(parts.path).name) if name is None else name
    if not name or name in (".", "..") or re.search(r"[/\\\0]", name):
        raise SettingError(f"{name!r} is no file name", where=url, remedy="give a plain file name")

    import pooch
    import requests

    path = Path(folder).absolute() / name
    known = f"sha256:{sha256.lower()}"
    if path.exists():
        if path.is_file() and pooch.file_hash(str(path), "sha256") == sha256.lower():
            return path
        raise OutputError("is there already, with another checksum", where=path, remedy="move it away and try again")
    logger = pooch.get_logger()
    level = logger.level
    try:
        logger.setLevel(logging.WARNING)
        with ExitStack() as stack:
            progress = _Progress(name, stack)
            downloader = pooch.HTTPDownloader(chunk_size=CHUNK, progressbar=progress)
            pooch.retrieve(url, known, fname=name, path=path.parent, downloader=downloader)
    except requests.HTTPError as error:
        answer: Any = error.response
        problem = f"the server answers {answer.status_code} {answer.reason}"
        raise InputError(problem, where=url, remedy="check the address") from error
    except requests.RequestException as error:
        problem = f"cannot be downloaded ({type(error).__name__})"
        raise InputError(problem, where=url, remedy="check the network, or download it by hand") from error
    except ValueError as error:
        problem = f"the file has another SHA-256 than {sha256.lower()}"
        raise InputError(problem, where=url, remedy="try again; if it stays so, the file has changed") from error
    except OSError:
        with output_errors(path):
            raise
    finally:
        logger.setLevel(level)
    # The temporary file that it came from was readable by its owner only.
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
    return path


class _Progress:
    """pooch's progress bar, drawn by rich on stderr and quiet when that is no terminal."""

    def __init__(self, name: str, stack: ExitStack) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        quiet = not sys.stderr.isatty()
        self._bar = stack.enter_context(Progress(*columns, console=Console(stderr=True), disable=quiet, transient=True))
        self._task = self._bar.add_task(name, total=None)
        self.total = 0

    def update(self, size: int) -> None:
        self._bar.update(self._task, advance=size, total=self.total or None)

    def reset(self) -> None:
        self._bar.reset(self._task)

    def close(self) -> None:
        self._bar.stop()


def extract(
    archive: str | os.PathLike[str], folder: str | os.PathLike[str], max_bytes: int = 100 * GIBIBYTE
) -> list[Path]:
    """Unpack a zip or tar (plain, gz, bz2, xz) archive into a new folder; all of it or nothing.

    Only plain files and folders are unpacked, with the permissions that new files have. An archive that holds
    anything else, or a path that leads outside, is refused as a whole.

    Args:
        archive: the file; its first bytes decide the format, not its name.
        folder: where to put the content; it must not exist, or be empty.
        max_bytes: refuse an archive whose unpacked files are larger than this together.

    Returns:
        The paths of the files, sorted.

    Raises:
        InputError: not an archive, damaged, too large, or with a path or a kind of entry that is refused.
        OutputError: `folder` is not empty, or cannot be written.
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise InputError("no such archive", where=archive, remedy="check the path")
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.unpacking")
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError("is there already and not empty", where=folder, remedy="move it away, or give another")
        unfinished.mkdir(parents=True)
        files = _unpack(archive, unfinished, max_bytes)
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    except OSError:
        with output_errors(folder):
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return sorted(folder / file for file in files)


def _unpack(archive: Path, folder: Path, max_bytes: int) -> list[Path]:
    """Unpack into a folder of ours and return the relative paths of the files."""
    files = []
    left = max_bytes
    try:
        with closing(_entries(archive)) as entries:
            for name, open_source in entries:
                path = _inside(archive, name)
                target = folder / path
                if open_source is None:
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with open_source() as source, open(target, "xb") as file:
                    while chunk := source.read(CHUNK):
                        left -= len(chunk)
                        if left < 0:
                            problem = f"holds more than {max_bytes} bytes"
                            raise InputError(problem, where=archive, remedy="unpack it by hand if you trust it")
                        file.write(chunk)
                files.append(path)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise InputError(f"holds {name!r} twice", where=archive, remedy="get the archive again") from error
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError) as error:
        raise _damaged(archive, error) from error
    except OSError as error:
        # gzip and bz2 report damage as an OSError without a number; the others come from writing.
        if error.errno is None:
            raise _damaged(archive, error) from error
        raise
    return files


def _damaged(archive: Path, error: Exception) -> InputError:
    problem = f"not a zip or tar archive, or damaged ({error or type(error).__name__})"
    return InputError(problem, where=archive, remedy="download it again")


def _entries(archive: Path) -> Generator[tuple[str, Callable[[], IO[bytes]] | None], None, None]:
    """Name of every entry and what opens it, None for a folder; other kinds of entries are refused."""
    with open(archive, "rb") as file:
        magic = file.read(4)
    if magic in (b"PK\x03\x04", b"PK\x05\x06"):
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                if info.flag_bits & 1:
                    raise InputError("is encrypted", where=archive, remedy="unpack it by hand")
                mode = info.external_attr >> 16
                if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise _refused(archive, info.filename, "a link" if stat.S_ISLNK(mode) else "no plain file")
                yield info.filename, None if info.is_dir() else partial(opened.open, info)
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            if not member.isreg() and not member.isdir():
                raise _refused(archive, member.name, "a link" if member.issym() or member.islnk() else "no plain file")
            opener: Any = partial(tar.extractfile, member)
            yield member.name, None if member.isdir() else opener
        # gzip and xz keep their checksum at the end, behind what tar reads.
        rest: Any = tar.fileobj
        while rest.read(CHUNK):
            pass


def _inside(archive: Path, name: str) -> Path:
    """The path of an entry, if it stays inside the folder on every system."""
    windows = PureWindowsPath(name)
    if name.startswith("/") or windows.drive or windows.root or "\\" in name or "\0" in name:
        raise _refused(archive, name, "an absolute path")
    if ".." in PurePosixPath(name).parts:
        raise _refused(archive, name, "a path that leads outside")
    return Path(*PurePosixPath(name).parts)


def _refused(archive: Path, name: str, what: str) -> InputError:
    return InputError(f"entry {name!r} is {what}", where=archive, remedy="unpack it by hand if you trust it")
