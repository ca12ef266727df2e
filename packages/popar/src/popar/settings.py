"""Settings of the method and of the commands. Free of torch so that `--help` stays fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dart_core.errors import SettingError
from dart_core.settings import DemoSettings, OutputSettings, RunSettings, ShardedRunSettings, UncertainLabels, at_least

Subtask = Literal["poc", "mpr", "mgr"]
SUBTASKS: tuple[Subtask, ...] = ("poc", "mpr", "mgr")
Normalisation = Literal["chestxray14", "imagenet", "none"]
Split = Literal["train", "val", "test"]
Target = Literal["chestxray14", "chexpert", "shenzhen", "rsna-pneumonia", "multi-label", "multi-class"]
Head = Literal["linear", "mlp"]

EPOCHS = {"swin_b": 300, "vit_b": 1000}
"""Of the pretraining (section 4.1); other backbones train as long as Swin-B."""
RESIZED = {224: 256, 256: 293, 384: 440, 448: 512, 512: 585}
"""Side of the crops -> shorter side that pictures are resized to before (specification 4)."""


_NO_RATE = "--epochs is 1, and in the last epoch the learning rate is 0, so that nothing would be learned"


def resized_side(size: int) -> int:
    """Shorter side that pictures are resized to before crops of side `size` are taken from them: about 8/7 of it."""
    return RESIZED.get(size, round(size * 8 / 7))


@dataclass(frozen=True)
class DataSettings:
    """Which radiographs a command reads, and how."""

    datalist: Path
    """CSV with the column image, and if there are any subject, site, split (train, val, test) and one column per label; or
    the folder of ChestX-ray14, CheXpert, Shenzhen, VinDr-CXR or RSNA Pneumonia as published."""
    train_list: Path | None = None
    """Published folders: text file with a picture's name in each line, the authors' training list; likewise below. A network
    keeps the lists that it was fine-tuned with, so that predict needs none."""
    val_list: Path | None = None
    """Its validation list."""
    test_list: Path | None = None
    """Its test list."""
    colour: bool = False
    """Keep red, green and blue apart; otherwise pictures are read as grey, which gives three equal channels."""
    memory: bool = False
    """Keep all pictures in memory once they are read."""

    @property
    def lists(self) -> dict[str, Path] | None:
        """Split -> file, where lists are given."""
        given = {"train": self.train_list, "val": self.val_list, "test": self.test_list}
        return {split: path for split, path in given.items() if path is not None} or None


@dataclass(frozen=True)
class NetworkSettings:
    """The backbone."""

    backbone: str | None = None
    """swin_b, vit_b, or the name of another Swin or ViT in timm. Default: swin_b; in fine-tuning that of the pretraining."""
    image_size: int | None = None
    """Side of the images, a multiple of the patch (32 for swin_b, 16 for vit_b). Default: 448 for swin_b, 224 for vit_b;
    in fine-tuning that of the pretraining."""
    network: tuple[str, ...] = ()
    """Changes of the architecture in timm's words, such as embed_dim=192 depth=6 num_heads=3 patch_size=8 for a ViT, or
    embed_dim=48 depths=2,2,4 num_heads=1,2,4 window_size=6 for a Swin."""

    def __post_init__(self) -> None:
        at_least(1, image_size=1 if self.image_size is None else self.image_size)

    @property
    def name(self) -> str:
        """Of the backbone."""
        return self.backbone or "swin_b"


@dataclass(frozen=True)
class Distortions:
    """What the network has to undo (specification 2.1 to 2.9)."""

    subtasks: tuple[Subtask, ...] = SUBTASKS
    """Any of poc (tell the order of permuted patches), mpr (restore them in place), mgr (restore distorted appearance). Each
    image goes through one branch: permutation or appearance."""
    order_loss_on_appearance: bool = True
    """With poc and mgr: images of distorted appearance count in the order loss as well ("nothing was moved")."""
    channels: Literal["mixed", "together"] = "mixed"
    """Local pixel shuffling: values of all channels mixed (as coded; makes coloured noise), or pixels as a whole."""
    normalisation: Normalisation = "chestxray14"
    """Mean 0.5056 and deviation 0.252 (as coded), those of ImageNet, or values in [0, 1]."""

    def __post_init__(self) -> None:
        if not self.subtasks or len(set(self.subtasks)) < len(self.subtasks):
            raise SettingError(
                f"--subtasks is {' '.join(self.subtasks) or 'empty'}",
                remedy="give one or more of poc mpr mgr, each once",
            )


@dataclass(frozen=True)
class Pretraining:
    """The recipe of the pretraining; the defaults are the paper's (section 4.1)."""

    epochs: int | None = None
    """Default: 300, for vit_b 1000."""
    batch_size: int = 256
    """Images of a batch, over all processes together."""
    learning_rate: float = 0.1
    """Highest learning rate of SGD with momentum 0.9; a cosine brings it to 0 in the last epoch."""
    warmup: int = 5
    """Epochs in which it rises."""
    weight: float = 0.5
    """Of the order loss; the restoration loss has the rest to 1. Without the other, one loss has weight 1."""
    reduction: Literal["mean", "paper"] = "mean"
    """mean: both losses are means (as coded); paper: sums over an image, which weigh restoration 3 k^2 times more."""
    drop_path: float = 0.1
    """Stochastic depth of the last block."""
    held_out: int = 256
    """Pictures that fixed distortions are measured on: of splits that are not trained on, or where there are none, taken
    out of the training (at most a tenth of it)."""
    measure_every: int = 5
    """Epochs between two measurements, each with examples and a fresh report."""
    examples: int = 4
    """Pictures shown in each."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        at_least(
            1, epochs=1 if self.epochs is None else self.epochs, batch_size=self.batch_size, held_out=self.held_out,
            measure_every=self.measure_every, examples=self.examples, log_every=self.log_every,
        )  # fmt: skip
        at_least(0, learning_rate=self.learning_rate, warmup=self.warmup)
        if self.epochs == 1 and self.warmup == 0:
            raise SettingError(_NO_RATE, remedy="give at least 2, or a --warmup")
        _share("weight", self.weight, 1.0)
        _share("drop-path", self.drop_path, 0.999)

    def epochs_of(self, backbone: str) -> int:
        """Epochs for a backbone."""
        return self.epochs or EPOCHS.get(backbone, EPOCHS["swin_b"])


@dataclass(frozen=True)
class FineTuning:
    """The recipe of the fine-tuning (specification 4); what is left out follows the target."""

    head: Head = "linear"
    """linear: one layer (paper); mlp: two hidden layers with batch norm before it (the authors' later code)."""
    epochs: int = 200
    """At most; a cosine brings the learning rate to 0."""
    patience: int = 20
    """Epochs without a lower validation loss that are tolerated; the next one ends the training."""
    batch_size: int | None = None
    """Default: chestxray14 and chexpert 160, shenzhen 60, rsna-pneumonia 120, else 32."""
    optimizer: Literal["sgd", "adamw"] | None = None
    """sgd (momentum 0.9) or adamw; default: adamw for chestxray14 and your own labels, else sgd."""
    learning_rate: float | None = None
    """Default: 1e-4 with adamw, 0.01 with sgd (the authors' script prints 1e-4 for shenzhen and rsna-pneumonia)."""
    drop_path: float = 0.0
    """Stochastic depth of the last block."""
    normalisation: Normalisation = "imagenet"
    """See pretraining; the authors' code pretrains with chestxray14 and fine-tunes with imagenet, which brings a warning."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        given = 1 if self.batch_size is None else self.batch_size
        at_least(1, epochs=self.epochs, batch_size=given, log_every=self.log_every)
        if self.epochs == 1:
            raise SettingError(_NO_RATE, remedy="give at least 2")
        at_least(0, patience=self.patience, learning_rate=self.learning_rate or 0)
        _share("drop-path", self.drop_path, 0.999)


@dataclass(frozen=True)
class LabelSettings:
    """Which labels, and of which rows."""

    target: Target = "multi-label"
    """chestxray14, chexpert, shenzhen, rsna-pneumonia: recipe and labels of the paper's targets; multi-label: your own, each
    on its own; multi-class: your own, of which every picture has exactly one."""
    labels: tuple[str, ...] = ()
    """Label columns; default those of the target, for your own data every column of 0, 1 and empty cells."""
    uncertain: UncertainLabels = "lsr-ones"
    """chexpert: what a label of -1 becomes in training: a number from 0.55 to 0.85 drawn anew each time, one from 0 to 0.3,
    1, or 0. In other data -1 is an error. An empty cell is 0 for chexpert, unknown in other data."""
    frontal: bool = False
    """chexpert: leave lateral views out."""
    test: Literal["valid", "test"] = "valid"
    """chexpert: which of the owners' tables is the test; for early stopping serve a twentieth of the patients of train.csv,
    or with test valid.csv."""
    site: str = ""
    """Data set of a datalist with several."""
    split_seed: int = 0
    """Of the draw of validation and test pictures where the data name none."""

    def __post_init__(self) -> None:
        at_least(0, split_seed=self.split_seed)


def _share(name: str, value: float, most: float) -> None:
    if not 0 <= value <= most:
        raise SettingError(f"--{name} is {value:g}", remedy="give a number from 0 to 1")


# --- The commands ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demo(DemoSettings):
    """Run everything on phantom radiographs: pretrain, fine-tune with and without it, predict, evaluate (about a minute)."""

    out: Path = Path("popar-demo")
    """Folder for phantoms, networks, predictions and report.html."""


@dataclass(frozen=True)
class CheckData:
    """Open every radiograph of a datalist and list every problem with file, row and column."""

    data: DataSettings
    label: LabelSettings = field(default_factory=LabelSettings)
    labelled: bool = False
    """Check the labels of --target as well."""


@dataclass(frozen=True)
class Pretrain:
    """Teach a backbone the order of patches and the restoration of their appearance; needs no labels."""

    run: ShardedRunSettings
    data: DataSettings
    networks: NetworkSettings = field(default_factory=NetworkSettings)
    distortions: Distortions = field(default_factory=Distortions)
    pretraining: Pretraining = field(default_factory=Pretraining)
    splits: tuple[Split, ...] = ("train", "val")
    """Splits to train on; rows that name none count as train. Where data with labels name no test, the pictures that fine-tune
    draws for it are left out, unless test is one of these splits."""
    exclude: Path | None = None
    """Text file with a name or the end of a path in each line, or the RSNA's JSON file with the origin of its pictures: they
    are left out, so that a later test does not hold pictures of the pretraining."""
    split_seed: int = 0
    """Of the draw of test pictures where the data name none: that of the later fine-tuning."""

    def __post_init__(self) -> None:
        at_least(0, split_seed=self.split_seed)


@dataclass(frozen=True)
class FineTune:
    """Fine-tune a backbone on labels: pretrained by POPAR, from any weight file, or from random weights."""

    run: RunSettings
    data: DataSettings
    init: Path | None = None
    """Run folder of `pretrain` or of another `fine-tune`, or a weight file (of the authors, or in timm's names); default:
    random weights."""
    networks: NetworkSettings = field(default_factory=NetworkSettings)
    label: LabelSettings = field(default_factory=LabelSettings)
    fine_tuning: FineTuning = field(default_factory=FineTuning)


@dataclass(frozen=True)
class Predict:
    """Score radiographs with a fine-tuned network, mean of ten crops each."""

    data: DataSettings
    output: OutputSettings
    model: Path
    """Run folder of `fine-tune`, or its model.safetensors."""
    split: Literal["train", "val", "test", "all"] = "test"
    """Pictures to score; splits that the data do not name are drawn as for the training."""
    site: str = ""
    """Data set of a datalist with several; default that of the training."""
    crops: Literal["ten", "middle"] = "ten"
    """ten: corners, middle and their mirror images; middle: the view of validation."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto."""
    batch_size: int = 16
    """Pictures at a time."""

    def __post_init__(self) -> None:
        at_least(1, batch_size=self.batch_size)


@dataclass(frozen=True)
class Evaluate:
    """Compare predictions of several runs: mean and both standard deviations over seeds, t-tests, the printed tables."""

    output: OutputSettings
    predictions: tuple[Path, ...]
    """Folders that `predict` wrote: one for each network and seed."""
    baseline: str | None = None
    """Initial weights (as the table calls them) that the others are compared with; default: random, where they are there."""


@dataclass(frozen=True)
class Export:
    """Write a backbone in timm's names (with its classifier, if that is one linear layer), as timm.create_model loads it."""

    model: Path
    """Run folder of `pretrain` or `fine-tune`, its model.safetensors, or a weight file of the authors (with --backbone,
    --image-size, --network, which the others know themselves)."""
    out: Path
    """File to write, ending in .safetensors."""
    networks: NetworkSettings = field(default_factory=NetworkSettings)
    overwrite: bool = False
    """Replace the file."""
