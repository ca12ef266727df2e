"""Settings of the methods and of the commands. Free of torch so that `--help` stays fast."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from dart_core.errors import SettingError
from dart_core.settings import DemoSettings, EvaluationSettings, OutputSettings, RunSettings, ScanSettings, at_least

Method = Literal["none", "aiva", "adabn", "seg-jdot", "adaptsegnet", "target"]
Rule = Literal["highest_source", "lowest_source", "last"]

RECIPES: dict[str, tuple[int, int, float]] = {
    "pretrain": (5000, 16, 1e-3),
    "target": (5000, 16, 1e-3),
    "aiva": (6500, 8, 5e-6),
    "seg-jdot": (8000, 16, 5e-4),
    "adaptsegnet": (6500, 8, 5e-6),
}
"""Steps, batch size and learning rate on CC359 (specification 2.8, 4.3, 4.4)."""

MILESTONES = {"aiva": (5000, 6000), "adaptsegnet": (5000, 6000)}
CANDIDATES_FROM = {"seg-jdot": 1500}
"""Step from which on networks may be chosen (specification 4.3)."""


@dataclass(frozen=True)
class Training:
    """What every training has; the defaults are those of CC359."""

    width: int = 16
    """Channels of the U-Net's first level (16: 1,561,510 parameters); an adapted network has that of its source."""
    steps: int | None = None
    """Iterations. Default: pretrain and target 5000, aiva and adaptsegnet 6500, seg-jdot 8000."""
    batch_size: int | None = None
    """Slices of a batch, from each site. Default: pretrain, target, seg-jdot, adabn 16; aiva, adaptsegnet 8."""
    learning_rate: float | None = None
    """Default: pretrain and target 1e-3 (polynomial decay), aiva and adaptsegnet 5e-6, seg-jdot 5e-4."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """sgd (Nesterov momentum 0.9) or adam; weight decay 5e-4."""
    patch_size: int | None = None
    """Side of the square, centred patches; default: 256 for cc359, else the smallest that covers every slice."""
    random_patches: bool = False
    """Draw the place of a patch instead of taking the centre."""
    evaluate_every: int = 500
    """Steps between evaluations on the source's --selection-split."""
    checkpoint: Rule = "highest_source"
    """Network to keep: of the highest score there (paper), of the lowest (authors' code), or of the last step."""
    selection_split: Literal["val", "test"] = "val"
    """Split of the SOURCE sites whose score chooses the network (prostate: the published lists have no val)."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        at_least(1, width=self.width, evaluate_every=self.evaluate_every, log_every=self.log_every)
        at_least(1, **{name: getattr(self, name) or 1 for name in ("steps", "batch_size")})
        for name in ("steps", "batch_size", "patch_size"):
            if getattr(self, name) == 0:
                raise SettingError(f"--{name.replace('_', '-')} is 0", remedy="give at least 1, or leave it out")
        at_least(0, learning_rate=self.learning_rate or 0)
        if (self.patch_size or 0) % 8:
            larger = (self.patch_size or 0) // 8 * 8 + 8
            raise SettingError(f"--patch-size is {self.patch_size}", remedy=f"give a multiple of 8 such as {larger}")

    def resolved(self, phase: str) -> Training:
        """The same with the defaults of a method filled in, as config.yaml records it."""
        if phase not in RECIPES:
            return replace(self, batch_size=self.batch_size or 16)
        steps, batch_size, rate = RECIPES[phase]
        return replace(
            self,
            steps=self.steps or steps,
            batch_size=self.batch_size or batch_size,
            learning_rate=rate if self.learning_rate is None else self.learning_rate,
        )


@dataclass(frozen=True)
class Alignment:
    """The method proper: clustering and alignment (paper section 2)."""

    clusters: int = 12
    """Clusters of each site."""
    perplexity: float = 30.0
    """Perplexity of t-SNE."""
    slice_positions: bool = True
    """Append a slice's relative position in its scan to its principal components (authors' code)."""
    kmeans: Literal["source", "k-means++"] = "source"
    """Where k-means of the target starts: at the source's centres (authors' code), or anew."""
    iterations_per_epoch: int = 1000
    """Iterations between clusterings; the first ones only collect features."""
    embedding: Literal["running", "recompute"] = "running"
    """Features that are clustered: those of the epoch's forward passes, or a pass over all slices (paper's algorithm box)."""
    alignment: Literal["count_weighted_mean", "paper_sum", "per_sample_l1"] = "count_weighted_mean"
    """Loss: authors' code, the paper's Eq. 2, or the authors' ablation."""
    acc_amount: int = 35
    """Align when more than this many assigned target slices have come together; 0 = in every iteration."""
    lambda_factor: float = 0.9
    """Size of the alignment loss after normalisation (paper: 1)."""
    step_every_iteration: bool = False
    """Step the optimiser in every iteration, not only in those with alignment (authors' code)."""

    def __post_init__(self) -> None:
        at_least(1, clusters=self.clusters, iterations_per_epoch=self.iterations_per_epoch)
        at_least(0, acc_amount=self.acc_amount, lambda_factor=self.lambda_factor)
        if not 0 < self.perplexity < float("inf"):
            raise SettingError(f"--perplexity is {self.perplexity:g}", remedy="give a positive number")
        if self.embedding == "running" and self.iterations_per_epoch < 2:
            raise SettingError("--iterations-per-epoch is 1", remedy="give at least 2, or --embedding recompute")


