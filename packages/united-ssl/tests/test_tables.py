"""The printed tables (specification 7)."""

from __future__ import annotations

import pytest

from dart_core.metrics import two_sample_t_test_from_summary
from united_ssl.tables import PRINTED_TABLES, printed_rows, printed_table, significance


def test_every_table_is_there():
    assert [len(printed_table(name)) for name in PRINTED_TABLES] == [6, 11, 16, 2, 5, 4]
    with pytest.raises(ValueError, match="no printed table 'table4'"):
        printed_table("table4")


def test_rows():
    columns, rows = printed_rows("table1")
    assert columns == ["method", "approach", "BMS", "NCC", "LCS", "ECC", "NCS"]
    assert rows[0] == [
        "Jigsaw",
        "D+R+A",
        "64.98 ± 0.68",
        "97.24 ± 0.73",
        "83.54 ± 0.95",
        "84.12 ± 1.38",
        "74.32 ± 1.54",
    ]
    assert printed_rows("table3")[1][0][:3] == ["Random", "-", "none"]


def test_the_printed_values_contradict_the_printed_stars():
    """Specification 7: p of rows in Table 2 from their means and standard deviations, n = 10."""
    rows = {(row["method"], row["approach"]): row for row in printed_table("table2")}

    def p(method: str, target: str) -> float:
        a, b = rows[method, "D"], rows[method, "(D)+R"]
        values = [float(r[f"{target}_{what}"]) for r in (a, b) for what in ("mean", "std")]
        return two_sample_t_test_from_summary(*values, 10)[1]

    assert p("TransVW", "NCC") == pytest.approx(1e-5, rel=1)
    assert p("TransVW", "ECC") == pytest.approx(0.081, abs=0.02)
    assert p("Rotation", "ECC") == pytest.approx(0.079, abs=0.02)


def test_stars():
    rows = significance([{"p_t": 0.04}, {"p_t": 0.05}, {"p_t": None}])
    assert [row["stars"] for row in rows] == ["***", "", ""]
