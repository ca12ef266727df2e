"""`stain-aglr normalise` on phantoms and on every bad picture."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dart_core.checkpoint import save_model
from dart_core.cli import main
from dart_core.data.datalist import Datalist
from dart_core.data.images import read_image
from dart_core.data.phantoms import write_histology
from stain_aglr import MacenkoNormalizer, __version__
from stain_aglr.cli import COMMANDS, DESCRIPTION
from stain_aglr.models import PACKAGE, Model
from stain_aglr.networks import PatchClassifier
from stain_aglr.normalisation import save_normaliser, unmixing_of
from stain_aglr.normalisers import as_batch
from stain_aglr.timing import hundred_patches, seconds_per_hundred

Normalise = Callable[..., int]


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_histology(tmp_path_factory.mktemp("patches"), ("RUMC", "CWZ"), 8, 32)


@pytest.fixture
def normalise() -> Normalise:
    def run(*words: object) -> int:
        return main("stain-aglr", COMMANDS, __version__, DESCRIPTION, ["normalise", *map(str, words)])

    return run


def table(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "stains.csv").read_text().splitlines()))


def test_a_datalist_without_any_training(patches: Path, normalise: Normalise, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert normalise(patches, "--method", "macenko", "vahadane", "--out", out, "--time-repeats", 1) == 0
    lines = table(out)
    assert len(lines) == 2 * 16
    assert {line["status"] for line in lines} == {"ok"}
    raw = Datalist.read(patches)
    for method in ("macenko", "vahadane"):
        made = Datalist.read(out / method / "datalist.csv")
        assert [(row.site, row.subject, row.split, row.labels) for row in made] == [
            (row.site, row.subject, row.split, row.labels) for row in raw
        ]
    expected = MacenkoNormalizer().transform(np.array(Image.open(raw[0].image)))
    result = np.array(Image.open(out / lines[0]["output"]))
    assert np.abs(result.astype(int) - expected).max() <= 1
    assert {path.name for path in out.iterdir()} >= {"contact.png", "report.html", "timing.csv", "config.yaml"}
    assert {line["name"] for line in csv.DictReader((out / "timing.csv").read_text().splitlines())} == {
        "macenko",
        "vahadane",
    }


def test_bad_pictures_have_a_line_and_the_rest_goes_on(
    patches: Path, normalise: Normalise, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tissue = Image.open(Datalist.read(patches)[0].image)
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    tissue.save(folder / "good.png")
    tissue.save(folder / "good.tif")
    tissue.save(folder / "sub" / "good.png")
    tissue.convert("RGBA").save(folder / "rgba.png")
    tissue.convert("CMYK").save(folder / "cmyk.tif")
    tissue.convert("L").save(folder / "grey.png")
    Image.fromarray(np.full((32, 32), 30000, np.uint16)).save(folder / "sixteen.png")
    Image.new("RGB", (1, 1), (150, 100, 170)).save(folder / "tiny.png")
    Image.new("RGB", (32, 32), "white").save(folder / "white.png")
    Image.new("RGB", (32, 32), "black").save(folder / "black.png")
    tissue.save(folder / "animated.webp", save_all=True, append_images=[tissue.rotate(90)])
    (folder / "truncated.png").write_bytes((folder / "good.png").read_bytes()[:900])
    (folder / "text.png").write_text("no picture")
    out = tmp_path / "out"
    assert normalise(folder, "--out", out, "--workers", 2, "--method", "vahadane") == 0
    states = {Path(line["image"]).relative_to(folder).as_posix(): line["status"] for line in table(out)}
    assert {states[name] for name in ("grey.png", "sixteen.png", "tiny.png", "white.png", "black.png")} == {"unchanged"}
    out = tmp_path / "macenko"
    assert normalise(folder, "--out", out, "--workers", 2) == 0
    states = {Path(line["image"]).relative_to(folder).as_posix(): line for line in table(out)}
    assert {name for name, line in states.items() if line["status"] == "ok"} == {
        "good.png", "good.tif", "sub/good.png", "rgba.png", "cmyk.tif"
    }  # fmt: skip
    for name in ("grey.png", "sixteen.png", "tiny.png", "white.png", "black.png"):
        assert states[name]["status"] == "unchanged"
        assert "no stained tissue" in states[name]["reason"]
    assert "holds 2 pictures" in states["animated.webp"]["reason"]
    assert "truncated or damaged" in states["truncated.png"]["reason"]
    assert "not a picture" in states["text.png"]["reason"]
    assert len({line["output"] for line in states.values() if line["output"]}) == 10
    assert "10 of 13 pictures" in capsys.readouterr().err
    assert not list(out.rglob(".tmp-*"))


def test_stains_that_may_be_swapped_are_pointed_out(
    normalise: Normalise, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two stains with reds 0.02 apart are told apart, with reds 0.01 apart not for sure."""
    rng = np.random.default_rng(0)
    amounts = rng.gamma(1.0, 0.5, (64, 64, 2))
    (tmp_path / "in").mkdir()
    for name, red in (("far", 0.45), ("near", 0.285)):
        stains = np.array([[red, 0.75, 0.58], [0.28, 0.92, 0.27]])
        stains /= np.linalg.norm(stains, axis=1, keepdims=True)
        picture = (255 * np.exp(-amounts @ stains)).round().astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / "in" / f"{name}.png")
    assert normalise(tmp_path / "in", "--method", "macenko", "--out", tmp_path / "out") == 0
    lines = {Path(line["image"]).stem: line for line in table(tmp_path / "out")}
    assert float(lines["near"]["h_red"]) - float(lines["near"]["e_red"]) < 0.02
    assert "may be swapped" in lines["near"]["reason"]
    assert (lines["far"]["status"], lines["far"]["reason"]) == ("ok", "")
    assert "of these perhaps swapped" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "macenko: in 1 pictures the two stains are about equally red" in " ".join(
        "".join(capsys.readouterr()).split()
    )


