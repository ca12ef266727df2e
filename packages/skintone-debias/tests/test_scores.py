"""Agreement with human types: closed forms, and what the specification's table says of constant answers."""

from __future__ import annotations

import csv
import gzip
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from skintone_debias import within_one_accuracy
from skintone_debias.scores import agreements, confusion

# Pictures of types 1 to 6 in Fitzpatrick17k, and among its neoplastic ones (specification 5).
ALL, NEOPLASTIC = (2947, 4808, 3308, 2781, 1533, 635), (895, 1413, 930, 667, 304, 102)


def test_by_hand() -> None:
    pred, truth = [1, 2, 4, -1, 6, 5, 3], [2, 2, 2, 1, 5, -1, 6]
    assert within_one_accuracy(pred, truth) == pytest.approx(3 / 6)
    expected = [0, 2 / 3, math.nan, math.nan, 1, 0]
    np.testing.assert_allclose(within_one_accuracy(pred, truth, per_type=True), expected)
    np.testing.assert_allclose(within_one_accuracy(torch.tensor(pred), np.array(truth), True), expected)


def test_failures_count_as_wrong() -> None:
    for failure in (-1, math.nan, 0, 7):
        assert within_one_accuracy([failure, failure], [1, 6]) == 0
        assert within_one_accuracy([1, failure], [1, 1]) == 0.5


def test_nothing_labelled() -> None:
    for truth in ([-1, -1], [math.nan, 0], [9, 7]):
        assert math.isnan(within_one_accuracy([1, 2], truth))
        assert np.isnan(within_one_accuracy([1, 2], truth, per_type=True)).all()
    assert math.isnan(within_one_accuracy([], []))


def test_shapes() -> None:
    for pred, truth in (([1, 2], [1]), ([[1]], [[1]]), (1, 1)):
        with pytest.raises(ValueError, match="predicted types"):
            within_one_accuracy(pred, truth)


@pytest.mark.parametrize(
    ("counts", "answer", "within", "exact"),
    [(ALL, 2, 69.09, 30.03), (ALL, 3, 68.06, 20.66), (NEOPLASTIC, 2, 75.11, 32.78), (NEOPLASTIC, 3, 69.82, 21.57)],
)
def test_constant_answers(counts: tuple[int, ...], answer: int, within: float, exact: float) -> None:
    truth = np.repeat(np.arange(1, 7), counts)
    table = {row.name: row for row in agreements({"ours": np.full(len(truth), answer)}, truth)}
    assert list(table) == ["ours", *(f"always type {k}" for k in range(1, 7))]
    for row in (table["ours"], table[f"always type {answer}"]):
        assert 100 * row.within_one == pytest.approx(within, abs=0.005)
        assert 100 * row.exact == pytest.approx(exact, abs=0.005)
        assert row.per_type == tuple(float(abs(k - answer) <= 1) for k in range(1, 7))
        assert row.mean_over_types == 0.5
        assert row.labelled == sum(counts)


def test_mean_over_types_leaves_out_absent_ones() -> None:
    (row, *_) = agreements({"a": [1, 1, 5, 5]}, [1, 1, 1, 6])
    assert row.mean_over_types == pytest.approx((2 / 3 + 1) / 2)
    assert math.isnan(agreements({"a": [1]}, [-1])[0].mean_over_types)


def test_confusion() -> None:
    table = confusion([1, 2, 2, -1, math.nan, 6], [1, 1, 3, 3, 3, -1])
    expected = np.zeros((6, 7), int)
    expected[0, :2] = 1
    expected[2, [1, 6]] = 1, 2
    assert np.array_equal(table, expected)


@pytest.mark.real
@pytest.mark.skipif("DART_DATA" not in os.environ, reason="DART_DATA does not say where the real data sets are")
def test_fitzpatrick17k_itself() -> None:
    file = Path(os.environ["DART_DATA"]) / "fitzpatrick17k_labels/fitzpatrick17k_labels.csv.gz"
    with gzip.open(file, "rt", newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    truth = [int(row["fitzpatrick_scale"]) for row in rows]
    assert 100 * within_one_accuracy([2] * len(truth), truth) == pytest.approx(69.09, abs=0.005)
