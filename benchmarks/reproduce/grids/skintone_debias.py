"""The runs of skintone-debias's tables: train without and with unlearning, score a test set, evaluate it by skin type and data set."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from skintone_debias_ham import labelled
from table import Scale, config

from dart_core.data import phantoms
from dart_core.data.datalist import Datalist, Row
from dart_core.experiment import Job, Word

PACKAGE = "skintone-debias"
SEEDS = (0,)
"""The paper trains each network once."""
WEIGHTS = "weights/resnext101_32x8d.pth"
HAM = "ham10000_sites"
PAPER = f"DATA holds the sets as their owners publish them, and {WEIGHTS}: ImageNet's weights of torchvision's resnext101_32x8d."
SCALES = {
    "small": "ham10000_sites: pictures of 64 pixels, a small residual network from random weights, 30 epochs in batches of 32, "
    "learning rates of 0.01, three seeds. Malignant is melanoma, basal cell carcinoma or actinic keratosis. ",
    "smoke": "phantom lesions, a small network, one epoch.",
}  # fmt: skip


def dealt(rows: Sequence[dict[str, Any]], data: Path, parts: int, name: str) -> list[Row]:
    """Rows of ham10000_sites with the part of their angles that each falls in, 1 = lightest, as column `name`."""
    angles = np.array([row["ita"] for row in rows])
    bounds = np.quantile(angles, np.arange(1, parts) / parts)
    return [
        Row(
            data / "images" / row["image"],
            subject=row["lesion_id"],
            site=row["site"],
            labels={"label": row["malignant"], name: str(parts - int(np.searchsorted(bounds, row["ita"], "right")))},
        )
        for row in rows
    ]


def _known(scale: Scale) -> list[dict[str, Any]]:
    """What the package's labeller finds in ham10000_sites (neutral patches rejected), where it finds anything."""
    folder = scale.work / "data" / HAM
    folder.mkdir(parents=True, exist_ok=True)
    return [row for row in labelled(scale.set(HAM), folder) if row["ita"] is not None]


def by_type(scale: Scale) -> Path:
    """Trained on types 1 and 2, tested on 3 to 6. Small: sixths of the angle stand for the types. Phantoms are dealt as they are."""
    if scale.name == "paper":
        return scale.set("fitzpatrick17k")
    if scale.name == "smoke":
        return skin_phantoms(scale)
    listed = scale.work / "data" / HAM / "types.csv"
    if not listed.is_file():
        rows = dealt(_known(scale), scale.set(HAM), 6, "fitzpatrick")
        splits = ["train" if row.labels["fitzpatrick"] in "12" else "test" for row in rows]
        Datalist(tuple(replace(row, split=split) for row, split in zip(rows, splits, strict=True))).write(listed)
    return listed


def held_out(scale: Scale, site: str) -> Path:
    """ham10000_sites with one site for test, the others for training; thirds of the angle among the training pictures are `tone`."""
    listed = scale.work / "data" / HAM / f"{site}.csv"
    if not listed.is_file():
        found: list[Row] = []
        for split in ("train", "test"):
            rows = [row for row in _known(scale) if (row["site"] == site) == (split == "test")]
            found += [replace(row, split=split) for row in dealt(rows, scale.set(HAM), 3, "tone")]
        Datalist(tuple(found)).write(listed)
    return listed


def isic_tones(scale: Scale) -> Job:
    """ISIC 2017 and 2020 as published, with the types of the package's labeller."""
    words = ("label", scale.set("isic"), "--truth", "none")
    return Job(PACKAGE, words, "ISIC labelled", out="tones.csv")


def skin_phantoms(scale: Scale) -> Path:
    """Datalist of phantom lesions at two sites."""
    folder = scale.work / "data" / "skin-lesions"
    listed = folder / "datalist.csv"
    return listed if listed.is_file() else phantoms.write_skin_lesions(folder, ("A", "B"), 24, 48)


def _named(datalist: Path | Job) -> str:
    return datalist.name if isinstance(datalist, Job) else datalist.stem


def trained(
    scale: Scale, row: str, datalist: Path | Job, seed: int, sites: Sequence[str] = (), nuisance: str = ""
) -> Job:
    """A classifier with the settings of a table's row, named like its file in configs."""
    words: list[Word] = ["train", "--config", config(PACKAGE, row), "--datalist", datalist, "--seed", seed]
    if scale.name == "paper":
        words += ["--weights", scale.set(WEIGHTS)]
    else:
        words += ["--encoder", "test_resnet", "--lr-base", 0.01, "--lr-class", 0.01]
        words += ["--sites", *sites] if sites else []
        words += ["--nuisance", nuisance] if nuisance else []
        words += scale.pick(
            paper=[],
            small=["--image-size", 64, "--epochs", 30, "--batch-size", 32],
            smoke=["--image-size", 32, "--epochs", 1, "--batch-size", 8],
        )
    return Job(PACKAGE, tuple(words), f"{row} seed {seed} {_named(datalist)}")


def scored(network: Job, datalist: Path) -> Job:
    """Its AUC on the test pictures of a data set, by skin type and by site."""
    words: tuple[Word, ...] = ("predict", "--config", config(PACKAGE, "table1_predict"))
    predicted = Job(
        PACKAGE, (*words, "--model", network, "--datalist", datalist), f"{network.name}, on {datalist.stem}"
    )
    # table1_evaluate groups by type; a data set without types is scored as a whole.
    words = ("evaluate", "--config", config(PACKAGE, "table1_evaluate"), "--predictions", predicted)
    return Job(PACKAGE, words, f"{network.name}, scored on {datalist.stem}")


def sites_of(listed: Path, split: str) -> list[str]:
    """The sites of a part of a datalist."""
    with listed.open(newline="", encoding="utf-8") as file:
        return sorted({row["site"] for row in csv.DictReader(file) if row["split"] == split})
