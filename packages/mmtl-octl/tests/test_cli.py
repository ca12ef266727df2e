"""Every verb on phantoms, end to end, and every bad input: exit status 2, one line, nothing written or lost."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml

from dart_core import metrics
from dart_core.checkpoint import load_weights, save_model, save_weights
from dart_core.data.datalist import Datalist, Row
from dart_core.nets import ResidualUNet2d
from dart_core.testing import assert_commands_answer, assert_exports, assert_help_is_light, is_report
from mmtl_octl.cli import COMMANDS
from mmtl_octl.models import PACKAGE, Model, load_model

# nibabel says it is typed, but these functions are not.
nib: Any = nibabel
Command = Callable[..., Any]
SOURCE, TARGET = "sm3", "ge15"
METHODS = ("none", "mmtl", "octl", "fta", "ftf", "l2sp", "spottune", "target")


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def adapted(
    heads: Any, recipe: Any, source_model: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """A run of `adapt` by method and further flags, made once."""
    from dart_core.cli import main

    folder, made = tmp_path_factory.mktemp("adapted"), {}

    def run(method: str, *flags: object, optimizer: str = "sgd") -> Path:
        key = (method, *flags, optimizer)
        if key not in made:
            start = ("--width", 2) if method == "target" else ("--source-model", source_model[optimizer])
            out = folder / f"run{len(made)}"
            words = ("adapt", *heads, *recipe, *start, "--target", TARGET, "--method", method, *flags, "--out", out)
            assert main("mmtl-octl", COMMANDS, "0", "", [str(word) for word in words]) == 0
            made[key] = out
        return made[key]

    return run


# Help


def test_help_of_every_command(command: Command) -> None:
    assert_commands_answer("mmtl-octl", command)


def test_help_needs_no_heavy_package() -> None:
    assert_help_is_light("mmtl_octl", "adapt")


def test_public_names() -> None:
    assert_exports(
        "mmtl_octl", "target_count", "MixedBatches", "OCTLSGD", "OCTLAdam", "save_history", "load_history"
    )  # fmt: skip


# check-data, pretrain


def test_check_data(command: Command, heads: Any, datalist: Path, tmp_path: Path) -> None:
    done = command("check-data", *heads)
    assert done.status == 0
    assert done.out.splitlines() == [
        "site sm3: 3 train, 1 val, 1 test", "site ge15: 3 train, 1 val, 1 test", "10 scans: no problems",
    ]  # fmt: skip
    rows = list(Datalist.read(datalist))
    rows[3] = Row(rows[3].image, None, rows[3].subject, rows[3].site, rows[3].split)
    broken = Datalist(tuple(rows)).write(tmp_path / "list.csv")
    done = command("check-data", "--datalist", broken, "--preprocessing", "plain")
    assert done.status == 2
    assert "list.csv, row 5, column mask: this row has no mask" in done.out
    assert done.out.endswith("10 scans: 1 problem\n")
    assert command("check-data", "--datalist", broken, "--preprocessing", "plain", "--no-require-mask").status == 0


def test_pretrain_writes_network_and_history(source_model: Any) -> None:
    for optimizer, run in source_model.items():
        assert {path.name for path in run.iterdir()} == {
            "checkpoints", "config.yaml", "metrics.json", "metrics.jsonl", "model.safetensors", "history.safetensors",
            "report.html",
        }  # fmt: skip
        settings = yaml.safe_load((run / "config.yaml").read_text())
        assert (settings["optimizer"], settings["learning_rate"], settings["seed"]) == (optimizer, 1e-3, 0xBADCAFE)
        network, model = load_model(run)
        assert (model.source, model.width, model.optimizer, model.method) == ([SOURCE], 2, optimizer, "source")
        history, metadata = load_weights(run / "history.safetensors")
        assert metadata["history"] == optimizer
        names = [name for name, _ in network.named_parameters()]
        assert json.loads(metadata["parameters"]) == names
        buffers = {key.split("/")[0] for key in history}
        assert buffers == ({"momentum_buffer"} if optimizer == "sgd" else {"exp_avg", "exp_avg_sq", "step"})
        if optimizer == "adam":
            assert {float(value) for key, value in history.items() if key.startswith("step/")} == {6.0}
        assert is_report(run / "report.html", "Loss during training", "Validation scans", SOURCE)


def test_source_is_every_site_but_the_target(command: Command, prostates: Path, recipe: Any, tmp_path: Path) -> None:
    words = ("--datalist", prostates, "--preprocessing", "prostate", *recipe, "--width", 2, "--target", "BMC")
    assert command("pretrain", *words, "--out", tmp_path / "run").status == 0
    _, model = load_model(tmp_path / "run")
    assert model.source == ["RUNMC", "UCL"]
    assert model.channels == 3


# adapt


@pytest.mark.parametrize("method", METHODS)
def test_every_method_writes_a_run(method: str, adapted: Any, source_model: Any) -> None:
    run = adapted(method)
    assert {"config.yaml", "metrics.json", "model.safetensors", "report.html"} <= {p.name for p in run.iterdir()}
    network, model = load_model(run)
    start, _ = load_model(source_model["sgd"])
    assert (model.method, model.target) == (method, TARGET)
    assert model.source == ([] if method == "target" else [SOURCE])
    amount = {"none": (0, 0), "target": (3, 24)}.get(method, (1, 8))
    assert (model.patients, model.slices) == amount
    if method == "none":
        assert all(
            torch.equal(a, b) for a, b in zip(network.state_dict().values(), start.state_dict().values(), strict=True)
        )
    elif method != "spottune":
        assert not torch.equal(network.init_path[0].weight, start.init_path[0].weight)
    words = {"mmtl": ("Schedule",), "spottune": ("Policy",)}.get(method, ())
    assert is_report(run / "report.html", *words)


def test_control_with_momentum_has_a_name_of_its_own(adapted: Any) -> None:
    _, model = load_model(adapted("fta", "--momentum", 0.99))
    assert model.method == "fta_mu099"


def test_from_scratch_on_the_same_few_slices(adapted: Any) -> None:
    _, model = load_model(adapted("target", "--patients", 1, "--interval", 3))
    assert (model.patients, model.interval, model.slices) == (1, 3, 2)


def test_fine_tuning_takes_the_optimiser_of_its_source(adapted: Any) -> None:
    run = adapted("octl", "--start-step", "keep", optimizer="adam")
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert (settings["optimizer"], settings["width"], settings["start_step"]) == ("adam", 2, "keep")


def test_octl_without_momentum(adapted: Any) -> None:
    assert load_model(adapted("octl", "--momentum", 0))[1].method == "octl_mu0"


def test_amount_of_target_data(adapted: Any) -> None:
    _, model = load_model(adapted("mmtl", "--patients", 2, "--interval", 2, "--schedule", "release", "--keep-source"))
    assert (model.patients, model.interval, model.slices) == (2, 2, 8)


def test_best_epoch_on_validation(adapted: Any) -> None:
    run = adapted("fta", "--keep", "best")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = [line["validation_dice"] for line in lines if "validation_dice" in line]
    assert len(scores) == 3
    assert json.loads((run / "metrics.json").read_text())["validation_dice"] == pytest.approx(max(scores), abs=1e-6)


def test_prostates_are_fine_tuned_at_a_tenth_of_the_rate(
    command: Command, prostates: Path, recipe: Any, tmp_path: Path
) -> None:
    data = ("--datalist", prostates, "--preprocessing", "prostate")
    words = (*data, *recipe, "--width", 2, "--target", "BMC", "--optimizer", "adam")
    assert command("pretrain", *words, "--out", tmp_path / "source").status == 0
    words = (*data, *recipe, "--target", "BMC", "--source-model", tmp_path / "source", "--method", "mmtl")
    assert command("adapt", *words, "--out", tmp_path / "mmtl").status == 0
    settings = yaml.safe_load((tmp_path / "mmtl" / "config.yaml").read_text())
    assert settings["learning_rate"] == 1e-4
    assert command("predict", *data, "--model", tmp_path / "mmtl", "--out", tmp_path / "masks").status == 0
    (row,) = read_csv(tmp_path / "masks" / "predictions.csv")
    assert (row["site"], row["source_site"], row["method"]) == ("BMC", "RUNMC+UCL", "mmtl")
    mask = np.asarray(nib.as_closest_canonical(nib.load(tmp_path / "masks" / row["prediction"])).dataobj)
    assert not mask[..., [0, -1]].any()
    done = command("evaluate", "--predictions", tmp_path / "masks", "--out", tmp_path / "scores")
    assert done.status == 0
    (table,) = read_csv(tmp_path / "scores" / "tables.csv")
    assert table["metric"] == "dice"


# predict, evaluate


@pytest.fixture(scope="module")
def predicted(adapted: Any, heads: Any, source_model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from dart_core.cli import main

    base, folders = tmp_path_factory.mktemp("predicted"), {}
    models = {"none": source_model["sgd"], "mmtl": adapted("mmtl"), "fta": adapted("fta"), "target": adapted("target"),
              "adam": adapted("octl", "--start-step", "keep", optimizer="adam")}  # fmt: skip
    for name, model in models.items():
        for site in (TARGET, SOURCE):
            folders[f"{name} {site}"] = out = base / f"{name}-{site}"
            words = ("predict", *heads, "--model", model, "--site", site, "--device", "cpu", "--out", out)
            assert main("mmtl-octl", COMMANDS, "0", "", [str(word) for word in words]) == 0
    return folders


def test_predict_writes_masks(predicted: Any, datalist: Path) -> None:
    folder = predicted[f"mmtl {TARGET}"]
    (row,) = read_csv(folder / "predictions.csv")
    assert (row["source_site"], row["site"], row["target_site"], row["method"]) == (SOURCE, TARGET, TARGET, "mmtl")
    assert (row["optimizer"], row["seed"], row["patients"], row["slices"]) == ("sgd", str(0xBADCAFE), "1", "8")
    image, mask = nib.load(folder / row["image"]), nib.load(folder / row["prediction"])
    assert image.shape == mask.shape
    np.testing.assert_allclose(image.affine, mask.affine, atol=1e-4)
    assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1}
    assert is_report(folder / "report.html", "Predictions")


def test_predict_options(command: Command, heads: Any, adapted: Any, tmp_path: Path) -> None:
    words = (
        "--model",
        adapted("fta"),
        "--probabilities",
        "--largest-component",
        "on",
        "--filter-slices",
        "--device",
        "cpu",
    )
    assert command("predict", *heads, *words, "--split", "all", "--out", tmp_path / "out").status == 0
    rows = read_csv(tmp_path / "out" / "predictions.csv")
    assert len(rows) == 5
    assert len(list((tmp_path / "out").glob("*_probability.nii.gz"))) == 5


def test_evaluate_scores_target_and_source(predicted: Any, command: Command, tmp_path: Path) -> None:
    folders = [
        folder for name, folder in predicted.items() if not name.startswith("adam") and name != f"target {SOURCE}"
    ]
    done = command("evaluate", "--predictions", *folders, "--tolerance", 6, "--out", tmp_path / "scores")
    assert done.status == 0
    names = {path.name for path in (tmp_path / "scores").iterdir()}
    assert names == {"config.yaml", "scores.csv", "forgetting.csv", "tables.csv", "metrics.json", "report.html"}
    results = json.loads((tmp_path / "scores" / "metrics.json").read_text())["results"]
    assert [(r["source"], r["target"], r["method"]) for r in results] == [
        (SOURCE, TARGET, method) for method in ("none", "fta", "mmtl", "target")
    ]
    folder = predicted[f"fta {TARGET}"]
    (row,) = read_csv(folder / "predictions.csv")
    masks = [np.asarray(nib.load(folder / row[name]).dataobj) > 0 for name in ("prediction", "mask")]
    assert results[1]["dice"] == pytest.approx(metrics.dice(*masks), abs=1e-6)
    tables = read_csv(tmp_path / "scores" / "tables.csv")
    assert [(t["tested_on"], t["method"]) for t in tables] == [
        ("target", "none"), ("target", "fta"), ("target", "mmtl"), ("target", "target"),
        ("source", "none"), ("source", "fta"), ("source", "mmtl"),
    ]  # fmt: skip
    remembered = {r["method"]: float(r["surface_dice"]) for r in read_csv(tmp_path / "scores" / "forgetting.csv")}
    assert float(tables[-1]["mean"]) == pytest.approx(remembered["mmtl"], abs=1e-6)
    assert is_report(tmp_path / "scores" / "report.html", "Forgetting", "Methods", "Examples")
    assert "Printed in the paper" not in (tmp_path / "scores" / "report.html").read_text(encoding="utf-8")


def test_optimisers_are_told_apart(predicted: Any, command: Command, tmp_path: Path) -> None:
    folders = [predicted[f"fta {TARGET}"], predicted[f"adam {TARGET}"]]
    done = command("evaluate", "--predictions", *folders, "--out", tmp_path / "scores")
    assert done.status == 0
    assert "fta sgd" in done.out
    assert "octl_startkeep adam" in done.out


def test_printed_tables_stand_beside_the_papers_own_data(predicted: Any, command: Command, tmp_path: Path) -> None:
    """The same predictions with the names of CC359's patients."""
    folder = shutil.copytree(predicted[f"mmtl {TARGET}"], tmp_path / "masks")
    text = (folder / "predictions.csv").read_text()
    (row,) = read_csv(folder / "predictions.csv")
    absolute = {name: str((predicted[f"mmtl {TARGET}"] / row[name]).resolve()) for name in ("image", "mask")}
    text = text.replace(row["subject"], "CC0240").replace(row["image"], absolute["image"])
    (folder / "predictions.csv").write_text(text.replace(row["mask"], absolute["mask"]))
    assert command("evaluate", "--predictions", folder, "--out", tmp_path / "scores").status == 0
    assert is_report(tmp_path / "scores" / "report.html", "Printed in the paper", "89.13 ± 0.45", "86.99")


