"""Every verb on phantoms, end to end, and every bad input: exit status 2, one line, nothing written or lost."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from catenorm.cases import load_case
from catenorm.cli import COMMANDS
from catenorm.models import load_model, save_model
from catenorm.prediction import segment
from catenorm.rows import divide, open_cases
from catenorm.settings import Cases
from dart_core.data.datalist import Datalist
from dart_core.data.phantoms import write_prostate_mr
from dart_core.data.volumes import read_labels, read_volume
from dart_core.metrics import dice
from dart_core.testing import assert_commands_answer, assert_exports, assert_help_is_light, is_report

# nibabel says it is typed, but these functions are not.
nib: Any = nibabel
Command = Callable[..., Any]
ORGANS = ["spleen", "left-kidney", "gallbladder", "liver", "stomach", "pancreas"]


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def refused(done: Any, *parts: str) -> None:
    """One line, exit 2."""
    assert done.status == 2
    assert done.err.count("\n") == 1, done.err
    for part in parts:
        assert part in done.err, done.err


@pytest.fixture(scope="module")
def predicted(trained: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of `predict`, by method."""
    from dart_core.cli import main

    folder = tmp_path_factory.mktemp("predicted")
    for method in ("bn", "catenorm"):
        more = ["--maps", "2"] if method == "catenorm" else []
        words = ["predict", "--model", str(trained[method]), "--out", str(folder / method), "--device", "cpu", *more]
        assert main("catenorm", COMMANDS, "0", "", words) == 0
    return {path.name: path for path in folder.iterdir()}


# Help and names


def test_help_of_every_command(command: Command) -> None:
    assert_commands_answer("catenorm", command)


def test_help_needs_no_heavy_package() -> None:
    assert_help_is_light("catenorm", "train")


def test_public_names() -> None:
    assert_exports(
        "catenorm", "CateNorm2d", "CateNormResidualBlock", "CateNormUNet", "CateNormDeepLabV3Plus", "two_stage_step", "segmentation_loss",
        "align_class_statistics", "largest_component", "preprocess_ct", "site_folds",
    )  # fmt: skip


# check-data


def test_check_data(command: Command, data: tuple[object, ...], datalist: Path, tmp_path: Path) -> None:
    done = command("check-data", *data)
    assert done.status == 0
    assert "site CT: 3 train, 1 val, 1 test\n" in done.out
    assert done.out.endswith("10 cases: no problems\n")
    rows = list(Datalist.read(datalist))
    rows[1] = dataclasses.replace(rows[1], mask=None)
    rows[2] = dataclasses.replace(rows[2], image=tmp_path / "gone.nii.gz")
    listed = Datalist(tuple(rows)).write(tmp_path / "list.csv")
    done = command(
        "check-data", "--datalist", listed, "--preprocessing", "ct-multi", "--size", 16, "--missing-organs", "allow"
    )
    assert done.status == 2
    assert "row 3, column mask: " in done.out
    assert "row 4, column image: " in done.out
    assert done.out.endswith("10 cases: 2 problems\n")
    done = command("check-data", "--datalist", datalist, "--preprocessing", "plain", "--labels", "a")
    assert done.status == 2
    assert "has label 11" in done.out


# train, predict, evaluate


def test_what_predict_writes(predicted: dict[str, Path], trained: dict[str, Path]) -> None:
    rows = read_csv(predicted["catenorm"] / "predictions.csv")
    assert [(row["site"], row["method"]) for row in rows] == [
        (site, f"catenorm 1-4{first}") for site in ("CT", "CT-native") for first in (" (BN pass)", "")
    ]
    assert {row["method"] for row in read_csv(predicted["bn"] / "predictions.csv")} == {"bn"}
    network, model = load_model(trained["catenorm"])
    assert model.organs == tuple(ORGANS)
    for row, case_row in zip(rows[1::2], divide(open_cases(model.cases), None)[1], strict=True):
        folder = predicted["catenorm"]
        case = load_case(case_row, dataclasses.replace(model.cases, missing_organs="allow"))
        classes = segment(network, model, case)
        image = read_volume(folder / row["image"])
        np.testing.assert_array_equal(read_labels(folder / row["prediction"], image), case.to_file(classes.final))
        scored = read_labels(folder / row["preprocessed_prediction"], None)
        turned = classes.final.T[:, ::-1]  # in RAS
        np.testing.assert_array_equal(scored, turned)
        assert not scored[..., 0].any()
        assert not scored[..., -1].any()
        assert [float(side) for side in row["preprocessed_spacing"].split()] == pytest.approx(case.spacing[::-1])
    assert is_report(predicted["catenorm"] / "report.html", "Scale and shift", "Fig. 6")


