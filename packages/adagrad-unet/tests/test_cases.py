"""From files to the network's arrays and back, and the recipe of a training set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from adagrad_unet import settings as of
from adagrad_unet.cases import Recipe, load_case, make_recipe, prepare, read_case, to_file
from adagrad_unet.plan import Plan
from adagrad_unet.rows import label_names, read_datalist
from dart_core.data.nnunet import OUTSIDE

nib: Any = nibabel
PLAN = Plan((16, 16), 2, ((2, 2),), ((3, 3), (3, 3)), (4, 8))


def recipe(**changes: Any) -> Recipe:
    values = {
        "spacing": (1.0, 1.0, 1.0), "slice_axis": 0, "nonzero": False, "channels": 1, "labels": ("a", "b"),
        "orientation": "RAS", "merge_labels": False, "plan": PLAN,
    }  # fmt: skip
    return Recipe(**{**values, **changes})


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR"])
def test_a_case_is_the_same_however_it_is_stored(files, tmp_path, codes):
    image, labels = files.brain(np.random.default_rng(0))
    row = next(
        iter(read_datalist(of.Cases(files.datalist(tmp_path, [files.case(tmp_path, "a", image, labels, codes=codes)]))))
    )
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


def test_labels_outside_the_image(files, tmp_path):
    """OUTSIDE where the image is zero; a label there stays."""
    image, labels = files.brain(np.random.default_rng(0))
    image[5, 1:8, 4] = 0  # open to the margin, so no hole
    labels[5, 1, 4], labels[5, 2, 4] = 0, 1
    row = next(iter(read_datalist(of.Cases(files.datalist(tmp_path, [files.case(tmp_path, "a", image, labels)])))))
    raw = read_case(row, recipe(), 1)
    assert raw.labels is not None
    assert raw.labels[3, 0, 4] == OUTSIDE
    assert raw.labels[3, 1, 4] == 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_back_to_the_file(files, tmp_path, axis):
    """One-hot labels of the network's grid come back as the file's labels, on a grid twice as fine in the slices."""
    image, labels = files.brain(np.random.default_rng(0), (12, 16, 20))
    row = next(
        iter(read_datalist(of.Cases(files.datalist(tmp_path, [files.case(tmp_path, "a", image, labels, codes="LPS")]))))
    )
    own = recipe(slice_axis=axis, spacing=(1.0, 0.5, 0.5))
    raw = read_case(row, own, 1)
    prepared, target = prepare(raw, own)
    assert prepared.shape[2:] == tuple(2 * side for i, side in enumerate(raw.inside.shape) if i != axis)
    assert prepared.shape[1] == raw.inside.shape[axis]
    probabilities = np.stack([np.maximum(target, 0) == label for label in range(3)]).astype(np.float32)
    np.testing.assert_array_equal(to_file(probabilities, raw, own), labels)


def test_without_a_mask_everything_inside_is_background(files, tmp_path):
    image, labels = files.brain(np.random.default_rng(0))
    path = files.datalist(tmp_path, [{"image": files.case(tmp_path, "a", image, labels)["image"]}])
    row = next(iter(read_datalist(of.Cases(path))))
    _, found = prepare(read_case(row, recipe(), 1, need_mask=False), recipe())
    assert set(np.unique(found)) == {0}
    with pytest.raises(ValueError, match="row 2, column mask: no mask"):
        read_case(row, recipe(), 1)


def test_recipe_of_a_training_set(files, tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        files.case(tmp_path, f"c{i}", *files.brain(rng, (32, 40, 12)), spacing=(1.0, 1.0, 4.0 + i), codes="LPS")
        for i in range(3)
    ]
    cases = of.Cases(files.datalist(tmp_path, rows))
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


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.00001), (1.00001, 1.0, 1.0), (1.0, 1.00001, 1.0)])
def test_voxels_that_differ_by_rounding_are_cut_along_z(files, tmp_path, spacing):
    image, labels = files.brain(np.random.default_rng(0), (20, 24, 22))
    cases = of.Cases(files.datalist(tmp_path, [files.case(tmp_path, "a", image, labels, spacing=spacing)]))
    assert make_recipe(list(read_datalist(cases)), cases, of.Planning()).slice_axis == 0
    longer = (1.001, *spacing[1:])
    cases = of.Cases(files.datalist(tmp_path, [files.case(tmp_path, "b", image, labels, spacing=longer)]))
    assert make_recipe(list(read_datalist(cases)), cases, of.Planning()).slice_axis == 2


def test_small_heads_in_large_pictures_are_normalised_inside(files, tmp_path):
    image, labels = np.zeros((24, 24, 12)), np.zeros((24, 24, 12))
    image[4:16, 4:20, 2:10], labels[5:9, 5:9, 3:6] = 2.0, 1
    image[6, 6, 6] = 5
    cases = of.Cases(files.datalist(tmp_path, [files.case(tmp_path, "a", image, labels)]))
    found = make_recipe(list(read_datalist(cases)), cases, of.Planning())
    assert found.nonzero
    assert found.labels == ("foreground",)


def test_channels_on_different_grids(files, tmp_path):
    image, labels = files.brain(np.random.default_rng(0))
    row = {**files.case(tmp_path, "a", image, labels), "image_1": "t2.nii.gz"}
    files.write(tmp_path / "t2.nii.gz", image.astype(np.float32), spacing=(1.0, 1.0, 1.1))
    listed = list(read_datalist(of.Cases(files.datalist(tmp_path, [row]))))
    with pytest.raises(ValueError, match=r"t2\.nii\.gz: lies on another grid than the first channel a\.nii\.gz"):
        read_case(listed[0], recipe(), 2)


def test_decathlon_modalities_are_frames(files, tmp_path):
    image, labels = files.brain(np.random.default_rng(0))
    files.write(tmp_path / "images" / "a.nii.gz", np.stack([image, 3 * image], -1).astype(np.float32))
    files.write(tmp_path / "labels" / "a.nii.gz", labels.astype(np.uint8))
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


def test_four_dimensional_hearts(files, tmp_path):
    """Frames of M&Ms: the datalist's column frame chooses one of the image and of the mask."""
    image, labels = files.brain(np.random.default_rng(0))
    files.write(tmp_path / "a.nii.gz", np.stack([image, 2 * image], -1).astype(np.float32))
    files.write(tmp_path / "m.nii.gz", np.stack([0 * labels, labels], -1).astype(np.uint8))
    listed = read_datalist(
        of.Cases(files.datalist(tmp_path, [{"image": "a.nii.gz", "mask": "m.nii.gz", "frame": "1"}]))
    )
    raw = read_case(listed[0], recipe(), 1)
    assert raw.labels is not None
    assert raw.labels.max() == 2
    np.testing.assert_array_equal(raw.image[0], (2 * image).T[1:-1, 1:-1, 1:-1].astype(np.float32))