def test_runs_of_one_method_do_not_write_over_each_other(
    patches: Path, normalise: Normalise, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs of macenko and macenko itself; one run alone keeps its method as name."""
    rows = Datalist.read(patches)
    for number, name in enumerate(("one", "two", "sub/one")):
        folder = tmp_path / name
        save_model(folder, PatchClassifier(1), PACKAGE, Model("macenko", "RUMC", 1, 32, False, 0))
        save_normaliser(folder / "normaliser", unmixing_of("macenko", reference=rows[number].image))
    runs = ("--model", tmp_path / "one", tmp_path / "two")
    assert normalise(patches, *runs, "--method", "macenko", "--out", tmp_path / "out", "--time-repeats", 1) == 0
    lines = table(tmp_path / "out")
    assert len({line["output"] for line in lines}) == len(lines) == 3 * 16
    assert {line["method"] for line in lines} == {"macenko", "one", "two"}
    for name, reference in (("one", rows[0]), ("two", rows[1])):
        way = unmixing_of("macenko", reference=reference.image)
        line = next(line for line in lines if line["method"] == name)
        made = way.how.normalise_batch(as_batch(read_image(rows[0].image)))[0].permute(1, 2, 0).numpy()
        assert (read_image(tmp_path / "out" / line["output"]) == made).all()
        assert len(Datalist.read(tmp_path / "out" / name / "datalist.csv")) == 16
    assert normalise(patches, "--model", tmp_path / "one", "--out", tmp_path / "alone") == 0
    assert {line["method"] for line in table(tmp_path / "alone")} == {"macenko"}
    capsys.readouterr()
    same = ("--model", tmp_path / "one", tmp_path / "sub" / "one")
    assert normalise(patches, *same, "--out", tmp_path / "refused") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "rename the run's folder" in line
    assert not (tmp_path / "refused").exists()


def test_the_time_of_table_2_is_that_of_the_classifier(
    datalist: Path, trained: Path, normalise: Normalise, tmp_path: Path
) -> None:
    """Stain-AgLr needs no generator to classify."""
    out = tmp_path / "out"
    assert normalise(datalist, "--model", trained, "--device", "cpu", "--out", out, "--time-repeats", 1) == 0
    names = [line["name"] for line in csv.DictReader((out / "timing.csv").read_text().splitlines())]
    assert names == ["stain-aglr, classification", "stain-aglr, generator (not needed to classify)"]


def test_refusals(patches: Path, normalise: Normalise, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    white = tmp_path / "white" / "white.png"
    white.parent.mkdir()
    Image.new("RGB", (32, 32), "white").save(white)
    text = tmp_path / "text.png"
    text.write_text("no picture")
    for words, message in (
        ((patches, "--reference", white), "shows no stained tissue"),
        ((white.parent, "--method", "vahadane"), "no picture can serve as the reference"),
        ((patches, "--reference", white, "--reference-from-mean"), "contradict"),
        ((patches, "--model", tmp_path), "holds no model.safetensors"),
        ((tmp_path / "absent",), "not found"),
        ((tmp_path / "absent.png",), "absent.png: file not found"),
        ((text,), "text.png: not a picture"),
        ((patches, "--method", "reinhard"), "not one of"),
    ):
        assert normalise(*words, "--out", out) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
        assert not out.exists()


def test_one_picture(patches: Path, normalise: Normalise, tmp_path: Path) -> None:
    assert normalise(Datalist.read(patches)[0].image, "--out", tmp_path / "out") == 0
    assert [line["status"] for line in table(tmp_path / "out")] == ["ok"]


def test_nothing_readable_is_exit_2(normalise: Normalise, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "text.png").write_text("no picture")
    assert normalise(folder, "--out", tmp_path / "out") == 2
    assert table(tmp_path / "out")[0]["status"] == "failed"


def test_timing_takes_100_patches_of_128() -> None:
    patches = hundred_patches(
        [torch.zeros(3, 40, 300, dtype=torch.uint8), torch.full((3, 200, 200), 9, dtype=torch.uint8)]
    )
    assert patches.shape == (100, 3, 128, 128)
    assert patches.dtype == torch.uint8
    assert patches[1::2].eq(9).all()
    calls: list[Any] = []
    (found,) = seconds_per_hundred({"one": calls.append}, patches, 3)
    assert len(calls) == 4
    assert found.fastest <= found.seconds <= found.slowest
    assert found.repeats == 3
