from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from dart_core.data.catalog import cc359
from dart_core.data.datalist import problems
from dart_core.errors import InputError

NAMES = [
    "CC0120_siemens_15_58_F",
    "CC0003_philips_15_63_F",
    "CC0060_philips_3_52_M",
    "CC0359_ge_3_48_M",
    "CC0181_siemens_3_36_F",
    "CC0240_ge_15_60_M",
]
SITES_BY_ID = ["ph15", "ph3", "sm15", "sm3", "ge15", "ge3"]


def build(root: Path, images: str = "Original", masks: str = "Silver-standard", names: list[str] = NAMES) -> Path:
    for folder in (images, masks):
        (root / folder).mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(0).uniform(1, 2, (4, 4, 3)).astype(np.float32)
    for name in names:
        nibabel.Nifti1Image(array, np.eye(4)).to_filename(root / images / f"{name}.nii.gz")
        nibabel.Nifti1Image((array > 1.5).astype(np.uint8), np.eye(4)).to_filename(root / masks / f"{name}_ss.nii.gz")
    return root


def write_meta(root: Path, text: str) -> Path:
    (root / "meta.csv").write_text("id,MRI,brain_mask,fold,tomograph_model,tesla_value,x,y,z\n" + text)
    return root


def fails(root: Path, *parts: object) -> None:
    with pytest.raises(InputError) as error:
        cc359.index(root)
    for part in parts:
        assert str(part) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("Original", "Silver-standard"),
        ("images", "masks"),
        ("Original/Original", "Silver-standard-machine-learning/Silver-standard"),
        (
            "CC359/Reconstructed/Original/Original",
            "CC359/Reconstructed/Silver-standard-machine-learning/Silver-standard",
        ),
    ],
)
def test_every_layout_gives_the_scans_in_ascending_order(tmp_path, images, masks):
    datalist = cc359.index(build(tmp_path, images, masks))
    assert [row.subject for row in datalist] == ["CC0003", "CC0060", "CC0120", "CC0181", "CC0240", "CC0359"]
    assert [row.site for row in datalist] == SITES_BY_ID
    assert datalist[0].image == tmp_path / images / "CC0003_philips_15_63_F.nii.gz"
    assert datalist[0].mask == tmp_path / masks / "CC0003_philips_15_63_F_ss.nii.gz"
    assert datalist[0].labels == {"age": "63", "sex": "F"}
    assert problems(datalist, require_mask=True) == []
    assert [row.subject for row in datalist.select(site="ge15")] == ["CC0240"]


def test_the_domains_hold_359_scans_in_the_published_order():
    assert cc359.SITES == ("sm15", "sm3", "ge15", "ge3", "ph15", "ph3")
    assert {site: len(numbers) for site, numbers in cc359.IDS.items()} == {
        "sm15": 60,
        "sm3": 60,
        "ge15": 60,
        "ge3": 60,
        "ph15": 59,
        "ph3": 60,
    }
    assert sorted(number for numbers in cc359.IDS.values() for number in numbers) == list(range(1, 360))


def test_other_files_do_not_matter(tmp_path):
    build(tmp_path)
    (tmp_path / "Original" / "._CC0003_philips_15_63_F.nii.gz").touch()
    (tmp_path / "Original" / "readme.txt").touch()
    assert len(cc359.index(tmp_path)) == 6


def test_uncompressed_files(tmp_path):
    build(tmp_path, names=NAMES[:1])
    for path in list(tmp_path.rglob("*.gz")):
        path.rename(path.with_suffix(""))
    (row,) = cc359.index(tmp_path)
    assert row.image.name == "CC0120_siemens_15_58_F.nii"
    assert row.mask.name == "CC0120_siemens_15_58_F_ss.nii"


class TestMeta:
    def test_the_table_leads(self, tmp_path):
        build(tmp_path, "images", "masks", names=NAMES[:2])
        (tmp_path / "images" / "moved.nii.gz").touch()
        write_meta(
            tmp_path,
            "CC0120,images/CC0120_siemens_15_58_F.nii.gz,masks/CC0120_siemens_15_58_F_ss.nii.gz,0,siemens,1.5,1,1,1\n"
            "CC0060,images/moved.nii.gz,masks/CC0003_philips_15_63_F_ss.nii.gz,5,philips,3,1,1,1\n",
        )
        rows = cc359.index(tmp_path)
        assert [(row.subject, row.site, row.labels) for row in rows] == [
            ("CC0060", "ph3", {}),
            ("CC0120", "sm15", {"age": "58", "sex": "F"}),
        ]
        assert [row.line for row in rows] == [3, 2]

    @pytest.mark.parametrize(
        ("row", "parts"),
        [
            ("CC0120,images/no.nii.gz,masks/CC0120_siemens_15_58_F_ss.nii.gz,0,s,1,1,1,1", ("column MRI", "not there")),
            ("CC0120,images/CC0120_siemens_15_58_F.nii.gz,,0,s,1,1,1,1", ("column brain_mask", "empty")),
            (
                "CC0120,images/CC0120_siemens_15_58_F.nii.gz,masks/CC0120_siemens_15_58_F_ss.nii.gz,6,s,1,1,1,1",
                ("column fold", "'6'", "sm15"),
            ),
            (
                "CC0120,images/CC0120_siemens_15_58_F.nii.gz,masks/CC0120_siemens_15_58_F_ss.nii.gz,1,s,1,1,1,1",
                ("sm15", "sm3", "column MRI"),
            ),
            ("CC0120,images/CC0120_siemens_15_58_F.nii.gz", ("2 cells where the header has 9 columns",)),
        ],
    )
    def test_rows_that_do_not_fit(self, tmp_path, row, parts):
        build(tmp_path, "images", "masks", names=NAMES[:1])
        fails(write_meta(tmp_path, row + "\n"), "meta.csv, row 2", *parts)

    def test_missing_column(self, tmp_path):
        (tmp_path / "meta.csv").write_text("id,MRI\na,b\n")
        fails(tmp_path, "meta.csv", "'brain_mask'")

    def test_not_utf8(self, tmp_path):
        (tmp_path / "meta.csv").write_bytes(b"id,\xff\n")
        fails(tmp_path, "meta.csv", "UTF-8")

    def test_the_same_scan_twice(self, tmp_path):
        build(tmp_path, "images", "masks", names=NAMES[:1])
        row = "CC0120,images/CC0120_siemens_15_58_F.nii.gz,masks/CC0120_siemens_15_58_F_ss.nii.gz,0,s,1,1,1,1\n"
        fails(write_meta(tmp_path, row * 2), "CC0120 is there twice")


