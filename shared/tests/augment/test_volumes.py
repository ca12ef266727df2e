"""nnU-Net's augmentation of 3-D patches, against SciPy and against what is known without computing."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.transform import resize

from dart_core.augment import intensity, spatial
from dart_core.augment.nnunet import Recipe, augment, loader_patch_size

OFF = Recipe(**{field.name: 0.0 for field in dataclasses.fields(Recipe) if field.name.endswith("_probability")})


def batch(n: int = 2, channels: int = 2, size: tuple[int, int, int] = (9, 12, 10), dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n, channels, *size, generator=generator, dtype=dtype)
    return images, torch.randint(-1, 3, (n, *size), generator=generator)


def rotate(images, labels, patch, angles, scale):
    turns, scales = (torch.tensor(values, dtype=torch.float64) for values in (angles, scale))
    return spatial.rotate_and_scale_volumes(images, labels, patch, turns, scales)


def test_rotation_and_scale_as_scipy_reads_them():
    images, labels = batch()
    angles, scale = [[0.3, -0.2, 0.5], [0.0, 0.4, -0.1]], [1.2, 0.8]
    patch = (6, 8, 7)
    found, found_labels = rotate(images, labels, patch, angles, scale)
    for i in range(2):
        turn = np.eye(3)
        for axis, (a, b) in enumerate(((1, 2), (2, 0), (0, 1))):
            one = np.eye(3)
            one[a, a] = one[b, b] = math.cos(angles[i][axis])
            one[a, b], one[b, a] = -math.sin(angles[i][axis]), math.sin(angles[i][axis])
            turn = turn @ one
        grid = np.stack(np.meshgrid(*(np.arange(p) - (p - 1) / 2 for p in patch), indexing="ij"), -1)
        places = np.moveaxis(scale[i] * grid @ turn + [(s - 1) / 2 for s in images.shape[2:]], -1, 0)
        inside = np.all([(c >= 0) & (c <= s - 1) for c, s in zip(places, images.shape[2:], strict=True)], 0)
        for channel in range(2):
            expected = ndimage.map_coordinates(images[i, channel].numpy(), places, order=3, mode="mirror")
            np.testing.assert_allclose(found[i, channel].numpy()[inside], expected[inside], atol=1e-9)
        assert not found[i, 0].numpy()[~inside].any()
        assert (found_labels[i].numpy()[~inside] == -1).all()
        values = np.arange(-1, 3)
        votes = [ndimage.map_coordinates((labels[i].numpy() == v).astype(float), places, order=1) for v in values]
        np.testing.assert_array_equal(found_labels[i].numpy()[inside], values[np.argmax(votes, 0)][inside])


def test_a_quarter_turn():
    images, labels = batch(n=1, size=(7, 8, 8))
    found, found_labels = rotate(images, labels, (7, 8, 8), [[math.pi / 2, 0.0, 0.0]], [1.0])
    turned = [torch.rot90(images, k, (-2, -1)) for k in (1, 3)]
    k = int(torch.allclose(found, turned[1], atol=1e-9))
    torch.testing.assert_close(found, turned[k])
    assert torch.equal(found_labels, torch.rot90(labels, (1, 3)[k], (-2, -1)))


def test_size_to_load():
    assert loader_patch_size((40, 56, 40)) == tuple(
        int(side / 0.85)
        for side in (
            40 * math.cos(math.pi / 6) + 56 * 0.5, 56 * math.cos(math.pi / 6) + 40 * 0.5, 40 * math.cos(math.pi / 6) + 40 * 0.5,
        )
    )  # fmt: skip


def test_nothing_drawn_is_the_centre_crop():
    images, labels = batch()
    x, y = augment(images, labels, (6, 8, 7), torch.Generator().manual_seed(0), OFF)
    assert torch.equal(x, images[..., 1:7, 2:10, 1:8])
    assert torch.equal(y, labels[..., 1:7, 2:10, 1:8].clamp(min=0))


def test_the_whole_recipe_is_a_function_of_the_generator():
    images, labels = batch(n=6, dtype=torch.float32)
    always = dataclasses.replace(
        Recipe(), **{field.name: 0.7 for field in dataclasses.fields(Recipe) if field.name.endswith("_probability")}
    )
    one, two = (augment(images, labels, (6, 8, 7), torch.Generator().manual_seed(3), always) for _ in range(2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert torch.isfinite(one[0]).all()
    assert one[0].shape == (6, 2, 6, 8, 7)
    assert one[1].min() >= 0
    other = augment(images, labels, (6, 8, 7), torch.Generator().manual_seed(4), always)
    assert not torch.equal(one[0], other[0])


def test_mirror():
    images, labels = batch(n=1)
    x, y = spatial.mirror(images, labels, torch.tensor([[True, False, True]]))
    assert torch.equal(x, images.flip((-3, -1)))
    assert torch.equal(y, labels.flip((-3, -1)))


def test_grey_values_of_volumes():
    x = batch()[0]
    sigma = torch.tensor([[0.6, 0.9], [0.5, 1.0]])
    blurred = intensity.gaussian_blur(x, sigma, axes=3)
    np.testing.assert_allclose(blurred[1, 0], ndimage.gaussian_filter(x[1, 0].numpy(), 0.5), atol=1e-9)
    for function, value in ((intensity.contrast, 1.2), (intensity.gamma, 0.8), (intensity.brightness, 1.1)):
        values = torch.full((2, 2), value)
        # a volume is one image, however it is folded
        folded = function(x.flatten(2, 3), values).view_as(x)
        torch.testing.assert_close(function(x, values, axes=3), folded)


@pytest.mark.parametrize("zoom", [0.5, 0.8, 1.0])
def test_low_resolution_of_volumes(zoom):
    x = batch()[0]
    found = intensity.low_resolution(x, torch.full((2, 2), zoom), axes=3)
    shape = [round(side * zoom) for side in x.shape[2:]]
    coarse = resize(x[0, 0].numpy(), shape, 0, mode="edge", anti_aliasing=False)
    expected = resize(coarse, x.shape[2:], 3, mode="edge", anti_aliasing=False, clip=True)
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-6)
