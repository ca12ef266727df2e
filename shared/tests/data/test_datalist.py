from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dart_core.data.datalist import Datalist, Problem, Row, check, problems
from dart_core.errors import InputError, OutputError


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def fails(path: Path, *parts: object, **options: object) -> str:
    with pytest.raises(InputError) as error:
        Datalist.read(path, **options)
    text = str(error.value)
    assert "\n" not in text
    for part in (path, *parts):
        assert str(part) in text
    return text


FULL = """image,mask,label,subject,site,split,boxes
a.nii.gz,m/a.nii.gz,1,s1,one,train,a.txt
b.nii.gz,m/b.nii.gz,0,s1,one,train,b.txt
../c.nii.gz,/abs/c.nii.gz,1,s2,two,test,c.txt
"""


class TestCsv:
    @pytest.mark.parametrize("name", ["Split", "SITE", "Subject"])
    def test_a_column_in_capitals_is_no_label(self, name, tmp_path):
        text = FULL.replace(name.lower(), name, 1)
        fails(write(tmp_path / "list.csv", text), "row 1", repr(name), f"rename it {name.lower()!r}")

    def test_every_column(self, tmp_path):
        path = write(tmp_path / "list.csv", FULL)
        datalist = Datalist.read(path)
        assert len(datalist) == 3
        assert datalist[0] == Row(
            image=tmp_path / "a.nii.gz",
            mask=tmp_path / "m" / "a.nii.gz",
            subject="s1",
            site="one",
            split="train",
            labels={"label": "1", "boxes": "a.txt"},
            line=2,
            source=path,
        )
        assert datalist[2].image == tmp_path / "../c.nii.gz"
        assert datalist[2].mask == Path("/abs/c.nii.gz")
        assert datalist[2].line == 4
        assert datalist[2].where("mask") == f"{path}, row 4, column mask"
        assert datalist.sites == ("one", "two")
        assert datalist.splits == ("train", "test")
        assert datalist.subjects == ("s1", "s2")
        assert [row.line for row in datalist[1:]] == [3, 4]
        assert isinstance(datalist[1:], Datalist)

    def test_image_alone_is_enough(self, tmp_path):
        row = Datalist.read(write(tmp_path / "list.csv", "image\na.png\n"))[0]
        assert (row.mask, row.subject, row.site, row.split, row.labels) == (None, "", "", "", {})

    def test_blank_rows_spaces_quotes_and_windows_line_ends(self, tmp_path):
        path = write(tmp_path / "list.csv", '\r\nimage , site\r\n\r\n"a, b.png",one\r\n,\r\nc.png, two \r\n\r\n')
        datalist = Datalist.read(path)
        assert [row.image.name for row in datalist] == ["a, b.png", "c.png"]
        assert datalist.sites == ("one", "two")
        assert [row.line for row in datalist] == [4, 6]

    def test_optional_cells_may_be_empty_and_required_ones_not(self, tmp_path):
        path = write(tmp_path / "list.csv", "image,mask,finding\na,ma,1\nb,,\n")
        rows = Datalist.read(path)
        assert rows[1].mask is None
        assert rows[1].labels == {}
        fails(path, "row 3, column mask", "empty", required=("image", "mask"))
        fails(path, "row 3, column finding", "empty", required=("finding",))

    @pytest.mark.parametrize("column", ["image", "subject", "site", "split"])
    def test_empty_cell(self, tmp_path, column):
        cells = {"image": "b", "subject": "s", "site": "t", "split": "val", column: " "}
        path = write(tmp_path / "list.csv", "image,subject,site,split\na,r,t,val\n" + ",".join(cells.values()) + "\n")
        fails(path, f"row 3, column {column}", "empty", "fill it in")

    def test_not_there(self, tmp_path):
        fails(tmp_path / "no.csv", "not found")

    @pytest.mark.parametrize("content", ["", "\n \n"])
    def test_empty_file(self, tmp_path, content):
        fails(write(tmp_path / "list.csv", content), "empty")

    def test_header_alone(self, tmp_path):
        fails(write(tmp_path / "list.csv", "image,mask\n"), "no rows")

    def test_missing_column_names_the_nearest(self, tmp_path):
        fails(write(tmp_path / "list.csv", "Images,mask\na,b\n"), "row 1", "'image'", "rename the column 'Images'")
        fails(write(tmp_path / "list.csv", "x,y\na,b\n"), "'image'", "there: x, y", "add it")
        path = write(tmp_path / "list.csv", "image,masks\na,b\n")
        fails(path, "'mask'", "rename the column 'masks'", required=("image", "mask"))

    @pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs")])
    def test_wrong_separator(self, tmp_path, separator, name):
        text = FULL.replace(",", separator)
        fails(write(tmp_path / "list.csv", text), name, "commas")
        mixed = "image,mask\n" + f"a{separator}b\n"
        fails(write(tmp_path / "list.csv", mixed), "row 2", "commas")

    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
    def test_byte_order_mark(self, tmp_path, encoding):
        fails(write(tmp_path / "list.csv", FULL.encode(encoding)), "byte-order mark", "plain UTF-8")

    def test_not_utf8(self, tmp_path):
        fails(write(tmp_path / "list.csv", "image\na.png\nMüller.png\n".encode("latin-1")), "row 3", "0xfc", "UTF-8")

    def test_utf8_names(self, tmp_path):
        assert Datalist.read(write(tmp_path / "list.csv", "image\nMüller.png\n"))[0].image.name == "Müller.png"

    def test_binary(self, tmp_path):
        fails(write(tmp_path / "list.csv", b"image\na\x00b\n"), "row 2", "no text file")

    def test_ragged_row(self, tmp_path):
        fails(write(tmp_path / "list.csv", "image,mask\na,b\nc\n"), "row 3: 1 cells", "2 columns")
        fails(write(tmp_path / "list.csv", "image,mask\na,b,c\n"), "row 2: 3 cells", "quotes")

    def test_open_quote(self, tmp_path):
        fails(write(tmp_path / "list.csv", 'image,mask\n"a,b\n'), "row", "quotes")

    def test_header_mistakes(self, tmp_path):
        fails(write(tmp_path / "list.csv", "image,,site\na,b,c\n"), "column 2 has no name")
        fails(write(tmp_path / "list.csv", "image,site,site\na,b,c\n"), "'site' is there twice")

    def test_duplicate_row_names_both(self, tmp_path):
        path = write(tmp_path / "list.csv", "image\na.png\nb.png\n./c/../a.png\n")
        fails(path, "row 4, column image", "row 2", "remove")

    def test_frames_of_one_file(self, tmp_path):
        path = write(tmp_path / "list.csv", "image,frame\na.nii,0\na.nii,9\nb.nii,0\n")
        assert [row.labels["frame"] for row in Datalist.read(path)] == ["0", "9", "0"]
        path = write(tmp_path / "list.csv", "image,frame\na.nii,0\na.nii,9\na.nii,0\n")
        fails(path, "row 4, column image", "frame 0 of the image a.nii", "row 2")

    @pytest.mark.parametrize(
        ("split", "nearest"), [("training", "train"), ("validation", "val"), ("Test", "test"), ("tran", "train")]
    )
    def test_unknown_split(self, tmp_path, split, nearest):
        path = write(tmp_path / "list.csv", f"image,split\na,train\nb,{split}\n")
        fails(path, "row 3, column split", repr(split), f"did you mean {nearest!r}")

    def test_unknown_split_that_resembles_nothing(self, tmp_path):
        assert "did you mean" not in fails(write(tmp_path / "list.csv", "image,split\na,3\n"), "train, val or test")

    def test_subject_in_two_splits(self, tmp_path):
        path = write(tmp_path / "list.csv", "image,subject,split\na,s1,train\nb,s2,train\nc,s1,test\n")
        fails(path, "row 4, column split", "'s1'", "'test' here", "'train' in row 2")

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the super-user reads everything")
    def test_no_permission(self, tmp_path):
        path = write(tmp_path / "list.csv", FULL)
        path.chmod(0)
        fails(path, "cannot be read")


