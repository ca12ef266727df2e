from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from sklearn.model_selection import train_test_split

from dart_core.data.catalog import isic, mclass
from dart_core.data.datalist import Datalist
from dart_core.errors import InputError

AUTHORS = (
    "image_name,patient_id,sex,age_approx,diagnosis,benign_malignant,target,tfrecord,year,scale,fitzpatrick,mclassd"
)
ROWS = [
    "ISIC_0000001,-1,female,30.0,MEL,malignant,1,7,2017,0,1,0",
    "ISIC_0000002,-1,female,30.0,NV,benign,0,4.0,2017,0,-1,",
    "ISIC_0000003,-1,male,30.0,NV,benign,0,4,2017,0,2,1",
    "ISIC_0000004,-1,male,30.0,NV,benign,0,-1,2017,0,2,0",
    "ISIC_0050001,-1,male,45.0,NV,benign,0,3,2019,0,2,0",
    "ISIC_2637011,IP_7279968,male,45.0,unknown,benign,0,0,2020,0,6,0",
    "ISIC_0078703,IP_7279968,male,,unknown,benign,0,13,2020,0,3.0,0",
    *(f"ISIC_002{n:04d},-1,male,45.0,NV,benign,0,3,2018,0,2,0" for n in range(10)),
]
HEADER_2020 = "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target"
ROWS_2020 = [
    "ISIC_2637011,IP_7279968,male,45.0,head/neck,unknown,benign,0",
    "ISIC_0149568,IP_0962375,female,55.0,upper extremity,melanoma,malignant,1",
]
ROWS_2017 = ["ISIC_0000000,0.0,0.0", "ISIC_0000003,0.0,0.0", "ISIC_0000002,1.0,0.0", "ISIC_0000008,0.0,1.0"]


CLASSES_2019 = "MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK"
ROWS_2019 = [
    "ISIC_0000000,0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0",
    "ISIC_0000002_downsampled,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0",
    "ISIC_0000003_downsampled,0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0",
    "ISIC_0053453,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0,0.0",
]
METADATA_2019 = [
    "ISIC_0000000,55.0,anterior torso,,female",
    "ISIC_0053453,,head/neck,BCN_0003884,male",
]


def touch(folder: Path, names) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.jpg").touch()


def build_authors(root: Path, rows=ROWS, header=AUTHORS) -> Path:
    root.mkdir(exist_ok=True)
    (root / "isic_train_20-19-18-17.csv").write_text("\n".join([header, *rows]) + "\n")
    for year, folder in (("2020", "isic_20_train_256"), ("", "isic_19_train_256")):
        touch(root / folder, [row.split(",")[0] for row in rows if (row.split(",")[8] == "2020") == bool(year)])
    return root


def build_official(root: Path, folders=("ISIC_2020_Training_JPEG/train", "ISIC-2017_Training_Data")) -> Path:
    root.mkdir(exist_ok=True)
    (root / "ISIC_2020_Training_GroundTruth.csv").write_text("\n".join([HEADER_2020, *ROWS_2020]) + "\n")
    (root / "ISIC-2017_Training_Part3_GroundTruth.csv").write_text(
        "\n".join(["image_id,melanoma,seborrheic_keratosis", *ROWS_2017]) + "\n"
    )
    for folder, rows in zip(folders, (ROWS_2020, ROWS_2017), strict=True):
        touch(root / folder, [row.split(",")[0] for row in rows])
    return root


def fails(root: Path, *parts: object) -> None:
    with pytest.raises(InputError) as error:
        isic.index(root)
    for part in parts:
        assert str(part) in str(error.value)
    assert "\n" not in str(error.value)


