"""Tables: those that owners of data sets give with them, and the splits that papers or their code published."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path

from dart_core.errors import InputError

Splits = dict[str, dict[str, tuple[str, ...]]]
"""Site -> split -> subjects, in the published order."""


def read_rows(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Read an owner's CSV file.

    Returns:
        for each row its line in the file and its cells, stripped; a cell that is not there is empty.

    Raises:
        InputError: the file cannot be read, or lacks one of `columns`.
    """
    return list(each_row(path, columns))


def each_row(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """What `read_rows` returns, row by row, for tables that are too long to be kept whole."""
    empty = True
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(_text(path, file))
            header = next(reader, [])
            _check_header(path, header, columns)
            # Cells too many, or a comma at the end of the header (ChestX-ray14's first table), do no harm.
            while header and not header[-1]:
                del header[-1]
            for row in reader:
                if not row:
                    continue
                empty = False
                if len(row) < len(header):
                    raise InputError(
                        f"{len(row)} cells where the header has {len(header)} columns",
                        where=f"{path}, row {reader.line_num}",
                        remedy="the file seems to be truncated: copy it again",
                    )
                yield reader.line_num, dict(zip(header, map(str.strip, row), strict=False))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path, remedy="check the file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot be read ({error})", where=path, remedy="save it as plain UTF-8 CSV") from error
    if empty:
        raise InputError("the table has no rows", where=path, remedy="copy the owners' table again")


def _text(path: Path, lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if "\0" in line:
            raise InputError(
                "holds a zero byte, so this is no text file",
                where=f"{path}, row {number}",
                remedy="copy the owners' table again",
            )
        yield line


def _check_header(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    if not header:
        raise InputError("the table is empty", where=path, remedy="copy the owners' table again")
    for column in columns:
        if column in header:
            continue
        for separator, name in ((";", "semicolons"), ("\t", "tabs")):
            if any(separator in cell for cell in header):
                raise InputError(f"its columns are separated by {name}", where=path, remedy="save it with commas")
        raise InputError(f"no column {column!r}", where=path, remedy=f"the columns are {', '.join(columns)}")


def published_table(name: str) -> list[dict[str, str]]:
    """Read a table of this package: a dict for each row."""
    text = resources.files("dart_core.data.catalog").joinpath("tables", f"{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def collect(entries: Iterable[tuple[str, str, str]]) -> Splits:
    """Group (site, split, subject) in their order."""
    splits: dict[str, dict[str, list[str]]] = {}
    for site, split, subject in entries:
        splits.setdefault(site, {}).setdefault(split, []).append(subject)
    return {site: {split: tuple(names) for split, names in parts.items()} for site, parts in splits.items()}
