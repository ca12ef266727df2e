"""Labelled radiographs: reading, splits, views, batches (specification 2.4, 5.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from dart_core.data.catalog import chestxray14, chexpert
from dart_core.data.datalist import Datalist, Row
from dart_core.data.images import write_image
from dart_core.data.picture_views import draw_part
from dart_core.errors import InputError
from mmtl_octl.pictures import (
    Pictures,
    label_columns,
    label_problems,
    load_picture,
    open_pictures,
    outputs_of,
    picture_batches,
    read_pictures,
    split_pictures,
    training_view,
    whole_view,
)
from mmtl_octl.schedules import target_count
from mmtl_octl.settings import Training

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a CSV datalist."""

    def run(text: str) -> Path:
        path = tmp_path / "list.csv"
        path.write_text(text)
        return path

    return run


def pictures(name: str, count: int, labels: Sequence[str] = ("a", "b"), folder: Path | None = None) -> Pictures:
    """Made-up pictures; with files where a folder is given."""
    rng = np.random.default_rng(list(name.encode()))
    rows = []
    for i in range(count):
        path = (folder or Path()) / f"{name}{i}.png"
        if folder is not None:
            write_image(path, rng.integers(0, 255, (40, 30), dtype=np.uint8))
        rows.append(Row(path, subject=f"p{i // 2}", site=name))
    truth = rng.integers(0, 2, (count, len(labels))).astype(np.float32)
    return Pictures(name, tuple(labels), tuple(rows), truth)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_an_uncertain_label_is_pointed_out(write: Write) -> None:
    """CheXpert marks one as -1; the column counts as one of labels all the same."""
    datalist = Datalist.read(write("image,site,Mass\nx.png,s,1\ny.png,s,-1\n"))
    with pytest.raises(
        InputError, match=r"list.csv, row 3, column Mass: '-1' is no label; give 0 or 1; an uncertain one"
    ):
        read_pictures(datalist, "s")
    with pytest.raises(InputError, match="site s has no column 'Edema'; there are: Mass"):
        read_pictures(datalist, "s", ("Edema",))


def test_problems_of_a_row_are_all_listed(write: Write) -> None:
    datalist = Datalist.read(write("image,site,Mass,Edema\nx.png,s,1,-1\ny.png,s,-1,0\n"))
    assert label_columns(datalist.rows) == ("Mass", "Edema")
    found = [(column, str(error)) for row in datalist for column, error in label_problems(row, ("Mass", "Edema"))]
    assert [column for column, _ in found] == ["Edema", "Mass"]
    assert all("an uncertain one counts as 1 in the paper" in error for _, error in found)


def test_folders_as_published(tmp_path: Path) -> None:
    grey = np.zeros((8, 8), np.uint8)
    nih = tmp_path / "nih"
    write_image(nih / "images" / "0001.png", grey)
    (nih / "Data_Entry_2017_v2020.csv").write_text(
        "Image Index,Finding Labels,Patient ID,View Position\n0001.png,Mass|Edema,1,PA\n"
    )
    found = read_pictures(open_pictures(nih), "chestxray14")
    assert found.labels == chestxray14.LABELS
    assert {name for name, value in zip(found.labels, found.truth[0], strict=True) if value} == {"Mass", "Edema"}
    stanford = tmp_path / "CheXpert-v1.0-small"
    write_image(stanford / "train" / "patient00001" / "study1" / "view1_frontal.png", grey)
    head = ",".join(("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *chexpert.LABELS))
    cells = ",".join(("", "Male", "60", "Frontal", "AP", "", "", "-1.0", "1.0", *("0.0",) * 10))
    name = "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.png"
    (stanford / "train.csv").write_text(f"{head}\n{name}{cells}\n")
    found = read_pictures(open_pictures(stanford), "chexpert")
    assert found.labels == chexpert.LABELS
    assert found.truth[0, 2:4].tolist() == [1, 1]  # an uncertain label counts as present
    assert found.truth[0].sum() == 2
    assert found.rows[0].split == ""  # a test split is to be drawn
    with pytest.raises(InputError, match="neither CheXpert nor ChestX-ray14"):
        open_pictures(nih / "images")


# --- splits ----------------------------------------------------------------------------------------------------------


def test_the_split_is_the_same_for_every_run() -> None:
    """Runs can be compared because nothing but the data decides who is tested: a chance of 0.1 for each patient."""
    parts = split_pictures(pictures("s", 4000), "patient")
    train, test = ({row.subject for row in parts[name].rows} for name in ("train", "test"))
    assert not train & test
    assert not len(parts["val"])
    assert abs(len(test) - 200) < 5 * math.sqrt(2000 * 0.1 * 0.9)
    again = split_pictures(pictures("s", 4000), "patient")
    assert all(again[name].rows == parts[name].rows for name in parts)


# --- views -----------------------------------------------------------------------------------------------------------


def test_views_by_hand() -> None:
    image = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 4) * 20
    assert torch.equal(whole_view(image.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :, :6], 6),
                       image.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :, :6].float() / 255)  # fmt: skip
    rng, twin = np.random.default_rng(3), np.random.default_rng(3)
    big = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (1, 60, 50), dtype=np.uint8))
    view = training_view(big, 32, rng)
    top, left, h, w = draw_part(twin, 60, 50)
    crop = big[:, top : top + h, left : left + w].float()[None]
    expected = torch.nn.functional.interpolate(crop, (32, 32), mode="bilinear", antialias=True)[0] / 255
    expected = expected.flip(-1) if twin.random() < 0.5 else expected
    assert view.dtype == torch.float32
    assert view.shape == (1, 32, 32)
    assert (view - expected).abs().max() <= 1 / 255 + 1e-6  # rounded to 8 bits


