"""Every verb on phantoms, end to end, and every bad input: exit status 2, one line, nothing written or lost."""

from __future__ import annotations

import csv
import dataclasses
import errno
import gzip
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml

from dart_core.checkpoint import load_weights, save_weights
from dart_core.data.datalist import Datalist, Row
from dart_core.data.slices import predict_slices
from dart_core.evaluation import Result, score
from dart_core.nets import ResidualUNet2d
from dart_core.report import Report
from dart_core.testing import assert_commands_answer, assert_exports, assert_help_is_light, is_report
from fda_mri import DonorBank, fourier_transfer, multi_source_predict, random_donors, select_beta, tuning
from fda_mri import settings as of
from fda_mri.adaptation import check_roles, read_tuning
from fda_mri.adaptation import tuned as with_tuned_beta
from fda_mri.baselines import CYCLEGAN_NOTE, CycleGANTransform, predict_transformed
from fda_mri.cli import COMMANDS
from fda_mri.evaluation import evaluation_sections, score_predictions, transfer_matrix
from fda_mri.scans import Grid, Scan, load, select
from fda_mri.settings import Scans

# nibabel says it is typed, but these functions are not.
nib: Any = nibabel
Command = Callable[..., Any]
GAN = ("--generator-width", 2, "--blocks", 1, "--image-size", 64, "--steps", 2, "--device", "cpu")


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def voxels(path: Path) -> np.ndarray:
    """Voxels in RAS order."""
    image = nib.load(path)
    canonical = nib.as_closest_canonical(image)
    return np.asarray(canonical.get_fdata(dtype=np.float32))


def loaded(datalist: Path, site: str, role: Any) -> list[Scan]:
    chosen = Scans(datalist, site)
    return list(load(select(chosen, role), chosen))


def network_of(trained: Any) -> ResidualUNet2d:
    network = ResidualUNet2d(width=2)
    load_weights(trained.run / "model.safetensors", network)
    return network.eval()


# Help


def test_help_of_every_command(command: Command) -> None:
    assert_commands_answer("fda-mri", command)


def test_help_needs_no_heavy_package() -> None:
    assert_help_is_light("fda_mri", "predict")


def test_public_names() -> None:
    assert_exports(
        "fda_mri", "DonorBank", "circular_mask", "fourier_transfer", "multi_source_predict", "normalise_volume",
        "segmentation_loss", "select_beta", "select_pairs", "sr_sim",
    )  # fmt: skip


# check-data


def test_check_data(command: Command, datalist: Path) -> None:
    done = command("check-data", "--datalist", datalist, "--site", "ge3")
    assert done.status == 0
    assert done.out == "5 scans (ge3 5): no problems\n"
    assert command("check-data", "--datalist", datalist, "--resample").status == 0
    # Scanner sm3 stores its scans on another grid.
    done = command("check-data", "--datalist", datalist)
    assert done.status == 2
    assert done.out.count("lies on another grid") == 5
    assert "datalist.csv, row 12, column image: " in done.out
    assert done.out.endswith("15 scans (sm15 5, ge3 5, sm3 5): 5 problems\n")


# train, bank


def test_train_writes_a_run(trained: Any, datalist: Path) -> None:
    run = trained.run
    assert {path.name for path in run.iterdir()} == {
        "checkpoints", "config.yaml", "metrics.json", "metrics.jsonl", "model.safetensors", "report.html",
    }  # fmt: skip
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["width"] == 2
    assert settings["site"] == "sm15"
    assert settings["seed"] == 0xBADCAFE
    _, metadata = load_weights(run / "model.safetensors")
    (scan,) = loaded(datalist, "sm15", "source_val")
    assert {key: metadata[key] for key in ("network", "width", "site", "fold", "grid")} == {
        "network": "ResidualUNet2d",
        "width": "2",
        "site": "sm15",
        "fold": "",
        "grid": scan.grid.to_json(),
    }
    probabilities = multi_source_free(trained, scan)
    assert scan.mask is not None
    expected = score(probabilities > 0.5, scan.mask, scan.grid.spacing)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["validation_scans"] == 1
    assert metrics["validation_dice"] == pytest.approx(expected["dice"], abs=1e-6)
    assert metrics["validation_surface_dice"] == pytest.approx(expected["surface_dice"], abs=1e-6)
    assert is_report(run / "report.html", "Source network", "sm15_1003", "Research software")


def multi_source_free(trained: Any, scan: Scan) -> np.ndarray:
    """Probabilities without adaptation: sides of 48 and 56 need no padding."""
    x = torch.from_numpy(scan.volume).movedim(-1, 0)[:, None]
    with torch.no_grad():
        return np.asarray(network_of(trained)(x)[:, 0].sigmoid().movedim(0, -1).numpy())


def test_bank_holds_the_training_scans(trained: Any, datalist: Path) -> None:
    bank = DonorBank.load(trained.bank)
    training = loaded(datalist, "sm15", "train")
    assert bank.names == [scan.name for scan in training]
    for k, scan in enumerate(training):
        assert np.array_equal(bank.scan(k).numpy(), scan.volume)
    assert bank.metadata["site"] == "sm15"


def test_bank_in_a_folder(command: Command, trained: Any, datalist: Path, tmp_path: Path) -> None:
    words = ["bank", "--datalist", datalist, "--site", "sm15", "--out", tmp_path / "new" / "bank"]
    assert command(*words).status == 0
    bank, same = DonorBank.load(tmp_path / "new" / "bank" / "donors.safetensors"), DonorBank.load(trained.bank)
    assert (bank.names, bank.metadata) == (same.names, same.metadata)
    again = command(*words)
    assert again.status == 2
    assert "donors.safetensors: is there already; --overwrite replaces it" in again.line
    assert command(*words, "--overwrite").status == 0
    bad = command(*words[:4], "nowhere", "--out", tmp_path / "not")
    assert bad.status == 2
    assert not (tmp_path / "not").exists()


# predict


