"""Every verb on phantoms, and every mistake a person can make: one line, exit status 2, nothing half-written."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from dart_core.checkpoint import load_weights, read_metadata, save_tensors
from dart_core.data.datalist import Datalist
from dart_core.data.images import read_image, write_image
from dart_core.testing import assert_help_is_light
from popar.models import load_pretrained, load_tuned
from popar.prediction import NAME
from popar.radiographs import Radiographs
from popar.recipes import labelled_parts, recipe_of
from popar.settings import FineTuning, LabelSettings
from popar.transfer import predict_pictures


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
    assert_help_is_light("popar", "pretrain")


# --- check-data ------------------------------------------------------------------------------------------------------


def test_check_data(datalist, command):
    finished = command("check-data", "--datalist", datalist, "--labelled")
    assert finished.status == 0
    lines = finished.out.splitlines()
    assert lines[0].startswith("site chestxray14: 30 pictures of")
    assert lines[1] == "sizes: 40 x 48 (30); all are resized"
    assert lines[-1] == "30 pictures: no problems"
    assert "Cardiomegaly" in lines[2]


def test_check_data_counts_empty_cells(datalist, command, tmp_path):
    def spoil(rows):
        for row in [row for row in rows if row["split"] == "train"][:2]:
            row["Effusion"] = ""

    finished = command("check-data", "--datalist", changed(datalist, tmp_path, spoil), "--labelled")
    assert finished.status == 0
    told = {line.split(":")[0]: line for line in finished.out.splitlines()}
    assert told["train"].endswith("; 2 empty (unknown) cells")
    assert "empty (unknown)" not in told["test"]


def test_check_data_lists_every_problem(datalist, command, tmp_path):
    (tmp_path / "text.png").write_text("no picture")

    def spoil(rows):
        rows[0]["image"] = str(tmp_path / "text.png")
        rows[1]["image"] = str(tmp_path / "gone.png")
        rows[2]["Effusion"] = "2"
        rows[3]["Effusion"] = "-1"

    path = changed(datalist, tmp_path, spoil)
    finished = command("check-data", "--datalist", path, "--labelled", "--labels", "Cardiomegaly", "Effusion")
    assert finished.status == 2
    for words in (
        "row 2, column image", "text.png: not a picture", "gone.png", "row 4, column Effusion: '2' is no label",
        "row 5, column Effusion: '-1' is no label", "30 pictures: 4 problems",
    ):  # fmt: skip
        assert words in finished.out


# --- pretrain --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["vit", "swin"])
def test_pretrain(backbone, pretrained):
    out = pretrained[backbone]
    network, about = load_pretrained(out)
    assert (about.image_size, about.epochs, about.seed, about.name) == (32, 2, 0, "POPAR")
    assert not network.training
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["pictures"] + metrics["measured_pictures"] == 30
    assert {"order_accuracy", "identity_accuracy", "mse_permuted", "mse_appearance"} <= metrics.keys()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "loss" in line]
    assert all({"order_loss", "restoration_loss", "learning_rate"} <= line.keys() for line in trained)
    for line in trained:
        assert line["loss"] == pytest.approx((line["order_loss"] + line["restoration_loss"]) / 2, rel=1e-4)
    assert trained[0]["order_loss"] == pytest.approx(np.log(16), abs=0.5)
    measured = [line for line in lines if "epoch" in line]
    assert [line["epoch"] for line in measured] == [1, 2]
    assert {name: measured[-1][name] for name in ("order_accuracy", "mse_permuted")} == {name: metrics[name] for name in ("order_accuracy", "mse_permuted")}  # fmt: skip
    assert [path.name for path in sorted((out / "examples").iterdir())] == ["epoch-0001.png", "epoch-0002.png"]
    assert read_image(out / "examples" / "epoch-0002.png").shape == (5 * 36 - 4, 2 * 36 - 4, 3)
    report = (out / "report.html").read_text(encoding="utf-8")
    assert all(words in report for words in ("Fixed distortions", "Throughput", "what it restores"))


def test_progress_is_said(datalist, networks, pretrain_words, command, tmp_path):
    finished = command("pretrain", "--datalist", datalist, *networks["vit"], *pretrain_words, "--out", tmp_path / "run")
    assert finished.err.startswith("epoch 2 of 2: ")
    assert "pictures/s, order accuracy 0." in finished.err.splitlines()[0]


def test_other_recipes(datalist, networks, pretrain_words, command, tmp_path):
    words = ("--subtasks", "poc", "mgr", "--no-order-loss-on-appearance", "--channels", "together", "--normalisation", "none",
             "--reduction", "paper", "--weight", 0.9, "--accumulate", 2, "--memory", "--colour", "--drop-path", 0)  # fmt: skip
    lists = ("pretrain", "--datalist", datalist, *networks["swin"], *pretrain_words)
    assert command(*lists, *words, "--out", tmp_path / "run").status == 0
    _, about = load_pretrained(tmp_path / "run")
    assert (about.subtasks, about.name) == (("poc", "mgr"), "T_poc+T_mgr")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "mse_permuted" not in metrics


@pytest.mark.parametrize("subtasks", ["poc", "mpr", "mgr"])
def test_single_subtasks_leave_the_other_head_alone(subtasks, datalist, networks, pretrain_words, command, tmp_path):
    out = tmp_path / "run"
    lists = ("pretrain", "--datalist", datalist, *networks["vit"], *pretrain_words, "--learning-rate", 0.1)
    assert command(*lists, "--subtasks", subtasks, "--out", out).status == 0
    network, _ = load_pretrained(out)
    untouched = network.restoration_head if subtasks == "poc" else network.order_head
    assert not untouched.bias.any()


def test_accumulated_steps_are_the_same(datalist, networks, pretrain_words, command, tmp_path):
    lists = ("pretrain", "--datalist", datalist, *networks["vit"], *pretrain_words, "--drop-path", 0)
    for parts in (1, 3):
        assert command(*lists, "--accumulate", parts, "--out", tmp_path / str(parts)).status == 0
    one, three = (load_weights(tmp_path / str(parts) / "model.safetensors")[0] for parts in (1, 3))
    assert all(torch.allclose(one[name], three[name], atol=1e-5) for name in one)


def test_workers_and_memory_change_nothing(datalist, networks, pretrain_words, command, tmp_path):
    lists = ("pretrain", "--datalist", datalist, *networks["vit"], *pretrain_words, "--epochs", 1)
    for name, words in (("a", ()), ("b", ("--workers", 2, "--memory"))):
        assert command(*lists, *words, "--out", tmp_path / name).status == 0
    one, other = (load_weights(tmp_path / name / "model.safetensors")[0] for name in "ab")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_excluded_pictures(datalist, networks, pretrain_words, command, tmp_path):
    names = [Path(row["image"]).name for row in rows_of(datalist)[:3]]
    (tmp_path / "names.txt").write_text("\n".join(names))
    lists = ("pretrain", "--datalist", datalist, *networks["vit"], *pretrain_words, "--epochs", 1)
    finished = command(*lists, "--exclude", tmp_path / "names.txt", "--out", tmp_path / "run")
    assert finished.status == 0
    assert finished.err.startswith(f"3 pictures left out ({tmp_path / 'names.txt'})")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["excluded"], metrics["pictures"] + metrics["measured_pictures"]) == (3, 27)


def test_the_test_that_fine_tuning_draws_is_left_out(datalist, networks, pretrain_words, command, tmp_path):
    """Of a CSV without splits, whichever seed they are drawn with."""

    def no_splits(rows):
        return [{name: cell for name, cell in row.items() if name != "split"} for row in rows]

    path = changed(datalist, tmp_path, no_splits)
    lists = ("pretrain", "--datalist", path, *networks["vit"], *pretrain_words)
    label = LabelSettings(split_seed=4)
    parts = labelled_parts(Datalist.read(path), label, recipe_of(label, FineTuning()))
    left = len(parts["test"])
    assert 0 < left < 30
    finished = command(*lists, "--split-seed", 4, "--out", tmp_path / "run")
    assert finished.status == 0
    assert f"{left} pictures not trained on: no split names a test, and fine-tune --split-seed 4 draws" in finished.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["pictures"], metrics["measured_pictures"]) == (30 - left, left)
    finished = command(*lists, "--splits", "train", "val", "test", "--held-out", 1, "--out", tmp_path / "all")
    assert "not trained on" not in finished.err
    metrics = json.loads((tmp_path / "all" / "metrics.json").read_text())
    assert metrics["pictures"] + metrics["measured_pictures"] == 30


@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "I;16", "1"])
def test_mixed_sizes_and_modes(mode, datalist, networks, pretrain_words, command, tmp_path):
    name = tmp_path / f"picture.{'tif' if mode == 'CMYK' else 'png'}"
    source = Image.open(datalist.parent / rows_of(datalist)[0]["image"]).resize((61, 33))
    if mode == "I;16":
        Image.fromarray(np.asarray(source.convert("L")).astype(np.uint16) * 257).save(name)
    else:
        source.convert(mode).save(name)

    def swap(rows):
        rows[0]["image"] = str(name)

    path = changed(datalist, tmp_path, swap)
    assert command("check-data", "--datalist", path).status == 0
    words = (
        "pretrain",
        "--datalist",
        path,
        *networks["vit"],
        *pretrain_words,
        "--epochs",
        1,
        "--out",
        tmp_path / "run",
    )
    assert command(*words).status == 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("--image-size", 33),
            "a side of 33 pixels cannot be divided into patches of 8; give a multiple of 8 such as 32",
        ),
        (("--backbone", "vit_q"), "timm has no network 'vit_q'"),
        (("--backbone", "resnet18"), "resnet18"),
        (("--network", "depht=1"), "depht"),
        (("--network", "depth=x"), "--network has 'depth=x'"),
        (("--network", "num_heads=0"), "--network has 'num_heads=0'"),
        (("--split-seed", -1), "--split-seed is -1; give at least 0"),
        (("--subtasks", "poc", "poc"), "--subtasks is poc poc; give one or more of poc mpr mgr, each once"),
        (("--subtasks", "order"), "order"),
        (("--weight", 2), "--weight is 2; give a number from 0 to 1"),
        (("--epochs", 0), "--epochs is 0"),
        (("--exclude", "gone.txt"), "gone.txt: cannot be read"),
        (("--exclude", "{others}"), "others.txt: names none of the pictures of"),
        (("--epochs", 1, "--warmup", 0), "--epochs is 1, and in the last epoch the learning rate is 0"),
        (("--train-list", "gone.txt"), "lists for a data set that has none"),
        (("--device", "cuda:9"), "--device"),
    ],
)
def test_refused_pretrainings(words, line, datalist, networks, pretrain_words, command, tmp_path):
    (tmp_path / "others.txt").write_text("elsewhere.png")
    words = [str(word).format(others=tmp_path / "others.txt") for word in words]
    finished = command(
        "pretrain", "--datalist", datalist, *networks["vit"], *pretrain_words, *words, "--out", tmp_path / "run"
    )
    assert finished.status == 2
    assert line in finished.line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [(), ("--memory",)])
@pytest.mark.parametrize("verb", ["pretrain", "fine-tune"])
def test_a_missing_picture_costs_no_folder(verb, words, datalist, networks, command, tmp_path):
    def spoil(rows):
        next(row for row in rows[1:] if row["split"] == "train")["image"] = str(tmp_path / "gone.png")

    path = changed(datalist, tmp_path, spoil)
    words = (*words, "--epochs", 2, "--device", "cpu", "--out", tmp_path / "run")
    finished = command(verb, "--datalist", path, *networks["vit"], *words)
    assert finished.status == 2
    assert "gone.png" in finished.line
    assert not (tmp_path / "run").exists()


def test_picture_that_cannot_be_read(datalist, networks, pretrain_words, command, tmp_path):
    (tmp_path / "text.png").write_text("no picture")

    def spoil(rows):
        for row in rows:
            row["split"] = "train"
        rows[7]["image"] = str(tmp_path / "text.png")

    path = changed(datalist, tmp_path, spoil)
    finished = command("pretrain", "--datalist", path, *networks["vit"], *pretrain_words, "--out", tmp_path / "run")
    assert finished.status == 2
    assert "text.png: not a picture; give a PNG, JPEG, TIFF or DICOM file" in finished.line
    assert not (tmp_path / "run" / "model.safetensors").exists()
    kept = ("--memory", "--out", tmp_path / "kept")  # all pictures are read before anything is written
    finished = command("pretrain", "--datalist", path, *networks["vit"], *pretrain_words, *kept)
    assert finished.status == 2
    assert "text.png: not a picture" in finished.line
    assert not (tmp_path / "kept").exists()


def test_diverging_training(datalist, networks, pretrain_words, command, tmp_path):
    words = ("--learning-rate", 1e30, "--warmup", 0)
    finished = command(
        "pretrain", "--datalist", datalist, *networks["vit"], *pretrain_words, *words, "--out", tmp_path / "run"
    )
    assert finished.status == 2
    assert "is no number; give a lower --learning-rate" in finished.err.splitlines()[-1]


def test_diverging_fine_tuning(datalist, pretrained, tune_words, command, tmp_path):
    words = ("--init", pretrained["vit"], *tune_words, "--learning-rate", 1e30, "--log-every", 100)
    finished = command("fine-tune", "--datalist", datalist, *words, "--out", tmp_path / "run")
    assert finished.status == 2
    # Between two steps whose loss is looked at, it is the validation that meets weights which are no numbers.
    assert "validation_loss of epoch 1 is no number" in finished.err.splitlines()[-1]


# --- fine-tune, predict, evaluate ------------------------------------------------------------------------------------


def test_fine_tune_starts_from_the_pretraining(datalist, pretrained, tune_words, command, tmp_path, monkeypatch):
    import popar.transfer

    seen = {}

    def stand_in(run, network, *rest, **keywords):
        seen.update({name: value.clone() for name, value in network.backbone.state_dict().items()})
        raise KeyboardInterrupt

    monkeypatch.setattr(popar.transfer.core, "fine_tune", stand_in)
    finished = command(
        "fine-tune", "--datalist", datalist, "--init", pretrained["swin"], *tune_words, "--out", tmp_path / "run"
    )
    network, _ = load_pretrained(pretrained["swin"])
    assert all(torch.equal(value, seen[name]) for name, value in network.backbone.state_dict().items())
    assert "tensors loaded, 0 of the backbone's left as they were" in finished.err
    assert "warning: the pretraining normalised with chestxray14, this fine-tuning with imagenet" in finished.err


def test_fine_tune(tuned):
    network, about = load_tuned(tuned)
    assert (about.init, about.labels, about.multi_label, about.image_size) == (
        "POPAR",
        ("Cardiomegaly", "Effusion"),
        True,
        32,
    )
    assert not network.training
    metrics = json.loads((tuned / "metrics.json").read_text())
    assert metrics["best_epoch"] == about.epoch
    assert metrics["loaded"] == 18
    assert metrics["missing"] == []


@pytest.mark.parametrize(
    "words",
    [
        ("--head", "mlp", "--normalisation", "chestxray14"),
        ("--image-size", 64, "--optimizer", "sgd", "--colour"),
        ("--labels", "Effusion", "--drop-path", 0.1, "--memory"),
    ],
)
def test_other_fine_tunings(words, datalist, pretrained, tune_words, command, tmp_path):
    lists = ("fine-tune", "--datalist", datalist, "--init", pretrained["swin"], *tune_words, *words)
    finished = command(*lists, "--out", tmp_path / "run")
    assert finished.status == 0, finished.err
    assert ("warning: the pretraining normalised" in finished.err) == ("chestxray14" not in words)
    scores = tmp_path / "scores"
    model = ("--model", tmp_path / "run", "--device", "cpu", "--out", scores)
    assert command("predict", "--datalist", datalist, *model).status == 0
    _, about = load_tuned(tmp_path / "run")
    assert {row[NAME] for row in rows_of(scores / "predictions.csv")} == set(about.labels)


def test_supervised_weights_as_a_start(datalist, tuned, tune_words, command, tmp_path):
    """Rows "ChestX-ray14" of Table 4: trained on labels, then on other labels with a new head."""
    words = ("fine-tune", "--datalist", datalist, "--init", tuned, *tune_words, "--labels", "Effusion")
    finished = command(*words, "--out", tmp_path / "run")
    assert finished.status == 0, finished.err
    _, about = load_tuned(tmp_path / "run")
    assert (about.init, about.labels) == ("supervised on chestxray14", ("Effusion",))
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["missing"] == []


def test_classes(datalist, networks, tune_words, command, tmp_path):
    def two_classes(rows):
        for row in rows:
            row["healthy"] = str(1 - int(row["Effusion"]))
            del row["Cardiomegaly"]

    path = changed(datalist, tmp_path, two_classes)
    lists = (
        "fine-tune",
        "--datalist",
        path,
        *networks["vit"],
        *tune_words,
        "--target",
        "multi-class",
        "--out",
        tmp_path / "run",
    )
    assert command(*lists).status == 0
    words = ("--model", tmp_path / "run", "--device", "cpu", "--out", tmp_path / "scores")
    assert command("predict", "--datalist", path, *words).status == 0
    scores = rows_of(tmp_path / "scores" / "predictions.csv")
    sums = [float(a["score"]) + float(b["score"]) for a, b in zip(scores[::2], scores[1::2], strict=True)]
    assert sums == pytest.approx([1] * len(sums))
    metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    hits = [(float(a["score"]) > float(b["score"])) == (a["label"] == "1") for a, b in zip(scores[::2], scores[1::2], strict=True)]  # fmt: skip
    assert metrics["accuracy"] == pytest.approx(np.mean(hits))
    assert "; mean AUC on the validation pictures " in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_accuracy_is_called_accuracy(datalist, networks, tune_words, command, tmp_path):
    """Validation pictures of one class have no AUC."""

    def one_class(rows):
        for row in rows:
            row["Effusion"] = "1" if row["split"] == "val" else row["Effusion"]
            row["healthy"] = str(1 - int(row["Effusion"]))
            del row["Cardiomegaly"]

    words = ("fine-tune", "--datalist", changed(datalist, tmp_path, one_class), *networks["vit"], *tune_words)
    assert command(*words, "--target", "multi-class", "--out", tmp_path / "run").status == 0
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "; accuracy on the validation pictures " in report
    assert "mean AUC on the validation pictures" not in report


def test_authors_normalisation(datalist, pretrained, networks, tune_words, command, tmp_path):
    """Their pretraining normalises with ChestX-ray14's statistics; nothing is known of other people's files."""
    network, _ = load_pretrained(pretrained["swin"])
    for prefix in ("swin_model.", ""):
        state = {f"{prefix}{name}": value for name, value in network.backbone.state_dict().items()}
        torch.save({"model": state}, tmp_path / "file.pth")
        words = ("fine-tune", "--datalist", datalist, "--init", tmp_path / "file.pth", *networks["swin"], *tune_words)
        finished = command(*words, "--out", tmp_path / f"run-{prefix}")
        assert finished.status == 0
        warned = "warning: the pretraining normalised with chestxray14, this fine-tuning with imagenet" in finished.err
        assert warned == bool(prefix)
    equal = command(
        *words[:4], tmp_path / "file.pth", *words[5:], "--normalisation", "chestxray14", "--out", tmp_path / "equal"
    )
    assert "warning" not in equal.err


# --- the authors' lists ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder like ChestX-ray14's, of 20 pictures, and lists that put 10, 4 and 6 of them into the three splits."""
    folder = tmp_path_factory.mktemp("published")
    rng, lines = np.random.default_rng(0), ["Image Index,Finding Labels,Patient ID"]
    for i in range(20):
        write_image(folder / "images" / f"{i:08d}_000.png", rng.integers(0, 256, (36, 36), dtype=np.uint8))
        lines.append(f"{i:08d}_000.png,{'Effusion' if i % 2 else 'No Finding'},{i}")
    (folder / "Data_Entry_2017.csv").write_text("\n".join(lines))
    for name, places in (("train", range(10)), ("val", range(10, 14)), ("test", range(14, 20)), ("other", range(6))):
        (folder / f"{name}.txt").write_text("\n".join(f"{i:08d}_000.png 0 1" for i in places))
    return folder


