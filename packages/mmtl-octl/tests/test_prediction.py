"""The authors' filter of slices (specification 6.2), by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from dart_core.data.scans import Scan, load_scans, open_datalist, rows_of
from dart_core.settings import OutputSettings, ScanSettings
from mmtl_octl import prediction
from mmtl_octl.prediction import filter_slices, part_sizes, size_limit
from mmtl_octl.settings import Predict


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


def test_limit_comes_from_masks_as_they_are_predicted(prostates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prostates: what stands in the first and last slice is emptied, and must not raise the limit."""

    def segment(network: nn.Module, scan: Scan, *_: object) -> np.ndarray:
        found = scan.truth.astype(np.float32)
        found[..., [0, -1]] = 1
        return found

    monkeypatch.setattr(prediction, "segment", segment)
    scans = ScanSettings(prostates, preprocessing="prostate")
    command = Predict(scans, OutputSettings(Path("out")), Path("model"), filter_slices=True)
    datalist = open_datalist(prostates)
    (scan,) = load_scans(rows_of(datalist, ["BMC"], "val"), scans, need_mask=True)
    sizes = part_sizes(scan.truth)
    assert sizes[0] == sizes[-1] == 0
    expected = 0.1 * np.quantile(sizes[sizes > 0], 0.1)
    assert prediction._limit(command, nn.Identity(), datalist, "BMC") == pytest.approx(expected)
