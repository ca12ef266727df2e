"""`metamedseg demo`: phantoms written as real files, then every step through the code that a user's data takes."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from dart_core.cli import say
from dart_core.data.phantoms import write_decathlon
from dart_core.report import Report
from dart_core.run import claim_folder, cpu_threads, flat_settings
from dart_core.settings import OutputSettings, RunSettings
from metamedseg import settings as of
from metamedseg.commands import meta_train_command
from metamedseg.distances import distances
from metamedseg.evaluation import compare, evaluate, pictures_of, sections
from metamedseg.models import PACKAGE
from metamedseg.prediction import predict
from metamedseg.preparing import check_data, prepare
from metamedseg.tuning import fine_tune_command, read_summary

SHAPE, CASES, SIZE = (48, 40, 20), 6, 40
FOLDERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Task51_Liver": (("liver",), ("CT",)),
    "Task52_Kidneys": (("right_kidney", "left_kidney"), ("T1",)),
    "Task53_Stomach": (("stomach",), ("T1", "T2")),
    "Task54_Spleen": (("spleen",), ("CT-native",)),
}
"""Folder -> organs and scanners; the last is the target."""
TARGET = "spleen"
SLICING = of.Slicing(size=SIZE, threshold=12)
NETWORK = of.Network(width=8)
TASKS = of.Tasks(shots=6, per_epoch=3)
INNER = of.Inner(inner_epochs=3, inner_lr=0.005)
META = of.Meta(meta_epochs=10, meta_lr=0.5)
SHOTS, EPOCHS, SELECTIONS = 6, 6, (1, 6)
METHODS: dict[str, of.Weighting | None] = {"supervised": None, "AW vol": "average", "IDW vol": "inverse_distance"}


@cpu_threads(1)  # networks so small that a second thread only costs
def demo(command: of.Demo) -> None:
    """Meta-train on phantom organs, fine-tune on another with few slices, compare with training from scratch, and report."""
    started = time.monotonic()
    out = command.out
    claim_folder(out, flat_settings(command), overwrite=command.overwrite)
    data = out / "phantoms"
    for number, (folder, (organs, sites)) in enumerate(FOLDERS.items()):
        write_decathlon(data, folder, organs, sites, CASES, SHAPE, command.seed, first=100 * number)
    say(f"phantoms: {data} (made-up abdomens in the layout of the Medical Segmentation Decathlon)")
    check_data(of.CheckData(data))
    slices = out / "slices"
    prepare(of.Prepare(OutputSettings(slices), data, SLICING))
    distances(of.Distances(OutputSettings(out / "distances"), slices, pairs=60))
    runs: list[Path] = []
    for name, weighting in METHODS.items():
        short = name.replace(" ", "-")
        init = None
        if weighting is not None:
            init = out / f"meta-{short}"
            run = of.MetaRunSettings(init, seed=command.seed, device="cpu", checkpoint_every=10)
            meta = replace(META, weighting=weighting)
            meta_train_command(
                of.MetaTrain(run, slices, exclude=(TARGET,), network=NETWORK, definition=TASKS, inner=INNER, meta=meta)
            )
        runs.append(out / f"tuned-{short}")
        fine_tune_command(
            of.FineTune(
                RunSettings(runs[-1], seed=command.seed, device="cpu"), slices, TARGET, init, shots=SHOTS,
                selections=SELECTIONS, epochs=EPOCHS, network=NETWORK,
            )
        )  # fmt: skip
    evaluation = of.Evaluate(OutputSettings(out / "evaluation"), tuple(runs), slices)
    evaluate(evaluation)
    target_folder = data / list(FOLDERS)[-1] / "imagesTs"
    predict(of.Predict(OutputSettings(out / "volumes"), runs[-1], volumes=target_folder, device="cpu"))
    _report(command, runs, evaluation, time.monotonic() - started)
    say(f"demo finished in {time.monotonic() - started:.0f} s; open {out / 'report.html'}")


def _report(command: of.Demo, runs: list[Path], evaluation: of.Evaluate, seconds: float) -> None:
    report = Report(
        "metamedseg demo",
        "Phantom abdomens: learning to learn organs, then the spleen from six slices",
        package=PACKAGE,
    )
    report.text(
        f"{CASES} made-up people for each of {len(FOLDERS)} tasks, on CT and MR, written as folders of the Medical Segmentation "
        f"Decathlon and cut into slices. A small U-Net was meta-trained on liver, kidneys and stomach for {META.meta_epochs} "
        f"meta-epochs of {TASKS.per_epoch} tasks, each task being slices of one volume. From there it was fine-tuned on {SHOTS} "
        f"slices of the spleen, which it had never seen, and compared with the same training from random weights (supervised). "
        f"The whole demo took {seconds:.0f} s. Its numbers say that the program works, not how well the method does on patients."
    )
    report.text(
        "AW: the meta-model moves towards the mean of the tasks' networks (Eq. 1); IDW: the further a network moved away, the less "
        "it counts (Eq. 2, 3); vol: a task is slices of one volume."
    )
    summaries = {folder: read_summary(folder) for folder in runs}
    assert evaluation.slices is not None
    sections(report, compare(summaries, "supervised"), "supervised", pictures_of(summaries, evaluation.slices))
    trained = [*sorted(page.name for page in command.out.glob("meta-*")), *(run.name for run in runs)]
    report.text(
        f"The other pages of this demo: slices/report.html (the slices), distances/report.html (how far the organs' slices are from "
        f"each other), {', '.join(f'{page}/report.html' for page in trained)} (training), and volumes/report.html (the spleen in "
        "whole volumes)."
    )
    report.section("Settings")
    report.settings({"demo": command, "network": NETWORK, "tasks": TASKS, "inner": INNER, "meta": META})
    report.write(command.out / "report.html")
