"""Settings of the method and of the commands. Free of torch so that `--help` stays fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from dart_core.errors import SettingError
from dart_core.settings import DemoSettings, OutputSettings, RunSettings, at_least

TARGETS = ("heart", "spleen", "prostate_peripheral_T2", "prostate_transitional_T2")
"""The paper's."""
SELECTIONS = (1, 6, 25, 55, 1100)
"""Seeds of the authors' five selections of 15 slices."""

LossName = Literal[
    "bce", "weighted_bce", "iou", "iou_per_image", "combined", "combined_unweighted", "dice", "generalised_dice",
    "tversky_code", "focal_tversky",
]  # fmt: skip
Weighting = Literal["average", "inverse_distance", "complement", "as_coded"]
DistanceTo = Literal["meta", "mean", "leave_one_out"]


def _rate_settings(factor: float, every: int) -> None:
    at_least(1, every=every)
    if not 0 < factor <= 1:
        raise SettingError(f"--factor is {factor:g}", remedy="give more than 0, at most 1")


# --- The method ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """The U-Net (specification 3)."""

    depth: int = 3
    """Levels; each halves the sides and doubles the filters."""
    width: int = 32
    """Filters of the first level."""
    norm: Literal["instance", "batch"] = "instance"
    """Normalisation, without parameters of its own."""

    def __post_init__(self) -> None:
        at_least(1, depth=self.depth, width=self.width)


@dataclass(frozen=True)
class Tasks:
    """What a task is, and which tasks a meta-epoch has (specification 2.3)."""

    tasks: Literal["volumetric", "standard"] = "volumetric"
    """volumetric: evenly spaced slices of one volume (the paper's); standard: slices of all training volumes."""
    shots: int = 15
    """Slices of a task, at most (the authors' volumetric configurations: 20)."""
    per_epoch: int = 5
    """Tasks of a meta-epoch (the authors' volumetric configurations: 8)."""
    replacement: Literal["on", "off"] | None = None
    """Standard tasks may hold a slice twice, as the authors draw them; default: off, with --method dawoud on."""

    def __post_init__(self) -> None:
        at_least(1, shots=self.shots, per_epoch=self.per_epoch)

    @property
    def repeats(self) -> bool:
        """A task may hold a slice twice."""
        return self.replacement == "on"

    def resolved(self) -> Tasks:
        """With the paper's defaults in the place of None."""
        return replace(self, replacement=self.replacement or "off")


@dataclass(frozen=True)
class Inner:
    """Training of one task, from the weights of the meta-model (specification 2.4)."""

    inner_epochs: int | None = None
    """Passes over the slices of a task; default: 20, with --method dawoud 30."""
    inner_lr: float | None = None
    """Learning rate of Adam at the start; default: 0.01, with --method dawoud 0.001."""
    weight_decay: float | None = None
    """L2 term inside Adam; default: 0.003, with --method dawoud 0.0005."""
    factor: float | None = None
    """The rate is multiplied by it every so many epochs (the authors' configurations: 0.8); default: 0.7, with --method dawoud 1."""
    every: int = 2
    """Epochs between those."""
    batch_size: int = 1
    """Slices of a step."""
    loss: LossName = "weighted_bce"
    """Loss of the task; bce is what the authors' program effectively computes by the name weighted BCE."""
    visit_decay: bool = False
    """Divide the learning rate by 1 + earlier tasks of the same data set."""

    def __post_init__(self) -> None:
        at_least(1, inner_epochs=self.epochs, batch_size=self.batch_size)
        at_least(0, inner_lr=self.rate, weight_decay=self.l2)
        _rate_settings(self.decay, self.every)

    @property
    def epochs(self) -> int:
        """Passes over the slices of a task."""
        return 20 if self.inner_epochs is None else self.inner_epochs

    @property
    def rate(self) -> float:
        """Learning rate at the start."""
        return 0.01 if self.inner_lr is None else self.inner_lr

    @property
    def l2(self) -> float:
        """Factor of the L2 term."""
        return 0.003 if self.weight_decay is None else self.weight_decay

    @property
    def decay(self) -> float:
        """Factor of the learning rate."""
        return 0.7 if self.factor is None else self.factor

    def resolved(self) -> Inner:
        """With the paper's defaults in the place of None."""
        return replace(self, inner_epochs=self.epochs, inner_lr=self.rate, weight_decay=self.l2, factor=self.decay)


