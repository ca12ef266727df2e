"""From a datalist to normalised scans on one grid, and back to files on the scan's own grid (specification 5).

Scans are read in RAS orientation, so slices along the last axis are axial. Results go back through the same steps.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from dart_core.data.datalist import Row
from dart_core.data.scans import open_datalist
from dart_core.data.volumes import Volume, read_mask, read_volume, resample_to, scale_percentile, write_volume
from dart_core.errors import InputError
from fda_mri import settings as of

MNI152_SHAPE = (182, 218, 182)
PAPER_SLICES = 172
SPLIT_SEED = 42
FOLD_SEED = 0xBADCAFE

Role = Literal["train", "source_val", "target_train", "val", "test", "all"]


@dataclass(frozen=True)
class Grid:
    """The voxel grid that all scans of a bank share."""

    shape: tuple[int, int, int]
    affine: np.ndarray
    """(4, 4) voxel to world in mm."""

    @classmethod
    def of(cls, volume: Volume) -> Grid:
        """The grid of a volume."""
        h, w, slices = volume.array.shape
        return cls((h, w, slices), volume.affine)

    @classmethod
    def from_json(cls, text: str) -> Grid:
        """The grid that `to_json` wrote."""
        stored = json.loads(text)
        return cls(tuple(stored["shape"]), np.array(stored["affine"]))

    def to_json(self) -> str:
        """As text, for the metadata of a weight file or bank."""
        return json.dumps({"shape": self.shape, "affine": self.affine.tolist()})

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size in mm per axis."""
        # Rounded as in `evaluate`: an error of a few parts in 10 million must not decide what lies within 1 mm.
        return tuple(round(float(side), 5) for side in np.linalg.norm(self.affine[:3, :3], axis=0))

    def volume(self, array: np.ndarray) -> Volume:
        """An array on this grid as a volume."""
        return Volume(array, self.affine)


@dataclass(frozen=True)
class Scan:
    """One scan, ready for the method."""

    row: Row
    volume: np.ndarray
    """(H, W, Z) float32, normalised to [0, 1], the kept slices only."""
    mask: np.ndarray | None
    """(H, W, Z) bool on the same grid."""
    mask_above: bool
    """The mask reaches into the dropped slices."""
    grid: Grid
    """The grid of the kept and the dropped slices together."""
    file: Volume
    """The file as read; its voxels are not held."""

    @property
    def truth(self) -> np.ndarray:
        """The mask of a scan that was loaded with `need_mask`."""
        assert self.mask is not None
        return self.mask

    @property
    def name(self) -> str:
        """File name without .nii or .nii.gz."""
        return self.row.image.name.removesuffix(".gz").removesuffix(".nii")

    def write(self, path: Path, values: np.ndarray, threshold: float | None = None) -> Path:
        """Write (H, W, Z) values on the grid of the scan's own file; dropped slices get 0.

        Args:
            path: .nii or .nii.gz file.
            values: on the kept slices.
            threshold: write a mask of values above it (uint8) instead of the values (float32).
        """
        full = np.zeros(self.grid.shape, np.float32)
        full[..., : values.shape[-1]] = values
        volume = self.grid.volume(full)
        if self.grid.shape != self.file.array.shape or not np.allclose(self.grid.affine, self.file.affine, atol=1e-3):
            volume = resample_to(volume, self.file)
        if threshold is None:
            return write_volume(path, volume.array, self.file, np.float32)
        return write_volume(path, volume.array > threshold, self.file, np.uint8)


def select(scans: of.Scans, role: Role = "all") -> list[Row]:
    """The rows of one site that play a role.

    A split column decides where there is one (source: train and val; target: val and test, and train for a baseline that
    learns from the target). Otherwise the paper's rule does (specification 5.4), in which all scans of one subject stay
    together.

    Raises:
        InputError: no such site, several sites and none named, or too few scans for the role.
    """
    datalist = open_datalist(scans.datalist, published_splits=False)
    if scans.site:
        datalist = datalist.select(site=scans.site)
    elif len(datalist.sites) > 1:
        raise InputError(
            f"holds {len(datalist.sites)} sites", where=scans.datalist, remedy=f"name one: --site {datalist.sites[0]}"
        )
    rows = list(datalist)
    if role == "all":
        return rows
    split = {"train": "train", "source_val": "val", "target_train": "train", "val": "val", "test": "test"}[role]
    if any(row.split for row in rows) and scans.fold is None:
        chosen = [row for row in rows if row.split == split]
        if not chosen:
            raise InputError(
                f"site {scans.site or '(all)'} has no row with split {split}",
                where=scans.datalist,
                remedy="fill the split column, or leave it out to use the paper's rule",
            )
        return chosen
    subjects: dict[str | Path, list[Row]] = {}
    for row in rows:
        subjects.setdefault(row.subject or row.image, []).append(row)
    groups = list(subjects.values())
    where = f"{scans.datalist}, site {scans.site}"
    try:
        chosen_indices = split_indices(len(groups), scans.fold)[role]
    except InputError as error:
        raise InputError(error.problem, where=where, remedy=error.remedy) from error
    if not chosen_indices:
        raise InputError(
            f"has scans of {len(groups)} subjects, which validate and test by the paper's rule: none is left to train on",
            where=where,
            remedy="add scans, or say in a split column which are train, val and test",
        )
    return [row for index in chosen_indices for row in groups[index]]


