"""The commands for segmentation: read and check everything, then claim the output folder, then work and write."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from dart_core import figures, metrics, scan_commands
from dart_core.checkpoint import save_model
from dart_core.cli import say
from dart_core.data.datalist import Datalist, Row
from dart_core.data.scans import Scan, load_scans, open_datalist, require_subjects, rows_of
from dart_core.errors import InputError, SettingError
from dart_core.evaluation import score
from dart_core.report import Report
from dart_core.run import Run
from dart_core.scan_commands import check_settings, panel, source_sites, spacing_of
from mmtl_octl import features as of_features
from mmtl_octl import settings as of
from mmtl_octl.method import SEGMENTATION, AfterEpoch, fine_tune, make_optimizer, train_source
from mmtl_octl.models import HISTORY, Model, build, load_model
from mmtl_octl.octl import save_history
from mmtl_octl.pools import Pool, check_sizes, first_patients, make_pool, patch_size_of, training_batches
from mmtl_octl.prediction import segment
from mmtl_octl.reports import PACKAGE, amount, features_section, policy_section, schedule_section

# --- check-data ------------------------------------------------------------------------------------------------------


def check_data(command: of.CheckData) -> int:
    """Print every problem of a datalist; 0 if there is none, else 2."""
    return scan_commands.check_data(command.scans, command.require_mask)


# --- pretrain --------------------------------------------------------------------------------------------------------


def pretrain(command: of.Pretrain) -> None:
    """Train a source network; write its weights and its optimiser's history."""
    datalist, scans = open_datalist(command.scans.datalist), command.scans
    sources = source_sites(datalist, command.source, command.target)
    rows = [row for site in sources for row in _training_rows(datalist, site, least=2)]
    validation_rows = _validation_rows(datalist, sources)
    training = _resolved(command.training, "sgd", 1e-3)
    command = dataclasses.replace(command, training=training)
    pool = make_pool(load_scans(rows, scans, need_mask=True), scans, command.run.seed)
    validation = load_scans(validation_rows, scans, need_mask=True)
    batches = training_batches(None, pool, training, scans, command.run.seed, "target")
    model = _model(command, training, source=list(sources))
    with Run(command.run, command) as run:
        network = build(model)
        optimizer = train_source(run, network, batches, SEGMENTATION, training)
        if not run.is_main:
            return
        save_history(optimizer, network, run.out / HISTORY)
        save_model(run.out, network, PACKAGE, model)
        report = Report("Source network", f"Sites {', '.join(sources)}; {amount(pool)}", package=PACKAGE)
        _finish(run, report, command, network, validation, {"patients": len(pool.patients), "slices": pool.size})
    say(f"network and history: {run.out}   report: {run.out / 'report.html'}")


def _training_rows(datalist: Datalist, site: str, least: int = 1) -> list[Row]:
    rows = rows_of(datalist, [site], "train")
    require_subjects(rows, least, f"site {site}, split train")
    return rows


def _validation_rows(datalist: Datalist, sites: Sequence[str]) -> list[Row]:
    """Those of the sites that have any."""
    return [row for site in sites for row in datalist if row.site == site and row.split == "val"]


def _resolved(training: of.TrainingSettings, optimizer: of.OptimizerName, rate: float) -> of.Training:
    """The recipe with nothing left open, as config.yaml records it."""
    return training.over(of.Training(optimizer=optimizer, learning_rate=rate))


def _model(command: of.Pretrain | of.Adapt, training: of.Training, **known: Any) -> Model:
    return Model(
        network="ResidualUNet2d",
        width=training.width,
        channels=command.scans.channels,
        preprocessing=command.scans.preprocessing,
        spacing=spacing_of(command.scans),
        optimizer=training.optimizer or "",
        seed=command.run.seed,
        **known,
    )


# --- adapt -----------------------------------------------------------------------------------------------------------


