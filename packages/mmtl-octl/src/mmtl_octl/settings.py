"""Settings of the methods and of the commands. Free of torch so that `--help` stays fast."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from dart_core.errors import SettingError
from dart_core.settings import DemoSettings, EvaluationSettings, OutputSettings, RunSettings, ScanSettings, at_least

Task = Literal["segmentation", "classification"]
Method = Literal["none", "mmtl", "octl", "fta", "ftf", "l2sp", "spottune", "target"]
OptimizerName = Literal["sgd", "adam"]


@dataclass(frozen=True)
class TrainingSettings:
    """The training recipe that source training and every fine-tuning share; what is left out follows the task."""

    width: int | None = None
    """Channels of the U-Net's first level, default 16 (1,561,491 parameters); when fine-tuning that of the source."""
    epochs: int | None = None
    """Epochs; an epoch is a number of batches, not a pass over the data. Default: 60; classification: 5, then 16."""
    batches: int | None = None
    """Batches of an epoch. Default: 100; classification: 500 for source training, 150 for fine-tuning."""
    batch_size: int | None = None
    """Samples of a batch, over all processes together. Default: 16; classification: 32."""
    learning_rate: float | None = None
    """Default: 1e-3; 1e-4 for classification, and for fine-tuning with --preprocessing prostate."""
    drop_epoch: int | None = None
    """Epoch (from 0) from which on the learning rate is a tenth. Default: 45; classification: never."""
    optimizer: OptimizerName | None = None
    """sgd (Nesterov momentum 0.9) or adam; default: that of the source training; there sgd, for classification adam."""
    patch_size: int | None = None
    """Side of the square patches in pixels, 0 = whole slices; default: 256 for cc359, else whole slices."""
    log_every: int | None = None
    """Steps between lines of metrics.jsonl, default 10."""

    def __post_init__(self) -> None:
        sizes = ("width", "epochs", "batches", "batch_size", "log_every")
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        at_least(1, **{name: given[name] for name in sizes if given[name] is not None})
        at_least(
            0, drop_epoch=self.drop_epoch or 0, learning_rate=self.learning_rate or 0, patch_size=self.patch_size or 0
        )
        if (self.patch_size or 0) % 8:
            larger = (self.patch_size or 0) // 8 * 8 + 8
            raise SettingError(
                f"--patch-size is {self.patch_size}", remedy=f"give a multiple of 8 such as {larger}, or 0"
            )

    def over(self, defaults: Training) -> Training:
        """The recipe with nothing left open: what is given here, and `defaults` for the rest."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(defaults, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class Training(TrainingSettings):
    """A whole recipe; the defaults are the paper's for segmentation (section 3.1)."""

    width: int = 16
    epochs: int = 60
    batches: int = 100
    batch_size: int = 16
    drop_epoch: int | None = 45
    """None: the learning rate stays."""
    log_every: int = 10


SOURCE_CLASSIFIER = Training(
    epochs=5, batches=500, batch_size=32, learning_rate=1e-4, drop_epoch=None, optimizer="adam"
)
"""Source training of the X-ray classifier (paper section 3.3, specification 5.3)."""
TARGET_CLASSIFIER = replace(SOURCE_CLASSIFIER, epochs=16, batches=150)
"""Its fine-tuning."""


ScheduleName = Literal["paper", "paper0", "release", "xray"]
_OPEN: dict[Task, tuple[ScheduleName, int | Literal["keep"], float]] = {
    "segmentation": ("paper", 100, 0.005),
    "classification": ("xray", "keep", 0.0),
}
"""Schedule, start_step and k where they are not given (specification 2.2, 2.3, 4.6)."""


