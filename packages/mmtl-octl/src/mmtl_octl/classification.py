"""The commands for classification: read and check everything, then claim the output folder, then work and write."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.models import resnet50

from dart_core import figures, metrics
from dart_core.cli import say
from dart_core.data.datalist import Datalist, Row, check
from dart_core.data.scans import require_subjects
from dart_core.errors import DartError, InputError, SettingError
from dart_core.report import Report
from dart_core.run import Run
from mmtl_octl import settings as of
from mmtl_octl.aucs import auc_rows
from mmtl_octl.classifiers import (
    Classifier,
    Network,
    load_classifier,
    save_classifier,
    starting_network,
)
from mmtl_octl.label_prediction import check_pictures, score_pictures
from mmtl_octl.label_reports import auc_section, mean_of, policy_section
from mmtl_octl.method import AfterEpoch, make_optimizer
from mmtl_octl.models import HISTORY
from mmtl_octl.octl import save_history
from mmtl_octl.pictures import (
    Pictures,
    SplitBy,
    filled,
    label_columns,
    label_problems,
    load_picture,
    open_pictures,
    read_pictures,
    site_rows,
    sites_of,
    split_pictures,
)
from mmtl_octl.reports import PACKAGE, schedule_section
from mmtl_octl.schedules import target_count
from mmtl_octl.xray import (
    ChestNet,
    SpotTuneChestNet,
    adapt_classifier,
    freeze_unused,
    load_imagenet,
    pretrain_classifier,
    switches,
    task_of,
)

IMAGE_SIZE, IMAGES = 256, 128

# --- check-data ------------------------------------------------------------------------------------------------------


def check_data(command: of.CheckData) -> int:
    """Print every problem of a datalist; 0 if there is none, else 2."""
    datalist = open_pictures(command.scans.datalist)
    sites = sites_of(datalist)
    columns = {site: command.pictures.labels or label_columns(site_rows(datalist, site)) for site in sites}

    def open_row(row: Row) -> Iterator[tuple[str, DartError]]:
        try:
            load_picture(row)
        except DartError as error:
            yield "image", error
        yield from label_problems(row, columns[row.site or sites[0]])

    found = [str(problem) for problem in check(datalist, open_row)]
    for site in sites:
        _report_named_split(datalist, site, command.pictures.split_by)
        try:
            pictures = read_pictures(datalist, site, command.pictures.labels)
            parts = split_pictures(pictures, command.pictures.split_by or "patient")
        except DartError as error:
            if str(error).partition(";")[0] not in "\n".join(found):
                found.append(str(error))
            continue
        counts = ", ".join(f"{len(part)} {name}" for name, part in parts.items() if len(part))
        positive = np.nansum(pictures.truth, 0)
        listed = ", ".join(f"{name} {n:.0f}" for name, n in zip(pictures.labels, positive, strict=True))
        print(f"site {site}: {counts}; positive: {listed}")
    for line in found:
        print(line)
    print(f"{len(datalist)} images: {len(found) or 'no'} problem{'s' * (len(found) != 1)}")
    return 2 if found else 0


# --- pretrain --------------------------------------------------------------------------------------------------------


def pretrain(command: of.Pretrain) -> None:
    """Train a source classifier; write its weights and its optimiser's history."""
    datalist, settings = open_pictures(command.scans.datalist), command.pictures
    training = command.training.over(of.SOURCE_CLASSIFIER)
    size, split_by = settings.image_size or IMAGE_SIZE, settings.split_by or "patient"
    sites = _source_sites(command, datalist)
    parts = [_parts(datalist, site, settings.labels, split_by) for site in sites]
    for site in sites:
        _report_named_split(datalist, site, settings.split_by)
    sources = [filled(part["train"], "train", datalist) for part in parts]
    for source in sources:
        require_subjects(source.rows, 2, f"site {source.name}, split train")
    validation = [part["val"] for part in parts if len(part["val"])]
    model = Classifier(
        "ChestNet", {s.name: list(s.labels) for s in sources}, size, split_by, training.optimizer or "adam",
        command.run.seed, [s.name for s in sources],
    )  # fmt: skip
    settings = dataclasses.replace(settings, image_size=size, split_by=split_by)
    command = dataclasses.replace(command, training=training, pictures=settings)
    _network(model, None, command.imagenet)  # a file that does not fit must not cost the output folder
    with Run(command.run, command) as run:
        network = _network(model, None, command.imagenet, warn=run.is_main)
        optimizer = pretrain_classifier(run, network, sources, training, size)
        if not run.is_main:
            return
        save_history(optimizer, network, run.out / HISTORY)
        save_classifier(run.out, network, model)
        images = sum(map(len, sources))
        report = Report("Source classifier", f"{model.source_site}; {images} images", package=PACKAGE)
        _finish(run, report, command, network, model, validation, {"images": images})
    say(f"network and history: {run.out}   report: {run.out / 'report.html'}")


