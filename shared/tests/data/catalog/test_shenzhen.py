from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dart_core.data.catalog import shenzhen
from dart_core.data.datalist import Datalist
from dart_core.errors import InputError

NUMBERS = (*range(1, 21), *range(327, 337))


def build(root: Path) -> Path:
    """Twenty normal pictures, ten with tuberculosis, two readings."""
    folder = root / "ChinaSet_AllFiles"
    (folder / "CXR_png").mkdir(parents=True)
    (folder / "ClinicalReadings").mkdir()
    for number in NUMBERS:
        (folder / "CXR_png" / f"CHNCXR_{number:04d}_{int(number > 326)}.png").touch()
    (folder / "CXR_png" / "Thumbs.db").touch()
    (folder / "ClinicalReadings/CHNCXR_0001_0.txt").write_text("male 45yrs\nnormal\n")
    (folder / "ClinicalReadings/CHNCXR_0327_1.txt").write_text("Female, 31 years\r\nright PTB\r\n", newline="")
    (folder / "ClinicalReadings/CHNCXR_0002_0.txt").write_text("\n")
    return folder


def fails(root: Path, *parts: object, **arguments) -> None:
    with pytest.raises(InputError) as error:
        shenzhen.index(root, **arguments)
    for part in parts:
        assert str(part) in str(error.value)
    assert "\n" not in str(error.value)


class TestIndex:
    def test_rows(self, tmp_path):
        folder = build(tmp_path)
        for root in (tmp_path, folder, folder / "CXR_png"):
            datalist = shenzhen.index(root)
            assert [row.image for row in datalist] == sorted((folder / "CXR_png").glob("*.png"))
        assert [row.subject for row in datalist] == [f"CHNCXR_{number:04d}" for number in NUMBERS]
        assert {row.site for row in datalist} == {"shenzhen"}
        labels = {row.subject: row.labels for row in datalist}
        assert labels["CHNCXR_0001"] == {"Tuberculosis": "0", "sex": "M", "age": "45"}
        assert labels["CHNCXR_0327"] == {"Tuberculosis": "1", "sex": "F", "age": "31"}
        assert labels["CHNCXR_0002"] == {"Tuberculosis": "0"}

    def test_a_fifth_of_each_class_is_for_test_and_a_tenth_for_validation(self, tmp_path):
        build(tmp_path)
        counts = Counter((row.split, row.labels["Tuberculosis"]) for row in shenzhen.index(tmp_path))
        assert [counts[split, "0"] for split in ("train", "val", "test")] == [14, 2, 4]
        assert [counts[split, "1"] for split in ("train", "val", "test")] == [7, 1, 2]
        assert shenzhen.index(tmp_path, seed=0).rows == shenzhen.index(tmp_path, seed=0).rows
        assert shenzhen.index(tmp_path, seed=0).rows != shenzhen.index(tmp_path, seed=1).rows

    def test_lists_of_authors(self, tmp_path):
        build(tmp_path)
        (tmp_path / "train.txt").write_text("CHNCXR_0001_0.png,0\nCHNCXR_0327_1.png,1\nCHNCXR_0600_1.png,1\n")
        (tmp_path / "test.txt").write_text("CHNCXR_0003_0.png,0\n")
        datalist = shenzhen.index(tmp_path, {"train": tmp_path / "train.txt", "test": tmp_path / "test.txt"})
        assert [(row.subject[-4:], row.split) for row in datalist] == [
            ("0001", "train"),
            ("0003", "test"),
            ("0327", "train"),
        ]
        again = Datalist.read(datalist.write(tmp_path / "list.csv"), required=("image", "split", "Tuberculosis"))
        assert [row.labels for row in again] == [row.labels for row in datalist]
        (tmp_path / "other.txt").write_text("00000001_000.png,0\n")
        fails(tmp_path, "none of its pictures is in the lists", lists={"train": tmp_path / "other.txt"})


def test_what_is_missing(tmp_path):
    build(tmp_path)
    lines = shenzhen.report_missing(tmp_path)
    assert lines[0] == "632 of 662 pictures are missing, the first is number 0021"
    assert "https://" in lines[1]
    assert "Jaeger" in lines[1]
    for number in range(1, 663):
        (tmp_path / "ChinaSet_AllFiles/CXR_png" / f"CHNCXR_{number:04d}_{int(number > 326)}.png").touch()
    assert shenzhen.report_missing(tmp_path) == []


def test_mistakes(tmp_path):
    fails(tmp_path / "no", "missing", "Jaeger")
    (tmp_path / "picture.png").touch()
    fails(tmp_path, "not the Shenzhen set", "CXR_png")
    folder = build(tmp_path)
    (folder / "CHNCXR_0001_0.PNG").touch()
    fails(tmp_path, "CHNCXR_0001_0 is there twice", "remove one")