def test_evaluate(command: Command, predicted: dict[str, Path], tmp_path: Path) -> None:
    done = command("evaluate", "--predictions", predicted["bn"], predicted["catenorm"], "--out", tmp_path / "e")
    assert done.status == 0
    rows = read_csv(tmp_path / "e" / "scores.csv")
    assert len(rows) == 3 * 2 * 6
    content = json.loads((tmp_path / "e" / "metrics.json").read_text())
    methods = content["results"][0]["methods"]
    assert [row["method"] for row in methods] == ["bn", "catenorm 1-4 (BN pass)", "catenorm 1-4"]
    assert content["results"][0]["organs"] == ORGANS
    assert "p" in methods[1]
    entry = read_csv(predicted["bn"] / "predictions.csv")[0]
    pair = [
        read_labels(predicted["bn"] / entry[f"preprocessed_{name}"], None)[..., 1:-1] for name in ("prediction", "mask")
    ]
    found = next(row for row in rows if (row["method"], row["site"], row["organ"]) == ("bn", "CT", "liver"))
    assert float(found["dice"]) == pytest.approx(dice(pair[0] == 4, pair[1] == 4), abs=1e-6)
    assert is_report(tmp_path / "e" / "report.html", "catenorm 1-4", "left-kidney", "undefined")
    refused(
        command("evaluate", "--predictions", predicted["bn"], predicted["bn"], "--out", tmp_path / "f"),
        "in another folder too",
    )
    refused(command("evaluate", "--predictions", tmp_path, "--out", tmp_path / "f"), "metrics.json", "catenorm predict")
    unknown = ("evaluate", "--predictions", predicted["bn"], "--baseline", "BN", "--out", tmp_path / "f")
    refused(command(*unknown), "no run is named BN", "one of: bn")
    assert not (tmp_path / "f").exists()


def test_folds_positions_and_partial_annotation(
    command: Command, datalist: Path, tiny: tuple[object, ...], tmp_path: Path
) -> None:
    """Five folds of two methods with three organs, one block each: what the studies of Figs 3 and 5 are made of."""
    data = ("--datalist", datalist, "--preprocessing", "ct-multi", "--size", 16, "--missing-organs", "allow")
    folders = []
    for fold, method, block in ((0, "bn", 1), (1, "bn", 1), (0, "catenorm", 1), (1, "catenorm", 1), (0, "catenorm", 7)):
        for number, kept in enumerate((("spleen", "liver", "stomach"), ("liver",))):
            if fold == 1 and number:
                continue
            name = f"{method}-{fold}-{block}-{number}"
            blocks = ("--blocks", block) if method == "catenorm" else ()
            short = (*tiny, "--steps", 1, "--warmup-steps", 0, *blocks, "--no-augment")
            assert (
                command(
                    "train",
                    *data,
                    "--fold",
                    fold,
                    "--method",
                    method,
                    "--keep",
                    *kept,
                    *short,
                    "--out",
                    tmp_path / name,
                ).status
                == 0
            )
            folders.append(tmp_path / f"p-{name}")
            assert command("predict", "--model", tmp_path / name, "--out", folders[-1], "--device", "cpu").status == 0
    first, second = (read_csv(folder / "predictions.csv") for folder in (folders[0], folders[2]))
    assert len(first) == len(second) == 2
    assert not {row["subject"] for row in first} & {row["subject"] for row in second}
    assert command("evaluate", "--predictions", *folders, "--out", tmp_path / "e").status == 0
    text = (tmp_path / "e" / "report.html").read_text(encoding="utf-8")
    for words in ("(3 classes)", "(1 classes)", "after Fig. 5", "after Fig. 3", "catenorm 7"):
        assert words in text