def test_a_network_keeps_its_lists(published, networks, tune_words, command, tmp_path):
    lists = [word for name in ("train", "val", "test") for word in (f"--{name}-list", published / f"{name}.txt")]
    data, run = ("--datalist", published), tmp_path / "run"
    words = ("fine-tune", *data, *lists, *networks["vit"], *tune_words, "--labels", "Effusion", "--out", run)
    assert command(*words).status == 0

    def tested(name, *words, model=run):
        finished = command("predict", *data, *words, "--model", model, "--device", "cpu", "--out", tmp_path / name)
        if finished.status:
            assert not (tmp_path / name).exists()
            return finished.line
        return {Path(row["image"]).name for row in rows_of(tmp_path / name / "predictions.csv")}, finished.err

    listed = {f"{i:08d}_000.png" for i in range(14, 20)}
    for name, given in (("none", ()), ("all", lists), ("one", lists[-2:])):
        found, said = tested(name, *given)
        assert found == listed
        assert "warning" not in said
    other = ("--test-list", published / "other.txt")
    assert tested("other", *other).endswith("was trained with another --test-list; leave it out")
    # A network of before: what is given counts, and a line says what that may mean.
    tensors, metadata = load_weights(run / "model.safetensors")
    about = json.loads(metadata["popar-classifier"])
    del about["lists"]
    save_tensors(tmp_path / "old.safetensors", tensors, {"popar-classifier": json.dumps(about)})
    found, said = tested("old", *other, model=tmp_path / "old.safetensors")
    assert found == {f"{i:08d}_000.png" for i in range(6)}
    assert "warning: " in said
    assert "does not say which lists it was trained with" in said