class TestMistakes:
    def test_no_folder(self, tmp_path):
        fails(tmp_path / "no", "missing", "Souza")

    def test_another_folder(self, tmp_path):
        fails(tmp_path, tmp_path, "not a CC359 folder", "calgary-campinas")
        (tmp_path / "Original").mkdir()
        fails(tmp_path, "not a CC359 folder")

    def test_no_scans(self, tmp_path):
        fails(build(tmp_path, names=[]), "no scan")

    @pytest.mark.parametrize(
        "name", ["scan1", "CC003_philips_15_63_F", "CC0003_philips_7_63_F", "CC0003_philips_15_63_F_copy"]
    )
    def test_a_name_that_does_not_fit(self, tmp_path, name):
        fails(build(tmp_path, names=[name]), f"{name}.nii.gz", "does not fit")

    def test_a_number_of_another_domain(self, tmp_path):
        fails(build(tmp_path, names=["CC0060_philips_15_63_F"]), "CC0060", "CC0001 to CC0059", "1.5 T")

    def test_an_image_without_mask(self, tmp_path):
        build(tmp_path)
        (tmp_path / "Silver-standard" / "CC0060_philips_3_52_M_ss.nii.gz").unlink()
        fails(tmp_path, "CC0060_philips_3_52_M.nii.gz", "no mask CC0060_philips_3_52_M_ss.nii.gz")

    def test_the_same_scan_under_two_names(self, tmp_path):
        fails(build(tmp_path, names=["CC0060_philips_3_52_M", "CC0060_philips_3_52_F"]), "CC0060 is there twice")


class TestMissing:
    def test_what_is_missing_and_where_it_comes_from(self, tmp_path):
        names = [f"CC{number:04d}_philips_15_50_F" for number in range(1, 60) if number not in (7, 20)]
        names += [f"CC{number:04d}_ge_3_50_F" for number in range(300, 360)]
        for folder, tail in (("Original", ""), ("Silver-standard", "_ss")):
            (tmp_path / folder).mkdir()
            for name in names:
                (tmp_path / folder / f"{name}{tail}.nii.gz").touch()
        lines = cc359.report_missing(tmp_path)
        assert "ph15: 2 of 59 scans are missing: CC0007, CC0020" in lines
        assert [line.split(":")[0] for line in lines] == ["sm15", "sm3", "ge15", "ph15", "ph3", "CC359"]
        assert "Souza" in lines[-1]
        assert "https://" in lines[-1]

    def test_nothing_is_missing(self, tmp_path):
        vendors = {"sm": "siemens", "ge": "ge", "ph": "philips"}
        for folder, tail in (("Original", ""), ("Silver-standard", "_ss")):
            (tmp_path / folder).mkdir()
            for site, numbers in cc359.IDS.items():
                for number in numbers:
                    name = f"CC{number:04d}_{vendors[site[:2]]}_{site[2:]}_50_F{tail}.nii.gz"
                    (tmp_path / folder / name).touch()
        assert len(cc359.index(tmp_path)) == 359
        assert cc359.report_missing(tmp_path) == []


class TestPublishedSplit:
    def test_sizes_of_the_specification(self):
        split = cc359.published_split()
        assert tuple(split) == cc359.SITES
        for site, parts in split.items():
            test = 9 if site == "ph15" else 10
            assert {part: len(names) for part, names in parts.items()} == {"train": 45, "val": 5, "test": test}
            # Every scan of the domain, once.
            names = sorted(name for part in parts.values() for name in part)
            assert names == [f"CC{number:04d}" for number in cc359.IDS[site]]

    def test_order(self):
        assert cc359.published_split()["sm15"]["train"][:3] == ("CC0136", "CC0137", "CC0143")

    def test_a_datalist_takes_it(self, tmp_path):
        names = ["CC0136_siemens_15_58_F", "CC0163_siemens_15_58_F", "CC0146_siemens_15_58_F"]
        datalist = cc359.index(build(tmp_path, names=names))
        assert [row.split for row in datalist] == ["", "", ""]
        split = datalist.with_splits(cc359.published_split())
        assert {row.subject: row.split for row in split} == {"CC0136": "train", "CC0163": "val", "CC0146": "test"}
