"""NumPy arrays and numbers where tensors do, with the kind and the type that went in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dart_core.arrays import accepts_arrays, elementwise


def halved(values: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(values / 2)


def doubled(values: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(values * 2)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.array([1, 3]), np.float64),
        (np.array([[1.0], [3.0]], np.float32), np.float32),
        (np.array(3.0), np.float64),
        (torch.tensor([1, 3]), torch.float32),
        (torch.tensor([[1.0, 3.0]], dtype=torch.float64), torch.float64),
        (torch.tensor(3.0, requires_grad=True), torch.float32),
        (torch.tensor([1.0, 3.0], dtype=torch.bfloat16), torch.bfloat16),
        ([1, 3], np.float64),
        (range(3), np.float64),
    ],
    ids=str,
)
def test_elementwise_keeps_kind_type_and_shape(values: Any, kind: Any) -> None:
    found = elementwise(values, halved)
    assert isinstance(found, Tensor if isinstance(values, Tensor) else np.ndarray)
    assert found.dtype == kind
    plain = values.detach().float().numpy() if isinstance(values, Tensor) else np.asarray(values)
    assert found.shape == plain.shape
    np.testing.assert_array_equal(found.float().numpy() if isinstance(found, Tensor) else found, plain / 2)


@pytest.mark.parametrize("values", [3, 3.0, np.float64(3), np.int64(3)])
def test_elementwise_of_one_number(values: Any) -> None:
    found = elementwise(values, halved)
    assert type(found) is float
    assert found == 1.5


def test_whole_numbers_stay_whole() -> None:
    assert type(elementwise(2**53 + 1, doubled)) is int
    assert elementwise(2**53 + 1, doubled) == 2**54 + 2
    assert elementwise(torch.tensor([1, 2]), doubled).dtype == torch.int64
    assert elementwise(np.array([1, 2]), doubled).dtype == np.int64


def test_tensors_in_single_precision_are_computed_in_double() -> None:
    found = elementwise(torch.tensor([1e-4]), lambda x: (1 + x) ** 2 - 1)
    np.testing.assert_allclose(found.numpy(), [2.0001e-4], rtol=1e-6)


def test_accepts_arrays() -> None:
    @accepts_arrays
    def product(a: Tensor, b: Tensor, *, factor: float = 1.0) -> Tensor:
        assert isinstance(a, Tensor)
        assert isinstance(b, Tensor)
        return factor * a * b

    one, other = np.arange(6.0).reshape(2, 3).T, np.arange(6, dtype=">f8").reshape(3, 2)
    other.flags.writeable = False
    found: Any = product(one, b=other, factor=2.0)  # type: ignore[arg-type]
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, 2 * one * other)
    assert isinstance(product(torch.ones(2), torch.ones(2)), Tensor)
