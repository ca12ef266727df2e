from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as transforms

from dart_core.data.picture_views import (
    CHESTXRAY14,
    IMAGENET,
    ViewRanges,
    crop_view,
    draw_view,
    middle_view,
    normalise,
    random_views,
    resize_to,
    ten_crop,
    ten_crop_scores,
    turn_views,
)


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def view(top: int, left: int, height: int, width: int, flip: float = 0.0, degrees: float = 0.0) -> torch.Tensor:
    return torch.tensor([[top, left, height, width, flip, degrees]], dtype=torch.float32)


# Drawing


@given(st.integers(0, 2**32), st.integers(8, 200), st.integers(8, 200))
def test_drawn_views_lie_in_the_picture_and_in_their_ranges(seed: int, height: int, width: int) -> None:
    top, left, h, w, flip, degrees = draw_view(np.random.default_rng(seed), height, width)
    assert 0 <= top <= height - h
    assert 0 <= left <= width - w
    assert min(h, w) >= 1
    assert flip in (0, 1)
    assert abs(degrees) <= 7
    # Rounding to whole pixels moves area and ratio by half a pixel at most.
    assert (h + 0.5) * (w + 0.5) >= 0.08 * height * width * 0.99 or max(height / width, width / height) > 4 / 3
    assert (w - 0.5) / (h + 0.5) <= 4 / 3
    assert (w + 0.5) / (h - 0.5) >= 3 / 4


def test_drawn_parts_are_distributed_as_those_of_torchvision() -> None:
    rng = np.random.default_rng(0)
    ours = np.array([draw_view(rng, 90, 120)[:4] for _ in range(4000)])
    torch.manual_seed(0)
    picture = torch.zeros(1, 90, 120)
    crop = v2.RandomResizedCrop(8, antialias=True)
    drawn = [crop.make_params([picture]) for _ in range(4000)]
    theirs = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in drawn])
    # Means of 4,000 draws of each: standard error of their difference.
    error = np.sqrt((ours.var(0) + theirs.var(0)) / 4000)
    assert (abs(ours.mean(0) - theirs.mean(0)) < 4 * error).all()
    assert np.allclose(ours.std(0), theirs.std(0), rtol=0.06)


def test_flips_and_angles_are_uniform() -> None:
    rng = np.random.default_rng(1)
    drawn = np.array([draw_view(rng, 32, 32)[4:] for _ in range(4000)])
    assert drawn[:, 0].mean() == pytest.approx(0.5, abs=0.04)
    assert drawn[:, 1].mean() == pytest.approx(0, abs=0.3)
    assert drawn[:, 1].std() == pytest.approx(14 / np.sqrt(12), rel=0.05)


def test_picture_too_long_for_the_ratio_gives_its_middle() -> None:
    drawn = draw_view(np.random.default_rng(0), 10, 1000, ViewRanges(area=(0.9, 1.0)))
    assert drawn[:4].tolist() == [0, 493, 10, 13]


# Carrying out


@pytest.mark.parametrize("box", [(0, 0, 37, 53), (3, 5, 30, 20), (10, 0, 8, 9), (36, 52, 1, 1)])
@pytest.mark.parametrize("size", [16, 48])
def test_batched_crop_is_that_of_torchvision(box: tuple[int, int, int, int], size: int) -> None:
    images = pictures(2, 3, 37, 53).double()
    found = random_views(images, view(*box).repeat(2, 1), size)
    expected = transforms.resized_crop(images, *box, [size, size], antialias=True)
    assert torch.allclose(found, expected, atol=1e-12)


def test_single_crop_is_the_batched_one() -> None:
    images = (pictures(3, 3, 40, 50) * 255).byte()
    drawn = [draw_view(np.random.default_rng(i), 40, 50, ViewRanges(flip=0, degrees=0)) for i in range(3)]
    single = torch.stack([crop_view(image, one, 24) for image, one in zip(images, drawn, strict=True)])
    batch = random_views(images, torch.from_numpy(np.stack(drawn)), 24)
    assert single.dtype == batch.dtype == torch.uint8
    assert (single.int() - batch.int()).abs().max() <= 1  # torchvision resizes 8 bits with whole numbers


@pytest.mark.parametrize("degrees", [-7.0, -3.3, 0.0, 5.1, 7.0, 90.0])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_turned_and_mirrored_as_torchvision_does_in_that_order(degrees: float, flip: float) -> None:
    images = pictures(2, 3, 33, 33)
    found = turn_views(images, view(0, 0, 33, 33, flip, degrees).repeat(2, 1))
    expected = transforms.horizontal_flip(images) if flip else images
    expected = transforms.rotate(expected, degrees)
    # A pixel between two may be read from either, by a rounding.
    assert (found == expected).float().mean() > 0.999


