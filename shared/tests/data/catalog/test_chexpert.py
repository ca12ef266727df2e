from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dart_core.data.catalog import chexpert
from dart_core.data.datalist import Datalist
from dart_core.errors import InputError, SettingError

HEADER = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *chexpert.LABELS]
TRAIN = [
    ("CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0"),
    "CheXpert-v1.0-small/train/patient00002/study2/view1_frontal.jpg,Male,87,Frontal,PA,,,-1.0,1.0,,-1.0,-1.0,,,,,,1.0,",
    "CheXpert-v1.0-small/train/patient00002/study2/view2_lateral.jpg,Male,87,Lateral,,,,-1.0,1.0,,-1.0,-1.0,,,,,,1.0,",
]
VALID = ["CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP," + ",".join(["0.0"] * 14)]


def build(root: Path, name: str = "CheXpert-v1.0-small", train: list[str] = TRAIN) -> Path:
    folder = root / name
    for table, lines in (("train.csv", train), ("valid.csv", VALID)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / table).write_text("\n".join([",".join(HEADER), *lines]) + "\n")
        for line in lines:
            picture = folder / line.split(",")[0].split("/", 1)[1]
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.touch()
    return root


def fails(root: Path, *parts: object) -> None:
    with pytest.raises(InputError) as error:
        chexpert.index(root)
    for part in parts:
        assert str(part) in str(error.value)
    assert "\n" not in str(error.value)


class TestIndex:
    @pytest.mark.parametrize("name", ["CheXpert-v1.0-small", ".", "CheXpert-v1.0"])
    def test_rows(self, tmp_path, name):
        datalist = chexpert.index(build(tmp_path, name))
        assert [(row.subject, row.site, row.split) for row in datalist] == [
            ("patient00001", "chexpert", "train"),
            ("patient00002", "chexpert", "train"),
            ("patient00002", "chexpert", "train"),
            ("patient64541", "chexpert", "val"),
        ]
        assert datalist[0].image == tmp_path / name / "train/patient00001/study1/view1_frontal.jpg"
        assert [row.labels["view"] for row in datalist] == ["AP", "PA", "Lateral", "AP"]
        assert (datalist[0].labels["sex"], datalist[0].labels["age"]) == ("Female", "68")

    @pytest.mark.parametrize(("policy", "value"), [("ones", "1"), ("zeros", "0"), ("keep", "-1")])
    def test_uncertain_and_empty_cells(self, tmp_path, policy, value):
        rows = chexpert.index(build(tmp_path), policy)
        assert all(set(chexpert.LABELS) <= set(row.labels) for row in rows)
        first, second = rows[0].labels, rows[1].labels
        assert {name for name in chexpert.LABELS if first[name] == "1"} == {"No Finding", "Support Devices"}
        uncertain = {"Cardiomegaly", "Edema", "Consolidation"}
        assert {second[name] for name in uncertain} == {value}
        assert {name for name in chexpert.LABELS if second[name] == "1"} - uncertain == {"Lung Opacity", "Fracture"}
        assert {rows[3].labels[name] for name in chexpert.LABELS} == {"0"}

    def test_ones_is_what_is_done_unasked(self, tmp_path):
        build(tmp_path)
        assert [row.labels for row in chexpert.index(tmp_path)] == [r.labels for r in chexpert.index(tmp_path, "ones")]

    def test_only_pictures_that_are_there(self, tmp_path):
        build(tmp_path)
        (tmp_path / "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg").unlink()
        assert [row.subject for row in chexpert.index(tmp_path)] == ["patient00002", "patient00002", "patient64541"]
        assert chexpert.report_missing(tmp_path)[0] == (
            "train.csv: 1 of 3 pictures are missing, the first is train/patient00001/study1/view1_frontal.jpg"
        )
        (tmp_path / "CheXpert-v1.0-small/valid.csv").unlink()
        assert "valid.csv is missing" in chexpert.report_missing(tmp_path)
        assert "https://" in chexpert.report_missing(tmp_path)[-1]

    def test_nothing_is_missing(self, tmp_path):
        assert chexpert.report_missing(build(tmp_path)) == []

    def test_the_list_can_be_written_and_read(self, tmp_path):
        datalist = chexpert.index(build(tmp_path))
        again = Datalist.read(datalist.write(tmp_path / "list.csv"), required=("image", *chexpert.LABELS))
        assert [row.labels for row in again] == [row.labels for row in datalist]


class TestMistakes:
    def test_folders(self, tmp_path):
        fails(tmp_path / "no", "missing", "Irvin")
        fails(tmp_path, "not a CheXpert folder", "train.csv")

    def test_no_picture(self, tmp_path):
        build(tmp_path)
        for picture in tmp_path.rglob("*.jpg"):
            picture.unlink()
        fails(tmp_path, "none of the pictures")

    def test_another_value(self, tmp_path):
        fails(build(tmp_path, train=[TRAIN[0].replace("0.0", "0.5")]), "train.csv, row 2, column Pneumothorax", "'0.5'")

    def test_a_path_without_patient(self, tmp_path):
        fails(build(tmp_path, train=[TRAIN[0].replace("patient00001", "x")]), "row 2, column Path", "no patient")

    def test_a_missing_column(self, tmp_path):
        build(tmp_path)
        table = tmp_path / "CheXpert-v1.0-small/train.csv"
        table.write_text(table.read_text().replace("Edema", "Oedema"))
        fails(tmp_path, "no column 'Edema'")

    def test_unknown_policy(self, tmp_path):
        with pytest.raises(SettingError, match=r"'LSR'.*ones, zeros or keep"):
            chexpert.index(build(tmp_path), "LSR")


