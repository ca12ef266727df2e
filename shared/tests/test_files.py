from __future__ import annotations

import errno
from pathlib import Path

import pytest

from dart_core.errors import OutputError
from dart_core.files import atomic_write, write_csv


def half_write(path: Path, error: Exception) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text("half")
        raise error


def test_the_file_appears_when_the_block_ends_and_not_before(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.parent == path.parent
        assert temporary.suffix == ".txt"
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_inside_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        half_write(path, ZeroDivisionError())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "disk is full"),
        (errno.EFBIG, "disk is full"),
        (errno.EACCES, "no permission"),
        (errno.EROFS, "no permission"),
        (errno.EIO, "cannot be written"),
    ],
)
def test_what_went_wrong_is_said_in_one_line(tmp_path, number, words):
    with pytest.raises(OutputError) as error:
        half_write(tmp_path / "a.txt", OSError(number, "words of the system"))
    assert words in str(error.value)
    assert str(tmp_path / "a.txt") in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_that_name(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OutputError, match="in the way"), atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("x")


def test_full_disk(tmp_path, file_size_limit):
    with (
        file_size_limit(100),
        pytest.raises(OutputError, match="disk is full"),
        atomic_write(tmp_path / "a") as temporary,
    ):
        temporary.write_bytes(bytes(1000))
    assert not list(tmp_path.iterdir())


def test_tables(tmp_path):
    write_csv(tmp_path / "a.csv", ("name", "value"), [("x, y", 1), ('say "z"', None)])
    assert (tmp_path / "a.csv").read_text() == 'name,value\n"x, y",1\n"say ""z""",\n'
    with pytest.raises(OutputError):
        write_csv(tmp_path, ("name",), [])
