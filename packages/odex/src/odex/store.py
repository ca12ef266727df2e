"""A pool on disk: the networks, their histories, what was decided at every stage, and what a baseline remembers.

Each run of `learn` writes the whole pool after its stage into its own folder and only reads the one before. Networks that a stage
has left alone are hard links to the same file where the disk knows these, so a pool costs what its networks cost.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dart_core.checkpoint import load_weights, save_tensors, save_weights
from dart_core.errors import CheckpointError, DartError, InputError
from dart_core.files import output_errors, write_atomic
from dart_core.nets.nnunet import GenericUNet
from odex import settings as of
from odex.gaussians import Gaussian
from odex.method import Bounds, ModelPool
from odex.plan import Plan

FOLDER = "pool"
INDEX, STATISTICS, MEMORY = "pool.json", "statistics.safetensors", "memory.safetensors"
_VERSION = 1


@dataclass(frozen=True)
class StageRecord:
    """What happened at a stage."""

    name: str
    action: str
    """update or expand."""
    model: int
    """The network that was trained, from 0."""
    parent: int | None
    """What a new one was cloned from."""
    key: float | None = None
    score: float | None = None
    threshold: float | None = None
    """The decision: mean distance of the closest network, its normalised score, and xi."""
    dice: float | None = None
    """dice-ex: of the trained network on the stage's training images."""
    cases: int = 0
    steps: int = 0
    seconds: float = 0.0
    """Wall time of the stage's command up to here, over all its sessions."""
    source: str = ""
    """File that lists the stage, by which `predict` knows it again."""


@dataclass
class Stored:
    """A pool, as `learn` makes it and `predict` uses it."""

    method: of.Method
    plan: Plan
    distances: of.Pool
    baselines: of.Baselines
    networks: list[Path]
    """Weight file of each network."""
    stages: list[StageRecord] = field(default_factory=list)
    statistics: ModelPool | None = None
    """None for methods with one network."""
    memory: dict[str, Tensor] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The stages learned so far."""
        return [stage.name for stage in self.stages]

    @property
    def sizes(self) -> list[int]:
        """Bytes of each network's file."""
        return [path.stat().st_size for path in self.networks]

    @property
    def bytes(self) -> int:
        """All that the pool takes on the disk: networks, statistics, and what a baseline remembers."""
        rest = (self.networks[0].parent / name for name in (STATISTICS, MEMORY))
        return sum(self.sizes) + sum(path.stat().st_size for path in rest if path.is_file())

    def load(self, index: int) -> GenericUNet:
        """A network in evaluation mode.

        Raises:
            CheckpointError: its file is missing or damaged.
        """
        network = self.plan.network()
        load_weights(self.networks[index], network)
        return network.eval()


def make_statistics(method: str, settings: of.Pool) -> ModelPool | None:
    """An empty pool with the decisions of a method (paper 4.2); None for methods with one network."""
    if method not in of.POOLS:
        return None
    return ModelPool(
        -math.inf if method == "odex-inf" else settings.xi,
        settings.selection,
        settings.squared,
        method != "odex-last",
        settings.normalisation,
        covariance=settings.covariance,
        shrinkage=settings.shrinkage,
        distance="gram" if method == "gram" else "mahalanobis",
    )


# --- Writing ---------------------------------------------------------------------------------------------------------


def write_pool(out: Path, pool: Stored, trained: GenericUNet, index: int) -> Stored:
    """Write a pool into a run folder; its index goes last, so that a pool without it was not finished.

    Args:
        out: run folder.
        pool: after the stage; the network `index` is taken from `trained`, the others from their files.
        trained: the network that was trained.
        index: its number.

    Returns:
        the pool with its new files.

    Raises:
        OutputError: the files cannot be written.
    """
    folder = out / FOLDER
    (folder / INDEX).unlink(missing_ok=True)
    files = []
    for number, path in enumerate(pool.networks):
        target = folder / f"model-{number + 1}.safetensors"
        if number == index:
            record = {"package": "odex", "stages": json.dumps(_stages_of(pool, number))}
            save_weights(target, trained, record)
        else:
            _link(path, target)
        files.append(target)
    if pool.statistics is not None:
        tensors: dict[str, Tensor] = {}
        for m, history in enumerate(pool.statistics.histories):
            for s, stage in enumerate(history):
                # Copies: a clone's history holds the very tensors of its parent's.
                tensors |= {
                    f"{m}/{s}/mean": stage.mean.clone(),
                    f"{m}/{s}/directions": stage.directions.clone(),
                    f"{m}/{s}/variances": stage.variances.clone(),
                    f"{m}/{s}/rest": torch.tensor(stage.rest, dtype=torch.float64),
                }
        save_tensors(folder / STATISTICS, tensors, {})
    if pool.memory:
        save_tensors(folder / MEMORY, {name: t.cpu().clone() for name, t in pool.memory.items()}, {})
    content = {
        "version": _VERSION,
        "method": pool.method,
        "plan": pool.plan.content(),
        "distances": asdict(pool.distances),
        "baselines": asdict(pool.baselines),
        "models": [path.name for path in files],
        "stages": [asdict(stage) for stage in pool.stages],
        "memory": bool(pool.memory),
    }
    if pool.statistics is not None:
        content["statistics"] = {
            "stages": pool.statistics.stages,
            "bounds": [[asdict(bounds) for bounds in model] for model in pool.statistics.bounds],
            "count": pool.statistics.count,
        }
    write_atomic(folder / INDEX, json.dumps(content, indent=1) + "\n")
    return replace(pool, networks=files)


