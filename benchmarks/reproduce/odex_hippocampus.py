"""odex on real hippocampi: two streams of five stages, all twelve methods at a tiny scale.

    python benchmarks/reproduce/odex_hippocampus.py --data-root DATA --work FOLDER [--seeds 3] [--methods odex ...] [--smoke]

hippocampus_msd (160 crops, Decathlon Task04) becomes the graded transformed stream of the paper (`odex stream --kind transformed`),
and a source stream from its intensity groups (floating-point, 8-bit, huge values: no sites, but the only sources there are). A seed
draws transforms, first weights and batches. Every stage is a run of `odex learn`, every state is tested on the held-out cases of all
stages; finished parts are kept, so that the study resumes (between stages, and within one). Writes a record to benchmarks/results.
--smoke times two stages of each method and prints an estimate.

Scale (the paper: 32 feature maps, 200 epochs of 250 batches): see NETWORK and TRAINING. Two earlier runs with 40 steps in every stage left
the first network untrained (at the paper's learning rate of 0.01: Dice .07 to .41 whatever the method; at 0.1: .36 after the first stage),
so that whoever trains one network longest won. So the first stage takes four times as many steps. Nothing else was chosen on test cases.
"""

from __future__ import annotations

import csv
import dataclasses
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from study import origin, study_arguments, study_options, write_record

from dart_core.data.datalist import Row
from dart_core.settings import OutputSettings, RunSettings
from odex import settings as of
from odex.evaluation import mean_matrices, read_courses, summarise
from odex.learning import learn
from odex.prediction import predict
from odex.streaming import equal_parts, with_splits, write_stage, write_transformed
from odex.streams import smooth_stream

METHODS: tuple[of.Method, ...] = (
    "sequential", "odex", "odex-inf", "odex-last", "dice-ex", "gram", "ewc", "rw", "lwf", "mib", "plop", "joint",
)  # fmt: skip
STREAMS = ("transformed", "groups")
STAGES = 5
GROUPS = ("float", "u8", "huge")
NETWORK = of.Network(base_features=4, batch_size=2, patch_size=(32, 40, 32))
DISTANCES = of.Pool()
TRAINING = of.Training(epochs=4, batches=10, learning_rate=0.1, momentum=0.9, augmentation=False, log_every=10)
FIRST_EPOCHS = 16
"""Of the first stage, from random weights; the others go on from a network."""
BASELINES = of.Baselines(fisher_per="batch", fisher_batches=10, lkd=1.0)


def make_streams(data: Path, folder: Path, seed: int) -> dict[str, list[Path]]:
    """Datalists of both streams; written once."""
    root = data / "hippocampus_msd"
    with (root / "index.csv").open(newline="") as file:
        groups = {row["file"]: row["intensity_group"] for row in csv.DictReader(file)}
    rows = {name: Row(root / "images" / name, root / "labels" / name, site=group) for name, group in groups.items()}
    found: dict[str, list[Path]] = {}
    for kind in STREAMS:
        out = folder / kind
        found[kind] = [out / f"stage-{i + 1}" for i in range(STAGES)]
        if all((stage / "datalist.csv").is_file() for stage in found[kind]):
            continue
        if kind == "transformed":
            stages = [[name for name, _ in part] for part in equal_parts([(name, "") for name in sorted(rows)], STAGES)]
        else:
            stages = smooth_stream({g: [n for n in rows if groups[n] == g] for g in GROUPS}, composition(groups))
        for number, names in enumerate(stages):
            split = with_splits([rows[name] for name in names])
            if kind == "transformed":
                split = write_transformed(
                    out / f"stage-{number + 1}", split, number / (STAGES - 1), "percentiles", seed, 1000 * number
                )
            write_stage(out, number + 1, split)
    return found


def composition(groups: dict[str, str]) -> list[list[int]]:
    """Shares that shift from the first group to the last; every case of every group once, as far as whole numbers allow."""
    shares = np.array([[4, 3, 1, 0, 0], [0, 1, 2, 1, 0], [0, 0, 1, 3, 4]], dtype=float)
    counts = np.array([list(groups.values()).count(g) for g in GROUPS])
    table = np.floor(shares / shares.sum(1, keepdims=True) * counts[:, None]).astype(int).T
    return [[int(n) for n in stage] for stage in table]


