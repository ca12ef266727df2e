from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dart_core.data.catalog import camelyon17
from dart_core.data.datalist import Datalist
from dart_core.errors import InputError

XML = """<?xml version="1.0"?>
<ASAP_Annotations>
  <Annotations>
    <Annotation Name="Annotation 0" Type="Polygon" PartOfGroup="metastases" Color="#F4FA58">
      <Coordinates>
        <Coordinate Order="1" X="110.5" Y="20" />
        <Coordinate Order="0" X="10" Y="20.25" />
        <Coordinate Order="2" X="110" Y="80" />
        <Coordinate Order="10" X="10" Y="90" />
      </Coordinates>
    </Annotation>
    <Annotation Name="Annotation 1" Type="Spline" PartOfGroup="normal" Color="#F4FA58">
      <Coordinates>
        <Coordinate Order="0" X="30" Y="30" />
        <Coordinate Order="1" X="40" Y="30" />
        <Coordinate Order="2" X="35" Y="40" />
      </Coordinates>
    </Annotation>
    <Annotation Name="Annotation 2" Type="Polygon" PartOfGroup="None" Color="#F4FA58">
      <Coordinates><Coordinate Order="0" X="a" Y="b" /></Coordinates>
    </Annotation>
    <Annotation Name="Annotation 3" Type="Dot" PartOfGroup="metastases" Color="#F4FA58">
      <Coordinates><Coordinate Order="0" X="5" Y="5" /></Coordinates>
    </Annotation>
  </Annotations>
  <AnnotationGroups>
    <Group Name="metastases" PartOfGroup="None" Color="#ff0000"><Attributes /></Group>
    <Group Name="normal" PartOfGroup="None" Color="#ff00ff"><Attributes /></Group>
  </AnnotationGroups>
</ASAP_Annotations>
"""


def build(root: Path, layout: str = "new") -> Path:
    """Six annotated slides, one of them with a mask only, one with nothing; three without; a slide of the test set."""
    slides = [(4, 4), (15, 1), (15, 2), (22, 4), (60, 3), (99, 4), (0, 0), (61, 1), (62, 3), (100, 0)]
    base = root / "CAMELYON17"
    for patient, node in slides:
        name = f"patient_{patient:03d}_node_{node}"
        place = {
            "new": base / "images",
            "old": base / "training" / f"center_{min(patient // 20, 4)}",
            "zipped": base / "training" / f"patient_{patient:03d}",
            "wilds": base / "tif",
        }[layout]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name}.tif").write_bytes(b"II*\0")
        outlines = base / ("annotations" if layout == "new" else "lesion_annotations")
        outlines.mkdir(exist_ok=True)
        if (patient, node) in camelyon17.ANNOTATED and (patient, node) not in ((60, 3), (99, 4)):
            (outlines / f"{name}.xml").write_text(XML)
    (base / "masks").mkdir()
    for name in ("patient_060_node_3", "patient_061_node_1", "patient_004_node_4"):
        (base / "masks" / f"{name}_mask.tif").write_bytes(b"II*\0")
    table = "stages.csv" if layout == "new" else "training/stage_labels.csv"
    (base / table).parent.mkdir(exist_ok=True)
    (base / table).write_text(
        "patient,stage\npatient_004.zip,pN1mi\npatient_004_node_4.tif,micro\npatient_000_node_0.tif,negative\n"
    )
    return root


def fails(call, *parts: object) -> None:
    with pytest.raises(InputError) as error:
        call()
    for part in parts:
        assert str(part) in str(error.value)
    assert "\n" not in str(error.value)


