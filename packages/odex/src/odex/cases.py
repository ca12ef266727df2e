"""From a stage on disk to the arrays that the network sees, and back to the files' grid.

Arrays have nnU-Net's axes: those of a NIfTI file reversed (z, y, x).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dart_core.data.catalog import decathlon
from dart_core.data.datalist import Datalist, Row
from dart_core.data.nnunet import (
    ANISOTROPY,
    CroppedCase,
    crop_case,
    normalise,
    resample_image,
    resample_labels,
    target_spacing,
)
from dart_core.data.scans import frame_of, open_datalist, subject_of
from dart_core.data.volumes import read_labels, read_volume
from dart_core.errors import InputError
from odex import settings as of
from odex.plan import Plan, plan_unet_3d

LEAST_FILLED = 0.5
"""Of each side of the patch, what a case must fill; the rest is padding."""
FOLDS, FOLD_SEED = 5, 12345
"""nnU-Net's folds of cases sorted by name; the first one is held out."""
DATALIST = "datalist.csv"


# --- Stages ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """One stage of a stream."""

    name: str
    rows: Mapping[str, tuple[Row, ...]]
    """By split: train, val, test."""
    labels: Mapping[int, str] | None
    """Label value -> name where a dataset.json says so."""
    source: Path

    def of(self, split: of.Split) -> list[Row]:
        """The rows of a split, each once.

        Raises:
            InputError: there is none.
        """
        names = ("train", "val", "test") if split == "all" else (split,)
        found = list({scan_of(row): row for name in names for row in self.rows[name]}.values())
        if not found:
            raise InputError(
                f"stage {self.name} has no case for {split}",
                where=self.source,
                remedy=f"write {split} into the column split of some subjects, or take --split all",
            )
        return found


def scan_of(row: Row) -> tuple[Path, int | None]:
    """What tells one scan from another: the file, and the frame of a 4-D one."""
    return row.image, frame_of(row)


def read_stage(path: Path, name: str = "") -> Stage:
    """The rows of a stage by split.

    Splits that the list gives are kept. Where it gives none, the first of nnU-Net's five folds is held out: for the reference
    distances and for the test. A Decathlon folder counts as one without splits: its test cases have no labels.

    Raises:
        InputError: anything that is wrong with the list.
    """
    folder = path.is_dir()
    if folder and not (path / "dataset.json").is_file() and (path / DATALIST).is_file():
        path = path / DATALIST
    labels = None
    if (path / "dataset.json").is_file() or path.suffix == ".json":
        task = decathlon.index(path)
        listed, labels = task.cases, task.labels
        given = any(row.split == "val" for row in listed)
    else:
        listed = open_datalist(path)
        given = bool(listed.splits)
    whole = path.resolve().parent if path.name in (DATALIST, "dataset.json") else path.resolve()
    own = whole.name if whole.is_dir() else whole.stem
    if given:
        rows = {split: tuple(row for row in listed if row.split == split) for split in ("train", "val", "test")}
    else:
        rows = _held_out(listed)
    return Stage(name or own, rows, labels, path)


def _held_out(listed: Datalist) -> dict[str, tuple[Row, ...]]:
    ordered = sorted(listed, key=lambda row: row.image.name)
    people = list(dict.fromkeys(map(subject_of, ordered)))
    if len(people) < FOLDS:
        return {"train": tuple(ordered), "val": (), "test": ()}
    from sklearn.model_selection import KFold

    _, out = next(iter(KFold(FOLDS, shuffle=True, random_state=FOLD_SEED).split(people)))
    chosen = {people[i] for i in out}
    train, held_out = (tuple(row for row in ordered if (subject_of(row) in chosen) == out) for out in (False, True))
    return {"train": train, "val": held_out, "test": held_out}


def joined(stages: Sequence[Stage]) -> Stage:
    """The union of stages; their labels too, where all of them name these."""
    names = ("train", "val", "test")
    rows = {split: tuple(row for stage in stages for row in stage.rows[split]) for split in names}
    labels: dict[int, str] | None = {}
    for stage in reversed(stages):
        labels = None if labels is None or stage.labels is None else {**labels, **stage.labels}
    return Stage("+".join(stage.name for stage in stages), rows, labels, stages[0].source)