def course(work: Path, stages: Sequence[Path], method: of.Method, seed: int, training: of.Training) -> list[Path]:
    """Learn all stages, test every state; what is there is kept. Folders of the predictions."""
    folders, pool = [], None
    parts: list[tuple[Path, ...]] = [(stage,) for stage in stages]
    epochs = [FIRST_EPOCHS] + [training.epochs] * (len(stages) - 1)
    if method == "joint":  # as many steps as the others take in all stages
        parts, epochs = [tuple(stages)], [sum(epochs)]
    for number, part in enumerate(parts, 1):
        run = work / f"{method}-{number}"
        tested = work / f"predict-{method}-{number}"
        if not (tested / "report.html").is_file():
            resume = (run / "config.yaml").is_file()
            first: dict[str, Any] = {}
            if pool is None:
                first = {"method": method, "network": NETWORK, "distances": DISTANCES}
            settings = RunSettings(run, seed=seed, device="cpu", resume=resume, checkpoint_every=10**6)
            recipe = dataclasses.replace(training, epochs=epochs[number - 1])
            learn(of.Learn(settings, part, pool, baselines=BASELINES, training=recipe, **first))
            predict(of.Predict(OutputSettings(tested, overwrite=True), run, tuple(stages), device="cpu"))
            shutil.rmtree(run / "checkpoints", ignore_errors=True)
        folders.append(tested)
        pool = run
    return folders


def main() -> None:
    """Command line."""
    parser = study_options(__doc__, "odex_hippocampus", "time two stages and estimate the rest")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    arguments = study_arguments(parser)
    torch.set_num_threads(1)
    data, work = arguments.data_root, arguments.work
    if arguments.smoke:
        shutil.rmtree(work / "smoke", ignore_errors=True)
        started = time.process_time()
        streams = make_streams(data, work / "smoke" / "stages", 0)
        making = time.process_time() - started
        total = 0.0
        for method in ("sequential", "odex"):
            started = time.process_time()
            course(work / "smoke" / "runs", streams["transformed"][:2], method, 0, TRAINING)
            # Of two stages with two test sets each; the whole has five of both.
            seconds = (time.process_time() - started) / 2 * STAGES * 1.3
            total = max(total, seconds)
            print(f"{method}: {seconds:.0f} s for a stream", flush=True)
        whole = arguments.seeds * (making + len(arguments.methods) * len(STREAMS) * total)
        print(f"{arguments.seeds} seeds: about {whole / 60:.0f} minutes")
        return
    record: dict[str, Any] = {
        **origin("odex: hippocampus_msd as two streams of five stages, all methods, tiny scale"),
        "scale": {
            "network": dataclasses.asdict(NETWORK), "training": dataclasses.asdict(TRAINING), "first_epochs": FIRST_EPOCHS,
            "baselines": dataclasses.asdict(BASELINES), "seeds": arguments.seeds,
        },
        "metric": "Dice of the whole hippocampus on held-out cases; means over seeds; ± over stages; Wilcoxon over cases, one-sided",
        "streams": {},
    }  # fmt: skip
    for kind in STREAMS:
        folders = []
        for seed in range(arguments.seeds):
            stages = make_streams(data, work / f"stages-{seed}", seed)[kind]
            for method in arguments.methods:
                folders += course(work / f"{kind}-{seed}", stages, method, seed, TRAINING)
        courses = read_courses(folders)
        evaluation = of.Evaluate(OutputSettings(work / "evaluation"), tuple(folders))
        rows = summarise(courses, evaluation)
        matrices = {name: np.round(matrix, 4).tolist() for name, matrix in mean_matrices(courses).items()}
        record["streams"][kind] = {"summary": rows, "stage_matrices": matrices}
        for row in rows:
            bwt, fwt = ("" if row[k] is None else f"{row[k]:+.3f}" for k in ("bwt", "fwt"))
            print(
                f"| {kind} | {row['method']} | {row['dice']:.3f} | {bwt} | {fwt} | {row['networks']:.1f} |", flush=True
            )
    file = write_record(record, arguments.out, "odex-hippocampus")
    print(file)


if __name__ == "__main__":
    main()
