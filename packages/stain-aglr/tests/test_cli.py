"""Every verb on phantoms, and every mistake a person can make: one line, exit status 2, nothing half-written."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dart_core.checkpoint import save_model, save_weights
from dart_core.data.images import read_image
from dart_core.metrics import roc_auc
from dart_core.testing import assert_help_is_light
from stain_aglr.models import PACKAGE, load_generator, load_model

METHODS = ("vanilla", "macenko", "vahadane", "hed", "hed-reg", "hed-cons", "stain-aglr")


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def changed(datalist: Path, folder: Path, change) -> Path:
    """The datalist with absolute paths and changed rows."""
    rows = rows_of(datalist)
    for row in rows:
        row["image"] = str((datalist.parent / row["image"]).resolve())
    rows = change(rows) or rows
    path = folder / "list.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_help_imports_no_torch():
    assert_help_is_light("stain_aglr", "train")


def test_a_run_says_its_options(datalist, recipe, command, tmp_path):
    """Two networks of one method and seed must not be averaged; files from before options were kept still load."""
    words = ("--method", "hed", "--strength", 0.2, "--max-epochs", 1, "--out", tmp_path / "run")
    assert command("train", "--datalist", datalist, *recipe, *words).status == 0
    network, model = load_model(tmp_path / "run")
    assert model.name == "hed (strength 0.2)"
    old = {key: value for key, value in dataclasses.asdict(model).items() if key != "options"}
    save_weights(tmp_path / "old.safetensors", network, {PACKAGE: json.dumps(old)})
    assert load_model(tmp_path / "old.safetensors")[1].name == "hed"


@pytest.mark.parametrize("method", METHODS)
def test_train_and_predict(method, datalist, recipe, command, tmp_path):
    assert command("train", "--datalist", datalist, *recipe, "--method", method, "--out", tmp_path / "run").status == 0
    network, model = load_model(tmp_path / "run")
    assert (model.method, model.site, model.width, model.image_size, model.seed) == (method, "RUMC", 2, 32, 0)
    assert not network.training
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["best_epoch"] == model.epoch
    assert metrics["validation_loss"] == pytest.approx(model.validation_loss)
    assert (tmp_path / "run" / "generator.safetensors").exists() == (method in ("hed-reg", "stain-aglr"))
    if method in ("hed-reg", "stain-aglr"):
        assert load_generator(tmp_path / "run")(torch.zeros(1, 32, 1, 1)).shape == (1, 3, 32, 32)
    assert not list((tmp_path / "run").glob("*.npy"))
    words = ("--datalist", datalist, "--model", tmp_path / "run", "--device", "cpu", "--out", tmp_path / "scores")
    assert command("predict", *words).status == 0
    scores = rows_of(tmp_path / "scores" / "predictions.csv")
    assert {(row["site"], row["split"]) for row in scores} == {("RUMC", "val"), ("RUMC", "test"), ("CWZ", "test")}
    assert sum(row["site"] == "CWZ" for row in scores) == 24
    auc = json.loads((tmp_path / "scores" / "metrics.json").read_text())["auc"]
    other = [row for row in scores if row["site"] == "CWZ"]
    label, score = (np.array([[float(row[key])] for row in other]) for key in ("label", "score"))
    assert auc["CWZ"] == pytest.approx(float(roc_auc(label, score)[0]))
    if method not in ("vanilla", "hed", "hed-cons"):
        assert (
            command(
                "normalise", datalist, "--model", tmp_path / "run", "--device", "cpu", "--out", tmp_path / "made"
            ).status
            == 0
        )
        made = rows_of(tmp_path / "made" / "stains.csv")
        assert len(made) == len(rows_of(datalist))
        assert {(row["method"], row["status"]) for row in made} == {(method, "ok")}
        given, found = (
            read_image(path) for path in (datalist.parent / made[0]["image"], tmp_path / "made" / made[0]["output"])
        )
        assert given.shape == found.shape
        assert (given != found).any()


def test_training_starts_from_the_same_weights_with_every_method(datalist, recipe, command, tmp_path, monkeypatch):
    import stain_aglr.commands

    seen = {}
    train = stain_aglr.commands.train_network

    def spy(run, network, batches, method, *rest):
        seen[method] = {key: value.clone() for key, value in network.patch_classifier.state_dict().items()}
        return train(run, network, batches, method, *rest)

    monkeypatch.setattr(stain_aglr.commands, "train_network", spy)
    for method in ("vanilla", "macenko", "stain-aglr"):
        assert (
            command("train", "--datalist", datalist, *recipe, "--method", method, "--out", tmp_path / method).status
            == 0
        )
    for other in ("macenko", "stain-aglr"):
        assert all(torch.equal(seen["vanilla"][key], seen[other][key]) for key in seen["vanilla"])


def test_other_recipes(datalist, recipe, command, tmp_path):
    words = ("--balanced", "--spatial", "rigid", "--space", "od", "--quantise", "none", "--ce-on", "altered", "--detach-target",
             "--form", "element", "--lambda1", 0, "--lambda2", 1, "--accumulate", 2, "--image-size", 64)  # fmt: skip
    assert command("train", "--datalist", datalist, *recipe, *words, "--out", tmp_path / "run").status == 0
    _, model = load_model(tmp_path / "run")
    options = "ce on altered, detach target, form element, space od, quantise none, spatial rigid, balanced"
    assert (model.name, model.image_size, model.resized) == (f"stain-aglr λ1=0 λ2=1 ({options})", 64, True)
    out = ("--datalist", datalist, "--model", tmp_path / "run", "--device", "cpu", "--out", tmp_path / "scores")
    assert command("predict", *out).status == 0  # resized like the training's
    wrong = command("predict", *out, "--image-size", 32, "--overwrite")
    assert wrong.status == 2
    assert "--image-size was 64 when this network was trained and is 32 now" in wrong.line


def test_layers_that_the_paper_leaves_open(datalist, recipe, command, tmp_path):
    words = ("--halving", "first", "--relu-logits", "--upsampling", "bilinear")
    assert command("train", "--datalist", datalist, *recipe, *words, "--out", tmp_path / "run").status == 0
    network, model = load_model(tmp_path / "run")
    assert [layer.stride for layer in network.features.stages if isinstance(layer, torch.nn.Conv2d)][:2] == [
        (2, 2),
        (1, 1),
    ]
    assert network(torch.rand(50, 3, 32, 32)).min() >= 0
    modes = {layer.mode for layer in load_generator(tmp_path / "run").stages if isinstance(layer, torch.nn.Upsample)}
    assert modes == {"bilinear"}
    assert model.name == "stain-aglr halving=first relu_logits=True upsampling=bilinear"
    words = ("--datalist", datalist, "--model", tmp_path / "run", "--device", "cpu", "--out", tmp_path / "scores")
    assert command("predict", *words).status == 0


def test_files_that_say_nothing_of_layers_and_draws_have_the_default_ones(tmp_path):
    from dart_core.checkpoint import save_weights
    from stain_aglr.networks import PatchClassifier

    about = {"method": "hed", "site": "RUMC", "width": 1, "image_size": 32, "resized": False, "seed": 0, "epoch": 3,
             "validation_loss": 0.5, "lambda1": 0.0, "lambda2": 0.0, "split_by": "subject"}  # fmt: skip
    save_weights(tmp_path / "model.safetensors", PatchClassifier(1), {"stain-aglr": json.dumps(about)})
    network, model = load_model(tmp_path)
    assert (model.sides, model.validation, model.name) == ((32, 32), None, "hed")
    strides = [layer.stride for layer in network.features.stages if isinstance(layer, torch.nn.Conv2d)]
    assert strides == [(1, 1), (2, 2)] * 5
    assert not network.classifier.relu_logits


@pytest.mark.parametrize("method", ["macenko", "vahadane"])
def test_a_reference_of_ones_own(method, datalist, recipe, command, tmp_path):
    from stain_aglr import MacenkoNormalizer, VahadaneNormalizer
    from stain_aglr.normalisation import load_normaliser

    file = datalist.parent / next(row["image"] for row in rows_of(datalist) if row["site"] == "CWZ")
    flags = ("--method", method, "--reference", file, *(["--standardise-luminosity"] if method == "vahadane" else []))
    assert command("train", "--datalist", datalist, *recipe, *flags, "--out", tmp_path / "run").status == 0
    stored = load_normaliser(tmp_path / "run" / "normaliser")
    expected = MacenkoNormalizer() if method == "macenko" else VahadaneNormalizer(True)
    expected.fit(read_image(file))
    np.testing.assert_array_equal(stored.how.stain_matrix, expected.stain_matrix)
    np.testing.assert_array_equal(stored.reference.permute(1, 2, 0), read_image(file))
    if method == "vahadane":
        assert stored.how.standardise_luminosity
    Image.new("RGB", (32, 32), "white").save(tmp_path / "white.png")
    flags = (*flags, "--reference", tmp_path / "white.png")
    refused = command("train", "--datalist", datalist, *recipe, *flags, "--out", tmp_path / "other")
    assert refused.status == 2
    assert "white.png: shows no stained tissue" in refused.line
    assert not (tmp_path / "other").exists()


def test_features_from_random_weights_are_pointed_out(capsys):
    from stain_aglr.commands import _check_backbone
    from stain_aglr.settings import GanTraining

    _check_backbone(GanTraining(gan_size=32, gan_backbone="test_resnet"))
    assert "without --gan-weights" in capsys.readouterr().err


def test_check_data(datalist, command):
    finished = command("check-data", "--datalist", datalist, "--site", "RUMC")
    assert finished.status == 0
    lines = finished.out.splitlines()
    assert lines[:2] == [
        "site RUMC: 24 patches, 12 of class 0, 12 of class 1",
        "site CWZ: 24 patches, 12 of class 0, 12 of class 1",
    ]
    assert lines[2].startswith("colours, mean ± standard deviation")
    assert [line.split(":")[0] for line in lines[3:5]] == ["site RUMC", "site CWZ"]
    assert lines[5:] == ["48 patches: no problems"]


def test_check_data_measures_colours(command, tmp_path):
    for name, colours in (("a", ((0, 255, 0), (0, 0, 255))), ("b", ((255, 0, 0), (0, 0, 0)))):
        for number, colour in enumerate(colours):
            Image.new("RGB", (32, 32), colour).save(tmp_path / f"{name}{number}.png")
    rows = "".join(f"{name}{number}.png,{number},{name}\n" for name in "ab" for number in (0, 1))
    (tmp_path / "list.csv").write_text(f"image,label,site\n{rows}")
    finished = command("check-data", "--datalist", tmp_path / "list.csv")
    assert "site a: hue 0.500 ± 0.167, saturation 1.000 ± 0.000, value 1.000 ± 0.000\n" in finished.out
    assert "site b: hue 0.000 ± 0.000, saturation 0.500 ± 0.500, value 0.500 ± 0.500\n" in finished.out


def test_check_data_finds_what_train_would_refuse(datalist, command, tmp_path):
    def without(*columns):
        return lambda rows: [{key: cell for key, cell in row.items() if key not in columns} for row in rows]

    path = changed(datalist, tmp_path, without("subject", "split"))
    finished = command("check-data", "--datalist", path, "--site", "RUMC")
    assert finished.status == 2
    assert "give --split-by image" in finished.out
    assert command("check-data", "--datalist", path, "--site", "RUMC", "--split-by", "image").status == 0
    path = changed(datalist, tmp_path, lambda rows: [r for r in rows if (r["split"], r["label"]) != ("val", "0")])
    finished = command("check-data", "--datalist", path, "--site", "RUMC")
    assert finished.status == 2
    assert "no validation patch of RUMC has label 0" in finished.out
    Image.new("RGB", (64, 40)).save(tmp_path / "odd.png")
    path = tmp_path / "odd.csv"
    path.write_text("image,label\nodd.png,1\n")
    finished = command("check-data", "--datalist", path)
    assert finished.status == 2
    assert "sides that are no multiple of 32: 40 x 64 (row 2); give --image-size" in finished.out
    assert command("check-data", "--datalist", path, "--image-size", 32).status == 0


def test_check_data_lists_every_problem(datalist, command, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (48, 48)).save(tmp_path / "large.png")

    def spoil(rows):
        rows[0]["image"] = str(tmp_path / "text.png")
        rows[1]["image"] = str(tmp_path / "gone.png")
        rows[2]["label"] = "2"
        rows[3]["image"] = str(tmp_path / "large.png")

    finished = command("check-data", "--datalist", changed(datalist, tmp_path, spoil))
    assert finished.status == 2
    for words in (
        "text.png: not a picture",
        "gone.png",
        "'2' is no label",
        "32 x 32",
        "48 x 48 (row 5)",
        "48 patches: 4 problems",
    ):
        assert words in finished.out


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "I;16", "P"])
def test_other_kinds_of_pictures(mode, datalist, trained, command, tmp_path):
    name = tmp_path / f"patch.{'tif' if mode == 'CMYK' else 'png'}"
    source = Image.open(datalist.parent / rows_of(datalist)[0]["image"])
    if mode == "I;16":
        Image.fromarray(np.asarray(source.convert("L")).astype(np.uint16) * 257).save(name)
    else:
        source.convert(mode).save(name)

    def swap(rows):
        rows[-1]["image"] = str(name)

    path = changed(datalist, tmp_path, swap)
    assert command("check-data", "--datalist", path).status == 0
    words = ("--datalist", path, "--model", trained, "--device", "cpu", "--out", tmp_path / "scores")
    assert command("predict", *words).status == 0


def bad_patch(rows, folder, content):
    rows[0]["image"] = str(folder / "patch.png")
    content(folder / "patch.png")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(9)), "patch.png: "),
        (lambda path: Image.new("RGB", (64, 32)).save(path), "x 64 pixels, the"),
        (lambda path: None, "is not there; check the path"),
    ],
)
@pytest.mark.parametrize("verb", ["train", "predict"])
def test_a_bad_patch(verb, content, words, datalist, trained, recipe, command, tmp_path):
    def change(rows):
        # In the middle of the training patches, and of what is predicted.
        place = next(
            i
            for i, row in enumerate(rows)
            if row["site"] == "RUMC" and row["split"] == ("train" if verb == "train" else "test")
        )
        rows.insert(0, rows.pop(place))
        bad_patch(rows, tmp_path, content)
        return rows

    path = changed(datalist, tmp_path, change)
    flags = recipe if verb == "train" else ("--model", trained, "--device", "cpu")
    finished = command(verb, "--datalist", path, *flags, "--out", tmp_path / "out")
    assert finished.status == 2
    assert words.split(",")[0] in finished.line
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert not (tmp_path / "out" / "predictions.csv").exists()


@pytest.mark.parametrize(
    ("change", "flags", "words"),
    [
        (lambda rows: None, ("--site", "UMCU"), "no site 'UMCU'; there are: RUMC, CWZ"),
        (lambda rows: None, ("--site", ""), "holds 2 laboratories; name the one to train on: --site RUMC"),
        (lambda rows: rows[0].update(label="7"), (), "row 2, column label: '7' is no label"),
        (lambda rows: rows[0].update(label=""), (), "row 2, column label: no label is filled in"),
        (lambda rows: [r for r in rows if r["label"] == "1"], (), "no training patch of RUMC has label 0"),
        (lambda rows: [r for r in rows if r["split"] == "test"], (), "no image with split train"),
        (lambda rows: [{k: v for k, v in r.items() if k != "label"} for r in rows], (), "no column 'label'"),
        (lambda rows: None, ("--image-size", 40), "--image-size is 40; give a multiple of 32 such as 32"),
        (lambda rows: None, ("--batch-size", 7, "--balanced"), "give an even --batch-size"),
        (lambda rows: None, ("--method", "hed", "--lambda1", 1), "--lambda1 is about the regeneration loss"),
        (lambda rows: None, ("--method", "hed", "--ce-on", "raw"), "which --method hed has not; leave it out"),
        (lambda rows: None, ("--method", "vanilla", "--space", "od"), "--space is about altered patches"),
        (lambda rows: None, ("--method", "macenko", "--strength", 0.2), "--strength is about altered patches"),
        (lambda rows: None, ("--method", "hed-cons", "--form", "element"), "--form is about the regeneration loss"),
        (
            lambda rows: None,
            ("--method", "hed-reg", "--detach-target"),
            "--detach-target is about the consistency loss",
        ),
        (lambda rows: None, ("--method", "hed", "--upsampling", "bilinear"), "--upsampling is about the generator"),
        (lambda rows: None, ("--gan-epochs", 3), "--gan-epochs is about a GAN"),
        (
            lambda rows: None,
            ("--method", "stst-gan", "--feature-epochs", 2),
            "--feature-epochs is about the network whose",
        ),
        (lambda rows: None, ("--method", "stst-gan", "--gan-epochs", 0), "--gan-epochs is 0; give at least 1"),
        (lambda rows: None, ("--reference", "a.png"), "--reference is about a reference picture"),
        (lambda rows: None, ("--method", "macenko", "--standardise-luminosity"), "or give --method vahadane"),
        (lambda rows: None, ("--method", "macenko", "--reference", "a.png"), "a.png: file not found"),
        (lambda rows: None, ("--lambda2", -1), "--lambda2 is -1"),
        (lambda rows: None, ("--largest-blur", 0), "--largest-blur is 0"),
        (lambda rows: None, ("--method", "dscsi-gan", "--gan-backbone", "nonet"), "timm has no network 'nonet'"),
        (lambda rows: None, ("--method", "dscsi-gan", "--gan-weights", "none.pth"), "none.pth: no such file"),
        (
            lambda rows: None,
            ("--method", "dscsi-gan", "--gan-backbone", "vit_tiny_patch16_224"),
            "gives no feature map",
        ),
    ],
)
def test_train_refuses(change, flags, words, datalist, recipe, command, tmp_path):
    path = changed(datalist, tmp_path, change)
    finished = command("train", "--datalist", path, *recipe, *flags, "--out", tmp_path / "out")
    assert finished.status == 2
    assert words in finished.line
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_no_number_stops_the_training(datalist, recipe, command, tmp_path):
    words = ("--learning-rate", 1e30, "--method", "vanilla", "--out", tmp_path / "run")
    found = command("train", "--datalist", datalist, *recipe, *words)
    assert found.status == 2
    assert found.err.splitlines()[-1].endswith("lower --learning-rate")
    assert "validation loss is" in found.err.splitlines()[-1]
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_subjects_are_needed_to_split_by_them(datalist, recipe, command, tmp_path):
    def change(rows):
        return [{key: cell for key, cell in row.items() if key not in ("subject", "split")} for row in rows]

    path = changed(datalist, tmp_path, change)
    finished = command("train", "--datalist", path, *recipe, "--out", tmp_path / "out")
    assert finished.status == 2
    assert "give --split-by image" in finished.line
    assert command("train", "--datalist", path, *recipe, "--split-by", "image", "--out", tmp_path / "out").status == 0
    words = (
        "--datalist",
        path,
        "--model",
        tmp_path / "out",
        "--split",
        "val",
        "--device",
        "cpu",
        "--out",
        tmp_path / "scores",
    )
    assert command("predict", *words).status == 0
    count = json.loads((tmp_path / "out" / "metrics.json").read_text())["validation_patches"]
    assert len(rows_of(tmp_path / "scores" / "predictions.csv")) == count


def test_drop_last_keeps_whole_batches_of_test_patches(datalist, trained, command, tmp_path):
    """1,600 of 1,609 in the paper; here CWZ has 24 test patches."""
    words = ("--datalist", datalist, "--model", trained, "--device", "cpu")
    for name, flags in (("all", ()), ("whole", ("--drop-last",))):
        assert command("predict", *words, "--batch-size", 3, *flags, "--out", tmp_path / name).status == 0
    everything, whole = (rows_of(tmp_path / name / "predictions.csv") for name in ("all", "whole"))
    assert [row for row in everything if row["split"] == "val"] == [row for row in whole if row["split"] == "val"]
    for site, batch in (("CWZ", 7), ("CWZ", 24), ("RUMC", 2)):
        flags = ("--sites", site, "--batch-size", batch, "--drop-last", "--overwrite", "--out", tmp_path / "whole")
        assert command("predict", *words, *flags).status == 0
        before, after = (
            [row["image"] for row in rows_of(tmp_path / name / "predictions.csv") if (row["site"], row["split"]) == (site, "test")]
            for name in ("all", "whole")
        )  # fmt: skip
        assert after == before[: len(before) // batch * batch]
    refused = command("predict", *words, "--batch-size", 25, "--drop-last", "--out", tmp_path / "none")
    assert refused.status == 2
    assert "--drop-last leaves none of the" in refused.line
    assert refused.line.endswith("in batches of 25; leave it out, or lower --batch-size")
    assert not (tmp_path / "none").exists()


def test_predict_without_labels_or_with_one_class(datalist, trained, command, tmp_path):
    def change(rows):
        for row in rows:
            row["label"] = "1" if row["site"] == "CWZ" else ""

    words = (
        "--datalist",
        changed(datalist, tmp_path, change),
        "--model",
        trained,
        "--device",
        "cpu",
        "--out",
        tmp_path / "p",
    )
    finished = command("predict", *words)
    assert finished.status == 0
    assert "no AUC for CWZ: all 24 labelled patches are of class 1" in finished.err
    assert json.loads((tmp_path / "p" / "metrics.json").read_text())["auc"]["CWZ"] is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--sites", "RST"), "no site 'RST'"),
        (("--model", "nowhere"), "no such file"),
        (("--device", "cuda:99"), "CUDA"),
        (("--batch-size", 0), "--batch-size is 0"),
    ],
)
def test_predict_refuses(flags, words, datalist, trained, command, tmp_path):
    finished = command(
        "predict", "--datalist", datalist, "--model", trained, "--device", "cpu", *flags, "--out", tmp_path / "p"
    )
    assert finished.status == 2
    assert words in finished.line
    assert not (tmp_path / "p").exists()


def test_weights_of_something_else_are_refused(datalist, trained, command, tmp_path):
    (tmp_path / "model.safetensors").write_bytes((trained / "generator.safetensors").read_bytes())
    finished = command(
        "predict", "--datalist", datalist, "--model", tmp_path, "--device", "cpu", "--out", tmp_path / "p"
    )
    assert finished.status == 2
    assert "is no patch classifier of stain-aglr" in finished.line


def test_export(trained, command, tmp_path):
    import onnxruntime

    out = tmp_path / "classifier.onnx"
    finished = command("export", "--model", trained, "--out", out)
    assert finished.status == 0
    network, _ = load_model(trained)
    assert f"{sum(p.numel() for p in network.parameters()):,} parameters" in finished.line
    x = torch.rand(5, 3, 32, 64)
    (found,) = onnxruntime.InferenceSession(out).run(None, {"image": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), network(x).detach(), rtol=1e-4, atol=1e-5)
    again = command("export", "--model", trained, "--out", out)
    assert "is there already; --overwrite replaces it" in again.line
    assert command("export", "--model", trained, "--out", tmp_path / "a.pt").line.endswith("rename --out")


def test_export_of_the_papers_network(command, tmp_path):
    """4,846,050 parameters, whatever the method: the generator is dropped (specification 9)."""
    from stain_aglr.models import PACKAGE, Model
    from stain_aglr.networks import PatchClassifier

    save_model(tmp_path, PatchClassifier(), PACKAGE, Model("stain-aglr", "RUMC", 32, 256, False, 0))
    finished = command("export", "--model", tmp_path, "--out", tmp_path / "c.onnx")
    assert "c.onnx: 4,846,050 parameters" in finished.line


def test_an_old_run_is_not_overwritten(datalist, trained, recipe, command):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    finished = command("train", "--datalist", datalist, *recipe, "--out", trained)
    assert finished.status == 2
    assert "--resume continues it, --overwrite replaces it" in finished.line
    assert before == {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
