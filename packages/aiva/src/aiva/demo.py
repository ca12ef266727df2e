"""`aiva demo`: phantoms written as real files, then every step through the code that a user's data takes."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch

from aiva import commands, figures
from aiva import settings as of
from aiva.adaptation import adapt
from aiva.epoch import clusterings
from aiva.models import PACKAGE, load_model, mask_of, probabilities
from aiva.study import clusters
from dart_core.cli import say
from dart_core.data.phantoms import write_head_mr
from dart_core.data.scans import load_scan, load_scans, open_datalist, rows_of
from dart_core.evaluation import evaluation_sections, score, score_folders
from dart_core.figures import Panel, comparison
from dart_core.report import Report
from dart_core.run import claim_folder, flat_settings
from dart_core.scan_commands import grey
from dart_core.settings import OutputSettings, RunSettings, ScanSettings

SOURCE, TARGET = "sm3", "sm15"
SUBJECTS, SHAPE = 10, (48, 56, 28)
TOLERANCE = 3.0
"""Of the surface Dice in mm: about one voxel."""
METHODS: tuple[Any, ...] = ("none", "adabn", "seg-jdot", "adaptsegnet", "aiva", "target")
PRETRAINING = of.Training(width=4, steps=160, batch_size=8, learning_rate=0.02, evaluate_every=80, log_every=5)
# Rates far above the paper's: some dozens of steps must do what thousands do there. The last network is kept, as the source score of
# so short a run only says how little has changed.
SHORT = of.Training(batch_size=8, evaluate_every=20, log_every=5, checkpoint="last")
RECIPES = {
    "seg-jdot": dataclasses.replace(SHORT, steps=40, learning_rate=2e-3),
    "adaptsegnet": dataclasses.replace(SHORT, steps=20, learning_rate=2e-3),
    "aiva": dataclasses.replace(SHORT, steps=160, learning_rate=1e-2, evaluate_every=40),
    "target": PRETRAINING,
}
ALIGNMENT = of.Alignment(clusters=10, iterations_per_epoch=40, acc_amount=12, lambda_factor=2.0)
BASELINES = of.Baselines(passes=5)


def demo(command: of.Demo) -> None:
    """Pre-train on one phantom scanner, adapt to another by every method, and report."""
    started = time.monotonic()
    out = command.out
    claim_folder(out, flat_settings(command), overwrite=command.overwrite)
    datalist = write_head_mr(out / "phantoms", (SOURCE, TARGET), SUBJECTS, SHAPE, command.seed)
    scans = ScanSettings(datalist, "plain")
    say(f"phantoms: {datalist} (scanner {SOURCE} is the source, {TARGET} the target)")
    commands.check_data(of.CheckData(scans))
    source = out / "source-network"
    run = RunSettings(source, seed=command.seed, device="cpu", checkpoint_every=1000)
    commands.pretrain(of.Pretrain(run, scans, (SOURCE,), training=PRETRAINING))
    for method in METHODS:
        adapt(
            of.Adapt(
                dataclasses.replace(run, out=out / method),
                scans,
                TARGET,
                method,
                None if method == "target" else source,
                RECIPES.get(method, of.Training()),
                alignment=ALIGNMENT if method == "aiva" else of.Alignment(),
                baselines=BASELINES if method == "adabn" else of.Baselines(),
            )
        )
        commands.predict(of.Predict(scans, OutputSettings(out / f"predict-{method}"), out / method, device="cpu"))
    clusters(of.Clusters(OutputSettings(out / "clusters"), (out / "aiva",), tolerance=TOLERANCE, device="cpu"))
    folders = tuple(out / f"predict-{method}" for method in METHODS)
    commands.evaluate(of.Evaluate(OutputSettings(out / "evaluation"), folders, tolerance=TOLERANCE))
    _report(command, scans, folders, time.monotonic() - started)
    say(f"demo finished in {time.monotonic() - started:.0f} s; open {out / 'report.html'}")


def _report(command: of.Demo, scans: ScanSettings, folders: tuple[Path, ...], seconds: float) -> None:
    """One page over all steps."""
    out = command.out
    report = Report(
        "aiva demo",
        f"Phantom heads: a network trained on scanner {SOURCE}, adapted to scanner {TARGET}",
        package=PACKAGE,
    )
    report.text(
        f"Made-up heads with known brain masks, {SUBJECTS} on each of two made-up scanners, written as NIfTI files. A small "
        f"U-Net was trained for {PRETRAINING.steps} steps on scanner {SOURCE} and then adapted to scanner {TARGET} by every "
        "method, without the masks of the target (but for the upper bound). AIVA clusters the slices of both scanners, matches "
        "the clusters, and draws target slices to the source clusters while it goes on training on the source. The whole "
        f"demo took {seconds:.0f} s. Its numbers say that the program works, not how well a method does on patients."
    )
    results = score_folders(folders, tolerance=TOLERANCE, command=PACKAGE)
    datalist = open_datalist(scans.datalist)
    scan = load_scan(rows_of(datalist, [TARGET], "test")[0], scans, need_mask=True)
    example = load_scan(rows_of(datalist, [SOURCE], "train")[0], scans)
    z = scan.volume.shape[-1] // 2
    panels = [
        Panel(f"source {SOURCE}", grey(example, z)),
        Panel(f"target {TARGET}", grey(scan, z), scan.truth[..., z]),
    ]
    for method in METHODS:
        network, model = load_model(out / method, torch.device("cpu"))
        mask = mask_of(probabilities(network, scan, model.channels), False, False)
        value = score(mask, scan.truth, scan.spacing, TOLERANCE)["surface_dice"]
        panels.append(Panel(f"{method}\n{value:.2f}", grey(scan, z), scan.truth[..., z], mask[..., z]))
    report.section("Before and after")
    report.picture(
        comparison([("", panels)]),
        f"Mask green, prediction red, surface Dice of the scan at {TOLERANCE:g} mm; target: trained with the target's masks",
        "a slice of the source, of the target, and the segmentations of every method",
    )
    training = {
        "source": load_scans(rows_of(datalist, [SOURCE], "train"), scans),
        "target": load_scans(rows_of(datalist, [TARGET], "train"), scans),
    }
    figures.cluster_sections(report, list(clusterings(out / "aiva")), training)
    evaluation_sections(report, results, tolerance=TOLERANCE, sections=commands.sections)
    report.section("Settings")
    report.settings(
        {"demo": command, "pretraining": PRETRAINING, "alignment": ALIGNMENT, "baselines": BASELINES, **RECIPES}
    )
    report.write(out / "report.html")