class TestAuthorsTable:
    def test_rows(self, tmp_path):
        datalist = isic.index(build_authors(tmp_path))
        train = datalist.select(split="train")
        assert [row.image.stem for row in train] == ["ISIC_0000001", "ISIC_0000002", "ISIC_2637011", "ISIC_0078703"]
        assert [row.site for row in train] == ["isic2017", "isic2017", "isic2020", "isic2020"]
        assert [row.subject for row in train] == ["ISIC_0000001", "ISIC_0000002", "IP_7279968", "IP_7279968"]
        assert [row.labels["label"] for row in train] == ["1", "0", "0", "0"]
        # A type of -1 is no seventh class: it is unknown.
        assert [row.labels.get("fitzpatrick", "") for row in train] == ["1", "", "6", "3"]
        assert [row.labels["fold"] for row in train] == ["2", "4", "2", "1"]  # 7 mod 5, 4 mod 5; table of 2020: 0, 13
        assert train[0].image == tmp_path / "isic_19_train_256/ISIC_0000001.jpg"
        assert train[2].image == tmp_path / "isic_20_train_256/ISIC_2637011.jpg"
        assert train[0].labels["diagnosis"] == "MEL"
        assert (train[2].labels["sex"], train[2].labels["age"]) == ("male", "45.0")
        assert "age" not in train[3].labels
        assert len(Datalist.read(datalist.write(tmp_path / "list.csv"), required=("image", "label", "split"))) == 8

    @pytest.mark.parametrize("seed", [0, 1, 5])
    def test_the_third_of_2018_is_that_of_the_authors_code(self, tmp_path, seed):
        names = [row.split(",")[0] for row in ROWS if ",2018," in row]
        drawn = train_test_split(names, test_size=0.33, random_state=seed, shuffle=True)[1]
        datalist = isic.index(build_authors(tmp_path), seed)
        assert {row.image.stem for row in datalist.select(split="val")} == set(drawn)
        assert {row.site for row in datalist.select(split="val")} == {"isic2018"}
        assert all("fold" not in row.labels for row in datalist.select(split="val"))

    def test_folds_of_2020(self):
        assert Counter(isic.FOLDS_2020.values()) == dict.fromkeys(range(5), 3)
        assert sorted(isic.FOLDS_2020) == list(range(15))
        assert [isic.FOLDS_2020[k] for k in (5, 10, 12, 8, 14)] == [0, 1, 2, 3, 4]

    def test_folders_of_the_authors_code(self, tmp_path):
        build_authors(tmp_path / "x")
        (tmp_path / "csv").mkdir()
        (tmp_path / "x/isic_train_20-19-18-17.csv").rename(tmp_path / "csv/isic_train_20-19-18-17.csv")
        (tmp_path / "x").rename(tmp_path / "images")
        assert len(isic.index(tmp_path)) == 8

    @pytest.mark.parametrize(
        ("old", "new", "column"),
        [
            ("1,7,2017", "2,7,2017", "target"),
            ("1,7,2017", "1,x,2017", "tfrecord"),
            ("1,7,2017", "1,7.5,2017", "tfrecord"),
            ("1,7,2017", "1,7,2016", "year"),
            ("2017,0,1,0", "2017,0,7,0", "fitzpatrick"),
            ("ISIC_0000001", "", "image_name"),
            ("2017,0,1,0", "2017,0,1,no", "mclassd"),
        ],
    )
    def test_a_cell_that_does_not_fit(self, tmp_path, old, new, column):
        build_authors(tmp_path)
        table = tmp_path / "isic_train_20-19-18-17.csv"
        table.write_text(table.read_text().replace(old, new))
        fails(tmp_path, f"isic_train_20-19-18-17.csv, row 2, column {column}")

    @pytest.mark.parametrize(
        ("cell", "marked"), [("1", "1"), ("1.0", "1"), ("0", "0"), ("0.0", "0"), ("-1", None), ("", None)]
    )
    def test_ink_on_the_skin(self, tmp_path, cell, marked):
        build_authors(tmp_path, [f"{ROWS[5]},{cell}"], f"{AUTHORS},marked")
        (row,) = isic.index(tmp_path)
        assert row.labels.get("marked") == marked

    def test_tables_are_found_where_they_are_looked_for(self, tmp_path):
        build_authors(tmp_path / "authors")
        build_official(tmp_path / "owners")
        assert [[name for name in isic.TABLES if (root / name).is_file()] for root in sorted(tmp_path.iterdir())] == [
            ["isic_train_20-19-18-17.csv"],
            ["ISIC_2020_Training_GroundTruth.csv", "ISIC-2017_Training_Part3_GroundTruth.csv"],
        ]

    def test_a_tfrecord_that_2020_lacks(self, tmp_path):
        fails(build_authors(tmp_path, [ROWS[5].replace(",0,2020", ",15,2020")]), "row 2, column tfrecord", "0 to 14")

    def test_a_missing_column(self, tmp_path):
        fails(build_authors(tmp_path, header=AUTHORS.replace("mclassd", "mclass")), "no column 'mclassd'")


