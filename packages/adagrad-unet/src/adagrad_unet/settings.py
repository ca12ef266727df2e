"""Settings of the method and of its commands. Free of torch so that `--help` stays fast."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from dart_core.errors import SettingError
from dart_core.settings import DemoSettings, OutputSettings, RunSettings, ScanSettings, at_least

OptimizerName = Literal["sgd", "adam", "avagrad", "sgdm-10"]
LEARNING_RATES = {"sgd": 0.01, "adam": 3e-4, "avagrad": 10.0, "sgdm-10": 10.0}
Split = Literal["all", "train", "val", "test"]
POLICY_OPTIONS = (
    "policy_optimizer", "policy_learning_rate", "slices", "interval", "regularisation", "policy_backbone", "frozen_bn_eval",
)  # fmt: skip
"""Settings of `Spottuning` that only spottuning has."""
BASELINE_OPTIONS = ("width", "labels")
"""Those that a spottuned network has from its baseline."""


@dataclass(frozen=True)
class Cases:
    """Which images a command reads, and how."""

    datalist: Path
    """CSV with the columns image, mask, site, subject, split (image_1, image_2, ... for further channels); or a dataset.json,
    an nnU-Net raw folder, or CC359 or M&Ms as their owners publish them."""
    site: str = ""
    """Site to read; empty = all."""
    merge_labels: bool = False
    """Take every label above 0 for label 1."""
    labels: tuple[str, ...] = ()
    """Names of the labels 1, 2, ...; default: those of the dataset.json or of M&Ms, else by number."""
    orientation: Literal["RAS", "file"] = "RAS"
    """Turn all images to one orientation, or leave their axes as stored (nnU-Net)."""
    cache: Path | None = None
    """Folder that keeps preprocessed images for the next run."""


@dataclass(frozen=True)
class Planning:
    """What the planner may not decide by itself."""

    slice_axis: Literal["auto", "x", "y", "z"] = "auto"
    """Axis (right, front, top) that slices are cut along; auto: the one with the largest voxels, z of equal ones."""
    pixel: tuple[float, float] | None = None
    """Pixel size (rows, columns) in mm that slices are resampled to; default: the median of the training images."""
    base_features: int = 32
    """Feature maps at full resolution; fewer make a small network for a slow machine."""
    max_pools: int | None = None
    """At most so many halvings of an axis; default: as nnU-Net."""
    batch_size: int | None = None
    """Slices per batch; default: as planned."""
    patch_size: tuple[int, int] | None = None
    """Rows and columns of a patch; default: as planned."""

    def __post_init__(self) -> None:
        at_least(1, base_features=self.base_features)
        for name, value in (("max_pools", self.max_pools), ("batch_size", self.batch_size)):
            if value is not None:
                at_least(1, **{name: value})
        if self.patch_size is not None:
            at_least(8, patch_size=min(self.patch_size))
        if self.pixel is not None and not (min(self.pixel) > 0 and max(self.pixel) < math.inf):
            raise SettingError(
                f"--pixel is {self.pixel[0]:g} {self.pixel[1]:g}", remedy="give two positive numbers in mm"
            )


@dataclass(frozen=True)
class Optimisation:
    """The optimiser, and what is peculiar to each."""

    optimizer: OptimizerName = "avagrad"
    """avagrad; sgd (Nesterov, momentum 0.99) and adam as in nnU-Net; sgdm-10: the control that the paper lacks, SGD with
    momentum 0.9, dampening 0.9 and learning rate 10, which is AvaGrad without adaptivity."""
    learning_rate: float | None = None
    """Initial learning rate; default: 10 for avagrad and sgdm-10, 0.01 for sgd, 0.0003 for adam."""
    weight_decay: float = 3e-5
    """Weight decay, added to the gradient."""
    eps: float = 0.1
    """AvaGrad's adaptability."""
    variant: Literal["official", "printed"] = "official"
    """AvaGrad as in its authors' code or as the formulas are printed."""
    norm_scope: Literal["group", "tensor"] = "group"
    """AvaGrad's norm over the whole network or over each tensor."""
    decoupled: bool = False
    """AvaGrad with decoupled weight decay."""

    def __post_init__(self) -> None:
        at_least(0, weight_decay=self.weight_decay, learning_rate=self.initial_rate)
        if not self.eps > 0:
            raise SettingError(f"--eps is {self.eps}", remedy="give more than 0")
        for name in ("eps", "variant", "norm_scope", "decoupled"):
            if self.optimizer != "avagrad" and getattr(self, name) != getattr(Optimisation, name):
                raise SettingError(
                    f"--{name.replace('_', '-')} is for avagrad, not {self.optimizer}", remedy="leave it out"
                )
        if self.decoupled and self.initial_rate * self.weight_decay >= 1:
            raise SettingError(
                f"--decoupled at --learning-rate {self.initial_rate:g} multiplies weights by "
                f"{1 - self.initial_rate * self.weight_decay:g} in every step",
                remedy="give a smaller --weight-decay",
            )

    @property
    def initial_rate(self) -> float:
        """The learning rate to begin with."""
        return LEARNING_RATES[self.optimizer] if self.learning_rate is None else self.learning_rate

    @property
    def changes(self) -> list[str]:
        """What departs from the optimiser's defaults, in words such as "eps 1e+06"."""
        usual, found = Optimisation(self.optimizer), []
        for item in fields(self):
            # The default learning rate may have been written out.
            name = "initial_rate" if item.name == "learning_rate" else item.name
            value = getattr(self, name)
            if value != getattr(usual, name):
                words = item.name.replace("_", " ")
                found.append(
                    words if value is True else f"{words} {value:g}" if isinstance(value, float) else f"{words} {value}"
                )
        return found


