"""Fingerprint, cropping, resampling and normalisation, on arrays and on files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from adagrad_unet import settings as of
from adagrad_unet.plan import Plan
from adagrad_unet.preprocess import (
    OUTSIDE,
    Recipe,
    bounding_box,
    channel_files,
    check_channels,
    label_names,
    load_case,
    make_recipe,
    nonzero_mask,
    normalise,
    prepare,
    read_case,
    read_datalist,
    resample_labels,
    resample_slices,
    select,
    target_spacing,
    to_file,
)

nib: Any = nibabel
PLAN = Plan((16, 16), 2, ((2, 2),), ((3, 3), (3, 3)), (4, 8))


def recipe(**changes: Any) -> Recipe:
    values = {
        "spacing": (1.0, 1.0, 1.0), "slice_axis": 0, "nonzero": False, "channels": 1, "labels": ("a", "b"),
        "orientation": "RAS", "merge_labels": False, "plan": PLAN,
    }  # fmt: skip
    return Recipe(**{**values, **changes})


def write(path: Path, array: np.ndarray, spacing=(1.0, 1.0, 1.0), codes: str = "RAS") -> Path:
    """An array in RAS order as a file stored in another orientation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.ascontiguousarray(array), np.diag([*spacing, 1.0]))
    orientation = nib.orientations.axcodes2ornt(tuple(codes))
    nib.save(
        image.as_reoriented(nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), orientation)), path
    )
    return path


def case(folder: Path, name: str, image: np.ndarray, labels: np.ndarray, **how: Any) -> dict[str, str]:
    write(folder / f"{name}.nii.gz", image.astype(np.float32), **how)
    write(folder / f"{name}_mask.nii.gz", labels.astype(np.uint8), **how)
    return {"image": f"{name}.nii.gz", "mask": f"{name}_mask.nii.gz"}


def datalist(folder: Path, rows: list[dict[str, str]]) -> Path:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [",".join(columns), *(",".join(row.get(column, "") for column in columns) for row in rows)]
    path = folder / "list.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def brain(rng: np.random.Generator, shape=(12, 16, 8)) -> tuple[np.ndarray, np.ndarray]:
    """An image that is zero in a margin of one voxel, with two labels."""
    image = np.zeros(shape)
    image[1:-1, 1:-1, 1:-1] = rng.uniform(1, 2, [side - 2 for side in shape])
    labels = np.zeros(shape)
    labels[3:8, 4:9, 2:6] = 1
    labels[4:6, 5:7, 3:5] = 2
    return image, labels


# Arrays


def test_holes_belong_to_the_mask():
    image = np.zeros((2, 5, 5, 5))
    image[0, 1:4, 1:4, 1:4] = 3
    image[0, 2, 2, 2] = 0
    image[1, 0, 0, 0] = -1  # of another channel
    mask = nonzero_mask(image)
    assert mask.sum() == 28
    assert mask[2, 2, 2]
    assert bounding_box(mask) == (slice(0, 4),) * 3
    assert bounding_box(np.zeros((2, 3), bool)) == (slice(0, 2), slice(0, 3))


