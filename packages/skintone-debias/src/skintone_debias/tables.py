"""What the paper prints, to stand beside what is measured; and the dermatologists of its Table 2 (specification 4.5, 7)."""

from __future__ import annotations

import csv
from importlib import resources

from dart_core.errors import SettingError

PRINTED_TABLES = ("table1", "table2", "table3", "section4_2", "archived_runs", "released_labels")
DERMATOLOGISTS: dict[str, tuple[float, float]] = {"dermoscopic": (0.400, 0.741), "clinical": (0.356, 0.894)}
"""MClass: (1 - specificity, sensitivity) of 157 dermatologists. The paper's 0.671 and 0.769 are the mean of sensitivity and
specificity at these points, not areas under a curve."""
_SETS = {
    "Atlas Dermoscopic": ("atlas", "derm"), "Atlas Clinical": ("atlas", "clin"), "Asan Clinical": ("asan", ""),
    "MClass Dermoscopic": ("mclass", "d"), "MClass Clinical": ("mclass", "c"),
}  # fmt: skip


def printed_table(name: str) -> list[dict[str, str | float | None]]:
    """One of the paper's tables as printed, or what the authors released; not measured here.

    Args:
        name: "table1" (Fitzpatrick17k, by group of skin types), "table2" (trained on ISIC, by test set), "table3" (LNTL without
            gradient reversal), "section4_2" (labellers within one of the human type), "archived_runs" (logs in the authors'
            repository, some of runs that were not printed), or "released_labels" (what the labels that the authors released
            reach on Fitzpatrick17k, and two constant answers; not printed).

    Returns:
        A dict for each row; numbers are floats, empty cells None.

    Raises:
        ValueError: no such table.
    """
    if name not in PRINTED_TABLES:
        raise SettingError(f"no printed table {name!r}", remedy=f"give one of {', '.join(PRINTED_TABLES)}")
    text = resources.files("skintone_debias").joinpath("tables", f"{name}.csv").read_text(encoding="utf-8")
    return [{key: _value(cell) for key, cell in row.items()} for row in csv.DictReader(text.splitlines())]


def _value(cell: str) -> str | float | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell


def published_set(site: str) -> str | None:
    """The column of Table 2 that a site is, by its name; None for another data set."""
    name = site.lower()
    for column, (start, kind) in _SETS.items():
        if name.startswith(start) and name.removeprefix(start).lstrip("-_ ").startswith(kind):
            return column
    return None


def dermatologists(site: str) -> tuple[float, float] | None:
    """(1 - specificity, sensitivity) of the dermatologists on a site, where it is one of the MClass sets."""
    column = published_set(site) or ""
    return DERMATOLOGISTS[column.split()[1].lower()] if column.startswith("MClass") else None
