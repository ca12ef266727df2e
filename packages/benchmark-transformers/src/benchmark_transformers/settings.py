"""Settings of the method and of the commands. Free of torch so that `--help` stays fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from dart_core.errors import SettingError
from dart_core.settings import DemoSettings, OutputSettings, RunSettings, ShardedRunSettings, UncertainLabels, at_least

BackboneName = Literal["swin_b", "vit_b"]
Source = Literal["simmim", "moco_v3", "dino", "mae", "moby"]
Schedule = Literal["intended", "as_coded"]
PretrainingSchedule = Literal["cosine", "step"]
Normalization = Literal["imagenet", "chestxray14", "weights", "none"]
Task = Literal["auto", "multi-label", "exclusive"]
OptimizerName = Literal["sgd", "momentum", "adamw"]

CELL = 32


@dataclass(frozen=True)
class Network:
    """Another size of network than the paper's; what is not given is that of the architecture."""

    patch_size: int | None = None
    """Pixels per token and side."""
    embed_dim: int | None = None
    """Features of a token (Swin: of the first stage)."""
    depths: tuple[int, ...] = ()
    """Blocks: Swin one number per stage, ViT one number."""
    num_heads: tuple[int, ...] = ()
    """Heads of attention, likewise."""
    window_size: int | None = None
    """Swin: tokens per side of a window."""

    def __post_init__(self) -> None:
        for name in ("patch_size", "embed_dim", "window_size"):
            at_least(1, **{name: 1 if getattr(self, name) is None else getattr(self, name)})
        for name in ("depths", "num_heads"):
            for number in getattr(self, name):
                at_least(1, **{name: number})

    def keywords(self, swin: bool) -> dict[str, Any]:
        """timm's keywords for what is given.

        Raises:
            SettingError: depths or heads that do not fit the kind of network.
        """
        found: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("patch_size", "embed_dim", "window_size")
            if getattr(self, name) is not None
        }
        if swin:
            found |= {name: getattr(self, name) for name in ("depths", "num_heads") if getattr(self, name)}
            if len(self.depths) != len(self.num_heads):
                raise SettingError(
                    f"--depths has {len(self.depths)} stages, --num-heads {len(self.num_heads)}",
                    remedy="give both with one number per stage",
                )
            return found
        if self.window_size is not None:
            raise SettingError("--window-size is Swin's", remedy="leave it out")
        for name, keyword in (("depths", "depth"), ("num_heads", "num_heads")):
            numbers = getattr(self, name)
            if len(numbers) > 1:
                raise SettingError(f"--{name.replace('_', '-')} has {len(numbers)} numbers", remedy="give a ViT one")
            if numbers:
                found[keyword] = numbers[0]
        return found

    @property
    def given(self) -> bool:
        """Whether anything is."""
        return self != Network()


@dataclass(frozen=True)
class DataSettings:
    """Which labelled pictures a command reads."""

    datalist: Path
    """CSV with the column image, one column of 0 and 1 per label, and if there are any subject, site, split (train, val,
    test); or the folder of ChestX-ray14, CheXpert, Shenzhen, VinDr-CXR, RSNA Pneumonia or RSNA PE as its owners publish it."""
    site: str = ""
    """Data set of a datalist with several; may be left out where there is one."""
    labels: tuple[str, ...] = ()
    """Label columns; default: all that hold nothing but 0, 1 and empty cells."""
    task: Task = "auto"
    """multi-label: each label on its own; exclusive: one class per picture, as one column of 0 and 1 per class or one column
    with the names of classes. auto: exclusive for RSNA Pneumonia and for a single column of names, else multi-label."""
    uncertain: UncertainLabels | None = None
    """What -1 becomes in training: lsr-ones a draw from U(0.55, 0.85) at each access, lsr-zeros from U(0, 0.3), ones, zeros;
    empty cells count as 0 then. Default lsr-ones for CheXpert; for others -1 is an error and empty cells are left out."""
    lists: tuple[Path, ...] = ()
    """The authors' lists of ChestX-ray14, Shenzhen or RSNA Pneumonia: train, val and test, in this order. Default none; of `predict`,
    on the data set of the training, those of the training."""
    split_by: Literal["patient", "image"] | None = None
    """How pictures are drawn for validation (a tenth) and test (a fifth) where the datalist names no such split. Default patient;
    of `predict`, on the data set of the training, what the training drew by."""

    def __post_init__(self) -> None:
        if len(self.lists) not in (0, 3):
            raise SettingError(f"--lists has {len(self.lists)} files", remedy="give those of train, val and test")

    @property
    def drawn_by(self) -> Literal["patient", "image"]:
        """`split_by`, or its default."""
        return self.split_by or "patient"


