"""From labelled scans to the slices that training draws from, patient by patient (specification 2.4, 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dart_core.data.datalist import Row
from dart_core.data.scans import Scan, centre_patch, prostate_slices, slice_stack, subject_of
from dart_core.errors import InputError
from dart_core.settings import ScanSettings
from mmtl_octl.schedules import MixedBatches, Schedule, TrainingBatches
from mmtl_octl.settings import Training, TrainingSettings

PATCH_SIZE = {"cc359": 256, "prostate": 0, "plain": 0}
"""Side of the patches in pixels; 0 = whole slices."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Labelled scans and the slices of them that training may draw, by patient."""

    scans: Sequence[Scan]
    patients: Sequence[Sequence[tuple[int, int]]]
    """For each patient the (scan, slice) of its samples."""

    @property
    def size(self) -> int:
        """Slices in the pool."""
        return sum(len(patient) for patient in self.patients)


def first_patients(rows: Sequence[Row], count: int) -> list[Row]:
    """The rows of the first patients of a site, in the order of the datalist (specification 2.4); 0 = all rows.

    Raises:
        InputError: there are fewer patients.
    """
    subjects = list(dict.fromkeys(subject_of(row) for row in rows))
    if count > len(subjects):
        raise InputError(
            f"site {rows[0].site or '(all)'} has {len(subjects)} training patient{'s' * (len(subjects) != 1)}",
            where=rows[0].source,
            remedy=f"give --patients {len(subjects)} or fewer, or add patients",
        )
    chosen = set(subjects[: count or None])
    return [row for row in rows if subject_of(row) in chosen]


def make_pool(scans: Sequence[Scan], settings: ScanSettings, seed: int, interval: int = 1) -> Pool:
    """List the slices of scans with masks, grouped by site and subject.

    cc359 and plain: slices 0, k, 2k, ... below floor(Z / k) * k (spottunet sheet 5.1). prostate: every k-th of those
    that `prostate_slices` draws, once for the whole run (specification 5.2).

    Args:
        scans: with masks.
        settings: says which rule.
        seed: of the draw.
        interval: k.

    Raises:
        InputError: a scan has no slice to give.
    """
    patients: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for number, scan in enumerate(scans):
        depth = scan.volume.shape[-1]
        if settings.preprocessing == "prostate":
            rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
            slices = prostate_slices(scan.truth, rng)[::interval]
        else:
            slices = list(range(0, depth // interval * interval, interval))
        if not slices:
            raise InputError(
                f"its {depth} slices leave none to train on",
                where=scan.row.image,
                remedy="give a smaller --interval, or leave this scan out",
            )
        patients.setdefault((scan.site, scan.subject), []).extend((number, z) for z in slices)
    return Pool(scans, list(patients.values()))


def patch_size_of(training: TrainingSettings, settings: ScanSettings) -> int:
    """Side of the training patches; 0 = whole slices."""
    return PATCH_SIZE[settings.preprocessing] if training.patch_size is None else training.patch_size


def check_sizes(scans: Sequence[Scan], patch_size: int) -> None:
    """Whole slices must have one size that the network can halve three times.

    Raises:
        InputError: they have not; the remedy is to train on patches.
    """
    if patch_size:
        return
    height, width = scans[0].volume.shape[:2]
    advice = f"train on patches: --patch-size {max(8, min(height, width) // 8 * 8)}"
    if height % 8 or width % 8:
        raise InputError(f"slices of {height} x {width} pixels", where=scans[0].row.image, remedy=advice)
    for scan in scans:
        if scan.volume.shape[:2] != (height, width):
            found = f"slices of {scan.volume.shape[0]} x {scan.volume.shape[1]} pixels"
            other = f"those of {scans[0].row.image.name} have {height} x {width}"
            raise InputError(f"{found}; {other}", where=scan.row.image, remedy=advice)


def network_input(
    scan: Scan, z: int, channels: int, patch_size: int, rng: np.random.Generator | None = None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """One slice as the network gets it: image (channels, h, w) and mask (h, w); `rng` draws the place of a patch."""
    image, mask = slice_stack(scan.volume, z, channels), scan.truth[..., z]
    if not patch_size:
        return image, mask
    patch, mask_patch = centre_patch(image, mask, patch_size, rng)
    assert mask_patch is not None
    return patch, mask_patch


def training_batches(
    source: Pool | None, target: Pool, training: Training, settings: ScanSettings, seed: int, schedule: Schedule,
    keep_source: bool = False,
) -> TrainingBatches:  # fmt: skip
    """Batches of "image" (B, channels, h, w) and "mask" (B, 1, h, w), float32, target samples first.

    Args:
        source: None where the schedule takes target samples only.
        target: the site that is trained on (in source training: the source).
        training: sizes.
        settings: channels and default size of the patches.
        seed: of the draws.
        schedule: see `target_count`.
        keep_source: see `target_count`.

    Raises:
        InputError: slices that do not fit together.
    """
    pools = [pool for pool in (target, source) if pool is not None]
    scans = [scan for pool in pools for scan in pool.scans]
    size, channels = patch_size_of(training, settings), settings.channels
    check_sizes(scans, size)
    places: list[tuple[Scan, int]] = []
    numbered: list[list[list[int]]] = []
    for pool in pools:
        numbered.append([])
        for patient in pool.patients:
            numbered[-1].append(list(range(len(places), len(places) + len(patient))))
            places += [(pool.scans[scan], z) for scan, z in patient]

    def load(sample: int, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
        scan, z = places[sample]
        image, mask = network_input(scan, z, channels, size, rng)
        return {"image": image, "mask": mask[None].astype(np.float32)}

    mixed = MixedBatches(
        numbered[1] if source is not None else [],
        numbered[0],
        training.batch_size,
        training.epochs,
        training.batches,
        schedule,
        keep_source,
        seed,
    )
    return TrainingBatches(load, mixed)
