"""stain-aglr on small real sets: camelyon_mini (tumour / normal patches) and monuseg_sites (patches rich / poor in nuclei).

    python benchmarks/reproduce/stain_aglr_patches.py --data-root DATA --work FOLDER [--seeds 3] [--smoke]

camelyon_mini: 32 fields of unknown centres, split by field; patches of 64 pixels, tumour where more than half of the patch is,
normal where nothing is. It shows what the methods do without a change of laboratory. monuseg_sites: fields of 32 hospitals;
half of the hospitals with most fields train and validate, the others are never seen; a patch is rich where its share of nuclei
is in the upper third of all training patches, poor in the lower third, the middle third is left out. Training patches overlap by
half, so that an epoch has enough steps; validation and test patches do not overlap. Every method and seed is a
run of `stain-aglr train` and `predict`; results are read back, so that the study resumes between any two trainings (and within
one). Writes a record to benchmarks/results. --smoke times one short training of each method and prints an estimate.

Scale (the paper: width 32, patches of 256, Adam at 1e-2 until plateaus end it): see TRAINING; nothing was chosen on test
patches.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from study import origin, study_arguments, study_options, write_record

from dart_core.classification import binary_scores, compare_seeds, seed_table
from dart_core.data.images import read_image, write_image
from dart_core.files import write_atomic, write_csv
from dart_core.settings import OutputSettings, RunSettings
from stain_aglr.commands import train
from stain_aglr.evaluation import auc_rows, read_scored
from stain_aglr.prediction import predict
from stain_aglr.settings import Method, PatchSettings, Predict, Train, Training
from stain_aglr.tables import mean_and_spread

SIDE, STRIDE = 64, 32
METHODS: tuple[Method, ...] = ("vanilla", "hed", "hed-reg", "hed-cons", "stain-aglr")
TRAINING = Training(width=8, batch_size=32, learning_rate=3e-3, patience=5, stop_lr=3e-5, max_epochs=30, log_every=10)
SETS = ("camelyon_mini", "monuseg_sites")
HOME, UNSEEN = "home", "unseen"
TUMOUR = 0.5
COLUMNS = ("image", "subject", "site", "split", "label")


def tiles(image: np.ndarray, mask: np.ndarray, stride: int) -> list[tuple[np.ndarray, float]]:
    """The patches of a field, with the mask's share in each."""
    rows, columns = (range(0, side - SIDE + 1, stride) for side in image.shape[:2])
    places = [(row, column) for row in rows for column in columns]
    return [(image[r : r + SIDE, c : c + SIDE], float(mask[r : r + SIDE, c : c + SIDE].mean())) for r, c in places]


def write_list(folder: Path, rows: Sequence[tuple[np.ndarray, str, str, str, int]]) -> Path:
    """Patches as PNG and their datalist."""
    lines = []
    for number, (patch, *rest) in enumerate(rows):
        write_image(folder / "images" / f"{number:05d}.png", patch)
        lines.append((f"images/{number:05d}.png", *rest))
    write_csv(folder / "datalist.csv", COLUMNS, lines)
    return folder / "datalist.csv"


def camelyon(data: Path, folder: Path, seed: int) -> Path:
    """Fields are dealt to train (60 %), validation and test by the seed; the test fields stand for an unseen site."""
    with np.load(data / "camelyon_mini" / "camelyon_mini.npz") as file:
        images, masks = file["images"], file["masks"]
    order = np.random.default_rng(seed).permutation(len(images))
    ends = (round(0.6 * len(order)), round(0.75 * len(order)))
    rows = []
    for place, field in enumerate(order):
        split = "train" if place < ends[0] else "val" if place < ends[1] else "test"
        for patch, share in tiles(images[field], masks[field] > 0, STRIDE if split == "train" else SIDE):
            if share == 0 or share > TUMOUR:
                site = UNSEEN if split == "test" else HOME
                rows.append((patch, f"field{field}", site, split, int(share > TUMOUR)))
    return write_list(folder, rows)


