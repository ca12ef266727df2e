"""From files to the arrays that the networks see, and back to the files' grid (specification 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catenorm import settings as of
from catenorm.preprocess import ORGANS, Place, kept_image, kept_labels, place_of, relabel, resize_nearest
from dart_core.data.cache import ArrayCache
from dart_core.data.catalog import multi_organ
from dart_core.data.datalist import Row
from dart_core.data.scans import frame_of
from dart_core.data.volumes import Volume, read_grid, read_labels, read_volume, scale_z_score
from dart_core.errors import InputError, SettingError

LEAST_SLICES = 3
"""The first and the last slice are context only."""
# Part of the name of a cached array: another number whenever preprocessing gives other values.
_CACHE_VERSION = 2


@dataclass(frozen=True, eq=False)
class Case:
    """One case, ready for the network."""

    row: Row
    image: NDArray[np.float32]
    """(Z, H, W) z-scores; it may lie in a cache file, read-only."""
    label: NDArray[np.uint8] | None
    """(Z, H, W) classes, 0 for background."""
    spacing: tuple[float, float, float]
    """(z, y, x) mm."""
    place: Place
    file: Volume
    """The file's grid in RAS; its voxels are not held."""
    reversed_rows: bool
    """Rows run from the front to the back of the patient, as preprocessing turns CTs."""

    @property
    def name(self) -> str:
        """File or series name."""
        return self.row.image.name.removesuffix(".gz").removesuffix(".nii")

    @property
    def truth(self) -> NDArray[np.uint8]:
        """The labels; an InputError where there are none."""
        if self.label is None:
            raise InputError("no mask", where=self.row.where("mask"), remedy="give the mask of every case")
        return self.label

    def to_file(self, classes: NDArray[Any]) -> NDArray[np.uint8]:
        """Classes (Z, H, W) on the grid of the file, (x, y, z) in RAS; every voxel takes the nearest one, or 0 outside."""
        resized = resize_nearest(classes, self.place.shape)
        resized = resized[:, ::-1] if self.reversed_rows else resized
        full = np.zeros(tuple(reversed(self.file.array.shape)), dtype=np.uint8)
        full[self.place.first : self.place.first + len(resized)] = resized
        return np.ascontiguousarray(full.T)

    def shown(self, slice_: NDArray[Any]) -> NDArray[Any]:
        """A slice (H, W) as (x, y) in RAS, which is how `dart_core.figures` wants it."""
        return np.ascontiguousarray((slice_[::-1] if self.reversed_rows else slice_).T)


