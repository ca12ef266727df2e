"""The runs of aiva's tables: source networks, adaptation by every method, masks of the target's test scans and their scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from sets import LGG_SITES, LGG_SPACING, heads, lgg, prostates
from table import Cell, Scale, config, csv_mean

from dart_core.experiment import Job, Word

PACKAGE = "aiva"
SEED = 1234
Task = Literal["table1", "table2"]
SITES: Mapping[Task, tuple[str, ...]] = {
    "table1": ("sm15", "sm3", "ge15", "ge3", "ph15", "ph3"),
    "table2": ("RUNMC", "BMC", "I2CVB", "UCL", "BIDMC", "HK"),
}
"""In the order of the printed columns."""
ROWS = {
    "Target site model": "target", "Source site model": "none", "AdaBN": "adabn", "Seg-JDOT": "seg_jdot",
    "AdaptSegNet": "adaptsegnet", "AIVA": "aiva",
}  # fmt: skip
STEPS = {"seg_jdot": 120, "adaptsegnet": 60, "aiva": 200, "target": 300}
SMALL = (
    "lgg_multisite, T1 slices at 3.6 mm, its hospitals CS, DU, FG and HT in the first four columns; a U-Net of width 4, 300 steps of 8 slices "
    "for the source, 200 for AIVA (6 clusters anew every 40), 120 for Seg-JDOT, 60 for AdaptSegNet; AdaBN with the exact mean. "
)
HOURS = {"pretrain": 0.15, "adapt": 0.25, "predict": 0.02, "evaluate": 0.01}


def sources(scale: Scale, task: Task, target: str) -> list[tuple[str, ...]]:
    """The sets of sites that a network for a target starts from: each other one by itself, or all of them together."""
    sites = LGG_SITES if scale.name == "small" else SITES[task]
    others = tuple(site for site in sites if site != target)
    if task == "table2":
        return [others]
    before = sites[sites.index(target) - 1]  # in a ring, so that each is a source once
    found: list[tuple[str, ...]] = scale.pick(paper=[(site,) for site in others], small=[(before,)], smoke=[("ge3",)])
    return found


def _data(scale: Scale, task: Task, seed: int) -> list[Word]:
    if scale.name == "paper":
        return ["--datalist", scale.set("CC359" if task == "table1" else "PROSTATE")]
    if scale.name == "small":
        listed = lgg(scale, seed, "t1" if task == "table1" else "flair_tumour")
        return ["--datalist", listed, "--preprocessing", "plain", "--spacing", *LGG_SPACING]
    if task == "table1":
        return ["--datalist", heads(scale, SITES[task], 5, (48, 56, 12)), "--preprocessing", "plain"]
    return ["--datalist", prostates(scale, SITES[task], 5)]


def _training(scale: Scale, task: Task, method: str) -> list[Word]:
    """What a scale changes in the settings of the paper."""
    if scale.name == "paper" or method == "none":
        return []
    fresh = method in ("pretrain", "target")
    if scale.name == "small":
        words: list[Word] = ["--channels-last", "--batch-size", 8]
        words += ["--patch-size", 64, "--selection-split", "val"]
        if method == "adabn":
            return [*words, "--adabn", "cumulative"]
        rate = (1e-2 if fresh else 1e-4) if task == "table1" else (1e-3 if fresh else 1e-5)
        words += ["--learning-rate", rate, "--steps", STEPS.get(method, 300), "--evaluate-every", 75 if fresh else 40]
        words += ["--width", 4] if fresh else []
        words += ["--milestones", 120] if task == "table1" and method in ("aiva", "adaptsegnet") else []
        if method == "aiva":
            words += ["--clusters", 6, "--iterations-per-epoch", 40, "--acc-amount", 20]
        return words
    words = ["--batch-size", 2, "--patch-size", 48]
    if method == "adabn":
        return [*words, "--passes", 1]
    steps = 10 if method == "aiva" else 3
    words += ["--steps", steps, "--evaluate-every", steps, "--learning-rate", 0.001]
    words += ["--width", 2] if fresh else []
    if method == "aiva":
        words += ["--clusters", 3, "--perplexity", 8, "--iterations-per-epoch", 7, "--acc-amount", 3]
    return words


def source_network(scale: Scale, task: Task, sites: Sequence[str], seed: int) -> Job:
    """Trained on a site or several."""
    words: list[Word] = ["pretrain", "--config", config(PACKAGE, f"{task}_pretrain"), *_data(scale, task, seed)]
    words += ["--source", *sites, "--seed", seed, *_training(scale, task, "pretrain")]
    return Job(PACKAGE, tuple(words), f"source {' '.join(sites)} seed {seed}")


def scored(scale: Scale, task: Task, method: str, origin: Sequence[str], target: str, seed: int) -> Job:
    """Scores of a method's network on the target's test scans."""
    data = _data(scale, task, seed)
    words: list[Word] = ["adapt", "--config", config(PACKAGE, f"{task}_{method}"), *data, "--target", target]
    words += [] if method == "target" else ["--source-model", source_network(scale, task, origin, seed)]
    words += ["--seed", seed, *_training(scale, task, method)]
    shown = target if method == "target" else f"{' '.join(origin)}->{target}"
    adapted = Job(PACKAGE, tuple(words), f"{method} {shown} seed {seed}")
    words = ["predict", "--config", config(PACKAGE, f"{task}_predict"), *data, "--model", adapted]
    words += ["--largest-component", "off"] if scale.name == "small" else []
    predicted = Job(PACKAGE, tuple(words), f"{adapted.name}, predicted")
    how: Sequence[Word] = scale.pick(
        paper=("--config", config(PACKAGE, f"{task}_evaluate")),
        small=("--surface", "2d", "--tolerance", LGG_SPACING[0]),
        smoke=("--tolerance", 4.0),
    )
    return Job(PACKAGE, ("evaluate", "--predictions", predicted, *how), f"{adapted.name}, scored")


def cells(scale: Scale, task: Task, columns: Sequence[str], rows: Sequence[str], score: str) -> Iterator[Cell]:
    """Every target; a repetition is a seed, its value the mean over sources; the last column is the mean over targets."""
    sites = LGG_SITES if scale.name == "small" else SITES[task]
    targets = dict(list(zip(columns[:-1], sites, strict=False))[: 1 if scale.name == "smoke" else None])
    read, seeds = csv_mean("scores.csv", score), scale.seeds((SEED,))
    for row in rows:
        method = ROWS[row]
        jobs = {
            (column, seed): [scored(scale, task, method, origin, site, seed) for origin in sources(scale, task, site)]
            for column, site in targets.items()
            for seed in seeds
        }
        for column in targets:
            yield Cell((row,), column, [jobs[column, seed] for seed in seeds], read)
        if scale.name != "smoke":
            whole = [[job for column in targets for job in jobs[column, seed]] for seed in seeds]
            yield Cell((row,), columns[-1], whole, read)