def test_a_network_without_lists(published, networks, tune_words, command, tmp_path):
    words = ("fine-tune", "--datalist", published, *networks["vit"], *tune_words, "--labels", "Effusion")
    assert command(*words, "--out", tmp_path / "run").status == 0
    words = (
        "predict",
        "--datalist",
        published,
        "--model",
        tmp_path / "run",
        "--device",
        "cpu",
        "--out",
        tmp_path / "scores",
    )
    refused = command(*words, "--test-list", published / "test.txt")
    assert refused.line.endswith("was trained without --test-list; leave it out")
    assert command(*words).status == 0


def test_predict_is_the_mean_of_ten_crops(datalist, tuned, predicted):
    network, about = load_tuned(tuned)
    scores = rows_of(predicted / "predictions.csv")
    test = [row for row in rows_of(datalist) if row["split"] == "test"]
    assert len(scores) == 2 * len(test)
    assert [row["label"] for row in scores] == [row[name] for row in test for name in about.labels]
    image = torch.from_numpy(read_image(datalist.parent / test[0]["image"], "L"))[None]
    # 40 x 48 pixels: the shorter side becomes 37, the longer one 44.
    from torchvision.transforms.v2 import functional as transforms

    resized = transforms.resize(image, [37], antialias=True)
    assert resized.shape == (1, 37, 44)
    crops = torch.stack(transforms.ten_crop(resized, [32, 32])).expand(-1, 3, -1, -1).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    with torch.no_grad():
        expected = network((crops - mean) / std).sigmoid().mean(0)
    assert [float(row["score"]) for row in scores[:2]] == pytest.approx(expected.tolist(), abs=1e-5)


