"""The paper's tables as printed, not measured here (specification 7)."""

from __future__ import annotations

from dart_core.files import packaged_table

PRINTED_TABLES = ("table1", "table2", "table3", "table4")
TITLES = {
    "table1": "Table 1: POPAR and its downgraded versions",
    "table2": "Table 2: against self-supervised ImageNet weights",
    "table3": "Table 3: against self-supervised weights from ChestX-ray14",
    "table4": "Table 4: against supervised weights",
}
TARGETS = {
    "chestxray14": "ChestX-ray14",
    "chexpert": "CheXpert",
    "shenzhen": "ShenZhen",
    "rsna-pneumonia": "RSNA Pneumonia",
}
"""Targets as the tables call them."""


def printed_table(name: str) -> list[dict[str, str | float]]:
    """One of the paper's tables as printed: mean AUC (RSNA Pneumonia: accuracy) in per cent, ten runs.

    Args:
        name: "table1" to "table4".

    Returns:
        A dict for each row; columns of numbers are floats.

    Raises:
        ValueError: no such table.
    """
    return packaged_table("popar", name, PRINTED_TABLES)


def printed_rows(name: str) -> tuple[list[str], list[list[str]]]:
    """A table ready to show: columns, and rows with mean ± standard deviation in one cell."""
    rows = printed_table(name)
    first = [key for key in rows[0] if not key.endswith(("_mean", "_std"))]
    shown = [[*(_text(row[key]) for key in first), *(_cell(row, title) for title in TARGETS.values())] for row in rows]
    return [*(key.replace("_", " ") for key in first), *TARGETS.values()], shown


def _text(value: str | float) -> str:
    return f"{value:g}" if isinstance(value, float) else value


def _cell(row: dict[str, str | float], title: str) -> str:
    mean, std = row[f"{title}_mean"], row[f"{title}_std"]
    return f"{mean:.2f} ± {std:.2f}" if isinstance(mean, float) and isinstance(std, float) else "–"
