"""united-ssl on small real volumes: pretraining in steps, then transfer to classification and tissue segmentation.

    python benchmarks/reproduce/united_ssl_cubes.py --data-root DATA --work FOLDER [--seeds 3] [--pretexts rotation] [--smoke]

Unlabelled cubes of 32 voxels from oasis30_2mm (brains), hippocampus_msd and adrenalmnist3d (at half resolution) pretrain a narrow
U-Net by rotation (further pretext tasks with --pretexts) step by step: D, then (D)+R, then ((D)+R)+A. Each of the three networks is
fine-tuned on few labels and compared with training from random weights: adrenalmnist3d (normal or mass, encoder transferred,
AUC on the official test set) and six brain tissues of oasis30_2mm (encoder and decoder, or encoder alone; pooled IoU, mean over
tissues, of subjects that neither pretraining nor fine-tuning has seen). A seed draws the subjects, the labels, first weights
and batches. Every training is a run of `united-ssl`; results are read back, so that the study resumes between any two trainings
(and within one). Writes a record to benchmarks/results. --smoke times one short training of each kind and prints an estimate.

Scale (the paper: cubes of 64 voxels of 623 CTs, width 32, up to 10,000 epochs): see PRETRAINING and TUNING; nothing was chosen on
test cubes.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from study import origin, study_arguments, study_options, write_record

from dart_core.classification import binary_scores, compare_seeds, read_predictions, seed_table
from dart_core.data.volumes import read_labels, read_volume, scale_percentile
from dart_core.files import write_atomic
from dart_core.settings import OutputSettings, RunSettings
from united_ssl.commands import pretrain
from united_ssl.cubes import CubeRow, write_cubes, write_index
from united_ssl.prediction import predict
from united_ssl.settings import Adversary, FineTune, Network, Predict, Pretext, PretextName, Pretrain, Training
from united_ssl.tuning import fine_tune_command

SIDE = 32
PRETEXTS: tuple[PretextName, ...] = ("rotation",)
STEPS = ("D", "DR", "DRA")
TARGETS = ("adrenal", "tissue")
WIDTH = 4
MOMENTUM = 0.1
"""Of batch normalisation: the authors' 0.01 needs more steps than these trainings have."""
PRETRAINING = Training(
    batch_size=8, max_epochs=6, epoch_batches=30, patience=0, learning_rate=1e-3, halve_every=0, log_every=10, show_every=0
)  # fmt: skip
ADVERSARY = Adversary(critic_steps=2)
ORDERS = 100
"""Orders of the blocks in jigsaw."""
TUNING: dict[str, dict[str, Any]] = {
    "adrenal": {"max_epochs": 10, "patience": 0, "plateau": 4, "learning_rate": 1e-3, "batch_size": 16},
    "tissue": {"max_epochs": 10, "patience": 0, "plateau": 4, "learning_rate": 2e-3, "batch_size": 8},
}
ADRENAL_LABELS, ADRENAL_UNLABELLED = 160, 160
BRAINS = {"pretrain": 16, "tune": 4, "val": 3}
"""Subjects of oasis30_2mm: pretraining sees those of `pretrain`, of which fine-tuning has the labels of `tune`; the rest is test."""
TISSUES = 6


