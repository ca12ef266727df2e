"""From a datalist to preprocessed scans, to slices for a 2-D network, and back to files on the scan's own grid.

What the segmentation methods share (spottunet 5.1, 6; mmtl-octl 5, 6; aiva 5, 6). Scans are read in RAS orientation and
slices run along the last axis, so they are axial.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dart_core.data.cache import ArrayCache
from dart_core.data.datalist import Datalist, Row, check
from dart_core.data.slices import evaluating, pad_to_multiple
from dart_core.data.volumes import (
    Volume,
    read_grid,
    read_mask,
    read_volume,
    resample_to,
    scale_percentile,
    scale_z_score,
    write_volume,
    zoom,
    zoomed_grid,
)
from dart_core.errors import DartError, InputError
from dart_core.settings import ScanSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

CATALOGS = ("cc359", "prostate", "mms")
"""Readers in `dart_core.data.catalog` that are tried for a folder without dataset.json."""

BACKGROUND_PROBABILITY = 0.1
"""How often a slice outside the prostate is used for training (mmtl-octl 5.2)."""

# Part of the name of a cached array: another number whenever preprocessing gives other values.
_CACHE_VERSION = 1


# --- Rows ------------------------------------------------------------------------------------------------------------


def open_datalist(path: Path, published_splits: bool = True) -> Datalist:
    """Read a datalist file, a Decathlon or nnU-Net folder, or a public data set as its owners publish it.

    Args:
        path: the file or folder.
        published_splits: give the scans of a public data set the split, and at each site the order, of the lists that
            were published for it; scans that the lists do not have come last, without split.

    Raises:
        InputError: the file or folder cannot be read as any of these.
    """
    if not path.is_dir() or (path / "dataset.json").is_file():
        return Datalist.read(path)
    listed, catalog = _published(path)
    has_split = published_splits and hasattr(catalog, "published_split")
    return _with_published_splits(listed, catalog.published_split()) if has_split else listed


def report_missing(path: Path) -> list[str]:
    """Say which scans of a public data set are not there, and where they come from; empty for whole sets and for datalists.

    Raises:
        InputError: a folder that is none of the data sets.
    """
    if not path.is_dir() or (path / "dataset.json").is_file():
        return []
    lines: list[str] = _published(path)[1].report_missing(path)
    return lines


def _published(path: Path) -> tuple[Datalist, Any]:
    """The scans of a public data set as its owners publish it, and its module."""
    errors: list[InputError] = []
    for name in CATALOGS:
        catalog: Any = importlib.import_module(f"dart_core.data.catalog.{name}")
        try:
            return catalog.index(path), catalog
        except InputError as error:
            # Anything else but "this is not ..." is about a folder that has the layout of this data set.
            if not error.problem.startswith("this is not"):
                raise
            errors.append(error)
    raise InputError(
        f"{errors[0].problem}, nor one of the prostate collection or of M&Ms, and it holds no dataset.json",
        where=path,
        remedy="give a datalist file, or the folder of one of these",
    ) from errors[0]


def _with_published_splits(listed: Datalist, splits: Mapping[str, Mapping[str, Sequence[str]]]) -> Datalist:
    place = {
        (site, subject): number
        for site, parts in splits.items()
        for number, subject in enumerate(subject for subjects in parts.values() for subject in subjects)
    }
    if not any((row.site, row.subject) in place for row in listed):
        return listed
    sites, last = listed.sites, len(place)
    rows = sorted(listed, key=lambda row: (sites.index(row.site), place.get((row.site, row.subject), last)))
    return dataclasses.replace(listed, rows=tuple(rows)).with_splits(splits)


def rows_of(datalist: Datalist, sites: Sequence[str], split: str | None = None) -> list[Row]:
    """The rows of some sites, or of all when none is named, that belong to a split (None: to any).

    Raises:
        InputError: no such site, no split column, or a site without a row of this split.
    """
    if split is not None and not datalist.splits:
        raise InputError(
            f"says of no scan that it is for {split}",
            where=datalist.source,
            remedy="add a column split with train, val and test (all scans of a subject in one of them)",
        )
    rows: list[Row] = []
    for site in dict.fromkeys(sites) if sites else (None,):
        found = list(datalist if site is None else datalist.select(site=site))
        chosen = [row for row in found if split is None or row.split == split]
        if not chosen:
            whose = "no row" if site is None else f"site {site} has no row"
            there = ", ".join(dict.fromkeys(row.split or "(empty)" for row in found))
            raise InputError(
                f"{whose} with split {split} (there: {there})",
                where=datalist.source,
                remedy=f"write {split} into the column split of some of its subjects",
            )
        rows += chosen
    return rows


def subject_of(row: Row) -> str:
    """The subject of a row, or the name of its file where the datalist gives none."""
    return row.subject or _stem(row.image)


def require_subjects(rows: Sequence[Row], least: int, what: str) -> None:
    """Raise an InputError unless the rows come from at least `least` subjects.

    Args:
        rows: of one site or of several; subjects of different sites are different people.
        least: how many there must be.
        what: whose rows they are, for the message: "site A, split train".
    """
    count = len({(row.site, subject_of(row)) for row in rows})
    if count < least:
        raise InputError(
            f"{what}: {count} {'subject' if count == 1 else 'subjects'}, at least {least} are needed",
            where=rows[0].source if rows else None,
            remedy="add scans of other subjects, or choose another site or split",
        )


def unique_names(rows: Sequence[Row]) -> list[str]:
    """A file stem for each scan; scans of the same file name get frame, subject or a number beside it."""
    stems = [_stem(row.image) + (f"_frame{frame}" if (frame := row.labels.get("frame")) else "") for row in rows]
    if len(set(stems)) < len(stems):
        subjects = [row.subject or f"{index:03d}" for index, row in enumerate(rows)]
        stems = [f"{subject}_{stem}" for subject, stem in zip(subjects, stems, strict=True)]
    if len(set(stems)) < len(stems):
        stems = [f"{index:03d}_{stem}" for index, stem in enumerate(stems)]
    return stems


def frame_of(row: Row) -> int | None:
    """The frame (from 0) of a 4-D file that a row means, from its column `frame`; None for a 3-D file.

    Raises:
        InputError: the cell holds no whole number.
    """
    text = row.labels.get("frame")
    if text is None:
        return None
    if not text.isdecimal():
        raise InputError(f"{text!r} is no frame", where=row.where("frame"), remedy="write its number, counted from 0")
    return int(text)


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


# --- Scans -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Scan:
    """One scan, preprocessed."""

    row: Row
    volume: NDArray[Any]
    """(H, W, Z): float16 in [0, 1], or float32 z-scores (prostate). It may lie in a cache file, read-only."""
    mask: NDArray[np.bool_] | None
    """(H, W, Z) on the same grid."""
    grid: Volume
    """The grid of `volume`; its voxels are not held."""
    file: Volume
    """The file as read; its voxels are not held."""
    spacing: tuple[float, float, float]
    """Voxel size in mm along each axis of `volume`, for metrics: the size that was asked for where the scan was
    resampled, as in the authors' code. (That of `grid` differs by the rounding of the number of voxels, and a surface
    Dice at 1 mm would change by much where 1 mm becomes 1.0003 mm.)"""

    @property
    def name(self) -> str:
        """File name without .nii or .nii.gz."""
        return _stem(self.row.image)

    @property
    def site(self) -> str:
        """Site of the row, empty where the datalist has none."""
        return self.row.site

    @property
    def subject(self) -> str:
        """Subject of the row, or the file's name where the datalist gives none."""
        return subject_of(self.row)

    @property
    def truth(self) -> NDArray[np.bool_]:
        """The mask; an InputError where the row has none."""
        if self.mask is None:
            raise _no_mask(self.row)
        return self.mask

    def write(self, path: Path, values: NDArray[Any], threshold: float | None = None) -> Path:
        """Write values of the preprocessed grid on the grid and in the orientation of the scan's own file.

        Args:
            path: .nii or .nii.gz file.
            values: (H, W, Z): real numbers (interpolated linearly), a bool mask (likewise, cut at 0.5), or whole numbers
                such as labels (the nearest voxel counts).
            threshold: write a mask of real values above it (uint8) instead of the values (float32).

        Raises:
            InputError: another shape than `volume`.
            OutputError: the file cannot be written.
        """
        if values.shape != self.grid.array.shape:
            raise InputError(f"values of shape {values.shape} for a scan of shape {self.grid.array.shape}", where=path)
        kind = values.dtype
        if threshold is None and kind == np.bool_:
            threshold = 0.5
        array = values.astype(np.float32)
        same = array.shape == self.file.array.shape and np.allclose(self.grid.affine, self.file.affine, atol=1e-3)
        if not same:
            # Both grids span the same field of view; at its border rounding must not count as outside.
            volume = dataclasses.replace(self.grid, array=array)
            array = resample_to(volume, self.file, 0 if kind.kind in "iu" else 1, outside="nearest").array
        if threshold is not None:
            return write_volume(path, array > threshold, self.file, np.uint8)
        return write_volume(path, array.astype(kind) if kind.kind in "iu" else array, self.file)

    def write_preprocessed(self, path: Path, values: NDArray[Any]) -> Path:
        """Write values (H, W, Z) as they are, on the preprocessed grid: what the papers' metrics are taken on."""
        return write_volume(path, values, self.grid)


