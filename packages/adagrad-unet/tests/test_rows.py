"""Channels, label names and splits of datalists and nnU-Net folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adagrad_unet import settings as of
from adagrad_unet.cases import load_case, make_recipe
from adagrad_unet.rows import channel_files, check_channels, label_names, read_datalist, select


def nnunet_folder(
    files: Any, folder: Path, channels: dict[str, str], labels: dict[str, Any], missing: str = ""
) -> Path:
    rng = np.random.default_rng(0)
    for name in ("c1", "c2"):
        image, mask = files.brain(rng)
        for number in channels:
            file = f"{name}_{int(number):04d}.nii.gz"
            if file != missing:
                files.write(folder / "imagesTr" / file, image.astype(np.float32))
        files.write(folder / "labelsTr" / f"{name}.nii.gz", mask.astype(np.uint8))
    content = {"channel_names": channels, "labels": labels, "file_ending": ".nii.gz", "numTraining": 2}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_several_channels(files, tmp_path):
    rng = np.random.default_rng(0)
    image, labels = files.brain(rng)
    rows = [files.case(tmp_path, name, image, labels) for name in ("a", "b")]
    for row in rows:
        row["image_1"] = row["image"].replace(".nii", "_t2.nii")
        files.write(tmp_path / row["image_1"], (100 * image).astype(np.float32))
    cases = of.Cases(files.datalist(tmp_path, rows))
    listed = list(read_datalist(cases))
    assert check_channels(listed) == 2
    own = make_recipe(listed, cases, of.Planning())
    loaded = load_case(listed[0], own)
    assert loaded.image.shape[0] == own.channels == 2
    np.testing.assert_allclose(loaded.image[0], loaded.image[1], atol=1e-4)


def test_images_of_different_channels_per_site(files, tmp_path):
    image, labels = files.brain(np.random.default_rng(0))
    rows = [{**files.case(tmp_path, name, image, labels), "site": name} for name in ("a", "b")]
    rows[0]["image_1"] = rows[0]["image"]
    listed = list(read_datalist(of.Cases(files.datalist(tmp_path, rows))))
    with pytest.raises(
        ValueError, match=r"row 3, column image: the image b\.nii\.gz of site b has 1 channel where 2 are"
    ):
        check_channels(listed)
    rows[1]["image_1"] = "gone.nii.gz"
    listed = list(read_datalist(of.Cases(files.datalist(tmp_path, rows))))
    with pytest.raises(ValueError, match=r"of site b lacks the channel gone\.nii\.gz"):
        check_channels(listed)


def test_nnunet_raw_folder(files, tmp_path):
    folder = nnunet_folder(files, tmp_path, {"0": "T1", "1": "FLAIR"}, {"background": 0, "LV": 1, "RV": 2})
    cases = of.Cases(folder)
    listed = read_datalist(cases)
    assert [row.split for row in listed] == ["train", "train"]
    assert [file.name for file, _ in channel_files(listed[1])] == ["c2_0000.nii.gz", "c2_0001.nii.gz"]
    assert label_names(cases, listed) == ("LV", "RV")
    assert make_recipe(list(listed), cases, of.Planning(), ("LV", "RV")).channels == 2
    broken = nnunet_folder(
        files, tmp_path / "b", {"0": "T1", "1": "FLAIR"}, {"background": 0}, missing="c2_0001.nii.gz"
    )
    with pytest.raises(ValueError, match=r"the image c2_0000\.nii\.gz lacks the channel c2_0001\.nii\.gz"):
        check_channels(list(read_datalist(of.Cases(broken))))


@pytest.mark.parametrize(
    ("written", "expected"),
    [({"0": "background", "1": "a", "3": "c"}, ()), (["a", "b"], ()), ({"whole": [1, 2], "core": 2}, ())],
)
def test_label_names_that_cannot_be_used(files, tmp_path, written, expected):
    folder = nnunet_folder(files, tmp_path, {"0": "T1"}, written)
    assert label_names(of.Cases(folder), read_datalist(of.Cases(folder))) == expected
    assert label_names(of.Cases(folder, labels=("x", "y")), read_datalist(of.Cases(folder))) == ("x", "y")


def test_split_column_decides(files, tmp_path):
    image, labels = files.brain(np.random.default_rng(0))
    rows = [
        {**files.case(tmp_path, f"c{i}", image, labels), "split": split}
        for i, split in enumerate(("train", "val", "test"))
    ]
    cases = of.Cases(files.datalist(tmp_path, rows))
    for split in ("train", "val", "test"):
        assert [row.split for row in select(cases, split)] == [split]
    assert len(select(cases, "all")) == 3


def test_a_fifth_of_the_subjects_is_test_without_split_column(files, tmp_path):
    rows = [
        {"image": f"{site}{i}_{scan}.nii.gz", "site": site, "subject": f"{site}{i}"}
        for site in "ab" for i in range(20) for scan in range(2)
    ]  # fmt: skip
    path = files.datalist(tmp_path, rows)
    train, test = (select(of.Cases(path, "a"), split) for split in ("train", "test"))
    assert len(train) == 32
    assert len(test) == 8
    assert not {row.subject for row in train} & {row.subject for row in test}
    assert select(of.Cases(path, "a"), "test") == test
    assert len(select(of.Cases(path), "test")) == 16
    with pytest.raises(ValueError, match="site a: no row is for val"):
        select(of.Cases(path, "a"), "val")


def test_a_single_subject_trains(files, tmp_path):
    path = files.datalist(tmp_path, [{"image": "a.nii.gz"}])
    assert len(select(of.Cases(path), "train")) == 1
    with pytest.raises(ValueError, match="no row is for test"):
        select(of.Cases(path), "test")