@pytest.mark.parametrize("method", ["dsbn", "ms-net"])
def test_sites_at_test_time(
    method: str, command: Command, trained: dict[str, Path], datalist: Path, tmp_path: Path
) -> None:
    rows = [dataclasses.replace(row, site="elsewhere") for row in Datalist.read(datalist) if row.split == "test"][:1]
    listed = Datalist(tuple(rows)).write(tmp_path / "list.csv")
    words = ("predict", "--model", trained[method], "--datalist", listed, "--device", "cpu", "--out", tmp_path / "p")
    refused(command(*words), "row 2, column site", "for the sites CT, CT-native, and none for elsewhere", "--as-site")
    assert not (tmp_path / "p").exists()
    assert command(*words, "--as-site", "CT").status == 0
    assert command("predict", "--model", trained[method], "--device", "cpu", "--out", tmp_path / "q").status == 0
    refused(command(*words[:-1], tmp_path / "r", "--as-site", "X"), "none for X")


def test_other_cases_and_splits(command: Command, trained: dict[str, Path], datalist: Path, tmp_path: Path) -> None:
    rows = tuple(dataclasses.replace(row, split="", mask=None) for row in Datalist.read(datalist))[:2]
    listed = Datalist(rows).write(tmp_path / "list.csv")
    words = ("predict", "--model", trained["w-net"], "--datalist", listed, "--device", "cpu", "--out", tmp_path / "p")
    refused(command(*words), "no case has a split", "--split all")
    assert command(*words, "--split", "all").status == 0
    assert all(not row["mask"] for row in read_csv(tmp_path / "p" / "predictions.csv"))
    refused(
        command("evaluate", "--predictions", tmp_path / "p", "--out", tmp_path / "e"),
        "row 2",
        "no labels to score against",
    )
    train = (
        "predict",
        "--model",
        trained["bn"],
        "--split",
        "train",
        "--site",
        "CT",
        "--device",
        "cpu",
        "--out",
        tmp_path / "t",
    )
    assert command(*train).status == 0
    assert len(read_csv(tmp_path / "t" / "predictions.csv")) == 3


def test_true_masks_as_upper_bound(
    command: Command, data: tuple[object, ...], tiny: tuple[object, ...], tmp_path: Path
) -> None:
    words = ("--method", "catenorm", "--mask-source", "truth", "--name", "oracle", *tiny)
    assert command("train", *data, *words, "--out", tmp_path / "run").status == 0
    assert command("predict", "--model", tmp_path / "run", "--out", tmp_path / "p", "--device", "cpu").status == 0
    assert {row["method"] for row in read_csv(tmp_path / "p" / "predictions.csv")} == {"oracle", "oracle (BN pass)"}
    pytest.importorskip("onnx")
    refused(command("export", "--model", tmp_path / "run", "--out", tmp_path / "a.onnx"), "true labels")


def test_cases_without_subject_are_told_apart(
    command: Command, trained: dict[str, Path], datalist: Path, tmp_path: Path
) -> None:
    """Files of one name in a folder for each patient, in one fold or in several."""
    rows = []
    for number, row in enumerate(Datalist.read(datalist).select(site="CT").select(split="train")):
        folder = tmp_path / f"p{number}"
        folder.mkdir()
        assert row.mask is not None
        image, mask = (folder / f"{name}.nii.gz" for name in ("T2", "organs"))
        shutil.copy(row.image, image)
        shutil.copy(row.mask, mask)
        rows.append(dataclasses.replace(row, image=image, mask=mask, subject=""))
    found, folders = [], []
    for name, split in (("one", rows[:2]), ("other", rows[2:])):
        listed = Datalist(tuple(split)).write(tmp_path / f"{name}.csv")
        folders.append(tmp_path / name)
        words = ("predict", "--model", trained["bn"], "--datalist", listed, "--split", "all", "--device", "cpu")
        assert command(*words, "--out", folders[-1]).status == 0
        found += [row["subject"] for row in read_csv(folders[-1] / "predictions.csv")]
    assert found == [str(Path(f"p{number}", "T2.nii.gz")) for number in range(3)]
    assert command("evaluate", "--predictions", *folders, "--out", tmp_path / "e").status == 0
    content = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert content["results"][0]["methods"][0]["cases"] == 3


