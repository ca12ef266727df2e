"""The command `adapt`: AIVA and everything that the paper compares it with, from the same source network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from aiva import figures as pictures
from aiva import settings as of
from aiva.baselines import adapt_statistics, check_patch, train_adaptsegnet, train_seg_jdot
from aiva.bottleneck import bottleneck_width
from aiva.commands import (
    finish,
    new_model,
    selection_scans,
    train_labelled,
    training_rows,
)
from aiva.epoch import check_counts, clusterings
from aiva.features import FeatureStore, check_room
from aiva.method import train_aiva
from aiva.models import PACKAGE, Model, load_model, source_judge
from aiva.slices import Slices, patch_size_of
from aiva.training import Selection
from dart_core.checkpoint import save_model
from dart_core.data.datalist import Datalist
from dart_core.data.scans import Scan, load_scans, open_datalist
from dart_core.errors import InputError, SettingError
from dart_core.nets import ResidualUNet2d
from dart_core.report import Report
from dart_core.run import Run
from dart_core.scan_commands import check_settings


def adapt(command: of.Adapt) -> None:
    """Adapt a source network to the target site."""
    datalist, method = open_datalist(command.scans.datalist), command.method
    training = command.training.resolved(method)
    milestones = of.MILESTONES.get(method, ()) if command.milestones is None else command.milestones
    if method == "target":
        if training.checkpoint != "last" and training.selection_split == "test":
            raise SettingError(
                "--selection-split test would choose by the target's test scans",
                remedy="give val, or --checkpoint last",
            )
        command = dataclasses.replace(command, training=training)
        sites = [command.target]
        model = dataclasses.replace(new_model(command.scans, training, sites, command.target), name=command.name)
        train_labelled(command, datalist, sites, model)
        return
    network, source_model = _source_network(command)
    training = dataclasses.replace(training, width=source_model.width)
    command = dataclasses.replace(command, training=training, milestones=milestones)
    clusters = command.alignment.clusters if method == "aiva" else 0
    model = dataclasses.replace(
        source_model, target=command.target, method=method, clusters=clusters, name=command.name
    )
    if method == "none":
        datalist.select(site=command.target)
        with Run(command.run, command) as run:
            _finish(run, command, network.to(run.device), model, [], source_model.chosen, {})
        return
    target_scans = load_scans(training_rows(datalist, [command.target]), command.scans)
    if method == "adabn":
        _adapt_statistics(command, network, model, target_scans)
        return
    _train(command, datalist, network, model, target_scans)


def _source_network(command: of.Adapt) -> tuple[ResidualUNet2d, Model]:
    path = command.source_model
    assert path is not None  # as the settings have seen to
    network, model = load_model(path)
    check_settings(model, command.scans, path)
    if model.target:
        raise SettingError(
            f"is a network that was adapted to {model.target}", where=path, remedy="give a run of `pretrain`"
        )
    if command.target in model.source:
        raise SettingError(
            f"{command.target} is a source site of this network", where=path, remedy="choose another --target"
        )
    return network, model


def _adapt_statistics(command: of.Adapt, network: ResidualUNet2d, model: Model, scans: Sequence[Scan]) -> None:
    training = command.training
    size = patch_size_of(training, command.scans, scans)
    target = Slices(scans, command.scans, size, training.random_patches, labelled=False)
    with Run(command.run, command) as run:
        adapt_statistics(run, network, target, training.batch_size or 16, command.baselines)
        amounts = {"target_scans": len(scans), "target_slices": len(target)}
        _finish(run, command, network, model, [], "source weights with the target's batch-norm statistics", amounts)


def _train(
    command: of.Adapt, datalist: Datalist, network: ResidualUNet2d, model: Model, target_scans: Sequence[Scan]
) -> None:
    """The methods with a training loop: read and check everything, then claim the folder, then train."""
    training, scans, method = command.training, command.scans, command.method
    source_scans = load_scans(training_rows(datalist, model.source), scans, need_mask=True)
    judged = selection_scans(datalist, model.source, training, scans)
    size = patch_size_of(training, scans, [*source_scans, *target_scans])
    seed = command.run.seed
    source = Slices(source_scans, scans, size, training.random_patches, seed=seed)
    target = Slices(target_scans, scans, size, training.random_patches, labelled=False)
    if method == "aiva":
        _check_aiva(command, network, source, target)
    if method == "adaptsegnet":
        check_patch(size)
    judge = source_judge(judged, scans) if judged else None
    total = training.steps or 0
    first = _first_candidate(command, total)
    loop: dict[str, Any] = {
        "aiva": (train_aiva, command.alignment),
        "seg-jdot": (train_seg_jdot, command.baselines),
        "adaptsegnet": (train_adaptsegnet, command.baselines),
    }
    train, own = loop[method]
    with Run(command.run, command) as run:
        selection = Selection(training.checkpoint, judge, training.evaluate_every, total, first)
        train(run, network, source, target, training, own, selection, command.milestones)
        chosen = selection.take(network)
        amounts = {
            "source_scans": len(source_scans),
            "source_slices": len(source),
            "target_scans": len(target_scans),
            "target_slices": len(target),
        }
        _finish(run, command, network, model, judged, chosen, amounts, {"source": source_scans, "target": target_scans})


def _first_candidate(command: of.Adapt, total: int) -> int:
    """Steps after which a network may be chosen: when it is no longer the source network (specification 4.3, 6.2)."""
    if command.method == "aiva" and command.alignment.embedding == "running":
        first = command.alignment.iterations_per_epoch
        if total <= first:
            raise SettingError(
                f"--steps {total} ends before the first clustering at {first}",
                remedy="give more --steps or a smaller --iterations-per-epoch",
            )
        return first
    return min(of.CANDIDATES_FROM.get(command.method, 1), total) - 1


def _check_aiva(command: of.Adapt, network: ResidualUNet2d, source: Slices, target: Slices) -> None:
    """What only the first clustering would find out."""
    settings = command.alignment
    try:
        check_counts(len(source), len(target), command.training.batch_size or 0, settings)
    except InputError as error:
        raise InputError(error.problem, where=command.scans.datalist, remedy=error.remedy) from error
    folder, width = command.run.out / "features", bottleneck_width(network)
    sites = {"source": source, "target": target}
    stores = [FeatureStore(folder / f"{n}.f16", len(site), (width, *site.feature_shape)) for n, site in sites.items()]
    check_room(stores)


def _finish(
    run: Run,
    command: of.Adapt,
    network: ResidualUNet2d,
    model: Model,
    judged: Sequence[Scan],
    chosen: str,
    content: Mapping[str, object],
    scans: dict[str, Sequence[Scan]] | None = None,
) -> None:
    save_model(run.out, network, PACKAGE, dataclasses.replace(model, chosen=chosen))
    report = Report(
        f"Adaptation: {model.shown}",
        f"from {model.source_site} to {command.target}, without its masks",
        package=PACKAGE,
    )
    if command.method == "aiva" and scans is not None:
        pictures.cluster_sections(report, list(clusterings(run.out)), scans)
    finish(run, report, command, network, judged, chosen, content)
