"""Every command on phantoms, and every bad input: one line, exit status 2, and the pool as it was."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import time
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

import odex
from dart_core.checkpoint import load_weights
from dart_core.data.phantoms import write_hippocampus_stream
from dart_core.errors import InputError
from dart_core.testing import InProcess
from odex.evaluation import read_courses
from odex.settings import NAMES, POOLS
from odex.stopwatch import Stopwatch
from odex.store import read_pool
from odex.training import fisher_batches

run_odex = InProcess("odex")

METHODS = [name for name in NAMES if name != "joint"]
PUBLIC = {
    "ModelPool", "RWTracker", "build_unet", "dice_ex", "ewc_penalty", "fisher_information", "fit_gaussian", "gram_distance",
    "gram_matrix", "lwf_loss", "mahalanobis", "mib_loss", "normalisation_bounds", "normalise_distance", "plop_loss",
    "plop_thresholds", "pod_loss", "pool_features", "prediction_entropy", "rw_normalise", "rw_penalty", "smooth_stream",
    "unbiased_ce", "unbiased_kd",
}  # fmt: skip


def test_public_names():
    assert set(odex.__all__) >= PUBLIC
    for name in odex.__all__:
        assert getattr(odex, name).__doc__


def digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def rewrite(source: Path, target: Path, change) -> Path:
    """A copy of a stage's folder whose rows are changed."""
    shutil.copytree(source, target)
    rows = [row for row in (change(dict(row)) for row in rows_of(target / "datalist.csv")) if row]
    with (target / "datalist.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return target


# --- What works ------------------------------------------------------------------------------------------------------


def test_check_data(command, stages):
    found = command("check-data", "--stage", *stages)
    assert found.status == 0
    assert "stage stage-2: 5 train, 1 val, 1 test" in found.out
    assert "3 stages: no problems" in found.out


def test_learning_stage_by_stage(learned):
    before = digest(learned(count=1)[0])
    runs = learned(count=3)
    assert digest(runs[0]) == before  # the pool of the stage before is only read
    for number, run in enumerate(runs, 1):
        pool = read_pool(run)
        assert pool.names == [f"stage-{i}" for i in range(1, number + 1)]
        assert 1 <= len(pool.networks) <= number
        assert sum(len(history) for history in pool.statistics.histories) >= number
        metrics = json.loads((run / "metrics.json").read_text())
        assert metrics["networks"] == len(pool.networks)
        assert metrics["steps"] == 3
        assert "Pool" in (run / "report.html").read_text(encoding="utf-8")
    # an older network that rested is the same file
    pool, earlier = read_pool(runs[-1]), read_pool(runs[0])
    touched = {stage.model for stage in pool.stages[1:]}
    for index in range(len(earlier.networks)):
        same = digest_of(pool.networks[index]) == digest_of(earlier.networks[index])
        assert same == (index not in touched)


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("method", METHODS)
def test_every_method(command, learned, method, tmp_path, stages):
    runs = learned(method, 3 if method in ("odex-inf", "ewc") else 2)
    pool = read_pool(runs[-1])
    assert pool.method == method
    assert (pool.statistics is not None) == (method in POOLS)
    if method == "odex-inf":
        assert len(pool.networks) == 3
        assert len(pool.statistics.histories[2]) >= 2
    if method not in POOLS:
        assert len(pool.networks) == 1
    if method == "odex-last":
        assert all(len(history) == 1 for history in pool.statistics.histories)
    if method in ("ewc", "rw", "lwf"):
        assert {name.split("/")[0] for name in pool.memory} == {str(i) for i in range(len(runs))}
    assert command("pool", "--pool", runs[-1]).out.startswith(NAMES[method])


@pytest.mark.parametrize("method", ["ewc", "rw", "lwf", "plop"])  # of MiB there is one form
def test_as_the_authors_program_computes_it(learned, method):
    runs = learned(method, 2, "--compat", "lifelong-nnunet")
    steps = json.loads((runs[1] / "metrics.json").read_text())["steps"]
    assert steps == (6 if method == "lwf" else 3)  # LwF runs through the stage twice
    assert read_pool(runs[1]).baselines.compat == "lifelong-nnunet"


def test_regularisers_do_something(learned):
    """From the same first stage, another second one than without."""
    states = {}
    for method in ("sequential", "ewc", "rw", "mib", "plop", "lwf"):
        runs = learned(method, 2)
        states[method] = [load_weights(read_pool(run).networks[0])[0] for run in runs]
    name = "conv_blocks_context.0.blocks.0.conv.weight"
    first = states["sequential"][0][name]
    for method, (one, two) in states.items():
        assert torch.equal(one[name], first)  # the same first stage
        assert not torch.equal(two[name], first)
        assert (method == "sequential") == torch.equal(two[name], states["sequential"][1][name])


@pytest.fixture(scope="module")
def joint(stages, tiny, tmp_path_factory):
    """Run folder of `joint` over all stages."""
    network, training = tiny
    out = tmp_path_factory.mktemp("joint") / "run"
    assert run_odex("learn", "--method", "joint", "--stage", *stages, *network, *training, "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def predicted(learned, joint, stages, tmp_path_factory):
    """Folders of the predictions for all stages: odex-inf and sequential after each stage, joint after its only one."""
    folder, found = tmp_path_factory.mktemp("predicted"), []
    for method in ("odex-inf", "sequential", "joint"):
        for number, run in enumerate([joint] if method == "joint" else learned(method, 3), 1):
            found.append(folder / f"{method}-{number}")
            words = ("--pool", run, "--stage", *stages, "--out", found[-1], "--device", "cpu", "--patch-dice", 3)
            assert run_odex("predict", *words) == 0
    return found


def test_joint(command, joint, stages, tiny, tmp_path):
    network, training = tiny
    assert read_pool(joint).stages[0].cases == 15
    found = command("learn", "--method", "odex", "--stage", *stages, *network, *training, "--out", tmp_path / "no")
    assert "only --method joint takes several" in found.line
    found = command("learn", "--stage", stages[0], "--pool", joint, *training, "--out", tmp_path / "no")
    assert "--method joint learns once" in found.line


def test_predict(predicted):
    rows = rows_of(predicted[2] / "predictions.csv")
    assert [row["site"] for row in rows] == ["stage-1", "stage-2", "stage-3"]
    assert {row["source_site"] for row in rows} == {"after stage 3"}
    image = nib.load(predicted[2] / rows[0]["prediction"])
    original = nib.load(predicted[2] / rows[0]["image"])
    assert image.shape == original.shape
    np.testing.assert_allclose(image.affine, original.affine)
    # one case per stage: each of them was drawn
    assert all(0 <= float(row["patch_dice"]) <= 1 for row in rows)


def test_evaluate(command, predicted, stages, tmp_path):
    out = tmp_path / "evaluation"
    words = ("--predictions", *predicted, "--reference", "ODEx −∞ξ", "--out", out)
    found = command("evaluate", *words)
    assert found.status == 0, found.err
    assert found.out.count("Dice") == 3
    summary = json.loads((out / "metrics.json").read_text())["summary"]
    by_method = {row["method"]: row for row in summary}
    assert by_method["ODEx −∞ξ"]["networks"] == 3
    assert by_method["Seq."]["networks"] == 1
    assert by_method["Seq."]["pairs"] == 3
    assert by_method["Seq."]["p_wilcoxon"] is not None
    assert (by_method["Joint"]["bwt"], by_method["Joint"]["fwt"]) == (None, None)
    # the matrix from the scores
    scores = rows_of(out / "scores.csv")
    a = np.array(
        [[float(s["dice"]) for s in scores if s["method"] == "Seq." and s["after"] == str(i)] for i in (1, 2, 3)]
    )
    expected = np.mean([np.mean(a[j + 1 :, j] - a[j, j]) for j in range(2)])
    assert by_method["Seq."]["bwt"] == pytest.approx(expected, abs=1e-5)
    assert by_method["Seq."]["dice"] == pytest.approx(a[-1].mean(), abs=1e-5)
    page = (out / "report.html").read_text(encoding="utf-8")
    for text in ("Stage by stage", "One image through the stages", "HarP, Dryad and Decathlon"):
        assert text in page
    again = command("evaluate", "--predictions", predicted[0], predicted[0], "--out", tmp_path / "twice")
    assert "a second folder of ODEx −∞ξ after stage 1" in again.line
    broken = command("evaluate", "--predictions", stages[0], "--out", tmp_path / "none")
    assert "give folders that `odex predict` wrote" in broken.line


def test_dice_of_patches_instead(predicted):
    rows = [rows_of(folder / "predictions.csv") for folder in predicted]
    courses = {course.method: course for course in read_courses(predicted, "patch_dice")}
    expected = [[float(row["patch_dice"]) for row in state] for state in rows[3:6]]
    np.testing.assert_allclose(courses["Seq."].matrix(), expected)


@pytest.mark.parametrize(
    ("value", "expected"), [("", "has no Dice of patches"), ("much", "row 2: patch_dice is 'much'")]
)
def test_dice_of_patches_that_is_not_there(predicted, tmp_path, value, expected):
    rows = [{**row, "patch_dice": value} for row in rows_of(predicted[0] / "predictions.csv")]
    shutil.copy(predicted[0] / "metrics.json", tmp_path)
    with (tmp_path / "predictions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(InputError, match=expected):
        read_courses([tmp_path], "patch_dice")


def test_a_pool_that_always_grows_forgets_nothing_of_what_it_does_not_touch(predicted, learned):
    """odex-inf never changes a network, so a case that stays with its network keeps its mask."""
    masks = {}
    for out in predicted[:3]:
        for row in rows_of(out / "predictions.csv"):
            mask = np.asarray(nib.load(out / row["prediction"]).dataobj)
            masks.setdefault((row["network"], row["image"]), []).append(mask)
    assert max(len(same) for same in masks.values()) > 1
    for same in masks.values():
        for mask in same:
            np.testing.assert_array_equal(mask, same[0])
    runs = learned("odex-inf", 3)
    for earlier, later in pairwise(runs):
        for one, other in zip(read_pool(earlier).networks, read_pool(later).networks[:-1], strict=True):
            assert one.read_bytes() == other.read_bytes()


def test_labels_may_stay_apart(command, stages, tiny, tmp_path):
    network, training = tiny
    out = tmp_path / "run"
    words = ("--stage", stages[0], "--no-merge-labels", *network, *training)
    assert command("learn", *words, "--out", out).status == 0
    assert read_pool(out).plan.labels == ("1", "2")
    assert read_pool(out).plan.network().seg_outputs[0].out_channels == 3


# --- Bad input -------------------------------------------------------------------------------------------------------


def refused(command, run: Path, tmp_path: Path, words, *expected: str) -> None:
    """One line, exit status 2, nothing written, and the pool as it was."""
    before = digest(run)
    found = command(
        "learn", *words, "--pool", run, "--device", "cpu", "--epochs", 1, "--batches", 1, "--out", tmp_path / "out"
    )
    assert found.status == 2
    for words_ in expected:
        assert words_ in found.line
    assert not (tmp_path / "out").exists()
    assert digest(run) == before


@pytest.fixture
def pool(learned):
    return learned(count=1)[0]


def test_the_folder_of_the_pool_is_not_overwritten(command, learned, stages, tiny, tmp_path):
    run = shutil.copytree(learned("sequential", 1)[0], tmp_path / "run")
    before = digest(run)
    words = ("--stage", stages[1], "--pool", run, *tiny[1])
    found = command("learn", *words, "--out", run, "--overwrite")
    assert found.status == 2
    assert "holds what --pool names; give another --out" in found.line
    assert digest(run) == before
    assert read_pool(run).load(0)


@pytest.mark.parametrize("log_every", [1, 50])
def test_a_training_that_diverges(command, learned, stages, tiny, tmp_path, log_every):
    """At a step that is logged, or at the last one."""
    run = learned("sequential", 1)[0]
    words = ("--stage", stages[1], "--pool", run, *tiny[1], "--learning-rate", 1e30, "--log-every", log_every)
    found = command("learn", *words, "--out", tmp_path / "run")
    assert found.status == 2
    assert f"the loss of step {1 if log_every == 1 else 2} is no number; lower --learning-rate" in found.last_line
    assert not (tmp_path / "run" / "pool").exists()


def test_settings_that_acted_are_written(command, learned, stages, tiny, tmp_path):
    """Those of the pool in a later stage; the file can be given back."""
    first, run = learned("odex-inf", 2)
    early, late = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (first, run))
    for name in ("method", "covariance", "threshold", "base_features", "max_pools", "batch_size", "norm", "compat"):
        assert late[name] == early[name], name
    assert (late["method"], late["covariance"], late["base_features"]) == ("odex-inf", "shrunk", 2)
    assert late["patch_size"] == list(read_pool(run).plan.patch_size)
    assert "shrunk" in (run / "report.html").read_text(encoding="utf-8").split("Settings")[-1]
    again = command("learn", "--config", run / "config.yaml", "--out", tmp_path / "again")
    assert again.status == 0, again.err
    assert yaml.safe_load((tmp_path / "again" / "config.yaml").read_text()) == {**late, "out": str(tmp_path / "again")}


def test_a_finished_stage_is_left_as_it_is(command, learned, stages, tiny, tmp_path):
    pool = learned("sequential", 1)[0]
    run = tmp_path / "run"
    words = ("learn", "--stage", stages[1], "--pool", pool, *tiny[1], "--out", run)
    assert command(*words).status == 0
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()}
    found = command(*words, "--resume")
    assert found.status == 0
    assert "stage stage-2 is finished already" in found.err + found.out
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()} == before


