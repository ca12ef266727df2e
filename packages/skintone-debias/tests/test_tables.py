"""The paper's printed numbers."""

from __future__ import annotations

import pytest

from skintone_debias.tables import PRINTED_TABLES, dermatologists, printed_table, published_set


def test_printed_numbers():
    rows = {row["method"]: row for row in printed_table("table2")}
    assert rows["TABE"]["Asan Clinical AUC"] == 0.809
    assert rows["Dermatologists"]["Atlas Clinical AUC"] is None
    assert [row["AUC types 5&6"] for row in printed_table("table1")] == [0.835, 0.853]
    assert [row["AUC types 3&4"] for row in printed_table("table3")] == [0.873, 0.867]
    assert len(printed_table("archived_runs")) == 12
    assert [row["accuracy within 1 Fitzpatrick point (percent)"] for row in printed_table("section4_2")] == [
        60.61,
        53.3,
        70.38,
    ]
    assert printed_table("released_labels")[0]["type6 within-1"] == 8.82
    assert all(printed_table(name) for name in PRINTED_TABLES)
    with pytest.raises(ValueError, match="no printed table"):
        printed_table("table9")


def test_dermatologists_numbers_are_the_mean_of_sensitivity_and_specificity():
    printed = {row["method"]: row for row in printed_table("table2")}["Dermatologists"]
    for site, column in (("mclass-d", "MClass Dermoscopic AUC"), ("mclass-c", "MClass Clinical AUC")):
        point = dermatologists(site)
        assert point is not None
        assert (point[1] + 1 - point[0]) / 2 == pytest.approx(printed[column], abs=0.0006)


def test_sets_are_known_by_their_sites():
    assert published_set("atlas-derm") == "Atlas Dermoscopic"
    assert published_set("atlas-clinic") == "Atlas Clinical"
    assert published_set("asan") == "Asan Clinical"
    assert published_set("vidir") is None
    assert dermatologists("asan") is None
