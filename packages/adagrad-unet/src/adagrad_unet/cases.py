"""From files to the arrays that the network sees, and back to the files' grid; and the recipe for it, from a training set."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adagrad_unet import settings as of
from adagrad_unet.plan import Plan, plan_unet_2d
from adagrad_unet.preprocess import (
    normalise,
    resample_labels,
    resample_slices,
    target_spacing,
)
from adagrad_unet.rows import channel_files, check_channels
from dart_core.data.cache import ArrayCache
from dart_core.data.datalist import Row
from dart_core.data.nnunet import CroppedCase, crop_case
from dart_core.data.scans import frame_of
from dart_core.data.volumes import read_labels, read_volume
from dart_core.errors import InputError

AXES = {"z": 0, "y": 1, "x": 2}
# Part of the name of a cached array: another number whenever preprocessing gives other values.
_CACHE_VERSION = 1


@dataclass(frozen=True)
class Recipe:
    """Everything that preprocessing and the network take from the training set; goes with the weights."""

    spacing: tuple[float, ...]
    """Target voxel size (3,) in mm, slice axis first; slices keep their own distance."""
    slice_axis: int
    """Axis of (z, y, x) that slices are cut along."""
    nonzero: bool
    """Normalise inside the non-zero mask only."""
    channels: int
    labels: tuple[str, ...]
    """Names of the labels 1, 2, ..."""
    orientation: Literal["RAS", "file"]
    merge_labels: bool
    plan: Plan

    @property
    def classes(self) -> int:
        """Classes with the background."""
        return 1 + len(self.labels)

    def as_text(self) -> str:
        """As JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_text(cls, text: str, where: Path) -> Recipe:
        """From JSON.

        Raises:
            InputError: damaged, or of something else.
        """
        try:
            values = json.loads(text)
            plan = {name: _tuples(value) for name, value in values.pop("plan").items()}
            recipe = cls(**{name: _tuples(value) for name, value in values.items()}, plan=Plan(**plan))
            _check_recipe(recipe)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"holds no plan ({error})", where=where, remedy="give what `adagrad-unet plan` wrote"
            ) from error
        return recipe


def _check_recipe(recipe: Recipe) -> None:
    """Raise a ValueError where a plan that somebody has edited cannot be carried out."""
    plan, stages = recipe.plan, len(recipe.plan.features)
    if len(recipe.spacing) != 3 or not all(0 < side < math.inf for side in recipe.spacing):
        raise ValueError(f"spacing is {' '.join(map(str, recipe.spacing))}, not three positive numbers in mm")
    if recipe.slice_axis not in AXES.values() or recipe.orientation not in ("RAS", "file"):
        raise ValueError(f"slice_axis is {recipe.slice_axis!r}, orientation {recipe.orientation!r}")
    if not recipe.labels or not all(isinstance(name, str) for name in recipe.labels):
        raise ValueError("labels are no names")
    if len(plan.pool) + 1 != stages or len(plan.conv) != stages:
        raise ValueError("pool, conv and features do not fit each other")
    pairs = (*plan.pool, *plan.conv, plan.patch_size)
    numbers = (recipe.channels, plan.batch_size, *plan.features, *(side for pair in pairs for side in pair))
    if not all(len(pair) == 2 for pair in pairs) or not all(type(number) is int and number > 0 for number in numbers):
        raise ValueError("channels, batch_size, features, pool, conv and patch_size are not all positive whole numbers")
    for side, *kernels in zip(plan.patch_size, *plan.pool, strict=True):
        if side % math.prod(kernels):
            raise ValueError(f"patch_size {side} is not a multiple of {math.prod(kernels)}")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


@dataclass(frozen=True, eq=False)
class Case:
    """One case, ready for the network."""

    row: Row
    image: NDArray[np.float32]
    """(C, S, H, W) normalised. It may lie in a cache file, read-only."""
    labels: NDArray[np.int8] | None
    """(S, H, W), OUTSIDE where the image is zero."""


