"""How learning goes on: what later stages do to earlier ones (backward transfer), and what a stage gains (forward transfer)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from dart_core.errors import InputError, SettingError
from dart_core.metrics._masks import to_numpy


def backward_transfer(A: npt.ArrayLike, definition: Literal["all_later", "final"] = "all_later") -> tuple[float, float]:
    """Inverse forgetting (specification odex 6): 0 where nothing is forgotten.

    Args:
        A: (N, N), A[i, j] = score on the test data of stage j after training on stage i; N at least 2. Values above the
            diagonal are not looked at.
        definition: all_later: for j < N the mean over i > j of A[i, j] - A[j, j]; final: A[N, j] - A[j, j].

    Returns:
        mean over j, and standard deviation over them (population).

    Raises:
        ValueError: another shape, nan in what is used, or an unknown definition.
    """
    matrix = _matrix(A)
    n = len(matrix)
    if definition == "all_later":
        each = [float(np.mean(matrix[j + 1 :, j] - matrix[j, j])) for j in range(n - 1)]
    elif definition == "final":
        each = [float(matrix[-1, j] - matrix[j, j]) for j in range(n - 1)]
    else:
        raise SettingError(f"definition is {definition!r}", remedy="give all_later or final")
    return _mean_std(each)


def forward_transfer(A: npt.ArrayLike, definition: Literal["adjacent"] = "adjacent") -> tuple[float, float]:
    """Gain from training on a stage (specification odex 6): A[j, j] - A[j - 1, j] for every stage but the first.

    Args:
        A: (N, N), as for `backward_transfer`.
        definition: adjacent.

    Returns:
        mean over the stages, and standard deviation (population).

    Raises:
        ValueError: another shape, nan in what is used, or an unknown definition.
    """
    if definition != "adjacent":
        raise SettingError(f"definition is {definition!r}", remedy="give adjacent")
    matrix = _matrix(A)
    return _mean_std([float(matrix[j, j] - matrix[j - 1, j]) for j in range(1, len(matrix))])


def _matrix(a: npt.ArrayLike) -> npt.NDArray[np.float64]:
    matrix = to_numpy(a).astype(np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
        raise InputError(f"the stage matrix has shape {matrix.shape}", remedy="give (N, N), at least two stages")
    return matrix


def _mean_std(each: list[float]) -> tuple[float, float]:
    if not np.isfinite(each).all():
        raise InputError("the stage matrix has gaps", remedy="score every stage after every training that it needs")
    return float(np.mean(each)), float(np.std(each))