def _source_sites(command: of.Pretrain, datalist: Datalist) -> tuple[str, ...]:
    there = sites_of(datalist)
    if command.source:
        if command.target in command.source:
            raise SettingError(f"{command.target} is both source and target", remedy="leave it out of --source")
        return tuple(dict.fromkeys(command.source))
    if not command.target and len(there) > 1:
        raise SettingError(
            f"{command.scans.datalist} holds {len(there)} data sets",
            remedy=f"name the source: --source {there[0]}; or the one to leave out: --target",
        )
    if command.target and datalist.sites:
        datalist.select(site=command.target)  # a misspelt site must not leave all sites as sources
    others = tuple(site for site in there if site != command.target)
    if not others:
        raise InputError(f"holds no data set but {command.target}", where=datalist.source, remedy="add a source")
    return others


def _report_named_split(datalist: Datalist, site: str, split_by: SplitBy | None) -> None:
    """Say where --split-by was given and does nothing, as with ChestX-ray14 and its owners' list of test images."""
    if split_by is not None and any(row.split == "test" for row in site_rows(datalist, site)):
        say(f"warning: {datalist.source} names the test images of {site}: --split-by {split_by} has no effect there")


def _parts(datalist: Datalist, site: str, labels: Sequence[str], split_by: SplitBy) -> dict[str, Pictures]:
    """The splits of a data set, after making sure that the files are there."""
    pictures = read_pictures(datalist, site, labels)
    for row in pictures.rows:
        if not row.image.is_file():
            raise InputError(f"{row.image} is not there", where=row.where("image"), remedy="check the path")
    return split_pictures(pictures, split_by)


def _network(model: Classifier, source: ChestNet | None, imagenet: Path | None, warn: bool = False) -> ChestNet:
    """What a training starts from: the source network with a new head, or ImageNet's weights, or random ones."""
    network = starting_network(model, source)
    if source is None and imagenet is not None:
        load_imagenet(network.features, imagenet, "features.")
    elif source is None and warn:
        say("warning: no ImageNet weights (--imagenet); the network starts from random weights, unlike the paper's")
    return network


# --- adapt -----------------------------------------------------------------------------------------------------------


def adapt(command: of.Adapt) -> None:
    """Fine-tune a source classifier on a target data set."""
    source_network, source = _source_model(command)
    given = command.pictures.split_by
    command = _resolved(command, source)
    settings = command.adaptation
    training = command.training.over(of.TARGET_CLASSIFIER)
    datalist = open_pictures(command.scans.datalist)
    size, split_by = command.pictures.image_size or IMAGE_SIZE, command.pictures.split_by or "patient"
    parts = _parts(datalist, command.target, command.pictures.labels, split_by)
    _report_named_split(datalist, command.target, given)
    if source_network is not None and source is not None and settings.method == "none":
        _keep_source(command, source_network, source)
        return
    everything = filled(parts["train"], "train", datalist)
    target = everything.take(range(_images(settings, everything, datalist)))
    validation = [parts["val"]] if len(parts["val"]) else []
    if settings.keep == "best" and not any(_defined(part) for part in validation):
        raise SettingError(
            "--keep best needs validation images with both classes", remedy="add rows with split val, or --keep last"
        )
    sources = _source_pictures(command, source)
    model = Classifier(
        "ChestNet", {**(source.label_sets if source else {}), target.name: list(target.labels)}, size, split_by,
        training.optimizer or "adam", command.run.seed, source.source if source else [], target.name,
        settings.name_in("classification", training.optimizer or "adam"), len(target),
    )  # fmt: skip
    model = dataclasses.replace(model, size=source.size) if source else model
    history = _history(command)
    policy = _check_start(command, model, source_network, training, history)
    with Run(command.run, command) as run:
        # The new head, and with --method target the whole network, are drawn inside the run, whose seed they take: all
        # methods of one seed start from the same head.
        start = _network(model, source_network, command.imagenet, warn=run.is_main)
        after = _after_epoch(run, command, model, validation)
        network = adapt_classifier(run, start, target, sources, training, settings, size, history, after, policy)
        if not run.is_main:
            return
        assert isinstance(network, ChestNet | SpotTuneChestNet)
        model = dataclasses.replace(model, network=type(network).__name__)
        save_classifier(run.out, network, model)
        origin = f"from {model.source_site} " if model.source else ""
        report = Report(
            f"Adaptation: {model.method}", f"{origin}to {target.name}; {len(target)} images", package=PACKAGE
        )
        if settings.method == "mmtl":
            schedule, keep = settings.schedule or "xray", settings.keep_source
            epochs, batch = training.epochs, training.batch_size
            schedule_section(report, [target_count(e, epochs, batch, schedule, keep) for e in range(epochs)], batch)
        if isinstance(network, SpotTuneChestNet):
            policy_section(report, network, (validation or [target])[0], size)
        _finish(run, report, command, network, model, validation, {"images": len(target)})
    say(f"network: {run.out}   report: {run.out / 'report.html'}")


