"""Every verb on phantoms, and every mistake a person can make: one line, exit status 2, nothing half-written."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dart_core.checkpoint import load_weights, read_metadata
from dart_core.data.boxes import read_boxes
from dart_core.testing import assert_help_is_light
from sissi import commands, method
from sissi.detectors import build_detector, describe, load_detector


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def changed(source: Path, folder: Path, change, name: str = "list.csv") -> Path:
    """A list with absolute paths and changed rows."""
    rows = rows_of(source)
    for row in rows:
        row["image"] = str((source.parent / row["image"]).resolve())
    rows = change(rows) or rows
    path = folder / name
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_help_imports_no_torch():
    assert_help_is_light("sissi", "train")


# --- check-data ------------------------------------------------------------------------------------------------------


def test_check_data(cells, command):
    finished = command("check-data", "--boxes", cells["phase"])
    assert finished.status == 0
    lines = finished.out.splitlines()
    assert lines[0].startswith("12 pictures (6 train, 4 test, 2 val), ")
    assert lines[2] == "sizes: 64 x 64 (12); all are resized to a square"
    assert lines[-1] == "no problems"
    boxes = np.concatenate([picture.boxes for picture in read_boxes(cells["phase"])])
    touching = (boxes[:, 2:] >= 64).any(axis=1).sum()
    assert touching > 0
    assert f"note: {touching} boxes touch the right or bottom edge; `sissi train` drops them" in finished.err


def test_check_data_lists_every_problem(cells, command, tmp_path):
    (tmp_path / "text.png").write_text("no picture")

    def spoil(rows):
        rows[0] |= {"xmin": "9", "xmax": "3"}
        rows[1] |= {"ymin": "5", "ymax": "5"}
        rows[2] |= {"xmin": "70", "xmax": "80"}
        rows[3] |= {"xmin": "-4"}
        last, other = rows[-1]["image"], next(row["image"] for row in rows[::-1] if row["image"] != rows[-1]["image"])
        for row in rows:
            row["image"] = {last: str(tmp_path / "gone.png"), other: str(tmp_path / "text.png")}.get(
                row["image"], row["image"]
            )

    finished = command("check-data", "--boxes", changed(cells["phase"], tmp_path, spoil))
    assert finished.status == 2
    for words in (
        "list.csv, row 2: box [9, ", "has its corners swapped", "row 3: box", "has no area", "row 4: box",
        "lies outside of the picture (64 x 64)", "row 5: box", "reaches beyond the picture", "gone.png: file not found",
        "text.png: not a picture", "6 problems",
    ):  # fmt: skip
        assert words in finished.out


# --- weak-label ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", ["circles", "edges", "watershed"])
def test_weak_label(pipeline, cells, command, tmp_path):
    out = tmp_path / "weak.csv"
    words = ("weak-label", "--pictures", cells["smear"], "--pipeline", pipeline, "--split", "train", "--out", out)
    finished = command(*words)
    assert finished.status == 0
    assert f"weak labels: {out}:" in finished.err
    before, after = read_boxes(cells["smear"]), read_boxes(out)
    for a, b in zip(before, after, strict=True):
        assert a.split == b.split
        assert a.split == "train" or (a.boxes == b.boxes).all()
    again = command(*words)
    assert again.status == 2
    assert "is there already; --overwrite replaces it" in again.line


def test_variants_of_the_pipelines(cells, command, tmp_path, monkeypatch):
    """--rec and --grey reach the pipelines."""
    seen = []
    monkeypatch.setattr(commands, "weak_labels", lambda image, kind, **words: seen.append(words) or np.zeros((0, 4)))
    words = ("weak-label", "--pictures", cells["smear"], "--pipeline", "edges", "--rec", "min", "--grey", "correct")
    finished = command(*words, "--out", tmp_path / "weak.csv")
    assert "0 boxes in 12 pictures; 12 of them without any" in finished.err
    assert seen == [{"rec": "min", "grey": "correct"}] * 12


def test_weak_label_by_state(command, tmp_path):
    rng = np.random.default_rng(0)
    for state in ("alive", "dead", "inhib"):
        (tmp_path / "cells" / state).mkdir(parents=True)
        Image.fromarray(rng.integers(90, 130, (60, 80, 3), dtype=np.uint8)).save(
            tmp_path / "cells" / state / f"{state}1.png"
        )
    words = ("weak-label", "--pictures", tmp_path / "cells", "--pipeline", "by-state", "--out", tmp_path / "weak.csv")
    assert command(*words).status == 0
    assert [p.site for p in read_boxes(tmp_path / "weak.csv")] == ["alive", "dead", "inhib"]
    (tmp_path / "other").mkdir()
    Image.new("RGB", (60, 60)).save(tmp_path / "other" / "a.png")
    finished = command(
        "weak-label", "--pictures", tmp_path / "other", "--pipeline", "by-state", "--out", tmp_path / "b.csv"
    )
    assert finished.status == 2
    assert "the state of its cells is not known (other)" in finished.line
    assert not (tmp_path / "b.csv").exists()


def test_weak_labels_never_replace_their_list(cells, command, tmp_path):
    before = cells["smear"].read_text()
    words = ("weak-label", "--pictures", cells["smear"], "--out", cells["smear"], "--overwrite")
    assert "labels are new files: rename --out" in command(*words).line
    assert cells["smear"].read_text() == before
    assert "must end in .csv" in command("weak-label", "--pictures", cells["smear"], "--out", tmp_path / "a.txt").line


# --- train -----------------------------------------------------------------------------------------------------------


def test_train(cells, trained):
    about = describe(trained)
    assert (about.detector, about.size, about.method, about.epochs, about.seed) == ("small", 64, "SISSI (S)", 4, 0)
    metrics = json.loads((trained / "metrics.json").read_text())
    assert (metrics["steps"], metrics["cycles"], metrics["target_pictures"]) == (12, 2, 6)
    assert metrics["boxes_at_last"] > 0
    assert len(metrics["validation_losses"]) == 4
    assert metrics["best_epoch"] in (0, 1)
    labels = sorted((trained / "labels").iterdir())
    assert [path.name for path in labels] == ["epoch-0002.csv", "epoch-0003.csv"]
    assert sum(len(p.boxes) for p in read_boxes(labels[-1])) == metrics["boxes_at_last"]
    report = (trained / "report.html").read_text(encoding="utf-8")
    assert all(words in report for words in ("corrected 2 times", "Labels and what is learned from", "synthetic-like"))


def test_labels_on_disk_stay_as_they_are(cells, data, tiny, command, tmp_path):
    before = cells["weak"].read_bytes()
    words = ("--configuration", "baseline", "--epochs", 2, "--least-score", 0.01, "--skip-score", 0.01)
    assert command("train", *data, *tiny, *words, "--out", tmp_path / "run").status == 0
    assert cells["weak"].read_bytes() == before
    assert (tmp_path / "run" / "labels" / "epoch-0001.csv").is_file()


@pytest.mark.parametrize("configuration", ["baseline", "sissi-w", "plain-a", "a-sissi-w", "a-sissi-s"])
def test_configurations(configuration, data, tiny, command, tmp_path):
    """Memorisation at once: no epoch has a relative change of the slope of 0 or less, so that the flag is up as soon as it is asked."""
    words = (
        "--configuration",
        configuration,
        "--epochs",
        5,
        "--memorisation",
        0,
        "--least-score",
        0.01,
        "--skip-score",
        0.01,
        "--views",
        "one",
    )
    finished = command("train", *data, *tiny, *words, "--batch-size", 3, "--out", tmp_path / "run")
    assert finished.status == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    adele = configuration not in ("baseline", "sissi-w")
    assert (metrics["memorised_epoch"] is not None) == adele
    assert metrics["cycles"] == (1 if adele else 2)
    assert len(metrics["ap50_curve"]) == (6 if adele else 0)
    assert ("AP50 curve has slowed down" in finished.err) == adele
    assert ("back to the detector after epoch" in finished.err) != adele


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("--start", "never"), "mixed batch, no correction"),
        (("--learn-from", "source"), "source only"),
        (("--fusion", "nms"), "Baseline: NMS instead of fusion"),
        (("--views", "one", "--background", "weak", "--paste", "hard"), "Baseline: background weak, hard paste, one view"),
        (("--background", "strong", "--paste", "black", "--authors-tta"), "Baseline: background strong, black paste"),
        (("--no-augment", "--blur", "gaussian", "--colours", "bgr", "--background", "weak", "--paste", "normal"), "Baseline: background weak, normal paste"),
    ],
)  # fmt: skip
def test_further_baselines(words, name, data, tiny, command, tmp_path):
    recipe = ("--configuration", "baseline", "--epochs", 2, "--least-score", 0.01, "--skip-score", 0.01, *words)
    assert command("train", *data, *tiny, *recipe, "--out", tmp_path / "run").status == 0
    assert describe(tmp_path / "run").method == name
    corrected = "never" not in words and "source" not in words
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["cycles"] == int(corrected)


def test_workers_and_memory_change_nothing(data, tiny, command, tmp_path):
    recipe = (
        "--configuration",
        "sissi-s",
        "--epochs",
        2,
        "--views",
        "one",
        "--least-score",
        0.01,
        "--skip-score",
        0.01,
    )
    for name, words in (("a", ()), ("b", ("--workers", 2, "--memory"))):
        assert command("train", *data, *tiny, *recipe, *words, "--out", tmp_path / name).status == 0
    one, other = (load_weights(tmp_path / name / "model.safetensors")[0] for name in "ab")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_curve_that_never_slows_down(data, tiny, command, tmp_path, monkeypatch):
    """A straight line, as if the detector learned the labels for as long as it is trained."""
    values = itertools.count(0.05, 0.1)
    monkeypatch.setattr(method, "ap50", lambda found, truth: next(values))
    words = ("--configuration", "a-sissi-s", "--epochs", 5, "--batch-size", 6, "--out", tmp_path / "run")
    finished = command("train", *data, *tiny, *words)
    assert finished.status == 0
    assert "the AP50 curve did not slow down within 5 epochs: no label was corrected" in finished.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["memorised_epoch"], metrics["cycles"], len(metrics["ap50_curve"])) == (None, 0, 6)
    assert metrics["boxes_at_last"] == metrics["boxes_at_first"]
    assert "did not slow down" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert not (tmp_path / "run" / "labels").exists()


def test_a_correction_that_would_remove_every_box(data, tiny, command, tmp_path):
    words = ("--configuration", "sissi-s", "--epochs", 2, "--least-score", 1, "--views", "one")
    finished = command("train", *data, *tiny, *words, "--out", tmp_path / "run")
    assert finished.status == 0
    assert "nothing was detected in every picture: all keep their labels" in finished.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["boxes_at_last"] == metrics["boxes_at_first"]


def test_a_run_is_not_replaced_by_one_that_reads_its_labels(cells, trained, tiny, command):
    """--overwrite deletes a run; not the corrected labels that the new one would learn from."""
    labels = trained / "labels" / "epoch-0003.csv"
    before = labels.read_bytes()
    words = ("--source", cells["phase"], "--target", labels, *tiny, "--out", trained, "--overwrite")
    finished = command("train", *words)
    assert finished.status == 2
    assert "holds what --target names; give another --out" in finished.line
    words = ("--pictures", cells["smear"], "--model", trained, "--out", trained, "--overwrite")
    assert "holds what --model names" in command("predict", *words).line
    words = ("--readers", cells["smear"], "--predictions", labels, "--out", trained, "--overwrite")
    assert "holds what --predictions names" in command("evaluate", *words, "--split", "train").line
    assert labels.read_bytes() == before


def test_boxes_that_cannot_be_used_are_left_out_aloud(cells, tiny, command, tmp_path):
    def spoil(rows):
        rows[0] |= {"xmin": "9", "xmax": "3"}
        rows[1] |= {"ymin": "5", "ymax": "5"}
        rows[2] |= {"xmin": "70", "xmax": "80"}

    target = changed(cells["weak"], tmp_path, spoil)
    words = ("--start", "never", "--epochs", 1, "--out", tmp_path / "run")
    finished = command("train", "--source", cells["phase"], "--target", target, *tiny, *words)
    assert finished.status == 0
    assert (
        "boxes left out: 1 with swapped corners, 1 without an area, 1 outside of the picture (--edges clip)"
        in finished.err
    )


def test_boxes_that_are_cut_and_pictures_that_are_nearly_black_are_said(cells, tiny, command, tmp_path):
    """12 bits in a file of 16 have at most 15 of 255 grey values."""
    Image.fromarray((np.arange(64 * 64) % 4096).reshape(64, 64).astype(np.uint16)).save(tmp_path / "deep.png")

    def spoil(rows):
        rows[0] |= {"xmin": "50", "xmax": "80"}
        rows[1] |= {"ymin": "-4", "ymax": "30"}
        rows.append({**dict.fromkeys(rows[0], ""), "image": str(tmp_path / "deep.png"), "split": "train"})

    target = changed(cells["weak"], tmp_path, spoil)
    dark = "nearly black pictures: 1 (no grey value above 31 of 255)"
    assert f"note: {dark}" in command("check-data", "--boxes", target).err
    words = ("--start", "never", "--epochs", 1, "--out", tmp_path / "run")
    finished = command("train", "--source", cells["phase"], "--target", target, *tiny, *words)
    assert finished.status == 0
    assert "boxes cut to the picture: 2 that reached beyond it (--edges clip)" in finished.err
    assert dark in finished.err


def test_grey_16_bit_and_empty_pictures(cells, tiny, command, tmp_path):
    Image.fromarray((np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)).save(tmp_path / "deep.png")
    Image.new("L", (64, 64), 90).save(tmp_path / "grey.png")

    def add(rows):
        for name in ("deep.png", "grey.png"):
            rows.append({**dict.fromkeys(rows[0], ""), "image": str(tmp_path / name), "split": "train"})

    target = changed(cells["weak"], tmp_path, add)
    assert command("check-data", "--boxes", target).status == 0
    words = ("--configuration", "sissi-w", "--epochs", 2, "--views", "one", "--out", tmp_path / "run")
    finished = command("train", "--source", cells["phase"], "--target", target, *tiny, *words)
    assert finished.status == 0
    assert "pictures without a box: 2 of 8 of the target; what they show counts as background" in finished.err
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["target_pictures"] == 8


def test_coco_list_with_missing_pictures(cells, tiny, command, tmp_path):
    content = {
        "images": [{"id": 1, "file_name": "gone.png"}], "categories": [{"id": 1, "name": "cell"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}],
    }  # fmt: skip
    (tmp_path / "coco.json").write_text(json.dumps(content))
    words = ("train", "--source", cells["phase"], "--target", tmp_path / "coco.json", *tiny, "--out", tmp_path / "run")
    finished = command(*words)
    assert finished.status == 2
    assert f"coco.json, images[0]: no picture {tmp_path / 'gone.png'}; check the path" in finished.line
    content["annotations"][0]["category_id"] = 3
    (tmp_path / "coco.json").write_text(json.dumps(content))
    assert "annotations[0]: category_id 3 is not among the categories; there: 1" in command(*words).line
    assert not (tmp_path / "run").exists()


def test_a_training_that_diverges_says_so(data, tiny, command, tmp_path):
    words = ("--start", "never", "--epochs", 3, "--learning-rate", 1e12, "--out", tmp_path / "run")
    finished = command("train", *data, *tiny, *words)
    assert finished.status == 2
    assert "is not finite; train with a lower --learning-rate" in finished.last_line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--detector", "yolo"), "no detector 'yolo'; give one of small"),
        (("--size", 8), "--size is 8; give at least 32"),
        (("--zoom", 2, 1), "--zoom is 2 1"),
        (("--memorisation", 2), "--memorisation is 2; give a number from 0 to 1"),
        (("--classes", "nucleus"), "no box has the class 'nucleus'; classes there: cell"),
        (("--ignore", "cell"), "no usable box in any picture"),
        (("--init", "gone.pth"), "gone.pth"),
        (("--configuration", "sissi-s", "--epochs", 1), "--epochs is 1; a start by validation loss takes at least 2"),
        (("--source", "gone.csv"), "gone.csv: no such file or folder"),
        (("--device", "cuda:9"), "--device"),
        (("--configuration", "c-sissi"), "configuration"),
    ],
)
def test_refused_trainings(words, line, data, tiny, command, tmp_path):
    finished = command("train", *data, *tiny, *words, "--out", tmp_path / "run")
    assert finished.status == 2
    assert line in finished.line
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_weight_file(data, tiny, trained, command, tmp_path):
    """Weights of another detector's classes: all but the last layer is taken; files of other detectors are refused."""
    detector = build_detector("small", 64)
    state = detector.state_dict()
    for name in ("weight", "bias"):
        state[f"roi_heads.box_predictor.cls_score.{name}"] = torch.zeros(
            91, *state[f"roi_heads.box_predictor.cls_score.{name}"].shape[1:]
        )
    torch.save(state, tmp_path / "coco.pth")
    words = ("train", *data, *tiny, "--start", "never", "--epochs", 1, "--learning-rate", 0)
    assert command(*words, "--init", tmp_path / "coco.pth", "--out", tmp_path / "run").status == 0
    weights, _ = load_weights(tmp_path / "run" / "model.safetensors")
    assert torch.equal(weights["backbone.0.weight"], state["backbone.0.weight"])
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    finished = command(*words, "--init", tmp_path / "other.pth", "--out", tmp_path / "no")
    assert "other.pth: only 0 of " in finished.line
    assert not (tmp_path / "no").exists()


