from __future__ import annotations

from pathlib import Path

import pytest

from dart_core.data.catalog import lits
from dart_core.errors import InputError

NUMBERS = (0, 2, 27, 28, 99, 100, 114, 115, 129, 130)


def build(root: Path, ending: str = ".nii") -> Path:
    for number in NUMBERS:
        folder = root / f"Training Batch {1 if number < 28 else 2}"
        folder.mkdir(parents=True, exist_ok=True)
        for kind in ("volume", "segmentation"):
            (folder / f"{kind}-{number}{ending}").touch()
    (root / "test-volume-3.nii").touch()
    return root


def fails(root: Path, *parts: str) -> None:
    with pytest.raises(InputError) as error:
        lits.index(root)
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_rows(tmp_path, ending):
    datalist = lits.index(build(tmp_path, ending))
    assert [(row.subject, row.split) for row in datalist] == [
        ("0", "train"),
        ("2", "train"),
        ("27", "train"),
        ("28", "train"),
        ("99", "train"),
        ("100", "val"),
        ("114", "val"),
        ("115", "test"),
        ("129", "test"),
    ]
    assert datalist[3].image == tmp_path / f"Training Batch 2/volume-28{ending}"
    assert datalist[3].mask == tmp_path / f"Training Batch 2/segmentation-28{ending}"


def test_what_is_missing(tmp_path):
    build(tmp_path)
    lines = lits.report_missing(tmp_path)
    assert lines[0] == "121 of 131 scans are missing, the first is volume-1.nii"
    assert lines[1] == "121 of 131 outlines are missing, the first is segmentation-1.nii"
    assert "CC BY-NC-ND" in lines[2]
    for number in range(131):
        for kind in ("volume", "segmentation"):
            if number not in NUMBERS:
                (tmp_path / f"{kind}-{number}.nii").touch()
    assert lits.report_missing(tmp_path) == []


def test_mistakes(tmp_path):
    fails(tmp_path / "no", "missing", "Bilic")
    fails(tmp_path, "not the folder of LiTS", "volume-0.nii")
    build(tmp_path)
    (tmp_path / "volume-2.nii").touch()
    fails(tmp_path, "volume-2.nii", "there twice", "Training Batch 1")
    (tmp_path / "volume-2.nii").unlink()
    (tmp_path / "Training Batch 1/segmentation-27.nii").unlink()
    fails(tmp_path, "volume-27.nii", "no outline segmentation-27.nii")


def test_the_last_scan_alone_is_no_data_set(tmp_path):
    (tmp_path / "volume-130.nii").touch()
    fails(tmp_path, "no scan of LiTS from 0 to 129")