def test_a_warm_start_must_not_have_seen_the_test_cases(
    command: Command, data: tuple[object, ...], tiny: tuple[object, ...], trained: dict[str, Path], cases: Cases,
    tmp_path: Path,
) -> None:  # fmt: skip
    """By the cases themselves, handed on from run to run; by the fold where the file does not say them."""
    trained_on = {row.image for row in open_cases(cases) if row.split == "train"}
    folds = [{row.image for row in divide(open_cases(cases), fold)[1]} for fold in range(5)]
    seen = next(fold for fold in range(5) if folds[fold] & trained_on)
    start = ("train", *data, *tiny, "--steps", 1, "--warmup-steps", 0)
    chain = (*start, "--warm-start", trained["bn"] / "warmup", "--out", tmp_path / "chain")
    assert command(*chain).status == 0
    for weights in (trained["bn"] / "warmup", tmp_path / "chain"):
        done = command(*start, "--fold", seen, "--warm-start", weights, "--out", tmp_path / "x")
        refused(done, "model.safetensors", f"it was trained on {len(folds[seen] & trained_on)} of the 2 cases held out")
    network, model = load_model(trained["bn"])
    assert len(model.seen) == 2 * 6
    for fold in (2, 3):
        save_model(tmp_path / f"old{fold}", network, dataclasses.replace(model, seen=(), fold=fold))
    older = (*start, "--method", "bn", "--fold", 3, "--warm-start")
    refused(command(*older, tmp_path / "old2", "--out", tmp_path / "x"), "it is of fold 2, not 3")
    assert not (tmp_path / "x").exists()
    assert command(*older, tmp_path / "old3", "--out", tmp_path / "y").status == 0


def test_a_training_case_is_no_test_case(
    command: Command, trained: dict[str, Path], cases: Cases, tmp_path: Path
) -> None:
    """The datalist has changed since: what was trained on stands under test."""
    exchanged = {"train": "test", "test": "train"}
    rows = [dataclasses.replace(row, split=exchanged.get(row.split, row.split)) for row in open_cases(cases)]
    datalist = Datalist(tuple(rows), tmp_path).write(tmp_path / "exchanged.csv")
    words = ("predict", "--model", trained["bn"], "--datalist", datalist, "--out", tmp_path / "x", "--device", "cpu")
    refused(command(*words), "exchanged.csv", "the network was trained on 6 of these 6 cases")
    assert not (tmp_path / "x").exists()
    assert command(*words, "--split", "all").status == 0


def test_an_output_folder_is_kept(command: Command, data: tuple[object, ...], trained: dict[str, Path]) -> None:
    before = sorted(path.name for path in trained["bn"].iterdir())
    refused(command("train", *data, "--out", trained["bn"]), "holds a run already")
    assert sorted(path.name for path in trained["bn"].iterdir()) == before


