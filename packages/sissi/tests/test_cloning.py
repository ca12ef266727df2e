"""The clone against OpenCV's, and its closed forms (specification 9)."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sissi import clone_mask, seamless_synthetic
from sissi.cloning import blurred, clone, hard_paste


def texture(rng, size=(60, 80)):
    return cv2.GaussianBlur(rng.integers(0, 256, (*size, 3), dtype=np.uint8), (5, 5), 0)


def reference(image, boxes, kernel, sigma, flag):
    """OpenCV, with the centre of the cleared mask."""
    target, mask = blurred(image, kernel, sigma), clone_mask(boxes, image.shape[:2])
    mask[[0, -1]] = mask[:, [0, -1]] = 0
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    centre = (int(columns[0] + (np.ptp(columns) + 1) // 2), int(rows[0] + (np.ptp(rows) + 1) // 2))
    return cv2.seamlessClone(image, target, mask, centre, flag)


def random_boxes(rng, size, count):
    corner = np.stack([rng.integers(2, size[1] - 25, count), rng.integers(2, size[0] - 25, count)], axis=1)
    return np.concatenate([corner, corner + rng.integers(4, 22, (count, 2))], axis=1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([("mixed", cv2.MIXED_CLONE), ("normal", cv2.NORMAL_CLONE)]), st.sampled_from([((21, 21), None), ((71, 71), 30.0), ((5, 9), 2.0)]))  # fmt: skip
def test_as_opencv(seed, mode, blur):
    rng = np.random.default_rng(seed)
    image = texture(rng)
    boxes = random_boxes(rng, image.shape[:2], rng.integers(1, 6))
    found = seamless_synthetic(image, boxes, *blur, mode=mode[0])
    expected = reference(image, boxes, *blur, mode[1])
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_a_box_at_the_edge():
    """The mask's border does not count, and nothing is shifted."""
    rng = np.random.default_rng(0)
    image = texture(rng)
    boxes = np.array([[0, 0, 30, 30], [50, 35, 80, 60]])
    found = seamless_synthetic(image, boxes)
    assert np.abs(found.astype(int) - reference(image, boxes, (21, 21), None, cv2.MIXED_CLONE)).max() <= 1


def test_no_box_is_the_blurred_picture():
    image = texture(np.random.default_rng(0))
    expected = cv2.GaussianBlur(image, (71, 71), 30)
    np.testing.assert_array_equal(seamless_synthetic(image, np.zeros((0, 4)), (71, 71), 30), expected)


@pytest.mark.parametrize(
    "box", [[10, 10, 11, 30], [10, 10, 12, 12], [0, 0, 1, 60], [500, 500, 600, 600], [-9, -9, -1, -1]]
)
def test_boxes_too_thin_or_outside(box):
    image = texture(np.random.default_rng(0))
    np.testing.assert_array_equal(seamless_synthetic(image, [box]), blurred(image))


def test_source_equals_target():
    image = texture(np.random.default_rng(0))
    mask = clone_mask([[10, 10, 60, 50]], image.shape[:2])
    assert np.abs(clone(image, image, mask).astype(int) - image).max() <= 1


def test_constant_picture():
    image = np.full((50, 60, 3), 117, np.uint8)
    assert np.abs(seamless_synthetic(image, [[10, 10, 50, 40]]).astype(int) - 117).max() <= 1


def test_outside_of_the_rectangle_nothing_changes():
    image = texture(np.random.default_rng(0))
    found = seamless_synthetic(image, [[10, 12, 30, 40], [40, 20, 60, 44]])
    outside = np.ones(image.shape[:2], bool)
    outside[12:44, 10:60] = False
    np.testing.assert_array_equal(found[outside], blurred(image)[outside])
    assert (found[~outside] != blurred(image)[~outside]).any()


def test_unlabelled_cells():
    """Section 9 and 11: a strong blur hides a cell without a box (4 of 80 grey levels), a weak one does not (about 54)."""
    y, x = np.mgrid[:200, :300]
    blob = sum(80 * np.exp(-((x - c) ** 2 + (y - 100) ** 2) / 50) for c in (80, 220))
    image = np.repeat((100 + blob)[..., None], 3, axis=2).round().astype(np.uint8)
    contrast = {}
    for name, kernel, sigma in (("strong", (71, 71), 30.0), ("weak", (21, 21), None)):
        found = seamless_synthetic(image, [[65, 85, 95, 115]], kernel, sigma).astype(float)[..., 0]
        contrast[name] = [found[100, c] - 100 for c in (80, 220)]
    assert contrast["strong"][0] > 65
    assert contrast["strong"][1] < 8
    assert 45 < contrast["weak"][1] < 60


def test_clone_mask():
    mask = clone_mask([[1.9, 2.2, 4.7, 5.9], [8, 8, 99, 99]], (10, 12))
    expected = np.zeros((10, 12), np.uint8)
    expected[2:5, 1:4] = 255
    expected[8:, 8:] = 255
    np.testing.assert_array_equal(mask, expected)
    assert mask.dtype == np.uint8
    assert not clone_mask([], (4, 4)).any()


def test_hard_paste():
    image = texture(np.random.default_rng(0))
    found = hard_paste(image, [[10, 12, 30, 40]])
    np.testing.assert_array_equal(found[12:40, 10:30], image[12:40, 10:30])
    np.testing.assert_array_equal(found[:12], blurred(image)[:12])


def test_tensors():
    image = texture(np.random.default_rng(0))
    boxes = [[10, 12, 30, 40]]
    found = seamless_synthetic(torch.from_numpy(image), boxes)
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found, seamless_synthetic(image, boxes))
    across = torch.from_numpy(image.transpose(2, 0, 1).copy()).permute(1, 2, 0)
    np.testing.assert_array_equal(seamless_synthetic(across, torch.tensor(boxes)), found)
    with pytest.raises(ValueError, match="uint8"):
        seamless_synthetic(torch.rand(20, 20, 3), boxes)


def test_refused():
    image = texture(np.random.default_rng(0))
    with pytest.raises(ValueError, match="12x32; give two odd numbers"):
        seamless_synthetic(image, [], (12, 32))
    with pytest.raises(ValueError, match="mode is 'both'"):
        seamless_synthetic(image, [], mode="both")
    with pytest.raises(ValueError, match="uint8"):
        seamless_synthetic(image[..., 0], [])
