"""Transfer on chest radiographs: one network, one fine-tuning, three starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from protocol import Board, Entry, Run, Scale
from sets import radiographs
from table import json_value

from dart_core.data.datalist import Datalist, Row
from dart_core.experiment import Job, Word

STARTS = {"Scratch": "nothing", "SimMIM": "radiographs without labels", "POPAR": "radiographs without labels"}
SWIN: tuple[Word, ...] = (
    "--patch-size",
    4,
    "--embed-dim",
    48,
    "--depths",
    2,
    2,
    4,
    "--num-heads",
    2,
    4,
    8,
    "--window-size",
    6,
)
SIDE = 96
SETS = {"nih_cxr_1000": "ChestX-ray14", "pneumoniamnist": "Shenzhen"}
"""The small set -> the paper's set in whose place the tables use it."""
FINDINGS = {
    "nih_cxr_1000": ("Atelectasis", "Edema", "Effusion", "Infiltration", "Pneumonia"), "pneumoniamnist": ("Pneumonia",),
}  # fmt: skip
"""Labels with at least 90 pictures."""


def unlabelled(scale: Scale) -> Path:
    """The training pictures of the first set, for pre-training."""
    listed = radiographs(scale, SETS["nih_cxr_1000"])
    rows = [Row(row.image, subject=row.subject) for row in Datalist.read(listed) if row.split == "train"]
    # Beside the other list, so that pictures lie at the same place for both.
    path = listed.with_name(f"{listed.stem}-unlabelled.csv")
    return path if path.is_file() else Datalist(tuple(rows)).write(path)


def pretrained(scale: Scale, start: str) -> Job:
    """The backbone after pre-training on the training pictures of the first set, which is the same for all seeds, as in the papers."""
    pictures = unlabelled(scale)
    small = scale.name == "small"
    if start == "SimMIM":
        recipe: tuple[Word, ...] = (
            "--epochs",
            36,
            "--batch-size",
            32,
            "--base-lr",
            8e-3,
            "--min-lr",
            1e-4,
            "--warmup-lr",
            1e-5,
            "--warmup",
            3,
        )
        if not small:
            recipe = ("--epochs", 1, "--batch-size", 8, "--warmup", 0)
        words = (
            "pretrain",
            "--pictures",
            pictures,
            "--backbone",
            "swin_b",
            "--size",
            SIDE,
            "--cell",
            16,
            *SWIN,
            *recipe,
            "--seed",
            0,
        )
        return Job("benchmark-transformers", words, "SimMIM")
    network: tuple[Word, ...] = (
        "--network",
        "patch_size=4",
        "window_size=6",
        "embed_dim=48",
        "depths=2,2,4",
        "num_heads=2,4,8",
    )
    recipe = (
        ("--epochs", 36, "--batch-size", 32, "--held-out", 64)
        if small
        else ("--epochs", 1, "--batch-size", 8, "--held-out", 4)
    )
    words = (
        "pretrain",
        "--datalist",
        pictures,
        "--backbone",
        "swin_b",
        "--image-size",
        SIDE,
        *network,
        *recipe,
        "--seed",
        0,
    )
    return Job("popar", words, "POPAR")


def weights(scale: Scale, start: str) -> tuple[Word, ...]:
    """How the fine-tuning starts."""
    if start == "Scratch":
        return ("--initialisation", "scratch-swin-b")
    run = pretrained(scale, start)
    if start == "SimMIM":
        return ("--weights", run)
    backbone = Job("popar", ("export", "--model", run), "POPAR, its backbone", "backbone.safetensors")
    return ("--initialisation", "swin-b-in21k", "--weights", backbone, "--weights-source", "timm")


def entries(scale: Scale) -> Iterator[Entry]:
    """The starts on both sets."""
    small = scale.name == "small"
    recipe: tuple[Word, ...] = ("--epochs", 6, "--patience", 6, "--batch-size", 16, "--drop-path", 0.1)
    if not small:
        recipe = ("--epochs", 1, "--batch-size", 8, "--drop-path", 0.1)
    recipe += ("--optimizer", "adamw", "--learning-rate", 3e-4, "--image-size", SIDE, "--normalization", "imagenet")
    for start, needs in STARTS.items():
        runs = []
        for seed in scale.seeds((), small=3):
            for name in ("nih_cxr_1000", "pneumoniamnist")[: 2 if small else 1]:
                listed: tuple[Word, ...] = ("--datalist", radiographs(scale, SETS[name]))
                if small:
                    listed += ("--labels", *FINDINGS[name])
                words = (
                    "fine-tune",
                    *weights(scale, start),
                    "--name",
                    start,
                    *listed,
                    *SWIN,
                    *recipe,
                    "--seed",
                    seed,
                    "--trials",
                    1,
                )
                tuned = Job("benchmark-transformers", words, f"{start} on {name}, seed {seed}")
                test: tuple[Word, ...] = ("predict", "--model", tuned, *listed, "--crops", 1)
                tested = Job("benchmark-transformers", test, f"{start} on {name}, seed {seed}, tested")
                runs.append(Run(name, seed, tuned, tested))
        yield Entry(start, "popar" if start == "POPAR" else "benchmark-transformers", needs, runs)


def score(folder: Path, run: Run, scale: Scale) -> Mapping[str, float]:
    """Mean AUC over the labels."""
    return {"auc": json_value("results", 0, "value")(folder)}


BOARD = Board(
    name="xrays",
    title="Transfer on chest radiographs: mean AUC after fine-tuning",
    protocol={
        "small": f"The same Swin (two million parameters, {SIDE} pixels) and the same fine-tuning (6 epochs of AdamW at 3e-4, the epoch of the lowest "
        "validation loss) for all; pre-training sees the training pictures of nih_cxr_1000 without labels (36 epochs). "
        "nih_cxr_1000: findings with at least 90 pictures, split by patient; pneumoniamnist: 400 pictures of children from another "
        "hospital, all test pictures. Three seeds of the fine-tuning. Nothing was chosen on test pictures.",
        "smoke": "phantom radiographs, an epoch each: shows that every run works.",
    },
    metrics=("auc",),
    reference="Scratch",
    entries=entries,
    score=score,
)  # fmt: skip
