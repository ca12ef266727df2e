"""benchmark-transformers on small real sets: SimMIM pre-training on nih_cxr_1000, fine-tuning there and on pneumoniamnist.

    python benchmarks/reproduce/benchmark_transformers_cxr.py --data-root DATA --work FOLDER [--seeds 3] [--smoke] [--add-to RECORD]

A Swin and a ViT of about two million parameters are pre-trained by SimMIM on the training patients of nih_cxr_1000 (without
labels) and then fine-tuned on its 14 labels, and on 8 % of pneumoniamnist's training pictures (another hospital, children),
against the same networks from random weights. SimMIM's ViT is of BEiT's class: it is compared with the plain ViT, as in the paper,
and with its own class from random weights. As in the paper there is one pre-training for all fine-tunings, whose seeds change
the head, the first weights of the scratch networks, the batches and the views; the split by patients is the same for all. The
learning rate of each backbone, start and task is chosen by the validation loss of the first seed. Every step is a run of
`pretrain`, `fine-tune` and `predict`; results are read back, so that the study resumes between any two trainings (and within
one). Writes a record to benchmarks/results; --add-to runs only the fine-tunings from random weights that a record lacks, and adds
them there with their date. --smoke times a short version of each step and prints an estimate.

Scale (the paper: networks of 86 million parameters at 224 pixels, 100 epochs on 926,028 pictures, 200 of fine-tuning, ten
seeds): see PRETRAINING and FINE_TUNING; nothing was chosen on test pictures.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from study import origin, study_arguments, study_options, write_record

from benchmark_transformers import settings as of
from benchmark_transformers.prediction import predict
from benchmark_transformers.pretraining import pretrain
from benchmark_transformers.training import fine_tune
from dart_core.classification import compare_seeds, seed_table
from dart_core.data.images import write_image
from dart_core.files import write_atomic, write_csv
from dart_core.settings import OutputSettings, ShardedRunSettings

SIZE = 64
NETWORKS: dict[of.BackboneName, of.Network] = {
    "swin_b": of.Network(4, 48, (2, 2, 4), (3, 6, 12), 4),
    "vit_b": of.Network(8, 192, (4,), (3,)),
}
NAMES = {"swin_b": "Swin", "vit_b": "ViT"}
STARTS: dict[of.BackboneName, dict[str, str]] = {
    "swin_b": {"scratch": "scratch-swin-b", "simmim": ""},
    "vit_b": {"scratch": "scratch-vit-b", "scratch-beit": "scratch-beit-b", "simmim": ""},
}
"""What tables call a start -> initialisation; none for the weights of the pre-training."""
PRETRAINING = of.PretrainRecipe(
    epochs=32, batch_size=32, base_lr=8e-3, min_lr=1e-4, warmup_lr=1e-5, warmup=3, cell=16, show_every=8
)
"""base_lr is for a batch of 512; 8e-3 makes 5e-4 of a batch of 32."""
FINE_TUNING = of.FineTuneRecipe(image_size=SIZE, epochs=7, batch_size=32, learning_rate=(1e-2, 1e-1), patience=7)
DROP_PATH: dict[of.BackboneName, float] = {"swin_b": 0.1, "vit_b": 0.0}
"""Stochastic depth of the fine-tuning."""
FRACTION = {"nih": 100.0, "pneumonia": 8.0}
CROPS: dict[str, Any] = {"nih": 10, "pneumonia": 1}
TASKS = ("nih", "pneumonia")
ADDED = ("table", "compared_with_scratch", "minutes", "results")
"""What changes in a record that fine-tunings are added to."""


def nih(data: Path, folder: Path) -> None:
    """The pictures as PNG; patients are dealt to train (70 %), validation (10 %) and test."""
    with np.load(data / "nih_cxr_1000" / "nih_cxr_128.npz") as file:
        images, labels, patients = file["images"], file["labels"], file["patient"]
        names = [str(name) for name in file["label_names"]]
    order = np.random.default_rng(0).permutation(np.unique(patients))
    place = {patient: i / len(order) for i, patient in enumerate(order)}
    rows = []
    for i, (image, patient) in enumerate(zip(images, patients, strict=True)):
        split = "train" if place[patient] < 0.7 else "val" if place[patient] < 0.8 else "test"
        write_image(folder / "images" / f"{i:04d}.png", image)
        rows.append((f"images/{i:04d}.png", patient, split, *labels[i]))
    write_csv(folder / "datalist.csv", ("image", "subject", "split", *names), rows)


def pneumonia(data: Path, folder: Path) -> None:
    """The official split."""
    rows = []
    with np.load(data / "pneumoniamnist" / "pneumoniamnist.npz") as file:
        for split in ("train", "val", "test"):
            for i, (image, label) in enumerate(
                zip(file[f"{split}_images"], file[f"{split}_labels"].ravel(), strict=True)
            ):
                write_image(folder / "images" / f"{split}{i:04d}.png", image)
                rows.append((f"images/{split}{i:04d}.png", split, int(label)))
    write_csv(folder / "datalist.csv", ("image", "split", "Pneumonia"), rows)


def datalist_of(data: Path, work: Path, task: str) -> Path:
    """The datalist of a task, written once."""
    folder = work / f"{task}-pictures"
    if not (folder / "datalist.csv").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        {"nih": nih, "pneumonia": pneumonia}[task](data, folder)
    return folder / "datalist.csv"


def settings(folder: Path, seed: int = 0) -> ShardedRunSettings:
    """Of a run that continues where it was stopped."""
    return ShardedRunSettings(
        folder, seed=seed, device="cpu", resume=(folder / "config.yaml").is_file(), checkpoint_every=200
    )


def pretrained(work: Path, datalist: Path, backbone: of.BackboneName, recipe: of.PretrainRecipe) -> dict[str, Any]:
    """Pre-train, or read back what was done."""
    folder = work / f"pretrain-{NAMES[backbone]}"
    file = folder / "result.json"
    if file.is_file():
        done: dict[str, Any] = json.loads(file.read_text())
        return done
    started, worked = time.time(), time.process_time()
    pretrain(
        of.Pretrain(settings(folder / "run"), (datalist,), backbone, SIZE, network=NETWORKS[backbone], recipe=recipe)
    )
    found = json.loads((folder / "run" / "metrics.json").read_text())
    result = {
        "backbone": NAMES[backbone], **found, "seconds": round(time.time() - started, 1),
        "cpu_seconds": round(time.process_time() - worked, 1),
    }  # fmt: skip
    shutil.rmtree(folder / "run" / "checkpoints", ignore_errors=True)
    write_atomic(file, json.dumps(result))
    return result


def tuned(
    work: Path, task: str, datalist: Path, backbone: of.BackboneName, start: str, seeds: int, recipe: of.FineTuneRecipe
) -> dict[str, Any]:
    """Fine-tune with all seeds and predict, or read back what was done."""
    folder = work / f"{task}-{NAMES[backbone]}-{start}"
    file = folder / "result.json"
    if file.is_file():
        done: dict[str, Any] = json.loads(file.read_text())
        return done
    started, worked, run, data = time.time(), time.process_time(), folder / "run", of.DataSettings(datalist)
    weights = work / f"pretrain-{NAMES[backbone]}" / "run" if start == "simmim" else None
    recipe = dataclasses.replace(recipe, fraction=FRACTION[task], drop_path=DROP_PATH[backbone])
    network = NETWORKS[backbone] if weights is None else of.Network()
    key = STARTS[backbone][start]
    fine_tune(of.FineTune(settings(run), data, key, weights, name=start, trials=seeds, network=network, recipe=recipe))
    trained = time.process_time()
    scores = OutputSettings(folder / "scores", overwrite=True)
    predict(of.Predict(data, scores, run, crops=CROPS[task], device="cpu"))
    chosen = json.loads((run / "metrics.json").read_text())
    rows = json.loads((scores.out / "metrics.json").read_text())["results"]
    result = {
        "task": task, "method": f"{NAMES[backbone]} {start}", "date": datetime.date.today().isoformat(), "learning_rate": chosen["learning_rate"],
        "validation_loss_of_rates": chosen["validation_loss_of_rates"], "seconds": round(time.time() - started, 1),
        "cpu_seconds": round(time.process_time() - worked, 1), "test_cpu_seconds": round(time.process_time() - trained, 1),
        "results": [{"seed": row["seed"], "auc": row["value"], "defined": row["defined"], "of": row["auc"]} for row in rows],
    }  # fmt: skip
    for checkpoints in run.glob("trial-*/checkpoints"):
        shutil.rmtree(checkpoints, ignore_errors=True)
    write_atomic(file, json.dumps(result))
    return result


def smoke(data: Path, work: Path, seeds: int) -> None:
    """One epoch of each pre-training and one of each fine-tuning; prints how long the whole study may take at most."""
    work, total = work / "smoke", 0.0
    shutil.rmtree(work, ignore_errors=True)
    short = dataclasses.replace(PRETRAINING, epochs=1, warmup=0)
    tuning = dataclasses.replace(FINE_TUNING, epochs=1, learning_rate=(1e-2,))
    lists = {task: datalist_of(data, work, task) for task in TASKS}
    for backbone in NETWORKS:
        most = pretrained(work, lists["nih"], backbone, short)["cpu_seconds"] * PRETRAINING.epochs
        total += most
        print(f"pre-training {NAMES[backbone]}: at most {most:.0f} s of one core", flush=True)
    trainings = seeds + len(FINE_TUNING.learning_rate) - 1
    for task in TASKS:
        for backbone in NETWORKS:
            for start in STARTS[backbone]:
                found = tuned(work, task, lists[task], backbone, start, 1, tuning)
                epoch = found["cpu_seconds"] - found["test_cpu_seconds"]
                most = epoch * FINE_TUNING.epochs * trainings + found["test_cpu_seconds"] * seeds
                total += most
                print(
                    f"{task}, {found['method']}: {epoch:.1f} s for 1 epoch, {found['test_cpu_seconds']:.1f} s for the test, "
                    f"at most {most:.0f} s of one core",
                    flush=True,
                )
    print(f"{seeds} seeds: at most {total / 60:.0f} minutes of one core")


def summarise(before: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]], seeds: int) -> dict[str, Any]:
    """The record."""
    rows = [
        {"task": one["task"], "method": one["method"], **row}
        for one in found for row in one["results"]
    ]  # fmt: skip
    compared = [
        line
        for backbone, name in NAMES.items()
        for start in STARTS[backbone]
        if start != "simmim"
        for line in compare_seeds(
            [row for row in rows if row["method"] in (f"{name} {start}", f"{name} simmim")],
            f"{name} {start}",
            ("task",),
        )
    ]
    return {
        **origin("benchmark-transformers: SimMIM on nih_cxr_1000, fine-tuning on nih_cxr_1000 and 8 % of pneumoniamnist"),
        "scale": {
            "pixels": SIZE, "seeds": seeds, "networks": {NAMES[k]: dataclasses.asdict(v) for k, v in NETWORKS.items()},
            "pretraining": dataclasses.asdict(PRETRAINING),
            "fine_tuning": {**dataclasses.asdict(FINE_TUNING), "drop_path": {NAMES[k]: v for k, v in DROP_PATH.items()}},
            "percent_of_training_pictures": FRACTION, "crops": CROPS,
        },
        "metric": "auc: test ROC-AUC, of nih the mean over its labels with both classes; mean and sample standard deviation over "
        "seeds of the fine-tuning; one pre-training for all seeds, one split",
        "table": seed_table(rows, ("task", "method")),
        "compared_with_scratch": compared,
        "minutes": round(sum(one["cpu_seconds"] for one in (*before, *found)) / 60, 1),
        "pretrainings": list(before),
        "results": list(found),
    }  # fmt: skip


def main() -> None:
    """Command line."""
    parser = study_options(
        __doc__, "benchmark_transformers_cxr", "time a short version of each step and estimate the rest"
    )
    parser.add_argument("--add-to", type=Path, help="run only what this record lacks, and add it there")
    arguments = study_arguments(parser)
    torch.set_num_threads(1)
    data, work = arguments.data_root, arguments.work
    if arguments.smoke:
        smoke(data, work, arguments.seeds)
        return
    lists = {task: datalist_of(data, work, task) for task in TASKS}
    known: dict[str, Any] = {} if arguments.add_to is None else json.loads(arguments.add_to.read_text())
    done = {(one["task"], one["method"]): one for one in known.get("results", ())}
    before = known.get("pretrainings") or [
        pretrained(work, lists["nih"], backbone, PRETRAINING) for backbone in NETWORKS
    ]
    found = []
    for task in TASKS:
        for backbone in NETWORKS:
            for start in STARTS[backbone]:
                one = done.get((task, f"{NAMES[backbone]} {start}"))
                if one is not None:
                    found.append(one)
                    continue
                found.append(tuned(work, task, lists[task], backbone, start, arguments.seeds, FINE_TUNING))
                values = [row["auc"] for row in found[-1]["results"]]
                print(
                    f"{task}, {found[-1]['method']}: {np.mean(values):.4f} ({', '.join(f'{v:.4f}' for v in values)})",
                    flush=True,
                )
    # What a record says of its machine and recipe stays.
    record = {**(new := summarise(before, found, arguments.seeds)), **known} | {name: new[name] for name in ADDED}
    file = arguments.add_to
    if file is None:
        file = write_record(record, arguments.out, "benchmark-transformers-cxr")
    else:
        write_atomic(file, json.dumps(record, indent=1) + "\n")
    print("| task | method | AUC |\n|---|---|---|")
    for row in record["table"]:
        print(f"| {row['task']} | {row['method']} | {row['mean']:.4f} ± {row['std'] or 0:.4f} |")
    print(file)


if __name__ == "__main__":
    main()
