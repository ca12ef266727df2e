"""How well skin-tone labels agree with human ones (specification 6), beside the constant answers (4.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dart_core.errors import InputError

TYPES = range(1, 7)


@overload
def within_one_accuracy(pred: ArrayLike, truth: ArrayLike, per_type: Literal[False] = False) -> float: ...
@overload
def within_one_accuracy(pred: ArrayLike, truth: ArrayLike, per_type: Literal[True]) -> NDArray[np.float64]: ...
def within_one_accuracy(pred: ArrayLike, truth: ArrayLike, per_type: bool = False) -> float | NDArray[np.float64]:
    """Share of pictures whose type is at most one away from the human one.

    Args:
        pred: (n,) types; whatever is not 1 to 6 (-1, nan) is a failure and counts as wrong.
        truth: (n,) human types; whatever is not 1 to 6 is not labelled and does not count.
        per_type: for each human type instead of all pictures together.

    Returns:
        0 to 1, nan where nothing is labelled; with per_type an array (6,), nan for types that do not occur.

    Raises:
        InputError: unequal shapes.
    """
    right, labels = _right(pred, truth, 1)
    if per_type:
        return np.array([_share(right[labels == k]) for k in TYPES])
    return _share(right[np.isin(labels, TYPES)])


def _right(pred: Any, truth: Any, tolerance: int) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which types are at most `tolerance` away from the human ones, and the human ones."""
    labels, answers = (np.asarray(v.detach().cpu() if hasattr(v, "detach") else v, float) for v in (truth, pred))
    if labels.ndim != 1 or labels.shape != answers.shape:
        raise InputError(f"{answers.shape} predicted types for {labels.shape} human ones", remedy="give as many")
    return np.isin(answers, TYPES) & (np.abs(answers - labels) <= tolerance), labels


def _share(right: NDArray[np.bool_]) -> float:
    return float(right.mean()) if len(right) else float("nan")


@dataclass(frozen=True)
class Agreement:
    """One labeller against the human types; shares from 0 to 1, nan where there is nothing to count."""

    name: str
    labelled: int
    """Pictures with a human type."""
    within_one: float
    exact: float
    per_type: tuple[float, ...]
    """Within one, for each human type."""

    @property
    def mean_over_types(self) -> float:
        """Unweighted mean of `per_type` over the types that occur: what one answer for everybody cannot raise."""
        known = [share for share in self.per_type if share == share]
        return float(np.mean(known)) if known else float("nan")


def agreements(labellers: Mapping[str, ArrayLike], truth: ArrayLike) -> list[Agreement]:
    """Each labeller, and the six that always give the same type.

    Args:
        labellers: name -> (n,) types.
        truth: (n,) human types.
    """
    human = np.asarray(truth, float)
    constant = {f"always type {k}": np.full(len(human), k) for k in TYPES}
    return [
        Agreement(
            name,
            int(np.isin(human, TYPES).sum()),
            within_one_accuracy(types, human),
            _share(_right(types, human, 0)[0][np.isin(human, TYPES)]),
            tuple(within_one_accuracy(types, human, per_type=True).tolist()),
        )
        for name, types in {**labellers, **constant}.items()
    ]


def confusion(pred: ArrayLike, truth: ArrayLike) -> NDArray[np.int64]:
    """Counts (6, 7): human types in rows, types given in columns, the last column for none."""
    human, given = np.asarray(truth, float), np.asarray(pred, float)
    columns = [*(given == k for k in TYPES), ~np.isin(given, TYPES)]
    return np.array([[int((column & (human == k)).sum()) for column in columns] for k in TYPES])
