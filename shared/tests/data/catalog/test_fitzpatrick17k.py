from __future__ import annotations

import gzip
import os
from collections import Counter
from pathlib import Path

import pytest

from dart_core.data.catalog import fitzpatrick17k
from dart_core.data.datalist import Datalist
from dart_core.errors import InputError

OLD = "md5hash,fitzpatrick,label,nine_partition_label,three_partition_label,qc,url,url_alphanum"
NEW = OLD.replace("fitzpatrick,", "fitzpatrick_scale,fitzpatrick_centaur,")
SITE = "https://www.dermaamin.com/site/images"
ATLAS = "http://atlasdermatologico.com.br/img?imageId"
ROWS = [
    f"aa,1,melanoma,malignant melanoma,malignant,,{SITE}/m/melanoma1.jpg,wwwmelanoma1.jpg",
    f"bb,2,nevus,benign melanocyte,benign,1 Diagnostic,{ATLAS}=7,atlas7.jpg",
    f"cc,3,psoriasis,inflammatory,non-neoplastic,,{SITE}/p/psoriasis.jpg,wwwpsoriasis.jpg",
    f"dd,4,lipoma,benign dermal,benign,3 Wrongly labelled,{SITE}/l/lipoma.jpg,wwwlipoma.jpg",
    "ee,5,nevus,benign melanocyte,benign,,,",
    f"ff,-1,nevus,benign melanocyte,benign,,{SITE}/n/nevus.jpg,wwwnevus.jpg",
    f"gg,4,kaposi sarcoma,malignant dermal,malignant,,{ATLAS}=9,atlas9.jpg",
    f"hh,6,melanoma,malignant melanoma,malignant,4 Other,{SITE}/x/same.jpg,wwwxsame.jpg",
    f"ii,5,nevus,benign melanocyte,benign,,{SITE}/y/same.jpg,wwwysame.jpg",
]
KEPT = ["aa", "bb", "gg", "hh", "ii"]


def build(root: Path, pictures=tuple(f"{key}.jpg" for key in KEPT), rows=ROWS, header=OLD, folder="images") -> Path:
    (root / folder).mkdir(parents=True)
    if header == NEW:
        rows = [",".join([*(cells := row.split(","))[:2], "3", *cells[2:]]) for row in rows]
    (root / "fitzpatrick17k.csv").write_text("\n".join([header, *rows]) + "\n")
    for name in pictures:
        (root / folder / name).touch()
    return root / "fitzpatrick17k.csv"


def fails(*parts: object, **arguments: object) -> None:
    with pytest.raises(InputError) as error:
        fitzpatrick17k.index(**arguments)
    for part in parts:
        assert str(part) in str(error.value)
    assert "\n" not in str(error.value)


class TestIndex:
    @pytest.mark.parametrize("header", [OLD, NEW])
    def test_rows_labels_and_splits(self, tmp_path, header):
        table = build(tmp_path, header=header)
        datalist = fitzpatrick17k.index(table)
        assert [row.subject for row in datalist] == KEPT
        assert [row.image for row in datalist] == [tmp_path / "images" / f"{key}.jpg" for key in KEPT]
        assert [row.labels["label"] for row in datalist] == ["1", "0", "1", "1", "0"]
        assert [row.labels["fitzpatrick"] for row in datalist] == ["1", "2", "4", "6", "5"]
        assert [row.split for row in datalist] == ["train", "train", "test", "test", "test"]
        assert datalist[2].labels["diagnosis"] == "kaposi sarcoma"
        assert datalist[2].labels["partition"] == "malignant dermal"
        assert datalist.sites == ("fitzpatrick17k",)
        assert datalist[2].line == 8

    def test_every_row_with_a_skin_type(self, tmp_path):
        datalist = fitzpatrick17k.listed(build(tmp_path), neoplastic=False)
        assert [row.subject for row in datalist] == ["aa", "bb", "cc", "dd", "ee", "gg", "hh", "ii"]
        assert [row.labels["label"] for row in datalist] == ["1", "0", "0", "0", "0", "1", "1", "0"]
        assert datalist.splits == ()

    def test_names_of_the_authors_code(self, tmp_path):
        """Last part of the address; at Atlas Dermatologico the place among the rows that are kept (here 1 and 2)."""
        names = ("melanoma1.jpg", "atlas1.jpg", "atlas2.jpg", "same.jpg")
        datalist = fitzpatrick17k.index(build(tmp_path, names, folder="fitzpatrick17k_256"))
        # Two addresses end in same.jpg: whose picture that is, nobody can tell.
        assert [(row.subject, row.image.name) for row in datalist] == [
            ("aa", "melanoma1.jpg"),
            ("bb", "atlas1.jpg"),
            ("gg", "atlas2.jpg"),
        ]

    def test_names_of_the_column_url_alphanum(self, tmp_path):
        datalist = fitzpatrick17k.index(build(tmp_path, ("wwwysame.jpg", "wwwXsame.JPG")))
        assert [(row.subject, row.image.name) for row in datalist] == [("hh", "wwwXsame.JPG"), ("ii", "wwwysame.jpg")]

    def test_the_hash_comes_first(self, tmp_path):
        datalist = fitzpatrick17k.index(build(tmp_path, ("melanoma1.jpg", "aa.png")))
        assert [row.image.name for row in datalist] == ["aa.png"]

    def test_folders(self, tmp_path):
        build(tmp_path / "table", (), folder="elsewhere")
        (tmp_path / "pictures/part").mkdir(parents=True)
        (tmp_path / "pictures/aa.jpg").touch()
        datalist = fitzpatrick17k.index(tmp_path / "table", tmp_path / "pictures")
        assert [row.image for row in datalist] == [tmp_path / "pictures/aa.jpg"]

    def test_what_is_missing(self, tmp_path):
        table = build(tmp_path, ("aa.jpg", "gg.jpg"))
        lines = fitzpatrick17k.report_missing(table)
        assert lines[0] == "Fitzpatrick17k: 3 of 5 pictures are missing, the first is bb.jpg"
        assert "https://" in lines[1]
        for key in KEPT:
            (tmp_path / f"images/{key}.jpg").touch()
        assert fitzpatrick17k.report_missing(table) == []

    def test_the_list_can_be_written_and_read(self, tmp_path):
        datalist = fitzpatrick17k.index(build(tmp_path))
        again = Datalist.read(
            datalist.write(tmp_path / "list.csv"), required=("image", "label", "fitzpatrick", "split")
        )
        assert [(row.subject, row.labels) for row in again] == [(row.subject, row.labels) for row in datalist]


