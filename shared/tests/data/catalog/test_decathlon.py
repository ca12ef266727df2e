from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from dart_core.data.catalog import decathlon
from dart_core.errors import DartError, InputError, SettingError

SHAPE = (6, 5, 4)


def build(root: Path, channels: int = 1, cases: int = 3, **changes) -> Path:
    """A task whose image holds 10 * case + channel + 1, its label 1 in the upper half."""
    folder = root / "Task05_Prostate"
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / name).mkdir(parents=True)
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    for case in range(cases):
        parts = [np.full(SHAPE, 10.0 * case + channel + 1, np.float32) for channel in range(channels)]
        image = np.stack(parts, -1) if channels > 1 else parts[0]
        label = np.zeros(SHAPE, np.uint8)
        label[3:] = 1
        label[5] = 2
        nibabel.Nifti1Image(image, affine).to_filename(folder / f"imagesTr/prostate_{case:02d}.nii.gz")
        nibabel.Nifti1Image(label, affine).to_filename(folder / f"labelsTr/prostate_{case:02d}.nii.gz")
    nibabel.Nifti1Image(image, affine).to_filename(folder / "imagesTs/prostate_90.nii.gz")
    (folder / "imagesTr/._prostate_00.nii.gz").write_bytes(b"\0")
    content = {
        "name": "PROSTATE",
        "relase": "1.0 04/05/2018",
        "tensorImageSize": "4D" if channels > 1 else "3D",
        "modality": {str(number): name for number, name in enumerate(("T2", "ADC")[:channels])},
        "labels": {"0": "background", "2": "TZ", "1": "PZ"},
        "numTraining": cases,
        "training": [
            {"image": f"./imagesTr/prostate_{case:02d}.nii.gz", "label": f"./labelsTr/prostate_{case:02d}.nii.gz"}
            for case in range(cases)
        ],
        "test": ["./imagesTs/prostate_90.nii.gz"],
        **changes,
    }
    (folder / "dataset.json").write_text(json.dumps({key: item for key, item in content.items() if item is not None}))
    return folder


def fails(call, *parts: str, kind: type[DartError] = InputError) -> None:
    with pytest.raises(kind) as error:
        call()
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_rows_and_names(tmp_path):
    folder = build(tmp_path, channels=2)
    task = decathlon.index(folder)
    assert decathlon.index(folder / "dataset.json") == task
    assert (task.name, task.modalities) == ("Task05_Prostate", ("T2", "ADC"))
    assert list(task.labels.items()) == [(0, "background"), (1, "PZ"), (2, "TZ")]
    assert [(row.subject, row.split) for row in task.cases] == [(f"prostate_0{case}", "train") for case in range(3)]
    assert task.cases[1].image == folder / "imagesTr/prostate_01.nii.gz"
    assert task.cases[1].mask == folder / "labelsTr/prostate_01.nii.gz"
    last = decathlon.index(folder, test=True).cases[-1]
    assert (last.subject, last.split, last.mask) == ("prostate_90", "test", None)


@pytest.mark.parametrize("channels", [1, 2])
def test_volumes(tmp_path, channels):
    task = decathlon.index(build(tmp_path, channels), test=True)
    row = task.cases[1]
    for channel, name in enumerate(task.modalities):
        for modality in (channel, name):
            image = task.read_image(row, modality)
            assert_array_equal(image.array, np.full(SHAPE, 11.0 + channel))
            assert image.spacing == (1.0, 1.0, 2.0)
    labels = task.read_labels(row, image)
    assert_array_equal(labels[:, 0, 0], [0, 0, 0, 1, 1, 2])
    turned = task.read_image(row, orientation="RAS")
    assert_array_equal(task.read_labels(row, turned)[:, 0, 0], [2, 1, 1, 0, 0, 0])
    fails(lambda: task.read_image(row, "DWI"), "'DWI'", "0 = T2", kind=SettingError)
    fails(lambda: task.read_labels(task.cases[-1], image), "prostate_90", "no labels")


def test_what_does_not_fit_dataset_json(tmp_path):
    folder = build(tmp_path, 1, labels={"0": "background", "1": "PZ"}, modality={"0": "T2", "1": "ADC"})
    task = decathlon.index(folder)
    row = task.cases[0]
    image = task.read_image(row)
    fails(lambda: task.read_labels(row, image), "prostate_00.nii.gz", "label 2 is not", "0 = background, 1 = PZ")
    fails(lambda: task.read_image(row, "ADC"), "prostate_00.nii.gz", "no frame 1")


@pytest.mark.parametrize("part", ["image", "label"])
def test_a_listed_file_is_missing(tmp_path, part):
    folder = build(tmp_path)
    (folder / f"{part}sTr/prostate_02.nii.gz").unlink()
    fails(lambda: decathlon.index(folder), "dataset.json, row 3", part, f"{part}sTr/prostate_02.nii.gz is listed")


def test_a_missing_test_image_matters_to_who_asks_for_it(tmp_path):
    folder = build(tmp_path)
    (folder / "imagesTs/prostate_90.nii.gz").unlink()
    assert len(decathlon.index(folder).cases) == 3
    fails(lambda: decathlon.index(folder, test=True), "prostate_90.nii.gz is listed")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"labels": None}, "'labels' is no list of names by number"),
        ({"labels": {"background": 0}}, "'labels' is no list of names by number"),
        ({"modality": ["T2"]}, "'modality' is no list of names by number"),
        ({"modality": {"1": "T2"}}, "not 0, 1, 2"),
        ({"training": []}, "dataset.json"),
        ({"training": [{"image": "./imagesTr/prostate_00.nii.gz"}]}, "without label"),
        ({"training": [{"image": "./imagesTr/._prostate_00.nii.gz"}], "test": None}, "no training case"),
    ],
)
def test_mistakes_in_dataset_json(tmp_path, changes, part):
    folder = build(tmp_path, **changes)
    fails(lambda: decathlon.index(folder), "dataset.json", part)


def test_several_tasks(tmp_path):
    folder = build(tmp_path)
    assert decathlon.task_folders(tmp_path) == [folder]
    assert decathlon.task_folders(folder) == [folder]
    lines = decathlon.report_missing(tmp_path)
    assert lines[0].startswith("9 of 10 tasks are missing: Task01_BrainTumour, ")
    assert "CC BY-SA" in lines[1]
    for name in decathlon.TASKS:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "dataset.json").touch()
    assert decathlon.report_missing(tmp_path) == []
    fails(lambda: decathlon.task_folders(folder / "imagesTr"), "neither this folder", "medicaldecathlon.com")
    fails(lambda: decathlon.index(folder / "imagesTr"), "no dataset.json")
    for call in (decathlon.index, decathlon.task_folders, decathlon.report_missing):
        fails(lambda call=call: call(tmp_path / "no"), "missing")
