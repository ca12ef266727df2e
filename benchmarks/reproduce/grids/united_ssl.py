"""The runs of united-ssl's tables: cubes, pretraining step by step, transfer to target tasks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from table import Scale, config, csv_mean
from united_ssl_cubes import BRAINS, MOMENTUM, SIDE, WIDTH, make_cubes

from dart_core.data import phantoms
from dart_core.data.datalist import Datalist, Row
from dart_core.experiment import Job, Output, Word

PACKAGE = "united-ssl"
SEEDS = tuple(range(10))
PRETEXTS = {
    "Jigsaw": "jigsaw",
    "Rubik's Cube": "rubik",
    "Deep Clustering": "deep-clustering",
    "TransVW": "transvw",
    "TransVW Adv.": "transvw",
    "Rotation": "rotation",
}
WITH_CRITIC = ("jigsaw", "rubik", "transvw")
"""Those of Table 1; a chain of steps is trained once for all tables."""
Transfer = Literal["encoder", "encoder-decoder"]
TARGETS = {"NCC": "LUNA16", "NCS": "LIDC-IDRI", "LCS": "LiTS", "BMS": "BraTS2018"}
"""Target task -> data set. ECC's (PE-CAD) are private."""
CLASSIFICATION = ("NCC", "ECC")
SMALL_TARGETS = {"NCC": "adrenal", "BMS": "tissue"}
SCALES = {
    "paper": "DATA holds LUNA16, LIDC-IDRI, LiTS and BraTS2018 as their owners publish them. The data of ECC are private. A network is "
    "pretrained once and fine-tuned with ten seeds; the chain of steps goes on from the same networks.",
    "small": f"cubes of {SIDE} voxels, networks of width {WIDTH}, six epochs of 30 batches of 8 for each step, two steps of the critic; "
    "pretraining on brains of oasis30_2mm, hippocampus_msd and adrenalmnist3d; 160 labelled adrenals (AUC) for NCC, the tissues of four "
    "labelled brains (IoU, mean over six) for BMS, ten epochs each, three seeds. Twelve visual words; 20 clusters.",
    "smoke": "cubes of 16 voxels out of phantom CTs, networks of width 1 or 2, one epoch of each step.",
}  # fmt: skip
HOURS = {"prepare": 2.0, "pretrain": 25.0, "fine-tune": 1.5, "predict": 0.05, "evaluate": 0.01}
HOURS_FROM = (
    "pretraining 14,000 to 26,000 cubes of 64 voxels (about 600 a second) until 40 epochs bring nothing, some 150 epochs a step, five "
    "steps of the critic to one of the generator; fine-tuning some 60 epochs of up to 50,000 cubes"
)
PRETRAINING: dict[str, tuple[Word, ...]] = {
    "small": (
        *("--width", WIDTH, "--norm-momentum", MOMENTUM, "--batch-size", 8, "--max-epochs", 6, "--patience", 0),
        *("--learning-rate", 0.001, "--halve-every", 0, "--show-every", 0, "--critic-steps", 2, "--channels-last"),
    ),
    "smoke": ("--width", 1, "--batch-size", 8, "--max-epochs", 1, "--critic-steps", 1, "--show-every", 0),
}
PRETEXT: dict[str, tuple[Word, ...]] = {
    "jigsaw": ("--permutations", 100),
    "deep-clustering": ("--clusters", 20, "--components", 32),
}
"""Smaller than the paper's, for small; smoke has fewer still."""
TUNING: dict[str, tuple[Word, ...]] = {
    "NCC": ("--max-epochs", 10, "--patience", 0, "--plateau", 4, "--learning-rate", 0.001, "--batch-size", 16),
    "BMS": ("--max-epochs", 10, "--patience", 0, "--plateau", 4, "--learning-rate", 0.002, "--batch-size", 8),
}
SIZE: tuple[Word, ...] = (16, 16, 16)


# --- Cubes -----------------------------------------------------------------------------------------------------------


def _luna(scale: Scale) -> Path:
    """LUNA16, or phantoms in its layout."""
    if scale.name == "paper":
        return scale.set("LUNA16")
    folder = scale.work / "data" / "luna16"
    return folder if (folder / "annotations.csv").is_file() else phantoms.write_luna16(folder, 10, 10, (80, 80, 56))


def _small_cubes(scale: Scale) -> Path:
    """Cubes of the study on small sets: pretrain, adrenal, tissue; and the datalist of the brains that pretrain."""
    folder = scale.work / "data" / "cubes"
    data = scale.set("oasis30_2mm")
    make_cubes(data.parent, folder, 0)
    if not (folder / "brains.csv").is_file():
        images = sorted((data / "images").glob("*.nii.gz"))
        order = np.random.default_rng(0).permutation(len(images))  # as in make_cubes
        ends = np.cumsum([BRAINS["pretrain"], BRAINS["val"]])
        splits = ["train"] * ends[0] + ["val"] * (ends[1] - ends[0])
        rows = [
            Row(images[i], subject=images[i].name, split=split)
            for i, split in zip(order[: ends[1]], splits, strict=True)
        ]
        Datalist(tuple(rows)).write(folder / "brains.csv")
    return folder