def test_half_of_the_views_are_mirrored() -> None:
    image = torch.zeros(1, 64, 64, dtype=torch.uint8)
    image[:, :, 32:] = 255
    rng = np.random.default_rng(0)
    views = [training_view(image, 16, rng) for _ in range(400)]
    rising = [bool(view[0, :, -1].mean() > view[0, :, 0].mean()) for view in views]
    falling = [bool(view[0, :, -1].mean() < view[0, :, 0].mean()) for view in views]
    assert abs(sum(rising) - sum(falling)) < 5 * math.sqrt(sum(rising) + sum(falling))


def test_grey_values_of_a_file(tmp_path: Path) -> None:
    write_image(tmp_path / "x.png", np.array([[0, 51], [102, 255]], np.uint8))
    row = Row(tmp_path / "x.png")
    assert load_picture(row).tolist() == [[[0, 51], [102, 255]]]
    torch.testing.assert_close(whole_view(load_picture(row), 2), torch.tensor([[[0, 0.2], [0.4, 1]]]))


# --- batches ---------------------------------------------------------------------------------------------------------

SETS = {"one": ("a", "b"), "two": ("c",)}


def test_labels_stand_at_their_own_outputs() -> None:
    table = outputs_of(SETS, pictures("two", 3, ("c",)))
    assert table.shape == (3, 3)
    assert np.isnan(table[:, :2]).all()
    np.testing.assert_array_equal(table[:, 2], pictures("two", 3, ("c",)).truth[:, 0])
    swapped = outputs_of(SETS, pictures("one", 4, ("b", "a")))
    np.testing.assert_array_equal(swapped[:, :2], pictures("one", 4, ("b", "a")).truth[:, ::-1])
    for name, labels in (("three", ("a",)), ("one", ("c",)), ("one", ())):
        with pytest.raises(InputError, match="the network has no output for"):
            outputs_of(SETS, pictures(name, 2, labels))


def test_mixed_batches(tmp_path: Path) -> None:
    training = Training(epochs=4, batches=2, batch_size=6)
    source, target = pictures("one", 7, folder=tmp_path), pictures("two", 5, ("c",), tmp_path)
    batches = picture_batches(SETS, [source], [target], training, 24, 5, "xray")
    for step in range(8):
        batch = batches.batch(step)
        assert batch["image"].shape == (6, 1, 24, 24)
        assert 0 <= batch["image"].min() <= batch["image"].max() <= 1
        count = target_count(step // 2, 4, 6, "xray")
        known = ~batch["label"].isnan()
        assert torch.equal(known[:count], torch.tensor([[False, False, True]]).expand(count, 3))
        assert torch.equal(known[count:], torch.tensor([[True, True, False]]).expand(6 - count, 3))
        again = batches.batch(step)
        assert torch.equal(batch["image"], again["image"])
        torch.testing.assert_close(batch["label"], again["label"], equal_nan=True)


def test_target_samples_do_not_depend_on_the_schedule(tmp_path: Path) -> None:
    training = Training(epochs=3, batches=2, batch_size=8)
    source, target = pictures("one", 7, folder=tmp_path), pictures("two", 5, ("c",), tmp_path)
    mixed = picture_batches(SETS, [source], [target], training, 16, 5, "xray")
    alone = picture_batches(SETS, [], [target], training, 16, 5, "target")
    for step in range(6):
        count = target_count(step // 2, 3, 8, "xray")
        assert [sample for _, sample in mixed.plan(step)[:count]] == [sample for _, sample in alone.plan(step)[:count]]


def test_every_image_is_equally_likely(tmp_path: Path) -> None:
    """Not every patient: the paper's loaders know images only."""
    target = pictures("two", 10, ("c",), tmp_path)
    training = Training(epochs=1, batches=400, batch_size=10)
    batches = picture_batches(SETS, [], [target], training, 8, 0, "target")
    counts = np.bincount([sample for step in range(400) for _, sample in batches.plan(step)], minlength=10)
    assert len(counts) == 10
    assert (abs(counts - 400) < 5 * math.sqrt(4000 * 0.1 * 0.9)).all()
