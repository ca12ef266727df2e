"""NumPy arrays where a function works with tensors, and schedules of whatever kind of number they get."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def accepts_arrays(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let a function of tensors take NumPy arrays as well; given any, it answers with arrays."""

    @functools.wraps(function)
    def wrapper(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        if not any(isinstance(value, np.ndarray) for value in (*args, *kwargs.values())):
            return function(*args, **kwargs)
        call = cast("Callable[..., Any]", function)
        result = call(*map(_to_tensor, args), **{name: _to_tensor(value) for name, value in kwargs.items()})
        return cast("Result", result.numpy() if isinstance(result, Tensor) else result)

    return wrapper


def elementwise(values: Any, rule: Callable[[NDArray[Any]], Any]) -> Any:
    """Apply a rule for numbers to a number, an array, a tensor or a sequence of numbers.

    Args:
        values: one number, or as many as there are, of any shape.
        rule: gets them as an array, and gives an array of that shape.

    Returns:
        A number for a number, a tensor on its device for a tensor, else an array. Whole results stay whole; others have the
        floating-point type of `values`, or where that has none, float64 in arrays and PyTorch's default type in tensors.
    """
    if isinstance(values, Tensor):
        tensor = torch.from_numpy(np.asarray(rule(_plain(values))))
        if tensor.dtype.is_floating_point:
            tensor = tensor.to(values.dtype if values.dtype.is_floating_point else torch.get_default_dtype())
        return tensor.to(values.device)
    single = not isinstance(values, np.ndarray | Sequence)
    array = np.asarray(values)
    found = np.asarray(rule(array))
    if found.dtype.kind == "f" and array.dtype.kind == "f":
        found = found.astype(array.dtype)
    return found.item() if single else found


def _plain(values: Tensor) -> NDArray[Any]:
    wide = values.double() if values.dtype.is_floating_point else values
    return np.asarray(wide.detach().cpu().numpy())


def _to_tensor(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    # Copied only where PyTorch could not share the memory: strides, write protection, foreign byte order (NIfTI files).
    return torch.from_numpy(np.require(value, value.dtype.newbyteorder("="), ("C", "W")))
