"""SpotTUNet runs: which slices are used, losses, schedules, policies, and the network that comes back from disk."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from adagrad_unet import AvaGrad
from adagrad_unet import settings as of
from adagrad_unet.spottune import (
    Labelled,
    Network,
    _set_rate,
    load_labelled,
    load_network,
    make_unet_optimizer,
    patch_batches,
    segment,
    segmentation_loss,
    slices_of,
)
from dart_core.adapt import LAYERS, SpotTUNet
from dart_core.checkpoint import load_checkpoint
from dart_core.data.datalist import Datalist
from dart_core.data.scans import predict_scan
from dart_core.nets import ResidualUNet2d
from dart_core.settings import ScanSettings

nib: Any = nibabel


def labelled(heads: Path, count: int = 2) -> list[Labelled]:
    settings = ScanSettings(heads, preprocessing="plain")
    return [load_labelled(row, settings, ()) for row in list(Datalist.read(heads))[:count]]


def test_slices_are_taken_scan_by_scan(heads):
    scans = labelled(heads)  # 16 slices each
    assert slices_of(scans, 5, 5) == [(0, 0), (0, 5), (0, 10), (1, 0), (1, 5)]
    assert slices_of(scans, 17, 1)[-1] == (1, 0)
    with pytest.raises(
        ValueError, match="2 training scans hold 6 slices at --interval 5, 7 are asked for; give --slices 6"
    ):
        slices_of(scans, 7, 5)


def test_batches_hold_the_chosen_slices_only(heads):
    scans = labelled(heads)
    settings = of.Spottuning(batch_size=40, patch=32)
    batch = patch_batches(scans, [(0, 3), (0, 9), (1, 4)], 1, settings, 0).batch(0)
    assert batch["image"].shape == (40, 1, 32, 32)
    assert batch["labels"].shape == (40, 32, 32)
    whole = np.zeros((3, 32, 32), np.int16)
    for place, (number, z) in enumerate([(0, 3), (0, 9), (1, 4)]):
        whole[place] = scans[number].labels[:, 4:36, z]
    found = {int(i) for labels in batch["labels"].numpy() for i in range(3) if (labels == whole[i]).all()}
    # Slices of 32 x 40 with a patch of 32: rows are fixed, columns are drawn.
    assert found <= {0, 1, 2}
    images = {float(image.sum()) for image in batch["image"]}
    assert len(images) > 3
    again = patch_batches(scans, [(0, 3), (0, 9), (1, 4)], 1, settings, 0).batch(0)
    assert torch.equal(batch["image"], again["image"])


def test_losses():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 1, 4, 4), torch.randint(0, 2, (2, 4, 4))
    p = logits[:, 0].sigmoid()
    expected = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    torch.testing.assert_close(segmentation_loss(logits, labels), expected)
    several, classes = torch.randn(2, 4, 4, 4), torch.randint(0, 4, (2, 4, 4))
    log_p = F.log_softmax(several, 1)
    picked = torch.stack([log_p[b, classes[b, i, j], i, j] for b in range(2) for i in range(4) for j in range(4)])
    torch.testing.assert_close(segmentation_loss(several, classes), -picked.mean())


def test_optimisers_and_their_schedule():
    w = [torch.nn.Parameter(torch.ones(2))]
    sgd = make_unet_optimizer(w, "sgd", 1e-3)
    assert (sgd.param_groups[0]["momentum"], sgd.param_groups[0]["nesterov"]) == (0.9, True)
    assert isinstance(make_unet_optimizer(w, "avagrad", 10.0), AvaGrad)
    settings = of.Spottuning("spottuned", batches=10)
    for step, expected in ((0, 1.0), (749, 1.0), (750, 0.1), (999, 0.1)):
        _set_rate(sgd, 1.0, step, settings)
        assert sgd.param_groups[0]["lr"] == pytest.approx(expected)


def test_runs_and_their_files(spotted, heads):
    for stage, method in (("baseline", "baseline AvaGrad"), ("tuned", "spottuned AvaGrad, 7 slices")):
        run = spotted[stage]
        network, description = load_network(run)
        assert description.method == method
        assert description.site == "ge3"  # where the weights come from
        assert (run / "report.html").read_text(encoding="utf-8").rstrip().endswith("</html>")
        assert isinstance(network, SpotTUNet if stage == "tuned" else ResidualUNet2d)
    tuned = json.loads((spotted["tuned"] / "metrics.json").read_text())
    assert (tuned["scans"], tuned["slices"]) == (3, 7)
    assert list(tuned["fine_tuned_in_training"]) == list(LAYERS)
    with open(spotted["tuned"] / "policy.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 32
    assert all(0 <= float(row["training"]) <= 1 for row in rows)


def test_the_frozen_copy_is_the_baseline(spotted):
    """All frozen, with the batch norms of the source, gives the baseline's logits; fine-tuned weights have moved."""
    baseline, _ = load_network(spotted["baseline"])
    tuned, _ = load_network(spotted["tuned"])
    assert isinstance(tuned, SpotTUNet)
    for name, parameter in tuned.frozen.named_parameters():
        assert torch.equal(parameter, dict(baseline.named_parameters())[name])
    moved = [not torch.equal(p, q) for p, q in zip(tuned.fine_tuned.parameters(), baseline.parameters(), strict=True)]
    assert any(moved)
    tuned.frozen.load_state_dict(baseline.state_dict())
    x = torch.rand(2, 1, 32, 40)
    with torch.no_grad():
        torch.testing.assert_close(tuned.eval()(x, torch.ones(2, 32)), baseline.eval()(x), rtol=0, atol=0)