class TestChoices:
    @pytest.fixture
    def tree(self, tmp_path) -> Path:
        """Forty patients for training, one in valid.csv, two pictures in test.csv, whose table and paths are shorter."""
        train = [
            f"CheXpert-v1.0/train/patient{number:05d}/study1/view{k}_{side.lower()}.jpg,Male,60,{side},{ap},"
            + ",".join([""] * 14)
            for number in range(40)
            for k, (side, ap) in enumerate((("Frontal", "AP"), ("Lateral", "")), start=1)
        ]
        build(tmp_path, "CheXpert-v1.0", train)
        folder = tmp_path / "CheXpert-v1.0"
        paths = [
            "CheXpert-v1.0/test/patient64741/study1/view1_frontal.jpg",
            "test/patient64741/study1/view2_lateral.jpg",
        ]
        lines = [",".join(["Path", *chexpert.LABELS]), *(",".join([path, *["1.0"] * 14]) for path in paths)]
        (folder / "test.csv").write_text("\n".join(lines))
        (folder / "test/patient64741/study1").mkdir(parents=True)
        for path in paths:
            (folder / "test/patient64741/study1" / Path(path).name).touch()
        return tmp_path

    def test_valid_csv_as_the_test(self, tree):
        datalist = chexpert.index(tree, test="valid")
        assert {row.subject for row in datalist if row.split == "test"} == {"patient64541"}
        held_out = {row.subject for row in datalist if row.split == "val"}
        assert len(held_out) == 2  # a twentieth of forty
        assert sum(row.split == "val" for row in datalist) == 4  # with all their pictures
        draws = [
            frozenset(r.subject for r in chexpert.index(tree, test="valid", seed=k) if r.split == "val")
            for k in range(5)
        ]
        assert len(set(draws)) > 1

    def test_the_published_test_set(self, tree):
        datalist = chexpert.index(tree, test="test")
        assert [(row.subject, row.split) for row in datalist[-3:]] == [
            ("patient64541", "val"),
            ("patient64741", "test"),
            ("patient64741", "test"),
        ]
        assert {row.split for row in datalist[:-3]} == {"train"}
        assert datalist[-1].labels["view"] == "Lateral"
        assert datalist[-1].labels["Fracture"] == "1"
        assert len(chexpert.index(tree)) == len(datalist) - 2

    @pytest.mark.parametrize("test", ["none", "valid", "test"])
    def test_frontal_views_only(self, tree, test):
        datalist = chexpert.index(tree, test=test, frontal=True)
        assert len(datalist) == 41 + (test == "test")
        assert all("lateral" not in row.image.name for row in datalist)

    def test_the_competition_is_about_five_of_them(self):
        # benchmark-transformers 5 gives their places.
        assert [chexpert.LABELS.index(name) for name in chexpert.COMPETITION] == [8, 2, 6, 5, 10]

    def test_what_is_missing(self, tree):
        assert chexpert.report_missing(tree) == []
        (tree / "CheXpert-v1.0/test/patient64741/study1/view1_frontal.jpg").unlink()
        assert chexpert.report_missing(tree)[0].startswith("test.csv: 1 of 2 pictures are missing")

    def test_mistakes(self, tmp_path):
        build(tmp_path)
        with pytest.raises(InputError, match=r"test\.csv is missing"):
            chexpert.index(tmp_path, test="test")
        with pytest.raises(SettingError, match=r"no test 'valid\.csv'"):
            chexpert.index(tmp_path, test="valid.csv")


class TestUncertainLabels:
    CELLS = ((1.0, -1.0, np.nan), (0.0, -1.0, 1.0))

    @pytest.mark.parametrize(("policy", "value"), [("ones", 1.0), ("zeros", 0.0)])
    def test_fixed_values(self, policy, value):
        found = chexpert.draw_uncertain(self.CELLS, policy)
        assert np.array_equal(found, [[1.0, value, np.nan], [0.0, value, 1.0]], equal_nan=True)

    @pytest.mark.parametrize(("policy", "low", "high"), [("lsr-ones", 0.55, 0.85), ("lsr-zeros", 0.0, 0.3)])
    @pytest.mark.parametrize("generator", [torch.Generator().manual_seed(0), np.random.default_rng(0)], ids=type)
    def test_drawn_values(self, policy, low, high, generator):
        drawn = chexpert.draw_uncertain(np.full(20000, -1), policy, generator)
        assert low <= drawn.min()
        assert drawn.max() <= high
        # Mean and deviation of a uniform law; 20000 draws, so that five standard errors are 0.003 and less.
        assert drawn.mean() == pytest.approx((low + high) / 2, abs=0.0035)
        assert drawn.std() == pytest.approx((high - low) / np.sqrt(12), rel=0.02)

    def test_a_number_does_not_depend_on_the_other_labels(self):
        one, other = (
            chexpert.draw_uncertain([first, -1], "lsr-ones", np.random.default_rng(3)) for first in (-1.0, 0.0)
        )
        assert one[1] == other[1]
        assert one[1] != chexpert.draw_uncertain([-1, -1], "lsr-ones", np.random.default_rng(4))[1]

    def test_without_a_generator_the_numbers_are_pytorchs(self):
        torch.manual_seed(5)
        first = chexpert.draw_uncertain([-1], "lsr-ones")
        assert first != chexpert.draw_uncertain([-1], "lsr-ones")
        torch.manual_seed(5)
        assert first == chexpert.draw_uncertain([-1], "lsr-ones")

    def test_unknown_policy(self):
        with pytest.raises(SettingError, match="no policy 'mean' for uncertain labels; give one of lsr-ones"):
            chexpert.draw_uncertain([1], "mean")
