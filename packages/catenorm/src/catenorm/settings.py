"""Settings of the method and of its commands. Free of torch so that `--help` stays fast."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dart_core.errors import SettingError
from dart_core.settings import DemoSettings, OutputSettings, RunSettings, at_least

Method = Literal["catenorm", "bn", "in", "gn", "dsbn", "ms-net", "w-net"]
Architecture = Literal["unet", "deeplabv3plus"]

CT_SIZE = 384
PER_SITE = {1: 4, 2: 3}
"""Slices of each site in a batch: 4 of one site, 3 of each of two, else 2 (specification 2.6)."""
BLOCKS: dict[Architecture, tuple[int, ...]] = {"unet": (1, 2, 3, 4), "deeplabv3plus": (1, 2)}
"""The categorical blocks of the U-Net and stages of DeepLabV3+, unless others are asked for (specification 3.2, 4)."""


@dataclass(frozen=True)
class Cases:
    """Which cases a command reads, and how they become slices."""

    datalist: tuple[Path, ...]
    """CSV with the columns image, mask, site, subject (split, z_divisor), or the folder of the prostate collection, of BTCV, of
    Pancreas-CT, of sites with all_list.txt, or with a dataset.json; several are joined."""
    preprocessing: Literal["plain", "prostate", "ct-single", "ct-multi"] = "plain"
    """plain: z-score, labels by --labels; prostate: z-score, all labels are one; ct-single, ct-multi: the paper's CT with eight
    organs (BTCV) or the six that BTCV and Pancreas-CT share."""
    sites: tuple[str, ...] = ()
    """Sites to use; default: all."""
    labels: tuple[str, ...] = ()
    """plain: names of the labels 1, 2, ...; default: one label, foreground."""
    keep: tuple[str, ...] = ()
    """Partial annotation: labels that are known; the others become background."""
    size: int | None = None
    """Side that slices are resized to; default: 384 for CT, else their own."""
    missing_organs: Literal["error", "allow"] = "error"
    """A training case that lacks a label: an error, or allowed (some patients have no gallbladder)."""
    cache: Path | None = None
    """Folder that keeps preprocessed images for the next run."""

    def __post_init__(self) -> None:
        if not self.datalist:
            raise SettingError("--datalist names nothing", remedy="give one or several")
        if self.size is not None and self.size < 16:
            raise SettingError(f"--size is {self.size}", remedy="give at least 16")
        if self.labels and self.preprocessing != "plain":
            raise SettingError(f"--labels does not go with --preprocessing {self.preprocessing}", remedy="leave it out")
        for name, values in (("labels", self.labels), ("keep", self.keep)):
            if len(set(values)) < len(values):
                raise SettingError(f"--{name} names something twice", remedy="name each once")

    @property
    def is_ct(self) -> bool:
        """The paper's steps for CT."""
        return self.preprocessing.startswith("ct-")

    @property
    def side(self) -> int | None:
        """Side that slices are resized to; None: their own."""
        return self.size or (CT_SIZE if self.is_ct else None)


@dataclass(frozen=True)
class Network:
    """What is trained."""

    method: Method = "catenorm"
    """catenorm: the paper's; bn, in, gn: one pass with that norm; dsbn, ms-net: batch norms per site; w-net: two networks."""
    architecture: Architecture = "unet"
    """unet, or deeplabv3plus (bn and catenorm only)."""
    blocks: tuple[int, ...] | None = None
    """catenorm, w-net: categorical blocks of the U-Net (1 inc, 2-5 down1-4, 6 mid, 7-10 up1-4; default: 1 2 3 4), or encoder
    stages of DeepLabV3+ (default: 1 2)."""
    width: int = 32
    """Channels of the U-Net's first level (32: 17,286,786 parameters)."""
    mask_mode: Literal["soft", "nearest", "hard"] = "soft"
    """How a CN layer resizes its mask: bilinear, nearest (the authors' hard mode), or nearest of the one-hot largest class."""
    form: Literal["one_plus_gamma", "paper"] = "one_plus_gamma"
    """xhat (1 + gamma) + beta (authors' code), or xhat gamma + beta (eq. 2)."""
    reduction: int = 2
    """A CN layer's first convolution has channels / reduction."""
    separate_statistics: bool = False
    """catenorm in the U-Net: batch norms outside categorical blocks keep running statistics for each pass (authors' code: one
    for both)."""
    mask_source: Literal["prediction", "truth"] = "prediction"
    """What the second pass is shown: the first one's classes, or the true labels (upper bound)."""

    def __post_init__(self) -> None:
        at_least(1, width=self.width, reduction=self.reduction)
        if self.architecture == "deeplabv3plus" and self.method not in ("bn", "catenorm"):
            raise SettingError(f"--method {self.method} is for the U-Net", remedy="give bn or catenorm")
        if self.separate_statistics and (self.method, self.architecture) != ("catenorm", "unet"):
            raise SettingError("--separate-statistics is for --method catenorm in the U-Net", remedy="leave it out")
        most = 4 if self.architecture == "deeplabv3plus" else 10
        if self.method in ("catenorm", "w-net"):
            if wrong := [block for block in self.categorical if not 1 <= block <= most]:
                raise SettingError(f"--blocks holds {wrong[0]}", remedy=f"give numbers from 1 to {most}")
            if not self.categorical:
                raise SettingError("--blocks is empty", remedy="give block numbers, or --method bn")
        elif self.mask_source == "truth":
            raise SettingError(f"--method {self.method} has no second pass", remedy="leave out --mask-source")

    @property
    def categorical(self) -> tuple[int, ...]:
        """The categorical blocks or stages: those that were asked for, or the paper's of the architecture."""
        return BLOCKS[self.architecture] if self.blocks is None else self.blocks

    @property
    def passes(self) -> int:
        """How often an image goes through."""
        return 2 if self.method in ("catenorm", "w-net") else 1

    @property
    def per_site(self) -> bool:
        """Sites have parameters of their own."""
        return self.method in ("dsbn", "ms-net")

    @property
    def name(self) -> str:
        """What tables call it."""
        plain = self.method if self.architecture == "unet" else f"deeplab {self.method}"
        own = sorted(set(self.categorical))
        # Tables tell catenorm's blocks apart in the U-Net (1, and 1-4); elsewhere there is one choice unless it is departed from.
        if self.passes == 1 or (plain != "catenorm" and own == sorted(BLOCKS[self.architecture])):
            return plain
        whole = len(own) == own[-1] - own[0] + 1 > 1
        return f"{plain} {own[0]}-{own[-1]}" if whole else f"{plain} {' '.join(map(str, own))}"


