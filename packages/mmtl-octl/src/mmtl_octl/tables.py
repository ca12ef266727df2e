"""The paper's tables: as printed, and in their shape from scores (specification 2.1, item 7, and 7)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dart_core.errors import InputError
from dart_core.files import packaged_table

PRINTED_TABLES = ("table2", "table3", "table4", "table5", "text_numbers")
PAPER_NAMES = {
    "none": "Source Model", "fta": "FTA", "ftf": "FTF", "l2sp": "L2SP", "spottune": "ST", "octl": "OCTL", "mmtl": "MMTL",
}  # fmt: skip
"""Methods as the paper's tables call them."""


def printed_table(name: str) -> list[dict[str, str | float]]:
    """One of the paper's tables as printed, in per cent, not measured here.

    Args:
        name: "table2" (CC359, surface Dice at 1 mm), "table3" (the same on the source site), "table4" (prostate, Dice),
            "table5" (chest X-rays, mean AUC), "text_numbers" (no fine-tuning, and all target data).

    Returns:
        A dict for each row; columns of numbers are floats.

    Raises:
        ValueError: no such table.
    """
    return packaged_table("mmtl_octl", name, PRINTED_TABLES)


def _number_or_text(value: str) -> str | float:
    try:
        return float(value)
    except ValueError:
        return value


@dataclass(frozen=True)
class Entry:
    """One network's mean score over the test patients of a site."""

    method: str
    optimizer: str
    seed: int
    pair: tuple[str, ...]
    """(source site, target site), and the site it was tested on where that is neither."""
    amount: tuple[int, int]
    """(target patients, every how many-th slice)."""
    slices: int
    value: float
    folder: str = ""
    """Where the value comes from, for messages."""


@dataclass(frozen=True)
class Cell:
    """One cell of a table: a method at one amount of target data."""

    method: str
    optimizer: str
    amount: tuple[int, int]
    slices: float
    """Mean number of target slices."""
    pairs: int
    seeds: int
    mean: float
    """Mean over seeds of the mean over pairs."""
    std: float | None
    """Sample standard deviation of the seeds' means; None for one seed."""
    complete: bool
    """Every seed has every pair."""


def seed_table(entries: Iterable[Entry]) -> list[Cell]:
    """Mean over pairs for each seed, then mean and sample standard deviation over the seeds, as the paper has it.

    The paper does not say which standard deviation it prints; this is the sample one, with divisor seeds - 1.

    Raises:
        InputError: two entries that nothing but their value tells apart.
    """
    groups: dict[tuple[str, str, tuple[int, int]], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.optimizer, entry.method, entry.amount), []).append(entry)
    cells = []
    for (optimizer, method, amount), found in groups.items():
        _check_distinct(found)
        pairs = {entry.pair for entry in found}
        seeds = sorted({entry.seed for entry in found})
        of_seed = [{e.pair: e.value for e in found if e.seed == seed} for seed in seeds]
        means = np.array([np.mean(list(values.values())) for values in of_seed])
        cells.append(
            Cell(
                method,
                optimizer,
                amount,
                float(np.mean([entry.slices for entry in found])),
                len(pairs),
                len(seeds),
                float(means.mean()),
                float(means.std(ddof=1)) if len(means) > 1 else None,
                all(values.keys() == pairs for values in of_seed),
            )
        )
    return cells


def _check_distinct(entries: Iterable[Entry]) -> None:
    """No two of the same method, optimiser and amount may share seed and sites: one would stand for both."""
    first: dict[tuple[int, tuple[str, ...]], Entry] = {}
    for entry in entries:
        other = first.setdefault((entry.seed, entry.pair), entry)
        if other is not entry:
            what = f"{entry.method} with {entry.optimizer}, seed {entry.seed}, {pair_text(entry.pair)}"
            raise InputError(
                f"holds {what}, as {other.folder or 'another one'} does already",
                where=entry.folder or None,
                remedy="leave one of the two out, or evaluate them apart",
            )


def pair_text(pair: Sequence[str]) -> str:
    """Words for an entry's sites."""
    source, target, *tested = pair
    return f"{source or '–'} → {target}" + "".join(f" on {site}" for site in tested)


def pair_of(source: str, target: str, site: str) -> tuple[str, ...]:
    """The `Entry.pair` of a network from a source (several joined), of a target (or none), that was tested on a site."""
    pair = (source, target or site)
    return pair if site in pair else (*pair, site)


def amount_text(amount: tuple[int, int]) -> str:
    """Words for an amount of target data."""
    patients, interval = amount
    if not patients:
        return "–"
    every = {1: "", 2: ", every 2nd slice", 3: ", every 3rd slice"}.get(interval, f", every {interval}th slice")
    return f"{patients} patient{'s' * (patients != 1)}{every}"


def per_cent(mean: float, std: float | None) -> str:
    """A mean with its spread in per cent, as the paper prints it."""
    return f"{100 * mean:.2f}" if std is None else f"{100 * mean:.2f} ± {100 * std:.2f}"


def printed_columns(row: dict[str, str | float]) -> Sequence[str]:
    """The amounts (slices or images) of a row of a printed table, in its order."""
    return list(dict.fromkeys(key.split("_")[0] for key in row if key[0].isdigit()))


def printed_rows(name: str) -> tuple[list[str], list[list[str]]]:
    """A printed table ready to show: columns, and rows with mean ± std in one cell."""
    rows = printed_table(name)
    numbers = printed_columns(rows[0])
    names = [key for key in rows[0] if not key[0].isdigit()]
    shown = []
    for row in rows:
        cells = [f"{row[n]:.2f}" if n in row else f"{row[f'{n}_mean']:.2f} ± {row[f'{n}_std']:.2f}" for n in numbers]
        shown.append([*(str(row[key]) for key in names), *cells])
    return [*names, *numbers], shown
