from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dart_core.augment import spatial
from dart_core.augment.nnunet import Recipe, augment, loader_patch_size

OFF = Recipe(**{field.name: 0.0 for field in dataclasses.fields(Recipe) if field.name.endswith("_probability")})


def on(**settings: object) -> Recipe:
    """Only what is named happens, to every channel of every sample."""
    names = {f"{name}_channel_probability": 1.0 for name in ("blur", "low_resolution")}
    return dataclasses.replace(OFF, **names, **settings)  # type: ignore[arg-type]


def batch(
    n: int = 4, channels: int = 2, size: tuple[int, int] = (30, 28), dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n, channels, *size, generator=generator, dtype=dtype)
    return images, torch.randint(-1, 3, (n, *size), generator=generator)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("patch", "loaded"),
    [((256, 256), (301, 301)), ((320, 320), (376, 376)), ((224, 256), (301, 301)), ((34, 17), (40, 40))],
)
def test_loader_patch_size(patch: tuple[int, int], loaded: tuple[int, int]) -> None:
    # specification adagrad-unet 2.4
    assert loader_patch_size(patch) == loaded


@pytest.mark.parametrize("nonzero_mask", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_drawn_is_the_centre_crop(dtype: torch.dtype, nonzero_mask: bool) -> None:
    images, labels = batch(dtype=dtype)
    kept = images.clone(), labels.clone()
    x, y = augment(images, labels, (20, 19), seeded(), OFF, nonzero_mask)
    cropped, crop_labels = spatial.centre_crop(images, labels, (20, 19))
    expected = torch.where((crop_labels < 0)[:, None], 0, cropped) if nonzero_mask else cropped
    assert x.dtype == dtype
    assert torch.equal(x, expected)
    assert torch.equal(y, crop_labels.clamp(min=0))
    assert torch.equal(images, kept[0])
    assert torch.equal(labels, kept[1])
    x += 1
    y += 1
    assert torch.equal(images, kept[0])
    assert torch.equal(labels, kept[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("label_type", [torch.int8, torch.int16, torch.int64])
def test_same_generator_same_result(dtype: torch.dtype, label_type: torch.dtype) -> None:
    images, labels = batch(n=16, dtype=dtype)
    labels = labels.to(label_type)
    x, y = augment(images, labels, (24, 20), seeded(5))
    again = augment(images, labels, (24, 20), seeded(5))
    assert torch.equal(x, again[0])
    assert torch.equal(y, again[1])
    assert (x.dtype, y.dtype) == (dtype, label_type)
    assert x.shape == (16, 2, 24, 20)
    assert y.shape == (16, 24, 20)
    assert bool(torch.isfinite(x).all())
    assert int(y.min()) >= 0
    other = augment(images, labels, (24, 20), seeded(6))
    assert not torch.equal(x, other[0])


def test_without_a_generator_the_global_one_draws() -> None:
    images, labels = batch()
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(augment(images, labels, (24, 20)))
    assert torch.equal(results[0][0], results[1][0])
    assert not torch.equal(augment(images, labels, (24, 20))[0], results[0][0])


def test_samples_get_draws_of_their_own() -> None:
    # Twelve copies of one sample come out different, and so do the channels of a sample where the recipe says so.
    images, labels = batch(n=1, channels=1)
    images, labels = images.expand(12, 3, -1, -1), labels.expand(12, -1, -1)
    for name in (
        "rotation",
        "scale",
        "noise",
        "blur",
        "brightness",
        "contrast",
        "low_resolution",
        "gamma",
        "inverted_gamma",
    ):
        x, _ = augment(images, labels, (24, 20), seeded(), on(**{f"{name}_probability": 1.0}))
        flat = x.flatten(2)
        assert len({tuple(row.tolist()) for row in flat[:, 0]}) >= (6 if name == "low_resolution" else 12), name
        if name in ("rotation", "scale"):
            assert torch.equal(flat[:, 0], flat[:, 1])
        else:
            assert not torch.equal(flat[:, 0], flat[:, 1])


def moments(values: Tensor) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def test_noise_has_a_standard_deviation_below_a_tenth() -> None:
    images, labels = torch.zeros(400, 2, 32, 32), torch.zeros(400, 32, 32, dtype=torch.int64)
    x, _ = augment(images, labels, (32, 32), seeded(), on(noise_probability=1.0))
    std = x.std((-2, -1), correction=0)
    assert moments(std) == pytest.approx((0, 0.1), abs=5e-3)
    # uniform: mean 0.05; one standard deviation for all channels of a sample
    assert float(std.mean()) == pytest.approx(0.05, abs=3e-3)
    assert float((std[:, 0] / std[:, 1]).log().abs().median()) < 0.05
    rare, _ = augment(images, labels, (32, 32), seeded(), on(noise_probability=0.1))
    changed = (rare != 0).flatten(1).any(1)
    assert 20 <= int(changed.sum()) <= 60


def test_brightness_and_contrast_stay_in_their_ranges() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(400, 2, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.zeros(400, 8, 8, dtype=torch.int64)
    x, _ = augment(images, labels, (8, 8), seeded(), on(brightness_probability=1.0))
    factor = (x / images)[..., 0, 0]
    assert moments(factor) == pytest.approx((0.75, 1.25), abs=5e-3)
    assert float(factor.mean()) == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(x, images * factor[..., None, None])

    x, _ = augment(images, labels, (8, 8), seeded(), on(contrast_probability=1.0))
    mean = images.mean((-2, -1), keepdim=True)
    middle = (images - mean).abs().flatten(2).argmin(-1, keepdim=True)  # never cut
    ratio = ((x - mean).flatten(2).gather(2, middle) / (images - mean).flatten(2).gather(2, middle))[..., 0]
    assert moments(ratio) == pytest.approx((0.75, 1.25), abs=5e-3)
    assert float((ratio < 1).double().mean()) == pytest.approx(0.5, abs=0.06)
    assert bool((x.amax((-2, -1)) <= images.amax((-2, -1))).all())


def test_scale_and_angle_stay_in_their_ranges() -> None:
    # A bright ramp tells both: its gradient is scale * (cos, sin).
    n = 200
    ramp = torch.arange(120.0, dtype=torch.float64)[:, None].expand(120, 120)
    images, labels = ramp.expand(n, 1, -1, -1), torch.zeros(n, 120, 120, dtype=torch.int64)

    def found(recipe: Recipe, patch: tuple[int, int]) -> tuple[Tensor, Tensor]:
        x, _ = augment(images, labels, patch, seeded(), recipe)
        middle = x[:, 0, patch[0] // 2 - 1 : patch[0] // 2 + 1, patch[1] // 2 - 1 : patch[1] // 2 + 1]
        down, across = middle[:, 1, 0] - middle[:, 0, 0], middle[:, 0, 1] - middle[:, 0, 0]
        return torch.hypot(down, across), torch.atan2(across, down) * 180 / math.pi

    scale, angle = found(on(scale_probability=1.0), (40, 40))
    assert moments(scale) == pytest.approx((0.7, 1.4), abs=0.02)
    assert float((scale < 1).double().mean()) == pytest.approx(0.5, abs=0.1)
    assert float(angle.abs().max()) < 1e-6
    scale, angle = found(on(rotation_probability=1.0), (40, 40))
    np.testing.assert_allclose(scale.numpy(), 1, atol=1e-9)
    assert moments(angle) == pytest.approx((-180, 180), abs=10)
    _, angle = found(on(rotation_probability=1.0), (60, 39))  # elongated
    assert moments(angle) == pytest.approx((-15, 15), abs=1)
    _, angle = found(on(rotation_probability=1.0), (60, 40))  # exactly 1.5 is not
    assert float(angle.abs().max()) > 90
    scale, angle = found(dataclasses.replace(OFF, rotation_probability=0.2, scale_probability=0.2), (40, 40))
    rotated, scaled = angle.abs() > 1e-6, (scale - 1).abs() > 1e-6
    for chosen, expected in ((rotated, 0.2), (scaled, 0.2), (rotated & scaled, 0.04)):
        share = float(chosen.double().mean())
        assert share == pytest.approx(expected, abs=3.5 * math.sqrt(expected * (1 - expected) / n))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("blur", (0.2, 0.5)),
        ("brightness", (0.15, 1.0)),
        ("contrast", (0.15, 1.0)),
        ("low_resolution", (0.25, 0.5)),
        ("inverted_gamma", (0.1, 1.0)),
        ("gamma", (0.3, 1.0)),
    ],
)
def test_how_often_channels_change(name: str, expected: tuple[float, float]) -> None:
    n = 1500
    images = torch.randn(n, 2, 12, 12, generator=seeded(3))
    labels = torch.zeros(n, 12, 12, dtype=torch.int64)
    probabilities = {
        field.name: field.default
        for field in dataclasses.fields(Recipe)
        if field.name in (f"{name}_probability", f"{name}_channel_probability")
    }
    x, _ = augment(images, labels, (12, 12), seeded(4), dataclasses.replace(OFF, **probabilities))
    changed = (x != images).flatten(2).any(2)
    per_sample, per_channel = expected
    for share, p in (
        (changed[:, 0], per_sample * per_channel),
        (changed.all(1), per_sample * per_channel**2),
    ):
        assert float(share.double().mean()) == pytest.approx(p, abs=3.5 * math.sqrt(p * (1 - p) / n))


def test_mirroring_each_axis_half_the_time() -> None:
    n = 400
    images = torch.arange(6.0).view(1, 1, 2, 3).expand(n, 1, 2, 3)
    labels = torch.arange(6).view(1, 2, 3).expand(n, 2, 3)
    x, y = augment(images, labels, (2, 3), seeded(), on(mirror_probability=0.5))
    assert torch.equal(x[:, 0].long(), y)
    kinds = {(0, 1, 2, 3, 4, 5), (3, 4, 5, 0, 1, 2), (2, 1, 0, 5, 4, 3), (5, 4, 3, 2, 1, 0)}
    rows = [tuple(row) for row in y.flatten(1).tolist()]
    assert set(rows) == kinds
    for kind in kinds:
        assert rows.count(kind) == pytest.approx(100, abs=31)


def test_outside_of_a_rotated_scan_is_background() -> None:
    images, labels = torch.ones(20, 1, 20, 20), torch.ones(20, 20, 20, dtype=torch.int64)
    recipe = on(scale_probability=1.0, scale=(1.2, 1.4), noise_probability=1.0)
    recipe = dataclasses.replace(recipe, scale=(1.0, 1.4))
    plain, y = augment(images, labels, (20, 20), seeded(), recipe)
    masked, same = augment(images, labels, (20, 20), seeded(), recipe, nonzero_mask=True)
    assert torch.equal(y, same)
    assert set(y.unique().tolist()) == {0, 1}
    # the noise stays outside the mask, unless the scan was normalised within it
    outside = (y == 0)[:, None]
    assert bool((plain[outside] != 0).any())
    assert bool((masked[outside] == 0).all())
    assert torch.equal(masked[~outside], plain[~outside])


@pytest.mark.parametrize(
    ("images", "labels", "patch", "message"),
    [
        (torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.int64), (4, 4), r"the labels \(2, 1, 8, 8\)"),
        (torch.zeros(2, 8, 8), torch.zeros(2, 8, 8, dtype=torch.int64), (4, 4), r"images have shape \(2, 8, 8\)"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 7, dtype=torch.int64), (4, 4), r"the labels \(2, 8, 7\)"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 8, dtype=torch.int64), (9, 4), r"a patch of \(9, 4\)"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 8, dtype=torch.int64), (4,), r"a patch of \(4,\)"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 8, dtype=torch.int64), (0, 4), r"a patch of \(0, 4\)"),
        (torch.zeros(2, 1, 8, 8).half(), torch.zeros(2, 8, 8, dtype=torch.int64), (4, 4), "float32 or float64"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 8, dtype=torch.uint8), (4, 4), "signed integer"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 8), (4, 4), "signed integer"),
    ],
)
def test_bad_input(images: Tensor, labels: Tensor, patch: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        augment(images, labels, patch)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_agrees_with_cpu() -> None:
    images, labels = batch(n=32, dtype=torch.float64)
    expected = augment(images, labels, (24, 20), seeded(1))
    x, y = augment(images.cuda(), labels.cuda(), (24, 20), seeded(1))
    assert (x.device.type, y.device.type) == ("cuda", "cuda")
    torch.testing.assert_close(x.cpu(), expected[0], rtol=0, atol=1e-9)
    assert torch.equal(y.cpu(), expected[1])
    on_device = [
        augment(images.cuda(), labels.cuda(), (24, 20), torch.Generator("cuda").manual_seed(1)) for _ in range(2)
    ]
    assert torch.equal(on_device[0][0], on_device[1][0])
