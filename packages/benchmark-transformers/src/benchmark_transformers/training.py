"""The command `fine-tune`: several trainings from one initialisation, and the choice of the learning rate."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmark_transformers import settings as of
from benchmark_transformers.cases import CaseFiles, Cases, StoredViews, open_data, the_site, training_cases
from benchmark_transformers.initialisations import (
    BEIT,
    DROP_PATH,
    INITIALISATIONS,
    SWIN,
    Initialisation,
    find_initialisation,
)
from benchmark_transformers.labels import annotation_fraction
from benchmark_transformers.method import train_network, view_of
from benchmark_transformers.networks import (
    PACKAGE,
    Architecture,
    Pretrained,
    Statistics,
    architecture_of,
    load_initial_weights,
    read_pretrained,
    statistics_of,
)
from benchmark_transformers.schedules import fine_tune_lr
from dart_core import figures
from dart_core.checkpoint import WEIGHTS, load_weights, read_model, save_model, weights_file
from dart_core.cli import say
from dart_core.data.catalog import radiographs
from dart_core.errors import CheckpointError, InputError, SettingError
from dart_core.files import write_atomic
from dart_core.fine_tuning import Diverged
from dart_core.report import Report
from dart_core.run import CONFIG, METRICS, Run, claim_folder, flat_settings


@dataclass(frozen=True)
class Model:
    """Where a fine-tuned network comes from and how it wants its pictures."""

    initialisation: str
    """Key of its row; empty where the weights are the user's own."""
    name: str
    """What tables call it."""
    backbone: str
    """ViT-B, Swin-B, ..."""
    architecture: str
    options: Mapping[str, Any]
    image_size: int
    resize: int
    keep_aspect: bool
    statistics: Statistics | None
    labels: tuple[str, ...]
    exclusive: bool
    dataset: str
    seed: int
    learning_rate: float
    schedule: str
    fraction: float
    training_pictures: int
    epoch: int = 0
    """Of the weights: the one with the lowest validation loss."""
    validation_loss: float | None = None
    optimizer: str = ""
    """Empty, as the next ones: trained before it was written down."""
    split_by: str = ""
    """How what the data set names no split for was drawn."""
    lists: tuple[str, ...] = ()
    """Files of the authors' lists of train, val and test; empty: none."""
    lists_digest: str = ""
    """SHA-256 of their contents."""

    def build(self) -> nn.Module:
        """The network with random weights."""
        return Architecture(self.architecture, self.options).build(len(self.labels), self.image_size)


@dataclass(frozen=True)
class Start:
    """Where the trainings of a command start: what to build, and whose weights to put in."""

    row: Initialisation
    pretrained: Pretrained | None
    architecture: Architecture
    drop_path: float
    weights: Path | None
    source: str
    download: bool
    name: str
    statistics: Statistics | None

    @property
    def backbone(self) -> str:
        """ViT-B, Swin-B, ...; of another size than the paper's without the letter."""
        return self.row.backbone.split("-")[0] if self.architecture.options else self.row.backbone

    def network(self, classes: int, image_size: int) -> tuple[nn.Module, str]:
        """A network with a new head for each call (drawn from PyTorch's generator), and what was loaded, in words."""
        if self.download:
            assert self.row.tag is not None  # `starting_point` has checked it
            return (
                self.architecture.download(self.row.tag, classes, image_size, self.drop_path),
                f"{self.row.tag} from timm's hub",
            )
        network = self.architecture.build(classes, image_size, self.drop_path)
        if self.weights is None:
            return network, "random weights"
        return network, f"{self.weights.name}: {load_initial_weights(network, self.weights, self.source)}"


# --- The command -----------------------------------------------------------------------------------------------------


