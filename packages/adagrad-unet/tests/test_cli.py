"""Every verb on phantoms, end to end, and every bad input: exit status 2, one line, nothing written or lost."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml

from adagrad_unet import settings as of
from adagrad_unet.cases import Recipe, read_case
from adagrad_unet.cli import COMMANDS
from adagrad_unet.prediction import load_unet, segment_case
from dart_core.checkpoint import load_weights, read_metadata, save_weights
from dart_core.data.datalist import Datalist
from dart_core.nets import ResidualUNet2d
from dart_core.testing import assert_commands_answer, assert_exports, assert_help_is_light, is_report

nib: Any = nibabel
Command = Callable[..., Any]


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def copied(datalist: Path, folder: Path) -> Path:
    """A copy of a phantom set to break."""
    shutil.copytree(datalist.parent, folder)
    return folder / datalist.name


# Help


def test_help_of_every_command(command: Command) -> None:
    assert_commands_answer("adagrad-unet", command)


def test_help_needs_no_heavy_package() -> None:
    assert_help_is_light("adagrad_unet", "train")


def test_public_names() -> None:
    assert_exports(
        "adagrad_unet", "AvaGrad", "deep_supervision_weights", "dice_ce_loss", "downsample_labels", "layer_update_magnitude",
        "loader_patch_size", "plan_unet_2d", "poly_lr", "sliding_window_predict",
    )  # fmt: skip


# check-data, plan


def test_check_data(command: Command, heads: Path, hearts: Path) -> None:
    done = command("check-data", "--datalist", heads)
    assert (done.status, done.out) == (0, "15 images (ge3 5, sm15 5, ph3 5): no problems\n")
    done = command("check-data", "--datalist", hearts, "--site", "C", "--labels", "LV", "MYO", "RV")
    assert (done.status, done.out) == (0, "8 images (C 8): no problems\n")
    done = command("check-data", "--datalist", hearts, "--labels", "LV", "MYO")
    assert done.status == 2
    assert "row 2, column mask: " in done.out
    assert "has label 3, and the labels are LV, MYO; correct the mask, or name all labels with --labels" in done.out
    assert done.out.endswith("16 images (B 8, C 8): 16 problems\n")
    assert command("check-data", "--datalist", hearts, "--merge-labels", "--labels", "heart").status == 0


def test_check_data_lists_all_problems(command: Command, heads: Path, tmp_path: Path) -> None:
    """A voxel size of zero, a truncated file, a missing channel, a missing mask: all in one go, with row and column."""
    datalist = copied(heads, tmp_path / "set")
    rows = read_csv(datalist)
    zero, cut = (tmp_path / "set" / rows[i]["image"] for i in (0, 1))
    plain = zero.with_suffix("")
    content = bytearray(nib.load(zero).to_bytes())
    content[80:84] = np.float32(0).tobytes()
    plain.write_bytes(bytes(content))
    cut.write_bytes(cut.read_bytes()[:500])
    rows[0]["image"] = str(plain.relative_to(tmp_path / "set"))
    for i, row in enumerate(rows):
        row["image_1"] = row["image"] if i != 3 else ""
    rows[5]["mask"] = ""
    with open(datalist, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    done = command("check-data", "--datalist", datalist)
    assert done.status == 2
    lines = done.out.splitlines()
    assert len(lines) == 5
    assert "row 2, column image: " in lines[0]
    assert "the voxel size in the header is" in lines[0]
    assert "row 3, column image: " in lines[1]
    assert "row 5, column image: " in lines[2]
    assert "of site ge3 has 1 channel where 2 are needed" in lines[2]
    assert "row 7, column mask: no mask" in lines[3]
    assert lines[4] == "15 images (ge3 5, sm15 5, ph3 5): 4 problems"
    assert (
        command("check-data", "--datalist", datalist, "--no-require-mask").out.splitlines()[-1].endswith("3 problems")
    )


def test_plan(command: Command, heads: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    done = command("plan", "--datalist", heads, "--site", "ge3", "--slice-axis", "z", "--out", out)
    assert done.status == 0
    assert done.line == f"plan: {out}"
    recipe = Recipe.from_text(out.read_text(), out)
    assert recipe.labels == ("foreground",)
    assert recipe.slice_axis == 0
    assert recipe.plan.patch_size == (40, 32)
    shown = dict(
        line.split(maxsplit=1) for line in done.out.splitlines() if not line.startswith(("training", "ch", "sl", "fe"))
    )
    assert shown["patch"] == "40 x 32"
    assert int(shown["parameters"].replace(",", "")) > 100_000
    assert command("plan", "--datalist", heads, "--site", "ge3", "--out", out).line.endswith(
        "plan.json: is there already; --overwrite replaces it"
    )
    assert command("plan", "--datalist", heads, "--site", "ge3", "--out", tmp_path / "plan").status == 2


# train


def test_train_writes_a_run(trained: dict[str, Path]) -> None:
    run = trained["avagrad"]
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "metrics.json", "metrics.jsonl", "report.html", "checkpoints", "model.safetensors", "plan.json",
    }  # fmt: skip
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["optimizer"] == "avagrad"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["method"] == "AG-2"
    assert set(metrics["updates"]) == {"mean_abs", "l2", "relative"}
    assert all(value > 0 for value in metrics["updates"]["mean_abs"].values())
    assert metrics["rates"]["rate_min"] <= metrics["rates"]["rate_p50"] <= metrics["rates"]["rate_max"]
    assert is_report(run / "report.html", "Speed of the layers", "Is the optimiser adaptive here?", "Plan", "AG-2 ")
    metadata = read_metadata(run / "model.safetensors")
    assert (metadata["method"], metadata["site"], metadata["mirror"]) == ("AG-2", "ge3", "yes")
    sgd = json.loads((trained["sgd"] / "metrics.json").read_text())
    assert (sgd["method"], sgd["rates"]) == ("S-2", {})


def test_train_from_a_plan_is_the_same(
    command: Command, heads: Path, trained: dict[str, Path], tiny: Any, tmp_path: Path
) -> None:
    planner = tiny[: tiny.index("--epochs")]
    assert command("plan", "--datalist", heads, "--site", "ge3", *planner, "--out", tmp_path / "plan.json").status == 0
    rest = ("--datalist", heads, "--site", "ge3", "--plan", tmp_path / "plan.json", "--cache", tmp_path / "cache")
    for out in ("one", "other"):  # with an empty and with a filled cache
        done = command("train", *rest, *tiny[len(planner) :], "--out", tmp_path / out)
        assert done.status == 0, done.err
        weights, expected = (load_weights(run / "model.safetensors")[0] for run in (tmp_path / out, trained["avagrad"]))
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
    refused = command("train", *rest, *tiny, "--out", tmp_path / "third")
    assert refused.status == 2
    assert "--plan leaves nothing to plan" in refused.line


def test_decoupled_decay_is_warned_of(command: Command, heads: Path, tiny: Any, tmp_path: Path) -> None:
    words = ("--datalist", heads, "--site", "ge3", *tiny, "--epochs", 1, "--batches", 1, "--decoupled")
    done = command("train", *words, "--out", tmp_path / "a")
    assert done.status == 0
    first = done.err.splitlines()[0]
    assert first == "warning: --decoupled at --learning-rate 10 multiplies all weights by 0.9997 in every step at first"
    assert "warning" not in command("train", *words, "--learning-rate", 0.1, "--out", tmp_path / "b").err


def test_two_channels_through_all_commands(command: Command, heads: Path, tiny: Any, tmp_path: Path) -> None:
    datalist = copied(heads, tmp_path / "set")
    rows = read_csv(datalist)
    for row in rows:
        row["image_1"] = row["image"]
    with open(datalist, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    words = ("--datalist", datalist, "--site", "ge3")
    assert command("train", *words, *tiny, "--epochs", 1, "--out", tmp_path / "run").status == 0
    assert (
        command("predict", *words, "--split", "test", "--model", tmp_path / "run", "--out", tmp_path / "p").status == 0
    )
    # Images of one channel are refused by name before anything is written.
    refused = command("predict", "--datalist", heads, "--model", tmp_path / "run", "--out", tmp_path / "q")
    assert refused.status == 2
    assert "has 1 channel where 2 are needed; give the images of all sites the same channels" in refused.line
    assert not (tmp_path / "q").exists()


# predict, evaluate, layer-speed


@pytest.fixture(scope="module")
def predicted(heads: Path, trained: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from adagrad_unet import __version__
    from adagrad_unet.cli import DESCRIPTION
    from dart_core.cli import main

    folder = tmp_path_factory.mktemp("predicted")
    for name, run in trained.items():
        words = [
            "predict",
            "--datalist",
            heads,
            "--split",
            "test",
            "--model",
            run,
            "--out",
            folder / name,
            "--device",
            "cpu",
        ]
        assert main("adagrad-unet", COMMANDS, __version__, DESCRIPTION, [str(word) for word in words]) == 0
    return {name: folder / name for name in trained}


def test_predict_writes_masks_on_the_files_own_grid(
    heads: Path, trained: dict[str, Path], predicted: dict[str, Path]
) -> None:
    rows = read_csv(predicted["avagrad"] / "predictions.csv")
    assert [row["site"] for row in rows] == ["ge3", "sm15", "ph3"]
    assert {(row["source_site"], row["method"]) for row in rows} == {("ge3", "AG-2")}
    network, recipe = load_unet(
        trained["avagrad"] / "model.safetensors", read_metadata(trained["avagrad"] / "model.safetensors")
    )
    tests = [row for row in Datalist.read(heads) if row.split == "test"]
    for row, source in zip(rows, tests, strict=True):
        written, image = nib.load(predicted["avagrad"] / row["prediction"]), nib.load(source.image)
        assert written.shape == image.shape
        np.testing.assert_allclose(written.affine, image.affine, atol=1e-5)
        labels = segment_case(network, read_case(source, recipe, 1), recipe)
        canonical = nib.as_closest_canonical(written)
        np.testing.assert_array_equal(np.asarray(canonical.dataobj), labels)
    assert json.loads((predicted["avagrad"] / "metrics.json").read_text()) == {"scans": 3, "labels": {}, "mirror": True}
    assert is_report(predicted["avagrad"] / "report.html", "AG-2")


def test_mirroring_follows_the_training(command: Command, hearts: Path, heart_run: Path, tmp_path: Path) -> None:
    """Runs without augmentation are predicted without mirroring, unless somebody asks for it."""
    masks = {}
    for mirror in ("as-trained", "no", "yes"):
        out = tmp_path / mirror
        words = ("--datalist", hearts, "--split", "test", "--model", heart_run, "--mirror", mirror, "--out", out)
        assert command("predict", *words).status == 0
        masks[mirror] = [np.asarray(nib.load(file).dataobj) for file in sorted(out.glob("*_mask.nii.gz"))]
    for own, plain in zip(masks["as-trained"], masks["no"], strict=True):
        np.testing.assert_array_equal(own, plain)
    assert any((own != mirrored).any() for own, mirrored in zip(masks["no"], masks["yes"], strict=True))
    content = json.loads((tmp_path / "no" / "metrics.json").read_text())
    assert content == {"scans": 4, "labels": {"LV": 1, "MYO": 2, "RV": 3}, "mirror": False}
    assert read_csv(tmp_path / "no" / "predictions.csv")[0]["method"] == "AG-2-noAug"


def test_evaluate_one_mask(command: Command, predicted: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "e"
    done = command("evaluate", "--predictions", predicted["avagrad"], predicted["sgd"], "--tolerance", 5, "--out", out)
    assert done.status == 0, done.err
    assert done.out.count("surface Dice") == 6
    scores = read_csv(out / "scores.csv")
    assert {(row["target"], row["method"]) for row in scores} == {
        (site, method) for site in ("ge3", "sm15", "ph3") for method in ("AG-2", "S-2")
    }
    content = json.loads((out / "metrics.json").read_text())
    assert content["baseline"] == "S-2"
    rows = [row for row in content["comparisons"] if row["method"] == "AG-2"]
    assert {row["metric"] for row in rows} == {"surface_dice", "dice"}
    assert all(row["p"] == row["p_corrected"] == 1.0 and not row["significant"] for row in rows)  # one subject each
    assert is_report(out / "report.html", "Comparison as in the paper", "Distributions")


def test_a_control_run_is_kept_apart(
    command: Command, heads: Path, tiny: Any, predicted: dict[str, Path], tmp_path: Path
) -> None:
    """AvaGrad that is not adaptive, beside AvaGrad: the same optimiser and epochs."""
    words = ("--datalist", heads, "--site", "ge3", *tiny, "--eps", "1e6", "--out", tmp_path / "run")
    assert command("train", *words).status == 0
    words = ("--datalist", heads, "--split", "test", "--model", tmp_path / "run", "--out", tmp_path / "p")
    assert command("predict", *words).status == 0
    words = ("--predictions", predicted["avagrad"], tmp_path / "p", "--tolerance", 5, "--out", tmp_path / "e")
    assert command("evaluate", *words).status == 0
    found = [(row["target"], row["method"]) for row in read_csv(tmp_path / "e" / "scores.csv")]
    assert sorted(found) == sorted(
        (site, method) for site in ("ge3", "sm15", "ph3") for method in ("AG-2", "AG-2 (eps 1e+06)")
    )


def test_evaluate_labels_and_phases(command: Command, hearts: Path, heart_run: Path, tmp_path: Path) -> None:
    words = ("--datalist", hearts, "--model", heart_run)
    assert command("predict", *words, "--name", "mine", "--out", tmp_path / "p").status == 0
    assert command("evaluate", "--predictions", tmp_path / "p", "--out", tmp_path / "e").status == 0
    scores = read_csv(tmp_path / "e" / "scores.csv")
    assert len(scores) == 2 * 4 * 2 * 3  # vendors, subjects, phases, labels
    rows = json.loads((tmp_path / "e" / "metrics.json").read_text())["comparisons"]
    assert {(row["target"], row["structure"]) for row in rows} == {(v, s) for v in "BC" for s in ("LV", "MYO", "RV")}
    assert all(row["subjects"] == 4 and row["method"] == "mine" for row in rows)


def test_layer_speed(command: Command, trained: dict[str, Path], tmp_path: Path) -> None:
    for form in ("mean_abs", "relative"):
        out = tmp_path / form
        done = command("layer-speed", "--runs", trained["avagrad"], trained["sgd"], "--form", form, "--out", out)
        assert done.status == 0, done.err
        rows = read_csv(out / "layers.csv")
        assert list(rows[0]) == ["layer", "AG-2", "S-2"]
        updates = json.loads((trained["sgd"] / "metrics.json").read_text())["updates"][form]
        assert {row["layer"]: float(row["S-2"]) for row in rows} == pytest.approx(updates, rel=1e-6)
        content = json.loads((out / "metrics.json").read_text())
        values = list(updates.values())
        assert content["levelness"]["S-2"]["all"] == pytest.approx(max(values) / min(values))
        assert is_report(out / "report.html", "Speed of the layers", "in the encoder")
    # Two runs of one name keep apart.
    shutil.copytree(trained["sgd"], tmp_path / "again")
    out = tmp_path / "twice"
    assert command("layer-speed", "--runs", trained["sgd"], tmp_path / "again", "--out", out).status == 0
    assert list(read_csv(out / "layers.csv")[0]) == ["layer", "S-2", "S-2 (again)"]


# Bad input


def assert_refused(done: Any, *words: str) -> None:
    assert done.status == 2
    for word in words:
        assert word in done.line, done.line
    assert "Traceback" not in done.err


def test_labels_outside_the_plan(command: Command, hearts: Path, tiny: Any, tmp_path: Path) -> None:
    words = ("--datalist", hearts, "--site", "B", *tiny, "--out", tmp_path / "run")
    assert_refused(command("train", *words, "--labels", "LV", "MYO"), "has label 3, and the labels are LV, MYO")
    assert not (tmp_path / "run").exists()
    planned = tmp_path / "p.json"
    command("plan", "--datalist", hearts, "--site", "B", "--merge-labels", "--labels", "heart", "--out", planned)
    recipe = json.loads(planned.read_text())
    planned.write_text(json.dumps({**recipe, "merge_labels": False}))
    rest = tiny[tiny.index("--epochs") :]
    done = command("train", "--datalist", hearts, "--site", "B", "--plan", planned, *rest, "--out", tmp_path / "run")
    assert_refused(done, "has label 3, the plan knows 1 to 1 (heart); correct the mask, or plan with all labels")
    assert not (tmp_path / "run").exists()


def test_a_site_with_one_patient(
    command: Command, heads: Path, tiny: Any, tiny_spot: Any, spotted: Any, tmp_path: Path
) -> None:
    """Nothing to plan from and to learn from; but a few slices of one target patient are what SpotTUNet tunes on."""
    rows = [row for row in Datalist.read(heads) if row.subject not in ("phantom1000", "phantom1001")]
    listed = Datalist(tuple(rows)).write(tmp_path / "list.csv")
    message = "list.csv: site sm15, split train: 1 subject, at least 2 are needed; add scans of other subjects"
    words = ("--datalist", listed, "--site", "sm15")
    assert_refused(command("train", *words, *tiny, "--out", tmp_path / "o"), message)
    assert_refused(command("plan", *words, "--out", tmp_path / "p.json"), message)
    assert_refused(command("spottune", *words, *tiny_spot, "--out", tmp_path / "o"), message)
    alone = Datalist(tuple(replace(row, split="") for row in rows if row.site != "sm15" or row.split == "train"))
    done = command(
        "train", "--datalist", alone.write(tmp_path / "alone.csv"), *words[2:], *tiny, "--out", tmp_path / "o"
    )
    assert_refused(done, "alone.csv: site sm15, split train: 1 subject, at least 2 are needed")
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "p.json").exists()
    tuned = ("--stage", "spottuned", "--model", spotted["baseline"], "--slices", 7)
    assert command("spottune", *words, *tiny_spot, *tuned, "--out", tmp_path / "o").status == 0


def test_voxel_size_of_zero(
    command: Command, heads: Path, tiny: Any, tiny_spot: Any, trained: Any, tmp_path: Path
) -> None:
    datalist = copied(heads, tmp_path / "set")
    rows = read_csv(datalist)
    content = bytearray(nib.load(datalist.parent / rows[0]["image"]).to_bytes())
    content[80:84] = np.float32(0).tobytes()
    (datalist.parent / "zero.nii").write_bytes(bytes(content))
    datalist.write_text(datalist.read_text().replace(rows[0]["image"], "zero.nii"))
    words = ("--datalist", datalist, "--site", rows[0]["site"])
    message = ("zero.nii: the voxel size in the header is", "correct pixdim in the header")
    for verb, flags in (("train", tiny), ("spottune", tiny_spot)):
        assert_refused(command(verb, *words, *flags, "--out", tmp_path / "o"), *message)
    predict = ("--split", "train", "--model", trained["sgd"], "--out", tmp_path / "o")
    assert_refused(command("predict", *words, *predict), *message)
    assert_refused(command("plan", *words, "--out", tmp_path / "p.json"), *message)
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "p.json").exists()


def test_no_such_site_split_or_file(
    command: Command, heads: Path, trained: dict[str, Path], tiny: Any, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "o")
    assert_refused(
        command("train", "--datalist", heads, "--site", "ge4", *tiny, *out), "no row has site 'ge4'", "'ge3'"
    )
    assert_refused(command("train", "--datalist", tmp_path / "gone.csv", *tiny, *out), "gone.csv: datalist not found")
    without = tmp_path / "list.csv"
    rows = [line.rsplit(",", 1)[0] for line in heads.read_text().splitlines()]
    without.write_text("\n".join(rows[:2]) + "\n")
    done = command("predict", "--datalist", without, "--split", "test", "--model", trained["sgd"], *out)
    assert_refused(done, "no row is for test; write test into the column split of some subjects")
    assert not (tmp_path / "o").exists()


def test_wrong_models(
    command: Command, heads: Path, trained: dict[str, Path], spotted: dict[str, Path], tmp_path: Path
) -> None:
    words = ("predict", "--datalist", heads, "--out", tmp_path / "o", "--model")
    assert_refused(command(*words, tmp_path), "holds no model.safetensors; finish the training run (--resume)")
    assert_refused(command(*words, tmp_path / "gone.safetensors"), "no such file")
    other = tmp_path / "other.safetensors"
    save_weights(other, ResidualUNet2d(width=2), {"network": "ResidualUNet2d", "width": "2"})
    assert_refused(command(*words, other), "other.safetensors: is not a network of `adagrad-unet`")
    damaged = tmp_path / "damaged.safetensors"
    content = (trained["sgd"] / "model.safetensors").read_bytes()
    damaged.write_bytes(content[:-100])
    assert_refused(command(*words, damaged), "damaged.safetensors: damaged")
    network, _ = load_unet(trained["sgd"] / "model.safetensors", read_metadata(trained["sgd"] / "model.safetensors"))
    save_weights(other, network, {"network": "GenericUNet2d", "recipe": "{}"})
    assert_refused(command(*words, other), "other.safetensors: holds no plan")
    tuned = ("spottune", "--datalist", heads, "--site", "sm15", "--out", tmp_path / "o", "--preprocessing", "plain")
    assert_refused(command(*tuned, "--stage", "spottuned"), "--stage spottuned needs --model")
    assert_refused(command(*tuned, "--model", spotted["baseline"]), "--stage baseline takes no --model")
    assert_refused(
        command(*tuned, "--stage", "spottuned", "--model", trained["sgd"]),
        "is not a network of `adagrad-unet spottune`",
    )
    assert_refused(command(*tuned, "--stage", "spottuned", "--model", spotted["tuned"]), "is no baseline")
    other_grid = (*tuned[:-1], "cc359", "--stage", "spottuned", "--model", spotted["baseline"])
    assert_refused(command(*other_grid), "--preprocessing cc359 at (1.0, 0.95, 0.95) mm is not what the baseline had")
    assert not (tmp_path / "o").exists()


def test_wrong_plans(command: Command, heads: Path, tiny: Any, tmp_path: Path) -> None:
    rest = tiny[tiny.index("--epochs") :]
    words = ("train", "--datalist", heads, "--site", "ge3", *rest, "--out", tmp_path / "o", "--plan")
    assert_refused(command(*words, tmp_path / "gone.json"), "gone.json: cannot be read")
    (tmp_path / "p.json").write_text("{}")
    assert_refused(command(*words, tmp_path / "p.json"), "p.json: holds no plan", "give what `adagrad-unet plan` wrote")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spacing": [14.5, 0, 5.7]}, "spacing is 14.5 0 5.7, not three positive numbers in mm"),
        ({"spacing": [14.5, 5.7]}, "spacing is 14.5 5.7"),
        ({"slice_axis": 7}, "slice_axis is 7"),
        ({"channels": 0}, "are not all positive whole numbers"),
        ({"labels": []}, "labels are no names"),
        ({"plan": {"batch_size": "4"}}, "are not all positive whole numbers"),
        ({"plan": {"patch_size": [0, 32]}}, "are not all positive whole numbers"),
        ({"plan": {"patch_size": [42, 32]}}, "patch_size 42 is not a multiple of 4"),
        ({"plan": {"pool": [[2, 2]]}}, "pool, conv and features do not fit each other"),
        ({"plan": {"features": 4}}, "'int'"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value.get("plan", value)),
)
def test_plans_that_cannot_be(
    command: Command, heads: Path, trained: dict[str, Path], tiny: Any, changes: Any, message: str, tmp_path: Path
) -> None:
    """A plan that somebody has edited."""
    recipe = json.loads((trained["sgd"] / "plan.json").read_text())
    changed = {**recipe, **changes, "plan": {**recipe["plan"], **changes.get("plan", {})}}
    (tmp_path / "p.json").write_text(json.dumps(changed))
    rest = tiny[tiny.index("--epochs") :]
    words = ("--datalist", heads, "--site", "ge3", *rest, "--plan", tmp_path / "p.json", "--out", tmp_path / "o")
    assert_refused(command("train", *words), "p.json: holds no plan (", message, "give what `adagrad-unet plan` wrote")
    assert not (tmp_path / "o").exists()


def test_wrong_folders_to_evaluate(
    command: Command,
    predicted: dict[str, Path],
    hearts: Path,
    heart_run: Path,
    trained: dict[str, Path],
    tmp_path: Path,
) -> None:
    words = ("evaluate", "--out", tmp_path / "o", "--predictions")
    assert_refused(command(*words, tmp_path), "metrics.json: cannot be read (No such file or directory)")
    (tmp_path / "metrics.json").write_text("{}")
    assert_refused(command(*words, tmp_path), "metrics.json: says nothing about labels")
    assert_refused(
        command(*words, predicted["sgd"], "--baseline", "S-1000"), "--baseline S-1000 is none of the methods", "S-2"
    )
    assert command("predict", "--datalist", hearts, "--model", heart_run, "--out", tmp_path / "p").status == 0
    done = command(*words, tmp_path / "p", predicted["sgd"])
    assert_refused(done, "has the labels (one mask)", "LV, MYO, RV; evaluate them one after the other")
    assert_refused(
        command("layer-speed", "--runs", predicted["sgd"], "--out", tmp_path / "o"),
        "says nothing about the layers' updates",
    )
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--optimizer", "adagrad"), "--optimizer is 'adagrad', not one of sgd, adam, avagrad, sgdm-10"),
        (("--eps", "0"), "--eps is 0.0; give more than 0"),
        (("--epochs", "0"), "--epochs is 0; give at least 1"),
        (("--decoupled", "--optimizer", "sgd"), "--decoupled is for avagrad, not sgd"),
        (("--eps", "0.2", "--optimizer", "sgd"), "--eps is for avagrad, not sgd; leave it out"),
        (("--variant", "printed", "--optimizer", "adam"), "--variant is for avagrad, not adam; leave it out"),
        (
            ("--norm-scope", "tensor", "--optimizer", "sgdm-10"),
            "--norm-scope is for avagrad, not sgdm-10; leave it out",
        ),
        (
            ("--decoupled", "--weight-decay", "0.5"),
            "multiplies weights by -4 in every step; give a smaller --weight-decay",
        ),
        (("--max-pools", "0"), "--max-pools is 0; give at least 1"),
        (("--patch-size", "4", "40"), "--patch-size is 4; give at least 8"),
        (("--patch-size", "40", "34"), "--patch-size 40 34: side 2 is halved 2 times; give multiples of 4"),
        (("--clip", "0"), "--clip is 0"),
        (("--accumulate", "2"), "the Dice loss looks at whole batches; leave out --accumulate"),
    ],
)
def test_settings_that_cannot_be(
    command: Command, heads: Path, tiny: Any, words: Any, message: str, tmp_path: Path
) -> None:
    done = command("train", "--datalist", heads, "--site", "ge3", *tiny, *words, "--out", tmp_path / "o")
    assert_refused(done, message)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--patch", "30"), "--patch is 30; give a multiple of 8"),
        (("--interval", "0"), "--interval is 0; give at least 1"),
        (("--regularisation", "-1"), "--regularisation is -1"),
        (("--slices", "7"), "--slices has no meaning for --stage baseline; leave it out"),
        (("--interval", "36"), "--interval has no meaning for --stage baseline"),
        (("--regularisation", "0.007"), "--regularisation has no meaning for --stage baseline"),
        (("--policy-optimizer", "avagrad"), "--policy-optimizer has no meaning for --stage baseline"),
        (("--policy-learning-rate", "0.1"), "--policy-learning-rate has no meaning for --stage baseline"),
        (("--policy-backbone", "resnet34"), "--policy-backbone has no meaning for --stage baseline"),
        (("--frozen-bn-eval",), "--frozen-bn-eval has no meaning for --stage baseline"),
        (("--stage", "spottuned", "--width", "8"), "--width has no meaning for --stage spottuned; leave it out"),
        (("--stage", "spottuned", "--labels", "LV"), "--labels has no meaning for --stage spottuned"),
    ],
)
def test_spottune_settings_that_cannot_be(
    command: Command, heads: Path, words: Any, message: str, tmp_path: Path
) -> None:
    assert_refused(command("spottune", "--datalist", heads, *words, "--out", tmp_path / "o"), message)


def test_output_folders_are_not_overwritten(
    command: Command, heads: Path, trained: dict[str, Path], predicted: Any
) -> None:
    before = (predicted["sgd"] / "report.html").stat().st_mtime_ns
    words = ("--datalist", heads, "--model", trained["sgd"], "--out", predicted["sgd"])
    assert_refused(command("predict", *words), "holds a run already")
    assert (predicted["sgd"] / "report.html").stat().st_mtime_ns == before


def test_settings_of_the_paper_are_defaults() -> None:
    training = of.Training()
    assert (training.epochs, training.batches, training.validation_batches, training.clip) == (50, 250, 50, 12.0)
    assert (training.optimisation.initial_rate, training.optimisation.eps) == (10.0, 0.1)
    baseline, tuned = of.Spottuning(), of.Spottuning("spottuned")
    assert (baseline.total_epochs, baseline.drop, tuned.total_epochs, tuned.drop) == (60, 48, 100, 75)
    assert (of.Spottuning(optimizer="sgd").rate, tuned.rate, tuned.policy_rate) == (1e-3, 10.0, 1e-2)
