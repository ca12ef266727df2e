"""`adagrad-unet demo`: phantoms written as real files, then every step through the code that a user's data takes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np

from adagrad_unet import commands
from adagrad_unet import settings as of
from adagrad_unet.evaluation import compare, evaluate
from adagrad_unet.figures import slices_figure, update_figure
from adagrad_unet.method import run_name
from adagrad_unet.prediction import predict
from adagrad_unet.spottune import POLICY, spottune
from dart_core.cli import say
from dart_core.data.phantoms import write_head_mr
from dart_core.data.volumes import read_mask, read_volume
from dart_core.evaluation import score_folders
from dart_core.report import Report
from dart_core.run import METRICS, claim_folder, flat_settings
from dart_core.settings import OutputSettings, RunSettings, ScanSettings

SOURCE, TARGETS = "ge3", ("sm15", "ph3")
SUBJECTS, SHAPE = 6, (56, 64, 32)
TOLERANCE = 3.0
"""Of the surface Dice in mm: about one voxel."""
PLANNING = of.Planning(slice_axis="z", base_features=8, max_pools=3, batch_size=6)
LONG, SHORT, BATCHES = 12, 4, 24
RUNS: dict[of.OptimizerName, tuple[int, ...]] = {"sgd": (LONG, SHORT), "avagrad": (SHORT,), "sgdm-10": (SHORT,)}
SPOTTUNING = {"batch_size": 4, "patch": 64, "batches": 10}


def demo(command: of.Demo) -> None:
    """Train on one phantom scanner, segment others, compare, look at the layers, spottune, and report."""
    started = time.monotonic()
    out = command.out
    claim_folder(out, flat_settings(command), overwrite=command.overwrite)
    datalist = write_head_mr(out / "phantoms", (SOURCE, *TARGETS), SUBJECTS, SHAPE, command.seed)
    say(f"phantoms: {datalist} (scanner {SOURCE} is the source)")
    commands.check_data(of.CheckData(of.Cases(datalist)))
    cases = of.Cases(datalist, SOURCE)
    plan = out / "plan.json"
    commands.make_plan(of.MakePlan(cases, plan, PLANNING))
    runs: dict[str, Path] = {}
    for optimizer, lengths in RUNS.items():
        for epochs in lengths:
            training = of.Training(
                of.Optimisation(optimizer), epochs=epochs, batches=BATCHES, validation_batches=2, log_every=10
            )
            name = run_name(training)
            runs[name] = out / name
            run = RunSettings(out / name, seed=command.seed, device="cpu")
            commands.train(of.Train(run, cases, plan=plan, training=training))
    folders = [_predicted(command, datalist, name, folder) for name, folder in runs.items()]
    evaluation = of.Evaluate(OutputSettings(out / "evaluation"), tuple(folders), tolerance=TOLERANCE)
    evaluate(evaluation)
    commands.layer_speed(of.LayerSpeed(OutputSettings(out / "layer-speed"), tuple(runs.values())))
    spottuned = _spottuned(command, datalist)
    _report(command, runs, evaluation, spottuned, time.monotonic() - started)
    say(f"demo finished in {time.monotonic() - started:.0f} s; open {out / 'report.html'}")


def _predicted(command: of.Demo, datalist: Path, name: str, model: Path, site: str = "") -> Path:
    output = OutputSettings(command.out / f"predict-{name}")
    predict(of.Predict(output, datalist, model, site=site, split="test", device="cpu"))
    return output.out


def _spottuned(command: of.Demo, datalist: Path) -> of.Evaluate:
    """The baseline and SpotTUNet on the first target, and their evaluation."""
    scans = ScanSettings(datalist, preprocessing="plain")
    baseline, tuned = command.out / "spot-baseline", command.out / "spot-tuned"
    spottune(
        of.Spottune(
            RunSettings(baseline, seed=command.seed, device="cpu"),
            scans,
            SOURCE,
            spottuning=of.Spottuning(epochs=10, width=4, **SPOTTUNING),  # type: ignore[arg-type]
        )
    )
    spottune(
        of.Spottune(
            RunSettings(tuned, seed=command.seed, device="cpu"),
            scans,
            TARGETS[0],
            model=baseline,
            spottuning=of.Spottuning("spottuned", epochs=6, slices=40, **SPOTTUNING),  # type: ignore[arg-type]
        )
    )
    folders = tuple(_predicted(command, datalist, folder.name, folder, TARGETS[0]) for folder in (baseline, tuned))
    evaluation = of.Evaluate(OutputSettings(command.out / "spot-evaluation"), folders, tolerance=TOLERANCE)
    evaluate(evaluation)
    return evaluation


def _report(
    command: of.Demo, runs: dict[str, Path], evaluation: of.Evaluate, spottuned: of.Evaluate, seconds: float
) -> None:
    """One page over all steps."""
    report = Report(
        "adagrad-unet demo",
        f"Phantom heads: networks trained on scanner {SOURCE}, used on {' and '.join(TARGETS)}",
        package="adagrad-unet",
    )
    report.text(
        f"Made-up heads with known brain masks, {SUBJECTS} on each of three made-up scanners, written as NIfTI files. A small "
        f"2-D nnU-Net was trained on scanner {SOURCE} with SGD for {LONG} and {SHORT} epochs of {BATCHES} batches, with AvaGrad for "
        f"{SHORT}, and with the control SGDm (AvaGrad's learning rate and momentum without its adaptivity) for {SHORT}. The whole demo "
        f"took {seconds:.0f} s. Its numbers say that the program works, not how well the method does on patients."
    )
    results = score_folders(evaluation.predictions, tolerance=TOLERANCE, command="adagrad-unet")
    rows = compare(results, f"S-{LONG}", "surface_dice")
    targets = list(dict.fromkeys(row["target"] for row in rows))
    report.section("Surface Dice")
    report.table(
        ("site", *runs),
        [
            (target, *(next(r["mean"] for r in rows if (r["target"], r["method"]) == (target, name)) for name in runs))
            for target in targets
        ],
        f"Surface Dice at {TOLERANCE:g} mm of the one test head of each scanner; {SOURCE} is the source",
    )
    pictures = []
    for target in targets:
        found = [r for r in results if r.pair[1] == target]
        volume = read_volume(found[0].image)
        truth = read_mask(found[0].mask, volume)
        z = int(truth.sum((0, 1)).argmax())
        panels = [("mask", volume.array[..., z], truth[..., z].astype(np.int16))]
        for result in found:
            mask = read_mask(result.prediction, volume)
            title = f"{result.method}: {result.surface_dice:.2f}"
            panels.append((title, volume.array[..., z], mask[..., z].astype(np.int16)))
        pictures.append((target, panels))
    report.picture(
        slices_figure(pictures),
        f"The slice with the largest mask; surface Dice of the head at {TOLERANCE:g} mm",
        "slices",
    )
    report.section("Speed of the layers")
    contents = {name: json.loads((folder / METRICS).read_text(encoding="utf-8")) for name, folder in runs.items()}
    report.picture(
        update_figure({name: content["updates"]["mean_abs"] for name, content in contents.items()}),
        "Mean update of each convolution per step (Fig. 2 of the paper)",
        "update magnitude of every layer by group, one panel per run",
    )
    for name, content in contents.items():
        if content["rates"]:
            report.text(commands.adaptivity_text(name, content["rates"]))
    report.section("SpotTUNet")
    scores = score_folders(spottuned.predictions, tolerance=TOLERANCE, command="adagrad-unet", grid="preprocessed")
    report.table(
        ("method", "site", "surface Dice", "Dice"),
        [(result.method, result.pair[1], result.surface_dice, result.dice) for result in scores],
        f"Baseline of scanner {SOURCE} on {TARGETS[0]}, before and after spottuning; the policy of every layer is in "
        f"{spottuned.predictions[-1].name}/{POLICY} and in the report beside it",
    )
    report.section("Settings")
    report.settings({"demo": command, "planning": PLANNING})
    report.write(command.out / "report.html")
