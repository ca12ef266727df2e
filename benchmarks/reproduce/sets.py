"""The data of the tables at each scale: the papers' own sets, small real ones, phantoms. What is written goes into the work folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from chest_xrays import convert as convert_radiographs
from lgg_multisite import LISTS, PIXEL, convert
from table import Scale

from dart_core.data import phantoms
from dart_core.data.datalist import Datalist

LGG_SITES = ("CS", "DU", "FG", "HT")
LGG_SPACING = (2 * PIXEL, 2 * PIXEL, 12.0)
"""Half the resolution; slices keep their distance."""
RADIOGRAPHS = {
    "ChestX-ray14": "ChestX-ray14",
    "CheXpert": "CheXpert-v1.0",
    "Shenzhen": "ChinaSet_AllFiles",
    "VinDr-CXR": "vindr-cxr",
    "RSNA Pneumonia": "rsna-pneumonia-detection-challenge",
    "RSNA PE": "rsna-str-pulmonary-embolism-detection",
}
"""Data set -> the folder that its owners publish."""
SMALL_RADIOGRAPHS = {"ChestX-ray14": "nih_cxr_1000", "Shenzhen": "pneumoniamnist"}
"""Data set -> the small one in its place."""
FEW = {"train": 300, "val": 100}
"""Pictures of pneumoniamnist's parts that are fine-tuned on."""


def lgg(scale: Scale, split_seed: int, contrast: str = "t1") -> Path:
    """Datalist of lgg_multisite (61 patients, hospitals in LGG_SITES), one of LISTS; each seed has its own split of the patients."""
    folder = scale.work / "data" / f"lgg-{split_seed}"
    if not all((folder / f"{name}.csv").is_file() for name in LISTS):
        convert(scale.set("lgg_multisite").parent, folder, split_seed)
    return folder / f"{contrast}.csv"


def heads(scale: Scale, sites: tuple[str, ...], subjects: int, shape: tuple[int, int, int] = (32, 40, 16)) -> Path:
    """Datalist of phantom heads."""
    folder = scale.work / "data" / f"heads-{'-'.join(sites)}-{subjects}-{'x'.join(map(str, shape))}"
    listed = folder / "datalist.csv"
    return listed if listed.is_file() else phantoms.write_head_mr(folder, sites, subjects, shape)


def radiographs(scale: Scale, name: str, whole: bool = False) -> Path:
    """A set of RADIOGRAPHS: its folder as published, the small one in its place, or phantoms of 48 pixels with three findings.

    Args:
        scale: how big.
        name: of RADIOGRAPHS.
        whole: all training pictures of pneumoniamnist, not FEW.
    """
    if scale.name == "paper":
        return scale.set(RADIOGRAPHS[name])
    folder = scale.work / "data" / "radiographs"
    if scale.name == "smoke":
        site = "chexpert" if name == "CheXpert" else "chestxray14"
        listed = folder / site / "datalist.csv"
        if not listed.is_file():
            phantoms.write_chest_xrays(listed.parent, site, 60, ("Cardiomegaly", "Effusion", "Edema"), (48, 48))
        return listed
    stem = SMALL_RADIOGRAPHS[name]
    listed = folder / f"{stem}.csv"
    few = folder / "few.csv"
    if not few.is_file():
        lists = convert_radiographs(scale.set(stem).parent, folder, None)
        rng = np.random.default_rng(0)
        rows = list(Datalist.read(lists["pneumoniamnist"]))
        kept = [i for i, row in enumerate(rows) if row.split == "test"]
        for split, count in FEW.items():
            kept += rng.permutation([i for i, row in enumerate(rows) if row.split == split])[:count].tolist()
        Datalist(tuple(rows[i] for i in sorted(kept))).write(few)
    return few if stem == "pneumoniamnist" and not whole else listed


def prostates(scale: Scale, sites: tuple[str, ...], subjects: int, shape: tuple[int, int, int] = (48, 48, 10)) -> Path:
    """Datalist of phantom pelvises."""
    folder = scale.work / "data" / f"prostates-{'-'.join(sites)}-{subjects}"
    listed = folder / "datalist.csv"
    return listed if listed.is_file() else phantoms.write_prostate_mr(folder, sites, subjects, shape)


def hearts(scale: Scale, vendors: tuple[str, ...], subjects: int, shape: tuple[int, int, int] = (40, 40, 6)) -> Path:
    """Datalist of phantom hearts, two phases each."""
    folder = scale.work / "data" / f"hearts-{'-'.join(vendors)}-{subjects}"
    listed = folder / "datalist.csv"
    return listed if listed.is_file() else phantoms.write_cardiac_mr(folder, vendors, subjects, shape)