def read_case(row: Row, cases: of.Cases | Recipe, channels: int, need_mask: bool = True) -> CroppedCase:
    """Read the channels and the labels of a case and crop them to the box of its non-zero voxels.

    Raises:
        InputError: anything that `read_volume` and `read_labels` find wrong, channels on different grids, no mask.
    """
    frame = frame_of(row)
    codes = "RAS" if cases.orientation == "RAS" else None
    if need_mask and row.mask is None:
        raise InputError("no mask", where=row.where("mask"), remedy="give the mask of every image")
    check_channels([row], channels)
    volumes = [read_volume(file, codes, frame=number) for file, number in channel_files(row)]
    first = volumes[0]
    for volume in volumes[1:]:
        if volume.array.shape != first.array.shape or not np.allclose(volume.affine, first.affine, atol=1e-3):
            raise InputError(
                f"lies on another grid than the first channel {row.image.name}",
                where=volume.path,
                remedy="resample the channels of a case onto one grid",
            )
    labels = None
    if row.mask is not None:
        labels = read_labels(row.mask, first, frame)
        if cases.merge_labels:
            labels = (labels > 0).astype(labels.dtype)
        if labels.max(initial=0) > 127:
            raise InputError(
                f"has label {labels.max()}", where=row.mask, remedy="number the labels from 1, or give --merge-labels"
            )
    return crop_case(volumes, labels)


def make_recipe(rows: Sequence[Row], cases: of.Cases, planning: of.Planning, names: tuple[str, ...] = ()) -> Recipe:
    """Read the training set once and plan preprocessing and network from its fingerprint.

    Args:
        rows: the training set.
        cases: how to read it.
        planning: what the planner may not decide.
        names: of the labels; where there are none, they are numbered.

    Raises:
        InputError: a case that cannot be read, labels that have gaps or that `names` does not name.
    """
    channels = check_channels(rows)
    spacings, sizes, ratios, found = [], [], [], {0}
    for row in rows:
        raw = read_case(row, cases, channels)
        assert raw.labels is not None  # the mask was needed
        spacings.append(raw.spacing)
        sizes.append(raw.inside.shape)
        ratios.append(raw.inside.size / math.prod(raw.file.array.shape))
        found |= {int(label) for label in np.unique(raw.labels) if label > 0}
        if names and max(found) > len(names):
            raise InputError(
                f"has label {max(found)}, and the labels are {', '.join(names)}",
                where=row.mask,
                remedy="correct the mask, or name all labels with --labels",
            )
        if not names and max(found) > 32:
            raise InputError(
                f"has label {max(found)}", where=row.mask, remedy="number the labels from 1, or give --merge-labels"
            )
    if len(found) < 2:
        raise InputError("no mask of the training set has a label", where=rows[0].source, remedy="check the masks")
    if not names:
        missing = sorted(set(range(max(found) + 1)) - found)
        if missing:
            raise InputError(
                f"the masks have the labels {sorted(found)} and none has {missing[0]}",
                where=rows[0].source,
                remedy="number the labels from 1 without gaps, or name all of them with --labels",
            )
        names = tuple(str(label) for label in range(1, max(found) + 1)) if max(found) > 1 else ("foreground",)
    target = np.asarray(target_spacing(spacings, sizes))
    # Headers round: 1 and 1.00001 mm are equal.
    axis = int(target.round(4).argmax()) if planning.slice_axis == "auto" else AXES[planning.slice_axis]
    order = [axis, *(other for other in range(3) if other != axis)]
    if planning.pixel is not None:
        target[order[1:]] = planning.pixel
    median = np.median(
        [np.asarray(step) / target * np.asarray(size) for step, size in zip(spacings, sizes, strict=True)], 0
    )
    plan = plan_unet_2d(
        {
            "spacing": target[order].tolist(),
            "shape": median[order].tolist(),
            "cases": len(rows),
            "channels": channels,
            "classes": 1 + len(names),
        },
        base_features=planning.base_features,
        max_pools=planning.max_pools,
    )
    return Recipe(
        spacing=tuple(target[order].tolist()),
        slice_axis=axis,
        nonzero=bool(np.median(ratios) < 0.75),
        channels=channels,
        labels=names,
        orientation=cases.orientation,
        merge_labels=cases.merge_labels,
        plan=_replanned(plan, planning),
    )


