"""How TransVW and Models Genesis distort (specification 2.3, 2.4)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from united_ssl import distortions
from united_ssl.distortions import (
    displacement,
    elastic,
    genesis_appearance,
    genesis_flip,
    noise_inside,
    noise_outside,
    one_of,
    paint_inside,
    paint_outside,
    transvw_distort,
    warp,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_displacement_is_scipys_gaussian_filter_of_the_noise():
    shape = (64, 64, 8)
    like = torch.zeros((), dtype=torch.float64)
    found = displacement(shape, 1, generator(), like)[0]
    noise = 2 * torch.rand((1, 2, *shape), generator=generator(), dtype=torch.float64)[0] - 1
    for part, field in zip(found, noise, strict=True):
        expected = gaussian_filter(field.numpy(), 8, mode="constant") * 991
        assert np.allclose(part.numpy(), expected, atol=1e-8)


@pytest.mark.parametrize(("shape", "spread"), [((64, 64, 64), 3.2), ((64, 64, 32), 3.0)])
def test_spread_of_the_displacement(shape, spread):
    found = displacement(shape, 12, generator(1), torch.zeros(()))
    assert float(found.std()) == pytest.approx(spread, abs=0.25)


def test_warp_is_scipys_linear_interpolation_with_mirrored_border():
    x = torch.rand(1, 1, 8, 8, 6, dtype=torch.float64)
    moved = 6 * torch.rand(1, 2, 8, 8, 6, dtype=torch.float64) - 3
    grid = np.indices((8, 8, 6)).astype(float)
    grid[:2] += moved[0].numpy()
    expected = map_coordinates(x[0, 0].numpy(), grid, order=1, mode="mirror")
    assert np.allclose(warp(x, moved)[0, 0].numpy(), expected, atol=1e-10)


def test_elastic_differs_from_cube_to_cube():
    x = torch.rand(1, 1, 16, 16, 16).repeat(2, 1, 1, 1, 1)
    y = elastic(x, generator())
    assert not torch.equal(y[0], y[1])


def test_painting_with_one_grey_value():
    x = torch.full((200, 1, 64, 64, 32), 2.0)[:40]
    for paint, low, high in ((paint_inside, 10, 20), (paint_outside, None, None)):
        y = paint(x, generator())
        changed = y != 2
        for cube, mask in zip(y, changed, strict=True):
            assert len(cube[mask].unique()) == 1
        if low is not None:
            for axis in (2, 3, 4):
                sides = changed.amax([a for a in (1, 2, 3, 4) if a != axis]).sum(1)
                assert low <= int(sides.min())
                assert int(sides.max()) <= high
        else:
            kept = ~changed
            for axis, side in ((2, 64), (4, 32)):
                sides = kept.amax([a for a in (1, 2, 3, 4) if a != axis]).sum(1)
                assert side - 20 <= int(sides.min())
                assert int(sides.max()) <= side - 10


def test_painting_with_noise_in_one_block_or_window():
    x = torch.full((60, 1, 64, 64, 32), 2.0)
    ranges = {noise_inside: ((10, 21), (5, 10)), noise_outside: ((28, 37), (14, 19))}
    for paint, (wide, narrow) in ranges.items():
        y = paint(x, generator())
        noise = y < 1
        assert torch.equal(noise, y != 2)
        box = noise if paint is noise_inside else ~noise
        sides = torch.stack([box.amax([a for a in (1, 2, 3, 4) if a != axis]).sum(1) for axis in (2, 3, 4)], 1)
        assert torch.equal(box.flatten(1).sum(1), sides.prod(1))  # one box, not several
        for axis, (low, high) in enumerate((wide, wide, narrow)):
            assert low <= int(sides[:, axis].min())
            assert int(sides[:, axis].max()) <= high
        assert float(y[noise].mean()) == pytest.approx(0.5, abs=0.01)
        assert not torch.equal(y[0], y[1])


def test_painting_of_transvw(monkeypatch):
    """Which transforms paint; both take no other ones."""
    x = torch.rand(3, 1, 16, 16, 16)
    for painting, expected in (("constant", (paint_inside, paint_outside)), ("genesis", (noise_inside, noise_outside))):
        given = []
        monkeypatch.setattr(
            distortions, "one_of", lambda part, transforms, g, given=given: given.append(transforms) or part
        )
        for restoring in (False, True):
            transvw_distort(x, restoring, generator(), painting=painting)
        assert [transforms[2:] for transforms in given] == [expected] * 2


def test_exactly_one_of_each_with_the_same_chance():
    x = torch.zeros(2000, 1, 1, 1, 1)
    y = one_of(x, [lambda part, g, k=k: part + k for k in (1, 2, 4)], generator())
    counts = torch.bincount(y.long().ravel(), minlength=5)
    assert counts[[0, 3]].sum() == 0
    assert (counts[[1, 2, 4]] - 2000 / 3).abs().max() < 4 * (2000 * 2 / 9) ** 0.5


def test_step_d_touches_every_third_cube_only():
    x = torch.rand(7, 1, 16, 16, 16)
    y = transvw_distort(x, False, generator())
    same = [torch.equal(a, b) for a, b in zip(x, y, strict=True)]
    assert same == [False, True, True, False, True, True, False]
    y = transvw_distort(x, True, generator())
    assert not any(torch.equal(a, b) for a, b in zip(x, y, strict=True))


def test_flips_never_go_along_d_and_stop_as_coded():
    x = torch.zeros(4000, 1, 2, 2, 2)
    x[:, 0, 0, 0, 0] = 1
    y = genesis_flip(x, generator())
    assert not y[..., 1].any()
    # One draw in three flips H: the number of flips is 0, 1, 2, 3 with chances 0.6, 0.24, 0.096, 0.064.
    p = 0.24 / 3 + 0.096 * 4 / 9 + 0.064 * (12 / 27 + 1 / 27)
    share = float((y[:, 0, 1].sum((1, 2)) > 0).double().mean())
    assert abs(share - p) < 4 * (p * (1 - p) / 4000) ** 0.5


def test_appearance_leaves_the_input_alone_and_stays_in_range():
    x = torch.rand(6, 1, 16, 16, 16)
    before = x.clone()
    y = genesis_appearance(x, generator())
    assert torch.equal(x, before)
    assert y.min() >= 0
    assert y.max() <= 1
    assert torch.equal(y, genesis_appearance(x, generator()))
    assert sum(not torch.equal(a, b) for a, b in zip(x, y, strict=True)) >= 5


def test_chances_of_appearance(monkeypatch):
    n, seen = 20_000, {}

    def stand_in(x, curves, shuffled, mapped, outer, inner, falling, blocks, points, generator):
        assert (blocks, points) == (10_000, 100_000)
        assert torch.equal(curves[:, [0, 3]], torch.tensor([[0.0, 0.0], [1.0, 1.0]]).expand(n, 2, 2))
        seen.update(shuffled=shuffled, mapped=mapped, outer=outer, inner=inner, falling=falling)
        return x

    monkeypatch.setattr(distortions, "distort", stand_in)
    genesis_appearance(torch.zeros(n, 1, 1, 1, 1), generator())
    assert not (seen["outer"] & seen["inner"]).any()
    for name, chance in (("shuffled", 0.5), ("mapped", 0.9), ("outer", 0.72), ("inner", 0.18), ("falling", 0.5)):
        found = float(seen[name].double().mean())
        assert abs(found - chance) < 4 * (chance * (1 - chance) / n) ** 0.5, name


def test_small_cubes_are_not_shuffled():
    x = torch.rand(2, 1, 8, 8, 8)
    assert torch.equal(distortions.local_shuffle(x), x)