@dataclass(frozen=True)
class Meta:
    """The meta-update (specification 2.4)."""

    meta_epochs: int | None = None
    """Meta-updates; default: 100, with --method dawoud 300."""
    meta_lr: float | None = None
    """Beta: share of the way to the weighted mean of the tasks' weights; default: 0.01, with --method dawoud 1."""
    meta_decay: bool = False
    """Divide it by the number of the meta-epoch."""
    weighting: Weighting | None = None
    """average (Eq. 1), inverse_distance (Eq. 2 and 3; the default); complement: 1 - share of the distances, and as_coded: the
    authors' update, in which later tasks count more (for comparison only). The tasks of --method dawoud count alike."""
    distance_to: DistanceTo = "meta"
    """Distance of a task's weights to the meta-model (Eq. 2), to the mean of all tasks, or to the mean of the others."""
    validation_slices: int = 5
    """Validation slices of a task's data set on which its network is measured; logged only."""

    def __post_init__(self) -> None:
        at_least(1, meta_epochs=self.updates)
        at_least(0, meta_lr=self.beta, validation_slices=self.validation_slices)

    @property
    def updates(self) -> int:
        """Meta-updates."""
        return 100 if self.meta_epochs is None else self.meta_epochs

    @property
    def beta(self) -> float:
        """Meta learning rate."""
        return 0.01 if self.meta_lr is None else self.meta_lr

    @property
    def rule(self) -> Weighting:
        """How tasks are weighted."""
        return self.weighting or "inverse_distance"

    def resolved(self) -> Meta:
        """With the paper's defaults in the place of None."""
        return replace(self, meta_epochs=self.updates, meta_lr=self.beta, weighting=self.rule)


@dataclass(frozen=True)
class Dawoud:
    """The baseline of Dawoud et al. (specification 4, item 3); with --method dawoud."""

    alpha: float = 0.01
    """Weight of the entropy of predictions on another data set."""
    beta: float = 0.01
    """Weight of the distance between bottleneck features of two data sets."""
    entropy: Literal["foreground", "full"] = "foreground"
    """Only the foreground's term of the entropy, as the authors, or both."""

    def __post_init__(self) -> None:
        at_least(0, alpha=self.alpha, beta=self.beta)


@dataclass(frozen=True)
class Transfer:
    """The baseline of pooled supervised training (specification 4, item 2); with --method transfer."""

    epochs: int = 20
    """Passes over the training slices of all sources."""
    slices_per_set: int = 0
    """At most so many slices of each data set, evenly spaced; 0 = all."""

    def __post_init__(self) -> None:
        at_least(1, epochs=self.epochs)
        at_least(0, slices_per_set=self.slices_per_set)


def _names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(one.name for one in fields(kind))


DAWOUD_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "definition": {"replacement": "on"},
    "inner": {"inner_epochs": 30, "inner_lr": 0.001, "weight_decay": 5e-4, "factor": 1.0},
    "meta": {"meta_epochs": 300, "meta_lr": 1.0, "weighting": "average"},
}
"""Group of `MetaTrain` -> what --method dawoud puts in the place of each setting that is not given (specification 4, item 3)."""
UNREAD: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "reptile": {"dawoud": _names(Dawoud), "transfer": _names(Transfer)},
    "transfer": {"definition": _names(Tasks), "inner": _names(Inner), "meta": _names(Meta), "dawoud": _names(Dawoud)},
    "dawoud": {
        "definition": ("per_epoch",),
        "inner": ("batch_size", "loss", "visit_decay"),
        "meta": ("weighting", "distance_to"),
        "transfer": _names(Transfer),
    },
}
"""Method -> settings of each group that it never looks at."""


# --- The commands ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MetaRunSettings(RunSettings):
    """A run whose steps are tasks of many trainings each, so that each is worth a checkpoint."""

    checkpoint_every: int = 1
    """Steps between checkpoints; the two newest are kept. A step is one task; with --method transfer it is one slice, and the
    default 500."""


@dataclass(frozen=True)
class Demo(DemoSettings):
    """Run everything on phantoms: abdomens, meta-training, fine-tuning on a new organ, comparison (about a minute)."""

    out: Path = Path("metamedseg-demo")
    """Folder for phantoms, networks, predictions and report.html."""