def _replanned(plan: Plan, planning: of.Planning) -> Plan:
    """The plan with what the user wants otherwise."""
    if planning.patch_size is not None:
        for axis, (side, kernels) in enumerate(zip(planning.patch_size, zip(*plan.pool, strict=True), strict=True)):
            if side % math.prod(kernels):
                raise InputError(
                    f"--patch-size {planning.patch_size[0]} {planning.patch_size[1]}: side {axis + 1} is halved"
                    f" {int(math.log2(math.prod(kernels)))} times",
                    remedy=f"give multiples of {math.prod(kernels)}, or fewer halvings with --max-pools",
                )
        plan = dataclasses.replace(plan, patch_size=planning.patch_size)
    return plan if planning.batch_size is None else dataclasses.replace(plan, batch_size=planning.batch_size)


def prepare(raw: CroppedCase, recipe: Recipe) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Move the slice axis to the front, resample the slices, normalise.

    Returns:
        image (C, S, H, W), and labels (S, H, W), which without a mask are 0 inside the non-zero mask and OUTSIDE elsewhere.
    """
    image = np.moveaxis(raw.image, 1 + recipe.slice_axis, 1)
    labels = np.moveaxis(raw.known_labels, recipe.slice_axis, 0)
    shape = plane(raw, recipe)
    labels = resample_labels(labels, shape)
    image = resample_slices(image, shape, 3)
    return normalise(image, labels >= 0 if recipe.nonzero else None), labels


def plane(raw: CroppedCase, recipe: Recipe) -> tuple[int, int]:
    """Rows and columns of the slices after resampling."""
    axes = [axis for axis in range(3) if axis != recipe.slice_axis]
    rows, columns = (
        max(1, round(raw.inside.shape[axis] * raw.spacing[axis] / step))
        for axis, step in zip(axes, recipe.spacing[1:], strict=True)
    )
    return rows, columns


def load_case(row: Row, recipe: Recipe, cache: Path | None = None) -> Case:
    """Read and prepare a case with its labels, for training.

    Raises:
        InputError: as `read_case`, or a label that the plan does not have.
    """

    def compute() -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        image, labels = prepare(read_case(row, recipe, recipe.channels), recipe)
        check_labels(row, labels, recipe)
        return image, labels

    if cache is None or row.mask is None:  # without mask `compute` says so
        return Case(row, *compute())
    check_channels([row], recipe.channels)
    parameters = {
        "version": _CACHE_VERSION,
        "spacing": recipe.spacing[1:],
        "axis": recipe.slice_axis,
        "nonzero": recipe.nonzero,
        "orientation": recipe.orientation,
        "merge": recipe.merge_labels,
        "classes": recipe.classes,
        "frame": frame_of(row),
    }
    files = [*(file for file, _ in channel_files(row)), row.mask]

    def together() -> NDArray[np.float32]:
        image, labels = compute()
        return np.concatenate((image, labels[None].astype(np.float32)))

    both = ArrayCache(cache).get(parameters, files, together, dtype="float32", memory_map=True)
    return Case(row, both[:-1], both[-1].astype(np.int8))


def check_labels(row: Row, labels: NDArray[Any], recipe: Recipe) -> None:
    """Raise an InputError where a label is outside the plan."""
    highest = int(labels.max(initial=0))
    if highest >= recipe.classes:
        raise InputError(
            f"has label {highest}, the plan knows 1 to {recipe.classes - 1} ({', '.join(recipe.labels)})",
            where=row.mask,
            remedy="correct the mask, or plan with all labels",
        )


def to_file(probabilities: NDArray[Any], raw: CroppedCase, recipe: Recipe) -> NDArray[np.uint8]:
    """Labels on the grid of the file: probabilities resampled linearly to the cropped slices, the largest one, placed back.

    Args:
        probabilities: (K, S, H, W) on the network's grid.
        raw: the case.
        recipe: of the network.

    Returns:
        (x, y, z) labels, 0 outside the non-zero box.
    """
    axes = [axis for axis in range(3) if axis != recipe.slice_axis]
    cropped = resample_slices(probabilities, [raw.inside.shape[axis] for axis in axes], 1).argmax(0)
    return raw.on_file_grid(np.moveaxis(cropped, 0, recipe.slice_axis))


def metadata_recipe(metadata: Mapping[str, str], where: Path) -> Recipe:
    """The recipe that goes with a weight file."""
    return Recipe.from_text(metadata.get("recipe", ""), where)
