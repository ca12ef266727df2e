"""Agreement of the surfaces of two masks: surface Dice at a tolerance, and average surface distance.

Surface Dice follows DeepMind's definition (Nikolov et al. 2018, "Deep learning to achieve clinically applicable
segmentation of head and neck anatomy", package surface-distance): surface elements sit on the corners where 2x2x2
voxels (2x2 pixels) meet that are neither all empty nor all full, each with an area that the eight voxels give.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from dart_core.metrics._masks import Mask, mask_pair

# Area of the surface element of each arrangement of 2x2x2 voxels, after the table of the package surface-distance
# (Copyright 2018 Google Inc., Apache-2.0), which MONAI carries too and which the tests compare with. An arrangement is
# an 8-bit code: bit 7 - (4 i + 2 j + k) is the voxel with offset (i, j, k). Mirroring it or swapping inside and outside
# leaves its area as it is, so 30 arrangements stand for all 256. With the faces a = s1 s2, b = s0 s2, c = s0 s1 of a
# voxel of size (s0, s1, s2), the area is 1/8 of the row's counts times |(a, b, c)|, |(a, b)|, |(a, c)|, |(b, c)|, a, b, c.
# We keep the numbers here because importing MONAI for them takes ten seconds.
_ELEMENTS_3D = {
    0: (0, 0, 0, 0, 0, 0, 0),
    1: (1, 0, 0, 0, 0, 0, 0),
    3: (0, 4, 0, 0, 0, 0, 0),
    5: (0, 0, 4, 0, 0, 0, 0),
    6: (2, 0, 0, 0, 0, 0, 0),
    7: (3, 0, 0, 0, 4, 0, 0),
    15: (0, 0, 0, 0, 8, 0, 0),
    17: (0, 0, 0, 4, 0, 0, 0),
    18: (2, 0, 0, 0, 0, 0, 0),
    19: (3, 0, 0, 0, 0, 4, 0),
    20: (2, 0, 0, 0, 0, 0, 0),
    21: (3, 0, 0, 0, 0, 0, 4),
    22: (3, 0, 0, 0, 0, 0, 0),
    23: (6, 0, 0, 0, 0, 0, 0),
    24: (2, 0, 0, 0, 0, 0, 0),
    25: (1, 0, 0, 4, 0, 0, 0),
    26: (1, 0, 4, 0, 0, 0, 0),
    27: (4, 0, 2, 2, 0, 0, 0),
    28: (1, 4, 0, 0, 0, 0, 0),
    29: (4, 2, 0, 2, 0, 0, 0),
    30: (4, 0, 0, 0, 4, 0, 0),
    51: (0, 0, 0, 0, 0, 8, 0),
    53: (4, 2, 2, 0, 0, 0, 0),
    54: (4, 0, 0, 0, 0, 4, 0),
    60: (0, 8, 0, 0, 0, 0, 0),
    85: (0, 0, 0, 0, 0, 0, 8),
    86: (4, 0, 0, 0, 0, 0, 4),
    90: (0, 0, 8, 0, 0, 0, 0),
    102: (0, 0, 0, 8, 0, 0, 0),
    105: (4, 0, 0, 0, 0, 0, 0),
}
# The same for 2x2 pixels: bit 3 - (2 i + j), counts of |(s0, s1)| / 2, s0, s1.
_ELEMENTS_2D = {0: (0, 0, 0), 1: (1, 0, 0), 3: (0, 0, 1), 5: (0, 1, 0), 6: (2, 0, 0)}


def surface_dice(pred: Mask, truth: Mask, spacing: Sequence[float], tolerance: float) -> float:
    """Part of both surfaces that lies within `tolerance` of the other surface (DeepMind's surface Dice).

    Args:
        pred: predicted mask (H, W) or (D, H, W), 0 and 1 in any type (array or tensor).
        truth: true mask of the same shape.
        spacing: size of a voxel in mm, in the order of the array's axes.
        tolerance: in mm; a distance equal to it counts as within.

    Returns:
        A number in [0, 1]; nan if both masks are empty, 0 if exactly one is.

    Raises:
        ValueError: shapes differ, not 2-D or 3-D, a mask holds something else than 0 and 1, the spacing does not
            fit or is not positive, or the tolerance is negative.
    """
    pred_mask, truth_mask, spacing = _checked(pred, truth, spacing)
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}; it must be 0 mm or more")
    if not pred_mask.any() or not truth_mask.any():
        return 0.0 if pred_mask.any() or truth_mask.any() else math.nan
    box = _bounding_box(pred_mask | truth_mask)
    pred_points, pred_areas = _surface_elements(pred_mask[box], spacing)
    truth_points, truth_areas = _surface_elements(truth_mask[box], spacing)
    pred_within = pred_areas[_within(pred_points, truth_points, spacing, tolerance)].sum()
    truth_within = truth_areas[_within(truth_points, pred_points, spacing, tolerance)].sum()
    return float((pred_within + truth_within) / (pred_areas.sum() + truth_areas.sum()))


def average_surface_distance(pred: Mask, truth: Mask, spacing: Sequence[float], symmetric: bool = False) -> float:
    """Mean distance of the surface voxels of `pred` to the nearest surface voxel of `truth` (MedPy's asd).

    Surface voxels are those of the mask with a neighbour outside it across a face (6 neighbours, in 2-D 4); voxels on
    the border of the array count as surface.

    Args:
        pred: predicted mask (H, W) or (D, H, W), 0 and 1 in any type (array or tensor).
        truth: true mask of the same shape.
        spacing: size of a voxel in mm, in the order of the array's axes.
        symmetric: pool the distances of both directions before the mean (MedPy's assd).

    Returns:
        Millimetres; nan if either mask is empty.

    Raises:
        ValueError: shapes differ, not 2-D or 3-D, a mask holds something else than 0 and 1, or the spacing does not
            fit or is not positive.
    """
    from scipy.ndimage import binary_erosion, distance_transform_edt

    pred_mask, truth_mask, spacing = _checked(pred, truth, spacing)
    if not pred_mask.any() or not truth_mask.any():
        return math.nan
    box = _bounding_box(pred_mask | truth_mask)
    pred_mask, truth_mask = pred_mask[box], truth_mask[box]
    # The box keeps no margin: the erosion takes everything outside the array as background anyway.
    pred_surface = pred_mask & ~binary_erosion(pred_mask)
    truth_surface = truth_mask & ~binary_erosion(truth_mask)
    distances = distance_transform_edt(~truth_surface, sampling=spacing)[pred_surface]
    if symmetric:
        back = distance_transform_edt(~pred_surface, sampling=spacing)[truth_surface]
        distances = np.concatenate([distances, back])
    return float(distances.mean())


def _checked(
    pred: Mask, truth: Mask, spacing: Sequence[float]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], tuple[float, ...]]:
    pred_mask, truth_mask = mask_pair(pred, truth)
    if pred_mask.ndim not in (2, 3):
        raise ValueError(f"masks have shape {pred_mask.shape}; surfaces are measured in 2-D or 3-D")
    sizes = tuple(float(size) for size in spacing)
    if len(sizes) != pred_mask.ndim:
        raise ValueError(f"spacing has {len(sizes)} numbers, the masks {pred_mask.ndim} axes; give one per axis")
    if not all(0 < size < math.inf for size in sizes):
        raise ValueError(f"spacing is {sizes}; every number must be positive and finite")
    return pred_mask, truth_mask, sizes


def _bounding_box(mask: npt.NDArray[np.bool_]) -> tuple[slice, ...]:
    """Smallest box that holds the foreground of a mask that is not empty."""
    box = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(box)


def _surface_elements(
    mask: npt.NDArray[np.bool_], spacing: tuple[float, ...]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Index (n, axes) of the corners on the surface, and the area (length in 2-D) of each element."""
    padded = np.pad(mask, 1).astype(np.uint8)
    corners = tuple(size - 1 for size in padded.shape)
    code = np.zeros(corners, np.uint8)
    last = 2**mask.ndim - 1
    for position, offset in enumerate(np.ndindex((2,) * mask.ndim)):
        part = tuple(slice(start, start + size) for start, size in zip(offset, corners, strict=True))
        code |= padded[part] << (last - position)
    points = np.argwhere((code != 0) & (code != 2 ** (last + 1) - 1))
    return points, _element_areas(spacing)[code[tuple(points.T)]]


@lru_cache(maxsize=64)
def _element_areas(spacing: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """Area in mm² of the element of each of the 256 codes (2-D: length in mm of 16)."""
    if len(spacing) == 2:
        elements: dict[int, tuple[int, ...]] = dict(_ELEMENTS_2D)
        units = np.array([math.hypot(*spacing) / 2, *spacing])
    else:
        elements = dict(_ELEMENTS_3D)
        a, b, c = spacing[1] * spacing[2], spacing[0] * spacing[2], spacing[0] * spacing[1]
        units = np.array([math.hypot(a, b, c), math.hypot(a, b), math.hypot(a, c), math.hypot(b, c), a, b, c]) / 8
    codes = 2 ** (2 ** len(spacing))
    areas = np.zeros(codes)
    for code, counts in elements.items():
        for mirror in range(2 ** len(spacing)):
            # Mirroring along axes moves the voxel at offset o to o xor mirror, and so its bit.
            bits = [position for position in range(2 ** len(spacing)) if code >> position & 1]
            mirrored = sum(1 << (position ^ mirror) for position in bits)
            areas[[mirrored, codes - 1 - mirrored]] = units @ np.array(counts)
    return areas


def _within(
    points: npt.NDArray[np.int64],
    others: npt.NDArray[np.int64],
    spacing: tuple[float, ...],
    tolerance: float,
) -> npt.NDArray[np.bool_]:
    """Whether each of `points` has one of `others` at most `tolerance` away."""
    from scipy.spatial import KDTree

    sizes = np.array(spacing)
    # The search reaches a little further, and the distance is then taken from whole index differences: on a grid
    # distances equal to the tolerance are common, and rounding must not push them out.
    reach = tolerance * (1 + 1e-9) + 1e-9 * sizes.min()
    _, nearest = KDTree(others * sizes).query(points * sizes, distance_upper_bound=reach)
    found = nearest < len(others)
    steps = (points[found] - others[nearest[found]]) * sizes
    within = np.zeros(len(points), np.bool_)
    within[found] = np.sqrt((steps**2).sum(axis=1)) <= tolerance
    return within
