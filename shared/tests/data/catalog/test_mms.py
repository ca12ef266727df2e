from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from dart_core.data.catalog import mms
from dart_core.data.datalist import Datalist
from dart_core.data.volumes import read_labels, read_volume
from dart_core.errors import InputError

NEWEST = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
HEARTS = {  # code -> folder, vendor, centre, ED, ES
    "A1A2A3": ("Training/Labeled", "A", 6, 0, 9),
    "B0B1B2": ("Training/Labeled", "B", 2, 24, 8),
    "C0C0C0": ("Training/Unlabeled", "C", 4, "", ""),
    "B9B9B9": ("Validation", "B", 3, 0, 10),
    "D4D4D4": ("Testing", "D", 5, 1, 11),
    "A8A8A8": ("Testing", "A", 1, 0, 12),
}
SHAPE = (6, 5, 3, 25)


def build(root: Path, table: str = f"OpenDataset/{NEWEST}", index_column: bool = True, centre: str = "Centre") -> Path:
    rng = np.random.default_rng(0)
    lines = []
    for number, (code, (part, vendor, place, end_diastole, end_systole)) in enumerate(HEARTS.items()):
        folder = root / "OpenDataset" / part / code
        folder.mkdir(parents=True, exist_ok=True)
        nibabel.Nifti1Image(rng.uniform(1, 2, SHAPE).astype(np.float32), np.diag([1.2, 1.2, 9.0, 1.0])).to_filename(
            folder / f"{code}_sa.nii.gz"
        )
        if end_diastole != "":
            labels = np.zeros(SHAPE, np.uint8)
            labels[..., end_diastole], labels[..., end_systole] = 1, 2
            nibabel.Nifti1Image(labels, np.diag([1.2, 1.2, 9.0, 1.0])).to_filename(folder / f"{code}_sa_gt.nii.gz")
        cells = [code, mms.VENDORS[vendor], vendor, place, end_diastole, end_systole]
        lines.append(",".join(str(cell) for cell in ([number, *cells] if index_column else cells)))
    header = ["External code", "VendorName", "Vendor", centre, "ED", "ES"]
    (root / table).write_text("\n".join([",".join(["", *header] if index_column else header), *lines]) + "\n")
    return root


def fails(root: Path, *parts: object) -> None:
    with pytest.raises(InputError) as error:
        mms.index(root)
    for part in parts:
        assert str(part) in str(error.value)
    assert "\n" not in str(error.value)


class TestIndex:
    @pytest.mark.parametrize(
        ("table", "index_column", "centre"),
        [
            (f"OpenDataset/{NEWEST}", True, "Centre"),
            ("OpenDataset/201014_M&Ms_Dataset_Information_-_opendataset.csv", False, "Centre"),
            (f"{NEWEST.replace('211230', '211006')}", True, "Center"),
        ],
    )
    def test_two_frames_of_every_labelled_heart(self, tmp_path, table, index_column, centre):
        datalist = mms.index(build(tmp_path, table, index_column, centre))
        assert [(row.subject, row.site, row.split, row.labels["phase"], row.labels["frame"]) for row in datalist] == [
            ("A1A2A3", "A", "train", "ED", "0"),
            ("A1A2A3", "A", "train", "ES", "9"),
            ("A8A8A8", "A", "test", "ED", "0"),
            ("A8A8A8", "A", "test", "ES", "12"),
            ("B0B1B2", "B", "train", "ED", "24"),
            ("B0B1B2", "B", "train", "ES", "8"),
            ("B9B9B9", "B", "val", "ED", "0"),
            ("B9B9B9", "B", "val", "ES", "10"),
            ("D4D4D4", "D", "test", "ED", "1"),
            ("D4D4D4", "D", "test", "ES", "11"),
        ]
        first = datalist[0]
        assert (first.labels["vendor"], first.labels["centre"]) == ("Siemens", "6")
        folder = tmp_path / "OpenDataset/Training/Labeled/A1A2A3"
        assert (first.image, first.mask) == (folder / "A1A2A3_sa.nii.gz", folder / "A1A2A3_sa_gt.nii.gz")

    def test_frames_are_those_with_labels(self, tmp_path):
        for row in mms.index(build(tmp_path)):
            frame = int(row.labels["frame"])
            volume = read_volume(row.image, frame=frame)
            assert volume.array.shape == SHAPE[:3]
            labels = read_labels(row.mask, volume, frame=frame)
            assert np.unique(labels).tolist() == [1 if row.labels["phase"] == "ED" else 2]

    def test_the_inner_folder_will_do(self, tmp_path):
        build(tmp_path)
        assert len(mms.index(tmp_path / "OpenDataset")) == 10
        (tmp_path / "OpenDataset" / NEWEST).rename(tmp_path / NEWEST)
        assert len(mms.index(tmp_path / "OpenDataset")) == 10

    def test_the_youngest_table_is_taken(self, tmp_path):
        build(tmp_path)
        (tmp_path / "OpenDataset" / NEWEST.replace("211230", "201014")).write_text("External code\nx\n")
        assert len(mms.index(tmp_path)) == 10

    def test_a_datalist_of_frames_is_written_and_read(self, tmp_path):
        datalist = mms.index(build(tmp_path))
        again = Datalist.read(datalist.write(tmp_path / "frames.csv"), required=("image", "mask", "frame", "phase"))
        assert [row.labels for row in again] == [row.labels for row in datalist]
        assert [row.split for row in again] == [row.split for row in datalist]

    def test_floats_as_frames(self, tmp_path):
        # Tables with an empty cell, as for the unlabelled hearts, are often stored with decimals.
        build(tmp_path)
        path = tmp_path / "OpenDataset" / NEWEST
        path.write_text(path.read_text().replace(",0,9\n", ",0.0,9.0\n"))
        assert [row.labels["frame"] for row in mms.index(tmp_path)][:2] == ["0", "9"]


