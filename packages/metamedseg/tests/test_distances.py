from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from dart_core.errors import InputError
from metamedseg import organ_distances

RNG = np.random.default_rng(0)
IMAGES = {"a": RNG.random((4, 5, 5)), "b": RNG.random((3, 5, 5)) + 1, "c": RNG.random((2, 5, 5))}


def test_all_pairs_by_hand():
    found = organ_distances(IMAGES)
    between = [np.sqrt(((x - y) ** 2).sum()) for x in IMAGES["a"] for y in IMAGES["b"]]
    assert found[0, 1] == found[1, 0] == pytest.approx(np.mean(between))
    within = [np.sqrt(((x - y) ** 2).sum()) for i, x in enumerate(IMAGES["a"]) for y in IMAGES["a"][:i]]
    assert found[0, 0] == pytest.approx(np.mean(within))
    assert_array_equal(found, organ_distances({name: torch.from_numpy(value) for name, value in IMAGES.items()}))


def test_random_pairs_come_near_and_are_the_same_each_time():
    found = organ_distances(IMAGES, 400)
    assert_array_equal(found, found.T)
    assert_array_equal(found, organ_distances(IMAGES, 400))
    assert_allclose(found, organ_distances(IMAGES), rtol=0.1)
    assert (organ_distances(IMAGES, 400, seed=7) != found).any()


def test_pairs_of_ones_own():
    found = organ_distances(IMAGES, [(0, 1), (1, 1)])
    assert found[0, 1] == pytest.approx(np.mean([np.linalg.norm(IMAGES["a"][i] - IMAGES["b"][1]) for i in (0, 1)]))
    assert found[2, 2] == pytest.approx(np.linalg.norm(IMAGES["c"][0] - IMAGES["c"][1]))  # (1, 1) is no pair


def test_one_image_and_mistakes():
    single = organ_distances({"a": np.zeros((1, 2, 2)), "b": np.ones((1, 2, 2))}, 5)
    assert np.isnan(single[0, 0])
    assert single[0, 1] == 2
    with pytest.raises(InputError, match="images of b are"):
        organ_distances({"a": np.zeros((1, 2, 2)), "b": np.ones((1, 2, 3))})
    with pytest.raises(InputError, match="shape"):
        organ_distances({"a": np.zeros((2, 2))})