@dataclass(frozen=True)
class Adaptation:
    """How a source network becomes a target network, and from how much target data (paper sections 2 and 3)."""

    method: Method = "mmtl"
    """mmtl, octl: the paper's; fta, ftf: fine-tune all, or the first layers; l2sp: stay near the source weights;
    spottune: SpotTUNet; none: the source network as it is; target: train anew on target data alone."""
    patients: int | None = None
    """Target patients: the first ones of the target's training split, 0 = all; default 1, for --method target all."""
    interval: int = 1
    """Take every k-th slice of them (3 makes about 90 slices of one CC359 patient)."""
    images: int | None = None
    """Classification: the first images of the shuffled target training list, 0 = all; default 128, for target all."""
    schedule: ScheduleName | None = None
    """mmtl: how the target's share of a batch grows; epochs counted from 1 (paper; default), from 0, or as the authors'
    programs do it (xray: default for classification)."""
    keep_source: bool = False
    """mmtl: at least one sample of each batch stays a source sample."""
    momentum: float | None = None
    """octl with sgd: decay of the history, default 0.99. fta with sgd: this much plain momentum without history instead
    of Nesterov's 0.9 (0.99 is the control that separates octl's history from its larger effective step)."""
    betas: tuple[float, float] = (0.99, 0.999)
    """octl with adam: decay of the moments (the authors' program ran with 0.9 0.999)."""
    start_step: int | Literal["keep"] | None = None
    """octl with adam: step counter before the first step; keep = that of the source training. Default: 100;
    classification: keep."""
    l2sp: Literal["all", "li2018"] = "all"
    """l2sp: alpha times the squared distance of all parameters (authors), or Li et al. 2018 with decay of the head."""
    alpha: float = 0.1
    """l2sp: weight of the distance."""
    beta: float = 0.01
    """l2sp li2018: weight of the head's decay."""
    k: float | None = None
    """spottune: weight of the policy penalty. Default: 0.005; classification: 0."""
    keep: Literal["last", "best"] = "last"
    """Network to keep: of the last epoch, or of the epoch with the best Dice on the target's validation scans."""

    def __post_init__(self) -> None:
        at_least(1, interval=self.interval)
        at_least(0, patients=self.patients or 0, images=self.images or 0)
        at_least(0, alpha=self.alpha, beta=self.beta, k=self.k or 0)
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise SettingError(f"--momentum is {self.momentum}", remedy="give a number from 0 to below 1")
        if self.momentum is not None and self.method not in ("octl", "fta"):
            raise SettingError(f"--momentum has no meaning for --method {self.method}", remedy="leave it out")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise SettingError(f"--betas are {self.betas}", remedy="give two numbers from 0 to below 1")
        if isinstance(self.start_step, int):
            at_least(0, start_step=self.start_step)

    @property
    def name(self) -> str:
        """What tables call it for segmentation with SGD, see `name_in`."""
        return self.name_in("segmentation", "sgd")

    def name_in(self, task: Task, optimizer: OptimizerName) -> str:
        """What tables call it: the method and those of its options that are not the default, such as "fta_mu099".

        Networks of one method that differ in an option must not be taken for each other.

        Args:
            task: its defaults hold where an option is left open.
            optimizer: that of the fine-tuning; options of the other one do nothing.
        """
        mine, usual = self.resolved(task), Adaptation(self.method).resolved(task)
        if self.method == "octl" and self.momentum == 0.99:  # written out
            mine = replace(mine, momentum=None)
        of_method: dict[str, tuple[str, ...]] = {
            "mmtl": ("schedule", "keep_source"),
            "fta": ("momentum",),
            "octl": ("momentum",) if optimizer == "sgd" else ("betas", "start_step"),
            "l2sp": ("l2sp", "alpha", *(["beta"] if self.l2sp == "li2018" else [])),
            "spottune": ("k",),
        }
        words = {
            "schedule": mine.schedule, "keep_source": "kept", "momentum": f"mu{mine.momentum or 0:g}".replace(".", ""),
            "betas": "betas{:g}-{:g}".format(*mine.betas), "start_step": f"start{mine.start_step}", "l2sp": mine.l2sp,
            "alpha": f"alpha{mine.alpha:g}", "beta": f"beta{mine.beta:g}", "k": f"k{mine.k:g}", "keep": mine.keep,
        }  # fmt: skip
        changed = [o for o in (*of_method.get(self.method, ()), "keep") if getattr(mine, o) != getattr(usual, o)]
        return "_".join([self.method, *(str(words[option]) for option in changed)])

    def resolved(self, task: Task) -> Adaptation:
        """With nothing left open that the task decides."""
        schedule, start_step, k = _OPEN[task]
        return replace(
            self,
            schedule=self.schedule or schedule,
            start_step=start_step if self.start_step is None else self.start_step,
            k=k if self.k is None else self.k,
        )


@dataclass(frozen=True)
class PictureSettings:
    """Classification: how radiographs and their labels are read from --datalist (CSV with one column per label, or the
    folder of CheXpert or ChestX-ray14 as published)."""

    labels: tuple[str, ...] = ()
    """Label columns of the datalist's site; default: every column that holds nothing but 0, 1 and empty cells."""
    image_size: int | None = None
    """Side of the pictures as the network sees them, default 256; after source training that of the source."""
    split_by: Literal["patient", "image"] | None = None
    """What goes into the test split together where the datalist has none (the folder of ChestX-ray14 has one): all images
    of a patient (default), or each image for itself (authors)."""

    def __post_init__(self) -> None:
        at_least(32, image_size=32 if self.image_size is None else self.image_size)