def test_features_become_fig_1(command: Command, adapted: Any, predicted: Any, tmp_path: Path) -> None:
    run = adapted("mmtl", "--features", 0, 3)
    assert {path.name for path in (run / "features").iterdir()} == {"epoch-000.npz", "epoch-003.npz"}
    assert is_report(run / "report.html", "Features during fine-tuning", "epoch")
    words = ("--predictions", predicted[f"mmtl {TARGET}"], "--features", run, "--out", tmp_path / "scores")
    assert command("evaluate", *words).status == 0
    assert is_report(tmp_path / "scores" / "report.html", "Features during fine-tuning")


# Bad input


@pytest.fixture
def refused(command: Command, tmp_path: Path) -> Callable[..., str]:
    """Run a command that must fail with one line and leave nothing; gives the line."""

    def run(*words: object) -> str:
        out = tmp_path / "refused"
        done = command(*words, "--out", out)
        assert done.status == 2, done
        assert not out.exists()
        line: str = done.line
        assert line.startswith("mmtl-octl: error: ")
        return line

    return run


@pytest.fixture
def words(heads: Any, recipe: Any, source_model: Any) -> tuple[object, ...]:
    """`adapt` of the SGD network, without method."""
    return ("adapt", *heads, *recipe, "--source-model", source_model["sgd"], "--target", TARGET, "--method")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("fta", "--patients", 9), "site ge15 has 3 training patients; give --patients 3 or fewer"),
        (("fta", "--interval", 9), "its 8 slices leave none to train on; give a smaller --interval"),
        (("fta", "--interval", 0), "--interval is 0; give at least 1"),
        (("mmtl", "--momentum", 0.9), "--momentum has no meaning for --method mmtl"),
        (("octl", "--momentum", 1.0), "--momentum is 1.0; give a number from 0 to below 1"),
        (("octl", "--optimizer", "adam"), "is the history of SGD; the optimiser here is Adam"),
        (("fta", "--momentum", 0.99, "--optimizer", "adam"), "--momentum is for the optimiser sgd"),
        (("octl", "--betas", 0.9, 1.0), "--betas are (0.9, 1.0)"),
        (("octl", "--start-step", -1), "--start-step is -1; give at least 0"),
        (("octl", "--start-step", "fresh"), "--start-step is 'fresh', not"),
        (("l2sp", "--alpha", -1), "--alpha is -1.0; give at least 0"),
        (("spottune", "--features", 0), "--features has no meaning for --method spottune"),
        (("fta", "--features", 4), "--features 4 is after the last epoch; give 0 to 3"),
        (("spottune", "--accumulate", 2), "--accumulate has no meaning for --method spottune"),
        (("mtl",), "--method is 'mtl', not one of none, mmtl, octl"),
        (("target",), "--method target starts from random weights; leave out --source-model"),
        (("fta", "--patch-size", 12), "--patch-size is 12; give a multiple of 8 such as 16, or 0"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_bad_options(flags: Any, expected: str, words: Any, refused: Any) -> None:
    assert expected in refused(*words, *flags)


def test_wrong_sites(words: Any, refused: Any, heads: Any, recipe: Any, source_model: Any) -> None:
    adapt = words[: words.index("--target")]
    assert f"{SOURCE} is a source site of this network" in refused(*adapt, "--target", SOURCE, "--method", "fta")
    assert "'ge51'" in refused(*adapt, "--target", "ge51", "--method", "fta")
    assert "'ge51'" in refused(*adapt, "--target", "ge51", "--method", "none")
    assert "holds 2 sites; name the source: --source sm3" in refused("pretrain", *heads, *recipe)
    assert "'ge51'" in refused("pretrain", *heads, *recipe, "--target", "ge51")
    both = ("--source", SOURCE, TARGET, "--target", TARGET)
    assert f"{TARGET} is both source and target" in refused("pretrain", *heads, *recipe, *both)
    predict = ("predict", *heads, "--model", source_model["sgd"], "--device", "cpu")
    assert "a source network has no target site; name one: --site" in refused(*predict)


def test_models_that_do_not_fit(
    words: Any, refused: Any, adapted: Any, heads: Any, datalist: Path, source_model: Any, recipe: Any, tmp_path: Path
) -> None:
    adapt = ("adapt", *heads, *recipe, "--target", TARGET, "--method", "octl", "--source-model")
    assert "--method octl needs --source-model" in refused(*adapt[:-1])
    assert "was fine-tuned on ge15; give a run of `pretrain`" in refused(*adapt, adapted("fta"))
    assert "no such file" in refused(*adapt, tmp_path / "absent.safetensors")
    (tmp_path / "empty").mkdir()
    assert "holds no model.safetensors; finish the training run" in refused(*adapt, tmp_path / "empty")
    save_weights(tmp_path / "other.safetensors", ResidualUNet2d(width=2), {})
    assert "is no segmentation network of mmtl-octl" in refused(*adapt, tmp_path / "other.safetensors")
    copied = shutil.copytree(source_model["sgd"], tmp_path / "copied")
    (copied / "history.safetensors").unlink()
    assert "there is no gradient history; pre-train with" in refused(*adapt, copied)
    shutil.copy(copied / "model.safetensors", copied / "history.safetensors")
    assert "holds no gradient history; give a file that save_history wrote" in refused(*adapt, copied)


def test_history_of_another_network(words: Any, refused: Any, source_model: Any, tmp_path: Path) -> None:
    copied = shutil.copytree(source_model["sgd"], tmp_path / "copied")
    model = Model(**json.loads(load_weights(copied / "model.safetensors")[1]["mmtl-octl"]))
    wider = Model(**{**model.__dict__, "width": 3})
    save_model(copied, ResidualUNet2d(width=3), PACKAGE, wider)
    start = words.index("--source-model")
    line = refused(*words[: start + 1], copied, *words[start + 2 :], "octl")
    assert "history.safetensors: belongs to another network: 'init_path.0.weight' has shape (2, 1, 3, 3)" in line
    assert "in this network (3, 1, 3, 3)" in line


def test_channels_of_another_preprocessing(refused: Any, datalist: Path, recipe: Any, source_model: Any) -> None:
    words = ("--datalist", datalist, "--preprocessing", "prostate")
    line = refused(
        "adapt", *words, *recipe, "--source-model", source_model["sgd"], "--target", TARGET, "--method", "fta"
    )
    assert "--preprocessing was plain when this network was trained and is prostate now" in line
    line = refused("predict", *words, "--model", source_model["sgd"], "--site", TARGET, "--device", "cpu")
    assert "--preprocessing was plain" in line
    line = refused("predict", "--datalist", datalist, "--preprocessing", "plain", "--spacing", 4, 4, 4, "--model",
                   source_model["sgd"], "--site", TARGET, "--device", "cpu")  # fmt: skip
    assert "--spacing was that of the files when this network was trained and is 4 4 4 now" in line


@pytest.fixture
def changed(datalist: Path, tmp_path: Path) -> Callable[..., Path]:
    """The heads with one file of the target site replaced."""

    def change(column: str, index: int, alter: Callable[[np.ndarray], np.ndarray]) -> Path:
        rows = list(Datalist.read(datalist))
        row = [row for row in rows if row.site == TARGET][index]
        old = getattr(row, column)
        image = nib.load(old)
        new = tmp_path / f"changed_{old.name}"
        nib.save(nib.Nifti1Image(alter(np.asarray(image.dataobj)), image.affine), new)
        values = {"image": row.image, "mask": row.mask, column: new}
        rows[rows.index(row)] = Row(values["image"], values["mask"], row.subject, row.site, row.split)
        return Datalist(tuple(rows)).write(tmp_path / "changed.csv")

    return change


def test_images_with_channels(changed: Any, words: Any, refused: Any) -> None:
    """One site's images have three channels."""
    listed = changed("image", 0, lambda voxels: np.stack([voxels] * 3, -1))
    line = refused(*(listed if word == words[2] else word for word in words), "mmtl")
    assert "changed_ge15" in line
    assert "4" in line


def test_wrong_labels(changed: Any, words: Any, refused: Any) -> None:
    def with_three(mask: np.ndarray) -> np.ndarray:
        mask = mask.astype(np.uint8)
        mask[tuple(np.argwhere(mask)[0])] = 3
        return mask

    listed = changed("mask", 0, with_three)
    line = refused(*(listed if word == words[2] else word for word in words), "fta")
    assert "changed_ge15" in line
    assert "labels" in line


def test_slices_of_another_size(changed: Any, words: Any, refused: Any) -> None:
    listed = changed("image", 0, lambda voxels: voxels[:24])
    line = refused(*(listed if word == words[2] else word for word in words), "fta")
    assert "changed_ge15" in line


def test_site_with_one_patient(datalist: Path, refused: Any, recipe: Any, tmp_path: Path, source_model: Any) -> None:
    rows = [row for row in Datalist.read(datalist) if row.site == TARGET]
    rows += [row for row in Datalist.read(datalist) if row.site == SOURCE and row.split == "train"][:1]
    listed = Datalist(tuple(rows)).write(tmp_path / "one.csv")
    words = ("--datalist", listed, "--preprocessing", "plain")
    line = refused("pretrain", *words, *recipe, "--source", SOURCE)
    assert line == f"mmtl-octl: error: {listed}: site sm3, split train: 1 subject, at least 2 are needed; " + (
        "add scans of other subjects, or choose another site or split"
    )
    line = refused("predict", *words, "--model", source_model["sgd"], "--site", SOURCE, "--device", "cpu")
    assert "site sm3 has no row with split test (there: train)" in line


@pytest.fixture
def without_validation(tmp_path: Path) -> Callable[[Path, str], Path]:
    """A datalist less the validation rows of one site."""

    def write(listed: Path, site: str) -> Path:
        rows = tuple(row for row in Datalist.read(listed) if (row.site, row.split) != (site, "val"))
        return Datalist(rows).write(tmp_path / "some.csv")

    return write


def test_validation_scans_at_some_sites_only(
    without_validation: Any, datalist: Path, words: Any, command: Command, refused: Any, tmp_path: Path
) -> None:
    listed = without_validation(datalist, TARGET)
    words = [listed if word == words[2] else word for word in words]
    assert "--keep best needs validation scans" in refused(*words, "fta", "--keep", "best")
    assert command(*words, "fta", "--out", tmp_path / "run").status == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["validation_scans"] == 0


def test_source_training_with_validation_scans_at_some_sites_only(
    without_validation: Any, prostates: Path, recipe: Any, command: Command, tmp_path: Path
) -> None:
    listed = without_validation(prostates, "UCL")
    words = ("--datalist", listed, "--preprocessing", "prostate", *recipe, "--width", 2, "--target", "BMC")
    assert command("pretrain", *words, "--out", tmp_path / "run").status == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["validation_scans"] == 1


def test_features_of_slices_of_another_size(datalist: Path, words: Any, refused: Any, tmp_path: Path) -> None:
    """A test scan, whose features are only taken after the first epoch."""
    rows = list(Datalist.read(datalist))
    (row,) = (row for row in rows if (row.site, row.split) == (TARGET, "test"))
    for path in (row.image, row.mask):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:24], image.affine), tmp_path / path.name)
    smaller = Row(tmp_path / row.image.name, tmp_path / row.mask.name, row.subject, row.site, row.split)
    rows[rows.index(row)] = smaller
    listed = Datalist(tuple(rows)).write(tmp_path / "smaller.csv")
    words = [listed if word == words[2] else word for word in words]
    assert "slices of 24 x 40 pixels; those of " in refused(*words, "fta", "--features", 1)


