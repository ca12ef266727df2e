"""Settings of the method and of the commands. Free of torch so that `--help` stays fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dart_core.errors import SettingError
from dart_core.settings import DemoSettings, OutputSettings, RunSettings, at_least

PretextName = Literal["rotation", "jigsaw", "rubik", "deep-clustering", "transvw"]
Steps = Literal["D", "DR", "DRA", "joint", "joint-DR"]
Form = Literal["corrected", "as-coded"]
TargetTask = Literal["NCC", "NCS", "ECC", "LCS", "BMS"]

CHAINS: dict[str, tuple[str, ...]] = {
    "D": ("D",), "DR": ("D", "DR"), "DRA": ("D", "DR", "DRA"), "joint": ("joint",), "joint-DR": ("joint-DR",),
}  # fmt: skip
"""Trainings that a strategy consists of, one after the other."""
RESTORING = ("DR", "DRA", "joint", "joint-DR")
ADVERSARIAL = ("DRA", "joint")


@dataclass(frozen=True)
class Pretext:
    """The pretext task and its options (specification 2.3)."""

    pretext: PretextName = "rotation"
    """rotation: by which of 8 rotations is the cube turned; jigsaw: in which of 1000 orders are its 8 blocks; rubik: order,
    and which blocks are turned; deep-clustering: cluster of the network's own features; transvw: visual word."""
    form: Form = "corrected"
    """corrected, or as-coded: what the authors' programs do, with the flaws that the documentation lists."""
    rotations: Literal[8, 24] = 8
    """Rotation classes; 24 = all rotations of a cube."""
    siamese: bool = False
    """Rubik: one network for each block instead of one for the whole cube (as-coded is siamese always)."""
    masking: bool = False
    """Rubik: set one or two of the blocks to 0 in half of the cubes."""
    genesis: bool = False
    """Distort the cubes by the transforms of Models Genesis as well (rubik as-coded: one of them, in turned blocks only)."""
    permutations: int = 1000
    """Orders of the blocks, for jigsaw and rubik."""
    clusters: int = 100
    """Deep clustering: number of clusters."""
    components: int = 256
    """Deep clustering: principal components that are clustered."""
    shuffled_blocks: int = 100
    """TransVW: blocks whose voxels are shuffled (5 in the repository of its owners)."""
    painting: Literal["constant", "genesis"] = "constant"
    """TransVW: one block or window with one grey value, or with the noise and sides of Models Genesis (the PyTorch program of
    its owners)."""

    def __post_init__(self) -> None:
        at_least(1, permutations=self.permutations, clusters=self.clusters, components=self.components)
        at_least(1, shuffled_blocks=self.shuffled_blocks)
        for name, task in (("siamese", "rubik"), ("masking", "rubik")):
            if getattr(self, name) and self.pretext != task:
                raise SettingError(f"--{name} is an option of --pretext {task}", remedy="leave it out")
        if self.rotations != 8 and (self.pretext != "rotation" or self.form == "as-coded"):
            raise SettingError("--rotations 24 is for --pretext rotation in its corrected form", remedy="leave it out")
        if self.form == "as-coded" and self.pretext in ("deep-clustering", "transvw"):
            raise SettingError(
                f"there is no as-coded form of --pretext {self.pretext}",
                remedy="leave --form out; its options stand alone",
            )
        if self.form == "as-coded" and self.genesis and self.pretext != "rubik":
            raise SettingError(
                f"the as-coded form of --pretext {self.pretext} has no transforms of Models Genesis",
                remedy="leave --genesis out",
            )

    @property
    def is_siamese(self) -> bool:
        """One network for each block."""
        return self.pretext == "rubik" and (self.siamese or self.form == "as-coded")

    @property
    def draws_orders(self) -> bool:
        """The orders of the blocks are drawn by the seed."""
        return self.pretext in ("jigsaw", "rubik") and self.form == "as-coded"


@dataclass(frozen=True)
class Network:
    """The U-Net (specification 3)."""

    width: int = 32
    """Filters of the first convolution, each further level has twice as many (32: 16,320,257 parameters without head)."""
    head: Literal["conv", "fully_connect", "plain", "linear"] = "conv"
    """conv: convolution, mean, 1024, classes; fully_connect: dense layers on all positions (540 million parameters at 64^3);
    plain: mean, 2048, classes; linear: mean, classes."""
    up: Literal["nearest", "transposed"] = "nearest"
    """Upsampling of the decoder; transposed in Models Genesis and TransVW."""
    norm_momentum: float = 0.01
    """Share of a batch in the running statistics of batch normalisation (the authors' 0.99 in Keras's words). Trainings of a
    few hundred steps need a larger one, such as 0.1."""

    def __post_init__(self) -> None:
        at_least(1, width=self.width)
        if not 0 < self.norm_momentum <= 1:
            raise SettingError(f"--norm-momentum is {self.norm_momentum:g}", remedy="give more than 0, at most 1")