# --- predict ---------------------------------------------------------------------------------------------------------


def test_predict(cells, trained, predicted):
    found = read_boxes(predicted / "detections.csv", scores=True)
    truth = [p for p in read_boxes(cells["smear"]) if p.split == "test"]
    assert [p.image.resolve() for p in found] == [p.image.resolve() for p in truth]
    for picture in found:
        assert (picture.scores[:-1] >= picture.scores[1:]).all()
        assert picture.boxes.min(initial=0) >= 0
        assert picture.boxes.max(initial=0) <= 64
    assert json.loads((predicted / "metrics.json").read_text())["boxes"] == sum(len(p.boxes) for p in found)


def test_predict_a_folder_in_all_views(cells, trained, command, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (90, 50)).save(folder / "a.png")
    words = ("predict", "--pictures", folder, "--model", trained, "--views", "all", "--device", "cpu", "--out")
    assert command(*words, tmp_path / "out").status == 0
    assert len(read_boxes(tmp_path / "out" / "detections.csv")) == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--model", "gone"), "gone: no such file"), (("--split", "val", "--pictures", "gone"), "gone: no such file or folder"),
    ],
)  # fmt: skip
def test_refused_predictions(words, line, cells, trained, command, tmp_path):
    finished = command("predict", "--pictures", cells["smear"], "--model", trained, *words, "--out", tmp_path / "out")
    assert finished.status == 2
    assert line in finished.line
    assert not (tmp_path / "out").exists()