def test_mirroring_alone_is_exact() -> None:
    images = (pictures(3, 3, 8, 8) * 255).byte()
    views = torch.cat([view(0, 0, 8, 8), view(0, 0, 8, 8, 1.0), view(0, 0, 8, 8)])
    found = turn_views(images, views)
    assert torch.equal(found[0], images[0])
    assert torch.equal(found[1], images[1].flip(-1))
    assert torch.equal(found[2], images[2])


def test_each_picture_gets_its_own_view() -> None:
    images = pictures(4, 3, 20, 20)
    drawn = torch.from_numpy(np.stack([draw_view(np.random.default_rng(i), 20, 20) for i in range(4)]))
    together = random_views(images, drawn, 12)
    apart = torch.cat([random_views(images[i : i + 1], drawn[i : i + 1], 12) for i in range(4)])
    assert torch.allclose(together, apart, atol=1e-6)


def test_views_must_match_the_pictures() -> None:
    with pytest.raises(ValueError, match="views"):
        random_views(pictures(2, 3, 8, 8), view(0, 0, 8, 8), 4)


# Validation and test


def test_middle_in_both_forms() -> None:
    image = pictures(3, 60, 90)
    squeezed = middle_view(image, 32, 24)
    assert torch.equal(squeezed, transforms.center_crop(transforms.resize(image, [32, 32]), [24, 24]))
    kept = middle_view(image, 32, 24, keep_aspect=True)
    assert torch.equal(kept, transforms.center_crop(transforms.resize(image, [32]), [24, 24]))
    assert resize_to(image, 32, keep_aspect=True).shape == (3, 32, 48)
    assert not torch.allclose(squeezed, kept)
    with pytest.raises(ValueError, match="does not fit"):
        middle_view(image, 24, 32)


def test_ten_crops_in_the_authors_order() -> None:
    images = pictures(2, 3, 12, 10)
    crops = ten_crop(images, 6)
    assert crops.shape == (2, 10, 3, 6, 6)
    corners = [(0, 0), (0, 4), (6, 0), (6, 4), (3, 2)]
    for k, (top, left) in enumerate(corners):
        assert torch.equal(crops[:, k], images[..., top : top + 6, left : left + 6])
        assert torch.equal(crops[:, k + 5], images.flip(-1)[..., top : top + 6, left : left + 6])
    assert torch.equal(ten_crop(images[0], 6), crops[0])


def test_ten_crops_of_a_symmetric_picture_mirror_each_other() -> None:
    half = pictures(1, 3, 8, 4)
    image = torch.cat([half, half.flip(-1)], -1)
    crops = ten_crop(image, 5)[0]
    for first, second in zip((0, 1, 2, 3, 4), (5, 6, 7, 8, 9), strict=True):
        # The mirror image is the same picture, so that the same five crops come out.
        assert torch.equal(crops[first], crops[second])
    assert torch.equal(crops[0].flip(-1), crops[1])
    assert torch.equal(crops[2].flip(-1), crops[3])


def test_picture_smaller_than_its_crops() -> None:
    with pytest.raises(ValueError, match="no crop of 9 x 9"):
        ten_crop(pictures(1, 3, 8, 12), 9)


def test_probabilities_are_averaged_not_logits() -> None:
    logits = torch.tensor([[[0.0, 4.0], [2.0, -4.0]]], dtype=torch.float64)
    expected = [(0.5 + 1 / (1 + np.exp(-2.0))) / 2, 0.5]
    found = ten_crop_scores(logits)
    assert found.dtype == torch.float64
    assert found[0].tolist() == pytest.approx(expected)
    exclusive = ten_crop_scores(logits, multi_label=False)
    assert float(exclusive.sum()) == pytest.approx(1.0)
    assert float(exclusive[0, 0]) == pytest.approx((1 / (1 + np.exp(4.0)) + 1 / (1 + np.exp(-6.0))) / 2)


def test_normalising() -> None:
    grey = torch.full((2, 3, 4, 4), 51, dtype=torch.uint8)
    assert torch.equal(normalise(grey, None), torch.full((2, 3, 4, 4), 51 / 255))
    for statistics in (IMAGENET, CHESTXRAY14):
        expected = [(0.2 - m) / s for m, s in zip(*statistics, strict=True)]
        assert normalise(grey, statistics)[0, :, 0, 0].tolist() == pytest.approx(expected, rel=1e-5)
    assert normalise(pictures(3, 2, 2).double()).dtype == torch.float64
