"""Settings of the method and of the commands. Free of torch so that `--help` stays fast."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dart_core.errors import SettingError
from dart_core.settings import DemoSettings, OutputSettings, RunSettings, at_least

Method = Literal[
    "odex", "joint", "sequential", "ewc", "mib", "rw", "plop", "lwf", "dice-ex", "odex-inf", "odex-last", "gram"
]
Split = Literal["all", "train", "val", "test"]

POOLS = ("odex", "dice-ex", "odex-inf", "odex-last", "gram")
"""Methods whose pool may grow; the others have one network."""
REGULARISED = ("ewc", "rw", "lwf", "mib", "plop")
NAMES: dict[str, str] = {
    "joint": "Joint", "sequential": "Seq.", "ewc": "EWC", "mib": "MiB", "rw": "RW", "plop": "PLOP", "lwf": "LwF",
    "odex": "ODEx", "odex-inf": "ODEx −∞ξ", "dice-ex": "DiceEx", "odex-last": "ODEx −B", "gram": "Gram",
}  # fmt: skip
"""What the paper's tables call them."""


@dataclass(frozen=True)
class Data:
    """How cases are read; a pool remembers it from its first stage."""

    merge_labels: bool = True
    """Take every label above 0 for the whole hippocampus (paper)."""
    orientation: Literal["RAS", "file"] = "RAS"
    """Turn all images to one orientation, or leave their axes as stored."""


@dataclass(frozen=True)
class Network:
    """nnU-Net's 3-D U-Net, planned from the cases of the first stage and kept for all later ones (specification 3)."""

    norm: Literal["batch", "instance"] = "batch"
    """Normalisation. Behind instance norm channel means say nothing: it needs --pooling statistics, 2 or authors."""
    base_features: int = 32
    """Feature maps at full resolution; fewer make a small network for a slow machine."""
    max_pools: int | None = None
    """At most so many halvings of an axis; default: as nnU-Net."""
    batch_size: int | None = None
    """Patches per batch; default: as planned."""
    patch_size: tuple[int, int, int] | None = None
    """Voxels (z, y, x) of a patch; default: as planned."""

    def __post_init__(self) -> None:
        at_least(1, base_features=self.base_features)
        for name, value in (("max_pools", self.max_pools), ("batch_size", self.batch_size)):
            if value is not None:
                at_least(1, **{name: value})
        if self.patch_size is not None:
            at_least(4, patch_size=min(self.patch_size))


@dataclass(frozen=True)
class Pool:
    """How distances are measured and what they decide (specification 2.1 to 2.7); of the methods with a pool."""

    pooling: Literal["1", "2", "3", "4", "statistics", "authors"] = "1"
    """Features of the first norm layer: channel means over a grid of so many parts along each axis; statistics: mean and
    standard deviation of what goes into it; authors: average pooling to at most 10,000 numbers."""
    layers: Literal["first", "first_stage"] = "first"
    """The first norm layer, or all of the first encoder stage."""
    covariance: Literal["empirical", "shrunk", "ledoit_wolf"] = "empirical"
    """Covariance of a stage. The empirical one needs more training images than features (32)."""
    shrinkage: float = 0.1
    """Of the shrunk covariance."""
    threshold: str = "2mu"
    """xi: twice the mean in-distribution distance (paper), or a number in units of the normalised distance."""
    selection: Literal["mean", "sum", "normalised"] = "mean"
    """The closest model has the smallest mean over its history, or the smallest sum (as printed: clones are then never
    chosen), or the smallest normalised sum."""
    normalisation: Literal["per_model", "per_stage_mean", "raw"] = "per_model"
    """Of the summed distance of a model, of each stage's term, or none."""
    squared: bool = True
    """Mahalanobis distances squared, as in the authors' code."""
    dice_drop: float = 0.10
    """dice-ex: expand when the Dice has fallen by more than this."""
    dice_mode: Literal["relative", "absolute"] = "relative"
    """dice-ex: fallen relative to what it was, or in itself."""

    def __post_init__(self) -> None:
        if self.threshold != "2mu":
            try:
                number = float(self.threshold)
            except ValueError:
                number = math.nan
            if math.isnan(number):
                raise SettingError(f"--threshold is {self.threshold!r}", remedy="give 2mu or a number")
        if not 0 <= self.shrinkage <= 1:
            raise SettingError(f"--shrinkage is {self.shrinkage}", remedy="give a number from 0 to 1")
        at_least(0, dice_drop=self.dice_drop)

    @property
    def xi(self) -> Literal["2mu"] | float:
        """The threshold as `ModelPool` takes it."""
        return "2mu" if self.threshold == "2mu" else float(self.threshold)


