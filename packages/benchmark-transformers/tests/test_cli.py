"""Every verb on phantoms, and every mistake a person can make: one line, exit status 2, nothing half-written."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark_transformers import SimMIM
from benchmark_transformers.cases import read_cases
from benchmark_transformers.networks import read_pretrained
from benchmark_transformers.settings import DataSettings
from benchmark_transformers.training import Model, load_model, split_as_trained, trial_folders
from dart_core.checkpoint import load_weights
from dart_core.data.images import read_image
from dart_core.metrics import mean_auc
from dart_core.testing import assert_help_is_light


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
    assert_help_is_light("benchmark_transformers", "fine-tune")


# check-data


def test_check_data(datalist, command):
    finished = command("check-data", "--datalist", datalist)
    assert finished.status == 0
    assert finished.out.splitlines()[1:] == ["site chestxray14: 24 train, 8 val, 8 test", "40 pictures: no problems"]
    assert "40 pictures with any of the labels" in finished.out


def test_check_data_lists_every_problem(datalist, command, tmp_path):
    (tmp_path / "text.png").write_text("no picture")

    def spoil(rows):
        rows[0]["image"] = str(tmp_path / "text.png")
        rows[1]["image"] = str(tmp_path / "gone.png")
        rows[2]["Effusion"] = "-1"

    finished = command("check-data", "--datalist", changed(datalist, tmp_path, spoil))
    assert finished.status == 2
    for words in (
        "text.png: not a picture",
        "gone.png",
        "row 4, column Effusion: -1 marks an uncertain label",
        "3 problems",
    ):
        assert words in finished.out


# pretrain


def test_pretrain(pretrained):
    about = read_pretrained(pretrained)
    assert (about.backbone, about.image_size, about.epochs, about.images) == (
        "swin_b",
        16,
        2,
        24,
    )  # training pictures only
    network = SimMIM("swin_b", about.image_size, **about.network)
    load_weights(pretrained / "model.safetensors", network)
    metrics = json.loads((pretrained / "metrics.json").read_text())
    assert metrics["steps"] == 6
    assert metrics["loss"] > 0
    assert metrics["images_per_second"] > 0
    lines = [json.loads(line) for line in (pretrained / "metrics.jsonl").read_text().splitlines()]
    assert all({"loss", "learning_rate", "images_per_second"} <= line.keys() for line in lines)
    shown = sorted(path.name for path in (pretrained / "restored").iterdir())
    assert shown == ["epoch-0001.png", "epoch-0002.png"]
    assert read_image(pretrained / "restored" / shown[0]).shape == (3 * 128, 6 * 128, 3)
    page = (pretrained / "report.html").read_text(encoding="utf-8")
    assert "Restored examples" in page
    assert "Throughput" in page


def test_pretrain_a_vit_on_a_folder_of_pictures_of_any_kind(command, tmp_path, small):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, mode in enumerate(("L", "RGB", "RGBA", "P", "I;16", "1")):
        size = (20 + i, 30 - i)
        array = np.full(size, 1000 * i, np.uint16) if mode == "I;16" else np.full(size, 40 * i, np.uint8)
        image = Image.fromarray(array) if mode == "I;16" else Image.fromarray(array).convert(mode)
        image.save(folder / f"{i}.png")
    words = (
        "--backbone",
        "vit_b",
        "--patch-size",
        4,
        "--embed-dim",
        8,
        "--depths",
        1,
        "--num-heads",
        2,
        "--size",
        16,
        "--cell",
        8,
    )
    recipe = ("--epochs", 1, "--batch-size", 3, "--warmup", 0, "--log-every", 1, "--device", "cpu", "--drop-path", 0)
    finished = command("pretrain", "--pictures", folder, *words, *recipe, "--out", tmp_path / "run")
    assert finished.status == 0, finished.err
    shown = tmp_path / "run" / "restored" / "epoch-0001.png"
    assert re.match(rf"epoch 1 of 1: loss \d\.\d{{4}}, \d+\.\d pictures/s, restored examples: {shown}\n", finished.err)
    assert read_pretrained(tmp_path / "run").images == 6


def test_continued_pretraining_starts_anew_from_the_weights(datalist, pretrained, small, command, tmp_path):
    finished = command(
        "pretrain", "--pictures", datalist, *small["pretrain"], "--init-from", pretrained, "--out", tmp_path / "run"
    )
    assert finished.status == 0
    assert "0 missing, 0 unexpected" in finished.err
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(6))  # all epochs again, from step 0
    before, after = (load_weights(path / "model.safetensors")[0] for path in (pretrained, tmp_path / "run"))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert read_pretrained(tmp_path / "run").init_from == "simmim"
    # With a learning rate of 0 the weights are exactly those it started from.
    still = ("--base-lr", 0, "--min-lr", 0, "--warmup-lr", 0)
    words = ("--pictures", datalist, *small["pretrain"], *still, "--init-from", pretrained, "--out", tmp_path / "still")
    assert command("pretrain", *words).status == 0
    kept = load_weights(tmp_path / "still" / "model.safetensors")[0]
    assert all(torch.equal(before[name], kept[name]) for name in before)


def test_pictures_of_a_later_test_can_be_left_out(datalist, small, command, tmp_path):
    names = [Path(row["image"]).name for row in rows_of(datalist) if row["split"] == "train"][:10]
    (tmp_path / "exclude.txt").write_text("\n".join(names))
    words = (
        "--pictures",
        datalist,
        *small["pretrain"],
        "--exclude",
        tmp_path / "exclude.txt",
        "--out",
        tmp_path / "run",
    )
    finished = command("pretrain", *words)
    assert "10 pictures left out" in finished.err
    assert read_pretrained(tmp_path / "run").images == 14


def test_a_picture_that_cannot_be_read_costs_no_folder(datalist, pretrained, small, command, tmp_path):
    def spoil(rows):
        (tmp_path / "text.png").write_text("no picture")
        [row for row in rows if row["split"] == "train"][7]["image"] = str(tmp_path / "text.png")

    path = changed(datalist, tmp_path, spoil)
    for words in (
        ("pretrain", "--pictures", path, *small["pretrain"]),
        ("fine-tune", "--datalist", path, "--weights", pretrained, *small["fine-tune"]),
    ):
        finished = command(*words, "--out", tmp_path / "run")
        assert finished.status == 2
        assert "text.png: not a picture; give a PNG, JPEG, TIFF or DICOM file" in finished.line
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("--size", 18), "pictures of side 18"),
        (("--cell", 5), "--cell is 5"),
        (("--depths", 1, 1, 1), "--depths has 3 stages, --num-heads 2"),
        (("--mask-ratio", 0), "--mask-ratio is 0"),
        (("--backbone", "resnet"), "resnet"),
        (("--init-from", "gone.pth"), "gone.pth: no such file"),
    ],
)
def test_pretrainings_that_cannot_be(words, match, datalist, small, command, tmp_path):
    finished = command("pretrain", "--pictures", datalist, *small["pretrain"], *words, "--out", tmp_path / "run")
    assert finished.status == 2
    assert match in finished.line
    assert not (tmp_path / "run").exists()


def test_init_from_another_network_is_refused_with_the_counts(datalist, pretrained, small, command, tmp_path):
    words = (
        "--pictures",
        datalist,
        *small["pretrain"],
        "--embed-dim",
        16,
        "--init-from",
        pretrained,
        "--out",
        tmp_path / "run",
    )
    finished = command("pretrain", *words)
    assert finished.status == 2
    assert "of another shape" in finished.line
    assert "loaded" in finished.line


# fine-tune


def test_fine_tune(tuned):
    folders = trial_folders(tuned)
    assert [path.name for path in folders] == ["trial-0-lr-0.05", "trial-1-lr-0.05"]
    network, model = load_model(folders[1])
    assert (model.name, model.initialisation, model.backbone, model.seed) == ("simmim", "", "Swin", 1)
    assert model.labels == ("Cardiomegaly", "Effusion")
    assert network(torch.zeros(1, 3, 16, 16)).shape == (1, 2)
    summary = json.loads((tuned / "metrics.json").read_text())
    assert "0 missing, 0 unexpected" in summary["loaded"]
    assert summary["validation_loss"][1] == pytest.approx(model.validation_loss)
    for path in (tuned, *folders):
        assert (path / "report.html").is_file()
        assert (path / "config.yaml").is_file()


@pytest.mark.parametrize("log_every", [1, 100])  # the loss of a step, or that of the validation, is no number
def test_several_learning_rates(log_every, datalist, small, command, tmp_path):
    words = ("--initialisation", "scratch-swin-b", *small["network"], "--datalist", datalist, *small["fine-tune"])
    words = (*words, "--log-every", log_every)
    rates = ("--learning-rate", 0.0, 0.03, 1e30)
    finished = command("fine-tune", *words, *rates, "--trials", 2, "--out", tmp_path / "run")
    assert finished.status == 0, finished.err
    assert "learning rate 1e+30: " in finished.err
    summary = json.loads((tmp_path / "run" / "metrics.json").read_text())
    losses = summary["validation_loss_of_rates"]
    assert losses.pop("1e+30") is None
    assert summary["learning_rate"] == float(min(losses, key=losses.get))
    assert len(summary["trials"]) == 2


def test_fractions_as_coded_schedule_and_other_optimisers(datalist, pretrained, small, command, tmp_path):
    options = {
        "half": ("--fraction", 50), "coded": ("--schedule", "as_coded", "--warmup", 1), "plain": ("--optimizer", "momentum"),
        "adamw": ("--optimizer", "adamw", "--layer-decay", 0.8, "--weight-decay", 0.05, "--normalization", "chestxray14",
                  "--rand-augment", "--mixup", 0.8),
        "aspect": ("--keep-aspect", "--resize", 20, "--normalization", "weights", "--accumulate", 2),
    }  # fmt: skip
    for name, words in options.items():
        out = tmp_path / name
        common = ("--datalist", datalist, "--weights", pretrained, *small["fine-tune"], *words, "--out", out)
        assert command("fine-tune", *common).status == 0, name
        _, model = load_model(trial_folders(out)[0])
        assert model.training_pictures == (12 if name == "half" else 24)
    lines = [
        json.loads(line) for line in (trial_folders(tmp_path / "coded")[0] / "metrics.jsonl").read_text().splitlines()
    ]
    rates = [line["learning_rate"] for line in lines if "loss" in line]
    loss = next(line["validation_loss"] for line in lines if "epoch" in line)
    assert rates[0] == pytest.approx(1e-6)
    assert rates[-1] == pytest.approx(1e-6 + loss * (0.05 - 1e-6) / 1)


def test_a_warm_up_as_long_as_the_training_is_said(datalist, pretrained, small, command, tmp_path):
    """One epoch of it stays at the rate that the climb begins with."""
    words = ("fine-tune", "--datalist", datalist, "--weights", pretrained, *small["fine-tune"], "--warmup", 1)
    said = "--warmup 1, --epochs 1: the learning rate only gets to 1e-06, never to --learning-rate"
    assert said in command(*words, "--epochs", 1, "--out", tmp_path / "short").err
    (trial,) = trial_folders(tmp_path / "short")
    lines = [json.loads(line) for line in (trial / "metrics.jsonl").read_text().splitlines()]
    assert {line["learning_rate"] for line in lines if "loss" in line} == {1e-6}
    assert "--warmup" not in command(*words, "--epochs", 2, "--out", tmp_path / "long").err


def test_exclusive_classes(datalist, pretrained, small, command, tmp_path):
    def rename(rows):
        for i, row in enumerate(rows):
            row.pop("Cardiomegaly")
            row.pop("Effusion")
            row["label"] = ("normal", "ill", "very ill")[i % 3]

    path = changed(datalist, tmp_path, rename)
    words = ("--datalist", path, "--weights", pretrained, *small["fine-tune"], "--out", tmp_path / "run")
    assert command("fine-tune", *words).status == 0
    _, model = load_model(trial_folders(tmp_path / "run")[0])
    assert (model.exclusive, model.labels) == (True, ("ill", "normal", "very ill"))
    words = ("--datalist", path, "--model", tmp_path / "run", "--device", "cpu", "--out", tmp_path / "scores")
    assert command("predict", *words).status == 0
    scores = rows_of(tmp_path / "scores" / "trial-0" / "predictions.csv")
    assert sum(float(row["score"]) for row in scores[:3]) == pytest.approx(1)
    found = json.loads((tmp_path / "scores" / "metrics.json").read_text())["results"][0]
    right = [
        max(scores[i : i + 3], key=lambda row: float(row["score"]))["label"] == "1" for i in range(0, len(scores), 3)
    ]
    assert found["measure"] == "accuracy"
    assert found["value"] == pytest.approx(np.mean(right))
    finished = command("evaluate", "--predictions", tmp_path / "scores", "--out", tmp_path / "evaluation")
    assert finished.status == 0
    assert "accuracy" in finished.out


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (
            ("--initialisation", "swin-b-simmim"),
            "swin-b-simmim needs weights (SimMIM, ImageNet-1K); give --weights FILE (the owners' file)",
        ),
        (("--initialisation", "vit-b-in21k"), "or --download (vit_base_patch16_224.augreg_in21k)"),
        (("--initialisation", "resnet"), "no initialisation 'resnet'"),
        (("--initialisation", "swin-b-simmim", "--download"), "timm's registry has no weights for swin-b-simmim"),
        ((), "no initialisation; give --initialisation"),
        (("--initialisation", "scratch-vit-b", "--image-size", 20, "--resize", 30), "no multiple of the 16 pixels"),
        (("--initialisation", "scratch-vit-b", "--resize", 8), "--resize is 8"),
        (("--initialisation", "scratch-vit-b", "--labels", "Age"), "no column 'Age'"),
        (("--initialisation", "scratch-vit-b", "--normalization", "weights"), "not known what these weights"),
        (("--initialisation", "scratch-vit-b", "--weights", "x.pth"), "starts from random weights"),
        (
            ("--initialisation", "scratch-swin-b", "--weights", "SIMMIM"),
            "simmim: --initialisation is scratch-swin-b, the weights are a Swin-B that SimMIM pre-trained; leave it out, or give one of swin-b-simmim",
        ),
        (("--initialisation", "vit-b-simmim", "--weights", "SIMMIM"), "--initialisation is vit-b-simmim"),
        (("--initialisation", "vit-b-dino", "--weights", "x.pth"), "x.pth: no such file"),
        (("--initialisation", "scratch-vit-b", "--layer-decay", 0.5), "--layer-decay is for --optimizer adamw"),
        (("--initialisation", "scratch-vit-b", "--mixup", -1), "--mixup is -1"),
        (("--initialisation", "scratch-vit-b", "--fraction", 1), "1 % of 24 pictures is none"),
    ],
)
def test_fine_tunings_that_cannot_be(words, match, datalist, pretrained, small, command, tmp_path):
    words = [pretrained if word == "SIMMIM" else word for word in words]
    finished = command("fine-tune", "--datalist", datalist, *small["fine-tune"], *words, "--out", tmp_path / "run")
    assert finished.status == 2
    assert match in finished.line
    assert not (tmp_path / "run").exists()


def test_weights_of_another_network_are_refused_before_anything_is_written(
    datalist, pretrained, small, command, tmp_path
):
    torch.save({"model": load_weights(pretrained / "model.safetensors")[0]}, tmp_path / "other.pth")
    words = ("--initialisation", "swin-t-moby", "--weights", tmp_path / "other.pth", "--image-size", 32)
    finished = command("fine-tune", "--datalist", datalist, *words, "--device", "cpu", "--out", tmp_path / "run")
    assert finished.status == 2
    assert "loaded" in finished.line
    assert "missing" in finished.line
    assert not (tmp_path / "run").exists()
    # The same names, all of another shape, in a file in timm's names.
    import timm

    options = {
        "patch_size": 2,
        "embed_dim": 16,
        "depths": (1, 1),
        "num_heads": (1, 2),
        "window_size": 4,
        "img_size": 16,
    }
    torch.save(timm.create_model("swin_base_patch4_window7_224", **options).state_dict(), tmp_path / "wide.pth")
    words = ("--initialisation", "swin-b-in1k", *small["network"], "--weights", tmp_path / "wide.pth")
    finished = command("fine-tune", "--datalist", datalist, *words, *small["fine-tune"], "--out", tmp_path / "run")
    assert finished.status == 2
    assert re.search(r"wide\.pth: .*\d+ loaded, .*of another shape, \d+ unexpected", finished.line)
    assert not (tmp_path / "run").exists()


def test_download_only_when_asked_and_one_line_where_it_fails(datalist, small, command, tmp_path, monkeypatch):
    import timm

    asked = []
    build = timm.create_model

    def hub(name, pretrained=False, **options):
        if pretrained:
            asked.append(name)
            if len(asked) == 1:
                raise OSError("the hub cannot be reached\nby this machine")
        return build(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", hub)
    words = (
        "--datalist",
        datalist,
        "--initialisation",
        "swin-b-in1k",
        *small["network"],
        *small["fine-tune"],
        "--download",
    )
    finished = command("fine-tune", *words, "--out", tmp_path / "run")
    assert finished.status == 2
    assert "swin_base_patch4_window7_224.ms_in1k cannot be downloaded (the hub cannot be reached)" in finished.line
    assert not (tmp_path / "run").exists()
    finished = command("fine-tune", *words, "--out", tmp_path / "run")
    assert finished.status == 0, finished.err
    assert set(asked) == {"swin_base_patch4_window7_224.ms_in1k"}


def test_local_file_in_timms_names(datalist, small, command, tmp_path):
    import timm

    torch.manual_seed(3)
    options = {"patch_size": 2, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 2}
    network = timm.create_model("swin_base_patch4_window7_224", img_size=16, num_classes=5, **options)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    words = (
        "--initialisation",
        "swin-b-in1k",
        *small["network"],
        "--weights",
        tmp_path / "weights.pth",
        *small["fine-tune"],
    )
    finished = command("fine-tune", "--datalist", datalist, *words, "--learning-rate", 0.0, "--out", tmp_path / "run")
    assert finished.status == 0, finished.err
    tuned, model = load_model(trial_folders(tmp_path / "run")[0])
    assert model.initialisation == "swin-b-in1k"
    for name, tensor in network.state_dict().items():
        if not name.startswith("head"):
            assert torch.equal(tuned.state_dict()[name], tensor), name


# predict, evaluate, compare, export


def test_predict(datalist, predicted):
    tests = [row for row in rows_of(datalist) if row["split"] == "test"]
    found = json.loads((predicted / "metrics.json").read_text())
    for number in (0, 1):
        scores = rows_of(predicted / f"trial-{number}" / "predictions.csv")
        assert [row["finding"] for row in scores] == ["Cardiomegaly", "Effusion"] * len(tests)
        assert [row["label"] for row in scores] == [row[name] for row in tests for name in ("Cardiomegaly", "Effusion")]
        label, score = (np.array([float(row[key]) for row in scores]).reshape(-1, 2) for key in ("label", "score"))
        assert found["results"][number]["value"] == pytest.approx(mean_auc(label, score))


def test_predictions_are_the_mean_of_ten_probabilities(datalist, tuned, predicted):
    from torchvision.transforms.v2 import functional as transforms

    network, _ = load_model(trial_folders(tuned)[0])
    row = next(row for row in rows_of(datalist) if row["split"] == "test")
    image = torch.from_numpy(read_image(datalist.parent / row["image"])).permute(2, 0, 1)
    image = transforms.resize(image, [18, 18]).float() / 255
    image = transforms.normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    crops = torch.stack(transforms.ten_crop(image, [16, 16]))
    expected = network(crops).sigmoid().mean(0)
    scores = rows_of(predicted / "trial-0" / "predictions.csv")[:2]
    assert [float(score["score"]) for score in scores] == pytest.approx(expected.tolist(), abs=1e-5)


def test_predict_without_labels_and_on_other_splits(datalist, tuned, command, tmp_path):
    def strip(rows):
        for row in rows:
            row.pop("Cardiomegaly")
            row.pop("Effusion")

    words = ("--model", trial_folders(tuned)[0], "--device", "cpu", "--crops", 1, "--split", "all")
    path = changed(datalist, tmp_path, strip)
    assert command("predict", *words, "--datalist", path, "--out", tmp_path / "scores").status == 0
    scores = rows_of(tmp_path / "scores" / "trial-0" / "predictions.csv")
    assert len(scores) == 80
    assert {row["label"] for row in scores} == {""}
    finished = command("evaluate", "--predictions", tmp_path / "scores", "--out", tmp_path / "evaluation")
    assert finished.status == 0
    assert "–" in finished.out


def test_predict_keeps_to_the_split_of_the_training(datalist, pretrained, small, command, tmp_path):
    """Drawn picture by picture, because the training said so; the seed of the draw is the same for all."""

    def forget(rows):
        for row in rows:
            del row["split"]

    path = changed(datalist, tmp_path, forget)
    words = ("--datalist", path, "--weights", pretrained, *small["fine-tune"], "--out", tmp_path / "run")
    assert command("fine-tune", *words, "--split-by", "image").status == 0
    words = ("predict", "--datalist", path, "--model", tmp_path / "run", "--device", "cpu", "--out")
    for name, more in (("default", ()), ("said", ("--split-by", "image"))):
        assert command(*words, tmp_path / name, *more).status == 0
        tested = {Path(row["image"]).name for row in rows_of(tmp_path / name / "trial-0" / "predictions.csv")}
        drawn, other = (read_cases(DataSettings(path, split_by=by))["test"].rows for by in ("image", "patient"))
        assert tested == {row.image.name for row in drawn} != {row.image.name for row in other}
    finished = command(*words, tmp_path / "refused", "--split-by", "patient")
    assert finished.status == 2
    assert finished.line.endswith("error: --split-by is patient, that of the training was image; leave it out")
    assert not (tmp_path / "refused").exists()


@pytest.fixture
def shenzhen(tmp_path):
    """Its folder, and two splits of it as lists."""
    folder = tmp_path / "CXR_png"
    folder.mkdir()
    names = [f"CHNCXR_{i:04d}_{i % 2}.png" for i in range(24)]
    for i, name in enumerate(names):
        Image.fromarray(np.full((20, 20), 9 * i, np.uint8)).save(folder / name)
    lists = []
    for number, order in enumerate((names, names[::-1])):
        parts = {"train": order[:12], "val": order[12:18], "test": order[18:]}
        for part, chosen in parts.items():
            (tmp_path / f"{part}{number}.txt").write_text("".join(f"{name},{name[-5]}\n" for name in chosen))
        lists.append([tmp_path / f"{part}{number}.txt" for part in parts])
    return tmp_path, lists


def test_predict_keeps_to_the_lists_of_the_training(shenzhen, pretrained, small, command, tmp_path):
    folder, (first, second) = shenzhen
    words = ("fine-tune", "--datalist", folder, "--weights", pretrained, *small["fine-tune"])
    assert command(*words, "--lists", *first, "--out", tmp_path / "listed").status == 0
    assert command(*words, "--out", tmp_path / "drawn").status == 0
    moved = [path.rename(path.with_suffix(".csv")) for path in first]
    words = ("predict", "--datalist", folder, "--device", "cpu", "--model")
    gone = command(*words, tmp_path / "listed", "--out", tmp_path / "no")
    assert "train0.txt: cannot be read" in gone.line
    assert "give the lists of the training: --lists" in gone.line
    assert command(*words, tmp_path / "listed", "--lists", *moved, "--out", tmp_path / "moved").status == 0
    for path in moved:
        path.rename(path.with_suffix(".txt"))
    assert command(*words, tmp_path / "listed", "--out", tmp_path / "default").status == 0
    for name in ("moved", "default"):
        tested = [Path(row["image"]).name for row in rows_of(tmp_path / name / "trial-0" / "predictions.csv")]
        assert tested == [line.split(",")[0] for line in first[2].read_text().splitlines()]
    for run, lists, was in (("listed", second, first[0]), ("drawn", first, "there were none")):
        finished = command(*words, tmp_path / run, "--lists", *lists, "--out", tmp_path / "no")
        assert finished.status == 2
        assert "--lists are not those of the training" in finished.line
        assert str(was) in finished.line
    assert not (tmp_path / "no").exists()


def test_a_model_from_before_the_split_was_written_down(datalist, tuned, capsys):
    _, model = load_model(trial_folders(tuned)[0])
    old = {name: value for name, value in dataclasses.asdict(model).items() if name not in ("split_by", "lists")}
    data = DataSettings(datalist, split_by="image")
    assert split_as_trained(data, Model(**old)) is data
    assert "training pictures may be tested" in capsys.readouterr().err
    # Of another data set the training has seen nothing.
    assert split_as_trained(data, dataclasses.replace(model, dataset="shenzhen")) is data
    assert capsys.readouterr().err == ""


def test_another_data_set_than_that_of_the_training(datalist, tuned, command, tmp_path):
    def move(rows):
        for row in rows:
            row["site"] = "elsewhere"

    words = ("--datalist", changed(datalist, tmp_path, move), "--model", tuned, "--device", "cpu")
    assert command("predict", *words, "--out", tmp_path / "scores").status == 0
    assert "8 pictures of elsewhere" in (tmp_path / "scores" / "report.html").read_text(encoding="utf-8")
    assert command("evaluate", "--predictions", tmp_path / "scores", "--out", tmp_path / "out").status == 0
    for row in rows_of(tmp_path / "out" / "scores.csv"):
        assert (row["name"], row["dataset"]) == ("simmim (trained on chestxray14)", "elsewhere")


def test_on_chexpert_the_labels_of_its_competition_count(datalist, pretrained, small, command, tmp_path):
    """Of the two labels one is of the five: in the validation and in the test."""

    def move(rows):
        for row in rows:
            row["site"] = "chexpert"

    path = changed(datalist, tmp_path, move)
    words = ("--datalist", path, "--weights", pretrained, *small["fine-tune"], "--out", tmp_path / "run")
    assert command("fine-tune", *words).status == 0
    # The middle crop is the view of the validation.
    words = ("--datalist", path, "--model", tmp_path / "run", "--device", "cpu", "--crops", 1, "--split", "val")
    assert command("predict", *words, "--out", tmp_path / "scores").status == 0
    content = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    (result,) = content["results"]
    assert content["counted"] == ["Cardiomegaly"]
    assert result["value"] == result["auc"]["Cardiomegaly"] != result["auc"]["Effusion"]
    (trial,) = trial_folders(tmp_path / "run")
    assert json.loads((trial / "metrics.json").read_text())["validation_auc"] == pytest.approx(result["value"])


def test_evaluate(predicted, command, tmp_path):
    finished = command("evaluate", "--predictions", predicted, "--out", tmp_path / "evaluation")
    assert finished.status == 0
    (summary,) = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["results"]
    values = [row["value"] for row in json.loads((predicted / "metrics.json").read_text())["results"]]
    assert summary["mean"] == pytest.approx(np.mean(values))
    assert summary["std_population"] == pytest.approx(np.std(values))
    assert summary["std_sample"] == pytest.approx(np.std(values, ddof=1))
    only = command("evaluate", "--predictions", predicted, "--test-labels", "Effusion", "--out", tmp_path / "one")
    assert only.status == 0
    row = rows_of(tmp_path / "one" / "scores.csv")[0]
    auc = json.loads((predicted / "metrics.json").read_text())["results"][0]["auc"]
    assert float(row["value"]) == pytest.approx(auc["Effusion"])
    twice = command("evaluate", "--predictions", predicted, predicted, "--out", tmp_path / "twice")
    assert twice.status == 2
    assert "is in" in twice.line


def test_compare_without_runs_shows_the_printed_tables(command, tmp_path):
    finished = command("compare", "--out", tmp_path / "comparison", "--spread", "population")
    assert finished.status == 0
    page = (tmp_path / "comparison" / "report.html").read_text(encoding="utf-8")
    assert "83.04 ± 0.15 (best)" in page
    assert "87.80 ± 0.42 [=]" in page  # with population deviations


def test_export_of_an_encoder(pretrained, command, tmp_path):
    import timm

    finished = command("export", "--model", pretrained, "--out", tmp_path / "encoder.safetensors")
    assert finished.status == 0
    tensors, about = load_weights(tmp_path / "encoder.safetensors")
    network = timm.create_model(about["architecture"], num_classes=0, **json.loads(about["keywords"]))
    network.load_state_dict(tensors)
    source = SimMIM("swin_b", 16, **read_pretrained(pretrained).network)
    load_weights(pretrained / "model.safetensors", source)
    image = torch.randn(1, 3, 16, 16)
    expected = source.eval().encode(image, torch.zeros(1, 8, 8)).mean((2, 3))
    assert torch.allclose(network.eval()(image), expected, atol=1e-6)


@pytest.mark.slow
def test_export_of_a_classifier(tuned, command, tmp_path):
    finished = command("export", "--model", trial_folders(tuned)[0], "--out", tmp_path / "classifier.onnx")
    assert finished.status == 0
    assert "2 labels (Cardiomegaly, Effusion)" in finished.line
    several = command("export", "--model", tuned, "--out", tmp_path / "other.onnx")
    assert "holds 2 trials" in several.line
    wrong = command("export", "--model", trial_folders(tuned)[0], "--out", tmp_path / "classifier.pt")
    assert "must end in .onnx" in wrong.line
    there = command("export", "--model", trial_folders(tuned)[0], "--out", tmp_path / "classifier.onnx")
    assert "is there already" in there.line


def test_folders_that_are_no_runs(datalist, predicted, command, tmp_path):
    (tmp_path / "empty").mkdir()
    words = ("--datalist", datalist, "--device", "cpu", "--out", tmp_path / "out")
    assert "holds no finished fine-tuning" in command("predict", *words, "--model", tmp_path / "empty").line
    assert (
        "cannot be read as scores"
        in command("evaluate", "--predictions", tmp_path / "empty", "--out", tmp_path / "out").line
    )
    assert "cannot be read as scores" in command("compare", tmp_path / "empty", "--out", tmp_path / "out").line
    assert not (tmp_path / "out").exists()
    assert command("compare", predicted, "--out", tmp_path / "out").status == 0


def test_an_old_run_is_not_overwritten(datalist, tuned, pretrained, small, command):
    before = {path: path.read_bytes() for path in tuned.rglob("*") if path.is_file()}
    finished = command(
        "fine-tune", "--datalist", datalist, "--weights", pretrained, *small["fine-tune"], "--out", tuned
    )
    assert finished.status == 2
    assert "--resume continues it, --overwrite replaces it" in finished.line
    assert before == {path: path.read_bytes() for path in tuned.rglob("*") if path.is_file()}
