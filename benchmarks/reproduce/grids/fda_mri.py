"""The runs of fda-mri's tables: source networks, donor banks, the choice of beta, masks of target scans and their scores."""

from __future__ import annotations

from collections.abc import Iterator

from lgg_multisite import PIXEL
from sets import LGG_SITES, heads, lgg
from table import Cell, Row, Scale, config, csv_mean

from dart_core.experiment import Job, Word

PACKAGE = "fda-mri"
SEED = 0xBADCAFE
CC359 = ("sm15", "sm3", "ge15", "ge3", "ph15", "ph3")
HOSPITALS = dict(zip(CC359[:4], LGG_SITES, strict=True))
"""Which hospital of lgg_multisite stands in which row and column of Table 1."""
PAIRS = {
    "severe_1": ("sm3", "ge15"), "severe_2": ("ge3", "ph3"), "medium_1": ("ph3", "ge15"), "medium_2": ("sm15", "ph3"),
    "subtle_1": ("ph3", "sm15"), "subtle_2": ("ge15", "ph15"),
}  # fmt: skip
LGG_PAIRS = {
    "severe_1": ("CS", "FG"), "severe_2": ("FG", "CS"), "medium_1": ("CS", "HT"), "medium_2": ("DU", "FG"),
    "subtle_1": ("DU", "HT"), "subtle_2": ("HT", "DU"),
}  # fmt: skip
"""By the paper's rule from the transfer matrix of the study fda_mri_lgg."""
PAPER = "CC359 registered to MNI152 (FLIRT, 12 degrees of freedom), in the folder CC359_MNI152 of the data; one run, as in the paper."
SMALL = (
    "lgg_multisite instead of CC359: brain masks in T1, not registered; a U-Net of width 4 and 400 steps of 8 slices instead of width 16 and "
    "10,000 of 16, learning rate 0.01. Surface Dice is the mean over slices at one pixel. "
)
SMOKE = "phantom heads, a few steps, first column."
HOURS = {"train": 0.25, "bank": 0.02, "tune-beta": 0.6, "predict": 0.1, "evaluate": 0.03}


def pairs(scale: Scale) -> dict[str, tuple[str, str]]:
    """Column -> (source, target)."""
    found: dict[str, tuple[str, str]] = scale.pick(paper=PAIRS, small=LGG_PAIRS, smoke={"severe_1": PAIRS["severe_1"]})
    return found


def _data(scale: Scale, seed: int, site: str) -> list[Word]:
    if scale.name == "paper":
        return ["--datalist", scale.set("CC359_MNI152"), "--site", site]
    if scale.name == "small":
        return ["--datalist", lgg(scale, seed), "--site", site]
    return ["--datalist", heads(scale, CC359, 6, (48, 56, 12)), "--site", site, "--resample"]


def _surface(scale: Scale) -> list[Word]:
    found: list[Word] = scale.pick(
        paper=[], small=["--tolerance", PIXEL, "--surface", "2d"], smoke=["--tolerance", 4.0]
    )
    return found


def source_network(scale: Scale, site: str, seed: int, fold: int | None = None) -> Job:
    """Trained on a site, or on two thirds of it where a fold is held out."""
    name = "table1_source_networks" if fold is None else "table1_in_domain"
    words: list[Word] = ["train", "--config", config(PACKAGE, name), *_data(scale, seed, site), "--seed", seed]
    words += [] if fold is None else ["--fold", fold]
    if scale.name == "small":
        words += [
            "--width",
            4,
            "--epochs",
            8,
            "--iterations",
            50,
            "--drop-epoch",
            6,
            "--batch-size",
            8,
            "--channels-last",
        ]
        words += ["--learning-rate", 0.01, "--crop-size", 128]
    if scale.name == "smoke":
        words += [
            "--width",
            2,
            "--epochs",
            1,
            "--iterations",
            2,
            "--drop-epoch",
            1,
            "--batch-size",
            2,
            "--crop-size",
            40,
        ]
    return Job(PACKAGE, tuple(words), f"source {site}{'' if fold is None else f' fold {fold}'} seed {seed}")


def scored(scale: Scale, predicted: Job) -> Job:
    """Surface Dice of every scan."""
    return Job(PACKAGE, ("evaluate", "--predictions", predicted, *_surface(scale)), f"{predicted.name}, scored")


