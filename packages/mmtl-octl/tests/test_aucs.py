"""Scores of classifiers and their tables."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import wilcoxon

from dart_core.data.datalist import Row
from dart_core.errors import InputError, SettingError
from dart_core.settings import OutputSettings
from mmtl_octl.aucs import (
    Scored,
    auc_rows,
    comparisons,
    evaluate,
    label_figure,
    label_means,
    paired,
    report_undefined,
    tables,
    write_scores,
)
from mmtl_octl.classifiers import Classifier
from mmtl_octl.pictures import Pictures
from mmtl_octl.settings import Evaluate

LABELS = ("Mass", "Edema", "Hernia")
Write = Callable[..., Path]


def model(
    method: str, seed: int = 0, images: int = 8, source: Sequence[str] = ("one",), target: str = "two"
) -> Classifier:
    sets = {name: list(LABELS) for name in (*source, target)}
    return Classifier("ChestNet", sets, 32, "patient", "adam", seed, list(source), target, method, images)


def scored(method: str, values: Sequence[float | None], site: str = "two", **changes: object) -> Scored:
    table = [{"label": name, "positive": 1, "negative": 1, "auc": v} for name, v in zip(LABELS, values, strict=True)]
    made = model(method, **changes)  # type: ignore[arg-type]
    return Scored(made, site, table, origin=made.source_site)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write what `predict` writes: 12 images, the third label without positives."""
    count = 0

    def run(method: str, quality: float, site: str = "two", subject: str = "p", **changes: object) -> Path:
        nonlocal count
        count += 1
        folder = tmp_path / f"predictions{count}"
        rng = np.random.default_rng(count)
        truth = np.array([[i % 2, i // 2 % 2, 0] for i in range(12)], dtype=np.float32)
        truth[5, 1] = np.nan
        scores = rng.random((12, 3)) + quality * np.nan_to_num(truth)
        rows = tuple(Row(tmp_path / f"{i}.png", subject=f"{subject}{i:05d}", site=site) for i in range(12))
        folder.mkdir()
        write_scores(folder, Pictures(site, LABELS, rows, truth), scores)
        content = {"site": site, "model": asdict(model(method, **changes))}  # type: ignore[arg-type]
        (folder / "metrics.json").write_text(json.dumps(content))
        return folder

    return run


def test_labels_without_both_classes(capsys: pytest.CaptureFixture[str]) -> None:
    truth = np.array([[1, 1, np.nan], [0, 1, 0], [0, 1, 0]], dtype=np.float32)
    table = auc_rows(LABELS, truth, np.array([[0.5, 0.5, 0.5], [0.4, 0.1, 0.2], [0.6, 0.3, 0.4]]))
    assert table == [
        {"label": "Mass", "positive": 1, "negative": 2, "auc": 0.5},
        {"label": "Edema", "positive": 3, "negative": 0, "auc": None},
        {"label": "Hernia", "positive": 0, "negative": 2, "auc": None},
    ]
    report_undefined(table)
    assert capsys.readouterr().err == "without both classes and therefore without AUC: Edema, Hernia\n"
    report_undefined(table[:1])
    assert capsys.readouterr().err == ""


def test_means_over_labels_then_over_seeds() -> None:
    networks = [
        scored("mmtl", (0.8, 0.6, None), seed=1),
        scored("mmtl", (0.9, 0.7, None), seed=2),
        scored("fta", (0.5, 0.5, 0.8), seed=1),
        scored("fta", (0.4, 0.2, None), site="one", seed=1),
        scored("ftf", (None, None, None), seed=1),
    ]
    found = tables(networks)
    cells = {cell.method: cell for cell in found["target"]["one", "two"]}
    assert cells.keys() == {"mmtl", "fta"}
    assert cells["mmtl"].mean == pytest.approx(0.75)
    assert cells["mmtl"].std == pytest.approx(np.std([0.7, 0.8], ddof=1))
    assert (cells["fta"].mean, cells["fta"].std, cells["fta"].slices) == (pytest.approx(0.6), None, 8)
    (forgetting,) = found["source"]["one", "two"]
    assert forgetting.mean == pytest.approx(0.3)
    assert label_means(networks[:2]) == {"Mass": pytest.approx(0.85), "Edema": pytest.approx(0.65)}


def test_joint_sources_and_other_sites_have_cells_of_their_own() -> None:
    joint = {"source": ("one", "three"), "seed": 1}
    networks = [
        scored("mmtl", (0.9, 0.7, None), **joint),
        scored("mmtl", (0.6, 0.6, None), site="one", **joint),
        scored("mmtl", (0.4, 0.4, None), site="three", **joint),
        scored("mmtl", (0.2, 0.2, None), site="four", **joint),
    ]
    found = {where: {pair: cell.mean for pair, (cell,) in cells.items()} for where, cells in tables(networks).items()}
    pair = ("one+three", "two")
    assert found == {
        "target": {pair: pytest.approx(0.8)},
        "source": {(*pair, "one"): pytest.approx(0.6), (*pair, "three"): pytest.approx(0.4)},
        "elsewhere": {(*pair, "four"): pytest.approx(0.2)},
    }


def test_the_same_network_twice(write: Write, tmp_path: Path) -> None:
    folders = (write("mmtl", 0.8, seed=1), write("mmtl", 0.9, seed=1))
    with pytest.raises(
        InputError, match=rf"{folders[1]}: holds mmtl with adam, seed 1, one → two, as {folders[0]} does"
    ):
        evaluate(Evaluate(OutputSettings(tmp_path / "out"), folders, task="classification"))
    assert not (tmp_path / "out").exists()


def test_a_datalist_that_nothing_would_read(write: Write, tmp_path: Path) -> None:
    command = Evaluate(
        OutputSettings(tmp_path / "out"), (write("mmtl", 0.8),), tmp_path / "a.csv", task="classification"
    )
    with pytest.raises(SettingError, match="--datalist has no meaning for --task classification"):
        evaluate(command)


def test_the_target_alone_stands_beside_every_source() -> None:
    networks = [
        scored("fta", (0.5, 0.5, 0.5)),
        scored("fta", (0.5, 0.5, 0.5), source=("three",)),
        scored("target", (0.9, 0.9, 0.9), source=()),
    ]
    found = [(s.method, s.pair) for s in paired(networks)]
    assert found == [
        ("fta", ("one", "two")),
        ("fta", ("three", "two")),
        ("target", ("one", "two")),
        ("target", ("three", "two")),
    ]
    assert [s.pair for s in paired(networks[2:])] == [("–", "two")]


def test_comparison_with_a_baseline() -> None:
    networks = [
        scored("none", (0.5, 0.6, 0.4), images=0),
        scored("fta", (0.6, 0.6, 0.5)),
        scored("mmtl", (0.9, 0.7, 0.8), seed=1),
        scored("mmtl", (0.7, 0.7, 0.6), seed=2),
        scored("mmtl", (0.9, 0.9, 0.9), images=16),
    ]
    rows = {(row["method"], row["images"]): row for row in comparisons(networks, "fta")}
    assert rows.keys() == {("mmtl", 8)}  # none and 16 images have no fta of their own
    row = rows["mmtl", 8]
    assert row["difference"] == pytest.approx(np.mean([0.2, 0.1, 0.2]))
    assert row["p_wilcoxon"] == pytest.approx(wilcoxon([0.8, 0.7, 0.7], [0.6, 0.6, 0.5]).pvalue)
    assert {(row["method"], row["images"]) for row in comparisons(networks, "none")} == {
        ("fta", 8), ("mmtl", 8), ("mmtl", 16)}  # fmt: skip
    single = [scored("fta", (0.6, None, None)), scored("mmtl", (0.9, None, None))]
    (row,) = comparisons(single, "fta")
    assert (row["labels"], row["p_wilcoxon"]) == (1, None)
    assert comparisons([scored("fta", (0.6, None, None)), scored("mmtl", (None, 0.9, None))], "fta") == []


def test_evaluate(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [write("mmtl", 0.8, seed=1), write("mmtl", 0.9, seed=2), write("fta", 0.2, seed=1), write("fta", 0.3, seed=2),
               write("mmtl", 0.5, site="one", seed=1), write("target", 0.9, source=(), seed=1)]  # fmt: skip
    out = tmp_path / "out"
    evaluate(Evaluate(OutputSettings(out), tuple(folders), baseline="fta", task="classification"))
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 6
    assert printed[0].startswith("one -> two on two  fta ")
    with open(out / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18
    assert {row["auc"] for row in rows if row["label"] == "Hernia"} == {""}
    assert {row["negative"] for row in rows if row["label"] == "Edema"} == {"5"}  # of six, one is unknown
    with open(out / "tables.csv", newline="") as file:
        table = {(row["tested_on"], row["method"]): row for row in csv.DictReader(file)}
    assert table.keys() == {("target", "fta"), ("target", "mmtl"), ("target", "target"), ("source", "mmtl")}
    content = json.loads((out / "metrics.json").read_text())
    means = [row["mean_auc"] for row in content["results"] if row["method"] == "mmtl" and row["tested_on"] == "two"]
    assert float(table["target", "mmtl"]["mean"]) == pytest.approx(np.mean(means))
    assert float(table["target", "mmtl"]["std"]) == pytest.approx(np.std(means, ddof=1))
    assert {row["method"] for row in content["comparisons"]} == {"mmtl", "target"}
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Forgetting" in page
    assert "Printed in the paper" not in page


def test_the_paper_s_table_stands_beside_the_paper_s_data(write: Write, tmp_path: Path) -> None:
    folder = write("mmtl", 0.9, site="chestxray14", subject="", source=("chexpert",), target="chestxray14")
    evaluate(Evaluate(OutputSettings(tmp_path / "out"), (folder,), task="classification"))
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Printed in the paper" in page
    assert "73.57 ± 0.71" in page


@pytest.mark.parametrize("damage", ["absent", "empty", "cut", "text", "no score", "no model", "no metrics"])
def test_damaged_folders(write: Write, tmp_path: Path, damage: str) -> None:
    folder = write("mmtl", 0.9)
    file = folder / "predictions.csv"
    lines = file.read_text().splitlines()
    if damage == "absent":
        file.unlink()
    elif damage == "empty":
        file.write_text(lines[0] + "\n")
    elif damage == "cut":
        file.write_text("\n".join(lines)[:-40])
    elif damage == "text":
        file.write_text("\n".join([*lines, lines[-1].rpartition(",")[0] + ",high"]))
    elif damage == "no score":
        file.write_text("\n".join([lines[0].replace("score:Mass", "mark:Mass"), *lines[1:]]))
    elif damage == "no model":
        (folder / "metrics.json").write_text('{"site": "two"}')
    else:
        (folder / "metrics.json").unlink()
    with pytest.raises(InputError, match="run `mmtl-octl predict --task classification` again") as error:
        evaluate(Evaluate(OutputSettings(tmp_path / "out"), (folder,), task="classification"))
    assert error.value.where is not None
    assert error.value.where.startswith(str(folder))
    assert not (tmp_path / "out").exists()


def test_picture_of_the_labels() -> None:
    means = {"none": {"Mass": 0.5}, "mmtl": {"Mass": 0.9, "Edema": 0.7}}
    (axes,) = label_figure(["Mass", "Edema"], means).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["Mass", "Edema"]
    dots = {c.get_label(): np.asarray(c.get_offsets()) for c in axes.collections}
    np.testing.assert_allclose(dots["mmtl"][:, 0], [0.9, 0.7])
    np.testing.assert_allclose(dots["none"][:, 0], [0.5])
    assert all(abs(y - round(y)) < 0.3 for points in dots.values() for y in points[:, 1])
    assert math.isclose(axes.lines[0].get_xdata()[0], 0.5)
