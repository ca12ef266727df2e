"""From datalists and folders of data sets to cases (specification 5)."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark_transformers.cases import CaseFiles, StoredViews, case_batches, read_cases, training_cases
from benchmark_transformers.settings import DataSettings
from dart_core.data.catalog import chestxray14, rsna_pneumonia
from dart_core.errors import DartError


def write_list(folder: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    """Pictures image0.png, ... and their datalist; the first cell of a row is added."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", *columns))
        for i, row in enumerate(rows):
            Image.fromarray(np.full((12, 16 + i), 10 * i, np.uint8)).save(folder / f"image{i}.png")
            writer.writerow((f"image{i}.png", *row))
    return folder / "list.csv"


def test_labels_and_splits_of_a_datalist(tmp_path: Path) -> None:
    path = write_list(
        tmp_path, ("split", "a", "b"), [("train", 1, 0), ("val", 0, ""), ("train", "", 1), ("test", 1, 1)]
    )
    parts = read_cases(DataSettings(path))
    assert parts["train"].labels == ("a", "b")
    assert {name: len(part) for name, part in parts.items()} == {"train": 2, "val": 1, "test": 1}
    assert [row.image.name for row in parts["train"].rows] == ["image0.png", "image2.png"]
    assert np.array_equal(parts["train"].pictures.truth, [[1, 0], [math.nan, 1]], equal_nan=True)
    assert not parts["train"].exclusive
    assert read_cases(DataSettings(path, labels=("b", "a")))["test"].labels == ("b", "a")


def test_labels_that_a_network_answers_and_the_data_set_lacks_are_unknown(tmp_path: Path) -> None:
    path = write_list(tmp_path, ("split", "a", "b"), [("test", 1, 0), ("test", "", 1)])
    test = read_cases(DataSettings(path), ("b", "c"), labelled=False)["test"]
    assert test.labels == ("b", "c")
    assert np.array_equal(test.known(), [[0, math.nan], [1, math.nan]], equal_nan=True)


def test_uncertain_labels_need_a_policy_and_are_drawn_anew(tmp_path: Path) -> None:
    path = write_list(tmp_path, ("split", "a", "b"), [("train", -1, ""), ("train", 1, 0), ("val", 0, 1)])
    with pytest.raises(DartError, match=r"list.csv, row 2, column a: -1 marks an uncertain label; .*--uncertain"):
        read_cases(DataSettings(path))
    train = read_cases(DataSettings(path, uncertain="lsr-ones"))["train"]
    rng = np.random.default_rng(0)
    first, second = (train.targets([0, 1], rng) for _ in range(2))
    assert 0.55 <= first[0, 0] <= 0.85
    assert first[0, 0] != second[0, 0]
    assert first[0, 1] == 0  # not mentioned
    assert np.isnan(train.known()[0, 0])
    assert read_cases(DataSettings(path, uncertain="zeros"))["train"].targets([0], rng).tolist() == [[0, 0]]


def test_classes_by_name(tmp_path: Path) -> None:
    path = write_list(tmp_path, ("split", "label"), [("train", "2"), ("train", "10"), ("val", "0"), ("test", "2")])
    parts = read_cases(DataSettings(path))
    assert parts["train"].labels == ("0", "2", "10")
    assert parts["train"].exclusive
    assert parts["train"].pictures.truth.tolist() == [[0, 1, 0], [0, 0, 1]]
    with pytest.raises(DartError, match="no training picture is of class '0'"):
        training_cases(DataSettings(path))
    path = write_list(tmp_path, ("split", "label"), [("train", "a"), ("train", ""), ("val", "b")])
    with pytest.raises(DartError, match=r"row 3, column label: the picture has no class"):
        read_cases(DataSettings(path))


def test_classes_in_columns(tmp_path: Path) -> None:
    path = write_list(tmp_path, ("split", "a", "b"), [("train", 1, 0), ("train", 0, 1), ("val", 1, 1)])
    with pytest.raises(DartError, match="row 4, column a: the picture has 2 of the exclusive classes a, b"):
        read_cases(DataSettings(path, task="exclusive"))
    assert not read_cases(DataSettings(path))["val"].exclusive


@pytest.mark.parametrize(
    ("cell", "match"),
    [("2", "row 2, column a: '2' is no label"), ("yes", "'yes' is no label"), ("", "no label is filled in")],
)
def test_bad_cells(cell: str, match: str, tmp_path: Path) -> None:
    rows = [("train", cell), *[("train", 1)] * 11, ("val", 0)]
    with pytest.raises(DartError, match=match):
        read_cases(DataSettings(write_list(tmp_path, ("split", "a"), rows), labels=("a",)))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    path = write_list(tmp_path, ("split", "a"), [("train", 1), ("val", 0)])
    with pytest.raises(DartError, match="no column 'b'"):
        read_cases(DataSettings(path, labels=("b",)))
    (tmp_path / "image1.png").unlink()
    with pytest.raises(DartError, match=r"row 3, column image: .*image1\.png is not there"):
        read_cases(DataSettings(path))
    only = write_list(tmp_path / "other", ("split", "a"), [("train", 1), ("test", 0)])
    (tmp_path / "other" / "image0.png").touch()
    with pytest.raises(DartError, match="subject"):
        read_cases(DataSettings(only))  # validation pictures are drawn by patient, and none is named
    assert len(read_cases(DataSettings(only, split_by="image"))["test"]) == 1