def test_the_same_network_twice(predicted: Any, refused: Any, tmp_path: Path) -> None:
    folder = predicted[f"fta {TARGET}"]
    again = folder.parent / "again"
    shutil.copytree(folder, again)
    line = refused("evaluate", "--predictions", folder, again)
    assert f"{again}: holds fta with sgd, seed {0xBADCAFE}, {SOURCE} → {TARGET}, as {folder} does already" in line


def test_best_without_validation_scans(datalist: Path, refused: Any, words: Any, tmp_path: Path) -> None:
    rows = tuple(row for row in Datalist.read(datalist) if row.split != "val")
    listed = Datalist(rows).write(tmp_path / "few.csv")
    line = refused(*(listed if word == words[2] else word for word in words), "fta", "--keep", "best")
    assert "--keep best needs validation scans" in line


def test_predictions_of_another_program(predicted: Any, refused: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(predicted[f"mmtl {TARGET}"], tmp_path / "masks")
    (folder / "metrics.json").write_text("{}")
    (folder / "predictions.csv").unlink()
    assert "predictions.csv: cannot be read" in refused("evaluate", "--predictions", folder)
    original = predicted[f"mmtl {TARGET}"]
    kept = (original / "metrics.json").read_text()
    try:
        (original / "metrics.json").write_text("{}")
        line = refused("evaluate", "--predictions", original)
    finally:
        (original / "metrics.json").write_text(kept)
    assert "metrics.json: does not say which network made the predictions" in line
    assert "holds no features/" in refused("evaluate", "--predictions", original, "--features", folder)


def test_a_run_is_not_overwritten(command: Command, adapted: Any, words: Any) -> None:
    run = adapted("fta")
    before = (run / "model.safetensors").read_bytes()
    done = command(*words, "fta", "--out", run)
    assert done.status == 2
    assert "holds a run already; --resume continues it, --overwrite replaces it" in done.line
    assert (run / "model.safetensors").read_bytes() == before


def test_a_change_of_optimiser_is_said(command: Command, words: Any, tmp_path: Path) -> None:
    done = command(*words, "fta", "--optimizer", "adam", "--out", tmp_path / "run")
    assert done.status == 0
    assert "warning: " in done.err
    assert "was trained with sgd" in done.err
