"""Cells and what they mean; folders as owners publish them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from dart_core.errors import DartError
from skintone_debias.datalists import normalised, open_cases, reader_of


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("3", "3"), (" 3.0 ", "3"), ("3.00", "3"), ("1.5", "1.5"), ("yes", "yes"), ("none", "none"),
        ("", ""), ("-1", ""), ("-1.0", ""), ("nan", ""), ("NaN", ""), ("-2.0", "-2"),
    ],
)  # fmt: skip
def test_cells(cell, said):
    assert normalised(cell) == said


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def test_published_folders_are_recognised(tmp_path):
    for kind in ("benign", "malign"):
        touch(tmp_path / "BenchmarkDermoscopic" / kind / f"{kind}.jpg")
    found = open_cases(tmp_path)
    assert {(row.site, row.split, row.labels["label"]) for row in found} == {
        ("mclass-d", "test", "0"),
        ("mclass-d", "test", "1"),
    }


def test_isic_2019_is_recognised(tmp_path):
    classes = "MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK"
    rows = ["ISIC_0000000,0.0,1.0" + ",0.0" * 7, "ISIC_0000002,1.0" + ",0.0" * 8]
    (tmp_path / "ISIC_2019_Training_GroundTruth.csv").write_text("\n".join([f"image,{classes}", *rows]))
    for row in rows:
        touch(tmp_path / "ISIC_2019_Training_Input" / f"{row.partition(',')[0]}.jpg")
    assert reader_of(tmp_path) is not None
    assert [(row.site, row.labels["label"]) for row in open_cases(tmp_path)] == [("isic2019", "0"), ("isic2019", "1")]


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(DartError, match="this is not ISIC"):
        open_cases(tmp_path)


def test_a_folder_of_photographs_is_nothing_published(tmp_path):
    for name in ("Benchmark.jpg", "MClass/a.jpg", "train/a.jpg"):
        touch(tmp_path / name)
    (tmp_path / "train.csv").write_text("file,kind\na.jpg,1\n")
    assert reader_of(tmp_path) is None
    (tmp_path / "train.csv").write_text("image_name,target\na,1\n")
    assert [row.site for row in open_cases(tmp_path)] == ["isic2020"]


def test_the_owners_table_is_known_by_its_columns(tmp_path):
    """Not by its name: `label --out fitzpatrick17k_tones.csv` writes a datalist."""
    touch(tmp_path / "images/abc.jpg")
    (tmp_path / "fitzpatrick17k_tones.csv").write_text("image,md5hash,label\nimages/abc.jpg,abc,1\n")
    assert [row.labels["label"] for row in open_cases(tmp_path / "fitzpatrick17k_tones.csv")] == ["1"]
    columns = "md5hash,fitzpatrick_scale,label,three_partition_label,url"
    (tmp_path / "table.csv").write_text(f"{columns}\nabc,2,naevus,benign,http://x/abc.jpg\n")
    (row,) = open_cases(tmp_path / "table.csv")
    assert (row.site, row.split, row.labels["fitzpatrick"]) == ("fitzpatrick17k", "train", "2")