@dataclass(frozen=True)
class Adversary:
    """The critic of the steps with adversarial learning (specification 2.1)."""

    adversarial: Literal["wgan-gp", "wgan-gp-as-coded", "log"] = "wgan-gp"
    """Wasserstein critic with gradient penalty, corrected or as coded; or the logarithmic loss of Eq. 3."""
    minimax: bool = False
    """log: the generator's term is log(1 - A) as printed, which saturates."""
    critic_norm: Literal["instance", "batch"] = "instance"
    """Normalisation in the critic; batch (as coded) mixes samples, which the gradient penalty does not allow."""
    penalty_weight: float | None = None
    """Of the gradient penalty; default 10, for transvw 100."""
    critic_steps: int = 5
    """Steps of the critic for each one of the generator (rubik and transvw as coded: 1)."""
    critic_lr: float | None = None
    """Learning rate of the critic; default: that of the generator."""
    fake_in_evaluation: bool = False
    """Restored cubes for the critic come from the network in evaluation mode (as coded)."""

    def __post_init__(self) -> None:
        at_least(1, critic_steps=self.critic_steps)
        at_least(0, penalty_weight=self.penalty_weight or 0, critic_lr=self.critic_lr or 0)
        if self.minimax and self.adversarial != "log":
            raise SettingError("--minimax is a form of --adversarial log", remedy="leave it out")

    def penalty_of(self, pretext: str) -> float:
        """Weight of the gradient penalty, 0 for the logarithmic loss."""
        if self.adversarial == "log":
            return 0.0
        if self.penalty_weight is not None:
            return self.penalty_weight
        return 100.0 if pretext == "transvw" else 10.0


