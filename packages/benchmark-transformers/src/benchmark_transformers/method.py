"""The fine-tuning protocol (specification 2.1): loss, optimiser, one training with early stopping on the validation loss."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmark_transformers.augmentation import mixup
from benchmark_transformers.cases import CaseFiles, Cases, StoredViews, case_batches, counted_labels
from benchmark_transformers.networks import Statistics
from benchmark_transformers.schedules import fine_tune_lr
from benchmark_transformers.settings import FineTuneRecipe
from dart_core import metrics
from dart_core.data.picture_views import middle_view, normalise, turn_views
from dart_core.fine_tuning import BestEpoch, FineTuning, fine_tune
from dart_core.run import Run

MOMENTUM = 0.9


def classification_loss(logits: Tensor, targets: Tensor, exclusive: bool) -> Tensor:
    """Mean binary cross-entropy over pictures and labels, or the cross-entropy of exclusive classes (specification 2.1.6).

    Args:
        logits: (N, labels).
        targets: (N, labels) in [0, 1]; nan = unknown, left out. Of exclusive classes one is 1.
        exclusive: softmax instead of sigmoids.
    """
    if exclusive:
        return F.cross_entropy(logits, targets)
    known = ~targets.isnan()
    loss = F.binary_cross_entropy_with_logits(logits, targets.nan_to_num(0.0), reduction="none")
    return (loss * known).sum() / known.sum().clamp(min=1)


def measure(known: Any, scores: Any, exclusive: bool, counted: Sequence[int] | None = None) -> tuple[float, int]:
    """What a data set is judged by (specification 6).

    Args:
        known: (n, labels) 0 or 1; nan = unknown.
        scores: (n, labels) probabilities.
        exclusive: accuracy of the most probable class; else the mean AUC over the labels that have both classes.
        counted: places of the labels that the mean is over; None: all. Classes count all.

    Returns:
        The number (nan where undefined), and of how many labels it is the mean (of exclusive classes: all).
    """
    known, scores = np.asarray(known, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if exclusive:
        labelled = ~np.isnan(known).any(1)
        right = scores[labelled].argmax(1) == known[labelled].argmax(1)
        return (float(right.mean()) if labelled.any() else math.nan), known.shape[1]
    if counted is not None:
        known, scores = known[:, list(counted)], scores[:, list(counted)]
    areas = metrics.roc_auc(known, scores)
    return metrics.mean_auc(known, scores), int((~np.isnan(areas)).sum())


def make_optimizer(network: nn.Module, recipe: FineTuneRecipe) -> torch.optim.Optimizer:
    """SGD with Nesterov's momentum, without, or AdamW with layer decay (specification 2.1.8, 2.2.9)."""
    if recipe.optimizer == "adamw":
        groups = layer_groups(network, recipe.weight_decay, recipe.layer_decay or 1.0)
        return torch.optim.AdamW(groups, lr=recipe.learning_rate[0], betas=(0.9, 0.999), eps=1e-8)
    nesterov = recipe.optimizer == "sgd"
    return torch.optim.SGD(
        network.parameters(), recipe.learning_rate[0], momentum=MOMENTUM, nesterov=nesterov,
        weight_decay=recipe.weight_decay, foreach=True,
    )  # fmt: skip


def layer_groups(network: nn.Module, weight_decay: float, decay: float) -> list[dict[str, Any]]:
    """Parameter groups with "lr_scale" decay^(L + 1 - i): i = 0 patch embedding, block b = b + 1, a merge layer as the last
    block before it, norm and head L + 1 (specification 2.2.9). What has one dimension is not decayed by `weight_decay`."""
    depths = _depths(network)
    last = sum(depths) + 1
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        scale = decay ** (last - _layer_of(name, depths, last))
        groups.setdefault((scale, parameter.dim() > 1), []).append(parameter)
    return [
        {"params": parameters, "lr_scale": scale, "weight_decay": weight_decay if wide else 0.0}
        for (scale, wide), parameters in groups.items()
    ]


