"""`benchmark-transformers demo`: phantoms written as real files, then every step through the code that a user's data takes."""

from __future__ import annotations

import time
from pathlib import Path

from benchmark_transformers import settings as of
from benchmark_transformers.cases import check_data
from benchmark_transformers.comparison import compare, panels_of
from benchmark_transformers.evaluation import evaluate, read_scored, score_sections
from benchmark_transformers.export import export
from benchmark_transformers.figures import initialisation_figure
from benchmark_transformers.networks import PACKAGE
from benchmark_transformers.prediction import predict
from benchmark_transformers.pretraining import RESTORED, pretrain
from benchmark_transformers.training import fine_tune
from dart_core import figures
from dart_core.cli import say
from dart_core.data.phantoms import write_chest_xrays
from dart_core.report import Report
from dart_core.run import claim_folder, flat_settings
from dart_core.settings import OutputSettings, RunSettings, ShardedRunSettings

LABELS = ("Cardiomegaly", "Effusion", "Pneumothorax")
PICTURES, SIZE, TRIALS = 140, 48, 2
NETWORK = of.Network(4, 32, (2, 2), (2, 4), 3)
PRETRAINING = of.PretrainRecipe(
    epochs=30, batch_size=20, base_lr=3e-2, min_lr=1e-3, warmup_lr=1e-3, warmup=2, cell=8, log_every=4, show_every=10
)
FINE_TUNING = of.FineTuneRecipe(
    image_size=SIZE, epochs=12, batch_size=24, learning_rate=(3e-2,), patience=12, drop_path=0.0, log_every=1
)


def demo(command: of.Demo) -> None:
    """Pre-train on one phantom data set, continue on the other, fine-tune there from three starts, and compare."""
    started = time.monotonic()
    out, seed = command.out, command.seed
    claim_folder(out, flat_settings(command), overwrite=command.overwrite)
    lists = {
        site: write_chest_xrays(out / "phantoms" / site, site, PICTURES, labels, (64, 64), seed)
        for site, labels in (("chexpert", None), ("chestxray14", LABELS))
    }
    data = of.DataSettings(lists["chestxray14"])
    say(f"phantoms: {out / 'phantoms'}")
    check_data(of.CheckData(data))

    def run(name: str) -> RunSettings:
        return RunSettings(out / name, seed=seed, device="cpu")

    def pretraining(name: str) -> ShardedRunSettings:
        return ShardedRunSettings(out / name, seed=seed, device="cpu")

    first = of.Pretrain(pretraining("simmim"), (lists["chexpert"],), size=SIZE, network=NETWORK, recipe=PRETRAINING)
    pretrain(first)
    further = of.Pretrain(
        pretraining("simmim-continued"), (lists["chestxray14"],), size=SIZE, init_from=out / "simmim", network=NETWORK,
        recipe=PRETRAINING,
    )  # fmt: skip
    pretrain(further)
    scores = []
    for name in ("scratch", "simmim", "simmim-continued"):
        weights = None if name == "scratch" else out / name
        fine_tune(
            of.FineTune(
                run(f"fine-tune-{name}"), data, "scratch-swin-b" if weights is None else "", weights, name=name,
                trials=TRIALS, network=NETWORK if weights is None else of.Network(), recipe=FINE_TUNING,
            )
        )  # fmt: skip
        scores.append(out / f"predict-{name}")
        predict(of.Predict(data, OutputSettings(scores[-1]), out / f"fine-tune-{name}", device="cpu"))
    evaluate(of.Evaluate(OutputSettings(out / "evaluation"), tuple(scores)))
    compare(of.Compare(OutputSettings(out / "comparison"), tuple(scores)))
    export(of.Export(out / "simmim-continued", out / "encoder.safetensors"))
    trial = next((out / "fine-tune-simmim-continued").glob("trial-*"))
    export(of.Export(trial, out / "classifier.onnx"))
    _report(command, scores, time.monotonic() - started)
    say(f"demo finished in {time.monotonic() - started:.0f} s; open {out / 'report.html'}")


def _report(command: of.Demo, scores: list[Path], seconds: float) -> None:
    """One page over all steps."""
    out = command.out
    report = Report(
        "benchmark-transformers demo", "Phantom radiographs: SimMIM, continued SimMIM, fine-tuning", package=PACKAGE
    )
    report.text(
        f"Two made-up data sets of {PICTURES} radiographs each, written as PNG files. A tiny Swin transformer was pre-trained "
        f"by SimMIM on the first for {PRETRAINING.epochs} epochs, then as long on the second, and fine-tuned there for "
        f"{len(LABELS)} findings from random weights, from the first and from the continued pre-training, {TRIALS} trials each. "
        f"The whole demo took {seconds:.0f} s. Its numbers say that the program works, not which start is better: networks, "
        "pictures and trainings are far too small for that."
    )
    for name, title in (("simmim", "Pre-training"), ("simmim-continued", "Continued pre-training")):
        report.section(title)
        figures.training_curves(
            report, out / name, {"loss": "training batch"}, "mean absolute error", "Loss over the masked pixels"
        )
        file = sorted((out / name / RESTORED).glob("*.png"))[-1]
        report.picture(
            file, "Pictures, what the network sees of them, and its reconstruction of the holes",
            "rows of radiographs: original, masked, restored",
        )  # fmt: skip
    scored = [read_scored(folder) for folder in scores]
    report.section("Initialisations compared")
    report.picture(
        initialisation_figure(panels_of(scored)), "Mean AUC of the starts in percent, with the deviation over trials",
        "bars of the mean AUC",
    )  # fmt: skip
    score_sections(report, scored)
    report.section("Settings")
    report.settings({"demo": command, "network": NETWORK, "pretraining": PRETRAINING, "fine-tuning": FINE_TUNING})
    report.write(out / "report.html")
