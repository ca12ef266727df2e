"""POPAR on small real sets: pretraining on nih_cxr_1000, fine-tuning on its labels and on pneumoniamnist.

    python benchmarks/reproduce/popar_cxr.py --data-root DATA --work FOLDER [--seeds 3] [--ablation] [--smoke]

nih_cxr_1000: 1000 radiographs of 682 patients, split by patient once for all seeds; training and validation pictures are
pretrained on without labels, a ViT and a Swin of two million parameters each; then both are fine-tuned on the five findings with
at least 90 pictures, from the pretraining and from random weights. pneumoniamnist: other hospital, children; a part of its
training pictures, all test pictures. One pretraining per backbone, as in the paper; seeds change everything of the fine-tuning
(new head, batches, views). --ablation adds the sub-tasks of the paper's section 5 on the ViT (about half an hour more). Every
training is a run of `popar pretrain`, `fine-tune` and `predict`; results are read back, so that the study resumes between any
two of them (and within one). Writes a record to benchmarks/results. --smoke times an epoch of each and prints an estimate.

Scale (the paper: Swin-B at 448 for 300 epochs, ViT-B at 224 for 1000, 86,524 pictures): see below; nothing was chosen on test
pictures.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from study import origin, study_arguments, study_options, write_record

from dart_core.classification import compare_seeds, seed_table
from dart_core.data.images import write_image
from dart_core.files import write_atomic, write_csv
from dart_core.settings import OutputSettings, RunSettings, ShardedRunSettings
from popar.evaluation import read_scored, result_rows
from popar.prediction import predict
from popar.pretraining import pretrain
from popar.settings import (
    SUBTASKS,
    DataSettings,
    Distortions,
    FineTune,
    FineTuning,
    LabelSettings,
    NetworkSettings,
    Predict,
    Pretrain,
    Pretraining,
    Subtask,
)
from popar.transfer import fine_tune

Settings = TypeVar("Settings", bound=RunSettings)

SIDE = 96
BACKBONES = {
    "vit": NetworkSettings("vit_b", SIDE, ("patch_size=16", "embed_dim=192", "depth=4", "num_heads=3")),
    "swin": NetworkSettings(
        "swin_b", SIDE, ("patch_size=4", "window_size=6", "embed_dim=48", "depths=2,2,4", "num_heads=2,4,8")
    ),
}
"""Both see 6 x 6 patches of 16 pixels."""
PRETRAINING = {
    "vit": Pretraining(epochs=60, batch_size=32, held_out=128, measure_every=12),
    "swin": Pretraining(epochs=36, batch_size=32, held_out=128, measure_every=12),
}
TUNING = {
    "nih_cxr_1000": FineTuning(epochs=6, patience=6, batch_size=16, optimizer="adamw", learning_rate=3e-4),
    "pneumoniamnist": FineTuning(epochs=6, patience=6, batch_size=16, optimizer="adamw", learning_rate=3e-4),
}
"""Normalised with ImageNet's statistics, as in the authors' code."""
CROPS = {"nih_cxr_1000": "ten", "pneumoniamnist": "middle"}
"""Ten crops of 624 pictures of 28 pixels would take more than the training."""
SETS = tuple(TUNING)
LEAST = 90
"""Positive pictures of a finding that is fine-tuned on."""
TRAIN, VAL = 300, 100
"""Pictures of pneumoniamnist's training and validation parts, drawn at random."""
ABLATION: dict[str, tuple[Subtask, ...]] = {
    "poc": ("poc",), "mpr": ("mpr",), "mgr": ("mgr",), "poc-mpr": ("poc", "mpr"),
}  # fmt: skip
RANDOM, ALL = "random", "all"


def nih(data: Path, folder: Path) -> Path:
    """60 % of the patients train, 15 % validate, 25 % test."""
    with np.load(data / "nih_cxr_1000" / "nih_cxr_128.npz") as file:
        images, labels, patients = file["images"], file["labels"], file["patient"]
        names, findings = file["names"].astype(str), file["label_names"].astype(str)
    people = np.unique(patients)
    order = np.random.default_rng(0).permutation(len(people))
    ends = (round(0.6 * len(people)), round(0.75 * len(people)))
    split = {people[who]: "train" if i < ends[0] else "val" if i < ends[1] else "test" for i, who in enumerate(order)}
    chosen = [i for i in range(len(findings)) if labels[:, i].sum() >= LEAST]
    rows = []
    for image, cells, patient, name in zip(images, labels, patients, names, strict=True):
        file_name = f"images/{Path(name).stem}.png"
        write_image(folder / file_name, image)
        rows.append((file_name, str(patient), split[patient], *(int(cells[i]) for i in chosen)))
    write_csv(folder / "datalist.csv", ("image", "subject", "split", *(findings[i] for i in chosen)), rows)
    return folder / "datalist.csv"


