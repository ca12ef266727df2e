"""Settings that commands of several packages share. Free of torch so that `--help` stays fast."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dart_core.errors import SettingError

UncertainLabels = Literal["lsr-ones", "lsr-zeros", "ones", "zeros"]
"""What CheXpert's uncertain labels become in training, see `dart_core.data.catalog.chexpert.draw_uncertain`."""


def at_least(low: float, **values: float) -> None:
    """Raise a SettingError for the first flag that is under `low`, infinite, or no number."""
    for name, value in values.items():
        if not value >= low or math.isinf(value):
            raise SettingError(f"--{name.replace('_', '-')} is {value}", remedy=f"give at least {low}")


@dataclass(frozen=True)
class RunSettings:
    """How and where a run executes; what it computes is in the method's own settings."""

    out: Path
    """Folder that receives config.yaml, metrics, report.html and checkpoints/."""
    resume: bool = False
    """Continue the run in --out from its newest good checkpoint."""
    overwrite: bool = False
    """Replace the run that lies in --out."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto (CUDA where there is one)."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward and backward pass; weights stay fp32."""
    channels_last: bool = False
    """Keep images channels-last in memory (often faster)."""
    compile: bool = False
    """Compile the network with torch.compile."""
    accumulate: int = 1
    """Split each batch into this many parts and add up their gradients (less memory, same step)."""
    workers: int = 0
    """Processes that load batches; 0 loads in the main process. The result does not depend on it."""
    seed: int = 0xBADCAFE
    """Seed of initial weights, batches and augmentation."""
    checkpoint_every: int = 500
    """Steps between checkpoints; the two newest are kept."""
    track: Literal["none", "tensorboard", "mlflow", "wandb"] = "none"
    """Also send the metrics to this tracker."""

    def __post_init__(self) -> None:
        at_least(1, accumulate=self.accumulate, checkpoint_every=self.checkpoint_every)
        at_least(0, workers=self.workers, seed=self.seed)
        if self.resume and self.overwrite:
            raise SettingError("--resume and --overwrite contradict each other", remedy="give one of them")


@dataclass(frozen=True)
class ShardedRunSettings(RunSettings):
    """For commands whose networks may be too large for one device, and which call them in all processes alike."""

    sharding: Literal["none", "fsdp"] = "none"
    """Of several processes: fsdp spreads weights, gradients and the optimiser's state over them (less memory, same step)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sharding == "fsdp":
            for flag, given in (
                ("precision fp16", self.precision == "fp16"),
                ("channels-last", self.channels_last),
                ("compile", self.compile),
            ):
                if given:
                    raise SettingError(f"--{flag} does not go with --sharding fsdp", remedy="leave one of them out")


@dataclass(frozen=True)
class ScanSettings:
    """Which scans a segmentation command reads, and how they become slices."""

    datalist: Path
    """CSV with the columns image, mask, site, subject, split; or a Decathlon dataset.json, an nnU-Net raw folder, the
    folder of CC359 or of the multi-site prostate collection as their owners publish them."""
    preprocessing: Literal["cc359", "prostate", "plain"] = "cc359"
    """cc359: resample to --spacing, clip to the 1st and 99th percentile, scale to [0, 1], one slice per sample;
    prostate: z-score, own grid, three neighbouring slices, all labels are one; plain: own grid, scaling as cc359."""
    spacing: tuple[float, float, float] | None = None
    """Voxel size in mm (right, front, top) to resample to; default: 1 0.95 0.95 for cc359, else the file's own."""
    cache: Path | None = None
    """Folder that keeps preprocessed scans for the next run."""

    def __post_init__(self) -> None:
        for side in self.spacing or ():
            if not 0 < side < math.inf:
                raise SettingError(f"--spacing holds {side:g}", remedy="give three positive numbers in mm")

    @property
    def channels(self) -> int:
        """Slices that the network sees at once: 3 for prostate, else 1."""
        return 3 if self.preprocessing == "prostate" else 1

    @property
    def target_spacing(self) -> tuple[float, float, float] | None:
        """Voxel size in mm that scans are resampled to; None keeps their own grid."""
        return (1.0, 0.95, 0.95) if self.spacing is None and self.preprocessing == "cc359" else self.spacing


@dataclass(frozen=True)
class DemoSettings:
    """A method's whole way on phantoms."""

    out: Path
    """Folder for phantoms, networks, predictions and report.html."""
    overwrite: bool = False
    """Replace an earlier demo in --out."""
    seed: int = 0
    """Seed of phantoms and training."""

    def __post_init__(self) -> None:
        at_least(0, seed=self.seed)


@dataclass(frozen=True)
class OutputSettings:
    """Where the results of a command go that is no training run."""

    out: Path
    """Folder for the results; must be new or empty."""
    overwrite: bool = False
    """Replace what an earlier run of this command left in --out."""


@dataclass(frozen=True)
class EvaluationSettings:
    """Score predictions against masks: surface Dice and Dice per scan, per pair of sites, and over pairs."""

    output: OutputSettings
    predictions: tuple[Path, ...]
    """Folders that `predict` wrote."""
    datalist: Path | None = None
    """Datalist with the masks, where the one given to `predict` had none."""
    tolerance: float = 1.0
    """Tolerance of the surface Dice in mm."""
    surface: Literal["3d", "2d"] = "3d"
    """Surface Dice of the volume, or its mean over slices (for stacks with gaps)."""
    grid: Literal["preprocessed", "file"] = "preprocessed"
    """Score on the grid the network worked on (as the papers), where there is one, or on that of the image files."""
    baseline: str = "none"
    """Method that the others are compared with (Wilcoxon's signed-rank test, patient by patient)."""

    def __post_init__(self) -> None:
        at_least(0, tolerance=self.tolerance)
