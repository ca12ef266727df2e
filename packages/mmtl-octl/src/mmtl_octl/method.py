"""Source training and fine-tuning in the order of the paper: one loop, one batch sampler, many methods.

Goodman, Greenspan, Goldberger, "Supervised Domain Adaptation Using Gradients Transfer for Improved Medical Image
Analysis", DART 2022. What a batch holds is in schedules.py (MMTL), the optimisers with a history in octl.py (OCTL).
Nothing here knows whether the task is segmentation or classification: a `Task` says what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dart_core.adapt import (
    PolicyStatistics,
    SpotTUNet,
    freeze,
    l2_sp_li_penalty,
    l2_sp_penalty,
    policy_penalty,
)
from dart_core.checkpoint import unwrap
from dart_core.errors import SettingError
from dart_core.run import Run
from mmtl_octl.octl import OCTLSGD, OCTLAdam, StartStep, load_history
from mmtl_octl.schedules import TrainingBatches, learning_rate
from mmtl_octl.settings import Adaptation, OptimizerName, Training

POLICY_LEARNING_RATE, POLICY_WEIGHT_DECAY = 1e-2, 1e-3
"""Of Adam for SpotTUNet's policy network (spottunet sheet, As used inside the MMTL comparison)."""

Rate: TypeAlias = tuple[float, int | None]
"""Learning rate, and the epoch from which on it is a tenth."""

AfterEpoch = Callable[[int, nn.Module], float | None]
"""Called with the number of epochs done (0 before the first) and the network; may return a validation score."""


@dataclass(frozen=True)
class Task:
    """What differs between tasks."""

    loss: Callable[[Tensor, Mapping[str, Tensor]], Tensor]
    """(logits, batch) -> scalar; the batch's "image" is the network's input."""
    freeze_first: Callable[[Any], None]
    """Leave only the layers trainable that FTF trains."""
    head: Collection[str]
    """Names of the parameters that L2-SP of Li et al. (2018) lets go."""
    spottune: Callable[[Any], nn.Module]
    """Network -> its SpotTUNet: forward(x, return_policy=True), unet_parameters(), policy_parameters()."""
    layers: int
    """Switchable layers of the SpotTUNet."""
    weight_decay: float = 0.0
    """Of the optimiser."""
    start_step: StartStep = 100
    """OCTL with Adam: step counter before the first step, where the settings name none."""
    missing: Literal["error", "zeros"] = "error"
    """OCTL: what parameters get that the source training did not have, see `load_history`."""
    k: float = 0.005
    """Weight of SpotTUNet's policy penalty, where the settings name none."""
    policy_drop_epoch: int | None = None
    """Epoch from which on the policy's learning rate is a tenth; None: that of the training."""