def fine_tune(command: of.FineTune) -> None:
    """Train all trials; write each trial's weights, and a report over all of them."""
    recipe = command.recipe
    start = starting_point(command)
    cases = training_cases(command.data)
    train = cases["train"]
    if recipe.fraction < 100:
        train = train.take(annotation_fraction(len(train), recipe.fraction))
    parts = {"train": train, "val": cases["val"]}
    files = {name: CaseFiles(part.rows) for name, part in parts.items()}
    for some in files.values():
        some.read_all()
    validation = StoredViews(files["val"], view_of(recipe))
    # A network that does not fit its weights is found out before the output folder is made.
    torch.manual_seed(command.run.seed)
    _, loaded = start.network(len(train.labels), recipe.image_size)
    out, is_main = command.run.out, int(os.environ.get("RANK", "0")) == 0
    if is_main:
        claim_folder(out, flat_settings(command), command.run.resume, command.run.overwrite)
        say(f"{start.name}: {loaded}")
        if recipe.warmup >= recipe.epochs and (recipe.schedule == "intended" or recipe.epochs == 1):
            highest = fine_tune_lr(recipe.epochs - 1, recipe.epochs, max(recipe.learning_rate), recipe.warmup)
            say(
                f"--warmup {recipe.warmup}, --epochs {recipe.epochs}: the learning rate only gets to {highest:.2g}, never to "
                "--learning-rate; give fewer epochs of warm-up"
            )
    found: dict[str, Model | None] = {}

    def trial(seed: int, rate: float) -> Model | None:
        name = f"trial-{seed}-lr-{rate:g}"
        if name not in found:
            try:
                found[name] = _trial(command, start, parts, files, validation, out / name, seed, rate)
            except Diverged as error:
                if len(recipe.learning_rate) == 1 or seed != command.run.seed:
                    raise
                say(f"learning rate {rate:g}: {error}")
                found[name] = None
        return found[name]

    rates = {rate: trial(command.run.seed, rate) for rate in dict.fromkeys(recipe.learning_rate)}
    usable = {rate: model.validation_loss for rate, model in rates.items() if model is not None}
    if not usable:
        raise SettingError("no learning rate led to a loss that is a number", remedy="give lower ones: --learning-rate")
    rate = min(usable, key=lambda rate: math.inf if usable[rate] is None else float(usable[rate] or 0))
    models = [trial(command.run.seed + number, rate) for number in range(command.trials)]
    if not is_main:
        return
    names = [f"trial-{command.run.seed + number}-lr-{rate:g}" for number in range(command.trials)]
    done = [model for model in models if model is not None]
    content = {
        "name": start.name, "initialisation": start.row.key, "dataset": train.pictures.name, "trials": names,
        "learning_rate": rate, "loaded": loaded,
        "validation_loss_of_rates": {f"{value:g}": usable.get(value) for value in rates},
        "validation_loss": [model.validation_loss for model in done],
    }  # fmt: skip
    write_atomic(out / METRICS, json.dumps(content, indent=2) + "\n")
    _report(command, start, parts, out, names, done, content)
    say(
        f"networks: {out}   report: {out / 'report.html'}   next: {PACKAGE} predict --model {out} --datalist ... --out ..."
    )


def starting_point(command: of.FineTune) -> Start:
    """What a command asks to start from.

    Raises:
        SettingError: weights that are missing, or flags that contradict each other.
    """
    pretrained = None if command.weights is None else read_pretrained(command.weights)
    if command.initialisation:
        row = find_initialisation(command.initialisation)
    elif pretrained is not None:
        row = _own(pretrained)
    else:
        raise SettingError("no initialisation", remedy="give --initialisation, or as --weights a run of `pretrain`")
    if pretrained is not None and command.weights_source not in (None, "simmim"):
        raise SettingError("the weights are of `pretrain`, which are SimMIM's", remedy="leave --weights-source out")
    if pretrained is not None and command.initialisation:
        needed = _own(pretrained).architecture
        if (row.source, row.architecture) != ("simmim", needed):
            fitting = ", ".join(r.key for r in INITIALISATIONS if (r.source, r.architecture) == ("simmim", needed))
            raise SettingError(
                f"--initialisation is {row.key}, the weights are a {_own(pretrained).backbone} that SimMIM pre-trained",
                where=command.weights, remedy=f"leave it out, or give one of {fitting}",
            )  # fmt: skip
    if command.weights is None and not command.download and row.pretrained:
        has = f", or --download ({row.tag})" if row.tag else " (the owners' file)"
        raise SettingError(f"{row.key} needs weights ({row.pretraining})", remedy=f"give --weights FILE{has}")
    if command.download and row.tag is None:
        remedy = "leave it out" if not row.pretrained else "get the owners' file and give it as --weights"
        raise SettingError(f"--download: timm's registry has no weights for {row.key}", remedy=remedy)
    if command.weights is not None and not row.pretrained and pretrained is None and command.weights_source is None:
        raise SettingError(
            f"--weights for {row.key}, which starts from random weights",
            remedy="name the initialisation of these weights, or whose file it is: --weights-source",
        )
    architecture, drop_path = architecture_of(row, pretrained, command.network)
    name = command.name
    if not name:
        name = row.key if pretrained is None or command.weights is None else command.weights.resolve().name
    return Start(
        row, pretrained, architecture, drop_path if command.recipe.drop_path is None else command.recipe.drop_path,
        command.weights, command.weights_source or row.source or ("timm" if row.tag else "simmim"), command.download, name,
        statistics_of(command.recipe.normalization, row.tag, pretrained),
    )  # fmt: skip


