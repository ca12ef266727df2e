"""From the fingerprint of a training set to patch size, batch size and network, as nnU-Net version 1 plans a 2-D U-Net.

Specification 3. Axes are those of nnU-Net: the slice axis first, then the two axes of a slice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from dart_core.errors import InputError

BASE_FEATURES = 32
MAX_FEATURES = 480
"""Cap of the network; the planner's estimate of memory assumes another, 512 (specification 8, item 13)."""

_REFERENCE = 19_739_648 * 25  # the memory estimate that a batch of two may reach
_PLANNED_CAP = 512
_CONVOLUTIONS = 2  # in each block of the encoder and of the decoder
_MINIMUM_EDGE = 4  # of the lowest resolution
_MAXIMUM_SHARE = 0.05  # of the training set's voxels in one batch

Kernels: TypeAlias = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Plan:
    """What the planner decides."""

    patch_size: tuple[int, int]
    """Rows and columns that the network sees."""
    batch_size: int
    """Slices in a batch."""
    pool: Kernels
    """Stride and kernel of each reduction of resolution, from full resolution downwards."""
    conv: Kernels
    """Kernel of the convolutions of each stage; one more than reductions."""
    features: tuple[int, ...]
    """Feature maps of each stage."""


def plan_unet_2d(
    fingerprint: Mapping[str, Any], *, base_features: int = BASE_FEATURES, max_pools: int | None = None
) -> Plan:
    """Plan a 2-D U-Net.

    Args:
        fingerprint: `spacing` (3,) target voxel size in mm and `shape` (3,) median voxels of a case at that spacing, both with
            the slice axis first; `cases`; `channels`; `classes` with the background.
        base_features: feature maps at full resolution (nnU-Net: 32; fewer make a small network for a slow machine).
        max_pools: at most this many reductions of an axis; None: no limit (nnU-Net).

    Returns:
        The plan.

    Raises:
        ValueError: a number that is missing or not positive, or slices under 8 pixels.
    """
    spacing, shape = _three(fingerprint, "spacing"), _three(fingerprint, "shape")
    cases, channels, classes = (int(_positive(fingerprint, name)) for name in ("cases", "channels", "classes"))
    median = [round(side) for side in shape]
    if min(median[1:]) < 1 or max(median[1:]) < 2 * _MINIMUM_EDGE:
        raise InputError(
            f"slices of {median[1]} x {median[2]} pixels cannot be halved once",
            remedy=f"give slices with a side of at least {2 * _MINIMUM_EDGE} pixels",
        )
    pool, conv, patch = _topology(spacing[1:], median[1:], max_pools)
    memory = _memory(patch, pool, 30, channels, classes)
    while memory > _REFERENCE:
        # The axis that is largest against the median shrinks by one step of the then valid grid.
        axis = max((0, 1), key=lambda i: (patch[i] / median[1 + i], i))
        smaller = list(patch)
        smaller[axis] -= math.prod(kernel[axis] for kernel in pool)
        steps, _, _ = _topology(spacing[1:], smaller, max_pools)
        patch[axis] -= math.prod(kernel[axis] for kernel in steps)
        pool, conv, patch = _topology(spacing[1:], patch, max_pools)
        memory = _memory(patch, pool, 32, channels, classes)
    most = round(_MAXIMUM_SHARE * cases * math.prod(median) / math.prod(patch))
    return Plan(
        patch_size=(patch[0], patch[1]),
        batch_size=max(1, min(2 * (_REFERENCE // memory), most)),
        pool=pool,
        conv=conv,
        features=tuple(min(base_features * 2**stage, MAX_FEATURES) for stage in range(len(pool) + 1)),
    )


def _topology(
    spacing: Sequence[float], size: Sequence[int], max_pools: int | None
) -> tuple[Kernels, Kernels, list[int]]:
    """Reductions, convolution kernels and padded patch for slices of a size (rule 2 and 3)."""
    steps, sides, counts = list(spacing), list(size), [0, 0]
    pool, conv = [], []
    while True:
        # Axes within a factor of two of each other are convolved together; of two equal groups the first one counts.
        groups = [[i for i in (0, 1) if steps[i] / step < 2 and step / steps[i] < 2] for step in steps]
        largest = max(groups, key=len)
        kernel = tuple(3 if i in largest else 1 for i in (0, 1))
        halved = [
            steps[i] / min(steps) < 2 and sides[i] >= 2 * _MINIMUM_EDGE and (max_pools is None or counts[i] < max_pools)
            for i in (0, 1)
        ]
        if not any(halved):
            break
        for i in (0, 1):
            if halved[i]:
                # An odd side is rounded up: 15 pixels become 8, which can be halved once more.
                steps[i], sides[i], counts[i] = steps[i] * 2, math.ceil(sides[i] / 2), counts[i] + 1
        pool.append((2 if halved[0] else 1, 2 if halved[1] else 1))
        conv.append((kernel[0], kernel[1]))
    conv.append((3, 3))
    grid = [2**count for count in counts]
    return tuple(pool), tuple(conv), [-(-side // step) * step for side, step in zip(size, grid, strict=True)]


def _memory(patch: Sequence[int], pool: Kernels, features: int, channels: int, classes: int) -> int:
    """Numbers in the feature maps of one slice, as nnU-Net estimates them (rule 4)."""
    blocks = 2 * _CONVOLUTIONS + 1  # of encoder and decoder, and the transposed convolution
    pixels = math.prod(patch)
    total = pixels * (features * blocks + channels + classes)
    for stage, kernel in enumerate(pool, 1):
        pixels //= math.prod(kernel)
        features = min(2 * features, _PLANNED_CAP)
        total += (blocks if stage < len(pool) else _CONVOLUTIONS) * pixels * features
    return total


def _three(fingerprint: Mapping[str, Any], name: str) -> list[float]:
    values = [float(value) for value in fingerprint.get(name, ())]
    if len(values) != 3 or not all(value > 0 and math.isfinite(value) for value in values):
        raise InputError(
            f"{name} in the fingerprint is {fingerprint.get(name)}",
            remedy="give three positive numbers, slice axis first",
        )
    return values


def _positive(fingerprint: Mapping[str, Any], name: str) -> float:
    value = fingerprint.get(name)
    if value is None or not float(value) >= 1:
        raise InputError(f"{name} in the fingerprint is {value}", remedy="give a number from 1 on")
    return float(value)
