"""Every command on tiny slices, and what it says where something is wrong."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import yaml

from dart_core.checkpoint import load_weights
from dart_core.testing import logged
from metamedseg.datasets import SliceSet, read_slices, write_index
from metamedseg.evaluation import pictures_of
from metamedseg.models import read_model
from metamedseg.tuning import read_summary

DAWOUD = ("--method", "dawoud", "--width", 2, "--shots", 3, "--inner-epochs", 1, "--meta-epochs", 2, "--device", "cpu")
NETWORK = {"--width": 2, "--depth": 3, "--norm": "instance"}
"""Network of the initialisation."""


def test_help_imports_no_torch():
    code = (
        "import sys; from metamedseg.cli import *; run_command('metamedseg', COMMANDS, '0', DESCRIPTION, "
        "['meta-train', '--help']); sys.exit('torch' in sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    for flag in ("--distance-to", "--inner-epochs", "--processes", "--alpha"):
        assert flag in finished.stdout


class TestMetaTrain:
    def test_what_is_written(self, initialisation, slices):
        content = json.loads((initialisation / "metrics.json").read_text())
        assert content["name"] == "IDW vol"
        assert content["steps"] == 4
        model = read_model(initialisation)
        assert (model.kind, model.sources) == ("initialisation", ("kidney_left", "kidney_right", "liver"))
        lines = [json.loads(line) for line in (initialisation / "metrics.jsonl").read_text().splitlines()]
        assert [line["meta_epoch"] for line in lines if "meta_epoch" in line] == [1, 2]
        assert all(0 <= line["validation_iou"] <= 1 for line in lines if "dataset" in line)
        page = (initialisation / "report.html").read_text(encoding="utf-8")
        assert "every organ is equally likely" in page

    @pytest.mark.parametrize(
        ("words", "name"),
        [
            (("--tasks", "standard", "--weighting", "average"), "AW"),
            (("--distance-to", "leave_one_out"), "IDW to others vol"),
            (("--weighting", "complement", "--distance-to", "mean", "--meta-decay"), "complement to mean vol"),
            (("--weighting", "as_coded", "--visit-decay"), "as coded vol"),
            (("--norm", "batch", "--precision", "bf16", "--channels-last"), "IDW vol"),
        ],
    )
    def test_methods(self, words, name, command, slices, tiny, tmp_path):
        out = tmp_path / "run"
        finished = command("meta-train", "--slices", slices, "--exclude", "spleen", *tiny, *words, "--out", out)
        assert finished.status == 0, finished.err
        assert read_model(out).name == name
        assert all(value.isfinite().all() for value in load_weights(out / "model.safetensors")[0].values())

    @pytest.mark.parametrize(
        ("words", "name"),
        [
            (
                ("--method", "transfer", "--width", 2, "--device", "cpu", "--epochs", 1, "--slices-per-set", 3),
                "transfer",
            ),
            ((*DAWOUD, "--entropy", "full"), "Dawoud vol"),
        ],
    )
    def test_baselines(self, words, name, command, slices, tmp_path):
        out = tmp_path / "run"
        finished = command("meta-train", "--slices", slices, "--exclude", "spleen", *words, "--out", out)
        assert finished.status == 0, finished.err
        assert read_model(out).name == name
        assert all(value.isfinite().all() for value in load_weights(out / "model.safetensors")[0].values())

    def test_tasks_of_dawoud_count_alike(self, command, slices, tmp_path):
        words = ("--exclude", "spleen", *DAWOUD)
        out = tmp_path / "run"
        assert command("meta-train", "--slices", slices, *words, "--out", out).status == 0
        updates = [line for line in logged(out) if "meta_epoch" in line]
        assert [line["least_weight"] for line in updates] == [line["largest_weight"] for line in updates]
        assert updates[0]["least_weight"] == pytest.approx(1 / 3)

    def test_batch_statistics_are_not_in_the_distance(self, command, slices, tiny, tmp_path):
        words = ("--norm", "batch", "--meta-lr", 1, "--meta-epochs", 1, "--per-epoch", 1)
        out = tmp_path / "run"
        finished = command("meta-train", "--slices", slices, "--exclude", "spleen", *tiny, *words, "--out", out)
        assert finished.status == 0, finished.err
        state = load_weights(out / "model.safetensors")[0]
        assert state["down.0.1.num_batches_tracked"] == 0
        assert state["down.0.1.running_mean"].any()

    @pytest.mark.parametrize(
        ("words", "part"),
        [
            (("--exclude", "heart"), "no data set 'heart' to exclude"),
            (("--exclude", "spleen", "liver", "kidney_left", "kidney_right"), "every data set is excluded"),
            (("--inner-lr", 1e30, "--exclude", "spleen"), "lower --inner-lr"),
            (("--precision", "fp16"), "bf16 or fp32"),
            (("--factor", 0), "--factor is 0"),
            (("--weighting", "far"), "far"),
            (("--shots", 0), "--shots is 0"),
            (("--accumulate", 2), "--batch-size"),
        ],
    )
    def test_mistakes(self, words, part, command, slices, tiny, tmp_path):
        finished = command("meta-train", "--slices", slices, *tiny, *words, "--out", tmp_path / "run")
        assert finished.status == 2
        assert part in finished.last_line
        assert not (tmp_path / "run" / "model.safetensors").exists()

    def test_one_source_is_too_few_for_dawoud(self, command, slices, tmp_path):
        words = ("--exclude", "spleen", "liver", "kidney_left", *DAWOUD)
        finished = command("meta-train", "--slices", slices, *words, "--out", tmp_path / "run")
        assert finished.status == 2
        assert "two or more data sets" in finished.last_line

    def test_a_source_without_training_slices(self, command, slices, tiny, tmp_path):
        folder = tmp_path / "slices"
        shutil.copytree(slices, folder)
        sets = read_slices(folder)
        rows = tuple(row for row in sets["liver"].rows if row.split != "train")
        write_index(folder, [SliceSet("liver", "liver", rows, folder / "liver"), sets["spleen"]])
        finished = command("meta-train", "--slices", folder, *tiny, "--out", tmp_path / "run")
        assert finished.status == 2
        assert "liver has no training slice" in finished.last_line

    def test_slices_of_unequal_size(self, command, slices, tiny, tmp_path):
        folder = tmp_path / "slices"
        shutil.copytree(slices, folder)
        for path in (folder / "liver" / "images").glob("liver_00[0-3]_slice9.npy"):
            np.save(path, np.zeros((16, 20), np.float16))
        words = ("--exclude", "spleen", "kidney_left", "kidney_right", *tiny)
        finished = command("meta-train", "--slices", folder, *words, "--out", tmp_path / "run")
        assert finished.status == 2
        assert "prepare all slices with one --size" in finished.last_line
        checked = command("check-data", "--data", folder)
        assert checked.status == 2
        assert "slices of unequal size (16 x 16, 16 x 20)" in checked.out

    @pytest.mark.parametrize(("depth", "part"), [(6, "sides that 32 divides"), (5, "a single pixel over 5 levels")])
    def test_a_size_that_the_network_cannot_halve(self, depth, part, command, slices, tiny, tmp_path):
        words = ("--exclude", "spleen", *tiny, "--depth", depth, "--out", tmp_path / "run")
        finished = command("meta-train", "--slices", slices, *words)
        assert finished.status == 2
        assert part in finished.last_line


class TestFineTune:
    def test_what_is_written(self, tuned):
        content = json.loads((tuned / "metrics.json").read_text())
        assert list(content["selections"]) == ["1", "6"]
        assert content["mean"] == pytest.approx(np.mean(list(content["selections"].values())))
        assert content["std"] == pytest.approx(np.std(list(content["selections"].values()), ddof=1))
        with (tuned / "selection-1" / "scores.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 8
        assert np.mean([float(row["iou"]) for row in rows]) == pytest.approx(content["selections"]["1"], abs=1e-5)
        model = read_model(tuned / "selection-6")
        assert (model.kind, model.name, model.target, model.selection) == ("target", "IDW vol", "spleen", 6)

    def test_all_slices_are_one_training(self, command, slices, tmp_path):
        words = ("--target", "spleen", "--shots", 0, "--epochs", 1, "--width", 2, "--device", "cpu")
        finished = command("fine-tune", "--slices", slices, *words, "--out", tmp_path / "run")
        assert finished.status == 0, finished.err
        content = json.loads((tmp_path / "run" / "metrics.json").read_text())
        assert (content["name"], content["shots"], content["std"]) == ("supervised", 0, None)
        (count,) = content["training_slices"].values()
        assert count == 12

    def test_shots_of_one_volume(self, command, slices, tmp_path):
        words = ("--target", "spleen", "--shots", 3, "--shots-from", "volume", "--epochs", 1, "--width", 2,
                 "--selections", 4, "--device", "cpu")  # fmt: skip
        finished = command("fine-tune", "--slices", slices, *words, "--out", tmp_path / "run")
        assert finished.status == 0, finished.err
        # Every second of a volume's four slices.
        content = json.loads((tmp_path / "run" / "metrics.json").read_text())
        assert (content["shots"], content["training_slices"]) == (2, {"4": 2})
        assert read_model(tmp_path / "run" / "selection-4").shots == 2
        assert "fine-tuned on 2 slices" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")

    def test_sources_of_the_targets_organ_are_told(self, command, slices, tiny, tmp_path):
        init = tmp_path / "init"
        assert command("meta-train", "--slices", slices, "--exclude", "kidney_left", *tiny, "--out", init).status == 0
        for target, told in (("kidney_left", True), ("spleen", False)):
            words = ("--target", target, "--shots", 2, "--epochs", 1, "--selections", 1, "--device", "cpu")
            start = () if target == "spleen" else ("--init", init)
            finished = command("fine-tune", "--slices", slices, *words, *start, "--out", tmp_path / target)
            assert finished.status == 0, finished.err
            line = f"warning: {init} learnt from kidney_right, of the same organ as kidney_left"
            assert (line in finished.err) == told
            assert finished.err.count("warning") == told

    def test_the_network_is_that_of_the_initialisation(self, command, slices, initialisation, tmp_path):
        words = ("--target", "spleen", "--shots", 2, "--epochs", 1, "--selections", 1, "--device", "cpu")
        start = ("fine-tune", "--slices", slices, *words, "--init", initialisation)
        for flags in (("--width", 3), ("--depth", 2), ("--norm", "batch")):
            finished = command(*start, *flags, "--out", tmp_path / "no")
            assert finished.status == 2
            assert f"{flags[0]} is {flags[1]}, and {NETWORK[flags[0]]} in {initialisation}" in finished.line
        assert not (tmp_path / "no").exists()
        finished = command(*start, "--width", 2, "--out", tmp_path / "run")  # says the same
        assert finished.status == 0, finished.err
        for folder in (tmp_path / "run", tmp_path / "run" / "selection-1"):
            content = yaml.safe_load((folder / "config.yaml").read_text())
            assert (content["width"], content["depth"], content["norm"]) == (2, 3, "instance")
        assert command(*start, "--out", tmp_path / "other").status == 0
        content = yaml.safe_load((tmp_path / "other" / "config.yaml").read_text())
        assert content["width"] == 2

    def test_the_initialisation_is_not_overwritten(self, command, slices, initialisation, tmp_path):
        init = shutil.copytree(initialisation, tmp_path / "init")
        words = ("--target", "spleen", "--shots", 2, "--epochs", 1, "--selections", 1, "--device", "cpu")
        start = ("fine-tune", "--slices", slices, *words, "--init")
        for path in (init, init / "model.safetensors"):
            finished = command(*start, path, "--out", init, "--overwrite")
            assert finished.status == 2
            assert "holds what --init names; give another --out" in finished.line
        assert read_model(init).kind == "initialisation"

    def test_other_organs_are_no_reason_to_warn(self, command, slices, initialisation, tmp_path):
        words = ("--target", "spleen", "--shots", 2, "--epochs", 1, "--selections", 1, "--device", "cpu")
        finished = command("fine-tune", "--slices", slices, *words, "--init", initialisation, "--out", tmp_path / "run")
        assert finished.status == 0, finished.err
        assert "warning" not in finished.err

    @pytest.mark.parametrize(
        ("words", "part"),
        [
            (("--target", "heart"), "no data set 'heart'"),
            (("--target", "spleen", "--shots", 13), "12 training slices, 13 are asked for"),
            (("--target", "spleen", "--selections", 1, 1), "--selections must be different seeds"),
            (("--target", "liver", "--shots", 3, "--init", "INIT"), "was trained on liver"),
            (("--target", "spleen", "--shots", 3, "--init", "TUNED"), "is no initialisation network"),
            (("--target", "spleen", "--shots", 3, "--init", "SLICES"), "holds no model.safetensors"),
        ],
    )
    def test_mistakes(self, words, part, command, slices, initialisation, tuned, tmp_path):
        places = {"INIT": initialisation, "TUNED": tuned / "selection-1", "SLICES": slices}
        words = [places.get(word, word) for word in words]
        finished = command("fine-tune", "--slices", slices, *words, "--device", "cpu", "--out", tmp_path / "run")
        assert finished.status == 2
        assert part in finished.last_line
        assert not (tmp_path / "run").exists()


class TestPredict:
    def test_slices(self, command, slices, tuned, tmp_path):
        words = ("--model", tuned, "--slices", slices, "--device", "cpu")
        finished = command("predict", *words, "--out", tmp_path / "out")
        assert finished.status == 0, finished.err
        content = json.loads((tmp_path / "out" / "metrics.json").read_text())
        selection = json.loads((tuned / "metrics.json").read_text())["selections"]["1"]
        assert content["iou"] == pytest.approx(selection, abs=1e-6)
        with np.load(tmp_path / "out" / "masks.npz") as file:
            assert file["masks"].shape == (8, 16, 16)
            assert len(file["names"]) == 8

    def test_volumes(self, command, volumes, tmp_path):
        prepared = command(
            "prepare", "--data", volumes / "Task09_Spleen", "--out", tmp_path / "s", "--size", 16, "--threshold", 6
        )
        assert prepared.status == 0
        words = ("--target", "spleen", "--shots", 3, "--epochs", 1, "--width", 2, "--selections", 1, "--device", "cpu")
        assert command("fine-tune", "--slices", tmp_path / "s", *words, "--out", tmp_path / "run").status == 0
        for number, source in enumerate((volumes / "Task09_Spleen", volumes / "Task09_Spleen/imagesTs")):
            out = tmp_path / f"out{number}"
            words = ("--model", tmp_path / "run", "--volumes", source, "--device", "cpu", "--out", out)
            finished = command("predict", *words)
            assert finished.status == 0, finished.err
        mask, image = (
            nibabel.load(folder / "spleen_003.nii.gz")
            for folder in (tmp_path / "out1", volumes / "Task09_Spleen/imagesTs")
        )
        assert mask.shape == image.shape
        np.testing.assert_allclose(mask.affine, image.affine)
        assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1}
        assert len(list((tmp_path / "out0").glob("*.nii.gz"))) == 4

    def test_the_channel_is_that_of_the_slices(self, command, volumes, tmp_path):
        data = volumes / "Task51_Kidneys"
        words = ("--data", data, "--out", tmp_path / "s", "--size", 16, "--threshold", 6)
        assert command("prepare", *words).status == 0
        words = ("--target", "kidneys_left_kidney_t2", "--shots", 2, "--epochs", 1, "--width", 2, "--selections", 1)
        run = tmp_path / "run"
        assert command("fine-tune", "--slices", tmp_path / "s", *words, "--device", "cpu", "--out", run).status == 0
        assert read_model(run / "selection-1").channel == 1
        masks = {}
        for flags in ((), ("--modality", 0), ("--modality", 1)):
            out = tmp_path / f"out{flags[-1:]}"
            words = ("--model", run, "--volumes", data / "imagesTs", *flags, "--device", "cpu", "--out", out)
            finished = command("predict", *words)
            assert finished.status == 0, finished.err
            masks[flags] = np.asarray(nibabel.load(next(out.glob("*.nii.gz"))).dataobj)
        assert (masks[()] == masks["--modality", 1]).all()
        assert (masks[()] != masks["--modality", 0]).any()

    def test_mistakes(self, command, slices, volumes, tuned, initialisation, tmp_path):
        out = ("--out", tmp_path / "out")
        for words, part in (
            (("--model", tuned), "either --slices or --volumes"),
            (("--model", initialisation, "--slices", slices), "is no target network"),
            (
                ("--model", tuned, "--volumes", volumes / "Task09_Spleen"),
                "does not know how slices like its own are made",
            ),
            (("--model", tuned, "--slices", volumes), "slices.csv"),
            (("--model", tmp_path, "--slices", slices), "holds no model.safetensors"),
        ):
            finished = command("predict", *words, *out)
            assert finished.status == 2
            assert part in finished.last_line
        assert not (tmp_path / "out").exists()


class TestEvaluate:
    def test_table_and_pictures(self, command, slices, tuned, tmp_path):
        words = (
            "--target",
            "spleen",
            "--shots",
            4,
            "--epochs",
            1,
            "--width",
            2,
            "--selections",
            1,
            6,
            "--device",
            "cpu",
        )
        assert command("fine-tune", "--slices", slices, *words, "--out", tmp_path / "scratch").status == 0
        runs = ("--runs", tmp_path / "scratch", tuned, "--slices", slices)
        finished = command("evaluate", *runs, "--out", tmp_path / "out")
        assert finished.status == 0, finished.err
        with (tmp_path / "out" / "results.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["method"] for row in rows] == ["supervised", "IDW vol"]
        difference = float(rows[1]["mean"]) - float(rows[0]["mean"])
        assert float(rows[1]["difference"]) == pytest.approx(difference)
        page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
        assert "Table 1 of the paper" in page
        assert "Fig. 2" in page

    @pytest.mark.parametrize(("shots", "names"), [(2, ["IDW vol"]), (0, ["other"])])
    def test_pictures_are_of_the_most_slices(self, shots, names, command, slices, tuned, tmp_path):
        """Against a run with four."""
        words = (
            "--target",
            "spleen",
            "--shots",
            shots,
            "--epochs",
            1,
            "--width",
            2,
            "--selections",
            1,
            "--name",
            "other",
        )
        other = tmp_path / "other"
        assert command("fine-tune", "--slices", slices, *words, "--device", "cpu", "--out", other).status == 0
        ((target, _, _, found),) = pictures_of({folder: read_summary(folder) for folder in (other, tuned)}, slices)
        assert (target, [title.split(":")[0] for title, _ in found]) == ("spleen", names)

    def test_slices_without_a_test_part(self, command, slices, tuned, tmp_path):
        folder = shutil.copytree(slices, tmp_path / "slices")
        sets = read_slices(folder)
        rows = tuple(dataclasses.replace(row, split="train") for row in sets["spleen"].rows)
        write_index(folder, [dataclasses.replace(sets["spleen"], rows=rows)])
        finished = command("evaluate", "--runs", tuned, "--slices", folder, "--out", tmp_path / "out")
        assert finished.status == 2
        assert f"{folder}: spleen has no test slice to show; give the slices of the runs" in finished.line
        assert not (tmp_path / "out").exists()

    def test_other_test_slices_are_refused(self, command, tuned, tmp_path):
        other = shutil.copytree(tuned, tmp_path / "other")
        content = json.loads((other / "metrics.json").read_text())
        (other / "metrics.json").write_text(json.dumps({**content, "name": "other"}))
        runs = ("--runs", tuned, other)
        assert command("evaluate", *runs, "--out", tmp_path / "same").status == 0
        for path in other.glob("selection-*/scores.csv"):
            path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
        finished = command("evaluate", *runs, "--out", tmp_path / "out")
        assert finished.status == 2
        assert f"its test slices of spleen are not those of {tuned}" in finished.line
        assert not (tmp_path / "out").exists()

    def test_mistakes(self, command, tuned, initialisation, tmp_path):
        out = ("--out", tmp_path / "out")
        for words, part in (
            (("--runs", tuned, "--baseline", "x"), "--baseline x is none of the methods"),
            (("--runs", initialisation), "is of something else"),
            (("--runs", tmp_path), "cannot be read"),
        ):
            finished = command("evaluate", *words, *out)
            assert finished.status == 2
            assert part in finished.line
        shutil.copytree(tuned, tmp_path / "copy")
        assert "is there twice" in command("evaluate", "--runs", tuned, tmp_path / "copy", *out).line
        assert not (tmp_path / "out").exists()


def test_distances(command, slices, tmp_path):
    finished = command("distances", "--slices", slices, "--pairs", 20, "--out", tmp_path / "out")
    assert finished.status == 0, finished.err
    with (tmp_path / "out" / "distances.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = [row["dataset"] for row in rows]
    values = np.array([[float(row[name]) for name in names] for row in rows])
    np.testing.assert_allclose(values, values.T)
    assert (values > 0).all()