@dataclass(frozen=True)
class FineTuneRecipe:
    """The protocol; the defaults are those of the authors' README and code (specification 2.1)."""

    image_size: int = 224
    """Side of the views."""
    resize: int | None = None
    """Side that pictures are resized to before validation's middle crop and the test's ten crops; default 256/224 of
    --image-size."""
    keep_aspect: bool = False
    """Resize the shorter side instead of squeezing the picture."""
    normalization: Normalization = "imagenet"
    """Mean and standard deviation: ImageNet's (also for weights that were trained with 0.5, as the authors did),
    ChestX-ray14's, those of the weights' own configuration, or none."""
    epochs: int = 200
    """At most so many."""
    batch_size: int = 64
    """Pictures of a batch, over all processes together."""
    learning_rate: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    """Highest rate. Of several, the first trial is trained with each, and the one with the lowest validation loss is
    taken for all trials."""
    warmup: int = 0
    """Epochs of linear climb (the authors: 0 for SimMIM's Swin-B, 20 for the supervised ViT-B)."""
    schedule: Schedule = "intended"
    """intended: cosine over --epochs; as_coded: the authors' program as it ran, whose rate follows the validation loss."""
    optimizer: OptimizerName = "sgd"
    """sgd: momentum 0.9 with Nesterov (what timm makes of the authors' flag); momentum: without; adamw: SimMIM's own
    fine-tuning."""
    weight_decay: float = 0.0
    """Of the optimiser."""
    layer_decay: float | None = None
    """adamw: factor of the rate from block to block towards the input (SimMIM: 0.8 for Swin-B, 0.65 for ViT-B)."""
    drop_path: float | None = None
    """Stochastic depth; default as in specification 2.1.12: 0.1 for every Swin, SimMIM's and the random ViT-B, else 0."""
    rand_augment: bool = False
    """Change the colours and the geometry of the training pictures by RandAugment (SimMIM's own fine-tuning)."""
    mixup: float = 0.0
    """Blend training pictures in pairs, with a share from Beta(a, a) of this a (SimMIM's own fine-tuning: 0.8); 0: do not."""
    patience: int = 10
    """Epochs without a lower validation loss that are tolerated; the next one ends the training."""
    fraction: float = 100.0
    """Percent of the training pictures that are used, drawn as the authors draw them (seed 99)."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        at_least(
            1, image_size=self.image_size, epochs=self.epochs, batch_size=self.batch_size, log_every=self.log_every
        )
        at_least(0, warmup=self.warmup, weight_decay=self.weight_decay, patience=self.patience, mixup=self.mixup)
        for name in ("drop_path", "layer_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise SettingError(f"--{name.replace('_', '-')} is {value:g}", remedy="give a number from 0 to 1")
        if not self.learning_rate:
            raise SettingError("--learning-rate is empty", remedy="give at least one")
        for rate in self.learning_rate:
            at_least(0, learning_rate=rate)
        if not 0 < self.fraction <= 100:
            raise SettingError(f"--fraction is {self.fraction:g}", remedy="give more than 0 and at most 100")
        if self.layer_decay is not None and self.optimizer != "adamw":
            raise SettingError("--layer-decay is for --optimizer adamw", remedy="leave it out")
        if self.resized < self.image_size:
            raise SettingError(
                f"--resize is {self.resized}, --image-size {self.image_size}",
                remedy="resize to at least the view's side",
            )

    @property
    def resized(self) -> int:
        """Side before the crops: 256 for 224."""
        return round(self.image_size * 256 / 224) if self.resize is None else self.resize


@dataclass(frozen=True)
class PretrainRecipe:
    """SimMIM's recipe; the defaults are those of 100 epochs for Swin-B, which the paper's domain pre-training used."""

    epochs: int = 100
    """Passes over the pictures."""
    batch_size: int = 2048
    """Pictures of a batch, over all processes together (SimMIM: 16 x 128)."""
    base_lr: float = 2e-4
    """Highest rate for a batch of 512; this and the next two grow with the batch (800 epochs: 1e-4)."""
    min_lr: float = 1e-5
    """Rate at the end of the cosine."""
    warmup_lr: float = 1e-6
    """Rate at the start of the warm-up (800 epochs: 5e-7)."""
    warmup: int = 10
    """Epochs of linear climb."""
    schedule: PretrainingSchedule = "cosine"
    """cosine, or step: a tenth from --drop-epoch on (the recipes of 800 epochs)."""
    drop_epoch: int = 700
    """See there."""
    weight_decay: float = 0.05
    """Of AdamW."""
    drop_path: float | None = None
    """Stochastic depth; default 0 for Swin, 0.1 for ViT."""
    mask_ratio: float = 0.6
    """Share of masked cells."""
    cell: int = CELL
    """Side of a cell in pixels."""
    normalization: Literal["imagenet", "chestxray14", "none"] = "imagenet"
    """Mean and standard deviation of the pictures."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    show_every: int = 10
    """Epochs between pictures of restored examples."""

    def __post_init__(self) -> None:
        at_least(1, epochs=self.epochs, batch_size=self.batch_size, cell=self.cell)
        at_least(1, log_every=self.log_every, show_every=self.show_every)
        at_least(0, base_lr=self.base_lr, min_lr=self.min_lr, warmup_lr=self.warmup_lr, warmup=self.warmup)
        at_least(0, drop_epoch=self.drop_epoch, weight_decay=self.weight_decay)
        if not 0 < self.mask_ratio <= 1:
            raise SettingError(f"--mask-ratio is {self.mask_ratio:g}", remedy="give more than 0 and at most 1")


