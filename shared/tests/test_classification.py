"""Predictions with two classes as files; their scores per group and over seeds; ROC and calibration pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.figure import Figure
from scipy import stats
from sklearn import metrics as sklearn_metrics

from dart_core.classification import (
    COLUMNS,
    Predictions,
    auc_text,
    binary_scores,
    calibration_figure,
    compare_seeds,
    group_table,
    read_predictions,
    roc_figure,
    scores_section,
    seed_table,
    write_predictions,
)
from dart_core.errors import InputError, OutputError
from dart_core.report import Report


def made(count: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities that have something to do with them, with ties."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.4).astype(float)
    return labels, np.round(np.clip(0.35 + 0.3 * labels + 0.25 * rng.standard_normal(count), 0, 1), 2)


# --- Files -----------------------------------------------------------------------------------------------------------


def row(image: Path | str, label: Any = 1, score: float = 0.5, **more: Any) -> dict[str, Any]:
    return {"image": image, "subject": "p", "site": "s", "label": label, "score": score, **more}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).random(50).astype(np.float32)
    labels = [(1, 0, None, float("nan"), "", np.int64(1), True, 0.0)[i % 8] for i in range(50)]
    rows = [
        row(tmp_path / "data" / f'a, "b" {i}.png', labels[i], scores[i], **({"tone": i % 6} if i % 2 else {}))
        for i in range(50)
    ]
    assert write_predictions(tmp_path / "out" / "x", rows) == tmp_path / "out" / "x" / "predictions.csv"
    found = read_predictions(tmp_path / "out" / "x", "tool")
    assert isinstance(found, Predictions)
    assert len(found) == 50
    assert found.columns == (*COLUMNS, "tone")
    np.testing.assert_array_equal(found.scores.astype(np.float32), scores)  # to the last bit: no new ties
    np.testing.assert_array_equal(found.labels, [(1, 0, np.nan, np.nan, np.nan, 1, 1, 0)[i % 8] for i in range(50)])
    assert found.column("image") == [str(r["image"]) for r in rows]
    assert found.column("tone") == [str(i % 6) if i % 2 else "" for i in range(50)]
    assert found.column("site") == ["s"] * 50
    with pytest.raises(InputError, match=r"predictions.csv: has no column 'age'; there are: image, subject"):
        found.column("age")


def test_the_folder_can_be_moved_with_its_pictures(tmp_path: Path) -> None:
    write_predictions(tmp_path / "one" / "out", [row(tmp_path / "one" / "a.png")])
    assert "../a.png" in (tmp_path / "one" / "out" / "predictions.csv").read_text()
    (tmp_path / "one").rename(tmp_path / "two")
    assert read_predictions(tmp_path / "two" / "out", "tool").column("image") == [str(tmp_path / "two" / "a.png")]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"score": float("nan")}, "b.png: the score is nan; train with a lower learning rate"),
        ({"score": float("inf")}, "the score is inf"),
        ({"label": 2}, "b.png: the label is 2; give 0 or 1"),
        ({"label": -1}, "the label is -1"),
    ],
)
def test_what_is_not_written(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_predictions(tmp_path, [row("a.png"), row("b.png") | wrong])
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, file_size_limit: Callable[[int], Any]) -> None:
    write_predictions(tmp_path, [row(tmp_path / "a.png")])
    old = (tmp_path / "predictions.csv").read_bytes()
    with file_size_limit(2048), pytest.raises(OutputError, match="disk is full"):
        write_predictions(tmp_path, [row(tmp_path / f"{i}.png") for i in range(500)])
    assert (tmp_path / "predictions.csv").read_bytes() == old
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            None,
            r"predictions.csv: cannot be read \(No such file or directory\); give a folder that `tool predict` wrote",
        ),
        (b"", "has no column image; run `tool predict` again"),
        (b"image,subject,site,label\na,p,s,1\n", "has no column score"),
        (b"image,subject,site,label,score\n", "lists no prediction"),
        (
            b"image,subject,site,label,score\na,p,s,1,0.5\nb,p,s,1\n",
            "row 3: the row is damaged; run `tool predict` again",
        ),
        (b"image,subject,site,label,score\na,p,s,1,0.5,7\n", "row 2: the row is damaged"),
        (b"image,subject,site,label,score\na,p,s,1,half\n", "row 2: the row is damaged"),
        (b"image,subject,site,label,score\na,p,s,1,\n", "row 2: the row is damaged"),
        (b"image,subject,site,label,score\na,p,s,1,nan\n", "row 2: the row is damaged"),
        (b"image,subject,site,label,score\na,p,s,2,0.5\n", "row 2: the row is damaged"),
        (b"image,subject,site,label,score\n,p,s,1,0.5\n", "row 2: the row is damaged"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "predictions.csv").write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_predictions(tmp_path, "tool")
    assert str(tmp_path / "predictions.csv") in str(error.value)
    assert "\n" not in str(error.value)


# --- Scores ----------------------------------------------------------------------------------------------------------


def test_scores_by_hand() -> None:
    """Positives 0.9, 0.5, 0.3; negatives 0.5, 0.1: 0.5 counts as class 0, and the tie as half a pair."""
    found = binary_scores([1, 1, 1, 0, 0], [0.9, 0.5, 0.3, 0.5, 0.1])
    assert found["auc"] == pytest.approx((2 + 1.5 + 1) / 6)
    area = found["auc"]
    variance = area * (1 - area) + 2 * (area / (2 - area) - area**2) + 1 * (2 * area**2 / (1 + area) - area**2)
    assert found["auc_error"] == pytest.approx(math.sqrt(variance / 6))
    assert {key: found[key] for key in found if not key.startswith("auc")} == {
        "accuracy": 3 / 5,
        "sensitivity": 1 / 3,
        "specificity": 1.0,
        "f1": 2 / 4,
        "positives": 3,
        "negatives": 2,
    }
    lower = binary_scores([1, 1, 1, 0, 0], [0.9, 0.5, 0.3, 0.5, 0.1], threshold=0.2)
    assert (lower["sensitivity"], lower["specificity"]) == (1.0, 0.5)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_scores_equal_scikit_learn(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 30))
    labels = data.draw(hnp.arrays(np.int64, count, elements=st.integers(0, 1)).filter(lambda a: 0 < a.sum() < len(a)))
    scores = data.draw(hnp.arrays(np.float64, count, elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])))
    found = binary_scores(labels, scores)
    called = np.rint(scores).astype(int)  # rounds one half to 0
    assert found["auc"] == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores))
    assert found["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(labels, called))
    assert found["sensitivity"] == pytest.approx(sklearn_metrics.recall_score(labels, called))
    assert found["specificity"] == pytest.approx(sklearn_metrics.recall_score(1 - labels, 1 - called))
    assert found["f1"] == pytest.approx(sklearn_metrics.f1_score(labels, called))
    assert (found["positives"], found["negatives"]) == (labels.sum(), (1 - labels).sum())


@pytest.mark.parametrize(("labels", "auc"), [([0, 1, 1], 1.0), ([1, 0, 0], 0.0)])
def test_an_area_of_1_or_0_has_no_standard_error(labels: list[int], auc: float) -> None:
    """Hanley and McNeil's formula gives 0 there, however few the samples are."""
    found = binary_scores(labels, [0.1, 0.5, 0.9])
    assert (found["auc"], found["auc_error"]) == (auc, None)
    assert "no error" in auc_text(found)
    (name,) = curves(roc_figure({"few": (labels, [0.1, 0.5, 0.9])}))
    assert name.startswith(f"few: {auc:.3f} (no error")


