from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from dart_core.data.catalog import chestxray14, rsna_pneumonia
from dart_core.data.catalog.rsna_pneumonia import CLASSES
from dart_core.errors import InputError

TABLE = "stage_2_detailed_class_info.csv"


def build(root: Path) -> Path:
    """Ten pictures of each class; those with an opacity have two boxes, hence two rows."""
    lines = ["patientId,class"]
    (root / "stage_2_train_images").mkdir()
    for kind, name in enumerate(CLASSES):
        for number in range(10):
            lines += [f"{kind}{number}-uuid,{name}"] * (2 if kind == 2 else 1)
            (root / "stage_2_train_images" / f"{kind}{number}-uuid.dcm").touch()
    (root / TABLE).write_text("\n".join(lines) + "\n")
    return root


def fails(root: Path, *parts: object, **arguments) -> None:
    with pytest.raises(InputError) as error:
        rsna_pneumonia.index(root, **arguments)
    for part in parts:
        assert str(part) in str(error.value)
    assert "\n" not in str(error.value)


class TestIndex:
    def test_every_picture_once_and_of_one_class(self, tmp_path):
        datalist = rsna_pneumonia.index(build(tmp_path))
        assert len(datalist) == len(datalist.subjects) == 30
        assert datalist[20].line == 22
        for row in datalist:
            assert row.image == tmp_path / "stage_2_train_images" / f"{row.subject}.dcm"
            assert list(row.labels) == list(CLASSES)
            assert [row.labels[name] for name in CLASSES] == [
                str(int(row.subject[0] == str(kind))) for kind in range(3)
            ]

    def test_drawn_splits(self, tmp_path):
        counts = Counter((row.split, row.subject[0]) for row in rsna_pneumonia.index(build(tmp_path)))
        for kind in "012":
            assert [counts[split, kind] for split in ("train", "val", "test")] == [8, 1, 1]

    def test_lists_of_authors(self, tmp_path):
        build(tmp_path)
        (tmp_path / "train.txt").write_text("00-uuid.png 0\n25-uuid.png 2\n")
        (tmp_path / "test.txt").write_text("17-uuid.png 1\n")
        lists = {"train": tmp_path / "train.txt", "test": tmp_path / "test.txt"}
        found = [(row.subject[:2], row.split) for row in rsna_pneumonia.index(tmp_path, lists)]
        assert found == [("00", "train"), ("17", "test"), ("25", "train")]
        (tmp_path / "train.txt").write_text("other.png 0\n")
        fails(tmp_path, "none of its pictures is in the lists", lists={"train": tmp_path / "train.txt"})

    def test_copies_come_before_dicom(self, tmp_path):
        build(tmp_path)
        (tmp_path / "stage_2_train_images_png").mkdir()
        (tmp_path / "stage_2_train_images_png/00-uuid.png").touch()
        images = {row.image.parent.name for row in rsna_pneumonia.index(tmp_path)[:2]}
        assert images == {"stage_2_train_images", "stage_2_train_images_png"}

    def test_half_downloaded(self, tmp_path):
        build(tmp_path)
        assert rsna_pneumonia.report_missing(tmp_path) == []
        before = {row.subject: row.split for row in rsna_pneumonia.index(tmp_path)}
        (tmp_path / "stage_2_train_images/13-uuid.dcm").unlink()
        lines = rsna_pneumonia.report_missing(tmp_path)
        assert lines[0] == f"{TABLE}: 1 of 30 pictures are missing, the first is 13-uuid.dcm"
        assert "https://www.kaggle.com" in lines[1]
        # What is missing does not change the split of the others.
        assert {row.subject: row.split for row in rsna_pneumonia.index(tmp_path)}.items() <= before.items()


class TestMistakes:
    def test_folders(self, tmp_path):
        fails(tmp_path / "no", "missing", "Shih")
        fails(tmp_path, "not an RSNA Pneumonia folder", TABLE)
        (tmp_path / TABLE).write_text(f"patientId,class\na,{CLASSES[0]}\n")
        fails(tmp_path, "none of the pictures")

    @pytest.mark.parametrize(
        ("rows", "parts"),
        [
            (["a,Normal", "a,Lung Opacity"], ("row 3, column class", "'Normal' in row 2")),
            (["a,Pneumonia"], ("row 2, column class", "unknown class 'Pneumonia'", "No Lung Opacity")),
            ([",Normal"], ("row 2, column patientId", "empty")),
            (["a,"], ("row 2, column class", "empty")),
        ],
    )
    def test_cells(self, tmp_path, rows, parts):
        (tmp_path / TABLE).write_text("\n".join(["patientId,class", *rows]))
        fails(tmp_path, *parts)


class TestMapping:
    def test_it_leaves_pictures_out_of_chestxray14(self, tmp_path):
        entries = [
            {"subset_img_id": "00-uuid", "img_id": "00000001_000.png", "orig_labels": ["Mass"]},
            {"subset_img_id": "01-uuid", "img_id": "00000002_000.png", "orig_labels": []},
        ]
        (tmp_path / "mapping.json").write_text(json.dumps(entries))
        mapping = rsna_pneumonia.read_mapping(tmp_path / "mapping.json")
        assert mapping == {"00-uuid": "00000001_000.png", "01-uuid": "00000002_000.png"}
        (tmp_path / "images").mkdir()
        lines = ["Image Index,Finding Labels,Patient ID"]
        for number in (1, 2, 3):
            (tmp_path / "images" / f"0000000{number}_000.png").touch()
            lines.append(f"0000000{number}_000.png,No Finding,{number}")
        (tmp_path / "Data_Entry_2017.csv").write_text("\n".join(lines))
        left = chestxray14.index(tmp_path, exclude=mapping.values())
        assert [row.subject for row in left] == ["3"]

    @pytest.mark.parametrize(
        "text", ["[", "{}", "[]", '[{"img_id": "a.png"}]', '[{"subset_img_id": "", "img_id": "a"}]']
    )
    def test_other_files(self, tmp_path, text):
        (tmp_path / "mapping.json").write_text(text)
        with pytest.raises(InputError, match=r"mapping\.json"):
            rsna_pneumonia.read_mapping(tmp_path / "mapping.json")
        with pytest.raises(InputError, match="cannot be read"):
            rsna_pneumonia.read_mapping(tmp_path / "no.json")
