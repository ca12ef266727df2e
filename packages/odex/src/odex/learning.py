"""The command `learn`: one stage (specification 2.8)."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dart_core.cli import say
from dart_core.errors import InputError, SettingError
from dart_core.metrics import dice
from dart_core.nets.nnunet import GenericUNet
from dart_core.report import Report
from dart_core.run import Run
from dart_core.sliding_window import predict_volume
from odex import settings as of
from odex.cases import Case, Stage, check_foreground, joined, load_case, make_plan, read_stage, stage_cases, subjects
from odex.features import FeatureExtractor
from odex.gaussians import rank_warning, summed_distance
from odex.method import ModelPool, dice_ex
from odex.plan import Plan
from odex.regularisers import regulariser_of
from odex.stopwatch import Stopwatch
from odex.store import StageRecord, Stored, check_same, make_statistics, read_pool, settled, write_pool
from odex.training import fisher_batches, train_stage

PACKAGE = "dart-odex"
REPORT = "report.html"
LEAST_CASES = 2
PATCHES, TILES = 8, 4
"""Patches per forward pass, for features and for masks; fewer where a training batch has fewer, so that memory does too."""


def learn(command: of.Learn) -> None:
    """Learn a stage and write the pool after it; the pool before it is only read.

    A stage that is finished already is left as it is.
    """
    started = time.monotonic()
    before = None if command.pool is None else read_pool(command.pool)
    if before is not None:
        assert command.pool is not None
        check_same(before, command, command.pool)
        # What acts shall stand in config.yaml and in the report.
        command = replace(command, **settled(before))
    method: of.Method = command.method or "odex"
    command = replace(command, method=method)
    stage, first = _stage(command, method, before)
    plan = before.plan if before is not None else make_plan(first, command.data, command.network)
    distances = command.distances
    pool = Stored(method, plan, distances, command.baselines, []) if before is None else before
    statistics = pool.statistics if before is not None else make_statistics(method, distances)
    if plan.norm == "instance" and distances.pooling == "1" and statistics is not None and method != "gram":
        raise SettingError(
            "channel means behind instance norm are the same for every image",
            remedy="give --pooling statistics, or --norm batch",
        )
    cases = [load_case(row, plan, stage.labels) for row in stage.of("train")]
    for case in cases:
        check_foreground(case.row, case.labels)
    held_out = [load_case(replace(row), plan, stage.labels) for row in stage.rows["val"]]
    if statistics is not None and all(np.array_equal(case.image, cases[0].image) for case in cases[1:]):
        raise InputError(
            f"the {len(cases)} training images of stage {stage.name} are all the same: the covariance of their features is 0",
            where=stage.source,
            remedy="give images that differ",
        )
    with Run(command.run, command) as run:
        if run.from_main(command.run.resume and (run.out / REPORT).is_file()):  # which is written last
            if run.is_main:
                say(f"stage {stage.name} is finished already; its pool is in {run.out}")
            return
        if run.world_size > 1 and method == "lwf" and pool.baselines.compat != "none" and pool.stages:
            raise SettingError(
                "the frozen body of --method lwf as coded is not for several processes", remedy="run it in one process"
            )
        say(f"stage {stage.name}: {stage_cases(stage)} cases")
        number = len(pool.stages)
        parent, index, record = run.from_main(
            _decide(pool, statistics, stage, cases, run.device) if run.is_main else None
        )
        network = plan.network() if parent is None else pool.load(parent)
        say(_words(record, method))
        regulariser = regulariser_of(method, pool.baselines, pool.memory, number)
        stopwatch = Stopwatch(run.out, started)
        train_stage(run, network, cases, plan, command.training, regulariser, stopwatch)
        if not run.is_main:
            return
        count = pool.baselines.fisher_batches or command.training.batches
        regulariser.end(network, lambda: fisher_batches(run, cases, plan, count, network))
        if statistics is not None:
            _record(statistics, network, pool, record, cases, held_out)
        if method == "dice-ex":
            record = replace(record, dice=training_dice(network, cases, plan))
        record = replace(record, steps=run.step, seconds=stopwatch.seconds)
        networks = list(pool.networks)
        if index == len(networks):
            networks.append(run.out)  # its file is only now written
        after = replace(
            pool, networks=networks, stages=[*pool.stages, record], statistics=statistics, memory=regulariser.memory
        )
        after = write_pool(run.out, after, network, index)
        run.finish(_metrics(after, record))
        _report(run, command, after, stage)
    say(
        f"pool: {len(after.networks)} network{'s' * (len(after.networks) > 1)} in {run.out}   report: {run.out / REPORT}"
    )


def _stage(command: of.Learn, method: str, before: Stored | None) -> tuple[Stage, Stage]:
    """The stage, with enough cases and a name of its own; and the first one that it is made of (of joint)."""
    if not command.stage or (len(command.stage) > 1 and method != "joint"):
        raise SettingError(
            f"--stage names {len(command.stage)} stages", remedy="give one; only --method joint takes several at once"
        )
    if method == "joint" and before is not None:
        raise SettingError("--method joint learns once", remedy="give it all stages at once, without --pool")
    stages = [read_stage(path) for path in command.stage]
    stage = stages[0] if len(stages) == 1 else joined(stages)
    stage = replace(stage, name=command.name or stage.name)
    if before is not None and stage.name in before.names:
        raise InputError(
            f"stage {stage.name} has been learned already",
            where=command.pool,
            remedy="name this one otherwise with --name",
        )
    rows = stage.of("train")
    if len(rows) < LEAST_CASES:
        raise InputError(
            f"stage {stage.name} has 1 training case ({subjects(rows)} subject)", where=stage.source,
            remedy=f"gather at least {LEAST_CASES} cases, better more than there are features, before you learn a stage",
        )  # fmt: skip
    if method in of.POOLS and len(rows) < 3 and len(stage.rows["val"]) < 2:
        raise InputError(
            f"stage {stage.name} has {len(rows)} training cases and {len(stage.rows['val'])} held-out ones: distances of its own"
            " images cannot be told",
            where=stage.source,
            remedy="give three training cases, or two rows of split val",
        )
    return stage, stages[0]


MOVED = 10.0
"""Times as far as before, from which on a training is said to have moved the features away from the history."""


# --- Decisions -------------------------------------------------------------------------------------------------------


def _decide(
    pool: Stored, statistics: ModelPool | None, stage: Stage, cases: Sequence[Case], device: torch.device
) -> tuple[int | None, int, StageRecord]:
    """What to start from (None: random weights), which network to train, and why."""
    record = StageRecord(stage.name, "expand", 0, None, cases=len(cases), source=_source(pool, stage))
    if not pool.stages:
        return None, 0, record
    if statistics is None:
        return 0, 0, replace(record, action="update")
    features = []
    for index in range(len(pool.networks)):
        network = pool.load(index).to(device)
        features.append(features_of(network, cases, pool))
    action = statistics.decide(features)
    closest = int(statistics.last["index"])
    if pool.method == "dice-ex":
        dice_before = next(s.dice for s in reversed(pool.stages) if s.model == closest)
        assert dice_before is not None
        now = training_dice(pool.load(closest).to(device), cases, pool.plan)
        settings = pool.distances
        action = "expand" if dice_ex(dice_before, now, settings.dice_drop, settings.dice_mode) else "update"
        record = replace(record, score=now, threshold=dice_before)
    else:
        record = replace(record, score=statistics.last["score"], threshold=_finite(statistics.last["threshold"]))
    index = len(pool.networks) if action == "expand" else closest
    parent = closest if action == "expand" else None
    record = replace(record, action=action, model=index, parent=parent, key=statistics.last["key"])
    return closest, index, record


def _source(pool: Stored, stage: Stage) -> str:
    """The file that lists a stage; several that are learned at once have none."""
    return "" if pool.method == "joint" else str(stage.source.resolve())


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _record(
    statistics: ModelPool,
    network: GenericUNet,
    pool: Stored,
    record: StageRecord,
    cases: Sequence[Case],
    held_out: Sequence[Case],
) -> None:
    """Statistics of the freshly trained network (2.2), and its reference distances (2.6)."""
    z = features_of(network, cases, pool)
    reference = features_of(network, held_out, pool) if len(held_out) > 1 else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # said below, in the command's own words
        statistics.record(record.model, z, reference, action="update" if record.action == "update" else "expand")
    newest = statistics.histories[record.model][-1]
    if statistics.distance == "mahalanobis" and not newest.rank:
        raise InputError(
            f"the features of all {len(z)} training images of stage {record.name} are the same: their covariance is 0",
            remedy="take --layers first_stage, or another --pooling",
        )
    if statistics.distance == "mahalanobis" and statistics.covariance == "empirical" and newest.rank < z.shape[1]:
        say(f"warning: {rank_warning(len(z), z.shape[1], newest.rank)}")
    ratio = moved(statistics, record, z)
    if ratio is not None and ratio > MOVED:
        say(
            f"warning: training has moved the features of network {record.model + 1}: the images of {record.name} now lie {ratio:.3g} "
            "times as far from the stages that it learned before, so that other networks will answer for them; a lower --learning-rate "
            "moves less, and --method odex-last does without the older stages"
        )


def moved(statistics: ModelPool, record: StageRecord, features: Tensor) -> float | None:
    """How many times as far from the older stages of its history the images of a stage lie as before the training on them.

    Gaussians are fitted with the weights of their time, and distances taken with today's (Eq. 4).

    Args:
        statistics: with the stage recorded.
        record: of the stage; its key is the distance before.
        features: (n, d) of the stage's training images by the trained network.

    Returns:
        None where there are no older stages, or the key is no mean over a history.
    """
    older = statistics.histories[record.model][:-1]
    if not older or not record.key or statistics.selection != "mean" or statistics.normalisation == "per_stage_mean":
        return None
    return float(summed_distance(older, features, statistics.squared).mean()) / len(older) / record.key


def features_of(network: GenericUNet, cases: Sequence[Case], pool: Stored) -> Tensor:
    """z (n, d) float32 of un-augmented cases."""
    extractor = extractor_of(network, pool)
    return torch.stack([extractor(torch.from_numpy(np.ascontiguousarray(case.image))) for case in cases])


def extractor_of(network: GenericUNet, pool: Stored) -> FeatureExtractor:
    """Features as the pool's settings say."""
    named = pool.distances.pooling
    pooling = named if named == "authors" or named == "statistics" else int(named)
    return FeatureExtractor(
        network, pool.plan.patch_size, pooling, pool.distances.layers, pool.method == "gram",
        batch_size=min(PATCHES, pool.plan.batch_size),
    )  # fmt: skip