def _source_model(command: of.Adapt) -> tuple[ChestNet | None, Classifier | None]:
    """The source network with what its file says."""
    path = command.source_model
    if path is None:
        return None, None
    network, model = load_classifier(path)
    if model.target or not isinstance(network, ChestNet):
        raise SettingError(
            f"is a network that was fine-tuned on {model.target}", where=path, remedy="give a run of `pretrain`"
        )
    if command.target in model.source:
        raise SettingError(
            f"{command.target} is a source data set of this network", where=path, remedy="choose another --target"
        )
    return network, model


def _resolved(command: of.Adapt, source: Classifier | None) -> of.Adapt:
    """The command with nothing left open: sizes and optimiser are those of the source training.

    Raises:
        SettingError: options that contradict each other or the source network.
    """
    settings, pictures = command.adaptation, command.pictures
    if source is not None:
        check_pictures(pictures, source, command.source_model or Path())
    known = dataclasses.replace(
        pictures,
        image_size=source.image_size if source else pictures.image_size or IMAGE_SIZE,
        split_by=source.split_by if source else pictures.split_by or "patient",
    )
    defaults = dataclasses.replace(of.TARGET_CLASSIFIER, optimizer=source.optimizer) if source else of.SOURCE_CLASSIFIER
    training = command.training.over(defaults)
    if settings.momentum is not None and training.optimizer == "adam":
        raise SettingError("--momentum is for the optimiser sgd", remedy="leave it out, or give --optimizer sgd")
    if settings.method == "spottune" and command.run.accumulate > 1:
        raise SettingError("--accumulate has no meaning for --method spottune", remedy="leave it out")
    for flag, value, method in (
        ("--imagenet", command.imagenet, "target"),
        ("--policy-imagenet", command.policy_imagenet, "spottune"),
    ):
        if value is not None and settings.method != method:
            raise SettingError(f"{flag} has no meaning for --method {settings.method}", remedy="leave it out")
    if source is not None and settings.method not in ("none", "octl") and training.optimizer != source.optimizer:
        say(
            f"warning: the source network was trained with {source.optimizer}; the paper goes on with the same optimiser"
        )
    settings = settings.resolved("classification")
    return dataclasses.replace(command, training=training, adaptation=settings, pictures=known)


def _keep_source(command: of.Adapt, network: ChestNet, model: Classifier) -> None:
    """--method none: the source network in a run folder of its own, so that it is used like the others."""
    with Run(command.run, command) as run:
        model = dataclasses.replace(model, target=command.target, method="none")
        save_classifier(run.out, network, model)
        report = Report("Adaptation: none", f"The network from {model.source_site} as it is", package=PACKAGE)
        _finish(run, report, command, network.to(run.device), model, [], {"images": 0})
    say(f"network: {run.out}   report: {run.out / 'report.html'}")