@dataclass(frozen=True)
class Baselines:
    """Options of the baselines (specification 4); every method takes its own."""

    compat: Literal["none", "lifelong-nnunet"] = "none"
    """none: as published; lifelong-nnunet: as the authors' program computes them, where several hardly regularise."""
    ewc_lambda: float = 0.4
    """EWC: weight of the penalty."""
    fisher_per: Literal["sample", "batch"] = "sample"
    """EWC: squares of the gradients of single patches, or of batches."""
    fisher_batches: int | None = None
    """EWC: batches for the Fisher information; default: as many as an epoch has."""
    rw_lambda: float = 0.4
    """RW: weight of the penalty."""
    temperature: float = 2.0
    """LwF: of the distillation."""
    mib_alpha: float = 0.9
    """MiB: factor of the old logits."""
    lkd: float = 1.0
    """MiB: weight of the distillation (the paper lowered the authors' 10, it does not say to what)."""
    pod_lambda: float = 0.01
    """PLOP: weight of the distance of pooled features."""

    def __post_init__(self) -> None:
        at_least(0, ewc_lambda=self.ewc_lambda, rw_lambda=self.rw_lambda, lkd=self.lkd, pod_lambda=self.pod_lambda)
        if not self.temperature > 0:
            raise SettingError(f"--temperature is {self.temperature}", remedy="give more than 0")
        if self.fisher_batches is not None:
            at_least(1, fisher_batches=self.fisher_batches)


@dataclass(frozen=True)
class Training:
    """nnU-Net's recipe with the paper's number of epochs; it starts anew in every stage (specification 3)."""

    epochs: int = 200
    """Epochs of --batches steps in a stage."""
    batches: int = 250
    """Batches in an epoch."""
    learning_rate: float = 0.01
    """Initial learning rate; it falls to 0 over the stage."""
    momentum: float = 0.99
    """Nesterov momentum."""
    weight_decay: float = 3e-5
    """Weight decay, added to the gradient."""
    clip: float = 12.0
    """Largest norm of all gradients together."""
    augmentation: bool = True
    """Augment as nnU-Net."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        at_least(1, epochs=self.epochs, batches=self.batches, log_every=self.log_every)
        at_least(0, learning_rate=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay)
        if self.momentum >= 1:
            raise SettingError(f"--momentum is {self.momentum}", remedy="give less than 1")
        if not self.clip > 0:
            raise SettingError(f"--clip is {self.clip}", remedy="give more than 0")


# --- Commands --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demo(DemoSettings):
    """Write phantoms, learn them stage by stage with ODEx and two baselines, segment, score and report."""

    out: Path = Path("odex-demo")
    """Folder for everything."""


@dataclass(frozen=True)
class CheckData:
    """Open every case of the stages and list what is wrong."""

    stage: tuple[Path, ...]
    """Stages in their order: a CSV datalist (image, mask, subject, split), a dataset.json, or a folder with one of these."""
    data: Data = field(default_factory=Data)


@dataclass(frozen=True)
class Learn:
    """Learn one stage: decide which network continues, or whether a new one is made; train it; write the new pool to --out.

    The pool of the stage before is only read, so that whatever goes wrong, it is as it was. Weeks may lie between stages.
    """

    run: RunSettings
    stage: tuple[Path, ...]
    """The stage: a CSV datalist (image, mask, subject, split), a dataset.json, or a folder with one of these; of `joint` all
    stages in their order. Without val rows leave-one-out distances are the reference; without splits a fifth is held out."""
    pool: Path | None = None
    """Run folder of the stage before; leave it out for the first stage. What that settled (method, norm and so on to patch-size,
    merge-labels, orientation, the options of distances and baselines) stays: leave these flags out. Another value is refused,
    but for the default, which counts as left out."""
    method: Method | None = None
    """How to learn; default: that of --pool, for the first stage odex."""
    name: str = ""
    """What tables call the stage; default: the name of its folder, or of the file."""
    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    distances: Pool = field(default_factory=Pool)
    baselines: Baselines = field(default_factory=Baselines)
    training: Training = field(default_factory=Training)


@dataclass(frozen=True)
class Predict:
    """Segment every case of some stages by the closest network of a pool."""

    output: OutputSettings
    pool: Path
    """Run folder of `learn`."""
    stage: tuple[Path, ...]
    """Stages, as for `learn`, those not learned yet too (for the forward transfer)."""
    split: Split = "test"
    """Cases to segment."""
    mirror: bool = False
    """Average over mirrored passes."""
    tiles: int = 4
    """Patches per forward pass."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto (CUDA where there is one)."""
    name: str = ""
    """Name of the method in tables; default: the paper's."""
    patch_dice: int = 0
    """Batches of random patches per stage to take the Dice from too, as the authors' evaluator does (100); 0: none."""
    seed: int = 0
    """Of the draws of --patch-dice."""

    def __post_init__(self) -> None:
        at_least(1, tiles=self.tiles)
        at_least(0, patch_dice=self.patch_dice)


