"""Tables 1 and 2 and Fig. 1 from finished predictions."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmark_transformers import evaluation
from benchmark_transformers.comparison import AS_CODED, members_of, panels_of, paper_row
from benchmark_transformers.evaluation import read_scored
from benchmark_transformers.initialisations import find_initialisation
from benchmark_transformers.tables import printed_table, row_name
from dart_core.classification import write_predictions
from dart_core.data.catalog import chexpert
from dart_core.metrics import two_sample_t_test

TRIALS = 4


def predictions(
    folder: Path,
    key: str,
    dataset: str,
    strength: float,
    *,
    site: str = "",
    split: str = "test",
    crops: int = 10,
    **changes: Any,
) -> Path:
    """A folder as `predict` writes it, of scores that separate the classes by `strength`."""
    row = find_initialisation(key)
    model: dict[str, Any] = {
        "initialisation": key, "name": key, "backbone": row.backbone, "options": {}, "image_size": 224, "labels": ["ill"],
        "exclusive": False, "dataset": dataset, "fraction": 100.0, "schedule": "intended", "optimizer": "sgd",
        "learning_rate": 0.01, **changes,
    }  # fmt: skip
    folder.mkdir(parents=True)
    rng = np.random.default_rng([len(key), round(100 * strength)])
    labels = np.arange(60) % 2
    for seed in range(TRIALS):
        scores = 1 / (1 + np.exp(-rng.normal(size=60) - strength * labels))
        rows = [
            {
                "image": folder / f"{i}.png",
                "subject": "",
                "site": site or dataset,
                "label": label,
                "score": score,
                "finding": name,
                "split": "test",
            }
            for i, (label, score) in enumerate(zip(labels, scores, strict=True))
            for name in model["labels"]
        ]
        write_predictions(folder / f"trial-{seed}", rows)
    (folder / "metrics.json").write_text(json.dumps({"model": model, "split": split, "crops": crops}))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    strengths = {
        "scratch-swin-b": 0.5, "scratch-vit-b": 0.3, "swin-b-simmim": 2.0, "vit-b-simmim": 1.9, "swin-b-in1k-xrays926k": 3.0,
        "resnet50-in1k": 0.9,
    }  # fmt: skip
    return [
        predictions(tmp_path / dataset / key, key, dataset, strength)
        for dataset in ("shenzhen", "chestxray14") for key, strength in strengths.items()
    ]  # fmt: skip


def test_rows_go_to_their_tables(folders: list[Path], tmp_path: Path) -> None:
    own = predictions(tmp_path / "own", "swin-b-simmim", "shenzhen", 1.0, initialisation="", name="mine")
    tiny = predictions(tmp_path / "tiny", "swin-b-simmim", "shenzhen", 1.0, options={"embed_dim": 8}, name="tiny")
    few = predictions(tmp_path / "few", "swin-b-simmim", "shenzhen", 1.0, fraction=10.0)
    scored = [read_scored(folder) for folder in (*folders, own, tiny, few)]
    first, second = members_of("table1", scored), members_of("table2", scored)
    assert set(first) == {"Scratch Swin-B", "Scratch ViT-B", "SimMIM Swin-B", "SimMIM ViT-B"}
    assert set(second) == {"Scratch", "ImageNet", "ImageNet->X-rays(926K)", "mine (Swin-B)"}
    assert len(members_of("all", scored)) == 9
    assert "swin-b-simmim (10 % of the annotations) (Swin-B)" in members_of("all", scored)
    panels = panels_of(scored)
    assert list(panels) == ["Shenzhen", "ChestX-ray14"]
    assert [bar.name for bar in panels["ChestX-ray14"] if bar.scratch] == ["scratch-swin-b", "scratch-vit-b"]
    assert members_of("table1", [read_scored(own)]) == {}


def test_tables_tests_and_figure(folders: list[Path], command, tmp_path: Path) -> None:
    finished = command("compare", *folders, "--out", tmp_path / "comparison")
    assert finished.status == 0, finished.err
    content = json.loads((tmp_path / "comparison" / "metrics.json").read_text())
    values = content["table1"]["values"]["shenzhen"]
    assert set(map(len, values.values())) == {TRIALS}
    best = max(values, key=lambda name: np.mean(values[name]))
    for test in content["table1"]["tests"]:
        if test["dataset"] == "shenzhen":
            assert test["best"] == best
            assert test["p"] == pytest.approx(two_sample_t_test(values[best], values[test["name"]])[1])
    rows = {
        row["initialisation"]: row
        for row in csv.DictReader((tmp_path / "comparison" / "table2.csv").read_text().splitlines())
    }
    runs = content["table2"]["values"]["chestxray14"]["ImageNet"]
    assert float(rows["ImageNet"]["chestxray14_mean"]) == pytest.approx(np.mean(runs))
    assert float(rows["ImageNet"]["chestxray14_std_population"]) == pytest.approx(np.std(runs))
    assert float(rows["ImageNet"]["chestxray14_std_sample"]) == pytest.approx(np.std(runs, ddof=1))
    page = (tmp_path / "comparison" / "report.html").read_text(encoding="utf-8")
    for words in ("Table 1: ways to pre-train", "Figure 1", "Here and in the paper", "94.12 ± 0.96"):
        assert words in page
    assert (tmp_path / "comparison" / "figure1.png").stat().st_size > 10_000


def test_identical_runs_have_no_test_and_no_spread(tmp_path: Path, command) -> None:
    same = [
        predictions(tmp_path / name, "swin-b-simmim", "shenzhen", 50.0, name=name, initialisation="") for name in "ab"
    ]
    finished = command("compare", *same, "--out", tmp_path / "comparison")
    assert finished.status == 0
    content = json.loads((tmp_path / "comparison" / "metrics.json").read_text())
    assert [test["p"] for test in content["all"]["tests"]] == [None]
    assert "100.00 ± 0.00" in (tmp_path / "comparison" / "report.html").read_text(encoding="utf-8")


def test_damaged_predictions(folders: list[Path], command, tmp_path: Path) -> None:
    file = folders[0] / "trial-0" / "predictions.csv"
    file.write_text(file.read_text().replace("ill", "well", 1))
    finished = command("compare", *folders, "--out", tmp_path / "comparison")
    assert finished.status == 2
    assert "its rows are not those of the labels" in finished.line
    assert not (tmp_path / "comparison").exists()


def test_two_fine_tunings_of_one_printed_row_are_refused(tmp_path: Path, command) -> None:
    first = predictions(tmp_path / "a", "swin-b-simmim", "shenzhen", 1.0, name="first")
    second = predictions(tmp_path / "b", "swin-b-simmim", "shenzhen", 2.0, name="second", learning_rate=0.1)
    finished = command("compare", first, second, "--out", tmp_path / "comparison")
    assert finished.status == 2
    assert f"{second}: second and first ({first}) both repeat the row SimMIM Swin-B on shenzhen" in finished.line
    assert "they differ in name (second, first), learning_rate (0.1, 0.01)" in finished.line
    assert not (tmp_path / "comparison").exists()
    elsewhere = predictions(tmp_path / "c", "swin-b-simmim", "chestxray14", 2.0, name="second")
    assert command("compare", first, elsewhere, "--out", tmp_path / "comparison").status == 0


def test_fine_tunings_by_all_settings_files_are_compared_together(tmp_path: Path, command) -> None:
    folders = []
    for path in sorted((Path(__file__).parents[1] / "configs").glob("*.yaml")):
        given = yaml.safe_load(path.read_text())
        if "initialisation" in given:
            key = given["initialisation"]
            about = {name: given[name] for name in ("schedule", "optimizer", "fraction", "image_size")}
            folder = tmp_path / path.stem
            folders.append(predictions(folder, key, "shenzhen", 1.0, name=given.get("name", key), **about))
    finished = command("compare", *folders, "--out", tmp_path / "comparison")
    assert finished.status == 0, finished.err
    content = json.loads((tmp_path / "comparison" / "metrics.json").read_text())
    assert len(content["all"]["values"]["shenzhen"]) == len(folders)
    for table in ("table1", "table2"):
        rows = {name for name in content[table]["values"]["shenzhen"] if not name.endswith(AS_CODED)}
        assert rows == {row_name(row) for row in printed_table(table)}
    page = (tmp_path / "comparison" / "report.html").read_text(encoding="utf-8")
    beside = page.split("Here and in the paper")[0].rpartition("<table")[2]
    assert f"SimMIM Swin-B{AS_CODED}" in beside


@pytest.mark.parametrize(
    ("changes", "name", "dataset"),
    [
        ({"split": "val"}, "swin-b-simmim", "shenzhen, validation pictures"),
        ({"split": "all"}, "swin-b-simmim", "shenzhen, all pictures"),
        ({"crops": 1}, "swin-b-simmim (1 crop)", "shenzhen"),
        ({"site": "vindr-cxr"}, "swin-b-simmim (trained on shenzhen)", "vindr-cxr"),
        ({"optimizer": "adamw"}, "swin-b-simmim", "shenzhen"),
    ],
)
def test_what_no_printed_row_repeats_says_what_it_is(
    changes: dict[str, Any], name: str, dataset: str, tmp_path: Path
) -> None:
    one = read_scored(predictions(tmp_path / "a", "swin-b-simmim", "shenzhen", 1.0, **changes))
    assert (one.name, one.dataset) == (name, dataset)
    assert paper_row(one, "table1") is paper_row(one, "table2") is None
    if "split" in changes:
        test = read_scored(predictions(tmp_path / "b", "swin-b-simmim", "shenzhen", 1.0))
        assert list(panels_of((one, test))) == [dataset, "Shenzhen"]
    plain = read_scored(predictions(tmp_path / "c", "swin-b-simmim", "shenzhen", 1.0, schedule="as_coded"))
    assert list(members_of("table2", (plain,))) == [f"ImageNet{AS_CODED}"]


def test_the_tested_data_set_says_which_labels_count(tmp_path: Path) -> None:
    labels = list(chexpert.LABELS)
    at = predictions(tmp_path / "at", "swin-b-simmim", "vindr-cxr", 1.0, labels=labels, site="chexpert")
    away = predictions(tmp_path / "away", "swin-b-simmim", "chexpert", 1.0, labels=labels, site="vindr-cxr")
    assert read_scored(at).counted == chexpert.COMPETITION
    assert read_scored(away).counted == chexpert.LABELS
    assert read_scored(away, ("Edema",)).counted == ("Edema",)


def test_networks_of_one_name_keep_their_curves(tmp_path: Path, command, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[dict[str, Any]] = []
    draw = evaluation.roc_figure
    monkeypatch.setattr(evaluation, "roc_figure", lambda curves: drawn.append(curves) or draw(curves))
    folders = [
        predictions(tmp_path / key, key, "shenzhen", strength, name="mine", initialisation="")
        for key, strength in (("vit-b-simmim", 1.0), ("swin-b-simmim", 3.0))
    ]
    assert command("evaluate", "--predictions", *folders, "--out", tmp_path / "out").status == 0
    (curves,) = drawn
    assert list(curves) == ["mine (ViT-B)", "mine (Swin-B)"]
    scores = [curve[1].mean() for curve in curves.values()]
    assert scores[0] < scores[1]
