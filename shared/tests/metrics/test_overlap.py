from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dart_core import metrics

PAIRS = st.integers(1, 30).flatmap(lambda n: st.tuples(arrays(np.bool_, n), arrays(np.bool_, n)))


def test_closed_form() -> None:
    pred = np.array([[1, 1, 0], [1, 0, 0]])
    truth = np.array([[1, 0, 0], [1, 1, 1]])
    assert metrics.dice(pred, truth) == pytest.approx(2 * 2 / (3 + 4))
    assert metrics.iou(pred, truth) == pytest.approx(2 / 5)


@pytest.mark.parametrize("metric", [metrics.dice, metrics.iou])
def test_empty_masks(metric: object) -> None:
    assert callable(metric)
    empty, filled = np.zeros((3, 4)), np.ones((3, 4))
    assert metric(empty, empty) == 1.0
    assert metric(empty, filled) == 0.0
    assert metric(filled, empty) == 0.0
    assert metric(filled, filled) == 1.0


@settings(deadline=None)
@given(PAIRS)
def test_definition_symmetry_and_relation(pair: tuple[np.ndarray, np.ndarray]) -> None:
    pred, truth = pair
    a, b = set(np.flatnonzero(pred)), set(np.flatnonzero(truth))
    expected = len(a & b) / len(a | b) if a | b else 1.0
    j = metrics.iou(pred, truth)
    assert j == pytest.approx(expected)
    assert j == metrics.iou(truth, pred)
    assert metrics.dice(pred, truth) == pytest.approx(2 * j / (1 + j))


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_tensors_of_any_type(dtype: torch.dtype) -> None:
    pred = torch.tensor([1, 1, 0, 0]).to(dtype)
    truth = torch.tensor([1, 0, 1, 0]).to(dtype)
    result = metrics.dice(pred, truth)
    assert type(result) is float
    assert result == 0.5
    assert metrics.dice(pred, truth.numpy() if dtype != torch.bfloat16 else truth) == 0.5


def test_tensor_with_gradient() -> None:
    assert metrics.iou(torch.ones(3, requires_grad=True), [1, 1, 0]) == pytest.approx(2 / 3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tensor_on_gpu() -> None:
    assert metrics.dice(torch.ones(4, device="cuda"), np.ones(4)) == 1.0


@pytest.mark.parametrize("metric", [metrics.dice, metrics.iou])
def test_bad_input(metric: object) -> None:
    assert callable(metric)
    with pytest.raises(ValueError, match=r"pred has shape \(2,\), truth \(3,\)"):
        metric(np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match=r"truth holds 0\.5.*threshold"):
        metric(np.ones(2), np.array([0.5, 1.0]))
    with pytest.raises(ValueError, match="pred holds 2"):
        metric(torch.tensor([0, 2]), np.ones(2))
    with pytest.raises(ValueError, match="pred holds -1"):
        metric(np.array([-1, 0]), np.ones(2))
    with pytest.raises(ValueError, match="pred holds nan"):
        metric(np.array([np.nan, 0]), np.ones(2))