def test_statistics_count_every_sample(spotted):
    state = load_checkpoint(max((spotted["tuned"] / "checkpoints").iterdir()))["state"]["statistics"]
    assert state["samples"] == 2 * 3 * 2  # epochs, batches, slices


def test_predict_and_evaluate_both_stages(command, heads, spotted, tmp_path):
    for stage, run in spotted.items():
        words = ("--datalist", heads, "--site", "sm15", "--split", "test", "--model", run, "--out", tmp_path / stage)
        assert command("predict", *words, "--device", "cpu").status == 0
    content = json.loads((tmp_path / "tuned" / "metrics.json").read_text())
    assert list(content["fine_tuned"]) == list(LAYERS)
    assert "Policy" in (tmp_path / "tuned" / "report.html").read_text(encoding="utf-8")
    assert not (tmp_path / "baseline" / "policy.csv").exists()
    network, model = load_network(spotted["baseline"])
    row = next(row for row in Datalist.read(heads) if row.site == "sm15" and row.split == "test")
    scan = load_labelled(row, ScanSettings(heads, preprocessing="plain"), ()).scan
    expected = segment(predict_scan(network, scan.volume, model.channels))
    written = nib.as_closest_canonical(nib.load(next((tmp_path / "baseline").glob("*_mask.nii.gz"))))
    np.testing.assert_array_equal(np.asarray(written.dataobj) > 0, expected)
    done = command("evaluate", "--predictions", *(tmp_path / stage for stage in spotted), "--out", tmp_path / "e")
    assert done.status == 0, done.err
    rows = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert rows["baseline"] == "baseline AvaGrad"


def test_training_scans_are_not_tested(command, heads, spotted, tmp_path):
    """`spottune` needs a split column, and `predict` goes by the same one."""
    without = heads.with_name("without.csv")
    rows = Datalist.read(heads)
    Datalist(tuple(dataclasses.replace(row, split="") for row in rows), without).write(without)
    done = command("spottune", "--datalist", without, "--site", "ge3", "--out", tmp_path / "o")
    assert done.status == 2
    assert "says of no scan that it is for train; add a column split" in done.line
    done = command(
        "predict", "--datalist", without, "--split", "test", "--model", spotted["tuned"], "--out", tmp_path / "o"
    )
    assert done.status == 2
    assert "says of no scan that it is for test" in done.line
    assert not (tmp_path / "o").exists()