def adapt(command: of.Adapt) -> None:
    """Fine-tune a source network on a target site."""
    settings, scans = command.adaptation, command.scans
    source_model, history = _source_model(command)
    default: Any = source_model[1].optimizer if source_model is not None else "sgd"
    rate = 1e-4 if scans.preprocessing == "prostate" and settings.method != "target" else 1e-3
    training = _resolved(command.training, default, rate)
    if source_model is not None:
        training = dataclasses.replace(training, width=source_model[1].width)
    _check_options(command, training)
    settings = settings.resolved("segmentation")
    command = dataclasses.replace(command, training=training, adaptation=settings)
    datalist = open_datalist(scans.datalist)
    if source_model is not None and settings.method == "none":
        _keep_source(command, datalist, *source_model)
        return
    rows = first_patients(_training_rows(datalist, command.target), _patients(settings))
    validation_rows = _validation_rows(datalist, [command.target])
    if settings.keep == "best" and not validation_rows:
        raise SettingError("--keep best needs validation scans", remedy="add rows with split val, or --keep last")
    test_rows = rows_of(datalist, [command.target], "test") if command.features else []
    target = make_pool(load_scans(rows, scans, need_mask=True), scans, command.run.seed, settings.interval)
    source = _source_pool(command, source_model)
    validation, tests = (load_scans(chosen, scans, need_mask=True) for chosen in (validation_rows, test_rows))
    if command.features:  # their vectors must have one length, and the network must take every scan as it is
        check_sizes([*(source.scans if source else ()), *target.scans, *tests], patch_size_of(training, scans))
    seed, mixed = command.run.seed, settings.method == "mmtl"
    batches = training_batches(
        source if mixed else None, target, training, scans, seed, (settings.schedule or "paper") if mixed else "target",
        settings.keep_source and mixed,
    )  # fmt: skip
    model = _model(
        command, training, source=source_model[1].source if source_model is not None else [], target=command.target,
        method=settings.name_in("segmentation", training.optimizer or "sgd"), patients=len(target.patients),
        interval=settings.interval, slices=target.size,
    )  # fmt: skip
    if source_model is not None:
        _check_optimizer(*source_model, training, settings, history)
    model = dataclasses.replace(model, network="SpotTUNet" if settings.method == "spottune" else model.network)
    with Run(command.run, command) as run:
        # Built inside the run, whose seed it takes, so that --method target starts from weights of its own.
        network: nn.Module = build(model) if source_model is None else source_model[0]
        groups = {"source": source.scans if source else [], "target train": target.scans, "target test": tests}
        after = _after_epoch(run, command, groups, validation)
        network = fine_tune(run, network, batches, SEGMENTATION, training, settings, history, after)
        if not run.is_main:
            return
        save_model(run.out, network, PACKAGE, model)
        origin = f"from {model.source_site} " if model.source else ""
        report = Report(
            f"Adaptation: {model.method}", f"{origin}to {command.target}; {amount(target)}", package=PACKAGE
        )
        if settings.method == "mmtl":
            schedule_section(report, batches.mixed.counts, training.batch_size)
        if settings.method == "spottune":
            policy_section(report, network, validation or target.scans, scans.channels)
        if command.features:
            features_section(report, {model.method: run.out})
        amounts = {"patients": len(target.patients), "slices": target.size}
        _finish(run, report, command, network, validation, amounts)
    say(f"network: {run.out}   report: {run.out / 'report.html'}")


def _keep_source(command: of.Adapt, datalist: Datalist, network: nn.Module, model: Model) -> None:
    """--method none: the source network in a run folder of its own, so that it is used like the others."""
    datalist.select(site=command.target)
    with Run(command.run, command) as run:
        save_model(run.out, network, PACKAGE, dataclasses.replace(model, target=command.target, method="none"))
        report = Report("Adaptation: none", f"The network from {model.source_site} as it is", package=PACKAGE)
        _finish(run, report, command, network.to(run.device), [], {"patients": 0, "slices": 0})
    say(f"network: {run.out}   report: {run.out / 'report.html'}")


def _patients(settings: of.Adaptation) -> int:
    """Target patients; 0 = all."""
    if settings.patients is not None:
        return settings.patients
    return 0 if settings.method == "target" else 1


def _source_model(command: of.Adapt) -> tuple[tuple[nn.Module, Model] | None, Path | None]:
    """The source network with what its file says, and for octl the file of its history."""
    path = command.source_model
    if path is None:
        return None, None
    network, model = load_model(path)
    check_settings(model, command.scans, path)
    if model.target:
        raise SettingError(
            f"is a network that was fine-tuned on {model.target}", where=path, remedy="give a run of `pretrain`"
        )
    if command.target in model.source:
        raise SettingError(
            f"{command.target} is a source site of this network", where=path, remedy="choose another --target"
        )
    if command.adaptation.method != "octl":
        return (network, model), None
    history = (path if path.is_dir() else path.parent) / HISTORY
    if not history.is_file():
        raise InputError("there is no gradient history", where=history, remedy="pre-train with `mmtl-octl pretrain`")
    return (network, model), history