class TestMistakes:
    def test_no_folder(self, tmp_path):
        fails(tmp_path / "no", "missing", "Campello")

    def test_another_folder(self, tmp_path):
        fails(tmp_path, "not the folder of M&Ms", "Training/Labeled")

    def test_no_table(self, tmp_path):
        build(tmp_path)
        (tmp_path / "OpenDataset" / NEWEST).unlink()
        fails(tmp_path, "table", "is missing")

    @pytest.mark.parametrize(
        ("old", "new", "parts"),
        [
            ("A1A2A3,Siemens,A,6,0,9", "A1A2A3,Siemens,A,6,0,", ("row 2", "column ES", "''")),
            ("A1A2A3,Siemens,A,6,0,9", "A1A2A3,Siemens,A,6,-1,9", ("row 2", "column ED", "'-1'")),
            ("A1A2A3,Siemens,A,6,0,9", "A1A2A3,Siemens,A,6,1.5,9", ("row 2", "column ED", "'1.5'")),
            ("B0B1B2,Philips,B", "B0B1B2,Philips,P", ("row 3", "column Vendor", "'P'", "A, B, C, D")),
            ("D4D4D4", "D5D5D5", ("D4D4D4", "lacks D4D4D4")),
            ("A1A2A3", "", ("row 2", "column External code", "empty")),
            ("Vendor,Centre", "Maker,Centre", ("no column 'Vendor'",)),
        ],
    )
    def test_tables_that_do_not_fit(self, tmp_path, old, new, parts):
        build(tmp_path)
        path = tmp_path / "OpenDataset" / NEWEST
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
        fails(tmp_path, *parts)

    def test_a_heart_without_labels(self, tmp_path):
        build(tmp_path)
        (tmp_path / "OpenDataset/Testing/D4D4D4/D4D4D4_sa_gt.nii.gz").unlink()
        fails(tmp_path, "D4D4D4", "no D4D4D4_sa_gt.nii.gz")

    def test_a_heart_in_two_folders(self, tmp_path):
        build(tmp_path)
        folder = tmp_path / "OpenDataset/Testing/A1A2A3"
        folder.mkdir()
        for name in ("A1A2A3_sa.nii.gz", "A1A2A3_sa_gt.nii.gz"):
            (folder / name).write_bytes((tmp_path / "OpenDataset/Training/Labeled/A1A2A3" / name).read_bytes())
        fails(tmp_path, "A1A2A3 is in two folders")

    def test_no_hearts(self, tmp_path):
        (tmp_path / "Testing").mkdir()
        (tmp_path / NEWEST).write_text("External code,VendorName,Vendor,Centre,ED,ES\n")
        fails(tmp_path, "the table has no rows")
        (tmp_path / NEWEST).write_text("External code,VendorName,Vendor,Centre,ED,ES\nA1A2A3,Siemens,A,6,0,9\n")
        fails(tmp_path, "no heart with labels")


def test_what_is_missing_and_where_it_comes_from(tmp_path):
    build(tmp_path)
    assert mms.report_missing(tmp_path) == []
    for code in ("A8A8A8", "C0C0C0"):
        for file in (folder := next(tmp_path.rglob(code))).iterdir():
            file.unlink()
        folder.rmdir()
    lines = mms.report_missing(tmp_path)
    assert lines[:2] == [
        "A (Siemens): 1 of 2 hearts are missing: A8A8A8",
        "C (GE): 1 of 1 hearts are missing: C0C0C0",
    ]
    assert "https://" in lines[2]
