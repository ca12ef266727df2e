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
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            for column in columns:
                if column not in (reader.fieldnames or ()):
                    raise InputError(
                        f"no column {column!r}", where=path, remedy=f"the columns are {', '.join(columns)}"
                    )
            for row in reader:
                yield reader.line_num, {key: (value or "").strip() for key, value in row.items() if key is not None}
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path, remedy="check the file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot be read ({error})", where=path, remedy="save it as plain UTF-8 CSV") from error


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
