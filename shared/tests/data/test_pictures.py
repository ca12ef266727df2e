"""Labelled pictures: reading, splits, finding and opening files."""

from __future__ import annotations

import dataclasses
import math
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dart_core.data.datalist import Datalist, Row
from dart_core.data.images import write_image
from dart_core.data.pictures import (
    ENDINGS,
    PictureFiles,
    Pictures,
    filled,
    find_pictures,
    label_columns,
    label_problems,
    read_pictures,
    resized,
    site_rows,
    sites_of,
    split_pictures,
)
from dart_core.errors import InputError

Write = Callable[[str], Path]
COLOUR = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a CSV datalist."""

    def run(text: str) -> Path:
        path = tmp_path / "list.csv"
        path.write_text(text)
        return path

    return run


def pictures(count: int, labels: Sequence[str] = ("a", "b"), splits: Sequence[str] = ()) -> Pictures:
    """Made-up pictures without files, two of each subject."""
    rows = tuple(
        Row(Path(f"{i}.png"), subject=f"p{i // 2}", site="s", split=splits[i] if splits else "") for i in range(count)
    )
    truth = np.random.default_rng(0).integers(0, 2, (count, len(labels))).astype(np.float32)
    return Pictures("s", tuple(labels), rows, truth)


def subjects(part: Pictures) -> set[str]:
    return {row.subject for row in part.rows}


# --- Datalists -------------------------------------------------------------------------------------------------------


def test_label_columns_are_those_of_zeros_and_ones(write: Write) -> None:
    text = "image,subject,site,Mass,age,view,Nodule\nx.png,p,s,1,30,PA,\ny.png,q,s,0.0,1,AP,1.0\n"
    found = read_pictures(Datalist.read(write(text)), "s")
    assert found.labels == ("Mass", "Nodule")
    np.testing.assert_array_equal(found.truth, [[1, np.nan], [0, 1]])
    assert found.truth.dtype == np.float32
    chosen = read_pictures(Datalist.read(write(text)), "s", ("Nodule", "Mass"), labelled=False)
    np.testing.assert_array_equal(chosen.truth, [[np.nan, 1], [1, 0]])


def test_a_slip_of_the_pen_does_not_make_a_label_column_disappear(write: Write) -> None:
    rows = [f"{i}.png,p{i},s,{i % 2},{i}" for i in range(10)]
    rows[3] = "3.png,p3,s,3,3"
    with pytest.raises(InputError, match=r"list.csv, row 5, column Mass: '3' is no label; give 0 or 1"):
        read_pictures(Datalist.read(write("\n".join(["image,subject,site,Mass,visit", *rows]))), "s")
    rows[4] = "4.png,p4,s,4,4"  # two of ten: a column of something else
    with pytest.raises(InputError, match="no label column"):
        read_pictures(Datalist.read(write("\n".join(["image,subject,site,Mass,visit", *rows]))), "s")


def test_each_data_set_of_a_file_has_its_own_labels(write: Write) -> None:
    text = "image,site,Mass,Edema\nx.png,one,1,\ny.png,two,,0\nz.png,two,,1\n"
    datalist = Datalist.read(write(text))
    assert sites_of(datalist) == ("one", "two")
    assert read_pictures(datalist, "one").labels == ("Mass",)
    assert read_pictures(datalist, "two").labels == ("Edema",)


def test_a_file_without_sites_is_one_data_set(write: Write) -> None:
    datalist = Datalist.read(write("image,Mass\nx.png,1\n"))
    assert sites_of(datalist) == ("list",)
    assert len(read_pictures(datalist, "list")) == len(site_rows(datalist, "list")) == 1
    with pytest.raises(InputError, match="no row has site 'other'"):
        read_pictures(datalist, "other")


def test_without_labels_asked_for_there_may_be_none(write: Write) -> None:
    found = read_pictures(Datalist.read(write("image,site\nx.png,s\n")), "s", labelled=False)
    assert found.labels == ()
    assert found.truth.shape == (1, 0)


@pytest.mark.parametrize(
    ("text", "labels", "message"),
    [
        (
            "image,site,Mass\nx.png,s,1\ny.png,s,2\n",
            ("Mass",),
            r"list.csv, row 3, column Mass: '2' is no label; give 0 or 1$",
        ),
        ("image,site,Mass\nx.png,s,1\ny.png,s,yes\n", ("Mass",), r"row 3, column Mass: 'yes' is no label"),
        ("image,site,Mass\nx.png,s,1\ny.png,s,\n", (), r"row 3, column Mass: no label is filled in; fill in 0 or 1"),
        ("image,site,Mass\nx.png,s,1\n", ("Edema",), r"site s has no column 'Edema'; there are: Mass"),
        ("image,site\nx.png,s\n", ("Edema",), r"site s has no column 'Edema'; there are: none"),
        ("image,site,note\nx.png,s,good\n", (), r"site s has no label column; add one column per label"),
        ("image,site,Mass\nx.png,s,-1\n", (), r"site s has no label column"),
    ],
)
def test_what_cannot_be_read(write: Write, text: str, labels: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_pictures(Datalist.read(write(text)), "s", labels)


def test_cells_that_a_kind_of_data_is_known_to_write(write: Write) -> None:
    advice = {"-1": "the authors count it as 1"}
    datalist = Datalist.read(write("image,site,Mass,Edema,age\nx.png,s,1,-1,2\ny.png,s,7,-1,0\n"))
    assert label_columns(datalist.rows, advice) == ("Edema",)
    assert label_columns(datalist.rows) == ()
    with pytest.raises(
        InputError, match=r"row 2, column Edema: '-1' is no label; give 0 or 1; the authors count it as 1$"
    ):
        read_pictures(datalist, "s", advice=advice)
    found = [
        (row.line, column, str(e)) for row in datalist for column, e in label_problems(row, ("Mass", "Edema"), advice)
    ]
    assert found == [
        (2, "Edema", "'-1' is no label; give 0 or 1; the authors count it as 1"),
        (3, "Mass", "'7' is no label; give 0 or 1"),
        (3, "Edema", "'-1' is no label; give 0 or 1; the authors count it as 1"),
    ]


# --- Splits ----------------------------------------------------------------------------------------------------------


def test_a_split_of_the_datalist_is_kept_and_the_training_list_shuffled() -> None:
    made = pictures(80, splits=["train"] * 60 + ["val"] * 8 + ["test"] * 12)
    parts = split_pictures(made, val_share=0.5)
    assert [len(parts[name]) for name in ("train", "val", "test")] == [60, 8, 12]
    order = [int(row.image.stem) for row in parts["train"].rows]
    assert sorted(order) == list(range(60))
    assert order != sorted(order)
    assert [row.image for row in split_pictures(made)["train"].rows] == [row.image for row in parts["train"].rows]
    other = [int(row.image.stem) for row in split_pictures(made, seed=1)["train"].rows]
    assert sorted(other) == list(range(60))
    assert other != order


@pytest.mark.parametrize(("test_share", "val_share"), [(0.1, 0.0), (0.3, 0.2), (0.0, 0.25), (1.0, 0.0), (0.5, 1.0)])
def test_drawn_splits_keep_patients_together_and_have_their_shares(test_share: float, val_share: float) -> None:
    parts = split_pictures(pictures(4000), "patient", test_share, val_share)
    found = {name: subjects(part) for name, part in parts.items()}
    assert sum(map(len, found.values())) == len(set().union(*found.values())) == 2000
    for name, share in (("test", test_share), ("val", (1 - test_share) * val_share)):
        assert abs(len(found[name]) - 2000 * share) <= 5 * math.sqrt(2000 * share * (1 - share))


def test_the_test_images_do_not_depend_on_the_validation_share() -> None:
    tests = [split_pictures(pictures(400), val_share=share)["test"] for share in (0.0, 0.2, 0.7)]
    assert len({tuple(row.image for row in test.rows) for test in tests}) == 1
    assert len(tests[0])
    other = split_pictures(pictures(400), seed=1)["test"]
    assert [row.image for row in other.rows] != [row.image for row in tests[0].rows]


def test_drawing_image_by_image_parts_patients() -> None:
    parts = split_pictures(pictures(4000), "image")
    assert abs(len(parts["test"]) - 400) < 5 * math.sqrt(4000 * 0.1 * 0.9)
    assert subjects(parts["train"]) & subjects(parts["test"])
    assert len({row.image for part in parts.values() for row in part.rows}) == 4000


def test_named_splits_are_never_drawn_from_for_test() -> None:
    parts = split_pictures(pictures(1000, splits=["train"] * 300 + ["val"] * 100 + [""] * 600))
    assert len(parts["val"]) == 100
    assert {row.split for row in parts["test"].rows} == {""}
    assert 20 < len(parts["test"]) < 120


def test_a_patient_with_a_named_split_is_not_parted() -> None:
    """Half of each patient's images are named for training; the other half must not become test images."""
    parts = split_pictures(pictures(200, splits=["train", ""] * 100), test_share=1.0)
    assert len(parts["train"]) == 200
    assert len(split_pictures(pictures(200, splits=["train", ""] * 100), "image", test_share=1.0)["test"]) == 100


