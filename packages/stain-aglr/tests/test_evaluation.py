"""`evaluate`: means over seeds, laboratories without AUC, Fig. 2 and Fig. 5, damaged input."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest

from dart_core.classification import write_predictions
from dart_core.run import METRICS
from stain_aglr.evaluation import auc_rows, read_scored, sensitivity
from stain_aglr.figures import embed, feature_figure
from stain_aglr.method import weights_of
from stain_aglr.models import Model
from stain_aglr.prediction import FEATURES
from stain_aglr.settings import ON, Losses


@pytest.fixture
def scores(tmp_path):
    """Write a folder of `predict`: (method, seed, {site: labels and margins}) and weights."""

    def write(method, seed, sites, **changes):
        folder = tmp_path / f"{method}-{seed}-{len(list(tmp_path.iterdir()))}"
        rows = [
            {"image": folder / f"{site}{i}.png", "subject": "s", "site": site, "label": label,
             "score": 1 / (1 + np.exp(-margin)), "split": "val" if site == "RUMC" else "test", "margin": margin}
            for site, values in sites.items()
            for i, (label, margin) in enumerate(values)
        ]  # fmt: skip
        write_predictions(folder, rows)
        lambda1, lambda2, _ = weights_of(method, Losses())
        model = Model(method, "RUMC", 2, 32, False, seed, lambda1=lambda1, lambda2=lambda2)
        content = {"model": dataclasses.asdict(dataclasses.replace(model, **changes))}
        (folder / METRICS).write_text(json.dumps(content))
        return folder

    return write


GOOD = [(0, -1.0), (0, -2.0), (1, 1.0), (1, 3.0)]
HALF = [(0, -1.0), (0, 2.0), (1, 1.0), (1, 3.0)]


def test_mean_over_seeds_of_unseen_laboratories(scores, command, tmp_path):
    folders = [
        scores("hed", 0, {"RUMC": HALF, "CWZ": GOOD, "RST": GOOD}),
        scores("hed", 1, {"RUMC": HALF, "CWZ": HALF, "RST": GOOD}),
    ]
    finished = command("evaluate", "--predictions", *folders, "--out", tmp_path / "out")
    assert finished.status == 0
    content = json.loads((tmp_path / "out" / METRICS).read_text())
    found = {row["group"]: (row["mean"], row["std"]) for row in content["per_site"]}
    assert found["CWZ"] == (pytest.approx(0.875), pytest.approx(0.25 / np.sqrt(2)))
    assert found["RST"] == (1.0, 0.0)
    assert found["RUMC (val)"][0] == pytest.approx(0.75)
    (mean,) = content["mean"]
    assert mean["mean"] == pytest.approx((1 + 0.875) / 2)
    assert "mean AUC 0.9375 ± 0.0884  (2 seeds)" in finished.out
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "0.9790 ± 0.0050" in page  # printed in the paper for HED-Light at CWZ


def test_networks_of_different_training_laboratories_are_kept_apart(scores, command, tmp_path):
    """Tables 1 and 2 in one call: same methods and seeds, other laboratories."""
    folders = []
    for method, values in (("vanilla", HALF), ("hed", GOOD)):
        folders.append(scores(method, 0, {"RUMC": HALF, "CWZ": values, "RST": GOOD}))
        folders.append(scores(method, 0, {"centre2": HALF, "centre3": HALF}, site="centre1"))
    for folder in folders:
        np.save(
            folder / FEATURES, np.random.default_rng(0).random((len(read_scored(folder).predictions), 5), np.float32)
        )
    finished = command("evaluate", "--predictions", *folders, "--out", tmp_path / "out")
    assert finished.status == 0
    content = json.loads((tmp_path / "out" / METRICS).read_text())
    means = {(row["trained_on"], row["method"]): (row["mean"], row["seeds"]) for row in content["mean"]}
    assert means == {
        ("RUMC", "vanilla"): (0.875, 1),
        ("RUMC", "hed"): (1.0, 1),
        ("centre1", "vanilla"): (0.75, 1),
        ("centre1", "hed"): (0.75, 1),
    }
    assert {(row["trained_on"], row["difference"]) for row in content["compared"]} == {
        ("RUMC", 0.125),
        ("centre1", 0.0),
    }
    assert "hed, trained on centre1" in finished.out
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for section in ("Area under the ROC curve", "Curves", "Feature space"):
        for site in ("RUMC", "centre1"):
            assert f"{section}, trained on {site}" in page
    assert page.count("0.7527 ± 0.0320") == 2  # printed for HED-Light at centre 2: in Table 2, and beside ours


def test_means_over_different_laboratories_are_not_compared(scores, command, tmp_path):
    folders = [
        scores("vanilla", 0, {"RUMC": HALF, "CWZ": GOOD, "RST": HALF}),
        scores("hed", 0, {"RUMC": HALF, "CWZ": GOOD}),
    ]
    finished = command("evaluate", "--predictions", *folders, "--out", tmp_path / "out")
    assert finished.status == 2
    assert "networks trained on RUMC were scored on different laboratories: here on CWZ, in" in finished.line
    assert str(folders[1]) in finished.line
    assert finished.line.endswith("on CWZ, RST; give `predict` the same --sites for all of them")
    assert not (tmp_path / "out").exists()
    # One that was scored on its own laboratory alone has no MEAN, and another training laboratory has MEANs of its own.
    others = [scores("hed", 1, {"RUMC": HALF}), scores("hed", 0, {"CWZ": GOOD}, site="LPON")]
    assert command("evaluate", "--predictions", folders[0], *others, "--out", tmp_path / "out").status == 0


def test_networks_that_differ_in_an_option_are_kept_apart(scores, command, tmp_path):
    """The same method and seed: HED-strong beside HED-light."""
    folders = [scores("hed", s, {"CWZ": GOOD}) for s in (0, 1)]
    folders += [scores("hed", s, {"CWZ": HALF}, options={"strength": "0.2"}) for s in (0, 1)]
    assert command("evaluate", "--predictions", *folders, "--out", tmp_path / "out").status == 0
    means = json.loads((tmp_path / "out" / METRICS).read_text())["mean"]
    assert [(row["method"], row["mean"], row["seeds"]) for row in means] == [
        ("hed", 1.0, 2),
        ("hed (strength 0.2)", 0.75, 2),
    ]


def test_the_baseline_is_the_one_with_default_settings(scores, command, tmp_path):
    folders = [scores("vanilla", s, {"CWZ": GOOD}, options={"balanced": ON}) for s in (0, 1)]
    folders += [scores("vanilla", s, {"CWZ": HALF}) for s in (0, 1)]
    assert command("evaluate", "--predictions", *folders, "--out", tmp_path / "out").status == 0
    (row,) = json.loads((tmp_path / "out" / METRICS).read_text())["compared"]
    assert (row["method"], row["baseline"]) == ("vanilla (balanced)", "vanilla")


def test_one_class_only_has_no_auc(scores, command, tmp_path):
    folder = scores("hed", 0, {"CWZ": GOOD, "RST": GOOD[:2]})
    finished = command("evaluate", "--predictions", folder, "--out", tmp_path / "out")
    assert finished.status == 0
    assert "no AUC for RST" in finished.err
    assert "`predict --sites` leaves those of one class out" in finished.err
    assert "mean AUC –" in finished.out
    rows = {row["site"]: row for row in csv.DictReader((tmp_path / "out" / "scores.csv").read_text().splitlines())}
    assert (rows["RST"]["auc"], rows["CWZ"]["auc"]) == ("", "1.0")


def test_saturated_scores_are_ranked_by_their_margins(scores):
    (row,) = auc_rows([read_scored(scores("hed", 0, {"CWZ": [(0, 50.0), (1, 51.0)]}))])
    assert row["auc"] == 1


def test_methods_are_compared_over_seeds(scores, command, tmp_path):
    folders = [scores(m, s, {"CWZ": v}) for m, v in (("vanilla", HALF), ("stain-aglr", GOOD)) for s in (0, 1, 2)]
    assert command("evaluate", "--predictions", *folders, "--out", tmp_path / "out").status == 0
    (row,) = json.loads((tmp_path / "out" / METRICS).read_text())["compared"]
    assert (row["method"], row["baseline"], row["pairs"]) == ("stain-aglr", "vanilla", 3)
    assert row["difference"] == pytest.approx(0.25)
    twice = command("evaluate", "--predictions", folders[0], folders[0], "--out", tmp_path / "twice")
    assert twice.status == 2
    assert "two results of seed 0" in twice.line
    assert not (tmp_path / "twice").exists()


def test_sensitivity_is_what_fig_5_shows(scores):
    runs = [scores("hed-reg", 0, {"CWZ": GOOD}, lambda1=w) for w in (0.01, 0.1, 1.0)]
    runs += [
        scores("hed-reg", 1, {"CWZ": HALF}, lambda1=0.1),
        scores("stain-aglr", 0, {"CWZ": HALF}, lambda1=0.1, lambda2=10.0),
    ]
    scored = [read_scored(folder) for folder in runs]
    means = [
        {"method": s.model.name, "seed": s.model.seed, "auc": row["auc"]}
        for s, row in zip(scored, auc_rows(scored), strict=True)
    ]
    assert sensitivity(scored, means) == {"lambda1": {0.01: [1.0], 0.1: [1.0, 0.75], 1.0: [1.0]}}


def test_figures_2_and_5_are_in_the_report(scores, command, tmp_path):
    runs = [scores("hed-cons", 0, {"CWZ": GOOD, "RUMC": GOOD}, lambda2=w) for w in (1.0, 10.0)]
    for folder in runs:
        np.save(folder / FEATURES, np.random.default_rng(0).random((8, 5), np.float32))
    assert command("evaluate", "--predictions", *runs, "--out", tmp_path / "out").status == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Fig. 2 of the paper" in page
    assert "Fig. 5 of the paper" in page


def test_embedding_keeps_clusters_apart_and_is_repeatable():
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(0, 0.1, (20, 6)), rng.normal(5, 0.1, (20, 6))])
    points = embed(features, "tsne")
    assert points.shape == (40, 2)
    assert np.array_equal(points, embed(features, "tsne"))
    centres = points[:20].mean(0), points[20:].mean(0)
    spread = max(
        np.linalg.norm(part - centre, axis=1).max()
        for part, centre in zip((points[:20], points[20:]), centres, strict=True)
    )
    assert np.linalg.norm(centres[0] - centres[1]) > spread
    figure = feature_figure({"vanilla": (features, ["a"] * 20 + ["b"] * 20, np.arange(40) % 2)}, "tsne")
    assert len(figure.axes[0].collections) == 4
    with pytest.raises(ValueError, match="3 patches make no picture"):
        embed(features[:3], "tsne")


@pytest.mark.slow
def test_umap():
    pytest.importorskip("umap")
    features = np.random.default_rng(0).random((30, 6))
    assert np.array_equal(embed(features, "umap"), embed(features, "umap"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / METRICS).unlink(), "cannot be read as scores of stain-aglr"),
        (lambda folder: (folder / METRICS).write_text('{"model": 3}'), "cannot be read as scores"),
        (lambda folder: (folder / "predictions.csv").unlink(), "a folder that `stain-aglr predict` wrote"),
        (lambda folder: (folder / FEATURES).write_bytes(b"nonsense"), "is damaged; predict again"),
        (lambda folder: np.save(folder / FEATURES, np.zeros((3, 2))), "features of shape (3, 2) for 4 patches"),
    ],
)
def test_damaged_predictions(spoil, words, scores, command, tmp_path):
    folder = scores("hed", 0, {"CWZ": GOOD})
    spoil(folder)
    finished = command("evaluate", "--predictions", folder, "--out", tmp_path / "out")
    assert finished.status == 2
    assert words in finished.line
    assert not (tmp_path / "out").exists()


def test_real_predictions(predicted, command, tmp_path):
    assert command("evaluate", "--predictions", predicted, "--out", tmp_path / "out").status == 0
    assert read_scored(predicted).features.shape == (len(read_scored(predicted).predictions), 32)
