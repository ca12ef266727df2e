"""The training recipe of nnU-Net 1 in 2-D with SGD, Adam or AvaGrad (paper sections 2.2, 2.3, 3.1, 3.3; specification 2.3 - 2.6)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from adagrad_unet import settings as of
from adagrad_unet.analysis import UpdateRecorder, rate_percentiles
from adagrad_unet.avagrad import AvaGrad
from adagrad_unet.cases import Case, Recipe
from adagrad_unet.network import GenericUNet2d
from dart_core.augment.nnunet import augment, loader_patch_size
from dart_core.batches import Batches
from dart_core.data.nnunet import OUTSIDE, crop_patch, patch_limits
from dart_core.losses import deep_supervision_weights, dice_ce_loss, downsample_labels
from dart_core.optim import gradient_clipper, poly_lr
from dart_core.run import Run
from dart_core.sliding_window import sliding_window_predict

__all__ = [
    "deep_supervision_weights", "dice_ce_loss", "downsample_labels", "loader_patch_size", "make_optimizer", "poly_lr",
    "run_name", "sliding_window_predict", "train_network", "training_batches",
]  # fmt: skip

FORCED_SHARE = 0.33
"""Of the samples of a batch, which must show foreground."""
RESET_EPOCH, RESET_MOMENTUM = 100, 0.95
"""nnU-Net starts SGD anew, with less momentum, where it has found no foreground at all by then."""


# --- Optimisers ------------------------------------------------------------------------------------------------------


def make_optimizer(parameters: Iterable[nn.Parameter], settings: of.Optimisation) -> Optimizer:
    """The optimiser of a run (specification 2.3); weight decay is coupled unless AvaGrad is told otherwise."""
    lr, decay = settings.initial_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return SGD(parameters, lr, momentum=0.99, nesterov=True, weight_decay=decay, foreach=True)
    if settings.optimizer == "adam":
        return Adam(parameters, lr, weight_decay=decay, amsgrad=True, foreach=True)
    if settings.optimizer == "sgdm-10":
        return SGD(parameters, lr, momentum=0.9, dampening=0.9, weight_decay=decay, foreach=True)
    return AvaGrad(
        parameters,
        lr,
        eps=settings.eps,
        weight_decay=decay,
        variant=settings.variant,
        norm_scope=settings.norm_scope,
        decoupled=settings.decoupled,
    )


def run_name(settings: of.Training) -> str:
    """What the paper calls a run: S-1000, A-25, AG-50, AG-25-noAug; the control is SGDm-50.

    In brackets what departs from the optimiser's defaults, as in "AG-50 (eps 1e+06)": such runs must not be taken for each other.
    """
    short = {"sgd": "S", "adam": "A", "avagrad": "AG", "sgdm-10": "SGDm"}[settings.optimisation.optimizer]
    name = f"{short}-{settings.epochs}{'' if settings.augmentation else '-noAug'}"
    changes = settings.optimisation.changes
    return f"{name} ({', '.join(changes)})" if changes else name


# --- Mini-batches ----------------------------------------------------------------------------------------------------


def training_batches(cases: Sequence[Case], recipe: Recipe, seed: int, load_size: Sequence[int]) -> Batches:
    """Batches of {"image" (B, C, h, w), "labels" (B, h, w) int8} (specification 2.6).

    Each sample is a slice of a case that is drawn with replacement. The last third of a batch shows foreground: a class of
    the case, a slice with it, and a pixel of it as the patch's centre, each uniform. Beyond the slice the image is 0 and
    the label OUTSIDE.

    Args:
        cases: with labels.
        recipe: gives batch and patch size.
        seed: of the draws.
        load_size: rows and columns to load; larger than the patch where it will be rotated.
    """
    batch, patch = recipe.plan.batch_size, recipe.plan.patch_size
    slices = [_slices_by_class(case, recipe.classes) for case in cases]

    def load(slot: int, rng: np.random.Generator) -> Mapping[str, NDArray[Any]]:
        number = int(rng.integers(len(cases)))
        case, present = cases[number], slices[number]
        labels = _labels(case)
        limits = [
            patch_limits(side, wide, final)
            for side, wide, final in zip(labels.shape[1:], load_size, patch, strict=True)
        ]
        if slot < round(batch * (1 - FORCED_SHARE)) or not present:
            z = int(rng.integers(labels.shape[0]))
            starts = [int(rng.integers(low, high + 1)) for low, high in limits]
        else:
            label = list(present)[int(rng.integers(len(present)))]
            z = int(rng.choice(present[label]))
            pixels = np.argwhere(labels[z] == label)
            centre = pixels[int(rng.integers(len(pixels)))]
            # Held back at the lower border only, as in nnU-Net.
            starts = [
                max(low, int(pixel) - side // 2)
                for (low, _), pixel, side in zip(limits, centre, load_size, strict=True)
            ]
        image, cut = (
            crop_patch(case.image[:, z], starts, load_size, 0),
            crop_patch(labels[z], starts, load_size, OUTSIDE),
        )
        return {"image": image, "labels": cut}

    # A sample is a place in the batch, so that a batch holds every place once, and an "epoch" of it is a step.
    return Batches(load, size=batch, batch_size=batch, seed=seed)


def _labels(case: Case) -> NDArray[np.int8]:
    assert case.labels is not None  # `load_case` needs the mask
    return case.labels


def _slices_by_class(case: Case, classes: int) -> dict[int, NDArray[np.int64]]:
    """The slices that show each foreground class that the case has."""
    labels = _labels(case)
    found = {label: np.flatnonzero((labels == label).any((1, 2))) for label in range(1, classes)}
    return {label: slices for label, slices in found.items() if len(slices)}


# --- The loop --------------------------------------------------------------------------------------------------------


def train_network(
    run: Run,
    network: GenericUNet2d,
    cases: Sequence[Case],
    validation: Sequence[Case],
    recipe: Recipe,
    settings: of.Training,
) -> tuple[UpdateRecorder, dict[str, float]]:
    """Train for `settings.epochs` epochs; resumes where the run was stopped. The last weights are the result.

    Args:
        run: an entered run; says where, how, and from which step.
        network: of the recipe's plan.
        cases: training cases.
        validation: cases for the curves; nothing is selected by them.
        recipe: of the training set.
        settings: optimiser, epochs and so on.

    Returns:
        The layers' recorded updates, and the spread of eta / rms(eta) after the last step (`rate_percentiles`).
    """
    levels = len(recipe.plan.pool)
    weights = deep_supervision_weights(levels)
    # Its weight in the loss is 0, so it never learns; several processes would wait for its gradient.
    network.seg_outputs[0].requires_grad_(weights[-1] != 0)
    prepared = run.prepare(network)
    parameters = [parameter for parameter in prepared.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(parameters, settings.optimisation)
    optimizer.register_step_pre_hook(gradient_clipper(parameters, settings.clip))
    recorder = UpdateRecorder(network, optimizer, settings.record_every) if settings.record_every else None
    run.restore(network=prepared, optimizer=optimizer, **({"updates": recorder} if recorder else {}))
    patch, seed = recipe.plan.patch_size, run.settings.seed
    batches = training_batches(cases, recipe, seed, loader_patch_size(patch) if settings.augmentation else patch)
    checks = training_batches(validation, recipe, seed + 1, patch) if validation else None

    def loss_of(batch: dict[str, Tensor]) -> Tensor:
        outputs = prepared(batch["image"])
        return dice_ce_loss(outputs, downsample_labels(batch["labels"][:, None], network.scales), weights)

    prepared.train()
    for step, batch in run.steps(batches, settings.epochs * settings.batches):
        epoch, index = divmod(step, settings.batches)
        rate = poly_lr(float(epoch), settings.epochs, settings.optimisation.initial_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        if settings.augmentation:
            # On the device, a pure function of seed, step and process.
            key = np.random.SeedSequence(seed, spawn_key=(2, step, run.rank)).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(key[0]))
            image, labels = augment(batch["image"], batch["labels"], patch, generator, nonzero_mask=recipe.nonzero)
        else:
            image, labels = batch["image"], batch["labels"].clamp(min=0)
        loss = run.optimise(optimizer, loss_of, run.to_device({"image": image, "labels": labels}), prepared)
        if step % settings.log_every == 0:
            run.log.write(step, loss=float(loss), learning_rate=rate)
        if index == settings.batches - 1:
            found = _validate(run, network, checks, epoch, settings) if checks is not None else {}
            if run.is_main:
                run.log.write(step, epoch=epoch, **found, **rate_percentiles(optimizer))
            if epoch == RESET_EPOCH and settings.optimisation.optimizer == "sgd" and found.get("validation_dice") == 0:
                _start_anew(network, optimizer, seed, step)
    return recorder or UpdateRecorder(network, optimizer), rate_percentiles(optimizer)


@torch.no_grad()
def _validate(
    run: Run, network: GenericUNet2d, batches: Batches, epoch: int, settings: of.Training
) -> dict[str, float]:
    """Loss, and mean foreground Dice over the pixels of all batches together, at full resolution."""
    overlap: Tensor | float = 0.0
    sizes: Tensor | float = 0.0
    losses = []
    network.eval()
    for index in range(settings.validation_batches):
        batch = run.to_device(batches.batch(epoch * settings.validation_batches + index))
        labels = batch["labels"][:, None].clamp(min=0).long()
        with run.autocast():
            logits = network(batch["image"])
        assert isinstance(logits, Tensor)  # in eval mode
        losses.append(dice_ce_loss(logits, labels))
        classes = torch.arange(1, logits.shape[1], device=logits.device).view(1, -1, 1, 1)
        predicted, truth = logits.argmax(1, keepdim=True) == classes, labels == classes
        overlap = overlap + (predicted & truth).sum((0, 2, 3))
        sizes = sizes + predicted.sum((0, 2, 3)) + truth.sum((0, 2, 3))
    network.train()
    if not losses:
        return {}
    dice = 2 * torch.as_tensor(overlap) / torch.as_tensor(sizes)  # nan: in none of the batches
    return {
        "validation_loss": float(torch.stack(losses).mean()),
        "validation_dice": float(dice.nan_to_num(0).sum() / dice.isfinite().sum().clamp(min=1)),
    }


def _start_anew(network: GenericUNet2d, optimizer: Optimizer, seed: int, step: int) -> None:
    """New initial weights and less momentum, where SGD has found nothing (specification 2.3)."""
    # Every process draws from a generator of its own, and all need the same weights.
    key = np.random.SeedSequence(seed, spawn_key=(3, step)).generate_state(1, np.uint64)
    device = next(network.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(key[0]))
        network.initialise()
    for group in optimizer.param_groups:
        group["momentum"] = RESET_MOMENTUM
