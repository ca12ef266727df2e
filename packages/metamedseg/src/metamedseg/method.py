"""The method in the order of the paper: task definition, weighted task sampling, importance-aware weighting, meta-training.

Reptile moves a meta-model theta towards the weights theta_l of networks that were trained on one task each, from theta.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dart_core.batches import Batches
from dart_core.errors import InputError, SettingError
from dart_core.fine_tuning import refuse_divergence
from dart_core.run import Run, cpu_threads
from metamedseg.datasets import SliceSet
from metamedseg.losses import LOSSES
from metamedseg.measures import iou_score
from metamedseg.networks import MetaUNet
from metamedseg.schedules import fine_tune_lr
from metamedseg.settings import DistanceTo, Inner, Meta, Network, Tasks, Weighting

EPSILON = 1e-12
"""Least squared distance: a task that did not move gets the limit of its weight."""
BETAS = (0.9, 0.999)
DTYPES = {"fp32": None, "bf16": torch.bfloat16}
_TASK = 21
"""Key of random numbers, beside those of `dart_core`."""
State = dict[str, Tensor]


# --- Task definition (2.1) -------------------------------------------------------------------------------------------


def volumetric_indices(n_slices: int, shots: int) -> NDArray[np.int64]:
    """Evenly spaced slices of one volume: 0, s, 2s, ... with s = ceil(n_slices / shots).

    Args:
        n_slices: slices of the volume that hold the organ.
        shots: K; the result has at most so many.
    """
    if shots < 1 or n_slices < 0:
        raise SettingError(f"{shots} shots of {n_slices} slices", remedy="give at least 1 shot")
    return np.arange(0, n_slices, max(1, -(-n_slices // shots)), dtype=np.int64)


# --- Weighted task sampling (2.1) ------------------------------------------------------------------------------------


def task_probabilities(organs: Sequence[str]) -> NDArray[np.float64]:
    """Probability of each data set: 1/z where its organ has z of them, normalised, so that organs are equally likely.

    Args:
        organs: the organ of each data set.

    Returns:
        (n,), sum 1.
    """
    if not len(organs):
        raise SettingError("there is no data set", remedy="give at least one")
    weights = np.array([1 / list(organs).count(organ) for organ in organs])
    return np.asarray(weights / weights.sum())


# --- Importance-aware task weighting (2.1) ---------------------------------------------------------------------------


def task_weights(
    theta: Tensor, thetas: Tensor, weighting: Weighting = "inverse_distance", distance_to: DistanceTo = "meta"
) -> tuple[Tensor, Tensor]:
    """Weights of the tasks' updates.

    Args:
        theta: (n,) weights of the meta-model.
        thetas: (L, n) those of the tasks.
        weighting: "average" (Eq. 1), "inverse_distance" (Eq. 2), or "complement": 1 - v, v being the share of the distances,
            as the authors' program has it.
        distance_to: what the distance is taken from: the meta-model (Eq. 2), the mean of all tasks, or that of the others.

    Returns:
        Weights (L,), sum 1, and squared distances (L,), both float64.
    """
    wide, centre = thetas.double(), theta.double()[None]
    count = len(wide)
    if distance_to == "mean":
        centre = wide.mean(0, keepdim=True)
    elif distance_to == "leave_one_out" and count > 1:
        centre = (wide.sum(0, keepdim=True) - wide) / (count - 1)
    distances = ((wide - centre) ** 2).sum(1)
    even = torch.full_like(distances, 1 / count)
    if weighting == "average" or count == 1:
        return even, distances
    if weighting == "inverse_distance":
        weights = 1 / distances.clamp(min=EPSILON)  # Eq. 2
    else:
        shares = (distances + 1e-4) / (distances.sum() + 1e-4)
        weights = 1 - shares
        if not weights.any():  # no task moved: each has the whole share
            return even, distances
    return weights / weights.sum(), distances


def reptile_update(
    theta: Any,
    thetas: Any,
    beta: float,
    weighting: Weighting = "inverse_distance",
    distance_to: DistanceTo = "meta",
) -> Any:
    """theta + beta sum_l w_l (theta_l - theta): Eq. 1 with average weights, Eq. 3 with others.

    Args:
        theta: weights of the meta-model: a vector (n,), tensor or array, or a state dict.
        thetas: those of the L tasks, in the same form; not changed.
        beta: meta learning rate.
        weighting: see `task_weights`; "as_coded" is the authors' faulty update, in which the running sum is multiplied by each
            task's weight (of "complement"), for comparison only.
        distance_to: see `task_weights`.

    Returns:
        New weights in the form of `theta`; entries of a state dict that are whole numbers stay, and do not count in
        distances.

    Raises:
        SettingError: no task, or an unknown weighting or distance.
    """
    if not len(thetas):
        raise SettingError("there is no task to learn from", remedy="give the weights of at least one")
    for word, known in ((weighting, get_args(Weighting)), (distance_to, get_args(DistanceTo))):
        if word not in known:
            raise SettingError(f"{word!r} is unknown", remedy=f"give one of {', '.join(known)}")
    if isinstance(theta, Mapping):
        return _update_state(theta, thetas, beta, weighting, distance_to)[0]
    if isinstance(theta, np.ndarray):
        vectors = torch.from_numpy(np.stack(thetas))
        return _update(torch.from_numpy(theta), vectors, beta, weighting, distance_to)[0].numpy()
    stacked = thetas if isinstance(thetas, Tensor) else torch.stack(list(thetas))
    return _update(theta, stacked, beta, weighting, distance_to)[0]


def _update(
    theta: Tensor,
    thetas: Tensor,
    beta: float,
    weighting: Weighting,
    distance_to: DistanceTo,
    counted: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The new vector, weights and distances; only the first `counted` numbers are in the distances."""
    form: Weighting = "complement" if weighting == "as_coded" else weighting
    weights, distances = task_weights(theta[:counted], thetas[:, :counted], form, distance_to)
    differences = thetas - theta
    if weighting == "as_coded":
        step = torch.zeros_like(theta)
        for weight, difference in zip(weights.to(theta.dtype), differences, strict=True):
            step = (step + difference) * weight
    else:
        step = (weights.to(theta.dtype)[:, None] * differences).sum(0)
    return theta + beta * step, weights, distances  # Eq. 1, Eq. 3


