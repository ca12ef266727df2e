"""`united-ssl demo`: phantom CTs written as real files, then every step through the code that a user's data takes."""

from __future__ import annotations

import time

from dart_core.cli import say
from dart_core.data.phantoms import write_luna16, write_lung_ct
from dart_core.report import Report
from dart_core.run import claim_folder, flat_settings
from dart_core.settings import OutputSettings, RunSettings
from united_ssl import settings as of
from united_ssl.commands import PICTURE, pretrain
from united_ssl.evaluation import evaluate, read_scored, restoration_rows, sections, target_rows
from united_ssl.export import export
from united_ssl.models import PACKAGE
from united_ssl.prediction import predict
from united_ssl.preparing import check_data, prepare
from united_ssl.tuning import fine_tune_command

SHAPE, SIZE, MARGIN = (80, 80, 56), (16, 16, 16), (10, 10, 6)
SCANS, WORDS = 7, 5
NETWORK = of.Network(width=4, norm_momentum=0.1)
TRAINING = of.Training(
    batch_size=8, max_epochs=8, learning_rate=2e-3, halve_every=0, patience=0, log_every=5, show_every=4
)  # fmt: skip
ADVERSARY = of.Adversary(critic_steps=2)
EPOCHS, RATE = 12, 3e-3
"""Of the fine-tuning."""


def demo(command: of.Demo) -> None:
    """Pretrain on phantom CTs step by step, transfer to both kinds of target tasks, and report."""
    import torch

    started = time.monotonic()
    out = command.out
    claim_folder(out, flat_settings(command), overwrite=command.overwrite)

    def run(name: str) -> RunSettings:
        return RunSettings(out / name, seed=command.seed, device="cpu", channels_last=True)

    luna = write_luna16(out / "phantoms" / "luna16", SCANS, SCANS, SHAPE, command.seed)
    liver = write_lung_ct(out / "phantoms" / "liver", ("GE", "Siemens"), 3, SHAPE, command.seed + 1, "liver")
    say(f"phantoms: {luna} and {liver}")
    check_data(of.CheckData(luna, SIZE, MARGIN))
    prepare(
        of.Prepare(
            run("cubes"), luna, size=SIZE, margin=MARGIN, words=WORDS, instances=(5, 2), scan_size=(32, 32, 16),
            width=NETWORK.width, max_epochs=4, batch_size=4,
        )
    )  # fmt: skip
    prepare(of.Prepare(run("cubes-liver"), liver, "segment", SIZE, crops=10))
    pretrain(
        of.Pretrain(
            run("pretrain"), out / "cubes", "DRA", pretext=of.Pretext("transvw"), network=NETWORK, training=TRAINING,
            adversary=ADVERSARY,
        )
    )  # fmt: skip
    networks = {"random": None, "DR": out / "pretrain" / "step-DR", "DRA": out / "pretrain"}
    predictions = []
    for name, init in networks.items():
        folder = f"liver-{name}"
        fine_tune_command(
            of.FineTune(
                run(folder), out / "cubes-liver", init, width=NETWORK.width, norm_momentum=0.1, max_epochs=EPOCHS, learning_rate=RATE,
                batch_size=8,
            )
        )  # fmt: skip
        predictions.append(out / f"predict-{folder}")
        predict(of.Predict(OutputSettings(predictions[-1]), out / "cubes-liver", out / folder, device="cpu"))
        if init is not None:
            predictions.append(out / f"predict-restored-{name}")
            predict(of.Predict(OutputSettings(predictions[-1]), out / "cubes", init, device="cpu"))
    export(of.Export(out / "liver-DRA", out / "liver.onnx"))
    evaluation = of.Evaluate(OutputSettings(out / "evaluation"), tuple(predictions), device="cpu")
    evaluate(evaluation)
    scored = [read_scored(folder) for folder in predictions]
    restorations = [one for one in scored if one.kind == "restoration"]
    results = [row for one in scored if one.kind != "restoration" for row in target_rows(one)]
    distances = restoration_rows(restorations, None, torch.device("cpu"))
    report = Report(
        "united-ssl demo", "Phantom CTs: pretraining step by step, then transfer to segmentation", package=PACKAGE
    )
    report.text(
        f"{SCANS} made-up chest CTs in the layout of LUNA16 gave {WORDS} visual words, each cut in the scans that look most alike; "
        "a narrow U-Net learnt on them which word a cube is, then also to restore distorted cubes, then also to deceive a "
        "critic. Its encoder and decoder were fine-tuned to outline the liver in other made-up CTs. "
        f"The whole demo took {time.monotonic() - started:.0f} s. Its numbers say that the program works, not how good "
        "pretraining is: that takes thousands of cubes and epochs."
    )
    report.section("Pretraining")
    for where, step in (("pretrain/step-DR", "(D)+R"), ("pretrain", "((D)+R)+A")):
        report.picture(
            out / where / PICTURE,
            f"After {step}: what is to be restored, what the network sees, what it restores",
            "slices",
        )
    sections(report, evaluation, results, results, distances, restorations, printed=False)
    report.section("Settings")
    report.settings({"demo": command, "network": NETWORK, "training": TRAINING, "adversary": ADVERSARY})
    report.write(out / "report.html")
    say(f"demo finished in {time.monotonic() - started:.0f} s; open {out / 'report.html'}")
