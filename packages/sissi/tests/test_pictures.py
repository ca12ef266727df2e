"""Lists, samples and augmentation."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dart_core.data.boxes import BoxedPicture, read_boxes
from sissi.pictures import (  # fmt: skip
    Augmentation,
    Files,
    Noted,
    Samples,
    augment,
    divide_source,
    open_list,
    open_pictures,
    synthetic,
    to_frame,
    usable_boxes,
)


def rectangle(side=64, box=(20, 24, 40, 36)):
    image = np.zeros((side, side, 3), np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2] = 255
    return image, np.array([box], float)


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_picture_and_box_move_together(seed):
    """Whatever is drawn, the bright pixels lie inside of the moved box and reach its sides (up to the hull of a turned one)."""
    image, boxes = rectangle()
    labels = (image[..., 0] > 0).astype(np.int32)
    moved, hull = augment(image, boxes, None, np.random.default_rng(seed), Augmentation())
    again, found = augment(image, boxes, labels, np.random.default_rng(seed), Augmentation())
    np.testing.assert_array_equal(moved, again)
    rows, columns = np.flatnonzero((moved > 60).any((1, 2))), np.flatnonzero((moved > 60).any((0, 2)))
    if not len(rows):
        return
    bright = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    cut = hull[0].clip(0, 64)
    # A blur of 7 pixels, magnified, spreads the bright pixels.
    assert (bright[:2] >= cut[:2] - 6.5).all()
    assert (bright[2:] <= cut[2:] + 6.5).all()
    if len(found):
        assert (np.abs(found[0] - cut) <= [2, 2, 3, 3]).all()


def test_flips_only():
    """Without the affine part a flip is exact."""
    image, boxes = rectangle(box=(3, 5, 20, 30))
    seen = set()
    for seed in range(60):
        moved, hull = augment(image, boxes, None, np.random.default_rng(seed), Augmentation())
        if (hull == hull.round()).all() and set(np.unique(moved)) == {0, 255}:  # neither turned nor blurred
            x1, y1, x2, y2 = hull[0].astype(int)
            seen.add((x1, y1))
            inside = np.zeros((64, 64), bool)
            inside[y1:y2, x1:x2] = True
            np.testing.assert_array_equal(moved[..., 0] > 127, inside)
    assert seen == {(3, 5), (44, 5), (3, 34), (44, 34)}


def test_turned_discs():
    """The box of the ellipse in a box stays that of the disc; the hull of the turned box is up to 1.41 times as wide."""
    image = np.zeros((256, 256, 3), np.uint8)
    cv2.circle(image, (128, 128), 50, (255, 255, 255), -1)
    boxes, ratios = np.array([[78, 78, 179, 179]], float), {"hull": [], "ellipse": []}
    for seed in range(60):
        for turned, found in ratios.items():
            moved, hull = augment(image, boxes, None, np.random.default_rng(seed), Augmentation((1, 1), "box", turned))
            columns = np.flatnonzero((moved > 127).any((0, 2)))
            if columns[0] > 0 and columns[-1] < 255:
                found.append((hull[0, 2] - hull[0, 0]) / (np.ptp(columns) + 1))
    assert len(ratios["ellipse"]) > 40
    np.testing.assert_allclose(ratios["ellipse"], 1, atol=0.04)
    assert 1.3 < max(ratios["hull"]) < 1.45
    assert np.mean(ratios["hull"]) > 1.05


def test_zoom_in_only_as_coded():
    image, boxes = rectangle()
    areas = []
    for seed in range(80):
        _, hull = augment(image, boxes, None, np.random.default_rng(seed), Augmentation((1.5, 2.5)))
        areas.append(np.prod(hull[0, 2:] - hull[0, :2]) / 240)
    assert min(areas) > 0.99
    assert max(areas) > 2.2


def test_to_frame():
    image = np.zeros((100, 200, 3), np.uint8)
    framed, boxes = to_frame(image, np.array([[20.0, 10, 60, 50]]), 50)
    assert framed.shape == (50, 50, 3)
    np.testing.assert_allclose(boxes, [[5, 5, 15, 25]])


def test_sample():
    image, boxes = rectangle()
    picture = BoxedPicture("a.png", np.concatenate([boxes, [[60, 60, 61, 63]], [[50, 50, 80, 80]]]), ("c",) * 3)
    sample = Samples([picture], lambda path: image, 64, 5)(0, np.random.default_rng(0))
    np.testing.assert_array_equal(sample["image"], image.transpose(2, 0, 1))
    assert sample["count"] == 2  # the thin one is too small to be learned
    np.testing.assert_allclose(sample["boxes"][:2], [[20, 24, 40, 36], [50, 50, 64, 64]])
    assert not sample["boxes"][2:].any()


def test_synthetic_sample():
    """Y6: the clone comes before resizing and augmentation, with the boxes of the picture."""
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (80, 80, 3), dtype=np.uint8), (5, 5), 0)
    picture = BoxedPicture("a.png", np.array([[10.0, 12, 50, 60]]), ("c",))
    for background, paste in (("strong", "mixed"), ("weak", "hard"), ("strong", "black")):
        sample = Samples([picture], lambda path: image, 40, 5, None, background, paste)(0, rng)
        expected, _ = to_frame(synthetic(image, picture.boxes, background, paste), picture.boxes, 40)
        np.testing.assert_array_equal(sample["image"], expected.transpose(2, 0, 1))
    assert not synthetic(image, np.zeros((0, 4)), "strong", "black").any()


def test_masks_make_the_boxes_of_a_source(tmp_path):
    labels = np.zeros((64, 64), np.uint16)
    labels[10:20, 30:50] = 7
    Image.fromarray(labels).save(tmp_path / "mask.png")
    picture = BoxedPicture("a.png", np.array([[30.0, 10, 49, 19]]), ("c",), mask=tmp_path / "mask.png")
    blank = np.zeros((64, 64, 3), np.uint8)
    for seed in range(20):
        sample = Samples([picture], lambda path: blank, 64, 5, Augmentation())(0, np.random.default_rng(seed))
        assert sample["count"] <= 1
        assert (sample["boxes"] == sample["boxes"].round()).all()


def test_colours_and_memory(tmp_path):
    Image.new("RGB", (4, 3), (10, 20, 30)).save(tmp_path / "a.png")
    files = Files(True, "bgr")
    assert files(tmp_path / "a.png")[0, 0].tolist() == [30, 20, 10]
    (tmp_path / "a.png").unlink()
    assert files(tmp_path / "a.png").shape == (3, 4, 3)


@pytest.mark.parametrize("mode", ["L", "I;16", "RGBA"])
def test_grey_16_bit_and_transparent_pictures(mode, tmp_path):
    path = tmp_path / "a.png"
    if mode == "I;16":
        Image.fromarray(np.full((5, 6), 257 * 100, np.uint16)).save(path)
    else:
        Image.new("RGB", (6, 5), (100, 100, 100)).convert(mode).save(path)
    assert (Files(False, "rgb")(path) == np.full((5, 6, 3), 100)).all()


# --- Lists -----------------------------------------------------------------------------------------------------------


def test_usable_boxes():
    boxes = np.array([[1, 1, 5, 5], [-3, 2, 4, 6], [5, 3, 10, 6], [4, 4, 2, 6], [3, 3, 3, 6], [40, 3, 50, 6]], float)
    picture = BoxedPicture("a.png", boxes, tuple("abcdef"), places=tuple("123456"))
    noted = Noted()
    assert usable_boxes(picture, (8, 10), "drop", noted).labels == ("a",)
    assert noted.cut == 0
    assert noted.left_out == {
        "reaching beyond the picture": 1, "at the edge of the picture": 1, "with swapped corners": 1, "without an area": 1,
        "outside of the picture": 1,
    }  # fmt: skip
    clipped = usable_boxes(picture, (8, 10), "clip", noted)
    assert noted.cut == 1
    assert clipped.labels == ("a", "b", "c")
    np.testing.assert_array_equal(clipped.boxes, [[1, 1, 5, 5], [0, 2, 4, 6], [5, 3, 9, 6]])


def test_divide_source():
    pictures = [BoxedPicture(f"{i}.png", np.zeros((0, 4)), ()) for i in range(20)]
    training, validation = divide_source(pictures, "list", 0)
    assert (len(training), len(validation)) == (18, 2)
    named = [replace(p, split="val" if i < 3 else "test" if i < 5 else "train") for i, p in enumerate(pictures)]
    training, validation = divide_source(named, "list", 0)
    assert (len(training), len(validation)) == (15, 3)
    with pytest.raises(ValueError, match="1 pictures to train on and 0 to validate with"):
        divide_source(pictures[:1], "list", 0)


def test_kinds_of_lists(tmp_path, cells):
    assert len(open_list(cells["phase"])) == 12
    assert len(open_pictures(cells["phase"].parent / "phase")) == 12
    assert len(open_pictures(cells["phase"], "test")) == 4
    path = tmp_path / "a.csv"
    path.write_text("image,split,xmin,ymin,xmax,ymax\na.png,train,1,1,2,2\n")
    with pytest.raises(ValueError, match="no picture has split test"):
        open_pictures(path, "test")
    for part in ("dead", "weak_labels_reduced_nms/dead"):
        (tmp_path / part).mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "dead" / "a.png")
    (tmp_path / "weak_labels_reduced_nms" / "dead" / "a.txt").write_text("dead 1 1 4 4\nfibre 2 2 5 5\n")
    (found,) = open_list(tmp_path, ignore=("fibre",))
    assert found.boxes.tolist() == [[1, 1, 4, 4]]
    assert len(read_boxes(cells["weak"])) == 12


def test_other_pictures_beside_those_of_celllab_are_said(tmp_path):
    for place in ("dead/a.png", "test_labelled/b.png", "c.png", "more/d.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / place)
    told = []
    assert [picture.image.name for picture in open_list(tmp_path, tell=told.append)] == ["a.png", "b.png"]
    assert told == [f"{tmp_path}: laid out like CellLab; pictures left out, which lie in none of alive/, dead/, inhib/, test_labelled/: 2"]  # fmt: skip
    (tmp_path / "c.png").unlink()
    (tmp_path / "more" / "d.png").unlink()
    open_list(tmp_path, tell=told.append)
    assert len(told) == 1


@pytest.mark.parametrize("text", ["<settings><object/></settings>", "<annotation", "no XML", ""])
def test_a_stray_xml_makes_no_list(text, tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "camera.xml").write_text(text)
    (picture,) = open_pictures(tmp_path)
    assert picture.image == tmp_path / "a.png"


@pytest.mark.parametrize("folder", ["", "Annotations"])
def test_folders_of_pascal_voc(folder, tmp_path):
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "a.xml").write_text("<annotation><filename>b.png</filename></annotation>")
    (picture,) = open_pictures(tmp_path)
    assert picture.image.name == "b.png"