def test_predict_middle_crop_and_other_splits(datalist, tuned, command, tmp_path):
    network, about = load_tuned(tuned)
    words = ("--datalist", datalist, "--model", tuned, "--device", "cpu")
    assert command("predict", *words, "--split", "all", "--crops", "middle", "--out", tmp_path / "all").status == 0
    scores = rows_of(tmp_path / "all" / "predictions.csv")
    assert len(scores) == 60
    pictures = Radiographs(Datalist.read(datalist).rows)
    expected = predict_pictures(network, about, pictures, torch.device("cpu"), "middle", 7)
    assert [float(row["score"]) for row in scores] == pytest.approx(expected.ravel().tolist(), abs=1e-6)


def test_pictures_without_labels(datalist, tuned, command, tmp_path):
    def strip(rows):
        return [{"image": row["image"]} for row in rows[:4]]

    path = changed(datalist, tmp_path, strip)
    words = ("--datalist", path, "--model", tuned, "--device", "cpu", "--out", tmp_path / "scores")
    assert command("predict", *words).status == 0
    scores = rows_of(tmp_path / "scores" / "predictions.csv")
    assert len(scores) == 8
    assert {row["label"] for row in scores} == {""}
    finished = command("evaluate", "--predictions", tmp_path / "scores", "--out", tmp_path / "evaluation")
    assert finished.status == 2
    assert "no picture has a label" in finished.line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--init", "{swin}", "--backbone", "vit_b"), "--backbone is vit_b, the pretraining's was swin_b"),
        (("--init", "{vit}", "--backbone", "swin_b"), "--backbone is swin_b, the pretraining's was vit_b"),
        (("--init", "{gone}"), "no such file"),
        (("--init", "{text}"), "damaged"),
        (("--init", "{swin_file}", "--backbone", "vit_b", "--image-size", 32), "fits only"),
        (("--init", "{vit}", "--image-size", 36), "a side of 36 pixels cannot be divided into patches of 8"),
        (("--init", "{vit}", "--labels", "Mass"), "has no column 'Mass'"),
        (("--init", "{vit}", "--target", "shenzhen"), "has no column 'Tuberculosis'"),
        (("--init", "{vit}", "--target", "multi-class"), "of the classes Cardiomegaly, Effusion are 1"),
        (("--init", "{vit}", "--site", "elsewhere"), "elsewhere"),
        (("--epochs", 1), "--epochs is 1, and in the last epoch the learning rate is 0"),
        (("--init", "{vit}", "--head", "mlp", "--batch-size", 1), "a batch of 1 leaves parts of one picture"),
        (("--init", "{vit}", "--head", "mlp", "--accumulate", 5), "a batch of 8 leaves parts of one picture"),
    ],
)  # fmt: skip
def test_refused_fine_tunings(words, line, datalist, pretrained, tuned, tune_words, command, tmp_path):
    from popar.weights import timm_state

    (tmp_path / "text.pth").write_text("no weights")
    swin, _ = load_pretrained(pretrained["swin"])
    save_tensors(tmp_path / "swin.safetensors", timm_state(swin), {})
    places = {
        **pretrained, "tuned": tuned, "gone": tmp_path / "gone.pth", "text": tmp_path / "text.pth",
        "swin_file": tmp_path / "swin.safetensors",
    }  # fmt: skip
    given = [str(word).format(**places) for word in words]
    finished = command("fine-tune", "--datalist", datalist, *tune_words, *given, "--out", tmp_path / "run")
    assert finished.status == 2
    assert line in finished.line
    assert not (tmp_path / "run").exists()