class TestMistakes:
    def test_no_table_and_no_folder(self, tmp_path):
        fails("table of Fitzpatrick17k is missing", "Groh", table=tmp_path / "no.csv")
        fails("table of Fitzpatrick17k is missing", "fitzpatrick17k.csv", table=tmp_path)
        table = build(tmp_path, (), folder="elsewhere")
        fails("no folder of pictures", "images", table=table)
        fails("pictures is missing", table=table, images=tmp_path / "no")

    def test_no_picture(self, tmp_path):
        fails("none of the pictures", table=build(tmp_path, ()))

    @pytest.mark.parametrize(
        ("old", "new", "column"),
        [
            (",malignant,,", ",cancer,,", "three_partition_label"),
            ("aa,1,", "aa,7,", "fitzpatrick"),
            ("aa,1,", ",1,", "md5hash"),
        ],
    )
    def test_a_cell_that_does_not_fit(self, tmp_path, old, new, column):
        table = build(tmp_path, rows=[ROWS[0].replace(old, new), *ROWS[1:]])
        fails(f"fitzpatrick17k.csv, row 2, column {column}", table=table)

    def test_columns_and_rows(self, tmp_path):
        fails("no column 'fitzpatrick_scale'", table=build(tmp_path / "a", header=OLD.replace("fitzpatrick", "skin")))
        fails("no column 'md5hash'", table=build(tmp_path / "b", header=OLD.replace("md5hash", "hash")))
        fails("no rows", table=build(tmp_path / "c", rows=[]))


@pytest.mark.real
@pytest.mark.skipif("DART_DATA" not in os.environ, reason="DART_DATA does not say where the real data sets are")
def test_counts_of_the_real_table(tmp_path):
    """skintone-debias, 5: counts of types, of the filter, and of the split by type; four kept rows have no address."""
    packed = Path(os.environ["DART_DATA"]) / "fitzpatrick17k_labels/fitzpatrick17k_labels.csv.gz"
    table = tmp_path / "fitzpatrick17k.csv"
    table.write_bytes(gzip.decompress(packed.read_bytes()))
    every = fitzpatrick17k.listed(table, neoplastic=False)
    assert Counter(row.labels["fitzpatrick"] for row in every) == {
        "1": 2947,
        "2": 4808,
        "3": 3308,
        "4": 2781,
        "5": 1533,
        "6": 635,
    }
    kept = fitzpatrick17k.listed(table)
    # This copy of the table has no addresses, so that the four rows without one cannot be told: 4,311 + 4.
    assert len(kept) == 4315
    pairs = Counter((row.labels["fitzpatrick"] in "34", row.split, row.labels["label"]) for row in kept)
    assert pairs[True, "test", "1"] == 757
    assert pairs[True, "test", "0"] == 1597 - 757
    assert pairs[False, "train", "1"] == 1195
