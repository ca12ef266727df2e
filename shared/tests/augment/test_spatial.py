from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from dart_core.augment.spatial import centre_crop, mirror, rotate_and_scale


def smooth(*shape: int) -> Tensor:
    noise = np.random.default_rng(0).standard_normal(shape)
    blurred = ndimage.gaussian_filter(noise, [0] * (len(shape) - 2) + [3, 3])
    return torch.from_numpy(blurred / blurred.std())


def regions(*shape: int) -> Tensor:
    """Label maps with regions of -1, 0, 1 and 2."""
    return torch.bucketize(smooth(*shape), torch.tensor([-1.0, 0.0, 1.0]).double()) - 1


def source_of(patch: tuple[int, int], size: tuple[int, int], angle: float, scale: float) -> np.ndarray:
    """Coordinates as nnU-Net makes them: a zero-centred mesh times a rotation matrix times the scale, plus the centre."""
    mesh = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in patch), indexing="ij"))
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    coordinates = np.dot(mesh.reshape(2, -1).T, rotation).T.reshape(mesh.shape) * scale
    return coordinates + np.array([n / 2 - 0.5 for n in size])[:, None, None]


CASES = [(0.0, 1.0), (0.4, 1.0), (0.0, 1.4), (0.0, 0.7), (-2.9, 1.33), (1.7, 0.81)]


@pytest.mark.parametrize(("size", "patch"), [((60, 50), (48, 40)), ((41, 64), (40, 33)), ((30, 30), (30, 30))])
def test_images_are_interpolated_as_scipy_does(size: tuple[int, int], patch: tuple[int, int]) -> None:
    x, y = smooth(len(CASES), 2, *size), regions(len(CASES), *size)
    angle, scale = torch.tensor(CASES, dtype=torch.float64).T
    result, _ = rotate_and_scale(x, y, patch, angle, scale)
    single, _ = rotate_and_scale(x.float(), y, patch, angle, scale)
    assert (result.dtype, single.dtype) == (torch.float64, torch.float32)
    assert result.shape == (len(CASES), 2, *patch)
    for i, case in enumerate(CASES):
        coordinates = source_of(patch, size, *case)
        # A pixel that falls on the border itself is inside for us and, by rounding, inside or outside for SciPy.
        settled = np.ones(patch, dtype=bool)
        for axis in (0, 1):
            for border in (0, size[axis] - 1):
                settled &= np.abs(coordinates[axis] - border) > 2e-3
        for channel in range(2):
            expected = ndimage.map_coordinates(x[i, channel].numpy(), coordinates, order=3, mode="constant", cval=0)
            np.testing.assert_allclose(result[i, channel].numpy()[settled], expected[settled], rtol=0, atol=1e-10)
            np.testing.assert_allclose(single[i, channel].numpy()[settled], expected[settled], rtol=0, atol=5e-5)


@pytest.mark.parametrize(("size", "patch"), [((60, 50), (48, 40)), ((41, 64), (40, 33))])
@pytest.mark.parametrize("dtype", [torch.int8, torch.int64])
def test_labels_are_the_largest_of_the_interpolated_indicators(
    size: tuple[int, int], patch: tuple[int, int], dtype: torch.dtype
) -> None:
    x, y = smooth(len(CASES), 1, *size), regions(len(CASES), *size)
    angle, scale = torch.tensor(CASES, dtype=torch.float64).T
    _, result = rotate_and_scale(x, y.to(dtype), patch, angle, scale)
    assert result.dtype == dtype
    for i, case in enumerate(CASES):
        coordinates = source_of(patch, size, *case)
        shares = np.stack(
            [
                ndimage.map_coordinates((y[i] == c).double().numpy(), coordinates, order=1, cval=-1)
                for c in (-1, 0, 1, 2)
            ]
        )
        outside = shares.max(0) < 0
        assert (result[i].numpy()[outside] == -1).all()
        chosen = np.take_along_axis(shares, result[i].numpy()[None].astype(np.int64) + 1, 0)[0]
        assert (chosen[~outside] >= shares.max(0)[~outside] - 1e-9).all()


