"""Every verb on phantoms, and every mistake a person can make: one line, exit status 2, nothing half-written."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dart_core.checkpoint import load_weights, read_metadata
from dart_core.data.boxes import read_boxes
from dart_core.testing import assert_help_is_light
from sissi import commands, detectors, method
from sissi.detectors import build_detector, describe

CONFIGS = Path(__file__).parents[1] / "configs"
NAMED = "SISSI (S): least score 0.01, skip score 0.01, edges clip, detector small"
"""Method of the detector `trained`."""


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


def test_pictures_without_labels_stay_out_of_the_list(cells, command, tmp_path):
    """Of other splits: with boxes they keep them, without they would look like pictures without cells."""

    def hide(rows):
        boxes = dict.fromkeys(("xmin", "ymin", "xmax", "ymax"), "")
        return [row | boxes if row["split"] == "test" else row for row in rows]

    pictures = changed(cells["smear"], tmp_path, hide)
    words = (
        "weak-label",
        "--pictures",
        pictures,
        "--pipeline",
        "edges",
        "--split",
        "train",
        "--out",
        tmp_path / "weak.csv",
    )
    finished = command(*words)
    assert finished.status == 0
    assert "left out of the list: 4 pictures of other splits, without boxes" in finished.err
    assert {p.split for p in read_boxes(tmp_path / "weak.csv")} == {"train", "val"}
    words = ("evaluate", "--predictions", tmp_path / "weak.csv", "--readers", cells["smear"], "--out", tmp_path / "out")
    assert "has no picture" in command(*words).line


def test_nearly_black_pictures_are_named(trained, command, tmp_path):
    """Nobody sees anything in them, whatever is found there."""
    (tmp_path / "pictures").mkdir()
    for number in range(7):
        Image.new("L", (64, 64), 9).save(tmp_path / "pictures" / f"{number}.png")
    Image.new("L", (64, 64), 90).save(tmp_path / "pictures" / "grey.png")
    dark = "note: nearly black pictures: 0.png, 1.png, 2.png, 3.png, 4.png and 2 more (no grey value above 31 of 255)"
    words = ("--pictures", tmp_path / "pictures", "--out")
    assert dark in command("weak-label", *words, tmp_path / "weak.csv").err
    assert dark in command("predict", "--model", trained, "--device", "cpu", *words, tmp_path / "out").err


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

    test = tmp_path / "cells" / "test_labelled"
    test.mkdir()
    picture = np.full((60, 80, 3), 90, np.uint8)
    picture[15:40, 20:50] = 200
    Image.fromarray(picture).save(test / "a.png")
    words = ("--pipeline", "by-state", "--without-state", "edges", "--out", tmp_path / "all.csv")
    assert command("weak-label", "--pictures", tmp_path / "cells", *words).status == 0
    found = {p.split: p for p in read_boxes(tmp_path / "all.csv")}
    assert set(found) == {"train", "test"}
    assert len(found["test"].boxes) == 1


def test_weak_labels_never_replace_their_list(cells, command, tmp_path):
    before = cells["smear"].read_text()
    words = ("weak-label", "--pictures", cells["smear"], "--out", cells["smear"], "--overwrite")
    assert "labels are new files: rename --out" in command(*words).line
    assert cells["smear"].read_text() == before
    assert "must end in .csv" in command("weak-label", "--pictures", cells["smear"], "--out", tmp_path / "a.txt").line


# --- train -----------------------------------------------------------------------------------------------------------


def test_train(cells, trained):
    about = describe(trained)
    assert (about.detector, about.size, about.epochs, about.seed) == ("small", 64, 4, 0)
    assert about.method == NAMED
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
        (("--start", "never"), "mixed batch, no correction: edges clip, detector small"),
        (("--learn-from", "source"), "source only: edges clip, detector small"),
        (("--fusion", "nms"), "Baseline: NMS instead of fusion, least score 0.01, edges clip, detector small"),
        (("--views", "one", "--background", "weak", "--paste", "hard"), "Baseline: background weak, hard paste, one view, least score 0.01, skip score 0.01, edges clip, detector small"),
        (("--background", "strong", "--paste", "black", "--authors-tta"), "Baseline: background strong, black paste, views of one size, least score 0.01, skip score 0.01, edges clip, detector small"),
        (("--no-augment", "--blur", "gaussian", "--colours", "bgr", "--background", "weak", "--paste", "normal"), "Baseline: background weak, normal paste, least score 0.01, skip score 0.01, edges clip, no augmentation, detector small, colours bgr"),
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


def test_a_curve_that_slows_down_in_the_last_epoch(data, tiny, command, tmp_path):
    """The flag is up, but there is no next epoch in which labels would be corrected."""
    words = (
        "--configuration",
        "plain-a",
        "--epochs",
        4,
        "--memorisation",
        0,
        "--batch-size",
        6,
        "--out",
        tmp_path / "run",
    )
    finished = command("train", *data, *tiny, *words)
    assert finished.status == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["memorised_epoch"], metrics["cycles"]) == (3, 0)
    assert "the AP50 curve slowed down in the last epoch only: no label was corrected" in finished.err
    assert "from the next epoch on" not in finished.err
    assert "slowed down in the last epoch only, so that" in (tmp_path / "run" / "report.html").read_text(
        encoding="utf-8"
    )


def test_a_curve_that_is_never_asked(data, tiny, command, tmp_path):
    """Of three epochs none is epoch 3, whatever the curve does."""
    words = ("--configuration", "plain-a", "--epochs", 3, "--memorisation", 0, "--batch-size", 6, "--out", tmp_path / "run")  # fmt: skip
    finished = command("train", *data, *tiny, *words)
    assert finished.status == 0
    never = "is asked from epoch 3 on, which a training of 3 does not reach"
    assert f"the AP50 curve {never}: no label was corrected" in finished.err
    assert f"The curve {never}, so that" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["memorised_epoch"] is None


def test_the_source_alone_is_not_gone_back_from(data, tiny, command, tmp_path):
    """Whatever the row: the source-only detector is that of the last epoch."""
    words = ("train", *data, *tiny, "--learn-from", "source", "--epochs", 4)
    rows = {"a": ("--configuration", "baseline"), "b": ("--start", "never")}
    for name, row in rows.items():
        finished = command(*words, *row, "--out", tmp_path / name)
        assert finished.status == 0
        assert "back to the detector" not in finished.err
        assert json.loads((tmp_path / name / "metrics.json").read_text())["best_epoch"] is None
    one, other = (load_weights(tmp_path / name / "model.safetensors")[0] for name in rows)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_where_a_stopped_run_is(data, tiny, command, tmp_path, monkeypatch):
    """In the whole run, not in its epoch: 2 epochs of 3 steps."""
    monkeypatch.setattr(method.Trainer, "step", lambda self, step, epoch, batch: os.kill(os.getpid(), signal.SIGINT))
    finished = command("train", *data, *tiny, "--start", "never", "--epochs", 2, "--out", tmp_path / "run")
    assert finished.status == 130
    assert finished.last_line == "sissi: stopped by Ctrl-C after step 1 of 6; --resume continues"


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
    words = ("--source", cells["phase"], "--target", cells["weak"], *tiny, "--init", trained / "model.safetensors")
    assert "holds what --init names" in command("train", *words, "--out", trained, "--overwrite").line
    assert (trained / "model.safetensors").is_file()
    words = ("--pictures", cells["smear"], "--model", trained, "--out", trained, "--overwrite")
    assert "holds what --model names" in command("predict", *words).line
    words = ("--readers", cells["smear"], "--predictions", labels, "--out", trained, "--overwrite")
    assert "holds what --predictions names" in command("evaluate", *words, "--split", "train").line
    assert labels.read_bytes() == before


@pytest.mark.parametrize("kind", ["picture", "mask"])
def test_a_run_is_not_replaced_by_one_that_reads_its_pictures(kind, cells, trained, tiny, command, tmp_path):
    """Nor does `predict` delete them, although the list lies elsewhere."""
    out, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(trained, out)
    first = read_boxes(cells["weak"])[0].image
    labels = np.zeros((64, 64), np.uint8)
    labels[9:30, 9:30] = 1
    places = {name: (out if name == kind else elsewhere) / f"{name}.png" for name in ("picture", "mask")}
    shutil.copy(first, places["picture"])
    Image.fromarray(labels).save(places["mask"])
    target = elsewhere / "list.csv"
    target.write_text(f"image,mask,split\n{places['picture']},{places['mask']},train\n")
    refused = f"holds {places[kind]}, which a list names; give another --out"
    words = ("--out", out, "--overwrite")
    finished = command("train", "--source", cells["phase"], "--target", target, *tiny, *words)
    assert finished.status == 2
    assert refused in finished.line
    words = ("--pictures", target, "--split", "all", "--model", trained, "--device", "cpu", *words)
    assert refused in command("predict", *words).line
    assert places[kind].is_file()
    assert (out / "model.safetensors").is_file()


def test_a_picture_is_listed_once(cells, tiny, command, tmp_path):
    """Its labels are one set: a COCO file with two ids of a name, two Pascal VOC files of one, two ways to write a path."""
    pictures = [p for p in read_boxes(cells["smear"]) if p.split == "train"][:2]
    for picture in pictures:
        shutil.copy(picture.image, tmp_path / picture.image.name)
    name = pictures[0].image.name
    twins = [replace(pictures[0], boxes=picture.boxes) for picture in pictures]
    coco(tmp_path / "coco.json", twins, False)
    voc(tmp_path / "voc", pictures)
    for file in (tmp_path / "voc" / "Annotations").iterdir():
        file.write_text(file.read_text().replace(pictures[1].image.name, name))
    (tmp_path / "voc" / "JPEGImages").mkdir()
    shutil.copy(tmp_path / name, tmp_path / "voc" / "JPEGImages" / name)
    (tmp_path / "list.csv").write_text(f"image,xmin,ymin,xmax,ymax\n{name},9,9,30,30\n./voc/../{name},9,9,30,30\n")
    for target, place in (("coco.json", "coco.json, images[1]"), ("voc", f"{pictures[1].image.stem}.xml"), ("list.csv", "list.csv, row 3")):  # fmt: skip
        words = ("--target", tmp_path / target, *tiny, "--out", tmp_path / "run")
        finished = command("train", "--source", cells["phase"], *words)
        assert finished.status == 2
        assert f"{place}: picture " in finished.line
        assert f"{name} is there twice, before as " in finished.line
    assert not (tmp_path / "run").exists()


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
    dark = "nearly black pictures: deep.png (no grey value above 31 of 255)"
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
        (
            ("--configuration", "sissi-s", "--epochs", 3, "--supervised", 3),
            "--supervised is 3, so that no epoch is left for a correction; give fewer than the 3 of --epochs",
        ),
        (
            ("--configuration", "plain-a", "--paste", "black"),
            "--paste black without a background; nothing is pasted in this row",
        ),
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
    assert (NAMED, "smear") in by
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
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Readers against each other" in report
    assert ">-1" not in report


def test_lists_of_one_name_and_runs_of_one_seed(cells, predicted, command, tmp_path):
    """Lists are told apart by their folders; a run that is there twice is no second seed."""
    for name in "ab":
        (tmp_path / name).mkdir()
        changed(cells["weak"], tmp_path / name, lambda rows: rows)
    lists = (tmp_path / "a" / "list.csv", tmp_path / "b" / "list.csv")
    words = ("evaluate", "--readers", cells["smear"], "--out", tmp_path / "out", "--predictions")
    assert command(*words, *lists, cells["weak"]).status == 0
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())["means"]
    assert [(row["method"], row["runs"]) for row in rows] == [("a/list", 1), ("b/list", 1), ("weak", 1)]
    shutil.rmtree(tmp_path / "out")
    assert f"{NAMED} with seed 0 is there twice; give each run once" in command(*words, predicted, predicted).line
    assert "list is there twice" in command(*words, lists[0], lists[0]).line
    assert not (tmp_path / "out").exists()


def test_views_of_a_prediction_are_told_apart(cells, trained, predicted, command, tmp_path):
    words = ("--pictures", cells["smear"], "--model", trained, "--device", "cpu", "--views", "all")
    assert command("predict", *words, "--out", tmp_path / "all").status == 0
    words = ("--predictions", predicted, tmp_path / "all", "--readers", cells["smear"], "--out", tmp_path / "out")
    assert command("evaluate", *words).status == 0
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())["means"]
    assert [row["method"] for row in rows] == [NAMED, f"{NAMED} (detected in 20 views)"]


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

    # Weak labels scored directly (section 4): those of the test pictures, which no state is known of.
    words = (
        "--config",
        CONFIGS / "weak-label_celllab.yaml",
        "--pictures",
        tmp_path / "celllab",
        "--out",
        tmp_path / "weak.csv",
    )
    assert command("weak-label", *words).status == 0
    assert [p.split for p in read_boxes(tmp_path / "weak.csv")].count("test") == len(tests)
    words = (
        "--config",
        CONFIGS / "evaluate_table1.yaml",
        "--predictions",
        tmp_path / "weak.csv",
        "--readers",
        *readers,
    )
    assert command("evaluate", *words, "--out", tmp_path / "direct").status == 0


# --- export ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def alive(detector, scale):
    """Give batch norm the statistics of noise, without which nothing of a picture comes through a deep random network.

    With a small scale of the convolutions the variances are small, of which an epsilon is a part that shows.
    """
    torch.manual_seed(0)
    norms = [module for module in detector.backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for module in detector.backbone.body.modules():
        if isinstance(module, torch.nn.Conv2d) and module.bias is None:
            module.weight *= scale
    before = [(module.eps, module.momentum) for module in norms]
    for module in norms:
        module.eps, module.momentum = 1e-9, 1.0
    detector.backbone.train()(torch.rand(4, 3, 64, 64))
    for module, (module.eps, module.momentum) in zip(norms, before, strict=True):
        module.running_var.clamp_(min=scale**2 * 1e-3)
    for weights in detector.roi_heads.box_predictor.parameters():
        weights *= 0.05  # scores between 0 and 1


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 91])
def test_export_is_loaded_by_torchvision(classes, cells, data, command, tmp_path, monkeypatch):
    """By what the file says alone: pictures that are coloured and not square, their channels swapped; and batch norm without epsilon."""
    from torchvision.models import detection

    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    words = ("--detector", name, "--size", 64, "--colours", "bgr", "--score", 0, "--nms", 0.7, "--detections", 20)
    words = (*words, "--batch-size", 2, "--epochs", 1)
    monkeypatch.setattr(detectors, "_ZERO_EPS", (name,))
    torch.manual_seed(2)  # of random weights that find several boxes, with scores apart enough to keep their order
    made = detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=classes)
    alive(made, 1e-2 if classes == 91 else 1.0)
    state = made.state_dict()
    torch.save(state, tmp_path / "weights.pth")
    words = (*words, "--init", tmp_path / "weights.pth", "--learning-rate", 0)
    run, out = tmp_path / "run", tmp_path / "detector.safetensors"
    assert command("train", *data, *words, "--start", "never", "--device", "cpu", "--out", run).status == 0
    assert describe(run).zero_eps == (classes == 91)
    finished = command("export", "--model", run, "--out", out)
    assert finished.status == 0
    assert "channels blue, green, red, resized to 64 x 64 whatever their shape, values from 0 to 1" in finished.err
    about, pictures = (json.loads(read_metadata(out)[key]) for key in ("torchvision", "pictures"))
    assert pictures == {"colours": "bgr", "resize": [64, 64], "range": [0, 1]}
    other = getattr(detection, about.pop("detector"))(weights=None, weights_backbone=None, **about)
    other.load_state_dict(load_weights(out)[0])

    (tmp_path / "pictures").mkdir()
    image = np.asarray(Image.open(read_boxes(cells["smear"])[0].image).convert("RGB")).repeat(2, axis=1) // np.array(
        [1, 2, 4], np.uint8
    )
    Image.fromarray(image).save(tmp_path / "pictures" / "a.png")
    words = ("--pictures", tmp_path / "pictures", "--model", run, "--device", "cpu", "--out", tmp_path / "found")
    assert command("predict", *words).status == 0
    (found,) = read_boxes(tmp_path / "found" / "detections.csv", scores=True)
    height, width = image.shape[:2]
    framed = cv2.resize(image[..., ::-1], pictures["resize"], interpolation=cv2.INTER_AREA)
    with torch.no_grad():
        told, *wrong = (
            other.eval()([torch.from_numpy(given.transpose(2, 0, 1).copy()).float() / 255])[0]
            for given in (framed, framed[..., ::-1], image[..., ::-1])
        )
    assert len(found.boxes) > 3
    scale = torch.tensor([width, height, width, height]) / 64
    np.testing.assert_allclose(found.boxes, told["boxes"] * scale, atol=0.02)
    np.testing.assert_allclose(found.scores, told["scores"], atol=1e-4)
    for one in wrong:  # channels as they are, or the shape of the picture: neither goes unnoticed
        assert one["scores"].shape != told["scores"].shape or (one["scores"] - told["scores"]).abs().max() > 1e-3


def test_refused_exports(trained, command, tmp_path):
    words = ("export", "--model", trained, "--out")
    model = trained / "model.safetensors"
    before = model.read_bytes()
    for given in (trained, model):
        finished = command("export", "--model", given, "--out", model, "--overwrite")
        assert f"{model}: is the model itself; rename --out" in finished.line
    assert model.read_bytes() == before
    assert "torchvision has no detector 'small'" in command(*words, tmp_path / "a.safetensors").line
    assert "must end in .safetensors" in command(*words, tmp_path / "a.onnx").line
    (tmp_path / "a.safetensors").write_text("mine")
    assert "--overwrite replaces it" in command(*words, tmp_path / "a.safetensors").line
    assert (tmp_path / "a.safetensors").read_text() == "mine"
