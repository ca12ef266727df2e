from __future__ import annotations

import csv
import dataclasses
from importlib import resources
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from dart_core.data.catalog import cc359
from dart_core.data.datalist import Datalist
from dart_core.data.volumes import Volume, read_mask, read_volume, write_volume
from dart_core.errors import InputError
from fda_mri import normalise_volume, scans
from fda_mri.scans import Grid, Scan, load, select, split_indices
from fda_mri.settings import Scans

# nibabel says it is typed, but these functions are not.
nib: Any = nibabel
ROLES = {
    "source_val_2_scans_rest_is_train": "source_val",
    "target_val_10_scans": "val",
    "target_test_10_scans": "test",
}


def one(path: Path, folder: Path, **settings: Any) -> Scan:
    """Load one image file that is the only row of a datalist."""
    listed = folder / "one.csv"
    listed.write_text(f"image\n{path}\n")
    chosen = Scans(listed, **settings)
    (scan,) = load(select(chosen), chosen)
    return scan


def write(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    image = nib.Nifti1Image(array, np.diag([2.0, 2.0, 3.0, 1.0]) if affine is None else affine)
    nib.save(image, path)
    return path


def volume(shape: tuple[int, int, int] = (20, 24, 6), seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape) * 900 + 100).astype(np.float32)


# Splits of the paper


