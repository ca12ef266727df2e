from __future__ import annotations

from pathlib import Path

import pytest

from dart_core.data.catalog import pe_cad
from dart_core.errors import InputError, SettingError


def build(root: Path, patients: int = 117) -> Path:
    (root / "cubes").mkdir()
    lines = ["patient,cube,label"]
    for patient in range(patients):
        for k in range(2):
            (root / f"cubes/{patient}_{k}.nii.gz").touch()
            lines.append(f"p{patient:03d},cubes/{patient}_{k}.nii.gz,{k}")
    (root / "candidates.csv").write_text("\n".join(lines) + "\n")
    return root


def fails(root: Path, *parts: str) -> None:
    with pytest.raises(InputError) as error:
        pe_cad.index(root)
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_parts_by_patient_have_the_sizes_of_the_paper(tmp_path):
    build(tmp_path)
    tested = []
    for fold in range(3):
        datalist = pe_cad.index(tmp_path, fold)
        parts = {split: {row.subject for row in datalist if row.split == split} for split in ("train", "val", "test")}
        assert [len(parts[split]) for split in ("train", "val", "test")] == [74, 4, 39]
        assert sum(map(len, parts.values())) == 117
        tested += sorted(parts["test"])
    assert len(set(tested)) == len(tested) == 117  # every patient is tested once
    assert [row.labels["label"] for row in datalist[:2]] == ["0", "1"]
    assert datalist[1].image == tmp_path / "cubes/0_1.nii.gz"


def test_mistakes(tmp_path):
    fails(tmp_path / "no", "missing", "private")
    fails(tmp_path, "holds no candidates.csv", "nobody gives it", "columns patient, cube")
    build(tmp_path, 4)
    fails(tmp_path, "4 patients", "at least 5")
    with pytest.raises(SettingError, match="no fold 3"):
        pe_cad.index(tmp_path, 3)
    table = tmp_path / "candidates.csv"
    text = table.read_text()
    for old, new, parts in (
        ("_1.nii.gz,1", "_1.nii.gz,yes", ("row 3, column label", "'yes'")),
        ("p000,", ",", ("row 2, column patient", "empty")),
        ("cube", "file", ("no column 'cube'",)),
    ):
        table.write_text(text.replace(old, new))
        fails(tmp_path, *parts)