def places(shape: Sequence[int]) -> list[tuple[slice, slice, slice]]:
    """Cubes that cover the middle of a volume without overlap."""
    counts = [side // SIDE for side in shape]
    starts = [(side - count * SIDE) // 2 for side, count in zip(shape, counts, strict=True)]
    return [
        tuple(slice(start + i * SIDE, start + (i + 1) * SIDE) for start, i in zip(starts, index, strict=True))  # type: ignore[misc]
        for index in np.ndindex(*counts)
    ]


def crop(volume: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """A random cube; a volume that is too small is padded with its lowest value."""
    volume = np.pad(volume, [(0, max(0, SIDE - side)) for side in volume.shape], constant_values=volume.min())
    corner = [int(rng.integers(side - SIDE + 1)) for side in volume.shape]
    return volume[tuple(slice(c, c + SIDE) for c in corner)]


def brains(data: Path) -> list[tuple[NDArray[np.float32], NDArray[np.int16]]]:
    """Images in [0, 1] and tissue labels of all subjects."""
    found = []
    for image in sorted((data / "oasis30_2mm" / "images").glob("*.nii.gz")):
        volume = read_volume(image)
        labels = read_labels(data / "oasis30_2mm" / "labels" / image.name, volume)
        found.append(((volume.array / 255).clip(0, 1).astype(np.float32), labels))
    return found


def adrenals(data: Path, split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Masks at half resolution, as grey values in [0, 1], and labels."""
    with np.load(data / "adrenalmnist3d" / "adrenalmnist3d_64.npz") as file:
        images, labels = file[f"{split}_images"], file[f"{split}_labels"].ravel()
    small = images.reshape(len(images), SIDE, 2, SIDE, 2, SIDE, 2).mean((2, 4, 6)) / 255
    return small.astype(np.float32), labels.astype(np.int64)


def write(folder: Path, parts: Mapping[str, Sequence[tuple[NDArray[Any], NDArray[Any] | None, str]]]) -> None:
    """A folder of cubes: split -> (cube, mask or None, label)."""
    rows = []
    for split, cubes in parts.items():
        masks = None if cubes[0][1] is None else np.stack([mask for _, mask, _ in cubes if mask is not None])
        write_cubes(folder / f"{split}.npy", np.stack([cube for cube, _, _ in cubes]), masks)
        rows += [CubeRow(folder / f"{split}.npy", i, split, label=label) for i, (_, _, label) in enumerate(cubes)]
    write_index(folder, rows)


def make_cubes(data: Path, folder: Path, seed: int) -> None:
    """Folders pretrain, adrenal and tissue of a seed; nothing where they are."""
    if (folder / "done").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    rng = np.random.default_rng(seed)
    volumes = brains(data)
    order = rng.permutation(len(volumes))
    ends = np.cumsum([BRAINS["pretrain"], BRAINS["val"]])
    groups = {"train": order[: ends[0]], "val": order[ends[0] : ends[1]], "test": order[ends[1] :]}
    tissue: dict[str, list[tuple[NDArray[Any], NDArray[Any] | None, str]]] = {}
    for split, subjects in groups.items():
        tissue[split] = []
        for i in subjects[: BRAINS["tune"]] if split == "train" else subjects:
            image, labels = volumes[i]
            tissue[split] += [(image[place], labels[place], "") for place in places(image.shape)]
    write(folder / "tissue", tissue)

    images, labels = adrenals(data, "train")
    chosen = rng.permutation(len(images))
    known = chosen[:ADRENAL_LABELS]
    classified = {"train": [(images[i], None, str(labels[i])) for i in known]}
    for split in ("val", "test"):
        others, truth = adrenals(data, split)
        classified[split] = [(cube, None, str(label)) for cube, label in zip(others, truth, strict=True)]
    write(folder / "adrenal", classified)

    unlabelled: dict[str, list[tuple[NDArray[Any], NDArray[Any] | None, str]]] = {"train": [], "val": []}
    for split, each in (("train", 8), ("val", 6)):
        for i in groups[split]:
            unlabelled[split] += [(crop(volumes[i][0], rng), None, "") for _ in range(each)]
    for number, file in enumerate(sorted((data / "hippocampus_msd" / "images").glob("*.nii.gz"))):
        cube = crop(scale_percentile(read_volume(file).array), rng)
        unlabelled["val" if number % 8 == 0 else "train"].append((cube, None, ""))
    unlabelled["train"] += [(images[i], None, "") for i in chosen[:ADRENAL_UNLABELLED]]
    unlabelled["val"] += [(images[i], None, "") for i in chosen[ADRENAL_UNLABELLED : ADRENAL_UNLABELLED + 20]]
    write(folder / "pretrain", unlabelled)
    write_atomic(folder / "done", "")


def settings_of(out: Path, seed: int) -> RunSettings:
    """A run on one CPU thread that continues where it was stopped."""
    return RunSettings(
        out, seed=seed, device="cpu", channels_last=True, resume=(out / "config.yaml").is_file(), checkpoint_every=200
    )  # fmt: skip


def pretrained(work: Path, cubes: Path, pretext: PretextName, seed: int, training: Training) -> dict[str, Path]:
    """Runs of the three steps, one inside the other's folder; each is trained once."""
    out = work / f"pretrain-{pretext}-{seed}"
    if not (out / "model.safetensors").is_file():
        started = time.time()
        pretrain(
            Pretrain(
                settings_of(out, seed), cubes, "DRA", pretext=Pretext(pretext, permutations=ORDERS),
                network=Network(width=WIDTH, norm_momentum=MOMENTUM), training=training, adversary=ADVERSARY,
            )
        )  # fmt: skip
        write_atomic(out / "seconds.json", json.dumps(round(time.time() - started, 1)))
        for folder in out.rglob("checkpoints"):
            shutil.rmtree(folder, ignore_errors=True)
    return {"D": out / "step-D", "DR": out / "step-DR", "DRA": out}


def tuned(
    work: Path,
    cubes: Path,
    target: str,
    name: str,
    init: Path | None,
    transfer: str,
    seed: int,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Fine-tune and test, or read back what was done."""
    folder = work / f"{target}-{name.replace(' ', '-')}-{seed}"
    file = folder / "result.json"
    if file.is_file():
        done: dict[str, Any] = json.loads(file.read_text())
        return done
    started, run = time.time(), folder / "run"
    fine_tune_command(
        FineTune(
            settings_of(run, seed), cubes / target, init,
            transfer="encoder" if transfer == "encoder" else "encoder-decoder", name=name,
            width=WIDTH if init is None else None, norm_momentum=MOMENTUM, **options,
        )
    )  # fmt: skip
    predict(Predict(OutputSettings(folder / "test", overwrite=True), cubes / target, run, device="cpu"))
    metrics = json.loads((run / "metrics.json").read_text())
    result: dict[str, Any] = {"method": name, "seed": seed, "best_epoch": metrics["best_epoch"]}
    if target == "adrenal":
        found = read_predictions(folder / "test", "united-ssl")
        logits = np.array(found.column("logit"), dtype=float)
        result["score"] = binary_scores(found.labels, logits, 0.0)["auc"]
    else:
        rows = json.loads((folder / "test" / "metrics.json").read_text())["iou"]
        result["score"] = rows[-1]["pooled"]
        result["per_tissue"] = [row["pooled"] for row in rows[:TISSUES]]
        result["per_case"] = rows[-1]["per_case"]
    result["seconds"] = round(time.time() - started, 1)
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    write_atomic(file, json.dumps(result))
    return result


def jobs(networks: Mapping[PretextName, Mapping[str, Path]]) -> list[tuple[str, str, Path | None, str]]:
    """(target, name, network, transfer) of all fine-tunings of a seed."""
    found: list[tuple[str, str, Path | None, str]] = [(target, "random", None, "encoder") for target in TARGETS]
    for pretext, steps in networks.items():
        for step in STEPS:
            found.append(("adrenal", f"{pretext} {step}", steps[step], "encoder"))
            found.append(("tissue", f"{pretext} {step} encoder", steps[step], "encoder"))
            if step != "D":
                found.append(("tissue", f"{pretext} {step} encoder+decoder", steps[step], "encoder-decoder"))
    return found


def smoke(data: Path, work: Path, seeds: int, pretexts: Sequence[PretextName]) -> None:
    """One epoch of everything; prints how long the whole study may take."""
    folder = work / "smoke"
    shutil.rmtree(folder, ignore_errors=True)
    make_cubes(data, folder / "cubes", 0)
    total = 0.0
    short = dataclasses.replace(PRETRAINING, max_epochs=1)
    networks: dict[PretextName, Mapping[str, Path]] = {}
    for pretext in pretexts:
        started = time.process_time()  # the estimate is for a core that nobody else uses
        networks[pretext] = pretrained(folder, folder / "cubes" / "pretrain", pretext, 0, short)
        seconds = time.process_time() - started
        total += seconds * PRETRAINING.max_epochs
        print(f"{pretext}: {seconds:.1f} s for one epoch of each step", flush=True)
    each: dict[str, float] = {}
    for target, name, init, transfer in jobs(networks):
        if name == "random":
            options = {**TUNING[target], "max_epochs": 1}
            started = time.process_time()
            result = tuned(folder, folder / "cubes", target, name, init, transfer, 0, options)
            each[target] = time.process_time() - started
            print(f"{target}, {name}: {each[target]:.1f} s for one epoch, score {result['score']:.3f}", flush=True)
    for target, *_ in jobs(networks):
        total += each[target] * TUNING[target]["max_epochs"] * 0.8  # testing is not done every epoch
    print(f"{seeds} seeds: about {seeds * total / 60:.0f} minutes at most")


def summarise(found: Mapping[str, Sequence[dict[str, Any]]], minutes: float, seeds: int) -> dict[str, Any]:
    """The record."""
    return {
        **origin("united-ssl: pretraining in steps on cubes of 32 voxels, transfer to adrenalmnist3d and tissues of oasis30_2mm"),
        "scale": {
            "side": SIDE, "width": WIDTH,
            "norm_momentum": MOMENTUM, "pretraining": dataclasses.asdict(PRETRAINING),
            "adversary": dataclasses.asdict(ADVERSARY), "orders": ORDERS, "tuning": TUNING, "adrenal_labels": ADRENAL_LABELS,
            "brains": BRAINS, "seeds": seeds,
        },
        "metric": "adrenal: ROC-AUC on the official test set. tissue: pooled IoU, mean over six tissues. Mean and sample "
        "standard deviation over seeds, which draw subjects, labels, first weights and batches",
        "tables": {target: seed_table(rows, ("method",), "score") for target, rows in found.items()},
        "compared_with_random": {target: compare_seeds(rows, "random", (), "score") for target, rows in found.items()},
        "minutes": round(minutes, 1),
        "results": dict(found),
    }  # fmt: skip


def main() -> None:
    """Command line."""
    parser = study_options(__doc__, "united_ssl_cubes", "time one epoch of everything and estimate the rest")
    parser.add_argument(
        "--pretexts", nargs="+", choices=("rotation", "jigsaw", "rubik", "deep-clustering"), default=PRETEXTS
    )
    arguments = study_arguments(parser)
    torch.set_num_threads(1)
    data, work = arguments.data_root, arguments.work
    if arguments.smoke:
        smoke(data, work, arguments.seeds, arguments.pretexts)
        return
    found: dict[str, list[dict[str, Any]]] = {target: [] for target in TARGETS}
    seconds = 0.0
    for seed in range(arguments.seeds):
        cubes = work / f"cubes-{seed}"
        make_cubes(data, cubes, seed)
        networks: dict[PretextName, Mapping[str, Path]] = {}
        for pretext in arguments.pretexts:
            networks[pretext] = pretrained(work, cubes / "pretrain", pretext, seed, PRETRAINING)
            timed = work / f"pretrain-{pretext}-{seed}" / "seconds.json"
            seconds += json.loads(timed.read_text()) if timed.is_file() else 0.0
        for target, name, init, transfer in jobs(networks):
            result = tuned(work, cubes, target, name, init, transfer, seed, TUNING[target])
            found[target].append(result)
            print(f"seed {seed}, {target}, {name}: {result['score']:.4f}", flush=True)
    seconds += sum(row["seconds"] for rows in found.values() for row in rows)
    record = summarise(found, seconds / 60, arguments.seeds)
    file = write_record(record, arguments.out, "united-ssl-cubes")
    for target, rows in record["tables"].items():
        print(f"| {target} | mean | std |\n|---|---|---|")
        for row in rows:
            spread = "" if row["std"] is None else f"{row['std']:.4f}"
            print(f"| {row['method']} | {row['mean']:.4f} | {spread} |")
        print()
    print(file)


if __name__ == "__main__":
    main()