class TestSelect:
    def datalist(self) -> Datalist:
        rows = [
            Row(Path(f"{site}{subject}"), subject=f"{site}{subject}", site=site, split=split)
            for site, splits in (("one", ("train", "train", "test")), ("two", ("train", "val")))
            for subject, split in enumerate(splits)
        ]
        return Datalist(tuple(rows), Path("list.csv"))

    def test_choices_combine_and_keep_the_order(self):
        datalist = self.datalist()
        assert [row.subject for row in datalist.select(site="one")] == ["one0", "one1", "one2"]
        assert [row.subject for row in datalist.select(split="train")] == ["one0", "one1", "two0"]
        assert [row.subject for row in datalist.select(site="one", split="train")] == ["one0", "one1"]
        assert [row.subject for row in datalist.select(subjects=["two1", "one0"])] == ["one0", "two1"]
        assert list(datalist.select()) == list(datalist)
        assert datalist.select(site="one").source == Path("list.csv")

    @pytest.mark.parametrize(
        ("choice", "parts"),
        [
            ({"site": "three"}, ("'three'", "sites there: one, two")),
            ({"site": "tow"}, ("did you mean 'two'",)),
            ({"split": "dev"}, ("'dev'", "train, val, test")),
            ({"subjects": ["one0", "one9"]}, ("'one9'", "did you mean")),
            ({"site": "two", "split": "test"}, ("site 'two' and split 'test'", "two/train (1)", "one/test (1)")),
            ({"site": "two", "subjects": ["one0"]}, ("the chosen subjects",)),
            ({"subjects": []}, ("no row has the chosen subjects",)),
        ],
    )
    def test_nothing_to_choose(self, choice, parts):
        with pytest.raises(InputError) as error:
            self.datalist().select(**choice)
        for part in ("list.csv", *parts):
            assert part in str(error.value)
        assert "\n" not in str(error.value)

    def test_no_such_column(self):
        with pytest.raises(InputError, match="no column site; add it"):
            Datalist((Row(Path("a")),), Path("list.csv")).select(site="one")

    def test_many_subjects_are_not_all_listed(self):
        rows = tuple(Row(Path(f"{i}"), subject=f"s{i}") for i in range(500))
        with pytest.raises(InputError, match="and 480 more"):
            Datalist(rows).select(subjects=["x"])


