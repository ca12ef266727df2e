"""The runs of odex's tables: a stream of stages, learned one after the other by each method, tested on all stages after each."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from table import Cell, Row, Scale, config

from dart_core.data import datalist as lists
from dart_core.data import phantoms
from dart_core.experiment import Job, Output, Word

PACKAGE = "odex"
SEED = 0xBADCAFE
STREAMS = {"shifting_source": "stream_shifting-source", "transformed": "stream_transformed"}
STAGES = 5
GROUPS = {"float": 84, "u8": 45, "huge": 31}
"""Intensity groups of hippocampus_msd, the only sources there are, and their cases."""
COMPOSITION = ("42/0/0", "31/11/0", "10/22/3", "0/11/11", "0/0/15")
"""Their shares in the five stages, shifting as in the study odex_hippocampus."""
FIRST_EPOCHS, EPOCHS = 16, 4
"""Of ten steps each, at the small scale: the first stage starts from random weights, the others go on from a network."""
NUMBERS = {"dice": "dice", "bwt": "bwt", "fwt": "fwt", "n_models": "networks"}
PAPER = (
    "Folders HarP, Dryad and Task04_Hippocampus; the paper's composition of the stages is not public. Baselines as the authors' program "
    "computes them. One run, as in the paper."
)
SMALL = (
    "the Decathlon's hippocampi in three intensity groups in place of HarP, Dryad and Decathlon (hippocampus_msd; the second stream is not run); "
    "4 feature maps instead of 32, 160 steps in the first stage and 40 in each other one instead of 50,000, learning rate 0.1, no augmentation. "
    "Networks that are cloned late have few steps of their own. "
)
SMOKE = "phantoms, two stages of two steps, first stream."
PAPER_SPREAD = "over the five stages (divisor n)"
HOURS = {"stream": 0.1, "learn": 3.5, "predict": 0.1, "evaluate": 0.02}
HOURS_FROM = "50,000 steps a stage of a 3-D U-Net on small crops at about 0.25 s"


def _hippocampi(scale: Scale) -> list[Path]:
    """A datalist for each of GROUPS."""
    root, found = scale.set("hippocampus_msd"), []
    with (root / "index.csv").open(newline="", encoding="utf-8") as file:
        groups = {row["file"]: row["intensity_group"] for row in csv.DictReader(file)}
    for group in GROUPS:
        listed = scale.work / "data" / "hippocampi" / group / "datalist.csv"
        names = sorted(name for name, own in groups.items() if own == group)
        rows = tuple(lists.Row(root / "images" / name, root / "labels" / name, site=group) for name in names)
        if not listed.is_file():
            lists.Datalist(rows).write(listed)
        found.append(listed)
    return found


def stages(scale: Scale, stream: str) -> list[Path | Output]:
    """The stages of a stream, in their order."""
    if scale.name == "smoke":
        folder = scale.work / "data" / "hippocampus-stream"
        found = [folder / f"stage-{number}" for number in (1, 2)]
        if not all((stage / "datalist.csv").is_file() for stage in found):
            phantoms.write_hippocampus_stream(folder, 2, 7, (16, 24, 16))
        return list(found)
    words: list[Word] = ["stream", "--config", config(PACKAGE, STREAMS[stream])]
    if scale.name == "small":
        words += ["--sources", *_hippocampi(scale), "--composition", *COMPOSITION]
    else:
        names = ["Task04_Hippocampus"] if stream == "transformed" else ["HarP", "Dryad", "Task04_Hippocampus"]
        words += ["--sources", *map(scale.set, names)]
    job = Job(PACKAGE, tuple(words), f"stream {stream}")
    return [job.file(f"stage-{number}") for number in range(1, STAGES + 1)]


def _training(scale: Scale, method: str, first: bool, count: int) -> list[Word]:
    """What a scale changes in the settings of the paper; joint takes as many steps as the others in all stages."""
    if scale.name == "paper":
        return []
    words: list[Word] = []
    if scale.name == "small":
        if first:
            words += ["--base-features", 4, "--batch-size", 2, "--patch-size", 32, 40, 32]
        epochs = FIRST_EPOCHS * first + EPOCHS * (count - 1 if method == "joint" else not first)
        words += ["--epochs", epochs, "--batches", 10, "--learning-rate", 0.1, "--momentum", 0.9, "--no-augmentation"]
        return [*words, "--log-every", 10, "--fisher-batches", 10]
    if first:
        words += ["--base-features", 2, "--max-pools", 1, "--batch-size", 2, "--covariance", "shrunk"]
    return [*words, "--epochs", count if method == "joint" else 1, "--batches", 2, "--fisher-batches", 2]


def scored(scale: Scale, name: str, stream: str, seed: int) -> Job:
    """Scores of a method over a stream; name is that of a config of the package."""
    parts, file = stages(scale, stream), config(PACKAGE, name)
    method = name.split("_")[1]
    steps: Sequence[Sequence[Word]] = [parts] if method == "joint" else [[part] for part in parts]
    pool: Job | None = None
    predictions: list[Word] = []
    for number, part in enumerate(steps, 1):
        words: list[Word] = ["learn", "--config", file, "--stage", *part, "--seed", seed]
        words += [] if pool is None else ["--pool", pool]
        words += _training(scale, method, pool is None, len(parts))
        pool = Job(PACKAGE, tuple(words), f"{name} {stream} stage {number} seed {seed}")
        tested = ("predict", "--pool", pool, "--stage", *parts)
        predictions.append(Job(PACKAGE, tested, f"{pool.name}, predicted"))
    return Job(PACKAGE, ("evaluate", "--predictions", *predictions), f"{name} {stream} seed {seed}, scored")


def _read(key: str) -> Callable[[Path], float]:
    def read(folder: Path) -> float:
        (row,) = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["summary"]
        return float("nan") if row[key] is None else float(row[key])

    return read


def _final_dice(folder: Path) -> dict[str, float]:
    """Dice of every test case after the last stage."""
    with (folder / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    last = max(int(row["after"]) for row in rows)
    return {f"{row['stage']} {row['case']}": float(row["dice"]) for row in rows if int(row["after"]) == last}


def cells(scale: Scale, rows: Mapping[Row, str], numbers: Sequence[str]) -> Iterator[Cell]:
    """Every method on every stream; rows maps to names of configs. Joint training has a Dice only."""
    streams = scale.pick(paper=tuple(STREAMS), small=("shifting_source",), smoke=("shifting_source",))
    for row, name in rows.items():
        for stream in streams:
            runs = [[scored(scale, name, stream, seed)] for seed in scale.seeds((SEED,), small=2)]
            for number in numbers if name != "table1_joint" else ["dice"]:
                cases = _final_dice if number == "dice" else None
                yield Cell(row, f"{stream}_{number}", runs, _read(NUMBERS[number]), cases)
