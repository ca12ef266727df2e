from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dart_core.metrics import average_surface_distance, surface_dice
from dart_core.metrics.surface import _element_areas

SPACINGS = {2: [(1.0, 1.0), (0.7, 1.3)], 3: [(1.0, 1.0, 1.0), (1.0, 0.95, 0.95), (3.0, 0.4, 0.9)]}


def random_pair(rng: np.random.Generator, axes: int) -> tuple[np.ndarray, np.ndarray]:
    """Two overlapping random masks, smooth or noisy, some of them touching the border of the array."""
    shape = tuple(int(size) for size in rng.integers(3, 14, axes))
    field = rng.random(shape)
    if rng.random() < 0.6:
        for axis in range(axes):
            field = field + np.roll(field, 1, axis) + np.roll(field, -1, axis)
    pred = field > np.quantile(field, rng.uniform(0.1, 0.9))
    truth = np.roll(pred, int(rng.integers(-2, 3)), int(rng.integers(axes)))
    return pred, truth ^ (rng.random(shape) < rng.choice([0.0, 0.05, 0.3]))


def cube(shift: int = 0) -> np.ndarray:
    mask = np.zeros((20, 20, 20), bool)
    mask[5 + shift : 13 + shift, 5:13, 5:13] = True
    return mask


# Surface Dice


def test_cube_shifted_by_one_voxel() -> None:
    assert surface_dice(cube(), cube(), (1, 1, 1), 0) == 1.0
    assert surface_dice(cube(), cube(1), (1, 1, 1), 1.0) == 1.0
    assert surface_dice(cube(), cube(1), (1, 1, 1), 0.5) == pytest.approx(0.66585, abs=5e-6)
    assert surface_dice(cube(), cube(1), (2, 1, 1), 1.9) < 1.0
    assert surface_dice(cube(), cube(1), (2, 1, 1), 2.0) == 1.0


def test_single_voxels() -> None:
    first, neighbour, far = (np.zeros((9, 3, 3)) for _ in range(3))
    first[1, 1, 1] = neighbour[2, 1, 1] = far[8, 1, 1] = 1
    assert surface_dice(first, neighbour, (1, 1, 1), 0.5) == 0.5
    assert surface_dice(first, neighbour, (1, 1, 1), 1.0) == 1.0
    assert surface_dice(first, far, (1, 1, 1), 1.0) == 0.0
    assert surface_dice(first, far, (1, 1, 1), math.inf) == 1.0


def test_2d_square_shifted_by_one_pixel() -> None:
    square, shifted = np.zeros((12, 12)), np.zeros((12, 12))
    square[3:7, 3:7] = shifted[4:8, 3:7] = 1
    # Contour of a 4 x 4 square: four corners of sqrt(2)/2 and twelve pieces of 1. Of each contour, the other one meets on
    # either side along the shift three pieces and one corner.
    length = 4 * math.sqrt(2) / 2 + 12
    common = 2 * (3 + math.sqrt(2) / 2)
    assert surface_dice(square, shifted, (1, 1), 0) == pytest.approx(common / length)
    assert surface_dice(square, shifted, (1, 1), 1) == 1.0


def test_empty_masks() -> None:
    empty, filled = np.zeros((4, 4, 4)), np.ones((4, 4, 4))
    assert math.isnan(surface_dice(empty, empty, (1, 1, 1), 1))
    assert surface_dice(empty, filled, (1, 1, 1), 1) == 0.0
    assert surface_dice(filled, empty, (1, 1, 1), math.inf) == 0.0