@dataclass(frozen=True)
class Training:
    """The recipe of every step; the defaults are those of the authors' rotation and jigsaw (specification 2.2)."""

    batch_size: int = 16
    """Cubes of a batch, over all processes together."""
    max_epochs: int = 10_000
    """Passes over the training cubes, at most, in each step."""
    patience: int = 40
    """Epochs in a row without a better validation that end a step, as Keras counts; 0 = never."""
    optimizer: Literal["nadam", "adam", "sgd"] = "nadam"
    """nadam with beta 0.5 and 0.999 (momentum decay 0.004, epsilon 1e-7); adam; sgd with momentum 0.9."""
    learning_rate: float = 1e-4
    """At the start of each step."""
    halve_every: int | None = None
    """Epochs after which the rate is halved, 0 = never; default 32, and never in adversarial steps."""
    halve_on_plateau: int = 0
    """Halve it after so many epochs without a better validation instead; 0 = no."""
    lambda_d: float = 1.0
    """Weight of the discriminative loss."""
    lambda_r: float = 100.0
    """Weight of the restorative loss."""
    lambda_a: float = 1.0
    """Weight of the adversarial loss."""
    norm: Literal["l2", "l1"] = "l2"
    """Restorative loss: squared differences (paper) or absolute ones (the authors' adversarial TransVW)."""
    epoch_batches: int = 0
    """Batches of an epoch; 0 = a pass over the training cubes."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    show_every: int = 5
    """Epochs between pictures of restored cubes (restored.png) and fresh reports while the training goes on; 0 = only at
    the end."""

    def __post_init__(self) -> None:
        at_least(1, batch_size=self.batch_size, max_epochs=self.max_epochs, log_every=self.log_every)
        at_least(0, patience=self.patience, halve_every=self.halve_every or 0, halve_on_plateau=self.halve_on_plateau)
        at_least(0, learning_rate=self.learning_rate, epoch_batches=self.epoch_batches, show_every=self.show_every)
        at_least(0, lambda_d=self.lambda_d, lambda_r=self.lambda_r, lambda_a=self.lambda_a)
        if self.halve_every and self.halve_on_plateau:
            raise SettingError("--halve-every and --halve-on-plateau contradict each other", remedy="give one of them")

    def halving_of(self, step: str) -> int:
        """Epochs between halvings in a step, 0 = none."""
        if self.halve_on_plateau:
            return 0
        if self.halve_every is not None:
            return self.halve_every
        return 0 if step in ADVERSARIAL else 32


# --- The commands ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demo(DemoSettings):
    """Run everything on phantoms: cubes of made-up CTs, pretraining in steps, transfer, evaluation (about a minute)."""

    out: Path = Path("united-ssl-demo")
    """Folder for phantoms, networks, predictions and report.html."""


@dataclass(frozen=True)
class CheckData:
    """Open every scan or cube and list every problem with file and reason."""

    data: Path
    """A folder of cubes, or anything that `prepare --data` takes."""
    size: tuple[int, int, int] = (64, 64, 64)
    """Cubes that the scans must have room for."""
    margin: tuple[int, int, int] | None = None
    """As for `prepare`."""


@dataclass(frozen=True)
class Prepare:
    """Cut cubes out of scans: for pretraining at random places, visual words (--words), or for a target task (--target)."""

    run: RunSettings
    data: Path
    """Folder of LUNA16 as published (subset0 ... subset9); a folder of NIfTI files; a datalist (CSV with the columns image
    and, as the target needs, mask or label; subject, site, split); or a MedMNIST file (.npz). For --target the folder of
    the data set as its owners publish it."""
    target: TargetTask | Literal["classify", "segment", "none"] = "none"
    """none: cubes for pretraining; classify, segment: labelled cubes from a datalist, each image resized to --size, or for
    segment cut into cubes; NCC, NCS, ECC, LCS, BMS: the paper's target tasks."""
    size: tuple[int, int, int] = (64, 64, 64)
    """Voxels of a cube along x, y, z; multiples of 8."""
    crops: int = 32
    """Cubes of each scan."""
    margin: tuple[int, int, int] | None = None
    """Voxels along x, y, z that cubes keep from the border; default 100 100 30 in CTs, 0 in other images."""
    acceptance: Literal["genesis", "none"] | None = None
    """genesis: cubes may hold little tissue, so that they lie in the lungs; default in CTs. none: any place."""
    intensity: Literal["hu", "percentile"] | None = None
    """hu: Hounsfield units from -1000 to 1000 become [0, 1]; percentile: the 1st to the 99th. Default hu for LUNA16 and
    files with values below -500, else percentile."""
    train_on_test: bool = False
    """LUNA16: subsets 7 to 9 train as well, as in the authors' program; they are the test set of a target task."""
    validation: float = 0.2
    """Share of the subjects that validates where the data name no split, and of the training subjects where a datalist names
    none for that."""
    words: int = 0
    """TransVW: find so many visual words by self-discovery (44 in the paper); 0 = none."""
    instances: tuple[int, int] = (200, 30)
    """TransVW: training and validation scans in which each word is cut."""
    scan_size: tuple[int, int, int] = (128, 128, 64)
    """TransVW: size that whole scans are resized to for the auto-encoder."""
    width: int = 32
    """TransVW: filters of the auto-encoder's first convolution."""
    max_epochs: int = 10_000
    """TransVW: of the auto-encoder, at most."""
    patience: int = 50
    """TransVW: epochs in a row without a lower validation loss that end it, as Keras counts; 0 = never."""
    batch_size: int = 8
    """TransVW: scans of a batch."""

    def __post_init__(self) -> None:
        at_least(1, crops=self.crops, width=self.width, max_epochs=self.max_epochs, batch_size=self.batch_size)
        at_least(0, words=self.words, patience=self.patience)
        for name in ("size", "scan_size"):
            if any(side < 8 or side % 8 for side in getattr(self, name)):
                raise SettingError(
                    f"--{name.replace('_', '-')} is {' '.join(map(str, getattr(self, name)))}",
                    remedy="give multiples of 8",
                )
        if any(side < 0 for side in self.margin or ()):
            raise SettingError("--margin is negative", remedy="give 0 or more")
        if not 0 < self.validation < 1:
            raise SettingError(f"--validation is {self.validation:g}", remedy="give a share between 0 and 1")
        if self.words and self.target != "none":
            raise SettingError("--words and --target contradict each other", remedy="give one of them")
        if min(self.instances) < 1:
            raise SettingError("--instances holds a number below 1", remedy="give at least 1 1")


@dataclass(frozen=True)
class Pretrain:
    """Pretrain encoder, decoder and critic on unlabelled cubes by a pretext task, in one go or step by step."""

    run: RunSettings
    cubes: Path
    """Folder of cubes that `prepare` wrote, or one with the .npy files of Models Genesis or TransVW."""
    steps: Steps = "DRA"
    """D: discriminative; DR: D, then with restoration; DRA: D, DR, then with the critic; joint: all from scratch; joint-DR:
    D and R from scratch."""
    init_from: Path | None = None
    """Run of an earlier step (D for DR, D or DR for DRA) with the same pretext task that the chain goes on from, instead of
    training it here."""
    pretext: Pretext = field(default_factory=Pretext)
    network: Network = field(default_factory=Network)
    training: Training = field(default_factory=Training)
    adversary: Adversary = field(default_factory=Adversary)

    def __post_init__(self) -> None:
        if self.init_from is not None and len(CHAINS[self.steps]) == 1:
            raise SettingError(f"--steps {self.steps} starts from scratch", remedy="leave --init-from out")
        if self.pretext.is_siamese and self.network.head != "conv":
            raise SettingError("the siamese network of rubik has a head of its own", remedy="leave --head out")
        if self.pretext.pretext == "deep-clustering" and self.training.epoch_batches:
            raise SettingError("deep clustering makes new labels after each pass", remedy="leave --epoch-batches out")


