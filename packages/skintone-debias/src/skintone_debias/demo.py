"""`skintone-debias demo`: phantoms written as real files, then every step through the code that a user's data takes."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from dart_core.cli import say
from dart_core.data.datalist import Datalist
from dart_core.data.phantoms import write_skin_lesions
from dart_core.report import Report
from dart_core.run import claim_folder, flat_settings
from dart_core.settings import OutputSettings, RunSettings
from skintone_debias import settings as of
from skintone_debias.commands import check_data, predict, train
from skintone_debias.evaluation import evaluate, evaluation_sections, read_networks
from skintone_debias.labelling import label
from skintone_debias.recipes import PACKAGE

PICTURES, SIDE, NETWORK_SIDE = 72, 128, 64
SITES = ("A", "B")
TRAINING = of.Training(
    encoder="test_resnet", image_size=NETWORK_SIDE, epochs=10, batch_size=16, lr_base=0.02, lr_class=0.02, log_every=1
)
"""A small network from random weights needs larger steps than the paper's, which starts from ImageNet's."""
METHODS: tuple[of.Unlearning, ...] = (
    of.Unlearning("none"),
    of.Unlearning("none", encoder_lr=0.04),
    of.Unlearning("lntl"),
    of.Unlearning("tabe"),
    of.Unlearning("clgr"),
)


def demo(command: of.Demo) -> None:
    """Label phantoms, train by every method, predict, evaluate, report."""
    started = time.monotonic()
    out = command.out
    claim_folder(out, flat_settings(command), overwrite=command.overwrite)
    phantoms = write_skin_lesions(out / "phantoms", SITES, PICTURES, SIDE, command.seed)
    say(f"phantoms: {phantoms} ({PICTURES} pictures at each of {len(SITES)} made-up sites)")
    label(of.Label((phantoms,), out / "tones.csv", truth="fitzpatrick", sheet=24, workers=0))
    datalist = _labelled(phantoms, out / "tones.csv")
    cases = of.CaseSettings(datalist, nuisance=("fitzpatrick_labelled",))
    check_data(of.CheckData(cases))
    folders: list[Path] = []
    for unlearning in METHODS:
        name = unlearning.name.partition(" (")[0]
        run = RunSettings(out / f"train-{name}", seed=command.seed, device="cpu")
        train(of.Train(run, cases, unlearning, TRAINING))
        folders.append(out / f"predict-{name}")
        predict(of.Predict(OutputSettings(folders[-1]), datalist, run.out, device="cpu"))
    evaluation = of.Evaluate(OutputSettings(out / "evaluation"), tuple(folders))
    evaluate(evaluation)
    _report(command, evaluation, time.monotonic() - started)
    say(f"demo finished in {time.monotonic() - started:.0f} s; open {out / 'report.html'}")


def _labelled(phantoms: Path, tones: Path) -> Path:
    """The phantoms' datalist with the labeller's types in a column of their own, beside the true ones."""
    found = {row.image.resolve(): row.labels.get("fitzpatrick", "") for row in Datalist.read(tones)}
    rows = [
        dataclasses.replace(row, labels={**row.labels, "fitzpatrick_labelled": found.get(row.image.resolve(), "")})
        for row in Datalist.read(phantoms)
    ]
    return Datalist(tuple(rows)).write(phantoms.with_name("labelled.csv"))


def _report(command: of.Demo, evaluation: of.Evaluate, seconds: float) -> None:
    """One page over all steps."""
    report = Report(
        "skintone-debias demo",
        "Phantom lesions: classifiers that unlearn the skin type that the labeller found",
        package=PACKAGE,
    )
    report.text(
        f"{PICTURES} made-up pictures of lesions at each of {len(SITES)} made-up sites. In the training pictures malignant "
        "lesions are mostly on light skin and benign ones on dark skin, in the test pictures skin type and label are "
        "independent. The labeller gave every picture its type; then a small network was trained by every method from "
        f"random weights, for {TRAINING.epochs} epochs. lr-control is the baseline with the encoder's learning rate that tabe "
        f"and clgr have in sum. The whole demo took {seconds:.0f} s. Its numbers say that the program works, not how well the "
        "methods do on patients."
    )
    sheet = command.out / "tones_sheet.png"
    if sheet.is_file():
        report.section("Labeller")
        report.picture(
            sheet,
            "Each phantom beside itself without hair, with the eight patches; the tone comes from the green one",
            "pictures with patches",
        )
    evaluation_sections(report, read_networks(evaluation), evaluation)
    report.section("Settings")
    report.settings({"demo": command, "training": TRAINING})
    report.write(command.out / "report.html")