def pneumonia(data: Path, folder: Path) -> Path:
    """The published parts; of training and validation a random sample."""
    rows = []
    rng = np.random.default_rng(0)
    with np.load(data / "pneumoniamnist" / "pneumoniamnist.npz") as file:
        for split, count in (("train", TRAIN), ("val", VAL), ("test", 0)):
            images, labels = file[f"{split}_images"], file[f"{split}_labels"][:, 0]
            for i in sorted(rng.permutation(len(images))[:count]) if count else range(len(images)):
                name = f"images/{split}-{i:04d}.png"
                write_image(folder / name, images[i])
                rows.append((name, split, int(labels[i])))
    write_csv(folder / "datalist.csv", ("image", "split", "pneumonia"), rows)
    return folder / "datalist.csv"


def datalist_of(data: Path, work: Path, name: str) -> Path:
    """The datalist of a set, written once."""
    folder = work / name
    if not (folder / "datalist.csv").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        found: Path = {"nih_cxr_1000": nih, "pneumoniamnist": pneumonia}[name](data, folder)
        return found
    return folder / "datalist.csv"


def run_settings(out: Path, seed: int, kind: type[Settings]) -> Settings:
    """A new run, or one to be continued."""
    return kind(out, seed=seed, device="cpu", checkpoint_every=100, resume=(out / "config.yaml").is_file())


def pretrained(
    work: Path, datalist: Path, backbone: str, subtasks: tuple[Subtask, ...], name: str, epochs: int | None = None
) -> dict[str, Any]:
    """Pretrain, or read back what was done."""
    folder = work / f"pretrain-{backbone}-{name}"
    file = folder / "result.json"
    if file.is_file():
        done: dict[str, Any] = json.loads(file.read_text())
        return done
    started = time.time()
    recipe = PRETRAINING[backbone] if epochs is None else dataclasses.replace(PRETRAINING[backbone], epochs=epochs)
    command = Pretrain(
        run_settings(folder / "run", 0, ShardedRunSettings), DataSettings(datalist, memory=True), BACKBONES[backbone],
        Distortions(subtasks=subtasks), recipe,
    )  # fmt: skip
    pretrain(command)
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    result = {"backbone": backbone, "subtasks": name, **metrics, "seconds": round(time.time() - started, 1)}
    shutil.rmtree(folder / "run" / "checkpoints", ignore_errors=True)
    write_atomic(file, json.dumps(result))
    return result


def tuned(
    work: Path, name: str, datalist: Path, backbone: str, init: str, seed: int, epochs: int | None = None
) -> dict[str, Any]:
    """Fine-tune and predict, or read back what was done."""
    folder = work / f"{name}-{backbone}-{init}-{seed}"
    file = folder / "result.json"
    if file.is_file():
        done: dict[str, Any] = json.loads(file.read_text())
        return done
    started, run = time.time(), folder / "run"
    recipe = TUNING[name] if epochs is None else dataclasses.replace(TUNING[name], epochs=epochs)
    data = DataSettings(datalist, memory=True)
    origin = None if init == RANDOM else work / f"pretrain-{backbone}-{init}" / "run"
    networks = BACKBONES[backbone] if origin is None else NetworkSettings(BACKBONES[backbone].backbone)
    fine_tune(FineTune(run_settings(run, seed, RunSettings), data, origin, networks, LabelSettings(), recipe))
    trained = time.time() - started
    output = OutputSettings(folder / "scores", overwrite=True)
    predict(Predict(data, output, run, crops=CROPS[name], device="cpu"))
    (row,) = result_rows([read_scored(folder / "scores")])
    metrics = json.loads((run / "metrics.json").read_text())
    result = {
        "backbone": backbone, "init": init, "seed": seed, "auc": row["score"], "auc_of_labels": row["auc"],
        "test_pictures": row["pictures"], "validation_loss": metrics["validation_loss"],
        "validation_auc": metrics.get("validation_auc"), "best_epoch": metrics["best_epoch"], "steps": metrics["steps"],
        "seconds": round(time.time() - started, 1), "training_seconds": round(trained, 1),
    }  # fmt: skip
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    write_atomic(file, json.dumps(result))
    return result