@dataclass(frozen=True)
class Training:
    """How it is trained; the defaults are the paper's."""

    fold: int | None = None
    """Fold of five (0 to 4) that is held out for test at every site; default: the column split."""
    steps: int = 9000
    """Iterations after the warm-up."""
    warmup_steps: int = 9000
    """Iterations before: of the same convolutions with batch norm in one pass, or of the baseline itself; then a new Adam starts."""
    warm_start: Path | None = None
    """Run folder or weight file whose tensors of equal name and shape are taken over, instead of a warm-up here; refused where it
    was trained on cases that are held out here."""
    batch_size: int | None = None
    """Slices of each site in a batch; default: 4 for one site, 3 for two, 2 for three or more."""
    learning_rate: float = 1e-3
    """Adam's; it is halved where the training Dice stops to rise, down to 1e-5."""
    plateau_window: int = 50
    """Iterations whose mean Dice the schedule looks at."""
    loss: Literal["code", "paper"] = "code"
    """Form of Dice and cross-entropy: the authors' code or the paper."""
    balance: float | None = None
    """--loss paper: its lambda; default: 1 for one organ, 0.5 for several."""
    class_weights: bool = False
    """Weigh each class by 1 - its share of the batch's pixels."""
    clip: float = 0.1
    """Largest element of the gradients."""
    clip_first: bool = False
    """Clip the gradients of catenorm's first stage too (authors' code: only the second's)."""
    augment: bool = True
    """Rotate by up to 10 degrees; with one organ also flip and shift."""
    flip: Literal["auto", "on", "off"] = "auto"
    """Flip and shift: auto: with one organ (left and right organs must not change sides)."""
    ms_net_warmup: int = 500
    """ms-net: iterations before the universal decoder learns."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, plateau_window=self.plateau_window, log_every=self.log_every)
        at_least(0, warmup_steps=self.warmup_steps, learning_rate=self.learning_rate, ms_net_warmup=self.ms_net_warmup)
        if self.batch_size is not None:
            at_least(1, batch_size=self.batch_size)
        if self.fold is not None and not 0 <= self.fold < 5:
            raise SettingError(f"--fold is {self.fold}", remedy="give 0 to 4")
        if self.balance is not None and not 0 <= self.balance <= 1:
            raise SettingError(f"--balance is {self.balance:g}", remedy="give 0 to 1")
        if self.balance is not None and self.loss == "code":
            raise SettingError("--balance is for --loss paper", remedy="leave it out, or give --loss paper")
        if not 0 < self.clip < math.inf:
            raise SettingError(f"--clip is {self.clip:g}", remedy="give a positive number")

    def slices_per_site(self, sites: int) -> int:
        """Slices of each site in a batch."""
        return self.batch_size or PER_SITE.get(sites, 2)


# --- The commands -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demo(DemoSettings):
    """Train CateNorm and batch norm on phantom abdomens of two scanners, segment, evaluate (about a minute)."""

    out: Path = Path("catenorm-demo")
    """Folder for phantoms, networks, predictions and report.html."""


@dataclass(frozen=True)
class CheckData:
    """Open every image and mask and list every problem with file, row and column."""

    cases: Cases
    require_mask: bool = True
    """A case without mask is a problem."""


@dataclass(frozen=True)
class Train:
    """Train a network on the cases of one site or several."""

    run: RunSettings
    cases: Cases
    network: Network = field(default_factory=Network)
    training: Training = field(default_factory=Training)
    name: str = ""
    """Name in tables; default: method and blocks."""

    def __post_init__(self) -> None:
        if self.run.accumulate > 1:
            raise SettingError("batch norms look at whole batches", remedy="leave out --accumulate")
        if self.run.precision == "fp16":
            raise SettingError("clipped gradients do not go with fp16", remedy="give --precision bf16 or fp32")
        if self.training.clip_first and self.network.passes == 1:
            raise SettingError(f"--method {self.network.method} has one stage", remedy="leave out --clip-first")
        own_loss = self.training.loss != "code" or self.training.balance is not None or self.training.class_weights
        if self.network.method == "ms-net" and own_loss:
            raise SettingError("ms-net has a loss of its own", remedy="leave out --loss, --balance and --class-weights")
        self._refuse_unread()

    def _refuse_unread(self) -> None:
        """Refuse flags that do nothing. Here and not in `Network`, because the files of networks name blocks for every method."""
        network, usual = self.network, Network()
        unread = [] if network.passes == 2 else ["blocks", "mask_mode", "form", "reduction"]
        for name in unread:
            if getattr(network, name) != getattr(usual, name):
                self._refuse(name, f"--method {network.method}")
        if network.architecture == "deeplabv3plus" and network.width != usual.width:
            self._refuse("width", "--architecture deeplabv3plus")
        if network.method != "ms-net" and self.training.ms_net_warmup != Training().ms_net_warmup:
            self._refuse("ms_net_warmup", f"--method {network.method}")

    @staticmethod
    def _refuse(name: str, which: str) -> None:
        raise SettingError(f"--{name.replace('_', '-')} does nothing with {which}", remedy="leave it out")


@dataclass(frozen=True)
class Predict:
    """Segment cases: by default the test cases of the network's fold, or those with split test."""

    output: OutputSettings
    model: Path
    """Run folder of `train`, or a model.safetensors."""
    datalist: tuple[Path, ...] = ()
    """Other cases; default: those of the training run, its test part only."""
    site: str = ""
    """Segment this site only."""
    split: Literal["train", "test", "all"] = "test"
    """Which cases: of the fold, or by the column split."""
    as_site: str = ""
    """dsbn, ms-net: treat all cases as of this site."""
    maps: int = 0
    """Show gamma and beta of this many channels of the first CN layer (Fig. 6)."""
    maps_block: int | None = None
    """Block (U-Net) whose first CN layer --maps shows; default: the first categorical one."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto."""
    batch_size: int = 8
    """Slices per forward pass."""
    cache: Path | None = None
    """Folder that keeps preprocessed images for the next run."""

    def __post_init__(self) -> None:
        at_least(1, batch_size=self.batch_size)
        at_least(0, maps=self.maps)