def test_cache_gives_the_same_case(files, tmp_path):
    image, labels = files.brain(np.random.default_rng(0))
    row = next(iter(read_datalist(of.Cases(files.datalist(tmp_path, [files.case(tmp_path, "a", image, labels)])))))
    plain = load_case(row, recipe())
    for _ in range(2):
        kept = load_case(row, recipe(), tmp_path / "cache")
        np.testing.assert_array_equal(kept.image, plain.image)
        assert kept.labels is not None
        np.testing.assert_array_equal(kept.labels, plain.labels)
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 1
    load_case(row, recipe(spacing=(1.0, 2.0, 2.0)), tmp_path / "cache")
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 2


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
def test_labels_that_make_no_plan(files, tmp_path, values, names, message):
    image, labels = files.brain(np.random.default_rng(0))
    for old, new in zip((2, 1), values[::-1], strict=True):
        labels[labels == old] = new
    cases = of.Cases(files.datalist(tmp_path, [files.case(tmp_path, "a", image, labels)]))
    with pytest.raises(ValueError, match=message):
        make_recipe(list(read_datalist(cases)), cases, of.Planning(), names)


def test_labels_outside_the_plan(files, tmp_path):
    image, labels = files.brain(np.random.default_rng(0))
    row = next(iter(read_datalist(of.Cases(files.datalist(tmp_path, [files.case(tmp_path, "a", image, labels)])))))
    with pytest.raises(ValueError, match=r"a_mask\.nii\.gz: has label 2, the plan knows 1 to 1 \(brain\)"):
        load_case(row, recipe(labels=("brain",)))
    merged = load_case(row, recipe(labels=("brain",), merge_labels=True))
    assert merged.labels is not None
    assert set(np.unique(merged.labels)) == {0, 1}


def test_patch_sizes_that_do_not_fit_the_network(files, tmp_path):
    image, labels = files.brain(np.random.default_rng(0), (32, 40, 12))
    cases = of.Cases(files.datalist(tmp_path, [files.case(tmp_path, "a", image, labels, spacing=(1, 1, 5))]))
    listed = list(read_datalist(cases))
    assert make_recipe(listed, cases, of.Planning(max_pools=2, patch_size=(32, 24))).plan.patch_size == (32, 24)
    with pytest.raises(ValueError, match="--patch-size 32 30: side 2 is halved 2 times; give multiples of 4"):
        make_recipe(listed, cases, of.Planning(max_pools=2, patch_size=(32, 30)))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"plan": 3}', recipe().as_text().replace("pool", "pools")])
def test_damaged_plans(text):
    with pytest.raises(ValueError, match=r"p\.json: holds no plan"):
        Recipe.from_text(text, Path("p.json"))


def test_voxels_of_size_zero(files, tmp_path):
    image, labels = files.brain(np.random.default_rng(0))
    row_files = files.case(tmp_path, "a", image, labels)
    path = tmp_path / row_files["image"]
    broken = nib.load(path)
    header = broken.header.copy()
    content = bytearray(nib.Nifti1Image(np.asarray(broken.dataobj), broken.affine, header).to_bytes())
    content[80:84] = np.float32(0).tobytes()  # pixdim[1]
    path.with_name("zero.nii").write_bytes(bytes(content))
    row_files["image"] = "zero.nii"
    row = next(iter(read_datalist(of.Cases(files.datalist(tmp_path, [row_files])))))
    with pytest.raises(ValueError, match=r"zero\.nii: the voxel size in the header is"):
        read_case(row, recipe(), 1)