@dataclass(frozen=True)
class Training:
    """The training recipe of nnU-Net 1, compressed to a number of epochs (specification 2.3)."""

    optimisation: Optimisation = field(default_factory=Optimisation)
    epochs: int = 50
    """Epochs of --batches steps; the learning rate falls to 0 over them (paper: 25 and 50 for early stopping, 1000 for SGD)."""
    batches: int = 250
    """Batches in an epoch."""
    validation_batches: int = 50
    """Batches of the rows with split val after every epoch, for the curves; there are none without such rows."""
    augmentation: bool = True
    """Augment as nnU-Net; without, the prediction does not mirror either."""
    clip: float = 12.0
    """Largest norm of all gradients together."""
    record_every: int = 1
    """Record how far each layer moves in every so many steps (Fig. 2); 0: never."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        at_least(1, epochs=self.epochs, batches=self.batches, log_every=self.log_every)
        at_least(0, validation_batches=self.validation_batches, record_every=self.record_every)
        if not self.clip > 0:
            raise SettingError(f"--clip is {self.clip}", remedy="give more than 0")


@dataclass(frozen=True)
class Spottuning:
    """SpotTUNet's recipe (paper sections 2.4 and 3.4; specification spottunet)."""

    stage: Literal["baseline", "spottuned"] = "baseline"
    """Train the baseline network on a source site, or spottune it to a target site."""
    optimizer: Literal["sgd", "avagrad"] = "avagrad"
    """Optimiser of the U-Net: Nesterov momentum 0.9, or AvaGrad with eps 0.1."""
    learning_rate: float | None = None
    """Learning rate of the U-Net; default: 0.001 for sgd, 10 for avagrad."""
    policy_optimizer: Literal["sgd", "avagrad"] = "sgd"
    """Optimiser of the policy network; the paper does not say which it had."""
    policy_learning_rate: float | None = None
    """Learning rate of the policy network; default: 0.01 for sgd, 10 for avagrad."""
    epochs: int | None = None
    """Epochs of --batches steps; default: 60 for the baseline, 100 for spottuning (paper)."""
    drop_epoch: int | None = None
    """Epoch (from 0) from which on learning rates are a tenth; default: 48 of 60, 75 of 100, and the same shares else."""
    batches: int = 100
    """Batches in an epoch."""
    batch_size: int = 16
    """Slices per batch."""
    patch: int = 256
    """Side of the patches in pixels."""
    width: int = 16
    """Channels of the baseline's first level; a spottuned network has those of its baseline."""
    slices: int = 800
    """Annotated target slices, taken from the training scans in their order (paper: 7 and 800)."""
    interval: int = 1
    """Take every so many slices of a scan (paper: 36 for 7 slices of CC359)."""
    regularisation: float = 0.0
    """k: what fine-tuning all layers costs (0.007 for 7 slices, 0 for 800)."""
    policy_backbone: Literal["small", "resnet34"] = "small"
    """Policy network of the SpotTUNet authors' code, or the ResNet-34 that the paper names."""
    frozen_bn_eval: bool = False
    """Keep the batch norms of the frozen copy at the source statistics."""
    labels: tuple[str, ...] = ()
    """Names of the labels 1, 2, ... of the baseline; default: one mask (M&Ms: its three)."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        for name in ("batches", "batch_size", "width", "slices", "interval", "log_every"):
            at_least(1, **{name: getattr(self, name)})
        at_least(1, epochs=self.total_epochs)
        at_least(0, drop_epoch=self.drop, regularisation=self.regularisation)
        at_least(0, learning_rate=self.rate, policy_learning_rate=self.policy_rate)
        idle = {"baseline": POLICY_OPTIONS, "spottuned": BASELINE_OPTIONS}[self.stage]
        for name in idle:
            if getattr(self, name) != getattr(Spottuning, name):
                raise SettingError(
                    f"--{name.replace('_', '-')} has no meaning for --stage {self.stage}", remedy="leave it out"
                )
        if self.patch < 8 or self.patch % 8:
            raise SettingError(f"--patch is {self.patch}", remedy="give a multiple of 8")

    @property
    def total_epochs(self) -> int:
        """Epochs of the run."""
        return (60 if self.stage == "baseline" else 100) if self.epochs is None else self.epochs

    @property
    def drop(self) -> int:
        """Epoch from which on the learning rates are a tenth."""
        share = 0.8 if self.stage == "baseline" else 0.75
        return round(share * self.total_epochs) if self.drop_epoch is None else self.drop_epoch

    @property
    def rate(self) -> float:
        """Learning rate of the U-Net."""
        return (1e-3 if self.optimizer == "sgd" else 10.0) if self.learning_rate is None else self.learning_rate

    @property
    def policy_rate(self) -> float:
        """Learning rate of the policy network."""
        default = 1e-2 if self.policy_optimizer == "sgd" else 10.0
        return default if self.policy_learning_rate is None else self.policy_learning_rate


# --- The commands ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demo(DemoSettings):
    """Train with SGD and AvaGrad on phantom heads of one scanner, segment others, compare (about a minute)."""

    out: Path = Path("adagrad-unet-demo")
    """Folder for phantoms, runs, predictions and report.html."""


@dataclass(frozen=True)
class CheckData:
    """Open every image and mask of a datalist and list every problem with file, row and column."""

    cases: Cases
    require_mask: bool = True
    """An image without mask is a problem."""


@dataclass(frozen=True)
class MakePlan:
    """Read the training images of a site and write how nnU-Net would preprocess and segment them."""

    cases: Cases
    out: Path
    """File to write, ending in .json."""
    planning: Planning = field(default_factory=Planning)
    overwrite: bool = False
    """Replace the file if it is there."""


@dataclass(frozen=True)
class Train:
    """Train the 2-D nnU-Net on the training images of one site."""

    run: RunSettings
    cases: Cases
    planning: Planning = field(default_factory=Planning)
    plan: Path | None = None
    """File that `plan` wrote; default: plan from the training images."""
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        if self.run.accumulate > 1:
            raise SettingError("the Dice loss looks at whole batches", remedy="leave out --accumulate")


@dataclass(frozen=True)
class Spottune:
    """Train SpotTUNet's baseline on a source site, or let SpotTUNet choose the layers to fine-tune to a target site."""

    run: RunSettings
    scans: ScanSettings
    site: str = ""
    """Site to train on, with the scans for train of the column split or of a public data set (M&Ms: none at C and D)."""
    model: Path | None = None
    """Run folder of the baseline, for --stage spottuned."""
    spottuning: Spottuning = field(default_factory=Spottuning)