def _update_state(
    theta: Mapping[str, Tensor],
    thetas: Sequence[Mapping[str, Tensor]],
    beta: float,
    weighting: Weighting,
    distance_to: DistanceTo,
    parameters: Sequence[str] | None = None,
) -> tuple[State, Tensor, Tensor]:
    """As `_update`, for state dicts; `parameters` names the entries in the distances, None being all that are no integers."""
    names = [name for name, value in theta.items() if value.is_floating_point()]
    if parameters is not None:
        names.sort(key=lambda name: name not in parameters)
    counted = sum(theta[name].numel() for name in names if parameters is None or name in parameters)
    flat = torch.cat([theta[name].reshape(-1) for name in names])
    others = torch.stack([torch.cat([one[name].reshape(-1) for name in names]) for one in thetas])
    moved, weights, distances = _update(flat, others, beta, weighting, distance_to, counted)
    parts = dict(zip(names, moved.split([theta[name].numel() for name in names]), strict=True))
    state = {
        name: parts[name].reshape(value.shape) if name in parts else value.clone() for name, value in theta.items()
    }
    return state, weights, distances


# --- Training of one task (inner loop) -------------------------------------------------------------------------------


@dataclass
class TaskResult:
    """What came of one task."""

    state: State
    """Weights of its network (theta_l), on the CPU."""
    dataset: str
    losses: list[float]
    """Mean training loss of each inner epoch."""
    validation_iou: float = float("nan")


class TaskTrainer(Protocol):
    """Trains the task of a step from given weights. A pure function of both, so that any process may do it."""

    per_epoch: int
    """Tasks of a meta-epoch."""

    def train(self, step: int, theta: State, device: torch.device) -> TaskResult:
        """Train the task of step `step`."""
        ...