@pytest.mark.parametrize("mode", ["3d", "2d", "2.5d", "random", "none"])
def test_predict(mode: Any, command: Command, trained: Any, datalist: Path, tmp_path: Path) -> None:
    flags = ["--mode", mode, "--n", 3, "--beta", 0.03, "--device", "cpu", "--probabilities"]
    donors = [] if mode == "none" else ["--bank", trained.bank]
    done = command(
        "predict", "--datalist", datalist, "--site", "ge3", "--role", "test", "--model", trained.run, *donors, *flags,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.status == 0, done.err
    (scan,) = loaded(datalist, "ge3", "test")
    target, bank = torch.from_numpy(scan.volume), DonorBank.load(trained.bank)
    if mode == "none":
        expected = multi_source_free(trained, scan)
    elif mode == "random":
        chosen = bank.gather(random_donors(3, 12, 3))
        expected = multi_source_predict(network_of(trained), target, chosen, 0.03).numpy()
    else:
        expected = multi_source_predict(network_of(trained), target, bank, 0.03, mode=mode, n=3).numpy()
    np.testing.assert_allclose(voxels(tmp_path / "out" / "ge3_4004_probability.nii.gz"), expected, rtol=0, atol=1e-5)
    mask = voxels(tmp_path / "out" / "ge3_4004_mask.nii.gz")
    clear = np.abs(expected - 0.5) > 1e-5
    assert np.array_equal(mask[clear] == 1, expected[clear] > 0.5)
    (row,) = read_csv(tmp_path / "out" / "predictions.csv")
    assert (tmp_path / "out" / row["image"]).resolve() == scan.row.image.resolve()
    assert (tmp_path / "out" / row["prediction"]).is_file()
    assert (row["subject"], row["site"], row["source_site"], row["mode"]) == ("phantom4004", "ge3", "sm15", mode)
    names = ("output", "average", "neighbours", "crop", "donor_seed", "generator")
    assert [row[name] for name in names] == ["authors", "probabilities", "2", "60", "42", ""]
    assert is_report(tmp_path / "out" / "report.html", "Predictions", "Middle slices", f"<dd>{mode}</dd>")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == {"scans": 1}


def test_predict_on_another_grid(command: Command, trained: Any, datalist: Path, tmp_path: Path) -> None:
    words = ["predict", "--datalist", datalist, "--site", "sm3", "--role", "val", "--model", trained.run,
             "--bank", trained.bank, "--n", 2, "--device", "cpu", "--out", tmp_path / "out"]  # fmt: skip
    refused = command(*words)
    assert refused.status == 2
    assert "sm3_2003.nii.gz: lies on another grid" in refused.line
    assert "--resample" in refused.line
    assert not (tmp_path / "out").exists()
    assert command(*words, "--resample").status == 0
    (row,) = read_csv(tmp_path / "out" / "predictions.csv")
    written = nib.load(tmp_path / "out" / row["prediction"])
    original = nib.load(tmp_path / "out" / row["image"])
    assert written.shape == original.shape
    np.testing.assert_allclose(written.affine, original.affine, atol=1e-4)


def test_resampling_without_a_bank(command: Command, trained: Any, datalist: Path, tmp_path: Path) -> None:
    """--mode none asks the network's file for the grid; files of before that did not store one go on without."""
    words = ["predict", "--datalist", datalist, "--site", "sm3", "--role", "test", "--mode", "none", "--device", "cpu",
             "--probabilities", "--model"]  # fmt: skip
    old = tmp_path / "old.safetensors"
    save_weights(old, network_of(trained), {"network": "ResidualUNet2d", "width": "2", "site": "sm15"})
    runs = {"plain": [trained.run], "resampled": [trained.run, "--resample"], "old": [old, "--resample"]}
    for name, given in runs.items():
        assert command(*words, *given, "--out", tmp_path / name).status == 0
    chosen = Scans(datalist, "sm3", resample=True)
    (source, *_) = loaded(datalist, "sm15", "train")
    for grid, names in ((None, ("plain", "old")), (source.grid, ("resampled",))):
        (scan,) = load(select(chosen, "test"), chosen, grid)
        assert np.allclose(scan.grid.affine, source.grid.affine) == (grid is not None)
        probabilities = predict_slices(network_of(trained), torch.from_numpy(scan.volume)).sigmoid().numpy()
        expected = voxels(scan.write(tmp_path / "expected.nii.gz", probabilities))
        for name in names:
            found = voxels(tmp_path / name / "sm3_2004_probability.nii.gz")
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


# Roles must not mix (specification 5.4)


def test_scans_that_may_have_trained(command: Command, trained: Any, datalist: Path, tmp_path: Path) -> None:
    rows = Datalist.read(datalist).select(site="sm15")
    plain = Datalist(tuple(dataclasses.replace(row, split="") for row in rows)).write(tmp_path / "plain.csv")
    model, bank = ["--model", trained.run, "--device", "cpu"], ["--bank", trained.bank, "--n", 2]
    for number, (words, named) in enumerate((
        (["predict", *model, "--mode", "none", "--role", "test"], [trained.run]),
        (["predict", *model, *bank, "--role", "test"], [trained.run, trained.bank]),
        (["adapt", *bank, "--role", "val"], [trained.bank]),
        (["tune-beta", *model, *bank, "--betas", 0, 0.05], [trained.run, trained.bank]),
    )):  # fmt: skip
        for listed, site, warned in ((plain, "sm15", True), (datalist, "sm15", False), (datalist, "ge3", False)):
            out = tmp_path / f"{number}-{listed.stem}-{site}"
            done = command(*words, "--datalist", listed, "--site", site, "--out", out)
            assert done.status == 0, done.err
            lines = [line for line in done.err.splitlines() if line.startswith("warning: ")]
            assert len(lines) == warned
            if warned:
                assert lines[0].startswith(f"warning: site sm15 is also that of {' and '.join(map(str, named))}, ")
    # All rows of the split column: those that trained are among them.
    words = ["predict", *model, "--mode", "none", "--datalist", datalist, "--site", "sm15", "--out", tmp_path / "all"]
    assert "warning: " in command(*words).err


def test_folds_must_agree(command: Command, refused: Any, datalist: Path, tmp_path: Path) -> None:
    rows = [dataclasses.replace(row, split="") for row in Datalist.read(datalist) if row.site == "sm15"]
    shutil.copy(rows[0].image, tmp_path / "sixth.nii.gz")
    rows.append(dataclasses.replace(rows[0], image=tmp_path / "sixth.nii.gz", subject="sixth"))
    listed, bank = Datalist(tuple(rows)).write(tmp_path / "list.csv"), tmp_path / "bank.safetensors"
    assert command("bank", "--datalist", listed, "--fold", 1, "--out", bank).status == 0
    assert DonorBank.load(bank).metadata["fold"] == "1"
    words = ["adapt", "--datalist", listed, "--bank", bank, "--n", 2, "--role", "test", "--out", tmp_path / "out"]
    for fold in ([], ["--fold", 2]):
        assert "bank.safetensors was made of site sm15 with --fold 1; give --fold 1 here too" in refused(*words, *fold)
    done = command(*words, "--fold", 1)
    assert done.status == 0
    assert "warning" not in done.err
    row = (dataclasses.replace(rows[0], split="test"),)
    for metadata in ({"site": "sm15"}, {"site": "ge3", "fold": "1"}, {"site": "", "fold": "1"}):
        check_roles(row, Scans(listed, fold=0), "test", {bank: metadata})  # unknown fold, or another site
    with pytest.raises(ValueError, match="without --fold; leave out --fold here too"):
        check_roles(row, Scans(listed, fold=0), "test", {bank: {"site": "sm15", "fold": ""}})


def test_predict_takes_as_many_slices_as_the_bank(
    command: Command, trained: Any, datalist: Path, tmp_path: Path
) -> None:
    bank = tmp_path / "bank.safetensors"
    assert command("bank", "--datalist", datalist, "--site", "sm15", "--keep-slices", 9, "--out", bank).status == 0
    assert DonorBank.load(bank).shape == (48, 56, 9)
    words = ["--datalist", datalist, "--site", "ge3", "--role", "test", "--model", trained.run, "--bank", bank]
    done = command("predict", *words, "--n", 2, "--device", "cpu", "--probabilities", "--out", tmp_path / "out")
    assert done.status == 0, done.err
    probabilities = voxels(tmp_path / "out" / "ge3_4004_probability.nii.gz")
    assert probabilities.shape == (48, 56, 12)
    assert not probabilities[..., 9:].any()
    assert probabilities[..., :9].all()
    # The name says so, masks above are warned of once, and another number than the bank's is refused.
    assert done.err.count("reach above the kept slices") == 1
    words += ["--device", "cpu"]
    assert command("predict", *words, "--keep-slices", 9, "--mode", "none", "--out", tmp_path / "none").status == 0
    folders = [tmp_path / "out", tmp_path / "none"]
    results = score_predictions(of.Evaluate(of.OutputSettings(tmp_path / "e"), tuple(folders)))
    assert {r.method for r in results} == {"3d n=2 beta=0.015 keep-slices=9", "none keep-slices=9"}
    for slices in (0, 8):
        refused = command("predict", *words, "--keep-slices", slices, "--out", tmp_path / "x")
        assert refused.status == 2
        assert f"--keep-slices is {slices}, and the bank holds 9 slices of 12; leave out" in refused.err
    assert not (tmp_path / "x").exists()
    done = command("predict", *words, "--n", 12, "--keep-slices", 9, "--out", tmp_path / "all")
    assert done.status == 0
    assert {row["n"] for row in read_csv(tmp_path / "all" / "predictions.csv")} == {"3"}
    assert "n 3, beta" in (tmp_path / "all" / "report.html").read_text(encoding="utf-8")


def test_too_few_donors_are_all_used(command: Command, trained: Any, datalist: Path, tmp_path: Path) -> None:
    words = ["--datalist", datalist, "--site", "ge3", "--role", "test", "--bank", trained.bank]
    done = command("adapt", *words, "--n", 5, "--out", tmp_path / "out")
    assert done.status == 0
    assert done.err.splitlines()[0].endswith("holds 3 scans; all of them are used instead of --n 5")
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 3


# adapt


@pytest.mark.parametrize("mode", ["2.5d", "random"])
def test_adapt(mode: Any, command: Command, trained: Any, datalist: Path, tmp_path: Path) -> None:
    n = 4
    words = ["--datalist", datalist, "--site", "ge3", "--role", "val", "--bank", trained.bank]
    flags = ["--mode", mode, "--n", n, "--beta", 0.05, "--output", "formula"]
    assert command("adapt", *words, *flags, "--out", tmp_path / "out").status == 0
    (scan,) = loaded(datalist, "ge3", "val")
    target, bank = torch.from_numpy(scan.volume), DonorBank.load(trained.bank)
    if mode == "random":
        scans = random_donors(3, 12, n)
        offsets, scores = torch.zeros_like(scans), torch.full(scans.shape, torch.nan)
    else:
        scans, offsets, scores = bank.rank(target, mode, n)
    table = read_csv(tmp_path / "out" / "donors.csv")
    assert len(table) == 12 * n
    for row in table:
        assert row["scan"] == "ge3_4003"
        place = int(row["slice"]), int(row["rank"]) - 1
        k = int(scans[place])
        assert row["donor"] == (bank.names[k] if k >= 0 else "")
        assert int(row["offset"]) == offsets[place]
        assert float(row["sr_sim"]) == pytest.approx(float(scores[place]), abs=1e-6, nan_ok=True)
    for j in range(n):
        adapted = voxels(tmp_path / "out" / f"ge3_4003_donor{j + 1}.nii.gz")
        for z in range(12):
            k = int(scans[z, j])
            expected = target[..., z]
            if k >= 0:
                donor = bank.scan(k)[..., z + int(offsets[z, j])]
                expected = fourier_transfer(expected, donor, 0.05, output="formula")
            np.testing.assert_allclose(adapted[..., z], expected.numpy(), rtol=0, atol=1e-5)
    assert is_report(tmp_path / "out" / "report.html", "Adapted scans", "Research software")


# CycleGAN


def test_cyclegan(command: Command, trained: Any, datalist: Path, tmp_path: Path) -> None:
    words = ["--datalist", datalist, "--site", "sm15"]
    gan, target = tmp_path / "gan", ["--datalist", datalist, "--site", "ge3", "--role", "test", "--mode", "cyclegan"]
    done = command("train", *words, "--method", "cyclegan", "--target-site", "ge3", *GAN, "--out", gan)
    assert done.status == 0, done.err
    assert is_report(gan / "report.html", "CycleGAN stand-in", "stands in")
    done = command(
        "predict", *target, "--model", trained.run, "--generator", gan, "--device", "cpu", "--probabilities",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.status == 0, done.err
    (scan,) = loaded(datalist, "ge3", "test")
    transform, volume = CycleGANTransform.load(gan), torch.from_numpy(scan.volume)
    expected = predict_transformed(network_of(trained), volume, transform).numpy()
    np.testing.assert_allclose(voxels(tmp_path / "out" / "ge3_4004_probability.nii.gz"), expected, rtol=0, atol=1e-4)
    assert command("adapt", *target, "--generator", gan, "--out", tmp_path / "adapted").status == 0
    adapted = voxels(tmp_path / "adapted" / "ge3_4004_cyclegan.nii.gz")
    np.testing.assert_allclose(adapted, transform(volume).numpy(), rtol=0, atol=1e-5)
    (row,) = read_csv(tmp_path / "out" / "predictions.csv")
    assert row["generator"] == str(gan.resolve())
    # --resample: on the source's grid, which the generator's file names.
    other = Scans(datalist, "sm3", resample=True)
    (scan,) = load(select(other, "test"), other, Grid.from_json(transform.metadata["grid"]))
    assert np.array_equal(scan.grid.affine, loaded(datalist, "sm15", "train")[0].grid.affine)
    expected = voxels(scan.write(tmp_path / "expected.nii.gz", transform(torch.from_numpy(scan.volume)).numpy()))
    words = [*target, "--site", "sm3", "--resample", "--generator", gan, "--out", tmp_path / "resampled"]
    assert command("adapt", *words).status == 0
    np.testing.assert_allclose(voxels(tmp_path / "resampled" / "sm3_2004_cyclegan.nii.gz"), expected, rtol=0, atol=1e-5)


def test_cyclegan_does_not_learn_from_the_targets_test_scans(refused: Any, datalist: Path, tmp_path: Path) -> None:
    rows = [dataclasses.replace(row, split="") for row in Datalist.read(datalist)]
    listed = Datalist(tuple(rows)).write(tmp_path / "list.csv")
    words = ["train", "--method", "cyclegan", *GAN, "--datalist", listed, "--site", "sm15", "--target-site", "ge3"]
    assert "list.csv, site ge3: has scans of 5 subjects" in refused(*words, "--out", tmp_path / "gan")


# tune-beta


@pytest.fixture(scope="module")
def tuned(trained: Any, datalist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dart_core.cli import main

    out = tmp_path_factory.mktemp("tuned") / "out"
    words = ["tune-beta", "--datalist", datalist, "--site", "ge3", "--model", trained.run, "--bank", trained.bank,
             "--n", 2, "--betas", 0, 0.02, 0.05, "--modes", "2d", "random", "--counts", 1, 2, 9, "--tolerance", 3,
             "--device", "cpu", "--out", out]  # fmt: skip
    assert main("fda-mri", COMMANDS, "0", "", [str(word) for word in words]) == 0
    return out


def test_tune_beta(tuned: Path, trained: Any, datalist: Path) -> None:
    result = json.loads((tuned / "tuning.json").read_text())
    assert result["betas"] == [0, 0.02, 0.05]
    assert set(result["curves"]) == {"2d", "random"}
    (scan,) = loaded(datalist, "ge3", "val")
    network, target, bank = network_of(trained), torch.from_numpy(scan.volume), DonorBank.load(trained.bank)

    def surface(donors: Any, beta: float, **options: Any) -> float:
        mask = multi_source_predict(network, target, donors, beta, **options).numpy() > 0.5
        assert scan.mask is not None
        return score(mask, scan.mask, scan.grid.spacing, 3)["surface_dice"]

    for beta, found in zip(result["betas"], result["curves"]["2d"], strict=True):
        assert found == pytest.approx(surface(bank, beta, mode="2d", n=2), abs=2e-3)
    for beta, found in zip(result["betas"], result["curves"]["random"], strict=True):
        assert found == pytest.approx(surface(bank.gather(random_donors(3, 12, 2)), beta), abs=2e-3)
    # Beta 0 takes no part, and n = 9 means all three donors there are.
    assert list(result["counts"]) == ["0.02", "0.05"]
    for beta in (0.02, 0.05):
        curve = result["counts"][f"{beta:g}"]
        assert [n for n, _ in curve] == [1, 2, 9]
        for n, found in curve:
            assert found == pytest.approx(surface(bank, beta, n=n), abs=2e-3)
    for mode, curve in result["curves"].items():
        expected = select_beta(np.array([curve]), result["betas"])
        assert result["chosen"][mode] == {"per_pair": expected, "averaged": expected}
    assert is_report(tuned / "report.html", "Choice of beta", "sm15 -&gt; ge3")


def test_averaged_beta_over_pairs(command: Command, tuned: Path, trained: Any, datalist: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    result = json.loads((tuned / "tuning.json").read_text())
    curve = np.array(result["curves"]["2d"])
    # A pair for which the third beta is so good that it decides the mean.
    result |= {"pair": "a -> b", "curves": {"2d": [0.0, 0.0, 5.0]}}
    (other / "tuning.json").write_text(json.dumps(result))
    words = ["--datalist", datalist, "--site", "ge3", "--model", trained.run, "--bank", trained.bank, "--n", 2,
             "--modes", "2d", "--tolerance", 3, "--device", "cpu", "--curves-of", other]  # fmt: skip
    done = command("tune-beta", *words, "--betas", 0, 0.02, 0.05, "--out", tmp_path / "out")
    assert done.status == 0, done.err
    found = json.loads((tmp_path / "out" / "tuning.json").read_text())
    assert found["averaged_over_pairs"] == ["sm15 -> ge3", "a -> b"]
    np.testing.assert_allclose(found["curves"]["2d"], curve)
    assert found["chosen"]["2d"] == {"per_pair": select_beta(curve, [0, 0.02, 0.05]), "averaged": 0.05}
    refused = command("tune-beta", *words, "--betas", 0, 0.02, "--out", tmp_path / "no")
    assert refused.status == 2
    assert "tuning.json: has another grid of betas; run it again" in refused.line
    refused = command("tune-beta", *words, "--betas", 0, 0.02, 0.05, "--modes", "3d", "--out", tmp_path / "no")
    assert "tuning.json: has no curve for 3d" in refused.line
    (other / "tuning.json").write_text("{}")
    refused = command("tune-beta", *words, "--betas", 0, 0.02, 0.05, "--out", tmp_path / "no")
    assert refused.status == 2
    assert "tuning.json" in refused.line
    assert not (tmp_path / "no").exists()


def test_predict_takes_beta_from_tuning(
    command: Command, tuned: Path, trained: Any, datalist: Path, tmp_path: Path
) -> None:
    runs = {}
    for name, curve in {"a": [0.5, 0.4, 0.3], "b": [0.1, 0.2, 0.9], "c": [0.9, 0.0, 0.3]}.items():
        runs[name] = tmp_path / name
        runs[name].mkdir()
        content = {"pair": name, "betas": [0, 0.02, 0.05], "curves": {"2d": curve}}
        (runs[name] / "tuning.json").write_text(json.dumps(content))
    words = ["predict", "--datalist", datalist, "--site", "ge3", "--role", "test", "--model", trained.run, "--bank",
             trained.bank, "--mode", "2d", "--n", 2, "--device", "cpu"]  # fmt: skip
    # The mean of all three is 0.5, 0.2, 0.5: the first maximum is at 0, so the next value is taken.
    for chosen, beta in ((("a",), 0.02), (("b",), 0.05), (("a", "b"), 0.05), (("a", "b", "c"), 0.02)):
        out = tmp_path / "".join(("out-", *chosen))
        done = command(*words, "--tuned", *(runs[name] for name in chosen), "--out", out)
        assert done.status == 0, done.err
        (row,) = read_csv(out / "predictions.csv")
        assert float(row["beta"]) == beta
        assert yaml.safe_load((out / "config.yaml").read_text())["beta"] == beta
    no = ["--out", tmp_path / "no", "--tuned"]
    assert "tuning.json: has another grid of betas; run it again" in grid_refused(command, tuned, words, no, runs["a"])
    assert "tuning.json: has no curve for 3d" in command(*words, "--mode", "3d", *no, runs["a"]).line
    assert "--mode none has no beta; leave out --tuned" in command(*words, "--mode", "none", *no, runs["a"]).line
    assert not (tmp_path / "no").exists()


SETTINGS = {"n": 2, "neighbours": 2, "crop": 60, "output": "authors", "average": "probabilities", "donor_seed": 42}


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"tolerance": 1.0}, "--tolerance 1.0, not 3.0"),
        ({"surface": "2d"}, "--surface 2d, not 3d"),
        ({"transfer": SETTINGS | {"n": 7}}, "--n 7, not 2"),
        ({"transfer": SETTINGS | {"output": "formula"}}, "--output formula, not authors"),
        ({"transfer": SETTINGS | {"average": "logits"}}, "--average logits, not probabilities"),
        ({"transfer": SETTINGS | {"crop": 0}}, "--crop 0, not 60"),
        ({"transfer": SETTINGS | {"neighbours": 1, "donor_seed": 1}}, ""),  # a 2-D search looks at neither
        ({"transfer": {}}, ""),
    ],
    ids=["tolerance", "surface", "n", "output", "average", "crop", "no matter", "old"],
)
def test_curves_of_other_settings(
    changed: dict[str, Any], problem: str, tuned: Path, refused: Any, verb: Any, datalist: Path, tmp_path: Path
) -> None:
    """Only curves of the same settings are averaged: by tune-beta and by predict --tuned."""
    result = json.loads((tuned / "tuning.json").read_text())
    assert result["transfer"] == SETTINGS
    other = tmp_path / "other"
    other.mkdir()
    (other / "tuning.json").write_text(json.dumps(result | changed))
    if not problem:
        assert read_tuning(other, ("2d",), result)["curves"] == result["curves"]
        assert with_tuned_beta(of.Transfer(mode="2d", n=2), [tuned, other]).beta in result["betas"]
        return
    line = f"tuning.json: was made with {problem}; run it again with the same --{problem.split()[0][2:]}"
    words = [*verb("tune-beta", datalist), "--betas", 0, 0.02, 0.05, "--modes", "2d", "--tolerance", 3]
    assert line in refused(*words, "--curves-of", other)
    assert line in refused(*verb("predict", datalist), "--mode", "2d", "--tuned", tuned, other)


