"""`odex stream`: both streams of the paper as files, and what it refuses."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from dart_core.data.datalist import Datalist, Row
from dart_core.data.phantoms import write_decathlon, write_hippocampus_stream
from dart_core.data.volumes import Volume, read_volume
from odex.cases import _held_out, read_stage
from odex.streaming import equal_parts, transform_case, with_splits

SHAPE = (16, 24, 16)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two sources of four cases, HarP and Dryad."""
    folder = tmp_path_factory.mktemp("sources")
    made = []
    for seed, name in enumerate(("HarP", "Dryad")):
        (path,) = write_hippocampus_stream(folder / name, 1, 4, SHAPE, seed)
        made.append(path.parent.rename(folder / f"{name}-cases"))
    return made


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_shifting_source(command, sources, tmp_path):
    out = tmp_path / "stream"
    words = ("--kind", "shifting-source", "--sources", *sources, "--composition", "3/0", "1/2", "0/2")
    found = command("stream", *words, "--out", out)
    assert found.status == 0, found.err
    listed = [rows_of(out / f"stage-{i}" / "datalist.csv") for i in (1, 2, 3)]
    assert [[row["site"].partition("-")[0] for row in rows] for rows in listed] == [
        ["HarP"] * 3, ["HarP", "Dryad", "Dryad"], ["Dryad"] * 2,
    ]  # fmt: skip
    assert [row["split"] for row in listed[0]] == ["train", "train", "test"]
    images = [(out / f"stage-{i}" / row["image"]).resolve() for i, rows in enumerate(listed, 1) for row in rows]
    assert len(set(images)) == 8  # each case once
    assert all(image.is_file() for image in images)
    assert "stage stage-3: 1 train, 0 val, 1 test" in command("check-data", "--stage", out / "stage-3").out


def test_transformed(command, sources, tmp_path):
    out = tmp_path / "stream"
    words = ("stream", "--kind", "transformed", "--sources", sources[0], "--stages", 2)
    assert command(*words, "--out", out).status == 0
    first, second = (read_stage(out / f"stage-{i}") for i in (1, 2))
    # the first stage has strength 0: the source's own files
    assert {row.image.resolve().parent for row in first.of("all")} == {(sources[0] / "images").resolve()}
    for row in second.of("all"):
        assert row.image.parent == out / "stage-2" / "images"
        image, mask = nib.load(row.image), nib.load(row.mask)
        assert image.shape == mask.shape == SHAPE
        assert set(np.unique(mask.dataobj)) <= {0, 1, 2}
        assert np.asarray(mask.dataobj).any()
        assert np.asarray(image.dataobj).min() == pytest.approx(1)  # no zero, which would be cut away
        assert np.asarray(image.dataobj).max() == pytest.approx(2)
    # the same seed draws the same transforms, another one others
    arrays = [np.asarray(nib.load(row.image).dataobj) for row in second.of("all")]
    for seed, same in ((0, True), (1, False)):
        assert command(*words, "--seed", seed, "--out", tmp_path / f"again-{seed}").status == 0
        again = [
            np.asarray(nib.load(r.image).dataobj) for r in read_stage(tmp_path / f"again-{seed}/stage-2").of("all")
        ]
        assert all(np.array_equal(a, b) for a, b in zip(arrays, again, strict=True)) == same


class Middle:
    """Draws the middle of each range: no scaling, no rotation, no shift."""

    def uniform(self, low: float, high: float, count: int) -> np.ndarray:
        return np.full(count, (low + high) / 2)


class Shift(Middle):
    """Shifts by 5 mm along each axis."""

    def uniform(self, low: float, high: float, count: int) -> np.ndarray:
        return np.full(count, high if high == 5 else (low + high) / 2)


@pytest.fixture(scope="module")
def one(sources: list[Path]) -> tuple[Volume, np.ndarray]:
    row = read_stage(sources[0]).of("all")[0]
    labels = np.zeros(SHAPE, dtype=np.int16)
    labels[8:10, 9:14, 8:11] = 1
    return read_volume(row.image), labels


def test_contrast_alone(one):
    volume, labels = one
    image, mask = transform_case(volume, labels, 0.5, "percentiles", Middle())
    np.testing.assert_array_equal(mask, labels)
    low, high = np.percentile(volume.array, (5, 95))
    expected = 1 + (np.clip(volume.array, low, high) - low) / (high - low)
    np.testing.assert_allclose(image, expected, atol=2e-3)
    # a linear range is undone by any z-score
    image, _ = transform_case(volume, labels, 1.0, "linear", Middle())
    z = [(part - part.mean()) / part.std() for part in (image, volume.array)]
    np.testing.assert_allclose(z[0], z[1], atol=1e-3)
    # percentiles of 0.1 and 0.9 saturate nearly all voxels
    image, _ = transform_case(volume, labels, 1.0, "torchio-percent", Middle())
    assert (image == 2).mean() > 0.98