def test_predict_keeps_to_the_test_scans(command, heads, spotted, trained, tmp_path):
    """SpotTUNet has learnt from slices of the target's training scans; `train` has seen no target."""

    def predicted(model: Path, *words: object, datalist: Path = heads) -> tuple[list[str], str]:
        out = tmp_path / f"p{len(list(tmp_path.iterdir()))}"
        done = command("predict", "--datalist", datalist, "--site", "sm15", "--model", model, *words, "--out", out)
        assert done.status == 0, done.err
        with open(out / "predictions.csv", newline="", encoding="utf-8") as file:
            return [row["subject"] for row in csv.DictReader(file)], done.err

    rows = [row for row in Datalist.read(heads) if row.site == "sm15"]
    test = [row.subject for row in rows if row.split == "test"]
    found, said = predicted(spotted["tuned"])
    assert found == test
    assert "only scans for test" in said
    assert len(rows) > len(test)
    found, said = predicted(spotted["tuned"], "--split", "all")
    assert found == [row.subject for row in rows]
    assert "only scans for test" not in said
    assert len(predicted(trained["sgd"])[0]) == len(rows)
    without = Datalist(tuple(dataclasses.replace(row, split="") for row in rows)).write(heads.with_name("none.csv"))
    assert len(predicted(spotted["tuned"], datalist=without)[0]) == len(rows)


def test_a_target_without_training_scans(command, hearts, tiny_spot, tmp_path):
    """As C and D of M&Ms, which have labels for validation and testing only."""
    rows = [row for row in Datalist.read(hearts) if row.site == "B" or row.split != "train"]
    listed = Datalist(tuple(rows)).write(hearts.with_name("target.csv"))
    done = command("spottune", "--datalist", listed, *tiny_spot, "--site", "C", "--out", tmp_path / "o")
    assert done.status == 2
    assert (
        "target.csv: site C has no scan for train; name one that has (there: B), or give a CSV of your own" in done.line
    )
    assert not (tmp_path / "o").exists()


def test_labels_of_hearts(command, hearts, tiny_spot, tmp_path):
    """Four outputs and cross-entropy; masks come back with whole-numbered labels."""
    words = ("--datalist", hearts, *tiny_spot, "--width", 2, "--labels", "LV", "MYO", "RV")
    assert command("spottune", *words, "--site", "B", "--out", tmp_path / "run").status == 0
    _, model = load_network(tmp_path / "run")
    assert model.outputs == 4
    predict = ("predict", "--datalist", hearts, "--site", "C", "--model", tmp_path / "run", "--out", tmp_path / "p")
    assert command(*predict).status == 0
    found = np.asarray(nib.load(next((tmp_path / "p").glob("*_mask.nii.gz"))).dataobj)
    assert set(np.unique(found)) <= {0, 1, 2, 3}
    done = command("spottune", *words[:-3], "LV", "--site", "B", "--out", tmp_path / "o")
    assert done.status == 2
    assert "has label 3, and the labels are LV; name all with --labels" in done.line


def test_labels_are_resampled_by_their_indicators(hearts):
    row = next(iter(Datalist.read(hearts)))
    plain = load_labelled(row, ScanSettings(hearts, preprocessing="plain"), ("LV", "MYO", "RV"))
    finer = load_labelled(
        row, ScanSettings(hearts, preprocessing="plain", spacing=(2.0, 2.0, 16.0)), ("LV", "MYO", "RV")
    )
    assert finer.labels.shape == finer.scan.volume.shape
    for label in (1, 2, 3):
        volumes = [
            (scan.labels == label).sum() * np.prod(np.linalg.norm(scan.scan.grid.affine[:3, :3], axis=0))
            for scan in (plain, finer)
        ]
        assert volumes[1] == pytest.approx(volumes[0], rel=0.25)


def test_sites_and_accumulation(command, heads, spotted, tiny_spot, tmp_path):
    done = command("spottune", "--datalist", heads, *tiny_spot, "--out", tmp_path / "o")
    assert done.status == 2
    assert "holds 3 sites; name one: --site ge3" in done.line
    tuned = ("--stage", "spottuned", "--model", spotted["baseline"], "--slices", 3, "--accumulate", 2)
    done = command("spottune", "--datalist", heads, *tiny_spot, "--site", "sm15", *tuned, "--out", tmp_path / "o")
    assert done.status == 2
    assert "--accumulate has no meaning for --stage spottuned" in done.line


def test_a_description_survives_its_text():
    own = Network("SpotTUNet", 4, ("a", "b"), "plain", (1.0, 2.0, 3.0), "x", "m", "small", True)
    assert Network.of(own.metadata(), Path("x")) == own
    assert own.build().frozen_bn_eval is True
    with pytest.raises(Exception, match="is not a network of `adagrad-unet spottune`"):
        Network.of({"spottune": "{}"}, Path("x"))