class Steep(torch.nn.Module):
    """Logits so far from 0 that the mean of the probabilities and that of the logits differ."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(60.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * (x - 0.3)


def test_study_of_n_averages_what_the_method_averages(
    command: Command, verb: Any, datalist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "load_network", lambda model, device: (Steep(), {}))
    found = {}
    for average in ("probabilities", "logits"):
        out = tmp_path / average
        words = ["--betas", 0, 0.1, "--n", 3, "--counts", 3, "--average", average, "--tolerance", 3, "--out", out]
        assert command(*verb("tune-beta", datalist), *words).status == 0
        result = json.loads((out / "tuning.json").read_text())
        found[average] = result["curves"]["3d"][1]
        assert result["counts"]["0.1"] == [[3, found[average]]]
    assert found["probabilities"] != found["logits"]


def grid_refused(command: Command, tuned: Path, words: list[Any], no: list[Any], run: Path) -> str:
    other = run.with_name("other")
    shutil.copytree(tuned, other)
    content = json.loads((other / "tuning.json").read_text()) | {"betas": [0, 0.01, 0.05]}
    (other / "tuning.json").write_text(json.dumps(content))
    return str(command(*words, *no, run, other).line)


# evaluate


def prediction_folder(
    folder: Path,
    rows: list[Row],
    masks: list[np.ndarray],
    source: str,
    mode: str = "none",
    n: int = 7,
    **settings: object,
) -> Path:
    """What `predict` would have written, with masks of our own (in RAS)."""
    folder.mkdir()
    table = []
    for row, mask in zip(rows, masks, strict=True):
        image = nib.load(row.image)
        canonical = nib.as_closest_canonical(image)
        name = f"{row.subject}.nii.gz"
        written = nib.Nifti1Image(mask.astype(np.uint8), canonical.affine)
        nib.save(written, folder / name)
        table.append(
            [row.image.resolve(), row.mask and row.mask.resolve(), name, row.subject, row.site, source, mode, n, 0.015,
             *settings.values()]
        )  # fmt: skip
    with open(folder / "predictions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        columns = ["image", "mask", "prediction", "subject", "site", "source_site", "mode", "n", "beta", *settings]
        writer.writerow(columns)
        writer.writerows(table)
    return folder


def test_evaluate(command: Command, datalist: Path, tmp_path: Path) -> None:
    rows = list(Datalist.read(datalist).select(site="ge3"))
    truths = [voxels(row.mask) > 0.5 for row in rows if row.mask is not None]
    halves = [truth & (np.arange(48)[:, None, None] < 24) for truth in truths]
    nothing = [np.zeros_like(truth) for truth in truths]
    perfect = prediction_folder(tmp_path / "perfect", rows, truths, "sm15", "3d")
    half = prediction_folder(tmp_path / "half", rows, halves, "sm15")
    empty = prediction_folder(tmp_path / "empty", rows, nothing, "sm15", "random", n=1)
    done = command("evaluate", "--predictions", perfect, half, empty, "--out", tmp_path / "out")
    assert done.status == 0, done.err
    results = {row["method"]: row for row in json.loads((tmp_path / "out" / "metrics.json").read_text())["results"]}
    assert set(results) == {"3d n=7 beta=0.015", "none", "random n=1 beta=0.015"}
    best, plain, worst = (results[name] for name in ("3d n=7 beta=0.015", "none", "random n=1 beta=0.015"))
    assert (best["surface_dice"], best["dice"], best["dice_std"], best["scans"]) == (1, 1, 0, 5)
    assert (worst["surface_dice"], worst["dice"]) == (0, 0)
    spacing = [float(side) for side in np.linalg.norm(nib.load(rows[0].image).affine[:3, :3], axis=0)]
    scores = [score(h, t, spacing) for h, t in zip(halves, truths, strict=True)]
    for name in ("surface_dice", "dice"):
        values = [values[name] for values in scores]
        assert plain[name] == pytest.approx(np.mean(values), abs=1e-6)
        assert plain[f"{name}_std"] == pytest.approx(np.std(values), abs=1e-6)  # population
    assert best["difference_to_none"] == pytest.approx(1 - plain["surface_dice"])
    # Five of five scans better: two-sided Wilcoxon p = 2 / 2^5.
    assert best["p_wilcoxon"] == pytest.approx(1 / 16)
    assert worst["p_wilcoxon"] == pytest.approx(1 / 16)
    assert "p_wilcoxon" not in plain
    table = read_csv(tmp_path / "out" / "scores.csv")
    assert len(table) == 15
    assert {row["scan"] for row in table} == {row.subject for row in rows}
    assert "sm15 -> ge3  none" in done.out
    assert is_report(tmp_path / "out" / "report.html", "phantom4000", "Wilcoxon")


def test_runs_of_other_settings_are_other_methods(datalist: Path, tmp_path: Path) -> None:
    rows = list(Datalist.read(datalist).select(site="ge3"))[:1]
    mask = np.ones((48, 56, 12), bool)

    def names(*runs: dict[str, Any]) -> list[str]:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        made = [
            prediction_folder(folder / str(k), rows, [mask], **{"source": "sm15", **run}) for k, run in enumerate(runs)
        ]
        output = of.OutputSettings(folder / "out")
        return [result.method for result in score_predictions(of.Evaluate(output, tuple(made)))]

    defaults = {"output": "authors", "average": "probabilities", "neighbours": 2, "crop": 60, "donor_seed": 42}
    for mode, decided in {
        "3d": {"output", "average", "crop"},
        "2d": {"output", "average", "crop"},
        "2.5d": {"output", "average", "crop", "neighbours"},
        "random": {"output", "average", "donor_seed"},
        "none": set(),
    }.items():
        short = mode if mode == "none" else f"{mode} n=7 beta=0.015"
        assert names({"mode": mode}, {"mode": mode, **defaults}) == [short, short]
        changed = {"output": "formula", "average": "logits", "neighbours": 1, "crop": 0, "donor_seed": 7}
        for name, value in changed.items():
            expected = f"{short} {name.replace('_', '-')}={value}" if name in decided else short
            assert names({"mode": mode, **defaults, name: value}) == [expected]
    # The generator is named only where a pair has several: every pair has one of its own.
    a, b, c = ({"mode": "cyclegan", "generator": f"/runs/{name}"} for name in ("1/gan", "1/other", "2/gan"))
    assert names(a, {**b, "source": "sm3"}) == ["cyclegan", "cyclegan"]
    assert names(a, b) == ["cyclegan gan", "cyclegan other"]
    assert names(a, b, c) == ["cyclegan /runs/1/gan", "cyclegan other", "cyclegan /runs/2/gan"]
    assert names({"mode": "cyclegan"}, a) == ["cyclegan", "cyclegan gan"]


def test_report_says_that_cyclegan_is_a_stand_in(datalist: Path, tmp_path: Path) -> None:
    rows = list(Datalist.read(datalist).select(site="ge3"))[:1]
    for mode in ("cyclegan", "none"):
        folder = prediction_folder(tmp_path / mode, rows, [np.ones((48, 56, 12), bool)], "sm15", mode)
        command = of.Evaluate(of.OutputSettings(tmp_path / "out"), (folder,))
        report = Report("Evaluation", "", package="fda-mri")
        evaluation_sections(report, score_predictions(command), command)
        report.write(tmp_path / f"{mode}.html")
        text = (tmp_path / f"{mode}.html").read_text(encoding="utf-8")
        assert (CYCLEGAN_NOTE.split("; ")[1].split("'")[0] in text) == (mode == "cyclegan")


def test_evaluate_where_there_is_nothing(command: Command, datalist: Path, tmp_path: Path) -> None:
    """Both masks empty: no surface Dice, and the report says of how many scans."""
    rows = list(Datalist.read(datalist).select(site="ge3"))[:2]
    nothing = np.zeros((48, 56, 12), bool)
    for row in rows:
        image = nib.load(row.image)
        blank = nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine)
        nib.save(blank, tmp_path / f"{row.subject}_blank.nii.gz")
    rows = [dataclasses.replace(row, mask=tmp_path / f"{row.subject}_blank.nii.gz") for row in rows]
    folder = prediction_folder(tmp_path / "empty", rows, [nothing, nothing], "sm15")
    done = command("evaluate", "--predictions", folder, "--surface", "2d", "--out", tmp_path / "out")
    assert done.status == 0, done.err
    (row,) = json.loads((tmp_path / "out" / "metrics.json").read_text())["results"]
    assert (row["surface_dice"], row["both_empty"], row["dice"], row["scans"]) == (None, 2, 1, 2)


def test_transfer_matrix_and_pairs(command: Command, datalist: Path, tmp_path: Path) -> None:
    """Nine runs of three sites: the fewer planes a prediction lacks, the better the pair."""
    missing = {("sm15", "ge3"): 22, ("ge3", "sm15"): 20, ("sm15", "sm3"): 16, ("sm3", "sm15"): 12, ("ge3", "sm3"): 6,
               ("sm3", "ge3"): 3}  # fmt: skip
    folders = []
    for target in ("sm15", "ge3", "sm3"):
        rows = list(Datalist.read(datalist).select(site=target))[:1]
        assert rows[0].mask is not None
        truth = voxels(rows[0].mask) > 0.5
        for source in ("sm15", "ge3", "sm3"):
            mask = truth & (np.arange(48)[:, None, None] >= missing.get((source, target), 0))
            folders.append(prediction_folder(tmp_path / f"{source}-{target}", rows, [mask], source))
    done = command("evaluate", "--predictions", *folders, "--per-cluster", 1, "--out", tmp_path / "out")
    assert done.status == 0, done.err
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Transfer matrix" in text
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())["results"]
    scores = {(row["source"], row["target"]): row["surface_dice"] for row in results}
    assert [scores[site, site] for site in ("sm15", "ge3", "sm3")] == [1, 1, 1]
    severe, _, medium, *_, subtle = sorted(missing, key=lambda pair: scores[pair])
    rows_of_report = [
        tuple(re.findall(r"<td[^>]*>(.*?)</td>", row)) for row in re.findall(r"<tr>(.*?)</tr>", text, re.S)
    ]
    pairs = [row[:3] for row in rows_of_report if row and row[0] in ("severe", "medium", "subtle")]
    assert pairs == [("severe", *severe), ("medium", *medium), ("subtle", *subtle)]


def test_transfer_matrix_is_over_patients() -> None:
    """As the table of pairs: two scans of one patient are one value."""
    results = [
        Result(("a", "b"), "none", scan, score, score, Path("i"), Path("m"), Path("p"))
        for scan, score in (("1", 0.2), ("1", 0.4), ("2", 0.9))
    ]
    sites, matrix = transfer_matrix(results)
    assert sites == ("a", "b")
    np.testing.assert_allclose(matrix, [[np.nan, np.nan], [(0.3 + 0.9) / 2, np.nan]])


# export


@pytest.mark.slow
def test_export(command: Command, trained: Any, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "network.onnx"
    done = command("export", "--model", trained.run, "--out", out)
    assert done.status == 0, done.err
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    for shape in ((1, 1, 16, 16), (5, 1, 48, 56), (2, 1, 184, 224)):
        x = torch.rand(shape)
        with torch.no_grad():
            expected = network_of(trained)(x).numpy()
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert [path.name for path in tmp_path.iterdir()] == ["network.onnx"]
    refused = command("export", "--model", trained.run, "--out", out)
    assert refused.status == 2
    assert "network.onnx: is there already; --overwrite replaces it" in refused.line


# Settings from a file


def test_settings_may_stand_in_a_file(
    command: Command, trained: Any, datalist: Path, tiny_training: tuple[object, ...], tmp_path: Path
) -> None:
    """The config.yaml of a run does the same run again."""
    out = tmp_path / "again"
    done = command("train", "--out", out, "--config", trained.run / "config.yaml")
    assert done.status == 0, done.err
    before, after = (load_weights(run / "model.safetensors")[0] for run in (trained.run, out))
    assert all(torch.equal(before[name], after[name]) for name in before)


# Bad input: exit status 2, one line that names file, row and remedy, nothing written or lost


@pytest.fixture
def refused(command: Command, tmp_path: Path, trained: Any, datalist: Path) -> Callable[..., str]:
    """Run a command that must fail; give its line."""

    def tree() -> dict[Path, bytes]:
        folders = (tmp_path, trained.run.parent, datalist.parent)
        return {
            path: path.read_bytes() if path.is_file() else b"folder" for folder in folders for path in folder.rglob("*")
        }

    def run(*words: object) -> str:
        before = tree()
        done = command(*words)
        assert done.status == 2, done
        assert done.line.startswith("fda-mri: error: ")
        assert tree() == before
        return str(done.line)

    return run


@pytest.fixture
def verb(trained: Any, tiny_training: tuple[object, ...], tmp_path: Path) -> Callable[..., list[object]]:
    """The words of a command that would succeed on good scans of a site."""

    def words(name: str, listed: object, site: str = "ge3") -> list[object]:
        scans = [name, "--datalist", listed, "--site", site]
        out = ["--out", tmp_path / "out"]
        donors = ["--bank", trained.bank, "--n", 2]
        model = ["--model", trained.run, "--device", "cpu"]
        return {
            "train": [*scans, *tiny_training, *out],
            "bank": [*scans, "--out", tmp_path / "out.safetensors"],
            "adapt": [*scans, *donors, *out],
            "predict": [*scans, *donors, *model, *out],
            "tune-beta": [*scans, *donors, *model, *out],
        }[name]

    return words


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    image = nib.Nifti1Image(array, affine)
    nib.save(image, path)


def break_image(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    image = nib.load(path)
    save(path, change(image.get_fdata(dtype=np.float32)), image.affine)


def put(array: np.ndarray, place: Any, value: float) -> np.ndarray:
    array[place] = value
    return array


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def shift_affine(path: Path) -> None:
    image = nib.load(path)
    moved = image.affine.copy()
    moved[0, 3] += 2
    save(path, image.get_fdata(dtype=np.float32), moved)


BROKEN: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing image": ("image", Path.unlink, "file not found; check the path"),
    "missing mask": ("mask", Path.unlink, "file not found; check the path"),
    "truncated image": ("image", truncate, "the file is truncated or damaged; copy or export it again"),
    "truncated mask": ("mask", truncate, "the file is truncated or damaged; copy or export it again"),
    "no NIfTI": ("image", lambda path: path.write_bytes(gzip.compress(b"x" * 999)), "not a NIfTI file; convert it"),
    "no gzip": ("image", lambda path: path.write_text("notes"), "not gzip-compressed although its name ends in .gz"),
    "4-D": ("image", lambda p: break_image(p, lambda a: np.stack([a, a], -1)), "48 x 56 x 12 x 2, not one 3-D volume; "),
    "mask of another shape": ("mask", lambda p: break_image(p, lambda a: a[:-1]), "voxels, the image "),
    "mask on another grid": ("mask", shift_affine, "the mask lies on another grid than the image"),
    "NaN": ("image", lambda p: break_image(p, lambda a: put(a, (3, 4, 5), np.nan)), "1 voxels are NaN or infinite"),
    "infinite": ("image", lambda p: break_image(p, lambda a: put(a, 0, np.inf)), "voxels are NaN or infinite"),
    "all zero": ("image", lambda p: break_image(p, np.zeros_like), "all voxels are zero; export"),
    "zero slice": ("image", lambda p: break_image(p, lambda a: put(a, np.s_[..., 5], 0)), "slice 5 is zero throughout"),
}  # fmt: skip


def broken_list(kind: str, datalist: Path, site: str, folder: Path) -> tuple[Path, str, str]:
    """A datalist whose last training row has a broken file; that file's name and what must be said of it."""
    rows = [row for row in Datalist.read(datalist) if row.site == site]
    column, breaker, problem = BROKEN[kind]
    index = [i for i, row in enumerate(rows) if row.split == "train"][-1]
    row = rows[index]
    assert row.mask is not None
    copies = {name: folder / f"{site}_{name}.nii.gz" for name in ("image", "mask")}
    for name, path in (("image", row.image), ("mask", row.mask)):
        shutil.copy(path, copies[name])
    breaker(copies[column])
    rows[index] = dataclasses.replace(row, image=copies["image"], mask=copies["mask"])
    return Datalist(tuple(rows)).write(folder / "list.csv"), column, problem


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_scans(kind: str, refused: Any, verb: Any, command: Command, datalist: Path, tmp_path: Path) -> None:
    # Site sm15 stores its files in RAS, so that places in the message are those of the file.
    listed, column, problem = broken_list(kind, datalist, "sm15", tmp_path)
    for name in ("train", "predict"):
        line = refused(*verb(name, listed, "sm15"))
        assert f"sm15_{column}.nii.gz: " in line
        assert problem in line
        assert "; " in line
    done = command("check-data", "--datalist", listed)
    assert done.status == 2
    *lines, summary = done.out.splitlines()
    assert len(lines) == 1
    assert f"list.csv, row 4, column {column}: " in lines[0]
    assert problem in lines[0]
    assert summary == "5 scans (sm15 5): 1 problem"