@pytest.mark.parametrize("axes", [2, 3])
def test_agrees_with_the_reference_package(axes: int) -> None:
    reference = pytest.importorskip("surface_distance")
    rng = np.random.default_rng(axes)
    compared = 0
    for _ in range(60):
        pred, truth = random_pair(rng, axes)
        if not pred.any() or not truth.any():
            continue
        spacing = SPACINGS[axes][int(rng.integers(len(SPACINGS[axes])))]
        # Multiples of the spacing are where "<=" decides.
        tolerance = float(rng.choice([0.0, 0.5, 1.0, spacing[0], 2 * spacing[-1], 1.7]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            distances = reference.compute_surface_distances(truth, pred, spacing)
            expected = reference.compute_surface_dice_at_tolerance(distances, tolerance)
        assert surface_dice(pred, truth, spacing, tolerance) == pytest.approx(expected, rel=1e-12, abs=1e-12)
        compared += 1
    assert compared > 50


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.7, 1.3), (1.0, 1.0, 1.0), (3.0, 0.4, 0.9)])
def test_element_areas_agree_with_the_reference_package(spacing: tuple[float, ...]) -> None:
    tables = pytest.importorskip("surface_distance.lookup_tables")
    make = {
        2: tables.create_table_neighbour_code_to_contour_length,
        3: tables.create_table_neighbour_code_to_surface_area,
    }
    np.testing.assert_allclose(_element_areas(spacing), make[len(spacing)](spacing), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("spacing", [(0.7, 1.3), (3.0, 0.4, 0.9)])
def test_element_areas_agree_with_monai(spacing: tuple[float, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        utils = pytest.importorskip("monai.metrics.utils")
    table, _ = utils.get_code_to_measure_table(spacing)
    np.testing.assert_allclose(_element_areas(spacing), table.numpy(), rtol=1e-6)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.sampled_from([2, 3]), st.floats(0, 4))
def test_surface_dice_properties(seed: int, axes: int, tolerance: float) -> None:
    rng = np.random.default_rng(seed)
    pred, truth = random_pair(rng, axes)
    if not pred.any() or not truth.any():
        return
    spacing = SPACINGS[axes][-1]
    value = surface_dice(pred, truth, spacing, tolerance)
    assert 0 <= value <= 1 + 1e-12
    assert value == pytest.approx(surface_dice(truth, pred, spacing, tolerance))
    assert value <= surface_dice(pred, truth, spacing, tolerance + 0.5) + 1e-12
    # Neither a frame of background nor a mirror image changes anything.
    assert value == pytest.approx(surface_dice(np.pad(pred, 3), np.pad(truth, 3), spacing, tolerance))
    assert value == pytest.approx(surface_dice(np.flip(pred, 0), np.flip(truth, 0), spacing, tolerance))


# Average surface distance


def brute_force_distances(pred: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Distance of every surface voxel of pred to the nearest of truth, from the definition."""

    def surface(mask: np.ndarray) -> np.ndarray:
        points = []
        for index in itertools.product(*map(range, mask.shape)):
            if not mask[index]:
                continue
            for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
                neighbour = list(index)
                neighbour[axis] += step
                if not 0 <= neighbour[axis] < mask.shape[axis] or not mask[tuple(neighbour)]:
                    points.append(index)
                    break
        return np.array(points) * np.array(spacing)

    difference = surface(pred)[:, None] - surface(truth)[None]
    return np.sqrt((difference**2).sum(-1)).min(1)


@pytest.mark.parametrize("axes", [2, 3])
def test_average_surface_distance_agrees_with_brute_force(axes: int) -> None:
    rng = np.random.default_rng(10 + axes)
    for _ in range(15):
        pred, truth = random_pair(rng, axes)
        if not pred.any() or not truth.any():
            continue
        spacing = SPACINGS[axes][int(rng.integers(len(SPACINGS[axes])))]
        there, back = brute_force_distances(pred, truth, spacing), brute_force_distances(truth, pred, spacing)
        assert average_surface_distance(pred, truth, spacing) == pytest.approx(there.mean(), abs=1e-12)
        pooled = np.concatenate([there, back]).mean()
        assert average_surface_distance(pred, truth, spacing, symmetric=True) == pytest.approx(pooled, abs=1e-12)


def test_average_surface_distance_is_directed_and_in_mm() -> None:
    small, large = np.zeros((1, 9)), np.zeros((1, 9))
    small[0, 4] = 1
    large[0, 2:9] = 1  # one row: every voxel has a neighbour outside the array, so all seven are surface
    assert average_surface_distance(small, large, (1, 0.5)) == 0.0
    steps = [2, 1, 0, 1, 2, 3, 4]
    assert average_surface_distance(large, small, (1, 0.5)) == pytest.approx(0.5 * sum(steps) / 7)
    assert average_surface_distance(large, small, (1, 0.5), symmetric=True) == pytest.approx(0.5 * sum(steps) / 8)


def test_shifted_cube_has_distances_up_to_the_spacing() -> None:
    identical = average_surface_distance(cube(), cube(), (2, 1, 1))
    once, twice = (average_surface_distance(cube(), cube(1), (k, k, k)) for k in (1, 2))
    assert identical == 0.0
    assert 0 < once < 1
    assert twice == pytest.approx(2 * once)


def test_average_surface_distance_of_empty_masks() -> None:
    empty, filled = np.zeros((4, 4)), np.ones((4, 4))
    for pred, truth in ((empty, empty), (empty, filled), (filled, empty)):
        assert math.isnan(average_surface_distance(pred, truth, (1, 1)))


# Both


def test_tensors_and_plain_floats() -> None:
    pred, truth = torch.from_numpy(cube()), torch.from_numpy(cube(1)).to(torch.uint8)
    for result, expected in (
        (surface_dice(pred, truth, (1, 1, 1), 0.5), surface_dice(cube(), cube(1), (1, 1, 1), 0.5)),
        (average_surface_distance(pred, truth, (1, 1, 1)), average_surface_distance(cube(), cube(1), (1, 1, 1))),
    ):
        assert type(result) is float
        assert result == expected


@pytest.mark.parametrize(
    "axes_and_spacing", [(3, (1, 1)), (2, (1, 1, 1)), (2, (1, 0)), (2, (1, -1)), (2, (1, math.nan))]
)
def test_bad_spacing(axes_and_spacing: tuple[int, tuple[float, ...]]) -> None:
    axes, spacing = axes_and_spacing
    mask = np.ones((3,) * axes)
    with pytest.raises(ValueError, match="spacing"):
        surface_dice(mask, mask, spacing, 1)
    with pytest.raises(ValueError, match="spacing"):
        average_surface_distance(mask, mask, spacing)


@pytest.mark.parametrize("tolerance", [-1, math.nan])
def test_bad_tolerance(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance"):
        surface_dice(np.ones((3, 3)), np.ones((3, 3)), (1, 1), tolerance)


def test_bad_masks() -> None:
    with pytest.raises(ValueError, match=r"2-D or 3-D"):
        surface_dice(np.ones(4), np.ones(4), (1,), 1)
    with pytest.raises(ValueError, match=r"shape \(3, 3\), truth \(3, 4\)"):
        average_surface_distance(np.ones((3, 3)), np.ones((3, 4)), (1, 1))
    with pytest.raises(ValueError, match=r"pred holds 0\.3"):
        surface_dice(np.full((3, 3), 0.3), np.ones((3, 3)), (1, 1), 1)
