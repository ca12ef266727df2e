"""Settings of the method and of the commands. Free of torch so that `--help` stays fast."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar, Literal

from dart_core.errors import SettingError
from dart_core.settings import DemoSettings, OutputSettings, RunSettings, at_least

Method = Literal["vanilla", "macenko", "vahadane", "stst-gan", "dscsi-gan", "hed", "hed-reg", "hed-cons", "stain-aglr"]
Space = Literal["offset2", "skimage", "od"]
Quantise = Literal["round", "truncate", "none"]
CrossEntropyOn = Literal["both", "altered", "raw"]
RegenerationForm = Literal["pixel", "element"]
SplitBy = Literal["subject", "image"]
Halving = Literal["second", "first", "pool"]
Upsampling = Literal["nearest", "bilinear"]

UNMIXED = ("macenko", "vahadane")
"""Methods that find two stains in every patch, and give it those of a reference."""
GANS = ("stst-gan", "dscsi-gan")
"""Methods whose generator paints every patch anew."""
NORMALISED = (*UNMIXED, *GANS)
"""Methods that give every patch the training laboratory's colours before it is classified."""
ALTERED = ("hed", "hed-reg", "hed-cons", "stain-aglr")
"""Methods that train on patches with altered stains."""
REGENERATING = ("hed-reg", "stain-aglr")
"""Methods with the stain regeneration loss."""
CONSISTENT = ("hed-cons", "stain-aglr")
"""Methods with the consistency loss."""
DSCSI_ONLY = ("gan_backbone", "gan_weights", "feature_epochs")
"""Settings of a GAN that stst-gan has not."""
ON = "on"
"""Value of a switch in `Train.options`."""


@dataclass(frozen=True)
class PatchSettings:
    """Which patches a command reads."""

    datalist: Path
    """CSV with the columns image, label (0 or 1), site (the laboratory), and if there are any subject (slide or case) and
    split (train, val, test); `stain-aglr patches` writes one. Or the folder of Camelyon17-WILDS."""
    image_size: int | None = None
    """Side that patches are resized to, a multiple of 32; default: the patches' own, after training that of training."""

    def __post_init__(self) -> None:
        if self.image_size is not None and (self.image_size < 32 or self.image_size % 32):
            nearest = max(32, round(self.image_size / 32) * 32)
            raise SettingError(
                f"--image-size is {self.image_size}",
                remedy=f"give a multiple of 32 such as {nearest}: the network halves it five times",
            )


@dataclass(frozen=True)
class Training:
    """The recipe; the defaults are the paper's for Camelyon17 (section 2.1)."""

    width: int = 32
    """Filters of the first stage, each further stage has twice as many (32: 4,846,050 parameters at inference)."""
    halving: Halving = "second"
    """What halves the side in each stage, which the paper does not print: stride 2 in its second convolution or in its first,
    or 2x2 max pooling behind both."""
    relu_logits: bool = False
    """A ReLU on the logits, as Table 3 prints it; it kills half of the gradient."""
    upsampling: Upsampling = "nearest"
    """How the generator doubles the side."""
    batch_size: int = 64
    """Raw patches of a batch, over all processes together; methods with altered patches put twice as many through the
    network."""
    balanced: bool = False
    """Half of every training batch from each class, drawn with replacement (TUPAC)."""
    learning_rate: float = 1e-2
    """Of Adam at the start (TUPAC: 5e-3)."""
    patience: int = 4
    """Epochs without a lower validation loss that are tolerated; the next one divides the learning rate by 10 (TUPAC: 15)."""
    stop_lr: float = 1e-5
    """The training ends when the learning rate has come down to this."""
    max_epochs: int = 300
    """And after so many epochs at the latest (not in the paper)."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        at_least(1, width=self.width, batch_size=self.batch_size, max_epochs=self.max_epochs, log_every=self.log_every)
        at_least(0, patience=self.patience, learning_rate=self.learning_rate, stop_lr=self.stop_lr)
        if self.balanced and self.batch_size % 2:
            raise SettingError(f"--balanced halves a batch of {self.batch_size}", remedy="give an even --batch-size")


@dataclass(frozen=True)
class Losses:
    """The loss of Eq. 1 and what the paper leaves open about it (specification 2.4)."""

    lambda1: float | None = None
    """Weight of the stain regeneration loss. Default 0.1 for stain-aglr and hed-reg, 0 for the others."""
    lambda2: float | None = None
    """Weight of the consistency loss. Default 10 for stain-aglr and hed-cons, 0 for the others."""
    ce_on: CrossEntropyOn | None = None
    """Patches that the cross-entropy looks at; default both, for hed altered."""
    detach_target: bool = False
    """The consistency loss moves the prediction for the altered patch only (paper: both)."""
    form: RegenerationForm = "pixel"
    """Regeneration loss: squared distance of colours per pixel (Eq. 3), or per value, which is a third of it."""

    def __post_init__(self) -> None:
        at_least(0, lambda1=self.lambda1 or 0, lambda2=self.lambda2 or 0)


@dataclass(frozen=True)
class Augmentation:
    """How patches are altered (specification 2.2 and 2.3)."""

    strength: float = 0.05
    """Largest change of a stain, relative and absolute: 0.05 = HED-light, 0.2 = HED-strong."""
    space: Space = "offset2"
    """What a stain value is: offset2 (logarithm of x + 2, for which HED-light was tuned), skimage (scikit-image from 0.18
    on), od (optical density)."""
    quantise: Quantise = "round"
    """Grey levels after the change of stain: rounded, cut off (as in the Nijmegen code), or left fractional."""
    spatial: Literal["light", "rigid"] = "light"
    """Shared by raw and altered patch: light = quarter turns, flips, scaling and elastic deformation; rigid = quarter turns
    and flips only."""
    largest_blur: float = 1.0
    """Upper end of the blur's sigma in pixels (lower end 0.1)."""

    def __post_init__(self) -> None:
        at_least(0, strength=self.strength)
        at_least(0.1, largest_blur=self.largest_blur)


