"""Fine-tuning as most transfer papers do it: epochs, a learning-rate function, early stopping, the best epoch's weights.

The loop has no opinion about networks, losses and tasks::

    recipe = FineTuning(epochs=200, patience=10)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9, nesterov=True)
    best = fine_tune(
        run, prepared, optimizer, batches, recipe,
        loss=lambda network, batch: F.binary_cross_entropy_with_logits(network(batch["image"]), batch["label"]),
        learning_rate=lambda epoch, validation_loss: cosine(epoch),
        validate=lambda network: {"validation_loss": ..., "validation_auc": ...},
    )

A run that is resumed ends with the weights that it would have had without the stop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dart_core.batches import Batches
from dart_core.checkpoint import unwrap
from dart_core.errors import SettingError
from dart_core.run import Run, Stateful

LearningRate = Callable[[float, float | None], float]
"""(epochs done, last validation loss or None before the first) -> learning rate."""
Loss = Callable[[nn.Module, dict[str, Tensor]], Tensor]
"""(network, batch) -> scalar; runs under autocast."""
Views = Callable[[dict[str, Tensor], torch.Generator], dict[str, Tensor]]
"""(batch on the device, generator of this step and process) -> the batch that the loss sees; runs without gradient."""
Validate = Callable[[nn.Module], Mapping[str, float]]
"""Network in evaluation mode -> numbers by name, "validation_loss" among them; runs without gradient."""

VALIDATION_LOSS = "validation_loss"
_VIEWS = 3
"""Key of the views' random numbers, beside those of `dart_core.batches`."""


@dataclass(frozen=True)
class FineTuning:
    """What the loop needs to know beside its functions."""

    epochs: int
    """At most so many."""
    patience: int | None = None
    """The training ends when more than so many epochs in a row were no better than the best one: 10 ends it at the 11th.
    None: never before `epochs`."""
    measure: str = VALIDATION_LOSS
    """The number of `validate` that says which epoch is best."""
    higher_is_better: bool = False
    """Of `measure`."""
    rate_per_step: bool = False
    """The learning-rate function is asked before each step with a fraction of epochs; otherwise once per epoch."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""


class Diverged(SettingError):
    """A loss or measure of a training that is no number."""


class BestEpoch:
    """The network of the best epoch so far, and how long ago that was; part of the checkpoints.

    Attributes:
        value: its measure; None before the first validation.
        epoch: its number, from 1; 0 before the first validation.
        numbers: all that was measured after it.
        bad_epochs: epochs since then.
        validation_loss: that of the last epoch, which some schedules look at.
        weights: parameters and buffers by name; empty before the first validation.
    """

    def __init__(self, higher_is_better: bool = False) -> None:
        self.higher_is_better = higher_is_better
        self.value: float | None = None
        self.epoch, self.bad_epochs = 0, 0
        self.numbers: dict[str, float] = {}
        self.validation_loss: float | None = None
        self.weights: dict[str, Tensor] = {}

    def offer(self, value: float, epoch: int, network: nn.Module, numbers: Mapping[str, float]) -> bool:
        """Take the network if it is better, and say so; of equal ones the first stays."""
        better = self.value is None or (value > self.value if self.higher_is_better else value < self.value)
        self.bad_epochs = 0 if better else self.bad_epochs + 1
        self.validation_loss = numbers.get(VALIDATION_LOSS)
        if better:
            self.value, self.epoch, self.numbers = value, epoch, dict(numbers)
            self.weights = {k: v.detach().to("cpu", copy=True) for k, v in unwrap(network).state_dict().items()}
        return better

    def restore(self, network: nn.Module) -> None:
        """Give the network its best weights back; nothing happens where no epoch was validated."""
        if self.weights:
            unwrap(network).load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {name: getattr(self, name) for name in _BEST}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` gave."""
        for name in _BEST:
            value = state[name]
            setattr(self, name, dict(value) if isinstance(value, Mapping) else value)


_BEST = ("value", "epoch", "bad_epochs", "numbers", "validation_loss", "weights")


