from __future__ import annotations

from pathlib import Path

import pytest

from dart_core.data.catalog._tables import each_row, read_rows
from dart_core.errors import InputError


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "table.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "a,b,c\n1, x ,\n2,,y\n",
        "\ufeffa,b,c\n1,x,\n2,,y",
        "a,b,c\r\n1,x,\r\n2,,y\r\n",
        "a,b,c\n\n1,x,\n\n2,,y\n\n",
        'a,b,c\n1,"x",,more\n2,,y\n',
        "a,b,c,\n1,x,\n2,,y\n",
    ],
)
def test_rows_and_their_lines(tmp_path, text):
    rows = read_rows(write(tmp_path, text), ("a", "c"))
    assert [cells for _, cells in rows] == [{"a": "1", "b": "x", "c": ""}, {"a": "2", "b": "", "c": "y"}]
    lines = text.splitlines()
    assert [lines[line - 1][0] for line, _ in rows] == ["1", "2"]


def test_rows_come_one_by_one(tmp_path):
    rows = each_row(write(tmp_path, "a\n1\n" + "2\n" * 1000 + "\0\n"), ("a",))
    assert next(rows) == (2, {"a": "1"})


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ("table.csv: the table is empty",)),
        ("a,b\n", ("table.csv: the table has no rows",)),
        ("a,c\n1,2\n", ("no column 'b'", "the columns are a, b")),
        ("a;b\n1;2\n", ("separated by semicolons", "save it with commas")),
        ("a\tb\n1\t2\n", ("separated by tabs",)),
        ("a,b\n1,2\n3", ("table.csv, row 3: 1 cells where the header has 2 columns", "truncated")),
        ("a,b\n1,2\n3,\0\n", ("table.csv, row 3: holds a zero byte",)),
        (b"a,b\n1,\xfc\n", ("cannot be read", "UTF-8")),
        ("a,b\n1,2\n".encode("utf-16"), ("cannot be read", "UTF-8")),
    ],
)
def test_damaged_tables(tmp_path, content, parts):
    with pytest.raises(InputError) as error:
        read_rows(write(tmp_path, content), ("a", "b"))
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_no_file(tmp_path):
    for path in (tmp_path / "no.csv", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_rows(path, ())