def segmentation_loss(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean binary cross-entropy over all pixels of the batch (specification 2.1, item 4).

    In a mixed batch this is alpha L'_source + (1 - alpha) L'_target of paper section 2, alpha the source's share.
    """
    return F.binary_cross_entropy_with_logits(logits, batch["mask"])


SEGMENTATION = Task(
    loss=segmentation_loss,
    freeze_first=lambda network: freeze(network, "first"),
    head=(
        "out_path.3.norm.weight", "out_path.3.norm.bias", "out_path.3.conv.weight", "out_path.3.conv.bias",
        "out_path.4.weight", "out_path.4.bias",
    ),
    spottune=lambda network: SpotTUNet(network, switch_top_skip=False),
    layers=32,
)  # fmt: skip
"""The U-Net; its head is the 1x1 convolution with its batch norm, and the final batch norm."""


def source_optimizer(
    parameters: Any, name: OptimizerName, base: float, momentum: float | None = None, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """A fresh optimiser (specification 2.1, item 3).

    Args:
        parameters: what it trains.
        name: sgd: Nesterov momentum 0.9, no dampening; adam: betas (0.9, 0.999), eps 1e-8.
        base: learning rate.
        momentum: sgd: this much plain momentum without history (specification 4.7) instead of Nesterov's.
        weight_decay: L2 penalty.
    """
    if name == "adam":
        return torch.optim.Adam(parameters, base, weight_decay=weight_decay, foreach=True)
    if momentum is not None:
        return OCTLSGD(parameters, base, momentum, weight_decay=weight_decay)
    return torch.optim.SGD(parameters, base, momentum=0.9, nesterov=True, weight_decay=weight_decay, foreach=True)


def train_source(
    run: Run,
    network: nn.Module,
    batches: TrainingBatches,
    task: Task,
    training: Training,
    after_epoch: AfterEpoch | None = None,
) -> torch.optim.Optimizer:
    """Train a network from where it is; resumes where the run was stopped.

    The weights are those of the last step, and the optimiser's state belongs to the same moment (specification 2.1,
    item 5): `save_history` takes it from what is returned.

    Args:
        run: an entered run; says where, how, and from which step.
        network: trained in place, on the run's device.
        batches: what to train on.
        task: its loss.
        training: epochs, learning rate, optimiser.
        after_epoch: called before the first epoch and after each.
    """
    prepared = run.prepare(network)
    name, base = _recipe(training)
    optimizer = source_optimizer(prepared.parameters(), name, base, weight_decay=task.weight_decay)
    run.restore(network=prepared, optimizer=optimizer)

    def loss_of(part: dict[str, Tensor]) -> Tensor:
        return task.loss(prepared(part["image"]), part)

    def step(batch: dict[str, Tensor]) -> dict[str, Any]:
        return {"loss": run.optimise(optimizer, loss_of, batch, prepared)}

    _loop(run, prepared, {optimizer: (base, training.drop_epoch)}, batches, step, training, after_epoch)
    return optimizer


def fine_tune(
    run: Run,
    source: nn.Module,
    batches: TrainingBatches,
    task: Task,
    training: Training,
    adaptation: Adaptation,
    history: Path | None = None,
    after_epoch: AfterEpoch | None = None,
) -> nn.Module:
    """Fine-tune a source network; resumes where the run was stopped.

    mmtl and fta differ in their batches alone, octl in its optimiser, ftf in what is trained, l2sp in its loss, spottune in
    all of network, loss and optimisers.

    Args:
        run: an entered run.
        source: the source network, changed in place (spottune: copied).
        batches: mixed by the schedule for mmtl, target samples only for the others.
        task: loss, and what ftf, l2sp and spottune mean.
        training: epochs, learning rate, optimiser.
        adaptation: method and its settings; "target" trains as the source was trained.
        history: octl: the file that `save_history` wrote after the source training.
        after_epoch: called before the first epoch and after each.

    Returns:
        The network of the last epoch, or with `keep` "best" in the main process that of the epoch with the highest score
        of `after_epoch`.

    Raises:
        SettingError: octl without history; --accumulate with spottune.
        InputError: the history of another optimiser or network.
    """
    method, (_, base) = adaptation.method, _recipe(training)
    network = task.spottune(source) if method == "spottune" else source
    if method == "ftf":
        task.freeze_first(network)
    reference = {key: value.detach().to(run.device, copy=True) for key, value in source.state_dict().items()}
    prepared = run.prepare(network)
    optimizer = make_optimizer(unwrap(prepared), task, training, adaptation, history)
    optimizers = {optimizer: (base, training.drop_epoch)}
    best = Best()
    stateful: dict[str, Any] = {"network": prepared, "optimizer": optimizer, "best": best}
    if method == "spottune":
        step = _spottune_step(run, prepared, optimizers, task, adaptation, stateful)
    else:

        def loss_of(part: dict[str, Tensor]) -> Tensor:
            loss = task.loss(prepared(part["image"]), part)
            if method == "l2sp":
                loss = loss + _distance(prepared, reference, task, adaptation)
            return loss

        def step(batch: dict[str, Tensor]) -> dict[str, Any]:
            return {"loss": run.optimise(optimizer, loss_of, batch, prepared)}

    run.restore(**stateful)

    def after(epoch: int, network: nn.Module) -> None:
        score = None if after_epoch is None else after_epoch(epoch, network)
        if score is not None and epoch > 0:
            best.offer(score, epoch, network)

    _loop(run, prepared, optimizers, batches, step, training, after)
    if adaptation.keep == "best" and run.is_main:  # it alone has scored the epochs
        best.restore(network)
    return network


def _recipe(training: Training) -> tuple[OptimizerName, float]:
    """Optimiser and learning rate, with the paper's where none are given."""
    return training.optimizer or "sgd", 1e-3 if training.learning_rate is None else training.learning_rate


def make_optimizer(
    network: nn.Module, task: Task, training: Training, adaptation: Adaptation, history: Path | None = None
) -> torch.optim.Optimizer:
    """The optimiser of a method for a network that `fine_tune` trains; that of octl with the source's history in it.

    Raises:
        SettingError: octl without history.
        InputError: the history of another optimiser or network.
    """
    name, base = _recipe(training)
    if adaptation.method == "spottune":
        trained = list(network.unet_parameters())  # type: ignore[operator]
    else:
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if adaptation.method != "octl":
        return source_optimizer(trained, name, base, adaptation.momentum, task.weight_decay)
    if history is None:
        raise SettingError("octl needs the history of the source training", remedy="give the file of save_history")
    optimizer: torch.optim.Optimizer
    if name == "sgd":
        # Algorithm 2; plain momentum although the source training used Nesterov's (specification 2.3, item 1).
        momentum = 0.99 if adaptation.momentum is None else adaptation.momentum
        optimizer = OCTLSGD(trained, base, momentum, weight_decay=task.weight_decay)
    else:
        # Algorithm 3.
        start = task.start_step if adaptation.start_step is None else adaptation.start_step
        optimizer = OCTLAdam(trained, base, adaptation.betas, start_step=start, weight_decay=task.weight_decay)
    load_history(optimizer, network, history, task.missing)
    return optimizer


