"""The training loop: two-phase steps over whole epochs, and the best epoch on validation pictures (specification B6 to B11)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dart_core import metrics
from dart_core.checkpoint import unwrap
from dart_core.errors import SettingError
from dart_core.run import Run
from skintone_debias.cases import Cases, case_batches
from skintone_debias.method import class_weights, debias_optimizers, debias_step
from skintone_debias.networks import LesionNet, Model
from skintone_debias.recipes import RECIPES
from skintone_debias.settings import Training, Unlearning
from skintone_debias.views import score_rows

_LOWER = "lower --lr-base and --lr-class, or the weights of the losses"


class Best:
    """The weights of the epoch with the highest validation AUC so far; part of the checkpoints."""

    def __init__(self) -> None:
        self.score, self.epoch = -math.inf, -1
        self.weights: dict[str, Tensor] = {}

    def offer(self, score: float, epoch: int, network: LesionNet) -> None:
        """Take the network if it is better; of equal ones the first stays."""
        if score > self.score:
            self.score, self.epoch = score, epoch
            self.weights = {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"score": self.score, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` gave."""
        self.score, self.epoch, self.weights = state["score"], state["epoch"], dict(state["weights"])


def head_columns(unlearning: Unlearning, nuisance: tuple[str, ...]) -> list[str]:
    """The column of each auxiliary head; one column serves both heads of a method with two."""
    heads = len(RECIPES[unlearning.debias].heads)
    return [nuisance[min(k, len(nuisance) - 1)] for k in range(heads)]


def train_network(
    run: Run,
    network: LesionNet,
    cases: Cases,
    validation: Cases,
    model: Model,
    unlearning: Unlearning,
    training: Training,
) -> Best:
    """Train a network from where it is; resumes where the run was stopped.

    Args:
        run: an entered run; says where, how, and from which step.
        network: trained in place, on the run's device; holds the weights of the last step afterwards (B9).
        cases: training pictures.
        validation: scored after each epoch; may be empty.
        model: what the network is.
        unlearning: method and options.
        training: recipe.

    Returns:
        The best epoch on the validation pictures; without weights where none was scored.

    Raises:
        SettingError: fewer pictures than one batch; a loss, score or weight that is no number.
    """
    side, square = model.image_size, model.square
    batches = case_batches(cases, model.heads, side, square, training.batch_size, run.settings.seed)
    network.to(run.device)
    encoder, main_head = run.prepare(network.encoder), run.prepare(network.main_head)
    heads = [run.prepare(head) for head in network.aux_heads]
    optimizers = debias_optimizers(
        encoder, main_head, heads, unlearning.debias, training.lr_base, training.lr_class, training.momentum,
        encoder_lr=unlearning.encoder_lr,
    )  # fmt: skip
    best = Best()
    run.restore(**_stateful(encoder, main_head, heads, optimizers), best=best)
    weights = [class_weights(cases.counts(column)).float() for column in model.heads]
    network.train()
    for step, batch in run.steps(batches, training.epochs * batches.per_epoch):
        nuisance = list(batch["nuisance"].unbind(1))
        found = debias_step(
            encoder, main_head, heads, optimizers, network.normalised(batch["image"]), batch["label"], nuisance,
            unlearning.debias, weights, reverse=unlearning.reverses, weight=unlearning.weight, alpha=unlearning.alpha,
            target=unlearning.confusion_target, noise=_noise(run, step, batch, model, unlearning),
            authors_both=unlearning.authors_both, zero_grad_mode=unlearning.zero_grad_mode,
            aux_first=unlearning.aux_first, aux_updates_encoder=unlearning.aux_updates_encoder, run=run,
        )  # fmt: skip
        if step % training.log_every == 0:
            _log(run, step, found)
        epoch, place = divmod(step + 1, batches.per_epoch)
        if place == 0 and len(validation):
            loss, auc = validate(network, validation, model, training.batch_size)
            run.log.write(step, epoch=epoch, validation_loss=loss, validation_auc=auc)
            if not math.isnan(auc):
                best.offer(auc, epoch, network)
    # Only every log_every-th loss has been looked at.
    if not all(bool(torch.isfinite(value).all()) for value in network.state_dict().values()):
        raise SettingError("the weights have come to be no numbers", remedy=_LOWER)
    return best


def _stateful(encoder: Any, main_head: Any, heads: list[Any], optimizers: Mapping[str, Any]) -> dict[str, Any]:
    """Everything a checkpoint holds, by name."""
    stateful = {"encoder": encoder, "main_head": main_head, "optimizer": optimizers["main"]}
    if optimizers["confusion"] is not None:
        stateful["confusion_optimizer"] = optimizers["confusion"]
    for k, (head, optimizer) in enumerate(zip(heads, optimizers["auxiliary"], strict=True)):
        stateful |= {f"head_{k}": head, f"head_{k}_optimizer": optimizer}
    return stateful


def _noise(
    run: Run, step: int, batch: Mapping[str, Tensor], model: Model, unlearning: Unlearning
) -> list[Tensor | None] | None:
    """The random confusion targets of a step, each process's share of those of the joint batch (B5).

    They follow from the seed and the step alone, so that a resumed run draws what the run would have drawn.
    """
    if unlearning.confusion_target != "noise":
        return None
    size = len(batch["label"])
    key = np.random.SeedSequence(run.settings.seed, spawn_key=(2, step))
    generator = torch.Generator().manual_seed(int(key.generate_state(1, np.uint64)[0] >> 1))
    drawn = [torch.rand(size * run.world_size, classes, generator=generator) for classes in model.classes]
    return [noise[run.rank * size : (run.rank + 1) * size].to(run.device) for noise in drawn]


def _log(run: Run, step: int, found: Mapping[str, Any]) -> None:
    values = {"loss_first": run.mean(found["loss_first"])}
    losses = [run.mean(loss) for loss in found["loss_auxiliary"]]
    values |= {f"loss_auxiliary_{k}" if len(losses) > 1 else "loss_auxiliary": loss for k, loss in enumerate(losses)}
    if not all(bool(torch.isfinite(loss)) for loss in values.values()):
        raise SettingError(f"the loss of step {step} is no number", remedy=_LOWER)
    run.log.write(step, **values)


def validate(network: LesionNet, cases: Cases, model: Model, batch_size: int) -> tuple[float, float]:
    """Loss and AUC on validation pictures (C2).

    Returns:
        Binary cross-entropy of the mean logit over the eight views, averaged over batches; AUC of the scores, nan with one
        class only.

    Raises:
        SettingError: the scores are no numbers.
    """
    scores, logits = score_rows(unwrap(network), cases.rows, model.image_size, model.square, batch_size=batch_size)
    if not np.isfinite(logits).all():
        raise SettingError("the scores of the validation pictures are no numbers", remedy=_LOWER)
    labels = torch.from_numpy(cases.labels)
    parts = zip(torch.from_numpy(logits).split(batch_size), labels.split(batch_size), strict=True)
    losses = [F.binary_cross_entropy_with_logits(z, y) for z, y in parts]
    auc = metrics.roc_auc(cases.labels[:, None], scores[:, None])[0]
    return float(torch.stack(losses).mean()), float(auc)
