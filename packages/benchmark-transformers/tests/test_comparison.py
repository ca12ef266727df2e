"""Tables 1 and 2 and Fig. 1 from finished predictions."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from benchmark_transformers.comparison import members_of, panels_of
from benchmark_transformers.evaluation import read_scored
from benchmark_transformers.initialisations import find_initialisation
from dart_core.classification import write_predictions
from dart_core.metrics import two_sample_t_test

TRIALS = 4


def predictions(folder: Path, key: str, dataset: str, strength: float, **changes: object) -> Path:
    """A folder as `predict` writes it, of scores that separate the classes by `strength`."""
    row = find_initialisation(key)
    model = {
        "initialisation": key, "name": key, "backbone": row.backbone, "options": {}, "image_size": 224, "labels": ["ill"],
        "exclusive": False, "dataset": dataset, "fraction": 100.0, **changes,
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
                "site": dataset,
                "label": label,
                "score": score,
                "finding": "ill",
                "split": "test",
            }
            for i, (label, score) in enumerate(zip(labels, scores, strict=True))
        ]
        write_predictions(folder / f"trial-{seed}", rows)
    (folder / "metrics.json").write_text(json.dumps({"model": model}))
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
