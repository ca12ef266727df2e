"""Settings of the method and of its commands. Free of torch so that `--help` stays fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from dart_core.errors import SettingError
from dart_core.settings import OutputSettings, RunSettings, at_least

Debias = Literal["none", "lntl", "lntl-nogr", "tabe", "clgr", "both", "double-tabe", "double-lntl"]
Labeller = Literal["patches", "groh", "groh-full"]
Bands = Literal["kinyanjui", "empirical"]
Angle = Literal["atan", "atan2"]


# --- The commands ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demo:
    """Run everything on phantom lesions: label, train by every method, predict, evaluate (about a minute)."""

    out: Path = Path("skintone-debias-demo")
    """Folder for phantoms, labels, networks, predictions and report.html."""
    overwrite: bool = False
    """Replace an earlier demo in --out."""
    seed: int = 0
    """Seed of phantoms and training."""


@dataclass(frozen=True)
class CheckData:
    """Open every picture of a datalist and list every problem with file, row and column."""

    datalist: Path
    """CSV with the columns image, label, fitzpatrick, subject, site, split."""


@dataclass(frozen=True)
class Label:
    """Give every photograph its skin tone: individual typology angle (ITA) and Fitzpatrick type 1 to 6.

    A file that cannot be labelled gets a row with the reason, and the rest goes on. Beside the table stand a report, a
    sheet of pictures with their patches, and the distribution of types, named like the table.
    """

    POSITIONAL: ClassVar[str] = "pictures"

    pictures: tuple[Path, ...]
    """Folders (searched through), picture files, or one datalist (CSV with a column image); may stand first without its
    flag."""
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
    """patches: leave out patches that are grey, black or white (b* <= 1, L* < 5 or L* > 98): background, ink, rulers,
    vignettes. Not in the paper, where they often are the lightest."""
    truth: str = "auto"
    """Column of the datalist with human Fitzpatrick types 1 to 6 (-1 or empty: unknown) to compare with; auto:
    fitzpatrick or fitzpatrick_scale where there is one, none: no comparison."""
    sheet: int = 48
    """Pictures on the sheet, evenly spaced over the list; 0 for no sheet."""
    published: bool = False
    """Show the paper's distribution (ISIC training pictures, Fig. 4) beside ours."""
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
    """Train a classifier that tells malignant from benign, and unlearns skin type (or another nuisance) while it learns."""

    run: RunSettings
    datalist: Path
    """CSV with the columns image, label, fitzpatrick, subject, site, split."""
    debias: Debias = "none"
    """none: baseline; lntl: entropy of the type head and reversed gradient; lntl-nogr: without reversal; tabe: confusion
    of the type head; clgr: tabe with reversed gradient; both, double-tabe, double-lntl: two heads."""


@dataclass(frozen=True)
class Predict:
    """Score pictures with a trained classifier, as mean over eight flips and turns."""

    output: OutputSettings
    datalist: Path
    """CSV with the column image."""
    model: Path
    """Run folder of `train`, or its model.safetensors."""


@dataclass(frozen=True)
class Evaluate:
    """Score predictions: AUC per group of skin types with its standard error and the gap, ROC and calibration."""

    output: OutputSettings
    predictions: tuple[Path, ...]
    """Folders that `predict` wrote."""


@dataclass(frozen=True)
class Export:
    """Write the classifier as ONNX and check it against PyTorch."""

    model: Path
    """Run folder of `train`, or its model.safetensors."""
    out: Path
    """File to write, ending in .onnx."""
    overwrite: bool = False
    """Replace the file if it is there."""
