"""Every command with --task classification on phantom radiographs, and every input that it must refuse."""

from __future__ import annotations

import csv
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml

from dart_core import metrics
from dart_core.checkpoint import load_checkpoint, load_weights, save_model
from dart_core.data.datalist import Datalist
from dart_core.data.phantoms import write_chest_xrays
from dart_core.nets import ResidualUNet2d
from dart_core.testing import assert_same_run, logged
from mmtl_octl.classifiers import Classifier, load_classifier
from mmtl_octl.models import PACKAGE, Model
from mmtl_octl.xray import SpotTuneChestNet

TASK = ("--task", "classification")
SHORT = ("--epochs", 2, "--batches", 2, "--batch-size", 6, "--log-every", 1, "--device", "cpu")
SOURCE, TARGET = "chexpert", "chestxray14"
LABELS = {SOURCE: ("Edema", "Pleural Effusion"), TARGET: ("Effusion", "Mass", "Edema")}


class Sets(NamedTuple):
    """Two data sets of phantoms."""

    source: Path
    target: Path


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    folder = tmp_path_factory.mktemp("radiographs")
    paths = [write_chest_xrays(folder / site, site, 40, LABELS[site], (40, 36)) for site in LABELS]
    return Sets(*paths)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A DenseNet of a few layers instead of 121."""
    monkeypatch.setattr("mmtl_octl.classification.Classifier", functools.partial(Classifier, size=[4, [1, 1, 1, 1], 8]))


@pytest.fixture
def pretrained(command: Any, sets: Sets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pretrained") / "run"
    done = command("pretrain", *TASK, "--datalist", sets.source, "--image-size", 32, *SHORT, "--out", out)
    assert done.status == 0, done.err
    return out


@pytest.fixture
def adapt(command: Any, sets: Sets) -> Callable[..., Any]:
    """Run `adapt` towards the target with few images."""

    def run(method: str, out: Path, *words: object, source: Path | None = None, images: int = 8) -> Any:
        start = () if source is None else ("--source-model", source)
        amount = () if method == "none" else ("--images", images)
        return command("adapt", *TASK, "--datalist", sets.target, "--target", TARGET, "--method", method, *amount, *start,
                       *SHORT, *words, "--out", out)  # fmt: skip

    return run


# --- what works ------------------------------------------------------------------------------------------------------


def test_source_training(command: Any, sets: Sets, pretrained: Path) -> None:
    network, model = load_classifier(pretrained)
    assert model.label_sets == {SOURCE: list(LABELS[SOURCE])}
    assert (model.source, model.target, model.optimizer, model.image_size) == ([SOURCE], "", "adam", 32)
    history, about = load_weights(pretrained / "history.safetensors")
    assert about["history"] == "adam"
    assert {name.split("/", 1)[1] for name in history} == {name for name, _ in network.named_parameters()}
    config = yaml.safe_load((pretrained / "config.yaml").read_text())
    assert (config["learning_rate"], config["optimizer"], config["drop_epoch"]) == (1e-4, "adam", None)
    assert (config["image_size"], config["split_by"]) == (32, "patient")
    content = json.loads((pretrained / "metrics.json").read_text())
    assert content["steps"] == 4
    assert 0 <= content["validation_auc"] <= 1
    assert "Area under the ROC curve" in (pretrained / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("method", ["none", "mmtl", "octl", "fta", "ftf", "l2sp", "spottune", "target"])
def test_every_method(command: Any, adapt: Any, sets: Sets, pretrained: Path, tmp_path: Path, method: str) -> None:
    run = tmp_path / "run"
    words: tuple[object, ...] = ("--source-datalist", sets.source) if method == "mmtl" else ()
    if method == "target":
        done = adapt(method, run, "--image-size", 32)
    else:
        done = adapt(method, run, *words, source=pretrained)
    assert done.status == 0, done.err
    network, model = load_classifier(run)
    assert (model.method, model.target) == (method, TARGET)
    assert model.images == (0 if method == "none" else 8)
    heads = [SOURCE] if method == "none" else [TARGET] if method == "target" else [SOURCE, TARGET]
    assert list(model.label_sets) == heads
    assert isinstance(network, SpotTuneChestNet) == (method == "spottune")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert (">Policy<" in page) == (method == "spottune")
    assert (">Schedule<" in page) == (method == "mmtl")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["schedule"], config["start_step"], config["k"]) == ("xray", "keep", 0.0)
    out = tmp_path / "predictions"
    done = command("predict", *TASK, "--datalist", sets.target, "--model", run, "--device", "cpu", "--out", out)
    assert done.status == 0, done.err
    with open(out / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    test = [row for row in Datalist.read(sets.target) if row.split == "test"]
    assert [(out / row["image"]).resolve() for row in rows] == [row.image.resolve() for row in test]
    answered = ("Edema",) if method == "none" else LABELS[TARGET]
    scores = np.array([[float(row[f"score:{name}"]) for name in answered] for row in rows])
    truth = np.array([[float(row.labels[name]) for name in answered] for row in test])
    assert [[float(row[f"label:{name}"]) for name in answered] for row in rows] == truth.tolist()
    content = json.loads((out / "metrics.json").read_text())
    expected = metrics.roc_auc(truth, scores)
    for name, area in zip(answered, expected, strict=True):
        assert content["auc"][name] == (None if np.isnan(area) else pytest.approx(area))
    if method == "none":
        assert "no output of this network answers Effusion, Mass: left out" in done.err


def test_first_images_are_nested_and_shared_by_methods(
    adapt: Any, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def watch(run: Any, network: Any, target: Any, *rest: Any, **words: Any) -> Any:
        seen.append([row.image.name for row in target.rows])
        return network

    monkeypatch.setattr("mmtl_octl.classification.adapt_classifier", watch)
    for number, (method, images, seed) in enumerate((("fta", 6, 1), ("fta", 10, 2), ("octl", 6, 3), ("l2sp", 0, 1))):
        assert adapt(method, tmp_path / str(number), "--seed", seed, source=pretrained, images=images).status == 0
    assert seen[1][:6] == seen[0] == seen[2] == seen[3][:6]
    assert len(seen[3]) == 24
    assert len(set(seen[3])) == 24


def test_forgetting_and_evaluation(command: Any, adapt: Any, sets: Sets, pretrained: Path, tmp_path: Path) -> None:
    folders = []
    for method in ("fta", "octl"):
        assert adapt(method, tmp_path / method, source=pretrained).status == 0
        for site, datalist in ((TARGET, sets.target), (SOURCE, sets.source)):
            folders.append(tmp_path / f"{method}-{site}")
            assert command("predict", *TASK, "--datalist", datalist, "--site", site, "--model", tmp_path / method,
                           "--device", "cpu", "--out", folders[-1]).status == 0  # fmt: skip
    out = tmp_path / "evaluation"
    done = command("evaluate", *TASK, "--predictions", *folders, "--baseline", "fta", "--out", out)
    assert done.status == 0, done.err
    results = json.loads((out / "metrics.json").read_text())["results"]
    assert {(row["method"], row["tested_on"]) for row in results} == {
        (method, site) for method in ("fta", "octl") for site in (SOURCE, TARGET)}  # fmt: skip


def test_unlabelled_pictures_can_be_classified(
    command: Any, adapt: Any, sets: Sets, pretrained: Path, tmp_path: Path
) -> None:
    assert adapt("fta", tmp_path / "run", source=pretrained).status == 0
    images = sorted((sets.target.parent / "images").iterdir())[:3]
    bare = tmp_path / "bare.csv"
    bare.write_text("image,site\n" + "".join(f"{os.path.relpath(path, tmp_path)},{TARGET}\n" for path in images))
    out = tmp_path / "out"
    done = command("predict", *TASK, "--datalist", bare, "--model", tmp_path / "run", "--split", "all", "--device", "cpu",
                   "--out", out)  # fmt: skip
    assert done.status == 0, done.err
    with open(out / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert {row["label:Mass"] for row in rows} == {""}
    assert all(0 < float(row["score:Mass"]) < 1 for row in rows)


def test_the_best_epoch_is_kept_on_request(adapt: Any, pretrained: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert adapt("fta", out, "--keep", "best", source=pretrained).status == 0
    scores = [line["validation_auc"] for line in logged(out) if "validation_auc" in line]
    assert len(scores) == 2
    best = load_checkpoint(max((out / "checkpoints").iterdir()))["state"]["best"]
    assert best["score"] == pytest.approx(max(scores))
    weights, _ = load_weights(out / "model.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in best["weights"].items())


def test_sources_of_one_file(command: Any, sets: Sets, tmp_path: Path) -> None:
    both = Datalist((*Datalist.read(sets.source).rows, *Datalist.read(sets.target).rows)).write(tmp_path / "both.csv")
    words = ("pretrain", *TASK, "--datalist", both, "--image-size", 32, *SHORT)
    assert "holds 2 data sets; name the source: --source chexpert" in command(*words, "--out", tmp_path / "x").line
    assert command(*words, "--target", TARGET, "--out", tmp_path / "one").status == 0
    assert load_classifier(tmp_path / "one")[1].source == [SOURCE]
    assert command(*words, "--source", SOURCE, TARGET, "--out", tmp_path / "two").status == 0
    found = load_classifier(tmp_path / "two")[1].label_sets
    assert {name: set(labels) for name, labels in found.items()} == {
        name: set(labels) for name, labels in LABELS.items()
    }


def test_check_data(command: Any, sets: Sets, tmp_path: Path) -> None:
    done = command("check-data", *TASK, "--datalist", sets.target)
    assert done.status == 0
    assert re.search(
        r"site chestxray14: 24 train, 8 val, 8 test; positive: Effusion \d+, Mass \d+, Edema \d+", done.out
    )
    assert "40 images: no problems" in done.out
    folder = sets.target.parent
    broken = tmp_path / "broken.csv"
    (tmp_path / "cut.png").write_bytes((folder / "images" / "2000_0.png").read_bytes()[:200])
    good = os.path.relpath(folder / "images" / "2000_0.png", tmp_path)
    broken.write_text(f"image,site,Mass,Edema\n{good},s,1,0\ncut.png,s,-1,0\nabsent.png,s,0,1\n")
    done = command("check-data", *TASK, "--datalist", broken)
    assert done.status == 2
    lines = done.out.splitlines()
    assert any(line.startswith(f"{broken}, row 3, column image: ") and "damaged" in line for line in lines)
    assert any(line.startswith(f"{broken}, row 3, column Mass: '-1' is no label") for line in lines)
    assert any(line.startswith(f"{broken}, row 4, column image: ") and "not found" in line for line in lines)
    assert lines[-1] == "3 images: 3 problems"


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--images", 25), r"site chestxray14 has 24 training images, --images asks for 25; give --images 24 or fewer"),
        (("--image-size", 64), r"--image-size was 32 when this network was trained and is 64 now"),
        (("--split-by", "image"), r"--split-by was patient when this network was trained and is image now"),
        (("--labels", "Hernia"), r"site chestxray14 has no column 'Hernia'; there are: Effusion, Mass, Edema"),
        (("--momentum", 0.9), r"--momentum is for the optimiser sgd"),
        (("--imagenet", "x.pth"), r"--imagenet has no meaning for --method fta"),
        (("--policy-imagenet", "x.pth"), r"--policy-imagenet has no meaning for --method fta"),
        (("--patients", 2), r"--patients has no meaning for --task classification"),
        (("--features", 1), r"--features has no meaning for --task classification"),
        (("--patch-size", 64), r"--patch-size has no meaning for --task classification"),
        (("--spacing", 1, 1, 1), r"--spacing has no meaning for --task classification"),
        (("--target", "chexpert"), r"chexpert is a source data set of this network"),
        (("--target", "other"), r"no row has site 'other'"),
        (("--image-size", 16), r"--image-size is 16; give at least 32"),
    ],
)
def test_settings_that_cannot_be(adapt: Any, pretrained: Path, tmp_path: Path, words: Any, message: str) -> None:
    done = adapt("fta", tmp_path / "out", *words, source=pretrained)
    assert done.status == 2
    assert re.search(message, done.line), done.line
    assert not (tmp_path / "out").exists()


def test_a_split_that_is_named_already(command: Any, sets: Sets, tmp_path: Path) -> None:
    words = ("pretrain", *TASK, "--datalist", sets.source, "--image-size", 32, *SHORT)
    done = command(*words, "--split-by", "image", "--out", tmp_path / "given")
    assert f"warning: {sets.source} names the test images of {SOURCE}: --split-by image has no effect there" in done.err
    assert "--split-by" not in command(*words, "--out", tmp_path / "open").err


def test_flags_of_the_other_task(command: Any, heads: Any, tmp_path: Path) -> None:
    done = command("pretrain", *heads, "--image-size", 64, "--out", tmp_path / "out")
    assert done.status == 2
    assert "--image-size has no meaning for --task segmentation; leave it out" in done.line


def test_mmtl_needs_the_source_images(adapt: Any, sets: Sets, pretrained: Path, tmp_path: Path) -> None:
    done = adapt("mmtl", tmp_path / "out", source=pretrained)
    assert done.status == 2
    assert f"{sets.target}: holds no images of chexpert, which mmtl needs; give the datalist of the source" in done.line
    assert not (tmp_path / "out").exists()


def test_octl_needs_its_history(adapt: Any, pretrained: Path, tmp_path: Path) -> None:
    done = adapt("octl", tmp_path / "out", "--optimizer", "sgd", source=pretrained)
    assert done.status == 2
    assert "is the history of Adam; the optimiser here is SGD" in done.line
    (pretrained / "history.safetensors").unlink()
    done = adapt("octl", tmp_path / "out", source=pretrained)
    assert done.status == 2
    assert "there is no gradient history; pre-train with `mmtl-octl pretrain`" in done.line
    assert not (tmp_path / "out").exists()


def test_networks_of_something_else(command: Any, adapt: Any, sets: Sets, pretrained: Path, tmp_path: Path) -> None:
    unet = tmp_path / "unet"
    unet.mkdir()
    save_model(unet, ResidualUNet2d(width=2), PACKAGE, Model("ResidualUNet2d", 2, 1, "plain", None, "sgd", 0, ["s"]))
    done = adapt("fta", tmp_path / "out", source=unet)
    assert done.status == 2
    assert "is no classifier of mmtl-octl; give a run folder" in done.line
    assert adapt("fta", tmp_path / "tuned", source=pretrained).status == 0
    done = adapt("fta", tmp_path / "out", source=tmp_path / "tuned")
    assert done.status == 2
    assert "was fine-tuned on chestxray14; give a run of `pretrain`" in done.line
    done = command("predict", "--datalist", sets.target, "--model", pretrained, "--out", tmp_path / "out")
    assert done.status == 2
    assert "is no segmentation network of mmtl-octl" in done.line
    assert not (tmp_path / "out").exists()


def test_imagenet_weights_that_do_not_fit(command: Any, sets: Sets, tmp_path: Path) -> None:
    torch.save({"features.conv0.weight": torch.zeros(1)}, tmp_path / "w.pth")
    words = ("pretrain", *TASK, "--datalist", sets.source, "--image-size", 32, *SHORT, "--out", tmp_path / "out")
    done = command(*words, "--imagenet", tmp_path / "w.pth")
    assert done.status == 2
    assert f"{tmp_path / 'w.pth'}: has (1,) for 'conv0.weight'" in done.line
    done = command(*words, "--imagenet", tmp_path / "none.pth")
    assert done.status == 2
    assert "no such file" in done.line
    assert not (tmp_path / "out").exists()
    done = command(*words)
    assert done.status == 0
    assert "warning: no ImageNet weights (--imagenet)" in done.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "image,site,split,Mass\nabsent.png,s,train,1\n",
            r"row 2, column image: .*absent.png is not there; check the path",
        ),
        ("image,site,split,Mass\n{0},s,train,-1\n", r"row 2, column Mass: '-1' is no label; give 0 or 1"),
        ("image,site,split,Mass\n{0},s,test,1\n", r"site s has no image with split train"),
        (
            "image,subject,site,Mass\n{0},p,s,1\n",
            r"list.csv: site s, split train: 1 subject, at least 2 are needed; add scans of other subjects",
        ),
        ("image,site,Mass\n{0},s,1\n", r"row 2, column subject: the row names no subject"),
        ("image,site,split\n{0},s,train\n", r"site s has no label column"),
        ("picture,Mass\n{0},1\n", r"image"),
    ],
)
def test_datalists_that_cannot_be_used(command: Any, sets: Sets, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.csv"
    path.write_text(text.format(os.path.relpath(sets.target.parent / "images" / "2000_0.png", tmp_path)))
    done = command("pretrain", *TASK, "--datalist", path, *SHORT, "--out", tmp_path / "out")
    assert done.status == 2
    assert str(path) in done.line
    assert re.search(message, done.line), done.line
    assert not (tmp_path / "out").exists()


def test_a_damaged_picture_in_mid_training_is_one_line(command: Any, sets: Sets, tmp_path: Path) -> None:
    good = sets.target.parent / "images" / "2000_0.png"
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:150])
    path = tmp_path / "list.csv"
    path.write_text(f"image,site,split,Mass\ncut.png,s,train,1\n{os.path.relpath(good, tmp_path)},s,train,0\n")
    done = command("pretrain", *TASK, "--datalist", path, *SHORT, "--out", tmp_path / "out")
    assert done.status == 2
    assert f"{tmp_path / 'cut.png'}: " in done.err
    assert "damaged" in done.err


def test_keep_best_needs_validation_images_with_both_classes(
    adapt: Any, command: Any, sets: Sets, pretrained: Path, tmp_path: Path
) -> None:
    rows = [row for row in Datalist.read(sets.target) if row.split != "val"]
    path = Datalist(tuple(rows)).write(tmp_path / "list.csv")
    done = command("adapt", *TASK, "--datalist", path, "--target", TARGET, "--method", "fta", "--images", 8, "--keep", "best",
                   "--source-model", pretrained, *SHORT, "--out", tmp_path / "out")  # fmt: skip
    assert done.status == 2
    assert "--keep best needs validation images with both classes" in done.line


def test_labels_without_both_classes_are_named(
    command: Any, adapt: Any, sets: Sets, pretrained: Path, tmp_path: Path
) -> None:
    assert adapt("fta", tmp_path / "run", source=pretrained).status == 0
    rows = [row for row in Datalist.read(sets.target) if row.split == "test"]
    healthy = [row for row in rows if row.labels["Mass"] == "0"]
    path = Datalist(tuple(healthy)).write(tmp_path / "list.csv")
    done = command(
        "predict", *TASK, "--datalist", path, "--model", tmp_path / "run", "--device", "cpu", "--out", tmp_path / "out"
    )
    assert done.status == 0
    assert re.search(r"without both classes and therefore without AUC: .*Mass", done.err)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["auc"]["Mass"] is None


# --- resume ----------------------------------------------------------------------------------------------------------


SMALL_PROGRAM = """
import functools
from mmtl_octl import classification, cli
from mmtl_octl.classifiers import Classifier
classification.Classifier = functools.partial(Classifier, size=[4, [1, 1, 1, 1], 8])
cli.main()
"""
"""The command with the small network."""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
@pytest.mark.parametrize("method", ["pretrain", "mmtl", "octl", "spottune"])
def test_killed_and_resumed(command: Any, sets: Sets, tmp_path: Path, method: str) -> None:
    """Killed in mid-run in a process of its own, against the run that nothing happened to."""
    sizes = ("--batch-size", 4, "--log-every", 1, "--device", "cpu", "--checkpoint-every", 2)
    source = tmp_path / "source"

    def run(*words: object) -> None:
        done = command(*words)
        assert done.status == 0, done.err

    pretrain = ("pretrain", *TASK, "--datalist", sets.source, "--image-size", 32, *sizes)
    train: tuple[object, ...] = (*pretrain, "--epochs", 4, "--batches", 6)
    if method != "pretrain":
        run(*pretrain, "--epochs", 1, "--batches", 2, "--out", source)
        train = ("adapt", *TASK, "--datalist", sets.target, "--target", TARGET, "--method", method, "--images", 8,
                 "--source-model", source, "--epochs", 4, "--batches", 6, *sizes)  # fmt: skip
        train += ("--source-datalist", sets.source) if method == "mmtl" else ()
    whole, out = tmp_path / "whole", tmp_path / "stopped"
    run(*train, "--out", whole)
    program = [sys.executable, "-c", SMALL_PROGRAM, *map(str, train), "--out", str(out)]
    process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or len((out / "metrics.jsonl").read_text().splitlines()) < 5:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run(*train, "--out", out, "--resume")
    assert_same_run(out, whole)
    assert len(logged(out)) == 4 * 6
