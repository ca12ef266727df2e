"""The data of the tables at each scale: the papers' own sets, small real ones, phantoms. What is written goes into the work folder."""

from __future__ import annotations

from pathlib import Path

from lgg_multisite import LISTS, PIXEL, convert
from table import Scale

from dart_core.data import phantoms

LGG_SITES = ("CS", "DU", "FG", "HT")
LGG_SPACING = (2 * PIXEL, 2 * PIXEL, 12.0)
"""Half the resolution; slices keep their distance."""


def lgg(scale: Scale, split_seed: int, contrast: str = "t1") -> Path:
    """Datalist of lgg_multisite (61 patients, hospitals in LGG_SITES), one of LISTS; each seed has its own split of the patients."""
    folder = scale.work / "data" / f"lgg-{split_seed}"
    if not all((folder / f"{name}.csv").is_file() for name in LISTS):
        convert(scale.set("lgg_multisite").parent, folder, split_seed)
    return folder / f"{contrast}.csv"


def heads(scale: Scale, sites: tuple[str, ...], subjects: int, shape: tuple[int, int, int] = (32, 40, 16)) -> Path:
    """Datalist of phantom heads."""
    folder = scale.work / "data" / f"heads-{'-'.join(sites)}-{subjects}"
    listed = folder / "datalist.csv"
    return listed if listed.is_file() else phantoms.write_head_mr(folder, sites, subjects, shape)
