from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from dart_core.data.catalog import lidc
from dart_core.data.volumes import Volume, read_volume
from dart_core.errors import InputError, SettingError

SQUARE = [(x, y) for x, y in ((3, 4), (7, 4), (7, 10), (3, 10))]
"""Corners, column and row; what lies inside are columns 4 to 6 and rows 5 to 9."""


def roi(points, height: float = -2.5, inclusion: str = "TRUE") -> str:
    edges = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points)
    return (
        f"<roi><imageZposition>{height}</imageZposition><imageSOP_UID>1.9</imageSOP_UID>"
        f"<inclusion>{inclusion}</inclusion>{edges}</roi>"
    )


def message(*readers: str, series: str = "1.2.3") -> str:
    sessions = "".join(
        f"<readingSession><unblindedReadNodule><noduleID>Nodule {k}</noduleID>{rois}</unblindedReadNodule></readingSession>"
        for k, rois in enumerate(readers)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><LidcReadMessage xmlns="http://www.nih.gov"><ResponseHeader>'
        f"<SeriesInstanceUid>{series}</SeriesInstanceUid></ResponseHeader>{sessions}</LidcReadMessage>"
    )


def ct(codes: str = "LPS") -> Volume:
    """16 columns, 20 rows, 4 slices at -5, -2.5, 0 and 2.5 mm."""
    lps = np.diag([-0.5, -0.5, 2.5, 1.0])
    lps[:3, 3] = 50, 60, -5
    array = np.zeros((16, 20, 4), dtype=np.float32)
    if codes == "LPS":
        return Volume(array, lps, Path("ct"))
    assert codes == "RAS"
    ras = np.diag([0.5, 0.5, 2.5, 1.0])
    ras[:3, 3] = 50 - 0.5 * 15, 60 - 0.5 * 19, -5
    return Volume(array, ras, Path("ct"))


def outlines(tmp_path: Path, *readers: str) -> tuple[lidc.Outline, ...]:
    (tmp_path / "a.xml").write_text(message(*readers))
    return lidc.read_outlines(tmp_path / "a.xml")


def fails(call, *parts: str) -> None:
    with pytest.raises(InputError) as error:
        call()
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


class TestOutlines:
    def test_readers_and_points(self, tmp_path):
        found = outlines(tmp_path, roi(SQUARE) + roi([(5, 5)], 0.0), roi(SQUARE, inclusion="FALSE"))
        assert [(o.reader, o.nodule, o.height, o.inside, len(o.points)) for o in found] == [
            (0, "Nodule 0", -2.5, True, 4),
            (0, "Nodule 0", 0.0, True, 1),
            (1, "Nodule 1", -2.5, False, 4),
        ]
        assert found[0].points.tolist() == [list(point) for point in SQUARE]

    @pytest.mark.parametrize(
        ("old", "new", "parts"),
        [
            ("</LidcReadMessage>", "", ("damaged", "copy the file again")),
            ("LidcReadMessage", "IdriReadMessage", ("no readings of a CT",)),
            ("<xCoord>3<", "<xCoord>left<", ("Nodule 0", "left")),
            ("<imageZposition>-2.5<", "<imageZposition><", ("Nodule 0",)),
            ("?><", "?><!DOCTYPE a><", ("document type",)),
        ],
    )
    def test_damaged(self, tmp_path, old, new, parts):
        text = message(roi(SQUARE))
        assert old in text
        (tmp_path / "a.xml").write_text(text.replace(old, new))
        fails(lambda: lidc.read_outlines(tmp_path / "a.xml"), "a.xml", *parts)

    def test_no_file(self, tmp_path):
        fails(lambda: lidc.read_outlines(tmp_path / "a.xml"), "cannot be read")


class TestMask:
    def test_the_line_is_outside(self, tmp_path):
        mask = lidc.nodule_mask(outlines(tmp_path, roi(SQUARE)), ct(), readers=1)
        expected = np.zeros((16, 20, 4), dtype=bool)
        expected[4:7, 5:10, 1] = True
        assert_array_equal(mask, expected)

    def test_any_orientation(self, tmp_path):
        found = outlines(tmp_path, roi(SQUARE))
        mask, turned = lidc.nodule_mask(found, ct(), 1), lidc.nodule_mask(found, ct("RAS"), 1)
        assert_array_equal(turned, mask[::-1, ::-1])
        swapped = Volume(np.zeros((4, 20, 16)), ct().affine[:, [2, 1, 0, 3]], None)
        assert_array_equal(lidc.nodule_mask(found, swapped, 1), mask.transpose(2, 1, 0))

    def test_holes_wherever_they_stand_in_the_file(self, tmp_path):
        hole = roi([(4, 6), (6, 6), (6, 8), (4, 8)], inclusion="FALSE")
        for rois in (roi(SQUARE) + hole, hole + roi(SQUARE)):
            mask = lidc.nodule_mask(outlines(tmp_path, rois), ct(), readers=1)
            assert mask.sum() == 3 * 5 - 1
            assert not mask[5, 7, 1]

    def test_readers_must_agree(self, tmp_path):
        wide = [(3, 4), (9, 4), (9, 10), (3, 10)]
        found = outlines(tmp_path, roi(SQUARE), roi(wide), roi([(5, 5)]), "")
        counts = [int(lidc.nodule_mask(found, ct(), readers=k).sum()) for k in (1, 2, 3)]
        assert counts == [5 * 5, 3 * 5, 0]  # a single point marks a small nodule and has no outline
        assert int(lidc.nodule_mask(found, ct()).sum()) == 15
        with pytest.raises(SettingError, match="5 readers"):
            lidc.nodule_mask(found, ct(), 5)

    def test_no_outlines(self):
        assert lidc.nodule_mask((), ct()).sum() == 0

    @pytest.mark.parametrize(("points", "height"), [(SQUARE, -3.7), (SQUARE, 30.0), ([(3, 4), (16, 4), (8, 9)], 0.0)])
    def test_outlines_of_another_ct(self, tmp_path, points, height):
        found = outlines(tmp_path, roi(points, height))
        fails(lambda: lidc.nodule_mask(found, ct(), 1), "ct: ", "does not lie in a slice", "outlines of this CT")