def test_validation_comes_out_of_named_training_images_too() -> None:
    made = pictures(2000, splits=["train"] * 1000 + ["test"] * 1000)
    parts = split_pictures(made, val_share=0.3)
    assert len(parts["test"]) == 1000
    assert not subjects(parts["train"]) & subjects(parts["val"])
    assert abs(len(subjects(parts["val"])) - 150) < 5 * math.sqrt(500 * 0.3 * 0.7)
    assert len(split_pictures(made)["val"]) == 0


def test_truth_travels_with_the_images() -> None:
    found = pictures(200, ("a", "b", "c"))
    truth = dict(zip([row.image for row in found.rows], found.truth.tolist(), strict=True))
    for part in split_pictures(found, val_share=0.2).values():
        assert all(truth[row.image] == labels for row, labels in zip(part.rows, part.truth.tolist(), strict=True))


def test_a_split_by_patient_needs_patients(write: Write) -> None:
    datalist = Datalist.read(write("image,site,Mass\nx.png,s,1\ny.png,s,0\n"))
    with pytest.raises(InputError, match=r"row 2, column subject: the row names no subject.*--split-by image"):
        split_pictures(read_pictures(datalist, "s"))
    assert len(split_pictures(read_pictures(datalist, "s"), "image")["train"]) > 0
    rows = [dataclasses.replace(row, split="test") for row in datalist.rows[:1]]
    named = Datalist((*rows, dataclasses.replace(datalist.rows[1], split="train")), datalist.source)
    assert len(split_pictures(read_pictures(named, "s"))["test"]) == 1
    with pytest.raises(InputError, match="row 3, column subject"):
        split_pictures(read_pictures(named, "s"), val_share=0.5)