def training_dice(network: GenericUNet, cases: Sequence[Case], plan: Plan) -> float:
    """Mean Dice of the whole foreground over the stage's training images (dice-ex)."""
    device = next(network.parameters()).device
    found = []
    for case in cases:
        image = torch.from_numpy(np.ascontiguousarray(case.image)).to(device)
        p = predict_volume(network, image, plan.patch_size, batch_size=min(TILES, plan.batch_size))
        found.append(dice(p.argmax(0).cpu().numpy() > 0, case.labels > 0))
    return float(np.mean(found))


# --- What is said about it -------------------------------------------------------------------------------------------


def _words(record: StageRecord, method: str) -> str:
    if method not in of.POOLS:
        return f"{of.NAMES[method]}: one network"
    if record.parent is None and record.action == "expand":
        return "the first network"
    why = ""
    if record.score is not None:
        limit = "-inf" if record.threshold is None else f"{record.threshold:.3f}"
        what = "Dice" if method == "dice-ex" else "distance"
        why = f" ({what} {record.score:.3f}, {'before ' if method == 'dice-ex' else 'threshold '}{limit})"
    if record.action == "expand":
        assert record.parent is not None
        return f"new network {record.model + 1}, cloned from {record.parent + 1}{why}"
    return f"network {record.model + 1} goes on{why}"