def test_areas_in_words() -> None:
    assert auc_text(binary_scores([1, 1], [0.2, 0.9])) == "no AUC: one class only"
    assert auc_text({"auc": 0.75, "auc_error": 0.1}) == "AUC 0.750 ± 0.100"


def test_what_is_undefined_is_none() -> None:
    only = binary_scores([1, 1], [0.2, 0.9])
    assert only["auc"] is only["auc_error"] is only["specificity"] is None
    assert (only["sensitivity"], only["accuracy"]) == (0.5, 0.5)
    negative = binary_scores([0, 0], [0.2, 0.3])
    assert negative["auc"] is negative["sensitivity"] is negative["f1"] is None
    assert negative["specificity"] == 1
    nothing = binary_scores([], [])
    assert (nothing.pop("positives"), nothing.pop("negatives")) == (0, 0)
    assert set(nothing.values()) == {None}


def test_unknown_labels_are_left_out_and_tensors_taken() -> None:
    labels, scores = made()
    some = labels.copy()
    some[::3] = np.nan
    scored = scores.copy()
    scored[0] = np.nan  # of an unknown label
    expected = binary_scores(np.delete(labels, np.s_[::3]), np.delete(scores, np.s_[::3]))
    assert binary_scores(some, scored) == expected
    assert binary_scores(torch.tensor(some), torch.tensor(scored, requires_grad=True)) == expected


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1], [0.5], r"labels have shape \(2,\), scores \(1,\)"),
        ([[0, 1]], [[0.5, 0.5]], r"both must be \(samples,\)"),
        ([0, 2], [0.5, 0.5], "labels hold 2"),
        ([0, 1], [0.5, float("nan")], "scores hold nan"),
    ],
)
def test_what_cannot_be_scored(labels: list[Any], scores: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        binary_scores(labels, scores)


def test_groups() -> None:
    labels, scores = made()
    groups = [(10, 9, 2)[i % 3] for i in range(200)]
    table = group_table(labels, scores, groups)
    assert [found["group"] for found in table] == ["2", "9", "10"]
    for found in table:
        inside = np.array(groups) == int(found["group"])
        assert found == {
            "group": found["group"],
            "images": inside.sum(),
            **binary_scores(labels[inside], scores[inside]),
        }
    assert sum(found["images"] for found in table) == 200
    labels[np.array(groups) == 9] = 1
    assert group_table(labels, scores, groups)[1]["auc"] is None
    assert [found["group"] for found in group_table([1, 0, 1], [0, 1, 0], ["b 2", "", "b 10"])] == ["", "b 2", "b 10"]
    labels[:3] = np.nan
    assert [found["images"] for found in group_table(labels[:6], scores[:6], groups[:6])] == [1, 1, 1]
    with pytest.raises(ValueError, match="there are 2 groups for labels of shape"):
        group_table(labels, scores, ["a", "b"])


# --- Over seeds ------------------------------------------------------------------------------------------------------


def results(**values: list[float | None]) -> list[dict[str, Any]]:
    return [
        {"method": method, "site": "A", "seed": seed, "auc": value}
        for method, found in values.items()
        for seed, value in enumerate(found)
    ]


def test_mean_and_sample_deviation_over_seeds() -> None:
    rows = results(one=[0.7, 0.8, 0.9], two=[0.6], three=[None, float("nan")], four=[0.5, None, 0.7])
    found = {entry["method"]: entry for entry in seed_table(rows, ("method", "site"))}
    assert list(found) == ["one", "two", "three", "four"]
    assert found["one"] == {
        "method": "one", "site": "A", "mean": pytest.approx(0.8), "std": pytest.approx(0.1), "seeds": 3
    }  # fmt: skip
    assert (found["two"]["mean"], found["two"]["std"], found["two"]["seeds"]) == (0.6, None, 1)
    assert (found["three"]["mean"], found["three"]["std"], found["three"]["seeds"]) == (None, None, 0)
    assert found["four"]["std"] == pytest.approx(stats.tstd([0.5, 0.7]))
    assert seed_table([{"seed": 0, "loss": 2.0}, {"seed": 1, "loss": 4.0}], (), "loss")[0]["mean"] == 3
    assert seed_table([], ("method",)) == []


def test_one_seed_is_given_once() -> None:
    rows = results(one=[0.7]) * 2
    with pytest.raises(InputError, match="two results of seed 0 for one, A; give each network once"):
        seed_table(rows, ("method", "site"))
    with pytest.raises(InputError, match="two results of seed 0"):
        compare_seeds(rows, "none")


def test_methods_against_a_baseline() -> None:
    rng = np.random.default_rng(0)
    base, ours = rng.normal(0.7, 0.02, 8), rng.normal(0.74, 0.02, 10)
    rows = results(none=[*base], ours=[*ours], single=[0.9], undefined=[None, None])
    rows += [dict(entry, site="B") for entry in results(ours=[0.5, 0.6])]  # without a baseline there
    found = compare_seeds(rows, "none", ("site",))
    assert [(entry["site"], entry["method"]) for entry in found] == [("A", "ours"), ("A", "single")]
    first, single = found
    assert first["difference"] == pytest.approx(ours.mean() - base.mean())
    assert first["p_t"] == pytest.approx(stats.ttest_ind(ours, base).pvalue)
    assert first["p_wilcoxon"] == pytest.approx(stats.wilcoxon(ours[:8], base).pvalue)
    assert (first["baseline"], first["pairs"]) == ("none", 8)
    assert (single["p_t"], single["p_wilcoxon"], single["pairs"]) == (None, None, 1)


def test_no_spread_has_no_t_test() -> None:
    (found,) = compare_seeds(results(none=[0.5, 0.5], same=[0.5, 0.5]), "none")
    assert (found["difference"], found["p_t"], found["p_wilcoxon"]) == (0, None, 1)
    (found,) = compare_seeds(results(none=[0.5, 0.5], other=[0.7, 0.7]), "none")
    assert found["p_t"] == 0


# --- Tables and pictures ---------------------------------------------------------------------------------------------


def curves(figure: Figure) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What the legend names, as it is drawn."""
    figure.savefig("/dev/null", format="png", dpi=40)
    axes = figure.axes[0]
    handles, names = axes.get_legend_handles_labels()
    return {name: handle.get_data() for handle, name in zip(handles, names, strict=True)}


def test_roc_curves() -> None:
    labels, scores = made()
    some = np.where(np.arange(200) % 5, labels, np.nan)
    found = curves(roc_figure({"all $x_1": (labels, scores), "some": (some, scores)}, {"readers": (0.4, 0.741)}))
    scored = binary_scores(labels, scores)
    name = f"all $x_1: {scored['auc']:.3f} ± {scored['auc_error']:.3f}"
    x, y = found[name]
    assert np.trapezoid(y, x) == pytest.approx(scored["auc"])
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    x, y = found["readers"]
    assert (x[0], y[0]) == (0.4, 0.741)
    assert len(found) == 3


def test_one_class_has_no_roc_curve() -> None:
    found = curves(roc_figure({"ill": ([1, 1], [0.2, 0.9]), "none": ([], [])}))
    assert list(found) == ["ill: one class only, no curve", "none: one class only, no curve"]
    assert all(len(x) == 0 for x, _ in found.values())


def test_many_curves_differ(tmp_path: Path) -> None:
    labels, scores = made()
    many = {f"{i}": (labels, scores) for i in range(9)}
    for figure in (roc_figure(many), calibration_figure(many)):
        lines = [line for line in figure.axes[0].get_lines() if line.get_label()[0] != "_"]
        assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 9


def test_calibration() -> None:
    """Four pictures from 0.11 to 0.2, three of them of class 1, and two at 0.95, one of class 1."""
    labels, scores = [1, 1, 1, 0, 1, 0], [0.11, 0.11, 0.2, 0.14, 0.95, 0.95]  # 0.2 ends the second bin
    figure = calibration_figure({"a": (labels, scores), "b": ([np.nan], [0.5])})
    found = curves(figure)
    x, y = found["a"]
    np.testing.assert_allclose(x, [0.14, 0.95])
    np.testing.assert_allclose(y, [0.75, 0.5])
    assert "b: no labels" in found
    of_four, of_two = figure.axes[0].collections[0].get_sizes()
    assert of_two < of_four
    counts = figure.axes[1].patches[0].get_data().values
    np.testing.assert_array_equal(counts, [0, 4, 0, 0, 0, 0, 0, 0, 0, 2])
    assert len(curves(calibration_figure({"ends": ([0, 1], [0.0, 1.0]), "one class": ([1, 1], [0.3, 0.8])}))) == 2
    with pytest.raises(ValueError, match="outside"):
        calibration_figure({"logits": ([0, 1], [-2.0, 3.0])})


def test_scores_in_a_report(tmp_path: Path) -> None:
    labels, scores = made()
    table = group_table(labels, scores, ["dark" if i < 30 else "light" for i in range(200)])
    table[0]["auc"] = table[0]["auc_error"] = None
    report = Report("Test")
    scores_section(report, table, {"group": "skin", "images": "pictures"}, "Each type")
    text = report.write(tmp_path / "report.html").read_text(encoding="utf-8")
    for part in ("skin", "pictures", "specificity", "dark", "–", f"{table[1]['auc']:.3f}", "Hanley and McNeil"):
        assert part in text
