"""Which pictures a pre-training may see."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmark_transformers.cases import read_cases
from benchmark_transformers.pretraining import unlabelled_pictures
from benchmark_transformers.settings import DataSettings
from dart_core.errors import InputError

ROWS = 60


def datalist(folder: Path, columns: Sequence[str], row: Callable[[int], Sequence[object]], name: str = "list") -> Path:
    """Empty files, which nothing here opens, and their list."""
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", *columns))
        for i in range(ROWS):
            (folder / f"{name}{i}.png").touch()
            writer.writerow((f"{name}{i}.png", *row(i)))
    return folder / f"{name}.csv"


@pytest.mark.parametrize("by", ["patient", "image"])
def test_the_test_that_fine_tune_draws_is_left_out(by: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two pictures of each patient; without patients pictures are drawn."""
    if by == "patient":
        path = datalist(tmp_path, ("subject", "ill"), lambda i: (f"p{i // 2}", i % 2))
    else:
        path = datalist(tmp_path, ("ill",), lambda i: (i % 2,))
    test = {row.image for row in read_cases(DataSettings(path, split_by=by))["test"].rows}  # type: ignore[arg-type]
    seen = [row.image for row in unlabelled_pictures((path,))]
    assert test
    assert not test & set(seen)
    assert seen == [tmp_path / f"list{i}.png" for i in range(ROWS) if tmp_path / f"list{i}.png" not in test]
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{len(test)} of {ROWS} pictures left out" in line
    assert f"--split-by {by}" in line


def test_each_data_set_of_a_list_has_its_own_test(tmp_path: Path) -> None:
    path = datalist(tmp_path, ("site", "subject", "ill"), lambda i: ("ab"[i % 3 == 0], f"p{i}", i % 2))
    seen = {row.image for row in unlabelled_pictures((path,))}
    for site in "ab":
        parts = read_cases(DataSettings(path, site))
        assert not seen & {row.image for row in parts["test"].rows}
        assert seen >= {row.image for name in ("train", "val") for row in parts[name].rows}


def test_named_splits_and_lists_without_labels_stay_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = datalist(tmp_path, ("split", "ill"), lambda i: (("train", "val", "test")[i % 3], i % 2), "named")
    assert len(unlabelled_pictures((named,))) == ROWS // 3
    assert len(unlabelled_pictures((datalist(tmp_path, ("subject",), lambda i: (f"p{i}",), "plain"),))) == ROWS
    assert capsys.readouterr().err == ""


def test_names_of_an_exclusion_file_may_hold_blanks(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("chest 1.png", "chest.png", "1.png", "other.png", "last.png"):
        (folder / name).touch()
    exclude = tmp_path / "exclude.txt"
    exclude.write_text("chest 1.png\n\nlast\n")
    assert {row.image.name for row in unlabelled_pictures((folder,), exclude)} == {"chest.png", "1.png", "other.png"}
    exclude.write_text("image,label,chest\nimages/other.png,1.png,1\n")
    assert {row.image.name for row in unlabelled_pictures((folder,), exclude)} == {
        "chest 1.png",
        "chest.png",
        "1.png",
        "last.png",
    }
    exclude.write_text("other.png chest.png\n")
    with pytest.raises(InputError, match=r"exclude\.txt: names none of the pictures"):
        unlabelled_pictures((folder,), exclude)
