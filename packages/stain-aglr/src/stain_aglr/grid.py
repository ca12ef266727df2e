"""Which patches of a slide are tumour, tissue, or neither; pure functions (specification 5).

A slide is divided into the patches of a grid, and each patch into CELLS x CELLS cells; tissue and tumour are masks of cells, so
that all patches of a slide are judged by a few array operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dart_core.data.catalog.camelyon17 import Outlines

CELLS = 12
"""Cells along a patch's side; the central third is the middle four of them."""
FAINT = 15
"""8-bit saturation up to which nothing counts as tissue. Otsu's threshold splits any histogram, that of bare glass too."""
VAL_SHARE = 0.2
"""Share of the training laboratory's subjects that validates (specification 2.5, 5)."""

TUMOUR, NORMAL, NEITHER = 1, 0, -1


# --- Masks -----------------------------------------------------------------------------------------------------------


def saturation(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Saturation of the HSV model, (max - min) / max, as 0 to 255; 0 for black.

    Args:
        rgb: uint8 (..., 3).
    """
    high, low = rgb.max(axis=-1).astype(np.uint32), rgb.min(axis=-1).astype(np.uint32)
    return np.asarray((255 * (high - low) + high // 2) // np.maximum(high, 1), dtype=np.uint8)


def otsu_threshold(values: NDArray[np.uint8]) -> int:
    """Otsu's threshold: values above it are one class, the others the other, so that the classes' variances are least.

    The lowest of several equally good ones; the value itself where all are equal.
    """
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below, total = np.cumsum(counts), np.cumsum(counts * np.arange(256))
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (total / below - (total[-1] - total) / above) ** 2
    return int(np.nanargmax(between)) if (np.isfinite(between)).any() else int(np.argmax(counts))


def tissue_mask(saturations: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a slide shows tissue: saturation above Otsu's threshold, and above FAINT.

    Args:
        saturations: of a whole slide at low resolution, any shape.
    """
    return saturations > max(otsu_threshold(saturations), FAINT)


def outline_mask(outlines: Outlines, shape: tuple[int, int], cell: float) -> NDArray[np.bool_]:
    """Fill the tumour outlines, then clear the normal ones (specification 5).

    A cell belongs to an outline when its middle lies inside. A tumour that is too small for that has the cells of its corners,
    so that none is lost.

    Args:
        outlines: in pixels of level 0.
        shape: cells (rows, columns).
        cell: side of a cell in pixels of level 0.
    """
    mask = np.zeros(shape, dtype=bool)
    for corners in outlines.tumour:
        window, inside = _fill(corners / cell, shape)
        mask[window] |= inside
        if not inside.any():
            column, row = np.floor(corners / cell).astype(np.intp).T
            there = (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1])
            mask[row[there], column[there]] = True
    for corners in outlines.normal:
        window, inside = _fill(corners / cell, shape)
        mask[window] &= ~inside
    return mask