@pytest.mark.parametrize(
    ("spacings", "sizes", "expected"),
    [
        # the median of each axis
        ([(1, 1, 1), (2, 1, 1), (1.5, 1, 0.9)], [(100, 200, 200)] * 3, (1.5, 1, 1)),
        # 8 > 3 * 1 and 3 * 20 < 200: the 10th percentile of 5, 8, 10
        ([(5, 1, 1), (8, 1, 1), (10, 1, 1)], [(20, 200, 200)] * 3, (5.6, 1, 1)),
        # long voxels, but many of them
        ([(5, 1, 1), (8, 1, 1), (10, 1, 1)], [(80, 200, 200)] * 3, (8, 1, 1)),
        # not below the others
        ([(0.5, 1, 1), (8, 1, 1), (8, 1, 1), (8, 1, 1)], [(20, 200, 200)] * 4, (2.75, 1, 1)),
        ([(0.5, 1, 2), (0.5, 1, 2), (8, 1, 2), (8, 1, 2), (8, 1, 2)], [(20, 200, 200)] * 5, (2.00001, 1, 2)),
    ],
)
def test_target_spacing(spacings, sizes, expected):
    np.testing.assert_allclose(target_spacing(spacings, sizes), expected)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_slices_are_resampled_as_a_volume_would_be(order):
    """SciPy's `zoom` of the whole volume, which is what `skimage.transform.resize` calls, then its clipping."""
    volume = np.random.default_rng(0).normal(size=(3, 17, 24)).astype(np.float32)
    shape = (23, 19)
    zoomed = ndimage.zoom(
        volume.astype(float), (1, 23 / 17, 19 / 24), order=order, mode="nearest", grid_mode=True, prefilter=order > 1
    )
    expected = zoomed.clip(volume.min(), volume.max())
    np.testing.assert_allclose(resample_slices(volume, shape, order), expected, atol=2e-5)
    both = resample_slices(np.stack([volume, 100 * volume]), shape, order)
    np.testing.assert_allclose(both[1], 100 * expected, atol=2e-3)


def test_slices_of_the_right_shape_stay_as_they_are():
    volume = np.random.default_rng(0).normal(size=(3, 17, 24)).astype(np.float32)
    np.testing.assert_array_equal(resample_slices(volume, (17, 24), 3), volume)
    labels = np.random.default_rng(0).integers(-1, 3, (3, 5, 6))
    np.testing.assert_array_equal(resample_labels(labels, (5, 6)), labels)