def test_the_folder_of_the_model_is_not_overwritten(command: Command, trained: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(trained["bn"], tmp_path / "run")
    for model in (run, run / "model.safetensors", run / "warmup"):
        done = command("predict", "--model", model, "--device", "cpu", "--out", run, "--overwrite")
        refused(done, f"{run}: holds what --model names; give another --out")
    assert load_model(run)[1].name == "bn"


@pytest.mark.parametrize(("method", "loss"), [("bn", "loss"), ("ms-net", "loss_auxiliary")])
@pytest.mark.parametrize("log_every", [1, 50])
def test_a_training_that_diverges(
    log_every: int, method: str, loss: str, command: Command, data: tuple[object, ...], tiny: tuple[object, ...],
    tmp_path: Path,
) -> None:  # fmt: skip
    """At a step that is logged, or at the last one. That MS-Net's second loss is missing at first is none."""
    words = ("--method", method, "--learning-rate", 1e30, "--log-every", log_every)
    done = command("train", *data, *tiny, *words, "--out", tmp_path / "run")
    assert done.status == 2
    assert f"{loss} of step {1 if log_every == 1 else 4} is no number; lower --learning-rate" in done.last_line
    assert not (tmp_path / "run" / "model.safetensors").exists()


# align


def test_align(command: Command, datalist: Path, tmp_path: Path) -> None:
    words = ("align", "--datalist", datalist, "--labels", *"abcdefghijk", "--missing-organs", "allow")
    assert command(*words, "--target", "CT", "--out", tmp_path / "a").status == 0
    before, after = Datalist.read(datalist), Datalist.read(tmp_path / "a" / "datalist.csv")
    assert [(row.subject, row.site, row.split) for row in before] == [
        (row.subject, row.site, row.split) for row in after
    ]
    means: dict[tuple[str, str], list[float]] = {}
    for old, new in zip(before, after, strict=True):
        one, two = read_volume(old.image), read_volume(new.image)
        if old.split != "train":
            assert new.image.resolve() == old.image.resolve()
            continue
        assert new.image.parent == tmp_path / "a" / "images"
        if old.site == "CT":
            np.testing.assert_array_equal(one.array, two.array)
        assert old.mask is not None
        liver = read_labels(old.mask, one) == 6
        for when, volume in (("before", one), ("after", two)):
            means.setdefault((when, old.site), []).append(float(volume.array[liver].mean()))
    assert np.mean(means["after", "CT-native"]) == pytest.approx(np.mean(means["before", "CT"]), rel=1e-4)
    assert np.std(means["after", "CT-native"]) == pytest.approx(np.std(means["before", "CT"]), rel=1e-3)
    assert is_report(tmp_path / "a" / "report.html", "std after")
    refused(command(*words, "--target", "MR", "--out", tmp_path / "b"), "no row has site 'MR'")
    refused(command(*words, "--sites", "CT", "--out", tmp_path / "b"), "holds one site")
    refused(command("align", "--datalist", datalist, "--out", tmp_path / "b"), "has label 11")
    assert not (tmp_path / "b").exists()


def test_align_by_fold(command: Command, datalist: Path, tmp_path: Path) -> None:
    """The fold is the split of what is written, whatever the list says."""
    words = ("align", "--datalist", datalist, "--labels", *"abcdefghijk", "--missing-organs", "allow", "--target", "CT")
    assert command(*words, "--fold", 2, "--out", tmp_path / "a").status == 0
    before = Datalist.read(datalist)
    held = {row.image.resolve() for row in divide(before, 2)[1]}
    for old, new in zip(before, Datalist.read(tmp_path / "a" / "datalist.csv"), strict=True):
        assert new.split == ("test" if old.image.resolve() in held else "train")
        assert (new.image.resolve() == old.image.resolve()) == (new.split == "test")
    unsplit = Datalist(tuple(dataclasses.replace(row, split="") for row in before)).write(tmp_path / "list.csv")
    done = command(*words[:2], unsplit, *words[3:], "--out", tmp_path / "b")
    refused(done, "no case has a split", "give --fold")
    assert not (tmp_path / "b").exists()


# export


@pytest.mark.parametrize(("method", "outputs"), [("catenorm", 2), ("dsbn", 1)])
def test_export(method: str, outputs: int, command: Command, trained: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    words = ("export", "--model", trained[method], "--side", 32, "--out", tmp_path / "net.onnx")
    if method == "dsbn":
        refused(command(*words), "give --as-site CT")
        words = (*words, "--as-site", "CT-native")
    done = command(*words)
    assert done.status == 0
    assert "largest difference to PyTorch" in done.err + done.out
    assert len(runtime.InferenceSession(tmp_path / "net.onnx").get_outputs()) == outputs
    refused(command(*words), "is there already")


# Bad input


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--fold", 7), ("--fold is 7", "give 0 to 4")),
        (("--fold", 0, "--sites", "MR"), ("no row has site 'MR'",)),
        (("--keep", "lung"), ("--keep names lung", "spleen")),
        (("--blocks", 11), ("--blocks holds 11",)),
        (("--size", 8), ("--size is 8",)),
        (("--labels", "a"), ("--labels does not go with",)),
        (("--method", "dsbn", "--sites", "CT"), ("needs several sites",)),
        (("--method", "gn", "--architecture", "deeplabv3plus"), ("is for the U-Net",)),
        (("--method", "bn", "--mask-source", "truth"), ("has no second pass",)),
        (("--accumulate", 2), ("batch norms look at whole batches",)),
        (("--precision", "fp16"), ("clipped gradients", "bf16")),
        (("--balance", 2), ("--balance is 2",)),
        (("--balance", 0.5), ("--balance is for --loss paper",)),
        (("--method", "ms-net", "--loss", "paper"), ("ms-net has a loss of its own",)),
        (("--method", "ms-net", "--loss", "paper", "--balance", 0.5), ("ms-net has a loss of its own",)),
        (("--method", "ms-net", "--class-weights"), ("ms-net has a loss of its own",)),
        (("--method", "bn", "--separate-statistics"), ("--separate-statistics is for --method catenorm",)),
        (("--method", "w-net", "--separate-statistics"), ("--separate-statistics is for --method catenorm",)),
        (
            ("--architecture", "deeplabv3plus", "--separate-statistics"),
            ("--separate-statistics is for --method catenorm",),
        ),
        (("--method", "gn", "--clip-first"), ("gn has one stage", "leave out --clip-first")),
        (("--architecture", "deeplabv3plus", "--blocks", 5), ("--blocks holds 5", "from 1 to 4")),
        (("--method", "in", "--size", 31), ("31 x 31 pixels leave a single value", "32 pixels or more\n")),
        (("--method", "dsbn", "--size", 16), ("16 x 16 pixels leave a single value", "or raise --batch-size")),
        (("--sites", "CT", "--size", 16), ("16 x 16 pixels leave a single value", "or raise --batch-size")),
        (
            ("--sites", "CT", "--architecture", "deeplabv3plus", "--width", 32),
            ("one slice at a time", "raise --batch-size"),
        ),
        (("--clip", 0), ("--clip is 0",)),
        (("--method", "bn", "--blocks", 1), ("--blocks does nothing with --method bn; leave it out",)),
        (("--method", "dsbn", "--mask-mode", "hard"), ("--mask-mode does nothing with --method dsbn",)),
        (("--method", "gn", "--form", "paper"), ("--form does nothing with --method gn",)),
        (("--method", "ms-net", "--reduction", 4), ("--reduction does nothing with --method ms-net",)),
        (("--architecture", "deeplabv3plus"), ("--width does nothing with --architecture deeplabv3plus",)),
        (("--method", "bn", "--ms-net-warmup", 3), ("--ms-net-warmup does nothing with --method bn",)),
        (("--warm-start", "nowhere", "--warmup-steps", 0), ("nowhere",)),
        (("--warm-start", "nowhere"), ("--warmup-steps 0",)),
        (("--device", "cuda:99"), ("cuda",)),
    ],
)
def test_bad_flags(
    words: tuple[object, ...],
    parts: tuple[str, ...],
    command: Command,
    data: tuple[object, ...],
    tiny: tuple[object, ...],
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    refused(command("train", *data, *tiny, *words, "--out", out), *parts)
    assert not out.exists()


def test_bad_files(
    command: Command, datalist: Path, trained: dict[str, Path], tiny: tuple[object, ...], tmp_path: Path
) -> None:
    """A broken mask, a mask of another size, slices of unequal size, weights of something else."""
    flags = ("--preprocessing", "ct-multi", "--missing-organs", "allow", *tiny, "--out", tmp_path / "run")
    folder = shutil.copytree(datalist.parent, tmp_path / "copy")
    rows = list(Datalist.read(folder / "datalist.csv"))
    mask = next(row.mask for row in rows if row.split == "train")
    assert mask is not None
    content = mask.read_bytes()
    mask.write_bytes(content[: len(content) // 2])
    refused(
        command("train", "--datalist", folder / "datalist.csv", "--size", 32, *flags), mask.name, "truncated or damaged"
    )
    image = nib.load(rows[0].image)
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), image.affine), mask)
    refused(command("train", "--datalist", folder / "datalist.csv", "--size", 32, *flags), mask.name, "4 x 4 x 4")
    mask.write_bytes(content)
    label = nib.load(mask)
    codes = np.asarray(label.dataobj).astype(np.uint8)
    nib.save(nib.Nifti1Image(np.where(codes == 11, 0, codes), label.affine), mask)
    strict = ("--preprocessing", "ct-multi", *tiny, "--out", tmp_path / "run")
    refused(
        command("train", "--datalist", folder / "datalist.csv", "--size", 32, *strict), mask.name, "has no pancreas"
    )
    mask.write_bytes(content)
    small = nib.load(rows[0].image)
    nib.save(nib.Nifti1Image(np.asarray(small.dataobj)[:-3], small.affine), rows[0].image)
    assert rows[0].mask is not None
    label = nib.load(rows[0].mask)
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj)[:-3].astype(np.uint8), label.affine), rows[0].mask)
    plain = ("--preprocessing", "plain", "--labels", *"abcdefghijk", *flags[2:])
    refused(command("train", "--datalist", folder / "datalist.csv", *plain), "its slices have", "give --size")
    weights = trained["bn"] / "model.safetensors"
    wide = ("--datalist", datalist, "--size", 32, *flags, "--width", 8, "--warmup-steps", 0, "--warm-start", weights)
    refused(command("train", *wide), "model.safetensors", "none of its convolutions fits")
    assert not (tmp_path / "run").exists()
    broken = tmp_path / "model.safetensors"
    broken.write_bytes(weights.read_bytes()[:-50])
    refused(command("predict", "--model", broken, "--out", tmp_path / "p"), "model.safetensors")
    refused(command("predict", "--model", tmp_path / "copy", "--out", tmp_path / "p"), "holds no model.safetensors")