# --- The commands ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demo(DemoSettings):
    """Run everything on phantom heads of two scanners: pre-train, adapt by every method, evaluate (about a minute)."""

    out: Path = Path("mmtl-octl-demo")
    """Folder for phantoms, networks, predictions and report.html."""


@dataclass(frozen=True)
class CheckData:
    """Open every scan and mask of a datalist and list every problem with file, row and column."""

    scans: ScanSettings
    task: Task = "segmentation"
    """What the data are for."""
    pictures: PictureSettings = field(default_factory=PictureSettings)
    require_mask: bool = True
    """A scan without mask is a problem."""


@dataclass(frozen=True)
class Pretrain:
    """Train the source network, and save the optimiser's gradient history with it."""

    run: RunSettings
    scans: ScanSettings
    task: Task = "segmentation"
    """What to train."""
    source: tuple[str, ...] = ()
    """Source sites; default: every site but --target."""
    target: str = ""
    """Site to leave out where --source names none."""
    training: TrainingSettings = field(default_factory=TrainingSettings)
    pictures: PictureSettings = field(default_factory=PictureSettings)
    imagenet: Path | None = None
    """Classification: ImageNet weights of DenseNet-121, as torchvision or timm publish them (.pth or .safetensors);
    without them the network starts from random weights."""


@dataclass(frozen=True)
class Adapt:
    """Fine-tune a source network on a few labelled scans of a target site, by any method of the paper."""

    run: RunSettings
    scans: ScanSettings
    target: str
    """Target site."""
    source_model: Path | None = None
    """Run folder of `pretrain`; every method but target starts there."""
    task: Task = "segmentation"
    """What the network does."""
    source_datalist: Path | None = None
    """mmtl: datalist of the source scans, where it is another than --datalist."""
    training: TrainingSettings = field(default_factory=TrainingSettings)
    adaptation: Adaptation = field(default_factory=Adaptation)
    pictures: PictureSettings = field(default_factory=PictureSettings)
    imagenet: Path | None = None
    """Classification with --method target: ImageNet weights of DenseNet-121, see `pretrain`."""
    policy_imagenet: Path | None = None
    """Classification with --method spottune: ImageNet weights of ResNet-50 for the policy network."""
    features: tuple[int, ...] = ()
    """Epochs (0 = before the first) after which the features of all patients are kept for Fig. 1 of the paper."""

    def __post_init__(self) -> None:
        at_least(0, features=min(self.features, default=0))
        if (self.source_model is None) != (self.adaptation.method == "target"):
            if self.source_model is None:
                problem, remedy = "needs --source-model", "give the run folder of `mmtl-octl pretrain`"
            else:
                problem, remedy = "starts from random weights", "leave out --source-model"
            raise SettingError(f"--method {self.adaptation.method} {problem}", remedy=remedy)


@dataclass(frozen=True)
class Predict:
    """Segment scans of a site: the target's to score the adaptation, the source's to see what was forgotten."""

    scans: ScanSettings
    output: OutputSettings
    model: Path
    """Run folder of `adapt` or `pretrain`, or its model.safetensors."""
    task: Task = "segmentation"
    """What the network does."""
    pictures: PictureSettings = field(default_factory=PictureSettings)
    site: str = ""
    """Site to segment or classify; default: the network's target site."""
    split: Literal["train", "val", "test", "all"] = "test"
    """Which of its scans."""
    largest_component: Literal["auto", "on", "off"] = "auto"
    """Keep only the largest connected part of a mask; auto: on for --preprocessing prostate."""
    filter_slices: bool = False
    """Empty slices whose largest part is smaller than a limit found on the site's validation scans (authors' release)."""
    probabilities: bool = False
    """Also write the foreground probabilities."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto."""
    batch_size: int = 16
    """Slices per forward pass."""

    def __post_init__(self) -> None:
        at_least(1, batch_size=self.batch_size)


@dataclass(frozen=True)
class Evaluate(EvaluationSettings):
    """Score predictions: on the target, on the source (forgetting), as mean over pairs with the spread over seeds."""

    task: Task = "segmentation"
    """What was predicted."""
    features: tuple[Path, ...] = ()
    """Run folders of `adapt --features`, shown side by side as Fig. 1 of the paper."""