def _depths(network: nn.Module) -> list[int]:
    """Blocks of each stage."""
    counts: dict[int, int] = {}
    for name, _ in network.named_parameters():
        if found := re.match(r"(?:layers\.(\d+)\.)?blocks\.(\d+)\.", name):
            stage = int(found[1] or 0)
            counts[stage] = max(counts.get(stage, 0), int(found[2]) + 1)
    return [counts[stage] for stage in sorted(counts)]


def _layer_of(name: str, depths: list[int], last: int) -> int:
    if name.startswith(("patch_embed", "cls_token", "pos_embed", "mask_token", "rel_pos_bias")):
        return 0
    if found := re.match(r"layers\.(\d+)\.downsample\.", name):
        return sum(depths[: int(found[1])])
    if found := re.match(r"(?:layers\.(\d+)\.)?blocks\.(\d+)\.", name):
        return sum(depths[: int(found[1] or 0)]) + int(found[2]) + 1
    return last


def view_of(recipe: FineTuneRecipe) -> Callable[[Tensor], Tensor]:
    """The view of validation (specification 2.1.3)."""
    return lambda image: middle_view(image, recipe.resized, recipe.image_size, keep_aspect=recipe.keep_aspect)


def train_network(
    run: Run,
    network: nn.Module,
    cases: dict[str, Cases],
    files: dict[str, CaseFiles],
    validation: StoredViews,
    recipe: FineTuneRecipe,
    rate: float,
    statistics: Statistics | None,
) -> BestEpoch:
    """Fine-tune all layers of a network; it holds the weights of the best epoch afterwards.

    Args:
        run: an entered run.
        network: with a head for the labels.
        cases: "train" and "val".
        files: their pictures.
        validation: the validation views.
        recipe: the protocol.
        rate: highest learning rate.
        statistics: of the normalisation.

    Returns:
        The epoch with the lowest validation loss.
    """
    exclusive = cases["train"].exclusive
    prepared = run.prepare(network)
    optimizer = make_optimizer(network, recipe)
    batches = case_batches(
        cases["train"], files["train"], recipe.image_size, recipe.batch_size, run.settings.seed, recipe.rand_augment
    )

    def loss(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return classification_loss(network(batch["image"]).float(), batch["label"], exclusive)

    def views(batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        images, labels = normalise(turn_views(batch["image"], batch["view"]), statistics), batch["label"]
        if recipe.mixup:
            images, labels = mixup(images, labels, recipe.mixup, generator)
        return {"image": images, "label": labels}

    def learning_rate(epoch: float, validation_loss: float | None) -> float:
        return float(fine_tune_lr(epoch, recipe.epochs, rate, recipe.warmup, recipe.schedule, validation_loss))

    # The same draws of uncertain labels after every epoch, so that epochs are compared on the same targets.
    fixed = cases["val"].targets(range(len(cases["val"])), np.random.default_rng(run.settings.seed))
    targets, known = torch.from_numpy(fixed), cases["val"].known()
    labels = cases["val"].labels
    counted = [labels.index(name) for name in counted_labels(cases["val"].pictures.name, labels)]

    def validate(network: nn.Module) -> dict[str, float]:
        logits = []
        for images in validation.in_batches(recipe.batch_size):
            with run.autocast():
                logits.append(network(normalise(images.to(run.device), statistics)).float().cpu())
        found = torch.cat(logits)
        numbers = {"validation_loss": float(classification_loss(found.double(), targets.double(), exclusive))}
        if not math.isfinite(numbers["validation_loss"]):
            return numbers  # which ends the training: there are no scores to measure
        scores = found.softmax(1) if exclusive else found.sigmoid()
        value, _ = measure(known, scores.numpy(), exclusive, counted)
        return {**numbers, "validation_accuracy" if exclusive else "validation_auc": value}

    plan = FineTuning(recipe.epochs, recipe.patience, log_every=recipe.log_every)
    return fine_tune(
        run, prepared, optimizer, batches, plan, loss=loss, learning_rate=learning_rate, validate=validate, views=views
    )
