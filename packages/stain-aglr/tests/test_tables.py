"""The printed tables, and means over laboratories (specification 6 and 7)."""

from __future__ import annotations

import numpy as np
import pytest

from stain_aglr.tables import PAPER_NAMES, beside_printed, mean_over_sites, printed_rows, printed_table


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
    def row(seed, site, auc, trained_on="c"):
        return {"trained_on": trained_on, "method": "hed", "seed": seed, "site": site, "auc": auc}

    rows = [row(0, "a", 0.5), row(0, "b", 1.0), row(1, "a", 0.9), row(1, "b", None), row(0, "a", 0.2, "d")]
    assert mean_over_sites(rows) == [
        {"trained_on": "c", "method": "hed", "seed": 0, "auc": 0.75},
        {"trained_on": "c", "method": "hed", "seed": 1, "auc": None},
        {"trained_on": "d", "method": "hed", "seed": 0, "auc": 0.2},
    ]


def test_numbers_stand_beside_the_printed_ones_of_the_same_training_laboratory():
    def measured(*sites):
        rows = [{"method": "hed", "group": site, "unseen": True, "mean": 0.5, "std": None} for site in sites]
        own = {"method": "hed", "group": "RUMC (val)", "unseen": False, "mean": 0.9, "std": None}
        return [own, *rows], [{"method": "hed", "mean": 0.5, "std": 0.1}]

    assert beside_printed("centre1", *measured("centre2", "centre3")) == [
        ("hed", "centre2", "0.5000", "0.7527 ± 0.0320"),
        ("hed", "centre3", "0.5000", "0.8657 ± 0.0210"),
    ]
    rows = beside_printed("RUMC", *measured("CWZ", "RST", "UMCU", "LPON"))
    assert [row[1] for row in rows] == ["CWZ", "RST", "UMCU", "LPON", "MEAN"]
    assert rows[-1] == ("hed", "MEAN", "0.5000 ± 0.1000", "0.9546")
    # A mean over other laboratories, or after training on another one, cannot be compared.
    assert [row[1] for row in beside_printed("RUMC", *measured("CWZ", "RST"))] == ["CWZ", "RST"]
    assert [row[1] for row in beside_printed("RUMC", *measured("CWZ", "RST", "UMCU", "LPON", "X"))][-1] == "LPON"
    assert beside_printed("CWZ", *measured("RST", "UMCU", "LPON")) == []


@pytest.mark.parametrize(
    ("trained_on", "method", "found"),
    [
        ("centre1", "hed (balanced)", True),  # TUPAC's recipe
        ("RUMC", "hed (balanced)", False),
        ("centre1", "dscsi-gan (balanced, gan weights resnet34.pth)", True),
        ("RUMC", "dscsi-gan (gan weights resnet34.pth)", True),
        ("centre1", "hed (strength 0.2, balanced)", False),
        ("RUMC", "hed-reg λ1=0.2", False),
    ],
)
def test_only_the_papers_own_options_stand_beside_its_numbers(trained_on, method, found):
    site = {"centre1": "centre2", "RUMC": "CWZ"}[trained_on]
    per_site = [{"method": method, "group": site, "unseen": True, "mean": 0.5, "std": None}]
    assert bool(beside_printed(trained_on, per_site, [{"method": method, "mean": 0.5, "std": None}])) == found