class TestWithSplits:
    DATALIST = Datalist(
        tuple(
            Row(Path(f"{site}{subject}.nii"), subject=subject, site=site, split=split)
            for site, subject, split in (("a", "1", ""), ("a", "2", "test"), ("b", "1", "val"), ("b", "3", ""))
        ),
        Path("list.csv"),
    )

    def test_the_table_decides_by_site_and_subject(self):
        splits = {"a": {"train": ["1"], "val": ["7"]}, "b": {"test": ["3", "1"]}}
        datalist = self.DATALIST.with_splits(splits)
        assert [row.split for row in datalist] == ["train", "", "test", "test"]
        assert [row.image for row in datalist] == [row.image for row in self.DATALIST]
        assert self.DATALIST[1].split == "test"

    def test_mistakes(self):
        with pytest.raises(InputError, match=r"list.csv: unknown split 'training'"):
            self.DATALIST.with_splits({"a": {"training": ["1"]}})
        with pytest.raises(InputError, match="none of its subjects"):
            self.DATALIST.with_splits({"c": {"train": ["1"]}})


class TestWrite:
    def test_paths_become_relative_to_the_new_place(self, tmp_path):
        source = write(tmp_path / "list.csv", FULL)
        read = Datalist.read(source)
        written = read.write(tmp_path / "deep" / "er" / "new.csv")
        assert written.read_text().splitlines()[1] == "../../a.nii.gz,../../m/a.nii.gz,s1,one,train,1,a.txt"
        again = Datalist.read(written)
        for old, new in zip(read, again, strict=True):
            assert os.path.abspath(new.image) == os.path.abspath(old.image)
            assert os.path.abspath(new.mask) == os.path.abspath(old.mask)
            assert (new.subject, new.site, new.split, new.labels) == (old.subject, old.site, old.split, old.labels)

    def test_through_a_linked_folder(self, tmp_path):
        (tmp_path / "far" / "away").mkdir(parents=True)
        (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
        write(tmp_path / "a.png", "picture")
        written = Datalist((Row(tmp_path / "a.png"),)).write(tmp_path / "link" / "list.csv")
        assert Datalist.read(written)[0].image.read_text() == "picture"

    def test_columns_without_values_are_left_out(self, tmp_path):
        path = Datalist((Row(tmp_path / "a"), Row(tmp_path / "b", labels={"x": "1"}))).write(tmp_path / "l.csv")
        assert path.read_text() == "image,x\na,\nb,1\n"

    word = st.text(st.characters(blacklist_categories=("C", "Z")), min_size=1, max_size=8).filter(
        lambda text: text == text.strip()
    )

    @given(
        names=st.lists(
            word.filter(lambda t: "/" not in t and t not in (".", "..")), min_size=1, max_size=5, unique=True
        ),
        site=word,
        label=word,
    )
    @settings(deadline=None, max_examples=50)
    def test_any_text_survives(self, tmp_path_factory, names, site, label):
        folder = tmp_path_factory.getbasetemp()
        rows = tuple(
            Row(folder / name, site=site, subject=name, split="val", labels={"label": label}) for name in names
        )
        again = Datalist.read(Datalist(rows).write(folder / "survives.csv"))
        assert [(row.image.name, row.site, row.subject, row.labels) for row in again] == [
            (name, site, name, {"label": label}) for name in names
        ]

    def test_full_disk(self, tmp_path, file_size_limit):
        path = write(tmp_path / "list.csv", "old")
        rows = tuple(Row(tmp_path / f"{i:05d}") for i in range(5000))
        with file_size_limit(4096), pytest.raises(OutputError, match="disk is full"):
            Datalist(rows).write(path)
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]


