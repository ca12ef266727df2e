from __future__ import annotations

import numpy as np
import pytest

from dart_core.data.boxes import read_boxes
from dart_core.data.images import read_image
from dart_core.data.phantoms import MICROSCOPES, cell_picture, degrade_boxes, write_cells


@pytest.mark.parametrize("name", MICROSCOPES)
def test_cells_stand_out_inside_of_their_boxes(name):
    image, boxes = cell_picture(1, name, 128, 10)
    assert image.shape == (128, 128, 3)
    assert len(boxes) >= 6
    covered = np.zeros((128, 128), bool)
    for x1, y1, x2, y2 in boxes:
        assert 0 <= x1 < x2 <= 128
        assert 0 <= y1 < y2 <= 128
        covered[y1:y2, x1:x2] = True
    grey = image.mean(axis=2)
    ground = np.median(grey[~covered])
    for x1, y1, x2, y2 in boxes:
        middle = grey[(3 * y1 + y2) // 4 : (y1 + 3 * y2) // 4, (3 * x1 + x2) // 4 : (x1 + 3 * x2) // 4]
        assert middle.mean() < ground - 8


def test_microscopes_differ():
    (phase, _), (smear, _) = (cell_picture(0, name, 64) for name in ("phase", "smear"))
    assert np.ptp(phase.astype(int), axis=2).max() == 0  # grey
    assert smear[..., 0].mean() > smear[..., 1].mean() + 2


def test_seeded():
    one, boxes = cell_picture(3, "smear", 64)
    again, same = cell_picture(3, "smear", 64)
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(boxes, same)
    assert (cell_picture(4, "smear", 64)[0] != one).any()
    assert (cell_picture(3, "smear", 64, seed=1)[0] != one).any()


def test_no_cells():
    image, boxes = cell_picture(0, cells=0, size=32)
    assert (image.shape, boxes.shape) == ((32, 32, 3), (0, 4))


def test_degraded():
    rng = np.random.default_rng(0)
    corner = rng.integers(0, 400, (1000, 2))
    boxes = np.concatenate([corner, corner + 40], axis=1)
    found = degrade_boxes(boxes, (480, 480), rng, missing=0.4, jitter=0.1, false=0.1)
    assert 640 < len(found) < 760
    assert (found[:, 2:] > found[:, :2]).all()
    assert (found >= 0).all()
    assert found.max() <= 479
    np.testing.assert_array_equal(degrade_boxes(boxes, (480, 480), rng, 0, 0, 0), boxes)
    assert degrade_boxes(np.zeros((0, 4)), (9, 9), rng).shape == (0, 4)


def test_written(tmp_path):
    files = write_cells(tmp_path, pictures=6, size=48, cells=4)
    assert list(files) == ["phase", "smear"]
    pictures = read_boxes(files["smear"])
    assert [p.split for p in pictures] == ["train"] * 3 + ["test"] * 2 + ["val"]
    image, boxes = cell_picture(2, "smear", 48, 4)
    np.testing.assert_array_equal(read_image(pictures[2].image), image)
    np.testing.assert_array_equal(pictures[2].boxes, boxes)


@pytest.mark.parametrize("words", [{"microscope": "x"}, {"size": 16}])
def test_refused(words):
    with pytest.raises(ValueError, match=r"give a side of at least 32|choose from phase, smear"):
        cell_picture(0, **words)


def test_nothing_to_write(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        write_cells(tmp_path, pictures=0)