@dataclass(frozen=True)
class Slicing:
    """How volumes become slices (specification 2.1)."""

    size: int = 256
    """Side of the slices in pixels; a multiple of 4 for the default network."""
    normalisation: Literal["zscore", "minmax_slice", "authors_png"] = "zscore"
    """zscore: of each volume, from its voxels that are not 0 (the paper); minmax_slice: each slice to [0, 1]; authors_png: as
    the authors' program, through 8-bit pictures with a colour map that is not linear."""
    threshold: int | None = None
    """Pixels that a region must have in a slice; default: the paper's table, 100 for data sets that it lacks."""
    threshold_stage: Literal["native", "resized"] = "native"
    """Count them as stored (the authors' program), or after resizing (paper 3.1)."""
    mask_cut: float = 0.5
    """Foreground of a resized mask is above this; with authors_png above this share of its maximum, which is 0.4235 in the
    authors' pictures."""
    clip_ct: bool = False
    """Clip to [-1000, 400] what looks like a CT (values below -500), as the authors' option does."""

    def __post_init__(self) -> None:
        at_least(8, size=self.size)
        at_least(0, threshold=self.threshold or 0)
        if not 0 < self.mask_cut < 1:
            raise SettingError(f"--mask-cut is {self.mask_cut:g}", remedy="give a number between 0 and 1")


@dataclass(frozen=True)
class CheckData:
    """Open every volume or slice and list every problem with file and reason."""

    data: Path
    """As for `prepare`, or a folder that `prepare` wrote."""


@dataclass(frozen=True)
class Prepare:
    """Cut volumes into the slices of binary data sets, one for each region and modality."""

    output: OutputSettings
    data: Path
    """A folder of the Medical Segmentation Decathlon (or of the same layout), or one that holds several; or a folder of .npz
    files with images, masks and names, one file per data set."""
    slicing: Slicing = field(default_factory=Slicing)
    split_unit: Literal["volume", "slice"] = "volume"
    """What is split into train, val and test; slice, as the authors' standard setting, lets a patient be in several."""


@dataclass(frozen=True)
class MetaTrain:
    """Meta-train on source organs (Reptile), or make the initialisation of a baseline (transfer, dawoud)."""

    run: MetaRunSettings
    slices: Path
    """Folder that `prepare` wrote."""
    method: Literal["reptile", "transfer", "dawoud"] = "reptile"
    """reptile: the paper's method; transfer: supervised training on all sources; dawoud: the closest related work, whose tasks all
    count alike and which has some defaults of its own. Flags that a method does not use are refused."""
    exclude: tuple[str, ...] = TARGETS
    """Data sets that are no sources: the targets, and what shares their patients (the authors' configurations exclude colon as
    well)."""
    name: str = ""
    """What tables call it; default: from the method, such as IDW vol."""
    network: Network = field(default_factory=Network)
    definition: Tasks = field(default_factory=Tasks)
    inner: Inner = field(default_factory=Inner)
    meta: Meta = field(default_factory=Meta)
    dawoud: Dawoud = field(default_factory=Dawoud)
    transfer: Transfer = field(default_factory=Transfer)
    processes: int = 1
    """Tasks that are trained at the same time, each in a process (and on a GPU) of its own; the result is the same."""
    threads: int = 1
    """CPU threads of each task. Their number changes the rounding of results, that of the processes does not."""

    def __post_init__(self) -> None:
        at_least(1, processes=self.processes, threads=self.threads)
        if self.run.precision == "fp16":
            raise SettingError("--precision fp16 is not for meta-training", remedy="give bf16 or fp32")
        if self.run.accumulate > 1:
            raise SettingError("--accumulate is not for meta-training", remedy="give a smaller --batch-size")
        self._refuse_unread()
        # What acts shall stand in config.yaml and in the report.
        if self.method != "transfer":
            for group, defaults in DAWOUD_DEFAULTS.items():
                given = getattr(self, group)
                own = defaults if self.method == "dawoud" else {}
                given = replace(given, **{k: value for k, value in own.items() if getattr(given, k) is None})
                object.__setattr__(self, group, given.resolved())
        if self.method == "transfer" and self.run.checkpoint_every == MetaRunSettings.checkpoint_every:
            object.__setattr__(self, "run", replace(self.run, checkpoint_every=RunSettings.checkpoint_every))

    def _refuse_unread(self) -> None:
        own = DAWOUD_DEFAULTS if self.method == "dawoud" else {}
        for group, names in UNREAD[self.method].items():
            given = getattr(self, group)
            usual = type(given)()
            for name in names:
                fine = (getattr(usual, name), own.get(group, {}).get(name))
                if getattr(given, name) not in fine:
                    self._refuse(name, f"the method {self.method}")
        if self.method == "transfer":
            for name in ("processes", "threads"):
                if getattr(self, name) > 1:
                    self._refuse(name, "the method transfer")
        if self.meta.weighting == "average" and self.meta.distance_to != "meta":
            self._refuse("distance_to", "--weighting average")

    @staticmethod
    def _refuse(name: str, which: str) -> None:
        raise SettingError(f"--{name.replace('_', '-')} does nothing with {which}", remedy="leave it out")