class TestDecathlon:
    def test_a_folder_for_every_subject(self, tmp_path):
        content = {
            "training": [{"image": f"./p{number}/t1.nii.gz", "label": f"p{number}/seg.nii.gz"} for number in (1, 2)],
            "validation": [{"image": "p3/t1.nii.gz"}, {"image": "alone.nii.gz"}],
        }
        path = write(tmp_path / "dataset.json", json.dumps(content))
        assert Datalist.read(path).subjects == ("p1_t1", "p2_t1", "p3_t1", "alone")

    def dataset(self, folder: Path, **content: object) -> Path:
        return write(folder / "dataset.json", json.dumps(content))

    def test_training_validation_and_test(self, tmp_path):
        path = self.dataset(
            tmp_path,
            training=[{"image": "./imagesTr/a_1.nii.gz", "label": "./labelsTr/a_1.nii.gz"}],
            validation=[{"image": ["imagesTr/a_2.nii.gz"], "label": "labelsTr/a_2.nii.gz", "site": "one", "age": 50}],
            test=["./imagesTs/a_3.nii.gz"],
        )
        for given_path in (path, tmp_path):
            rows = Datalist.read(given_path, required=("image", "mask"))
            assert [row.split for row in rows] == ["train", "val", "test"]
            assert [row.subject for row in rows] == ["a_1", "a_2", "a_3"]
            assert rows[0].image == tmp_path / "imagesTr" / "a_1.nii.gz"
            assert rows[0].mask == tmp_path / "labelsTr" / "a_1.nii.gz"
            assert (rows[1].site, rows[1].labels) == ("one", {"age": "50"})
            assert rows[2].mask is None

    def test_classification_labels_stay_labels(self, tmp_path):
        path = self.dataset(tmp_path, training=[{"image": "a.png", "label": 3}, {"image": "b.png", "label": "benign"}])
        rows = Datalist.read(path, required=("image", "label"))
        assert [row.labels for row in rows] == [{"label": "3"}, {"label": "benign"}]
        assert rows[0].mask is None

    def test_missing_mask(self, tmp_path):
        path = self.dataset(tmp_path, training=[{"image": "a.nii", "label": "b.nii"}, {"image": "c.nii"}])
        fails(path, "row 2", "'mask'", required=("image", "mask"))

    def test_broken_json(self, tmp_path):
        fails(write(tmp_path / "dataset.json", '{"training": [\n{"image": }]}'), "row 2", "JSON")

    @pytest.mark.parametrize(
        ("content", "part"),
        [
            ([1], "object"),
            ({"name": "x"}, "'training'"),
            ({"training": {"image": "a"}}, "no list"),
            ({"training": [{"label": "a"}]}, "entry 1"),
            ({"training": [{"image": ["a", "b"]}]}, "entry 1: no single file"),
            ({"training": [7]}, "entry 1"),
            ({"training": []}, "no rows"),
        ],
    )
    def test_other_json(self, tmp_path, content, part):
        fails(write(tmp_path / "dataset.json", json.dumps(content)), part)

    def test_same_image_twice(self, tmp_path):
        fails(self.dataset(tmp_path, training=["a.nii"], test=["a.nii"]), "already in row 1")

    def test_folder_without_datalist(self, tmp_path):
        fails(tmp_path, "no dataset.json")


