from __future__ import annotations

import dataclasses
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage

from dart_core.data import scans
from dart_core.data.catalog import cc359, prostate
from dart_core.data.datalist import Datalist, Row
from dart_core.data.phantoms import write_head_mr
from dart_core.data.scans import (
    centre_patch,
    check_scans,
    largest_component,
    load_scan,
    load_scans,
    open_datalist,
    predict_scan,
    prostate_slices,
    report_missing,
    require_subjects,
    rows_of,
    slice_stack,
    subject_of,
    unique_names,
)
from dart_core.data.volumes import read_mask
from dart_core.errors import InputError
from dart_core.settings import ScanSettings

SPACING = (1.3, 0.9, 3.0)


def save(path: Path, array: np.ndarray, spacing=SPACING, codes: str = "RAS") -> Path:
    """Write a RAS array, stored with other axis codes."""
    image = nibabel.Nifti1Image(array, np.diag([*spacing, 1.0]))
    ornt = nibabel.orientations.axcodes2ornt(tuple(codes))
    image.as_reoriented(
        nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), ornt)
    ).to_filename(path)
    return path


def image_and_mask(shape=(12, 14, 6)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = np.zeros(shape, np.uint8)
    mask[3:9, 4:11, 1:5] = 1
    return (rng.random(shape) * 100 + 500.0 * mask).astype(np.float32), mask


@pytest.fixture
def row(tmp_path):
    image, mask = image_and_mask()
    save(tmp_path / "image.nii.gz", image, codes="LPS")
    save(tmp_path / "mask.nii.gz", mask, codes="PIR")
    return Row(tmp_path / "image.nii.gz", tmp_path / "mask.nii.gz", "s1", "A", "train", source=tmp_path / "list.csv")


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    return write_head_mr(tmp_path_factory.mktemp("heads"), ("sm15", "ge3"), 4, (24, 28, 8), 0)


# Datalists


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_public_folders_come_with_their_published_splits(tmp_path):
    numbers = (120, 121, 136, 300)
    for number in numbers:
        stem = f"CC{number:04d}_{'siemens_15' if number < 180 else 'ge_3'}_55_M"
        touch(tmp_path / "cc" / "Original" / f"{stem}.nii.gz")
        touch(tmp_path / "cc" / "Silver-standard" / f"{stem}_ss.nii.gz")
    listed = open_datalist(tmp_path / "cc")
    split_of = {
        (site, subject): (split, place)
        for site, parts in cc359.published_split().items()
        for place, (split, subject) in enumerate((s, name) for s, names in parts.items() for name in names)
    }
    assert {row.subject for row in listed} == {f"CC{number:04d}" for number in numbers}
    places = [split_of[row.site, row.subject] for row in listed if row.site == "sm15"]
    assert [row.split for row in listed if row.site == "sm15"] == [split for split, _ in places]
    assert [place for _, place in places] == sorted(place for _, place in places)
    plain = open_datalist(tmp_path / "cc", published_splits=False)
    assert plain.splits == ()
    assert any("60 scans are missing" in line for line in report_missing(tmp_path / "cc"))
    (tmp_path / "list.csv").write_text("image\nx.nii.gz\n")
    assert report_missing(tmp_path / "list.csv") == []
    assert [row.subject for row in plain] == sorted(row.subject for row in plain)


def test_the_prostate_collection(tmp_path):
    for name in ("Case00", "Case05", "Case09"):
        touch(tmp_path / "p" / "BIDMC" / f"{name}.nii.gz")
        touch(tmp_path / "p" / "BIDMC" / f"{name}_segmentation.nii.gz")
    listed = open_datalist(tmp_path / "p")
    assert listed.sites == ("BIDMC",)
    published = prostate.published_split()["BIDMC"]
    expected = [(subject, split) for split, names in published.items() for subject in names]
    there = [pair for pair in expected if pair[0][-2:] in ("00", "05", "09")]
    assert len(there) == 3
    assert [(row.subject, row.split) for row in listed] == there


def test_folders_that_are_something_and_broken_or_nothing(tmp_path):
    touch(tmp_path / "p" / "BIDMC" / "Case00.nii.gz")
    with pytest.raises(InputError, match=r"Case00\.nii\.gz: no outline Case00_segmentation"):
        open_datalist(tmp_path / "p")
    (tmp_path / "cc" / "Original").mkdir(parents=True)
    (tmp_path / "cc" / "Silver-standard").mkdir()
    with pytest.raises(InputError, match="cc: no scan of CC359 in this folder"):
        open_datalist(tmp_path / "cc")
    (tmp_path / "x").mkdir()
    with pytest.raises(InputError, match=r"x: this is not a CC359 folder .* prostate .* and it holds no dataset\.json"):
        open_datalist(tmp_path / "x")
    with pytest.raises(InputError, match="datalist not found"):
        open_datalist(tmp_path / "none.csv")


def test_scans_that_the_published_lists_lack_come_last(tmp_path):
    for number in (1, 26, 99):
        touch(tmp_path / "UCL" / f"Case{number:02d}.nii.gz")
        touch(tmp_path / "UCL" / f"Case{number:02d}_segmentation.nii.gz")
    *listed, last = open_datalist(tmp_path)
    assert (last.subject, last.split) == ("UCL_Case99", "")
    assert all(row.split for row in listed)


def test_datalist_files_and_decathlon_folders(heads, tmp_path):
    assert open_datalist(heads).sites == ("sm15", "ge3")
    (tmp_path / "dataset.json").write_text('{"training": [{"image": "a.nii.gz", "label": "b.nii.gz"}]}')
    assert open_datalist(tmp_path)[0].split == "train"


def rows(*cells: tuple[str, str, str]) -> Datalist:
    made = [Row(Path(f"{subject}.nii.gz"), None, subject, site, split) for subject, site, split in cells]
    return Datalist(tuple(made), Path("list.csv"))


def test_rows_of_sites_and_splits():
    listed = rows(("a", "X", "train"), ("b", "Y", "train"), ("c", "X", "test"), ("d", "Y", "train"))
    assert [row.subject for row in rows_of(listed, ["Y", "X"], "train")] == ["b", "d", "a"]
    assert [row.subject for row in rows_of(listed, ["X"], None)] == ["a", "c"]
    assert [row.subject for row in rows_of(listed, [], "train")] == ["a", "b", "d"]
    assert [row.subject for row in rows_of(listed, ["X", "X"])] == ["a", "c"]
    with pytest.raises(InputError, match=r"list\.csv: site Y has no row with split test \(there: train\); write test"):
        rows_of(listed, ["X", "Y"], "test")
    with pytest.raises(InputError, match=r"list\.csv: no row with split val \(there: train, test\)"):
        rows_of(listed, [], "val")
    with pytest.raises(InputError, match="no row has site 'Z'; sites there: X, Y"):
        rows_of(listed, ["Z"], "train")
    unsplit = rows(("a", "X", ""), ("b", "Y", ""))
    with pytest.raises(
        InputError, match="says of no scan that it is for train; add a column split with train, val and"
    ):
        rows_of(unsplit, ["X"], "train")
    assert len(rows_of(unsplit, ["X"])) == 1


def test_enough_subjects():
    """Two sites may use the same numbers for different people; two scans of one person count once."""
    listed = list(rows(("1", "X", ""), ("1", "X", ""), ("1", "Y", "")))
    require_subjects(listed, 2, "all")
    with pytest.raises(InputError, match="site X: 1 subject, at least 2 are needed; add scans of other subjects"):
        require_subjects(listed[:2], 2, "site X")
    with pytest.raises(InputError, match="site Z: 0 subjects, at least 1 are needed"):
        require_subjects([], 1, "site Z")
    nameless = [Row(Path("a/x.nii.gz")), Row(Path("b/y.nii"))]
    assert [subject_of(row) for row in nameless] == ["x", "y"]
    require_subjects(nameless, 2, "all")


def test_names_of_predictions_are_unique():
    def names(*cells: tuple[str, str]) -> list[str]:
        return unique_names([Row(Path(image), subject=subject) for image, subject in cells])

    assert names(("a/x.nii.gz", "s1"), ("a/y.nii", "s2")) == ["x", "y"]
    assert names(("a/t1.nii.gz", "s1"), ("b/t1.nii.gz", "s2")) == ["s1_t1", "s2_t1"]
    assert names(("a/t1.nii.gz", ""), ("b/t1.nii.gz", "")) == ["000_t1", "001_t1"]
    assert len(set(names(("a/t1.nii.gz", "s"), ("b/t1.nii.gz", "s"), ("c/z.nii", "s")))) == 3
    frames = [Row(Path("a_sa.nii.gz"), subject="a", labels={"frame": frame}) for frame in ("0", "9")]
    assert unique_names(frames) == ["a_sa_frame0", "a_sa_frame9"]


# Preprocessing


def test_cc359_preprocessing_by_hand(row, tmp_path):
    """spottunet 5.1: splines, then percentiles of the resampled volume, then [0, 1], float16; the mask from 0.5."""
    image, mask = image_and_mask()
    scan = load_scan(row, ScanSettings(row.source), need_mask=True)
    factors = np.divide(SPACING, (1, 0.95, 0.95))
    assert scan.volume.shape == tuple(round(side * f) for side, f in zip(image.shape, factors, strict=True))
    expected = ndimage.zoom(image, factors, order=3, mode="mirror")
    expected = np.clip(expected, *np.percentile(expected, (1, 99)))
    expected -= expected.min()
    expected /= expected.max()
    assert scan.volume.dtype == np.float16
    assert_allclose(scan.volume, expected, atol=1e-3)
    assert (scan.volume.min(), scan.volume.max()) == (0, 1)
    assert_array_equal(scan.truth, ndimage.zoom(mask.astype(float), factors, order=3, mode="mirror") >= 0.5)
    # Metrics take the size that was asked for; the affine says exactly where the voxels lie.
    assert scan.spacing == (1, 0.95, 0.95)
    assert_allclose(
        scan.grid.spacing,
        [(a - 1) * s / (b - 1) for a, s, b in zip((12, 14, 6), SPACING, scan.volume.shape, strict=True)],
    )
    assert (scan.name, scan.site, scan.subject) == ("image", "A", "s1")
    assert scan.file.array.shape == (12, 14, 6)


def test_prostate_preprocessing_by_hand(row, tmp_path):
    """mmtl-octl 5.2: mean and population standard deviation of the whole volume; label 2 merged into 1; no resampling."""
    image, mask = image_and_mask()
    mask[5] *= 2
    save(row.mask, mask)
    scan = load_scan(row, ScanSettings(row.source, "prostate"), need_mask=True)
    assert_allclose(scan.volume, (image - image.mean()) / image.std(), atol=1e-5)
    assert scan.volume.dtype == np.float32
    assert_array_equal(scan.truth, mask > 0)
    assert scan.spacing == SPACING
    assert scan.grid is scan.file
    assert ScanSettings(row.source, "prostate").channels == 3
    assert load_scan(row, ScanSettings(row.source, "prostate", spacing=(1.3, 0.9, 1.5))).volume.shape == (12, 14, 12)


def test_plain_preprocessing_by_hand(row):
    image, mask = image_and_mask()
    scan = load_scan(row, ScanSettings(row.source, "plain"))
    low, high = np.percentile(image, (1, 99))
    assert_allclose(scan.volume, (np.clip(image, low, high) - low) / (high - low), atol=1e-3)
    assert scan.volume.dtype == np.float16
    assert_array_equal(scan.truth, mask == 1)
    assert ScanSettings(row.source, "plain").channels == 1


def test_the_spacing_for_metrics_has_no_dust_of_headers(row):
    """A header of 1.0000001 mm must not put neighbours beyond a tolerance of 1 mm."""
    angle = 0.3
    affine = np.eye(4, dtype=np.float32)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    nibabel.Nifti1Image(image_and_mask()[0], affine).to_filename(row.image)
    scan = load_scan(dataclasses.replace(row, mask=None), ScanSettings(row.source, "plain"))
    assert scan.spacing == (1, 1, 1)


def test_a_frame_of_a_cine(row, tmp_path):
    image, mask = image_and_mask()
    cine = np.stack([image * 0 + 1, image], -1)
    nibabel.Nifti1Image(cine, np.diag([*SPACING, 1])).to_filename(row.image)
    save(row.mask, mask)
    chosen = dataclasses.replace(row, labels={"frame": "1"})
    scan = load_scan(chosen, ScanSettings(row.source, "plain", cache=tmp_path / "cache"), need_mask=True)
    assert scan.volume.shape == image.shape
    assert_array_equal(scan.truth, mask == 1)
    assert nibabel.load(scan.write(tmp_path / "out.nii.gz", scan.truth)).shape == image.shape
    with pytest.raises(InputError, match=r"column frame: 'ED' is no frame; write its number"):
        load_scan(dataclasses.replace(row, labels={"frame": "ED"}), ScanSettings(row.source))
    with pytest.raises(InputError, match="an array of 12 x 14 x 6 x 2, not one 3-D volume"):
        load_scan(row, ScanSettings(row.source))


def test_the_cache_gives_the_same_and_follows_settings_and_files(row, tmp_path, monkeypatch):
    cached = ScanSettings(row.source, cache=tmp_path / "cache")
    plain = load_scan(row, ScanSettings(row.source), need_mask=True)
    first = load_scan(row, cached, need_mask=True)
    reads = []
    monkeypatch.setattr(scans, "read_volume", lambda *a, **k: reads.append(a))
    monkeypatch.setattr(scans, "read_mask", lambda *a, **k: reads.append(a))
    again = load_scan(row, cached, need_mask=True)
    assert not reads
    for scan in (first, again):
        assert_array_equal(scan.volume, plain.volume)
        assert_array_equal(scan.truth, plain.truth)
        assert scan.volume.dtype == np.float16
        assert_array_equal(scan.grid.affine, plain.grid.affine)
        assert_array_equal(scan.file.affine, plain.file.affine)
    monkeypatch.undo()
    other = load_scan(row, dataclasses.replace(cached, preprocessing="prostate"))
    assert other.volume.shape != first.volume.shape
    assert other.volume.dtype == np.float32
    image, _ = image_and_mask()
    save(row.image, -image)
    assert not np.array_equal(load_scan(row, cached).volume, first.volume)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR"])
@pytest.mark.parametrize("preprocessing", ["cc359", "plain"])
def test_values_go_back_to_the_files_own_voxels(codes, preprocessing, tmp_path):
    image, mask = image_and_mask((20, 24, 10))
    save(tmp_path / "image.nii.gz", image, codes=codes)
    row = Row(tmp_path / "image.nii.gz", save(tmp_path / "mask.nii.gz", mask, codes=codes))
    scan = load_scan(row, ScanSettings(tmp_path, preprocessing), need_mask=True)
    before = nibabel.load(row.image)
    out = tmp_path / "out.nii.gz"

    def written(values, threshold=None):
        after = nibabel.load(scan.write(out, values, threshold))
        assert after.shape == before.shape
        assert_allclose(after.affine, before.affine, atol=1e-6)
        return after

    assert written(scan.truth).get_data_dtype() == np.uint8
    there = read_mask(out, None)
    assert 2 * (there & (mask == 1)).sum() / (there.sum() + mask.sum()) > 0.97
    soft = written(scan.truth * np.float32(0.8), 0.5)
    assert soft.get_data_dtype() == np.uint8
    # A field that is linear in the world keeps its values; one that is constant keeps them up to the border.
    ramp = np.einsum("i,ixyz->xyz", scan.grid.affine[0, :3], np.indices(scan.volume.shape).astype(float))
    world = nibabel.as_closest_canonical(written(ramp)).get_fdata()
    assert_allclose(world, np.broadcast_to(SPACING[0] * np.arange(20)[:, None, None], (20, 24, 10)), atol=1e-4)
    assert_allclose(written(np.ones(scan.volume.shape, np.float32)).get_fdata(), 1, atol=1e-6)
    labels = np.where(scan.truth, 3, 1).astype(np.int16)
    assert set(np.unique(written(labels).get_fdata())) == {1, 3}
    on_grid = nibabel.as_closest_canonical(nibabel.load(scan.write_preprocessed(tmp_path / "grid.nii.gz", scan.truth)))
    assert_array_equal(on_grid.get_fdata() == 1, scan.truth)
    with pytest.raises(InputError, match="values of shape"):
        scan.write(out, labels[:-1])


# What is wrong with data


def test_a_scan_that_needs_a_mask(row):
    naked = dataclasses.replace(row, mask=None, line=7)
    scan = load_scan(naked, ScanSettings(row.source))
    for call in (lambda: load_scan(naked, ScanSettings(row.source), need_mask=True), lambda: scan.truth):
        with pytest.raises(InputError, match=r"list\.csv, row 7, column mask: no mask; give the mask of every scan"):
            call()


def test_every_problem_is_one_line(tmp_path):
    image, mask = image_and_mask()
    made = {
        "good": (image, mask),
        "labels": (image, mask * np.arange(1, 7, dtype=np.uint8)),
        "grid": (image, mask[:-1]),
        "flat": (image * 0 + 5, mask),
        "thin": (image[..., :3], mask[..., :3]),
        "naked": (image, None),
        "broken": (image, mask),
        "zero": (image, mask),
        "cine": (np.stack([image, image], -1), mask),
        "nan": (np.where(mask, np.nan, image), mask * np.arange(1, 7, dtype=np.uint8)),
    }
    lines = ["image,mask,subject,site,split"]
    for name, (voxels, labels) in made.items():
        if voxels.ndim == 3:
            save(tmp_path / f"{name}.nii", voxels.astype(np.float32))
        else:
            nibabel.Nifti1Image(voxels, np.diag([*SPACING, 1])).to_filename(tmp_path / f"{name}.nii")
        if labels is not None:
            save(tmp_path / f"{name}_m.nii", labels)
        lines.append(f"{name}.nii,{name + '_m.nii' if labels is not None else ''},{name},A,train")
    content = bytearray((tmp_path / "zero.nii").read_bytes())
    content[88:92] = np.float32(0).tobytes()  # pixdim[3]
    (tmp_path / "zero.nii").write_bytes(content)
    (tmp_path / "broken.nii").write_bytes((tmp_path / "broken.nii").read_bytes()[:-9])
    path = tmp_path / "list.csv"
    path.write_text("\n".join(lines) + "\n")
    expected = [
        ("row 3, column mask", "labels_m.nii: the mask holds the labels 2, 3, 4, 5; write a mask of one structure"),
        ("row 4, column mask", "grid_m.nii: the mask has 11 x 14 x 6 voxels, the image grid.nii 12 x 14 x 6"),
        ("row 5, column image", "flat.nii: the image has no contrast"),
        ("row 7, column mask", "this row has no mask; name its mask file"),
        ("row 8, column image", "broken.nii: the file is truncated or damaged"),
        ("row 9, column image", "zero.nii: the voxel size in the header is"),
        ("row 10, column image", "cine.nii: the file holds an array of 12 x 14 x 6 x 2"),
        ("row 11, column image", "nan.nii: 168 voxels are NaN or infinite"),
        ("row 11, column mask", "nan_m.nii: the mask holds the labels"),
    ]
    found = check_scans(open_datalist(path), ScanSettings(path, "plain"), need_mask=True)
    assert len(found) == len(expected), found
    for line, (cell, words) in zip(found, expected, strict=True):
        assert f"{path}, {cell}: " in line
        assert words in line
        assert "\n" not in line
    # The same lines stop a training run, one at a time.
    for row in open_datalist(path)[1:]:
        problem = next((line for line in found if f", row {row.line}, " in line), None)
        if problem is not None:
            with pytest.raises(InputError):
                load_scan(row, ScanSettings(path, "plain"), need_mask=True)
    # Prostate: labels are one, and three slices are too few for training.
    found = check_scans(open_datalist(path), ScanSettings(path, "prostate"), need_mask=False)
    assert [line.split(",")[1].strip() for line in found] == [f"row {n}" for n in (4, 5, 6, 8, 9, 10, 11)]
    assert "thin.nii: has 3 slices, at least 4 are needed; leave it out" in found[2]
    assert not check_scans(open_datalist(path)[:1], ScanSettings(path), least_slices=19)
    assert len(check_scans(open_datalist(path)[:1], ScanSettings(path), least_slices=20)) == 1
    bad_frame = dataclasses.replace(open_datalist(path)[0], labels={"frame": "x"})
    (line,) = check_scans(Datalist((bad_frame,), path), ScanSettings(path))
    assert "column frame: " in line


def test_phantoms_have_no_problem(heads):
    settings_ = ScanSettings(heads, "plain")
    assert check_scans(open_datalist(heads), settings_, need_mask=True) == []
    loaded = load_scans(rows_of(open_datalist(heads), ["ge3"], "train"), settings_, need_mask=True)
    assert loaded
    assert {scan.site for scan in loaded} == {"ge3"}


# Slices


def test_neighbouring_slices_repeat_at_the_ends():
    volume = np.arange(4, dtype=np.float16) * np.ones((2, 3, 1), np.float16)
    assert [slice_stack(volume, z, 3)[:, 0, 0].tolist() for z in range(4)] == [
        [0, 0, 1],
        [0, 1, 2],
        [1, 2, 3],
        [2, 3, 3],
    ]
    assert slice_stack(volume, 0, 5)[:, 0, 0].tolist() == [0, 0, 0, 1, 2]
    one = slice_stack(volume, 2)
    assert (one.shape, one.dtype) == ((1, 2, 3), np.float32)
    with pytest.raises(ValueError, match="must be odd"):
        slice_stack(volume, 0, 2)


def test_a_patch_of_a_narrow_slice_is_centred_on_both_axes():
    """spottunet 5.1: one side under the patch's, so the centre is side // 2 on both, also with a generator."""
    image = np.arange(3 * 12, dtype=np.float32).reshape(1, 3, 12) + 5
    mask = np.ones((3, 12), bool)
    for rng in (None, np.random.default_rng(0)):
        patch, truth = centre_patch(image, mask, 8, rng)
        # Rows: centre 1, start 1 - 4 = -3. Columns: centre 6, start 6 - 4 = 2.
        assert_array_equal(patch[0, 3:6], image[0, :, 2:10])
        assert_array_equal(np.delete(patch[0], [3, 4, 5], 0), np.full((5, 8), 5))
        assert_array_equal(np.flatnonzero(truth.any(1)), [3, 4, 5])
        assert truth.sum() == 24
        assert patch.dtype == np.float32


def test_every_place_of_a_patch_is_as_likely():
    image = np.arange(10 * 9).reshape(1, 10, 9)
    rng = np.random.default_rng(0)
    counts = np.zeros((3, 2))
    for _ in range(600):
        patch, nothing = centre_patch(image, None, 8, rng)
        assert nothing is None
        counts[np.divmod(patch[0, 0, 0], 9)] += 1
    assert_allclose(counts, 100, atol=35)
    centred, _ = centre_patch(image, None, 8)
    assert np.divmod(centred[0, 0, 0], 9) == (1, 0)  # 10 // 2 - 4, 9 // 2 - 4


@settings(deadline=None, max_examples=60)
@given(
    sides=st.tuples(*[st.integers(1, 20)] * 2),
    size=st.integers(1, 24),
    channels=st.integers(1, 3),
    random=st.booleans(),
)
def test_patches_keep_image_and_mask_together(sides, size, channels, random):
    mask = np.random.default_rng(1).random(sides) < 0.5
    image = np.broadcast_to(np.where(mask, 2.0, 1.0), (channels, *sides)) * np.arange(1, channels + 1)[:, None, None]
    patch, truth = centre_patch(image, mask, size, np.random.default_rng(2) if random else None)
    assert patch.shape == (channels, size, size)
    for channel in range(channels):  # the minimum of each channel fills what is outside, or 2 c where all is mask
        assert_array_equal(patch[channel][truth], 2.0 * (channel + 1))
        assert set(np.unique(patch[channel][~truth])) <= {1.0 * (channel + 1), image[channel].min()}
    assert truth.sum() == mask.sum() or size < max(sides)


def test_patches_of_things_that_do_not_fit():
    with pytest.raises(InputError, match="do not fit"):
        centre_patch(np.zeros((1, 4, 4)), np.zeros((4, 5)), 2)
    with pytest.raises(InputError, match="do not fit"):
        centre_patch(np.zeros((4, 4)), np.zeros((4, 4)), 2)


def test_prostate_slices():
    """mmtl-octl 5.2: 1 to Z - 3; zmin <= i < zmax always, so the last slice with prostate is lost; else one in ten."""
    mask = np.zeros((3, 3, 40), bool)
    mask[1, 1, 10:21] = True
    drawn = [prostate_slices(mask, np.random.default_rng(seed)) for seed in range(400)]
    assert all(set(range(10, 20)) <= set(slices) for slices in drawn)
    assert all(slices == sorted(slices) and slices[0] >= 1 and slices[-1] <= 37 for slices in drawn)
    others = [z for z in range(1, 38) if not 10 <= z < 20]
    rate = np.mean([[z in slices for z in others] for slices in drawn], axis=0)
    assert rate[others.index(20)] < 0.2
    assert rate.mean() == pytest.approx(0.1, abs=0.01)
    assert prostate_slices(mask, np.random.default_rng(3)) == drawn[3]
    everywhere = np.ones((2, 2, 6), bool)
    assert set(range(1, 4)) == set(prostate_slices(everywhere, np.random.default_rng(0)))
    empty = [prostate_slices(mask[:1] & False, np.random.default_rng(seed)) for seed in range(50)]
    assert 0.03 < np.mean([len(slices) / 37 for slices in empty]) < 0.17


class Neighbours(torch.nn.Module):
    """Logits that say what was seen: the channels, and the mode of a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        assert x.shape[-2] % 8 == 0
        assert x.shape[-1] % 8 == 0
        return self.norm(x)


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_a_network_sees_every_slice_with_its_neighbours(batch_size):
    volume = np.random.default_rng(0).random((9, 17, 7)).astype(np.float16)
    volume.flags.writeable = False
    network = Neighbours().train()
    network.norm.eval()
    logits = predict_scan(network, volume, channels=3, batch_size=batch_size)
    assert (logits.shape, logits.dtype, logits.device.type) == ((3, 9, 17, 7), torch.float32, "cpu")
    expected = np.stack([slice_stack(volume, z, 3) for z in range(7)], -1) / np.sqrt(1 + 1e-5)
    assert_allclose(logits.numpy(), expected, rtol=1e-6)
    assert network.training
    assert not network.norm.training
    assert not logits.requires_grad


def test_padding_is_the_minimum_of_the_slice():
    volume = np.full((3, 3, 2), 5, np.float32)
    volume[..., 1] = -2
    seen = []

    def network(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x[:, :1]

    assert_array_equal(predict_scan(network, volume)[0].numpy(), volume)
    (x,) = seen
    assert_array_equal(x.amin((1, 2, 3)).numpy(), [5, -2])
    assert x.shape == (2, 1, 8, 8)


def test_networks_and_volumes_that_do_not_fit():
    volume = np.zeros((8, 8, 2), np.float32)
    with pytest.raises(InputError, match=r"the network gave \(2, 1, 4, 4\) for \(2, 1, 8, 8\)"):
        predict_scan(torch.nn.MaxPool2d(2), volume)
    with pytest.raises(InputError, match=r"a volume \(H, W, Z\) is needed, not shape \(8, 8\)"):
        predict_scan(torch.nn.Identity(), volume[..., 0])
    with pytest.raises(InputError, match="has no slice"):
        predict_scan(torch.nn.Identity(), volume[..., :0])


# Components


def test_the_largest_component():
    mask = np.zeros((6, 6, 6), np.uint8)
    mask[0, 0, :2] = 1
    mask[1, 1, 2:5] = 1  # touches the first across an edge only: another component
    mask[5, 5, 5] = 1
    kept = largest_component(mask)
    assert kept.dtype == bool
    assert np.argwhere(kept).tolist() == [[1, 1, 2], [1, 1, 3], [1, 1, 4]]
    assert not mask.all()
    assert_array_equal(largest_component(kept), kept)


def test_the_largest_component_of_nothing_is_nothing():
    """mmtl-octl 8.7: the authors' routine made it everything."""
    assert not largest_component(np.zeros((3, 4, 5))).any()
    assert largest_component(np.ones((3, 4, 5))).all()
    assert largest_component(np.array([[1, 0, 1, 1]])).tolist() == [[False, False, True, True]]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_largest_component_properties(seed, density):
    mask = np.random.default_rng(seed).random((6, 7, 5)) < density
    kept = largest_component(mask)
    assert not (kept & ~mask).any()
    assert ndimage.label(kept)[1] == (1 if mask.any() else 0)
    labels, count = ndimage.label(mask)
    assert kept.sum() == max((labels == i).sum() for i in range(count + 1) if i or not count) * bool(count)
