"""Comparison with a baseline: Wilcoxon's test over subjects with Bonferroni's correction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from adagrad_unet.evaluation import compare, default_baseline
from dart_core.evaluation import Result

METHODS = ("S-1000", "S-25", "AG-25", "AG-50")


def results(scores: dict[str, dict[str, list[float]]], structure: str = "", phases: int = 1) -> list[Result]:
    """site -> method -> score of each subject."""
    path = Path("x")
    return [
        Result(("B", site), method, f"s{number}", value, value / 2, path, path, path, structure, phase)
        for site, methods in scores.items() for method, values in methods.items()
        for number, value in enumerate(values) for phase in range(phases)
    ]  # fmt: skip


def scores(seed: int, count: int = 20) -> dict[str, list[float]]:
    rng = np.random.default_rng(seed)
    base = rng.uniform(0.5, 0.9, count)
    shifts = dict(zip(METHODS, (0.0, -0.01, 0.05, 0.1), strict=True))
    return {method: (base + shift + 0.02 * rng.normal(size=count)).tolist() for method, shift in shifts.items()}


def test_every_method_against_the_baseline():
    made = {"A": scores(0), "C": scores(1)}
    rows = compare(results(made), "S-1000", "surface_dice")
    assert [(row["target"], row["method"]) for row in rows] == [(site, method) for site in "AC" for method in METHODS]
    for row in rows:
        ours, base = made[row["target"]][row["method"]], made[row["target"]]["S-1000"]
        assert row["mean"] == pytest.approx(np.mean(ours))
        if row["method"] == "S-1000":
            assert "p" not in row
            continue
        p = stats.wilcoxon(ours, base).pvalue
        assert row["p"] == pytest.approx(p)
        assert row["p_corrected"] == pytest.approx(min(1, 3 * p))
        assert row["significant"] == (3 * p < 0.05)
        assert row["difference"] == pytest.approx(np.mean(ours) - np.mean(base))
    assert next(row for row in rows if row["method"] == "AG-50")["significant"]


def test_the_whole_table_as_factor():
    rows = compare(results({"A": scores(0), "C": scores(1)}), "S-1000", "dice", "table")
    tested = [row for row in rows if "p" in row]
    assert len(tested) == 6
    for row in tested:
        assert row["p_corrected"] == pytest.approx(min(1, 6 * row["p"]))


def test_labels_are_rows_of_their_own_and_phases_are_averaged():
    both = results({"A": scores(0)}, "LV", phases=2) + results({"A": scores(1)}, "RV", phases=2)
    rows = compare(both, "S-1000", "dice")
    assert {(row["structure"], row["subjects"]) for row in rows} == {("LV", 20), ("RV", 20)}
    for row in rows:
        if "p" in row:
            assert row["p_corrected"] == pytest.approx(min(1, 3 * row["p"]))
    uneven = [Result(("B", "A"), "m", "s", 0, dice, Path(), Path(), Path(), "", k) for k, dice in enumerate((0.2, 0.6))]
    assert compare(uneven, "m", "dice")[0]["mean"] == pytest.approx(0.4)


def test_undefined_scores_are_left_out():
    made = scores(0)
    made["AG-50"][3] = float("nan")
    rows = {row["method"]: row for row in compare(results({"A": made}), "S-1000", "surface_dice")}
    assert rows["AG-50"]["subjects"] == 19
    kept = [i for i in range(20) if i != 3]
    expected = stats.wilcoxon([made["AG-50"][i] for i in kept], [made["S-1000"][i] for i in kept]).pvalue
    assert rows["AG-50"]["p"] == pytest.approx(expected)


def test_equal_scores_have_p_one_and_other_subjects_are_not_paired():
    same = {"S-1000": [0.5, 0.6], "S-25": [0.5, 0.6]}
    rows = compare(results({"A": same}), "S-1000", "dice")
    assert (rows[1]["p"], rows[1]["p_corrected"], rows[1]["significant"]) == (1.0, 1.0, False)
    strangers: Any = [*results({"A": {"S-1000": [0.5]}})]
    strangers.append(Result(("B", "A"), "S-25", "other", 0.4, 0.4, Path(), Path(), Path()))
    assert all("p" not in row for row in compare(strangers, "S-1000", "dice"))


@pytest.mark.parametrize(
    ("methods", "expected"),
    [
        (["AG-50", "S-25", "S-1000", "S-50"], "S-1000"),
        (["AG-25-noAug", "S-25-noAug", "S-1000-noAug"], "S-1000-noAug"),
        (["S-1000-noAug", "AG-50", "S-1000", "S-25-noAug"], "S-1000"),  # Tables 1 and 3 together
        (["S-50", "S-1000-noAug"], "S-1000-noAug"),
        (["S-1000 (learning rate 10)", "S-50"], "S-50"),  # only default settings are the paper's
        (["baseline AvaGrad", "spottuned AvaGrad, 7 slices"], "baseline AvaGrad"),
        (["SGDm-50", "AG-50"], "SGDm-50"),
    ],
)
def test_what_is_compared_with(methods, expected):
    assert default_baseline(methods) == expected
