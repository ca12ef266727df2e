"""What the boards have in common: entries, their scores, and the record."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "reproduce"))

from table import Scale

from dart_core.experiment import Job, Outcome
from dart_core.metrics import wilcoxon_signed_rank

__all__ = ["Board", "Entry", "Run", "Scale", "results"]


@dataclass(frozen=True)
class Run:
    """One trained network on one task of a board."""

    place: str
    """Such as "CS -> DU" or "nih_cxr_1000"."""
    seed: int
    trained: Job
    """Its report is the run's report."""
    predicted: Job


@dataclass(frozen=True)
class Entry:
    """A method on a board."""

    method: str
    package: str
    needs: str
    """What it needs beyond what all have."""
    runs: Sequence[Run]
    against: str = ""
    """Method that it is tested against, the network that it starts from; default: the board's reference."""


@dataclass(frozen=True)
class Board:
    """Methods that solve the same task on the same data under one protocol.

    Args:
        name: of the file.
        title: for people.
        protocol: what is the same for all, by scale.
        metrics: names of the scores; the first decides the order; higher is better.
        reference: method that the others are compared with, unless an entry names another.
        entries: at a scale.
        score: reads the scores of a prediction: metric -> value.
    """

    name: str
    title: str
    protocol: Mapping[str, str]
    metrics: tuple[str, ...]
    reference: str
    entries: Callable[[Scale], Iterable[Entry]]
    score: Callable[[Path, Run, Scale], Mapping[str, float]]


def results(board: Board, scale: Scale, entries: Sequence[Entry], outcomes: Mapping[Job, Outcome]) -> dict[str, Any]:
    """The record of a board: every run's scores, and of every method mean and spread over seeds and the test.

    A seed's value is the mean over its places, as in the papers; the test pairs runs of the same place and seed. Runs of one place
    share test cases, so that p is smaller than independent runs would give, and it is not corrected for the number of methods.
    """
    found: list[dict[str, Any]] = []
    for entry in entries:
        runs = []
        for run in entry.runs:
            outcome = outcomes[run.predicted]
            row: dict[str, Any] = {"place": run.place, "seed": run.seed, "state": outcome.state}
            row["run"] = str(outcomes[run.trained].out)
            if outcome.state == "done":
                row |= {name: float(value) for name, value in board.score(outcome.out, run, scale).items()}
            runs.append(row)
        against = "" if entry.method == board.reference else entry.against or board.reference
        found.append({
            "method": entry.method, "package": entry.package, "needs": entry.needs, "against": against, "runs": runs
        })  # fmt: skip
    runs_of = {row["method"]: row["runs"] for row in found}
    for row in found:
        row["scores"] = {metric: _summary(row["runs"], metric) for metric in board.metrics}
        row["p"] = _p_value(row["runs"], runs_of.get(row["against"], []), board.metrics[0])
    return {
        "task": f"leaderboard-{board.name}", "title": board.title, "scale": scale.name,
        "protocol": board.protocol[scale.name], "metrics": list(board.metrics), "reference": board.reference,
        "entries": found,
    }  # fmt: skip


def _summary(runs: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    by_seed: dict[int, list[float]] = {}
    for run in runs:
        if math.isfinite(run.get(metric, math.nan)):
            by_seed.setdefault(run["seed"], []).append(run[metric])
    values = [statistics.fmean(part) for part in by_seed.values()]
    return {
        "mean": statistics.fmean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None, "n": len(values),
    }  # fmt: skip


def _p_value(runs: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], metric: str) -> float | None:
    """Wilcoxon's signed-rank test over the runs of the same place and seed; None for fewer than six, which cannot be significant."""
    defined = [[run for run in part if math.isfinite(run.get(metric, math.nan))] for part in (runs, others)]
    there = {(run["place"], run["seed"]): run[metric] for run in defined[1]}
    pairs = [
        (run[metric], there[run["place"], run["seed"]]) for run in defined[0] if (run["place"], run["seed"]) in there
    ]
    if len(pairs) < 6 or runs is others:
        return None
    return wilcoxon_signed_rank(*zip(*pairs, strict=True))[1]