def step_rng(seed: int, step: int) -> np.random.Generator:
    """Random numbers of one task."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_TASK, step)))


@dataclass
class Hardware:
    """How a task is computed."""

    precision: str = "fp32"
    channels_last: bool = False
    compile: bool = False


@dataclass
class ReptileTrainer:
    """Tasks of MetaMedSeg: drawn by organ, volumetric or standard, each trained with Adam on its slices."""

    sources: Sequence[SliceSet]
    """Training and validation slices of the source data sets."""
    definition: Tasks
    inner: Inner
    network: Network
    seed: int
    validation_slices: int = 0
    hardware: Hardware = field(default_factory=Hardware)

    def __post_init__(self) -> None:
        for source in self.sources:
            if not len(source.split("train")):
                raise InputError(
                    f"{source.name} has no training slice", where=source.folder, remedy="name it in --exclude"
                )
        self.per_epoch = self.definition.per_epoch

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """Of the sources."""
        return task_probabilities([source.organ for source in self.sources])

    @cached_property
    def local(self) -> MetaUNet:
        """The network that is trained, its weights replaced at the start of each task."""
        return local_network(self.network, self.hardware)

    def draw(self, step: int) -> tuple[SliceSet, list[int], np.random.Generator]:
        """The data set of a step's task, the places of its slices, and the generator to go on with."""
        rng = step_rng(self.seed, step)
        source = self.sources[int(rng.choice(len(self.sources), p=self.probabilities))].split("train")
        return source, draw_slices(source, self.definition, rng), rng

    def train(self, step: int, theta: State, device: torch.device) -> TaskResult:
        """Train the task of step `step`."""
        source, places, rng = self.draw(step)
        images, masks = (part.to(device) for part in source.stack(places))
        rate = self.inner.rate
        if self.inner.visit_decay:
            rate /= 1 + sum(self.draw(earlier)[0].name == source.name for earlier in range(step))
        network = self.local.to(device)
        network.load_state_dict(theta)
        losses = train_on(network, images, masks, self.inner, rate, rng, self.hardware)
        measured = float("nan")
        whole = next(one for one in self.sources if one.name == source.name).split("val")
        if self.validation_slices and len(whole):
            chosen = rng.choice(len(whole), min(self.validation_slices, len(whole)), replace=False)
            measured = mean_iou(network, whole, sorted(chosen.tolist()), device)
        return TaskResult(cpu_state(network), source.name, losses, measured)


def draw_slices(source: SliceSet, definition: Tasks, rng: np.random.Generator) -> list[int]:
    """Places of the slices of one task: of a volume, evenly spaced, or of all volumes."""
    if definition.tasks == "volumetric":
        volumes = list(source.volumes().values())
        volume = volumes[int(rng.integers(len(volumes)))]
        return [volume[i] for i in volumetric_indices(len(volume), definition.shots)]
    count = definition.shots if definition.repeats else min(definition.shots, len(source))
    found: list[int] = rng.choice(len(source), count, replace=definition.repeats).tolist()
    return found


def train_on(
    network: nn.Module,
    images: Tensor,
    masks: Tensor,
    inner: Inner,
    rate: float,
    rng: np.random.Generator,
    hardware: Hardware,
) -> list[float]:
    """Train a network on the slices of a task with a new Adam; the mean loss of each epoch.

    Args:
        network: changed in place.
        images: (K, 1, H, W) on the network's device.
        masks: likewise.
        inner: epochs, loss, decay of the rate and so on.
        rate: learning rate at the start.
        rng: order of the slices.
        hardware: precision and memory format.
    """
    device = images.device
    loss_function = LOSSES[inner.loss]
    optimizer = torch.optim.Adam(network.parameters(), rate, BETAS, weight_decay=inner.l2, fused=True)
    if hardware.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    dtype = DTYPES[hardware.precision]
    network.train()
    means = []
    for epoch in range(inner.epochs):
        for group in optimizer.param_groups:
            group["lr"] = fine_tune_lr(epoch, rate, inner.decay, inner.every)
        total = torch.zeros((), device=device)  # read once per epoch: reading waits for the device
        for places in torch.from_numpy(rng.permutation(len(images))).split(inner.batch_size):
            chosen = places.to(device)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                logits = network(images[chosen])
            loss = loss_function(logits, masks[chosen])
            torch.autograd.backward(loss)
            optimizer.step()
            total += loss.detach() * len(chosen)
        means.append(float(total) / len(images))
    return means


def local_network(settings: Network, hardware: Hardware) -> MetaUNet:
    """A network for tasks."""
    network = MetaUNet(settings.depth, settings.norm, settings.width)
    if hardware.channels_last:
        network.to(memory_format=torch.channels_last)
    if hardware.compile:
        network.compile()
    return network


