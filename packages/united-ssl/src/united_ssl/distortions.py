"""How TransVW and Models Genesis distort cubes, for whole batches on the device (specification 2.3, 2.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dart_core.augment.genesis import distort, local_pixel_shuffle, nonlinear_intensity

ELASTIC_SIGMA, ELASTIC_ALPHA = 8.0, 991.0
TABLE = 100_000
"""Points of the non-linear map in volumes."""
GENESIS_BLOCKS = 10_000
SHUFFLE, NONLINEAR, PAINTING, OUTER = 0.5, 0.9, 0.9, 0.8
"""Chances of the transforms of Models Genesis; OUTER is that of out-painting once there is painting."""
FLIP, FLIPS = 0.4, 3
BLOCK, MARGIN = (10, 20), 3
Transform = Callable[[Tensor, torch.Generator | None], Tensor]


def _rand(shape: Sequence[int], generator: torch.Generator | None, x: Tensor) -> Tensor:
    return torch.rand(tuple(shape), generator=generator, device=x.device, dtype=x.dtype)


# --- Elastic deformation ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _smoothing(side: int, sigma: float) -> Tensor:
    """(side, side): Gaussian filter with zero padding as a matrix, cut off at 4 sigma as SciPy does."""
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    distance = torch.arange(side)[:, None] - torch.arange(side)[None]
    values = kernel[(distance + radius).clamp(0, 2 * radius)]
    return torch.where(distance.abs() <= radius, values, torch.zeros(()))


def displacement(shape: Sequence[int], count: int, generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Displacements (count, 2, H, W, D) in voxels along H and W: smoothed U(-1, 1) noise times 991; none along D.

    Cubes with fewer than 64 voxels along H get the same picture in small: sigma goes with the side, and the factor with it to
    the power 2.5, so that displacements stay the same share of the cube.
    """
    scale = min(1.0, shape[0] / 64)
    field = 2 * _rand((count, 2, *shape), generator, like) - 1
    for side in shape:
        matrix = _smoothing(side, ELASTIC_SIGMA * scale).to(field)
        field = torch.tensordot(field, matrix, ([2], [1]))  # the axis goes to the end, so that the next one is at 2
    scaled: Tensor = field * (ELASTIC_ALPHA * scale**2.5)
    return scaled


def warp(x: Tensor, moved: Tensor) -> Tensor:
    """Values at the displaced places, linear, the border mirrored.

    Args:
        x: (N, C, H, W, D).
        moved: (N, 2, H, W, D) voxels along H and W.
    """
    h, w, d = x.shape[-3:]
    grids = torch.meshgrid(*(torch.arange(side, device=x.device, dtype=x.dtype) for side in (h, w, d)), indexing="ij")
    places = (grids[0] + moved[:, 0], grids[1] + moved[:, 1], grids[2].expand(len(x), h, w, d))
    scaled = [place * (2 / max(side - 1, 1)) - 1 for place, side in zip(places, (h, w, d), strict=True)]
    # The last coordinate of a grid is the first axis, so they stand in reverse.
    grid = torch.stack(scaled[::-1], -1)
    moved_x: Tensor = F.grid_sample(x, grid, "bilinear", "reflection", align_corners=True)
    return moved_x


