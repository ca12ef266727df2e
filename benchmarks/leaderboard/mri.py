"""MRI site adaptation: brain masks, a network of one hospital on the scans of another, with and without labels from there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from protocol import Board, Entry, Run, Scale
from sets import LGG_SPACING, heads, lgg

from dart_core.evaluation import score_folders
from dart_core.experiment import Job, Word

PATIENTS = 1
"""Labelled patients of the target, where a method uses any."""
UNLABELLED = {"AdaBN": "adabn", "Seg-JDOT": "seg-jdot", "AdaptSegNet": "adaptsegnet", "AIVA": "aiva"}
LABELLED = {"FTA": "fta", "FTF": "ftf", "L2-SP": "l2sp", "SpotTUNet": "spottune", "MMTL": "mmtl", "OCTL": "octl"}


OWN = "No adaptation (mmtl-octl)"
AGAINST = {
    "FDA-MRI": "No adaptation (full resolution)",
    "AvaGrad-trained source": "SGD-trained source (nnU-Net)",
    "CateNorm-trained source": "BN-trained source (CateNorm's U-Net)",
    **dict.fromkeys((*LABELLED, "Target only", "All target patients"), OWN),
}
"""Method -> the network that it starts from, or differs from in one thing; others start from aiva's."""


def pairs(scale: Scale) -> tuple[tuple[str, str], ...]:
    """(source, target)."""
    found: tuple[tuple[str, str], ...] = scale.pick(
        paper=(), small=(("CS", "DU"), ("FG", "HT")), smoke=(("sm3", "ge15"),)
    )
    return found


def datalist(scale: Scale, seed: int) -> Path:
    """Each seed has its own split of the patients."""
    return lgg(scale, seed) if scale.name == "small" else heads(scale, ("sm3", "ge15"), 10)


def sliced(scale: Scale) -> tuple[Word, ...]:
    """Grid of aiva and mmtl-octl."""
    return ("--preprocessing", "plain", *(("--spacing", *LGG_SPACING) if scale.name == "small" else ()))


def entries(scale: Scale) -> Iterator[Entry]:
    """Every method on every pair and seed; networks that methods share are trained once."""
    seeds = scale.seeds((), small=3)
    small = scale.name == "small"
    runs: dict[str, list[Run]] = {}
    for seed in seeds:
        for pair in pairs(scale):
            for method, run in _runs(scale, pair, seed, small).items():
                runs.setdefault(method, []).append(run)
    labels = f"masks of {PATIENTS} target patient"
    for method, found in runs.items():
        needs = labels if method in LABELLED or method == "Target only" else "nothing"
        if method in UNLABELLED:
            needs = "target scans without masks"
        elif method == "FDA-MRI":
            needs = "source scans at test time"
        elif method == "All target patients":
            needs = "masks of all target patients"
        yield Entry(method, found[0].trained.command, needs, found, AGAINST.get(method, ""))


