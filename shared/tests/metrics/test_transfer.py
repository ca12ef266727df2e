"""Backward and forward transfer by hand and by their properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dart_core.metrics import backward_transfer, forward_transfer

A = [[0.8, 0.2, 0.1], [0.6, 0.9, 0.3], [0.4, 0.7, 0.7]]


def test_by_hand():
    assert backward_transfer(A) == (pytest.approx((-0.3 - 0.2) / 2), pytest.approx(0.05))
    assert backward_transfer(A, "final") == (pytest.approx((-0.4 - 0.2) / 2), pytest.approx(0.1))
    assert forward_transfer(A) == (pytest.approx((0.7 + 0.4) / 2), pytest.approx(0.15))
    assert backward_transfer(torch.tensor(A, dtype=torch.float64)) == backward_transfer(A)


def test_a_pool_that_never_changes_its_old_answers():
    matrix = np.tile([0.9, 0.7, 0.5, 0.8], (4, 1))
    assert backward_transfer(matrix) == (0, 0)
    assert backward_transfer(matrix, "final") == (0, 0)
    assert forward_transfer(matrix) == (0, 0)


def test_what_is_above_the_diagonal_is_not_needed_for_backward_transfer():
    matrix = np.array(A)
    matrix[np.triu_indices(3, 1)] = np.nan
    assert backward_transfer(matrix) == backward_transfer(A)
    with pytest.raises(ValueError, match="has gaps"):
        forward_transfer(matrix)


def test_errors():
    for bad in ([[1.0]], [[1.0, 2.0]], [1.0]):
        with pytest.raises(ValueError, match="shape"):
            backward_transfer(bad)
    for function in (backward_transfer, forward_transfer):
        with pytest.raises(ValueError, match="definition is 'relative'"):
            function(A, "relative")