def test_a_damaged_picture_is_named_before_the_folder_is_touched(trained, command, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (40, 40)).save(folder / "a.png")
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:50])
    words = ("predict", "--pictures", folder, "--model", trained, "--device", "cpu", "--out", tmp_path / "out")
    assert "b.png: the picture is truncated or damaged" in command(*words).line
    assert not (tmp_path / "out").exists()


def test_a_detector_without_numbers(cells, trained, data, tiny, command, tmp_path):
    """It would find nothing, and say nothing."""
    from dart_core.checkpoint import save_tensors

    weights, path = load_weights(trained / "model.safetensors")[0], tmp_path / "nan.safetensors"
    name = "roi_heads.box_predictor.cls_score.bias"
    save_tensors(path, weights | {name: weights[name] * float("nan")}, read_metadata(trained / "model.safetensors"))
    words = ("predict", "--pictures", cells["smear"], "--model", path, "--device", "cpu", "--out", tmp_path / "out")
    assert f"nan.safetensors: {name} has values that are not finite" in command(*words).line
    words = ("train", *data, *tiny, "--start", "never", "--init", path, "--out", tmp_path / "out")
    assert f"nan.safetensors: {name} has values that are not finite" in command(*words).line
    assert not (tmp_path / "out").exists()


def test_a_foreign_file_is_no_detector(cells, command, tmp_path):
    from dart_core.checkpoint import save_tensors

    save_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)}, {})
    words = ("predict", "--pictures", cells["smear"], "--model", tmp_path / "a.safetensors", "--out", tmp_path / "out")
    assert "not a detector of this package" in command(*words).line


