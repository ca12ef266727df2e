"""The runs of adagrad-unet's tables: the 2-D nnU-Net by optimiser and number of epochs, masks on every site and their scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lgg_multisite import PIXEL
from sets import heads, hearts, lgg
from table import Cell, Scale, config, csv_cases, csv_mean

from dart_core.experiment import Job, Word

PACKAGE = "adagrad-unet"
SEED = 0xBADCAFE
SOURCE = {"CC359": "ge3", "MnMs": "B"}
CC359 = {
    "GE15": "ge15",
    "Philips 15": "ph15",
    "Philips 3": "ph3",
    "Siemens 15": "sm15",
    "Siemens 3": "sm3",
    "GE 3 Test": "ge3",
}
MNMS = {"A": "A", "C": "C", "D": "D", "B Test": "B"}
NUMBERS = {"LV": "1", "MYO": "2", "RV": "3"}
"""What names a structure where the data give it no name, as phantoms do."""
LGG = {
    "GE15": "DU",
    "Philips 15": "FG",
    "Philips 3": "HT",
    "GE 3 Test": "CS",
    "A": "DU",
    "C": "FG",
    "D": "HT",
    "B Test": "CS",
}
"""Which hospital of lgg_multisite stands in which column."""
EPOCHS = {"25": 10, "50": 20, "1000": 40}
SMALL = (
    "lgg_multisite: hospital CS trains, DU, FG and HT are targets; slices at 3.6 mm, 121,432 parameters in place of 29.5 million, batches of 6; 10, "
    "20 and 40 epochs of 25 batches for 25, 50 and 1,000 of 250. "
)
COMPARISONS = 7
"""Each of the other columns of a row against S-1000."""
HOURS = {"train": 2.8, "predict": 0.1, "evaluate": 0.05}
HOURS_FROM = "250,000 steps of 58 slices at about 0.15 s where the name says 1000, 6,250 and 12,500 else"


def source_of(scale: Scale, data: str) -> str:
    """The site that trains."""
    return "CS" if scale.name == "small" else SOURCE[data]


def columns(scale: Scale, data: str) -> dict[str, str]:
    """Column -> site."""
    whole = CC359 if data == "CC359" else MNMS
    first = dict([next(iter(whole.items()))])
    found: dict[str, str] = scale.pick(paper=whole, small={c: LGG[c] for c in whole if c in LGG}, smoke=first)
    return found


def _datalist(scale: Scale, data: str, seed: int) -> Path:
    if scale.name == "paper":
        return scale.set(data)
    if scale.name == "small":
        return lgg(scale, seed, "t1" if data == "CC359" else "flair_tumour")
    return heads(scale, tuple(CC359.values()), 5) if data == "CC359" else hearts(scale, tuple(MNMS.values()), 4)


def trained(scale: Scale, row: str, data: str, seed: int) -> Job:
    """A network of the source site; row is that of the table, and names a config of the package."""
    site = source_of(scale, data)
    words: list[Word] = ["train", "--config", config(PACKAGE, row), "--datalist", _datalist(scale, data, seed)]
    words += ["--site", site, "--seed", seed]
    if scale.name == "paper":
        words += ["--orientation", "file", "--slice-axis", "z"] if data == "CC359" else []
    if scale.name == "small":
        words += ["--slice-axis", "z", "--pixel", 2 * PIXEL, 2 * PIXEL, "--base-features", 8, "--max-pools", 3]
        words += ["--batch-size", 6, "--epochs", EPOCHS[row.split("-")[1]], "--batches", 25, "--validation-batches", 0]
        words += ["--precision", "fp32", "--channels-last", "--log-every", 25]
    if scale.name == "smoke":
        words += ["--slice-axis", "z", "--base-features", 4, "--max-pools", 2, "--batch-size", 2, "--epochs", 1]
        words += ["--batches", 2, "--validation-batches", 0, "--precision", "fp32"]
    return Job(PACKAGE, tuple(words), f"{row} on {site} seed {seed}")


def scored(scale: Scale, row: str, data: str, site: str, seed: int) -> Job:
    """Scores of a network on a site: its test subjects where it is the source (M&Ms: everywhere), else all."""
    network = trained(scale, row, data, seed)
    name = "table1_predict_source" if site == source_of(scale, data) else "table1_predict_targets"
    if data == "MnMs" and scale.name != "small":
        name = "table2_predict"
    words: list[Word] = ["predict", "--config", config(PACKAGE, name), "--model", network, "--name", row]
    words += ["--datalist", _datalist(scale, data, seed), "--site", site]
    predicted = Job(PACKAGE, tuple(words), f"{network.name}, on {site}")
    how: Sequence[Word] = scale.pick(
        paper=("--config", config(PACKAGE, "table1_evaluate" if data == "CC359" else "table2_evaluate")),
        small=("--surface", "2d", "--tolerance", 2 * PIXEL),
        smoke=("--tolerance", 6.0),
    )
    return Job(PACKAGE, ("evaluate", "--predictions", predicted, *how), f"{network.name}, scored on {site}")


def cells(scale: Scale, data: str, rows: Sequence[str], score: str, labels: Sequence[str] = ("",)) -> Iterator[Cell]:
    """Every run on every site; labels are the structures, each of which has columns. At the small scale the first stands for all there is."""
    for row in rows:
        for column, site in columns(scale, data).items():
            runs = [[scored(scale, row, data, site, seed)] for seed in scale.seeds((SEED,))]
            for label in labels[:1] if scale.name == "small" else labels:
                structure = scale.pick(paper=label, small="", smoke=NUMBERS.get(label, ""))
                where = {"structure": structure} if structure else {}
                read, cases = csv_mean("scores.csv", score, **where), csv_cases("scores.csv", "scan", score, **where)
                yield Cell((row,), f"{label}_{column}" if label else column, runs, read, cases)
