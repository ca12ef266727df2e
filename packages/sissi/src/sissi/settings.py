"""Settings of the method and of the commands. Free of torch so that `--help` stays fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dart_core.errors import SettingError
from dart_core.settings import DemoSettings, OutputSettings, RunSettings, at_least

Configuration = Literal["baseline", "sissi-w", "sissi-s", "plain-a", "a-sissi-w", "a-sissi-s"]
Start = Literal["adele", "validation", "never"]
Background = Literal["weak", "strong", "none"]
Paste = Literal["mixed", "normal", "hard", "black"]
Kind = Literal["circles", "edges", "watershed"]
Pipeline = Literal["circles", "edges", "watershed", "by-state"]
Reconstruction = Literal["and", "min"]
Grey = Literal["swapped", "correct"]
Split = Literal["train", "val", "test", "all"]

ROWS: dict[Configuration, tuple[Start, Background]] = {
    "baseline": ("validation", "none"), "sissi-w": ("validation", "weak"), "sissi-s": ("validation", "strong"),
    "plain-a": ("adele", "none"), "a-sissi-w": ("adele", "weak"), "a-sissi-s": ("adele", "strong"),
}  # fmt: skip
"""Rows of Table 1 -> when the correction starts, and the blur behind the cloned cells."""
NAMES: dict[Configuration, str] = {
    "baseline": "Baseline", "sissi-w": "SISSI (W)", "sissi-s": "SISSI (S)", "plain-a": "Plain A",
    "a-sissi-w": "A+SISSI (W)", "a-sissi-s": "A+SISSI (S)",
}  # fmt: skip
"""What the table calls them."""
BLUR: dict[Background, tuple[tuple[int, int], float | None]] = {
    "weak": ((21, 21), None), "strong": ((71, 71), 30.0), "none": ((1, 1), None),
}  # fmt: skip
"""Kernel and sigma (specification Y2)."""


@dataclass(frozen=True)
class DataSettings:
    """Which pictures a command reads."""

    source: Path
    """Pictures with good boxes from another microscope: a CSV file with a row per box (image, xmin, ymin, xmax, ymax, and if
    there are any label, split, site), a datalist with a column boxes or mask, a COCO file, a folder of Pascal VOC files, or
    the folder of Cellpose. Rows of split val validate; without any, a tenth is drawn."""
    target: Path
    """Pictures with imperfect boxes (weak labels), likewise, or a folder laid out like CellLab. Those of split train, or
    without split, are trained on."""
    classes: tuple[str, ...] = ()
    """Classes of boxes that count as cells; default all."""
    ignore: tuple[str, ...] = ("fibre",)
    """Classes that do not."""
    edges: Literal["drop", "clip"] = "drop"
    """Boxes that leave the picture or touch its right or bottom edge: dropped (as coded, specification 5) or cut to it."""
    memory: bool = False
    """Keep all pictures in memory once they are read."""

    @property
    def changes(self) -> list[str]:
        """What is not the paper's."""
        return [f"edges {self.edges}"] if self.edges != DataSettings.edges else []