@dataclass(frozen=True)
class FineTune:
    """Fine-tune a pretrained network, or train from random weights, on labelled cubes."""

    run: RunSettings
    cubes: Path
    """Folder of labelled cubes: with labels for classification, with masks for segmentation."""
    init: Path | None = None
    """Run of `pretrain`, or its model.safetensors; default: random weights."""
    transfer: Literal["encoder", "encoder-decoder"] = "encoder-decoder"
    """What is taken over; classification has no decoder."""
    task: Literal["auto", "classification", "segmentation"] = "auto"
    """auto: segmentation where the cubes have masks."""
    name: str = ""
    """What tables call the initialisation; default: from the pretrained run, or random."""
    fraction: float = 1.0
    """Share of the training cubes whose labels are used, drawn by the seed (Fig. 4); larger shares hold the smaller ones."""
    width: int | None = None
    """Filters of the first convolution; default: those of the pretrained network, else 32."""
    up: Literal["nearest", "transposed"] | None = None
    """Upsampling of the decoder; default: that of the pretrained network, else nearest."""
    batch_size: int = 16
    """Cubes of a batch (NCC, ECC 24)."""
    learning_rate: float = 1e-3
    """Of Adam (LCS 1e-2)."""
    max_epochs: int = 10_000
    """Passes over the training cubes, at most."""
    patience: int = 50
    """Epochs in a row without a lower validation loss that end it, as Keras counts; 0 = never (NCC 10, NCS 50, ECC 38, LCS 20,
    BMS 30)."""
    plateau: int = 6
    """Epochs without one after which the learning rate is halved (down to 1e-6)."""
    norm_momentum: float = 0.01
    """As for `pretrain`."""
    flips: bool = False
    """Mirror training cubes at random (not in the paper)."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        at_least(1, batch_size=self.batch_size, max_epochs=self.max_epochs, log_every=self.log_every)
        at_least(1, width=1 if self.width is None else self.width)
        at_least(0, learning_rate=self.learning_rate, patience=self.patience, plateau=self.plateau)
        if not 0 < self.norm_momentum <= 1:
            raise SettingError(f"--norm-momentum is {self.norm_momentum:g}", remedy="give more than 0, at most 1")
        if not 0 < self.fraction <= 1:
            raise SettingError(f"--fraction is {self.fraction:g}", remedy="give a share above 0, at most 1")


@dataclass(frozen=True)
class Predict:
    """Apply a network to cubes: scores, masks with their overlap, or restorations of a pretrained network."""

    output: OutputSettings
    cubes: Path
    """Folder of cubes."""
    model: Path
    """Run of `fine-tune` or `pretrain`, or its model.safetensors."""
    split: Literal["train", "val", "test", "all"] = "test"
    """Which cubes; a pretrained network restores those of val where there is no test. `evaluate` scores those of test alone."""
    keep: bool = False
    """Also keep the predicted masks (.npy)."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto."""
    batch_size: int = 16
    """Cubes per forward pass."""
    seed: int = 0
    """Of the distortions that a pretrained network is to undo."""

    def __post_init__(self) -> None:
        at_least(1, batch_size=self.batch_size)


@dataclass(frozen=True)
class Evaluate:
    """Compare predictions: AUC or IoU over seeds, label savings (Fig. 4), Frechet distances of restorations."""

    output: OutputSettings
    predictions: tuple[Path, ...]
    """Folders that `predict` wrote: one for each initialisation, fraction of labels and seed."""
    baseline: str = "random"
    """Initialisation that the others are compared with."""
    extractor: Path | None = None
    """Features for the Frechet distance of axial slices: an ONNX file that takes (N, 3, H, W) in [0, 1] and gives (N, d), or
    weights of Inception v3 (safetensors or PyTorch). Default: the pooled features of the first network's encoder, cube by
    cube, which cannot be compared with the paper."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto (for the features)."""


@dataclass(frozen=True)
class Export:
    """Write a network as an ONNX file: cubes in [0, 1] in; logits, masks, or features and restored cubes out."""

    model: Path
    """Run of `fine-tune` or `pretrain`, or its model.safetensors."""
    out: Path
    """File to write, ending in .onnx."""
    overwrite: bool = False
    """Replace the file."""