class TestNnUnet:
    def build(self, folder: Path, cases: tuple[str, ...] = ("CASE_1", "CASE_2"), **content: object) -> Path:
        for name in ("imagesTr", "labelsTr", "imagesTs"):
            (folder / name).mkdir()
        names = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz", **content}
        for case in cases:
            for channel in names["channel_names"]:
                (folder / "imagesTr" / f"{case}_{int(channel):04d}.nii.gz").touch()
            (folder / "labelsTr" / f"{case}.nii.gz").touch()
        (folder / "imagesTs" / "CASE_9_0000.nii.gz").touch()
        write(folder / "dataset.json", json.dumps(names))
        return folder

    def test_training_and_test_cases(self, tmp_path):
        rows = Datalist.read(self.build(tmp_path), required=("image", "mask"))
        assert [row.subject for row in rows] == ["CASE_1", "CASE_2", "CASE_9"]
        assert [row.split for row in rows] == ["train", "train", "test"]
        assert rows[0].image == tmp_path / "imagesTr" / "CASE_1_0000.nii.gz"
        assert rows[0].mask == tmp_path / "labelsTr" / "CASE_1.nii.gz"
        assert rows[2].mask is None

    def test_several_channels(self, tmp_path):
        folder = self.build(tmp_path, channel_names={"0": "T1", "1": "FLAIR"})
        with pytest.raises(InputError, match=r"several channels \(0 = T1, 1 = FLAIR\)"):
            Datalist.read(folder)
        for channel in ("FLAIR", 1, "1"):
            rows = Datalist.read(folder, channel=channel)
            assert [row.image.name for row in rows] == ["CASE_1_0001.nii.gz", "CASE_2_0001.nii.gz"]
        with pytest.raises(InputError, match="no channel 'T2'"):
            Datalist.read(folder, channel="T2")

    def test_image_without_label(self, tmp_path):
        folder = self.build(tmp_path)
        (folder / "labelsTr" / "CASE_2.nii.gz").unlink()
        with pytest.raises(InputError, match=r"CASE_2_0000.nii.gz: .*no label"):
            Datalist.read(folder)

    def test_label_without_image(self, tmp_path):
        folder = self.build(tmp_path)
        (folder / "imagesTr" / "CASE_2_0000.nii.gz").unlink()
        with pytest.raises(InputError, match=r"labelsTr.CASE_2.nii.gz: .*no image"):
            Datalist.read(folder)

    def test_no_images_folder(self, tmp_path):
        write(tmp_path / "dataset.json", json.dumps({"channel_names": {"0": "T1"}, "file_ending": ".nii.gz"}))
        with pytest.raises(InputError, match="imagesTr is missing"):
            Datalist.read(tmp_path)

    @pytest.mark.parametrize("content", [{"channel_names": ["T1"]}, {"file_ending": 3}, {"channel_names": {"x": "T1"}}])
    def test_other_header(self, tmp_path, content):
        names = {"channel_names": {"0": "T1"}, "file_ending": ".nii.gz", **content}
        (tmp_path / "imagesTr").mkdir()
        fails(write(tmp_path / "dataset.json", json.dumps(names)), "channel_names")


class TestProblems:
    def save(self, path: Path, array: np.ndarray) -> Path:
        nibabel.Nifti1Image(array, np.eye(4)).to_filename(path)
        return path

    def test_every_problem_is_listed_with_file_row_and_column(self, tmp_path):
        good = np.random.default_rng(0).uniform(1, 2, (8, 8, 4)).astype(np.float32)
        self.save(tmp_path / "good.nii", good)
        self.save(tmp_path / "mask.nii", (good > 1.5).astype(np.uint8))
        self.save(tmp_path / "othermask.nii", np.ones((8, 8, 5), np.uint8))
        self.save(tmp_path / "zero.nii", 0 * good)
        write(tmp_path / "broken.nii.gz", "not a scan")
        path = write(
            tmp_path / "list.csv",
            "image,mask\ngood.nii,mask.nii\nzero.nii,othermask.nii\nbroken.nii.gz,gone.nii\nfar/x.nii,\n",
        )
        found = problems(Datalist.read(path), require_mask=True)
        assert [(p.row.line, p.column) for p in found] == [
            (3, "image"),
            (4, "image"),
            (4, "mask"),
            (5, "image"),
            (5, "mask"),
        ]
        for problem in found:
            assert str(problem).startswith(f"{path}, row {problem.row.line}, column {problem.column}: ")
            assert "\n" not in str(problem)
        assert "zero" in str(found[0])
        assert "not found" in str(found[2])
        assert "no mask" in str(found[4])
        assert len(problems(Datalist.read(path))) == 4

    def test_a_mask_of_another_grid_and_a_small_scan(self, tmp_path):
        self.save(tmp_path / "a.nii", np.ones((8, 8, 4), np.float32))
        self.save(tmp_path / "m.nii", np.ones((8, 8, 5), np.uint8))
        datalist = Datalist.read(write(tmp_path / "list.csv", "image,mask\na.nii,m.nii\n"))
        (problem,) = problems(datalist)
        assert problem.column == "mask"
        assert "8 x 8 x 5" in str(problem)
        assert [p.column for p in problems(datalist, minimum_size=5)] == ["image"]
        assert problems(datalist[:0]) == []

    def test_check_uses_what_it_is_given(self):
        rows = (Row(Path("a"), line=2, source=Path("l.csv")), Row(Path("b"), line=3, source=Path("l.csv")))
        error = InputError("is bad")
        found = check(Datalist(rows), lambda row: [("boxes", error)] if row.image.name == "b" else [])
        assert found == [Problem(rows[1], "boxes", error)]
        assert str(found[0]) == "l.csv, row 3, column boxes: is bad"
