"""The 20 test-time views and the way back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sissi import tta_views, undo_tta, weighted_boxes_fusion
from sissi.views import VIEWS, undo_views


def test_sizes():
    views = tta_views(torch.zeros(3, 512, 512, dtype=torch.uint8))
    assert len(views) == 20
    assert [image.shape[1] for _, image in views[::4]] == [409, 460, 512, 563, 614]
    assert [image.shape for _, image in tta_views(torch.zeros(3, 100, 50))[::4]] == [(3, int(100 * s + 1e-9), int(50 * s + 1e-9)) for s in (0.8, 0.9, 1, 1.1, 1.2)]  # fmt: skip


def test_the_untouched_view_is_the_picture():
    image = torch.rand(3, 20, 30)
    assert torch.equal(dict(tta_views(image))[VIEWS[11]], image)
    (both, rows, columns, none) = (view for _, view in tta_views(image)[8:12])
    assert torch.equal(both, image.flip(1, 2))
    assert torch.equal(rows, image.flip(1))
    assert torch.equal(columns, image.flip(2))
    assert torch.equal(none, image)


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_picture_and_box_move_together(seed):
    """A bright rectangle, found again in each view, comes back to where it was, to within the rounding of the pixels."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(40, 70, 2)
    y, x = rng.integers(0, height - 15), rng.integers(0, width - 15)
    bottom, right = y + rng.integers(5, 15), x + rng.integers(5, 15)
    image = torch.zeros(3, height, width)
    image[:, y:bottom, x:right] = 1
    for view, picture in tta_views(image):
        rows, columns = picture[0].any(1).nonzero(), picture[0].any(0).nonzero()
        box = [columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1]
        back = undo_tta(torch.tensor([box], dtype=torch.float64), view, (int(height), int(width)))
        np.testing.assert_allclose(back[0], [x, y, right, bottom], atol=1.3)


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: f"{view.scale}-{view.flip}")
def test_undo_is_the_inverse(view):
    size = (48, 64)
    height, width = view.size(size)
    boxes = np.array([[3.0, 5.0, 20.0, 30.0], [0.0, 0.0, 64.0, 48.0]])
    moved = boxes * np.tile([width / 64, height / 48], 2)
    down, across = view.flips
    if across:
        moved[:, [0, 2]] = width - moved[:, [2, 0]]
    if down:
        moved[:, [1, 3]] = height - moved[:, [3, 1]]
    np.testing.assert_allclose(undo_tta(moved, view, size), boxes, atol=1e-9)


def test_all_views_at_once():
    boxes = torch.rand(40, 4) * 30
    index = torch.arange(40) % 20
    found = undo_views(boxes, index, (33, 57))
    for i in range(40):
        torch.testing.assert_close(found[i : i + 1], undo_tta(boxes[i : i + 1], VIEWS[i % 20], (33, 57)))


def test_a_detector_that_sees_the_rectangles():
    """Fusion of what a perfect detector finds in the 20 views gives the rectangles back with score 1."""
    size = (100, 100)
    boxes = torch.tensor([[10.0, 20.0, 40.0, 50.0], [60.0, 20.0, 90.0, 60.0]], dtype=torch.float64)
    found = []
    for view, image in tta_views(torch.zeros(3, *size)):
        ratio = torch.tensor(image.shape[1:]).flip(0).repeat(2) / 100
        down, across = view.flips
        moved = boxes * ratio
        height, width = image.shape[1:]
        if across:
            moved = torch.stack([width - moved[:, 2], moved[:, 1], width - moved[:, 0], moved[:, 3]], 1)
        if down:
            moved = torch.stack([moved[:, 0], height - moved[:, 3], moved[:, 2], height - moved[:, 1]], 1)
        found.append(undo_tta(moved, view, size) / 100)
    ones = [torch.ones(2)] * 20
    fused, scores, _ = weighted_boxes_fusion(found, ones, ones)
    torch.testing.assert_close(fused[fused[:, 0].argsort()] * 100, boxes, atol=1e-4, rtol=0)
    assert scores.tolist() == [1.0, 1.0]


def test_arrays():
    """The same pixels and boxes as of tensors, of any type; boxes keep theirs."""
    image = np.random.default_rng(0).integers(0, 60000, (2, 3, 11, 17), dtype=np.uint16)
    for (view, found), (same, expected) in zip(
        tta_views(image), tta_views(torch.from_numpy(image.astype(np.int32))), strict=True
    ):
        assert (view, found.dtype) == (same, np.uint16)
        np.testing.assert_array_equal(found, expected)
    boxes = np.array([[1, 2, 8, 9]])
    for kind in (np.float32, np.float64):
        found = undo_tta(boxes.astype(kind), VIEWS[0], (11, 17))
        assert found.dtype == kind
        np.testing.assert_allclose(found, undo_tta(torch.from_numpy(boxes).double(), VIEWS[0], (11, 17)), rtol=1e-6)
    assert undo_tta(boxes, VIEWS[0], (11, 17)).dtype == np.float64