@dataclass(frozen=True)
class Baselines:
    """What the paper compares with (specification section 4)."""

    adabn: Literal["exponential", "cumulative"] = "exponential"
    """adabn: running statistics with momentum 0.1 (authors' code), or the exact mean over batches."""
    passes: int = 1
    """adabn: passes over the target's training slices."""
    alpha: float = 0.001
    """seg-jdot: weight of the features."""
    beta: float = 0.0001
    """seg-jdot: weight of the labels."""
    jdot_form: Literal["published", "authors"] = "published"
    """seg-jdot: squared distances of features (published), or plain distances of predictions (authors' code)."""
    ot: Literal["emd", "sinkhorn"] = "emd"
    """seg-jdot: exact transport, or with entropy."""
    reg: float = 0.1
    """seg-jdot: weight of the entropy; the cost is divided by its maximum."""
    adversarial_weight: float = 0.001
    """adaptsegnet: weight of the adversarial loss."""
    discriminator_learning_rate: float = 1e-4
    """adaptsegnet: Adam's for the discriminator, with polynomial decay."""

    def __post_init__(self) -> None:
        at_least(1, passes=self.passes)
        rates = ("alpha", "beta", "adversarial_weight", "discriminator_learning_rate")
        at_least(0, **{name: getattr(self, name) for name in rates})
        if not 0 < self.reg < float("inf"):
            raise SettingError(f"--reg is {self.reg:g}", remedy="give a positive number")
        if self.ot == "emd" and self.reg != Baselines.reg:
            raise SettingError("--reg has no meaning for --ot emd", remedy="leave it out, or give --ot sinkhorn")


ALIGNMENT_OPTIONS = tuple(item.name for item in fields(Alignment))
BASELINE_OPTIONS = {
    "adabn": ("adabn", "passes"),
    "seg-jdot": ("alpha", "beta", "jdot_form", "ot", "reg"),
    "adaptsegnet": ("adversarial_weight", "discriminator_learning_rate"),
}
"""Settings of `Baselines` by the method that has them."""
STEPWISE = ("aiva", "seg-jdot", "adaptsegnet")
"""Methods whose learning rate falls at --milestones."""


# --- The commands ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demo(DemoSettings):
    """Run everything on phantom heads of two scanners: pre-train, adapt by every method, evaluate (about a minute)."""

    out: Path = Path("aiva-demo")
    """Folder for phantoms, networks, predictions and report.html."""


@dataclass(frozen=True)
class CheckData:
    """Open every scan and mask of a datalist and list every problem with file, row and column."""

    scans: ScanSettings
    require_mask: bool = True
    """A scan without mask is a problem (the target's training scans need none)."""


@dataclass(frozen=True)
class Pretrain:
    """Train the source network on one site or several."""

    run: RunSettings
    scans: ScanSettings
    source: tuple[str, ...] = ()
    """Source sites; default: every site but --target."""
    target: str = ""
    """Site to leave out where --source names none."""
    training: Training = field(default_factory=Training)