def load_scan(row: Row, settings: ScanSettings, need_mask: bool = False) -> Scan:
    """Read and preprocess one scan; the mask too where the row has one.

    cc359 (spottunet 5.1): cubic splines to 1 x 0.95 x 0.95 mm (`volumes.zoom`), then clipped to the 1st and 99th
    percentile of the resampled volume, minus its minimum, divided by its maximum, kept as float16; the mask through the
    same splines, true from 0.5. prostate (mmtl-octl 5.2): mean and population standard deviation of the whole volume;
    all labels above 0 are the mask. plain: as cc359, but without resampling unless `settings.spacing` asks for it.

    A column `frame` of the row chooses one volume of a 4-D file (image, and mask where that is 4-D too).

    Args:
        row: image, and mask.
        settings: preprocessing, spacing, cache.
        need_mask: a row without mask is an error.

    Raises:
        InputError: anything that `read_volume` and `read_mask` find wrong, an image without contrast, a mask with
            several labels (but for prostate), a missing mask that is needed.
    """
    frame = frame_of(row)
    if need_mask and row.mask is None:
        raise _no_mask(row)
    file = read_grid(row.image, frame=frame)
    spacing = settings.target_spacing
    kept = {
        "version": _CACHE_VERSION,
        "preprocessing": settings.preprocessing,
        "spacing": spacing,
        "frame": frame,
    }
    image = _kept(settings.cache, {**kept, "part": "image"}, row.image, lambda: _image(row, settings, frame))
    mask = None
    if row.mask is not None:
        # The cached mask was compared with the grid of the image then, so it depends on both files.
        mask = _kept(
            settings.cache, {**kept, "part": "mask"}, row.mask, lambda: _mask(row, file, settings, frame), row.image
        )
    return Scan(
        row=row,
        volume=image,
        mask=mask,
        grid=file if spacing is None else zoomed_grid(file, spacing),
        file=file,
        # Headers and rotations leave an error of a few parts in 10 million, which must not decide what lies within 1 mm.
        spacing=_three(round(side, 5) for side in file.spacing) if spacing is None else spacing,
    )


