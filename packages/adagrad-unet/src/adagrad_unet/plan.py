"""From the fingerprint of a training set to patch size, batch size and network, as nnU-Net version 1 plans a 2-D U-Net.

Specification 3. Axes are those of nnU-Net: the slice axis first, then the two axes of a slice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dart_core.errors import InputError
from dart_core.nets.nnunet import MINIMUM_EDGE, Kernels, feature_map_memory, plan_patch

BASE_FEATURES = 32
MAX_FEATURES = 480
"""Cap of the network; the planner's estimate of memory assumes another, 512 (specification 8, item 13)."""

_REFERENCE = 19_739_648 * 25  # the memory estimate that a batch of two may reach
_PLANNED_CAP = 512
_MAXIMUM_SHARE = 0.05  # of the training set's voxels in one batch


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
    if min(median[1:]) < 1 or max(median[1:]) < 2 * MINIMUM_EDGE:
        raise InputError(
            f"slices of {median[1]} x {median[2]} pixels cannot be halved once",
            remedy=f"give slices with a side of at least {2 * MINIMUM_EDGE} pixels",
        )

    def memory_of(patch: Sequence[int], pool: Kernels, again: bool) -> int:
        return feature_map_memory(patch, pool, 32 if again else 30, _PLANNED_CAP, channels, classes)

    pool, conv, patch, memory = plan_patch(spacing[1:], median[1:], memory_of, _REFERENCE, max_pools)
    most = round(_MAXIMUM_SHARE * cases * math.prod(median) / math.prod(patch))
    return Plan(
        patch_size=(patch[0], patch[1]),
        batch_size=max(1, min(2 * (_REFERENCE // memory), most)),
        pool=pool,
        conv=conv,
        features=tuple(min(base_features * 2**stage, MAX_FEATURES) for stage in range(len(pool) + 1)),
    )


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
