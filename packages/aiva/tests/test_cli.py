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
import torch
import yaml

from aiva.cli import COMMANDS
from aiva.models import load_model, mask_of, probabilities
from dart_core import metrics
from dart_core.adapt import adapt_batch_norm
from dart_core.checkpoint import load_weights
from dart_core.data.datalist import Datalist
from dart_core.data.scans import load_scans, open_datalist, rows_of, slice_stack
from dart_core.settings import ScanSettings
from dart_core.testing import assert_commands_answer, assert_exports, assert_help_is_light, is_report

# nibabel says it is typed, but these functions are not.
nib: Any = nibabel
Command = Callable[..., Any]
FILES = {"checkpoints", "config.yaml", "metrics.json", "metrics.jsonl", "model.safetensors", "report.html"}
NAME = "aiva_clusters3_perplexity8_iterations-per-epoch7_acc-amount3"
"""What tables call a run with the flags of `alignment`."""
STEPS = {"aiva": 18, "seg-jdot": 4, "adaptsegnet": 3, "target": 4}


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def same_weights(one: Path, other: Path) -> bool:
    a, b = (load_weights(run / "model.safetensors")[0] for run in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def scans_of(datalist: Path, site: str, split: str) -> Any:
    return load_scans(rows_of(open_datalist(datalist), [site], split), ScanSettings(datalist, "plain"))


@pytest.fixture
def words(
    datalist: Path, source_model: Path, alignment: tuple[object, ...], tmp_path: Path
) -> Callable[..., list[object]]:
    """The words of an `adapt` that succeeds."""

    def make(method: str = "aiva", listed: object = datalist, out: object = tmp_path / "out") -> list[object]:
        made = ["adapt", "--datalist", listed, "--preprocessing", "plain", "--target", "ge3", "--method", method]
        made += [] if method == "target" else ["--source-model", source_model]
        made += ["--steps", STEPS[method]] if method in STEPS else []
        made += ["--batch-size", 4, "--learning-rate", 1e-3, "--evaluate-every", 3, "--log-every", 1, "--width", 2]
        made += alignment if method == "aiva" else ()
        return [*made, "--device", "cpu", "--patch-size", 48, "--out", out]

    return make


@pytest.fixture(scope="module")
def adapted(
    datalist: Path, source_model: Path, alignment: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of AIVA."""
    out = tmp_path_factory.mktemp("adapted") / "aiva"
    given = ["adapt", "--datalist", datalist, "--preprocessing", "plain", "--target", "ge3", "--source-model", source_model,
             "--steps", 18, "--batch-size", 4, "--learning-rate", 1e-3, "--evaluate-every", 3, *alignment, "--device", "cpu",
             "--out", out]  # fmt: skip
    from dart_core.cli import main

    assert main("aiva", COMMANDS, "0", "", [str(word) for word in given]) == 0
    return out


# Help


def test_help_of_every_command(command: Command) -> None:
    assert_commands_answer("aiva", command)


def test_help_needs_no_heavy_package() -> None:
    assert_help_is_light("aiva", "adapt")


def test_public_names() -> None:
    assert_exports(
        "aiva", "match_clusters", "cluster_sites", "alignment_loss", "LambdaNormaliser", "AlignmentAccumulator", "seg_jdot_plan",
        "seg_jdot_loss", "OutputDiscriminator", "adversarial_losses", "segmentation_loss", "learning_rate",
    )  # fmt: skip


# check-data, pretrain


def test_check_data(command: Command, datalist: Path, tmp_path: Path) -> None:
    done = command("check-data", "--datalist", datalist, "--preprocessing", "plain")
    assert done.status == 0
    assert "site ge3: 3 train, 1 val, 1 test\n" in done.out
    assert done.out.endswith("15 scans: no problems\n")
    rows = [dataclasses.replace(row, mask=None) if row.site == "ge3" else row for row in Datalist.read(datalist)]
    listed = Datalist(tuple(rows)).write(tmp_path / "list.csv")
    done = command("check-data", "--datalist", listed, "--preprocessing", "plain")
    assert done.status == 2
    assert done.out.count("this row has no mask") == 5
    assert command("check-data", "--datalist", listed, "--preprocessing", "plain", "--no-require-mask").status == 0


def test_pretrain_writes_a_run(source_model: Path, datalist: Path) -> None:
    assert {path.name for path in source_model.iterdir()} == FILES
    settings = yaml.safe_load((source_model / "config.yaml").read_text())
    assert (settings["width"], settings["steps"], settings["learning_rate"]) == (2, 6, 1e-3)
    network, model = load_model(source_model)
    assert (model.source, model.target, model.method, model.channels) == (["sm15"], "", "none", 1)
    (scan,) = scans_of(datalist, "sm15", "val")
    mask = mask_of(probabilities(network, scan, 1), False, False)
    content = json.loads((source_model / "metrics.json").read_text())
    assert content["source_dice"] == pytest.approx(metrics.dice(mask, scan.truth), abs=1e-6)
    # The network kept is that of the best score among those after 3 and 6 steps.
    lines = [json.loads(line) for line in (source_model / "metrics.jsonl").read_text().splitlines()]
    scores = {line["step"] + 1: line["source_score"] for line in lines if "source_score" in line}
    assert list(scores) == [3, 6]
    best = max(scores, key=lambda step: scores[step])
    assert content["checkpoint"].startswith(
        f"network of step {best}, with the highest source score ({scores[best]:.4f})"
    )
    assert content["source_surface_dice"] == pytest.approx(scores[best], abs=1e-6)
    assert is_report(source_model / "report.html", "Source network", "sm15_1003", "Research software")


def test_pretrain_on_all_sites_but_the_target(command: Command, datalist: Path, tiny: Any, tmp_path: Path) -> None:
    flags = ["--datalist", datalist, "--preprocessing", "plain", *tiny, "--steps", 1, "--patch-size", 48]
    done = command("pretrain", *flags, "--target", "ge3", "--checkpoint", "last", "--out", tmp_path / "run")
    assert done.status == 0, done.err
    assert load_model(tmp_path / "run")[1].source_site == "sm15+sm3"
    assert "kept: network of the last step\n" in done.err


# adapt


@pytest.mark.parametrize("method", ["none", "aiva", "adabn", "seg-jdot", "adaptsegnet", "target"])
def test_adapt(method: str, command: Command, words: Any, source_model: Path, datalist: Path, tmp_path: Path) -> None:
    done = command(*words(method))
    assert done.status == 0, done.err
    out = tmp_path / "out"
    trained = method in STEPS
    expected = FILES if trained else FILES - {"checkpoints", "metrics.jsonl"}
    assert {path.name for path in out.iterdir()} == expected | ({"clusters"} if method == "aiva" else set())
    assert is_report(out / "report.html", f"Adaptation: {method}", "Research software")
    network, model = load_model(out)
    assert (model.target, model.method) == ("ge3", method)
    assert model.source == (["ge3"] if method == "target" else ["sm15"])
    assert model.clusters == (3 if method == "aiva" else 0)
    content = json.loads((out / "metrics.json").read_text())
    assert content["checkpoint"] == model.chosen
    assert f"kept: {model.chosen}\n" in done.err
    assert same_weights(source_model, out) == (method == "none")
    if method == "adabn":
        source, _ = load_model(source_model)
        assert all(torch.equal(p, q) for p, q in zip(source.parameters(), network.parameters(), strict=True))
    if method == "aiva":
        assert [path.name for path in sorted((out / "clusters").iterdir())] == [
            "step-000000007.npz",
            "step-000000014.npz",
        ]
        assert is_report(out / "report.html", "after Fig. 2", "after Fig. 3", "after Fig. 4", "matched distance")
    if trained and method != "target":
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        scored = [line["step"] for line in lines if "source_score" in line]
        assert scored[0] == 0
        assert scored[-1] == STEPS[method] - 1


def test_adabn_of_both_kinds(command: Command, words: Any, source_model: Path, datalist: Path, tmp_path: Path) -> None:
    """Cumulative over batches of equal size: the mean of what the batches give, whatever their order."""
    done = command(*words("adabn"), "--adabn", "cumulative", "--batch-size", 36)
    assert done.status == 0, done.err
    network, model = load_model(tmp_path / "out")
    assert (model.method, model.shown) == ("adabn", "adabn-cumulative")
    scans = scans_of(datalist, "ge3", "train")
    images = torch.stack([torch.from_numpy(slice_stack(scan.volume[:, 4:52], z)) for scan in scans for z in range(12)])
    expected = adapt_batch_norm(load_model(source_model)[0], [images], momentum=None)
    for (name, found), other in zip(network.named_buffers(), expected.buffers(), strict=True):
        if name.endswith(("running_mean", "running_var")):
            torch.testing.assert_close(found, other, rtol=1e-3, atol=1e-4, msg=name)


def test_masks_of_the_target_are_not_looked_at(
    command: Command, words: Any, adapted: Path, datalist: Path, tmp_path: Path
) -> None:
    rows = [dataclasses.replace(row, mask=None) if row.site == "ge3" else row for row in Datalist.read(datalist)]
    listed = Datalist(tuple(rows)).write(tmp_path / "list.csv")
    for method in ("aiva", "seg-jdot", "adaptsegnet", "adabn", "none"):
        for name, used in (("without", listed), ("with", datalist)):
            done = command(*words(method, used, tmp_path / method / name))
            assert done.status == 0, done.err
        assert same_weights(tmp_path / method / "without", tmp_path / method / "with")


@pytest.mark.parametrize("rule", ["lowest_source", "last"])
def test_checkpoint_rules(rule: str, command: Command, words: Any, tmp_path: Path) -> None:
    done = command(*words("aiva"), "--checkpoint", rule)
    assert done.status == 0, done.err
    chosen = json.loads((tmp_path / "out" / "metrics.json").read_text())["checkpoint"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    # The first clustering is after 7 steps: networks from step 8 on count.
    scores = {line["step"] + 1: line["source_score"] for line in lines if "source_score" in line and line["step"] >= 7}
    lowest = min(scores, key=lambda step: scores[step])
    if rule == "last":
        assert chosen == "network of the last step"
    else:
        assert chosen == f"network of step {lowest}, with the lowest source score ({scores[lowest]:.4f})"
    assert f"kept: {chosen}\n" in done.err


def test_the_same_settings_do_the_same_run(command: Command, adapted: Path, tmp_path: Path) -> None:
    done = command("adapt", "--config", adapted / "config.yaml", "--out", tmp_path / "again")
    assert done.status == 0, done.err
    assert same_weights(adapted, tmp_path / "again")


def test_prostates(command: Command, prostates: Path, tmp_path: Path) -> None:
    """Three channels, published-like splits without val: the source's test scans choose."""
    scans = ["--datalist", prostates, "--preprocessing", "prostate"]
    small = [
        "--steps",
        2,
        "--batch-size",
        2,
        "--width",
        2,
        "--evaluate-every",
        1,
        "--selection-split",
        "test",
        "--device",
        "cpu",
    ]
    done = command("pretrain", *scans, *small, "--target", "UCL", "--optimizer", "adam", "--out", tmp_path / "source")
    assert done.status == 0, done.err
    assert load_model(tmp_path / "source")[1].channels == 3
    done = command(
        "adapt", *scans, *small, "--steps", 14, "--batch-size", 4, "--target", "UCL", "--source-model", tmp_path / "source",
        "--optimizer", "adam", "--milestones", 2, "--clusters", 2, "--perplexity", 5, "--iterations-per-epoch", 6,
        "--acc-amount", 3, "--out", tmp_path / "aiva",
    )  # fmt: skip
    assert done.status == 0, done.err
    done = command("predict", *scans, "--model", tmp_path / "aiva", "--device", "cpu", "--out", tmp_path / "masks")
    assert done.status == 0, done.err
    done = command("evaluate", "--predictions", tmp_path / "masks", "--leave-out", 1, 2, "--out", tmp_path / "scores")
    assert done.status == 0, done.err
    (row,) = json.loads((tmp_path / "scores" / "metrics.json").read_text())["results"]
    name = "aiva_clusters2_perplexity5_iterations-per-epoch6_acc-amount3"
    assert (row["source"], row["target"], row["method"]) == ("RUNMC", "UCL", name)


# predict, evaluate, clusters


def test_predict_and_evaluate(
    command: Command, adapted: Path, source_model: Path, datalist: Path, tmp_path: Path
) -> None:
    scans = ["--datalist", datalist, "--preprocessing", "plain", "--device", "cpu"]
    assert command("predict", *scans, "--model", adapted, "--probabilities", "--out", tmp_path / "aiva").status == 0
    done = command("predict", *scans, "--model", source_model, "--site", "ge3", "--out", tmp_path / "none")
    assert done.status == 0, done.err
    network, _ = load_model(adapted)
    (scan,) = scans_of(datalist, "ge3", "test")
    foreground = probabilities(network, scan, 1)
    (row,) = read_csv(tmp_path / "aiva" / "predictions.csv")
    assert [row[name] for name in ("subject", "site", "source_site", "method", "clusters")] == [
        "phantom4004", "ge3", "sm15", NAME, "3",
    ]  # fmt: skip
    written = nib.as_closest_canonical(nib.load(tmp_path / "aiva" / row["prediction"])).get_fdata()
    assert np.array_equal(written > 0, foreground > 0.5)
    stored = nib.as_closest_canonical(nib.load(tmp_path / "aiva" / "ge3_4004_probability.nii.gz")).get_fdata()
    np.testing.assert_allclose(stored, foreground, atol=1e-6)
    assert is_report(tmp_path / "aiva" / "report.html", f"method {NAME}", "Network: network of step")

    done = command("evaluate", "--predictions", tmp_path / "none", tmp_path / "aiva", "--out", tmp_path / "scores")
    assert done.status == 0, done.err
    results = {row["method"]: row for row in json.loads((tmp_path / "scores" / "metrics.json").read_text())["results"]}
    assert set(results) == {"none", NAME}
    expected = metrics.surface_dice(foreground > 0.5, scan.truth, scan.spacing, 1.0)
    assert results[NAME]["surface_dice"] == pytest.approx(expected, abs=1e-6)
    assert is_report(tmp_path / "scores" / "report.html", "Pairs")
    assert "Printed in the paper" not in (tmp_path / "scores" / "report.html").read_text(encoding="utf-8")


def test_tables_by_target_site(command: Command, datalist: Path, source_model: Path, tmp_path: Path) -> None:
    scans = ["--datalist", datalist, "--preprocessing", "plain", "--device", "cpu", "--model", source_model]
    for site in ("ge3", "sm3"):
        assert command("predict", *scans, "--site", site, "--out", tmp_path / site).status == 0
    done = command("evaluate", "--predictions", tmp_path / "ge3", tmp_path / "sm3", "--out", tmp_path / "scores")
    assert done.status == 0, done.err
    assert is_report(tmp_path / "scores" / "report.html", "Target sites", "average", "in per cent")


def test_clusters(command: Command, words: Any, adapted: Path, datalist: Path, tmp_path: Path) -> None:
    assert command(*words("aiva", out=tmp_path / "two"), "--clusters", 2).status == 0
    done = command(
        "clusters", "--runs", tmp_path / "two", adapted, "--device", "cpu", "--tolerance", 4, "--out", tmp_path / "out"
    )
    assert done.status == 0, done.err
    summary = json.loads((tmp_path / "out" / "metrics.json").read_text())["runs"]
    assert [entry["clusters"] for entry in summary] == [2, 3]
    assert all(len(entry["matched_distance"]) == 2 for entry in summary)
    (scan,) = scans_of(datalist, "ge3", "test")
    for entry, run in zip(summary, (tmp_path / "two", adapted), strict=True):
        mask = probabilities(load_model(run)[0], scan, 1) > 0.5
        expected = metrics.surface_dice(mask, scan.truth, scan.spacing, 4.0)
        assert entry["surface_dice"] == pytest.approx(expected, abs=1e-6)
    rows = read_csv(tmp_path / "out" / "scores.csv")
    assert [(row["target"], row["clusters"], row["scan"]) for row in rows] == [
        ("ge3", "2", "phantom4004"),
        ("ge3", "3", "phantom4004"),
    ]
    assert is_report(tmp_path / "out" / "report.html", "Number of clusters", "after Fig. 5", "after Fig. 2")
    assert f"sm15 → ge3  2 clusters  surface Dice {summary[0]['surface_dice']:.3f}\n" in done.out
    done = command("clusters", "--runs", adapted, "--no-score", "--out", tmp_path / "pictures")
    assert done.status == 0, done.err
    assert not (tmp_path / "pictures" / "scores.csv").exists()


# Bad input: exit status 2, one line that names file, row and remedy, nothing written or lost


@pytest.fixture
def refused(command: Command, tmp_path: Path, source_model: Path, datalist: Path) -> Callable[..., str]:
    """Run a command that must fail; give its line."""

    def tree() -> dict[Path, bytes]:
        folders = (tmp_path, source_model.parent, datalist.parent)
        return {
            path: path.read_bytes() if path.is_file() else b"folder" for folder in folders for path in folder.rglob("*")
        }

    def run(*words: object) -> str:
        before = tree()
        done = command(*words)
        assert done.status == 2, done
        assert done.line.startswith("aiva: error: ")
        assert tree() == before
        return str(done.line)

    return run


def test_too_few_slices(refused: Any, words: Any) -> None:
    line = refused(*words(), "--clusters", 40)
    assert "36 source slices cannot make 40 clusters; give more scans, or a smaller --clusters" in line
    line = refused(*words(), "--clusters", 30)
    assert "7 iterations per epoch collect 24 source slices, too few for 30 clusters; give a larger" in line
    line = refused(*words(), "--perplexity", 48)
    assert "--perplexity 48 needs more than the 48 slices of both sites; give a smaller --perplexity" in line
    line = refused(*words(), "--perplexity", 0)
    assert "--perplexity is 0; give a positive number" in line
    line = refused(*words(), "--steps", 7)
    assert "--steps 7 ends before the first clustering at 7; give more --steps" in line


def test_a_site_with_one_patient(refused: Any, words: Any, tiny: Any, datalist: Path, tmp_path: Path) -> None:
    rows = [row for row in Datalist.read(datalist) if row.subject not in ("phantom4000", "phantom4001")]
    listed = Datalist(tuple(rows)).write(tmp_path / "list.csv")
    for method in ("aiva", "adabn", "target"):
        line = refused(*words(method, listed))
        assert "list.csv: site ge3, split train: 1 subject, at least 2 are needed; add scans" in line
    scans = ["--datalist", listed, "--preprocessing", "plain", "--source", "ge3"]
    assert "site ge3, split train: 1 subject" in refused("pretrain", *scans, *tiny, "--out", tmp_path / "out")


def test_other_channels_than_the_source(refused: Any, words: Any, datalist: Path, tmp_path: Path) -> None:
    line = refused(*words(), "--preprocessing", "prostate")
    assert "--preprocessing was plain when this network was trained and is prostate now; give the settings" in line
    rows = list(Datalist.read(datalist))
    index = next(i for i, row in enumerate(rows) if row.site == "ge3" and row.split == "train")
    image = nib.load(rows[index].image)
    two = nib.Nifti1Image(np.stack([image.get_fdata()] * 2, -1), image.affine)
    nib.save(two, tmp_path / "two.nii.gz")
    rows[index] = dataclasses.replace(rows[index], image=tmp_path / "two.nii.gz", mask=None)
    line = refused(*words("aiva", Datalist(tuple(rows)).write(tmp_path / "list.csv")))
    assert "two.nii.gz: " in line
    assert "not one 3-D volume" in line


def test_sites_and_splits(
    refused: Any, words: Any, tiny: Any, datalist: Path, source_model: Path, tmp_path: Path
) -> None:
    assert "no row has site 'ge33'" in refused(*words(), "--target", "ge33")
    assert "did you mean 'ge3'" in refused(*words("none"), "--target", "ge33")
    line = refused(*words(), "--target", "sm15")
    assert "sm15 is a source site of this network; choose another --target" in line
    start = ["pretrain", "--datalist", datalist, "--preprocessing", "plain", *tiny, "--out", tmp_path / "out"]
    assert "holds 3 sites; name the source: --source sm15; or the one to leave out: --target" in refused(*start)
    assert "no row has site 'x'" in refused(*start, "--target", "x")
    assert "sm15 is both source and target" in refused(*start, "--source", "sm15", "--target", "sm15")
    rows = [dataclasses.replace(row, split="") for row in Datalist.read(datalist)]
    listed = Datalist(tuple(rows)).write(tmp_path / "list.csv")
    assert "list.csv: says of no scan that it is for train; add a column split" in refused(*words("aiva", listed))
    rows = [dataclasses.replace(row, split=row.split.replace("val", "test")) for row in Datalist.read(datalist)]
    listed = Datalist(tuple(rows)).write(tmp_path / "list.csv")
    assert "site sm15 has no row with split val" in refused(*words("aiva", listed))
    line = refused(*words("target"), "--selection-split", "test")
    assert "--selection-split test would choose by the target's test scans; give val" in line


def test_masks_that_are_needed(refused: Any, words: Any, tiny: Any, datalist: Path, tmp_path: Path) -> None:
    rows = [dataclasses.replace(row, mask=None) for row in Datalist.read(datalist)]
    listed = Datalist(tuple(rows)).write(tmp_path / "list.csv")
    line = refused(*words("aiva", listed))
    assert "list.csv, row 2, column mask: no mask; give the mask of every scan" in line
    assert "column mask: no mask" in refused(*words("target", listed))


def test_damaged_scans(refused: Any, words: Any, datalist: Path, tmp_path: Path) -> None:
    rows = list(Datalist.read(datalist))
    for site in ("sm15", "ge3"):
        index = next(i for i, row in enumerate(rows) if row.site == site and row.split == "train")
        damaged = tmp_path / f"{site}.nii.gz"
        damaged.write_bytes(rows[index].image.read_bytes()[:-300])
        changed = [*rows[:index], dataclasses.replace(rows[index], image=damaged), *rows[index + 1 :]]
        line = refused(*words("aiva", Datalist(tuple(changed)).write(tmp_path / "list.csv")))
        assert f"{site}.nii.gz: the file is truncated or damaged" in line


def test_networks_of_other_kinds(refused: Any, words: Any, adapted: Path, tmp_path: Path, datalist: Path) -> None:
    def line(model: Path) -> str:
        return str(refused(*words(), "--source-model", model))

    assert "is a network that was adapted to ge3; give a run of `pretrain`" in line(adapted)
    (tmp_path / "unfinished").mkdir()
    assert "unfinished: holds no model.safetensors; finish the training run" in line(tmp_path / "unfinished")
    assert "none.safetensors: no such file" in line(tmp_path / "none.safetensors")
    torch.save({"a": 1}, tmp_path / "code.safetensors")
    assert "code.safetensors: damaged, or not a safetensors file" in line(tmp_path / "code.safetensors")
    assert "--method aiva needs --source-model; give the run folder of `aiva pretrain`" in refused(
        "adapt", "--datalist", datalist, "--target", "ge3", "--out", tmp_path / "out"
    )
    assert "--method target starts from random weights; leave out --source-model" in refused(
        *words("target"), "--source-model", adapted
    )


def test_predict_without_a_site(refused: Any, datalist: Path, source_model: Path, tmp_path: Path) -> None:
    start = ["predict", "--datalist", datalist, "--model", source_model, "--device", "cpu", "--out", tmp_path / "out"]
    line = refused(*start, "--preprocessing", "plain")
    assert "a source network has no target site; name one: --site sm15" in line
    assert "--preprocessing was plain when this network was trained and is cc359 now" in refused(
        *start, "--site", "ge3"
    )


def test_clusters_of_what_is_no_aiva_run(refused: Any, source_model: Path, adapted: Path, tmp_path: Path) -> None:
    start = ["clusters", "--device", "cpu", "--out", tmp_path / "out", "--runs"]
    assert "is a run of method none; give runs of `aiva adapt --method aiva`" in refused(*start, source_model)
    shutil.copytree(adapted, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "clusters")
    assert "run: holds no clusters" in refused(*start, tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("a: [")
    assert "config.yaml: cannot be read" in refused(*start, tmp_path / "run")


def test_settings_that_cannot_be(refused: Any, words: Any) -> None:
    for flags, problem in (
        (["--clusters", 0], "--clusters is 0; give at least 1"),
        (["--batch-size", 0], "--batch-size is 0; give at least 1"),
        (["--patch-size", 50], "--patch-size is 50; give a multiple of 8 such as 56"),
        (["--acc-amount", -1], "--acc-amount is -1; give at least 0"),
        (["--learning-rate", "nan"], "--learning-rate is nan; give at least 0"),
        (["--iterations-per-epoch", 1], "--iterations-per-epoch is 1; give at least 2, or --embedding recompute"),
        (["--reg", 0], "--reg is 0; give a positive number"),
        (["--passes", 0], "--passes is 0; give at least 1"),
        (["--passes", 3], "--passes has no meaning for --method aiva; leave it out, or give --method adabn"),
        (["--adabn", "cumulative"], "--adabn has no meaning for --method aiva; leave it out, or give --method adabn"),
        (["--alpha", 1], "--alpha has no meaning for --method aiva; leave it out, or give --method seg-jdot"),
        (["--adversarial-weight", 1], "--adversarial-weight has no meaning for --method aiva"),
        (["--reg", 1], "--reg has no meaning for --ot emd; leave it out, or give --ot sinkhorn"),
        (["--method", "dann"], "--method is 'dann', not one of none, aiva, adabn, seg-jdot, adaptsegnet, target"),
        (["--alignment", "paper"], "--alignment is 'paper', not one of"),
        (["--cluster", 3], "unknown flag --cluster; did you mean --clusters?"),
    ):
        assert problem in refused(*words(), *flags)
    for method, flags, problem in (
        ("adabn", ["--clusters", 3], "--clusters has no meaning for --method adabn; leave it out, or give --method aiva"),
        ("seg-jdot", ["--passes", 3], "--passes has no meaning for --method seg-jdot"),
        ("target", ["--milestones", 2], "--milestones has no meaning for --method target; leave it out, or give --method aiva or"),
        ("none", ["--milestones", 2], "--milestones has no meaning for --method none"),
    ):  # fmt: skip
        assert problem in refused(*words(method), *flags)


def test_output_that_is_there(refused: Any, command: Command, words: Any, adapted: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    for flags in ([], ["--overwrite"]):
        assert "out: not empty, and what it holds is no run; give another --out" in refused(*words(), *flags)
    shutil.rmtree(tmp_path / "out")
    assert "out: no run to resume here" in refused(*words(), "--resume")
    assert command(*words("none")).status == 0
    assert "out: holds a run already; --resume continues it" in refused(*words("none"))
    assert "config.yaml: method was none when the run started and is adabn now" in refused(*words("adabn"), "--resume")
    # Bad input is found before the old results go.
    assert "cannot make 40 clusters" in refused(*words(), "--overwrite", "--clusters", 40)


def test_no_room_for_the_features(refused: Any, words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    line = refused(*words())
    assert "features: the features of all slices take 0.0 GB, and 0.0 GB are free; free some space" in line


def test_cuda_asked_for_and_absent(refused: Any, words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for method in ("aiva", "adabn"):
        line = refused(*words(method), "--device", "cuda")
        assert "--device is cuda, and PyTorch finds no CUDA device here; give --device cpu" in line