def split_indices(count: int, fold: int | None = None) -> dict[str, list[int]]:
    """The paper's split of a site's subjects in ascending order (specification 5.4; there each has one scan).

    Args:
        count: subjects of the site.
        fold: None for transfer between sites; 0, 1 or 2 for the in-domain score by 3-fold cross-validation.

    Returns:
        train and source_val: all but 2, and those 2, where the site is the source; val and test: 10 and 10, where it
        is the target (half and half where there are fewer than 20); target_train: those of the target that neither
        validate nor test. In a fold all come from this site: test is the held-out third, source_val and val 2 of the
        others, train and target_train the rest.

    Raises:
        InputError: too few subjects.
    """
    from sklearn.model_selection import KFold, train_test_split

    fewest = 3 if fold is None else 6
    if count < fewest:
        raise InputError(
            f"has scans of {count} subjects, and the paper's rule needs at least {fewest}",
            remedy="add scans, or say in a split column which are train, val and test",
        )
    everything = list(range(count))
    if fold is not None:
        others, test = list(KFold(3, shuffle=True, random_state=FOLD_SEED).split(everything))[fold]
        train, val = train_test_split(others.tolist(), test_size=2, random_state=FOLD_SEED)
        train.sort()
        return {"train": train, "source_val": val, "target_train": train, "val": val, "test": test.tolist()}
    train, source_val = train_test_split(everything, test_size=2, random_state=SPLIT_SEED)
    held_out = everything
    if count > 20:
        _, held_out = train_test_split(everything, test_size=20, random_state=SPLIT_SEED)
    test, val = train_test_split(held_out, test_size=len(held_out) // 2, random_state=SPLIT_SEED)
    unused = sorted(set(everything) - {*val, *test})
    return {"train": sorted(train), "source_val": source_val, "target_train": unused, "val": val, "test": test}


def load(rows: Sequence[Row], scans: of.Scans, grid: Grid | None = None, need_mask: bool = False) -> Iterator[Scan]:
    """Read, check and normalise scans one after the other.

    Args:
        rows: which.
        scans: slices to keep, and whether to resample.
        grid: grid that the scans must have or are resampled to; None takes that of the first.
        need_mask: a row without mask is an error.

    Raises:
        InputError: anything `read_volume` and `read_mask` find wrong; another grid without --resample; an empty slice
            between others.
    """
    for row in rows:
        scan = _load(row, scans, grid, need_mask)
        grid = grid or scan.grid
        yield scan


def usual_slices(shape: tuple[int, ...]) -> int:
    """Slices that are kept of a scan of this shape where nobody says otherwise (specification 5.3); 0 is all of them."""
    return PAPER_SLICES if shape == MNI152_SHAPE else 0


def _load(row: Row, scans: of.Scans, grid: Grid | None, need_mask: bool) -> Scan:
    volume = read_volume(row.image)
    if need_mask and row.mask is None:
        raise InputError("no mask", where=row.where("mask"), remedy="give the mask of every scan")
    mask = None if row.mask is None else read_mask(row.mask, volume)
    file = dataclasses.replace(volume, array=np.broadcast_to(np.float32(0), volume.array.shape))
    if grid is not None and (
        volume.array.shape != grid.shape or not np.allclose(volume.affine, grid.affine, atol=1e-3)
    ):
        if not scans.resample:
            raise InputError(
                f"lies on another grid ({_grid_text(Grid.of(volume))}) than the source scans ({_grid_text(grid)})",
                where=row.image,
                remedy="register the scans to one template (for example MNI152), or resample them with --resample",
            )
        like = grid.volume(np.broadcast_to(np.float32(0), grid.shape))
        if mask is not None:
            mask = resample_to(dataclasses.replace(volume, array=mask), like).array
        volume = resample_to(volume, like)
        if not volume.array.any():
            raise InputError(
                "does not overlap with the source scans in world coordinates", where=row.image, remedy="register it"
            )
    keep = usual_slices(volume.array.shape) if scans.keep_slices is None else scans.keep_slices
    kept = volume.array[..., : keep or None]
    filled = np.flatnonzero(kept.any((0, 1)))
    if len(filled) == 0:
        raise InputError("all kept slices are zero", where=row.image, remedy="check the file and --keep-slices")
    gap = np.setdiff1d(np.arange(filled[0], filled[-1]), filled)
    if len(gap):
        raise InputError(
            f"slice {gap[0]} is zero throughout and lies between others", where=row.image, remedy="repair the scan"
        )
    # The authors cache float16 and read float32 (specification 5.3); the bank then holds scans without loss.
    scaled = scale_percentile(kept, 1, 99).astype(np.float16).astype(np.float32)
    if not scaled.any():
        raise InputError("the 1st and 99th percentile are one value", where=row.image, remedy="check the file")
    return Scan(
        row=row,
        volume=scaled,
        mask=None if mask is None else mask[..., : keep or None],
        mask_above=mask is not None and keep > 0 and bool(mask[..., keep:].any()),
        grid=Grid.of(volume),
        file=file,
    )


def _grid_text(grid: Grid) -> str:
    sides = " x ".join(str(side) for side in grid.shape)
    return f"{sides} voxels of {' x '.join(f'{side:.3g}' for side in grid.spacing)} mm at {np.round(grid.affine[:3, 3], 1)}"
