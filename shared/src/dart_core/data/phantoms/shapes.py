"""Shapes in mm: distances to smooth surfaces, positive inside, and random fields to roughen them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Field: TypeAlias = NDArray[np.floating[Any]]
Layer: TypeAlias = tuple[Field, Mapping[str, Field | float]]


def grid_axes(shape: Sequence[int], spacing: Sequence[float], centre: Sequence[float] = (0.0, 0.0, 0.0)) -> list[Field]:
    """Positions in mm of the voxels along each axis of a grid around `centre`."""
    return [
        np.asarray((np.arange(n) - (n - 1) / 2) * step + middle, dtype=np.float32)
        for n, step, middle in zip(shape, spacing, centre, strict=True)
    ]


def smooth_field(
    rng: np.random.Generator,
    axes: Sequence[Field],
    wavelength: float,
    count: int = 48,
    stretch: Sequence[float] = (1, 1, 1),
) -> Field:
    """Random field (H, W, Z) of mean 0 and variance 1: plane waves of about one wavelength (mm) in random directions.

    A plane wave is a product of one factor per axis, so that the sum over waves is one matrix product.
    """
    direction = rng.normal(size=(count, 3)) * np.asarray(stretch)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    angular = direction * (2 * math.pi / (wavelength * rng.uniform(0.8, 1.25, size=(count, 1))))
    phase = rng.uniform(0, 2 * math.pi, size=count)
    x, y, z = (np.exp(1j * np.outer(axis, angular[:, i])).astype(np.complex64) for i, axis in enumerate(axes))
    plane = (x[:, None] * y[None]).reshape(-1, count)
    waves = plane @ (z * np.exp(1j * phase).astype(np.complex64)).T
    return np.asarray(waves.real.reshape(len(x), len(y), len(z)) * math.sqrt(2 / count), dtype=np.float32)


def smooth_picture(rng: np.random.Generator, y: Field, x: Field, wavelength: float, count: int = 32) -> Field:
    """Random field (H, W) of mean 0 and variance 1, as `smooth_field`; `y` (H,) and `x` (W,) are the positions of the pixels."""
    turn, phase = rng.uniform(0, 2 * math.pi, size=(2, count))
    angular = 2 * math.pi / (wavelength * rng.uniform(0.8, 1.25, size=count))
    rows = np.exp(1j * (np.outer(y, angular * np.cos(turn)) + phase)).astype(np.complex64)
    columns = np.exp(1j * np.outer(x, angular * np.sin(turn))).astype(np.complex64)
    return np.asarray((rows @ columns.T).real * math.sqrt(2 / count), dtype=np.float32)


class Space:
    """Coordinates in mm of an anatomy, turned and scaled a little, and distances to shapes in it."""

    def __init__(self, axes: Sequence[Field], turn: NDArray[np.float64], scale: NDArray[np.float64]) -> None:
        grid = np.meshgrid(*axes, indexing="ij", sparse=True)
        matrix = (np.diag(1 / scale) @ turn).astype(np.float32)
        self.x, self.y, self.z = (sum(matrix[i, j] * grid[j] for j in range(3)) for i in range(3))

    def ellipsoid(self, centre: Sequence[float], half: Sequence[float], power: float = 2.0) -> Field:
        """Distance (mm, along rays from the centre) to the surface, positive inside; power above 2 is boxier."""
        p = [c - m for c, m in zip((self.x, self.y, self.z), centre, strict=True)]
        if power == 2.0:
            level = np.sqrt(sum((c / h) ** 2 for c, h in zip(p, half, strict=True)))
        else:
            level = sum(np.abs(c / h) ** power for c, h in zip(p, half, strict=True))
            level = level ** (1 / power)
        radius = np.sqrt(sum(c * c for c in p))
        return np.asarray(radius / np.maximum(level, 1e-3) - radius)

    def pair(self, centre: Sequence[float], half: Sequence[float]) -> Field:
        """The same shape on the left and on the right."""
        x, y, z = centre
        return np.maximum(self.ellipsoid((x, y, z), half), self.ellipsoid((-x, y, z), half))


def inside(distance: Field, width: float) -> Field:
    """Share of a voxel that lies inside a surface (partial volume), from 0 to 1 over about `width` mm."""
    return np.asarray(np.clip(distance / width + 0.5, 0, 1))


def join(a: Field, b: Field, rounding: float) -> Field:
    """Union of two shapes with a rounded seam (polynomial smooth maximum)."""
    overlap = np.maximum(rounding - np.abs(a - b), 0) / rounding
    return np.asarray(np.maximum(a, b) + overlap * overlap * (rounding / 4))


def slice_mean(fields: Mapping[str, Field], parts: int) -> dict[str, Field]:
    """Average each `parts` neighbouring positions along the last axis (H, W, Z * parts): thick slices (H, W, Z)."""
    return {name: field.reshape(*field.shape[:2], -1, parts).mean(-1) for name, field in fields.items()}


def cover(layers: Iterable[Layer]) -> dict[str, Field]:
    """Lay layers on each other, the last on top.

    Args:
        layers: the share of each voxel that a layer covers, and what it is made of (tissue -> share of it). What a layer
            covers without naming a tissue is air.

    Returns:
        the share of each tissue in each voxel; air is the rest.
    """
    tissues: dict[str, Field] = {}
    for share, parts in layers:
        tissues = {name: value * (1 - share) for name, value in tissues.items()}
        for name, part in parts.items():
            tissues[name] = np.asarray(tissues.get(name, 0.0) + share * part)
    return tissues


def rotation(i: int, j: int, angle: float) -> NDArray[np.float64]:
    """Matrix (3, 3) that turns axis i towards axis j by `angle` radians."""
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = math.cos(angle)
    matrix[i, j], matrix[j, i] = -math.sin(angle), math.sin(angle)
    return matrix