@dataclass(frozen=True)
class DetectorSettings:
    """The detector."""

    detector: str = "fasterrcnn_resnet50_fpn"
    """The paper's; any other Faster R-CNN, RetinaNet or FCOS of torchvision by its name there; or "small", a Faster R-CNN with
    four convolutions, for small pictures and machines without GPU."""
    init: Path | None = None
    """Weight file of this detector, such as torchvision's trained on COCO; of other classes, all but the last layer is taken.
    Default: random weights."""
    size: int = 512
    """Side of the square that pictures are resized to."""
    batch_norm: Literal["auto", "frozen", "trained"] = "auto"
    """Frozen (paper) makes sense with trained weights only: auto freezes batch norm where --init is given."""
    colours: Literal["rgb", "bgr"] = "rgb"
    """Order of the channels; the authors feed blue, green, red and normalise them as red, green, blue (specification 8.15)."""
    score: float = 0.05
    """Lowest score of a detection."""
    nms: float = 0.2
    """Of two detections that overlap by more than this (IoU) one goes."""
    detections: int = 400
    """At most, of a picture."""

    def __post_init__(self) -> None:
        at_least(32, size=self.size)
        at_least(1, detections=self.detections)
        _share("score", self.score)
        _share("nms", self.nms)

    @property
    def changes(self) -> list[str]:
        """What is not the paper's or, of weights and batch norm, not the default, as far as it has an effect."""
        words = [f"detector {self.detector}"] if self.detector != DetectorSettings.detector else []
        if self.init is not None:
            # Files of one name in two folders, such as model.safetensors of two runs, are two sets of weights.
            words.append(f"from {Path(self.init.parent.name, self.init.name).as_posix()}")
        if self.frozen != (self.init is not None):
            words.append(f"batch norm {self.batch_norm}")
        words += ["colours bgr"] if self.colours == "bgr" else []
        return words + _numbers(self, "score", "nms", "detections")

    @property
    def frozen(self) -> bool:
        """Whether batch norm keeps its statistics and weights."""
        return self.batch_norm == "frozen" or (self.batch_norm == "auto" and self.init is not None)


@dataclass(frozen=True)
class Correction:
    """When labels are corrected, and how (specification 2C to 2E)."""

    configuration: Configuration = "a-sissi-s"
    """Row of the paper's table: A: the correction starts when the detector begins to memorise; without A: from the epoch with
    the lowest validation loss; W, S: cells without box are hidden behind a weak or strong blur."""
    start: Start | None = None
    """Instead of what the row says: adele, validation, or never (no correction at all)."""
    background: Background | None = None
    """Instead of what the row says: weak, strong, or none (no cloning)."""
    paste: Paste = "mixed"
    """How cells come onto the blurred picture: Poisson clone with mixed or normal gradients; hard: cut out and pasted; black:
    pasted onto black."""
    memorisation: float = 0.9
    """Relative change of the AP50 curve's slope at which memorisation begins."""
    supervised: int | None = None
    """Start validation: epochs with the first labels, of which the best is gone back to, fewer than --epochs; default half of
    them."""
    timing: Literal["next", "authors"] = "next"
    """adele: cloning starts in the epoch after the flag, with the correction; authors: in that of the flag (specification S5)."""
    fusion: Literal["wbf", "nms"] = "wbf"
    """How the boxes of all views become one: weighted boxes fusion, or plain suppression."""
    views: Literal["all", "one"] = "all"
    """20 scaled and flipped views of a picture, or just the picture."""
    authors_tta: bool = False
    """Let the detector resize every view back to one size, as coded (specification P1)."""
    least_score: float = 0.25
    """Of a new label."""
    fusion_iou: float = 0.5
    """Boxes that overlap by more are one."""
    skip_score: float = 0.25
    """Boxes below do not take part in the fusion."""

    def __post_init__(self) -> None:
        for name in ("memorisation", "least_score", "fusion_iou", "skip_score"):
            _share(name.replace("_", "-"), getattr(self, name))
        at_least(1, supervised=1 if self.supervised is None else self.supervised)
        if self.paste != "mixed" and self.blur == "none":
            raise SettingError(
                f"--paste {self.paste} without a background", remedy="nothing is pasted in this row: give --background"
            )

    @property
    def starts(self) -> Start:
        """When the correction starts."""
        return self.start or ROWS[self.configuration][0]

    @property
    def blur(self) -> Background:
        """What is behind the cloned cells."""
        return self.background or ROWS[self.configuration][1]

    @property
    def name(self) -> str:
        """What tables call it."""
        return _joined(NAMES[self.configuration], self.changes)

    @property
    def changes(self) -> list[str]:
        """What differs from the row, as far as it has an effect."""
        words = [f"start {self.start}"] if self.start else []
        words += [f"background {self.background}"] if self.background else []
        words += [f"{self.paste} paste"] if self.paste != "mixed" else []
        words += ["NMS instead of fusion"] if self.fusion == "nms" else []
        words += ["one view"] if self.views == "one" else []
        words += ["views of one size"] if self.authors_tta else []
        if self.starts == "adele":
            words += ["cloning from the flag on"] if self.timing == "authors" and self.blur != "none" else []
            words += _numbers(self, "memorisation")
        elif self.starts == "validation" and self.supervised is not None:
            words += [f"{self.supervised} supervised epochs"]
        return words + _numbers(self, "least_score", *(("fusion_iou", "skip_score") if self.fusion == "wbf" else ()))


