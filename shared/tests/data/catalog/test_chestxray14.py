from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from dart_core.data.catalog import chestxray14
from dart_core.data.datalist import Datalist
from dart_core.errors import InputError

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
ROWS = [
    "00000001_000.png,Cardiomegaly,0,1,57,M,PA,2682,2749,0.143,0.143",
    "00000001_001.png,Cardiomegaly|Emphysema,1,1,58,M,PA,2894,2729,0.143,0.143",
    "00000002_000.png,No Finding,0,2,80,M,AP,2500,2048,0.171,0.171",
    "00000013_005.png,Pleural_Thickening|Hernia,5,13,56,M,PA,2992,2991,0.143,0.143",
]


def build(
    root: Path, folders: Sequence[str] = ("images",) * 4, table: str = "Data_Entry_2017_v2020.csv", rows=ROWS
) -> Path:
    (root / table).write_text("\n".join([HEADER, *rows]) + "\n")
    for folder, row in zip(folders, rows, strict=False):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / row.split(",")[0]).touch()
    return root


def fails(root: Path, *parts: object) -> None:
    with pytest.raises(InputError) as error:
        chestxray14.index(root)
    for part in parts:
        assert str(part) in str(error.value)
    assert "\n" not in str(error.value)


class TestIndex:
    @pytest.mark.parametrize(
        ("folders", "table"),
        [
            (["images"] * 4, "Data_Entry_2017_v2020.csv"),
            (
                ["images_001/images", "images_001/images", "images_002/images", "images_012/images"],
                "Data_Entry_2017.csv",
            ),
        ],
    )
    def test_rows(self, tmp_path, folders, table):
        datalist = chestxray14.index(build(tmp_path, folders, table))
        assert [row.subject for row in datalist] == ["1", "1", "2", "13"]
        assert [row.image for row in datalist] == [
            tmp_path / folder / row.split(",")[0] for folder, row in zip(folders, ROWS, strict=True)
        ]
        shown = [{name for name in chestxray14.LABELS if row.labels[name] == "1"} for row in datalist]
        assert shown == [{"Cardiomegaly"}, {"Cardiomegaly", "Emphysema"}, set(), {"Pleural_Thickening", "Hernia"}]
        assert all([name for name in row.labels if name != "view"] == list(chestxray14.LABELS) for row in datalist)
        assert [row.labels["view"] for row in datalist] == ["PA", "PA", "AP", "PA"]
        assert {row.site for row in datalist} == {"chestxray14"}
        assert {row.split for row in datalist} == {""}

    def test_the_order_of_labels(self):
        # mmtl-octl 5.3.
        assert ", ".join(chestxray14.LABELS) == (
            "Cardiomegaly, Emphysema, Effusion, Hernia, Infiltration, Mass, Nodule, Atelectasis, Pneumothorax,"
            " Pleural_Thickening, Pneumonia, Fibrosis, Edema, Consolidation"
        )

    def test_official_test_list(self, tmp_path):
        build(tmp_path)
        (tmp_path / "test_list.txt").write_text("00000013_005.png\n00000099_000.png\n")
        datalist = chestxray14.index(tmp_path)
        assert [row.split for row in datalist] == ["train", "train", "train", "test"]
        assert len(Datalist.read(datalist.write(tmp_path / "list.csv"), required=("image", "split"))) == 4

    def test_only_pictures_that_are_there(self, tmp_path):
        build(tmp_path)
        (tmp_path / "images/00000002_000.png").unlink()
        assert [row.subject for row in chestxray14.index(tmp_path)] == ["1", "1", "13"]
        lines = chestxray14.report_missing(tmp_path)
        assert lines[0] == "1 of 4 pictures are missing, the first is 00000002_000.png"
        assert "test_list.txt" in lines[1]
        assert "https://" in lines[2]

    def test_nothing_is_missing(self, tmp_path):
        build(tmp_path)
        (tmp_path / "test_list.txt").touch()
        assert chestxray14.report_missing(tmp_path) == []


class TestMistakes:
    def test_folders(self, tmp_path):
        fails(tmp_path / "no", "missing", "Wang")
        (tmp_path / "file").touch()
        fails(tmp_path / "file", "this is a file, not the folder of ChestX-ray14")
        fails(tmp_path, "not a ChestX-ray14 folder", "Data_Entry_2017_v2020.csv")

    def test_no_picture(self, tmp_path):
        fails(build(tmp_path, folders=[]), "none of the pictures")

    def test_unknown_finding(self, tmp_path):
        rows = [ROWS[0].replace("Cardiomegaly", "Cardiomegaly|Edeme")]
        fails(build(tmp_path, rows=rows), "row 2, column Finding Labels", "'Edeme'")

    @pytest.mark.parametrize(("old", "column"), [("Cardiomegaly", "Finding Labels"), (",1,57", "Patient ID")])
    def test_empty_cell(self, tmp_path, old, column):
        rows = [ROWS[0].replace(old, ",,57" if old == ",1,57" else "")]
        fails(build(tmp_path, rows=rows), f"row 2, column {column}", "empty")

    def test_a_missing_column(self, tmp_path):
        build(tmp_path)
        table = tmp_path / "Data_Entry_2017_v2020.csv"
        table.write_text(table.read_text().replace("Patient ID", "Patient"))
        fails(tmp_path, "no column 'Patient ID'")

    def test_a_list_that_is_no_text(self, tmp_path):
        build(tmp_path)
        (tmp_path / "test_list.txt").write_bytes(b"\xff\xfe\x00")
        fails(tmp_path, "test_list.txt", "cannot be read")


class TestChoices:
    def test_lists_of_authors(self, tmp_path):
        build(tmp_path)
        (tmp_path / "test_list.txt").write_text("00000001_000.png\n")
        for split, text in {
            "train": "00000001_000.png 0 1 0\n00000001_001.png 0 1 1\n",
            "val": "00000002_000.png 0 0 0\n",
            "test": "00000013_005.png 1 0 0\n",
        }.items():
            (tmp_path / f"{split}.txt").write_text(text)
        lists = {split: tmp_path / f"{split}.txt" for split in ("train", "val", "test")}
        assert [row.split for row in chestxray14.index(tmp_path, lists)] == ["train", "train", "val", "test"]
        del lists["test"]
        assert len(chestxray14.index(tmp_path, lists)) == 3
        (tmp_path / "train.txt").write_text("CHNCXR_0001_0.png,0\n")
        with pytest.raises(InputError, match="none of its pictures is in the lists"):
            chestxray14.index(tmp_path, {"train": tmp_path / "train.txt"})

    def test_left_out(self, tmp_path):
        build(tmp_path)
        datalist = chestxray14.index(tmp_path, exclude=["00000001_001.png", "00000099_000.png"])
        assert [row.image.name for row in datalist] == ["00000001_000.png", "00000002_000.png", "00000013_005.png"]

    def test_the_order_of_the_lists(self):
        # popar 5.
        assert ", ".join(chestxray14.LIST_ORDER) == (
            "Atelectasis, Cardiomegaly, Effusion, Infiltration, Mass, Nodule, Pneumonia, Pneumothorax, Consolidation,"
            " Edema, Emphysema, Fibrosis, Pleural_Thickening, Hernia"
        )
        assert set(chestxray14.LIST_ORDER) == set(chestxray14.LABELS)
