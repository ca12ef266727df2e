from __future__ import annotations

from pathlib import Path

import pytest

from dart_core.data.catalog import asan
from dart_core.data.datalist import Datalist
from dart_core.errors import InputError

PICTURES = {
    "actinickeratosis": ["ak2_571.JPG"],
    "basalcellcarcinoma": ["bcc2_865.JPG", "bcc_130.JPG"],
    "dermatofibroma": ["dermatofibroma2_1057.JPG"],
    "lentigo": ["lentigo2_501.JPG"],
    "malignantmelanoma": ["melanoma2_452.JPG", "melanoma_100.JPG"],
    "pigmentednevus": ["nevus2_2962.JPG"],
    "seborrheickeratosis": ["sk_1.JPG"],
    "squamouscellcarcinoma": ["scc_1.JPG"],
}
TABLE = ["image_name,diagnosis,target,marked", "ak2_571.JPG,AK,0,0", "melanoma2_452.JPG,melanoma,1,0"]


def build(root: Path, pictures=PICTURES) -> Path:
    for diagnosis, names in pictures.items():
        (root / diagnosis).mkdir(parents=True)
        for name in names:
            (root / diagnosis / name).touch()
    return root


def build_prepared(root: Path, lines=TABLE) -> Path:
    (root / "asan_256").mkdir(parents=True)
    (root / "asan.csv").write_text("\n".join(lines) + "\n")
    for line in TABLE[1:]:
        (root / "asan_256" / line.split(",")[0]).touch()
    return root


def fails(root: Path, *parts: object) -> None:
    with pytest.raises(InputError) as error:
        asan.index(root)
    for part in parts:
        assert str(part) in str(error.value)
    assert "\n" not in str(error.value)


class TestIndex:
    @pytest.mark.parametrize("folder", [".", "test-asan test", "ASAN/test-asan test"])
    def test_rows(self, tmp_path, folder):
        datalist = asan.index(build(tmp_path / folder) if folder == "." else (build(tmp_path / folder), tmp_path)[1])
        assert [row.image.name for row in datalist] == [name for names in PICTURES.values() for name in names]
        # Melanoma alone counts: carcinomas and actinic keratosis do not.
        assert {row.labels["diagnosis"] for row in datalist if row.labels["label"] == "1"} == {"malignantmelanoma"}
        assert sum(row.labels["label"] == "1" for row in datalist) == 2
        assert datalist.sites == ("asan",)
        assert datalist.splits == ("test",)
        assert len(set(datalist.subjects)) == 10
        assert len(Datalist.read(datalist.write(tmp_path / "list.csv"), required=("image", "label", "split"))) == 10

    def test_capitals_of_folders_do_not_matter(self, tmp_path):
        assert len(asan.index(build(tmp_path, {"MalignantMelanoma": ["a.JPG"]}))) == 1

    def test_the_authors_table(self, tmp_path):
        datalist = asan.index(build_prepared(tmp_path))
        assert [(row.image, row.labels) for row in datalist] == [
            (tmp_path / "asan_256/ak2_571.JPG", {"label": "0", "diagnosis": "AK"}),
            (tmp_path / "asan_256/melanoma2_452.JPG", {"label": "1", "diagnosis": "melanoma"}),
        ]

    def test_what_is_missing(self, tmp_path, monkeypatch):
        build(tmp_path, {name: files for name, files in PICTURES.items() if name != "lentigo"})
        lines = asan.report_missing(tmp_path)
        assert lines[:2] == ["the folder lentigo is missing", "ASAN: 9 of 852 pictures are there"]
        assert "https://" in lines[2]
        build(tmp_path, {"lentigo": ["l.jpg"]})
        monkeypatch.setattr(asan, "PICTURES", 10)
        assert asan.report_missing(tmp_path) == []

    def test_what_is_missing_of_the_authors_table(self, tmp_path):
        build_prepared(tmp_path)
        (tmp_path / "asan_256/ak2_571.JPG").unlink()
        assert len(asan.index(tmp_path)) == 1
        assert asan.report_missing(tmp_path)[0] == "ASAN: 1 of 2 pictures are missing, the first is ak2_571.JPG"


class TestMistakes:
    def test_folders(self, tmp_path):
        fails(tmp_path / "no", "missing", "Han")
        fails(tmp_path, "not the ASAN test set", "malignantmelanoma")

    def test_no_picture(self, tmp_path):
        fails(build(tmp_path, {"lentigo": []}), "none of the pictures")

    @pytest.mark.parametrize(
        ("line", "column"), [("a.JPG,AK,2,0", "target"), (",AK,0,0", "image_name"), ("a.JPG,,0,0", "diagnosis")]
    )
    def test_a_cell_that_does_not_fit(self, tmp_path, line, column):
        fails(build_prepared(tmp_path, [*TABLE, line]), f"asan.csv, row 4, column {column}")