def test_image_and_labels_move_together(one):
    volume, labels = one
    bright = Volume(labels.astype(np.float32), volume.affine, volume.orientation)
    image, mask = transform_case(bright, labels, 1.0, "linear", Shift())
    assert mask.sum() == labels.sum()
    before, after, bright_after = (ndimage.center_of_mass(part) for part in (labels, mask, image - image.min()))
    steps = 5 / np.array(volume.spacing)
    # The image is interpolated linearly, the labels by the nearest: those are off by half a voxel at most.
    np.testing.assert_allclose(np.abs(np.subtract(bright_after, before)), steps, atol=0.05)
    np.testing.assert_allclose(np.abs(np.subtract(after, before)), steps, atol=0.51)


def test_parts_and_splits(sources):
    assert [len(part) for part in equal_parts([(str(i), "") for i in range(13)], 5)] == [3, 2, 3, 2, 3]
    rows = read_stage(sources[0]).of("all")
    assert [row.split for row in with_splits(rows)] == ["train"] * 3 + ["test"]
    many = [row.split for row in with_splits([replace(rows[0], subject=str(i)) for i in range(20)])]
    assert [many.count(split) for split in ("train", "val", "test")] == [14, 2, 4]


def test_what_stream_refuses(command, sources, tmp_path):
    for words, expected in (
        (("--kind", "transformed", "--sources", *sources), "--kind transformed takes one"),
        (("--kind", "transformed", "--sources", sources[0], "--stages", 3), "4 cases for 3 stages"),
        (("--kind", "shifting-source", "--sources", sources[0], sources[0]), "sources of the same name"),
        (("--kind", "shifting-source", "--sources", *sources, "--composition", "3-0"), "--composition is 3-0"),
        (("--kind", "shifting-source", "--sources", *sources, "--composition", "5/0"), "HarP-cases has 4 cases"),
        (("--kind", "shifting-source", "--sources", *sources, "--composition", "1/1/1"), "has the counts (1, 1, 1)"),
        (("--kind", "shifting-source", "--sources", tmp_path), "datalist"),
    ):
        found = command("stream", *words, "--out", tmp_path / "out")
        assert found.status == 2
        assert expected in found.line
        assert not (tmp_path / "out").exists()


def test_a_stream_needs_masks(command, sources, tmp_path):
    row = rows_of(sources[0] / "datalist.csv")[0]
    (tmp_path / "datalist.csv").write_text(f"image,mask,subject,split\n{sources[0] / row['image']},,a,train\n")
    found = command("stream", "--kind", "transformed", "--sources", tmp_path, "--stages", 1, "--out", tmp_path / "out")
    assert found.status == 2
    assert "row 2" in found.line
    assert "no mask" in found.line


def test_the_contrast_comes_first(one):
    """Else the border that the movement fills in would count among the percentiles."""
    volume, labels = one
    low, high = np.percentile(volume.array, (10, 90))
    stretched = ((np.clip(volume.array, low, high) - low) / (high - low)).astype(np.float32)
    image, _ = transform_case(volume, labels, 1.0, "percentiles", Shift())
    # linear brings the stretched image to 0.1 ... 0.9 and moves it likewise
    other, _ = transform_case(Volume(stretched, volume.affine, volume.orientation), labels, 1.0, "linear", Shift())
    np.testing.assert_allclose(0.1 + 0.8 * (image - 1), other - 1, atol=2e-3)


def test_subjects_stay_together():
    rows = [Row(Path(f"{person}-{visit}.nii"), subject=f"p{person}") for person in range(12) for visit in (1, 2)]
    for split_of in (
        {row.image: row.split for row in with_splits(rows)},
        {row.image: split for split, own in _held_out(Datalist(tuple(rows))).items() if split != "val" for row in own},
    ):
        parts = {person: {split_of[Path(f"{person}-{visit}.nii")] for visit in (1, 2)} for person in range(12)}
        assert all(len(part) == 1 for part in parts.values())
        assert set.union(*parts.values()) >= {"train", "test"}
    assert [row.split for row in with_splits(rows)].count("test") == 4


def test_frames_of_a_file_are_cases_of_their_own(tmp_path):
    array = np.random.default_rng(0).random((*SHAPE, 2), dtype=np.float32)
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "scan.nii.gz")
    (tmp_path / "datalist.csv").write_text(
        "image,subject,split,frame\nscan.nii.gz,a,train,0\nscan.nii.gz,a,train,1\n", encoding="utf-8"
    )
    assert [row.labels["frame"] for row in read_stage(tmp_path).of("all")] == ["0", "1"]


def test_the_name_of_a_folder_with_dots(tmp_path):
    write_decathlon(tmp_path, "Task09_Spleen", ("spleen",), cases=2, shape=(24, 20, 16))
    folder = (tmp_path / "Task09_Spleen").rename(tmp_path / "2024.06")
    assert read_stage(folder).name == "2024.06"
