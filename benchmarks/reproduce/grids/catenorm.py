"""The runs of catenorm's tables: training on one site or several together, segmentation of the test cases, scores by site and organ."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from sets import prostates
from table import Cell, Row, Scale, Test, config

from dart_core.experiment import Job, Output, Word

PACKAGE = "catenorm"
Task = Literal["btcv", "abdomen", "prostate"]
FOLDS = range(5)
COLUMNS = {"BTCV": "BTCV", "TCIA": "TCIA", "ISBN-R": "RUNMC", "ISBN-B": "BMC", "I2CVB": "I2CVB"}
"""Column -> site."""
TASK: Mapping[str, Task] = {
    "BTCV": "abdomen", "TCIA": "abdomen", "ISBN-R": "prostate", "ISBN-B": "prostate", "I2CVB": "prostate"
}  # fmt: skip
LGG = {"BTCV": "FG", "TCIA": "HT", "ISBN-R": "CS", "ISBN-B": "DU", "I2CVB": "HT"}
"""Which hospital of lgg_multisite stands in which column."""
ORGANS = {
    "Spleen": "spleen", "Kidney_R": "right-kidney", "Kidney_L": "left-kidney", "Kid_L": "left-kidney", "Gallbladder": "gallbladder",
    "Gall": "gallbladder", "Pancreas": "pancreas", "Panc": "pancreas", "Liver": "liver", "Stomach": "stomach", "Stom": "stomach",
    "Aorta": "aorta",
}  # fmt: skip
LGG_ORGANS = {"Gallbladder": "tumour", "Gall": "tumour", "Liver": "brain"}
SMALL = (
    "brain and tumour in FLAIR slices of lgg_multisite (64 pixels) in place of organs, hospitals CS, DU and HT in place of the three prostate "
    "sites, FG and HT (FG alone) in place of BTCV and TCIA (BTCV alone); three splits instead of five folds; width 8, 400 + 400 steps instead of "
    "width 32, 9,000 + 9,000. "
)
FIRST = "(BN pass)"
"""Ends the name of a first pass in tables of scores."""
SMOKE = "phantoms, first column, a few steps."
TEST: Test = "Wilcoxon over cases"
"""The paper names none (specification 6)."""
HOURS = {"train": 1.2, "predict": 0.05, "evaluate": 0.02}
HOURS_FROM = "9,000 + 9,000 steps of 4 to 6 slices of 384 pixels at about 0.2 s, less without warm-up; one run for each of five folds"


def sites_of(scale: Scale, task: Task) -> list[str]:
    """Sites that a task trains on together."""
    columns = ["BTCV"] if task == "btcv" else [column for column, own in TASK.items() if own == task]
    return [site_of(scale, column) for column in columns]


def site_of(scale: Scale, column: str) -> str:
    """The site of a column."""
    if scale.name == "smoke" and TASK[column] == "abdomen":
        return {"BTCV": "CT", "TCIA": "CT-native"}[column]
    return LGG[column] if scale.name == "small" else COLUMNS[column]


def _data(scale: Scale, task: Task, sites: list[str], repetition: int) -> list[Word]:
    if scale.name == "paper":
        if task == "prostate":
            return ["--datalist", scale.set("PROSTATE"), "--sites", *sites, "--fold", repetition]
        more = [scale.set("PANCREAS-CT")] if task == "abdomen" else []
        return ["--datalist", scale.set("BTCV"), *more, "--fold", repetition]
    if scale.name == "small":
        from catenorm_lgg import LABELS, SIDE, datalist  # it imports the package, which the other scales do not need

        listed = datalist(scale.set("lgg_multisite").parent, scale.work / "data" / f"lgg-{repetition}", repetition)
        words: list[Word] = ["--datalist", listed, "--preprocessing", "plain", "--labels", *LABELS, "--size", SIDE]
        return [*words, "--missing-organs", "allow", "--sites", *sites]
    if task == "prostate":
        return ["--datalist", prostates(scale, ("RUNMC", "BMC", "I2CVB"), 5), "--sites", *sites]
    return ["--datalist", abdomens(scale), "--sites", *sites, "--size", 32]


def abdomens(scale: Scale) -> Path:
    """Datalist of phantom abdomens, labels numbered as in BTCV."""
    folder = scale.work / "data" / "abdomens-btcv"
    listed = folder / "datalist.csv"
    if not listed.is_file():
        from catenorm.demo import write_phantoms

        write_phantoms(folder, subjects=5, shape=(36, 28, 10))
    return listed


def trained(scale: Scale, name: str, task: Task, repetition: int, site: str | None = None) -> Job:
    """A network; name is that of a config of the package, site one of the task's if it trains on that alone."""
    file = config(PACKAGE, name)
    sites = [site] if site is not None else sites_of(scale, task)
    words: list[Word] = ["train", "--config", file, *_data(scale, task, sites, repetition), "--seed", repetition]
    plain = name.endswith(("_bn_plain", "_bn_augmented"))  # no warm-up
    warm = name.removeprefix("table12_warmup_") if name.startswith("table12") else ""
    deep = name.startswith("table11")
    if scale.name == "small":
        steps = 150 if deep else 400
        warm_steps = {"450": 20, "1440": 64}.get(warm, 0 if plain else steps)
        words += ["--steps", steps, "--warmup-steps", warm_steps, "--flip", "on", "--channels-last"]
        words += [] if deep else ["--width", 8]
        words += ["--ms-net-warmup", 50] if name.endswith("ms-net") else []
    if scale.name == "smoke":
        words += ["--steps", 3, "--warmup-steps", 0 if plain else 2, "--plateau-window", 2]
        words += ["--batch-size", 2 if len(sites) == 1 else 1]
        words += [] if deep else ["--width", 4]
        words += ["--ms-net-warmup", 2] if name.endswith("ms-net") else []
    where = site or task
    return Job(PACKAGE, tuple(words), f"{name} on {where} {'fold' if scale.name == 'paper' else 'split'} {repetition}")


