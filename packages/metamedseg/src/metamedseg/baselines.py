"""What the paper compares with: the losses and tasks of Dawoud et al., pooled supervised training, and the printed tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dart_core.batches import Batches
from dart_core.errors import InputError, SettingError
from dart_core.files import packaged_table
from dart_core.fine_tuning import FineTuning, fine_tune
from dart_core.run import Run
from metamedseg import losses
from metamedseg.datasets import SliceSet
from metamedseg.method import (
    BETAS,
    DTYPES,
    Hardware,
    State,
    TaskResult,
    cpu_state,
    draw_slices,
    local_network,
    mean_iou,
    step_rng,
)
from metamedseg.networks import MetaUNet
from metamedseg.schedules import fine_tune_lr
from metamedseg.settings import Dawoud, Inner, LossName, Network, Tasks

PRINTED_TABLES = ("table1", "table2")
TRANSFER_LR, TRANSFER_DECAY, TRANSFER_FACTOR = 0.01, 5e-5, 0.8


def printed_table(name: str) -> list[dict[str, str | float]]:
    """One of the paper's tables as printed: IoU in per cent; empty cells were not measured.

    Args:
        name: "table1" or "table2".

    Raises:
        SettingError: no such table.
    """
    return packaged_table("metamedseg", name, PRINTED_TABLES)


# --- Dawoud et al. (specification 4, item 3) -------------------------------------------------------------------------


def dawoud_losses(
    logits: Tensor,
    mask: Tensor,
    other_logits: Tensor,
    features: Tensor,
    other_features: Tensor,
    alpha: float = 0.01,
    beta: float = 0.01,
    entropy: Literal["foreground", "full"] = "foreground",
) -> dict[str, Tensor]:
    """L_BCE + alpha L_ER + beta L_D.

    Args:
        logits: (N, 1, H, W) of the task's slices.
        mask: likewise.
        other_logits: (M, 1, H, W) of unlabelled slices of another data set.
        features: (N, C, h, w) bottleneck features of the task's slices.
        other_features: (P, C, h, w) those of a further data set; the larger batch is cut to the smaller.
        alpha: weight of the entropy.
        beta: weight of the distance.
        entropy: "foreground": mean of -p ln p; "full": that of the background as well.

    Returns:
        "bce" (weighted), "entropy", "distance" (mean squared difference) and their weighted sum "total".
    """
    cross_entropy = losses.weighted_bce(logits, mask)
    x = other_logits.float() if other_logits.dtype in (torch.float16, torch.bfloat16) else other_logits
    terms = -torch.sigmoid(x) * F.logsigmoid(x)
    if entropy == "full":
        terms = terms - torch.sigmoid(-x) * F.logsigmoid(-x)
    uncertain = terms.mean()
    count = min(len(features), len(other_features))
    distance = F.mse_loss(features[:count], other_features[:count])
    total = cross_entropy + alpha * uncertain + beta * distance
    return {"bce": cross_entropy, "entropy": uncertain, "distance": distance, "total": total}


@dataclass
class DawoudTrainer:
    """Tasks of Dawoud et al.: every source is one in each meta-epoch; an inner epoch is one step on all its slices.

    A volumetric task is slices of one volume; the slices of the two other data sets are drawn from all of their volumes.
    """

    sources: Sequence[SliceSet]
    definition: Tasks
    inner: Inner
    dawoud: Dawoud
    network: Network
    seed: int
    validation_slices: int = 0
    hardware: Hardware = field(default_factory=Hardware)

    def __post_init__(self) -> None:
        if len(self.sources) < 2:
            raise SettingError("there is one source", remedy="--method dawoud needs two or more data sets")
        for source in self.sources:
            if not len(source.split("train")):
                raise InputError(
                    f"{source.name} has no training slice", where=source.folder, remedy="name it in --exclude"
                )
        self.per_epoch = len(self.sources)

    @cached_property
    def local(self) -> MetaUNet:
        """The network that is trained, its weights replaced at the start of each task."""
        return local_network(self.network, self.hardware)

    def _other(self, rng: np.random.Generator, *names: str) -> SliceSet:
        others = [source for source in self.sources if source.name not in names] or [
            source for source in self.sources if source.name != names[0]
        ]
        return others[int(rng.integers(len(others)))]

    def draw(self, step: int) -> tuple[list[tuple[SliceSet, list[int]]], np.random.Generator]:
        """The three batches of a step (task, unlabelled, further) as data set and places of slices, and the generator to go on with."""
        rng = step_rng(self.seed, step)
        source = self.sources[step % len(self.sources)]
        anywhere = replace(self.definition, tasks="standard")  # only the task is of one volume
        task = source.split("train")
        drawn = [(task, draw_slices(task, self.definition, rng))]
        second = self._other(rng, source.name)
        third = self._other(rng, source.name, second.name)
        for other in (second.split("train"), third.split("train")):
            drawn.append((other, draw_slices(other, anywhere, rng)))
        return drawn, rng

    def train(self, step: int, theta: State, device: torch.device) -> TaskResult:
        """Train the task of step `step`."""
        ((task, places), *others), rng = self.draw(step)
        images, masks = (part.to(device) for part in task.stack(places))
        unlabelled, further = (one.stack(places)[0].to(device) for one, places in others)
        network = self.local.to(device)
        network.load_state_dict(theta)
        network.train()
        optimizer = torch.optim.Adam(
            network.parameters(), self.inner.rate, BETAS, weight_decay=self.inner.l2, fused=True
        )
        dtype = DTYPES[self.hardware.precision]
        found = []
        for epoch in range(self.inner.epochs):
            for group in optimizer.param_groups:
                group["lr"] = fine_tune_lr(epoch, self.inner.rate, self.inner.decay, self.inner.every)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                logits, features = network(images, return_bottleneck=True)
                other_logits = network(unlabelled)
                _, other_features = network(further, return_bottleneck=True)
            parts = dawoud_losses(
                logits, masks, other_logits, features, other_features, self.dawoud.alpha, self.dawoud.beta,
                self.dawoud.entropy,
            )  # fmt: skip
            torch.autograd.backward(parts["total"])
            optimizer.step()
            found.append(float(parts["total"].detach()))
        measured = float("nan")
        val = self.sources[step % len(self.sources)].split("val")
        if self.validation_slices and len(val):
            chosen = rng.choice(len(val), min(self.validation_slices, len(val)), replace=False)
            measured = mean_iou(network, val, sorted(chosen.tolist()), device)
        return TaskResult(cpu_state(network), task.name, found, measured)


# --- Transfer (specification 4, item 2) ------------------------------------------------------------------------------


class Pooled:
    """The slices of several data sets as the samples of one training.

    Args:
        sets: slices to train on.
        most: at most so many of each, evenly spaced; 0 = all.

    Raises:
        InputError: there is none, or they differ in size.
    """

    def __init__(self, sets: Sequence[SliceSet], most: int = 0) -> None:
        self.sets = tuple(sets)
        self.places = []
        for number, one in enumerate(self.sets):
            chosen = range(len(one)) if not most else np.linspace(0, len(one) - 1, min(most, len(one))).round()
            self.places += [(number, int(place)) for place in chosen]
        if not self.places:
            raise InputError("there is no training slice", remedy="prepare more, or exclude fewer data sets")

    def __len__(self) -> int:
        return len(self.places)

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
        """One slice, as `Batches` asks for it."""
        number, place = self.places[index]
        one = self.sets[number]
        return {"image": one.image(place), "mask": one.mask(place)}


def train_supervised(
    run: Run,
    network: torch.nn.Module,
    pooled: Pooled,
    loss: LossName,
    epochs: int,
    learning_rate: tuple[float, float, int],
    weight_decay: float,
    batch_size: int = 1,
    log_every: int = 10,
) -> None:
    """Train on slices with Adam until all epochs are over; the last weights stay. Resumes where the run was stopped.

    Args:
        run: an entered run.
        network: changed in place.
        pooled: the slices.
        loss: name of the loss.
        epochs: passes over them.
        learning_rate: at the start, its factor, and every how many epochs that comes in.
        weight_decay: L2 term inside Adam.
        batch_size: slices of a step.
        log_every: steps between lines of metrics.jsonl.
    """
    prepared = run.prepare(network)
    rate, factor, every = learning_rate
    optimizer = torch.optim.Adam(prepared.parameters(), rate, BETAS, weight_decay=weight_decay, fused=True)
    function = losses.LOSSES[loss]
    fine_tune(
        run, prepared, optimizer, Batches(pooled, len(pooled), batch_size, run.settings.seed),
        FineTuning(epochs, log_every=log_every),
        loss=lambda net, batch: function(net(batch["image"]), batch["mask"]),
        learning_rate=lambda epoch, _: fine_tune_lr(int(epoch), rate, factor, every),
    )  # fmt: skip
    network.eval()