def monuseg(data: Path, folder: Path, seed: int) -> Path:
    """The hospitals with most tiles train; a fifth of their slides, drawn by the seed, validates."""
    root = data / "monuseg_sites"
    found = list(csv.DictReader((root / "index.csv").read_text().splitlines()))
    counts = Counter(row["tss_code"] for row in found)
    home = {code for code, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: len(counts) // 2]}
    slides = sorted({row["tcga_slide"] for row in found if row["tss_code"] in home})
    drawn = np.random.default_rng(seed).permutation(len(slides))[: max(1, len(slides) // 5)]
    validation = {slides[i] for i in drawn}
    patches = []
    for row in found:
        split = "test" if row["tss_code"] not in home else "val" if row["tcga_slide"] in validation else "train"
        image = read_image(root / "images" / row["image"])
        mask = read_image(root / "masks" / row["image"], "L") > 127
        site = HOME if row["tss_code"] in home else row["tss_code"]
        patches += [
            (patch, share, row["tcga_slide"], site, split)
            for patch, share in tiles(image, mask, STRIDE if split == "train" else SIDE)
        ]
    low, high = np.quantile([share for _, share, _, _, split in patches if split == "train"], [1 / 3, 2 / 3])
    rows = [
        (patch, slide, site, split, int(share > high))
        for patch, share, slide, site, split in patches
        if share < low or share > high
    ]
    return write_list(folder, rows)


def datalist_of(data: Path, work: Path, name: str, seed: int) -> Path:
    """The datalist of a seed, written once."""
    folder = work / f"{name}-patches-{seed}"
    if not (folder / "datalist.csv").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        return {"camelyon_mini": camelyon, "monuseg_sites": monuseg}[name](data, folder, seed)
    return folder / "datalist.csv"


def one(work: Path, name: str, datalist: Path, method: Method, seed: int, training: Training) -> dict[str, Any]:
    """Train and predict, or read back what was done: pooled AUC over all unseen patches, and that of each site."""
    folder = work / f"{name}-{method}-{seed}"
    file = folder / "result.json"
    if file.is_file():
        done: dict[str, Any] = json.loads(file.read_text())
        return done
    started, run = time.time(), folder / "run"
    patches = PatchSettings(datalist)
    settings = RunSettings(run, seed=seed, device="cpu", channels_last=True, resume=(run / "config.yaml").is_file())
    train(Train(settings, patches, method, HOME, training=training))
    predict(Predict(patches, OutputSettings(folder / "scores", overwrite=True), run, device="cpu"))
    rows = auc_rows([read_scored(folder / "scores")])
    scored = read_scored(folder / "scores")
    unseen = np.array(scored.predictions.column("site"), dtype=object) != HOME
    pooled = binary_scores(scored.predictions.labels[unseen], scored.margins()[unseen], 0.0)
    defined = [row["auc"] for row in rows if row["unseen"] and row["auc"] is not None]
    home = [row["auc"] for row in rows if not row["unseen"] and row["split"] == "val"]
    metrics = json.loads((run / "metrics.json").read_text())
    result = {
        "method": method, "seed": seed, "auc": pooled["auc"], "auc_error": pooled["auc_error"],
        "mean_over_sites": float(np.mean(defined)), "sites_with_both_classes": len(defined), "validation_auc": home[0],
        "patches": int(unseen.sum()), "best_epoch": metrics["best_epoch"], "steps": metrics["steps"],
        "seconds": round(time.time() - started, 1),
    }  # fmt: skip
    shutil.rmtree(
        run / "checkpoints", ignore_errors=True
    )  # a short training has none: plateaus ended it before the first
    write_atomic(file, json.dumps(result))
    return result


def smoke(data: Path, work: Path, seeds: int) -> None:
    """Two epochs of each method on each set; prints how long the whole study may take at most."""
    total = 0.0
    short = dataclasses.replace(TRAINING, max_epochs=2)
    for name in SETS:
        datalist = datalist_of(data, work / "smoke", name, 0)
        for method in METHODS:
            shutil.rmtree(work / "smoke" / f"{name}-{method}-0", ignore_errors=True)
            result = one(work / "smoke", name, datalist, method, 0, short)
            most = result["seconds"] / 2 * TRAINING.max_epochs
            total += seeds * most
            print(
                f"{name}, {method}: {result['seconds']:.1f} s for 2 epochs, at most {most:.0f} s a training", flush=True
            )
    print(f"{seeds} seeds: at most {total / 60:.0f} minutes (plateaus usually end trainings earlier)")


def summarise(found: Mapping[str, Sequence[dict[str, Any]]], minutes: float) -> dict[str, Any]:
    """The record."""
    return {
        **origin("stain-aglr on patches of 64 pixels, camelyon_mini and monuseg_sites"),
        "scale": {"training": dataclasses.asdict(TRAINING), "pixels": SIDE, "training_stride": STRIDE, "seeds": len(found[SETS[0]]) // len(METHODS)},
        "metric": "auc: ROC-AUC of all patches of fields (camelyon_mini) or hospitals (monuseg_sites) that training did not "
        "see, pooled; mean_over_sites: unweighted mean over hospitals with both classes; mean and sample standard deviation "
        "over seeds, which draw split, first weights and batches",
        "tables": {
            name: {key: seed_table(rows, ("method",), key) for key in ("auc", "mean_over_sites", "validation_auc")}
            for name, rows in found.items()
        },
        "compared_with_vanilla": {name: compare_seeds(rows, "vanilla") for name, rows in found.items()},
        "compared_with_hed": {name: compare_seeds(rows, "hed") for name, rows in found.items()},
        "minutes": round(minutes, 1),
        "results": dict(found),
    }  # fmt: skip


def main() -> None:
    """Command line."""
    arguments = study_arguments(
        study_options(__doc__, "stain_aglr_patches", "time two epochs of each method and estimate the rest")
    )
    torch.set_num_threads(1)
    data, work = arguments.data_root, arguments.work
    if arguments.smoke:
        smoke(data, work, arguments.seeds)
        return
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SETS}
    for seed in range(arguments.seeds):
        for name in SETS:
            datalist = datalist_of(data, work, name, seed)
            for method in METHODS:
                found[name].append(one(work, name, datalist, method, seed, TRAINING))
                print(f"{name}, {method}, seed {seed}: AUC {found[name][-1]['auc']:.4f}", flush=True)
    minutes = sum(row["seconds"] for rows in found.values() for row in rows) / 60
    record = summarise(found, minutes)
    file = write_record(record, arguments.out, "stain-aglr-patches")
    for name, tables in record["tables"].items():
        print(f"| {name} | " + " | ".join(tables) + " |\n" + "|---" * (len(tables) + 1) + "|")
        for rows in zip(*tables.values(), strict=True):
            print(f"| {rows[0]['method']} | " + " | ".join(mean_and_spread(r["mean"], r["std"]) for r in rows) + " |")
        print()
    print(file)


if __name__ == "__main__":
    main()
