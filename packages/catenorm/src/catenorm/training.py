"""The command `train`: warm-up, then the two stages or a baseline's step (specification 2.3, 2.6, 4)."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from catenorm import settings as of
from catenorm.augment import augment
from catenorm.baselines import MSNet, WNet, ms_net_step
from catenorm.cases import Case, check_sizes, load_cases, names_of
from catenorm.losses import hard_dice_loss, one_hot, segmentation_loss
from catenorm.method import Plateau, one_stage_step, two_stage_step
from catenorm.models import (
    PACKAGE,
    Model,
    build,
    check_sides,
    initialise,
    plain_network,
    plain_settings,
    save_model,
    take_over,
)
from catenorm.rows import label_sets, marks, open_divided
from dart_core.batches import Batches, Sample
from dart_core.checkpoint import load_weights, weights_file
from dart_core.cli import say
from dart_core.data.datalist import Datalist, Row
from dart_core.errors import CheckpointError, SettingError
from dart_core.figures import training_curves
from dart_core.fine_tuning import refuse_divergence
from dart_core.report import Report
from dart_core.run import Run

WARMUP = "warmup"
"""Folder of the network that the warm-up ends with (Table 12)."""

Step = Callable[[int, Mapping[str, Tensor]], dict[str, Tensor]]
"""(step, batch) -> losses by name, and "logits"."""


# --- Batches (2.6) ----------------------------------------------------------------------------------------------------


class SiteBatches(Batches):
    """As many slices of each site in every batch, in the order of the sites: "image", "label", "site".

    Cases of a site come in a new order in every round; of each a slice is drawn that has two neighbours.

    Args:
        sites: training cases of each site.
        per_site: slices of each in a batch.
        augments: turn slices (see `augment`).
        flips: flip and shift them too.
        seed: of order, slices and augmentation.
    """

    def __init__(self, sites: Sequence[Sequence[Case]], per_site: int, augments: bool, flips: bool, seed: int) -> None:
        self.parts: list[Batches] = []
        for number, cases in enumerate(sites):
            own = int(np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1)[0])
            # Loading processes get these two arrays of each case and nothing else of it.
            arrays = [(case.image, case.truth) for case in cases]
            load = functools.partial(_slice, arrays, number, augments, flips)
            self.parts.append(Batches(load, len(cases), per_site, own))
        super().__init__(self.parts[0].load, sum(part.size for part in self.parts), per_site * len(sites), seed)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> dict[str, Tensor]:
        """One step's slices, ordered by site; see `Batches.batch`."""
        parts = [part.batch(step, rank, world_size) for part in self.parts]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _slice(
    cases: Sequence[tuple[NDArray[np.float32], NDArray[np.uint8]]],
    site: int,
    augments: bool,
    flips: bool,
    index: int,
    rng: np.random.Generator,
) -> Sample:
    """A slice of a case with its neighbours, its labels, and the number of its site."""
    volume, truth = cases[index]
    z = int(rng.integers(1, len(volume) - 1))
    image, label = volume[z - 1 : z + 2], truth[z]
    if augments:
        image, label = augment(image, label, rng, flips)
    return {"image": image, "label": label.astype(np.int64), "site": np.int64(site)}


# --- The command ------------------------------------------------------------------------------------------------------


def train(command: of.Train) -> None:
    """Train a network and report; the last weights are kept, never those that are best on the test part (8.6)."""
    datalist, training_rows, test_rows = open_divided(command.cases, command.training.fold)
    model = _model(command, training_rows)
    weights: dict[str, Tensor] | None = None
    if command.training.warm_start is not None:
        weights, seen = _warm_weights(command, model, test_rows)
        model = dataclasses.replace(model, seen=tuple(sorted({*model.seen, *seen})))
    sites = [load_cases(rows, command.cases, training=True) for rows in training_rows.values()]
    for cases in sites[1:]:
        for case in cases:
            check_sizes(sites[0][0], case)
    images = command.training.slices_per_site(len(sites)) * (1 if model.network.per_site else len(sites))
    check_sides(model.network, sites[0][0].image.shape[1:], images)
    with Run(command.run, command) as run:
        _check_run(run)
        network = _new_network(model, weights).to(run.device)
        if run.settings.channels_last:
            network = network.to(memory_format=torch.channels_last)
        if run.settings.compile:
            network.compile()
        fit(run, network, sites, model, command.training)
        save_model(run.out, network, model)
        _report(run, command, model, network, datalist, [len(cases) for cases in sites], len(test_rows))


