"""Settings of the method and of its commands. Free of torch so that `--help` stays fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dart_core.errors import SettingError
from dart_core.settings import DemoSettings, OutputSettings, RunSettings, at_least

BETAS = (0.0, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03)
"""The effective grid of the authors' notebook (specification 2.6, item 2)."""

COUNTS = (1, 3, 5, 7, 11, 15)
"""Donor counts of the authors' study of n (specification 2.6, item 6)."""

Mode = Literal["3d", "2.5d", "2d", "random", "none", "cyclegan"]

DECIDING = {
    "3d": ("output", "average", "crop"),
    "2d": ("output", "average", "crop"),
    "2.5d": ("output", "average", "neighbours", "crop"),
    "random": ("output", "average", "donor_seed"),
}
"""Fields of `Transfer` that decide the result of a donor search, beside n and beta."""


@dataclass(frozen=True)
class Training:
    """The source model's training recipe (paper section 4.1)."""

    width: int = 16
    """Channels of the U-Net's first level (16: 1,561,491 parameters)."""
    epochs: int = 100
    """Epochs; an epoch is a number of iterations, not a pass over the data."""
    iterations: int = 100
    """Iterations per epoch."""
    batch_size: int = 16
    """Slices per batch, over all processes together."""
    learning_rate: float = 1e-3
    """Learning rate of SGD with Nesterov momentum 0.9."""
    drop_epoch: int = 80
    """Epoch (from 0) from which on the learning rate is a tenth."""
    crop_size: int = 160
    """Side of the random crops in pixels (paper 256, authors' code 160)."""
    pad_small: bool = False
    """Pad slices smaller than the crop with their minimum (the paper's 256 crop of MNI slices needs it)."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        sizes = ("width", "epochs", "iterations", "batch_size", "crop_size", "log_every")
        at_least(1, **{name: getattr(self, name) for name in sizes})
        at_least(0, drop_epoch=self.drop_epoch, learning_rate=self.learning_rate)
        if self.crop_size % 8:
            larger = self.crop_size // 8 * 8 + 8
            raise SettingError(f"--crop-size is {self.crop_size}", remedy=f"give a multiple of 8 such as {larger}")


@dataclass(frozen=True)
class Scans:
    """Which scans a command reads, and how they become slices."""

    datalist: Path
    """CSV with the columns image, mask, site (and subject, split); or a Decathlon, nnU-Net or CC359 folder."""
    site: str = ""
    """Site to read; may stay empty where the datalist holds only one."""
    keep_slices: int | None = None
    """Keep this many slices from the bottom (0 = all); default: 172 on the MNI152 grid as the paper, all elsewhere."""
    resample: bool = False
    """Resample scans onto the first source scan's grid by their world coordinates."""
    fold: Literal[0, 1, 2] | None = None
    """In-domain score: train and test inside the site by this fold of a 3-fold cross-validation."""

    def __post_init__(self) -> None:
        at_least(0, keep_slices=self.keep_slices or 0)


@dataclass(frozen=True)
class Transfer:
    """Fourier transfer and donor search (paper section 3)."""

    mode: Mode = "3d"
    """Donor search: 3d, 2.5d or 2d by SR-SIM, or random (ablation); none = no adaptation; cyclegan = baseline."""
    beta: float = 0.015
    """Window radius as a fraction of the shorter side (paper: 0.015 is the averaged optimum of the 3-D search)."""
    n: int = 7
    """Donors per slice."""
    neighbours: int = 2
    """Slices to either side that the 2.5-D search looks at."""
    crop: int = 60
    """Half side of the square about the centre of mass that SR-SIM compares; 0 compares whole slices."""
    output: Literal["authors", "formula", "clip"] = "authors"
    """Form of the transferred slice: modulus over its maximum, real part, or real part clipped to [0, 1]."""
    average: Literal["probabilities", "logits"] = "probabilities"
    """What is averaged over donors."""
    donor_seed: int = 42
    """Seed of the random donors, restarted for every scan."""

    def __post_init__(self) -> None:
        at_least(1, n=self.n)
        at_least(0, beta=self.beta, neighbours=self.neighbours, crop=self.crop)
        if 0 < self.crop < 20:
            raise SettingError(f"--crop is {self.crop}", remedy="give at least 20, or 0 for whole slices")


@dataclass(frozen=True)
class CycleGAN:
    """The CycleGAN stand-in (specification section 4)."""

    generator_width: int = 64
    """Channels of the generators' and discriminators' first level."""
    blocks: int = 9
    """Residual blocks of the generators."""
    image_size: int = 256
    """Side to which slices are resized."""
    steps: int = 60_000
    """Steps of batch 1; the learning rate falls linearly to 0 over the second half."""
    gan_learning_rate: float = 2e-4
    """Learning rate of Adam (betas 0.5, 0.999)."""

    def __post_init__(self) -> None:
        at_least(1, generator_width=self.generator_width, blocks=self.blocks, steps=self.steps)
        at_least(64, image_size=self.image_size)
        if self.image_size % 4:
            raise SettingError(f"--image-size is {self.image_size}", remedy="give a multiple of 4")
        at_least(0, gan_learning_rate=self.gan_learning_rate)


# --- The commands ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demo(DemoSettings):
    """Run the whole method on phantom head scans of two scanners: train, adapt, tune, evaluate (about a minute)."""

    out: Path = Path("fda-mri-demo")
    """Folder for phantoms, models, predictions and report.html."""


