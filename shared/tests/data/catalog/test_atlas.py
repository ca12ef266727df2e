from __future__ import annotations

from pathlib import Path

import pytest

from dart_core.data.catalog import atlas
from dart_core.data.datalist import Datalist
from dart_core.errors import InputError, SettingError

HEADER = "case_num,diagnosis,seven_point_score,sex,clinic,derm,case_id,notes"
ROWS = [
    "1,basal cell carcinoma,0,female,NEL/NEL025.JPG,NEL/Nel026.jpg,,",
    "2,clark nevus,1,male,NEL/Nel032.jpg,NEL/Nel033.jpg,,",
    "3,melanoma (in situ),3,male,NEL/NEL034.JPG,NEL/Nel035.jpg,,",
    "4,melanoma (0.76 to 1.5 mm),3,female,Abl/Abl01.jpg,Abl/Abl02.jpg,,",
    "5,melanoma metastasis,3,female,Abl/Abl03.jpg,Abl/Abl04.jpg,,",
    "6,melanosis,3,female,Abl/Abl05.jpg,Abl/Abl06.jpg,,",
    "7,melanoma,3,female,Abl/Abl07.jpg,Abl/Abl08.jpg,,",
]


def build(root: Path, rows=ROWS, header=HEADER) -> Path:
    (root / "meta").mkdir(parents=True)
    (root / "meta/meta.csv").write_text("\n".join([header, *rows]) + "\n")
    for row in rows:
        for name in row.split(",")[4:6]:
            (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "images" / name).touch()
    return root


def build_prepared(root: Path) -> Path:
    (root / "csv").mkdir(parents=True)
    (root / "images/atlas_256").mkdir(parents=True)
    header = f"Unnamed: 0,{HEADER},target,marked"
    rows = ["0,1,BCC,0,female,NEL025.JPG,Nel026.jpg,,,0,0", "1,1011,melanoma,2,female,Adl388.jpg,Adl389.jpg,,,1,0"]
    (root / "csv/atlas_processed.csv").write_text("\n".join([header, *rows]) + "\n")
    for name in ("nel025.jpg", "Nel026.jpg", "Adl388.jpg", "Adl389.jpg"):
        (root / "images/atlas_256" / name).touch()
    return root


def fails(root: Path, *parts: object) -> None:
    with pytest.raises(InputError) as error:
        atlas.index(root)
    for part in parts:
        assert str(part) in str(error.value)
    assert "\n" not in str(error.value)


class TestIndex:
    @pytest.mark.parametrize("folder", [".", "release_v0"])
    def test_rows(self, tmp_path, folder):
        build(tmp_path / folder)
        datalist = atlas.index(tmp_path)
        assert [row.subject for row in datalist] == [f"case{number}" for number in range(1, 8)]
        # Melanoma in every stage is one; melanosis is none.
        assert [row.labels["label"] for row in datalist] == ["0", "0", "1", "1", "1", "0", "1"]
        assert datalist[0].labels == {"label": "0", "diagnosis": "basal cell carcinoma", "sex": "female"}
        assert datalist[0].image == tmp_path / folder / "images/NEL/Nel026.jpg"
        assert datalist.sites == ("atlas-derm",)
        assert datalist.splits == ("test",)
        assert len(Datalist.read(datalist.write(tmp_path / "list.csv"), required=("image", "label", "split"))) == 7

    def test_the_other_view(self, tmp_path):
        datalist = atlas.index(build(tmp_path), "clinic")
        assert datalist[0].image == tmp_path / "images/NEL/NEL025.JPG"
        assert datalist.sites == ("atlas-clinic",)
        with pytest.raises(SettingError, match=r"'macro'.*derm or clinic"):
            atlas.index(tmp_path, "macro")

    @pytest.mark.parametrize("view", ["derm", "clinic"])
    def test_the_authors_table(self, tmp_path, view):
        datalist = atlas.index(build_prepared(tmp_path), view)
        assert [(row.subject, row.labels["label"]) for row in datalist] == [("case1", "0"), ("case1011", "1")]
        names = {"derm": ["Nel026.jpg", "Adl389.jpg"], "clinic": ["nel025.jpg", "Adl388.jpg"]}
        assert [row.image.name for row in datalist] == names[view]

    def test_what_is_missing(self, tmp_path, monkeypatch):
        build(tmp_path)
        (tmp_path / "images/NEL/Nel033.jpg").unlink()
        assert [row.subject for row in atlas.index(tmp_path)] == ["case1", *(f"case{n}" for n in range(3, 8))]
        lines = atlas.report_missing(tmp_path)
        assert lines[0] == "Interactive Atlas (derm): 1 of 7 pictures are missing, the first is Nel033.jpg"
        assert lines[1] == "the table has 7 of 1011 cases"
        assert "https://" in lines[2]
        monkeypatch.setattr(atlas, "CASES", 7)
        assert atlas.report_missing(tmp_path, "clinic") == []


class TestMistakes:
    def test_folders(self, tmp_path):
        fails(tmp_path / "no", "missing", "Kawahara")
        fails(tmp_path, "not the Interactive Atlas", "meta/meta.csv")

    def test_no_picture(self, tmp_path):
        build(tmp_path)
        for picture in tmp_path.rglob("*.jpg"):
            picture.unlink()
        fails(tmp_path, "none of the pictures")

    @pytest.mark.parametrize(
        ("old", "new", "column"),
        [("1,basal", ",basal", "case_num"), ("clark nevus", "", "diagnosis"), ("NEL/Nel033.jpg", "", "derm")],
    )
    def test_empty_cell(self, tmp_path, old, new, column):
        build(tmp_path)
        table = tmp_path / "meta/meta.csv"
        table.write_text(table.read_text().replace(old, new))
        fails(tmp_path, f"column {column}", "empty")

    def test_a_missing_column(self, tmp_path):
        fails(build(tmp_path, header=HEADER.replace("derm", "dermoscopy")), "no column 'derm'")

    def test_a_target_that_does_not_fit(self, tmp_path):
        table = build_prepared(tmp_path) / "csv/atlas_processed.csv"
        table.write_text(table.read_text().replace(",1,0", ",yes,0"))
        fails(tmp_path, "row 3, column target", "'yes'")