def test_seconds_of_all_sessions_count(command, learned, stages, tiny, tmp_path, monkeypatch):
    pool = learned("sequential", 1)[0]
    run = tmp_path / "run"
    words = ("learn", "--stage", stages[1], "--pool", pool, *tiny[1], "--checkpoint-every", 1, "--out", run)
    with monkeypatch.context() as patch:
        patch.setattr("odex.learning.write_pool", lambda *_: 1 / 0)
        assert command(*words).status == 1
    assert 0 < Stopwatch(run, time.monotonic()).seconds < 600
    with (run / "seconds.txt").open("a") as file:
        file.write("\n3600.000\n\n36")  # the last line was cut by kill -9
    assert command(*words, "--resume").status == 0
    assert 3600 < read_pool(run).stages[-1].seconds < 4200


def test_a_stage_with_one_case(command, pool, stages, tmp_path):
    stage = rewrite(stages[1], tmp_path / "one", lambda row: row if row["image"].endswith("2000.nii.gz") else None)
    refused(command, pool, tmp_path, ("--stage", stage), "stage one has 1 training case", "gather at least 2")
    found = command("check-data", "--stage", stage)
    assert found.status == 2
    assert "stage one has 1 training case" in found.out


def test_a_stage_without_anything_to_compare_with(command, pool, stages, tmp_path):
    keep = ("2000.nii.gz", "2001.nii.gz")
    stage = rewrite(stages[1], tmp_path / "two", lambda row: row if row["image"].endswith(keep) else None)
    refused(command, pool, tmp_path, ("--stage", stage), "has 2 training cases and 0 held-out ones")