def printed_splits() -> list[dict[str, str]]:
    text = resources.files("fda_mri").joinpath("tables", "splits.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def test_splits_equal_the_authors_lists() -> None:
    table = printed_splits()
    assert len(table) == 18
    assert {row["domain"] for row in table} == set(cc359.SITES)
    for row in table:
        numbers = cc359.IDS[row["domain"]]
        indices = split_indices(len(numbers))[ROLES[row["role"]]]
        found = [f"CC{numbers[index]:04d}" for index in indices]
        assert found == row["ids"].split(), row


def test_training_scans_are_all_but_two() -> None:
    for count in (59, 60):
        splits = split_indices(count)
        assert sorted(splits["train"] + splits["source_val"]) == list(range(count))
        assert splits["train"] == sorted(splits["train"])
        assert not set(splits["val"]) & set(splits["test"])
        assert [len(splits[role]) for role in ("train", "source_val", "val", "test")] == [count - 2, 2, 10, 10]


@pytest.mark.parametrize("count", [3, 4, 9, 19, 20, 21])
def test_small_sites_are_halved(count: int) -> None:
    splits = split_indices(count)
    assert len(splits["train"]) == count - 2
    assert len(splits["source_val"]) == 2
    assert len(splits["val"]) == min(count, 20) // 2
    assert len(splits["test"]) == min(count, 20) - min(count, 20) // 2
    assert not set(splits["val"]) & set(splits["test"])


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_scans_to_split(count: int) -> None:
    with pytest.raises(InputError, match=f"has scans of {count} subjects, and the paper's rule needs at least 3"):
        split_indices(count)


@pytest.fixture(scope="module")
def cc359_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains as their owners publish them, with files of nothing: only the names count here."""
    folder = tmp_path_factory.mktemp("CC359")
    for name in ("Original", "Silver-standard"):
        (folder / name).mkdir()
    for site, vendor in (("ph15", "philips_15"), ("ge3", "ge_3")):
        for number in cc359.IDS[site]:
            stem = f"CC{number:04d}_{vendor}_55_M"
            (folder / "Original" / f"{stem}.nii.gz").touch()
            (folder / "Silver-standard" / f"{stem}_ss.nii.gz").touch()
    return folder


def test_cc359_is_split_by_the_papers_rule(cc359_folder: Path) -> None:
    for site in ("ph15", "ge3"):
        chosen = Scans(cc359_folder, site)
        for row in (row for row in printed_splits() if row["domain"] == site):
            found = [row.subject for row in select(chosen, ROLES[row["role"]])]  # type: ignore[arg-type]
            assert found == row["ids"].split()
        held_out = {row.subject for row in select(chosen, "source_val")}
        training = [row.subject for row in select(chosen, "train")]
        assert len(training) == len(cc359.IDS[site]) - 2
        assert not held_out & set(training)
    assert len(select(Scans(cc359_folder, "ph15"))) == 59
    with pytest.raises(InputError, match="holds 2 sites; name one: --site"):
        select(Scans(cc359_folder))


def test_what_learns_from_the_target_leaves_its_validation_and_test_scans_alone(cc359_folder: Path) -> None:
    for site in ("ph15", "ge3"):
        unused, val, test = (select(Scans(cc359_folder, site), role) for role in ("target_train", "val", "test"))
        assert sorted(row.subject for row in (*unused, *val, *test)) == [f"CC{n:04d}" for n in cc359.IDS[site]]
        assert len(unused) == len(cc359.IDS[site]) - 20
        folded = Scans(cc359_folder, site, fold=1)
        assert select(folded, "target_train") == select(folded, "train")


def test_site_whose_scans_all_validate_or_test(datalist: Path, tmp_path: Path) -> None:
    rows = [dataclasses.replace(row, split="") for row in Datalist.read(datalist) if row.site == "ge3"]
    listed = Datalist(tuple(rows)).write(tmp_path / "list.csv")
    with pytest.raises(InputError, match=r"list\.csv, site ge3: has scans of 5 subjects, .*: none is left to train on"):
        select(Scans(listed, "ge3"), "target_train")
    assert len(select(Scans(datalist, "ge3"), "target_train")) == 3  # the split column's


def test_all_scans_of_a_subject_play_one_role(tmp_path: Path) -> None:
    """Eleven subjects with two visits, the second ones listed behind all first ones."""
    listed = tmp_path / "list.csv"
    lines = [f"{subject}-{visit}.nii.gz,p{subject}" for visit in (1, 2) for subject in range(11)]
    listed.write_text("\n".join(["image,subject", *lines]))
    for fold in (None, 0):
        for role, indices in split_indices(11, fold).items():
            if not indices:
                continue
            found = [row.image.name for row in select(Scans(listed, fold=fold), role)]  # type: ignore[arg-type]
            assert found == [f"{index}-{visit}.nii.gz" for index in indices for visit in (1, 2)]


def test_split_column_decides_where_there_is_one(datalist: Path) -> None:
    chosen = Scans(datalist, "ge3")
    assert [len(select(chosen, role)) for role in ("train", "source_val", "val", "test", "all")] == [3, 1, 1, 1, 5]
    assert select(chosen, "source_val") == select(chosen, "val")
    assert {row.split for row in select(chosen, "test")} == {"test"}


def test_split_column_without_the_role(datalist: Path, tmp_path: Path) -> None:
    rows = [dataclasses.replace(row, split="train") for row in Datalist.read(datalist) if row.site == "ge3"]
    listed = Datalist(tuple(rows)).write(tmp_path / "list.csv")
    assert len(select(Scans(listed), "train")) == 5
    with pytest.raises(InputError, match=r"list\.csv: site ge3 has no row with split val; fill"):
        select(Scans(listed, "ge3"), "val")


def test_site_with_too_few_scans(datalist: Path, tmp_path: Path) -> None:
    rows = [dataclasses.replace(row, split="") for row in Datalist.read(datalist) if row.site == "ge3"][:2]
    listed = Datalist(tuple(rows)).write(tmp_path / "list.csv")
    with pytest.raises(
        InputError, match=r"list\.csv, site ge3: has scans of 2 subjects, and the paper's rule needs at least 3"
    ):
        select(Scans(listed, "ge3"), "train")


# Reading and normalising


def test_scans_are_normalised_ras_and_rounded_to_half_precision(datalist: Path) -> None:
    for site in ("sm15", "ge3"):
        chosen = Scans(datalist, site)
        for scan in load(select(chosen), chosen):
            image = nib.as_closest_canonical(nib.load(scan.row.image))
            expected = normalise_volume(image.get_fdata(dtype=np.float32))
            assert np.array_equal(scan.volume, np.asarray(expected).astype(np.float16).astype(np.float32))
            assert (scan.volume.min(), scan.volume.max()) == (0, 1)
            assert scan.row.mask is not None
            mask = nib.as_closest_canonical(nib.load(scan.row.mask))
            assert scan.mask is not None
            assert np.array_equal(scan.mask, mask.get_fdata() > 0.5)
            assert scan.name == scan.row.image.name.split(".")[0]


def test_interpolated_masks_are_cut_at_one_half(tmp_path: Path) -> None:
    image = write(tmp_path / "image.nii.gz", volume())
    soft = np.zeros((20, 24, 6), np.float32)
    soft[5], soft[6], soft[7] = 0.5, 0.51, 1.0
    write(tmp_path / "mask.nii.gz", soft)
    listed = tmp_path / "list.csv"
    listed.write_text("image,mask\nimage.nii.gz,mask.nii.gz\n")
    (scan,) = load(select(Scans(listed)), Scans(listed), need_mask=True)
    assert scan.mask is not None
    assert np.flatnonzero(scan.mask.any((1, 2))).tolist() == [6, 7]
    assert scan.row.image == image


@pytest.mark.parametrize(("keep", "kept"), [(None, 6), (0, 6), (4, 4), (9, 6)])
def test_slices_are_kept_from_the_bottom(keep: int | None, kept: int, tmp_path: Path) -> None:
    array = volume()
    array[..., 4:] *= 50  # would change the percentiles if it were not dropped first
    scan = one(write(tmp_path / "image.nii.gz", array), tmp_path, keep_slices=keep)
    assert scan.volume.shape == (20, 24, kept)
    expected = np.asarray(normalise_volume(array[..., :kept]))  # type: ignore[arg-type]
    np.testing.assert_allclose(scan.volume, expected, atol=5e-4)
    assert scan.grid.shape == (20, 24, 6)


def test_ten_top_slices_of_mni152_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (scans.MNI152_SHAPE, scans.PAPER_SLICES) == ((182, 218, 182), 172)
    monkeypatch.setattr(scans, "MNI152_SHAPE", (20, 24, 6))
    monkeypatch.setattr(scans, "PAPER_SLICES", 5)
    path = write(tmp_path / "image.nii.gz", volume())
    assert one(path, tmp_path).volume.shape[-1] == 5
    assert one(path, tmp_path, keep_slices=0).volume.shape[-1] == 6
    other = write(tmp_path / "other.nii.gz", volume((20, 24, 7)))
    assert one(other, tmp_path).volume.shape[-1] == 7


def test_blank_slices_at_the_ends_are_no_problem(tmp_path: Path) -> None:
    array = volume()
    array[..., [0, 5]] = 0
    assert one(write(tmp_path / "image.nii.gz", array), tmp_path).volume.shape == (20, 24, 6)


@pytest.mark.parametrize(
    ("blank", "settings", "problem"),
    [
        ([3], {}, "slice 3 is zero throughout and lies between others; repair"),
        ([1, 3], {}, "slice 1 is zero throughout"),
        ([0, 1], {"keep_slices": 2}, "all kept slices are zero; check the file and --keep-slices"),
    ],
)
def test_blank_slices_inside(blank: list[int], settings: Any, problem: str, tmp_path: Path) -> None:
    array = volume()
    array[..., blank] = 0
    path = write(tmp_path / "image.nii.gz", array)
    with pytest.raises(InputError, match=rf"image\.nii\.gz: {problem}"):
        one(path, tmp_path, **settings)


def test_mask_that_is_needed_and_missing(tmp_path: Path) -> None:
    write(tmp_path / "image.nii.gz", volume())
    listed = tmp_path / "list.csv"
    listed.write_text("image\nimage.nii.gz\n")
    with pytest.raises(InputError, match=r"list\.csv, row 2, column mask: no mask; give the mask of every scan"):
        list(load(select(Scans(listed)), Scans(listed), need_mask=True))


# Grids


def test_scans_must_share_a_grid_unless_resampled(datalist: Path) -> None:
    plain, resampled = Scans(datalist, "sm3"), Scans(datalist, "sm3", resample=True)
    source = Scans(datalist, "sm15")
    (first,) = load(select(source)[:1], source)
    rows = select(plain)[:1]
    with pytest.raises(InputError, match=r"sm3_2000\.nii\.gz: lies on another grid .* resample them with --resample"):
        list(load(rows, plain, first.grid))
    (scan,) = load(rows, resampled, first.grid)
    assert scan.volume.shape == first.volume.shape
    assert np.array_equal(scan.grid.affine, first.grid.affine)
    assert scan.mask is not None
    # Resampling moves a mask's border by less than a voxel: the volume in mm stays.
    own = read_mask(rows[0].mask, None)  # type: ignore[arg-type]
    size, own_size = (
        mask.sum() * np.prod(grid.spacing)
        for mask, grid in ((scan.mask, scan.grid), (own, Grid.of(read_volume(rows[0].image))))
    )
    assert size == pytest.approx(own_size, rel=0.05)


def test_spacing_without_the_rounding_of_headers() -> None:
    grid = Grid((2, 2, 2), np.diag([1.0000001, 1.7999999523, 0.00012, 1]))
    assert grid.spacing == (1.0, 1.8, 0.00012)
    same = Grid.from_json(grid.to_json())
    assert same.shape == grid.shape
    assert np.array_equal(same.affine, grid.affine)


def test_first_scan_sets_the_grid(datalist: Path) -> None:
    both = [*select(Scans(datalist, "sm15"))[:1], *select(Scans(datalist, "sm3"))[:1]]
    with pytest.raises(InputError, match="another grid"):
        list(load(both, Scans(datalist)))


def test_scans_elsewhere_in_the_world(tmp_path: Path, datalist: Path) -> None:
    far = np.diag([4.0, 4.0, 14.0, 1.0])
    far[:3, 3] = 5000
    write(tmp_path / "far.nii.gz", volume(), far)
    listed = tmp_path / "list.csv"
    listed.write_text("image\nfar.nii.gz\n")
    source = Scans(datalist, "sm15")
    (first,) = load(select(source)[:1], source)
    with pytest.raises(InputError, match=r"far\.nii\.gz: does not overlap .*; register it"):
        list(load(select(Scans(listed)), Scans(listed, resample=True), first.grid))


def test_a_mask_above_the_kept_slices_is_seen(tmp_path: Path) -> None:
    mask = np.zeros((6, 6, 6), np.uint8)
    mask[2:4, 2:4, 1:5] = 1
    write(tmp_path / "image.nii.gz", volume((6, 6, 6)))
    write(tmp_path / "mask.nii.gz", mask)
    listed = tmp_path / "list.csv"
    listed.write_text("image,mask\nimage.nii.gz,mask.nii.gz\n")
    for keep, above in ((4, True), (5, False), (0, False)):
        chosen = Scans(listed, keep_slices=keep)
        assert [scan.mask_above for scan in load(select(chosen), chosen)] == [above]


def test_a_constant_scan_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "image.nii.gz", np.full((6, 6, 6), 7.0))
    with pytest.raises(InputError, match=r"image\.nii\.gz: the 1st and 99th percentile are one value; check the file"):
        one(path, tmp_path)


# Writing on the scan's own grid


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR", "ILA"])
def test_values_return_to_the_voxels_they_came_from(codes: str, tmp_path: Path) -> None:
    array = volume((20, 24, 6))
    like = Volume(array, np.diag([2.0, 2.5, 3.0, 1.0]), original_orientation=codes)
    path = write_volume(tmp_path / "image.nii.gz", array, like)
    scan = one(path, tmp_path, keep_slices=4)
    assert scan.volume.shape == (20, 24, 4)
    values = scan.volume + 1
    before = nib.load(path)
    for threshold, expected in ((None, values), (1.5, values > 1.5)):
        out = scan.write(tmp_path / "result.nii.gz", values, threshold)
        after = nib.load(out)
        assert after.shape == before.shape
        np.testing.assert_allclose(after.affine, before.affine)
        canonical = nib.as_closest_canonical(after)
        assert np.array_equal(canonical.get_fdata()[..., :4], expected)
        assert not canonical.get_fdata()[..., 4:].any()
        assert after.get_data_dtype() == (np.float32 if threshold is None else np.uint8)


def test_results_of_resampled_scans_return_to_their_file(datalist: Path, tmp_path: Path) -> None:
    source, target = Scans(datalist, "sm15"), Scans(datalist, "sm3", resample=True)
    (first,) = load(select(source)[:1], source)
    (scan,) = load(select(target)[:1], target, first.grid)
    assert scan.mask is not None
    assert scan.row.mask is not None
    out = scan.write(tmp_path / "mask.nii.gz", scan.mask.astype(np.float32), 0.5)
    written = nib.load(out)
    original = nib.load(scan.row.image)
    assert written.shape == original.shape
    np.testing.assert_allclose(written.affine, original.affine, atol=1e-4)
    there, truth = read_mask(out, None), read_mask(scan.row.mask, None)
    assert 2 * (there & truth).sum() / (there.sum() + truth.sum()) > 0.95


@pytest.mark.parametrize("count", [59, 60])
def test_folds_of_the_in_domain_score(count: int) -> None:
    """Specification 5.4: three held-out thirds cover a site once; two of the others validate."""
    folds = [split_indices(count, fold) for fold in (0, 1, 2)]
    assert sorted(index for fold in folds for index in fold["test"]) == list(range(count))
    for fold in folds:
        assert len(fold["test"]) in (19, 20)
        assert len(fold["source_val"]) == 2
        assert sorted(fold["train"] + fold["source_val"] + fold["test"]) == list(range(count))


def test_a_fold_needs_six_scans() -> None:
    with pytest.raises(InputError, match="has scans of 5 subjects, and the paper's rule needs at least 6"):
        split_indices(5, 0)