def smoke(data: Path, work: Path, seeds: int, ablation: bool) -> None:
    """An epoch of each; prints how long the whole study takes."""
    work = work / "smoke"
    shutil.rmtree(work, ignore_errors=True)
    lists = {name: datalist_of(data, work, name) for name in SETS}
    total = 0.0
    for backbone, recipe in PRETRAINING.items():
        result = pretrained(work, lists["nih_cxr_1000"], backbone, SUBTASKS, ALL, 1)
        lines = [json.loads(line) for line in (work / f"pretrain-{backbone}-{ALL}/run/metrics.jsonl").open()]
        first, last = lines[0], lines[-2]
        step = (last["time"] - first["time"]) / (last["step"] - first["step"])
        # Reading, measuring and reports come once in twelve epochs.
        epochs, epoch = recipe.epochs or 1, step * result["steps"]
        seconds = epochs * epoch + (result["seconds"] - epoch) * (1 + epochs // recipe.measure_every)
        runs = 1 + (len(ABLATION) if ablation and backbone == "vit" else 0)
        total += seconds * runs
        print(f"{backbone}: {epoch:.1f} s for an epoch of pretraining, {seconds / 60:.1f} min in all", flush=True)
        for name, datalist in lists.items():
            result = tuned(work, name, datalist, backbone, ALL, 0, 2)
            epoch = result["training_seconds"] / 2
            once = epoch * TUNING[name].epochs + result["seconds"] - result["training_seconds"]
            total += once * seeds * (runs + 1)
            print(f"{backbone}, {name}: {once:.0f} s a fine-tuning", flush=True)
    print(f"{seeds} seeds: about {total / 60:.0f} minutes at this load")


def summarise(
    pretrainings: Sequence[dict[str, Any]], found: Mapping[str, Sequence[dict[str, Any]]], seeds: int
) -> dict[str, Any]:
    """The record."""
    by = ("backbone", "init")
    return {
        **origin("popar: pretraining on nih_cxr_1000, fine-tuning on nih_cxr_1000 and pneumoniamnist, two small backbones"),
        "scale": {
            "pixels": SIDE, "backbones": {name: list(of.network) for name, of in BACKBONES.items()},
            "pretraining": {name: dataclasses.asdict(recipe) for name, recipe in PRETRAINING.items()},
            "fine_tuning": {name: dataclasses.asdict(recipe) for name, recipe in TUNING.items()}, "crops": CROPS,
            "pneumoniamnist": {"train": TRAIN, "val": VAL}, "seeds": seeds,
        },
        "metric": "auc: mean ROC-AUC over the labels on test pictures; mean and sample standard deviation over seeds of the "
        "fine-tuning (one pretraining per backbone, one split); t-test: two-sample, equal variances, two-sided",
        "tables": {name: seed_table(rows, by) for name, rows in found.items()},
        "compared_with_random": {name: compare_seeds(rows, RANDOM, ("backbone",), method="init") for name, rows in found.items()},
        "minutes": round(sum(r["seconds"] for rows in (pretrainings, *found.values()) for r in rows) / 60, 1),
        "pretrainings": list(pretrainings),
        "results": dict(found),
    }  # fmt: skip


def main() -> None:
    """Command line."""
    parser = study_options(__doc__, "popar_cxr", "time an epoch of each and estimate the rest")
    parser.add_argument("--ablation", action="store_true", help="also the sub-tasks on the ViT")
    arguments = study_arguments(parser)
    torch.set_num_threads(1)
    data, work = arguments.data_root, arguments.work
    if arguments.smoke:
        smoke(data, work, arguments.seeds, arguments.ablation)
        return
    lists = {name: datalist_of(data, work, name) for name in SETS}
    pretrainings = [pretrained(work, lists["nih_cxr_1000"], backbone, SUBTASKS, ALL) for backbone in BACKBONES]
    inits = [(backbone, init) for backbone in BACKBONES for init in (RANDOM, ALL)]
    if arguments.ablation:
        pretrainings += [
            pretrained(work, lists["nih_cxr_1000"], "vit", tasks, name) for name, tasks in ABLATION.items()
        ]
        inits += [("vit", name) for name in ABLATION]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SETS}
    for seed in range(arguments.seeds):
        for name in SETS:
            for backbone, init in inits:
                found[name].append(tuned(work, name, lists[name], backbone, init, seed))
                print(f"{name}, {backbone}, {init}, seed {seed}: AUC {found[name][-1]['auc']:.4f}", flush=True)
    record = summarise(pretrainings, found, arguments.seeds)
    file = write_record(record, arguments.out, "popar-cxr")
    print("| backbone | initial weights | " + " | ".join(SETS) + " |\n|---|---" + "|---" * len(SETS) + "|")
    for rows in zip(*record["tables"].values(), strict=True):
        cells = " | ".join(f"{row['mean']:.4f} ± {row['std'] or 0:.4f}" for row in rows)
        print(f"| {rows[0]['backbone']} | {rows[0]['init']} | {cells} |")
    print(file)


if __name__ == "__main__":
    main()
