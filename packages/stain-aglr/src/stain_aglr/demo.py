"""`stain-aglr demo`: phantoms written as real files, then every step through the code that a user's data takes."""

from __future__ import annotations

import time

import torch

from dart_core.cli import say
from dart_core.data.phantoms import write_histology
from dart_core.report import Report
from dart_core.run import claim_folder, flat_settings
from dart_core.settings import OutputSettings, RunSettings
from stain_aglr import settings as of
from stain_aglr.commands import check_data, train
from stain_aglr.datasets import PatchFiles, open_patches
from stain_aglr.evaluation import auc_rows, evaluate, network_sections, read_scored
from stain_aglr.export import export
from stain_aglr.figures import patch_grid
from stain_aglr.light import as_float
from stain_aglr.models import PACKAGE
from stain_aglr.prediction import predict

HOME, LABORATORIES = "RUMC", ("RUMC", "CWZ", "RST", "LPON")
PATCHES, SIZE = 128, 32
TRAINING = of.Training(width=8, batch_size=32, learning_rate=3e-3, patience=8, stop_lr=1e-4, max_epochs=30, log_every=5)
METHODS: tuple[of.Method, ...] = ("vanilla", "macenko", "hed", "hed-reg", "hed-cons", "stain-aglr")
WITH_FEATURES = ("vanilla", "stain-aglr")
"""Methods shown in Fig. 2."""


def demo(command: of.Demo) -> None:
    """Train on one phantom laboratory with several methods, test on the others, and report."""
    started = time.monotonic()
    out = command.out
    claim_folder(out, flat_settings(command), overwrite=command.overwrite)
    datalist = write_histology(out / "phantoms", LABORATORIES, PATCHES, SIZE, command.seed)
    patches = of.PatchSettings(datalist)
    say(f"phantoms: {datalist} (laboratory {HOME} trains, the others are never seen)")
    check_data(of.CheckData(patches, HOME))
    folders = []
    for method in METHODS:
        run = RunSettings(out / method, seed=command.seed, device="cpu")
        train(of.Train(run, patches, method, HOME, training=TRAINING))
        folders.append(out / f"predict-{method}")
        features = method in WITH_FEATURES
        predict(of.Predict(patches, OutputSettings(folders[-1]), run.out, features=features, device="cpu"))
    export(of.Export(out / METHODS[-1], out / "classifier.onnx"))
    evaluation = of.Evaluate(OutputSettings(out / "evaluation"), tuple(folders))
    evaluate(evaluation)
    _report(command, evaluation, time.monotonic() - started)
    say(f"demo finished in {time.monotonic() - started:.0f} s; open {out / 'report.html'}")


def _report(command: of.Demo, evaluation: of.Evaluate, seconds: float) -> None:
    """One page over all steps."""
    report = Report(
        "stain-aglr demo",
        f"Phantom patches: trained on laboratory {HOME}, tested on laboratories it never saw",
        package=PACKAGE,
    )
    report.text(
        f"Made-up tissue with and without tumour cells, {PATCHES} patches of {SIZE} pixels from each of {len(LABORATORIES)} "
        f"made-up laboratories that stain and scan in their own way, written as PNG files. A small network was trained on "
        f"{HOME} with every method below for at most {TRAINING.max_epochs} epochs. The whole demo took {seconds:.0f} s. Its "
        "numbers say that the program works, not how well the methods do on slides: telling these cells apart is easy, "
        "and one short training each is a matter of luck."
    )
    report.section("Laboratories")
    datalist = open_patches(command.out / "phantoms" / "datalist.csv")
    rows = []
    for site in LABORATORIES:
        files = PatchFiles([row for row in datalist if row.site == site][:8])
        rows.append((site, as_float(torch.stack([files[i] for i in range(len(files))]))))
    report.picture(patch_grid(rows), "The first patches of each laboratory", "rows of patches by laboratory")
    scored = [read_scored(folder) for folder in evaluation.predictions]
    network_sections(report, evaluation, scored, auc_rows(scored), printed=False)
    report.section("Settings")
    report.settings({"demo": command, "training": TRAINING})
    report.write(command.out / "report.html")