def _fill(corners: NDArray[np.float64], shape: tuple[int, int]) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
    """Which middles of cells lie inside a polygon (corners, 2) of x and y in cells, by the even-odd rule.

    Every edge toggles, in each row whose middle it crosses, all cells to its right; rows and edges at once.

    Returns:
        the window of the cells around the polygon, and its part of the mask.
    """
    low = np.clip(np.floor(corners.min(axis=0)), 0, shape[::-1]).astype(np.intp)
    high = np.clip(np.ceil(corners.max(axis=0)), 0, shape[::-1]).astype(np.intp)
    (left, top), (right, bottom) = low.tolist(), high.tolist()
    rows, columns = bottom - top, right - left
    window = (slice(top, bottom), slice(left, right))
    x0, y0 = (corners - (left, top)).T
    x1, y1 = np.roll(x0, -1), np.roll(y0, -1)
    # Rows whose middle r + 0.5 lies in [min(y0, y1), max(y0, y1)): a corner on a middle counts for one of its edges.
    first = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), 0, rows).astype(np.intp)
    count = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), 0, rows).astype(np.intp) - first
    edge = np.repeat(np.arange(len(corners)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    x = x0[edge] + (row + 0.5 - y0[edge]) * ((x1 - x0)[edge] / (y1 - y0)[edge])
    column = np.clip(np.ceil(x - 0.5), 0, columns).astype(np.intp)
    toggles = np.bincount(row * (columns + 1) + column, minlength=rows * (columns + 1)).reshape(rows, columns + 1)
    return window, np.cumsum(toggles[:, :-1], axis=1) % 2 == 1


# --- The grid --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """Patches side by side over a slide: all whose middle lies on it, so that some reach beyond its right and bottom edge."""

    rows: int
    columns: int
    step: float
    """Side of a patch in pixels of level 0."""

    @classmethod
    def over(cls, size: tuple[int, int], step: float) -> Grid:
        """The grid over a slide of `size` (width, height); at least one patch."""
        columns, rows = (max(1, int(side / step + 0.5)) for side in size)
        return cls(rows, columns, step)

    @property
    def cells(self) -> tuple[int, int]:
        """(rows, columns) of cells."""
        return self.rows * CELLS, self.columns * CELLS

    def corners(self, places: NDArray[np.intp]) -> NDArray[np.int64]:
        """Left and top edge (n, 2) in pixels of level 0 of the patches at `places`, which count row by row."""
        row, column = np.divmod(places, self.columns)
        return np.rint(np.stack([column, row], axis=1) * self.step).astype(np.int64)


def label_patches(tumour: NDArray[np.bool_], tissue: NDArray[np.bool_], least_tissue: float = 0.2) -> NDArray[np.int8]:
    """Label all patches of a grid.

    Args:
        tumour: (rows * CELLS, columns * CELLS).
        tissue: the same shape.
        least_tissue: share of a tumour-free patch that must be tissue.

    Returns:
        (rows, columns): TUMOUR where there is any tumour in the patch's central third (as WILDS), NORMAL where there is none
        in the whole patch and enough tissue, else NEITHER.
    """
    by_patch = (tumour.shape[0] // CELLS, CELLS, tumour.shape[1] // CELLS, CELLS)
    tumour_RiCj, tissue_RiCj = tumour.reshape(by_patch), tissue.reshape(by_patch)
    third = slice(CELLS // 3, 2 * CELLS // 3)
    labels = np.full((by_patch[0], by_patch[2]), NEITHER, dtype=np.int8)
    enough = tissue_RiCj.mean(axis=(1, 3)) >= least_tissue
    labels[enough & ~tumour_RiCj.any(axis=(1, 3))] = NORMAL
    labels[tumour_RiCj[:, third, :, third].any(axis=(1, 3))] = TUMOUR
    return labels


def choose_patches(
    labels: NDArray[np.int8], sites: NDArray[np.intp], balance: bool, limit: int, seed: int
) -> NDArray[np.bool_]:
    """Choose the patches to cut, site by site.

    Args:
        labels: (n,), TUMOUR or NORMAL.
        sites: (n,), number of each patch's site.
        balance: only as many without tumour as with.
        limit: at most so many of each label per site; 0 = all.
        seed: of the draw.

    Returns:
        (n,).
    """
    chosen = np.zeros(len(labels), dtype=bool)
    for site in np.unique(sites):
        rng = np.random.default_rng([seed, int(site)])
        places = {label: np.flatnonzero((sites == site) & (labels == label)) for label in (TUMOUR, NORMAL)}
        count = min(limit or len(labels), len(places[TUMOUR]))
        chosen[rng.permutation(places[TUMOUR])[:count]] = True
        chosen[rng.permutation(places[NORMAL])[: count if balance else limit or None]] = True
    return chosen


def draw_validation(units: Iterable[str], seed: int) -> set[str]:
    """Draw a fifth of some subjects (or patches) for validation: at least one, but not the only one.

    The draw depends on the names alone, not on their order.
    """
    own = sorted(set(units))
    count = max(1, round(VAL_SHARE * len(own))) if len(own) > 1 else 0
    return set(np.random.default_rng(seed).permutation(own)[:count].tolist())


def assign_splits(subjects: Sequence[str], sites: Sequence[str], training_site: str, seed: int) -> list[str]:
    """Split the training laboratory by subject into train and val; all others are for test (specification 5).

    Args:
        subjects: one per patch; all patches of one go to one split.
        sites: one per patch.
        training_site: the laboratory to train on.
        seed: of the draw.
    """
    own = (subject for subject, site in zip(subjects, sites, strict=True) if site == training_site)
    validation = draw_validation(own, seed)
    return [
        "test" if site != training_site else "val" if subject in validation else "train"
        for subject, site in zip(subjects, sites, strict=True)
    ]


# --- Patches around points ---------------------------------------------------------------------------------------------


def cut_points(image: NDArray[np.uint8], points: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
    """Cut patches around points out of a picture; beyond its edges the picture is mirrored (specification 5).

    Args:
        image: uint8 (H, W, 3).
        points: (n, 2), x and y inside the picture. A patch reaches from x - size // 2 to x + (size - 1) // 2.
        size: side of the patches.

    Returns:
        uint8 (n, size, size, 3).

    Raises:
        ValueError: a point outside the picture.
    """
    height, width = image.shape[:2]
    if len(points) and not ((points >= 0) & (points < (width, height))).all():
        raise ValueError(f"a point lies outside the picture of {width} x {height} pixels")
    before, after = size // 2, (size - 1) // 2
    padded = np.pad(image, ((before, after), (before, after), (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(0, 1))
    return np.ascontiguousarray(windows[points[:, 1], points[:, 0]].transpose(0, 2, 3, 1))
