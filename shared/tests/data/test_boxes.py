"""Boxes in every format that is read, and every mistake in them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from dart_core.data.boxes import (
    BoxedPicture,
    box_problems,
    boxes_from_labels,
    check_mask,
    read_boxes,
    read_instances,
    select_classes,
    write_boxes,
)
from dart_core.data.catalog import celllab, cellpose
from dart_core.errors import InputError

HEADER = "image,split,site,label,xmin,ymin,xmax,ymax"


def table(folder, *rows, header=HEADER):
    path = folder / "boxes.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


# --- CSV -------------------------------------------------------------------------------------------------------------


def test_csv(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "images" / "a.png")
    path = table(tmp_path, "a.png,train,A,RBC,1,2,3,4.5", "b.png,test,B,,,,,", "a.png,train,A,,5,6,7,8")
    a, b = read_boxes(path)
    assert a.image == tmp_path / "images" / "a.png"
    np.testing.assert_array_equal(a.boxes, [[1, 2, 3, 4.5], [5, 6, 7, 8]])
    assert (a.labels, a.split, a.site) == (("RBC", "cell"), "train", "A")
    assert a.places == (f"{path}, row 2", f"{path}, row 4")
    assert (len(b.boxes), b.split, b.image) == (0, "test", tmp_path / "b.png")


def test_written_and_read(tmp_path):
    pictures = [
        BoxedPicture(tmp_path / "a.png", np.array([[1, 2.25, 3, 4]]), ("RBC",), "train", "A", np.array([0.75])),
        BoxedPicture(tmp_path / "b.png", np.zeros((0, 4)), (), "val", "B", np.zeros(0)),
    ]
    path = write_boxes(tmp_path / "lists" / "boxes.csv", pictures)
    for one, other in zip(pictures, read_boxes(path, scores=True), strict=True):
        assert one.image == other.image.resolve()
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.scores, other.scores)
        assert (one.labels, one.split, one.site) == (other.labels, other.split, other.site)


@pytest.mark.parametrize(
    ("rows", "header", "line"),
    [
        (["a.png,,,,1,2,x,4"], HEADER, "row 2, column xmax: 'x' is no number; correct it"),
        (["a.png,,,,1,2,nan,4"], HEADER, "row 2, column xmax: 'nan' is not finite"),
        (["a.png,,,,1,2,3"], HEADER, "row 2: not 8 cells as the header has"),
        ([",,,,1,2,3,4"], HEADER, "row 2, column image: the cell is empty"),
        (["a.png,train,,,1,2,3,4", "a.png,test,,,1,2,3,4"], HEADER, "row 3: split 'test' of a.png, which"),
        (["a.png,dev,,,1,2,3,4"], HEADER, "row 2: unknown split 'dev'; use train, val or test"),
        (["a.png,1"], "image,left", "row 1: no columns xmin, ymin, xmax, ymax, boxes or mask (there: image, left)"),
        (["1,2,3,4"], "xmin,ymin,xmax,ymax", "row 1: no column 'image'"),
        ([], HEADER, "names no picture"),
        (["a.png,1,2,3,4,nan"], "image,xmin,ymin,xmax,ymax,score", "row 2, column score: 'nan' is not finite"),
    ],
)
def test_refused_tables(rows, header, line, tmp_path):
    with pytest.raises(InputError) as caught:
        read_boxes(table(tmp_path, *rows, header=header))
    assert line in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "boxes.csv"))


def test_missing(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        read_boxes(tmp_path / "gone.csv")
    with pytest.raises(ValueError, match="the boxes have no scores"):
        read_boxes(table(tmp_path, "a.png,,,,1,2,3,4"), scores=True)


def test_datalist_with_box_files_and_masks(tmp_path):
    (tmp_path / "a.txt").write_text("dead 1 2 3 4\n\nalive 5 6 7 8\n")
    labels = np.zeros((10, 10), np.uint16)
    labels[2:5, 3:7] = 300
    Image.fromarray(labels).save(tmp_path / "b.png")
    (tmp_path / "one.csv").write_text("image,split,boxes\na.jpg,train,a.txt\n")
    (tmp_path / "two.csv").write_text("image,mask\nb.jpg,b.png\n")
    (a,) = read_boxes(tmp_path / "one.csv")
    assert (a.image, a.split, a.labels) == (tmp_path / "a.jpg", "train", ("dead", "alive"))
    (b,) = read_boxes(tmp_path / "two.csv")
    np.testing.assert_array_equal(b.boxes, [[3, 2, 6, 4]])
    (tmp_path / "a.txt").write_text("dead 1 2 3\n")
    with pytest.raises(ValueError, match=r"a.txt, line 1: 4 words; give: class xmin ymin xmax ymax"):
        read_boxes(tmp_path / "one.csv")
    (tmp_path / "a.txt").unlink()
    with pytest.raises(ValueError, match="row 2, column boxes: no file"):
        read_boxes(tmp_path / "one.csv")


# --- COCO ------------------------------------------------------------------------------------------------------------


def coco(**changes):
    content = {
        "images": [{"id": 5, "file_name": "a.png"}, {"id": 6, "file_name": "b.png"}],
        "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "fibre"}],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 1, "bbox": [1, 2, 10, 20]},
            {"id": 2, "image_id": 5, "category_id": 2, "bbox": [0, 0, 5, 5], "iscrowd": 0},
            {"id": 3, "image_id": 6, "category_id": 1, "bbox": [0, 0, 99, 99], "iscrowd": 1},
        ],
    }
    return content | changes


def test_coco(tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps(coco()))
    a, b = read_boxes(tmp_path / "labels.json", tmp_path / "pictures")
    assert (a.image, b.image) == (tmp_path / "pictures" / "a.png", tmp_path / "pictures" / "b.png")
    np.testing.assert_array_equal(a.boxes, [[1, 2, 11, 22], [0, 0, 5, 5]])
    assert len(b.boxes) == 0  # a crowd is not one object
    (cells, _) = select_classes([a, b], ignore=["fibre"])
    np.testing.assert_array_equal(cells.boxes, [[1, 2, 11, 22]])
    with pytest.raises(ValueError, match="no box has the class 'nucleus'; classes there: cell, fibre"):
        select_classes([a, b], ["nucleus"])


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (coco(annotations=[{"image_id": 5, "category_id": 9, "bbox": [1, 2, 3, 4]}]), "annotations[0]: category_id 9 is not among the categories; there: 1, 2"),
        (coco(annotations=[{"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4]}]), "annotations[0]: image_id 7 is not among the images"),
        (coco(annotations=[{"image_id": 5, "category_id": 1, "bbox": [1, 2, 3]}]), "annotations[0]: 'bbox' is not [x, y, width, height]"),
        (coco(annotations=[{"image_id": 5, "category_id": 1, "bbox": [1, 2, 3, float("nan")]}]), "annotations[0]: 'nan' is not finite"),
        (coco(annotations=[{"image_id": 5}]), "annotations[0]: no 'image_id', 'category_id' or 'bbox'"),
        (coco(images=[{"id": 1}]), "images[0]: no 'id' or 'file_name'"),
        (coco(images=[{"id": [1], "file_name": "a.png"}]), "images[0]: 'id' is [1]; give a number"),
        (coco(images=[{"id": 1, "file_name": 3}]), "images[0]: 'file_name' is no text"),
        (coco(images=[{"id": 5, "file_name": "a.png"}] * 2), "images[1]: id 5 is that of an image before"),
        (coco(categories=["cell"]), "categories[0]: no 'id' or 'name'"),
        (coco(categories=[{"id": {}, "name": "cell"}]), "categories[0]: 'id' is {}"),
        (coco(annotations={"1": []}), "'annotations' is no list"),
        (coco(annotations=[{"image_id": [5], "category_id": 1, "bbox": [1, 2, 3, 4]}]), "annotations[0]: 'image_id' is [5]"),
        ({"shapes": []}, "no list 'images'"),
        ([], "no list 'images'"),
    ],
)  # fmt: skip
def test_refused_coco(content, line, tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        read_boxes(path)
    assert line in str(caught.value)


def test_coco_with_a_byte_order_mark(tmp_path):
    """As programs on Windows write it."""
    (tmp_path / "labels.json").write_text(json.dumps(coco()), encoding="utf-8-sig")
    assert len(read_boxes(tmp_path / "labels.json")) == 2


def test_broken_json(tmp_path):
    (tmp_path / "a.json").write_text('{"images": [\n')
    with pytest.raises(ValueError, match="row 2"):
        read_boxes(tmp_path / "a.json")


# --- Pascal VOC ------------------------------------------------------------------------------------------------------

VOC = """<annotation><filename>{name}</filename><size><width>100</width></size>
<object><name>RBC</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object></annotation>"""


def test_voc(tmp_path):
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "Annotations" / "a.xml").write_text(VOC.format(name="a.jpg"))
    (tmp_path / "Annotations" / "b.xml").write_text("<annotation><filename>b.jpg</filename></annotation>")
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("b\n")
    a, b = read_boxes(tmp_path)
    assert (a.image, a.split, b.split) == (tmp_path / "JPEGImages" / "a.jpg", "", "val")
    np.testing.assert_array_equal(a.boxes, [[1, 2, 30, 40]])
    assert (a.labels, len(b.boxes)) == (("RBC",), 0)
    assert read_boxes(tmp_path / "Annotations" / "a.xml")[0].image == tmp_path / "Annotations" / "a.jpg"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("<annotation>", "row 1: no XML"),
        ("<annotation/>", "no element 'filename'"),
        ("<annotation><filename>a</filename><object/></annotation>", "object 1: no element 'bndbox'"),
        (VOC.format(name="a").replace("<xmax>30</xmax>", ""), "object 1, xmax: '' is no number"),
    ],
)
def test_refused_voc(text, line, tmp_path):
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(InputError) as caught:
        read_boxes(tmp_path)
    assert line in str(caught.value)


def test_texts_in_another_encoding(tmp_path):
    """One line with the file, whichever reader meets it."""
    odd = "Z\xe4hlung 1 2 3 4\n".encode("latin-1")
    (tmp_path / "a.txt").write_bytes(odd)
    (tmp_path / "b.json").write_bytes(odd)
    (tmp_path / "c.csv").write_bytes(odd)
    (tmp_path / "list.csv").write_text("image,boxes\na.jpg,a.txt\n")
    for part in ("Annotations", "ImageSets/Main"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "Annotations" / "a.xml").write_text(VOC.format(name="a.jpg"))
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_bytes(odd)
    for given, named in (("list.csv", "a.txt"), ("b.json", "b.json"), ("c.csv", "c.csv"), (".", "val.txt")):
        with pytest.raises(InputError, match=rf"{named}: cannot be read .*; save it as text in UTF-8"):
            read_boxes(tmp_path / given)


def test_no_voc(tmp_path):
    with pytest.raises(ValueError, match="holds no Pascal VOC file"):
        read_boxes(tmp_path)


# --- Masks and collections -------------------------------------------------------------------------------------------


def test_boxes_from_labels():
    labels = np.zeros((10, 12), np.uint16)
    labels[1:4, 2:6], labels[6:9, 0:3], labels[9, 5:9] = 900, 2, 3
    np.testing.assert_array_equal(boxes_from_labels(labels), [[0, 6, 2, 8], [2, 1, 5, 3]])


def test_colour_is_no_mask(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    for name, line in (("a", "a mask of mode RGB"), ("b", "not a picture"), ("c", "file not found")):
        with pytest.raises(ValueError, match=line):
            read_instances(tmp_path / f"{name}.png")


def test_a_mask_of_another_size(tmp_path):
    Image.new("L", (10, 8)).save(tmp_path / "mask.png")
    picture = BoxedPicture(tmp_path / "a.png", np.zeros((0, 4)), (), mask=tmp_path / "mask.png")
    check_mask(picture, (8, 10))
    with pytest.raises(ValueError, match=r"mask\.png: the mask has 10 x 8 pixels, the picture 8 x 10; save them"):
        check_mask(picture, (10, 8))


def test_cellpose(tmp_path):
    labels = np.zeros((10, 10), np.uint16)
    labels[2:5, 3:7] = 1
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        Image.new("RGB", (10, 10)).save(tmp_path / part / "000_img.png")
        Image.fromarray(labels).save(tmp_path / part / "000_masks.png")
    assert cellpose.recognise(tmp_path)
    train, val = cellpose.index(tmp_path)
    assert (train.split, val.split, train.boxes.tolist()) == ("train", "val", [[3, 2, 6, 4]])
    assert cellpose.report_missing(tmp_path)[0].startswith("train: 1 of 540 pictures")
    (tmp_path / "test" / "000_masks.png").unlink()
    with pytest.raises(ValueError, match=r"no mask 000_masks\.png"):
        cellpose.index(tmp_path)
    with pytest.raises(ValueError, match="no picture"):
        cellpose.index(tmp_path / "train")


def test_celllab(tmp_path):
    for part in ("dead", "alive", "test_labelled", "weak_labels_reduced_nms/dead"):
        (tmp_path / part).mkdir(parents=True)
    for part in ("dead", "alive", "test_labelled"):
        Image.new("RGB", (10, 10)).save(tmp_path / part / f"{part}1.png")
    (tmp_path / "weak_labels_reduced_nms" / "dead" / "dead1.txt").write_text("dead 1 2 3 4\n")
    assert celllab.recognise(tmp_path)
    alive, dead, test = celllab.index(tmp_path)
    assert [p.site for p in (alive, dead, test)] == ["alive", "dead", ""]
    assert [p.split for p in (alive, dead, test)] == ["train", "train", "test"]
    assert dead.boxes.tolist() == [[1, 2, 3, 4]]
    assert len(alive.boxes) == len(test.boxes) == 0
    with pytest.raises(ValueError, match="no folder alive"):
        celllab.index(tmp_path / "dead")


def test_problems():
    boxes = np.array([[0, 0, 5, 5], [4, 0, 2, 5], [3, 3, 3, 6], [20, 0, 30, 5], [5, 5, 12, 8], [0, 0, np.nan, 5]])
    found = box_problems(BoxedPicture("a.png", boxes, ("c",) * 6, places=tuple("abcdef")), (8, 10))
    assert [place for place, _ in found] == list("bcdef")
    texts = [text for _, text in found]
    assert texts[0] == "box [4, 0, 2, 5] has its corners swapped"
    assert texts[1].endswith("has no area")
    assert texts[2].endswith("lies outside of the picture (10 x 8)")
    assert texts[3].endswith("reaches beyond the picture (10 x 8)")
    assert texts[4].endswith("is not finite")
