"""What all trainings of the package share: loss, learning rates, optimisers, choice of the network, supervised training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from aiva.settings import Rule, Training
from aiva.slices import Slices
from dart_core.arrays import elementwise
from dart_core.checkpoint import unwrap
from dart_core.errors import InputError, SettingError
from dart_core.run import Run

if TYPE_CHECKING:
    from torch.optim import Optimizer

IGNORED = 255
WEIGHT_DECAY = 5e-4
POWER = 0.9

Judge: TypeAlias = Callable[[nn.Module], float]
"""Network -> its score on labelled source scans."""


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over pixels (specification 2.6, item 1).

    Args:
        logits: (N, K, H, W).
        labels: (N, H, W) or (N, 1, H, W) whole numbers below K; 255 is left out.

    Returns:
        A scalar; 0 where every pixel is left out.

    Raises:
        ValueError: the shapes do not fit.
    """
    if labels.ndim == logits.ndim and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (len(logits), *logits.shape[2:]):
        raise InputError(
            f"logits have shape {tuple(logits.shape)}, labels {tuple(labels.shape)}",
            remedy="give (N, K, H, W) and (N, H, W)",
        )
    labels = labels.long()
    counted = (labels != IGNORED).sum().clamp(min=1)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide, labels, ignore_index=IGNORED, reduction="sum") / counted


def learning_rate(
    iteration: Any,
    phase: str,
    *,
    base: float | None = None,
    steps: int = 5000,
    milestones: Iterable[int] = (5000, 6000),
    start: int = 1000,
) -> Any:
    """Learning rate at an iteration (from 0), by default that of CC359 (specification 2.6, item 4, and 2.7).

    Args:
        iteration: one number, or an array or a tensor of them.
        phase: "pretrain" (also "pretraining"): base (1 - iteration / steps)^0.9; "adapt" (also "adaptation"): base, times a
            tenth from each milestone on.
        base: default 1e-3 and 5e-6.
        steps: of the pre-training.
        milestones: counted from `start`.
        start: iteration of the first update; the scheduler of the authors' code ticks from there.

    Returns:
        A rate for each iteration, of the kind of `iteration` (see `dart_core.arrays.elementwise`).

    Raises:
        SettingError: an unknown phase.
    """
    word = phase.lower().replace("-", "").replace("_", "")
    if not word.startswith(("pretrain", "adapt")):
        raise SettingError(f"unknown phase {phase!r}", remedy="give pretrain or adapt")
    falls = tuple(milestones)

    def rate(iterations: NDArray[Any]) -> NDArray[Any]:
        i = iterations.astype(np.float64)
        if word.startswith("pretrain"):
            return np.asarray((1e-3 if base is None else base) * np.clip(1 - i / steps, 0, 1) ** POWER)
        rates = np.full(i.shape, 5e-6 if base is None else base)
        for milestone in falls:
            rates = np.where(i - start >= milestone, rates / 10, rates)
        return rates

    return elementwise(iteration, rate)


def make_optimizer(parameters: Iterable[nn.Parameter], training: Training) -> Optimizer:
    """SGD with Nesterov momentum 0.9, or Adam; weight decay 5e-4 (specification 2.6, 2.7)."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    rate = training.learning_rate or 0.0
    if training.optimizer == "adam":
        return torch.optim.Adam(trainable, rate, weight_decay=WEIGHT_DECAY, foreach=True)
    return torch.optim.SGD(trainable, rate, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY, foreach=True)


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class Selection:
    """Keeps the network that a rule chooses by its source score (specification 6.2).

    Args:
        rule: highest_source, lowest_source, or last.
        judge: scores a network; None for `last` without scores.
        every: steps between evaluations.
        total: steps of the run, after which there is one in any case.
        first: steps after which a network may be chosen. Before the first update it is the source network, whose source score
            is hard to beat: it would be chosen, and nothing adapted.

    Raises:
        SettingError: a rule that needs scores, and no judge.
    """

    def __init__(self, rule: Rule, judge: Judge | None, every: int, total: int, first: int = 0) -> None:
        if judge is None and rule != "last":
            raise SettingError(
                f"--checkpoint {rule} needs labelled source scans to score", remedy="add a val split, or give last"
            )
        self.rule, self.judge, self.every, self.total, self.first = rule, judge, every, total, first
        self.score, self.step = float("nan"), 0
        self._weights: Mapping[str, Tensor] | None = None

    def after(self, done: int, network: nn.Module, run: Run) -> None:
        """Look at the network after `done` steps; only the main process does.

        Args:
            done: steps done; 0 scores the network that training starts from.
            network: unchanged, put back into its mode.
            run: gets the score into metrics.jsonl.
        """
        if self.judge is None or not run.is_main or (done % self.every and done != self.total):
            return
        score = self.judge(network)
        run.log.write(max(done - 1, 0), source_score=score)
        if self.rule == "last" or done <= self.first or not np.isfinite(score):
            return
        higher = score > self.score if self.rule == "highest_source" else score < self.score
        if self._weights is None or higher:
            self.score, self.step = score, done
            self._weights = {name: value.detach().clone() for name, value in unwrap(network).state_dict().items()}

    def take(self, network: nn.Module) -> str:
        """Put the chosen weights into the network; the last ones stay where the rule says so or had nothing to choose from.

        Returns:
            What was chosen, in words.
        """
        if self._weights is None:
            return "network of the last step" + ("" if self.rule == "last" else ", as no score is defined")
        unwrap(network).load_state_dict(self._weights)
        which = "highest" if self.rule == "highest_source" else "lowest"
        return f"network of step {self.step}, with the {which} source score ({self.score:.4f})"

    def state_dict(self) -> dict[str, Any]:
        """The choice so far."""
        return {
            "score": self.score,
            "step": self.step,
            "weights": None if self._weights is None else dict(self._weights),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it on."""
        self.score, self.step, self._weights = float(state["score"]), int(state["step"]), state["weights"]


def train_supervised(run: Run, network: nn.Module, slices: Slices, training: Training, selection: Selection) -> None:
    """Train on labelled slices: the source network, or the upper bound on the target (specification 2.7, 4.1).

    Resumes where the run was stopped.

    Args:
        run: an entered run.
        network: changed in place.
        slices: labelled.
        training: with nothing left open, see `Training.resolved`.
        selection: chooses the network; call its `take` afterwards.
    """
    steps, batch_size, base = resolved_recipe(training)
    prepared = run.prepare(network)
    optimizer = make_optimizer(prepared.parameters(), training)
    run.restore(network=prepared, optimizer=optimizer, selection=selection)

    def loss_of(batch: dict[str, Tensor]) -> Tensor:
        return segmentation_loss(prepared(batch["image"]), batch["mask"])

    prepared.train()
    for step, batch in run.steps(slices.batches(batch_size, run.settings.seed), steps):
        rate = learning_rate(step, "pretrain", base=base, steps=steps)
        set_rate(optimizer, rate)
        loss = run.optimise(optimizer, loss_of, batch, prepared)
        if step % training.log_every == 0:
            run.log.write(step, loss=float(loss), learning_rate=rate)
        selection.after(step + 1, network, run)


def resolved_recipe(training: Training) -> tuple[int, int, float]:
    """Steps, batch size and learning rate of settings that leave nothing open."""
    values = (training.steps, training.batch_size, training.learning_rate)
    if None in values:
        raise SettingError("steps, batch size or learning rate is not set", remedy="use Training.resolved")
    return cast("tuple[int, int, float]", values)