def _model(command: of.Train, rows: Mapping[str, Sequence[Row]]) -> Model:
    training, sites = command.training, tuple(rows)
    cases = dataclasses.replace(command.cases, datalist=tuple(path.resolve() for path in command.cases.datalist))
    if command.network.per_site and len(sites) < 2:
        raise SettingError(
            f"--method {command.network.method} needs several sites",
            where=command.cases.datalist[0],
            remedy="name them in the column site, or give --method bn",
        )
    return Model(
        # The file says which blocks, whatever the default may become.
        network=dataclasses.replace(command.network, blocks=command.network.categorical),
        name=command.name or command.network.name,
        organs=names_of(command.cases),
        sites=sites,
        cases=dataclasses.replace(cases, cache=None),
        fold=training.fold,
        steps=training.steps,
        warmup_steps=training.warmup_steps,
        seen=tuple(sorted({mark for own in rows.values() for row in own for mark in marks(row)})),
    )


def _warm_weights(command: of.Train, model: Model, held_out: Sequence[Row]) -> tuple[dict[str, Tensor], set[str]]:
    """The weights of --warm-start and the marks of what they have seen, after a look whether any of them fits.

    They must not have seen what this run holds out. Weights of other programs say nothing about that.
    """
    path = command.training.warm_start
    assert path is not None
    if command.training.warmup_steps:
        raise SettingError(
            f"--warm-start and {command.training.warmup_steps} --warmup-steps are both given",
            remedy="give --warmup-steps 0 beside --warm-start",
        )
    file = weights_file(path)
    weights, metadata = load_weights(file)
    earlier = json.loads(metadata.get(PACKAGE, "{}"))
    seen, fold = set(earlier.get("seen", ())), earlier.get("fold")
    if known := [row for row in held_out if marks(row) & seen]:
        raise SettingError(
            f"it was trained on {len(known)} of the {len(held_out)} cases held out here, such as {known[0].image.name}",
            where=file,
            remedy="give a run with the same --fold, or the same split",
        )
    if None not in (fold, model.fold) and fold != model.fold and set(earlier.get("sites", ())) & set(model.sites):
        raise SettingError(
            f"it is of fold {fold}, not {model.fold}", where=file, remedy="give a run with the same --fold"
        )
    trial = build(model.network, model.classes, model.sites)
    if not initialise(trial, model.network, model.classes, weights):
        raise CheckpointError(
            "none of its convolutions fits this network",
            where=file,
            remedy="give a run of the same architecture and --width",
        )
    return weights, seen


def _new_network(model: Model, weights: Mapping[str, Tensor] | None) -> nn.Module:
    """A network whose plain part has the same random weights for every method, or those of --warm-start."""
    plain = plain_network(model.network, model.classes)
    network = build(model.network, model.classes, model.sites)
    if model.network.method != "ms-net":
        initialise(network, model.network, model.classes, plain.state_dict())
    if weights is not None:
        initialise(network, model.network, model.classes, weights)
    return network


def _check_run(run: Run) -> None:
    if run.world_size > 1:
        raise SettingError("training runs in one process", remedy="start it without torchrun")


def fit(run: Run, network: nn.Module, sites: Sequence[Sequence[Case]], model: Model, training: of.Training) -> None:
    """Warm-up and training; resumes where the run was stopped.

    Args:
        run: an entered run.
        network: of `build`, on its device; changed.
        sites: training cases of each site.
        model: what the network is.
        training: how.

    Raises:
        Diverged: a loss that is no number, at a step that is logged or the last one.
    """
    two_classes = model.classes == 2
    per_site = training.slices_per_site(len(sites))
    flips = training.flip == "on" or (training.flip == "auto" and two_classes)
    batches = SiteBatches(sites, per_site, training.augment, flips, run.settings.seed)
    sets = network.parameter_sets() if isinstance(network, MSNet) else (list(network.parameters()),)
    optimizers = [torch.optim.Adam(parameters, training.learning_rate) for parameters in sets]
    plateau = Plateau(optimizers[0], training.plateau_window)
    state = {f"optimizer{number}": optimizer for number, optimizer in enumerate(optimizers)}
    run.restore(network=network, plateau=plateau, **state)
    step_of = _stepper(network, model, training, optimizers)
    total = training.warmup_steps + training.steps
    for step, batch in run.steps(batches, total):
        if step == training.warmup_steps > 0:
            _end_warmup(run, network, model, training, plateau)
            for optimizer in optimizers[1:]:
                optimizer.state.clear()
        if isinstance(network, MSNet) and step == training.ms_net_warmup:
            plateau.forget()  # from here on it sees the Dice of another decoder, which has not learnt yet
        for optimizer in optimizers[1:]:
            for group in optimizer.param_groups:
                group["lr"] = plateau.rate
        with run.autocast():
            result = step_of(step, batch)
        dice_loss = hard_dice_loss(result.pop("logits"), batch["label"])
        logged = step % training.log_every == 0
        if logged or step + 1 == total:
            for name, value in result.items():
                refuse_divergence(float(value), f"{name} of step {step}", "lower --learning-rate, or check the data")
        if logged:
            run.log.write(step, **result, training_dice=1 - dice_loss, learning_rate=plateau.rate)
        plateau.step(dice_loss)


