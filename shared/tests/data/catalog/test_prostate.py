from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from dart_core.data.catalog import prostate
from dart_core.data.datalist import Datalist, problems
from dart_core.errors import InputError

OLD = {"RUNMC": "ISBI", "BMC": "ISBI_1.5", "I2CVB": "I2CVB", "UCL": "UCL", "BIDMC": "BIDMC", "HK": "HK"}
NEW = {"RUNMC": "RUNMC", "BMC": "BMC", "I2CVB": "HCRUDB", "UCL": "UCL", "BIDMC": "BIDMC", "HK": "HK"}


def build(root: Path, folders: dict[str, str], cases: dict[str, list[str]], ending: str = ".nii.gz") -> Path:
    rng = np.random.default_rng(0)
    for site, names in cases.items():
        folder = root / folders[site]
        folder.mkdir(parents=True, exist_ok=True)
        word = "Segmentation" if site == "BMC" else "segmentation"
        for case in names:
            nibabel.Nifti1Image(rng.uniform(1, 2, (4, 4, 3)).astype(np.float32), np.eye(4)).to_filename(
                folder / f"{case}{ending}"
            )
            nibabel.Nifti1Image(rng.integers(0, 3, (4, 4, 3)).astype(np.uint8), np.eye(4)).to_filename(
                folder / f"{case}_{word}{ending}"
            )
    return root


def fails(root: Path, *parts: object) -> None:
    with pytest.raises(InputError) as error:
        prostate.index(root)
    for part in parts:
        assert str(part) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("folders", [OLD, NEW])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_every_layout_gives_the_scans_site_by_site(tmp_path, folders, ending):
    cases = {"UCL": ["Case26", "Case01"], "RUNMC": ["Case01", "Case00"], "BMC": ["Case10"], "I2CVB": ["Case18"]}
    datalist = prostate.index(build(tmp_path, folders, cases, ending))
    assert [row.subject for row in datalist] == [
        *("RUNMC_Case00", "RUNMC_Case01", "BMC_Case10", "I2CVB_Case18", "UCL_Case01", "UCL_Case26"),
    ]
    assert datalist.sites == ("RUNMC", "BMC", "I2CVB", "UCL")
    assert datalist[0].image == tmp_path / folders["RUNMC"] / f"Case00{ending}"
    assert datalist[0].mask == tmp_path / folders["RUNMC"] / f"Case00_segmentation{ending}"
    assert datalist[2].mask == tmp_path / folders["BMC"] / f"Case10_Segmentation{ending}"
    assert problems(datalist, require_mask=True) == []


def test_other_files_and_folders_do_not_matter(tmp_path):
    build(tmp_path, NEW, {"HK": ["Case38"]})
    (tmp_path / "HK" / "._Case39.nii.gz").touch()
    (tmp_path / "HK" / "readme.txt").touch()
    (tmp_path / "atlas").mkdir()
    assert [row.subject for row in prostate.index(tmp_path)] == ["HK_Case38"]


class TestPublishedSplit:
    def test_sizes_of_the_specification(self):
        split = prostate.published_split()
        assert tuple(split) == prostate.SITES
        assert {site: {part: len(names) for part, names in parts.items()} for site, parts in split.items()} == {
            "RUNMC": {"train": 22, "test": 8},
            "BMC": {"train": 22, "test": 8},
            "I2CVB": {"train": 14, "test": 5},
            "UCL": {"train": 9, "test": 4},
            "BIDMC": {"train": 9, "test": 3},
            "HK": {"train": 9, "test": 3},
        }
        for site, parts in split.items():
            assert len({*parts["train"], *parts["test"]}) == prostate.COUNTS[site]
        assert sum(prostate.COUNTS.values()) == 116

    def test_order_and_names(self):
        split = prostate.published_split()
        assert split["RUNMC"]["train"][:3] == ("RUNMC_Case02", "RUNMC_Case25", "RUNMC_Case12")
        assert split["BMC"]["train"][0] == "BMC_Case10"
        assert split["HK"]["test"][0] in {f"HK_Case{number}" for number in range(38, 50)}

    def test_a_datalist_takes_it(self, tmp_path):
        split = prostate.published_split()
        cases = {
            site: [subject.split("_")[1] for names in parts.values() for subject in names[:2]]
            for site, parts in split.items()
        }
        datalist = prostate.index(build(tmp_path, OLD, cases)).with_splits(split)
        for site in prostate.SITES:
            assert [row.split for row in datalist.select(site=site)].count("train") == 2
            assert [row.split for row in datalist.select(site=site)].count("test") == 2
        assert len(Datalist.read(datalist.write(tmp_path / "list.csv"), required=("mask", "split"))) == 24


class TestMistakes:
    def test_no_folder(self, tmp_path):
        fails(tmp_path / "no", "missing", "Liu")

    def test_another_folder(self, tmp_path):
        fails(tmp_path, tmp_path, "not the prostate collection", "RUNMC")

    def test_no_scans(self, tmp_path):
        (tmp_path / "UCL").mkdir()
        fails(tmp_path, "no scan")

    def test_a_scan_without_outline(self, tmp_path):
        build(tmp_path, NEW, {"BMC": ["Case03"]})
        (tmp_path / "BMC" / "Case03_Segmentation.nii.gz").unlink()
        fails(tmp_path, "Case03.nii.gz", "no outline Case03_segmentation.nii.gz")

    def test_a_site_under_two_names(self, tmp_path):
        build(tmp_path, NEW, {"RUNMC": ["Case03"]})
        build(tmp_path, OLD, {"RUNMC": ["Case04"]})
        fails(tmp_path, "RUNMC and ISBI are the same site")

    def test_the_same_scan_compressed_and_not(self, tmp_path):
        build(tmp_path, NEW, {"HK": ["Case40"]})
        build(tmp_path, NEW, {"HK": ["Case40"]}, ".nii")
        fails(tmp_path, "Case40 is there twice")


class TestMissing:
    def test_what_is_missing_and_where_it_comes_from(self, tmp_path):
        for site, parts in prostate.published_split().items():
            folder = tmp_path / OLD[site]
            folder.mkdir()
            for name in (subject.split("_")[1] for names in parts.values() for subject in names):
                if (site, name) not in (("UCL", "Case30"), ("HK", "Case38"), ("HK", "Case49")):
                    (folder / f"{name}.nii").touch()
                    (folder / f"{name}_segmentation.nii").touch()
        assert prostate.report_missing(tmp_path)[:2] == [
            "UCL: 1 of 13 scans are missing: Case30",
            "HK: 2 of 12 scans are missing: Case38, Case49",
        ]
        assert "https://" in prostate.report_missing(tmp_path)[-1]
        for folder, name in (("UCL", "Case30"), ("HK", "Case38"), ("HK", "Case49")):
            (tmp_path / folder / f"{name}.nii").touch()
            (tmp_path / folder / f"{name}_segmentation.nii").touch()
        assert prostate.report_missing(tmp_path) == []
        assert len(prostate.index(tmp_path)) == 116