def load_scans(rows: Sequence[Row], settings: ScanSettings, need_mask: bool = False) -> list[Scan]:
    """Load one scan after the other; see `load_scan`."""
    return [load_scan(row, settings, need_mask) for row in rows]


def check_scans(
    datalist: Datalist, settings: ScanSettings, need_mask: bool = True, least_slices: int | None = None
) -> list[str]:
    """Open and preprocess every scan of a datalist and say in one line each what is wrong, with file, row and column.

    Args:
        datalist: the rows.
        settings: how the scans will be read; nothing is put into the cache.
        need_mask: a row without mask is a problem.
        least_slices: slices that a scan must have at least; None: 4 for prostate, whose training leaves out the first
            and the last two (mmtl-octl 5.2), else 1.
    """
    least = least_slices if least_slices is not None else (4 if settings.preprocessing == "prostate" else 1)

    def open_row(row: Row) -> Iterator[tuple[str, DartError]]:
        try:
            frame = frame_of(row)
        except InputError as error:
            yield "frame", error
            return
        file = None
        try:
            array = _image(row, settings, frame)
            file = read_grid(row.image, frame=frame)
            if array.shape[-1] < least:
                raise InputError(
                    f"has {array.shape[-1]} slices, at least {least} are needed", where=row.image, remedy="leave it out"
                )
        except DartError as error:
            yield "image", error
        if row.mask is None:
            if need_mask:
                yield "mask", InputError("this row has no mask", remedy="name its mask file in the column mask")
            return
        try:
            if file is not None:
                _mask(row, file, settings, frame)
            else:
                _read_mask(row, None, settings, frame)
        except DartError as error:
            yield "mask", error

    return [str(problem) for problem in check(datalist, open_row)]