@dataclass(frozen=True)
class GanTraining:
    """How the two GANs that normalise patches are trained; defaults are those of their authors' programs (specification 4.4, 4.5)."""

    gan_size: int = 256
    """Side in pixels that a GAN works at, a power of two; patches of another size are resized to it and back."""
    gan_width: int = 64
    """Filters of the generator's first convolution."""
    gan_epochs: int | None = None
    """Passes over the training patches; default 15 for stst-gan, 8 for dscsi-gan."""
    gan_batch_size: int | None = None
    """Patches of a batch; default 1 for stst-gan, 4 (half of each class) for dscsi-gan."""
    gan_learning_rate: float | None = None
    """Of Adam for both networks; default 2e-4 for stst-gan, 1e-3 for dscsi-gan."""
    gan_backbone: str = "resnet34"
    """Network (a timm name) whose features dscsi-gan keeps; it is first trained on the training patches."""
    gan_weights: Path | None = None
    """File with its ImageNet weights; default: random weights."""
    feature_epochs: int = 5
    """Passes in which it is trained (the authors' program does not say)."""
    gan_log_every: int = 50
    """Steps between lines of the GAN's metrics.jsonl."""

    def __post_init__(self) -> None:
        if self.gan_size not in (32, 64, 128, 256):
            raise SettingError(f"--gan-size is {self.gan_size}", remedy="give 32, 64, 128 or 256")
        at_least(1, gan_width=self.gan_width, gan_log_every=self.gan_log_every)
        at_least(1, gan_epochs=1 if self.gan_epochs is None else self.gan_epochs)
        at_least(1, gan_batch_size=1 if self.gan_batch_size is None else self.gan_batch_size)
        at_least(0, feature_epochs=self.feature_epochs, gan_learning_rate=self.gan_learning_rate or 0)

    def epochs_of(self, method: str) -> int:
        """Passes of a method."""
        return {"stst-gan": 15, "dscsi-gan": 8}[method] if self.gan_epochs is None else self.gan_epochs

    def batch_of(self, method: str) -> int:
        """Batch size of a method."""
        return {"stst-gan": 1, "dscsi-gan": 4}[method] if self.gan_batch_size is None else self.gan_batch_size

    def rate_of(self, method: str) -> float:
        """Learning rate of a method."""
        return (
            {"stst-gan": 2e-4, "dscsi-gan": 1e-3}[method] if self.gan_learning_rate is None else self.gan_learning_rate
        )


# --- The commands ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demo(DemoSettings):
    """Run everything on phantom patches of four laboratories: train, predict, evaluate (about a minute)."""

    out: Path = Path("stain-aglr-demo")
    """Folder for phantoms, networks, predictions and report.html."""


@dataclass(frozen=True)
class CheckData:
    """Open every patch of a datalist and list every problem with file, row and column."""

    patches: PatchSettings
    site: str = ""
    """Training laboratory: its training and validation patches must hold both classes."""
    split_by: SplitBy = "subject"
    """As for `train`: what is drawn for validation where the laboratory's rows name no split."""