# --- Cases -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Case:
    """One case, ready for the network."""

    row: Row
    image: NDArray[np.float32]
    """(1, D, H, W) normalised."""
    labels: NDArray[np.int8]
    """(D, H, W), OUTSIDE where the image is zero."""
    classes: dict[int, NDArray[np.int64]]
    """Voxels (n, 3) of each foreground class that there is."""


def read_case(row: Row, data: of.Data, names: Mapping[int, str] | None = None, need_mask: bool = True) -> CroppedCase:
    """Read image and labels of a case and crop them to the box of its non-zero voxels.

    Args:
        row: the case.
        data: how to read it.
        names: labels that there may be (from a dataset.json).
        need_mask: a row without mask is an error.

    Raises:
        InputError: anything that `read_volume` and `read_labels` find wrong, no mask, a label that is not listed.
    """
    frame = frame_of(row)
    if need_mask and row.mask is None:
        raise InputError("no mask", where=row.where("mask"), remedy="give the mask of every image")
    volume = read_volume(row.image, "RAS" if data.orientation == "RAS" else None, frame=frame)
    labels = None
    if row.mask is not None:
        # The Decathlon's volume 243 has stray labels of -2 (specification 5).
        labels = read_labels(row.mask, volume, frame, negative_as_background=True)
        strange = sorted(set(np.unique(labels).tolist()) - set(names)) if names is not None else []
        if strange and names is not None:
            listed = ", ".join(f"{value} = {name}" for value, name in names.items())
            raise InputError(
                f"the label {strange[0]} is not in dataset.json (there: {listed})",
                where=row.mask,
                remedy="add it to 'labels' in dataset.json, or correct the file",
            )
        if data.merge_labels:
            labels = (labels > 0).astype(labels.dtype)
        if labels.max(initial=0) > 127:
            raise InputError(
                f"has label {labels.max()}",
                where=row.mask,
                remedy="number the labels from 1, or leave out --no-merge-labels",
            )
    return crop_case([volume], labels)


def make_plan(stage: Stage, data: of.Data, settings: of.Network) -> Plan:
    """Plan preprocessing and network from the training cases of the first stage.

    Raises:
        InputError: a case that cannot be read, or no label in any of them.
    """
    spacings, sizes, ratios, found = [], [], [], {0}
    rows = stage.of("train")
    for row in rows:
        raw = read_case(row, data, stage.labels)
        assert raw.labels is not None  # the mask was needed
        spacings.append(raw.spacing)
        sizes.append(raw.inside.shape)
        ratios.append(raw.inside.size / math.prod(raw.file.array.shape))
        found |= {int(label) for label in np.unique(raw.labels) if label > 0}
    if len(found) < 2:
        raise InputError("no mask of the stage has a label", where=stage.source, remedy="check the masks")
    if data.merge_labels:
        names: tuple[str, ...] = ("foreground",)
    elif stage.labels is not None:
        names = tuple(stage.labels[value] for value in sorted(stage.labels) if value)
    else:
        names = tuple(str(value) for value in range(1, max(found) + 1))
    spacing = target_spacing(spacings, sizes)
    median = np.median([np.asarray(s) / spacing * np.asarray(size) for s, size in zip(spacings, sizes, strict=True)], 0)
    patch, batch, pool, conv, features = plan_unet_3d(spacing, median.tolist(), len(rows), 1 + len(names), settings)
    return Plan(
        spacing=spacing, patch_size=patch, batch_size=batch, pool=pool, conv=conv, features=features,
        nonzero=bool(np.median(ratios) < 0.75), labels=names, merge_labels=data.merge_labels,
        orientation=data.orientation, norm=settings.norm,
    )  # fmt: skip


def coarse_axis(spacing: Sequence[float], target: Sequence[float]) -> int | None:
    """The axis whose voxels are more than three times as long as the shortest ones, before or else after; None: there is none.

    nnU-Net resamples such cases slice by slice and takes the nearest slice along that axis. Two such axes count as none.
    """
    for steps in (spacing, target):
        if max(steps) > ANISOTROPY * min(steps):
            longest = [axis for axis, step in enumerate(steps) if step == max(steps)]
            return longest[0] if len(longest) == 1 else None
    return None