def test_chestxray14_as_published(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(6):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / "images" / f"0000000{i}_000.png")
    lines = ["Image Index,Finding Labels,Follow-up #,Patient ID"]
    lines += [f"0000000{i}_000.png,{'Mass|Hernia' if i == 2 else 'No Finding'},0,{i}" for i in range(6)]
    (tmp_path / "Data_Entry_2017_v2020.csv").write_text("\n".join(lines))
    (tmp_path / "test_list.txt").write_text("00000005_000.png\n")
    parts = read_cases(DataSettings(tmp_path))
    assert parts["train"].labels == chestxray14.LIST_ORDER
    assert sum(len(part) for part in parts.values()) == 6
    assert len(parts["test"]) == 1
    found = {row.image.name: truth for p in parts.values() for row, truth in zip(p.rows, p.pictures.truth, strict=True)}
    positive = [name for name, value in zip(chestxray14.LIST_ORDER, found["00000002_000.png"], strict=True) if value]
    assert positive == ["Mass", "Hernia"]


def test_rsna_pneumonia_is_exclusive(tmp_path: Path) -> None:
    (tmp_path / "stage_2_train_images_png").mkdir()
    lines = ["patientId,class"]
    for i in range(30):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / "stage_2_train_images_png" / f"p{i}.png")
        lines.append(f"p{i},{rsna_pneumonia.CLASSES[i % 3]}")
    (tmp_path / "stage_2_detailed_class_info.csv").write_text("\n".join(lines))
    parts = training_cases(DataSettings(tmp_path))
    assert parts["train"].exclusive
    assert parts["train"].labels == rsna_pneumonia.CLASSES
    assert {name: len(part) for name, part in parts.items()} == {"train": 24, "val": 3, "test": 3}


def write_slice(path: Path, hounsfield: float, height: float, size: int = 4) -> None:
    """A CT slice of one value."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = CTImageStorage, meta.MediaStorageSOPInstanceUID, "CT"
    data.Rows = data.Columns = size
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.ImagePositionPatient = [0, 0, height]
    data.PixelData = np.full((size, size), hounsfield + 1024, np.int16).tobytes()
    pydicom.dcmwrite(path, data)


def test_slices_of_rsna_pe_come_between_their_neighbours(tmp_path: Path) -> None:
    """Window 100/700: -250 HU is black, 100 HU the middle, 450 HU white; first and last slice are their own neighbours."""
    lines = ["StudyInstanceUID,SeriesInstanceUID,SOPInstanceUID,pe_present_on_image"]
    for study in range(20):
        folder = tmp_path / "train" / f"study{study}" / "series"
        folder.mkdir(parents=True)
        for name, hounsfield, height in (("c", 450, 3.0), ("a", -250, 1.0), ("b", 100, 2.0)):
            write_slice(folder / f"{name}.dcm", hounsfield, height)
            lines.append(f"study{study},series,{name},{int(study % 2 and name == 'b')}")
    (tmp_path / "train.csv").write_text("\n".join(lines))
    parts = training_cases(DataSettings(tmp_path))
    assert parts["train"].labels == ("pe_present_on_image",)
    studies = [{row.subject for row in part.rows} for part in parts.values()]
    assert sum(map(len, studies)) == len(set().union(*studies)) == 20
    files = CaseFiles(parts["train"].rows[:3])
    expected = {"a": (0, 0, 128), "b": (0, 128, 255), "c": (128, 255, 255)}
    for place, row in enumerate(files.rows):
        found = files[place]
        assert found.shape == (3, 4, 4)
        assert found[:, 0, 0].tolist() == pytest.approx(expected[row.image.stem], abs=1)


# Pictures


def test_pictures_of_several_sizes_make_batches(tmp_path: Path) -> None:
    path = write_list(tmp_path, ("split", "a"), [("train", i % 2) for i in range(5)] + [("val", 1)])
    cases = read_cases(DataSettings(path))["train"]
    batches = case_batches(cases, CaseFiles(cases.rows), 8, 4, seed=0)
    batch = batches.batch(0)
    assert batch["image"].shape == (4, 3, 8, 8)
    assert batch["image"].dtype == torch.uint8
    assert (batch["view"].shape, batch["label"].shape) == ((4, 6), (4, 1))
    assert torch.equal(batches.batch(1)["image"], batches.batch(1)["image"])


def test_validation_views_are_made_once(tmp_path: Path) -> None:
    path = write_list(tmp_path, ("split", "a"), [("train", 1), ("train", 0), ("val", 1)])
    files = CaseFiles(read_cases(DataSettings(path))["train"].rows)
    made = 0

    def change(image: torch.Tensor) -> torch.Tensor:
        nonlocal made
        made += 1
        return image[:, :4, :4]

    views = StoredViews(files, change)
    first, second = (torch.cat(list(views.in_batches(1))) for _ in range(2))
    assert torch.equal(first, second)
    assert made == 3  # one to learn the size
