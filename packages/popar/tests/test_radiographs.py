"""Reading by area, rows of a pretraining, exclusion."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dart_core.data.datalist import Datalist, Row
from dart_core.data.images import write_image
from popar.radiographs import Radiographs, excluded, kinds_of, pretraining_rows, read_radiograph, three_channels
from popar.settings import resized_side


def overlap(source: int, target: int) -> np.ndarray:
    """(target, source): which share of each source pixel belongs to a target pixel; rows sum to 1."""
    edges = np.arange(target + 1) * source / target
    pixels = np.arange(source)
    shared = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return shared.clip(0) * target / source


@given(st.integers(0, 10_000), st.integers(21, 60), st.integers(21, 60))
def test_reading_averages_areas(seed, height, width):
    """As the authors' INTER_AREA, on which PyTorch's mode of the same name does not agree."""
    import tempfile

    array = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = write_image(Path(folder, "a.png"), array)
        found = read_radiograph(path, 20)
    exact = overlap(height, 20) @ array @ overlap(width, 20).T
    assert found.shape == (1, 20, 20)
    assert found.dtype == torch.uint8
    assert np.abs(found[0].numpy() - exact).max() <= 0.5 + 1e-3


def test_grey_and_colour(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    write_image(tmp_path / "colour.png", colour)
    write_image(tmp_path / "grey.png", colour[..., 0])
    Image.fromarray(colour[..., 0]).convert("RGBA").save(tmp_path / "rgba.png")
    grey = read_radiograph(tmp_path / "grey.png")
    assert torch.equal(grey, torch.from_numpy(colour[..., 0])[None])
    assert torch.equal(read_radiograph(tmp_path / "rgba.png"), grey)
    assert torch.equal(three_channels(grey[None])[0], read_radiograph(tmp_path / "grey.png", colour=True))
    assert torch.equal(read_radiograph(tmp_path / "colour.png", colour=True), torch.from_numpy(colour).permute(2, 0, 1))
    expected = cv2.resize(colour, (8, 8), interpolation=cv2.INTER_AREA)
    assert torch.equal(read_radiograph(tmp_path / "colour.png", 8, True), torch.from_numpy(expected).permute(2, 0, 1))


def test_memory_keeps_pictures(tmp_path):
    path = write_image(tmp_path / "a.png", np.zeros((8, 8), np.uint8))
    kept, fresh = (Radiographs([Row(path)], 8, memory=memory) for memory in (True, False))
    kept.read_all()
    fresh.read_all()
    path.unlink()
    assert kept[0].shape == (1, 8, 8)
    with pytest.raises(ValueError, match=r"a\.png: file not found"):
        fresh[0]


def rows(count, splits=("",), subjects=True):
    return Datalist(
        tuple(
            Row(Path(f"{i}.png"), subject=f"s{i // 2}" * subjects, split=splits[i % len(splits)]) for i in range(count)
        )
    )


def test_rows_of_other_splits_are_measured():
    training, measured = pretraining_rows(rows(30, ("train", "val", "test")), ("train", "val"), frozenset(), 4, 0)
    assert len(training) == 20
    assert {row.split for row in training} == {"train", "val"}
    assert len(measured) == 4
    assert {row.split for row in measured} == {"test"}


@given(st.integers(1, 60), st.integers(1, 20), st.booleans(), st.integers(0, 5))
def test_rows_are_taken_out_where_no_split_is_named(count, held_out, subjects, seed):
    datalist = rows(count, subjects=subjects)
    training, measured = pretraining_rows(datalist, ("train", "val"), frozenset(), held_out, seed)
    assert sorted(row.image.name for row in (*training, *measured)) == sorted(row.image.name for row in datalist)
    assert len(measured) <= min(held_out, count // 10)
    if subjects:
        assert not {row.subject for row in training} & {row.subject for row in measured}
    assert (training, measured) == pretraining_rows(datalist, ("train", "val"), frozenset(), held_out, seed)


def test_exclusion(tmp_path):
    (tmp_path / "names.txt").write_text("0.png\n\n1.png 0 1\n2\n")
    datalist = rows(6, ("train",))
    names = excluded(tmp_path / "names.txt", datalist)
    training, measured = pretraining_rows(datalist, ("train",), names, 1, 0)
    assert [row.image.name for row in (*training, *measured)] == ["3.png", "4.png", "5.png"]
    mapping = [{"subset_img_id": "a", "img_id": "00000165_001.png", "orig_labels": []}]
    (tmp_path / "mapping.json").write_text(json.dumps(mapping))
    originals = Datalist((Row(Path("00000165_001.png")), Row(Path("00000165_002.png"))))
    assert excluded(tmp_path / "mapping.json", originals) == {Path("00000165_001.png")}
    assert excluded(None, datalist) == frozenset()
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"empty\.txt: names no picture"):
        excluded(tmp_path / "empty.txt", datalist)
    with pytest.raises(ValueError, match=r"mapping\.json: names none of the pictures"):
        excluded(tmp_path / "mapping.json", datalist)
    with pytest.raises(ValueError, match=r"gone\.txt: cannot be read"):
        excluded(tmp_path / "gone.txt", datalist)
    with pytest.raises(ValueError, match="no picture has a split of val"):
        pretraining_rows(rows(6, ("train",)), ("val",), frozenset(), 1, 0)


@pytest.mark.parametrize(
    ("line", "places"),
    [
        ("patient00002/study1/view1_frontal.jpg", [1]),
        ("patient00002/study1/view1_frontal", [1]),
        ("/cxr/train/patient00001/study1/view1_frontal.jpg", [0]),
        ("study2/view1_frontal.jpg 0 1 1", [2]),
        ("view1_frontal.jpg", [0, 1, 2]),
        ("my scan 2.png", [3]),
        ("my scan 2.png,0,1", [3]),
        ("my scan 2", [3]),
        ("v1.5", [4]),
    ],
)
def test_names_of_excluded_pictures(line, places, tmp_path):
    """Blanks belong to names, and folders tell pictures of one name apart."""
    paths = (
        "train/patient00001/study1/view1_frontal.jpg", "train/patient00002/study1/view1_frontal.jpg",
        "train/patient00002/study2/view1_frontal.jpg", "my scan 2.png", "v1.5.png", "my.png", "v1.png",
    )  # fmt: skip
    images = [Path("/cxr") / path for path in paths]
    (tmp_path / "names.txt").write_text(line + "\n")
    found = excluded(tmp_path / "names.txt", Datalist(tuple(Row(image) for image in images)))
    assert found == {images[place] for place in places}


def test_sizes():
    assert [resized_side(size) for size in (224, 256, 384, 448, 512, 32)] == [256, 293, 440, 512, 585, 37]
    assert kinds_of({(2, 3): 1, (4, 4): 2}) == "4 x 4 (2), 2 x 3 (1)"
    assert kinds_of({(i, 1): 1 for i in range(7)}).endswith("and 2 other sizes")