@pytest.mark.parametrize(
    ("method", "words", "part"),
    [
        ("bn", ("--maps", 2), "no maps"),
        ("catenorm", ("--maps", 2, "--maps-block", 9), "block 9 is not categorical"),
        ("catenorm", ("--as-site", "CT"), "--as-site is for dsbn and ms-net"),
        ("catenorm", ("--site", "MR"), "no row has site 'MR'"),
    ],
)
def test_bad_predictions(
    method: str, words: tuple[object, ...], part: str, command: Command, trained: dict[str, Path], tmp_path: Path
) -> None:
    refused(command("predict", "--model", trained[method], "--device", "cpu", *words, "--out", tmp_path / "p"), part)
    assert not (tmp_path / "p").exists()


def test_settings_of_cases_come_with_the_network(trained: dict[str, Path], cases: Cases) -> None:
    _, model = load_model(trained["catenorm"])
    assert model.cases.preprocessing == cases.preprocessing
    assert model.cases.size == cases.size
    assert model.cases.datalist == tuple(path.resolve() for path in cases.datalist)


@pytest.mark.parametrize(
    "words",
    [
        ("--separate-statistics", "--mask-mode", "hard", "--form", "paper", "--loss", "paper", "--precision", "bf16"),
        pytest.param(("--architecture", "deeplabv3plus"), marks=pytest.mark.slow),
    ],
)
def test_prostates_of_three_sites(words: tuple[object, ...], command: Command, tmp_path: Path) -> None:
    """Folds, options that depart from the code, and maps."""
    listed = write_prostate_mr(tmp_path / "phantoms", ("RUNMC", "BMC", "I2CVB"), 5, (32, 32, 6))
    width = () if "deeplabv3plus" in words else ("--width", 4)
    flags = (*width, "--steps", 1, "--warmup-steps", 1, "--fold", 1, "--device", "cpu")
    data = ("--datalist", listed, "--preprocessing", "prostate")
    assert command("train", *data, *flags, *words, "--out", tmp_path / "run").status == 0
    predict = ("predict", "--model", tmp_path / "run", "--maps", 2, "--maps-block", 2, "--device", "cpu")
    assert command(*predict, "--out", tmp_path / "p").status == 0
    assert [row["site"] for row in read_csv(tmp_path / "p" / "predictions.csv")][::2] == ["RUNMC", "BMC", "I2CVB"]
    assert is_report(tmp_path / "p" / "report.html", "of block 2")