# --- evaluate --------------------------------------------------------------------------------------------------------


def test_evaluate(cells, predicted, command, tmp_path):
    """Detections and labels against two readers, of whom the second missed one cell in each picture."""

    def miss(rows):
        seen = set()
        return [row for row in rows if row["image"] in seen or seen.add(row["image"])]

    second = changed(cells["smear"], tmp_path, miss, "second.csv")
    words = (
        "evaluate",
        "--predictions",
        predicted,
        cells["weak"],
        "--readers",
        cells["smear"],
        second,
        "--table",
        "--out",
    )
    finished = command(*words, tmp_path / "out")
    assert finished.status == 0
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    by = {(row["method"], row["reader"]): row for row in content["means"]}
    assert by["weak", "smear"]["AP"] == 100  # its test boxes are the reader's
    assert by["weak", "smear"]["recall"] == 100
    assert by["weak", "second"]["AR"] == 100
    agreement = {(row["method"], row["reader"]): row for row in content["agreement_of_readers"]}
    assert agreement["smear", "second"]["recall"] == 100
    assert 0 < agreement["second", "smear"]["recall"] < 100
    assert ("SISSI (S)", "smear") in by
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert all(words in report for words in ("Readers against each other", "Printed in the paper", "A+SISSI (S)"))
    assert len(rows_of(tmp_path / "out" / "scores.csv")) == 4