@dataclass(frozen=True)
class Adapt:
    """Adapt a source network to a site whose scans have no masks, by AIVA or by what the paper compares with."""

    run: RunSettings
    scans: ScanSettings
    target: str
    """Target site."""
    method: Method = "aiva"
    """aiva: the paper's; adabn, seg-jdot, adaptsegnet: its baselines; none: the source network as it is;
    target: train anew WITH the target's masks (upper bound)."""
    source_model: Path | None = None
    """Run folder of `pretrain`; every method but target starts there, and the source sites are that network's."""
    training: Training = field(default_factory=Training)
    milestones: tuple[int, ...] | None = None
    """Training iterations after which the learning rate falls to a tenth; default: 5000 6000 for aiva and adaptsegnet."""
    alignment: Alignment = field(default_factory=Alignment)
    baselines: Baselines = field(default_factory=Baselines)

    def __post_init__(self) -> None:
        if (self.source_model is None) != (self.method == "target"):
            if self.source_model is None:
                problem, remedy = "needs --source-model", "give the run folder of `aiva pretrain`"
            else:
                problem, remedy = "starts from random weights", "leave out --source-model"
            raise SettingError(f"--method {self.method} {problem}", remedy=remedy)
        at_least(0, milestones=min(self.milestones or (0,)))
        for part, names, methods in (
            (self.alignment, ALIGNMENT_OPTIONS, ("aiva",)),
            *((self.baselines, names, (method,)) for method, names in BASELINE_OPTIONS.items()),
        ):
            for option in names:
                if self.method not in methods and getattr(part, option) != getattr(type(part), option):
                    raise SettingError(
                        f"--{option.replace('_', '-')} has no meaning for --method {self.method}",
                        remedy=f"leave it out, or give --method {methods[0]}",
                    )
        if self.milestones and self.method not in STEPWISE:
            raise SettingError(
                f"--milestones has no meaning for --method {self.method}",
                remedy=f"leave it out, or give --method {' or '.join(STEPWISE)}",
            )

    @property
    def name(self) -> str:
        """What tables call it: the method and those of its options that are not the default, such as "aiva_clusters6".

        Networks of one method that differ in an option must not be taken for each other.
        """
        part = self.alignment if self.method == "aiva" else self.baselines
        words: list[str] = [self.method]
        for option in ALIGNMENT_OPTIONS if self.method == "aiva" else BASELINE_OPTIONS.get(self.method, ()):
            value, flag = getattr(part, option), option.replace("_", "-")
            if value == getattr(type(part), option):
                continue
            if option == "adabn":
                words[0] += f"-{value}"
            elif isinstance(value, bool):
                words.append(flag if value else f"no-{flag}")
            else:
                words.append(value.replace("_", "-") if isinstance(value, str) else f"{flag}{value:g}")
        if self.method not in ("none", "adabn") and self.training.checkpoint != Training.checkpoint:
            words.append(self.training.checkpoint.replace("_", "-"))
        return "_".join(words)


@dataclass(frozen=True)
class Predict:
    """Segment scans of a site."""

    scans: ScanSettings
    output: OutputSettings
    model: Path
    """Run folder of `adapt` or `pretrain`, or its model.safetensors."""
    site: str = ""
    """Site to segment; default: the network's target site."""
    split: Literal["train", "val", "test", "all"] = "test"
    """Which of its scans."""
    largest_component: Literal["default", "on", "off"] = "default"
    """Keep only the largest connected part of a mask; default: on for --preprocessing prostate."""
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
    """Score predictions against masks: surface Dice and Dice per scan, per pair of sites, and over pairs."""

    leave_out: tuple[int, int] = (0, 0)
    """Slices at the bottom and at the top that are not scored (prostate in the paper: 1 2)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, leave_out=min(self.leave_out))


@dataclass(frozen=True)
class Clusters:
    """Show the clusters of AIVA runs, and how their score depends on the number of clusters (paper Figs. 2 to 5)."""

    output: OutputSettings
    runs: tuple[Path, ...]
    """Run folders of `adapt --method aiva`; those of one pair of sites may differ in --clusters."""
    score: bool = True
    """Segment and score the target's test scans of every run, for the study of the number of clusters."""
    tolerance: float = 1.0
    """Tolerance of the surface Dice in mm."""
    surface: Literal["3d", "2d"] = "3d"
    """Surface Dice of the volume, or its mean over slices (for stacks with gaps)."""
    columns: int = 4
    """Pairs of clusters of which slices are shown."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto."""

    def __post_init__(self) -> None:
        at_least(0, tolerance=self.tolerance)
        at_least(1, columns=self.columns)