# --- The commands ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demo(DemoSettings):
    """Run everything on phantom radiographs: pre-train, continue, fine-tune, predict, evaluate, compare (about a minute)."""

    out: Path = Path("benchmark-transformers-demo")
    """Folder for phantoms, networks, predictions and report.html."""


@dataclass(frozen=True)
class CheckData:
    """Open every picture of a data set and list every problem with file, row and column."""

    data: DataSettings


@dataclass(frozen=True)
class Pretrain:
    """Pre-train an encoder by SimMIM on pictures without labels, from random weights or continuing from others (--init-from)."""

    run: ShardedRunSettings
    pictures: tuple[Path, ...]
    """Folders of pictures, datalists, or folders of data sets as their owners publish them; of a list with splits only
    the training pictures are taken; of one with labels that names no test, what `fine-tune` draws for it is left out."""
    backbone: BackboneName = "swin_b"
    """swin_b (at 192 pixels, window 6) or vit_b (at 224)."""
    size: int | None = None
    """Side of the views; default that of the backbone."""
    init_from: Path | None = None
    """SimMIM's file, or a run of `pretrain`: encoder, mask token and decoder start from it; optimiser, epochs and warm-up
    begin anew."""
    exclude: Path | None = None
    """File with names of pictures to leave out, one per line (of a CSV file its first column), such as the test pictures of a later
    task."""
    network: Network = field(default_factory=Network)
    recipe: PretrainRecipe = field(default_factory=PretrainRecipe)

    def __post_init__(self) -> None:
        self.network.keywords(self.backbone == "swin_b")


@dataclass(frozen=True)
class FineTune:
    """Fine-tune a network from one initialisation on a labelled data set, with several seeds."""

    run: RunSettings
    data: DataSettings
    initialisation: str = ""
    """A row of the comparison; may be left out where --weights is a run of `pretrain`. There are vit-b-in21k, swin-b-in21k, swin-b-in1k, vit-b-simmim, swin-b-simmim, vit-b-moco-v3,
    resnet50-in1k, resnet50-in21k, resnet50-moco-v3, scratch-vit-b, scratch-swin-b, scratch-resnet50, ..."""
    weights: Path | None = None
    """Its weight file, or a run of `pretrain`, which then says what the network is."""
    weights_source: Source | Literal["timm"] | None = None
    """Whose file it is; default that of the initialisation (timm where its registry has the weights)."""
    download: bool = False
    """Get the weights of the initialisation from timm's hub (needs the network)."""
    name: str = ""
    """What tables call this initialisation; default its key, or the folder of --weights."""
    trials: int = 1
    """Trainings with the seeds --seed, --seed + 1, ... (the paper: 10, --seed 0)."""
    network: Network = field(default_factory=Network)
    recipe: FineTuneRecipe = field(default_factory=FineTuneRecipe)

    def __post_init__(self) -> None:
        at_least(1, trials=self.trials)
        if self.download and self.weights is not None:
            raise SettingError("--download and --weights contradict each other", remedy="give one of them")


@dataclass(frozen=True)
class Predict:
    """Score the pictures of a data set with all trials of a fine-tuning: mean probability of ten crops."""

    data: DataSettings
    output: OutputSettings
    model: Path
    """Folder of `fine-tune`, or of one of its trials."""
    split: Literal["test", "val", "train", "all"] = "test"
    """Which pictures."""
    crops: Literal[1, 10] = 10
    """10: the mean of the ten crops' probabilities (the test of the paper); 1: the middle crop."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto."""
    batch_size: int = 16
    """Pictures per forward pass (each in --crops views)."""

    def __post_init__(self) -> None:
        at_least(1, batch_size=self.batch_size)


@dataclass(frozen=True)
class Evaluate:
    """Score predictions of several trials: AUC of every label, its mean (or the accuracy), mean and spread over trials."""

    output: OutputSettings
    predictions: tuple[Path, ...]
    """Folders that `predict` wrote."""
    test_labels: tuple[str, ...] = ()
    """Labels whose mean counts; default: all, on CheXpert the five of its competition."""


@dataclass(frozen=True)
class Compare:
    """Build the paper's Tables 1 and 2 and Fig. 1 from finished predictions, with t-tests, beside the printed numbers."""

    POSITIONAL: ClassVar[str] = "predictions"
    output: OutputSettings
    predictions: tuple[Path, ...] = ()
    """Folders that `predict` wrote, one for each initialisation and data set; without any, the printed tables alone."""
    spread: Literal["sample", "population"] = "sample"
    """What the printed standard deviations are taken for in their t-tests; the authors' code prints population ones."""
    test_labels: tuple[str, ...] = ()
    """See `evaluate`."""


@dataclass(frozen=True)
class Export:
    """Write a fine-tuned network as ONNX (normalised RGB views in, logits out), or a pre-trained encoder for timm."""

    model: Path
    """Folder of one trial of `fine-tune` (file ending in .onnx), or of `pretrain` (ending in .safetensors)."""
    out: Path
    """File to write."""
    overwrite: bool = False
    """Replace the file."""