@dataclass(frozen=True)
class CheckData:
    """Open every scan and mask of a datalist and list every problem with file, row and column."""

    scans: Scans
    require_mask: bool = True
    """A scan without mask is a problem."""


@dataclass(frozen=True)
class Train:
    """Train the source network on one site, or the CycleGAN baseline between two."""

    run: RunSettings
    scans: Scans
    training: Training = field(default_factory=Training)
    method: Literal["segmentation", "cyclegan"] = "segmentation"
    """What to train."""
    target_site: str = ""
    """CycleGAN only: the site whose scans are to look like those of --site."""
    gan: CycleGAN = field(default_factory=CycleGAN)


@dataclass(frozen=True)
class Bank:
    """Collect a site's training scans into the donor bank that lends their low frequencies."""

    scans: Scans
    out: Path
    """File to write, ending in .safetensors; or a folder (a name without ending) that receives donors.safetensors."""
    overwrite: bool = False
    """Replace the file if it is there."""

    @property
    def file(self) -> Path:
        """The file to write."""
        return self.out if self.out.suffix else self.out / "donors.safetensors"


@dataclass(frozen=True)
class Adapt:
    """Write target scans with the source's low frequencies, one NIfTI file per scan and donor rank."""

    scans: Scans
    output: OutputSettings
    bank: Path | None = None
    """Donor bank of the source site."""
    transfer: Transfer = field(default_factory=Transfer)
    generator: Path | None = None
    """With --mode cyclegan: run folder of `train --method cyclegan`."""
    role: Literal["all", "val", "test"] = "all"
    """Which of the site's scans, see `predict`."""


@dataclass(frozen=True)
class Predict:
    """Segment target scans with the frozen source network, adapted to it slice by slice."""

    scans: Scans
    output: OutputSettings
    model: Path
    """Run folder of `train`, or its model.safetensors."""
    bank: Path | None = None
    """Donor bank of the source site (not needed with --mode none or cyclegan)."""
    transfer: Transfer = field(default_factory=Transfer)
    tuned: tuple[Path, ...] = ()
    """Take beta from folders of tune-beta: the pair's own optimum from one, the averaged one from those of several pairs."""
    generator: Path | None = None
    """With --mode cyclegan: run folder of `train --method cyclegan`."""
    role: Literal["all", "val", "test"] = "all"
    """Which of the site's scans: all, or the target validation or test scans (split column, else the paper's rule)."""
    probabilities: bool = False
    """Also write the foreground probabilities."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto."""
    batch_size: int = 16
    """Slices per forward pass."""

    def __post_init__(self) -> None:
        at_least(1, batch_size=self.batch_size)


@dataclass(frozen=True)
class TuneBeta:
    """Choose beta on the labelled validation scans of a target site (paper section 4.3)."""

    scans: Scans
    output: OutputSettings
    model: Path
    """Run folder of `train`, or its model.safetensors."""
    bank: Path
    """Donor bank of the source site."""
    transfer: Transfer = field(default_factory=Transfer)
    betas: tuple[float, ...] = BETAS
    """Grid, ascending."""
    modes: tuple[Literal["3d", "2.5d", "2d", "random"], ...] = ("3d",)
    """Donor searches to tune, each for itself."""
    counts: tuple[int, ...] = ()
    """Also study these numbers of donors with 3-D search (authors: 1 3 5 7 11 15)."""
    curves_of: tuple[Path, ...] = ()
    """Folders of other pairs' tune-beta runs; the averaged policy takes the mean over them and this one."""
    tolerance: float = 1.0
    """Tolerance of the surface Dice in mm."""
    surface: Literal["3d", "2d"] = "3d"
    """Surface Dice of the volume, or its mean over slices (for stacks with gaps)."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto."""
    batch_size: int = 16
    """Slices per forward pass."""

    def __post_init__(self) -> None:
        if not self.modes:
            raise SettingError("--modes names no search", remedy="give 3d, 2.5d, 2d or random")
        if len(self.betas) < 2 or list(self.betas) != sorted(set(self.betas)):
            raise SettingError("--betas is no ascending grid", remedy="give at least two rising values")
        at_least(0, betas=self.betas[0], tolerance=self.tolerance)
        at_least(1, counts=min(self.counts, default=1), batch_size=self.batch_size)


@dataclass(frozen=True)
class Evaluate:
    """Score predictions against masks: surface Dice and Dice per scan, per pair, and the transfer matrix."""

    output: OutputSettings
    predictions: tuple[Path, ...]
    """Folders that `predict` wrote."""
    datalist: Path | None = None
    """Datalist with the masks, where the one given to `predict` had none."""
    tolerance: float = 1.0
    """Tolerance of the surface Dice in mm."""
    surface: Literal["3d", "2d"] = "3d"
    """Surface Dice of the volume, or its mean over slices (for stacks with gaps)."""
    per_cluster: int = 2
    """Pairs in each cluster of shift severity, where a full transfer matrix is there."""
    severity: Literal["score", "decline_vs_source", "decline_vs_target"] = "score"
    """What orders the pairs."""

    def __post_init__(self) -> None:
        at_least(0, tolerance=self.tolerance)
        at_least(1, per_cluster=self.per_cluster)


@dataclass(frozen=True)
class Export:
    """Write the network as ONNX and check it against PyTorch."""

    model: Path
    """Run folder of `train`, or its model.safetensors."""
    out: Path
    """File to write, ending in .onnx."""
    overwrite: bool = False
    """Replace the file if it is there."""
