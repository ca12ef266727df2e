"""metamedseg on real slices: meta-training on some organs, few-shot fine-tuning on others, against the baselines.

    python benchmarks/reproduce/metamedseg_organs.py --data-root DATA --work FOLDER [--seeds 3] [--smoke]

Sources are six data sets of organ_slices_mini (kidney, liver, lung tumour, multiple sclerosis, pancreas in T1 and T2); targets are
its spleen and left atrium, and both parts of the hippocampus (hippocampus_msd, 40 volumes). Each seed draws a split by patient, first
weights, tasks and batches; each fine-tuning is done for three selections of four training slices and tested on the same slices.
Every training is a run of `metamedseg`; results are read back, so that the study resumes between any two trainings (and within
one). Writes a record to benchmarks/results. --smoke times one short training of each kind and prints an estimate.

Scale (the paper: 20 sources of hundreds of volumes, 256 pixels, width 32, 100 meta-epochs): see below; nothing was chosen on test
slices. A larger meta learning rate makes up for fewer meta-epochs.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from study import origin, study_arguments, study_options, write_record

from dart_core.classification import compare_seeds, seed_table
from dart_core.files import write_atomic
from dart_core.settings import OutputSettings, RunSettings
from metamedseg.commands import meta_train_command
from metamedseg.datasets import SliceSet, draw_split, read_slices, write_index
from metamedseg.preparing import prepare
from metamedseg.settings import (
    FineTune,
    Inner,
    Meta,
    MetaRunSettings,
    MetaTrain,
    Network,
    Prepare,
    Slicing,
    Tasks,
    Transfer,
)
from metamedseg.tuning import fine_tune_command

SIZE, VOLUMES = 64, 40
NETWORK = Network(width=16)
TARGETS = ("spleen", "heart_LA", "hippocampus_anterior", "hippocampus_posterior")
INNER = Inner(inner_epochs=5, inner_lr=0.005)
META = Meta(meta_epochs=30, meta_lr=0.2, validation_slices=0)
SHOTS, TASKS_PER_EPOCH = 10, 4
TUNE_SHOTS, TUNE_EPOCHS, SELECTIONS = 4, 20, (1, 6, 25)
"""Four shots: the left atrium has five training slices."""
DAWOUD_INNER = Inner(inner_epochs=10, inner_lr=0.001, weight_decay=5e-4, factor=1.0)
METHODS: dict[str, dict[str, Any]] = {
    "supervised": {},
    "transfer": {"method": "transfer", "transfer": Transfer(epochs=10)},
    "Dawoud vol": {
        "method": "dawoud", "inner": DAWOUD_INNER, "meta": dataclasses.replace(META, meta_epochs=12, meta_lr=1.0),
        "definition": Tasks(shots=SHOTS),
    },
    **{
        f"{name}{' vol' if tasks == 'volumetric' else ''}": {
            "definition": Tasks(tasks, SHOTS, TASKS_PER_EPOCH),
            "meta": dataclasses.replace(META, weighting=weighting, distance_to=distance),
        }
        for name, weighting, distance in (
            ("AW", "average", "meta"),
            ("IDW", "inverse_distance", "meta"),
            ("IDW to others", "inverse_distance", "leave_one_out"),
            ("complement", "complement", "meta"),
        )
        for tasks in ("standard", "volumetric")
        if tasks == "volumetric" or name in ("AW", "IDW")
    },
}  # fmt: skip


def make_slices(data: Path, work: Path) -> Path:
    """All data sets as slices, once."""
    folder = work / "slices"
    if (folder / "slices.csv").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    task = work / "msd" / "Task04_Hippocampus"
    files = sorted((data / "hippocampus_msd" / "images").glob("*.nii.gz"))[:VOLUMES]
    content = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": [
            {"image": str(file.resolve()), "label": str((data / "hippocampus_msd/labels" / file.name).resolve())}
            for file in files
        ],
    }
    write_atomic(task / "dataset.json", json.dumps(content))
    parts = []
    for name, source in (("organs", data / "organ_slices_mini"), ("hippocampus", task)):
        part = work / f"slices-{name}"
        prepare(Prepare(OutputSettings(part, overwrite=part.exists()), source, Slicing(SIZE)))
        parts += list(read_slices(part).values())
    folder.mkdir(parents=True)
    for one in parts:
        shutil.copytree(one.folder, folder / one.name)
    write_index(folder, parts)
    return folder


def split_slices(slices: Path, work: Path, seed: int) -> Path:
    """The same slices with the split of a seed."""
    folder = work / f"slices-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    sets = []
    for name, one in read_slices(slices).items():
        if not (folder / name).exists():
            (folder / name).symlink_to((slices / name).resolve())
        split_of = draw_split(list(one.volumes()), seed + 6)
        rows = tuple(dataclasses.replace(row, split=split_of[row.volume]) for row in one.rows)
        sets.append(SliceSet(name, one.organ, rows, folder / name))
    write_index(folder, sets)
    return folder


def settings_of(kind: type[RunSettings], out: Path, seed: int, every: int) -> Any:
    """A run on one CPU thread that continues where it was stopped."""
    return kind(
        out, seed=seed, device="cpu", resume=(out / "config.yaml").is_file(), checkpoint_every=every
    )  # fmt: skip


def initialised(work: Path, slices: Path, name: str, options: Mapping[str, Any], seed: int) -> Path | None:
    """The initialisation of a method, made once."""
    if name == "supervised":
        return None
    out = work / f"init-{name.replace(' ', '-')}-{seed}"
    if not (out / "model.safetensors").is_file():
        started = time.time()
        every = 200 if name == "transfer" else 20
        command = {"network": NETWORK, **({} if name == "transfer" else {"inner": INNER}), **options}
        meta_train_command(
            MetaTrain(settings_of(MetaRunSettings, out, seed, every), slices, exclude=TARGETS, **command)
        )
        write_atomic(out / "seconds.json", json.dumps(round(time.time() - started, 1)))
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return out


def tuned(
    work: Path, slices: Path, target: str, name: str, init: Path | None, seed: int, epochs: int
) -> dict[str, Any]:
    """Fine-tune and test, or read back what was done."""
    out = work / f"tuned-{target}-{name.replace(' ', '-')}-{seed}"
    file = out / "result.json"
    if file.is_file():
        done: dict[str, Any] = json.loads(file.read_text())
        return done
    started = time.time()
    fine_tune_command(
        FineTune(
            settings_of(RunSettings, out, seed, 100_000), slices, target, init, shots=TUNE_SHOTS, selections=SELECTIONS,
            epochs=epochs, name=name, network=NETWORK,
        )
    )  # fmt: skip
    content = json.loads((out / "metrics.json").read_text())
    result = {
        "method": name, "seed": seed, "score": 100 * content["mean"], "volume_score": 100 * content["volume_mean"],
        "selections": content["selections"], "test_slices": content["test_slices"],
        "test_volumes": content["test_volumes"], "seconds": round(time.time() - started, 1),
    }  # fmt: skip
    for folder in out.rglob("checkpoints"):
        shutil.rmtree(folder, ignore_errors=True)
    write_atomic(file, json.dumps(result))
    return result


def smoke(data: Path, work: Path, seeds: int) -> None:
    """One meta-epoch of each method and one fine-tuning; prints how long the whole study may take."""
    folder = work / "smoke"
    shutil.rmtree(folder, ignore_errors=True)
    slices = split_slices(make_slices(data, folder), folder, 0)
    total = 0.0
    for name, options in METHODS.items():
        started = time.process_time()  # the estimate is for a core that nobody else uses
        short = dict(options)
        factor = 1.0
        if "transfer" in short:
            factor, short["transfer"] = short["transfer"].epochs, Transfer(epochs=1)
        elif "meta" in short:
            factor = short["meta"].meta_epochs / 2
            short["meta"] = dataclasses.replace(short["meta"], meta_epochs=2)
        initialised(folder, slices, name, short, 0)
        seconds = time.process_time() - started
        total += seconds * factor
        print(f"{name}: {seconds:.1f} s, times {factor:g}", flush=True)
    for target in TARGETS:
        started = time.process_time()
        result = tuned(folder, slices, target, "supervised", None, 0, TUNE_EPOCHS)
        seconds = time.process_time() - started
        total += seconds * len(METHODS)
        print(f"{target}: {seconds:.1f} s for three selections, IoU {result['score']:.1f} %", flush=True)
    print(f"{seeds} seeds: about {seeds * total / 60:.0f} minutes at most")


def summarise(found: Mapping[str, list[dict[str, Any]]], minutes: float, seeds: int) -> dict[str, Any]:
    """The record."""
    return {
        **origin("metamedseg: six sources of organ_slices_mini, four shots of spleen, left atrium and hippocampus"),
        "scale": {
            "size": SIZE, "hippocampus_volumes": VOLUMES, "network": dataclasses.asdict(NETWORK),
            "inner": dataclasses.asdict(INNER), "meta": dataclasses.asdict(META), "task_shots": SHOTS,
            "tasks_per_epoch": TASKS_PER_EPOCH, "shots": TUNE_SHOTS, "epochs": TUNE_EPOCHS, "selections": SELECTIONS,
            "dawoud_inner": dataclasses.asdict(DAWOUD_INNER), "seeds": seeds,
        },
        "metric": "IoU of test slices in per cent, mean over three selections of four training slices; mean and sample standard "
        "deviation over seeds, which draw the split by patient, first weights, tasks and batches",
        "tables": {target: seed_table(rows, ("method",), "score") for target, rows in found.items()},
        "compared_with_supervised": {t: compare_seeds(rows, "supervised", (), "score") for t, rows in found.items()},
        "minutes": round(minutes, 1),
        "results": dict(found),
    }  # fmt: skip


def main() -> None:
    """Command line."""
    arguments = study_arguments(
        study_options(__doc__, "metamedseg_organs", "time a little of everything and estimate the rest")
    )
    torch.set_num_threads(1)
    data, work = arguments.data_root, arguments.work
    if arguments.smoke:
        smoke(data, work, arguments.seeds)
        return
    everything = make_slices(data, work)
    found: dict[str, list[dict[str, Any]]] = {target: [] for target in TARGETS}
    seconds = 0.0
    for seed in range(arguments.seeds):
        slices = split_slices(everything, work, seed)
        for name, options in METHODS.items():
            init = initialised(work, slices, name, options, seed)
            if init is not None and (init / "seconds.json").is_file():
                seconds += json.loads((init / "seconds.json").read_text())
            for target in TARGETS:
                result = tuned(work, slices, target, name, init, seed, TUNE_EPOCHS)
                found[target].append(result)
                seconds += result["seconds"]
                print(f"seed {seed}, {target}, {name}: {result['score']:.2f} %", flush=True)
    record = summarise(found, seconds / 60, arguments.seeds)
    file = write_record(record, arguments.out, "metamedseg-organs")
    for target, rows in record["tables"].items():
        print(f"| {target} | mean | std |\n|---|---|---|")
        for row in rows:
            spread = "" if row["std"] is None else f"{row['std']:.2f}"
            print(f"| {row['method']} | {row['mean']:.2f} | {spread} |")
        print()
    print(file)


if __name__ == "__main__":
    main()