def _image(row: Row, settings: ScanSettings, frame: int | None) -> NDArray[Any]:
    volume = read_volume(row.image, frame=frame)
    if settings.target_spacing is not None:
        volume = zoom(volume, settings.target_spacing)
    if settings.preprocessing == "prostate":
        scaled: NDArray[Any] = scale_z_score(volume.array)
    else:
        scaled = scale_percentile(volume.array, 1, 99).astype(np.float16)
    if not scaled.any():
        raise InputError("the image has no contrast", where=row.image, remedy="export the scan again or leave it out")
    return scaled


def _mask(row: Row, file: Volume, settings: ScanSettings, frame: int | None) -> NDArray[np.bool_]:
    volume = dataclasses.replace(file, array=_read_mask(row, file, settings, frame))
    return volume.array if settings.target_spacing is None else zoom(volume, settings.target_spacing).array


def _read_mask(row: Row, file: Volume | None, settings: ScanSettings, frame: int | None) -> NDArray[np.bool_]:
    assert row.mask is not None
    return read_mask(row.mask, file, frame=frame, one_label=settings.preprocessing != "prostate")


def _kept(
    folder: Path | None, parameters: dict[str, Any], source: Path, compute: Callable[[], NDArray[Any]], *others: Path
) -> NDArray[Any]:
    """What `compute` gives, from the cache folder where there is one."""
    if folder is None:
        return compute()
    kind: Any = {"mask": "bool", "image": "float32" if parameters["preprocessing"] == "prostate" else "float16"}
    return ArrayCache(folder).get(
        parameters, [source, *others], compute, dtype=kind[parameters["part"]], memory_map=True
    )


def _no_mask(row: Row) -> InputError:
    return InputError("no mask", where=row.where("mask"), remedy="give the mask of every scan")


def _three(values: Iterator[float]) -> tuple[float, float, float]:
    x, y, z = values
    return x, y, z


# --- Slices ----------------------------------------------------------------------------------------------------------


