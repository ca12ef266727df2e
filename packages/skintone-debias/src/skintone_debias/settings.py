"""Settings of the method and of its commands. Free of torch so that `--help` stays fast."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar, Literal

from dart_core.errors import SettingError
from dart_core.settings import DemoSettings, OutputSettings, RunSettings, at_least
from skintone_debias.recipes import ALPHA, LR_BASE, LR_CLASS, MOMENTUM, RECIPES, WEIGHT

Debias = Literal["none", "lntl", "lntl-nogr", "tabe", "clgr", "both", "double-tabe", "double-lntl"]
Labeller = Literal["patches", "groh", "groh-full"]
Bands = Literal["kinyanjui", "empirical"]
Angle = Literal["atan", "atan2"]


@dataclass(frozen=True)
class Unlearning:
    """Which method, and where it departs from the paper (specification B3 to B8; the defaults are the authors' program)."""

    debias: Debias = "none"
    """none: baseline; lntl: entropy of the type head and reversed gradient; lntl-nogr: without reversal; tabe: confusion
    of the type head; clgr: tabe with reversed gradient; both, double-tabe, double-lntl: two heads."""
    encoder_lr: float | None = None
    """none: learning rate of the encoder alone. 0.0033 is the control for tabe and clgr, whose encoder is stepped twice on
    the main loss and so learns about eleven times as fast as the baseline's."""
    weight: float = WEIGHT
    """lntl: weight of the negative entropy."""
    alpha: float = ALPHA
    """tabe: weight of the confusion loss."""
    confusion_target: Literal["uniform", "noise"] = "uniform"
    """tabe: what the type head should be confused into: all types alike (paper), or random numbers (authors' program; the
    printed results)."""
    authors_both: bool = False
    """both: take entropy and confusion from the first head, as the authors' program does, not one from each."""
    reverse: Literal["auto", "on", "off"] = "auto"
    """Reverse the type heads' gradient on its way into the encoder; auto: as the method does."""
    aux_first: bool = False
    """Train the type heads before the rest of a step (the paper's text), not after it (the authors' program)."""
    aux_updates_encoder: bool = True
    """Without reversal: let the type heads' loss step the encoder too, as the authors' program does (the original TABE
    does not)."""
    zero_grad_mode: Literal["none", "zero"] = "none"
    """Clear gradients by forgetting them, or (the authors' version of PyTorch) by setting them to 0, so that momentum goes
    on moving the main head while the type heads are trained."""
    deep_heads: bool = False
    """Type heads with a hidden layer of 128."""

    def __post_init__(self) -> None:
        recipe = RECIPES[self.debias]
        at_least(0, weight=self.weight, alpha=self.alpha)

        def only(name: str, meant: bool) -> None:
            default = next(item.default for item in fields(self) if item.name == name)
            if getattr(self, name) != default and not meant:
                flag = f"no-{name}" if getattr(self, name) is False else name
                raise SettingError(
                    f"--{flag.replace('_', '-')} has no meaning for --debias {self.debias}", remedy="leave it out"
                )

        only("encoder_lr", self.debias == "none")
        only("weight", bool(recipe.entropy))
        for name in ("alpha", "confusion_target"):
            only(name, bool(recipe.confusion))
        only("authors_both", self.debias == "both")
        for name in ("reverse", "aux_first", "aux_updates_encoder", "zero_grad_mode", "deep_heads"):
            only(name, bool(recipe.heads))
        if self.encoder_lr is not None:
            at_least(0, encoder_lr=self.encoder_lr)
        if self.reverses and not self.aux_updates_encoder:
            raise SettingError(
                f"--no-aux-updates-encoder contradicts the reversed gradient of --debias {self.debias}",
                remedy="give --reverse off as well, or leave it out",
            )

    @property
    def reverses(self) -> bool:
        """Whether the type heads' gradient is reversed."""
        return RECIPES[self.debias].reverse if self.reverse == "auto" else self.reverse == "on"

    @property
    def name(self) -> str:
        """What tables call it: the method or lr-control, and in brackets what departs from the defaults."""
        method = "lr-control" if self.encoder_lr is not None else self.debias
        other = []
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name != "debias" and value != item.default:
                words = item.name.replace("_", " ")
                other.append(words if value is True else f"no {words}" if value is False else f"{words} {value}")
        return f"{method} ({', '.join(other)})" if other else method


@dataclass(frozen=True)
class Training:
    """The training recipe (specification B7 to B11)."""

    encoder: str = "resnext101_32x8d"
    """Any network that timm knows."""
    weights: Path | None = None
    """Its weights (.safetensors or .pth, for example ImageNet's from timm or torchvision); without them it starts from
    random ones."""
    image_size: int | None = None
    """Side of the pictures as the network sees them; default: 256, for inception_v3 299."""
    square: bool = False
    """Cut out the middle square first, not squeeze the picture."""
    epochs: int = 15
    """The paper: 30 for Fitzpatrick17k, 4 for ISIC."""
    batch_size: int = 64
    """Pictures in a batch, over all processes together; what does not fill the last batch of an epoch is left out of it."""
    lr_base: float = LR_BASE
    """Learning rate of encoder and main head, and of the type heads of lntl."""
    lr_class: float = LR_CLASS
    """That of the type heads of tabe, and of the encoder's second optimiser."""
    momentum: float = MOMENTUM
    """Of stochastic gradient descent."""
    fold: int | None = None
    """Cross-validation: validate on this fold (from 0) of the training pictures and train on the others."""
    folds: int = 5
    """Number of folds, where the datalist has no column fold; all pictures of a subject are in one."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        at_least(1, epochs=self.epochs, batch_size=self.batch_size, log_every=self.log_every)
        at_least(2, folds=self.folds)
        at_least(0, lr_base=self.lr_base, lr_class=self.lr_class)
        if self.image_size is not None:
            at_least(32, image_size=self.image_size)
        if not 0 <= self.momentum < 1:
            raise SettingError(f"--momentum is {self.momentum}", remedy="give a number from 0 to below 1")
        if self.fold is not None:
            at_least(0, fold=self.fold)

    @property
    def side(self) -> int:
        """Side of the pictures as the network sees them (B10)."""
        return self.image_size or (299 if self.encoder.partition(".")[0] == "inception_v3" else 256)


@dataclass(frozen=True)
class CaseSettings:
    """Which pictures, and what is known about them."""

    datalist: Path
    """CSV with the columns image, label, fitzpatrick, subject, site, split (`label --out` writes fitzpatrick); or the folder
    of Fitzpatrick17k, ISIC, the Interactive Atlas, ASAN or MClass as published."""
    label: str = "label"
    """Column with 1 = malignant, 0 = benign."""
    nuisance: tuple[str, ...] = ("fitzpatrick",)
    """Column to unlearn (site too), or one for each of two heads, of at most 50 values. Pictures where it is empty or -1 are
    not trained on."""
    sites: tuple[str, ...] = ()
    """Sites to train on; default: all."""


# --- The commands ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demo(DemoSettings):
    """Run everything on phantom lesions: label, train by every method, predict, evaluate (about a minute)."""

    out: Path = Path("skintone-debias-demo")
    """Folder for phantoms, labels, networks, predictions and report.html."""


@dataclass(frozen=True)
class CheckData:
    """Open every picture of a datalist and list every problem with file, row and column."""

    cases: CaseSettings


@dataclass(frozen=True)
class Label:
    """Give every photograph its skin tone: individual typology angle (ITA) and Fitzpatrick type 1 to 6.

    A file that cannot be labelled gets a row with the reason, and the rest goes on. Beside the table stand a report, a
    sheet of pictures with their patches, and the distribution of types, named like the table.
    """

    POSITIONAL: ClassVar[str] = "pictures"

    pictures: tuple[Path, ...]
    """Folders (searched through), picture files, one datalist (CSV with a column image), or one folder as published, see
    `train`; may stand first without its flag."""
    out: Path = Path("tones.csv")
    """Table to write, ending in .csv: image, ita, fitzpatrick, patch, the eight values ita_0 to ita_7, reason, and what
    the datalist says of the picture."""
    overwrite: bool = False
    """Replace an earlier table and what stands beside it."""
    method: Labeller = "patches"
    """patches: lightest of eight small patches near the border, hair removed (the paper's); groh: mean of the pixels
    inside a colour mask (Groh et al. 2021); groh-full: mean of all pixels."""
    bands: Bands = "kinyanjui"
    """Bounds between the types, in degrees: kinyanjui 55 41 28 19 10 (the paper's), empirical 45 28 17 5 -20 (Groh's,
    fitted to Fitzpatrick17k)."""
    angle: Angle | None = None
    """atan: -90 to 90 degrees (the paper's; default for patches), atan2: -180 to 180 (Groh's; default for groh)."""
    pre_sized: bool = False
    """patches: the pictures are 256 x 256 already; others are refused instead of cropped and resized."""
    reject_neutral: bool = False
    """patches: leave out patches that are grey, bluish, black or white (b* <= 1, L* < 5 or L* > 98): background, ink,
    rulers, vignettes. Not in the paper, where they often are the lightest."""
    truth: str = "auto"
    """Column of the datalist with human Fitzpatrick types 1 to 6 (-1 or empty: unknown) to compare with; auto:
    fitzpatrick or fitzpatrick_scale where there is one (not of ISIC, where a labeller gave them), none: no comparison."""
    sheet: int = 24
    """Pictures on the sheet, evenly spaced over the list; 0 for no sheet."""
    published: bool = False
    """Show the paper's distribution (ISIC training pictures, Fig. 4) beside ours, and its agreement with human types."""
    workers: int | None = None
    """Processes that read and label; default: one per core, 0 for none but the command itself."""

    def __post_init__(self) -> None:
        at_least(0, sheet=self.sheet, workers=self.workers or 0)
        if self.out.suffix.lower() != ".csv":
            raise SettingError(f"--out is {self.out}", remedy="give the name of a table that ends in .csv")
        for name in ("pre_sized", "reject_neutral"):
            if getattr(self, name) and self.method != "patches":
                raise SettingError(
                    f"--{name.replace('_', '-')} has no meaning for --method {self.method}", remedy="leave it out"
                )


@dataclass(frozen=True)
class Train:
    """Train a classifier that tells malignant from benign, and unlearns skin type (or another nuisance) while it learns.

    The last epoch's weights are model.safetensors. With validation pictures (split val, or --fold) those of the epoch with
    the best AUC are kept beside them, in best.safetensors.
    """

    run: RunSettings
    cases: CaseSettings
    unlearning: Unlearning = field(default_factory=Unlearning)
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        heads = len(RECIPES[self.unlearning.debias].heads)
        if heads == 1 and len(self.cases.nuisance) != 1:
            raise SettingError(
                f"--nuisance names {len(self.cases.nuisance)} columns, --debias {self.unlearning.debias} unlearns one",
                remedy="name one column",
            )
        if heads == 2 and len(self.cases.nuisance) not in (1, 2):
            raise SettingError(
                f"--nuisance names {len(self.cases.nuisance)} columns, --debias {self.unlearning.debias} has two heads",
                remedy="name one column for each head, or one for both",
            )
        if self.run.accumulate > 1:
            raise SettingError(
                "--accumulate has no meaning for a step in two phases", remedy="use --precision bf16 to save memory"
            )
        if self.run.precision == "fp16" and RECIPES[self.unlearning.debias].confusion:
            raise SettingError(
                f"--precision fp16 cannot be used with --debias {self.unlearning.debias}, whose encoder has two optimisers",
                remedy="give bf16",
            )


@dataclass(frozen=True)
class Predict:
    """Score pictures with a trained classifier, as mean over eight flips and turns."""

    output: OutputSettings
    datalist: Path
    """CSV with the column image, or a folder as published, see `train`."""
    model: Path
    """Run folder of `train`, or a file such as its best.safetensors."""
    sites: tuple[str, ...] = ()
    """Sites to score; default: all."""
    split: Literal["train", "val", "test", "all"] = "test"
    """Which of their pictures."""
    views: Literal[8, 1] = 8
    """Mean over eight flips and turns (the paper's), or the picture as it is."""
    batch_size: int = 64
    """Views in a forward pass."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto."""

    def __post_init__(self) -> None:
        at_least(1, batch_size=self.batch_size)


@dataclass(frozen=True)
class Evaluate:
    """Score predictions: AUC per group of skin types with its standard error and the gap, ROC and calibration."""

    output: OutputSettings
    predictions: tuple[Path, ...]
    """Folders that `predict` wrote. Networks of several encoders or sizes of pictures, of other weight files than
    model.safetensors, or scored on another number of views stand apart."""
    group_by: str = "fitzpatrick"
    """Column of the predictions that says which group a picture belongs to."""
    single_types: bool = False
    """Score each skin type alone, not types 1 and 2, 3 and 4, 5 and 6 together (as the paper)."""
    baseline: str = "none"
    """Method that the others are compared with, over seeds, by the name that the tables give it."""


@dataclass(frozen=True)
class Export:
    """Write encoder and main head as ONNX and check the file against PyTorch."""

    model: Path
    """Run folder of `train`, or a file such as its best.safetensors."""
    out: Path
    """File to write, ending in .onnx."""
    overwrite: bool = False
    """Replace the file if it is there."""
