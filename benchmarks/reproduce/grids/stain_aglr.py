"""The runs of stain-aglr's tables: patches of one laboratory train, those of the others test."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from stain_aglr_patches import HOME, datalist_of
from table import Claim, Row, Scale, config

from dart_core.data import phantoms
from dart_core.experiment import Job, Output, Word

PACKAGE = "stain-aglr"
SEEDS = tuple(range(10))
OURS = "HED-Light Aug + L_Reg + L_Cons (Stain-AgLr)"
METHODS = {
    "Vanilla": "vanilla",
    "Vahadane": "vahadane",
    "STST GAN": "stst-gan",
    "DSCSI GAN": "dscsi-gan",
    "HED-Light Aug": "hed",
    "HED-Light Aug + L_Reg": "hed-reg",
    "HED-Light Aug + L_Cons": "hed-cons",
    OURS: "stain-aglr",
}
COUNTS: dict[Row, str] = {("# patches",): "counts of patches, no scores"}
GAN_WEIGHTS = "weights/resnet34.pth"
SCALES = {
    "paper": f"DATA holds the slides as their owners publish them, and {GAN_WEIGHTS}: ImageNet's weights for the features of DSCSI GAN.",
    "small": "patches of 64 pixels that overlap by half in training; networks of width 8, batches of 32, Adam at 0.003, at most 30 "
    "epochs; GANs of width 16 at 64 pixels, two epochs in batches of 8, DSCSI GAN's features from random weights; three seeds, each "
    "with its own split. ",
    "smoke": "phantom patches, one epoch.",
}  # fmt: skip
SMALL: tuple[Word, ...] = (
    *("--site", HOME, "--width", 8, "--batch-size", 32, "--learning-rate", 0.003),
    *("--patience", 5, "--stop-lr", 3e-5, "--max-epochs", 30),
)
SMOKE: tuple[Word, ...] = ("--site", "RUMC", "--width", 4, "--batch-size", 8, "--max-epochs", 1)
SMALL_GAN: tuple[Word, ...] = ("--gan-size", 64, "--gan-width", 16, "--gan-epochs", 2, "--gan-batch-size", 8)
SMOKE_GAN: tuple[Word, ...] = ("--gan-size", 32, "--gan-width", 8, "--gan-epochs", 1, "--gan-batch-size", 8)


def patches(scale: Scale, table: str, seed: int) -> Path | Output:
    """The datalist of a table's data."""
    if scale.name == "small":
        name = {"table1": "camelyon_mini", "table2": "monuseg_sites"}[table]
        return datalist_of(scale.set(name).parent, scale.work / "data", name, seed)
    if scale.name == "smoke":
        folder = scale.work / "data" / "histology"
        listed = folder / "datalist.csv"
        return listed if listed.is_file() else phantoms.write_histology(folder, ("RUMC", "CWZ", "RST"), 40, 32)
    words: list[Word] = [
        "patches",
        "--config",
        config(PACKAGE, "camelyon17_patches"),
        "--slides",
        scale.set("CAMELYON17"),
    ]
    if table == "table2":
        labels = scale.set("TUPAC_AL/TUPAC_alternativeLabels_training.sqlite")
        words = ["patches", "--config", config(PACKAGE, "tupac16_patches"), "--slides", scale.set("TUPAC16")]
        words += ["--labels", labels]
    return Job(PACKAGE, tuple(words), f"patches of {table}").file("datalist.csv")


def scored(scale: Scale, table: str, method: str, seed: int) -> Job:
    """A method's AUC in each laboratory: trained, predicted, evaluated."""
    listed = patches(scale, table, seed)
    words: list[Word] = [
        "train",
        "--config",
        config(PACKAGE, f"{table}_{method}"),
        "--datalist",
        listed,
        "--seed",
        seed,
    ]
    gan = method in ("stst-gan", "dscsi-gan")
    if scale.name == "paper":
        words += ["--gan-weights", scale.set(GAN_WEIGHTS)] if method == "dscsi-gan" else []
    elif scale.name == "small":
        words += [*SMALL, *(SMALL_GAN if gan else ()), "--channels-last"]
    else:
        words += [*SMOKE, *(SMOKE_GAN if gan else ()), *(("--feature-epochs", 1) if method == "dscsi-gan" else ())]
    network = Job(PACKAGE, tuple(words), f"{table} {method} seed {seed}")
    predicted = Job(PACKAGE, ("predict", "--model", network, "--datalist", listed), f"{network.name}, predicted")
    return Job(PACKAGE, ("evaluate", "--predictions", predicted), f"{network.name}, scored")


def mean_of(sites: Sequence[str] = (), home: str = "") -> Callable[[Path], float]:
    """Reads the mean of the AUC of some laboratories; of all but the training laboratory, where none is named.

    A laboratory with one class only has no AUC and does not count.
    """

    def read(folder: Path) -> float:
        with (folder / "scores.csv").open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if (row["site"] in sites if sites else row["site"] != home)]
        values = [float(row["auc"]) for row in rows if row["auc"]]
        return statistics.fmean(values) if values else float("nan")

    return read


def claims(columns: tuple[str, ...], not_against_stst: str = "") -> tuple[Claim, ...]:
    """Both losses against everything else, each loss against HED-light alone, and that against plain training.

    Args:
        columns: of the table.
        not_against_stst: a column in which the paper prints STST GAN above its own method.
    """
    less = tuple(column for column in columns if column != not_against_stst)
    found = [Claim((OURS,), (other,), less if other == "STST GAN" else columns) for other in METHODS if other != OURS]
    found += [Claim((f"HED-Light Aug + {loss}",), ("HED-Light Aug",), columns) for loss in ("L_Reg", "L_Cons")]
    return (*found, Claim(("HED-Light Aug",), ("Vanilla",), columns))