@dataclass(frozen=True)
class Training:
    """The recipe (specification 2B); the defaults are the paper's, and the code's where the paper says nothing."""

    epochs: int = 31
    """Passes over the target pictures, rounded up to whole batches: 5 pictures in batches of 4 make epochs of 8 draws."""
    batch_size: int = 4
    """Pictures of each half of a batch: so many of the source and as many of the target, over all processes together."""
    learn_from: Literal["both", "source"] = "both"
    """source: the target is not learned from, its labels do not change, and no epoch is gone back to: the source-only baseline."""
    learning_rate: float = 0.001
    """Of SGD with momentum 0.9; a tenth of it after ten epochs without a lower validation loss."""
    weight_decay: float = 0.0002
    """0.0001 in the authors' code."""
    zoom: tuple[float, float] = (0.5, 1.5)
    """Range of the random scaling; the authors' code does 1.5 to 2.5 (specification D4)."""
    blur: Literal["box", "gaussian"] = "box"
    """Random blur: box (code) or Gaussian (paper)."""
    turned: Literal["hull", "ellipse"] = "hull"
    """Box of a cell in a turned picture, where no mask gives it: hull of the turned box (paper), up to 1.4 times too wide for a
    round cell, or of the ellipse in the box, which fits round cells."""
    augment: bool = True
    """Random colours, blur, flips, shift, scaling and rotation."""
    examples: int = 3
    """Pictures whose labels the report follows over the epochs."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        at_least(1, epochs=self.epochs, batch_size=self.batch_size, log_every=self.log_every)
        at_least(0, learning_rate=self.learning_rate, weight_decay=self.weight_decay, examples=self.examples)
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise SettingError(
                f"--zoom is {self.zoom[0]:g} {self.zoom[1]:g}", remedy="give a lower and an upper factor"
            )

    @property
    def changes(self) -> list[str]:
        """What pictures and boxes are augmented by, where it is not the paper's."""
        if not self.augment:
            return ["no augmentation"]
        words = [f"zoom {self.zoom[0]:g} to {self.zoom[1]:g}"] if self.zoom != Training.zoom else []
        words += ["Gaussian blur"] if self.blur == "gaussian" else []
        return words + (["ellipses of turned boxes"] if self.turned == "ellipse" else [])


def _share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise SettingError(f"--{name} is {value:g}", remedy="give a number from 0 to 1")


def _numbers(settings: Correction | DetectorSettings, *names: str) -> list[str]:
    """Those that are not the default, in words."""
    defaults = type(settings)
    values = [(name, getattr(settings, name)) for name in names if getattr(settings, name) != getattr(defaults, name)]
    return [f"{name.replace('_', ' ')} {value:g}" for name, value in values]


def _joined(name: str, changes: list[str]) -> str:
    return f"{name}: {', '.join(changes)}" if changes else name


# --- The commands ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demo(DemoSettings):
    """Run everything on phantom cells: weak labels, training with correction, predictions, evaluation (about a minute)."""

    out: Path = Path("sissi-demo")
    """Folder for phantoms, detectors, predictions and report.html."""


@dataclass(frozen=True)
class CheckData:
    """Open every picture of a list, look at every box, and list every problem with file and row."""

    boxes: Path
    """The list, as --source and --target of `train`."""
    classes: tuple[str, ...] = ()
    """Classes of boxes that count as cells; default all."""
    ignore: tuple[str, ...] = ("fibre",)
    """Classes that do not."""


