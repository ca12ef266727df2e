"""Rotation classes (specification 2.3, 9.1)."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from united_ssl import rotate_cube, united_loss

CUBE = torch.arange(4**3, dtype=torch.float64).reshape(4, 4, 4)


def matrix(label: int, form: str) -> np.ndarray:
    """The linear map of a class, from where it takes the corner marks of a cube."""
    axes = []
    for axis in range(3):
        mark = torch.zeros(3, 3, 3)
        place = [1, 1, 1]
        place[axis] = 2
        mark[tuple(place)] = 1
        (found,) = torch.nonzero(rotate_cube(mark, label, form)).tolist()
        axes.append(np.array(found) - 1)
    return np.stack(axes, 1)


@pytest.mark.parametrize(("form", "count"), [("proper", 8), ("all24", 24)])
def test_a_group_of_rotations(form, count):
    maps = [matrix(k, form) for k in range(count)]
    assert all(round(np.linalg.det(m)) == 1 for m in maps)
    keys = {m.tobytes() for m in maps}
    assert len(keys) == count
    assert all((a @ b).tobytes() in keys for a, b in itertools.product(maps, maps))
    for k, m in enumerate(maps):
        inverse = next(j for j, other in enumerate(maps) if np.array_equal(other @ m, np.eye(3, dtype=int)))
        assert torch.equal(rotate_cube(rotate_cube(CUBE, k, form), inverse, form), CUBE)


def test_the_first_turn_is_as_written():
    turned = rotate_cube(CUBE, 1)
    for h, w, d in np.ndindex(4, 4, 4):
        assert turned[h, w, d] == CUBE[3 - w, h, d]
    assert torch.equal(turned, torch.from_numpy(np.rot90(CUBE.numpy(), 1, axes=(1, 0)).copy()))
    assert torch.equal(rotate_cube(CUBE, 4), CUBE.flip(0, 2))


def test_as_coded_class_4_is_class_0_and_the_rest_are_mirrored():
    assert torch.equal(rotate_cube(CUBE, 4, "as_coded"), CUBE)
    assert all(round(np.linalg.det(matrix(k, "as_coded"))) == -1 for k in (5, 6, 7))
    for k in range(4):
        assert torch.equal(rotate_cube(CUBE, k, "as_coded"), rotate_cube(CUBE, k))
    assert torch.equal(rotate_cube(CUBE, 6, "as_coded"), rotate_cube(CUBE, 2).flip(0))


@pytest.mark.parametrize("form", ["proper", "as_coded", "all24"])
def test_batches_and_arrays(form):
    x = torch.rand(24, 1, 4, 4, 4)
    labels = torch.arange(24) % (24 if form == "all24" else 8)
    whole = rotate_cube(x, labels, form)
    assert all(torch.equal(whole[i], rotate_cube(x[i], int(k), form)) for i, k in enumerate(labels))
    assert np.array_equal(rotate_cube(x.numpy(), labels.numpy(), form), whole.numpy())


def test_a_cube_that_looks_the_same_from_all_sides_costs_ln_8():
    cube = torch.full((1, 1, 4, 4, 4), 0.5)
    views = torch.cat([rotate_cube(cube, k) for k in range(8)])
    assert torch.equal(views, cube.expand_as(views))
    loss = united_loss(torch.zeros(8, 8), torch.arange(8), views, views)
    assert float(loss) == pytest.approx(math.log(8))


def test_refusals():
    with pytest.raises(ValueError, match="no rotation class 8; give 0 to 7"):
        rotate_cube(CUBE, 8)
    with pytest.raises(ValueError, match="form is 'x'"):
        rotate_cube(CUBE, 0, "x")
    with pytest.raises(ValueError, match="change their shape"):
        rotate_cube(torch.zeros(2, 1, 4, 6, 4), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="3 labels for 2 cubes"):
        rotate_cube(torch.zeros(2, 1, 4, 4, 4), torch.tensor([0, 1, 2]))
    assert rotate_cube(torch.zeros(4, 6, 2), 1).shape == (6, 4, 2)
