"""The pretext tasks jigsaw and Rubik's Cube: cubes cut into 2 x 2 x 2 blocks, in another order and turned (specification 2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from dart_core.errors import InputError, SettingError

Gap: TypeAlias = tuple[int, int] | Sequence[tuple[int, int]]
"""First and last index of a gap, for all axes or for each."""
BLOCKS = 8
JIGSAW_GAP, RUBIK_GAP = (30, 34), (27, 36)
"""First and last index along each axis that is set to 0 in cubes of 64 voxels."""
UNTOUCHED = 0.25
"""Chance that a block of a Rubik's Cube is not turned; each of the three axes has the same."""


def split_blocks(x: Tensor) -> Tensor:
    """(..., H, W, D) -> (..., 8, H/2, W/2, D/2); block 4 i + 2 j + k lies in half i of H, j of W, k of D.

    Raises:
        InputError: an odd side.
    """
    if any(side % 2 for side in x.shape[-3:]):
        listed = " x ".join(map(str, x.shape[-3:]))
        raise InputError(f"a cube of {listed} voxels has no middle", remedy="give even sides")
    h, w, d = (side // 2 for side in x.shape[-3:])
    n = x.dim() - 3
    cut = x.reshape(*x.shape[:-3], 2, h, 2, w, 2, d)
    order = (*range(n), n, n + 2, n + 4, n + 1, n + 3, n + 5)
    return cut.permute(order).reshape(*x.shape[:-3], BLOCKS, h, w, d)


def join_blocks(blocks: Tensor) -> Tensor:
    """(..., 8, h, w, d) -> (..., 2h, 2w, 2d): undoes `split_blocks`."""
    *front, _, h, w, d = blocks.shape
    n = len(front)
    cut = blocks.reshape(*front, 2, 2, 2, h, w, d)
    order = (*range(n), n, n + 3, n + 1, n + 4, n + 2, n + 5)
    return cut.permute(order).reshape(*front, 2 * h, 2 * w, 2 * d)


def with_gap(x: Tensor, gap: Gap | None) -> Tensor:
    """Cubes with a gap between their blocks.

    Args:
        x: (..., H, W, D).
        gap: first and last index that is set to 0, of all axes together or of H, W and D each; None changes nothing.
    """
    if gap is None:
        return x
    each = [gap] * 3 if np.ndim(gap) == 1 else list(gap)
    for axis, (first, last) in zip((-3, -2, -1), cast("list[tuple[int, int]]", each), strict=True):
        index = torch.arange(x.shape[axis], device=x.device)
        keep = ((index < first) | (index > last)).to(x.dtype)
        x = x * keep.reshape([-1, *[1] * (-1 - axis)])
    return x


def gap_for(gap: tuple[int, int], shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """The gap of cubes of 64 voxels in cubes of another size: as wide in proportion, at the middle of each axis.

    Args:
        gap: that of 64 voxels.
        shape: sides of the cubes.
    """
    before, after = 32 - gap[0], gap[1] - 31
    return tuple(
        (side // 2 - (2 * before * side + 64) // 128, side // 2 - 1 + (2 * after * side + 64) // 128) for side in shape
    )


def shuffle_blocks(x: Any, permutation: Any, gap: Gap | None = None) -> Any:
    """Cut cubes into eight blocks and put them together in another order: position p shows block permutation[p].

    Args:
        x: (..., H, W, D) with even sides; for several permutations (N, ..., H, W, D).
        permutation: (8,), or (N, 8), of 0 to 7. Block 4 i + 2 j + k lies in half i of H, j of W, k of D.
        gap: first and last index (both included) along each axis that is set to 0 before cutting: (30, 34) for jigsaw,
            (27, 36) for Rubik's Cube.

    Returns:
        Like `x`. argsort(permutation) puts the blocks back.

    Raises:
        InputError: no permutation of 0 to 7, or an odd side.
    """
    if isinstance(x, np.ndarray):
        return shuffle_blocks(torch.from_numpy(np.ascontiguousarray(x)), permutation, gap).numpy()
    order = _permutation(permutation, x.device)
    return join_blocks(_reordered(split_blocks(with_gap(x, gap)), order))


def rubik(x: Any, axes: Any, permutation: Any, gap: Gap | None = None) -> tuple[Any, Any]:
    """Turn the blocks of a cube by 180 degrees and put them together in another order.

    Args:
        x: (..., H, W, D) with even sides; for several cubes (N, ..., H, W, D).
        axes: (8,) or (N, 8), in original block order: 0 leaves a block, 1 turns it in the plane (H, W), 2 in (H, D), 3 in
            (W, D).
        permutation: (8,) or (N, 8), see `shuffle_blocks`.
        gap: see `shuffle_blocks`.

    Returns:
        The cube, and int64 flags (8,) or (N, 8): 1 where the block shown at that position is turned.

    Raises:
        InputError: as `shuffle_blocks`, or axes that are not 0 to 3.
    """
    if isinstance(x, np.ndarray):
        cube, flags = rubik(torch.from_numpy(np.ascontiguousarray(x)), axes, permutation, gap)
        return cube.numpy(), flags.numpy()
    order = _permutation(permutation, x.device)
    turns = torch.as_tensor(axes, dtype=torch.int64, device=x.device)
    if turns.shape[-1:] != (BLOCKS,) or (turns.device.type == "cpu" and bool(((turns < 0) | (turns > 3)).any())):
        raise InputError("the axes are not eight numbers from 0 to 3", remedy="give (8,) or (N, 8)")
    blocks = turn_blocks(split_blocks(with_gap(x, gap)), turns)
    flags = (turns != 0).to(torch.int64)
    if flags.dim() < order.dim():
        flags = flags.expand(order.shape)
    shown = flags[..., order] if order.dim() == 1 else flags.gather(-1, order)
    return join_blocks(_reordered(blocks, order)), shown


def turn_blocks(blocks: Tensor, axes: Tensor) -> Tensor:
    """Turn blocks (..., 8, h, w, d) by 180 degrees; axes (8,) or (N, 8) as in `rubik`. Twice changes nothing."""
    between = [1] * (blocks.dim() - 4 - (axes.dim() - 1))
    axes = axes.reshape(*axes.shape[:-1], *between, BLOCKS, 1, 1, 1)
    for axis, planes in ((-3, (1, 2)), (-2, (1, 3)), (-1, (2, 3))):
        flipped = (axes == planes[0]) | (axes == planes[1])
        blocks = torch.where(flipped, blocks.flip(axis), blocks)
    return blocks


def _reordered(blocks: Tensor, order: Tensor) -> Tensor:
    if order.dim() == 1:
        return blocks.index_select(-4, order)
    between = [1] * (blocks.dim() - 5)
    index = order.reshape(len(order), *between, BLOCKS, 1, 1, 1)
    return blocks.gather(-4, index.expand(blocks.shape))


def _permutation(permutation: Any, device: torch.device) -> Tensor:
    order = torch.as_tensor(np.asarray(permutation) if isinstance(permutation, list | tuple) else permutation)
    order = order.to(device=device, dtype=torch.int64)
    wrong = order.dim() not in (1, 2) or order.shape[-1] != BLOCKS
    if not wrong and order.device.type == "cpu":
        wrong = bool((order.sort(-1).values != torch.arange(BLOCKS)).any())
    if wrong:
        raise InputError(f"{permutation!r} is no permutation of 0 to 7", remedy="give (8,) or (N, 8)")
    return order


@lru_cache(maxsize=8)
def _permutations(n: int, min_distance: int) -> tuple[tuple[int, ...], ...]:
    every = np.array(list(permutations(range(BLOCKS))), dtype=np.int64)
    codes = every @ BLOCKS ** np.arange(BLOCKS - 1, -1, -1)  # rise in lexicographic order
    # p differs from p o s where s moves something, so that the neighbours of all permutations are known from those of one.
    near = every[(every != np.arange(BLOCKS)).sum(1) < min_distance]
    alive = np.ones(len(every), dtype=bool)
    kept: list[tuple[int, ...]] = []
    for place, permutation in enumerate(every):
        if alive[place]:
            kept.append(tuple(int(k) for k in permutation))
            alive[np.searchsorted(codes, permutation[near] @ BLOCKS ** np.arange(BLOCKS - 1, -1, -1))] = False
        if len(kept) == n:
            break
    return tuple(kept)


def permutation_set(n: int = 1000, min_distance: int = 4) -> Tensor:
    """Permutations of the eight blocks that differ from each other in many places.

    All 40,320 are gone through in lexicographic order; one is kept if it differs from every kept one in at least
    `min_distance` places.

    Args:
        n: how many.
        min_distance: least Hamming distance of two of them.

    Returns:
        (n, 8) int64; the same in every run.

    Raises:
        SettingError: fewer are found (a ValueError); at distance 4 there are 2,144.
    """
    if n < 1 or not 0 <= min_distance <= BLOCKS:
        raise SettingError(f"{n} permutations at distance {min_distance}", remedy="give at least 1, and 0 to 8")
    found = _permutations(int(n), int(min_distance))
    if len(found) < n:
        raise SettingError(
            f"only {len(found)} permutations differ in {min_distance} places or more, {n} are asked for",
            remedy="ask for fewer, or for a smaller distance",
        )
    return torch.tensor(found, dtype=torch.int64)


def random_permutations(n: int = 1000, seed: int = 0) -> Tensor:
    """What the authors' published file amounts to: a random set with the identity in it, of least distance 2.

    Args:
        n: how many.
        seed: of the draw.

    Returns:
        (n, 8) int64, distinct.
    """
    every = np.array(list(permutations(range(BLOCKS))), dtype=np.int64)
    drawn = 1 + np.random.default_rng(seed).permutation(len(every) - 1)[: n - 1]
    return torch.from_numpy(every[np.concatenate([[0], drawn])])


def draw_permutations(
    count: int, permutations_K8: Tensor, generator: torch.Generator | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Numbers (count,) of permutations and the permutations (count, 8), without repetition as far as the set reaches."""
    k = len(permutations_K8)
    rounds = -(-count // k)
    numbers = torch.cat([torch.randperm(k, generator=generator, device=device) for _ in range(rounds)])[:count]
    return numbers, permutations_K8.to(device)[numbers]


def draw_axes(count: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """How the eight blocks of `count` cubes are turned (count, 8): 0 with probability 1/4, else 1, 2 or 3 alike."""
    return torch.randint(0, 4, (count, BLOCKS), generator=generator, device=device)