def test_boxes_that_cannot_be_scored_are_left_out_aloud(cells, command, tmp_path):
    """A reader's boxes without area or with swapped corners: as if they were not there."""

    def spoil(rows):
        first = next(row for row in rows if row["split"] == "test")
        return [*rows, first | {"xmin": "9", "xmax": "3"}, first | {"ymin": "5", "ymax": "5"}]

    reader = changed(cells["smear"], tmp_path, spoil, "reader.csv")
    words = ("evaluate", "--predictions", cells["smear"], "--readers", reader, "--out", tmp_path / "out")
    finished = command(*words)
    assert finished.status == 0
    assert f"{reader}: boxes left out: 2 without an area or with swapped corners" in finished.err
    (row,) = json.loads((tmp_path / "out" / "metrics.json").read_text())["means"]
    assert (row["AP"], row["recall"]) == (100, 100)


def test_a_readers_boxes_outside_of_the_picture(cells, command, tmp_path):
    """Nobody can find them: as if they were not there. A reader without any box is said, too."""

    def spoil(rows):
        first = next(row for row in rows if row["split"] == "test")
        return [*rows, first | {"xmin": "70", "xmax": "80"}, first | {"ymin": "-9", "ymax": "-2"}]

    def empty(rows):
        names = {row["image"]: row for row in rows if row["split"] == "test"}
        return [row | dict.fromkeys(("xmin", "ymin", "xmax", "ymax"), "") for row in names.values()]

    reader, none = (changed(cells["smear"], tmp_path, *how) for how in ((spoil, "reader.csv"), (empty, "none.csv")))
    words = ("evaluate", "--predictions", cells["smear"], "--readers", reader, none, "--out", tmp_path / "out")
    finished = command(*words)
    assert finished.status == 0
    assert f"{reader}: boxes left out: 2 outside of the picture" in finished.err
    assert f"{none}: no box in any picture" in finished.err
    one, other = json.loads((tmp_path / "out" / "metrics.json").read_text())["means"]
    assert (one["AP"], one["recall"], other["AP"]) == (100, 100, -1)
    assert "smear, none: AP50 –" in finished.out


