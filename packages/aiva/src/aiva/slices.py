"""From scans to the slices that training draws (specification 2.3, 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from aiva.settings import Training
from dart_core.batches import Batches
from dart_core.data.scans import Scan, centre_patch, prostate_slices, slice_stack
from dart_core.errors import InputError
from dart_core.settings import ScanSettings


class Slices:
    """The slices of a site's scans, numbered through.

    cc359 and plain: every slice. prostate: of a scan with mask those that `prostate_slices` draws, once for the whole run; of a
    scan without, all of the slices 1 to Z - 3 among which that draws.

    Args:
        scans: preprocessed.
        settings: says which rule, and the number of channels.
        patch_size: side of the patches.
        random_patches: draw their places.
        labelled: give masks too; False for the target, whose masks training never sees even where there are any.
        seed: of the draw of prostate slices.

    Raises:
        InputError: a scan has no slice to give.
    """

    def __init__(
        self,
        scans: Sequence[Scan],
        settings: ScanSettings,
        patch_size: int,
        random_patches: bool = False,
        labelled: bool = True,
        seed: int = 0,
    ) -> None:
        self.scans, self.patch_size, self.random_patches, self.labelled = scans, patch_size, random_patches, labelled
        self.channels = settings.channels
        self.places: list[tuple[int, int]] = []
        """(scan, slice) of each."""
        for number, scan in enumerate(scans):
            depth = scan.volume.shape[-1]
            if settings.preprocessing == "prostate":
                rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
                chosen = prostate_slices(scan.truth, rng) if labelled else list(range(1, depth - 2))
            else:
                chosen = list(range(depth))
            if not chosen:
                raise InputError(
                    f"its {depth} slices leave none to train on", where=scan.row.image, remedy="leave this scan out"
                )
            self.places += [(number, z) for z in chosen]

    def __len__(self) -> int:
        return len(self.places)

    @property
    def positions(self) -> NDArray[np.float64]:
        """(slices,) index of each slice over the number of slices of its scan."""
        return np.array([z / self.scans[scan].volume.shape[-1] for scan, z in self.places])

    @property
    def feature_shape(self) -> tuple[int, int]:
        """Sides of the bottleneck's maps."""
        return self.patch_size // 8, self.patch_size // 8

    def load(self, index: int, rng: np.random.Generator | None = None) -> dict[str, NDArray[np.generic] | np.int64]:
        """One slice: "image" (C, size, size) float32, "index", and "mask" (size, size) int64 where it is labelled."""
        scan, z = self.places[index]
        image = slice_stack(self.scans[scan].volume, z, self.channels)
        mask = self.scans[scan].truth[..., z] if self.labelled else None
        patch, mask_patch = centre_patch(image, mask, self.patch_size, rng if self.random_patches else None)
        sample: dict[str, NDArray[np.generic] | np.int64] = {"image": patch, "index": np.int64(index)}
        if mask_patch is not None:
            sample["mask"] = mask_patch.astype(np.int64)
        return sample

    def batches(self, batch_size: int, seed: int) -> Batches:
        """All slices in a new random order in each pass."""
        return Batches(self.load, len(self), batch_size, seed)


class SitePair(Batches):
    """A batch of source and a batch of target slices per step: "source_image", "source_mask", "target_image", ...

    Args:
        source: labelled.
        target: its masks are not looked at.
        batch_size: slices from each.
        seed: of the order.
        period: steps after which both orders start anew, so that nearly all slices of a period are different ones
            (specification 2.3); None: one pass after the other.
    """

    def __init__(self, source: Slices, target: Slices, batch_size: int, seed: int, period: int | None = None) -> None:
        super().__init__(source.load, len(source), batch_size, seed)
        self.sites: Mapping[str, Slices] = {"source": source, "target": target}
        self.period = period

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> dict[str, Tensor]:
        """The two batches of one step; see `Batches.batch`."""
        period, place = (0, step) if self.period is None else divmod(step, self.period)
        joint: dict[str, Tensor] = {}
        for number, (name, slices) in enumerate(self.sites.items()):
            seeds = np.random.SeedSequence(self.seed, spawn_key=(number, period))
            part = slices.batches(self.batch_size, int(seeds.generate_state(1)[0])).batch(place, rank, world_size)
            joint |= {f"{name}_{key}": value for key, value in part.items()}
        return joint


def patch_size_of(training: Training, settings: ScanSettings, scans: Sequence[Scan]) -> int:
    """Side of the training patches: 256 for cc359, else the smallest multiple of 8 that covers every slice."""
    if training.patch_size is not None:
        return training.patch_size
    if settings.preprocessing == "cc359":
        return 256
    largest: int = max(max(scan.volume.shape[:2]) for scan in scans)
    return -(-largest // 8) * 8