def load_case(row: Row, cases: of.Cases, need_mask: bool = False) -> Case:
    """Read and preprocess one case; its labels too where the row has any.

    Without labels a CT keeps all its slices. Labels that --keep leaves out become background, and the others are numbered in
    ascending order; which slices are kept does not depend on that.

    Args:
        row: image, mask; a column z_divisor divides the number of slices of a CT.
        cases: preprocessing, labels, size, cache.
        need_mask: a row without mask is an error.

    Raises:
        InputError: anything that the readers of volumes find wrong, a label that has no name, a CT without any organ, fewer than
            three slices, no contrast, no mask where one is needed.
    """
    if need_mask and row.mask is None:
        raise InputError("no mask", where=row.where("mask"), remedy="give the mask of every case")
    frame, is_ct = frame_of(row), cases.is_ct
    file = read_grid(row.image, frame=frame)
    classes = None if row.mask is None else _classes(row, file, cases)
    columns, rows, depth = file.array.shape
    place = Place(0, (depth, rows, columns))
    if classes is not None and is_ct:
        try:
            place = place_of(classes)
        except InputError as error:
            raise InputError(error.problem, where=row.mask, remedy=error.remedy) from error
    divisor = _divisor(row) if is_ct else 1
    shape = (place.shape[0] // divisor, cases.side or rows, cases.side or columns)
    if shape[0] < LEAST_SLICES:
        raise InputError(
            f"{shape[0]} slices are left, at least {LEAST_SLICES} are needed",
            where=row.image,
            remedy="leave this case out",
        )

    def compute() -> NDArray[np.float32]:
        scaled = scale_z_score(kept_image(read_volume(row.image, frame=frame).array.T, place, shape, is_ct))
        if not scaled.any():
            raise InputError("the image has no contrast", where=row.image, remedy="export it again or leave it out")
        return scaled

    # A folder of DICOM slices is no file whose change the cache would notice by its time.
    if cases.cache is None or row.image.is_dir():
        image = compute()
    else:
        parameters = {
            "version": _CACHE_VERSION, "preprocessing": cases.preprocessing, "frame": frame, "shape": shape, "first": place.first,
            "kept": place.shape[0],  # a z_divisor makes the same shape of several numbers
        }  # fmt: skip
        image = ArrayCache(cases.cache).get(parameters, [row.image], compute, dtype="float32", memory_map=True)
    label = None
    if classes is not None:
        names, kept = all_names(cases), names_of(cases)
        label = relabel(kept_labels(classes, place, shape, is_ct), [1 + names.index(name) for name in kept])
    steps = [side * old / new for side, old, new in zip(reversed(file.spacing), place.shape, shape, strict=True)]
    z, y, x = (round(step, 5) for step in steps)  # headers leave an error of a few parts in 10 million
    return Case(row, image, label, (z, y, x), place, file, is_ct)


def load_cases(rows: Sequence[Row], cases: of.Cases, training: bool = False) -> list[Case]:
    """Load one case after the other.

    Args:
        rows: of `divide`.
        cases: preprocessing.
        training: masks are needed, with every organ, and all slices must have one size.

    Raises:
        InputError: as `load_case` and `check_organs`, or slices of another size than those of the first case.
    """
    loaded: list[Case] = []
    for row in rows:
        loaded.append(load_case(row, cases, need_mask=training))
        if training:
            check_organs(loaded[-1], cases)
            check_sizes(loaded[0], loaded[-1])
    return loaded


def check_organs(case: Case, cases: of.Cases) -> None:
    """Raise an InputError for an organ that a case lacks, unless that is allowed."""
    if cases.missing_organs == "allow":
        return
    there = set(np.unique(case.truth).tolist())
    missing = [name for number, name in enumerate(names_of(cases), 1) if number not in there]
    if missing:
        raise InputError(
            f"has no {' and no '.join(missing)}",
            where=case.row.mask,
            remedy="correct the mask, or give --missing-organs allow if the patient has none",
        )


def check_sizes(first: Case, other: Case) -> None:
    """Raise an InputError where the slices of two cases differ in size."""
    if first.image.shape[1:] != other.image.shape[1:]:
        (a, b), (c, d) = first.image.shape[1:], other.image.shape[1:]
        raise InputError(
            f"its slices have {c} x {d} pixels, those of {first.row.image.name} {a} x {b}",
            where=other.row.image,
            remedy=f"give --size, for example {max(a, b)}",
        )


def all_names(cases: of.Cases) -> tuple[str, ...]:
    """Names of all labels of the files that are used, in the order of their numbers."""
    names = {"prostate": ("prostate",), "ct-single": tuple(ORGANS["single"]), "ct-multi": tuple(ORGANS["multi"])}
    return names.get(cases.preprocessing, cases.labels or ("foreground",))


def names_of(cases: of.Cases) -> tuple[str, ...]:
    """Names of the classes 1, 2, ...: all, or those that --keep names, in the order of their labels.

    Raises:
        SettingError: --keep names something else.
    """
    names = all_names(cases)
    if unknown := [name for name in cases.keep if name not in names]:
        raise SettingError(f"--keep names {unknown[0]}", remedy=f"the labels are {', '.join(names)}")
    return tuple(name for name in names if not cases.keep or name in cases.keep)


def _classes(row: Row, file: Volume, cases: of.Cases) -> NDArray[np.uint8]:
    """All classes of a label file (z, y, x), before --keep."""
    assert row.mask is not None
    if row.labels.get("annotation") == multi_organ.ANNOTATION:
        codes = multi_organ.read_codes(row.mask, file, reverse_slices=row.image.is_dir())
    else:
        codes = read_labels(row.mask, file, frame_of(row))
    codes = codes.T
    if cases.preprocessing == "prostate":
        return (codes > 0).astype(np.uint8)
    if cases.is_ct:
        return relabel(codes, list(ORGANS[cases.preprocessing.removeprefix("ct-")].values())).astype(np.uint8)
    names, highest = all_names(cases), int(codes.max(initial=0))
    if highest > len(names):
        raise InputError(
            f"has label {highest}, and there {'is one name' if len(names) == 1 else f'are {len(names)} names'}"
            f" ({', '.join(names)})",
            where=row.mask,
            remedy="name the labels 1, 2, ... with --labels, or correct the mask",
        )
    return codes.astype(np.uint8)


def _divisor(row: Row) -> int:
    text = row.labels.get("z_divisor", "1")
    if not text.isdecimal() or int(text) < 1:
        raise InputError(
            f"{text!r} is no whole number from 1", where=row.where("z_divisor"), remedy="leave it empty for 1"
        )
    return int(text)