def test_a_case_smaller_than_the_patch(command, pool, stages, tmp_path):
    stage = rewrite(stages[1], tmp_path / "small", lambda row: row)
    row = rows_of(stage / "datalist.csv")[0]
    for name in (row["image"], row["mask"]):
        image = nib.load(stage / name)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:, 10:16], image.affine), stage / name)
    refused(command, pool, tmp_path, ("--stage", stage), row["image"], "less than half of its patch")
    # in prediction too
    found = command(
        "predict", "--pool", pool, "--stage", stage, "--split", "all", "--out", tmp_path / "p", "--device", "cpu"
    )
    assert "less than half of its patch" in found.line
    assert "may fill less than half" in command("check-data", "--stage", stage).out


def test_a_case_a_little_smaller_is_padded(command, pool, stages, tmp_path):
    stage = rewrite(stages[1], tmp_path / "padded", lambda row: row)
    row = rows_of(stage / "datalist.csv")[0]
    for name in (row["image"], row["mask"]):
        image = nib.load(stage / name)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:, 3:], image.affine), stage / name)
    words = ("--stage", stage, "--pool", pool, "--epochs", 1, "--batches", 1, "--device", "cpu")
    assert command("learn", *words, "--out", tmp_path / "out").status == 0


@pytest.mark.parametrize("name", ["pool.json", "statistics.safetensors", "model-1.safetensors"])
@pytest.mark.parametrize("how", ["missing", "cut", "other"])
def test_a_broken_pool(command, pool, stages, tmp_path, name, how):
    run = tmp_path / "run"
    shutil.copytree(pool, run)
    file = run / "pool" / name
    content = file.read_bytes()
    file.unlink()
    if how == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif how == "other":
        file.write_bytes(b'{"version": 1}' if name.endswith(".json") else content[:-8] + b"12345678")
    refused(command, run, tmp_path, ("--stage", stages[1]), "run")
    for verb in (("pool",), ("predict", "--stage", stages[0], "--out", tmp_path / "p")):
        found = command(*verb, "--pool", run)
        assert found.status == 2
        assert len(found.err.splitlines()) == 1
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("how", ["missing", "cut"])
def test_a_broken_memory(command, learned, stages, tmp_path, how):
    """What a baseline remembers of earlier stages lies in a file of its own."""
    run = tmp_path / "run"
    shutil.copytree(learned("ewc", 1)[0], run)
    file = run / "pool" / "memory.safetensors"
    content = file.read_bytes()
    file.unlink()
    if how == "cut":
        file.write_bytes(content[: len(content) // 2])
    refused(command, run, tmp_path, ("--stage", stages[1]), "memory.safetensors")


def test_folders_that_are_no_pool(command, stages, tmp_path):
    found = command("learn", "--stage", stages[1], "--pool", tmp_path, "--out", tmp_path / "out")
    assert "holds no pool" in found.line
    assert "--resume" in found.line


def test_damaged_cases(command, pool, stages, tmp_path):
    stage = rewrite(stages[1], tmp_path / "damaged", lambda row: row)
    row = rows_of(stage / "datalist.csv")[1]
    (stage / row["image"]).write_bytes((stage / row["image"]).read_bytes()[:50])
    refused(command, pool, tmp_path, ("--stage", stage), row["image"])
    assert command("check-data", "--stage", stage).status == 2
    stage = rewrite(stages[1], tmp_path / "maskless", lambda row: {**row, "mask": ""})
    refused(command, pool, tmp_path, ("--stage", stage), "no mask")
    assert "has no case for train" in command("learn", "--stage", rewrite(
        stages[1], tmp_path / "testonly", lambda row: {**row, "split": "test"}), "--out", tmp_path / "out").line  # fmt: skip


def test_a_training_case_in_which_nothing_is_labelled(command, pool, stages, tmp_path):
    """Its organ is missing. A test case may be empty."""
    stage = rewrite(stages[1], tmp_path / "empty", lambda row: row)
    row = next(row for row in rows_of(stage / "datalist.csv") if row["split"] == "train")
    image = nib.load(stage / row["mask"])
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), stage / row["mask"])
    words = (row["mask"], "nothing is labelled in this mask of a training case")
    refused(command, pool, tmp_path, ("--stage", stage), *words)
    found = command("check-data", "--stage", stage)
    assert found.status == 2
    assert all(word in found.out for word in words)
    spared = rewrite(stage, tmp_path / "spared", lambda other: {**other, "split": "test"} if other == row else other)
    assert command("check-data", "--stage", spared).status == 0


