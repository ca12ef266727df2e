"""The command `label`: a row for every file, whatever the file is."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dart_core.data.datalist import Datalist
from dart_core.data.images import read_image
from dart_core.data.phantoms import write_skin_lesions
from dart_core.errors import InputError
from skintone_debias import fitzpatrick_type, groh_ita, label_skin_tone
from skintone_debias.labelling import COLUMNS, Labellers
from skintone_debias.photos import LabelOptions, label_photo
from skintone_debias.tone import CORNERS, PATCH

Command = Callable[..., Any]
Skin = Callable[..., np.ndarray]
COLOURS = ((230, 190, 160), (210, 170, 140), (180, 140, 120), (160, 110, 80))
TYPES = (1, 2, 3, 6)
TOP = 8 + 24
"""First row of the pictures on a sheet, below their titles."""


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def by_name(path: Path) -> dict[str, dict[str, str]]:
    return {Path(row["image"]).name: row for row in read_csv(path)}


def uniform(*colour: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.full((*size, 3), colour, np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four plain pictures of types 1, 2, 3 and 6, one of them in a folder of its own."""
    folder = tmp_path / "photos"
    for name, colour in zip(("a.png", "b.png", "inner/c.png", "d.png"), COLOURS, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(uniform(*colour)).save(folder / name)
    return folder


def test_folder(command: Command, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "results" / "tones.csv"
    done = command("label", folder, "--out", out)
    assert done.status == 0, done.err
    counts = "1 of type 1, 1 of type 2, 1 of type 3, 1 of type 6"
    assert done.err.splitlines()[0] == f"4 of 4 pictures labelled: {counts}"
    rows = read_csv(out)
    assert list(rows[0]) == ["image", *COLUMNS]
    assert [Path(row["image"]).name for row in rows] == ["a.png", "b.png", "d.png", "c.png"]
    for row, kind, ita in zip(rows, (1, 2, 6, 3), (55.364, 46.917, 2.153, 34.846), strict=True):
        assert (out.parent / row["image"]).is_file()
        assert (row["fitzpatrick"], row["patch"], row["reason"]) == (str(kind), "0", "")
        assert float(row["ita"]) == pytest.approx(ita, abs=1e-3)
        assert {row[f"ita_{k}"] for k in range(8)} == {row["ita"]}
    assert {path.name for path in out.parent.iterdir()} == {
        "tones.csv", "tones.json", "tones.html", "tones_sheet.png", "tones_distribution.png",
    }  # fmt: skip
    numbers = json.loads((out.parent / "tones.json").read_text())
    assert (numbers["pictures"], numbers["labelled"]) == (4, 4)
    assert numbers["types"] == {"1": 1, "2": 1, "3": 1, "4": 0, "5": 0, "6": 1}
    report = (out.parent / "tones.html").read_text(encoding="utf-8")
    assert report.rstrip().endswith("</html>")
    assert "Research software" in report
    # The table is a datalist that a training can read.
    assert [row.labels["fitzpatrick"] for row in Datalist.read(out)] == ["1", "2", "6", "3"]


def test_values_are_those_of_the_function(command: Command, skin: Skin, tmp_path: Path) -> None:
    pictures = {}
    for seed, size in enumerate([(256, 256), (300, 450), (400, 260)]):
        picture = skin(seed, 20, height=size[0], width=size[1])
        Image.fromarray(picture).save(tmp_path / f"{seed}.png")
        Image.fromarray(picture).save(tmp_path / f"{seed}.jpg", quality=95)
        pictures |= {f"{seed}.png": picture, f"{seed}.jpg": np.asarray(Image.open(tmp_path / f"{seed}.jpg"))}
    out = tmp_path / "out" / "t.csv"
    assert command("label", *(tmp_path / name for name in pictures), "--out", out).status == 0
    rows = by_name(out)
    for name, picture in pictures.items():
        tone = label_skin_tone(picture)
        assert [float(rows[name][f"ita_{k}"]) for k in range(8)] == pytest.approx(tone.patch_itas, abs=6e-5)
        assert float(rows[name]["ita"]) == pytest.approx(tone.ita, abs=6e-5)
        assert (rows[name]["fitzpatrick"], rows[name]["patch"]) == (str(tone.fitzpatrick), str(tone.patch))


@pytest.mark.parametrize(
    ("method", "bands", "angle"),
    [("groh", "kinyanjui", None), ("groh", "empirical", "atan"), ("groh-full", "empirical", None)],
)
def test_groh(method: str, bands: Any, angle: Any, command: Command, skin: Skin, tmp_path: Path) -> None:
    picture = skin(5, 20, height=90, width=120)
    picture[:, :30] = (0, 0, 255)
    Image.fromarray(picture).save(tmp_path / "a.png")
    Image.fromarray(uniform(0, 0, 255)).save(tmp_path / "blue.png")
    words = ["--method", method, "--bands", bands, *(["--angle", angle] if angle else []), "--out", tmp_path / "t.csv"]
    done = command("label", tmp_path, *words)
    assert done.status == 0, done.err
    rows = by_name(tmp_path / "t.csv")
    expected = groh_ita(picture, method == "groh", angle=angle or "atan2")
    assert float(rows["a.png"]["ita"]) == pytest.approx(expected, abs=6e-5)
    assert rows["a.png"]["fitzpatrick"] == str(fitzpatrick_type(expected, bands))
    assert rows["a.png"]["patch"] == rows["a.png"]["ita_0"] == ""
    if method == "groh":
        assert rows["blue.png"]["reason"] == "no pixel of skin colour"
        assert rows["blue.png"]["ita"] == rows["blue.png"]["fitzpatrick"] == ""
        assert "1 of 2 pictures labelled" in done.err
    sheet = read_image(tmp_path / "t_sheet.png")
    assert (sheet == (0, 0, 0)).all(-1).any()  # titles, and what the mask blackens


def test_bad_files_become_rows(command: Command, skin: Skin, tmp_path: Path) -> None:
    """Everything a folder may hold; the good files get their labels, the others a reason."""
    folder = tmp_path / "photos"
    folder.mkdir()
    picture = skin(0, 3, height=64, width=80)
    good, colour = Image.fromarray(picture), (210, 170, 140)
    good.save(folder / "good.png")
    good.convert("RGBA").save(folder / "alpha.png")
    good.convert("CMYK").save(folder / "cmyk.jpg")
    good.quantize(64).save(folder / "palette.png")
    good.convert("L").save(folder / "grey.png")
    good.convert("1").save(folder / "bits.png")
    Image.fromarray(np.asarray(good.convert("L")).astype(np.uint16) * 257).save(folder / "grey16.png")
    Image.fromarray(np.full((64, 64), 1e9, np.float32)).save(folder / "float.tif")
    Image.new("RGB", (64, 64), "white").save(folder / "white.png")
    Image.new("RGB", (64, 64)).save(folder / "black.png")
    Image.new("RGB", (31, 200), colour).save(folder / "tiny.png")
    Image.new("RGB", (1, 1), colour).save(folder / "dot.png")
    Image.new("RGB", (32, 32), colour).save(folder / "small.png")
    frames = [Image.new("RGB", (64, 64), c) for c in ("red", "green", "blue")]
    frames[0].save(folder / "animated.webp", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "pages.tif", save_all=True, append_images=frames[1:])
    data = (folder / "good.png").read_bytes()
    (folder / "truncated.png").write_bytes(data[: len(data) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("This is no picture.")
    (folder / "notes.txt").write_text("Not looked at.")
    (folder / "folder.png").mkdir()
    out = tmp_path / "tones.csv"
    done = command("label", folder, folder / "notes.txt", "--out", out)
    assert done.status == 0, done.err
    assert "Traceback" not in done.err
    assert "5 of 19 pictures labelled" in done.err
    rows = by_name(out)
    expected = label_skin_tone(picture)
    for name in ("good.png", "alpha.png"):
        assert float(rows[name]["ita"]) == pytest.approx(expected.ita, abs=6e-5)
    labelled = {"good.png", "alpha.png", "cmyk.jpg", "palette.png", "small.png"}
    assert {name for name, row in rows.items() if row["fitzpatrick"]} == labelled
    assert {name for name, row in rows.items() if not row["reason"]} == labelled
    for name, words in {
        "grey.png": "the picture is grey, so it has no skin tone; give the colour picture",
        "bits.png": "is grey", "grey16.png": "is grey", "white.png": "is grey", "black.png": "is grey",
        "float.tif": "are floating-point numbers", "tiny.png": "31 x 200 pixels are too few; give at least 32 x 32",
        "dot.png": "1 x 1 pixels are too few", "animated.webp": "holds 3 pictures", "pages.tif": "holds 3 pictures",
        "truncated.png": "truncated or damaged", "empty.jpg": "not a picture", "text.jpg": "not a picture",
        "notes.txt": "not a picture",
    }.items():  # fmt: skip
        assert words in rows[name]["reason"]
        assert not any(rows[name][column] for column in COLUMNS if column != "reason")
    assert "Without label" in (tmp_path / "tones.html").read_text(encoding="utf-8")


def test_nothing_could_be_labelled(command: Command, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jpg").write_text("no picture")
    Image.new("L", (64, 64)).save(tmp_path / "grey.png")
    done = command("label", tmp_path, "--out", tmp_path / "out" / "tones.csv")
    assert done.status == 2
    assert done.line == (
        f"skintone-debias: error: {tmp_path / 'a.jpg'}: not a picture (and 1 other reason); none of the 3 files could be "
        "labelled; give a PNG, JPEG, TIFF or DICOM file"
    )
    assert not list((tmp_path / "out").iterdir())


def test_pre_sized(command: Command, tmp_path: Path) -> None:
    Image.fromarray(uniform(210, 170, 140, size=(256, 256))).save(tmp_path / "a.png")
    Image.fromarray(uniform(210, 170, 140, size=(224, 300))).save(tmp_path / "b.png")
    assert command("label", tmp_path, "--pre-sized", "--out", tmp_path / "t.csv").status == 0
    rows = by_name(tmp_path / "t.csv")
    assert rows["a.png"]["fitzpatrick"] == "2"
    assert rows["b.png"]["reason"] == "300 x 224 pixels, not 256 x 256; leave out --pre-sized"


def test_neutral_patches(command: Command, tmp_path: Path) -> None:
    picture = uniform(180, 140, 120, size=(256, 256))
    picture[:, :64] = 190
    Image.fromarray(picture).save(tmp_path / "a.png")
    grey = uniform(190, 190, 190, size=(256, 256))
    grey[128, 128] = (200, 10, 10)
    Image.fromarray(grey).save(tmp_path / "b.png")
    found = {}
    for flag in ("--no-reject-neutral", "--reject-neutral"):
        assert command("label", tmp_path, flag, "--out", tmp_path / "t.csv", "--overwrite").status == 0
        found[flag] = by_name(tmp_path / "t.csv")
        report = (tmp_path / "t.html").read_text(encoding="utf-8")
        assert ("is grey, bluish, black or white" in report) == (flag == "--no-reject-neutral")
    assert found["--no-reject-neutral"]["a.png"]["fitzpatrick"] == "1"
    assert found["--reject-neutral"]["a.png"]["fitzpatrick"] == "3"
    assert found["--reject-neutral"]["b.png"]["reason"] == "all eight patches are grey, bluish, black or white"
    assert found["--reject-neutral"]["b.png"]["fitzpatrick"] == found["--reject-neutral"]["b.png"]["patch"] == ""


# Datalists and human types


def test_datalist_with_truth(command: Command, folder: Path, tmp_path: Path) -> None:
    lines = ["image,subject,site,fitzpatrick,reason,label", "a.png,p,x,2,why,1", "b.png,q,y,4,,0", "inner/c.png,r,y,-1,,0",
             "d.png,s,x,6,,1", "missing.png,t,y,6,,1"]  # fmt: skip
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out.csv"
    done = command("label", folder / "list.csv", "--out", out, "--published")
    assert done.status == 0, done.err
    rows = read_csv(out)
    assert list(rows[0]) == ["image", "subject", "site", *COLUMNS, "given_fitzpatrick", "given_reason", "label"]
    assert [row["fitzpatrick"] for row in rows] == ["1", "2", "3", "6", ""]
    assert [row["given_fitzpatrick"] for row in rows] == ["2", "4", "-1", "6", "6"]
    assert rows[0]["given_reason"] == "why"
    assert rows[4]["reason"] == "file not found; check the path"
    table = {row["name"]: row for row in json.loads((tmp_path / "out.json").read_text())["agreement"]}
    ours = table["patches"]
    assert (ours["labelled"], ours["within_one"], ours["exact"]) == (4, 0.5, 0.25)
    assert ours["per_type"] == [None, 1, None, 0, None, 0.5]
    assert ours["mean_over_types"] == 0.5
    assert table["always type 5"]["within_one"] == 0.75
    report = (tmp_path / "out.html").read_text(encoding="utf-8")
    for words in (
        "always type 6",
        "Types by site",
        "human type",
        "Beside the human types",
        "Section 4.2",
        "60.61",
        "64.83",
    ):
        assert words in report


def test_truth_column(command: Command, folder: Path, tmp_path: Path) -> None:
    (folder / "list.csv").write_text("image,fitzpatrick_scale,tone\na.png,1,-1.0\nb.png,1,2.0\nd.png,-1,nan\n")

    def answers(*words: object) -> list[Any]:
        done = command("label", folder / "list.csv", "--out", tmp_path / "t.csv", "--overwrite", *words)
        assert done.status == 0, done.err
        return list(json.loads((tmp_path / "t.json").read_text())["agreement"][:1])

    assert answers()[0]["labelled"] == 2
    assert answers()[0]["within_one"] == 1
    assert answers("--truth", "tone")[0]["exact"] == 1
    assert answers("--truth", "none") == []


@pytest.mark.parametrize("cell", ["7", "0", "1.5", "light", "-2"])
def test_a_truth_that_is_no_type(cell: str, command: Command, folder: Path, tmp_path: Path) -> None:
    (folder / "list.csv").write_text(f"image,fitzpatrick\na.png,1\nb.png,{cell}\n")
    done = command("label", folder / "list.csv", "--out", tmp_path / "t.csv")
    assert done.status == 2
    assert done.line.endswith(
        f"list.csv, row 3, column fitzpatrick: '{cell}' is no Fitzpatrick type; write 1 to 6, or -1 for unknown"
    )
    assert not (tmp_path / "t.csv").exists()


ISIC = "image_name,patient_id,sex,age_approx,diagnosis,benign_malignant,target,tfrecord,year,marked,fitzpatrick,mclassd"


@pytest.fixture
def isic(tmp_path: Path) -> Path:
    """ISIC as the authors prepared it: eight pictures of 2017 and 2020, and one that is theirs for nothing (2019)."""
    root = tmp_path / "isic"
    lines = [ISIC]
    for i in range(9):
        year = 2019 if i == 8 else (2017, 2020)[i % 2]
        target, marked = i // 2 % 2, i // 4 % 2
        lines.append(f"I{i},IP_{i},male,30.0,NV,benign,{target},0,{year},{marked},6,0")
        folder = root / f"isic_{20 if year == 2020 else 19}_train_256"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(uniform(*COLOURS[1 + i % 3])).save(folder / f"I{i}.jpg", quality=95)
    (root / "isic_train_20-19-18-17.csv").write_text("\n".join(lines) + "\n")
    return root


def test_a_published_set_keeps_what_its_owners_say(command: Command, isic: Path, tmp_path: Path) -> None:
    done = command("label", isic, "--out", tmp_path / "tones.csv")
    assert done.status == 0, done.err
    assert "isic: read as isic2017, isic2020: 8 pictures" in done.err
    rows = by_name(tmp_path / "tones.csv")
    assert list(rows) == [f"I{i}.jpg" for i in range(8)]
    row = rows["I6.jpg"]
    assert (row["subject"], row["site"], row["split"]) == ("IP_6", "isic2017", "train")
    assert (row["label"], row["marked"], row["fold"], row["diagnosis"]) == ("1", "1", "0", "NV")
    assert [int(rows[f"I{i}.jpg"]["fitzpatrick"]) for i in range(8)] == [TYPES[1 + i % 3] for i in range(8)]
    # The owners' types are a labeller's: kept, but no human truth.
    assert row["given_fitzpatrick"] == "6"
    assert json.loads((tmp_path / "tones.json").read_text())["agreement"] == []


@pytest.mark.parametrize("config", ["table2_clgr", "two_heads_both"])
def test_a_published_set_is_labelled_and_trained_on(config: str, command: Command, isic: Path, tmp_path: Path) -> None:
    """The commands that the settings of Table 2 and of two heads name."""
    path = Path(__file__).parents[1] / "configs" / f"{config}.yaml"
    assert command("label", isic, "--out", tmp_path / "tones.csv").status == 0
    small = ("--encoder", "test_resnet", "--image-size", 32, "--epochs", 1, "--batch-size", 4, "--device", "cpu")
    words = ("--config", path, "--datalist", tmp_path / "tones.csv", *small)
    done = command("train", *words, "--out", tmp_path / "run")
    assert done.status == 0, done.err
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert found["pictures"] == 8
    assert found["nuisance"]["fitzpatrick"] == {"2": 3, "3": 3, "6": 2}
    if config == "two_heads_both":
        assert found["nuisance"]["marked"] == {"0": 4, "1": 4}


def test_published_test_sets_are_labelled(command: Command, tmp_path: Path) -> None:
    for kind in ("benign", "malign"):
        folder = tmp_path / "mclass" / "BenchmarkDermoscopic" / kind
        folder.mkdir(parents=True)
        Image.fromarray(uniform(210, 170, 140)).save(folder / f"{kind}.jpg", quality=95)
    assert command("label", tmp_path / "mclass", "--out", tmp_path / "t.csv").status == 0
    rows = by_name(tmp_path / "t.csv")
    assert {name: (row["site"], row["split"], row["label"]) for name, row in rows.items()} == {
        "benign.jpg": ("mclass-d", "test", "0"),
        "malign.jpg": ("mclass-d", "test", "1"),
    }
    done = command("label", tmp_path / "mclass", tmp_path, "--out", tmp_path / "t.csv")
    assert "mclass: a data set as published, and more beside it; give the data set as published alone" in done.line


def test_phantoms_get_their_true_types(command: Command, tmp_path: Path) -> None:
    datalist = write_skin_lesions(tmp_path / "data", pictures_per_site=12, size=256, seed=3)
    done = command("label", datalist, "--out", tmp_path / "t.csv", "--sheet", 0)
    assert done.status == 0, done.err
    ours = json.loads((tmp_path / "t.json").read_text())["agreement"][0]
    assert (ours["labelled"], ours["exact"]) == (24, 1)
    for row in read_csv(tmp_path / "t.csv"):
        assert float(row["ita"]) == pytest.approx(float(row["given_ita"]), abs=5)


# What is refused before any work


def test_refusals(command: Command, folder: Path, tmp_path: Path) -> None:
    (folder / "list.csv").write_text("image\na.png\n")
    out = tmp_path / "t.csv"
    for words, line in {
        ("label", "--out", out): "--pictures is missing",
        ("label", tmp_path / "none", "--out", out): "none: not found; check the path",
        ("label", folder / "list.csv", folder, "--out", out): "list.csv: a datalist, and more beside it; give the datalist alone",
        ("label", folder / "list.csv", "--truth", "tone", "--out", out): "list.csv: no row has a value in column 'tone'",
        ("label", folder, "--out", tmp_path / "tones"): "give the name of a table that ends in .csv",
        ("label", folder, "--out", folder / "list.csv", "--method", "grog"): "did you mean groh?",
        ("label", folder, "--method", "groh", "--pre-sized"): "--pre-sized has no meaning for --method groh",
        ("label", folder, "--method", "groh", "--reject-neutral"): "--reject-neutral has no meaning for --method groh",
        ("label", folder, "--workers", "-1"): "--workers is -1; give at least 0",
        ("label", folder / "list.csv", "--out", folder / "list.csv", "--overwrite"): "list.csv: is what the command reads",
        ("label", folder / "a.png", "--out", folder / "inner/../list.csv"): "is there already; --overwrite replaces it",
    }.items():  # fmt: skip
        done = command(*words)
        assert done.status == 2
        assert line in done.line
    (tmp_path / "empty").mkdir()
    assert "empty: holds no picture" in command("label", tmp_path / "empty", "--out", out).line
    (tmp_path / "x.html").mkdir()
    assert "x.html: is a folder; give another --out" in command("label", folder, "--out", tmp_path / "x.csv").line
    assert not out.exists()


def test_overwrite(command: Command, folder: Path) -> None:
    """Also into the folder itself, whose pictures are then still the same."""
    out = folder / "tones.csv"
    assert command("label", folder, "--out", out).status == 0
    before = out.read_text()
    (folder / "tones.csv").unlink()
    assert "tones.json: is there already" in command("label", folder, "--out", out).line
    assert command("label", folder, "--out", out, "--overwrite", "--sheet", 0).status == 0
    assert out.read_text() == before
    assert not (folder / "tones_sheet.png").exists()
    assert command("label", folder / "tones_distribution.png", "--out", out, "--overwrite").status == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_not_utf8(command: Command, folder: Path, tmp_path: Path) -> None:
    os.rename(folder / "a.png", os.fsencode(folder / "a") + b"\xff.png")
    assert command("label", folder, "--out", tmp_path / "t.csv").status == 0
    assert r"a\udcff.png" in by_name(tmp_path / "t.csv")


# Pictures


def test_sheet_shows_the_patches(command: Command, tmp_path: Path) -> None:
    picture = uniform(160, 110, 80, size=(256, 256))
    row, column = CORNERS[4]
    picture[row : row + PATCH, column : column + PATCH] = (230, 190, 160)
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert command("label", tmp_path, "--out", tmp_path / "t.csv").status == 0
    sheet = read_image(tmp_path / "t_sheet.png")
    green, red = ((sheet == colour).all(-1) for colour in ((0, 200, 0), (214, 39, 40)))
    scale, side = 200 / 256, round(PATCH * 200 / 256)
    for left in (8, 8 + 202):  # the picture, and the hair-free one beside it
        panel = np.s_[TOP : TOP + 200, left : left + 200]
        rows, columns = np.nonzero(green[panel])
        assert abs(rows.min() - scale * row) < 1
        assert abs(columns.min() - scale * column) < 1
        assert abs(np.ptp(rows) + 1 - side) <= 1
        assert red[panel].sum() > 7 * 4 * (side - 3)
    assert green.sum() == green[TOP : TOP + 200].sum()


def test_sheet_is_spread_over_the_list(command: Command, tmp_path: Path) -> None:
    for number in range(9):
        Image.fromarray(uniform(210, 170, 140 - number)).save(tmp_path / f"{number}.png")
    command("label", tmp_path, "--out", tmp_path / "t.csv", "--sheet", 3)
    sheet = read_image(tmp_path / "t_sheet.png")
    width = 2 * 202 + 8
    assert sheet.shape == (TOP + 200 + 8, 3 * width + 8, 3)
    shown = [sheet[TOP + 100, 8 + place * width + 100].tolist() for place in range(3)]
    assert shown == [[210, 170, 140], [210, 170, 136], [210, 170, 132]]


# Processes


def test_processes_change_nothing(folder: Path) -> None:
    files = [folder / name for name in ("a.png", "none.png", "b.png", "inner/c.png", "d.png")] * 5
    with Labellers(0) as none, Labellers(2) as two:
        alone, together = (list(labellers.label(files, LabelOptions())) for labellers in (none, two))
    assert [photo.fitzpatrick for photo in alone[:5]] == [1, -1, 2, 3, 6]
    for one, other in zip(alone, together, strict=True):
        assert one._replace(ita=0) == other._replace(ita=0)
        assert one.ita == other.ita or (math.isnan(one.ita) and math.isnan(other.ita))


def test_a_process_that_dies(folder: Path) -> None:
    with Labellers(1) as labellers:
        found = labellers.label([folder / "a.png"] * 400, LabelOptions())
        assert next(found).fitzpatrick == 1
        (child,) = multiprocessing.active_children()
        child.kill()
        with pytest.raises(InputError, match="ended from outside, perhaps for lack of memory; give fewer --workers"):
            list(found)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_stopped_by_a_signal(skin: Skin, tmp_path: Path) -> None:
    """One line, nothing written, no process left."""
    Image.fromarray(skin(height=1200, width=1600)).save(tmp_path / "a.png")
    for number in range(2000):
        (tmp_path / f"{number}.png").symlink_to(tmp_path / "a.png")
    words = ["label", tmp_path, "--workers", "2", "--out", tmp_path / "out" / "t.csv"]
    running = subprocess.Popen(
        [sys.executable, "-m", "skintone_debias", *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "out").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 143, err
    assert err == "skintone-debias: stopped by SIGTERM\n"
    assert not list((tmp_path / "out").iterdir())
    deadline = time.monotonic() + 20
    while living(running.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not living(running.pid)


def living(group: int) -> list[str]:
    """The processes of a group that have not ended."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = file.read_text().rpartition(")")[2].split()[:3]
            found += [file.parent.name] if int(its_group) == group and state != "Z" else []
    return found


def test_a_file_too_large_for_memory(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("skintone_debias.photos.middle_square", fail)
    assert label_photo(folder / "a.png", LabelOptions()).reason.startswith("out of memory")