def test_evaluate_over_seeds(datalist, networks, tuned, predicted, tune_words, command, tmp_path):
    folders = [predicted]
    for seed in (1, 2):
        out, scores = tmp_path / f"random-{seed}", tmp_path / f"scores-{seed}"
        words = ("fine-tune", "--datalist", datalist, *networks["vit"], *tune_words, "--seed", seed, "--out", out)
        assert command(*words).status == 0
        assert (
            command("predict", "--datalist", datalist, "--model", out, "--device", "cpu", "--out", scores).status == 0
        )
        folders.append(scores)
    finished = command("evaluate", "--predictions", *folders, "--out", tmp_path / "evaluation")
    assert finished.status == 0
    assert (
        "chestxray14, random, vit_b at 32, depth=1, embed_dim=16, num_heads=2, patch_size=8: mean AUC" in finished.out
    )
    content = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    row = next(row for row in content["scores"] if row["method"].startswith("random"))
    values = [json.loads((folder / "metrics.json").read_text())["mean_auc"] for folder in folders[1:]]
    assert row["seeds"] == 2
    assert row["mean"] == pytest.approx(np.mean(values))
    assert row["std"] == pytest.approx(np.std(values, ddof=1))
    assert row["std_population"] == pytest.approx(np.std(values))
    (compared,) = content["compared"]
    assert (compared["init"], compared["baseline"], compared["pairs"]) == ("POPAR", "random", 0)
    nobody = command("evaluate", "--predictions", *folders, "--baseline", "Random", "--out", tmp_path / "nobody")
    assert nobody.status == 2
    assert nobody.line.endswith("no network here starts from 'Random'; give one of 'POPAR', 'random'")
    assert not (tmp_path / "nobody").exists()
    report = (tmp_path / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert "sd (n)" in report
    again = command("evaluate", "--predictions", *folders, folders[1], "--out", tmp_path / "twice")
    assert again.status == 2
    assert "two results of seed 1" in again.line


@pytest.mark.parametrize("damage", ["metrics.json", "predictions.csv", "row"])
def test_damaged_predictions(damage, predicted, command, tmp_path):
    import shutil

    folder = shutil.copytree(predicted, tmp_path / "scores")
    if damage == "row":
        lines = (folder / "predictions.csv").read_text().splitlines()
        (folder / "predictions.csv").write_text("\n".join(lines[:-1]) + "\n")
    else:
        (folder / damage).unlink()
    finished = command("evaluate", "--predictions", folder, "--out", tmp_path / "evaluation")
    assert finished.status == 2
    assert str(folder) in finished.line
    if damage == "predictions.csv":
        assert finished.line.endswith("give a folder that `popar predict` wrote")
    assert not (tmp_path / "evaluation").exists()


# --- export ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "swin", "tuned"])
def test_export_is_loaded_by_timm(kind, pretrained, tuned, command, tmp_path):
    model, out = {**pretrained, "tuned": tuned}[kind], tmp_path / "timm.safetensors"
    assert command("export", "--model", model, "--out", out).status == 0
    about = json.loads(read_metadata(out)["timm"])
    words = {key: tuple(value) if isinstance(value, list) else value for key, value in about.items()}
    made = timm.create_model(words.pop("architecture"), checkpoint_path=str(out), **words).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        if kind == "tuned":
            assert torch.equal(made(x), load_tuned(model)[0](x))
        else:
            network = load_pretrained(model)[0]
            assert torch.equal(made.forward_features(x), network.backbone.forward_features(x))


def test_export_of_a_weight_file(pretrained, networks, command, tmp_path):
    network, _ = load_pretrained(pretrained["swin"])
    state = {f"module.swin_model.{name}": value for name, value in network.backbone.state_dict().items()}
    torch.save({"model": state, "epoch": 1}, tmp_path / "authors.pth")
    out = tmp_path / "timm.safetensors"
    assert command("export", "--model", tmp_path / "authors.pth", *networks["swin"], "--out", out).status == 0
    tensors, _ = load_weights(out)
    assert all(torch.equal(value, tensors[name]) for name, value in network.backbone.state_dict().items())


def test_refused_exports(pretrained, command, tmp_path):
    words = ("export", "--model", pretrained["vit"], "--out")
    assert "must end in .safetensors" in command(*words, tmp_path / "a.onnx").line
    assert "make" in command(*words, tmp_path / "nowhere" / "a.safetensors").line
    (tmp_path / "a.safetensors").write_text("mine")
    assert "--overwrite replaces it" in command(*words, tmp_path / "a.safetensors").line
    assert (tmp_path / "a.safetensors").read_text() == "mine"
    other = command(*words, tmp_path / "b.safetensors", "--backbone", "swin_b")
    assert other.status == 2
    assert "says itself what its network is; leave --backbone, --image-size and --network out" in other.line
    gone = command("export", "--model", tmp_path / "gone.safetensors", "--out", tmp_path / "b.safetensors")
    assert gone.status == 2
    assert "no such file" in gone.line