def test_labels_not_in_dataset_json(command, pool, stages, tmp_path):
    stage = decathlon(stages[1], tmp_path / "Task04", {"0": "background", "1": "Anterior"})
    refused(command, pool, tmp_path, ("--stage", stage), "the label 2 is not in dataset.json")
    assert "the label 2 is not in dataset.json" in command("check-data", "--stage", stage).out
    good = decathlon(stages[1], tmp_path / "Task04b", {"0": "background", "1": "Anterior", "2": "Posterior"})
    words = (
        "--pool",
        pool,
        "--stage",
        good,
        "--epochs",
        1,
        "--batches",
        1,
        "--device",
        "cpu",
        "--out",
        tmp_path / "run",
    )
    assert command("learn", *words).status == 0
    # seven cases without splits: nnU-Net's first fold of five is held out
    assert read_pool(tmp_path / "run").stages[-1].cases == 5


def decathlon(stage: Path, folder: Path, labels: dict[str, str]) -> Path:
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    entries = []
    for row in rows_of(stage / "datalist.csv"):
        name = Path(row["image"]).name
        shutil.copy(stage / row["image"], folder / "imagesTr" / name)
        shutil.copy(stage / row["mask"], folder / "labelsTr" / name)
        entries.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    content = {"modality": {"0": "MRI"}, "labels": labels, "training": entries, "test": []}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_flags_that_a_pool_remembers(command, pool, stages, tmp_path):
    for flags, words in (
        (("--method", "ewc"), "is a pool of --method odex"),
        (("--base-features", 8), "--base-features was settled"),
        (("--threshold", "0.5"), "--threshold was settled"),
        (("--no-merge-labels",), "--merge-labels was settled"),
    ):
        refused(command, pool, tmp_path, ("--stage", stages[1], *flags), words)
    refused(command, pool, tmp_path, ("--stage", stages[0]), "stage stage-1 has been learned already")


