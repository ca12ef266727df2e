"""For tests of packages on the core, here and elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch


def assert_equal_states(one: Any, other: Any, where: str = "state") -> None:
    """Compare two nested states, as checkpoints hold them, bit for bit.

    Args:
        one: tensors, numbers, texts, and dicts, lists and tuples of them.
        other: likewise.
        where: what the error calls the whole.

    Raises:
        AssertionError: they differ; names the places.
    """
    places = list(_differences(one, other, where))
    if places:
        raise AssertionError(f"these differ: {', '.join(places)}")


def _differences(one: Any, other: Any, where: str) -> Iterator[str]:
    if isinstance(one, torch.Tensor):
        if not isinstance(other, torch.Tensor) or one.dtype != other.dtype or not torch.equal(one, other):
            yield where
    elif isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key in one:
            yield from _differences(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple) and isinstance(other, type(one)) and len(one) == len(other):
        for place, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from _differences(a, b, f"{where}.{place}")
    elif isinstance(one, dict | list | tuple) or type(one) is not type(other) or _unequal(one, other):
        yield where


def _unequal(one: Any, other: Any) -> bool:
    return bool(one != other and (one == one or other == other))  # nan equals nan