def test_refused_evaluations(cells, predicted, command, tmp_path):
    out = ("--out", tmp_path / "out")
    words = ("evaluate", "--readers", cells["smear"], "--predictions")
    assert "has no picture" in command(*words, predicted, "--split", "train", *out).line
    assert "holds no detections.csv" in command(*words, tmp_path, *out).line
    nan = tmp_path / "nan.csv"
    nan.write_text("image,xmin,ymin,xmax,ymax,score\na.png,1,1,2,2,nan\n")
    assert "nan.csv, row 2, column score: 'nan' is not finite" in command(*words, nan, *out).line
    assert not (tmp_path / "out").exists()


# --- The paper's data ------------------------------------------------------------------------------------------------


def coco(path: Path, pictures, fibre: bool) -> Path:
    """A reader's file, as CellLab's: cells, and if asked for a fibre in each picture."""
    listed = [(i, 1, box) for i, p in enumerate(pictures) for box in p.boxes.tolist()]
    listed += [(i, 2, [1, 1, 60, 9]) for i in range(len(pictures)) if fibre]
    content = {
        "images": [{"id": i, "file_name": p.image.name} for i, p in enumerate(pictures)],
        "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "fibre"}],
        "annotations": [
            {"id": n, "image_id": i, "category_id": k, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            for n, (i, k, (x1, y1, x2, y2)) in enumerate(listed)
        ],
    }
    path.write_text(json.dumps(content))
    return path


def voc(folder: Path, pictures) -> Path:
    """A reader's folder of Pascal VOC files."""
    (folder / "Annotations").mkdir(parents=True)
    for picture in pictures:
        corners = ("".join(f"<{k}>{v:g}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)) for box in picture.boxes)  # fmt: skip
        objects = "".join(f"<object><name>cell</name><bndbox>{inside}</bndbox></object>" for inside in corners)
        text = f"<annotation><filename>{picture.image.name}</filename>{objects}</annotation>"
        (folder / "Annotations" / f"{picture.image.stem}.xml").write_text(text)
    return folder


def test_the_papers_layout(cells, tiny, command, tmp_path):
    """Masks of Cellpose as source, folders like CellLab's as target, readers' boxes as COCO and Pascal VOC files."""
    for part, split in (("train", "train"), ("test", "val")):
        (tmp_path / "cellpose" / part).mkdir(parents=True)
        for number, picture in enumerate(p for p in read_boxes(cells["phase"]) if p.split == split):
            shutil.copy(picture.image, tmp_path / "cellpose" / part / f"{number:03d}_img.png")
            labels = np.zeros((64, 64), np.uint16)
            for name, (x1, y1, x2, y2) in enumerate(picture.boxes.astype(int), start=1):
                labels[y1:y2, x1:x2] = name
            Image.fromarray(labels).save(tmp_path / "cellpose" / part / f"{number:03d}_masks.png")
    weak = read_boxes(cells["weak"])
    for number, picture in enumerate(p for p in weak if p.split == "train"):
        state = ("alive", "dead", "inhib")[number % 3]
        for folder in (tmp_path / "celllab" / state, tmp_path / "celllab" / "weak_labels_reduced_nms" / state):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture.image, tmp_path / "celllab" / state / picture.image.name)
        lines = [f"{state} {' '.join(f'{value:g}' for value in box)}\n" for box in picture.boxes]
        (tmp_path / "celllab" / "weak_labels_reduced_nms" / state / f"{picture.image.stem}.txt").write_text(
            "".join(lines)
        )
    tests = [p for p in read_boxes(cells["smear"]) if p.split == "test"]
    (tmp_path / "celllab" / "test_labelled").mkdir()
    for picture in tests:
        shutil.copy(picture.image, tmp_path / "celllab" / "test_labelled" / picture.image.name)
    readers = (coco(tmp_path / "reader1.json", tests, True), coco(tmp_path / "reader2.json", tests, False), voc(tmp_path / "reader3", tests))  # fmt: skip

    finished = command("check-data", "--boxes", tmp_path / "cellpose")
    assert finished.status == 0
    assert "train: 6 of 540 pictures" in finished.err
    assert command("check-data", "--boxes", tmp_path / "celllab").out.startswith("10 pictures (6 train, 4 test), ")
    words = ("--source", tmp_path / "cellpose", "--target", tmp_path / "celllab", *tiny, "--configuration", "sissi-w")
    words = (*words, "--epochs", 2, "--batch-size", 3, "--views", "one", "--least-score", 0.01, "--skip-score", 0.01)
    assert command("train", *words, "--out", tmp_path / "run").status == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["source_pictures"], metrics["validation_pictures"], metrics["target_pictures"]) == (6, 2, 6)
    words = ("--pictures", tmp_path / "celllab", "--model", tmp_path / "run", "--device", "cpu")
    assert command("predict", *words, "--out", tmp_path / "found").status == 0
    words = ("--predictions", tmp_path / "found", "--readers", *readers, "--split", "all", "--out", tmp_path / "scores")
    assert command("evaluate", *words).status == 0
    content = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    scores = {row["reader"]: {name: row[name] for name in ("AP50", "AP75", "AP", "AR")} for row in content["means"]}
    assert scores["reader1"] == scores["reader2"] == scores["reader3"]  # fibres do not count
    assert len(content["agreement_of_readers"]) == 6
    assert all(row["AP"] == 100 for row in content["agreement_of_readers"])


# --- export ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_export_is_loaded_by_torchvision(data, command, tmp_path):
    from torchvision.models import detection

    words = ("--detector", "fasterrcnn_mobilenet_v3_large_320_fpn", "--size", 64, "--batch-size", 2, "--epochs", 1)
    run, out = tmp_path / "run", tmp_path / "detector.safetensors"
    assert command("train", *data, *words, "--start", "never", "--device", "cpu", "--out", run).status == 0
    assert command("export", "--model", run, "--out", out).status == 0
    about = json.loads(read_metadata(out)["torchvision"])
    other = getattr(detection, about.pop("detector"))(weights=None, weights_backbone=None, **about)
    other.load_state_dict(load_weights(out)[0])
    ours, _ = load_detector(run)
    x = [torch.rand(3, 64, 64)]
    with torch.no_grad():
        (one,), (two,) = ours(x), other.eval()(x)
    torch.testing.assert_close(one["boxes"], two["boxes"])
    torch.testing.assert_close(one["scores"], two["scores"])


def test_refused_exports(trained, command, tmp_path):
    words = ("export", "--model", trained, "--out")
    assert "torchvision has no detector 'small'" in command(*words, tmp_path / "a.safetensors").line
    assert "must end in .safetensors" in command(*words, tmp_path / "a.onnx").line
    (tmp_path / "a.safetensors").write_text("mine")
    assert "--overwrite replaces it" in command(*words, tmp_path / "a.safetensors").line
    assert (tmp_path / "a.safetensors").read_text() == "mine"
