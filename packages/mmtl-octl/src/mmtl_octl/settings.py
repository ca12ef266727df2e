"""Settings of the methods and of the commands. Free of torch so that `--help` stays fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dart_core.errors import SettingError
from dart_core.settings import EvaluationSettings, OutputSettings, RunSettings, ScanSettings, at_least

Task = Literal["segmentation"]
Method = Literal["none", "mmtl", "octl", "fta", "ftf", "l2sp", "spottune", "target"]
OptimizerName = Literal["sgd", "adam"]


@dataclass(frozen=True)
class Training:
    """The training recipe that source training and every fine-tuning share (paper section 3.1)."""

    width: int = 16
    """Channels of the U-Net's first level (16: 1,561,491 parameters); a fine-tuned network has that of its source."""
    epochs: int = 60
    """Epochs; an epoch is a number of batches, not a pass over the data."""
    batches: int = 100
    """Batches of an epoch."""
    batch_size: int = 16
    """Samples of a batch, over all processes together."""
    learning_rate: float | None = None
    """Default: 1e-3; 1e-4 for fine-tuning with --preprocessing prostate, as the authors' settings have it."""
    drop_epoch: int = 45
    """Epoch (from 0) from which on the learning rate is a tenth."""
    optimizer: OptimizerName | None = None
    """sgd (Nesterov momentum 0.9) or adam; default: sgd, and for fine-tuning that of the source training."""
    patch_size: int | None = None
    """Side of the square patches in pixels, 0 = whole slices; default: 256 for cc359, else whole slices."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        sizes = ("width", "epochs", "batches", "batch_size", "log_every")
        at_least(1, **{name: getattr(self, name) for name in sizes})
        at_least(0, drop_epoch=self.drop_epoch, learning_rate=self.learning_rate or 0, patch_size=self.patch_size or 0)
        if (self.patch_size or 0) % 8:
            larger = (self.patch_size or 0) // 8 * 8 + 8
            raise SettingError(
                f"--patch-size is {self.patch_size}", remedy=f"give a multiple of 8 such as {larger}, or 0"
            )


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
    schedule: Literal["paper", "paper0", "release", "xray"] = "paper"
    """mmtl: how the target's share of a batch grows; epochs counted from 1, from 0, or as the authors' programs do it."""
    keep_source: bool = False
    """mmtl: at least one sample of each batch stays a source sample."""
    momentum: float | None = None
    """octl with sgd: decay of the history, default 0.99. fta with sgd: this much plain momentum without history instead
    of Nesterov's 0.9 (0.99 is the control that separates octl's history from its larger effective step)."""
    betas: tuple[float, float] = (0.99, 0.999)
    """octl with adam: decay of the moments (the authors' program ran with 0.9 0.999)."""
    start_step: int | Literal["keep"] = 100
    """octl with adam: step counter before the first step; keep = that of the source training."""
    l2sp: Literal["all", "li2018"] = "all"
    """l2sp: alpha times the squared distance of all parameters (authors), or Li et al. 2018 with decay of the head."""
    alpha: float = 0.1
    """l2sp: weight of the distance."""
    beta: float = 0.01
    """l2sp li2018: weight of the head's decay."""
    k: float = 0.005
    """spottune: weight of the policy penalty."""
    keep: Literal["last", "best"] = "last"
    """Network to keep: of the last epoch, or of the epoch with the best Dice on the target's validation scans."""

    def __post_init__(self) -> None:
        at_least(1, interval=self.interval)
        at_least(0, patients=self.patients or 0, alpha=self.alpha, beta=self.beta, k=self.k)
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise SettingError(f"--momentum is {self.momentum}", remedy="give a number from 0 to below 1")
        if self.momentum is not None and self.method not in ("octl", "fta"):
            raise SettingError(f"--momentum has no meaning for --method {self.method}", remedy="leave it out")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise SettingError(f"--betas are {self.betas}", remedy="give two numbers from 0 to below 1")
        if self.start_step != "keep":
            at_least(0, start_step=self.start_step)

    @property
    def name(self) -> str:
        """What tables call it: the method, and "fta_mu099" for fine-tuning with momentum 0.99."""
        if self.method == "fta" and self.momentum is not None:
            return f"fta_mu{self.momentum:g}".replace(".", "")
        return self.method


# --- The commands ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demo:
    """Run everything on phantom heads of two scanners: pre-train, adapt by every method, evaluate (about a minute)."""

    out: Path = Path("mmtl-octl-demo")
    """Folder for phantoms, networks, predictions and report.html."""
    overwrite: bool = False
    """Replace an earlier demo in --out."""
    seed: int = 0
    """Seed of phantoms and training."""


@dataclass(frozen=True)
class CheckData:
    """Open every scan and mask of a datalist and list every problem with file, row and column."""

    scans: ScanSettings
    task: Task = "segmentation"
    """What the data are for."""
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
    training: Training = field(default_factory=Training)


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
    training: Training = field(default_factory=Training)
    adaptation: Adaptation = field(default_factory=Adaptation)
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
    site: str = ""
    """Site to segment; default: the network's target site."""
    split: Literal["train", "val", "test", "all"] = "test"
    """Which of its scans."""
    largest_component: bool | None = None
    """Keep only the largest connected part of a mask; default: for --preprocessing prostate."""
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