@dataclass(frozen=True)
class Evaluate:
    """Stage matrix, Dice, backward and forward transfer, pool size and time, and Wilcoxon's test against ODEx."""

    output: OutputSettings
    predictions: tuple[Path, ...]
    """Folders that `predict` wrote: for each method (and seed) one after every stage."""
    backward: Literal["all_later", "final"] = "all_later"
    """Backward transfer: mean over all later states, or of the last state alone."""
    measure: Literal["dice", "patch_dice"] = "dice"
    """Dice of whole images on their own grid, or that of random patches (predict --patch-dice)."""
    spread: Literal["stages", "cases"] = "stages"
    """Standard deviation of the Dice over the means of the stages, or over all cases."""
    reference: str = "ODEx"
    """The method that is tested to be better than each other one (Wilcoxon, one-sided)."""


@dataclass(frozen=True)
class ShowPool:
    """Show the networks of a pool, their histories, sizes, and what was decided at every stage."""

    pool: Path
    """Run folder of `learn`."""


@dataclass(frozen=True)
class Stream:
    """Write a stream of stages from cases of one or several sources (paper section 3)."""

    output: OutputSettings
    kind: Literal["shifting-source", "transformed"]
    """Proportions of the sources that shift from stage to stage; or one source, split into stages that are transformed ever
    more strongly by TorchIO."""
    sources: tuple[Path, ...]
    """Datalists, dataset.json files or folders, in the order in which they come; one for transformed."""
    composition: tuple[str, ...] = ("58/0/0", "44/8/6", "24/9/25", "9/8/41", "0/0/58")
    """shifting-source: for each stage the cases of each source (specification 5; the paper's table is not available)."""
    stages: int = 5
    """transformed: how many."""
    stretch: Literal["percentiles", "linear", "torchio-percent"] = "percentiles"
    """transformed: contrast between the percentiles 10 s and 100 - 10 s (s from 0 to 1 over the stages); a linear output range,
    which the z-score undoes; or (0.1, 0.9) as TorchIO takes percentiles, which saturates nearly all voxels."""
    seed: int = 0
    """transformed: of the draws."""

    def __post_init__(self) -> None:
        at_least(1, stages=self.stages)
        if not self.sources:
            raise SettingError("no --sources", remedy="give the data of at least one source")
        self.counts()

    def counts(self) -> list[list[int]]:
        """The composition in numbers."""
        try:
            return [[int(count) for count in stage.split("/")] for stage in self.composition]
        except ValueError:
            raise SettingError(
                f"--composition is {' '.join(self.composition)}", remedy="give numbers such as 58/0/0 44/8/6"
            ) from None