@pytest.mark.parametrize("name", ["bank", "adapt", "tune-beta"])
def test_broken_scans_in_the_other_commands(name: str, refused: Any, verb: Any, datalist: Path, tmp_path: Path) -> None:
    listed, _, problem = broken_list("truncated image", datalist, "sm15", tmp_path)
    rows = [dataclasses.replace(row, split="val") if name == "tune-beta" else row for row in Datalist.read(listed)]
    Datalist(tuple(rows)).write(listed)
    line = refused(*verb(name, listed, "sm15"))
    assert "sm15_image.nii.gz: " in line
    assert problem in line


LISTS: dict[str, tuple[Callable[[str], str | bytes], str]] = {
    "missing column": (lambda text: text.replace("image,", "picture,", 1), "list.csv: row 1: no column 'image'"),
    "duplicate row": (lambda text: text + text.splitlines()[-1] + "\n", "list.csv, row 7, column image: the image sm15_1004.nii.gz is already in row 6; remove"),
    "semicolons": (lambda text: text.replace(",", ";"), "list.csv: row 1: the columns are separated by semicolons; save it with commas"),
    "tabs": (lambda text: text.replace(",", "\t"), "list.csv: row 1: the columns are separated by tabs; save it with commas"),
    "byte-order mark": (lambda text: b"\xef\xbb\xbf" + text.encode(), "list.csv: row 1: the file starts with a byte-order mark (UTF-8); save it as plain UTF-8"),
    "Latin-1": (lambda text: text.encode().replace(b"phantom1002", b"M\xfcller"), "list.csv: row 4: byte 0xfc is not UTF-8; save"),
    "no rows": (lambda text: text.splitlines()[0] + "\n", "list.csv: the datalist has no rows; add"),
    "empty": (lambda text: "", "list.csv: the datalist is empty; write"),
    "short row": (lambda text: text + "a.nii.gz,b.nii.gz\n", "list.csv: row 7: 2 cells where the header has 5 columns; "),
    "unknown split": (lambda text: text.replace(",val", ",valid"), "list.csv, row 5, column split: unknown split 'valid'; use train, val or test"),
    "subject in two splits": (lambda text: text.replace("phantom1004", "phantom1000"), "list.csv, row 6, column split: subject 'phantom1000' is in split 'test' here and in 'train' in row 2; keep"),
    "other site": (lambda text: text.replace(",sm15,", ",sm1,"), "list.csv: no row has site 'sm15'; sites there: sm1; did you mean 'sm1'?"),
    "empty cell": (lambda text: text.replace(",sm15,", ",,", 1), "list.csv, row 2, column site: the cell is empty; fill it in"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LISTS)
def test_broken_datalists(kind: str, refused: Any, verb: Any, datalist: Path, tmp_path: Path) -> None:
    rows = Datalist.read(datalist).select(site="sm15")
    listed = rows.write(tmp_path / "list.csv")
    change, problem = LISTS[kind]
    content = change(listed.read_text(encoding="utf-8"))
    listed.write_bytes(content if isinstance(content, bytes) else content.encode())
    for name in ("train", "predict"):
        assert problem in refused(*verb(name, listed, "sm15"))
    assert problem in refused("check-data", "--datalist", listed, "--site", "sm15")


def test_datalist_without_masks(refused: Any, verb: Any, command: Command, datalist: Path, tmp_path: Path) -> None:
    rows = [dataclasses.replace(row, mask=None) for row in Datalist.read(datalist) if row.site == "sm15"]
    listed = Datalist(tuple(rows)).write(tmp_path / "list.csv")
    assert "list.csv, row 2, column mask: no mask; give" in refused(*verb("train", listed, "sm15"))
    assert "list.csv, row 5, column mask: no mask; give" in refused(*verb("tune-beta", listed, "sm15"))
    done = command("check-data", "--datalist", listed)
    assert done.status == 2
    assert done.out.count("this row has no mask; name its mask file in the column mask") == 5
    assert command("check-data", "--datalist", listed, "--no-require-mask").status == 0
    assert command(*verb("predict", listed, "sm15"), "--role", "test").status == 0
    line = refused("evaluate", "--predictions", tmp_path / "out", "--out", tmp_path / "scores")
    assert "predictions.csv, row 2: no mask to score against; give --datalist with a mask column" in line
    words = ["evaluate", "--predictions", tmp_path / "out", "--datalist", datalist, "--out", tmp_path / "scores"]
    assert command(*words).status == 0


def test_site_is_missing_or_not_named(refused: Any, verb: Any, datalist: Path, tmp_path: Path) -> None:
    line = refused(*verb("train", datalist, "sm51"))
    assert "datalist.csv: no row has site 'sm51'; sites there: sm15, ge3, sm3; did you mean 'sm15'?" in line
    words = verb("train", datalist, "sm15")
    del words[3:5]
    assert "datalist.csv: holds 3 sites; name one: --site sm15" in refused(*words)
    line = refused(*verb("train", tmp_path / "none.csv", "sm15"))
    assert "none.csv: datalist not found; check the path" in line
    (tmp_path / "folder").mkdir()
    assert "folder: this is not a CC359 folder" in refused(*verb("train", tmp_path / "folder", "sm15"))


def test_scan_smaller_than_the_crop(refused: Any, verb: Any, command: Command, datalist: Path, tmp_path: Path) -> None:
    words = [*verb("train", datalist, "sm15"), "--crop-size", 64]
    line = refused(*words)
    assert "sm15_1000.nii.gz: slices of 48 x 56 pixels are smaller than the crop of 64; give --crop-size 48" in line
    assert command(*words, "--pad-small", "--epochs", 1, "--iterations", 1).status == 0


def test_one_donor_only(verb: Any, command: Command, datalist: Path, tmp_path: Path) -> None:
    """Specification 2.4: fewer donors than n are all used; random ones are drawn with replacement, so there n stays."""
    rows = list(Datalist.read(datalist).select(site="sm15", split="train"))[:1]
    listed, bank = Datalist(tuple(rows)).write(tmp_path / "list.csv"), tmp_path / "bank.safetensors"
    assert command("bank", "--datalist", listed, "--out", bank).status == 0
    tune = ("tune-beta", "--betas", 0, 0.05, "--modes")
    for name, *flags, warned in (
        ("adapt", True),
        ("adapt", "--mode", "2.5d", False),  # its neighbours are donors too
        ("adapt", "--mode", "2.5d", "--neighbours", 0, True),
        ("adapt", "--mode", "random", False),
        ("predict", True),
        ("predict", "--n", 1, False),
        (*tune, "random", False),
        (*tune, "random", "2d", True),
    ):  # fmt: skip
        done = command(*verb(name, datalist), "--bank", bank, *flags, "--overwrite")
        assert done.status == 0, done.err
        line = f"warning: {bank} holds 1 scan; it is used instead of --n 2"
        assert [found for found in done.err.splitlines() if found.startswith("warning")] == [line] * warned
        if name == "adapt":
            n = 2 if flags else 1
            assert len(list((tmp_path / "out").glob("ge3_4004_donor*.nii.gz"))) == (1 if "--neighbours" in flags else n)
        shutil.rmtree(tmp_path / "out")


def test_bank_from_elsewhere(refused: Any, verb: Any, datalist: Path, trained: Any, tmp_path: Path) -> None:
    bank = tmp_path / "bank.safetensors"
    DonorBank.build([torch.rand(48, 56, 12) for _ in range(3)]).save(bank)
    line = refused(*verb("predict", datalist), "--bank", bank)
    assert "bank.safetensors: " in line
    assert "fda-mri bank" in line
    line = refused(*verb("predict", datalist), "--bank", trained.run / "model.safetensors")
    assert "model.safetensors: is not a donor bank; write one with `fda-mri bank`" in line
    assert "none.safetensors: no such file" in refused(
        *verb("predict", datalist), "--bank", tmp_path / "none.safetensors"
    )


def test_mode_without_what_it_needs(refused: Any, datalist: Path, trained: Any, tmp_path: Path) -> None:
    words = ["predict", "--datalist", datalist, "--site", "ge3", "--model", trained.run, "--out", tmp_path / "out"]
    assert "--mode 3d needs --bank; give the file that `fda-mri bank` wrote" in refused(*words)
    assert "--mode cyclegan needs --generator" in refused(*words, "--mode", "cyclegan")
    line = refused(*words, "--mode", "cyclegan", "--generator", trained.run)
    assert "run: holds no generator.safetensors" in line
    words = ["adapt", "--datalist", datalist, "--site", "ge3", "--out", tmp_path / "out", "--mode", "none"]
    assert "--mode none changes nothing; choose a donor search, or cyclegan" in refused(*words)


def test_bad_settings(refused: Any, verb: Any, datalist: Path, tmp_path: Path) -> None:
    for words, problem in (
        (["train", "--crop-size", 50], "--crop-size is 50; give a multiple of 8 such as 56"),
        (["train", "--batch-size", 0], "--batch-size is 0; give at least 1"),
        (["train", "--epochs", "many"], "--epochs is 'many', not a whole number"),
        (["train", "--learning-rate", "nan"], "--learning-rate is nan; give at least 0"),
        (["train", "--target-site", "ge3"], "--target-site is for --method cyclegan; leave it out"),
        (["train", "--method", "cyclegan"], "--method cyclegan needs --target-site"),
        (["train", "--method", "cyclegan", "--image-size", 66], "--image-size is 66; give a multiple of 4"),
        (["train", "--method", "cyclegan", "--target-site", "ge3"], "name the site to translate from"),
        (["train", "--bach-size", 4], "unknown flag --bach-size; did you mean --batch-size?"),
        (["predict", "--n", 0], "--n is 0; give at least 1"),
        (["predict", "--beta", -1], "--beta is -1.0; give at least 0"),
        (["predict", "--crop", 12], "--crop is 12; give at least 20, or 0 for whole slices"),
        (["predict", "--mode", "4d"], "--mode is '4d', not one of 3d, 2.5d, 2d, random, none, cyclegan"),
        (["predict", "--device", "gpu"], "--device is 'gpu'; give cpu, cuda, cuda:N or auto"),
        (["tune-beta", "--betas", 0.1, 0.05], "--betas is no ascending grid; give at least two rising values"),
        (["tune-beta", "--counts", 0], "--counts is 0; give at least 1"),
        (["tune-beta", "--batch-size", 0], "--batch-size is 0; give at least 1"),
        (["predict", "--batch-size", -1], "--batch-size is -1; give at least 1"),
        (["train", "--seed", -1], "--seed is -1; give at least 0"),
    ):
        name, *flags = words
        assert problem in refused(*verb(str(name), datalist), *flags)
    assert "--datalist is missing; give --datalist" in refused("train", "--out", tmp_path / "out")
    evaluate = ("evaluate", "--predictions", tmp_path, "--out", tmp_path / "out")
    assert "--tolerance is -1.0; give at least 0" in refused(*evaluate, "--tolerance", -1)
    assert "--per-cluster is 0; give at least 1" in refused(*evaluate, "--per-cluster", 0)


@pytest.mark.parametrize("method", ["source", "cyclegan"])
def test_a_training_that_diverges(method: str, command: Any, verb: Any, datalist: Path) -> None:
    words = ["--learning-rate", 1e30, "--log-every", 1]
    if method == "cyclegan":
        words = [
            "--method",
            "cyclegan",
            "--target-site",
            "sm15",
            "--image-size",
            64,
            "--blocks",
            1,
            "--generator-width",
            4,
        ]
        words += ["--steps", 12, "--gan-learning-rate", 1e30]
    finished = command(*verb("train", datalist), *words)
    assert finished.status == 2
    assert "is no number; lower the learning rate" in finished.err.splitlines()[-1]


def test_unknown_key_in_a_file(refused: Any, verb: Any, datalist: Path, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    for text, problem in (
        ("width: 2\nepoch: 3\n", "settings.yaml, line 2: unknown key 'epoch'; did you mean epochs?"),
        ("epochs: three\n", "settings.yaml, line 1: key 'epochs' is 'three', not a whole number"),
        ("crop_size: 50\n", "settings.yaml, line 1: --crop-size is 50; give a multiple of 8"),
        ("width: [1\n", "settings.yaml, line 2: not a YAML file"),
        ("!!python/object/apply:os.mkdir [evil]: 1\n", "settings.yaml, line 1: unknown key"),
    ):
        file.write_text(text)
        assert problem in refused(
            "train", "--config", file, *verb("train", datalist, "sm15")[1:5], "--out", tmp_path / "out"
        )
    assert "none.yaml: cannot be read" in refused(*verb("train", datalist), "--config", tmp_path / "none.yaml")


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_files_that_are_no_network(refused: Any, verb: Any, datalist: Path, trained: Any, tmp_path: Path) -> None:
    def line(model: Path) -> str:
        return str(refused(*verb("predict", datalist), "--model", model))

    assert "none.safetensors: no such file; give the path" in line(tmp_path / "none.safetensors")
    (tmp_path / "unfinished").mkdir()
    assert "unfinished: holds no model.safetensors; finish the training run" in line(tmp_path / "unfinished")
    assert "bank.safetensors: is not a network of `fda-mri train`; give its run folder" in line(trained.bank)
    other = tmp_path / "other.safetensors"
    save_weights(other, ResidualUNet2d(width=3), {"network": "ResidualUNet2d", "width": "2"})
    assert "other.safetensors: belongs to another network: 'init_path.0.weight' has shape (3, 1, 3, 3)" in line(other)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes((trained.run / "model.safetensors").read_bytes()[:-100])
    assert "damaged.safetensors: damaged, or not a safetensors file" in line(damaged)
    code = tmp_path / "code.safetensors"
    torch.save({"weights": Evil(tmp_path / "evil")}, code)
    assert "code.safetensors: damaged, or not a safetensors file" in line(code)
    assert "other.safetensors: belongs to another" in refused("export", "--model", other, "--out", tmp_path / "a.onnx")


def test_checkpoints_that_cannot_be_resumed(
    refused: Any, verb: Any, datalist: Path, trained: Any, tmp_path: Path
) -> None:
    shutil.copytree(trained.run, tmp_path / "out")
    words = [*verb("train", datalist, "sm15"), "--resume"]
    line = refused(*words, "--width", 3)
    assert "config.yaml: width was 2 when the run started and is 3 now; resume with the old value" in line
    (checkpoint,) = (tmp_path / "out" / "checkpoints").iterdir()
    content = torch.load(checkpoint, weights_only=True)
    other = dict(content["state"], network=ResidualUNet2d(width=3).state_dict())
    torch.save({**content, "state": other}, checkpoint)
    line = refused(*words)
    assert f"{checkpoint}: belongs to another network: 'init_path.0.weight' has shape (3, 1, 3, 3)" in line
    torch.save({**content, "state": Evil(tmp_path / "evil")}, checkpoint)
    line = refused(*words)
    assert f"{checkpoint}: needs " in line
    assert "mkdir to be run in order to load and was therefore not loaded; use a checkpoint" in line


def test_output_that_is_there(refused: Any, verb: Any, command: Command, datalist: Path, tmp_path: Path) -> None:
    words = [*verb("predict", datalist), "--role", "test"]
    for name in ("train", "adapt", "predict", "tune-beta"):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("years of work")
        for flags in ([], ["--overwrite"]):
            line = refused(*verb(name, datalist), *flags)
            assert "out: not empty, and what it holds is no run; give another --out" in line
        shutil.rmtree(tmp_path / "out")
    assert command(*words).status == 0
    assert "out: holds a run already; give another --out, --overwrite replaces it" in refused(*words)
    # Bad input is found before the old results go.
    assert "no row has site" in refused(*words, "--overwrite", "--site", "ge4")
    (tmp_path / "list.csv").write_text("image\nnone.nii.gz\n")
    assert "none.nii.gz" in refused(
        *words, "--overwrite", "--datalist", tmp_path / "list.csv", "--site", "", "--role", "all"
    )
    assert command(*words, "--overwrite").status == 0
    assert "list.csv: is a file, not a folder; give another --out" in refused(*words, "--out", tmp_path / "list.csv")


def test_files_that_are_there(refused: Any, verb: Any, datalist: Path, trained: Any, tmp_path: Path) -> None:
    bank = ["bank", "--datalist", datalist, "--site", "sm15", "--out"]
    assert "bank.safetensors: is there already; --overwrite replaces it" in refused(*bank, trained.bank)
    assert "bank.pt: the file name must end in .safetensors; rename" in refused(*bank, tmp_path / "bank.pt")
    line = refused(*bank, tmp_path / "none" / "bank.safetensors")
    assert "bank.safetensors: the folder is not there; make " in line
    assert "net.pt: the file name must end in .onnx" in refused(
        "export", "--model", trained.run, "--out", tmp_path / "net.pt"
    )


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """After so many files the disk is full; half of the last file is there by then."""
    room = [1000]
    fsync = os.fsync

    def fail(descriptor: int) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    def fill(files: int) -> None:
        room[0] = files

    monkeypatch.setattr(os, "fsync", fail)
    return fill


@pytest.mark.parametrize(
    ("name", "files"),
    [("bank", 0), *((name, files) for name in ("train", "adapt", "predict", "tune-beta") for files in (0, 2))],
)
def test_disk_full(
    name: str, files: int, full_disk: Any, command: Command, verb: Any, datalist: Path, tmp_path: Path
) -> None:
    words = verb(name, datalist, "sm15" if name in ("train", "bank") else "ge3")
    full_disk(files)
    done = command(*words)
    assert done.status == 2
    assert done.line.startswith("fda-mri: error: ")
    assert f"{tmp_path}/out" in done.line
    assert "space" in done.line
    # What is there is whole: no temporary files, no half-written ones.
    there = {path.name for path in (tmp_path / "out").rglob("*")} if (tmp_path / "out").exists() else set()
    assert there <= {"config.yaml", "metrics.jsonl", "checkpoints"}
    assert not (tmp_path / "out.safetensors").exists()
    full_disk(1000)
    assert command(*words, *(["--overwrite"] if there else [])).status == 0


def test_disk_full_leaves_the_old_bank(full_disk: Any, refused: Any, verb: Any, datalist: Path, tmp_path: Path) -> None:
    words = verb("bank", datalist, "sm15")
    (tmp_path / "out.safetensors").write_text("the old bank")
    full_disk(0)
    line = refused(*words, "--overwrite")
    assert "out.safetensors: the disk is full; free some space" in line


@pytest.mark.parametrize("name", ["train", "predict", "tune-beta"])
def test_cuda_asked_for_and_absent(
    name: str, refused: Any, verb: Any, datalist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = refused(*verb(name, datalist), "--device", "cuda")
    assert "--device is cuda, and PyTorch finds no CUDA device here; give --device cpu" in line


def test_predictions_that_cannot_be_scored(refused: Any, datalist: Path, tmp_path: Path) -> None:
    def line(*flags: object) -> str:
        return str(refused("evaluate", "--predictions", tmp_path / "p", "--out", tmp_path / "out", *flags))

    assert (
        "predictions.csv: cannot be read (No such file or directory); give a folder that `fda-mri predict` wrote"
        in line()
    )
    rows = list(Datalist.read(datalist).select(site="ge3"))[:2]
    folder = prediction_folder(tmp_path / "p", rows, [np.zeros((48, 56, 12))] * 2, "sm15")
    table = (folder / "predictions.csv").read_text()
    (folder / "phantom4001.nii.gz").unlink()
    assert "phantom4001.nii.gz: file not found; check the path" in line()
    prediction_folder(tmp_path / "q", rows, [np.zeros((48, 56, 11))] * 2, "sm15")
    shutil.copy(tmp_path / "q" / "phantom4001.nii.gz", folder)
    assert "phantom4001.nii.gz: the mask has 48 x 56 x 11 voxels, the image ge3_4001.nii.gz 48 x 56 x 12; " in line()
    (folder / "predictions.csv").write_text(table.replace("source_site", "from"))
    assert "predictions.csv: has no column source_site; run `fda-mri predict` again" in line()
    (folder / "predictions.csv").write_text(table.splitlines()[0] + "\n")
    assert "predictions.csv: lists no prediction; run `fda-mri predict` again" in line()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"image,mask\n\xff\xfe,b\n", "predictions.csv: cannot be read"),
        (
            b"image,mask,prediction,subject,site,source_site,mode,n,beta\na,b\n",
            "predictions.csv, row 2: the row is damaged",
        ),
        (
            b"image,mask,prediction,subject,site,source_site,mode,n,beta\na,b,c,d,e,f,3d,7,much\n",
            "predictions.csv, row 2: the row is damaged",
        ),
    ],
    ids=["not UTF-8", "short row", "beta no number"],
)
def test_evaluate_with_a_damaged_list(command: Command, tmp_path: Path, text: bytes, words: str) -> None:
    (tmp_path / "predictions.csv").write_bytes(text)
    done = command("evaluate", "--predictions", tmp_path, "--out", tmp_path / "out")
    assert done.status == 2
    (line,) = done.err.strip().splitlines()
    assert words in line
    assert not (tmp_path / "out").exists()