@dataclass(frozen=True)
class FineTune:
    """Fine-tune an initialisation, or train from random weights, on a target organ, and test it."""

    run: RunSettings
    slices: Path
    """Folder that `prepare` wrote."""
    target: str
    """Data set to segment."""
    init: Path | None = None
    """Run of `meta-train`, or its model.safetensors, which also says --depth, --width and --norm; default: random weights
    (supervised)."""
    shots: int = 15
    """Training slices of each selection; 0 = all of them, once (full data)."""
    selections: tuple[int, ...] = SELECTIONS
    """Seeds of the selections; each is a training of its own."""
    shots_from: Literal["slices", "volume"] = "slices"
    """Draw the shots from all training slices, or take evenly spaced ones of one training volume."""
    epochs: int = 20
    """Passes over the shots; the weights of the last one are tested."""
    learning_rate: float | None = None
    """Of Adam; default 0.005, with all slices 0.001."""
    weight_decay: float = 3e-5
    """L2 term inside Adam."""
    factor: float | None = None
    """The rate is multiplied by it every so many epochs; default 0.7, with all slices 1."""
    every: int = 2
    """Epochs between those."""
    batch_size: int = 1
    """Slices of a step."""
    loss: LossName = "iou"
    """Loss."""
    name: str = ""
    """What tables call it; default: that of the initialisation, or supervised."""
    network: Network = field(default_factory=Network)
    """The U-Net; an initialisation brings its own."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        at_least(0, shots=self.shots, learning_rate=self.learning_rate or 0, weight_decay=self.weight_decay)
        at_least(1, epochs=self.epochs, batch_size=self.batch_size, log_every=self.log_every)
        _rate_settings(1.0 if self.factor is None else self.factor, self.every)
        if not self.selections or len(set(self.selections)) < len(self.selections) or min(self.selections) < 0:
            raise SettingError("--selections must be different seeds from 0", remedy="give for example 1 6 25 55 1100")
        if self.shots_from == "volume" and not self.shots:
            raise SettingError("--shots-from volume does nothing with --shots 0", remedy="leave one of them out")

    @property
    def rate(self) -> float:
        """Learning rate at the start."""
        return self.learning_rate if self.learning_rate is not None else 0.005 if self.shots else 0.001

    @property
    def decay(self) -> float:
        """Factor of the learning rate."""
        return self.factor if self.factor is not None else 0.7 if self.shots else 1.0


@dataclass(frozen=True)
class Predict:
    """Segment slices or whole volumes with a network of `fine-tune`."""

    output: OutputSettings
    model: Path
    """Run of `fine-tune`, one of its selections, or a model.safetensors."""
    slices: Path | None = None
    """Folder that `prepare` wrote: its slices of the target are segmented and scored."""
    volumes: Path | None = None
    """A NIfTI file, a folder of them, or a datalist (CSV, dataset.json): each gets a mask on its own grid."""
    split: Literal["train", "val", "test", "all"] = "test"
    """Of the slices."""
    modality: int | None = None
    """Channel of 4-D volumes, from 0; default: that of the slices that the network learnt from. Give 0 for files that hold one."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto."""
    batch_size: int = 16
    """Slices per forward pass."""

    def __post_init__(self) -> None:
        at_least(1, batch_size=self.batch_size)
        at_least(0, modality=self.modality or 0)
        if (self.slices is None) == (self.volumes is None):
            raise SettingError("what to segment is not clear", remedy="give either --slices or --volumes")


@dataclass(frozen=True)
class Evaluate:
    """Compare fine-tuned networks as the paper's tables do: IoU by method and target, mean over selections."""

    output: OutputSettings
    runs: tuple[Path, ...]
    """Runs of `fine-tune`."""
    slices: Path | None = None
    """Folder of slices, for the pictures of Fig. 2; default: none are made."""
    baseline: str = ""
    """Method that the others are compared with; default: the first."""


@dataclass(frozen=True)
class Distances:
    """Mean Euclidean distances between slices of data sets, as the heat map of Fig. 3."""

    output: OutputSettings
    slices: Path
    """Folder that `prepare` wrote."""
    pairs: int = 100
    """Random pairs of slices for each two data sets."""
    seed: int = 6
    """Of the draw."""

    def __post_init__(self) -> None:
        at_least(1, pairs=self.pairs)
        at_least(0, seed=self.seed)