def _runs(scale: Scale, pair: tuple[str, str], seed: int, small: bool) -> dict[str, Run]:
    source, target = pair
    listed = ("--datalist", datalist(scale, seed))
    common: tuple[Word, ...] = (*listed, *sliced(scale), "--seed", seed, "--channels-last")
    place, found = f"{source} → {target}", {}

    def add(method: str, trained: Job, *predict: Word) -> None:
        predicted = Job(trained.command, ("predict", "--model", trained, *predict), f"{method} on {target} seed {seed}")
        found[method] = Run(place, seed, trained, predicted)

    # Unsupervised adaptation starts from one source network (aiva's is the U-Net of mmtl-octl and fda-mri).
    shape: tuple[Word, ...] = ("--width", 4, "--steps", 300, "--batch-size", 8, "--evaluate-every", 75)
    if not small:
        shape = ("--width", 2, "--steps", 6, "--batch-size", 4, "--evaluate-every", 3, "--patch-size", 32)
    test = ("--site", target, "--split", "test", *listed, *sliced(scale))
    base = Job(
        "aiva", ("pretrain", "--source", source, *common, *shape, "--learning-rate", 1e-2), f"source {source} {seed}"
    )
    add("No adaptation", base, *test)
    for method, flag in UNLABELLED.items():
        words: tuple[Word, ...] = ("--width", 4, "--batch-size", 8, "--evaluate-every", 40)
        if not small:
            words = ("--width", 2, "--batch-size", 4, "--evaluate-every", 2, "--patch-size", 32)
        steps = {"seg-jdot": 120, "adaptsegnet": 60, "aiva": 200}.get(flag) if small else 4
        if flag != "adabn":
            words += ("--steps", steps or 0, "--learning-rate", 1e-3 if flag == "aiva" else 1e-4)
        if flag == "aiva":
            words += ("--milestones", 120, "--clusters", 6, "--iterations-per-epoch", 40, "--acc-amount", 20) if small else (
                "--milestones", 2, "--clusters", 2, "--iterations-per-epoch", 2, "--acc-amount", 1, "--perplexity", 3)  # fmt: skip
        if flag == "adabn":
            words += ("--adabn", "cumulative")
        adapt = ("adapt", "--method", flag, "--target", target, "--source-model", base, *common, *words)
        add(method, Job("aiva", adapt, f"{method} {source}->{target} {seed}"), *test)

    fda: tuple[Word, ...] = (
        "--width",
        4,
        "--epochs",
        8,
        "--iterations",
        50,
        "--batch-size",
        8,
        "--drop-epoch",
        6,
        "--crop-size",
        128,
    )
    if not small:
        fda = ("--width", 2, "--epochs", 2, "--iterations", 3, "--batch-size", 4, "--drop-epoch", 1, "--crop-size", 32)
    scans = ("--no-resample", "--keep-slices", 0) if small else ("--resample",)
    words = (
        "train",
        *listed,
        "--site",
        source,
        *scans,
        *fda,
        "--learning-rate",
        0.01,
        "--seed",
        seed,
        "--channels-last",
    )
    trained = Job("fda-mri", words, f"fda-mri source {source} {seed}")
    bank = Job("fda-mri", ("bank", *listed, "--site", source, *scans), f"donors of {source} {seed}")
    there = (*listed, "--site", target, *scans, "--role", "test")
    add("No adaptation (full resolution)", trained, *there, "--mode", "none")
    add("FDA-MRI", trained, *there, "--mode", "3d", "--bank", bank.file("donors.safetensors"), "--beta", 0.01)
    ava: tuple[Word, ...] = ("--base-features", 8, "--max-pools", 3, "--batch-size", 6, "--epochs", 10, "--batches", 25)
    if not small:
        ava = (
            "--base-features",
            4,
            "--max-pools",
            2,
            "--batch-size",
            2,
            "--epochs",
            2,
            "--batches",
            2,
            "--patch-size",
            32,
            32,
        )
    plan: tuple[Word, ...] = ("--slice-axis", "z", "--validation-batches", 0, "--seed", seed)
    if small:
        plan += ("--pixel", LGG_SPACING[0], LGG_SPACING[1])
    for method, optimizer in (("SGD-trained source (nnU-Net)", "sgd"), ("AvaGrad-trained source", "avagrad")):
        trained = Job(
            "adagrad-unet", ("train", *listed, "--site", source, "--optimizer", optimizer, *ava, *plan), f"{method} {source} {seed}"
        )  # fmt: skip
        add(method, trained, *listed, "--site", target, "--split", "test")
    cate: tuple[Word, ...] = ("--size", 64, "--width", 8, "--steps", 150, "--warmup-steps", 150, "--batch-size", 8)
    if not small:
        cate = ("--size", 32, "--width", 4, "--steps", 2, "--warmup-steps", 2, "--batch-size", 2)
    for method, flag in (("BN-trained source (CateNorm's U-Net)", "bn"), ("CateNorm-trained source", "catenorm")):
        words = (
            "train",
            *listed,
            "--sites",
            source,
            "--labels",
            "brain",
            "--method",
            flag,
            *cate,
            "--flip",
            "on",
            "--seed",
            seed,
        )
        trained = Job("catenorm", words, f"{method} {source} {seed}")
        add(method, trained, *listed, "--site", target, "--split", "test")

    # Few labelled patients: source networks with the gradient history that OCTL needs.
    long: tuple[Word, ...] = ("--patch-size", 48, "--batch-size", 8, "--epochs", 12, "--batches", 25, "--drop-epoch", 9)
    short: tuple[Word, ...] = ("--patch-size", 48, "--batch-size", 8, "--epochs", 6, "--batches", 14, "--drop-epoch", 4)
    if not small:
        long = short = ("--patch-size", 32, "--batch-size", 4, "--epochs", 2, "--batches", 2, "--drop-epoch", 1)
    rate: tuple[Word, ...] = ("--optimizer", "sgd", "--learning-rate", 0.01)
    width = ("--width", 4 if small else 2)
    history = Job(
        "mmtl-octl",
        ("pretrain", "--source", source, *common, *long, *rate, *width),
        f"mmtl-octl source {source} {seed}",
    )
    add(OWN, history, *test)
    for method, flag in LABELLED.items():
        words = (
            "adapt",
            "--method",
            flag,
            "--target",
            target,
            "--source-model",
            history,
            "--patients",
            PATIENTS,
            *common,
            *short,
            *rate,
        )
        add(method, Job("mmtl-octl", words, f"{method} {source}->{target} {seed}"), *test)
    alone: tuple[Word, ...] = ("adapt", "--method", "target", "--target", target, *common, *rate, *width)
    add(
        "Target only", Job("mmtl-octl", (*alone, "--patients", PATIENTS, *short), f"target only {target} {seed}"), *test
    )
    add("All target patients", Job("mmtl-octl", (*alone, *long), f"all of {target} {seed}"), *test)
    return found


def score(folder: Path, run: Run, scale: Scale) -> Mapping[str, float]:
    """Means over the test patients, on the grid of the files whatever grid the network worked on."""
    tolerance, surface = (LGG_SPACING[0], "2d") if scale.name == "small" else (2.0, "3d")
    # What methods are called in their own tables does not matter here, and fda-mri's are modes.
    found = score_folders(
        [folder],
        tolerance=tolerance,
        surface=surface,  # type: ignore[arg-type]
        columns=("image", "mask", "prediction", "subject", "site", "source_site"),
        method=lambda row: "this",
    )
    return {name: float(np.nanmean([getattr(result, name) for result in found])) for name in ("surface_dice", "dice")}


BOARD = Board(
    name="mri",
    title="MRI site adaptation: brain masks on the scans of another hospital",
    protocol={
        "small": "lgg_multisite, T1, two pairs of hospitals, three seeds that draw the split of the patients. Every network has seen all "
        "training patients of the source; adaptation without labels sees the target's training scans, adaptation with labels one "
        f"target patient. U-Nets of width 4 (adagrad-unet and catenorm: their own, width 8); for the source 300 steps of 8 slices (fda-mri 400 of 8 crops, "
        "adagrad-unet 250 of 6), 60 to 200 for adaptation; settings as in the packages' own studies, nothing chosen on these test patients. Scores on the "
        f"target's test patients, slice by slice, on the grid of the files; tolerance {LGG_SPACING[0]} mm.",
        "smoke": "phantom heads, one pair, a few steps: shows that every run works.",
    },
    metrics=("surface_dice", "dice"),
    reference="No adaptation",
    entries=entries,
    score=score,
)  # fmt: skip
