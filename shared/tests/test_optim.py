"""The learning rate of nnU-Net in closed form, and clipping inside an optimiser's step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dart_core.optim import gradient_clipper, poly_lr


def test_rate_by_hand():
    assert poly_lr(0.0, 100, 0.01) == 0.01
    assert poly_lr(100.0, 100, 0.01) == 0
    assert poly_lr(50.0, 100, 0.01) == pytest.approx(0.01 * 0.5**0.9)
    assert poly_lr(25.0, 100, 0.2, exponent=1) == pytest.approx(0.15)


@given(st.integers(1, 1000), st.floats(0, 1), st.floats(1e-5, 1.0))
@settings(deadline=None)
def test_rate_falls_and_scales(total, share, lr0):
    step = share * total
    rate = poly_lr(step, total, lr0)
    assert 0 <= rate <= lr0
    assert poly_lr(min(step + 1, total), total, lr0) <= rate
    assert poly_lr(step, total, 2 * lr0) == pytest.approx(2 * rate)


def test_arrays_and_tensors_keep_their_kind():
    steps = np.array([0.0, 5.0, 10.0])
    expected = [poly_lr(float(step), 10, 0.1) for step in steps]
    found = poly_lr(steps, 10, 0.1)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, expected)
    tensor = poly_lr(torch.from_numpy(steps).float(), 10, 0.1)
    assert tensor.dtype == torch.float32
    np.testing.assert_allclose(tensor, expected, rtol=1e-6)


@pytest.mark.parametrize(("step", "total"), [(-1.0, 10), (10.5, 10), (float("nan"), 10), (0.0, 0), (0.0, -1)])
def test_steps_outside_the_run(step, total):
    with pytest.raises(ValueError, match="0 <= step <= total"):
        poly_lr(step, total, 0.1)


@pytest.mark.parametrize(("limit", "scale"), [(12.0, 1.0), (2.5, 0.5)])
def test_all_gradients_are_scaled_together(limit, scale):
    """Gradients (3,) and (4,) have a common norm of 5."""
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(3)]
    for parameter, gradient in zip(parameters, (3.0, 4.0), strict=False):
        parameter.grad = torch.tensor([gradient])  # the third has none
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    optimizer.register_step_pre_hook(gradient_clipper(parameters, limit))
    optimizer.step()
    assert [parameter.item() for parameter in parameters] == pytest.approx([-3 * scale, -4 * scale, 0], rel=1e-5)