def cubes(scale: Scale, pretext: str) -> Job | Path:
    """What a pretext task is trained on: random cubes, or visual words."""
    words: list[Word] = [
        "prepare",
        "--config",
        config(PACKAGE, "prepare_words" if pretext == "transvw" else "prepare_luna16"),
    ]
    if scale.name == "small":
        folder = _small_cubes(scale)
        if pretext != "transvw":
            return folder / "pretrain"
        words += ["--data", folder / "brains.csv", "--words", 12, "--instances", 8, 2, "--size", SIDE, SIDE, SIDE]
        words += ["--scan-size", 48, 48, 48, "--width", WIDTH, "--max-epochs", 20, "--margin", 8, 8, 8]
        words += ["--acceptance", "none", "--intensity", "percentile"]
    else:
        words += ["--data", _luna(scale)]
    if scale.name == "smoke":
        words += ["--size", *SIZE, "--margin", 10, 10, 6]
        words += (
            ["--crops", 4] if pretext != "transvw" else ["--words", 4, "--instances", 3, 1, "--scan-size", 32, 32, 16]
        )
        words += ["--width", 2, "--max-epochs", 1] if pretext == "transvw" else []
    return Job(PACKAGE, tuple(words), f"cubes for {pretext}")


def target_cubes(scale: Scale, target: str) -> Job | Path:
    """Labelled cubes of a target task. Smoke: nodules for classification, livers for segmentation."""
    if scale.name == "small":
        return _small_cubes(scale) / SMALL_TARGETS[target]
    if scale.name == "paper":
        data = _luna(scale) if target == "NCC" else scale.set(TARGETS[target])
        words: tuple[Word, ...] = ("prepare", "--config", config(PACKAGE, f"prepare_{target}"), "--data", data)
    elif target in CLASSIFICATION:
        words = ("prepare", "--config", config(PACKAGE, "prepare_NCC"), "--data", _luna(scale), "--size", *SIZE)
    else:
        folder = scale.work / "data" / "livers"
        listed = folder / "datalist.csv"
        if not listed.is_file():
            phantoms.write_lung_ct(folder, ("GE", "Siemens"), 3, (80, 80, 56), 1, "liver")
        words = ("prepare", "--data", listed, "--target", "segment", "--size", *SIZE, "--crops", 4)
    return Job(PACKAGE, words, f"cubes of {target}")


# --- Networks --------------------------------------------------------------------------------------------------------


def pretrained(scale: Scale, pretext: str, step: str) -> Job | Output:
    """A network after D, DR or DRA of the chain, or trained jointly. All steps of a chain come from one run."""
    steps = step if step == "joint" else "DRA" if pretext in WITH_CRITIC else "DR"
    words: list[Word] = ["pretrain", "--config", config(PACKAGE, f"pretrain_{pretext}_{steps}"), "--seed", 0]
    words += ["--cubes", cubes(scale, pretext)]
    if scale.name != "paper":
        words += PRETRAINING[scale.name]
    if scale.name == "small":
        words += PRETEXT.get(pretext, ())
        words += ["--epoch-batches", 30] if pretext != "deep-clustering" else []
    elif scale.name == "smoke":
        words += {"jigsaw": ["--permutations", 8], "deep-clustering": ["--clusters", 4, "--components", 4]}.get(
            pretext, []
        )
    run = Job(PACKAGE, tuple(words), f"{pretext} {steps}")
    return run if step == steps else run.file(f"step-{step}")


def scored(scale: Scale, target: str, init: Job | Output | None, transfer: Transfer, seed: int) -> Job:
    """A network after fine-tuning on a target task, tested."""
    data = target_cubes(scale, target)
    settings = target
    if scale.name == "smoke":
        settings = "NCC" if target in CLASSIFICATION else "LCS"
    words: list[Word] = [
        "fine-tune",
        "--config",
        config(PACKAGE, f"target_{settings}"),
        "--cubes",
        data,
        "--seed",
        seed,
    ]
    words += ["--init", init, "--transfer", transfer] if init is not None else []
    if scale.name == "small":
        words += [*TUNING[target], "--norm-momentum", MOMENTUM, *(("--width", WIDTH) if init is None else ())]
    elif scale.name == "smoke":
        words += ["--max-epochs", 1, "--batch-size", 8, *(("--width", 1) if init is None else ())]
    start = "random" if init is None else str(init if isinstance(init, Job) else f"{init.job} {init.path}")
    network = Job(PACKAGE, tuple(words), f"{target} from {start}, {transfer}, seed {seed}")
    predicted = Job(PACKAGE, ("predict", "--model", network, "--cubes", data), f"{network.name}, predicted")
    return Job(PACKAGE, ("evaluate", "--predictions", predicted), f"{network.name}, scored")


def score_of(target: str) -> Callable[[Path], float]:
    """Reads the AUC or the pooled IoU."""
    return csv_mean("scores.csv", "auc" if target in CLASSIFICATION else "iou")


def there(scale: Scale, targets: tuple[str, ...]) -> tuple[str, ...]:
    """Target tasks that a scale has data for; smoke: the first."""
    if scale.name == "smoke":
        return targets[:1]
    known = TARGETS if scale.name == "paper" else SMALL_TARGETS
    return tuple(target for target in targets if target in known)
