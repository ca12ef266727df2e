"""Lists, folders and folds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from sklearn.model_selection import KFold

from catenorm import site_folds
from catenorm.rows import divide, label_sets, marks, open_cases, open_divided, ordered_sites, read_list
from catenorm.settings import Cases
from dart_core.data.datalist import Datalist, Row
from dart_core.errors import InputError

nib: Any = nibabel


@pytest.mark.parametrize(("cases", "site"), [(30, 0), (19, 2), (41, 1), (5, 0)])
def test_folds_are_those_of_scikit_learn(cases: int, site: int) -> None:
    folds = site_folds(cases, site)
    expected = KFold(5, shuffle=True, random_state=site).split(range(cases))
    assert len(folds) == 5
    for found, (_, test) in zip(folds, expected, strict=True):
        np.testing.assert_array_equal(found, test)
    assert sorted(np.concatenate(folds)) == list(range(cases))


def test_too_few_cases_for_folds() -> None:
    with pytest.raises(ValueError, match="4 cases make no 5 folds"):
        site_folds(4, 0)


def rows(sites: dict[str, int], split: str = "") -> Datalist:
    return Datalist(
        tuple(Row(Path(f"{s}{n}.nii"), site=s, split=split) for s, count in sites.items() for n in range(count))
    )


def test_sites_are_sorted_and_seed_their_folds() -> None:
    datalist = rows({"TCIA": 7, "BTCV": 6})
    assert ordered_sites(datalist) == ("BTCV", "TCIA")
    training, test = divide(datalist, 2)
    assert list(training) == ["BTCV", "TCIA"]
    expected = [f"BTCV{n}.nii" for n in site_folds(6, 0)[2]] + [f"TCIA{n}.nii" for n in site_folds(7, 1)[2]]
    assert [row.image.name for row in test] == expected
    assert not {row.image for own in training.values() for row in own} & {row.image for row in test}


def test_folds_of_a_site_do_not_depend_on_the_other_sites(tmp_path: Path) -> None:
    listed = rows({"BTCV": 6, "TCIA": 7}).write(tmp_path / "list.csv")
    datalist, training, test = open_divided(Cases((listed,), sites=("TCIA",)), 2)
    assert len(datalist) == 7
    assert list(training) == ["TCIA"]
    assert [row.image.name for row in test] == [f"TCIA{n}.nii" for n in site_folds(7, 1)[2]]
    assert site_folds(7, 1)[2].tolist() != site_folds(7, 0)[2].tolist()


def test_all_scans_of_a_subject_are_in_one_fold() -> None:
    datalist = Datalist(
        tuple(
            Row(Path(f"{number}.nii"), site="a", subject=f"s{number % 6}" if number < 9 else "") for number in range(12)
        )
    )
    tested: list[str] = []
    for fold in range(5):
        training, test = divide(datalist, fold)
        assert not {row.subject for row in training["a"]} & {row.subject for row in test} - {""}
        assert len(training["a"]) + len(test) == 12
        tested += [row.image.name for row in test]
    assert sorted(tested) == sorted(row.image.name for row in datalist)


def test_marks() -> None:
    """A case is known by its file or its subject at its site, and the mark names neither."""
    one = Row(Path("a/smith.nii"), subject="smith", site="x")
    assert marks(one) == marks(Row(Path("a/../a/smith.nii"), subject="smith", site="x"))
    assert len(marks(one)) == 2
    for other in (Row(Path("b.nii"), subject="smith", site="x"), Row(Path("a/smith.nii"))):
        assert marks(one) & marks(other)
    for other in (Row(Path("b.nii"), subject="smith", site="y"), Row(Path("a/smith.nii"), labels={"frame": "1"})):
        assert not marks(one) & marks(other)
    assert all(set(mark) <= set("0123456789abcdef") for mark in marks(one))


def test_prostate_sites_keep_their_letters() -> None:
    assert ordered_sites(rows({"I2CVB": 1, "BMC": 1, "RUNMC": 1})) == ("RUNMC", "BMC", "I2CVB")


@pytest.mark.parametrize(
    ("datalist", "fold", "words"),
    [
        (rows({"a": 3}), 0, "site a: 3 cases make no 5 folds"),
        (rows({"a": 3}), None, "no case has a split"),
        (rows({"a": 3}, "test"), None, "site a has no case with split train"),
    ],
)
def test_bad_divisions(datalist: Datalist, fold: int | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        divide(datalist, fold)


def test_all_list(tmp_path: Path) -> None:
    """Site folders with "image path, label path" per line; the last letter names the site; lists may have been moved."""
    for letter in "AB":
        folder = tmp_path / f"Site{letter}"
        folder.mkdir()
        lines = []
        for number in range(2):
            for word in ("", "_segmentation"):
                (folder / f"Case{number:02d}{word}.nii.gz").touch()
            lines.append(f"/somewhere/else/Case{number:02d}.nii.gz, Case{number:02d}_segmentation.nii.gz")
        (folder / "all_list.txt").write_text("\n".join(lines) + "\n")
    found = open_cases(Cases((tmp_path,)))
    assert [(row.site, row.subject) for row in found] == [
        ("A", "A_Case00"),
        ("A", "A_Case01"),
        ("B", "B_Case00"),
        ("B", "B_Case01"),
    ]
    assert all(row.image.is_file() and row.mask is not None and row.mask.is_file() for row in found)
    (tmp_path / "SiteA/all_list.txt").write_text("a.nii.gz\n")
    with pytest.raises(InputError, match=r"row 1: 'a\.nii\.gz' is not an image path, a comma and a label path"):
        read_list(tmp_path / "SiteA/all_list.txt")


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_published_folders(tmp_path: Path) -> None:
    """Either capitalisation of the prostate collection; BTCV and Pancreas-CT joined."""
    touch(tmp_path / "p", "RUNMC/Case00.nii.gz", "RUNMC/Case00_segmentation.nii.gz", "BMC/Case01.nii.gz",
          "BMC/Case01_Segmentation.nii.gz", "UCL/Case02.nii.gz", "UCL/Case02_segmentation.nii.gz")  # fmt: skip
    found = open_cases(Cases((tmp_path / "p",), "prostate", ("RUNMC", "BMC")))
    assert [row.site for row in found] == ["RUNMC", "BMC"]
    touch(tmp_path / "b", "img/img0001.nii.gz", "label/label0001.nii.gz")
    touch(tmp_path / "t", "PANCREAS_0001/a/b/1-1.dcm", "label_tcia_multiorgan/label0001.nii.gz")
    found = open_cases(Cases((tmp_path / "b", tmp_path / "t"), "ct-multi"))
    assert [(row.site, row.labels.get("z_divisor")) for row in found] == [("BTCV", None), ("TCIA", "3")]
    assert [label_sets(found, site) for site in ("BTCV", "TCIA")] == [("official",), ("zenodo-1169361",)]
    for number in (1, 40, 61):  # 61 to 80 are test scans, of which Gibson et al. have labels
        touch(tmp_path / "c", f"img/img{number:04d}.nii.gz", f"label_btcv_multiorgan/label{number:04d}.nii.gz")
    found = open_cases(Cases((tmp_path / "c",), "ct-multi"))
    assert [row.subject for row in found] == ["BTCV_0001", "BTCV_0040"]
    assert label_sets(found, "BTCV") == ("zenodo-1169361",)
    with pytest.raises(InputError, match="in two datalists"):
        open_cases(Cases((tmp_path / "b", tmp_path / "b")))
    with pytest.raises(InputError, match="none of the folders that are known"):
        open_cases(Cases((tmp_path / "t/PANCREAS_0001/a",)))
    with pytest.raises(InputError, match="no row has site 'X'"):
        open_cases(Cases((tmp_path / "b",), sites=("X",)))