def test_an_empty_split_is_an_error(write: Write) -> None:
    datalist = Datalist.read(write("image,site,split,Mass\nx.png,s,test,1\n"))
    parts = split_pictures(read_pictures(datalist, "s"))
    assert filled(parts["test"], "test", datalist) is parts["test"]
    with pytest.raises(InputError, match="site s has no image with split train; write train into the column split"):
        filled(parts["train"], "train", datalist)


# --- Finding files ---------------------------------------------------------------------------------------------------


def test_pictures_are_found_by_their_ending_in_all_folders(tmp_path: Path) -> None:
    for name in (
        "b.png",
        "a/z.JPG",
        "a/b/c.TiFf",
        "é ü/x.webp",
        "a.bmp",
        "k.jpeg",
        "m.tif",
        "g.gif",
        "d.DICOM",
        "x.dcm",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("notes.txt", "a/x.svg", "a/png", "._b.png", ".hidden/y.png", "dcm", "n.png.part"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "link.png").symlink_to(tmp_path / "b.png")
    found = find_pictures(tmp_path)
    names = [
        "a/b/c.TiFf",
        "a/z.JPG",
        "a.bmp",
        "b.png",
        "d.DICOM",
        "g.gif",
        "k.jpeg",
        "link.png",
        "m.tif",
        "x.dcm",
        "é ü/x.webp",
    ]
    assert [path.relative_to(tmp_path).as_posix() for path in found] == names
    assert found == sorted(found)
    assert {path.suffix.lower() for path in found} == set(ENDINGS)


def test_folders_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for folder, message in (
        (tmp_path, "holds no picture; give a folder with files of these kinds: png, jpg"),
        (tmp_path / "no", "folder not found"),
        (tmp_path / "notes.txt", "this is a file, not a folder"),
    ):
        with pytest.raises(InputError, match=message) as error:
            find_pictures(folder)
        assert str(folder) in str(error.value)


# --- Files -----------------------------------------------------------------------------------------------------------


def rows_of(*paths: Path) -> list[Row]:
    return [Row(path) for path in paths]


def test_items_are_the_pixels_of_the_file(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{i}.png", np.roll(COLOUR, i, axis=1)) for i in range(3)]
    files = PictureFiles(rows_of(*paths))
    assert len(files) == 3
    for i, item in enumerate(files):
        assert item["index"] == i
        assert item["image"].dtype == torch.uint8
        assert item["image"].is_contiguous()
        np.testing.assert_array_equal(item["image"].permute(1, 2, 0), np.roll(COLOUR, i, axis=1))
    assert files[-1]["index"] == 2
    with pytest.raises(IndexError):
        files[3]


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("size", [16, 64])
def test_sizes(tmp_path: Path, size: int, square: bool) -> None:
    files = PictureFiles(rows_of(write_image(tmp_path / "a.png", COLOUR)), size, square=square)
    # The middle square of 30 x 41: columns from floor(11 / 2) on.
    cut = COLOUR[:, 5:35] if square else COLOUR
    whole = torch.from_numpy(cut).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(whole, (size, size), mode="bilinear", antialias=True)[0]
    found = files[0]["image"]
    assert found.shape == (3, size, size)
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    assert (found - expected).abs().max() <= 1  # rounded to 8 bits


def test_size_of_the_file_is_not_resampled(tmp_path: Path) -> None:
    square = COLOUR[:, :30]
    path = write_image(tmp_path / "a.png", square)
    np.testing.assert_array_equal(PictureFiles(rows_of(path), 30, square=True)[0]["image"].permute(1, 2, 0), square)


@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_the_middle_square_lies_in_the_middle(height: int, width: int) -> None:
    rows, columns = np.mgrid[:height, :width]
    image = torch.from_numpy(np.stack((rows, columns, rows), 0).astype(np.uint8))
    found = resized(image, None, square=True)
    side = min(height, width)
    assert found.shape == (3, side, side)
    assert found[0, 0, 0] == (height - side) // 2
    assert found[1, 0, 0] == (width - side) // 2


def test_tiny_pictures(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", np.full((1, 1, 3), 7, np.uint8))
    assert (PictureFiles(rows_of(path), 8, square=True)[0]["image"] == torch.full((3, 8, 8), 7)).all()
    with pytest.raises(ValueError, match="size is 0"):
        PictureFiles(rows_of(path), 0)


def saved(path: Path, mode: str) -> np.ndarray:
    """Save a picture with a known grey value per pixel in this mode; what it is in 8-bit colour."""
    grey = COLOUR[..., 0]
    match mode:
        case "L" | "LA":
            image = Image.fromarray(grey).convert(mode)
        case "RGBA":
            image = Image.fromarray(np.dstack((COLOUR, grey)))
            image.save(path)
            return COLOUR
        case "P":
            image = Image.fromarray(grey // 64).convert("P")
            image.putpalette(bytes(range(10, 10 + 12)) + bytes(756))
            image.save(path, transparency=b"\x00\xff\x80\x01")
            return np.array(range(10, 22), np.uint8).reshape(4, 3)[grey // 64]
        case "1":
            image = Image.fromarray(grey > 99)
            grey = np.where(grey > 99, 255, 0).astype(np.uint8)
        case "CMYK":
            Image.fromarray(np.dstack((255 - COLOUR, np.zeros_like(grey))), "CMYK").save(path)
            return COLOUR
        case "I;16":
            image = Image.fromarray(grey.astype(np.uint16) * 257)
        case other:
            raise AssertionError(other)
    image.save(path)
    return np.repeat(grey[..., None], 3, 2)


@pytest.mark.filterwarnings("default:'mode' parameter is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("mode", "ending"),
    [
        ("L", "png"),
        ("LA", "png"),
        ("RGBA", "png"),
        ("RGBA", "tif"),
        ("P", "png"),
        ("1", "tif"),
        ("CMYK", "tif"),
        ("I;16", "png"),
        ("I;16", "tif"),
    ],
)
def test_every_kind_of_pixel_becomes_8_bit_colour(tmp_path: Path, mode: str, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    expected = saved(path, mode)
    found = PictureFiles(rows_of(path))[0]["image"]
    np.testing.assert_array_equal(found.permute(1, 2, 0), expected)


def test_16_bit_colour_becomes_8_bit(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    deep = COLOUR.astype(np.uint16) * 257
    for ending in ("png", "tif"):
        assert cv2.imwrite(str(tmp_path / f"a.{ending}"), deep[..., ::-1])
        np.testing.assert_array_equal(
            PictureFiles(rows_of(tmp_path / f"a.{ending}"))[0]["image"].permute(1, 2, 0), COLOUR
        )


def test_a_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (200, 120, 90)).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    found = PictureFiles(rows_of(tmp_path / "a.jpg"))[0]["image"].float()
    assert (found.mean((1, 2)) - torch.tensor([200.0, 120, 90])).abs().max() < 3


def test_files_that_are_no_picture_name_themselves(tmp_path: Path) -> None:
    whole = write_image(tmp_path / "whole.png", COLOUR)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:900])
    (tmp_path / "text.png").write_text("no picture")
    frames = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    bad = ("cut.png", "text.png", "moving.webp", "missing.png")
    files = PictureFiles(rows_of(whole, *(tmp_path / name for name in bad)), 16, memory=True)
    for i, (name, problem) in enumerate(
        zip(bad, ("damaged", "not a picture", "2 pictures", "not found"), strict=True), 1
    ):
        with pytest.raises(InputError, match=problem) as error:
            files[i]
        assert str(tmp_path / name) in str(error.value)
    assert files[0]["image"].shape == (3, 16, 16)


def test_what_is_kept_in_memory_is_not_read_again_and_not_changed(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", COLOUR)
    kept, read = PictureFiles(rows_of(path), 16, memory=True), PictureFiles(rows_of(path), 16)
    first = kept[0]["image"].clone()
    assert torch.equal(first, read[0]["image"])
    kept[0]["image"].zero_()
    write_image(path, 255 - COLOUR)
    assert torch.equal(kept[0]["image"], first)
    assert not torch.equal(read[0]["image"], first)


def test_loading_processes_get_them(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{i}.png", COLOUR // (i + 1)) for i in range(6)]
    files = PictureFiles(rows_of(*paths), 16, square=True, memory=True)
    assert torch.equal(pickle.loads(pickle.dumps(files))[5]["image"], files[5]["image"])
    loader = torch.utils.data.DataLoader(files, batch_size=4, num_workers=1)
    batches = list(loader)
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5]]
    assert torch.equal(torch.cat([batch["image"] for batch in batches]), torch.stack([item["image"] for item in files]))


@pytest.mark.real
@pytest.mark.skipif("DART_DATA" not in os.environ, reason="DART_DATA does not say where the real data sets are")
def test_real_dermoscopy_pictures() -> None:
    folder = Path(os.environ["DART_DATA"]) / "ham10000_sites"
    if not folder.is_dir():
        pytest.skip(f"{folder.name} is not there")
    found = find_pictures(folder / "images")
    assert len(found) == 704
    files = PictureFiles(rows_of(*found[::100]), 64, square=True)
    for item in files:
        assert item["image"].shape == (3, 64, 64)
        assert item["image"].float().std() > 1