def _stepper(
    network: nn.Module, model: Model, training: of.Training, optimizers: Sequence[torch.optim.Optimizer]
) -> Step:
    """What one iteration does, by method and stage."""
    balance = training.balance if training.balance is not None else (1.0 if model.classes == 2 else 0.5)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return segmentation_loss(logits, labels, training.loss, balance, training.class_weights)

    def step_of(step: int, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, y, site = batch["image"], batch["label"], batch["site"]
        if isinstance(network, MSNet):
            universal = step >= training.ms_net_warmup
            found = ms_net_step(network, optimizers, x, y, site, universal, training.clip)
            if not universal:
                del found["loss_universal"]  # nan: it does not learn yet
            return found
        if model.network.passes == 2 and step >= training.warmup_steps:
            mask = one_hot(y, model.classes).to(x.dtype) if model.network.mask_source == "truth" else None
            return two_stage_step(
                network, optimizers[0], x, y, loss, clip=training.clip, clip_first=training.clip_first, mask=mask
            )
        extra = (site,) if model.network.per_site else ()
        return one_stage_step(network, optimizers[0], x, y, loss, training.clip, *extra)

    return step_of


def _end_warmup(run: Run, network: nn.Module, model: Model, training: of.Training, plateau: Plateau) -> None:
    """Keep the network that the warm-up ends with, and start with a new Adam."""
    warm = dataclasses.replace(model, name=f"{model.name} warm-up", steps=0)
    plain: nn.Module = network
    if model.network.passes == 2:
        settings = plain_settings(model.network)
        warm = dataclasses.replace(warm, network=settings)
        plain = plain_network(settings, model.classes)
        first = network.first if isinstance(network, WNet) else network
        take_over(plain, {name: value.cpu() for name, value in first.state_dict().items()})
        if isinstance(network, WNet):
            take_over(network.second, network.first.state_dict())
    save_model(run.out / WARMUP, plain, warm)
    plateau.restart(training.learning_rate)


# --- The report -------------------------------------------------------------------------------------------------------


def parameter_ratio(model: Model, network: nn.Module) -> tuple[int, float]:
    """Parameters, and their number over that of the same network with batch norm and one pass (Table 3a)."""
    plain = plain_network(plain_settings(model.network), model.classes)
    count, base = (sum(p.numel() for p in module.parameters()) for module in (network, plain))
    return count, count / base


def _report(
    run: Run,
    command: of.Train,
    model: Model,
    network: nn.Module,
    datalist: Datalist,
    counts: Sequence[int],
    held_out: int,
) -> None:
    parameters, ratio = parameter_ratio(model, network)
    run.finish(
        {
            "method": model.name, "steps": run.step, "warmup_steps": model.warmup_steps, "parameters": parameters,
            "parameter_ratio": ratio, "training_cases": sum(counts), "held_out_cases": held_out,
            "sites": dict(zip(model.sites, counts, strict=True)), "organs": model.organs, "fold": model.fold,
        }
    )  # fmt: skip
    report = Report(f"Training: {model.name}", f"{', '.join(model.organs)}; {sum(counts)} cases", package=PACKAGE)
    where = "the column split" if model.fold is None else f"fold {model.fold + 1} of 5"
    report.text(
        f"{len(datalist)} cases, {held_out} of them held out by {where}. The network of the last step is kept. It has"
        f" {parameters:,} parameters, {ratio:.3f} times those of the same network with batch norm."
        + "".join(f" Labels of {site}: {name}." for site in model.sites for name in label_sets(datalist, site))
    )
    report.table(("site", "training cases"), list(zip(model.sites, counts, strict=True)))
    losses = {
        "loss": "one pass", "loss_first": "BN pass", "loss_second": "CN pass", "loss_auxiliary": "auxiliary decoders",
        "loss_universal": "universal network",
    }  # fmt: skip
    training_curves(report, run.out, losses, "loss", "Loss during training")
    training_curves(
        report,
        run.out,
        {"training_dice": "training batches"},
        "Dice",
        "Dice of the training batches, mean over classes",
    )
    training_curves(report, run.out, {"learning_rate": "learning rate"}, "learning rate", "Learning rate")
    report.section("Settings")
    report.settings(command)
    report.write(run.out / "report.html")
    say(f"network: {run.out}   report: {run.out / 'report.html'}   next: {PACKAGE} predict --model {run.out} --out ...")