@dataclass(frozen=True)
class Evaluate:
    """Score predictions: Dice and average surface distance of every organ, by site, against a baseline."""

    output: OutputSettings
    predictions: tuple[Path, ...]
    """Folders that `predict` wrote; those of several folds are pooled, methods are told apart by their names."""
    baseline: str = ""
    """Method that the others are compared with (Wilcoxon's signed-rank test, case by case); default: bn, else deeplab bn."""
    distance: Literal["directed", "symmetric"] = "directed"
    """Average surface distance from the prediction to the truth (authors), or of both directions."""


@dataclass(frozen=True)
class Align:
    """Align the intensities of every class between sites, with the labels (the paper's proof of concept)."""

    output: OutputSettings
    cases: Cases
    target: str = ""
    """Site whose intensities the others get; default: the first."""
    fold: int | None = None
    """Align only cases outside this test fold, and write it as the split; default: those with split train."""
    clamp_negative: bool = False
    """A spread that comes out negative becomes 0 instead of mirroring the class."""

    def __post_init__(self) -> None:
        if self.fold is not None and not 0 <= self.fold < 5:
            raise SettingError(f"--fold is {self.fold}", remedy="give 0 to 4")
        if self.cases.is_ct or self.cases.keep or self.cases.size is not None:
            raise SettingError(
                "align works on whole files", remedy="leave out --size and --keep; give plain or prostate"
            )


@dataclass(frozen=True)
class Export:
    """Write a network as ONNX, both passes in one: image -> logits, logits_first."""

    model: Path
    """Run folder of `train`, or a model.safetensors."""
    out: Path
    """File to write, .onnx."""
    side: int = 384
    """Side of the images."""
    as_site: str = ""
    """dsbn, ms-net: with the batch norms of this site."""
    overwrite: bool = False
    """Replace the file."""

    def __post_init__(self) -> None:
        at_least(16, side=self.side)
