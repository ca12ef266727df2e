from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from dart_core.data.catalog import rsna_pe
from dart_core.data.datalist import Datalist
from dart_core.errors import InputError

pydicom = pytest.importorskip("pydicom")

STUDIES = 20
HEIGHTS = (-7.5, -10.0, -5.0)
"""Of the slices a, b and c of each study, in mm: not in the order of their names."""


def write_slice(path: Path, height: float | None) -> None:
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    header = pydicom.Dataset()
    header.file_meta = meta
    header.SOPClassUID, header.SOPInstanceUID = pydicom.uid.CTImageStorage, pydicom.uid.generate_uid(entropy_srcs=["x"])
    if height is not None:
        header.ImagePositionPatient = [-160.0, -160.0, height]
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)


def build(root: Path, studies: int = STUDIES) -> Path:
    """Studies of three slices; the first half shows an embolism in slice a."""
    lines = ["StudyInstanceUID,SeriesInstanceUID,SOPInstanceUID,pe_present_on_image,negative_exam_for_pe"]
    for study in range(studies):
        ill = study < studies // 2
        for name, height in zip("abc", HEIGHTS, strict=True):
            lines.append(f"s{study:02d},r{study},{name}{study},{int(ill and name == 'a')},{int(not ill)}")
            write_slice(root / f"train/s{study:02d}/r{study}/{name}{study}.dcm", height)
    (root / "train.csv").write_text("\n".join(lines) + "\n")
    return root


def fails(root: Path, *parts: object, **arguments) -> None:
    with pytest.raises(InputError) as error:
        rsna_pe.index(root, **arguments)
    for part in parts:
        assert str(part) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("pe"))


class TestIndex:
    def test_slices_from_the_feet_to_the_head(self, tree):
        datalist = rsna_pe.index(tree, studies=["s03"])
        assert [row.image.name for row in datalist] == ["b3.dcm", "a3.dcm", "c3.dcm"]
        assert [row.labels["pe_present_on_image"] for row in datalist] == ["0", "1", "0"]
        assert [row.labels["slice"] for row in datalist] == ["0", "1", "2"]
        assert [row.labels["below"] for row in datalist] == ["b3.dcm", "b3.dcm", "a3.dcm"]
        assert [row.labels["above"] for row in datalist] == ["a3.dcm", "c3.dcm", "c3.dcm"]
        assert {(row.subject, row.site, row.labels["series"]) for row in datalist} == {("s03", "rsna-pe", "r3")}
        assert datalist[0].line == 12

    def test_splits_by_study(self, tree, tmp_path):
        datalist = rsna_pe.index(tree)
        assert len(datalist) == 3 * STUDIES
        counts = Counter((row.split, int(row.subject[1:]) < STUDIES // 2) for row in datalist)
        for ill in (True, False):
            assert [counts[split, ill] / 3 for split in ("train", "val", "test")] == [7, 1, 2]
        assert {row.split for row in rsna_pe.index(tree, ["s03"])} == {
            row.split for row in datalist if row.subject == "s03"
        }
        # The file can be read again: no study is in two splits.
        again = Datalist.read(datalist.write(tmp_path / "slices.csv"), required=("image", "split"))
        assert [row.labels for row in again] == [row.labels for row in datalist]

    def test_half_downloaded(self, tmp_path):
        build(tmp_path, 2)
        assert rsna_pe.report_missing(tmp_path) == []
        (tmp_path / "train/s00/r0/b0.dcm").unlink()
        assert [row.image.name for row in rsna_pe.index(tmp_path)][:2] == ["a0.dcm", "c0.dcm"]
        for name in "abc":
            (tmp_path / f"train/s01/r1/{name}1.dcm").unlink()
        lines = rsna_pe.report_missing(tmp_path)
        assert lines[0] == "1 of 2 studies are missing and 1 are incomplete: 4 slices"
        assert "https://www.kaggle.com" in lines[1]


class TestMistakes:
    def test_folders(self, tmp_path):
        fails(tmp_path / "no", "missing", "Colak")
        fails(tmp_path, "not an RSNA PE folder", "train.csv")
        build(tmp_path, 1)
        fails(tmp_path, "no study 's09'", studies=["s09"])
        for path in (tmp_path / "train/s00/r0").iterdir():
            path.unlink()
        fails(tmp_path, "none of the slices", "unpack train/")

    def test_tables(self, tmp_path):
        build(tmp_path, 2)
        table = tmp_path / "train.csv"
        text = table.read_text()
        for old, new, parts in (
            ("a0,1,", "a0,2,", ("row 2, column pe_present_on_image", "'2'")),
            ("s00,r0,a0", ",r0,a0", ("row 2, column StudyInstanceUID", "empty")),
            ("b0,0", "a0,0", ("row 3", "a0 is already in row 2")),
            ("SOPInstanceUID", "SOP", ("no column 'SOPInstanceUID'",)),
        ):
            table.write_text(text.replace(old, new))
            fails(tmp_path, *parts)

    def test_without_pydicom(self, tree, monkeypatch):
        monkeypatch.setitem(sys.modules, "pydicom", None)
        fails(tree, "pydicom is not installed", "dart-core[dicom]", studies=["s03"])

    def test_slices(self, tmp_path):
        build(tmp_path, 1)
        write_slice(tmp_path / "train/s00/r0/a0.dcm", None)
        fails(tmp_path, "a0.dcm", "no position")
        (tmp_path / "train/s00/r0/a0.dcm").write_bytes(b"no dicom" * 99)
        fails(tmp_path, "a0.dcm", "no DICOM file")