@dataclass(frozen=True)
class WeakLabel:
    """Find cells by classical image processing and write their boxes as weak labels."""

    pictures: Path
    """Folder of pictures, one laid out like CellLab (alive/ dead/ inhib/), or a list as for `train` (its boxes are not used)."""
    out: Path
    """CSV file for the boxes; must not be there yet."""
    pipeline: Pipeline = "circles"
    """circles (dead, round cells), edges (cells that stand alone), watershed (cells that touch), or by-state: CellLab's folder
    names choose."""
    without_state: Kind | None = None
    """by-state: pipeline of pictures whose folder names no state, such as CellLab's test pictures; default: refuse them."""
    rec: Reconstruction = "and"
    """watershed: the reconstruction combines grey values bit by bit, as coded, or by their minimum, as meant (specification W3)."""
    grey: Grey = "swapped"
    """edges: the weights of red and blue, swapped as coded, or correct (specification W2)."""
    split: Split = "all"
    """Of a list with splits: label these pictures; the others keep the boxes that they have, and are left out without any."""
    overwrite: bool = False
    """Replace --out."""


@dataclass(frozen=True)
class Train:
    """Train a detector on good foreign boxes and imperfect own ones, which are corrected from cycle to cycle."""

    run: RunSettings
    data: DataSettings
    detection: DetectorSettings = field(default_factory=DetectorSettings)
    correction: Correction = field(default_factory=Correction)
    training: Training = field(default_factory=Training)

    @property
    def method(self) -> str:
        """What tables call it: the row, and what else makes another method of it than the paper's."""
        name, changes = NAMES[self.correction.configuration], self.correction.changes
        if self.training.learn_from == "source":
            name, changes = "source only", []
        elif self.correction.starts == "never":
            name, changes = "mixed batch, no correction", []
        return _joined(name, changes + self.data.changes + self.training.changes + self.detection.changes)


@dataclass(frozen=True)
class Predict:
    """Detect cells in pictures."""

    pictures: Path
    """Folder of pictures, or a list as for `train` (its boxes are not used)."""
    output: OutputSettings
    model: Path
    """Run folder of `train`, or its model.safetensors."""
    split: Split = "test"
    """Of a list with splits."""
    views: Literal["one", "all"] = "one"
    """Detect in the picture, or in 20 views of it whose boxes are fused."""
    batch_size: int = 4
    """Pictures at a time."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto."""

    def __post_init__(self) -> None:
        at_least(1, batch_size=self.batch_size)


@dataclass(frozen=True)
class Evaluate:
    """Score detections and weak or corrected labels against the boxes of one or several readers."""

    output: OutputSettings
    predictions: tuple[Path, ...]
    """Folders that `predict` wrote, and CSV files of boxes (weak or corrected labels), which count with score 1 where they have
    none."""
    readers: tuple[Path, ...]
    """Lists of good boxes, as for `train`, one for each reader."""
    split: Split = "test"
    """Pictures of the readers' lists that count."""
    classes: tuple[str, ...] = ()
    """Classes of the readers' boxes that count as cells; default all."""
    ignore: tuple[str, ...] = ("fibre",)
    """Classes that do not."""
    limit: int = 400
    """Detections of a picture that count; the authors' AP takes 100 (shown beside)."""
    table: bool = False
    """Show the paper's table in the report."""

    def __post_init__(self) -> None:
        at_least(1, limit=self.limit)
        if not self.readers or not self.predictions:
            raise SettingError("nothing to compare", remedy="give --predictions and --readers")


@dataclass(frozen=True)
class Export:
    """Write the detector in torchvision's names, so that it loads without this package."""

    model: Path
    """Run folder of `train`, or its model.safetensors."""
    out: Path
    """File to write, *.safetensors."""
    overwrite: bool = False
    """Replace --out."""
