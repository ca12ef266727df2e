"""Which patches validate: drawn once, the same for every later command (specification 2.5, 5)."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from PIL import Image

from dart_core.checkpoint import save_model
from dart_core.data.datalist import Datalist
from dart_core.data.pictures import read_pictures, split_pictures
from stain_aglr.datasets import SPLIT_SEED, own_splits, site_parts
from stain_aglr.grid import VAL_SHARE
from stain_aglr.models import PACKAGE, Model
from stain_aglr.networks import PatchClassifier


@pytest.fixture
def write(tmp_path: Path):
    """Write a datalist of one laboratory: two patches, one of each class, for each of its subjects."""

    def made(subjects, name="list.csv", **columns) -> Path:
        (tmp_path / "patches").mkdir(exist_ok=True)
        lines = [",".join(["image", "label", "site", "subject", *columns])]
        for subject in subjects:
            for label in (0, 1):
                image = tmp_path / "patches" / f"{subject}_{label}.png"
                Image.new("RGB", (32, 32), (200, 80 + label, 160)).save(image)
                lines.append(",".join([f"patches/{image.name}", str(label), "RUMC", subject, *columns.values()]))
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return tmp_path / name

    return made


def names(part) -> set[str]:
    return {row.image.name for row in part.rows}


# Of two subjects' four patches, one may be all that a class has: not by image.
@pytest.mark.parametrize(
    ("split_by", "count"), [("subject", 2), *((by, n) for by in ("subject", "image") for n in (3, 5, 10))]
)
def test_a_fifth_is_drawn_and_at_least_one(split_by, count, write):
    subjects = [f"s{i}" for i in range(count)]
    parts, drawn = site_parts(Datalist.read(write(subjects)), "RUMC", split_by)
    units = count if split_by == "subject" else 2 * count
    expected = max(1, round(units / 5))
    assert len(drawn) == expected
    assert len(parts["val"]) == expected * (2 if split_by == "subject" else 1)
    assert len(parts["train"]) + len(parts["val"]) == 2 * count
    found = {row.subject for row in parts["val"].rows} if split_by == "subject" else names(parts["val"])
    assert {unit.removeprefix("patches/") for unit in drawn} == found


def test_the_draw_does_not_depend_on_the_order_of_rows(write):
    subjects = [f"s{i}" for i in range(10)]
    one = site_parts(Datalist.read(write(subjects)), "RUMC", "subject")[0]
    other = site_parts(Datalist.read(write(subjects[::-1])), "RUMC", "subject")[0]
    assert names(one["val"]) == names(other["val"])


def test_what_was_drawn_stays(write):
    """Also with more subjects, in another order, or where somebody has written splits since."""
    parts, drawn = site_parts(Datalist.read(write([f"s{i}" for i in range(10)])), "RUMC", "subject")
    later = [f"s{i}" for i in reversed(range(15))]
    for columns in ({}, {"split": "val"}):
        pictures = read_pictures(Datalist.read(write(later, **columns)), "RUMC", ("label",))
        assert names(own_splits(pictures, "subject", drawn)["val"]) == names(parts["val"])


def test_named_splits_are_kept_and_runs_without_a_stored_draw_draw_as_before(write):
    named = Datalist.read(write(["a", "b"], split="val"))
    pictures = read_pictures(named, "RUMC", ("label",))
    assert len(own_splits(pictures, "subject")["val"]) == 4
    pictures = read_pictures(Datalist.read(write([f"s{i}" for i in range(10)])), "RUMC", ("label",))
    before = split_pictures(pictures, "patient", 0.0, VAL_SHARE, SPLIT_SEED)
    assert {k: names(v) for k, v in own_splits(pictures, "subject").items()} == {k: names(v) for k, v in before.items()}


def test_only_one_subject(write):
    with pytest.raises(ValueError, match="no image with split val"):
        site_parts(Datalist.read(write(["a"])), "RUMC", "subject")


@pytest.mark.parametrize("split_by", ["subject", "image"])
def test_predict_scores_the_validation_patches_of_the_training(split_by, write, recipe, command, tmp_path):
    subjects = [f"s{i}" for i in range(10)]
    words = ("--out", tmp_path / "run", "--split-by", split_by, "--method", "vanilla")
    assert command("train", "--datalist", write(subjects), *recipe, *words).status == 0
    expected = names(site_parts(Datalist.read(write(subjects)), "RUMC", split_by)[0]["val"])
    words = ("--model", tmp_path / "run", "--split", "val", "--device", "cpu", "--out", tmp_path / "scores")
    assert command("predict", "--datalist", write(["new", *subjects[::-1]]), *words).status == 0
    rows = csv.DictReader((tmp_path / "scores" / "predictions.csv").read_text().splitlines())
    assert {Path(row["image"]).name for row in rows} == expected


def test_both_sides_of_the_patches_are_compared(tmp_path, command):
    Image.new("RGB", (64, 32), (200, 80, 160)).save(tmp_path / "wide.png")
    (tmp_path / "list.csv").write_text("image,label,site\nwide.png,1,CWZ\n")
    words = ("--datalist", tmp_path / "list.csv", "--model", tmp_path, "--device", "cpu", "--overwrite")
    for width, warned in ((64, False), (96, True), (None, True)):
        save_model(tmp_path, PatchClassifier(1), PACKAGE, Model("vanilla", "RUMC", 1, 32, False, 0, image_width=width))
        finished = command("predict", *words, "--out", tmp_path / "scores")
        assert finished.status == 0
        assert ("those of the training had" in finished.err) == warned
        assert ("give --image-size" in finished.err) == (width is None)
