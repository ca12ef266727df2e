"""Scores, means and the paired comparison."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import wilcoxon

from catenorm.evaluation import (
    Score,
    annotation_gains,
    average,
    find_baseline,
    organ_mean,
    report_sections,
    score_case,
    site_mean,
    summarise,
)
from catenorm.prediction import keep_largest
from dart_core.report import Report


def scored(method: str, values: dict[tuple[str, str, str], float]) -> list[Score]:
    return [Score(method, site, case, organ, dice, 1.0, 2.0) for (site, case, organ), dice in values.items()]


VALUES = {
    ("a", "1", "liver"): 0.9, ("a", "2", "liver"): 0.7, ("b", "3", "liver"): 0.6,
    ("a", "1", "spleen"): 0.5, ("a", "2", "spleen"): 0.3, ("b", "3", "spleen"): 0.8,
}  # fmt: skip


def test_means() -> None:
    """Organs: mean over sites of the mean over cases; average: over organs (6)."""
    scores = scored("m", VALUES)
    assert organ_mean(scores, "m", "liver", "dice") == pytest.approx(100 * (0.8 + 0.6) / 2)
    assert organ_mean(scores, "m", "spleen", "dice") == pytest.approx(100 * (0.4 + 0.8) / 2)
    assert average(scores, "m", "dice") == pytest.approx((70 + 60) / 2)
    assert site_mean(scores, "m", "a", "dice") == pytest.approx(100 * (0.8 + 0.4) / 2)
    assert average(scores, "m", "assd") == 2


def test_undefined_distances_are_left_out_and_counted() -> None:
    scores = [Score("m", "a", "1", "liver", 0.0, math.nan, math.nan), Score("m", "a", "2", "liver", 1.0, 3.0, 3.0)]
    row = summarise(scores, "bn")[0]
    assert type(row["undefined_asd"]) is int  # and no number of NumPy, which JSON has not
    assert (row["asd"], row["dice"], row["undefined_asd"]) == (3.0, 50.0, 1)
    assert "p" not in row


def test_comparison_is_over_cases() -> None:
    rng = np.random.default_rng(0)
    cases = [("a", str(n), organ) for n in range(7) for organ in ("liver", "spleen")]
    one, two = ({case: float(v) for case, v in zip(cases, rng.uniform(size=14), strict=True)} for _ in range(2))
    row = summarise([*scored("bn", one), *scored("cn", two)], "bn")[1]
    means = [100 * np.array(list(values.values())).reshape(7, 2).mean(1) for values in (two, one)]
    assert row["difference"] == pytest.approx(float(means[0].mean() - means[1].mean()))
    assert row["p"] == pytest.approx(wilcoxon(*means).pvalue)


def test_scores_of_a_case() -> None:
    truth = np.zeros((8, 8, 4), int)
    truth[1:5, 1:5] = 1
    prediction = np.roll(truth, 1, axis=1)
    prediction[7, 7, 0] = 3
    found = score_case(prediction, truth, {"x": 1, "y": 2, "z": 3}, (1, 2, 1))
    assert found["x"][0] == pytest.approx(0.75)
    assert 0 < found["x"][1] < 2
    assert found["y"][0] == 1  # absent in both
    assert found["z"][0] == 0  # predicted only
    assert all(math.isnan(value) for organ in "yz" for value in found[organ][1:])


def test_largest_component_of_every_class() -> None:
    classes = np.zeros((3, 6, 6), np.uint8)
    classes[:, :2, :2] = classes[0, 4, 4] = 1
    classes[1, 5, 5] = 2
    kept = keep_largest(classes, 4)
    assert kept[0, 4, 4] == 0
    assert kept[1, 5, 5] == 2
    assert (kept == 1).sum() == 12
    assert not (kept == 3).any()  # an empty class stays empty


def test_gains() -> None:
    def rows(gain: float) -> list[dict[str, Any]]:
        return [
            {"method": "bn", "dice_organs": {"liver": 50.0}},
            {"method": "catenorm 1-4 (BN pass)", "dice_organs": {"liver": 99.0}},
            {"method": "catenorm 1-4", "dice_organs": {"liver": 50.0 + gain}},
        ]

    found = annotation_gains({("liver",): rows(2.0), ("liver", "spleen"): [{"method": "bn"}]}, "bn")
    assert found == {"1 class": {"liver": 2.0}}


@pytest.mark.parametrize(
    ("asked", "methods", "found"),
    [
        ("", ["catenorm 1", "bn", "deeplab bn"], "bn"),
        ("", ["deeplab catenorm", "deeplab bn"], "deeplab bn"),
        ("", ["catenorm 1-4"], ""),
        ("in", ["bn", "in"], "in"),
    ],
)
def test_baseline(asked: str, methods: list[str], found: str) -> None:
    assert find_baseline(asked, methods) == found


def test_unknown_baseline() -> None:
    with pytest.raises(ValueError, match="no run is named BN; give --baseline one of: bn, catenorm 1"):
        find_baseline("BN", ["bn", "catenorm 1"])


def test_figure_5_is_of_single_blocks_of_the_u_net(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("catenorm.figures.positions", lambda *values: drawn.append(values))
    monkeypatch.setattr(Report, "picture", lambda *_: None)
    dice = {"bn": 0.5, "catenorm 1": 0.6, "catenorm 7": 0.7, "catenorm 1 (BN pass)": 0.1, "deeplab catenorm 1": 0.2,
            "w-net 7": 0.3, "catenorm 1-4": 0.4, "catenorm 1 hard": 0.8}  # fmt: skip
    scores = [score for name, value in dice.items() for score in scored(name, {("a", "1", "liver"): value})]
    groups = {("liver",): scores}
    report_sections(Report("", ""), groups, {("liver",): summarise(scores, "bn")}, "bn", "directed")
    ((points, baseline, _),) = drawn
    assert points == pytest.approx({1: 60, 7: 70})
    assert baseline == pytest.approx(50)