def _own(pretrained: Pretrained) -> Initialisation:
    """The row of weights that the user pre-trained."""
    swin = pretrained.backbone == "swin_b"
    text = f"SimMIM, {pretrained.images} pictures, {pretrained.epochs} epochs"
    text += f", from {pretrained.init_from}" if pretrained.init_from else ""
    return Initialisation(
        "", "Swin-B" if swin else "ViT-B", text, SWIN if swin else BEIT, source="simmim", drop_path=DROP_PATH
    )


def _trial(
    command: of.FineTune, start: Start, cases: dict[str, Cases], files: dict[str, CaseFiles], validation: StoredViews,
    folder: Path, seed: int, rate: float,
) -> Model:  # fmt: skip
    """One training, or what is left of it, or what it gave if it is finished."""
    # Only where a run is resumed: one that is to be overwritten may lie there still when a second process looks.
    resumed = command.run.resume and (folder / CONFIG).is_file()
    if resumed and (folder / METRICS).is_file() and (folder / WEIGHTS).is_file():
        return load_model(folder)[1]
    recipe, train = command.recipe, cases["train"]
    lists = command.data.lists
    digest = digest_of(lists)  # before the training, in which they may go
    settings = dataclasses.replace(command.run, out=folder, seed=seed, resume=resumed, overwrite=False)
    about = {
        "recipe": dataclasses.replace(recipe, learning_rate=(rate,)),
        "initialisation": start.row.key,
        "name": start.name,
    }
    with Run(settings, about) as run:
        network, loaded = start.network(len(train.labels), recipe.image_size)
        best = train_network(run, network, cases, files, validation, recipe, rate, start.statistics)
        model = Model(
            start.row.key, start.name, start.backbone, start.architecture.name, dict(start.architecture.options),
            recipe.image_size, recipe.resized, recipe.keep_aspect, start.statistics, train.labels, train.exclusive,
            train.pictures.name, seed, rate, recipe.schedule, recipe.fraction, len(train), best.epoch, best.value,
            recipe.optimizer, command.data.drawn_by, tuple(str(path.resolve()) for path in lists), digest,
        )  # fmt: skip
        if run.is_main:
            save_model(folder, network, PACKAGE, model)
            report = Report(f"Fine-tuning of {start.name}", f"seed {seed}, learning rate {rate:g}", package=PACKAGE)
            report.text(f"Started from {loaded}. The weights are those of epoch {best.epoch} of {_epochs(folder)}.")
            _curves(report, folder, train.exclusive)
            report.section("Settings")
            report.settings(about)
            report.write(folder / "report.html")
            run.finish({"steps": run.step, "best_epoch": best.epoch, "loaded": loaded, **best.numbers})
    return model


def load_model(path: Path, device: torch.device | str = "cpu") -> tuple[nn.Module, Model]:
    """The network of a trial's folder or weight file, in evaluation mode.

    Raises:
        CheckpointError: no such file, a damaged one, or weights of something else.
    """

    def parse(fields: Any) -> tuple[nn.Module, Model]:
        fields["labels"], fields["lists"] = tuple(fields["labels"]), tuple(fields.get("lists", ()))
        if fields["statistics"] is not None:
            mean, std = fields["statistics"]
            fields["statistics"] = (tuple(mean), tuple(std))
        model = Model(**fields)
        return model.build(), model

    file = weights_file(path)
    problem, remedy = f"is no fine-tuned network of {PACKAGE}", "give a folder of `fine-tune`"
    network, model = read_model(file, PACKAGE, parse, problem, remedy)
    load_weights(file, network)
    return network.to(device).eval(), model


def digest_of(lists: Sequence[Path]) -> str:
    """What tells the authors' lists apart wherever they lie: SHA-256 of their contents; empty for none.

    Raises:
        InputError: one cannot be read.
    """
    try:
        contents = [path.read_bytes() for path in lists]
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})", where=str(error.filename),
            remedy="give the lists of the training: --lists",
        ) from error  # fmt: skip
    return hashlib.sha256(b"\0".join(contents)).hexdigest() if contents else ""


