"""Labels that are uncertain, and fractions of the annotated pictures (specification 2.1.14 and 5)."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dart_core.data.catalog.chexpert import draw_uncertain
from dart_core.errors import InputError, SettingError
from dart_core.settings import UncertainLabels

FRACTION_SEED = 99
"""Of the authors' draw of a fraction."""


def chexpert_labels(
    cells: Any, policy: UncertainLabels = "lsr-ones", generator: torch.Generator | np.random.Generator | None = None
) -> NDArray[np.float64]:
    """CheXpert's cells as targets of the loss.

    Args:
        cells: any nesting of strings ('' = not mentioned) or numbers (nan = not mentioned).
        policy: what -1 (uncertain) becomes: "lsr-ones" a draw from U(0.55, 0.85), "lsr-zeros" from U(0, 0.3), "ones" 1,
            "zeros" 0. The draws are new at each call.
        generator: draws; None: PyTorch's own.

    Returns:
        float64 array of the cells' shape: 0 for what is not mentioned, 0, 1, or the policy's number.

    Raises:
        ValueError: an unknown policy, or a cell that is none of these.
    """
    given = np.asarray(cells.cpu() if isinstance(cells, torch.Tensor) else cells, dtype=object)
    values = np.array([_number(cell) for cell in given.ravel()], dtype=np.float64).reshape(given.shape)
    return draw_uncertain(values, policy, generator)


def _number(cell: Any) -> float:
    text = cell.strip() if isinstance(cell, str) else cell
    if text is None or text == "" or (isinstance(text, float | np.floating) and math.isnan(text)):
        return 0.0
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if value not in (-1.0, 0.0, 1.0):
        raise InputError(f"{cell!r} is no label", remedy="give 1, 0, -1 (uncertain) or nothing (not mentioned)")
    return value


def annotation_fraction(count: int, percent: float) -> list[int]:
    """The training pictures of a run that may use a fraction of the annotations.

    Args:
        count: training pictures, in the order of their list.
        percent: of them, above 0 and at most 100.

    Returns:
        floor(count percent / 100) numbers: the first of a shuffle by Python's Mersenne twister with seed 99, so that smaller
        fractions lie in larger ones. All of them in their order for 100.

    Raises:
        SettingError: a percentage outside the range, or one that leaves no picture.
    """
    if not 0 < percent <= 100:
        raise SettingError(f"{percent:g} % of the annotations", remedy="give more than 0 and at most 100")
    if percent == 100:
        return list(range(count))
    places = list(range(count))
    random.Random(FRACTION_SEED).shuffle(places)
    kept = places[: math.floor(count * percent / 100)]
    if not kept:
        raise SettingError(f"{percent:g} % of {count} pictures is none", remedy="give a larger fraction")
    return kept