def _check_options(command: of.Adapt, training: of.Training) -> None:
    """Options that contradict each other once the optimiser is known."""
    settings, features = command.adaptation, command.features
    if settings.method == "spottune" and command.run.accumulate > 1:
        raise SettingError("--accumulate has no meaning for --method spottune", remedy="leave it out")
    if settings.momentum is not None and training.optimizer == "adam":
        raise SettingError("--momentum is for the optimiser sgd", remedy="leave it out, or give --optimizer sgd")
    if features and settings.method in ("spottune", "none"):  # two copies of each layer, or no training
        raise SettingError(f"--features has no meaning for --method {settings.method}", remedy="leave it out")
    if max(features, default=0) > training.epochs:
        raise SettingError(f"--features {max(features)} is after the last epoch", remedy=f"give 0 to {training.epochs}")


def _check_optimizer(
    network: nn.Module, source: Model, training: of.Training, settings: of.Adaptation, history: Path | None
) -> None:
    """Read the history once before the output folder is claimed, and say where the paper would not go along."""
    if history is not None:
        make_optimizer(network, SEGMENTATION, training, settings, history)
    elif training.optimizer != source.optimizer:
        say(
            f"warning: the source network was trained with {source.optimizer}; the paper goes on with the same optimiser"
        )


def _source_pool(command: of.Adapt, source_model: tuple[nn.Module, Model] | None) -> Pool | None:
    """The source's training scans, where the method or the figure needs them (specification 2.2, item 5)."""
    if source_model is None or not (command.adaptation.method == "mmtl" or command.features):
        return None
    datalist = open_datalist(command.source_datalist or command.scans.datalist)
    rows = [row for site in source_model[1].source for row in _training_rows(datalist, site)]
    return make_pool(load_scans(rows, command.scans, need_mask=True), command.scans, command.run.seed)


def _after_epoch(
    run: Run, command: of.Adapt, groups: dict[str, Sequence[Scan]], validation: Sequence[Scan]
) -> AfterEpoch | None:
    """What follows an epoch: features for Fig. 1, and the validation score."""
    channels, size = command.scans.channels, patch_size_of(command.training, command.scans)

    def after(epoch: int, network: nn.Module) -> float | None:
        if epoch in command.features:
            layer = network.get_submodule("bottleneck.3")
            of_features.save_snapshot(run.out, of_features.snapshot(epoch, network, layer, groups, channels, size))
        if command.adaptation.keep != "best" or epoch == 0:
            return None
        scores = [metrics.dice(segment(network, scan, channels) > 0.5, scan.truth) for scan in validation]
        score = float(np.mean(scores))
        run.log.write(run.step, validation_dice=score)
        return score

    return after if command.features or command.adaptation.keep == "best" else None


# --- shared ---


def _finish(
    run: Run,
    report: Report,
    command: of.Pretrain | of.Adapt,
    network: nn.Module,
    validation: Sequence[Scan],
    content: dict[str, Any],
) -> None:
    """Score the validation scans, and write metrics.json and report.html."""
    channels = command.scans.channels
    rows: list[tuple[str, dict[str, float]]] = []
    panels: list[figures.Panel] = []
    for scan in validation:
        mask = segment(network, scan, channels) > 0.5
        rows.append((scan.name, score(mask, scan.truth, scan.spacing)))
        if len(panels) < 6:
            panels.append(panel(scan, mask, scan.name))
    for name in ("surface_dice", "dice") if rows else ():
        content[f"validation_{name}"] = float(np.mean([values[name] for _, values in rows]))
    run.finish({**content, "validation_scans": len(validation), "steps": run.step})
    if run.step:
        report.section("Training")
        figures.training_curves(report, run.out, {"loss": "training batch"}, "loss", "Loss during training")
        dice = {"validation_dice": "validation scans"}
        figures.training_curves(report, run.out, dice, "Dice", "Dice after each epoch")
    if rows:
        report.section("Validation scans")
        report.table(
            ("scan", "surface Dice (1 mm)", "Dice"),
            [(name, values["surface_dice"], values["dice"]) for name, values in rows],
            "Nothing was chosen by them, unless --keep best",
        )
        report.picture(figures.comparison([("", panels)]), "Prediction red, mask green", "slices with outlines")
    report.section("Settings")
    report.settings(command)
    report.write(run.out / "report.html")