def unadapted(scale: Scale, source: str, target: str, seed: int, fold: int | None = None) -> Job:
    """The source network on the target's test scans as they are; with a fold, on the third of its own site held out."""
    network = source_network(scale, source, seed, fold)
    words: list[Word] = ["predict", "--config", config(PACKAGE, "table1_no_adaptation"), "--model", network]
    words += [*_data(scale, seed, target), *([] if fold is None else ["--fold", fold])]
    return scored(scale, Job(PACKAGE, tuple(words), f"{network.name}, on {target}"))


def bank(scale: Scale, site: str, seed: int) -> Word:
    """The file of donors from a site's training scans."""
    return Job(PACKAGE, ("bank", *_data(scale, seed, site)), f"donors {site} seed {seed}").file("donors.safetensors")


def tuned(scale: Scale, pair: tuple[str, str], seed: int, donors: int = 7) -> Job:
    """Curves of surface Dice against beta on the target's validation scans."""
    source, target = pair
    words: list[Word] = ["tune-beta", "--config", config(PACKAGE, "table2_tune_beta"), *_data(scale, seed, target)]
    words += ["--model", source_network(scale, source, seed), "--bank", bank(scale, source, seed), *_surface(scale)]
    words += _search(scale)
    words += ["--n", 1, "--modes", "random"] if donors == 1 else []
    words += [] if scale.name == "paper" and donors > 1 else ["--counts", 1]  # the study of n is no part of the table
    words += ["--betas", 0, 0.05, 0.1] if scale.name == "smoke" else []
    return Job(PACKAGE, tuple(words), f"beta {source}->{target} n {donors} seed {seed}")


def _search(scale: Scale) -> list[Word]:
    """Phantom slices are smaller than the square that donors are compared on."""
    return ["--crop", 20] if scale.name == "smoke" else []


def adapted(scale: Scale, row: str, policy: str, column: str, seed: int) -> Job:
    """By Fourier transfer; row names a config of the package, policy is "averaged" (over all pairs) or "per pair"."""
    source, target = pairs(scale)[column]
    donors = 1 if row == "table3_none" else 7
    of_pairs = [pairs(scale)[column]] if policy == "per pair" else list(pairs(scale).values())
    words: list[Word] = ["predict", "--config", config(PACKAGE, row), *_data(scale, seed, target), *_search(scale)]
    words += ["--model", source_network(scale, source, seed), "--bank", bank(scale, source, seed)]
    words += ["--tuned", *(tuned(scale, pair, seed, donors) for pair in of_pairs)]
    return scored(scale, Job(PACKAGE, tuple(words), f"{row} {policy} {source}->{target} seed {seed}"))


def cyclegan(scale: Scale, column: str, seed: int) -> Job:
    """The stand-in for the paper's GAN, trained on the training scans of both sites."""
    source, target = pairs(scale)[column]
    words: list[Word] = ["train", "--config", config(PACKAGE, "table2_cyclegan"), *_data(scale, seed, source)]
    words += ["--target-site", target, "--seed", seed]
    if scale.name == "small":
        words += ["--generator-width", 8, "--blocks", 3, "--image-size", 128, "--steps", 200]
    if scale.name == "smoke":
        words += ["--generator-width", 2, "--blocks", 1, "--image-size", 64, "--steps", 2]
    generator = Job(PACKAGE, tuple(words), f"cyclegan {source}->{target} seed {seed}")
    predict: list[Word] = ["predict", "--mode", "cyclegan", "--role", "test", "--generator", generator]
    predict += ["--model", source_network(scale, source, seed), *_data(scale, seed, target)]
    return scored(scale, Job(PACKAGE, tuple(predict), f"{generator.name}, predicted"))


def over_pairs(scale: Scale, rows: dict[Row, tuple[str, str]]) -> Iterator[Cell]:
    """Cells of every pair and of their mean; rows maps to what `adapted` takes, or ("none", "") and ("cyclegan", "")."""
    read = csv_mean("scores.csv", "surface_dice")

    def run(row: Row, column: str, seed: int) -> Job:
        what, policy = rows[row]
        if what == "none":
            return unadapted(scale, *pairs(scale)[column], seed)
        return cyclegan(scale, column, seed) if what == "cyclegan" else adapted(scale, what, policy, column, seed)

    seeds = scale.seeds((SEED,))
    for row in rows:
        for column in pairs(scale):
            yield Cell(row, column, [[run(row, column, seed)] for seed in seeds], read)
        if scale.name != "smoke":
            yield Cell(row, "average", [[run(row, column, seed) for column in pairs(scale)] for seed in seeds], read)