@dataclass(frozen=True)
class Predict:
    """Segment images with a network of `train` or `spottune`."""

    output: OutputSettings
    datalist: Path
    """CSV with the columns image, mask, site, subject, split, or any of the folders that `train` reads."""
    model: Path
    """Run folder of `train` or `spottune`, or its model.safetensors."""
    site: str = ""
    """Site to segment; empty = all."""
    split: Split | None = None
    """Images to segment; default: all, but for networks of `spottune` test where there are splits, as they may have learnt from
    the site's other scans. Without splits, a fifth of each site's subjects is test for networks of `train`, and none for those of
    `spottune`, which cannot be trained without them either (nor at sites without train scans: C and D of M&Ms)."""
    name: str = ""
    """What the method is called in tables; default: as the paper calls the run (AG-50)."""
    mirror: Literal["as-trained", "yes", "no"] = "as-trained"
    """Average over mirrored passes; as-trained: only where the run augmented."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto."""
    tiles: int = 16
    """Slices or tiles per forward pass."""

    def __post_init__(self) -> None:
        at_least(1, tiles=self.tiles)


@dataclass(frozen=True)
class Evaluate:
    """Score predictions against masks, compare every method with a baseline, and draw the distributions."""

    output: OutputSettings
    predictions: tuple[Path, ...]
    """Folders that `predict` wrote."""
    datalist: Path | None = None
    """Datalist with the masks, where the one given to `predict` had none."""
    tolerance: float = 1.0
    """Tolerance of the surface Dice in mm."""
    surface: Literal["3d", "2d"] = "3d"
    """Surface Dice of the volume, or its mean over slices (for stacks with gaps)."""
    baseline: str = ""
    """Method that the others are compared with; default: SGD with the most epochs (and augmentation), as the paper."""
    correction: Literal["row", "table"] = "row"
    """Bonferroni's factor: the comparisons of one site and label, or of the whole table."""

    def __post_init__(self) -> None:
        at_least(0, tolerance=self.tolerance)


@dataclass(frozen=True)
class LayerSpeed:
    """Draw how far each layer moved per step in one or more runs of `train` (Fig. 2 of the paper)."""

    output: OutputSettings
    runs: tuple[Path, ...]
    """Run folders of `train`."""
    form: Literal["mean_abs", "l2", "relative"] = "mean_abs"
    """Mean absolute change, norm of the change, or norm of the change over norm of the weight."""
