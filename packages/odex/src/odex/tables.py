"""The tables that the paper prints (specification 7)."""

from __future__ import annotations

from dart_core.files import packaged_table

PRINTED_TABLES = ("table1", "table2")


def printed_table(name: str) -> list[dict[str, str | float]]:
    """Table 1 (baselines) or 2 (ablations): a row for each method, columns scenario_measure_mean and _std.

    Raises:
        SettingError: no such table.
    """
    return packaged_table("odex", name, PRINTED_TABLES)