def test_settings(command, stages, tmp_path):
    for flags, words in (
        (("--threshold", "many"), "--threshold is 'many'"),
        (("--momentum", 1), "--momentum is 1"),
        (("--epochs", 0), "--epochs is 0"),
        (("--shrinkage", 2), "--shrinkage is 2"),
        (("--temperature", 0), "--temperature is 0"),
        (("--norm", "instance"), "the same for every image"),
        (("--patch-size", 12, 16, 10), "side 3 is halved"),
    ):
        found = command("learn", "--stage", stages[0], *flags, "--out", tmp_path / "out")
        assert found.status == 2
        assert words in found.line
        assert not (tmp_path / "out").exists()


def test_a_singular_covariance_is_said(command, stages, tmp_path):
    """Five images, sixteen features: the empirical covariance cannot be of full rank."""
    words = (
        "--base-features",
        16,
        "--max-pools",
        1,
        "--batch-size",
        2,
        "--epochs",
        1,
        "--batches",
        1,
        "--device",
        "cpu",
    )
    found = command("learn", "--stage", stages[0], *words, "--out", tmp_path / "run")
    assert found.status == 0
    assert "warning: the covariance of 5 images with 16 features has rank 4" in found.err


@pytest.mark.parametrize(
    ("flags", "size"), [(("--norm", "instance", "--pooling", "statistics"), 4), (("--pooling", "authors"), None)]
)
def test_norms_and_features(command, stages, tiny, tmp_path, flags, size):
    network, training = tiny
    assert command("learn", "--stage", stages[0], *network, *flags, *training, "--out", tmp_path / "run").status == 0
    pool = read_pool(tmp_path / "run")
    numbers = 2 * np.prod(pool.plan.patch_size)  # of two channels; halved along each axis until there are 10,000
    assert len(pool.statistics.histories[0][0].mean) == (size or (numbers // 8 if numbers > 10_000 else numbers))


def test_images_that_are_all_the_same(command, pool, stages, tmp_path):
    """Their features have a covariance of 0."""
    stage = rewrite(stages[1], tmp_path / "same", lambda row: row)
    first, *others = rows_of(stage / "datalist.csv")
    for row in others:
        for column in ("image", "mask"):
            shutil.copy(stage / first[column], stage / row[column])
    refused(command, pool, tmp_path, ("--stage", stage), "training images of stage same are all the same")


def test_a_stage_is_known_by_the_name_that_it_was_learned_by(command, stages, tiny, tmp_path):
    network, training = tiny
    run = tmp_path / "run"
    words = ("--method", "sequential", *network, *training, "--name", "june", "--out", run)
    assert command("learn", "--stage", stages[0], *words).status == 0
    found = command("predict", "--pool", run, "--stage", stages[0], "--device", "cpu", "--out", tmp_path / "predicted")
    assert found.status == 0, found.err
    assert {row["site"] for row in rows_of(tmp_path / "predicted" / "predictions.csv")} == {"june"}
    twice = shutil.copytree(stages[1], tmp_path / "june")
    found = command("predict", "--pool", run, "--stage", stages[0], twice, "--device", "cpu", "--out", tmp_path / "p")
    assert found.status == 2
    assert "stages of the same name (june, june)" in found.err
    assert not (tmp_path / "p").exists()


def test_the_fisher_batches_of_the_first_stage_are_those_of_all(command, stages, tiny, tmp_path, monkeypatch):
    network, training = tiny
    counts = []

    def counted(*arguments):
        counts.append(arguments[3])
        return fisher_batches(*arguments)

    monkeypatch.setattr("odex.learning.fisher_batches", counted)
    first = ("--method", "ewc", "--fisher-batches", 2, *network)
    for number, words in enumerate((first, ("--pool", tmp_path / "run-0"))):
        out = tmp_path / f"run-{number}"
        assert command("learn", "--stage", stages[number], *words, *training, "--out", out).status == 0
    assert counts == [2, 2]


def test_the_size_of_a_pool_counts_what_a_baseline_remembers(learned, command, stages, tmp_path):
    run = learned("lwf", 1)[0]
    out = tmp_path / "predicted"
    assert command("predict", "--pool", run, "--stage", stages[0], "--device", "cpu", "--out", out).status == 0
    on_disk = sum(path.stat().st_size for path in (run / "pool").glob("*.safetensors"))
    assert json.loads((out / "metrics.json").read_text())["bytes"] == on_disk
    assert on_disk > sum(read_pool(run).sizes)


def test_joint_plans_from_its_first_stage(command, stages, tiny, tmp_path):
    """A second stage of another shape changes nothing of the network."""
    network, training = tiny
    other = write_hippocampus_stream(tmp_path / "other", 1, 7, (24, 24, 24))[0].parent
    for name, given in (("joint", (stages[0], other)), ("sequential", (stages[0],))):
        words = ("--method", name, *network, *training, "--out", tmp_path / name)
        assert command("learn", "--stage", *given, *words).status == 0
    assert read_pool(tmp_path / "joint").plan == read_pool(tmp_path / "sequential").plan