def scored(network: Job, part: str = "") -> Job:
    """Scores of a network on its test cases; part is a folder of the run that holds another network."""
    model: Job | Output = network.file(part) if part else network
    words: tuple[Word, ...] = ("predict", "--config", config(PACKAGE, "predict"), "--model", model)
    predicted = Job(PACKAGE, words, f"{network.name}{f', {part}' if part else ''}, predicted")
    words = ("evaluate", "--config", config(PACKAGE, "evaluate"), "--predictions", predicted)
    return Job(PACKAGE, words, f"{predicted.name} and scored")


def cell(
    row: Row,
    column: str,
    runs: Sequence[Sequence[Job]],
    metric: str,
    group: str = "",
    key: str = "",
    first_pass: bool = False,
) -> Cell:
    """A mean and its cases: of a site (group "sites"), of an organ ("organs"), or of all; of the first pass of two or of the last."""
    number, cases = _number(metric, group, key, first_pass), _cases(metric, group, key, first_pass)
    return Cell(row, column, runs, number, cases)


def _number(metric: str, group: str, key: str, first_pass: bool) -> Callable[[Path], float]:

    def read(folder: Path) -> float:
        (result,) = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["results"]
        row: dict[str, Any] = next(m for m in result["methods"] if m["method"].endswith(FIRST) == first_pass)
        value = row[f"{metric}_{group}"][key] if group else row[metric]
        return float("nan") if value is None else float(value)

    return read


def _cases(metric: str, group: str, key: str, first_pass: bool) -> Callable[[Path], dict[str, float]]:
    """Reads the mean over the organs of each case; what is undefined is left out."""

    def read(folder: Path) -> dict[str, float]:
        found: dict[str, list[float]] = {}
        with (folder / "scores.csv").open(newline="", encoding="utf-8") as opened:
            for line in csv.DictReader(opened):
                wanted = not group or line[{"sites": "site", "organs": "organ"}[group]] == key
                if wanted and line["method"].endswith(FIRST) == first_pass and line[metric] != "nan":
                    found.setdefault(f"{line['site']} {line['case']}", []).append(float(line[metric]))
        return {case: statistics.fmean(values) for case, values in found.items()}

    return read


def site_cells(
    scale: Scale, rows: Mapping[Row, str], columns: tuple[str, ...], metric: str, single: bool = False
) -> Iterator[Cell]:
    """Cells by site; rows maps to the part of a config's name behind `table1_btcv_` or `table2_abdomen_` and so on."""
    for row, method in rows.items():
        for column in columns[: 1 if scale.name == "smoke" else None]:
            task: Task = "btcv" if single and column == "BTCV" else TASK[column]
            site = site_of(scale, column)
            name = f"{'table1' if single else 'table2'}_{task}_{method}"
            runs = [
                [scored(trained(scale, name, task, repetition, site if single else None))]
                for repetition in scale.seeds(FOLDS)
            ]
            yield cell(row, column, runs, metric, "sites", site)


def organ_cells(
    scale: Scale, rows: Mapping[Row, str], columns: tuple[str, ...], task: Task, metric: str
) -> Iterator[Cell]:
    """Cells by organ and of their average (AVG)."""
    table = "table1" if task == "btcv" else "table2"
    for row, method in rows.items():
        runs = [
            [scored(trained(scale, f"{table}_{task}_{method}", task, repetition))] for repetition in scale.seeds(FOLDS)
        ]
        for column in columns:
            if column == "AVG":
                yield cell(row, column, runs, metric)
            elif scale.name == "paper" or (scale.name == "small" and column in LGG_ORGANS):
                organ = (LGG_ORGANS if scale.name == "small" else ORGANS)[column]
                yield cell(row, column, runs, metric, "organs", organ)
