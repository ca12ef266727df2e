from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dart_core.data.catalog import brats
from dart_core.errors import InputError, SettingError


def build(root: Path, ending: str = ".nii.gz") -> Path:
    """Twenty-four high grades and twelve low ones."""
    for grade, count in (("HGG", 24), ("LGG", 12)):
        for number in range(count):
            case = root / "MICCAI_BraTS_2018_Data_Training" / grade / f"Brats18_{grade}{number:02d}_1"
            case.mkdir(parents=True)
            for part in (*brats.MODALITIES, "seg"):
                (case / f"{case.name}_{part}{ending}").touch()
    return root


def fails(root: Path, *parts: str, **arguments) -> None:
    with pytest.raises(InputError) as error:
        brats.index(root, **arguments)
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_rows(tmp_path, ending):
    folder = build(tmp_path, ending) / "MICCAI_BraTS_2018_Data_Training"
    for root in (tmp_path, folder):
        datalist = brats.index(root)
        assert len(datalist) == 36
    row = datalist[24]
    assert (row.subject, row.site, row.labels) == ("Brats18_LGG00_1", "brats2018", {"grade": "LGG"})
    assert row.image == folder / f"LGG/Brats18_LGG00_1/Brats18_LGG00_1_flair{ending}"
    assert row.mask == folder / f"LGG/Brats18_LGG00_1/Brats18_LGG00_1_seg{ending}"
    assert brats.index(tmp_path, "t1ce")[0].image.name == f"Brats18_HGG00_1_t1ce{ending}"


def test_a_third_is_for_test_and_an_eighth_of_the_rest_for_validation(tmp_path):
    counts = Counter((row.labels["grade"], row.split) for row in brats.index(build(tmp_path)))
    assert [counts["HGG", split] for split in ("train", "val", "test")] == [14, 2, 8]
    assert [counts["LGG", split] for split in ("train", "val", "test")] == [7, 1, 4]


def test_lists(tmp_path):
    build(tmp_path)
    (tmp_path / "test.csv").write_text("Brats18_HGG03_1\n")
    (tmp_path / "train.csv").write_text("Brats18_LGG00_1\nBrats18_HGG00_1\n")
    found = brats.index(tmp_path, lists={"train": tmp_path / "train.csv", "test": tmp_path / "test.csv"})
    assert [(row.subject, row.split) for row in found] == [
        ("Brats18_HGG00_1", "train"),
        ("Brats18_HGG03_1", "test"),
        ("Brats18_LGG00_1", "train"),
    ]
    (tmp_path / "test.csv").write_text("Brats17_1\n")
    fails(tmp_path, "none of its scans is in the lists", lists={"test": tmp_path / "test.csv"})


def test_what_is_missing(tmp_path):
    folder = build(tmp_path) / "MICCAI_BraTS_2018_Data_Training"
    (folder / "HGG/Brats18_HGG05_1/Brats18_HGG05_1_t2.nii.gz").unlink()
    lines = brats.report_missing(tmp_path)
    assert lines[0] == "HGG: 186 of 210 people are missing"
    assert lines[1] == "LGG: 63 of 75 people are missing"
    assert lines[2] == "1 files are missing, the first is Brats18_HGG05_1_t2.nii.gz"
    assert "not commercial" in lines[3]
    assert len(brats.index(tmp_path)) == 36  # nobody asked for T2


def test_mistakes(tmp_path):
    fails(tmp_path / "no", "missing", "Menze")
    fails(tmp_path, "not the folder of BraTS 2018", "HGG")
    (tmp_path / "HGG").mkdir()
    fails(tmp_path, "no folder Brats18_*")
    build(tmp_path / "data")
    with pytest.raises(SettingError, match=r"'T1'.*flair, t1"):
        brats.index(tmp_path / "data", "T1")
    case = tmp_path / "data/MICCAI_BraTS_2018_Data_Training/HGG/Brats18_HGG05_1"
    (case / "Brats18_HGG05_1_seg.nii.gz").unlink()
    fails(tmp_path / "data", "Brats18_HGG05_1_seg.nii.gz is missing")
