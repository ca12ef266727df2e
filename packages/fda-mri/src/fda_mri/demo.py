"""`fda-mri demo`: phantoms written as real files, then every step through the code that a user's data takes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from dart_core.cli import say
from dart_core.data.phantoms import write_head_mr
from dart_core.data.slices import predict_slices
from dart_core.evaluation import score
from dart_core.figures import Panel, comparison
from dart_core.report import Report
from dart_core.run import claim_folder, flat_settings
from dart_core.settings import OutputSettings, RunSettings
from fda_mri import commands, figures
from fda_mri import settings as of
from fda_mri.adaptation import TUNING, Adaptation, adapt, bank_grid, choose_donors, load_network, predict
from fda_mri.donors import DonorBank
from fda_mri.evaluation import evaluate, evaluation_sections, score_predictions
from fda_mri.fourier import fourier_transfer
from fda_mri.scans import load, select
from fda_mri.tuning import tune_beta, tuning_section

SOURCE, TARGET = "sm3", "sm15"
SUBJECTS, SHAPE = 10, (64, 72, 40)
TRAINING = of.Training(
    width=4, epochs=8, iterations=25, batch_size=8, learning_rate=0.02, drop_epoch=6, crop_size=64, log_every=5
)
DONORS = 5
TOLERANCE = 3.0
"""Of the surface Dice in mm: about one voxel."""
# The slices are a third as wide as MNI152's: the same number of frequencies needs a larger beta.
BETAS = (0.0, 0.02, 0.04, 0.06, 0.08, 0.1)


def demo(command: of.Demo) -> None:
    """Train on one phantom scanner, adapt scans of another to it, and report."""
    started = time.monotonic()
    out = command.out
    claim_folder(out, flat_settings(command), overwrite=command.overwrite)
    datalist = write_head_mr(out / "phantoms", (SOURCE, TARGET), SUBJECTS, SHAPE, command.seed)
    source, target = (of.Scans(datalist, site, resample=True) for site in (SOURCE, TARGET))
    say(f"phantoms: {datalist} (scanner {SOURCE} is the source, {TARGET} the target)")
    commands.check_data(of.CheckData(of.Scans(datalist, resample=True)))
    model, bank = out / "source-network", out / "donors.safetensors"
    run = RunSettings(model, seed=command.seed, device="cpu")
    commands.train(of.Train(run, source, TRAINING))
    commands.bank(of.Bank(source, bank))
    transfer = of.Transfer(n=DONORS)
    tuning = out / "tune-beta"
    counts = tuple(n for n in of.COUNTS if n <= DONORS)
    tune_beta(
        of.TuneBeta(
            target,
            OutputSettings(tuning),
            model,
            bank,
            transfer,
            BETAS,
            ("3d", "2d"),
            counts,
            tolerance=TOLERANCE,
            device="cpu",
        )
    )
    tuned = json.loads((tuning / TUNING).read_text())
    runs = {
        "none": of.Transfer(mode="none"),
        "random": of.Transfer(mode="random", n=1, beta=tuned["chosen"]["3d"]["per_pair"]),
        "3d": of.Transfer(mode="3d", n=DONORS, beta=tuned["chosen"]["3d"]["per_pair"]),
        "2d": of.Transfer(mode="2d", n=DONORS, beta=tuned["chosen"]["2d"]["per_pair"]),
    }
    for name, settings in runs.items():
        needed = None if name == "none" else bank
        output = OutputSettings(out / f"predict-{name}")
        predict(of.Predict(target, output, model, needed, settings, role="test", device="cpu"))
    adapt(of.Adapt(target, OutputSettings(out / "adapted"), bank, runs["3d"], role="test"))
    evaluation = of.Evaluate(
        OutputSettings(out / "evaluation"), tuple(out / f"predict-{name}" for name in runs), tolerance=3.0
    )
    evaluate(evaluation)
    _report(command, model, bank, target, runs["3d"], evaluation, tuned, time.monotonic() - started)
    say(f"demo finished in {time.monotonic() - started:.0f} s; open {out / 'report.html'}")


def _report(
    command: of.Demo,
    model: Path,
    bank: Path,
    target: of.Scans,
    transfer: of.Transfer,
    evaluation: of.Evaluate,
    tuned: dict,  # type: ignore[type-arg]
    seconds: float,
) -> None:
    """One page over all steps: the scheme, the comparison, the curves and the table."""
    report = Report(
        "fda-mri demo",
        f"Phantom heads: a network trained on scanner {SOURCE}, used on scanner {TARGET}",
        package="fda-mri",
    )
    report.text(
        f"Made-up heads with known brain masks, {SUBJECTS} on each of two made-up scanners, written as NIfTI files. A "
        f"small U-Net was trained for {TRAINING.epochs * TRAINING.iterations} steps on scanner {SOURCE} and then left as it "
        f"is. Each slice from scanner {TARGET} gets the low-frequency amplitudes of {transfer.n} similar source slices and "
        "is segmented once with each; the probabilities are averaged. The whole demo took "
        f"{seconds:.0f} s. Its numbers say that the program works, not how well the method does on patients."
    )
    network, _ = load_network(model, torch.device("cpu"))
    donors = DonorBank.load(bank)
    (scan,) = load(select(target, "test")[:1], target, bank_grid(donors), need_mask=True)
    volume = torch.from_numpy(scan.volume)
    plain = predict_slices(network, volume).sigmoid().numpy()
    adaptation = Adaptation(network, transfer, donors, None, 16)
    probabilities = adaptation.probabilities(volume).numpy()
    chosen, offsets, _ = choose_donors(donors, volume, transfer)
    best = donors.gather(chosen[:, :1], offsets[:, :1])[0]
    z = scan.volume.shape[-1] // 2
    report.section("How it works")
    report.picture(
        figures.scheme(best[..., z].numpy(), scan.volume[..., z], transfer.beta, probabilities[..., z] > 0.5),
        f"One slice with its best donor, beta {transfer.beta:g} (after Fig. 1 of the paper)",
        "spectra of source and target slice, the exchanged window, the result and its segmentation",
    )
    report.section("Before and after")
    adapted = fourier_transfer(volume[..., z], best[..., z], transfer.beta).numpy()
    values = {
        name: score(mask > 0.5, scan.truth, scan.grid.spacing, evaluation.tolerance)["surface_dice"]
        for name, mask in (("plain", plain), ("adapted", probabilities))
    }
    truth = scan.truth[..., z]
    panels = [
        Panel(f"source {SOURCE}", best[..., z].numpy()),
        Panel(f"target {TARGET}", scan.volume[..., z], truth),
        Panel(f"no adaptation\n{values['plain']:.2f}", scan.volume[..., z], truth, plain[..., z] > 0.5),
        Panel(f"adapted\n{values['adapted']:.2f}", adapted, truth, probabilities[..., z] > 0.5),
    ]
    report.picture(
        comparison([(scan.row.subject, panels)]),
        f"Mask green, prediction red, surface Dice of the scan at {evaluation.tolerance:g} mm (after Fig. 3 of the paper)",
        "source slice, target slice, segmentation without and with adaptation",
    )
    report.section("Choice of beta and n")
    tuning_section(report, tuned)
    evaluation_sections(report, score_predictions(evaluation), evaluation)
    report.section("Settings")
    report.settings({"demo": command, "training": TRAINING, "transfer": transfer})
    report.write(command.out / "report.html")