@torch.no_grad()
def mean_iou(network: nn.Module, slices: SliceSet, places: Sequence[int], device: torch.device) -> float:
    """Mean IoU of a network over some slices of a data set."""
    network.eval()
    images, masks = slices.stack(places)
    found = iou_score(network(images.to(device)), masks.to(device))
    network.train()
    return float(found.mean())


def cpu_state(network: nn.Module) -> State:
    """Copies of a network's weights on the CPU."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in network.state_dict().items()}


# --- Meta-training (outer loop) --------------------------------------------------------------------------------------


class Pending:
    """Results of the tasks of a meta-epoch that is not over; part of the checkpoints, so that no task is trained twice.

    Attributes:
        results: of the tasks up to now, in their order.
        ahead: of tasks whose turn has not come, by step; another process was faster.
    """

    def __init__(self) -> None:
        self.results: list[TaskResult] = []
        self.ahead: dict[int, TaskResult] = {}

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "results": [vars(result) for result in self.results],
            "ahead": {step: vars(result) for step, result in self.ahead.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` gave."""
        self.results = [_result(kept) for kept in state["results"]]
        self.ahead = {int(step): _result(kept) for step, kept in state["ahead"].items()}


def _result(kept: Mapping[str, Any]) -> TaskResult:
    return TaskResult(**{**kept, "state": dict(kept["state"]), "losses": list(kept["losses"])})


class Results(Protocol):
    """Trains tasks, one after the other or several at the same time."""

    def __call__(self, steps: Sequence[int], theta: State, ahead: dict[int, TaskResult]) -> Iterator[TaskResult]:
        """The results of some steps from the same weights, in order; `ahead` keeps those whose turn has not come."""
        ...


def _nothing(index: int, rng: np.random.Generator) -> dict[str, int]:
    return {"task": index}


def meta_train(
    run: Run, network: nn.Module, trainer: TaskTrainer, meta: Meta, processes: int = 1, threads: int = 1
) -> None:
    """Meta-train until all meta-epochs are over; resumes where the run was stopped, also inside a meta-epoch.

    Args:
        run: an entered run of one process.
        network: the meta-model on the CPU; changed in place.
        trainer: of the tasks.
        meta: number of meta-epochs, meta learning rate and weighting.
        processes: tasks trained at the same time.
        threads: CPU threads of each.

    Raises:
        Diverged: a loss that is no number.
        SettingError: torchrun.
    """
    from metamedseg.parallel import results_of

    if run.world_size > 1:
        raise SettingError("torchrun started several processes", remedy="start one, with --processes")
    pending, count = Pending(), trainer.per_epoch
    run.restore(network=network, pending=pending)
    parameters = [name for name, _ in network.named_parameters()]
    steps = Batches(_nothing, 1, 1, run.settings.seed)  # what a task holds follows from its step: see `TaskTrainer`
    arriving: Iterator[TaskResult] = iter(())
    first = run.step
    with cpu_threads(threads), results_of(trainer, run.device, processes, threads) as results:
        for step, _ in run.steps(steps, meta.updates * count, "meta-training"):
            epoch, place = divmod(step, count)
            if place == 0 or step == first:
                arriving = results(range(step, (epoch + 1) * count), cpu_state(network), pending.ahead)
            result = next(arriving)
            pending.results.append(result)
            numbers = {"loss": result.losses[-1], "first_loss": result.losses[0]}
            run.log.write(step, dataset=result.dataset, **numbers, validation_iou=result.validation_iou)
            task = f"task {place + 1} ({result.dataset}) of meta-epoch {epoch + 1}"
            refuse_divergence(result.losses[-1], f"the loss of {task}", "lower --inner-lr")
            if place + 1 < count:
                continue
            beta = meta.beta / (epoch + 1) if meta.meta_decay else meta.beta
            state, weights, distances = _update_state(
                network.state_dict(), [one.state for one in pending.results], beta, meta.rule, meta.distance_to,
                parameters,
            )  # fmt: skip
            network.load_state_dict(state)
            pending.results.clear()
            spread = {"distance": distances.mean(), "least_weight": weights.min(), "largest_weight": weights.max()}
            run.log.write(step, meta_epoch=epoch + 1, **spread)