@dataclass(frozen=True)
class Patches:
    """Cut labelled patches out of whole slides with outlined tumour, or around the labelled cells of TUPAC16."""

    output: OutputSettings
    slides: Path
    """Folder of CAMELYON17, or of TUPAC16's pictures (then with --labels), or a CSV with the columns image (the slide), mask
    (its outlines as ASAP's XML, or a mask TIFF with 1 = tumour), and if there are any site, subject, split."""
    labels: Path | None = None
    """SQLite file of TUPAC16's alternative labels."""
    site: str = ""
    """Training laboratory: a fifth of its subjects validates, all others' are for test. Default RUMC of CAMELYON17, centre1
    of TUPAC16; a CSV may name its own splits."""
    size: int | None = None
    """Side of the patches in pixels; default 256, around cells 128."""
    level: int = 0
    """Level of the slides' pyramid that is cut; 0 is the largest."""
    tissue: float = 0.2
    """Least share of tissue in a patch without tumour."""
    balance: bool = True
    """No more patches without tumour than with tumour, laboratory by laboratory, drawn at random; else all."""
    limit: int = 0
    """At most so many patches of each label per laboratory, drawn at random; 0 = all."""
    workers: int = 4
    """Threads that read and write patches."""
    seed: int = 0
    """Seed of what is drawn."""
    resume: bool = False
    """Continue the run in --out; patches that are there are not cut again."""

    def __post_init__(self) -> None:
        at_least(0, level=self.level, limit=self.limit)
        at_least(1, workers=self.workers)
        at_least(16, size=16 if self.size is None else self.size)
        if not 0 < self.tissue <= 1:
            raise SettingError(f"--tissue is {self.tissue:g}", remedy="give a share above 0, at most 1")
        if self.resume and self.output.overwrite:
            raise SettingError("--resume and --overwrite contradict each other", remedy="give one of them")
        for name in ("level", "tissue", "balance", "limit"):
            if self.labels is not None and getattr(self, name) != getattr(Patches, name):
                raise SettingError(
                    f"--{name} is for slides; --labels takes all labelled cells of the pictures", remedy="leave it out"
                )


@dataclass(frozen=True)
class Train:
    """Train a patch classifier on one laboratory by any method of the paper's tables."""

    run: RunSettings
    patches: PatchSettings
    method: Method = "stain-aglr"
    """vanilla: quarter turns and flips; macenko, vahadane, stst-gan, dscsi-gan: vanilla on normalised patches; hed:
    HED-light; hed-reg, hed-cons: with one of the losses; stain-aglr: with both."""
    site: str = ""
    """Training laboratory; may be left out where the datalist has one only."""
    split_by: SplitBy = "subject"
    """Where the laboratory's rows name no split, a fifth of its subjects (slides, cases) or of its patches validates, at
    least one."""
    reference: Path | None = None
    """macenko, vahadane: picture of that laboratory whose stains are given to all patches. Default: its training patch whose
    mean colour is nearest to the mean of all."""
    standardise_luminosity: bool = False
    """vahadane: first scale the lightness so that its 95th percentile is white."""
    training: Training = field(default_factory=Training)
    losses: Losses = field(default_factory=Losses)
    augmentation: Augmentation = field(default_factory=Augmentation)
    gan: GanTraining = field(default_factory=GanTraining)

    def __post_init__(self) -> None:
        for part, names, methods, what in (
            (self.losses, ("lambda1", "form"), REGENERATING, "the regeneration loss"),
            (self.losses, ("lambda2", "detach_target"), CONSISTENT, "the consistency loss"),
            (self.losses, ("ce_on",), (*REGENERATING, *CONSISTENT), "raw and altered patches in one batch"),
            (self.training, ("upsampling",), REGENERATING, "the generator that regenerates stains"),
            (self.augmentation, _names(Augmentation), ALTERED, "altered patches"),
            (self.gan, DSCSI_ONLY, ("dscsi-gan",), "the network whose features are kept"),
            (self.gan, _names(GanTraining), GANS, "a GAN that normalises patches"),
            (self, ("reference",), UNMIXED, "a reference picture"),
            (self, ("standardise_luminosity",), ("vahadane",), "a choice of lightness"),
        ):
            for name in names:
                if self.method not in methods and getattr(part, name) != getattr(type(part), name):
                    raise SettingError(
                        f"--{name.replace('_', '-')} is about {what}, which --method {self.method} has not",
                        remedy=f"leave it out, or give --method {' or '.join(dict.fromkeys(methods))}",
                    )

    @property
    def options(self) -> dict[str, str]:
        """What departs from the method's defaults, by name: losses, altered patches, balance, normalisation; `ON` for a switch.

        Weights of the losses and layers are not among it; a network file has them by themselves.
        """
        gan, written_out = GanTraining(), {"ce_on": "both"}  # defaults that depend on the method may be given in words
        if self.method in GANS:
            written_out |= {
                "gan_epochs": str(gan.epochs_of(self.method)), "gan_batch_size": str(gan.batch_of(self.method)),
                "gan_learning_rate": str(gan.rate_of(self.method)),
            }  # fmt: skip
        found = {}
        for part, names in (
            (self.losses, ("ce_on", "detach_target", "form")),
            (self.augmentation, _names(Augmentation)),
            (self.training, ("balanced",)),
            (self, ("reference", "standardise_luminosity")),
            (self.gan, [name for name in _names(GanTraining) if name != "gan_log_every"]),
        ):
            for name in names:
                value = getattr(part, name)
                text = ON if value is True else value.name if isinstance(value, Path) else str(value)
                if value != getattr(type(part), name) and text != written_out.get(name):
                    found[name] = text
        return found