def slice_stack(volume: NDArray[Any], z: int, channels: int = 1) -> NDArray[np.float32]:
    """One slice with its neighbours as channels.

    Args:
        volume: (H, W, Z).
        z: index of the middle slice.
        channels: odd; 3 gives z - 1, z, z + 1. At the ends the outermost slice stands for those that are not there.

    Returns:
        (channels, H, W) float32.
    """
    if channels < 1 or channels % 2 == 0:
        raise ValueError(f"channels is {channels}; it must be odd")
    neighbours = np.clip(np.arange(z - channels // 2, z + channels // 2 + 1), 0, volume.shape[-1] - 1)
    return np.ascontiguousarray(np.moveaxis(volume[..., neighbours], -1, 0), dtype=np.float32)


def centre_patch(
    image: NDArray[Any], mask: NDArray[Any] | None, size: int, rng: np.random.Generator | None = None
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Cut a square patch out of a slice and its mask, both alike (spottunet 5.1).

    With `rng` and both sides of at least `size`, the patch lies anywhere in the slice with equal probability. Otherwise
    its centre is side // 2 on BOTH axes, also on one that is longer than the patch; beyond the slice the image continues
    with its minimum (each channel with its own) and the mask with 0.

    Args:
        image: (C, H, W).
        mask: (H, W) or None.
        size: side of the patch in pixels.
        rng: draws the place; None always takes the centre.

    Returns:
        image (C, size, size) and mask (size, size) (None without mask), of the types they had.
    """
    sides = image.shape[-2:]
    if image.ndim != 3 or (mask is not None and mask.shape != sides):
        shape = None if mask is None else mask.shape
        raise InputError(f"image {image.shape} and mask {shape} do not fit", remedy="give (C, H, W) and (H, W)")
    if rng is not None and min(sides) >= size:
        starts = [int(rng.integers(side - size + 1)) for side in sides]
    else:
        starts = [side // 2 - size // 2 for side in sides]
    reading = tuple(slice(max(s, 0), min(s + size, side)) for s, side in zip(starts, sides, strict=True))
    writing = tuple(slice(r.start - s, r.stop - s) for r, s in zip(reading, starts, strict=True))
    patch = np.empty((len(image), size, size), image.dtype)
    patch[:] = image.min((-2, -1), keepdims=True)
    patch[:, *writing] = image[:, *reading]
    if mask is None:
        return patch, None
    mask_patch = np.zeros((size, size), mask.dtype)
    mask_patch[writing] = mask[reading]
    return patch, mask_patch


def prostate_slices(mask: NDArray[Any], rng: np.random.Generator) -> list[int]:
    """Choose the slices of one patient for training (mmtl-octl 5.2).

    Of the slices 1 to Z - 3 those with zmin <= i < zmax are always taken, where zmin and zmax are the first and the last
    slice with prostate (so the last one is lost, as in the authors' code), and each other one with probability 0.1.

    Args:
        mask: (H, W, Z).
        rng: one number is drawn per slice.

    Returns:
        ascending indices.
    """
    depth = mask.shape[-1]
    keep = np.asarray(rng.random(depth) < BACKGROUND_PROBABILITY)
    filled = np.flatnonzero(mask.any((0, 1)))
    if len(filled):
        keep[filled[0] : filled[-1]] = True
    return [int(z) for z in np.flatnonzero(keep) if 1 <= z <= depth - 3]


def predict_scan(
    network: nn.Module | Callable[[Tensor], Tensor],
    volume: NDArray[Any],
    channels: int = 1,
    batch_size: int = 16,
    device: Any = None,
) -> Tensor:
    """Run a 2-D network over all slices of a volume.

    Slices are padded to multiples of 8 with their minimum, and the output is cropped back. The network works in eval
    mode without gradients; its modules get back the modes they had.

    Args:
        network: maps (B, channels, h, w) to logits (B, K, h, w); usually a module.
        volume: (H, W, Z).
        channels: neighbouring slices that the network sees, see `slice_stack`.
        batch_size: slices per forward pass.
        device: where the network is; None asks its first parameter.

    Returns:
        logits (K, H, W, Z), float32, on the CPU.

    Raises:
        InputError: the volume is not 3-D, or the network's output has another shape.
    """
    import torch

    if volume.ndim != 3:
        raise InputError(f"a volume (H, W, Z) is needed, not shape {volume.shape}", remedy="give one 3-D volume")
    if device is None:
        parameters = network.parameters() if isinstance(network, torch.nn.Module) else iter(())
        device = next((parameter.device for parameter in parameters), torch.device("cpu"))
    depth = volume.shape[-1]
    around = np.arange(channels) - channels // 2
    logits_KHWZ = None
    with evaluating(network), torch.inference_mode():
        for start in range(0, depth, batch_size):
            middle = np.arange(start, min(start + batch_size, depth))
            index = np.clip(middle[:, None] + around, 0, depth - 1)
            # A copy: the volume may be read-only or float16.
            x_BCHW = torch.from_numpy(
                np.array(np.moveaxis(volume[..., index], (2, 3), (0, 1)), dtype=np.float32, order="C")
            )
            x_BCHW, crop = pad_to_multiple(x_BCHW)
            output = network(x_BCHW.to(device))
            if output.ndim != 4 or len(output) != len(x_BCHW) or output.shape[-2:] != x_BCHW.shape[-2:]:
                raise InputError(
                    f"the network gave {tuple(output.shape)} for {tuple(x_BCHW.shape)}",
                    remedy="use a network whose output has the input's size",
                )
            part_KHWB = output[crop].permute(1, 2, 3, 0).float().cpu()
            if logits_KHWZ is None:
                logits_KHWZ = torch.empty((len(part_KHWB), *volume.shape), dtype=torch.float32)
            logits_KHWZ[..., start : start + batch_size] = part_KHWB
    if logits_KHWZ is None:
        raise InputError("the volume has no slice", remedy="give at least one")
    return logits_KHWZ


def largest_component(mask: NDArray[Any]) -> NDArray[np.bool_]:
    """Keep the largest connected part of a mask (neighbours across faces; in 3-D six); of equal ones the first.

    An empty mask stays empty (mmtl-octl 8.7).
    """
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    if count <= 1:
        return np.asarray(mask, dtype=bool)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())
