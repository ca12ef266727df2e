"""Donor search: which source slices lend their low frequencies to a target slice (paper section 3, specification 2.3, 2.4).

Shapes: K source scans, Z slices of h x w pixels, n donors, m neighbours to either side.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dart_core.checkpoint import load_weights, save_tensors
from dart_core.errors import InputError, SettingError
from fda_mri.similarity import SMALLEST_SIDE, Maps, compare, maps, prepare

KIND = "fda-mri donor bank"

SearchMode = Literal["3d", "2d", "2.5d"]


class DonorBank:
    """The source training scans with what the search needs of them.

    Saliency and gradient maps are computed once per scan, at the first search that needs them. Scans that float16
    holds without loss (the loader stores them so, specification 5.3) are kept in float16; 60 scans of 172 slices of
    182 x 218 pixels with their maps take about 1.5 GB (2.6 GB without the crop).
    """

    def __init__(self, scans: list[Tensor], names: Sequence[str] | None = None) -> None:
        """Wrap scans that are already (Z, h, w); use `build` for volumes (h, w, Z)."""
        self._scans = scans
        self._maps: dict[int | None, list[Maps]] = {}
        self.names = list(names) if names is not None else [str(index) for index in range(len(scans))]
        self.metadata: dict[str, str] = {}
        """Strings that are stored with the bank (site, grid)."""

    @classmethod
    def build(cls, volumes: Sequence[Tensor], names: Sequence[str] | None = None) -> DonorBank:
        """A bank of normalised source volumes.

        Args:
            volumes: (h, w, Z) each, on one grid, values about [0, 1]; they are not normalised again.
            names: one name per volume for reports; None numbers them.

        Raises:
            ValueError: no volume, volumes that are not three-dimensional, of different shapes, or not finite.
        """
        if len(volumes) == 0:
            raise InputError("a donor bank needs at least one source scan")
        if names is not None and len(names) != len(volumes):
            raise InputError(f"{len(names)} names for {len(volumes)} volumes")
        scans: list[Tensor] = []
        for index, volume in enumerate(volumes):
            scan = torch.as_tensor(volume)
            scan = scan if scan.dtype == torch.float64 else scan.float()
            where = names[index] if names is not None else f"volume {index}"
            if scan.ndim != 3:
                raise InputError(f"has {scan.ndim} dimensions", where=where, remedy="give (H, W, Z) volumes")
            if scans and scan.shape != volumes[0].shape:
                raise InputError(
                    f"has shape {tuple(scan.shape)}, the first volume {tuple(volumes[0].shape)}",
                    where=where,
                    remedy="bring all scans to one grid (for example by registration to MNI152)",
                )
            if not bool(torch.isfinite(scan).all()):
                raise InputError("holds values that are not finite", where=where)
            half = scan.half()
            scan = half if torch.equal(half.to(scan.dtype), scan) else scan
            scans.append(scan.permute(2, 0, 1).contiguous())
        return cls(scans, names)

    def __len__(self) -> int:
        return len(self._scans)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, Z) of every scan."""
        slices, h, w = self._scans[0].shape
        return h, w, slices

    def scan(self, index: int) -> Tensor:
        """One source scan, (h, w, Z)."""
        scan = self._scans[index]
        return (scan if scan.dtype == torch.float64 else scan.float()).permute(1, 2, 0)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the scans and their names to one safetensors file, atomically. Maps are cheap and not stored."""
        scans = {f"scan.{index:05d}": scan.cpu() for index, scan in enumerate(self._scans)}
        names = {f"name.{index:05d}": name for index, name in enumerate(self.names)}
        save_tensors(Path(path), scans, {**self.metadata, **names, "kind": KIND})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DonorBank:
        """Read what `save` wrote.

        Raises:
            CheckpointError: missing or damaged file.
            InputError: a file that is no donor bank.
        """
        tensors, metadata = load_weights(Path(path))
        if metadata.pop("kind", None) != KIND:
            raise InputError("is not a donor bank", where=path, remedy="write one with `fda-mri bank`")
        order = sorted(tensors)
        bank = cls([tensors[key] for key in order], [metadata.pop(key.replace("scan", "name")) for key in order])
        bank.metadata = metadata
        return bank

    def rank(
        self,
        target_volume: Tensor,
        mode: SearchMode = "3d",
        n: int = 7,
        neighbours: int = 2,
        crop: int | None = 60,
        *,
        edges: Literal["authors", "clip"] = "authors",
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The n most similar donor slices of every target slice, best first.

        Args:
            target_volume: (h, w, Z) normalised target scan on the bank's grid.
            mode: "3d" ranks scans by their mean score over all slices; "2d" ranks scans slice by slice; "2.5d" ranks
                (scan, offset) pairs slice by slice, with offsets up to `neighbours` slices away.
            n: donors per slice; all there are if there are fewer.
            neighbours: m, the largest offset of the 2.5-D search.
            crop: half side of the square about each slice's centre of mass that is compared; None compares whole
                slices. Lowered to half the shorter side where slices are smaller than the square.
            edges: "authors" gives slices nearer than m to an end no neighbours at all; "clip" gives them those
                that exist.

        Returns:
            scans, offsets, scores, each (Z, min(n, candidates)). The donor of slice z is slice z + offset of the
            scan. Places that an edge slice cannot fill hold -1, 0 and nan.

        Raises:
            ValueError: another grid, n < 1, neighbours < 0, or an unknown mode.

        Source: specification 2.3, 2.4. Ties keep the order of the bank.
        """
        target = self._check_target(target_volume, mode, n, neighbours)
        half = self._half_side(crop)
        target_maps = prepare(*_comparable(target, half))
        reach = neighbours if mode == "2.5d" else 0
        offsets = torch.arange(-reach, reach + 1, device=target.device)
        slices = len(target)
        # (Z, K, offsets), -inf where there is no such neighbour.
        scores = target.new_full((slices, len(self), len(offsets)), -torch.inf)
        for scan, (scan_maps, size) in enumerate(self._scan_maps(half)):
            donor = prepare(scan_maps, size)
            for position, offset in enumerate(offsets.tolist()):
                first, last = _slices_with_neighbour(slices, offset, reach, edges)
                if first < last:
                    here = tuple(term[first:last] for term in target_maps)
                    there = tuple(term[first + offset : last + offset] for term in donor)
                    scores[first:last, scan, position] = compare(here, there)
        if mode == "3d":
            scores = scores.mean(0, keepdim=True).expand(slices, -1, -1)
        pooled = scores.reshape(slices, -1)
        count = min(n, pooled.shape[1])
        best, place = (part[:, :count] for part in torch.sort(pooled, dim=1, descending=True, stable=True))
        empty = torch.isinf(best)
        scans = (place // len(offsets)).masked_fill(empty, -1)
        return scans, offsets[place % len(offsets)].masked_fill(empty, 0), best.masked_fill(empty, torch.nan)

    def gather(self, scans: Tensor, offsets: Tensor | None = None) -> Tensor:
        """Stack chosen donor slices into volumes.

        Args:
            scans: (Z, n) positions in the bank as `rank` or `random_donors` give them; -1 = no donor.
            offsets: (Z, n) or None for the same slice index.

        Returns:
            (n, h, w, Z) float volumes; the j-th holds the j-th ranked donor of every slice, nan where there is none.
        """
        slices, n = scans.shape
        places = torch.arange(slices, device=scans.device)[:, None] + (
            torch.zeros_like(scans) if offsets is None else offsets
        )
        h, w, _ = self.shape
        dtype = torch.float64 if self._scans[0].dtype == torch.float64 else torch.float32
        donors = torch.full((slices, n, h, w), torch.nan, dtype=dtype, device=self._scans[0].device)
        for scan in scans.unique().tolist():
            if scan >= 0:
                chosen = scans == scan
                donors[chosen] = self._scans[scan][places[chosen]].to(dtype)
        return donors.permute(1, 2, 3, 0)

    def _check_target(self, target_volume: Tensor, mode: str, n: int, neighbours: int) -> Tensor:
        target = torch.as_tensor(target_volume)
        if mode not in ("3d", "2d", "2.5d"):
            raise SettingError(f"unknown donor search {mode!r}", remedy="give 3d, 2d or 2.5d")
        if n < 1 or neighbours < 0:
            raise SettingError(
                f"n is {n} and neighbours {neighbours}", remedy="give n of at least 1, neighbours of at least 0"
            )
        if tuple(target.shape) != self.shape:
            raise InputError(
                f"the target scan has shape {tuple(target.shape)}, the donor bank {self.shape}",
                remedy="bring target and source scans to one grid (for example by registration to MNI152)",
            )
        if not target.isfinite().all():
            raise InputError("the target scan has values that are not finite", remedy="replace NaN before the search")
        target = target if target.dtype == torch.float64 else target.float()
        return target.to(self._scans[0].device).permute(2, 0, 1).contiguous()

    def _half_side(self, crop: int | None) -> int | None:
        """The half side in use: `crop`, lowered for slices that are smaller than the square."""
        if crop is None:
            return None
        if 2 * crop < SMALLEST_SIDE:
            raise SettingError(f"crop is {crop}", remedy=f"SR-SIM needs at least {SMALLEST_SIDE // 2}")
        return max(SMALLEST_SIDE // 2, min(crop, min(self.shape[:2]) // 2))

    def _scan_maps(self, half: int | None) -> list[tuple[Maps, torch.Size]]:
        if half not in self._maps:
            self._maps[half] = [_comparable(scan, half)[0] for scan in self._scans]
        return [(scan_maps, scan_maps.gradient.shape[-2:]) for scan_maps in self._maps[half]]


def random_donors(scans: int, slices: int, n: int = 7, seed: int = 42) -> Tensor:
    """The ablation "MST" (n = 7) and "None" (n = 1): donors drawn at random, slice by slice, donor by donor.

    Args:
        scans: K, number of source scans.
        slices: Z of the target scan.
        n: donors per slice, drawn with replacement.
        seed: of Python's generator, restarted for every target scan as the authors do.

    Returns:
        (Z, n) positions in the bank; the slice index is the target's.

    Source: specification 2.5, item 5.
    """
    generator = random.Random(seed)
    return torch.tensor([[generator.choice(range(scans)) for _ in range(n)] for _ in range(slices)])


def _slices_with_neighbour(slices: int, offset: int, reach: int, edges: str) -> tuple[int, int]:
    """First and last + 1 of the target slices that may look at `offset`."""
    if offset == 0:
        return 0, slices
    if edges == "clip":
        return max(0, -offset), min(slices, slices - offset)
    return reach, slices - reach


def _comparable(scan: Tensor, half: int | None) -> tuple[Maps, torch.Size]:
    """Maps of a scan (Z, h, w), cropped about each slice's centre of mass unless `half` is None."""
    scan = scan if scan.dtype == torch.float64 else scan.float()
    scan_maps = maps(scan if half is None else crop_about_centre(scan, half))
    return scan_maps, scan_maps.gradient.shape[-2:]


def crop_about_centre(slices: Tensor, half: int) -> Tensor:
    """Squares of side 2 * half about each slice's own centre of mass (specification 2.3, steps 2 and 3).

    Args:
        slices: (Z, h, w).
        half: pixels before the centre; one less lies behind it.

    Returns:
        (Z, 2 half, 2 half). What lies outside a slice is filled with that slice's minimum; a slice whose intensities
        sum to zero is cropped about (h // 2, w // 2).
    """
    count, h, w = slices.shape
    profiles = [slices.sum(other, dtype=torch.float64) for other in (2, 1)]
    mass = profiles[0].sum(1)
    empty = mass == 0
    mass = mass.masked_fill(empty, 1)
    corners = []
    for profile, side in zip(profiles, (h, w), strict=True):
        centre = (profile @ torch.arange(side, dtype=torch.float64, device=slices.device) / mass).trunc().long()
        corners.append(centre.masked_fill(empty, side // 2) - half)
    square = torch.arange(2 * half, device=slices.device)
    rows, columns = (corner[:, None] + square for corner in corners)
    inside = ((rows >= 0) & (rows < h))[:, :, None] & ((columns >= 0) & (columns < w))[:, None, :]
    index = torch.arange(count, device=slices.device)[:, None, None]
    crops = slices[index, rows.clamp(0, h - 1)[:, :, None], columns.clamp(0, w - 1)[:, None, :]]
    return torch.where(inside, crops, slices.amin((1, 2))[:, None, None])
