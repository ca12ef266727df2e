"""The printed tables and the t-tests of the specification (section 6 and 7, property 9.6)."""

from __future__ import annotations

import math

import pytest

from benchmark_transformers.tables import (
    in_percent,
    mean_and_spread,
    printed_columns,
    printed_table,
    printed_verdicts,
    t_test,
    verdicts,
)


def p_of(table: str, dataset: str, name: str, spread: str = "sample") -> float:
    return next(v.p for v in printed_verdicts(table, spread) if (v.dataset, v.name) == (dataset, name))  # type: ignore[arg-type]


def test_tables_as_printed() -> None:
    assert printed_columns("table1") == [
        "ChestX-ray14",
        "CheXpert",
        "Shenzhen",
        "VinDr-CXR",
        "RSNA Pneumonia",
        "RSNA PE",
    ]
    assert len(printed_table("table1")) == len(printed_table("table2")) == 6
    row = printed_table("table1")[-1]
    assert (row["backbone"], row["RSNA PE_mean"], row["RSNA PE_std"]) == ("Swin-B", 95.27, 0.12)


@pytest.mark.parametrize(
    ("table", "dataset", "name", "p"),
    [
        ("table1", "CheXpert", "Supervised ViT-B", 0.150),
        ("table1", "CheXpert", "SimMIM ViT-B", 0.598),
        ("table1", "CheXpert", "Supervised Swin-B", 0.0427),
        ("table1", "Shenzhen", "Supervised Swin-B", 0.063),
        ("table1", "Shenzhen", "Scratch Swin-B", 0.33),
        ("table1", "VinDr-CXR", "SimMIM Swin-B", 0.467),
        ("table1", "RSNA Pneumonia", "Supervised Swin-B", 0.240),
        ("table2", "CheXpert", "ImageNet", 0.206),
        ("table2", "Shenzhen", "X-rays(926K)", 0.459),
        ("table2", "Shenzhen", "ImageNet->ChestX-ray14", 0.159),
        ("table2", "VinDr-CXR", "X-rays(926K)", 0.130),
        ("table2", "RSNA Pneumonia", "X-rays(926K)", 0.089),
        ("table2", "RSNA Pneumonia", "ImageNet->ChestX-ray14", 0.275),
    ],
)
def test_tests_of_the_specification(table: str, dataset: str, name: str, p: float) -> None:
    assert p_of(table, dataset, name) == pytest.approx(p, abs=0.0055 if p == 0.33 else 0.0006)


def test_what_the_printed_deviations_are_turns_a_verdict() -> None:
    assert p_of("table1", "CheXpert", "Supervised Swin-B", "population") == pytest.approx(0.0532, abs=5e-5)
    verdict = {
        spread: next(
            v for v in printed_verdicts("table1", spread) if (v.dataset, v.name) == ("CheXpert", "Supervised Swin-B")
        )  # type: ignore[arg-type]
        for spread in ("sample", "population")
    }
    assert not verdict["sample"].equal
    assert verdict["population"].equal


def test_everything_that_the_specification_calls_equal_and_nothing_else() -> None:
    equal = {(v.dataset, v.name) for v in printed_verdicts("table1") if v.equal}
    shenzhen = {"Scratch Swin-B", "Supervised ViT-B", "Supervised Swin-B", "SimMIM ViT-B"}
    assert equal == {("Shenzhen", name) for name in shenzhen} | {
        ("CheXpert", "Supervised ViT-B"), ("CheXpert", "SimMIM ViT-B"), ("VinDr-CXR", "SimMIM Swin-B"),
        ("RSNA Pneumonia", "Supervised Swin-B"),
    }  # fmt: skip


def test_identical_runs() -> None:
    assert mean_and_spread([0.5, 0.5]) == {"mean": 0.5, "std_population": 0.0, "std_sample": 0.0}
    assert math.isnan(t_test([0.5, 0.5], [0.5, 0.5]))
    assert math.isnan(t_test([0.5], [0.5, 0.6]))
    (verdict,) = verdicts({"data": {"a": [0.5, 0.5], "b": [0.5, 0.5]}})
    assert math.isnan(verdict.p)
    assert t_test([0.1, 0.4], [0.4, 0.1]) == pytest.approx(1.0)


def test_spreads() -> None:
    found = mean_and_spread([0.1, 0.2, 0.6])
    assert found["std_population"] == pytest.approx(math.sqrt(0.14 / 3))
    assert found["std_sample"] == pytest.approx(math.sqrt(0.14 / 2))
    assert mean_and_spread([0.3])["std_sample"] is None
    assert in_percent([]) == "–"
    assert in_percent([0.81, 0.83]) == "82.00 ± 1.00"


def test_best_of_each_column() -> None:
    found = verdicts(
        {"x": {"a": [0.1, 0.2], "b": [0.8, 0.9], "c": []}, "y": {"a": [0.7, 0.9], "b": [0.1, 0.2]}, "z": {}}
    )
    assert {(v.dataset, v.best, v.name) for v in found} == {("x", "b", "a"), ("y", "a", "b")}