def resample(image: NDArray[Any], shape: Sequence[int], axis: int | None, order: Literal[1, 3]) -> NDArray[np.float32]:
    """(C, D, H, W) resampled to a shape (3,); with a coarse axis slice by slice, and by the nearest slice along it."""
    if axis is None:
        return resample_image(image, shape, order)
    slices = np.moveaxis(image, 1 + axis, 1)
    across = [side for other, side in enumerate(shape) if other != axis]
    # One by one: nnU-Net keeps each slice to its own range.
    inside = np.stack([[resample_image(plane, across, order) for plane in channel] for channel in slices])
    return resample_image(np.moveaxis(inside, 1, 1 + axis), shape, 0)


def resample_map(labels: NDArray[Any], shape: Sequence[int], axis: int | None) -> NDArray[np.int8]:
    """A label map (D, H, W) resampled to a shape (3,), likewise."""
    if axis is None:
        return resample_labels(labels, shape)
    across = [side for other, side in enumerate(shape) if other != axis]
    inside = np.moveaxis(resample_labels(np.moveaxis(labels, axis, 0), across), 0, axis)
    return resample_image(inside, shape, 0).astype(np.int8)


def prepare(raw: CroppedCase, plan: Plan) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Resample and normalise.

    Returns:
        image (1, D, H, W), and labels (D, H, W), which without a mask are 0 inside the non-zero mask.
    """
    shape = [
        max(1, round(side * step / target))
        for side, step, target in zip(raw.inside.shape, raw.spacing, plan.spacing, strict=True)
    ]
    axis = coarse_axis(raw.spacing, plan.spacing)
    image = resample(raw.image, shape, axis, 3)
    labels = resample_map(raw.known_labels, shape, axis)
    return normalise(image, labels >= 0 if plan.nonzero else None), labels


def load_case(row: Row, plan: Plan, names: Mapping[int, str] | None = None) -> Case:
    """Read and prepare a case with its labels.

    Raises:
        InputError: as `read_case`, a label that the plan does not have, or a case that fills less than half of the patch.
    """
    image, labels = prepare(read_case(row, reading(plan), names), plan)
    highest = int(labels.max(initial=0))
    if highest >= plan.classes:
        raise InputError(
            f"has label {highest}, the plan knows 1 to {plan.classes - 1} ({', '.join(plan.labels)})",
            where=row.mask,
            remedy="correct the mask",
        )
    check_size(row, image, plan)
    classes = {label: np.argwhere(labels == label) for label in range(1, plan.classes)}
    return Case(row, image, labels, {label: voxels for label, voxels in classes.items() if len(voxels)})


def check_size(row: Row, image: NDArray[Any], plan: Plan) -> None:
    """Raise an InputError for a case that is much smaller than the patch; a little is padded, as nnU-Net does."""
    if any(side < LEAST_FILLED * patch for side, patch in zip(image.shape[1:], plan.patch_size, strict=True)):
        raise InputError(
            f"has {' x '.join(map(str, image.shape[1:]))} voxels (z, y, x) at the pool's voxel size, less than half of its"
            f" patch of {' x '.join(map(str, plan.patch_size))}",
            where=row.image,
            remedy="leave the case out, or plan a first stage with a smaller --patch-size",
        )


def check_foreground(row: Row, labels: NDArray[Any]) -> None:
    """Raise an InputError for a training case in whose mask there is nothing: it would teach that scans are empty."""
    if labels.max(initial=0) < 1:
        raise InputError(
            "nothing is labelled in this mask of a training case", where=row.mask,
            remedy="correct the mask, or leave the case out",
        )  # fmt: skip


def reading(plan: Plan) -> of.Data:
    """How the cases of a pool are read."""
    return of.Data(plan.merge_labels, plan.orientation)


def to_file(probabilities: NDArray[Any], raw: CroppedCase, plan: Plan) -> NDArray[np.uint8]:
    """Labels (x, y, z) on the grid of the file: probabilities resampled linearly to the crop, the largest one, placed back.

    Args:
        probabilities: (K, D, H, W) on the network's grid.
        raw: the case.
        plan: of the pool.
    """
    axis = coarse_axis(raw.spacing, plan.spacing)
    return raw.on_file_grid(resample(probabilities, raw.inside.shape, axis, 1).argmax(0))


def stage_cases(stage: Stage) -> str:
    """How many cases of which split, in words."""
    return ", ".join(f"{len(stage.rows[split])} {split}" for split in ("train", "val", "test"))


def subjects(rows: Sequence[Row]) -> int:
    """Different subjects."""
    return len({subject_of(row) for row in rows})
