"""`mmtl-octl demo`: phantoms written as real files, then every step through the code that a user's data takes."""

from __future__ import annotations

import time
from pathlib import Path

from dart_core.cli import say
from dart_core.data.phantoms import write_head_mr
from dart_core.report import Report
from dart_core.run import claim_folder, flat_settings
from dart_core.settings import OutputSettings, RunSettings, ScanSettings
from mmtl_octl import settings as of
from mmtl_octl.evaluation import evaluate, network_sections, score_networks
from mmtl_octl.prediction import predict
from mmtl_octl.reports import PACKAGE, schedule_section
from mmtl_octl.schedules import target_count
from mmtl_octl.segmentation import adapt, check_data, pretrain

SOURCE, TARGET = "sm3", "ge15"
SUBJECTS, SHAPE = 12, (48, 56, 24)
SOURCE_TRAINING = of.Training(
    width=4, epochs=12, batches=16, batch_size=8, learning_rate=0.02, drop_epoch=9, optimizer="sgd", log_every=5
)
TRAINING = of.Training(epochs=12, batches=8, batch_size=6, learning_rate=0.02, drop_epoch=9, log_every=5)
"""The paper's ratio of epochs (45 of 60) with a learning rate that a small network can take in so few steps."""
METHODS: tuple[of.Adaptation, ...] = (
    of.Adaptation(method="none"),
    of.Adaptation(method="fta", interval=3),
    of.Adaptation(method="fta", interval=3, momentum=0.99),
    of.Adaptation(method="ftf", interval=3),
    of.Adaptation(method="l2sp", interval=3),
    of.Adaptation(method="spottune", interval=3),
    of.Adaptation(method="octl", interval=3),
    of.Adaptation(method="mmtl", interval=3),
    of.Adaptation(method="target"),
)
FEATURES = (0, 4, 12)
"""Epochs shown in Fig. 1, of fta and mmtl."""
TOLERANCE = 4.0
"""Of the surface Dice in mm: about one voxel."""


def demo(command: of.Demo) -> None:
    """Pre-train on one phantom scanner, adapt to another with every method, test on both, and report."""
    started = time.monotonic()
    out = command.out
    claim_folder(out, flat_settings(command), overwrite=command.overwrite)
    datalist = write_head_mr(out / "phantoms", (SOURCE, TARGET), SUBJECTS, SHAPE, command.seed)
    scans = ScanSettings(datalist, preprocessing="plain")
    say(f"phantoms: {datalist} (scanner {SOURCE} is the source, {TARGET} the target)")
    check_data(of.CheckData(scans))

    def run(name: str) -> RunSettings:
        return RunSettings(out / name, seed=command.seed, device="cpu")

    source = out / "source-network"
    pretrain(of.Pretrain(run(source.name), scans, source=(SOURCE,), training=SOURCE_TRAINING))
    folders: list[Path] = []
    for adaptation in METHODS:
        alone = adaptation.method == "target"
        adapt(
            of.Adapt(
                run(f"adapt-{adaptation.name}"),
                scans,
                TARGET,
                None if alone else source,
                training=SOURCE_TRAINING if alone else TRAINING,
                adaptation=adaptation,
                features=FEATURES if adaptation.name in ("fta", "mmtl") else (),
            )
        )
        for site in (TARGET,) if alone else (TARGET, SOURCE):
            folder = out / f"predict-{adaptation.name}-on-{site}"
            model = out / f"adapt-{adaptation.name}"
            predict(of.Predict(scans, OutputSettings(folder), model, site=site, device="cpu"))
            folders.append(folder)
    features = (out / "adapt-fta", out / "adapt-mmtl")
    evaluation = of.Evaluate(OutputSettings(out / "evaluation"), tuple(folders), tolerance=TOLERANCE, features=features)
    evaluate(evaluation)
    _report(command, evaluation, time.monotonic() - started)
    say(f"demo finished in {time.monotonic() - started:.0f} s; open {out / 'report.html'}")


def _report(command: of.Demo, evaluation: of.Evaluate, seconds: float) -> None:
    """One page over all steps."""
    report = Report(
        "mmtl-octl demo",
        f"Phantom heads: a network from scanner {SOURCE}, fine-tuned on one patient of scanner {TARGET}",
        package=PACKAGE,
    )
    steps = TRAINING.epochs * TRAINING.batches
    report.text(
        f"Made-up heads with known brain masks, {SUBJECTS} on each of two made-up scanners, written as NIfTI files. A small "
        f"U-Net was trained on scanner {SOURCE} for {SOURCE_TRAINING.epochs * SOURCE_TRAINING.batches} steps; then every "
        f"method of the paper took it to scanner {TARGET} in {steps} steps with every third slice of one patient there. "
        "mmtl lets the batches move from source to target scans; octl goes on with the gradient history of the source "
        f"training. The whole demo took {seconds:.0f} s. Its numbers say that the program works, not how well the methods "
        "do on patients."
    )
    counts = [target_count(epoch, TRAINING.epochs, TRAINING.batch_size) for epoch in range(TRAINING.epochs)]
    schedule_section(report, counts, TRAINING.batch_size)
    network_sections(report, score_networks(evaluation), evaluation)
    report.section("Settings")
    report.settings({"demo": command, "source training": SOURCE_TRAINING, "fine-tuning": TRAINING})
    report.write(command.out / "report.html")
