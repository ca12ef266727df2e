"""The runs of metamedseg's tables: slices of all organs, initialisations, and fine-tuning on the target organs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from table import Scale, config

from dart_core.data import phantoms
from dart_core.experiment import Job, Word

PACKAGE = "metamedseg"
SEED = 0
TARGETS = {
    "Cardiac": "heart",
    "Spleen": "spleen",
    "Prostate Peripheral": "prostate_peripheral_T2",
    "Prostate Transitional": "prostate_transitional_T2",
}
"""Of the printed rows."""
SMALL_TARGETS = dict(zip(TARGETS, ("heart_LA", "spleen", "hippocampus_anterior", "hippocampus_posterior"), strict=True))
SMOKE_TARGETS = dict(zip(TARGETS, ("liver", "spleen", "stomach", "pancreas"), strict=True))
SMOKE_SOURCES = ("aorta", "gallbladder")
SMALL = (
    "six sources of organ_slices_mini (kidney, liver, lung tumour, multiple sclerosis, pancreas in two contrasts), 64 pixels, width 16; 30 "
    "meta-epochs of 4 tasks of 10 slices and 5 epochs at a meta learning rate of 0.2 (Dawoud et al. 12 and 10, transfer 10 epochs); targets left "
    "atrium, spleen, and the two parts of the hippocampus in place of the prostate's; 4 shots, three selections. "
)
HOURS = {"prepare": 2.0, "meta-train": 1.5, "fine-tune": 0.1}
HOURS_FROM = "500 tasks of 300 steps of one slice of 256 pixels at about 0.03 s for a meta-training"


def targets(scale: Scale) -> dict[str, str]:
    """Printed name -> data set."""
    found: dict[str, str] = scale.pick(paper=TARGETS, small=SMALL_TARGETS, smoke=SMOKE_TARGETS)
    return found


def slices(scale: Scale, seed: int) -> Path | Job:
    """The slices of all organs; in the small scale a seed has its own split of the patients."""
    if scale.name == "paper":
        return Job(PACKAGE, ("prepare", "--config", config(PACKAGE, "prepare"), "--data", scale.set("MSD")), "slices")
    if scale.name == "small":
        from metamedseg_organs import (  # it imports the package, which the other scales do not need
            make_slices,
            split_slices,
        )

        work = scale.work / "data" / "organs"
        written = work / f"slices-{seed}"
        if not (written / "slices.csv").is_file():
            split_slices(make_slices(scale.set("hippocampus_msd").parent, work), work, seed)
        return written
    folder = scale.work / "data" / "organs-msd"
    organs = (*SMOKE_TARGETS.values(), *SMOKE_SOURCES)
    for number, organ in enumerate(organs):
        task = f"Task{51 + number}_{organ.capitalize()}"
        if not (folder / task / "dataset.json").is_file():
            phantoms.write_decathlon(folder, task, (organ,), ("CT",), 6, (24, 20, 12), first=100 * number)
    words: tuple[Word, ...] = ("prepare", "--data", folder, "--size", 16, "--threshold", 1)
    return Job(PACKAGE, words, "slices")


def initialised(scale: Scale, name: str, seed: int) -> Job:
    """An initialisation; name is that of a config of the package."""
    words: list[Word] = [
        "meta-train",
        "--config",
        config(PACKAGE, name),
        "--slices",
        slices(scale, seed),
        "--seed",
        seed,
    ]
    method = name.split("_")[1]
    if scale.name == "small":
        words += ["--exclude", *SMALL_TARGETS.values(), "--width", 16]
        if method == "transfer":
            words += ["--epochs", 10]
        elif method == "dawoud":
            words += ["--shots", 10, "--validation-slices", 0, "--inner-epochs", 10, "--meta-epochs", 12]
        else:
            words += ["--shots", 10, "--validation-slices", 0, "--inner-epochs", 5, "--meta-epochs", 30]
            words += ["--per-epoch", 4, "--inner-lr", 0.005, "--meta-lr", 0.2]
    if scale.name == "smoke":
        words += ["--exclude", *SMOKE_TARGETS.values(), "--width", 2]
        words += ["--epochs", 1] if method == "transfer" else ["--shots", 3, "--inner-epochs", 1, "--meta-epochs", 1]
        words += [] if method in ("transfer", "dawoud") else ["--per-epoch", 2]
    return Job(PACKAGE, tuple(words), f"{name} seed {seed}")


def tuned(scale: Scale, name: str, target: str, data: Literal["15shots", "full"], seed: int) -> Job:
    """Fine-tuned on a target and tested there; without a name from random weights."""
    words: list[Word] = ["fine-tune", "--config", config(PACKAGE, f"tune_{data}"), "--slices", slices(scale, seed)]
    words += ["--target", targets(scale)[target], "--seed", seed]
    words += ["--init", initialised(scale, name, seed)] if name else []
    if scale.name == "small":
        words += ["--width", 16, "--shots", 4, "--selections", 1, 6, 25]
    if scale.name == "smoke":
        words += ["--width", 2, "--shots", 3, "--selections", 1, "--epochs", 1]
    return Job(PACKAGE, tuple(words), f"{name or 'random weights'} on {target}, {data} seed {seed}")
