"""Masks as the metrics take them: NumPy arrays or tensors of any type that hold only 0 and 1."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

Mask = Any
"""A NumPy array, a torch tensor (any device), or nested lists, of 0 and 1 in any type."""


def to_numpy(values: Any) -> npt.NDArray[Any]:
    """Turn a tensor (any device, with or without gradient), array or list into a NumPy array."""
    # A tensor can only exist where torch has been imported already; arrays alone never pay for that import.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(values, torch.Tensor):
        tensor = values.detach()
        tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        values = tensor.cpu().numpy()
    return np.asarray(values)


def to_mask(values: Mask, name: str) -> npt.NDArray[np.bool_]:
    """Turn `values` into a boolean array; anything but 0 and 1 in it is a ValueError that names `name`."""
    array = to_numpy(values)
    if array.dtype == np.bool_:
        return array
    mask: npt.NDArray[np.bool_] = array == 1
    other = ~mask & (array != 0)
    if other.any():
        raise ValueError(f"{name} holds {array[other][0]!s}; a mask holds only 0 and 1: threshold it first")
    return mask


def mask_pair(pred: Mask, truth: Mask) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Both masks as boolean arrays; a ValueError unless their shapes agree."""
    pred_mask, truth_mask = to_mask(pred, "pred"), to_mask(truth, "truth")
    if pred_mask.shape != truth_mask.shape:
        raise ValueError(f"pred has shape {pred_mask.shape}, truth {truth_mask.shape}; they must be equal")
    return pred_mask, truth_mask