def test_labels_go_through_their_indicators():
    labels = np.random.default_rng(1).integers(-1, 3, (4, 10, 12)).astype(np.int8)
    expected = np.zeros((4, 7, 17), np.int8)
    for label in (-1, 0, 1, 2):
        indicator = ndimage.zoom(
            (labels == label).astype(float), (1, 0.7, 17 / 12), order=1, mode="nearest", grid_mode=True
        )
        expected[indicator >= 0.5] = label
    np.testing.assert_array_equal(resample_labels(labels, (7, 17)), expected)


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=20, deadline=None)
def test_normalised_images(seed, inside_only):
    rng = np.random.default_rng(seed)
    image = rng.normal(500, 30, (2, 3, 8, 8)).astype(np.float32)
    mask = rng.random((3, 8, 8)) < 0.5
    result = normalise(image, mask if inside_only else None)
    chosen = result[:, mask] if inside_only else result.reshape(2, -1)
    np.testing.assert_allclose(chosen.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(chosen.std(1), 1, rtol=1e-5)
    if inside_only:
        assert not result[:, ~mask].any()


def test_normalising_a_constant_or_nothing():
    assert not normalise(np.full((1, 2, 4, 4), 7.0)).any()
    assert not normalise(np.ones((1, 2, 4, 4)), np.zeros((2, 4, 4), bool)).any()


# Files to cases and back


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR"])
def test_a_case_is_the_same_however_it_is_stored(tmp_path, codes):
    image, labels = brain(np.random.default_rng(0))
    row = next(iter(read_datalist(of.Cases(datalist(tmp_path, [case(tmp_path, "a", image, labels, codes=codes)])))))
    raw = read_case(row, recipe(), 1)
    assert raw.image.shape == (1, 6, 14, 10)  # cropped; z, y, x
    np.testing.assert_array_equal(raw.image[0], image.T[1:-1, 1:-1, 1:-1].astype(np.float32))
    assert raw.labels is not None
    np.testing.assert_array_equal(raw.labels, labels.T[1:-1, 1:-1, 1:-1])
    # As stored, the axes are those of the file.
    stored = read_case(row, recipe(orientation="file"), 1)
    assert sorted(stored.image.shape) == sorted(raw.image.shape)
    if codes == "PSR":
        assert stored.image.shape != raw.image.shape


def test_labels_outside_the_image(tmp_path):
    """OUTSIDE where the image is zero; a label there stays."""
    image, labels = brain(np.random.default_rng(0))
    image[5, 1:8, 4] = 0  # open to the margin, so no hole
    labels[5, 1, 4], labels[5, 2, 4] = 0, 1
    row = next(iter(read_datalist(of.Cases(datalist(tmp_path, [case(tmp_path, "a", image, labels)])))))
    raw = read_case(row, recipe(), 1)
    assert raw.labels is not None
    assert raw.labels[3, 0, 4] == OUTSIDE
    assert raw.labels[3, 1, 4] == 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_back_to_the_file(tmp_path, axis):
    """One-hot labels of the network's grid come back as the file's labels, on a grid twice as fine in the slices."""
    image, labels = brain(np.random.default_rng(0), (12, 16, 20))
    row = next(iter(read_datalist(of.Cases(datalist(tmp_path, [case(tmp_path, "a", image, labels, codes="LPS")])))))
    own = recipe(slice_axis=axis, spacing=(1.0, 0.5, 0.5))
    raw = read_case(row, own, 1)
    prepared, target = prepare(raw, own)
    assert prepared.shape[2:] == tuple(2 * side for i, side in enumerate(raw.inside.shape) if i != axis)
    assert prepared.shape[1] == raw.inside.shape[axis]
    probabilities = np.stack([np.maximum(target, 0) == label for label in range(3)]).astype(np.float32)
    np.testing.assert_array_equal(to_file(probabilities, raw, own), labels)


def test_without_a_mask_everything_inside_is_background(tmp_path):
    image, labels = brain(np.random.default_rng(0))
    path = datalist(tmp_path, [{"image": case(tmp_path, "a", image, labels)["image"]}])
    row = next(iter(read_datalist(of.Cases(path))))
    _, found = prepare(read_case(row, recipe(), 1, need_mask=False), recipe())
    assert set(np.unique(found)) == {0}
    with pytest.raises(ValueError, match="row 2, column mask: no mask"):
        read_case(row, recipe(), 1)


def test_recipe_of_a_training_set(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        case(tmp_path, f"c{i}", *brain(rng, (32, 40, 12)), spacing=(1.0, 1.0, 4.0 + i), codes="LPS") for i in range(3)
    ]
    cases = of.Cases(datalist(tmp_path, rows))
    listed = list(read_datalist(cases))
    found = make_recipe(listed, cases, of.Planning())
    assert found.slice_axis == 0
    # 5 > 3, but 3 * 10 slices are not fewer than 30 pixels: the median.
    assert found.spacing == (5.0, 1.0, 1.0)
    assert (found.channels, found.labels, found.classes, found.nonzero) == (1, ("1", "2"), 3, True)  # 0.74 is left
    assert found.plan.patch_size == (40, 32)
    fixed = make_recipe(listed, cases, of.Planning(slice_axis="x", base_features=4, max_pools=1, batch_size=3))
    assert fixed.slice_axis == 2
    assert fixed.plan.features == (4, 8)
    assert fixed.plan.batch_size == 3
    assert Recipe.from_text(fixed.as_text(), Path("x")) == fixed
    coarse = make_recipe(listed, cases, of.Planning(pixel=(2.0, 3.0)))
    assert coarse.spacing == (5.0, 2.0, 3.0)
    assert coarse.plan.patch_size == (20, 10)
    with pytest.raises(ValueError, match="--pixel is 0 1; give two positive numbers in mm"):
        of.Planning(pixel=(0.0, 1.0))


def test_small_heads_in_large_pictures_are_normalised_inside(tmp_path):
    image, labels = np.zeros((24, 24, 12)), np.zeros((24, 24, 12))
    image[4:16, 4:20, 2:10], labels[5:9, 5:9, 3:6] = 2.0, 1
    image[6, 6, 6] = 5
    cases = of.Cases(datalist(tmp_path, [case(tmp_path, "a", image, labels)]))
    found = make_recipe(list(read_datalist(cases)), cases, of.Planning())
    assert found.nonzero
    assert found.labels == ("foreground",)


def test_several_channels(tmp_path):
    rng = np.random.default_rng(0)
    image, labels = brain(rng)
    rows = [case(tmp_path, name, image, labels) for name in ("a", "b")]
    for row in rows:
        row["image_1"] = row["image"].replace(".nii", "_t2.nii")
        write(tmp_path / row["image_1"], (100 * image).astype(np.float32))
    cases = of.Cases(datalist(tmp_path, rows))
    listed = list(read_datalist(cases))
    assert check_channels(listed) == 2
    own = make_recipe(listed, cases, of.Planning())
    loaded = load_case(listed[0], own)
    assert loaded.image.shape[0] == own.channels == 2
    np.testing.assert_allclose(loaded.image[0], loaded.image[1], atol=1e-4)


def test_images_of_different_channels_per_site(tmp_path):
    image, labels = brain(np.random.default_rng(0))
    rows = [{**case(tmp_path, name, image, labels), "site": name} for name in ("a", "b")]
    rows[0]["image_1"] = rows[0]["image"]
    listed = list(read_datalist(of.Cases(datalist(tmp_path, rows))))
    with pytest.raises(
        ValueError, match=r"row 3, column image: the image b\.nii\.gz of site b has 1 channel where 2 are"
    ):
        check_channels(listed)
    rows[1]["image_1"] = "gone.nii.gz"
    listed = list(read_datalist(of.Cases(datalist(tmp_path, rows))))
    with pytest.raises(ValueError, match=r"of site b lacks the channel gone\.nii\.gz"):
        check_channels(listed)


def test_channels_on_different_grids(tmp_path):
    image, labels = brain(np.random.default_rng(0))
    row = {**case(tmp_path, "a", image, labels), "image_1": "t2.nii.gz"}
    write(tmp_path / "t2.nii.gz", image.astype(np.float32), spacing=(1.0, 1.0, 1.1))
    listed = list(read_datalist(of.Cases(datalist(tmp_path, [row]))))
    with pytest.raises(ValueError, match=r"t2\.nii\.gz: lies on another grid than the first channel a\.nii\.gz"):
        read_case(listed[0], recipe(), 2)


def nnunet_folder(folder: Path, channels: dict[str, str], labels: dict[str, Any], missing: str = "") -> Path:
    rng = np.random.default_rng(0)
    for name in ("c1", "c2"):
        image, mask = brain(rng)
        for number in channels:
            file = f"{name}_{int(number):04d}.nii.gz"
            if file != missing:
                write(folder / "imagesTr" / file, image.astype(np.float32))
        write(folder / "labelsTr" / f"{name}.nii.gz", mask.astype(np.uint8))
    content = {"channel_names": channels, "labels": labels, "file_ending": ".nii.gz", "numTraining": 2}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_nnunet_raw_folder(tmp_path):
    folder = nnunet_folder(tmp_path, {"0": "T1", "1": "FLAIR"}, {"background": 0, "LV": 1, "RV": 2})
    cases = of.Cases(folder)
    listed = read_datalist(cases)
    assert [row.split for row in listed] == ["train", "train"]
    assert [file.name for file, _ in channel_files(listed[1])] == ["c2_0000.nii.gz", "c2_0001.nii.gz"]
    assert label_names(cases, listed) == ("LV", "RV")
    assert make_recipe(list(listed), cases, of.Planning(), ("LV", "RV")).channels == 2
    broken = nnunet_folder(tmp_path / "b", {"0": "T1", "1": "FLAIR"}, {"background": 0}, missing="c2_0001.nii.gz")
    with pytest.raises(ValueError, match=r"the image c2_0000\.nii\.gz lacks the channel c2_0001\.nii\.gz"):
        check_channels(list(read_datalist(of.Cases(broken))))


def test_decathlon_modalities_are_frames(tmp_path):
    image, labels = brain(np.random.default_rng(0))
    write(tmp_path / "images" / "a.nii.gz", np.stack([image, 3 * image], -1).astype(np.float32))
    write(tmp_path / "labels" / "a.nii.gz", labels.astype(np.uint8))
    content = {
        "modality": {"0": "T2", "1": "ADC"}, "labels": {"0": "background", "1": "PZ", "2": "TZ"},
        "training": [{"image": "images/a.nii.gz", "label": "labels/a.nii.gz"}],
    }  # fmt: skip
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    cases = of.Cases(tmp_path / "dataset.json")
    listed = read_datalist(cases)
    assert label_names(cases, listed) == ("PZ", "TZ")
    raw = read_case(listed[0], recipe(), 2)
    np.testing.assert_allclose(raw.image[1], 3 * raw.image[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("written", "expected"),
    [({"0": "background", "1": "a", "3": "c"}, ()), (["a", "b"], ()), ({"whole": [1, 2], "core": 2}, ())],
)
def test_label_names_that_cannot_be_used(tmp_path, written, expected):
    folder = nnunet_folder(tmp_path, {"0": "T1"}, written)
    assert label_names(of.Cases(folder), read_datalist(of.Cases(folder))) == expected
    assert label_names(of.Cases(folder, labels=("x", "y")), read_datalist(of.Cases(folder))) == ("x", "y")


def test_four_dimensional_hearts(tmp_path):
    """Frames of M&Ms: the datalist's column frame chooses one of the image and of the mask."""
    image, labels = brain(np.random.default_rng(0))
    write(tmp_path / "a.nii.gz", np.stack([image, 2 * image], -1).astype(np.float32))
    write(tmp_path / "m.nii.gz", np.stack([0 * labels, labels], -1).astype(np.uint8))
    listed = read_datalist(of.Cases(datalist(tmp_path, [{"image": "a.nii.gz", "mask": "m.nii.gz", "frame": "1"}])))
    raw = read_case(listed[0], recipe(), 1)
    assert raw.labels is not None
    assert raw.labels.max() == 2
    np.testing.assert_array_equal(raw.image[0], (2 * image).T[1:-1, 1:-1, 1:-1].astype(np.float32))


def test_cache_gives_the_same_case(tmp_path):
    image, labels = brain(np.random.default_rng(0))
    row = next(iter(read_datalist(of.Cases(datalist(tmp_path, [case(tmp_path, "a", image, labels)])))))
    plain = load_case(row, recipe())
    for _ in range(2):
        kept = load_case(row, recipe(), tmp_path / "cache")
        np.testing.assert_array_equal(kept.image, plain.image)
        assert kept.labels is not None
        np.testing.assert_array_equal(kept.labels, plain.labels)
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 1
    load_case(row, recipe(spacing=(1.0, 2.0, 2.0)), tmp_path / "cache")
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 2


# Splits


def test_split_column_decides(tmp_path):
    image, labels = brain(np.random.default_rng(0))
    rows = [
        {**case(tmp_path, f"c{i}", image, labels), "split": split} for i, split in enumerate(("train", "val", "test"))
    ]
    cases = of.Cases(datalist(tmp_path, rows))
    for split in ("train", "val", "test"):
        assert [row.split for row in select(cases, split)] == [split]
    assert len(select(cases, "all")) == 3


def test_a_fifth_of_the_subjects_is_test_without_split_column(tmp_path):
    rows = [
        {"image": f"{site}{i}_{scan}.nii.gz", "site": site, "subject": f"{site}{i}"}
        for site in "ab" for i in range(20) for scan in range(2)
    ]  # fmt: skip
    path = datalist(tmp_path, rows)
    train, test = (select(of.Cases(path, "a"), split) for split in ("train", "test"))
    assert len(train) == 32
    assert len(test) == 8
    assert not {row.subject for row in train} & {row.subject for row in test}
    assert select(of.Cases(path, "a"), "test") == test
    assert len(select(of.Cases(path), "test")) == 16
    with pytest.raises(ValueError, match="site a: no row is for val"):
        select(of.Cases(path, "a"), "val")


def test_a_single_subject_trains(tmp_path):
    path = datalist(tmp_path, [{"image": "a.nii.gz"}])
    assert len(select(of.Cases(path), "train")) == 1
    with pytest.raises(ValueError, match="no row is for test"):
        select(of.Cases(path), "test")


# Labels


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        ((0, 0), (), "no mask of the training set has a label"),
        ((1, 4), (), r"labels \[0, 1, 4\] and none has 2; number the labels from 1"),
        ((1, 255), (), "has label 255; number the labels from 1, or give --merge-labels"),
        ((1, 40), (), "has label 40; number the labels"),
        ((1, 2), ("a",), "has label 2, and the labels are a"),
    ],
)
def test_labels_that_make_no_plan(tmp_path, values, names, message):
    image, labels = brain(np.random.default_rng(0))
    for old, new in zip((2, 1), values[::-1], strict=True):
        labels[labels == old] = new
    cases = of.Cases(datalist(tmp_path, [case(tmp_path, "a", image, labels)]))
    with pytest.raises(ValueError, match=message):
        make_recipe(list(read_datalist(cases)), cases, of.Planning(), names)