def elastic(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Elastic deformation in the planes of H and W (TransVW), its own for each cube (N, 1, H, W, D)."""
    return warp(x, displacement(x.shape[-3:], len(x), generator, x))


# --- Painting --------------------------------------------------------------------------------------------------------


def _window(
    shape: Sequence[int], sides: Sequence[tuple[int, int]], count: int, generator: torch.Generator | None, like: Tensor
) -> Tensor:
    """Random boxes as masks (count, 1, H, W, D): sides uniform from low to high, 3 voxels from the border where it fits."""
    mask = torch.ones((count, 1, *[1] * len(shape)), dtype=torch.bool, device=like.device)
    for axis, (side, (low, high)) in enumerate(zip(shape, sides, strict=True)):
        u, v = _rand((2, count), generator, like).double()
        length = low + (u * (high - low + 1)).long()
        room = side - length
        margin = torch.minimum(torch.full_like(room, MARGIN), room // 2)
        start = margin + (v * (room - 2 * margin + 1)).long()
        index = torch.arange(side, device=like.device)
        inside = (index >= start[:, None]) & (index < (start + length)[:, None])
        mask = mask & inside.reshape(count, 1, *[1] * axis, side, *[1] * (len(shape) - 1 - axis))
    return mask


def _block_sides(side: int) -> tuple[int, int]:
    """10 to 20 voxels, in small cubes the same share."""
    low, high = BLOCK
    return (low, high) if side >= 32 else (max(1, low * side // 64), max(1, high * side // 64))


def _constant(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return _rand((len(x), *[1] * (x.dim() - 1)), generator, x)


def paint_inside(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """TransVW's in-painting: one block of one grey value from U(0, 1) in each cube (N, 1, H, W, D)."""
    shape = x.shape[-3:]
    block = _window(shape, [_block_sides(side) for side in shape], len(x), generator, x)
    return torch.where(block, _constant(x, generator), x)


def paint_outside(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """TransVW's out-painting: one window is kept, outside of it is one grey value from U(0, 1)."""
    shape = x.shape[-3:]
    sides = [(side - high, side - low) for side in shape for low, high in (_block_sides(side),)]
    window = _window(shape, sides, len(x), generator, x)
    return torch.where(window, x, _constant(x, generator))


def noise_inside(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """In-painting of TransVW's PyTorch program: one block with the noise and sides of Models Genesis, which has up to five."""
    shape = x.shape[-3:]
    block = _window(shape, [(side // 6, side // 3) for side in shape], len(x), generator, x)
    return torch.where(block, _rand(x.shape, generator, x), x)


def noise_outside(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Out-painting of TransVW's PyTorch program: one window as Models Genesis draws it is kept, outside of it is noise."""
    shape = x.shape[-3:]
    window = _window(shape, [(side - 4 * side // 7, side - 3 * side // 7) for side in shape], len(x), generator, x)
    return torch.where(window, x, _rand(x.shape, generator, x))


# --- Intensities and voxels ------------------------------------------------------------------------------------------


def _curves(x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Control points (N, 4, 2) of a curve for each cube, and which ones fall, with the same chance as rise."""
    points = _rand((len(x), 4, 2), generator, x)
    points[:, 0], points[:, 3] = 0, 1
    return points, _rand((len(x),), generator, x) < 0.5


def nonlinear(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A monotone Bezier curve through the grey values, rising or falling with the same chance, its own for each cube."""
    return nonlinear_intensity(x, *_curves(x, generator), TABLE)


def local_shuffle(x: Tensor, generator: torch.Generator | None = None, blocks: int = 100) -> Tensor:
    """Shuffle the voxels in small blocks; cubes with a side below 10 have none, and stay as they are."""
    return local_pixel_shuffle(x, blocks, generator=generator) if min(x.shape[-3:]) >= 10 else x


def one_of(x: Tensor, transforms: Sequence[Transform], generator: torch.Generator | None = None) -> Tensor:
    """Exactly one of some transforms for each cube, all with the same chance."""
    kinds = torch.randint(len(transforms), (len(x),), generator=generator, device=x.device)
    out = torch.empty_like(x)
    for kind, transform in enumerate(transforms):
        places = torch.nonzero(kinds == kind).ravel()
        if len(places):
            out[places] = transform(x[places], generator)
    return out


# --- The two recipes -------------------------------------------------------------------------------------------------


def transvw_distort(
    x: Tensor,
    restoring: bool,
    generator: torch.Generator | None = None,
    blocks: int = 100,
    painting: Literal["constant", "genesis"] = "constant",
) -> Tensor:
    """TransVW's distortion of cubes (N, 1, H, W, D).

    Step D: every third cube of the batch gets exactly one of elastic deformation, non-linear map, in-painting and
    out-painting. Steps with restoration: each cube is deformed, then gets exactly one of local shuffling, non-linear map,
    in-painting and out-painting.

    Args:
        x: cubes in [0, 1].
        restoring: see above.
        generator: of all draws.
        blocks: of the local shuffling.
        painting: one grey value, or noise and sides of Models Genesis.
    """
    inside, outside = (noise_inside, noise_outside) if painting == "genesis" else (paint_inside, paint_outside)

    def shuffle(part: Tensor, g: torch.Generator | None) -> Tensor:
        return local_shuffle(part, g, blocks)

    if restoring:
        return one_of(elastic(x, generator), (shuffle, nonlinear, inside, outside), generator)
    out = x.clone()
    out[::3] = one_of(x[::3], (elastic, nonlinear, inside, outside), generator)
    return out


def genesis_flip(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Flips of Models Genesis: while U < 0.4, at most 3 times, along one of channel, H and W at random; never along D."""
    going = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for _ in range(FLIPS):
        going = going & (_rand((len(x),), generator, x) < FLIP)
        axes = torch.randint(3, (len(x),), generator=generator, device=x.device)
        for axis in (1, 2):
            chosen = (going & (axes == axis)).reshape(-1, *[1] * (x.dim() - 1))
            x = torch.where(chosen, x.flip(x.dim() - 4 + axis), x)
    return x


def genesis_appearance(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The transforms of Models Genesis after its flips: local shuffling (0.5), non-linear map (0.9), painting (0.9)."""
    chances = x.new_tensor([SHUFFLE, NONLINEAR, PAINTING, OUTER])
    shuffled, mapped, painted, outer = (_rand((len(x), 4), generator, x) < chances).unbind(1)
    points, falling = _curves(x, generator)
    return distort(
        x, points, shuffled, mapped, painted & outer, painted & ~outer, falling, GENESIS_BLOCKS, points=TABLE,
        generator=generator,
    )  # fmt: skip
