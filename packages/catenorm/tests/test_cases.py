"""From files to arrays and back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from catenorm import preprocess_ct
from catenorm.cases import check_organs, check_sizes, load_case, load_cases, names_of
from catenorm.rows import open_cases
from catenorm.settings import Cases
from dart_core.data.datalist import Row
from dart_core.data.volumes import read_labels, read_volume
from dart_core.errors import DartError

nib: Any = nibabel


def save(path: Path, array: Any, spacing: tuple[float, ...] = (1, 2, 3)) -> Path:
    nib.save(nib.Nifti1Image(array, np.diag([*spacing, 1.0])), path)
    return path


def made(folder: Path, label: Any = None, shape: tuple[int, int, int] = (20, 18, 6), **columns: str) -> Row:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, shape).astype(np.uint8) if label is None else label
    folder.mkdir(exist_ok=True)
    image = save(folder / "a.nii.gz", rng.normal(size=label.shape).astype(np.float32))
    return Row(image, save(folder / "m.nii.gz", label), subject="a", labels=columns)


def test_ct_is_what_preprocess_ct_gives(cases: Cases) -> None:
    row = next(iter(open_cases(cases)))
    case = load_case(row, cases)
    assert row.mask is not None
    volume = read_volume(row.image)
    image, label, spacing = preprocess_ct(volume.array.T, read_labels(row.mask, volume).T, volume.spacing, "multi", 32)
    np.testing.assert_allclose(case.image, (image - image.mean()) / image.std(), atol=1e-5)
    np.testing.assert_array_equal(case.truth, label)
    assert case.spacing == pytest.approx(spacing[::-1], abs=1e-4)
    assert case.image.mean() == pytest.approx(0, abs=1e-5)
    assert case.image.std() == pytest.approx(1, abs=1e-5)


def test_ct_goes_back_to_its_file(cases: Cases) -> None:
    """At the files' own size nothing but the slices outside is lost."""
    row = next(iter(open_cases(cases)))
    assert row.mask is not None
    grid = read_volume(row.image)
    side = max(grid.array.shape[:2])
    case = load_case(row, dataclasses.replace(cases, size=side))
    back = case.to_file(case.truth)
    codes = read_labels(row.mask, grid)
    expected = np.zeros_like(codes)
    for number, code in enumerate((1, 3, 4, 6, 7, 11), 1):
        expected[codes == code] = number
    assert back.shape == grid.array.shape
    # One axis is stretched to the common side, and comes back by the nearest voxel.
    assert (back == expected).mean() > 0.97
    square = load_case(row, dataclasses.replace(cases, size=None), need_mask=True)
    assert square.image.shape[1:] == (384, 384)


def test_plain_keeps_grid_and_orientation(tmp_path: Path) -> None:
    row = made(tmp_path)
    cases = Cases((tmp_path,), labels=("x", "y"))
    case = load_case(row, cases)
    assert case.image.shape == (6, 18, 20)
    assert case.spacing == (3, 2, 1)
    assert row.mask is not None
    np.testing.assert_array_equal(case.to_file(case.truth), read_labels(row.mask, None))
    resized = load_case(row, dataclasses.replace(cases, size=40))
    assert resized.image.shape == (6, 40, 40)
    assert resized.spacing == (3, 0.9, 0.5)
    np.testing.assert_array_equal(resized.to_file(resized.truth), read_labels(row.mask, None))


def test_prostate_zones_are_one(tmp_path: Path) -> None:
    case = load_case(made(tmp_path), Cases((tmp_path,), "prostate"))
    assert set(np.unique(case.truth)) == {0, 1}
    assert names_of(Cases((tmp_path,), "prostate")) == ("prostate",)


def test_partial_annotation(cases: Cases) -> None:
    """Other labels are background, the rest is numbered in ascending order; the slices stay."""
    row = next(iter(open_cases(cases)))
    whole = load_case(row, cases)
    kept = dataclasses.replace(cases, keep=("stomach", "spleen", "liver"))
    assert names_of(kept) == ("spleen", "liver", "stomach")
    case = load_case(row, kept)
    assert case.image.shape == whole.image.shape
    for old, new in {0: 0, 1: 1, 2: 0, 3: 0, 4: 2, 5: 3, 6: 0}.items():
        assert set(case.truth[whole.truth == old]) <= {new}
    with pytest.raises(DartError, match="--keep names lung"):
        names_of(dataclasses.replace(cases, keep=("lung",)))


