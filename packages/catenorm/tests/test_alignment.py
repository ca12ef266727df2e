"""Class-wise alignment (Appendix A; 9.9)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from catenorm import align_class_statistics


def made(seed: int = 0, domains: tuple[int, ...] = (0, 0, 0, 1, 1, 1, 1), classes: int = 3) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=(len(domains), 12, 12))
    images = rng.normal(size=labels.shape) * rng.uniform(0.5, 2, (len(domains), 1, 1))
    images += 3 * labels * rng.uniform(0.5, 2, (len(domains), 1, 1)) + 5 * np.array(domains)[:, None, None]
    return images, labels, np.array(domains)


def moments(images: Any, labels: Any, value: int) -> Any:
    return np.array([(i[la == value].mean(), i[la == value].std()) for i, la in zip(images, labels, strict=True)])


def test_aligned_statistics_are_those_of_the_target() -> None:
    images, labels, domains = made()
    aligned = align_class_statistics(images, labels, domains, 0)
    assert np.array_equal(aligned[domains == 0], images[domains == 0])
    for value in range(3):
        target, own = (moments(a[domains == d], labels[domains == d], value) for a, d in ((images, 0), (aligned, 1)))
        np.testing.assert_allclose(own.mean(0), target.mean(0))
        np.testing.assert_allclose(own.std(0), target.std(0))


def test_one_pixel_by_hand() -> None:
    """Eqs 6 to 12 for a class of two pixels per case."""
    images = np.array([[0.0, 2], [4, 8], [10, 12], [20, 30]])
    labels, domains = np.ones((4, 2), int), [1, 1, 2, 2]
    means, deviations = np.array([1.0, 6, 11, 25]), np.array([1.0, 2, 1, 5])
    mean = (means[0] - means[:2].mean()) / means[:2].std() * means[2:].std() + means[2:].mean()
    deviation = (deviations[0] - deviations[:2].mean()) / deviations[:2].std() * deviations[2:].std() + deviations[
        2:
    ].mean()
    expected = (0 - 1) / 1 * deviation + mean
    assert align_class_statistics(images, labels, domains, 2)[0, 0] == pytest.approx(expected)


@given(a=st.floats(0.1, 10), b=st.floats(-50, 50), seed=st.integers(0, 20))
def test_invariant_to_the_scale_of_a_source_domain(a: float, b: float, seed: int) -> None:
    images, labels, domains = made(seed)
    scaled = np.where(domains[:, None, None] == 1, a * images + b, images)
    one, two = (align_class_statistics(x, labels, domains, 0) for x in (images, scaled))
    np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-6)


def test_one_domain_is_the_identity() -> None:
    images, labels, _ = made()
    assert np.array_equal(align_class_statistics(images, labels, np.zeros(7), 0), images)


def test_a_domain_of_one_case_gets_the_target_mean() -> None:
    images, labels, domains = made(domains=(0, 0, 1))
    aligned = align_class_statistics(images, labels, domains, 0)
    for value in range(3):
        expected = moments(images[:2], labels[:2], value).mean(0)
        np.testing.assert_allclose(moments(aligned[2:], labels[2:], value)[0], expected)


def test_flat_and_absent_classes() -> None:
    images, labels, domains = made()
    images[4][labels[4] == 1] = 7.0  # no contrast
    labels[5][labels[5] == 2] = 0  # absent
    labels[:3][labels[:3] == 2] = 1
    labels[6, 0, 0] = 2  # absent in the target: stays
    aligned = align_class_statistics(images, labels, domains, 0)
    assert np.ptp(aligned[4][labels[4] == 1]) == 0
    assert aligned[6, 0, 0] == images[6, 0, 0]
    assert np.isfinite(aligned).all()


def test_negative_spread_mirrors_or_is_clamped() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=200)
    noise = (noise - noise.mean()) / noise.std()
    # The source's spreads 1, 1, 1, 9 put the smallest far below their mean; the target's spread among cases is wide.
    images = np.stack([spread * noise for spread in (1.0, 20, 1, 1, 1, 9)])
    labels, domains = np.zeros(images.shape, int), [0, 0, 1, 1, 1, 1]
    mirrored = align_class_statistics(images, labels, domains, 0)[2]
    deviation = (1 - 3) / np.std([1, 1, 1, 9]) * 9.5 + 10.5
    images[1] *= 3
    np.testing.assert_allclose(mirrored, deviation * noise, atol=1e-9)
    images = np.stack([spread * noise for spread in (0.1, 20, 1, 8, 9)])
    labels, domains = np.zeros(images.shape, int), [0, 0, 1, 1, 1]
    deviation = (1 - 6) / np.std([1, 8, 9]) * 9.95 + 10.05
    assert deviation < 0
    np.testing.assert_allclose(align_class_statistics(images, labels, domains, 0)[2], deviation * noise, atol=1e-9)
    clamped = align_class_statistics(images, labels, domains, 0, clamp_negative=True)[2]
    assert np.ptp(clamped) == pytest.approx(0, abs=1e-12)


def test_kinds_of_input() -> None:
    images, labels, domains = made()
    expected = align_class_statistics(images, labels, domains, 0)
    tensor = align_class_statistics(torch.from_numpy(images), torch.from_numpy(labels), torch.from_numpy(domains), 0)
    assert tensor.dtype == torch.float64
    np.testing.assert_array_equal(tensor.numpy(), expected)
    listed = align_class_statistics(list(images), list(labels), list(domains), 0)
    assert isinstance(listed, list)
    np.testing.assert_array_equal(np.stack(listed), expected)
    assert align_class_statistics(images.astype(np.float32), labels, domains).dtype == np.float32
    assert align_class_statistics(images.astype(np.int16), labels, domains).dtype == np.float32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"domains": [0, 1]}, "7 images, 7 labels, 2 domains"),
        ({"labels": np.zeros((7, 3, 3))}, "case 0: image"),
        ({"images": np.full((7, 4, 4), np.nan), "labels": np.zeros((7, 4, 4), int)}, "case 0: NaN or infinite pixels"),
        ({"target_domain": 5}, "no case is of the target domain 5"),
    ],
)
def test_bad_input(change: dict[str, Any], words: str) -> None:
    images, labels, domains = made()
    with pytest.raises(ValueError, match=words):
        align_class_statistics(**{"images": images, "labels": labels, "domains": domains, **change})
