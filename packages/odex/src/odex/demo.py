"""`odex demo`: a phantom stream written as real files, then every step through the code that a user's data takes."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from dart_core.cli import say
from dart_core.data.phantoms import write_hippocampus_stream
from dart_core.data.volumes import read_mask, read_volume
from dart_core.evaluation import read_predictions
from dart_core.figures import comparison
from dart_core.report import Report
from dart_core.run import claim_folder, flat_settings
from dart_core.settings import OutputSettings, RunSettings
from odex import settings as of
from odex.commands import check_data, show_pool
from odex.evaluation import evaluate, read_courses, sections, summarise
from odex.figures import case_panel
from odex.learning import PACKAGE, STAGE_COLUMNS, learn, pool_rows
from odex.prediction import predict
from odex.store import read_pool

STAGES, CASES, SHAPE = 3, 15, (16, 24, 16)
METHODS: tuple[of.Method, ...] = ("odex", "sequential", "ewc")
NETWORK = of.Network(base_features=6, max_pools=2, batch_size=4)
TRAINING = of.Training(epochs=6, batches=8, momentum=0.9, learning_rate=0.03, augmentation=False, log_every=4)
DISTANCES = of.Pool(covariance="shrunk")
"""Nine images tell little about a covariance."""
BASELINES = of.Baselines(fisher_per="batch", ewc_lambda=50)


def demo(command: of.Demo) -> None:
    """Learn a stream of phantoms stage by stage, segment all stages after each, score and report."""
    import torch

    started = time.monotonic()
    out = command.out
    claim_folder(out, flat_settings(command), overwrite=command.overwrite)
    lists = write_hippocampus_stream(out / "stream", STAGES, CASES, SHAPE, command.seed)
    stages = tuple(path.parent for path in lists)
    say(f"phantoms: {out / 'stream'}, {STAGES} stages that shift from one made-up scanner to another")
    check_data(of.CheckData(stages))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small that a second one only costs
    try:
        folders = [folder for method in METHODS for folder in _course(command, method, stages)]
    finally:
        torch.set_num_threads(threads)
    show_pool(of.ShowPool(out / f"odex-{STAGES}"))
    evaluation = of.Evaluate(OutputSettings(out / "evaluation"), tuple(folders))
    evaluate(evaluation)
    courses = read_courses(folders)
    report = Report(
        "odex demo",
        "A stream of phantoms that shifts from one made-up scanner to another, learned stage by stage",
        package=PACKAGE,
    )
    report.text(
        f"{STAGES} stages of {CASES} made-up crops around the hippocampus: the first stage comes from one made-up scanner, the last from"
        " another whose contrast is reversed, those between from both. A narrow 3-D U-Net learns them one after the other, and never"
        " sees an old stage again. Seq. simply goes on; EWC holds on to weights that mattered; ODEx measures how far the"
        " new images lie from all that each of its networks has seen, and adds a network when they are too far. "
        f"The whole demo took {time.monotonic() - started:.0f} s. Its numbers say that the program works, not how well the"
        " method does on patients; the seconds of ODEx's first stage hold the loading of the libraries."
    )
    pool = read_pool(out / f"odex-{STAGES}")
    report.section("What ODEx decided")
    report.table(
        STAGE_COLUMNS,
        pool_rows(pool)[1],
        "A stage whose score, its normalised distance to the closest network, reaches the threshold gets a new network",
    )
    report.picture(
        _pictures(out), f"A test image of the first and of the last stage after all {STAGES}; green: true, red: predicted",
        "slices with outlines for each method",
    )  # fmt: skip
    sections(report, courses, summarise(courses, evaluation), printed=False)
    report.section("Settings")
    report.settings(
        {"demo": command, "network": NETWORK, "training": TRAINING, "distances": DISTANCES, "baselines": BASELINES}
    )
    report.write(out / "report.html")
    say(f"demo finished in {time.monotonic() - started:.0f} s; open {out / 'report.html'}")


def _course(command: of.Demo, method: of.Method, stages: tuple[Path, ...]) -> list[Path]:
    """Learn all stages and segment their test images after each."""
    folders, pool = [], None
    for number, stage in enumerate(stages, 1):
        run = command.out / f"{method}-{number}"
        stage_alone = of.Learn(RunSettings(run, seed=command.seed, device="cpu"), (stage,), pool, training=TRAINING)
        # The pool remembers these from its first stage.
        first = replace(stage_alone, method=method, network=NETWORK, distances=DISTANCES, baselines=BASELINES)
        learn(stage_alone if pool else first)
        folders.append(command.out / f"predict-{method}-{number}")
        predict(of.Predict(OutputSettings(folders[-1]), run, stages, device="cpu"))
        pool = run
    return folders


def _pictures(out: Path) -> Figure:
    rows = []
    for stage in (1, STAGES):
        panels = []
        for method in METHODS:
            listed = read_predictions(out / f"predict-{method}-{STAGES}", "odex")
            found = next(p for p in listed if p.pair[1] == f"stage-{stage}")
            volume = read_volume(found.image)
            assert found.mask is not None
            truth, predicted = read_mask(found.mask, volume), read_mask(found.prediction, volume)
            panels.append(case_panel(of.NAMES[method], volume.array.T, predicted.T, truth.T))
        rows.append((f"stage {stage}", panels))
    return comparison(rows)
