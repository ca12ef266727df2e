"""What the commands of packages that segment the scans of several sites have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dart_core.data.datalist import Datalist, Row
from dart_core.data.scans import Scan, check_scans, open_datalist, report_missing, rows_of
from dart_core.errors import InputError, SettingError
from dart_core.figures import Panel
from dart_core.settings import ScanSettings


class Trained(Protocol):
    """What the file of a network says of the scans it was trained on."""

    @property
    def preprocessing(self) -> str:
        """As in `ScanSettings`."""

    @property
    def channels(self) -> int:
        """Neighbouring slices that it sees."""

    @property
    def spacing(self) -> list[float] | None:
        """Voxel size in mm, None where each file kept its own."""


# --- Data and sites --------------------------------------------------------------------------------------------------


def check_data(scans: ScanSettings, require_mask: bool) -> int:
    """Print every problem of a datalist, and how many scans each site has of which split.

    Args:
        scans: the datalist, and how its scans will be read.
        require_mask: a row without mask is a problem.

    Returns:
        Exit status: 0 if there is no problem, else 2.
    """
    datalist = open_datalist(scans.datalist)
    found = check_scans(datalist, scans, require_mask)
    for line in found:
        print(line)
    for line in report_missing(scans.datalist):
        print(f"note: {line}")
    for site in datalist.sites:
        splits = [row.split or "no split" for row in datalist if row.site == site]
        counts = ", ".join(f"{splits.count(name)} {name}" for name in dict.fromkeys(splits))
        print(f"site {site}: {counts}")
    print(f"{len(datalist)} scans: {len(found) or 'no'} problem{'s' * (len(found) != 1)}")
    return 2 if found else 0


def source_sites(datalist: Datalist, source: Sequence[str], target: str) -> tuple[str, ...]:
    """The sites that --source names, or all but --target.

    Args:
        datalist: the scans.
        source: sites that were named.
        target: the site to leave out, or nothing.

    Raises:
        InputError: no such site, or none left.
        SettingError: no site named, or one that is both.
    """
    if source:
        if target in source:
            raise SettingError(f"{target} is both source and target", remedy="leave it out of --source")
        return tuple(dict.fromkeys(source))
    if not target:
        if len(datalist.sites) > 1:
            raise SettingError(
                f"{datalist.source} holds {len(datalist.sites)} sites",
                remedy=f"name the source: --source {datalist.sites[0]}; or the one to leave out: --target",
            )
        return datalist.sites
    datalist.select(site=target)  # a misspelt site must not leave all sites as sources
    others = tuple(site for site in datalist.sites if site != target)
    if not others:
        raise InputError(f"holds no site but {target}", where=datalist.source, remedy="add a source site")
    return others


def rows_to_predict(datalist: Datalist, site: str, split: str) -> list[Row]:
    """The rows of a site and split ("all": of any).

    Raises:
        InputError: no such site, or no row of the split.
        SettingError: no site, and the datalist has several.
    """
    if not site and len(datalist.sites) > 1:
        raise SettingError("a source network has no target site", remedy=f"name one: --site {datalist.sites[0]}")
    return rows_of(datalist, [site] if site else [], None if split == "all" else split)


# --- Networks --------------------------------------------------------------------------------------------------------


def check_settings(model: Trained, scans: ScanSettings, where: Path) -> None:
    """Scans must reach a network as those it was trained on did.

    Args:
        model: the network's own words.
        scans: how scans would be read now.
        where: the network's file or folder, for the message.

    Raises:
        SettingError: another preprocessing, number of channels, or voxel size.
    """
    for name, was, now in (
        ("--preprocessing", model.preprocessing, scans.preprocessing),
        ("number of channels", model.channels, scans.channels),
        ("--spacing", model.spacing, spacing_of(scans)),
    ):
        if was != now:
            raise SettingError(
                f"{name} was {_words(was)} when this network was trained and is {_words(now)} now",
                where=where,
                remedy="give the settings it was trained with",
            )


def spacing_of(scans: ScanSettings) -> list[float] | None:
    """Voxel size in mm that scans are resampled to, as JSON has it; None where they keep their own."""
    return None if scans.target_spacing is None else list(scans.target_spacing)


def _words(value: object) -> str:
    if isinstance(value, list):
        return " ".join(f"{side:g}" for side in value)
    return "that of the files" if value is None else str(value)


# --- Pictures --------------------------------------------------------------------------------------------------------


def panel(scan: Scan, mask: NDArray[np.bool_], title: str) -> Panel:
    """The slice with the largest mask, with the outlines of the true mask, where there is one, and of another.

    Args:
        scan: preprocessed.
        mask: (H, W, Z) prediction.
        title: stands above.
    """
    known = scan.mask if scan.mask is not None else mask
    z = int(known.sum((0, 1)).argmax()) if known.any() else scan.volume.shape[-1] // 2
    return Panel(title, grey(scan, z), None if scan.mask is None else scan.mask[..., z], mask[..., z])


def grey(scan: Scan, z: int) -> NDArray[np.float32]:
    """A slice (H, W) from 0 to 1: between the 1st and 99th percentile."""
    image = np.asarray(scan.volume[..., z], dtype=np.float32)
    low, high = np.percentile(image, (1, 99))
    return np.asarray(np.clip((image - low) / max(high - low, 1e-9), 0, 1), dtype=np.float32)
