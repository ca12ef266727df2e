"""`popar demo`: phantom radiographs written as real files, then every step through the code that a user's data takes."""

from __future__ import annotations

import json
import time
from pathlib import Path

from dart_core.cli import say
from dart_core.data.datalist import Datalist
from dart_core.data.phantoms import write_chest_xrays
from dart_core.report import Report
from dart_core.run import METRICS, claim_folder, flat_settings
from dart_core.settings import OutputSettings, RunSettings, ShardedRunSettings
from popar import settings as of
from popar.commands import check_data
from popar.evaluation import comparisons, evaluate, over_seeds, read_scored, result_rows, score_sections
from popar.export import export
from popar.figures import examples_figure
from popar.method import FixedDistortions
from popar.models import PACKAGE, load_pretrained
from popar.prediction import predict
from popar.pretraining import objective_of, pretrain
from popar.radiographs import Radiographs, three_channels
from popar.transfer import RANDOM, fine_tune

FINDINGS = ("Cardiomegaly", "Effusion")
UNLABELLED, LABELLED, FILE_SIDE, SIDE = 240, 150, 72, 64
NETWORK = of.NetworkSettings("vit_b", SIDE, ("patch_size=8", "embed_dim=64", "depth=3", "num_heads=4"))
PRETRAINING = of.Pretraining(epochs=30, batch_size=24, held_out=24, measure_every=10, examples=6, log_every=5)
TUNING = of.FineTuning(
    epochs=20, batch_size=12, learning_rate=3e-4, normalisation="chestxray14", patience=20, log_every=2
)
SEEDS = 2


def demo(command: of.Demo) -> None:
    """Pretrain on phantoms without labels, fine-tune on others from this and from random weights, and report."""
    started = time.monotonic()
    out = command.out
    claim_folder(out, flat_settings(command), overwrite=command.overwrite)
    side = (FILE_SIDE, FILE_SIDE)
    unlabelled = write_chest_xrays(out / "phantoms", "chestxray14", UNLABELLED, FINDINGS, side, command.seed)
    labelled = write_chest_xrays(out / "labelled", "chestxray14", LABELLED, FINDINGS, side, command.seed + 1)
    say(f"phantoms: {unlabelled} (pretraining), {labelled} (fine-tuning)")
    check_data(of.CheckData(of.DataSettings(labelled), labelled=True))
    run = ShardedRunSettings(out / "pretraining", seed=command.seed, device="cpu")
    splits: tuple[of.Split, ...] = ("train", "val")
    pretrain(
        of.Pretrain(run, of.DataSettings(unlabelled, memory=True), NETWORK, pretraining=PRETRAINING, splits=splits)
    )
    data = of.DataSettings(labelled, memory=True)
    folders = []
    for seed in range(SEEDS):
        for name, init in ((RANDOM, None), ("popar", run.out)):
            tuning = RunSettings(out / f"{name}-{seed}", seed=command.seed + seed, device="cpu")
            networks = NETWORK if init is None else of.NetworkSettings()
            fine_tune(of.FineTune(tuning, data, init, networks, fine_tuning=TUNING))
            folders.append(out / f"predict-{name}-{seed}")
            predict(of.Predict(data, OutputSettings(folders[-1]), tuning.out, device="cpu"))
    export(of.Export(run.out, out / "backbone.safetensors"))
    evaluate(of.Evaluate(OutputSettings(out / "evaluation"), tuple(folders)))
    _report(command, unlabelled, tuple(folders), time.monotonic() - started)
    say(f"demo finished in {time.monotonic() - started:.0f} s; open {out / 'report.html'}")


def _report(command: of.Demo, unlabelled: Path, folders: tuple[Path, ...], seconds: float) -> None:
    """One page over all steps."""
    report = Report("popar demo", "Pretraining on phantom radiographs, and what it is good for", package=PACKAGE)
    report.text(
        f"A small ViT was pretrained for {PRETRAINING.epochs} epochs on made-up radiographs without labels: it was shown "
        "pictures whose patches had changed places or whose appearance was distorted, and had to name where each patch comes "
        "from and to restore the picture. Then it was fine-tuned on other made-up radiographs with two findings, beside the "
        f"same network from random weights, {SEEDS} seeds each. The whole demo took {seconds:.0f} s. Its numbers say that the "
        "program works, not how well the method does on patients."
    )
    report.section("Patch order and appearance")
    network, _ = load_pretrained(command.out / "pretraining")
    rows = [row for row in Datalist.read(unlabelled) if row.split == "test"][: PRETRAINING.examples]
    pictures = three_channels(Radiographs(rows, SIDE).stack(range(len(rows))))
    fixed = FixedDistortions(pictures, network.patch, objective_of(of.Distortions()))
    rows_shown = fixed.examples(network, next(network.parameters()).device, PRETRAINING.examples)
    report.picture(
        examples_figure(rows_shown),
        "Pictures that were not trained on, with permuted patches and with distorted appearance, and what the network restored",
        "rows of radiographs: original, distorted, restored",
    )
    measured = json.loads((command.out / "pretraining" / METRICS).read_text(encoding="utf-8"))
    report.text(
        f"Of the permuted patches of {measured['measured_pictures']} such pictures {measured['order_accuracy']:.0%} were named "
        f"rightly; guessing would name {1 / network.grid**2:.1%}. The report of the pretraining (pretraining/report.html) shows how this came about."
    )
    scored = [read_scored(folder) for folder in folders]
    results = result_rows(scored)
    score_sections(report, results, over_seeds(results), comparisons(results, RANDOM))
    report.section("Settings")
    report.settings({"demo": command, "network": NETWORK, "pretraining": PRETRAINING, "fine-tuning": TUNING})
    report.write(command.out / "report.html")
