"""The runs of mmtl-octl's tables of segmentation: source networks, fine-tuning, test on target and source."""

from __future__ import annotations

from itertools import permutations

from sets import LGG_SITES, LGG_SPACING, heads, lgg, prostates
from table import Scale, config

from dart_core.experiment import Job, Word

PACKAGE = "mmtl-octl"
METHODS = {"FTA": "fta", "FTF": "ftf", "L2SP": "l2sp", "ST": "spottune", "OCTL": "octl", "MMTL": "mmtl"}
AUTHORS_SEEDS = (42, 75, 0xBADCAFE)
CC359 = ("sm15", "sm3", "ge15", "ge3", "ph15", "ph3")
SHORT: tuple[Word, ...] = ("--preprocessing", "plain", "--spacing", *LGG_SPACING, "--patch-size", 48, "--batch-size", 8)
SCALES = {
    "small": "lgg_multisite instead of CC359: brain masks, two pairs of four hospitals, T1 slices at 3.6 mm; a U-Net of width 4 "
    "instead of 16; 216 steps for the source and 84 for fine-tuning instead of 6,000; learning rate 0.01 (SGD). Surface Dice is the "
    "mean over slices at one pixel.",
    "smoke": "phantom heads, one pair, a few steps.",
}  # fmt: skip


def pairs(scale: Scale) -> list[tuple[str, str]]:
    """(source, target)."""
    ring = [(LGG_SITES[0], LGG_SITES[1]), (LGG_SITES[2], LGG_SITES[3])]
    found: list[tuple[str, str]] = scale.pick(paper=list(permutations(CC359, 2)), small=ring, smoke=[("sm3", "ge15")])
    return found


def _data(scale: Scale, seed: int) -> list[Word]:
    if scale.name == "paper":
        return ["--datalist", scale.set("CC359")]
    if scale.name == "small":
        return ["--datalist", lgg(scale, seed), *SHORT[:6]]
    return ["--datalist", heads(scale, ("sm3", "ge15"), 10), "--preprocessing", "plain"]


def _training(scale: Scale, optimizer: str, source: bool) -> list[Word]:
    """What a scale changes in the settings of the paper."""
    if scale.name == "paper":
        return []
    rate: list[Word] = ["--learning-rate", 0.01 if optimizer == "sgd" else 0.001]
    if scale.name == "small":
        steps: list[Word] = ["--epochs", 12, "--batches", 18, "--drop-epoch", 9]
        if not source:
            steps = ["--epochs", 6, "--batches", 14, "--drop-epoch", 4]
        return [*SHORT[6:], *steps, *rate, *(["--width", 4] if source else []), "--channels-last"]
    steps = ["--epochs", 2, "--batches", 2, "--drop-epoch", 1, "--batch-size", 4, "--patch-size", 32]
    return [*steps, *rate, "--start-step", 2, *(["--width", 2] if source else [])] if not source else [
        *steps, *rate, "--width", 2
    ]  # fmt: skip


def source_network(scale: Scale, optimizer: str, site: str, seed: int) -> Job:
    """Trained on all of a site's training patients, with its gradient history."""
    words: list[Word] = ["pretrain", "--config", config(PACKAGE, f"table2_source_{optimizer}"), *_data(scale, seed)]
    words += ["--source", site, "--seed", seed, *_training(scale, optimizer, True)]
    return Job(PACKAGE, tuple(words), f"source {site} {optimizer} seed {seed}")


def fine_tuned(scale: Scale, optimizer: str, amount: str, method: str, pair: tuple[str, str], seed: int) -> Job:
    """A source network after fine-tuning on some slices of the target."""
    source, target = pair
    words: list[Word] = ["adapt", "--config", config(PACKAGE, f"table2_{optimizer}_{amount}"), *_data(scale, seed)]
    words += ["--method", method, "--target", target, "--source-model", source_network(scale, optimizer, source, seed)]
    words += ["--seed", seed, *_training(scale, optimizer, False)]
    return Job(PACKAGE, tuple(words), f"{method} {source}->{target} {amount} {optimizer} seed {seed}")


def tested(scale: Scale, network: Job, site: str, seed: int) -> Job:
    """Scores of a network on the test patients of a site."""
    data = _data(scale, seed)
    words: tuple[Word, ...] = ("predict", "--model", network, "--site", site, "--split", "test", *data)
    predicted = Job(PACKAGE, words, f"{network.name}, on {site}")
    tolerance: tuple[Word, ...] = scale.pick(
        paper=("--config", config(PACKAGE, "table2_evaluate")),
        small=("--surface", "2d", "--tolerance", LGG_SPACING[0]),
        smoke=("--tolerance", 4.0),
    )
    return Job(PACKAGE, ("evaluate", "--predictions", predicted, *tolerance), f"{network.name}, scored on {site}")


# --- Prostates: one network of all other sites for each target -------------------------------------------------------

PROSTATES = ("RUNMC", "BMC", "I2CVB", "UCL", "BIDMC", "HK")


def prostate_targets(scale: Scale) -> tuple[str, ...]:
    """Sites that are fine-tuned to."""
    found: tuple[str, ...] = scale.pick(paper=PROSTATES, small=LGG_SITES[::2], smoke=PROSTATES[:1])
    return found


def _prostate_data(scale: Scale, seed: int) -> list[Word]:
    if scale.name == "paper":
        return ["--datalist", scale.set("PROSTATE")]
    if scale.name == "small":
        return ["--datalist", lgg(scale, seed, "flair_tumour"), *SHORT[:6]]
    return ["--datalist", prostates(scale, PROSTATES, 5)]


def _prostate_training(scale: Scale, source: bool) -> list[Word]:
    if scale.name == "paper":
        return []
    if scale.name == "small":
        return _training(scale, "adam", source)
    words: list[Word] = ["--epochs", 2, "--batches", 2, "--drop-epoch", 1, "--batch-size", 2]
    return [*words, "--width", 2] if source else [*words, "--start-step", 2]


def prostate_scored(scale: Scale, amount: str, method: str, target: str, seed: int) -> Job:
    """Scores on a target after fine-tuning the network of the other sites on some of its slices."""
    data = _prostate_data(scale, seed)
    words: list[Word] = ["pretrain", "--config", config(PACKAGE, "table4_source"), *data, "--seed", seed]
    sources = [site for site in (LGG_SITES if scale.name == "small" else PROSTATES) if site != target]
    words += ["--source", *sources, *_prostate_training(scale, True)]
    network = Job(PACKAGE, tuple(words), f"source without {target} seed {seed}")
    words = ["adapt", "--config", config(PACKAGE, f"table4_{amount}"), *data, "--method", method, "--target", target]
    words += ["--source-model", network, "--seed", seed, *_prostate_training(scale, False)]
    tuned = Job(PACKAGE, tuple(words), f"{method} to {target} {amount} seed {seed}")
    words = ["predict", "--config", config(PACKAGE, "table4_test"), *data, "--model", tuned, "--site", target]
    predicted = Job(PACKAGE, tuple(words), f"{tuned.name}, predicted")
    return Job(PACKAGE, ("evaluate", "--predictions", predicted), f"{tuned.name}, scored")
