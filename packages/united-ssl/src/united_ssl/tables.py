"""The tables and figures' numbers that the paper prints (specification 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dart_core.files import packaged_table

PRINTED_TABLES = ("table1", "table2", "table3", "table5", "fig3", "fig4")
PRETEXT_NAMES = {
    "rotation": "Rotation", "jigsaw": "Jigsaw", "rubik": "Rubik's Cube", "deep-clustering": "Deep Clustering",
    "transvw": "TransVW",
}  # fmt: skip
"""Our words for the paper's rows."""


def printed_table(name: str) -> list[dict[str, str | float]]:
    """A printed table: "table1", "table2", "table3", "table5" (in the text), "fig3" or "fig4" (named in the text).

    Raises:
        SettingError: no such table.
    """
    return packaged_table("united_ssl", name, PRINTED_TABLES)


def printed_rows(name: str) -> tuple[list[str], list[list[str]]]:
    """Table 1, 2 or 3 ready to show: columns, and rows with mean ± std in one cell."""
    rows = printed_table(name)
    targets = [key.removesuffix("_mean") for key in rows[0] if key.endswith("_mean")]
    heads = [key for key in rows[0] if not key.endswith(("_mean", "_std", "_stars"))]
    shown = [
        [*(str(row[key]) for key in heads), *(f"{row[f'{t}_mean']:.2f} ± {row[f'{t}_std']:.2f}" for t in targets)]
        for row in rows
    ]
    return [*(head.replace("_", " ") for head in heads), *targets], shown


def significance(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add "stars": *** for p < 0.05 as the captions define it (their other two thresholds cannot be meant)."""
    return [{**row, "stars": "***" if row["p_t"] is not None and row["p_t"] < 0.05 else ""} for row in rows]
