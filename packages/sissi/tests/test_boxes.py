"""Filter, boxes of instances, suppression of weak labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sissi import boxes_from_labels, filter_boxes, weak_nms


def test_filter():
    boxes = np.array(
        [[0, 0, 5, 5], [-1, 0, 5, 5], [2, 2, 10, 5], [2, 2, 5, 8], [4, 2, 4, 6], [6, 2, 4, 6], [2, 2, 9, 7]]
    )
    np.testing.assert_array_equal(filter_boxes(boxes, (8, 10)), boxes[[0, 6]])
    assert torch.equal(filter_boxes(torch.from_numpy(boxes), (8, 10)), torch.from_numpy(boxes[[0, 6]]))
    assert filter_boxes(np.zeros((0, 4)), (8, 10)).shape == (0, 4)
    found = filter_boxes(boxes.tolist(), (8, 10))
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, boxes[[0, 6]])
    assert filter_boxes([], (8, 10)).shape == (0, 4)


def test_boxes_from_labels():
    labels = np.zeros((10, 12), np.uint16)
    labels[1:4, 2:6] = 900
    labels[6:9, 0:3] = 2
    labels[9, 5:9] = 3  # one pixel high
    labels[0:3, 11] = 4  # one pixel wide
    np.testing.assert_array_equal(boxes_from_labels(labels), [[0, 6, 2, 8], [2, 1, 5, 3]])
    np.testing.assert_array_equal(
        boxes_from_labels(torch.from_numpy(labels.astype(np.int32))), boxes_from_labels(labels)
    )


def test_no_background_and_no_instance():
    """The smallest number is an instance also where there is no background (pitfall 12)."""
    labels = np.ones((4, 6), np.int64)
    labels[:, 3:] = 2
    np.testing.assert_array_equal(boxes_from_labels(labels), [[0, 0, 2, 3], [3, 0, 5, 3]])
    assert boxes_from_labels(np.zeros((4, 4), int)).shape == (0, 4)
    with pytest.raises(ValueError, match="integers"):
        boxes_from_labels(np.zeros((4, 4)))


def test_suppression_takes_the_last_box_first():
    boxes = np.array([[0, 0, 9, 9], [0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 11, 11]])
    np.testing.assert_array_equal(weak_nms(boxes), boxes[[3, 2]])
    np.testing.assert_array_equal(weak_nms(boxes, scores=[4, 3, 2, 1]), boxes[[0, 2]])
    found = weak_nms(boxes.tolist())
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, boxes[[3, 2]])
    assert weak_nms([]).shape == (0, 4)


def test_widths_count_one_more():
    """Two boxes of 10 x 10 pixels that share 10 x 5: with the +1 IoU is exactly 1/3, which is suppressed (strict)."""
    boxes = np.array([[0, 0, 9, 9], [0, 5, 9, 14]])
    assert len(weak_nms(boxes, 1 / 3)) == 1
    assert len(weak_nms(boxes, 1 / 3 + 1e-9)) == 2
    assert len(weak_nms(np.array([[0, 0, 9, 9], [10, 0, 19, 9]]), 1e-9)) == 2


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_survivors_hardly_overlap(seed):
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 60, (30, 2))
    boxes = np.concatenate([corner, corner + rng.integers(1, 30, (30, 2))], axis=1)
    kept = weak_nms(boxes, 0.3)
    low, high = np.maximum(kept[:, None, :2], kept[None, :, :2]), np.minimum(kept[:, None, 2:], kept[None, :, 2:])
    shared = (high - low + 1).clip(0).prod(2)
    area = (kept[:, 2:] - kept[:, :2] + 1).prod(1)
    iou = shared / (area[:, None] + area - shared)
    assert (iou[~np.eye(len(kept), dtype=bool)] < 0.3).all()
    assert torch.equal(weak_nms(torch.from_numpy(boxes), 0.3), torch.from_numpy(kept))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))])  # fmt: skip
def test_instances_of_a_tensor_on_any_device(device, monkeypatch):
    """NumPy cannot read a tensor that is not in the computer's memory; here it may read none."""

    def refuse(self, *given):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    monkeypatch.setattr(torch.Tensor, "__array__", refuse)
    labels = torch.zeros(6, 7, dtype=torch.int64, device=device)
    labels[1:4, 2:6] = 5
    np.testing.assert_array_equal(boxes_from_labels(labels), [[2, 1, 5, 3]])