def fine_tune(
    run: Run,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    recipe: FineTuning,
    *,
    loss: Loss,
    learning_rate: LearningRate,
    validate: Validate | None = None,
    views: Views | None = None,
    epoch_batches: int | None = None,
    stateful: Mapping[str, Stateful] | None = None,
) -> BestEpoch:
    """Train a network until its epochs are over or it gets no better; resumes where the run was stopped.

    The gradient step is `Run.optimise`, so that precision, accumulation and several processes are the run's. A parameter
    group with an entry "lr_scale" (as timm's layer decay writes it) gets the learning rate times that.

    Args:
        run: an entered run; this function calls its `restore`.
        network: what `run.prepare` gave. Holds the weights of the best epoch afterwards, those of the last where nothing was
            validated.
        optimizer: of its parameters; its learning rates are set here.
        batches: what to train on.
        recipe: see `FineTuning`.
        loss: see `Loss`.
        learning_rate: see `LearningRate`.
        validate: called after every epoch, in every process, with the network that is in no wrapper; see `Validate`.
        views: augmentation on the device; see `Views`. Its draws follow from the run's seed, step and process.
        epoch_batches: batches of an epoch; None: as many as hold all samples once, the last one filled up with samples of
            the next epoch.
        stateful: what else the checkpoints hold, by name.

    Returns:
        The best epoch.

    Raises:
        SettingError: no epochs, or a measure that `validate` does not give.
        Diverged: a loss or measure that is no number.
    """
    if recipe.epochs < 1:
        raise SettingError(f"there are {recipe.epochs} epochs", remedy="give at least 1")
    per_epoch = epoch_batches or -(-batches.size // batches.batch_size)
    best = BestEpoch(recipe.higher_is_better)
    run.restore(network=network, optimizer=optimizer, best=best, **(stateful or {}))
    patience = math.inf if recipe.patience is None else recipe.patience
    network.train()
    total = 0 if best.bad_epochs > patience else recipe.epochs * per_epoch  # 0: stopped after the end of the training
    for step, batch in run.steps(batches, total):
        epoch, place = divmod(step, per_epoch)
        rate = learning_rate(step / per_epoch if recipe.rate_per_step else epoch, best.validation_loss)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        if views is not None:
            with torch.no_grad():
                batch = views(batch, step_generator(run, step))
        value = run.optimise(optimizer, lambda part: loss(network, part), batch, network)
        if step % recipe.log_every == 0:
            refuse_divergence(float(value), f"the loss of step {step}")
            run.log.write(step, loss=value, learning_rate=rate)
        if place + 1 == per_epoch and validate is not None:
            found = validated(run, network, validate)
            run.log.write(step, epoch=epoch + 1, **found)
            refuse_divergence(found.get(VALIDATION_LOSS, 0.0), f"{VALIDATION_LOSS} of epoch {epoch + 1}")
            if recipe.measure not in found:
                raise SettingError(f"validation gives no {recipe.measure}", remedy=f"there are {', '.join(found)}")
            refuse_divergence(found[recipe.measure], f"{recipe.measure} of epoch {epoch + 1}")
            best.offer(found[recipe.measure], epoch + 1, network, found)
            if best.bad_epochs > patience:
                run.step = step + 1
                run.save()
                break
    best.restore(network)
    return best


def validated(run: Run, network: nn.Module, validate: Callable[[Any], Mapping[str, float]]) -> dict[str, float]:
    """What `validate` finds, averaged over the processes: batch norm may have seen another share of the batches in each.

    Args:
        run: an entered run; all its processes must call this.
        network: set to evaluation mode for it, and back to training.
        validate: gets the network itself, without DistributedDataParallel around it.
    """
    module = unwrap(network)
    module.eval()
    with torch.no_grad():
        found = {name: float(value) for name, value in validate(module).items()}
    network.train()
    if run.world_size == 1:
        return found
    # Joined on the CPU: the numbers are float64 there, and every process must come to the same verdict.
    means = run.mean(torch.tensor(list(found.values()), dtype=torch.float64))
    return dict(zip(found, means.tolist(), strict=True))


def refuse_divergence(value: float, what: str, remedy: str = "lower the learning rate, or check the data") -> None:
    """Raise Diverged for a loss or measure that is no number.

    Args:
        value: the loss.
        what: its name in the message, such as "the loss of step 30".
        remedy: names the flag of the learning rate where it is known.
    """
    if not math.isfinite(value):
        raise Diverged(f"{what} is no number", remedy=remedy)


def step_generator(run: Run, step: int) -> torch.Generator:
    """Generator on the run's device for what a step draws there: the same after a resume, another in each process."""
    sequence = np.random.SeedSequence(run.settings.seed, spawn_key=(_VIEWS, step, run.rank))
    seed = int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator(run.device).manual_seed(seed)


def clip_gradients(optimizer: torch.optim.Optimizer, limit: float) -> None:
    """From now on, shorten the gradient of all of an optimiser's parameters together to the norm `limit` before each step."""

    def clip(stepping: torch.optim.Optimizer, *arguments: Any) -> None:
        nn.utils.clip_grad_norm_([p for group in stepping.param_groups for p in group["params"]], limit)

    # After the unscaling of fp16's gradients, which happens just before the step.
    optimizer.register_step_pre_hook(clip)