def _stages_of(pool: Stored, number: int) -> list[int]:
    return pool.statistics.stages[number] if pool.statistics is not None else list(range(len(pool.stages)))


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the disk has no links."""
    with output_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:
            temporary = target.with_name(f".tmp-{target.name}")
            try:
                shutil.copyfile(source, temporary)
                os.replace(temporary, target)
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)


# --- Reading ---------------------------------------------------------------------------------------------------------


def read_pool(out: Path) -> Stored:
    """The pool of a run folder; every file of it is looked at.

    Raises:
        CheckpointError: no pool there, an unfinished one, or a file that is missing or damaged.
    """
    folder = out / FOLDER if (out / FOLDER).is_dir() else out
    file = folder / INDEX
    again = "give a finished run of `odex learn`, or learn this stage again"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        reason = "holds no pool" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise CheckpointError(reason, where=out, remedy=f"finish the run with --resume, or {again}") from error
    except ValueError as error:
        raise CheckpointError(f"is damaged ({error})", where=file, remedy=again) from error
    try:
        pool = _from_json(folder, content)
    except (DartError, OSError):
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise CheckpointError(f"is damaged ({error!r})", where=file, remedy=again) from error
    for path in pool.networks:
        load_weights(path)
    return pool


def _from_json(folder: Path, content: Mapping[str, Any]) -> Stored:
    if content["version"] != _VERSION or content["method"] not in of.NAMES:
        raise ValueError(f"version {content['version']}, method {content['method']}")
    pool = Stored(
        method=content["method"],
        plan=Plan.read(content["plan"]),
        distances=of.Pool(**content["distances"]),
        baselines=of.Baselines(**content["baselines"]),
        networks=[folder / name for name in content["models"]],
        stages=[StageRecord(**stage) for stage in content["stages"]],
    )
    if not pool.networks or not pool.stages:
        raise ValueError("no network, or no stage")
    if content["memory"]:
        pool.memory = load_weights(folder / MEMORY)[0]
    pool.statistics = make_statistics(pool.method, pool.distances)
    if pool.statistics is not None:
        tensors = load_weights(folder / STATISTICS)[0]
        found = content["statistics"]
        if not len(found["stages"]) == len(found["bounds"]) == len(pool.networks):
            raise ValueError("statistics of another number of networks")
        for m, stages in enumerate(found["stages"]):
            history = []
            for s in range(len(stages)):
                mean, directions, variances, rest = (
                    tensors[f"{m}/{s}/{name}"] for name in ("mean", "directions", "variances", "rest")
                )
                history.append(Gaussian(mean, directions, variances, float(rest)))
            pool.statistics.histories.append(history)
            pool.statistics.stages.append([int(stage) for stage in stages])
            pool.statistics.bounds.append([Bounds(**bounds) for bounds in found["bounds"][m]])
        pool.statistics.count = int(found["count"])
    return pool


def settled(pool: Stored) -> dict[str, Any]:
    """The settings of `Learn` that the first stage has settled for all later ones, by field."""
    plan = pool.plan
    network = of.Network(
        norm=plan.norm,
        base_features=plan.features[0],
        max_pools=max(sum(kernel[axis] > 1 for kernel in plan.pool) for axis in range(3)),
        batch_size=plan.batch_size,
        patch_size=(plan.patch_size[0], plan.patch_size[1], plan.patch_size[2]),
    )
    return {
        "method": pool.method,
        "data": of.Data(plan.merge_labels, plan.orientation),
        "network": network,
        "distances": pool.distances,
        "baselines": pool.baselines,
    }


def check_same(pool: Stored, command: of.Learn, where: Path) -> None:
    """Flags that a pool remembers must not say something else later; their defaults say nothing.

    Raises:
        InputError: names the first that does.
    """
    if command.method not in (None, pool.method):
        raise InputError(
            f"is a pool of --method {pool.method}, not {command.method}", where=where, remedy="leave --method out"
        )
    for group, kept in settled(pool).items():
        if group == "method":
            continue
        given = getattr(command, group)
        for name, value in asdict(given).items():
            if value not in (getattr(type(given)(), name), getattr(kept, name)):
                raise InputError(
                    f"--{name.replace('_', '-')} was settled by the first stage of this pool",
                    where=where,
                    remedy="leave it out, or begin a new pool",
                )
