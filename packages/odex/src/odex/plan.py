"""From the first stage to patch size, batch size and network, as nnU-Net 1 plans its 3d_fullres U-Net (specification 3)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dart_core.errors import InputError
from dart_core.nets.nnunet import MINIMUM_EDGE, GenericUNet, Kernels, Norm, feature_map_memory, plan_patch
from odex import settings as of

BASE_FEATURES, MAX_FEATURES = 32, 320
_REFERENCE = 520_000_000 * 32 // 30
"""Memory estimate that a batch of two may reach; nnU-Net's number is for 30 feature maps."""
_MAXIMUM_SHARE, _MINIMUM_BATCH = 0.05, 2


@dataclass(frozen=True)
class Plan:
    """What preprocessing and network take from the first stage."""

    spacing: tuple[float, ...]
    """(3,) target voxel size in mm, z, y, x."""
    patch_size: tuple[int, ...]
    batch_size: int
    pool: Kernels
    conv: Kernels
    features: tuple[int, ...]
    nonzero: bool
    """Normalise inside the non-zero mask only."""
    labels: tuple[str, ...]
    """Names of the labels 1, 2, ..."""
    merge_labels: bool
    orientation: Literal["RAS", "file"]
    norm: Norm

    @property
    def classes(self) -> int:
        """With the background."""
        return 1 + len(self.labels)

    def network(self) -> GenericUNet:
        """With random weights."""
        return GenericUNet(1, self.classes, self.pool, self.conv, self.features, self.norm)

    def content(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self)

    @classmethod
    def read(cls, content: dict[str, Any]) -> Plan:
        """From JSON.

        Raises:
            ValueError, TypeError: another content.
        """
        plan = cls(**{name: _tuples(value) for name, value in content.items()})
        fitting = len(plan.patch_size) == 3 and len(plan.features) == len(plan.pool) + 1
        if not fitting or plan.batch_size < 1 or plan.orientation not in ("RAS", "file"):
            raise ValueError("the plan is damaged")
        return plan


def plan_unet_3d(
    spacing: Sequence[float],
    shape: Sequence[float],
    cases: int,
    classes: int,
    settings: of.Network | None = None,
) -> tuple[tuple[int, ...], int, Kernels, Kernels, tuple[int, ...]]:
    """Patch size, batch size, reductions, kernels and feature maps.

    Args:
        spacing: (3,) target voxel size in mm, z, y, x.
        shape: (3,) median voxels of a case at that spacing.
        cases: training cases of the stage.
        classes: with the background.
        settings: what the planner may not decide; None: nothing.

    Raises:
        ValueError: cases that cannot be halved once, or a patch size that the reductions do not divide.
    """
    settings = settings or of.Network()
    median = [round(side) for side in shape]
    if min(median) < 1 or max(median) < 2 * MINIMUM_EDGE:
        raise InputError(
            f"cases of {' x '.join(map(str, median))} voxels cannot be halved once",
            remedy=f"give images with a side of at least {2 * MINIMUM_EDGE} voxels",
        )

    def memory_of(patch: Sequence[int], pool: Kernels, again: bool) -> int:
        return feature_map_memory(patch, pool, BASE_FEATURES, MAX_FEATURES, 1, classes)

    pool, conv, patch, memory = plan_patch(spacing, median, memory_of, _REFERENCE, settings.max_pools)
    if settings.patch_size is not None:
        patch = list(settings.patch_size)
        for axis, (side, kernels) in enumerate(zip(patch, zip(*pool, strict=True), strict=True)):
            if side % math.prod(kernels):
                raise InputError(
                    f"--patch-size {' '.join(map(str, patch))}: side {axis + 1} is halved"
                    f" {int(math.log2(math.prod(kernels)))} times",
                    remedy=f"give multiples of {math.prod(kernels)}, or fewer halvings with --max-pools",
                )
    most = max(round(_MAXIMUM_SHARE * cases * math.prod(median) / math.prod(patch)), _MINIMUM_BATCH)
    batch = min(int(2 * max(_REFERENCE / memory, 1)), most) if settings.batch_size is None else settings.batch_size
    features = tuple(min(settings.base_features * 2**stage, MAX_FEATURES) for stage in range(len(pool) + 1))
    return tuple(patch), batch, pool, conv, features


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
