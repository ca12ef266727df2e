"""NumPy arrays in, NumPy arrays out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
import torch
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


def _to_tensor(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    # Copied only where PyTorch could not share the memory: strides, write protection, foreign byte order (NIfTI files).
    return torch.from_numpy(np.require(value, value.dtype.newbyteorder("="), ("C", "W")))
