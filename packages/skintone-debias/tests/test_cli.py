"""Every verb on phantoms, and every bad input in one line."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from dart_core.checkpoint import load_weights
from dart_core.cli import main
from dart_core.data.datalist import Datalist
from dart_core.metrics import auc_standard_error
from dart_core.nets.backbones import create_backbone
from skintone_debias.cli import COMMANDS
from skintone_debias.networks import load_model


@pytest.fixture(scope="module")
def predictions(networks, lesions, tmp_path_factory):
    """Predictions of the networks on the test pictures."""
    folders = {}
    for name, run in networks.items():
        folders[name] = tmp_path_factory.mktemp("predictions") / name
        words = ["predict", "--datalist", lesions, "--model", run, "--out", folders[name], "--device", "cpu"]
        assert main("skintone-debias", COMMANDS, "0", "", [str(word) for word in words]) == 0
    return folders


def rows_of(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))


# --- What works ------------------------------------------------------------------------------------------------------


def test_training_leaves_its_files(networks, lesions):
    run = networks["clgr-0"]
    for name in (
        "config.yaml",
        "metrics.json",
        "metrics.jsonl",
        "report.html",
        "model.safetensors",
        "best.safetensors",
    ):
        assert (run / name).is_file(), name
    _, model = load_model(run)
    assert (model.method, model.seed, model.sites, model.pictures) == ("clgr", 0, ["A", "B"], 12)
    assert model.heads == ["fitzpatrick"]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["steps"] == 6
    assert metrics["best_epoch"] in (1, 2)
    assert metrics["validation_pictures"] == 4
    labels = [row.labels["label"] for row in Datalist.read(lesions) if row.split == "val"]
    for name in ("validation_auc", "best_validation_auc"):
        expected = auc_standard_error(metrics[name], labels.count("1"), labels.count("0"))
        # The formula gives 0 for an AUC of 1 or 0, which is no error.
        assert metrics[f"{name}_error"] == (pytest.approx(expected) if 0 < metrics[name] < 1 else None)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum("loss_auxiliary" in line for line in lines) == 6
    assert sum("validation_auc" in line for line in lines) == 2


def test_a_baseline_has_no_heads(networks):
    _, model = load_model(networks["none-0"])
    assert (model.method, model.heads, model.nuisances) == ("none", [], {})


@pytest.mark.parametrize("debias", ["lntl", "lntl-nogr", "tabe", "both", "double-tabe", "double-lntl"])
def test_every_method_trains(debias, command, lesions, recipe, tmp_path):
    found = command(
        "train", "--datalist", lesions, *recipe, "--epochs", 1, "--debias", debias, "--out", tmp_path / "run"
    )
    assert found.status == 0, found.err
    _, model = load_model(tmp_path / "run")
    assert model.heads == ["fitzpatrick"] * (2 if debias in ("both", "double-tabe", "double-lntl") else 1)


def test_two_columns_for_two_heads_and_a_fold(command, lesions, recipe, tmp_path):
    rows = list(Datalist.read(lesions))
    for i, row in enumerate(rows):
        row.labels["ink"] = ("yes", "no")[i % 2]
    Datalist(tuple(rows)).write(lesions.parent / "ink.csv")
    words = ("--nuisance", "ink", "fitzpatrick", "--debias", "both", "--fold", 1, "--folds", 3, "--deep-heads")
    found = command("train", "--datalist", lesions.parent / "ink.csv", *recipe, *words, "--out", tmp_path / "run")
    assert found.status == 0, found.err
    _, model = load_model(tmp_path / "run")
    assert model.heads == ["ink", "fitzpatrick"]
    assert model.nuisances["ink"] == ["no", "yes"]
    assert (model.fold, model.pictures, model.deep_heads) == (1, 8, True)


def test_the_site_can_be_unlearnt(command, lesions, recipe, tmp_path):
    rows = [dataclasses.replace(row, site=("ward", "clinic")[i % 2]) for i, row in enumerate(Datalist.read(lesions))]
    path = Datalist(tuple(rows)).write(lesions.parent / "sites.csv")
    assert command("check-data", "--datalist", path, "--nuisance", "site").status == 0
    found = command(
        "train", "--datalist", path, *recipe, "--nuisance", "site", "--debias", "clgr", "--out", tmp_path / "run"
    )
    assert found.status == 0, found.err
    _, model = load_model(tmp_path / "run")
    assert model.nuisances["site"] == ["clinic", "ward"]


def test_learning_rate_control_has_its_own_name(command, lesions, recipe, tmp_path):
    words = ("--encoder-lr", 0.0033, "--sites", "A", "--batch-size", 2, "--weights")
    torch.save(create_backbone("test_resnet").state_dict(), tmp_path / "encoder.pth")
    found = command(
        "train", "--datalist", lesions, *recipe, *words, tmp_path / "encoder.pth", "--out", tmp_path / "run"
    )  # fmt: skip
    assert found.status == 0, found.err
    assert "no --weights" not in found.err
    _, model = load_model(tmp_path / "run")
    assert (model.method, model.sites) == ("lr-control (encoder lr 0.0033)", ["A"])


def test_predictions_hold_the_mean_of_eight_views(networks, predictions, lesions):
    network, _ = load_model(networks["clgr-0"])
    rows = rows_of(predictions["clgr-0"] / "predictions.csv")
    test = [row for row in Datalist.read(lesions) if row.split == "test"]
    assert [row["subject"] for row in rows] == [row.subject for row in test]
    assert [row["fitzpatrick"] for row in rows] == [row.labels["fitzpatrick"] for row in test]
    image = np.asarray(Image.open(test[0].image), dtype=np.float32) / 255
    views = [np.rot90(image, k) for k in range(4)] + [np.rot90(image[:, ::-1], k) for k in range(4)]
    with torch.no_grad():
        scores = [float(network(torch.from_numpy(v.copy()).permute(2, 0, 1)[None]).sigmoid()) for v in views]
    assert float(rows[0]["score"]) == pytest.approx(np.mean(scores), abs=1e-5)


def test_one_view_and_all_splits(command, networks, lesions, tmp_path):
    words = ("--views", 1, "--split", "all", "--sites", "B", "--model", networks["none-0"] / "best.safetensors")
    found = command("predict", "--datalist", lesions, *words, "--out", tmp_path / "p", "--device", "cpu")
    assert found.status == 0, found.err
    assert len(rows_of(tmp_path / "p" / "predictions.csv")) == 12
    assert json.loads((tmp_path / "p" / "metrics.json").read_text())["weights"] == "best"
    malignant = sum(row.labels["label"] == "1" for row in Datalist.read(lesions).select(site="B"))
    assert f"B: {malignant} malignant, {12 - malignant} benign, AUC" in found.out


def test_evaluation_scores_groups_and_the_gap(command, predictions, tmp_path):
    found = command("evaluate", "--predictions", *predictions.values(), "--out", tmp_path / "e")
    assert found.status == 0, found.err
    content = json.loads((tmp_path / "e" / "metrics.json").read_text())
    rows = rows_of(predictions["clgr-1"] / "predictions.csv")
    y, s = [int(row["label"]) for row in rows], [float(row["score"]) for row in rows]
    ours = [r for r in content["sites"] if (r["method"], r["seed"], r["site"]) == ("clgr", 1, "all")]
    assert ours[0]["auc"] == pytest.approx(roc_auc_score(y, s))
    group = [i for i, row in enumerate(rows) if row["fitzpatrick"] in "34"]
    ours = [r for r in content["groups"] if (r["method"], r["seed"], r["group"]) == ("clgr", 1, "3&4")]
    assert ours[0]["auc"] == pytest.approx(roc_auc_score([y[i] for i in group], [s[i] for i in group]))
    aucs = {r["group"]: r["auc"] for r in content["groups"] if (r["method"], r["seed"]) == ("none", 0)}
    (gap,) = [r["gap"] for r in content["gaps"] if (r["method"], r["seed"]) == ("none", 0)]
    assert gap == pytest.approx(aucs["3&4"] - aucs["5&6"])
    summary = [r for r in content["summary"]["site"] if (r["method"], r["site"]) == ("none", "all")]
    each = [r["auc"] for r in content["sites"] if (r["method"], r["site"]) == ("none", "all")]
    assert summary[0]["mean"] == pytest.approx(np.mean(each))
    assert summary[0]["std"] == pytest.approx(np.std(each, ddof=1))
    text = (tmp_path / "e" / "report.html").read_text(encoding="utf-8")
    assert "types 3&amp;4" in text
    assert "Printed in the paper" not in text


def test_a_group_of_one_class_has_no_number(command, predictions, tmp_path):
    words = ("--group-by", "ita", "--out", tmp_path / "e")  # every picture alone
    found = command("evaluate", "--predictions", predictions["none-0"], *words)
    assert found.status == 0, found.err
    assert "no AUC: one class only" in found.out
    content = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert [row["auc"] for row in content["groups"]] == [None] * 8
    assert [row["gap"] for row in content["gaps"]] == [None]


def test_the_paper_s_sets_stand_beside_its_numbers(command, predictions, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "metrics.json").write_text((predictions["clgr-0"] / "metrics.json").read_text())
    text = (predictions["clgr-0"] / "predictions.csv").read_text()
    (copy / "predictions.csv").write_text(text.replace(",A,", ",mclass-d,").replace(",B,", ",fitzpatrick17k,"))
    assert command("evaluate", "--predictions", copy, "--out", tmp_path / "e").status == 0
    report = (tmp_path / "e" / "report.html").read_text(encoding="utf-8")
    for words in ("MClass Dermoscopic, here", "0.918", "0.671", "Table 1: trained on types 1 and 2"):
        assert words in report, words


def test_onnx_answers_as_pytorch(command, networks, tmp_path):
    file = tmp_path / "net.onnx"
    found = command("export", "--model", networks["clgr-0"], "--out", file)
    assert found.status == 0, found.err
    network, _ = load_model(networks["clgr-0"])
    x = torch.rand(5, 3, 32, 32)
    (logits,) = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"image": x.numpy()})
    with torch.no_grad():
        assert np.allclose(logits, network(x).numpy(), atol=1e-5)
    assert command("export", "--model", networks["clgr-0"], "--out", file).line.endswith("--overwrite replaces it")
    assert command("export", "--model", networks["clgr-0"], "--out", tmp_path / "net.pt").status == 2


def test_sound_data_have_no_problem(command, lesions):
    found = command("check-data", "--datalist", lesions)
    assert found.status == 0
    assert found.out.splitlines()[-1] == "24 pictures: no problems"
    assert "train: 12 pictures, 6 malignant; A 6, B 6" in found.out


def test_a_test_set_needs_no_nuisance(command, tmp_path):
    """As published, no test set but Fitzpatrick17k names the types; what is wrong otherwise is still said."""
    for kind in ("benign", "malign"):
        folder = tmp_path / "BenchmarkClinical" / kind
        folder.mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(folder / f"{kind}.jpg")
    found = command("check-data", "--datalist", tmp_path)
    assert found.status == 0, found.out
    assert found.out.splitlines()[-1] == "2 pictures: no problems"
    assert "has no column 'melanoma'" in command("check-data", "--datalist", tmp_path, "--label", "melanoma").out
    (tmp_path / "BenchmarkClinical/benign/benign.jpg").write_text("no picture")
    assert "not a picture" in command("check-data", "--datalist", tmp_path).out
    lines = ["image,label,split", "BenchmarkClinical/malign/malign.jpg,1,train"]
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    assert "has no column 'fitzpatrick'" in command("check-data", "--datalist", tmp_path / "list.csv").out


def test_trained_weights_differ_by_method(networks):
    a, b = (load_weights(networks[name] / "model.safetensors")[0] for name in ("none-0", "clgr-0"))
    assert not torch.equal(a["main_head.1.weight"], b["main_head.1.weight"])


# --- What does not ---------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A datalist of eight pictures with all that can be wrong."""
    Image.new("L", (40, 40)).save(tmp_path / "grey.png")
    Image.new("RGBA", (40, 40)).save(tmp_path / "alpha.png")
    Image.new("CMYK", (40, 40)).save(tmp_path / "print.jpg")
    Image.fromarray(np.full((40, 40), 40000, np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGB", (40, 9)).save(tmp_path / "tiny.png")
    (tmp_path / "text.png").write_text("no picture")
    whole = (tmp_path / "alpha.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    frames = [Image.new("RGB", (40, 40), (i, 0, 0)) for i in range(2)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    rows = [
        ("grey.png", "0", "1"), ("alpha.png", "1", "2"), ("print.jpg", "1", "3"), ("deep.png", "0", "4"),
        ("tiny.png", "0", "1"), ("text.png", "1", "2"), ("cut.png", "yes", "3"), ("moving.gif", "0", "9"), ("none.png", "0", "1"),
    ]  # fmt: skip
    lines = ["image,label,fitzpatrick", *(",".join(row) for row in rows)]
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "list.csv"


def test_every_problem_is_listed(command, broken):
    found = command("check-data", "--datalist", broken)
    assert found.status == 2
    problems = [line for line in found.out.splitlines() if ", row " in line]
    assert len(problems) == 7, found.out
    for row, column, words in (
        (6, "image", "40 x 9 pixels"), (7, "image", "not a picture"), (8, "image", "truncated"), (8, "label", "'yes' is no label"),
        (9, "image", "holds 2 pictures"), (9, "fitzpatrick", "'9' is no Fitzpatrick type"), (10, "image", "file not found"),
    ):  # fmt: skip
        assert any(f"row {row}, column {column}" in line and words in line for line in problems), (row, words)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--encoder", "resnext"), "timm has no network 'resnext'"),
        (("--batch-size", 13), "--batch-size is 13, and there are 12 training pictures; give --batch-size 12 or fewer"),
        (("--nuisance", "hair", "--debias", "lntl"), "has no column 'hair'; columns there: label, fitzpatrick, ita"),
        (("--label", "melanoma"), "has no column 'melanoma'"),
        (("--sites", "C"), "no row has site 'C'"),
        (("--weights", "nowhere.pth"), "nowhere.pth: no such file"),
        (("--fold", 5), "--fold is 5 of --folds 5; give 0 to 4"),
        (("--alpha", 0.1), "--alpha has no meaning for --debias none"),
        (("--encoder-lr", 0.1, "--debias", "lntl"), "--encoder-lr has no meaning for --debias lntl"),
        (("--debias", "clgr", "--no-aux-updates-encoder"), "contradicts the reversed gradient of --debias clgr"),
        (("--debias", "clgr", "--precision", "fp16"), "--precision fp16 cannot be used with --debias clgr"),
        (("--debias", "lntl", "--nuisance", "fitzpatrick", "ita"), "--debias lntl unlearns one"),
        (("--accumulate", 2), "--accumulate has no meaning"),
        (("--momentum", 1), "--momentum is 1.0"),
    ],
)
def test_trainings_that_cannot_be_are_refused_in_one_line(words, problem, command, lesions, recipe, tmp_path):
    found = command("train", "--datalist", lesions, *recipe, *words, "--out", tmp_path / "run")
    assert found.status == 2
    assert problem in found.line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("debias", "fold", "problem"),
    [
        ("none", "label", "no training picture is malignant (label 1)"),
        ("clgr", "fitzpatrick", "all training pictures have fitzpatrick 2, so that there is nothing to unlearn"),
    ],
)
def test_a_fold_that_takes_a_class_away_is_refused(debias, fold, problem, command, lesions, recipe, tmp_path):
    rows = [row for row in Datalist.read(lesions) if row.split == "train"]
    for i, row in enumerate(rows):
        row.labels["fitzpatrick"] = "12"[i // 2 % 2]
        row.labels["fold"] = "0" if row.labels[fold] == "1" else "1"
    path = Datalist(tuple(rows)).write(lesions.parent / "folds.csv")
    words = ("--debias", debias, "--fold", 0, "--out", tmp_path / "run")
    found = command("train", "--datalist", path, *recipe, *words)
    assert found.status == 2
    assert f"folds.csv, without fold 0: {problem}" in found.line
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_stops_the_training(command, lesions, recipe, tmp_path):
    words = ("--lr-base", 1e20, "--epochs", 4, "--out", tmp_path / "run")
    found = command("train", "--datalist", lesions, *recipe, *words)
    assert found.status == 2
    assert "is no number; lower --lr-base" in found.err.splitlines()[-1]
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("datalist", ["validated", "without validation"])
def test_weights_that_are_no_numbers_are_noticed_between_log_lines(datalist, command, lesions, recipe, tmp_path):
    rows = [row for row in Datalist.read(lesions) if datalist == "validated" or row.split != "val"]
    Datalist(tuple(rows)).write(tmp_path / "list.csv")
    words = ("--lr-base", 1e20, "--log-every", 1000, "--epochs", 3, "--out", tmp_path / "run")
    found = command("train", "--datalist", tmp_path / "list.csv", *recipe, *words)
    assert found.status == 2
    assert "no numbers; lower --lr-base" in found.err.splitlines()[-1]
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_predicting_with_something_else_is_refused(command, lesions, networks, tmp_path):
    out = ("--out", tmp_path / "p")
    assert "holds no model.safetensors" in command("predict", "--datalist", lesions, "--model", tmp_path, *out).line
    (tmp_path / "list.csv").write_text("image,split\nnone.png,train\n")
    words = ("--datalist", tmp_path / "list.csv", "--model", networks["none-0"])
    assert "holds no picture with split test; give another --split" in command("predict", *words, *out).line
    assert "none.png: file not found" in command("predict", *words, "--split", "all", *out).line
    assert not (tmp_path / "p").exists()


def test_evaluating_something_else_is_refused(command, predictions, tmp_path):
    out = ("--out", tmp_path / "e")
    assert "cannot be read" in command("evaluate", "--predictions", tmp_path, *out).line
    found = command("evaluate", "--predictions", predictions["none-0"], "--group-by", "race", *out)
    assert "has no column 'race'" in found.line
    found = command("evaluate", "--predictions", predictions["none-0"], predictions["none-0"], *out)
    assert "give each network once" in found.line
    assert not (tmp_path / "e").exists()