def test_equal_shares_go_to_the_lower_label() -> None:
    # Half a pixel off in both directions: four pixels with a quarter each, two labels of two pixels.
    y = torch.tensor([[[2, 1], [1, 2]], [[0, 3], [-1, 5]], [[4, 4], [1, 0]]])
    _, result = rotate_and_scale(torch.zeros(3, 1, 2, 2), y, (1, 1), torch.zeros(3), torch.ones(3))
    assert result.flatten().tolist() == [1, -1, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_quarter_turns_move_pixels(turns: int, dtype: torch.dtype) -> None:
    x, y = torch.randn(2, 3, 21, 21, dtype=dtype), torch.randint(-1, 4, (2, 21, 21))
    angle = torch.full((2,), turns * math.pi / 2, dtype=torch.float64)
    images, labels = rotate_and_scale(x, y, (21, 21), angle, torch.ones(2))
    torch.testing.assert_close(
        images, torch.rot90(x, turns, (-2, -1)), rtol=0, atol=1e-12 if dtype == torch.float64 else 2e-4
    )
    assert torch.equal(labels, torch.rot90(y, turns, (-2, -1)))


def test_zooming_out_shows_the_outside() -> None:
    x, y = torch.ones(1, 1, 20, 20), torch.ones(1, 20, 20, dtype=torch.int64)
    images, labels = rotate_and_scale(x, y, (20, 20), torch.zeros(1), torch.full((1,), 1.25))
    # offsets -9.5 * 1.25 ... 9.5 * 1.25 around 9.5: pixels 2 to 17 lie inside, the others 0 and -1
    inside = torch.zeros(20, 20, dtype=torch.bool)
    inside[2:18, 2:18] = True
    torch.testing.assert_close(images[0, 0], inside.float(), rtol=0, atol=1e-6)
    assert torch.equal(labels[0], torch.where(inside, 1, -1))


@pytest.mark.parametrize("scale", [0.7, 1.3])
def test_linear_images_stay_linear(scale: float) -> None:
    # Far from the mirrored border a cubic spline reproduces a ramp.
    size, patch = 120, (41, 41)
    ramp = torch.arange(size, dtype=torch.float64)[:, None] * 2 - torch.arange(size, dtype=torch.float64)
    angle = torch.tensor([0.3], dtype=torch.float64)
    images, _ = rotate_and_scale(
        ramp[None, None], ramp[None].long(), patch, angle, torch.tensor([scale], dtype=torch.float64)
    )
    y, x = source_of(patch, (size, size), 0.3, scale)
    np.testing.assert_allclose(images[0, 0].numpy(), 2 * y - x, atol=1e-9)


def test_samples_do_not_see_each_other() -> None:
    x, y = smooth(3, 2, 30, 28), regions(3, 30, 28)
    angle, scale = torch.tensor([0.3, 2.0, -1.0]), torch.tensor([1.2, 0.8, 1.0])
    images, labels = rotate_and_scale(x, y, (24, 20), angle, scale)
    for i in range(3):
        one, label = rotate_and_scale(x[i : i + 1], y[i : i + 1], (24, 20), angle[i : i + 1], scale[i : i + 1])
        torch.testing.assert_close(one[0], images[i], rtol=0, atol=1e-12)
        assert torch.equal(label[0], labels[i])


@pytest.mark.parametrize(
    ("size", "patch", "start"), [((10, 9), (4, 4), (3, 2)), ((5, 5), (5, 2), (0, 1)), ((8, 8), (8, 8), (0, 0))]
)
def test_centre_crop(size: tuple[int, int], patch: tuple[int, int], start: tuple[int, int]) -> None:
    x, y = torch.randn(2, 3, *size), torch.randint(-1, 4, (2, *size))
    images, labels = centre_crop(x, y, patch)
    window = (slice(start[0], start[0] + patch[0]), slice(start[1], start[1] + patch[1]))
    assert torch.equal(images, x[(..., *window)])
    assert torch.equal(labels, y[(..., *window)])


def test_mirror() -> None:
    x, y = torch.randn(4, 2, 5, 6), torch.randint(-1, 4, (4, 5, 6))
    flips = torch.tensor([[False, False], [True, False], [False, True], [True, True]])
    images, labels = mirror(x, y, flips)
    for i, axes in enumerate([(), (-2,), (-1,), (-2, -1)]):
        assert torch.equal(images[i], x[i].flip(axes))
        assert torch.equal(labels[i], y[i].flip(axes))
    again = mirror(images, labels, flips)
    assert torch.equal(again[0], x)
    assert torch.equal(again[1], y)
