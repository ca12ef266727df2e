"""The authors' filter of slices (specification 6.2), by hand."""

from __future__ import annotations

import numpy as np

from mmtl_octl.prediction import filter_slices, part_sizes, size_limit


def stack(*areas: tuple[int, ...]) -> np.ndarray:
    """One slice per entry, with unconnected parts of these numbers of pixels."""
    mask = np.zeros((20, 40, len(areas)), bool)
    for z, parts in enumerate(areas):
        for row, size in enumerate(parts):
            mask[2 * row, :size, z] = True
    return mask


def test_largest_part_of_each_slice() -> None:
    # Parts that touch in the next slice only, or by a corner, are not joined.
    mask = stack((5, 3), (), (7,), (2, 9, 4))
    assert part_sizes(mask).tolist() == [5, 0, 7, 9]
    corner = np.zeros((4, 4, 1), bool)
    corner[0, 0] = corner[1, 1] = True
    assert part_sizes(corner).tolist() == [1]


def test_small_slices_become_empty() -> None:
    filtered = filter_slices(stack((5, 3), (2,), (7,)), 5)
    assert filtered.sum((0, 1)).tolist() == [8, 0, 7]


def test_limit_of_the_release() -> None:
    predicted = stack((1,), (2,), (3,), (10,), (20,), (30,))
    truth = stack((), (), (), (9,), (9,), (9,))
    expected = 0.9 * np.quantile([1, 2, 3], 0.55) + 0.1 * np.quantile([10, 20, 30], 0.1)
    assert size_limit([predicted], [truth]) == expected
    assert size_limit([predicted], [predicted]) == 0
    assert size_limit([predicted], [np.zeros_like(predicted)]) == 0