def test_labels_outside_the_plan(tmp_path):
    image, labels = brain(np.random.default_rng(0))
    row = next(iter(read_datalist(of.Cases(datalist(tmp_path, [case(tmp_path, "a", image, labels)])))))
    with pytest.raises(ValueError, match=r"a_mask\.nii\.gz: has label 2, the plan knows 1 to 1 \(brain\)"):
        load_case(row, recipe(labels=("brain",)))
    merged = load_case(row, recipe(labels=("brain",), merge_labels=True))
    assert merged.labels is not None
    assert set(np.unique(merged.labels)) == {0, 1}


def test_patch_sizes_that_do_not_fit_the_network(tmp_path):
    image, labels = brain(np.random.default_rng(0), (32, 40, 12))
    cases = of.Cases(datalist(tmp_path, [case(tmp_path, "a", image, labels, spacing=(1, 1, 5))]))
    listed = list(read_datalist(cases))
    assert make_recipe(listed, cases, of.Planning(max_pools=2, patch_size=(32, 24))).plan.patch_size == (32, 24)
    with pytest.raises(ValueError, match="--patch-size 32 30: side 2 is halved 2 times; give multiples of 4"):
        make_recipe(listed, cases, of.Planning(max_pools=2, patch_size=(32, 30)))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"plan": 3}', recipe().as_text().replace("pool", "pools")])
def test_damaged_plans(text):
    with pytest.raises(ValueError, match=r"p\.json: holds no plan"):
        Recipe.from_text(text, Path("p.json"))


def test_voxels_of_size_zero(tmp_path):
    image, labels = brain(np.random.default_rng(0))
    files = case(tmp_path, "a", image, labels)
    path = tmp_path / files["image"]
    broken = nib.load(path)
    header = broken.header.copy()
    content = bytearray(nib.Nifti1Image(np.asarray(broken.dataobj), broken.affine, header).to_bytes())
    content[80:84] = np.float32(0).tobytes()  # pixdim[1]
    path.with_name("zero.nii").write_bytes(bytes(content))
    files["image"] = "zero.nii"
    row = next(iter(read_datalist(of.Cases(datalist(tmp_path, [files])))))
    with pytest.raises(ValueError, match=r"zero\.nii: the voxel size in the header is"):
        read_case(row, dataclasses.replace(recipe()), 1)
