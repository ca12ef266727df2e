from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dart_core.data.catalog import vindr_cxr
from dart_core.data.catalog.vindr_cxr import FINDINGS, LABELS
from dart_core.errors import InputError, SettingError

# Picture -> what each of its three radiologists found.
TRAIN = {
    "aa00": ({"No finding"}, {"No finding"}, {"No finding"}),
    "bb01": ({"No finding"}, {"Pleural effusion", "Pneumonia"}, {"Pneumonia"}),
    "cc02": ({"Lung tumor"}, {"Lung tumor", "COPD"}, set()),
    **{f"dd{i:02d}": ({"No finding"},) * 3 for i in range(17)},
}
TEST = {"ee00": ({"Other diseases", "Tuberculosis"},), "ff01": (set(),)}


def build(root: Path, ending: str = ".dicom", train: str = "train", test: str = "test") -> Path:
    base = root / "vindr-cxr/1.0.0"
    for name, table, folder, columns in (
        ("train", TRAIN, train, ["image_id", "rad_id", *FINDINGS]),
        ("test", TEST, test, ["image_id", *FINDINGS]),
    ):
        lines = [",".join(columns).replace("Other diseases", "Other diseases" if name == "train" else "Other disease")]
        for picture, readers in table.items():
            for number, found in enumerate(readers):
                # The owners write whole numbers in one table and may write decimals after a spreadsheet.
                cells = [("1.0" if number else "1") if label in found else "0" for label in FINDINGS]
                lines.append(",".join([picture, *([f"R{number}"] if name == "train" else []), *cells]))
        (base / "annotations").mkdir(parents=True, exist_ok=True)
        (base / f"annotations/image_labels_{name}.csv").write_text("\r\n".join(lines) + "\r\n", newline="")
        (base / folder).mkdir(exist_ok=True)
        for picture in table:
            (base / folder / f"{picture}{ending}").touch()
    return base


def fails(root: Path, *parts: object, **arguments) -> None:
    with pytest.raises(InputError) as error:
        vindr_cxr.index(root, **arguments)
    for part in parts:
        assert str(part) in str(error.value)
    assert "\n" not in str(error.value)


def test_labels():
    assert len(set(FINDINGS)) == 28
    assert set(LABELS) <= set(FINDINGS)
    # benchmark-transformers 5: pleural effusion, then the global labels without COPD.
    assert FINDINGS[-6:] == ("COPD", *LABELS[1:])


class TestIndex:
    def test_positive_where_one_radiologist_says_so(self, tmp_path):
        base = build(tmp_path)
        for root in (tmp_path, tmp_path / "vindr-cxr", base):
            datalist = vindr_cxr.index(root)
            assert [row.subject for row in datalist] == [*TRAIN, *TEST]
        assert datalist[1].image == base / "train/bb01.dicom"
        assert datalist[-1].image == base / "test/ff01.dicom"
        found = {row.subject: [name for name in LABELS if row.labels[name] == "1"] for row in datalist}
        assert found["aa00"] == ["No finding"]
        assert found["bb01"] == ["Pleural effusion", "Pneumonia", "No finding"]
        assert found["cc02"] == ["Lung tumor"]
        assert found["ee00"] == ["Tuberculosis", "Other diseases"]
        assert found["ff01"] == []
        assert all(list(row.labels) == list(LABELS) and set(row.labels.values()) <= {"0", "1"} for row in datalist)

    def test_a_tenth_of_the_training_pictures_validates(self, tmp_path):
        build(tmp_path)
        splits = Counter(row.split for row in vindr_cxr.index(tmp_path))
        assert splits == {"train": 18, "val": 2, "test": 2}
        assert Counter(row.split for row in vindr_cxr.index(tmp_path, val_share=0.0)) == {"train": 20, "test": 2}
        chosen = [{row.subject for row in vindr_cxr.index(tmp_path, seed=k) if row.split == "val"} for k in range(9)]
        assert len({frozenset(names) for names in chosen}) > 1

    def test_other_labels(self, tmp_path):
        build(tmp_path)
        datalist = vindr_cxr.index(tmp_path, ("COPD", "Nodule/Mass"))
        assert datalist[2].labels == {"COPD": "1", "Nodule/Mass": "0"}
        with pytest.raises(SettingError, match="no label 'Asthma'"):
            vindr_cxr.index(tmp_path, ("Asthma",))

    def test_copies_come_before_dicom(self, tmp_path):
        base = build(tmp_path)
        (base / "train_jpeg").mkdir()
        (base / "train_jpeg/aa00.jpeg").touch()
        (base / "train/bb01.png").touch()
        names = {row.subject: row.image.relative_to(base).as_posix() for row in vindr_cxr.index(tmp_path)}
        assert (names["aa00"], names["bb01"], names["cc02"]) == (
            "train_jpeg/aa00.jpeg",
            "train/bb01.png",
            "train/cc02.dicom",
        )

    def test_half_downloaded(self, tmp_path):
        base = build(tmp_path)
        assert vindr_cxr.report_missing(tmp_path) == []
        (base / "train/aa00.dicom").unlink()
        (base / "annotations/image_labels_test.csv").unlink()
        assert len(vindr_cxr.index(tmp_path)) == 19
        lines = vindr_cxr.report_missing(tmp_path)
        assert lines[0] == "image_labels_train.csv: 1 of 20 pictures are missing, the first is aa00.dicom"
        assert lines[1] == "annotations/image_labels_test.csv is missing"
        assert "https://physionet.org" in lines[2]


class TestMistakes:
    def test_folders(self, tmp_path):
        fails(tmp_path / "no", "missing", "Nguyen")
        fails(tmp_path, "not a VinDr-CXR folder", "annotations/image_labels_train.csv")
        base = build(tmp_path)
        for picture in [*base.glob("train/*"), *base.glob("test/*")]:
            picture.unlink()
        fails(tmp_path, "none of the pictures", "physionet")

    def test_tables(self, tmp_path):
        base = build(tmp_path)
        table = base / "annotations/image_labels_train.csv"
        text = table.read_text()
        table.write_text(text.replace("Lung tumor", "Tumour"))
        fails(tmp_path, "no column 'Lung tumor'", "image_labels_train.csv")
        for old, new, parts in (
            ("aa00,R0,", ",R0,", ("row 2, column image_id", "empty")),
            ("cc02,R0", "ee00,R0", ("ee00 is in the table of train too", "row 2")),
        ):
            assert old in text
            table.write_text(text.replace(old, new))
            fails(tmp_path, *parts)
        lines = text.splitlines()
        for cell, message in (("yes", "'yes' is not expected"), ("", "the cell is empty"), ("-1", "'-1' is not")):
            table.write_text("\n".join([lines[0], lines[1][: lines[1].rindex(",") + 1] + cell, *lines[2:]]))
            fails(tmp_path, "row 2, column No finding", message)