def test_fifty_annotated_slides_ten_per_centre():
    assert len(set(camelyon17.ANNOTATED)) == 50
    assert Counter(patient // 20 for patient, _ in camelyon17.ANNOTATED) == dict.fromkeys(range(5), 10)
    assert all(0 <= node < 5 for _, node in camelyon17.ANNOTATED)


class TestIndex:
    @pytest.mark.parametrize("layout", ["new", "old", "zipped", "wilds"])
    def test_annotated_slides(self, tmp_path, layout):
        datalist = camelyon17.index(build(tmp_path, layout))
        assert [(row.subject, row.labels["slide"][-1], row.site, row.labels["centre"]) for row in datalist] == [
            ("patient_004", "4", "CWZ", "0"),
            ("patient_015", "1", "CWZ", "0"),
            ("patient_015", "2", "CWZ", "0"),
            ("patient_022", "4", "RST", "1"),
            ("patient_060", "3", "RUMC", "3"),
            ("patient_061", "1", "RUMC", "3"),
            ("patient_099", "4", "LPON", "4"),
        ]
        # Outlines come before masks; a mask does where there are none; a slide that lacks both is still listed.
        names = [None if row.mask is None else row.mask.name for row in datalist]
        assert names[0] == "patient_004_node_4.xml"
        assert names[4:] == ["patient_060_node_3_mask.tif", "patient_061_node_1_mask.tif", None]
        assert [row.labels.get("stage") for row in datalist] == ["micro", *[None] * 6]

    def test_all_slides(self, tmp_path):
        datalist = camelyon17.index(build(tmp_path), annotated=False)
        assert len(datalist) == 9
        assert datalist[0].labels == {"slide": "patient_000_node_0", "centre": "0", "stage": "negative"}

    def test_the_inner_folder_will_do(self, tmp_path):
        assert len(camelyon17.index(build(tmp_path) / "CAMELYON17")) == 7

    def test_names_of_centres(self, tmp_path):
        datalist = camelyon17.index(build(tmp_path), centres=("a", "b", "c", "d", "e"))
        assert datalist.sites == ("a", "b", "d", "e")
        fails(lambda: camelyon17.index(tmp_path, centres=("a",)), "1 names for 5 centres")

    def test_it_is_a_datalist(self, tmp_path):
        datalist = camelyon17.index(build(tmp_path))
        again = Datalist.read(datalist.write(tmp_path / "slides.csv"))
        assert [row.labels for row in again] == [row.labels for row in datalist]

    def test_mistakes(self, tmp_path):
        fails(lambda: camelyon17.index(tmp_path / "no"), "missing", "Litjens")
        fails(lambda: camelyon17.index(tmp_path), "not the folder of CAMELYON17", "images/")
        build(tmp_path)
        twice = tmp_path / "CAMELYON17" / "training"
        twice.mkdir()
        (twice / "patient_004_node_4.tif").write_bytes(b"")
        fails(lambda: camelyon17.index(tmp_path), "patient_004_node_4 is there twice", "remove one")

    def test_nothing_annotated(self, tmp_path):
        (tmp_path / "patient_000_node_0.tif").write_bytes(b"")
        fails(lambda: camelyon17.index(tmp_path), "no training slide", "with outlines")
        assert len(camelyon17.index(tmp_path, annotated=False)) == 1

    def test_a_table_that_does_not_fit(self, tmp_path):
        build(tmp_path)
        (tmp_path / "CAMELYON17/stages.csv").write_text("case,stage\n")
        fails(lambda: camelyon17.index(tmp_path), "stages.csv", "no column 'patient'")


def test_what_is_missing(tmp_path):
    lines = camelyon17.report_missing(build(tmp_path))
    assert lines[0].startswith("CWZ: 7 of 10 slides are missing: patient_009_node_1, ")
    assert "LPON: 9 of 10 slides are missing" in lines[8]
    assert lines[9].startswith("LPON: 10 of 10 outlines are missing")
    assert "https://" in lines[-1]
    for patient, node in camelyon17.ANNOTATED:
        name = f"patient_{patient:03d}_node_{node}"
        (tmp_path / "CAMELYON17/images" / f"{name}.tif").write_bytes(b"")
        (tmp_path / "CAMELYON17/annotations" / f"{name}.xml").write_text(XML)
    assert camelyon17.report_missing(tmp_path) == []


class TestOutlines:
    def test_groups_and_order(self, tmp_path):
        (tmp_path / "a.xml").write_text(XML)
        outlines = camelyon17.read_outlines(tmp_path / "a.xml")
        assert len(outlines.tumour) == len(outlines.normal) == 1
        assert outlines.tumour[0].tolist() == [[10, 20.25], [110.5, 20], [110, 80], [10, 90]]
        assert outlines.normal[0].tolist() == [[30, 30], [40, 30], [35, 40]]

    def test_groups_of_camelyon16(self, tmp_path):
        text = XML.replace('PartOfGroup="metastases"', 'PartOfGroup="_0"').replace('"normal"', '"_2"')
        (tmp_path / "a.xml").write_text(text)
        outlines = camelyon17.read_outlines(tmp_path / "a.xml")
        assert [len(outlines.tumour), len(outlines.normal)] == [1, 1]

    def test_nothing_drawn(self, tmp_path):
        (tmp_path / "a.xml").write_text("<ASAP_Annotations><Annotations/></ASAP_Annotations>")
        assert camelyon17.read_outlines(tmp_path / "a.xml") == ((), ())

    @pytest.mark.parametrize(
        ("old", "new", "parts"),
        [
            ("</Annotations>", "", ("damaged", "copy the file again")),
            (XML[60:], "", ("damaged",)),
            (
                '"metastases" Color',
                '"benign" Color',
                ("annotation 1", "'benign'", "metastases (tumour), normal (holes)"),
            ),
            ('X="110.5"', 'X="left"', ("annotation 1", "left")),
            ('X="110.5"', 'X="nan"', ("annotation 1", "no number")),
            ('X="110.5" ', "", ("annotation 1", "'X'")),
            ('<?xml version="1.0"?>', '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "b">]>', ("document type",)),
            ("Annotations>", "Others>", ("no element Annotations",)),
            ('<?xml version="1.0"?>', '<?xml version="1.0" encoding="klingon"?>', ("damaged",)),
        ],
    )
    def test_damaged(self, tmp_path, old, new, parts):
        assert old in XML
        (tmp_path / "a.xml").write_text(XML.replace(old, new))
        fails(lambda: camelyon17.read_outlines(tmp_path / "a.xml"), "a.xml: ", *parts)

    def test_no_file(self, tmp_path):
        fails(lambda: camelyon17.read_outlines(tmp_path / "a.xml"), "cannot be read")

    def test_corners_are_float64(self, tmp_path):
        (tmp_path / "a.xml").write_text(XML)
        assert camelyon17.read_outlines(tmp_path / "a.xml").tumour[0].dtype == np.float64