def _metrics(pool: Stored, record: StageRecord) -> dict[str, Any]:
    """Without times, which differ from run to run."""
    return {
        "method": pool.method, "stage": record.name, "stages": pool.names, "networks": len(pool.networks),
        "action": record.action, "model": record.model, "parent": record.parent, "key": record.key, "score": record.score,
        "threshold": record.threshold, "cases": record.cases, "steps": record.steps,
    }  # fmt: skip


def pool_rows(pool: Stored) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Rows about networks (number, stages, mean summed distance of held-out images of the last one, size), and about stages (name, what was done, score, xi, cases, seconds)."""
    names = pool.names
    networks = []
    for number, size in enumerate(pool.sizes):
        of_model = pool.statistics.stages[number] if pool.statistics is not None else range(len(names))
        own = None if pool.statistics is None else pool.statistics.bounds[number][-1].mean
        networks.append((number + 1, ", ".join(names[i] for i in of_model), own, f"{size / 1e6:.1f} MB"))
    stages = []
    for stage in pool.stages:
        done = f"network {stage.model + 1} goes on" if stage.action == "update" else f"new network {stage.model + 1}"
        if stage.parent is not None:
            done += f", from {stage.parent + 1}"
        stages.append((stage.name, done, stage.score, stage.threshold, stage.cases, stage.seconds))
    return networks, stages


NETWORK_COLUMNS = ("network", "stages of its history", "distance of its own images", "file")
STAGE_COLUMNS = ("stage", "what was done", "score", "threshold", "cases", "seconds")


def _report(run: Run, command: of.Learn, pool: Stored, stage: Stage) -> None:
    from dart_core.figures import training_curves

    record = pool.stages[-1]
    report = Report(
        f"Stage {stage.name}: {of.NAMES[pool.method]}",
        f"{_words(record, pool.method)}; {stage_cases(stage)} cases",
        package=PACKAGE,
    )
    networks, stages = pool_rows(pool)
    report.section("Pool")
    report.table(NETWORK_COLUMNS, networks, "The networks after this stage")
    report.table(
        STAGE_COLUMNS, stages, "The stages so far. A stage whose score (normalised distance; dice-ex: Dice) reaches the threshold gets"
        " a new network; dice-ex: falls by more than the allowed drop below it",
    )  # fmt: skip
    report.section("Training")
    training_curves(
        report, run.out, {"loss": "training batch"}, "loss", "Loss of the method, deep supervision included"
    )
    report.section("Plan")
    plan = pool.plan
    report.table(
        ("", "planned"),
        [
            ("voxels (z, y, x)", " x ".join(f"{side:.4g}" for side in plan.spacing) + " mm"),
            ("patch", " x ".join(map(str, plan.patch_size))), ("batch", str(plan.batch_size)),
            ("halvings", " ".join("x".join(map(str, kernel)) for kernel in plan.pool)),
            ("feature maps", " ".join(map(str, plan.features))), ("norm", plan.norm), ("labels", ", ".join(plan.labels)),
        ],
        "From the first stage, kept for all later ones",
    )  # fmt: skip
    report.section("Settings")
    report.settings(command)
    report.write(run.out / REPORT)
