"""`catenorm demo`: phantoms written as real files, then every step through the code that a user's data takes."""

from __future__ import annotations

import dataclasses
import gzip
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from catenorm import figures
from catenorm import settings as of
from catenorm.cases import load_case
from catenorm.commands import check_data
from catenorm.evaluation import evaluate, read_folder, report_sections, score_folder, summarise
from catenorm.method import two_pass
from catenorm.models import PACKAGE, load_model
from catenorm.prediction import first_layer, modulation_maps, predict, segment
from catenorm.rows import open_cases
from catenorm.training import train
from dart_core.cli import say
from dart_core.data.datalist import Datalist
from dart_core.data.phantoms import write_abdomen
from dart_core.figures import training_curves
from dart_core.files import write_atomic
from dart_core.report import Report
from dart_core.run import claim_folder, flat_settings
from dart_core.settings import OutputSettings, RunSettings

SITES = ("CT", "CT-native")
SUBJECTS, SHAPE = 6, (64, 48, 20)
SIDE, WIDTH = 48, 8
PANCREAS, PANCREAS_OF_BTCV = 10, 11
# Rates far above the paper's: some dozens of steps must do what thousands do there.
TRAINING = of.Training(steps=140, warmup_steps=140, batch_size=3, learning_rate=3e-3, log_every=5)
METHODS: tuple[of.Method, ...] = ("bn", "catenorm")


def write_phantoms(folder: Path, seed: int = 0, subjects: int = SUBJECTS, shape: tuple[int, int, int] = SHAPE) -> Path:
    """Abdomens of two CT scanners whose labels are numbered as BTCV's; gives the datalist."""
    nib: Any = nibabel
    datalist = write_abdomen(folder, SITES, subjects, shape, seed)
    for row in Datalist.read(datalist):
        assert row.mask is not None  # phantoms have masks
        image = nib.load(row.mask)
        codes = np.asarray(image.dataobj)
        codes = np.where(codes == PANCREAS, PANCREAS_OF_BTCV, codes).astype(np.uint8)
        write_atomic(row.mask, _compressed(nib.Nifti1Image(codes, image.affine, image.header), row.mask))
    return datalist


def _compressed(image: Any, path: Path) -> bytes:
    content: bytes = image.to_bytes()
    return gzip.compress(content, mtime=0) if path.name.endswith(".gz") else content


def demo(command: of.Demo) -> None:
    """Train batch norm and CateNorm from the same warm-up on two phantom scanners, segment, evaluate, report."""
    started = time.monotonic()
    out = command.out
    claim_folder(out, flat_settings(command), overwrite=command.overwrite)
    datalist = write_phantoms(out / "phantoms", command.seed)
    say(f"phantoms: {datalist} (CT scanners {' and '.join(SITES)})")
    cases = of.Cases((datalist,), "ct-multi", size=SIDE, missing_organs="allow")
    check_data(of.CheckData(cases))
    run = RunSettings(out, device="cpu", seed=command.seed, checkpoint_every=10000)
    warm = out / "warm-up"
    network = of.Network("bn", width=WIDTH)
    first = dataclasses.replace(TRAINING, steps=TRAINING.warmup_steps, warmup_steps=0)
    train(of.Train(dataclasses.replace(run, out=warm), cases, network, first, "warm-up"))
    second = dataclasses.replace(TRAINING, warmup_steps=0, warm_start=warm)
    for method in METHODS:
        network = dataclasses.replace(network, method=method)
        train(of.Train(dataclasses.replace(run, out=out / method), cases, network, second))
        maps = 5 if method == "catenorm" else 0
        predict(of.Predict(OutputSettings(out / f"predict-{method}"), out / method, maps=maps, device="cpu"))
    folders = tuple(out / f"predict-{method}" for method in METHODS)
    evaluate(of.Evaluate(OutputSettings(out / "evaluation"), folders))
    _report(command, cases, folders, time.monotonic() - started)
    say(f"demo finished in {time.monotonic() - started:.0f} s; open {out / 'report.html'}")


def _report(command: of.Demo, cases: of.Cases, folders: tuple[Path, ...], seconds: float) -> None:
    """One page over all steps."""
    out = command.out
    report = Report(
        "catenorm demo", f"Phantom abdomens of the CT scanners {' and '.join(SITES)}, six organs", package=PACKAGE
    )
    report.text(
        f"Made-up abdomens with known organs, {SUBJECTS} on each of two made-up CT scanners (with and without contrast agent),"
        f" written as NIfTI files. A small U-Net with batch norm was trained for {TRAINING.warmup_steps} steps. From there one"
        f" network went on with batch norm for {TRAINING.steps} steps, and another with CateNorm: every slice goes through twice,"
        " and the second time the early layers are normalised by scales and shifts that depend on the classes which the first"
        f" pass has found. The whole demo took {seconds:.0f} s. Its numbers say that the program works, not how well a method"
        " does on patients: the networks are tiny, and so is the training."
    )
    models = {method: load_model(out / method) for method in METHODS}
    organs = models["bn"][1].organs
    rows = []
    test = [row for row in open_cases(cases) if row.split == "test"]
    for row in test:
        case = load_case(row, cases)
        found: dict[str, Any] = {}
        for method, (network, model) in models.items():
            classes = segment(network, model, case)
            found |= {} if classes.first is None else {f"{method}, BN pass": classes.first}
            found[method] = classes.final
        rows.append((case, found))
    report.section("What the networks say")
    report.picture(
        figures.comparison(rows, organs),
        "Test cases, one of each scanner: the slice, its true organs, and what the networks make of it",
        "slices with coloured organs for every method",
    )
    network, model = models["catenorm"]
    case = rows[0][0]
    z = min(max(figures.fullest(case.label), 1), len(case.image) - 2)
    x = torch.from_numpy(np.array(case.image[z - 1 : z + 2])[None])
    gamma, beta = modulation_maps(network, first_layer(network, model, 1), x, two_pass(network, x)[0].softmax(1))
    report.picture(
        figures.maps(case, gamma[0].numpy(), beta[0].numpy(), z, 5),
        "Scale (gamma) and shift (beta) that CateNorm's first layer reads from the classes of the first pass: five channels, each"
        " on its own scale",
        "maps of gamma and beta",
    )
    for method in METHODS:
        keys = {"loss": "one pass", "loss_first": "BN pass", "loss_second": "CN pass"}
        training_curves(report, out / method, keys, "loss", f"Loss of {method}, after the warm-up")
    read = [read_folder(folder) for folder in folders]
    scores = [score for folder in read for score in score_folder(folder)]
    groups = {organs: scores}
    report_sections(report, groups, {organs: summarise(scores, "bn")}, "bn", "directed")
    report.section("Settings")
    report.settings({"demo": command, "cases": cases, "training": TRAINING})
    report.write(out / "report.html")
