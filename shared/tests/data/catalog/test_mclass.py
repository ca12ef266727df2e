from __future__ import annotations

from pathlib import Path

import pytest

from dart_core.data.catalog import mclass
from dart_core.data.datalist import Datalist
from dart_core.errors import InputError

TREE = {
    "BenchmarkDermoscopic/benign": ["ISIC_0000003.jpg", "ISIC_0000037.jpg"],
    "BenchmarkDermoscopic/malign": ["ISIC_0000040.jpg"],
    "BenchmarkClinical/benign": ["132357.jpg"],
    "BenchmarkClinical/malignant": ["896.jpg", "136733.jpg"],
}


def build(root: Path, tree=TREE) -> Path:
    for folder, names in tree.items():
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / name).touch()
    return root


def fails(root: Path, *parts: object) -> None:
    with pytest.raises(InputError) as error:
        mclass.index(root)
    for part in parts:
        assert str(part) in str(error.value)
    assert "\n" not in str(error.value)


class TestIndex:
    def test_rows(self, tmp_path):
        datalist = mclass.index(build(tmp_path))
        assert [(row.site, row.image.name, row.labels["label"]) for row in datalist] == [
            ("mclass-d", "ISIC_0000003.jpg", "0"),
            ("mclass-d", "ISIC_0000037.jpg", "0"),
            ("mclass-d", "ISIC_0000040.jpg", "1"),
            ("mclass-c", "132357.jpg", "0"),
            ("mclass-c", "136733.jpg", "1"),
            ("mclass-c", "896.jpg", "1"),
        ]
        assert datalist.splits == ("test",)
        assert len(datalist.subjects) == 6
        assert len(Datalist.read(datalist.write(tmp_path / "list.csv"), required=("image", "label", "split"))) == 6

    def test_one_part_alone(self, tmp_path):
        build(tmp_path)
        assert mclass.index(tmp_path / "BenchmarkClinical").sites == ("mclass-c",)
        build(tmp_path / "x", {f"MClassD/{name}": files for name, files in TREE.items() if "Dermoscopic" in name})
        assert len(mclass.index(tmp_path / "x")) == 3

    def test_the_authors_tables(self, tmp_path):
        (tmp_path / "csv").mkdir()
        (tmp_path / "images/MClassD_256").mkdir(parents=True)
        (tmp_path / "csv/MClassD.csv").write_text("image_name,target\nISIC_0000003.jpg,0\nISIC_0000040.jpg,1\n")
        for name in ("ISIC_0000003.jpg", "ISIC_0000040.jpg"):
            (tmp_path / "images/MClassD_256" / name).touch()
        assert [(row.image.name, row.labels["label"]) for row in mclass.index(tmp_path)] == [
            ("ISIC_0000003.jpg", "0"),
            ("ISIC_0000040.jpg", "1"),
        ]

    def test_what_is_missing(self, tmp_path, monkeypatch):
        build(tmp_path, {name: files for name, files in TREE.items() if "Dermoscopic" in name})
        lines = mclass.report_missing(tmp_path)
        assert lines[:2] == [
            "mclass-d: 3 of 100 pictures are there (BenchmarkDermoscopic)",
            "mclass-c: 0 of 100 pictures are there (BenchmarkClinical)",
        ]
        assert "https://" in lines[2]
        build(tmp_path, {name: files for name, files in TREE.items() if "Clinical" in name})
        monkeypatch.setattr(mclass, "PICTURES", 3)
        assert mclass.report_missing(tmp_path) == []

    def test_names_of_the_dermoscopic_pictures(self):
        names = mclass.dermoscopic_names()
        assert len(names) == 100
        assert all(name.startswith("ISIC_00") and len(name) == 12 for name in names)


class TestMistakes:
    def test_folders(self, tmp_path):
        fails(tmp_path / "no", "missing", "Brinker")
        fails(tmp_path, "not MClass", "BenchmarkDermoscopic")
        fails(build(tmp_path / "x", {"BenchmarkClinical/benign": []}), "not MClass")

    def test_a_table_without_pictures(self, tmp_path):
        (tmp_path / "MClassC.csv").write_text("image_name,target\n896.jpg,1\n")
        fails(tmp_path, "none of the pictures")

    @pytest.mark.parametrize(("line", "column"), [("896.jpg,melanoma", "target"), (",1", "image_name")])
    def test_a_cell_that_does_not_fit(self, tmp_path, line, column):
        (tmp_path / "MClassC.csv").write_text(f"image_name,target\n{line}\n")
        fails(tmp_path, f"MClassC.csv, row 2, column {column}")
