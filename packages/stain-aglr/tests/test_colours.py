"""Hue, saturation and value of patches against colours whose values are known (Fig. 1)."""

from __future__ import annotations

import numpy as np
import pytest

from stain_aglr.colours import hsv_histogram, hsv_moments

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def patch(*colours: tuple[int, int, int]) -> np.ndarray:
    """As many rows of each colour."""
    return np.array(colours, np.uint8).repeat(8, 0)[:, None].repeat(6, 1)


@pytest.mark.parametrize(
    ("colours", "mean", "spread"),
    [
        ((RED,), (0, 1, 1), (0, 0, 0)),
        ((GREEN, BLUE), (1 / 2, 1, 1), (1 / 6, 0, 0)),
        ((RED, WHITE), (0, 1 / 2, 1), (0, 1 / 2, 0)),
        ((WHITE, BLACK, BLACK, BLACK), (0, 0, 1 / 4), (0, 0, 3**0.5 / 4)),
    ],
)
def test_moments(colours, mean, spread):
    found = hsv_moments(hsv_histogram(patch(*colours)))
    np.testing.assert_allclose(found[0], mean, atol=1e-12)
    np.testing.assert_allclose(found[1], spread, atol=1e-12)


def test_histograms_of_patches_add_up():
    together, apart = hsv_histogram(patch(RED, BLUE)), [hsv_histogram(patch(colour)) for colour in (RED, BLUE)]
    assert (together == sum(apart)).all()
    assert together.sum(1).tolist() == [96] * 3


def test_levels_are_those_of_the_formulas():
    """Within one of 255 levels of the standard library's conversion."""
    import colorsys

    colours = np.random.default_rng(0).integers(0, 256, (200, 3), dtype=np.uint8)
    for colour in colours:
        mean, _ = hsv_moments(hsv_histogram(colour[None, None]))
        np.testing.assert_allclose(mean, colorsys.rgb_to_hsv(*(colour / 255)), atol=1.01 / 255)