def _names(settings: type) -> tuple[str, ...]:
    return tuple(f.name for f in fields(settings))


@dataclass(frozen=True)
class Normalise:
    """Give pictures the stains of a reference (macenko, vahadane: no training), or the colours a trained run gives them."""

    POSITIONAL: ClassVar[str] = "pictures"
    pictures: Path
    """Folder of pictures, one picture, or a datalist (CSV with the column image)."""
    output: OutputSettings
    method: tuple[Literal["macenko", "vahadane"], ...] = ()
    """One or both; default macenko, or only those of --model."""
    reference: Path | None = None
    """Picture whose stains are given to all. Default: for macenko its published reference, for vahadane the picture whose
    mean colour is nearest to the mean of all."""
    reference_from_mean: bool = False
    """Choose the reference like that for macenko too."""
    standardise_luminosity: bool = False
    """vahadane: first scale the lightness so that its 95th percentile is white."""
    model: tuple[Path, ...] = ()
    """Runs of `train` whose normalisers (macenko, vahadane, stst-gan, dscsi-gan) or generators (hed-reg, stain-aglr) are
    applied as well."""
    workers: int = 0
    """Pictures at a time; 0 = as many as there are processors."""
    time_repeats: int = 0
    """Also time 100 patches of 128 x 128 so many times (Table 2 of the paper)."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto, for the networks of --model."""

    def __post_init__(self) -> None:
        at_least(0, workers=self.workers, time_repeats=self.time_repeats)
        if self.reference is not None and self.reference_from_mean:
            raise SettingError("--reference and --reference-from-mean contradict each other", remedy="give one of them")


@dataclass(frozen=True)
class Predict:
    """Score patches of any laboratory: the probability of class 1, and the AUC per laboratory where labels are known."""

    patches: PatchSettings
    output: OutputSettings
    model: Path
    """Run folder of `train`, or its model.safetensors."""
    sites: tuple[str, ...] = ()
    """Laboratories; default: all of the datalist."""
    split: Literal["test", "val", "all"] = "test"
    """test: all patches of laboratories that training did not see, and the training laboratory's validation and test
    patches; val: only its validation patches; all: its training patches as well."""
    features: bool = False
    """Also keep the 512 pooled features of each patch, for Fig. 2 of the paper."""
    drop_last: bool = False
    """Leave out what does not fill the last batch of each laboratory's test patches, only to reproduce the paper's counts
    (1,600 of 1,609 and 1,344 of 1,357 in Table 2)."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto."""
    batch_size: int = 64
    """Patches per forward pass."""

    def __post_init__(self) -> None:
        at_least(1, batch_size=self.batch_size)


@dataclass(frozen=True)
class Evaluate:
    """Compare predictions: AUC per laboratory over seeds beside the printed tables; Fig. 2 and Fig. 5 where they can be."""

    output: OutputSettings
    predictions: tuple[Path, ...]
    """Folders that `predict` wrote: one for each method and seed."""
    baseline: Method = "vanilla"
    """Method that the others are compared with."""
    embedding: Literal["tsne", "umap"] = "tsne"
    """How Fig. 2 brings features (of `predict --features`) to two dimensions; umap (the paper's) needs the extra
    stain-aglr[umap]."""


@dataclass(frozen=True)
class Export:
    """Write the classifier as an ONNX file: RGB patches in [0, 1] in, two logits out; no generator, no normaliser."""

    model: Path
    """Run folder of `train`, or its model.safetensors."""
    out: Path
    """File to write, ending in .onnx."""
    overwrite: bool = False
    """Replace the file."""
