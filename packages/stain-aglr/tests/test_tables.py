"""The printed tables, and means over laboratories (specification 6 and 7)."""

from __future__ import annotations

import numpy as np
import pytest

from stain_aglr.tables import PAPER_NAMES, mean_and_spread, mean_over_sites, printed_rows, printed_table


def test_printed_means_recompute_to_what_the_specification_says():
    for row in printed_table("table1")[1:]:
        mean = np.mean([row[f"{centre}_auc_mean"] for centre in ("CWZ", "RST", "UMCU", "LPON")])
        assert abs(mean - row["MEAN_auc"]) < 0.0007
    last = printed_table("table1")[-1]
    assert (last["method"], last["MEAN_auc"]) == (PAPER_NAMES["stain-aglr"], 0.9724)


def test_every_method_but_macenko_has_its_row():
    for name in ("table1", "table2"):
        columns, rows = printed_rows(name)
        assert {row[0] for row in rows} == set(PAPER_NAMES.values()) - {"Macenko"}
        assert all(len(row) == len(columns) for row in rows)
    assert columns == ["method", "Center2", "Center3", "s / 100 patches"]
    assert rows[-1] == [PAPER_NAMES["stain-aglr"], "0.8026 ± 0.0150", "0.8996 ± 0.0120", "0.29"]


def test_no_such_table():
    with pytest.raises(ValueError, match="no printed table 'table9'"):
        printed_table("table9")


def test_mean_over_laboratories_is_unweighted_and_undefined_with_one_of_them():
    def row(seed, site, auc):
        return {"method": "hed", "seed": seed, "site": site, "auc": auc}

    rows = [row(0, "a", 0.5), row(0, "b", 1.0), row(1, "a", 0.9), row(1, "b", None)]
    assert mean_over_sites(rows) == [
        {"method": "hed", "seed": 0, "auc": 0.75},
        {"method": "hed", "seed": 1, "auc": None},
    ]
    assert mean_and_spread(None, None) == "–"
    assert mean_and_spread(0.5, None) == "0.5000"
