"""The paper's tables: as printed, and what its t-tests say of the printed numbers (specification 6 and 7)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dart_core import metrics
from dart_core.files import packaged_table

PRINTED_TABLES = ("table1", "table2")
DATASETS = {
    "chestxray14": "ChestX-ray14",
    "chexpert": "CheXpert",
    "shenzhen": "Shenzhen",
    "vindr-cxr": "VinDr-CXR",
    "rsna-pneumonia": "RSNA Pneumonia",
    "rsna-pe": "RSNA PE",
}
"""Data sets as commands call them, and as the tables do."""
RUNS = 10
"""Of each printed number."""
LEVEL = 0.05
"""From this p on two results count as equal (the boxes of the tables)."""
Spread = Literal["sample", "population"]


def printed_table(name: str) -> list[dict[str, str | float]]:
    """One of the paper's tables as printed, in percent; not measured here.

    Args:
        name: "table1" (pre-training methods) or "table2" (domains of the pre-training).

    Returns:
        A dict for each row with `<data set>_mean` and `<data set>_std`.

    Raises:
        ValueError: no such table.
    """
    return packaged_table("benchmark_transformers", name, PRINTED_TABLES)


def printed_columns(name: str) -> list[str]:
    """The data sets of a printed table."""
    return [key.removesuffix("_mean") for key in printed_table(name)[0] if key.endswith("_mean")]


def row_name(row: Mapping[str, Any]) -> str:
    """What a printed row is called."""
    return " ".join(str(row[key]) for key in ("initialization", "backbone") if key in row)


@dataclass(frozen=True)
class Verdict:
    """A result against the best of its column."""

    dataset: str
    name: str
    best: str
    p: float
    """nan where there is no such test."""

    @property
    def equal(self) -> bool:
        """Whether the test finds no difference."""
        return not self.p < LEVEL


def printed_verdicts(name: str, spread: Spread = "sample") -> list[Verdict]:
    """Every printed result against the best of its column, from means and standard deviations (ten runs each).

    Args:
        name: of the table.
        spread: what the printed deviations are. It turns verdicts: the authors' code prints population ones.
    """
    rows = printed_table(name)
    found = []
    for dataset in printed_columns(name):
        best = max(rows, key=lambda row: float(row[f"{dataset}_mean"]))
        for row in rows:
            if row is not best:
                m1, s1, m2, s2 = (float(r[f"{dataset}_{key}"]) for r in (best, row) for key in ("mean", "std"))
                _, p = metrics.two_sample_t_test_from_summary(m1, s1, m2, s2, RUNS, spread)
                found.append(Verdict(dataset, row_name(row), row_name(best), p))
    return found


def verdicts(values: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Verdict]:
    """Every measured result against the best of its data set: independent two-sample t-tests.

    Args:
        values: data set -> name -> one value per run.
    """
    found = []
    for dataset, column in values.items():
        usable = {name: list(runs) for name, runs in column.items() if len(runs)}
        if not usable:
            continue
        best = max(usable, key=lambda name: float(np.mean(usable[name])))
        found += [
            Verdict(dataset, name, best, t_test(usable[best], runs)) for name, runs in usable.items() if name != best
        ]
    return found


def t_test(a: Sequence[float], b: Sequence[float]) -> float:
    """p of the two-sided t-test with equal variances; nan with fewer than two runs, or without any spread."""
    if min(len(a), len(b)) < 2:
        return math.nan
    return metrics.two_sample_t_test(a, b)[1]


def mean_and_spread(values: Sequence[float]) -> dict[str, float | None]:
    """mean, std_population (divisor n, as the authors print it) and std_sample; None where undefined."""
    array = np.asarray(values, dtype=np.float64)
    return {
        "mean": float(array.mean()) if len(array) else None,
        "std_population": float(array.std()) if len(array) else None,
        "std_sample": float(array.std(ddof=1)) if len(array) > 1 else None,
    }


def in_percent(values: Sequence[float]) -> str:
    """Mean and population standard deviation times 100, as in the paper; a dash for no value."""
    if not len(values):
        return "–"
    found = mean_and_spread(values)
    return f"{100 * float(found['mean'] or 0):.2f} ± {100 * float(found['std_population'] or 0):.2f}"
