"""The three pipelines for weak labels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.morphology import reconstruction

from sissi import weak_labels
from sissi.weak import find_maxima, reconstruct


def discs(radius=11, size=(240, 320), centres=((60, 60), (160, 70), (250, 170), (80, 180))):
    image = np.full((*size, 3), 90, np.uint8)
    for x, y in centres:
        cv2.circle(image, (x, y), radius, (210, 200, 190), -1)
    return cv2.GaussianBlur(image, (5, 5), 0)


def overlap(boxes, box):
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    shared = (high - low).clip(0).prod(1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return shared / (area + (box[2] - box[0]) * (box[3] - box[1]) - shared)


def test_circles():
    """Every disc is found; a box reaches 10 pixels beyond its circle, and not beyond the picture."""
    boxes = weak_labels(discs(), "circles")
    for x, y in ((60, 60), (160, 70), (250, 170), (80, 180)):
        assert overlap(boxes, np.array([x - 21, y - 21, x + 21, y + 21])).max() > 0.5
    assert (boxes == boxes.round()).all()
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides.max() <= 50
    assert boxes.min() >= 0
    assert (boxes[:, 2:] <= [319, 239]).all()


def test_edges():
    boxes = weak_labels(discs(), "edges")
    assert len(boxes) == 4
    for x, y in ((60, 60), (160, 70), (250, 170), (80, 180)):
        assert overlap(boxes, np.array([x - 12, y - 12, x + 13, y + 13])).max() > 0.8


@pytest.mark.parametrize(("rec", "radius"), [("and", 11), ("min", 14)])
def test_watershed(rec, radius):
    """Every disc is found, and nothing else; combining bit by bit loses discs of most radii."""
    rng = np.random.default_rng(0)
    image = cv2.add(discs(radius), rng.integers(0, 8, (240, 320, 3), dtype=np.uint8))
    boxes = weak_labels(image, "watershed", rec=rec)
    assert len(boxes) == 4
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    assert ((area >= 400) & (area <= 1500)).all()
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] < [320, 240]).all()
    for x, y in ((60, 60), (160, 70), (250, 170), (80, 180)):
        disc = np.array([x - radius, y - radius, x + radius + 1, y + radius + 1])
        assert overlap(boxes, disc).max() > 0.5


def test_regions_at_the_edge_go():
    """Boxes of the watershed lie in the picture completely (W3, step 11): x2 < W, y2 < H."""
    image = discs(14, centres=((60, 60), (310, 120), (150, 230)))
    boxes = weak_labels(cv2.add(image, np.random.default_rng(0).integers(0, 8, image.shape, dtype=np.uint8)), "watershed", rec="min")  # fmt: skip
    assert len(boxes)
    assert (boxes[:, 2:] < [320, 240]).all()
    assert overlap(boxes, np.array([46, 46, 75, 75])).max() > 0.5


@pytest.mark.parametrize("kind", ["circles", "edges", "watershed"])
@pytest.mark.parametrize("value", [0, 128])
def test_nothing_there(kind, value):
    boxes = weak_labels(np.full((120, 160, 3), value, np.uint8), kind)
    assert boxes.ndim == 2
    assert boxes.shape[1] == 4
    assert kind == "circles" or len(boxes) == 0


@pytest.mark.parametrize("kind", ["circles", "edges", "watershed"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))])  # fmt: skip
def test_tensors(kind, device):
    """The same boxes as of an array, as a tensor where the picture is; also of one whose channels were moved."""
    image = cv2.add(discs(), np.random.default_rng(0).integers(0, 8, (240, 320, 3), dtype=np.uint8))
    expected = weak_labels(image, kind)
    assert len(expected)
    picture = torch.from_numpy(image).permute(2, 0, 1).contiguous().to(device).permute(1, 2, 0)
    found = weak_labels(picture, kind)
    assert isinstance(found, torch.Tensor)
    assert found.device == picture.device
    np.testing.assert_array_equal(found.cpu(), expected)
    with pytest.raises(ValueError, match="uint8"):
        weak_labels(picture.float(), kind)


def test_colours_of_the_edges():
    """As coded, blue has the weight of red: what differs in blue only stands out more."""
    image = np.full((100, 100, 3), 60, np.uint8)
    image[30:60, 30:60, 0] = 180
    assert len(weak_labels(image, "edges")) == 1
    assert len(weak_labels(image, "edges", grey="correct")) == 0


def test_reconstruction():
    """With the minimum and enough rounds it is the geodesic reconstruction by an 11x11 square."""
    rng = np.random.default_rng(0)
    mask = cv2.GaussianBlur(rng.integers(0, 256, (60, 70), dtype=np.uint8), (9, 9), 0)
    marker = cv2.erode(mask, np.ones((7, 7), np.uint8))
    expected = reconstruction(marker, mask, footprint=np.ones((11, 11)))
    np.testing.assert_array_equal(reconstruct(marker, mask, "min"), expected)
    assert (reconstruct(marker, mask, "and") <= mask).all()


def test_maxima():
    """Two hills with a pass between them: one maximum where the pass is higher than the tolerance allows."""
    picture = np.zeros((9, 21))
    picture[4, 4], picture[4, 16], picture[4, 5:16] = 200, 180, 140
    assert np.argwhere(find_maxima(picture, 50)).tolist() == [[4, 4]]
    assert np.argwhere(find_maxima(picture, 30)).tolist() == [[4, 4], [4, 16]]


def test_maxima_of_a_plateau():
    """The marker is the pixel of the plateau nearest to its middle; the darkest grey is no maximum."""
    picture = np.zeros((7, 9))
    picture[2:5, 2:7] = 10
    assert np.argwhere(find_maxima(picture, 5)).tolist() == [[3, 4]]
    assert not find_maxima(np.zeros((5, 5)), 5).any()


def test_every_marker_is_a_peak():
    picture = ndimage.gaussian_filter(np.random.default_rng(0).random((60, 60)), 2) * 255
    marked = find_maxima(picture, 5)
    peaks = picture == ndimage.maximum_filter(picture, 3)
    assert marked.any()
    assert not (marked & ~peaks).any()


def test_refused():
    with pytest.raises(ValueError, match="uint8"):
        weak_labels(np.zeros((10, 10), np.uint8))
    with pytest.raises(ValueError, match="no pipeline 'blobs'"):
        weak_labels(np.zeros((10, 10, 3), np.uint8), "blobs")