def test_cache_gives_the_same(cases: Cases, tmp_path: Path) -> None:
    row = next(iter(open_cases(cases)))
    kept = dataclasses.replace(cases, cache=tmp_path / "cache")
    for _ in range(2):
        np.testing.assert_array_equal(load_case(row, kept).image, load_case(row, cases).image)
    assert any((tmp_path / "cache").rglob("*"))


def test_a_third_of_the_slices(cases: Cases) -> None:
    row = next(iter(open_cases(cases)))
    depth = len(load_case(row, cases).image)
    thinned = load_case(dataclasses.replace(row, labels={"z_divisor": "2"}), cases)
    assert len(thinned.image) == depth // 2
    assert thinned.to_file(thinned.truth).shape == read_volume(row.image).array.shape


def test_the_cache_tells_numbers_of_slices_apart(cases: Cases, tmp_path: Path) -> None:
    """Eight slices of one image by one label file and nine by another: half of either is four."""
    row = next(iter(open_cases(cases)))
    assert row.mask is not None
    label = nib.load(row.mask)
    codes = np.zeros(label.shape, np.uint8)
    kept = dataclasses.replace(cases, cache=tmp_path / "cache")
    depths = []
    for last in (8, 9):
        codes[10:20, 10:20, 2:last] = 6
        nib.save(nib.Nifti1Image(codes, label.affine), tmp_path / f"m{last}.nii.gz")
        own = dataclasses.replace(row, mask=tmp_path / f"m{last}.nii.gz", labels={"z_divisor": "2"})
        fresh, cached = load_case(own, cases), load_case(own, kept)
        np.testing.assert_array_equal(cached.image, fresh.image)
        depths.append((fresh.place.first, fresh.place.shape[0], len(fresh.image)))
    assert depths == [(1, 8, 4), (1, 9, 4)]  # with a slice of margin on either side


def test_scan_without_labels_keeps_all_slices(cases: Cases) -> None:
    row = next(iter(open_cases(cases)))
    case = load_case(dataclasses.replace(row, mask=None), cases)
    assert case.label is None
    assert len(case.image) == read_volume(row.image).array.shape[2]


# Bad input


def test_missing_organ(cases: Cases, tmp_path: Path) -> None:
    label = np.zeros((20, 18, 6), np.uint8)
    label[5:9, 5:9, 2:4] = 6
    row = made(tmp_path, label)
    ct = Cases((tmp_path,), "ct-multi", size=16)
    with pytest.raises(DartError, match=r"m\.nii\.gz: has no spleen and no left-kidney .*--missing-organs allow"):
        load_cases([row], ct, training=True)
    check_organs(load_case(row, dataclasses.replace(ct, keep=("liver",))), dataclasses.replace(ct, keep=("liver",)))
    assert len(load_cases([row], dataclasses.replace(ct, missing_organs="allow"), training=True)) == 1


def test_slices_of_unequal_size(tmp_path: Path) -> None:
    cases = Cases((tmp_path,), labels=("x", "y"))
    one, two = (load_case(made(tmp_path / str(side), shape=(side, 18, 6)), cases) for side in (20, 24))
    with pytest.raises(DartError, match=r"its slices have 18 x 24 pixels, those of a\.nii\.gz 18 x 20; give --size"):
        check_sizes(one, two)


@pytest.mark.parametrize(
    ("row", "cases", "words"),
    [
        ({}, {}, r"has label 2, and there is one name \(foreground\)"),
        ({}, {"labels": ("x",)}, "name the labels 1, 2, ... with --labels"),
        ({"label": np.ones((20, 18, 2), np.uint8)}, {}, "2 slices are left, at least 3"),
        (
            {"label": np.full((20, 18, 6), 5, np.uint8)},
            {"preprocessing": "ct-multi"},
            "m.nii.gz: holds none of the organs",
        ),
        ({"z_divisor": "x"}, {"preprocessing": "ct-multi"}, "column z_divisor: 'x' is no whole number"),
    ],
)
def test_bad_files(row: dict[str, Any], cases: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(DartError, match=words):
        load_case(made(tmp_path, **row), Cases((tmp_path,), **cases), need_mask=True)


def test_no_mask_and_no_contrast(tmp_path: Path) -> None:
    row = made(tmp_path)
    with pytest.raises(DartError, match="no mask"):
        load_case(dataclasses.replace(row, mask=None), Cases((tmp_path,)), need_mask=True)
    save(row.image, np.full((20, 18, 6), 3, np.int16))
    with pytest.raises(DartError, match="no contrast"):
        load_case(dataclasses.replace(row, mask=None), Cases((tmp_path,)))