def _distance(network: nn.Module, reference: Mapping[str, Tensor], task: Task, adaptation: Adaptation) -> Tensor:
    """L2SP (specification 4.5)."""
    if adaptation.l2sp == "all":
        return l2_sp_penalty(network, reference, adaptation.alpha)
    return l2_sp_li_penalty(network, reference, task.head, adaptation.alpha, adaptation.beta)


def _spottune_step(
    run: Run,
    prepared: nn.Module,
    optimizers: dict[torch.optim.Optimizer, Rate],
    task: Task,
    adaptation: Adaptation,
    stateful: dict[str, Any],
) -> Callable[[dict[str, Tensor]], dict[str, Any]]:
    """One backward pass for both optimisers (spottunet sheet 2.9); adds the policy's optimiser and statistics."""
    if run.settings.accumulate > 1:
        raise SettingError("--accumulate has no meaning for --method spottune", remedy="leave it out")
    policy = unwrap(prepared).policy_parameters()  # type: ignore[operator]
    main, (_, drop_epoch) = next(iter(optimizers.items()))
    decisions = torch.optim.Adam(policy, POLICY_LEARNING_RATE, weight_decay=POLICY_WEIGHT_DECAY, foreach=True)
    statistics = PolicyStatistics(task.layers)
    k = task.k if adaptation.k is None else adaptation.k
    drop_epoch = drop_epoch if task.policy_drop_epoch is None else task.policy_drop_epoch
    optimizers[decisions] = (POLICY_LEARNING_RATE, drop_epoch)
    stateful |= {"policy_optimizer": decisions, "policy_statistics": statistics}

    def step(batch: dict[str, Tensor]) -> dict[str, Any]:
        for optimizer in (main, decisions):
            optimizer.zero_grad(set_to_none=True)
        with run.autocast():
            logits, chosen = prepared(batch["image"], return_policy=True)
            loss = task.loss(logits, batch) + policy_penalty(chosen, k)
        run.backward(loss)
        run.step_optimizers(main, decisions)
        statistics.update(chosen)
        return {"loss": run.mean(loss.detach()), "fine_tuned": 1 - chosen.detach().mean()}

    return step


class Best:
    """The network of the epoch with the highest score so far; part of the checkpoints."""

    def __init__(self) -> None:
        self.score, self.epoch = float("-inf"), -1
        self.weights: dict[str, Tensor] = {}

    def offer(self, score: float, epoch: int, network: nn.Module) -> None:
        """Take the network if it is better; of equal ones the first stays."""
        if score > self.score:
            self.score, self.epoch = score, epoch
            self.weights = {key: value.detach().clone() for key, value in unwrap(network).state_dict().items()}

    def restore(self, network: nn.Module) -> None:
        """Give the network its best weights back.

        Raises:
            SettingError: no epoch was scored.
        """
        if not self.weights:
            raise SettingError("--keep best needs validation scores", remedy="add validation scans, or --keep last")
        unwrap(network).load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"score": self.score, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` gave."""
        self.score, self.epoch, self.weights = state["score"], state["epoch"], dict(state["weights"])


def _loop(
    run: Run,
    prepared: nn.Module,
    optimizers: Mapping[torch.optim.Optimizer, Rate],
    batches: TrainingBatches,
    step_on: Callable[[dict[str, Tensor]], dict[str, Any]],
    training: Training,
    after_epoch: Callable[[int, nn.Module], object] | None,
) -> None:
    """The loop that all methods share: learning rate, step, log, what follows an epoch."""
    network = unwrap(prepared)
    if after_epoch is not None and run.step == 0 and run.is_main:
        after_epoch(0, network)
    prepared.train()
    for step, batch in run.steps(batches, training.epochs * training.batches):
        epoch = step // training.batches
        for optimizer, (base, drop_epoch) in optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = base if drop_epoch is None else learning_rate(epoch, base, drop_epoch)
        values = step_on(batch)
        if step % training.log_every == 0:
            rate = next(iter(optimizers)).param_groups[0]["lr"]
            share = batches.mixed.counts[epoch]
            mixture = {"target_samples": share} if batches.mixed.source else {}
            run.log.write(step, **values, learning_rate=rate, **mixture)
        if after_epoch is not None and (step + 1) % training.batches == 0 and run.is_main:
            after_epoch(epoch + 1, network)