class TestIndex:
    @pytest.fixture
    def tree(self, tmp_path) -> Path:
        """Two patients: one with a CT and a radiograph, outlines beside the slices; one with outlines elsewhere."""
        pytest.importorskip("SimpleITK")
        pydicom = pytest.importorskip("pydicom")

        def write(folder: Path, series: str, modality: str, count: int) -> None:
            folder.mkdir(parents=True)
            for k in range(count):
                slice_ = pydicom.Dataset()
                slice_.file_meta = pydicom.dataset.FileMetaDataset()
                slice_.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
                slice_.SOPClassUID, slice_.SOPInstanceUID = pydicom.uid.CTImageStorage, f"{series}.{k}"
                slice_.SeriesInstanceUID, slice_.StudyInstanceUID, slice_.Modality = series, "1.2", modality
                slice_.Rows, slice_.Columns, slice_.PixelSpacing = 20, 16, [0.5, 0.5]
                slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
                slice_.ImagePositionPatient = [-50.0, -60.0, 2.5 * k - 5]
                slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
                slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
                slice_.RescaleSlope, slice_.RescaleIntercept = 1, 0
                slice_.PixelData = np.arange(320, dtype="<i2").tobytes()
                slice_.save_as(folder / f"1-{k}.dcm", enforce_file_format=True)

        base = tmp_path / "LIDC-IDRI"
        write(base / "LIDC-IDRI-0001/study/3000566", "1.2.3", "CT", 4)
        (base / "LIDC-IDRI-0001/study/3000566/069.xml").write_text(message(roi(SQUARE), roi(SQUARE)))
        write(base / "LIDC-IDRI-0001/other/3000923", "1.2.4", "DX", 1)
        write(base / "LIDC-IDRI-0002/study/3000522", "1.2.5", "CT", 2)
        (tmp_path / "tcia-lidc-xml/157").mkdir(parents=True)
        (tmp_path / "tcia-lidc-xml/157/158.xml").write_text(message(series="1.2.5"))
        (tmp_path / "tcia-lidc-xml/157/159.xml").write_text("<other/>")
        return tmp_path

    def test_ct_series_with_their_outlines(self, tree):
        datalist = lidc.index(tree)
        assert [(row.subject, row.labels["series"], row.mask and row.mask.name) for row in datalist] == [
            ("LIDC-IDRI-0001", "1.2.3", "069.xml"),
            ("LIDC-IDRI-0002", "1.2.5", "158.xml"),
        ]
        assert datalist.sites == ("lidc-idri",)
        volume = read_volume(datalist[0].image)
        mask = lidc.nodule_mask(lidc.read_outlines(datalist[0].mask), volume)
        assert_array_equal(mask, lidc.nodule_mask(lidc.read_outlines(datalist[0].mask), ct("RAS")))
        assert mask.sum() == 15
        assert [row.mask is None for row in lidc.index(tree / "LIDC-IDRI")] == [False, True]

    def test_what_is_missing(self, tree):
        lines = lidc.report_missing(tree / "LIDC-IDRI")
        assert lines[0] == "1016 of 1018 CTs are missing"
        assert lines[1] == "the outlines (XML) of 1 CTs are missing, the first is that of LIDC-IDRI-0002"
        assert "CC BY 3.0" in lines[2]

    def test_mistakes(self, tmp_path, tree):
        fails(lambda: lidc.index(tmp_path / "no"), "missing", "Armato")
        (tmp_path / "empty").mkdir()
        fails(lambda: lidc.index(tmp_path / "empty"), "not the folder of LIDC-IDRI")
        radiograph = tree / "LIDC-IDRI/LIDC-IDRI-0001/other"
        fails(lambda: lidc.index(radiograph), "none of its series is a CT")
        (radiograph / "3000923/1-0.dcm").write_bytes(b"half a file")
        fails(lambda: lidc.index(radiograph), "holds no DICOM file", "copy the series again")