def _images(settings: of.Adaptation, pictures: Pictures, datalist: Datalist) -> int:
    """How many of the target's training images are used."""
    wanted = settings.images
    if wanted is None:
        wanted = 0 if settings.method == "target" else IMAGES
    if wanted > len(pictures):
        raise InputError(
            f"site {pictures.name} has {len(pictures)} training images, --images asks for {wanted}",
            where=datalist.source,
            remedy=f"give --images {len(pictures)} or fewer, 0 for all",
        )
    return wanted or len(pictures)


def _source_pictures(command: of.Adapt, source: Classifier | None) -> list[Pictures]:
    """mmtl: the training images of the source data sets (specification 2.2, item 5)."""
    if source is None or command.adaptation.method != "mmtl":
        return []
    datalist = open_pictures(command.source_datalist or command.scans.datalist)
    found = []
    for site in source.source:
        if site not in sites_of(datalist):
            raise InputError(
                f"holds no images of {site}, which mmtl needs",
                where=datalist.source,
                remedy="give the datalist of the source: --source-datalist",
            )
        parts = _parts(datalist, site, source.label_sets[site], source.split_by)
        found.append(filled(parts["train"], "train", datalist))
    return found


def _history(command: of.Adapt) -> Path | None:
    """octl: the file of the source training's gradient history."""
    path = command.source_model
    if command.adaptation.method != "octl" or path is None:
        return None
    history = (path if path.is_dir() else path.parent) / HISTORY
    if not history.is_file():
        raise InputError("there is no gradient history", where=history, remedy="pre-train with `mmtl-octl pretrain`")
    return history


def _check_start(
    command: of.Adapt, model: Classifier, source: ChestNet | None, training: of.Training, history: Path | None
) -> nn.Module | None:
    """Read weights and history once before the output folder is claimed; spottune: give the policy network."""
    network = _network(model, source, command.imagenet)
    if history is not None:
        freeze_unused(network, [model.target])
        make_optimizer(network, task_of(network), training, command.adaptation, history)
    if command.adaptation.method != "spottune":
        return None
    torch.manual_seed(command.run.seed)
    policy: nn.Module = resnet50(num_classes=2 * switches(network))
    if command.policy_imagenet is None:
        say("warning: no ImageNet weights (--policy-imagenet); the policy network starts from random weights")
    else:
        load_imagenet(policy, command.policy_imagenet, leave=("fc.",))
    return policy


def _defined(pictures: Pictures) -> bool:
    """Some label has both classes."""
    return bool(((pictures.truth == 1).any(0) & (pictures.truth == 0).any(0)).any())


def _after_epoch(run: Run, command: of.Adapt, model: Classifier, validation: Sequence[Pictures]) -> AfterEpoch | None:
    """keep best: the mean AUC of the validation images after an epoch."""

    def after(epoch: int, network: Any) -> float | None:
        if epoch == 0:
            return None
        score = float(
            np.mean([metrics.mean_auc(part.truth, score_pictures(network, model, part)[1]) for part in validation])
        )
        run.log.write(run.step, validation_auc=score)
        return score

    return after if command.adaptation.keep == "best" else None


# --- shared ----------------------------------------------------------------------------------------------------------


def _finish(
    run: Run,
    report: Report,
    command: of.Pretrain | of.Adapt,
    network: Network,
    model: Classifier,
    validation: Sequence[Pictures],
    content: dict[str, Any],
) -> None:
    """Score the validation images, and write metrics.json and report.html."""
    tables = {}
    for part in validation:
        pictures, scores = score_pictures(network, model, part)
        tables[part.name] = auc_rows(pictures.labels, pictures.truth, scores)
    means = [mean for table in tables.values() if (mean := mean_of(table)) is not None]
    if means:
        content["validation_auc"] = float(np.mean(means))
    run.finish({**content, "validation_images": sum(map(len, validation)), "steps": run.step})
    if run.step:
        figures.training_curves(report, run.out, {"loss": "training batch"}, "loss", "Loss during training")
        auc = {"validation_auc": "validation images"}
        figures.training_curves(report, run.out, auc, "mean AUC", "Mean AUC after each epoch")
    for name, table in tables.items():
        auc_section(report, table, f"the validation images of {name}")
    report.section("Settings")
    report.settings(command)
    report.write(run.out / "report.html")