class TestOwnersTables:
    @pytest.mark.parametrize(
        "folders",
        [
            ("ISIC_2020_Training_JPEG/train", "ISIC-2017_Training_Data"),
            ("jpeg-melanoma-256x256/train", "jpeg-isic2019-256x256/train"),
            ("train", "isic_19_train_256"),
        ],
    )
    def test_rows(self, tmp_path, folders):
        datalist = isic.index(build_official(tmp_path, folders))
        assert [(row.site, row.image.relative_to(tmp_path).as_posix(), row.labels["label"]) for row in datalist] == [
            ("isic2020", f"{folders[0]}/ISIC_2637011.jpg", "0"),
            ("isic2020", f"{folders[0]}/ISIC_0149568.jpg", "1"),
            ("isic2017", f"{folders[1]}/ISIC_0000000.jpg", "0"),
            ("isic2017", f"{folders[1]}/ISIC_0000002.jpg", "1"),
            ("isic2017", f"{folders[1]}/ISIC_0000008.jpg", "0"),
        ]
        assert "ISIC_0000003" in mclass.dermoscopic_names()  # which is why it is not there
        assert datalist.splits == ("train",)
        assert [row.subject for row in datalist][:3] == ["IP_7279968", "IP_0962375", "ISIC_0000000"]
        assert all("fold" not in row.labels for row in datalist)

    def test_the_table_of_kaggle(self, tmp_path):
        lines = [f"{HEADER_2020},tfrecord", f"{ROWS_2020[0]},-1", f"{ROWS_2020[1]},3"]
        (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
        touch(tmp_path / "train", [row.split(",")[0] for row in ROWS_2020])
        datalist = isic.index(tmp_path)
        assert [(row.image.stem, row.labels["fold"]) for row in datalist] == [("ISIC_0149568", "3")]

    def test_what_is_missing(self, tmp_path):
        build_official(tmp_path)
        assert isic.report_missing(tmp_path) == []
        (tmp_path / "ISIC-2017_Training_Data/ISIC_0000008.jpg").unlink()
        (tmp_path / "ISIC_2020_Training_GroundTruth.csv").unlink()
        lines = isic.report_missing(tmp_path)
        assert lines[:2] == [
            "ISIC 2017: 1 of 3 pictures are missing, the first is ISIC_0000008.jpg",
            "ISIC 2020: there is no table",
        ]
        assert "https://" in lines[2]
        assert [row.image.stem for row in isic.index(tmp_path)] == ["ISIC_0000000", "ISIC_0000002"]

    def test_mistakes(self, tmp_path):
        fails(tmp_path / "no", "missing", "Rotemberg")
        fails(tmp_path, "not ISIC", "train.csv")
        build_official(tmp_path)
        for picture in tmp_path.rglob("*.jpg"):
            picture.unlink()
        fails(tmp_path, "none of the pictures")
        table = tmp_path / "ISIC-2017_Training_Part3_GroundTruth.csv"
        table.write_text(table.read_text().replace("ISIC_0000002,1.0", "ISIC_0000002,maybe"))
        fails(tmp_path, "row 4, column melanoma", "'maybe'")


def build_2019(root: Path, folder="ISIC_2019_Training_Input", metadata=True) -> Path:
    root.mkdir(exist_ok=True)
    (root / "ISIC_2019_Training_GroundTruth.csv").write_text("\n".join([f"image,{CLASSES_2019}", *ROWS_2019]) + "\n")
    if metadata:
        header = "image,age_approx,anatom_site_general,lesion_id,sex"
        (root / "ISIC_2019_Training_Metadata.csv").write_text("\n".join([header, *METADATA_2019]) + "\n")
    touch(root / folder, [row.split(",")[0] for row in ROWS_2019])
    return root


class Test2019:
    @pytest.mark.parametrize(
        "folder", ["ISIC_2019_Training_Input", "ISIC_2019_Training_Input/ISIC_2019_Training_Input"]
    )
    def test_rows(self, tmp_path, folder):
        datalist = isic.index(build_2019(tmp_path, folder))
        # ISIC_0000003 is a picture of MClass-D.
        assert [(row.image.relative_to(tmp_path).as_posix(), row.labels["label"]) for row in datalist] == [
            (f"{folder}/ISIC_0000000.jpg", "0"),
            (f"{folder}/ISIC_0000002_downsampled.jpg", "1"),
            (f"{folder}/ISIC_0053453.jpg", "0"),
        ]
        assert [row.labels["diagnosis"] for row in datalist] == ["NV", "MEL", "SCC"]
        # Pictures of one lesion belong together.
        assert [row.subject for row in datalist] == ["ISIC_0000000", "ISIC_0000002_downsampled", "BCN_0003884"]
        assert {(row.site, row.split) for row in datalist} == {("isic2019", "train")}
        assert (datalist[0].labels["sex"], datalist[0].labels["age"]) == ("female", "55.0")
        assert "age" not in datalist[2].labels
        assert isic.report_missing(tmp_path) == []

    def test_metadata_may_be_missing_and_pictures_too(self, tmp_path):
        build_2019(tmp_path, metadata=False)
        assert [row.subject for row in isic.index(tmp_path)][-1] == "ISIC_0053453"
        (tmp_path / "ISIC_2019_Training_Input/ISIC_0053453.jpg").unlink()
        assert len(isic.index(tmp_path)) == 2
        line, origin = isic.report_missing(tmp_path)
        assert line == "ISIC 2019: 1 of 3 pictures are missing, the first is ISIC_0053453.jpg"
        assert "https://" in origin

    @pytest.mark.parametrize("build", [build_authors, build_official])
    def test_it_does_not_join_the_set_of_the_paper(self, tmp_path, build):
        before = isic.index(build(tmp_path))
        assert [row.image for row in isic.index(build_2019(tmp_path))] == [row.image for row in before]

    @pytest.mark.parametrize(
        ("old", "new", "parts"),
        [
            ("ISIC_0000000,0.0,1.0", "ISIC_0000000,1.0,1.0", ("row 2: 2 of the columns MEL, NV", "one diagnosis")),
            ("ISIC_0000000,0.0,1.0", "ISIC_0000000,0.0,0.0", ("row 2: 0 of the columns MEL, NV",)),
            ("ISIC_0000000,0.0", "ISIC_0000000,0.5", ("row 2, column MEL", "'0.5'")),
            ("ISIC_0000000,", ",", ("row 2, column image: the cell is empty",)),
            ("image,MEL", "image,MELANOMA", ("no column 'MEL'",)),
        ],
    )
    def test_mistakes(self, tmp_path, old, new, parts):
        table = build_2019(tmp_path) / "ISIC_2019_Training_GroundTruth.csv"
        table.write_text(table.read_text().replace(old, new))
        fails(tmp_path, "ISIC_2019_Training_GroundTruth.csv", *parts)