def split_as_trained(data: of.DataSettings, model: Model) -> of.DataSettings:
    """The data settings of a test: on the data set of the training with its split, so that no training picture is tested.

    Raises:
        SettingError: another split is asked for.
        InputError: the lists of the training are no longer there.
    """
    published = radiographs.recognise(data.datalist)
    if (published or the_site(open_data(data), data.site)) != model.dataset:
        return data
    if not model.split_by:
        say(
            f"{model.name} was trained before the split was written down: without the --lists and --split-by of its training, "
            "training pictures may be tested"
        )
        return data
    if data.split_by not in (None, model.split_by):
        raise SettingError(
            f"--split-by is {data.split_by}, that of the training was {model.split_by}", remedy="leave it out"
        )
    data = dataclasses.replace(data, split_by=model.split_by)  # type: ignore[arg-type]
    if published is None:  # a datalist names its own split, or what is drawn follows from it
        return data
    lists = data.lists or tuple(map(Path, model.lists))
    if digest_of(lists) != model.lists_digest:
        there = f"were {', '.join(model.lists)}" if model.lists else "there were none"
        raise SettingError(f"--lists are not those of the training ({there})", remedy="leave them out, or give those")
    return dataclasses.replace(data, lists=lists)


def trial_folders(path: Path) -> list[Path]:
    """The trials of a folder of `fine-tune`, or the folder of one trial itself.

    Raises:
        CheckpointError: neither, or a training that is not finished.
    """
    if path.is_file() or (path / WEIGHTS).is_file():
        return [path]
    try:
        names = json.loads((path / METRICS).read_text(encoding="utf-8"))["trials"]
        folders = [path / name for name in names]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            "holds no finished fine-tuning", where=path, remedy="give a folder of `fine-tune`, or finish it (--resume)"
        ) from error
    return folders


# --- Report ----------------------------------------------------------------------------------------------------------


def _epochs(folder: Path) -> int:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return max((json.loads(line).get("epoch", 0) for line in lines), default=0)


def _curves(report: Report, folder: Path, exclusive: bool) -> None:
    figures.training_curves(report, folder, {"loss": "training batch"}, "loss", "Loss during training")
    figures.training_curves(
        report, folder, {"validation_loss": "validation pictures"}, "loss", "Validation loss after each epoch"
    )
    name = "accuracy" if exclusive else "mean AUC"
    key = "validation_accuracy" if exclusive else "validation_auc"
    figures.training_curves(report, folder, {key: "validation pictures"}, name, f"Validation {name} after each epoch")
    figures.training_curves(report, folder, {"learning_rate": "learning rate"}, "learning rate", "Learning rate")


def _report(
    command: of.FineTune, start: Start, cases: Mapping[str, Cases], out: Path, names: Sequence[str],
    models: Sequence[Model], content: Mapping[str, Any],
) -> None:  # fmt: skip
    train = cases["train"]
    report = Report(
        f"Fine-tuning of {start.name}", f"{train.pictures.name}; {len(train)} training pictures", package=PACKAGE
    )
    report.text(
        f"{len(models)} training{'s' * (len(models) != 1)} of {start.architecture.name} ({start.row.pretraining}; "
        f"{content['loaded']}) with {len(train)} pictures, {len(cases['val'])} for validation."
    )
    if len(content["validation_loss_of_rates"]) > 1:
        report.table(
            ("learning rate", "lowest validation loss"), list(content["validation_loss_of_rates"].items()),
            f"The first trial with each learning rate; {content['learning_rate']:g} was taken for all trials. A dash: the "
            "loss became infinite",
        )  # fmt: skip
    report.table(
        ("seed", "best epoch", "validation loss"), [(m.seed, m.epoch, m.validation_loss) for m in models], "Trials"
    )
    series: dict[str, tuple[Any, Any]] = {}
    for name, model in zip(names, models, strict=True):
        lines = [json.loads(line) for line in (out / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        found = [(line["epoch"], line["validation_loss"]) for line in lines if "epoch" in line]
        if found:
            series[f"seed {model.seed}"] = tuple(np.array(found, dtype=float).T)
    if series:
        report.curves(series, "epoch", "validation loss", "Validation loss of the trials")
    report.section("What the network sees")
    shown = _first_views(command, train)
    report.picture(
        shown, "Training pictures as they are (top row) and as two random views", "rows of pictures: whole, views"
    )
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")


def _first_views(command: of.FineTune, train: Cases) -> Any:
    """The first pictures and two training views of each, as an array."""
    from benchmark_transformers.cases import RANGES
    from dart_core.data.picture_views import crop_view, draw_view, resize_to, turn_views

    files, size = CaseFiles(train.rows[:6]), command.recipe.image_size
    columns = []
    for place in range(len(files)):
        image = files[place]
        rng = np.random.default_rng(place)
        drawn = [draw_view(rng, image.shape[-2], image.shape[-1], RANGES) for _ in range(2)]
        views = torch.stack([crop_view(image, view, size) for view in drawn])
        turned: Tensor = turn_views(views, torch.from_numpy(np.stack(drawn)))
        columns.append(torch.cat([resize_to(image, size), *turned], -2))
    return np.asarray(torch.cat(columns, -1).permute(1, 2, 0).numpy())
