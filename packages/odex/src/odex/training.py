"""Training of one stage: batches of patches, nnU-Net's recipe, and the method's loss (specification 3)."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD

from dart_core.augment.nnunet import augment, loader_patch_size
from dart_core.batches import Batches
from dart_core.data.nnunet import OUTSIDE, crop_patch, patch_limits
from dart_core.fine_tuning import refuse_divergence
from dart_core.losses import deep_supervision_weights, dice_ce_loss, downsample_labels
from dart_core.nets.nnunet import GenericUNet
from dart_core.optim import gradient_clipper, poly_lr
from dart_core.run import Run
from odex import settings as of
from odex.cases import Case
from odex.features import NORMS
from odex.plan import Plan
from odex.regularisers import Regulariser
from odex.stopwatch import Stopwatch

FORCED_SHARE = 1 / 3
"""Of the samples of a batch, which must show foreground."""


# --- Mini-batches ----------------------------------------------------------------------------------------------------


def training_batches(cases: Sequence[Case], plan: Plan, seed: int, load_size: Sequence[int]) -> Batches:
    """Batches of {"image" (B, 1, d, h, w), "labels" (B, d, h, w) int8, "case" (B,)}.

    Each sample is a patch of a case that is drawn with replacement. The last third of a batch shows foreground: a class of the
    case and a voxel of it as the patch's centre, each uniform. Beyond the case the image is 0 and the label OUTSIDE.

    Args:
        cases: with labels.
        plan: gives batch and patch size.
        seed: of the draws.
        load_size: voxels to load; more than the patch where it will be rotated.
    """
    batch = plan.batch_size

    def load(slot: int, rng: np.random.Generator) -> Mapping[str, NDArray[Any]]:
        number = int(rng.integers(len(cases)))
        case = cases[number]
        limits = [
            patch_limits(side, wide, final)
            for side, wide, final in zip(case.labels.shape, load_size, plan.patch_size, strict=True)
        ]
        if slot < round(batch * (1 - FORCED_SHARE)) or not case.classes:
            starts = [int(rng.integers(low, high + 1)) for low, high in limits]
        else:
            voxels = case.classes[list(case.classes)[int(rng.integers(len(case.classes)))]]
            centre = voxels[int(rng.integers(len(voxels)))]
            # Held back at the lower border only, as in nnU-Net.
            starts = [
                max(low, int(voxel) - side // 2)
                for (low, _), voxel, side in zip(limits, centre, load_size, strict=True)
            ]
        return {
            "image": crop_patch(case.image, starts, load_size, 0),
            "labels": crop_patch(case.labels, starts, load_size, OUTSIDE),
            "case": np.asarray(number),
        }

    # A sample is a place in the batch, so that a batch holds every place once, and an "epoch" of it is a step.
    return Batches(load, size=batch, batch_size=batch, seed=seed)


def levels_of(labels: Tensor, network: GenericUNet) -> list[Tensor]:
    """Label maps (N, 1, ...) at the resolution of each output."""
    return downsample_labels(labels[:, None], network.scales)


def base_loss(outputs: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
    """L_base: deep-supervised Dice of each sample plus cross-entropy."""
    return dice_ce_loss(outputs, labels, deep_supervision_weights(len(outputs)), batch_dice=False)


@contextlib.contextmanager
def resting_norms(network: nn.Module) -> Generator[None]:
    """All outputs, as in training, but with the running statistics of the norm layers, which stay as they are."""
    modes = [(module, module.training) for module in network.modules()]
    network.train()
    for module in network.modules():
        if isinstance(module, NORMS):
            module.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


# --- The loop --------------------------------------------------------------------------------------------------------


def train_stage(
    run: Run,
    network: GenericUNet,
    cases: Sequence[Case],
    plan: Plan,
    settings: of.Training,
    regulariser: Regulariser,
    stopwatch: Stopwatch,
) -> None:
    """Train a network on one stage; resumes where the run was stopped. The last weights are the result.

    Args:
        run: an entered run; says where, how, and from which step.
        network: with the weights that the stage begins with, changed in place.
        cases: the stage's training cases.
        plan: of the pool.
        settings: epochs and so on; optimiser and learning rate start anew.
        regulariser: the method's loss, and what it remembers.
        stopwatch: writes its seconds at every line of metrics.jsonl.

    Raises:
        Diverged: a loss that is no number, at a step that is logged or the last one.
    """
    weights = deep_supervision_weights(len(plan.pool))
    # Its weight in the loss is 0, so it never learns; several processes would wait for its gradient.
    network.seg_outputs[0].requires_grad_(weights[-1] != 0)
    prepared = run.prepare(network)
    learning = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    optimizer = SGD(
        list(learning.values()), settings.learning_rate, momentum=settings.momentum, nesterov=settings.momentum > 0,
        weight_decay=settings.weight_decay, foreach=True,
    )  # fmt: skip
    optimizer.register_step_pre_hook(gradient_clipper(list(learning.values()), settings.clip))
    seed, patch = run.settings.seed, plan.patch_size
    plain = training_batches(cases, plan, seed + 1, patch)
    whole = settings.epochs * settings.batches
    # Before anything is restored: what a stage starts from is that of the stage before, also in a resumed run.
    regulariser.begin(network.to(run.device), (_on(run, plain.batch(i)) for i in range(settings.batches)))
    run.restore(network=prepared, optimizer=optimizer, regulariser=regulariser)
    total = whole * regulariser.passes
    batches = training_batches(cases, plan, seed, loader_patch_size(patch) if settings.augmentation else patch)
    prepared.train()
    for step, batch in run.steps(batches, total):
        inside = step % whole
        if step and not inside:
            optimizer.state.clear()
        regulariser.start_step(network, frozen_body=regulariser.passes > 1 and step < whole)
        rate = poly_lr(float(inside // settings.batches), settings.epochs, settings.learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        if settings.augmentation:
            # On the device, a pure function of seed, step and process.
            key = np.random.SeedSequence(seed, spawn_key=(2, step, run.rank)).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(key[0]))
            image, labels = augment(batch["image"], batch["labels"], patch, generator, nonzero_mask=plan.nonzero)
        else:
            image, labels = batch["image"], batch["labels"].clamp(min=0)

        def loss_of(part: dict[str, Tensor]) -> Tensor:
            outputs = prepared(part["image"])
            return regulariser.loss(network, part["image"], outputs, levels_of(part["labels"], network))

        loss = run.optimise(optimizer, loss_of, run.to_device({"image": image, "labels": labels}), prepared)
        regulariser.end_step(network)
        logged = step % settings.log_every == 0
        if logged or step + 1 == total:
            refuse_divergence(float(loss), f"the loss of step {step}", "lower --learning-rate, or check the data")
        if logged:
            run.log.write(step, loss=float(loss), learning_rate=rate)
            if run.is_main:
                stopwatch.save()
    regulariser.start_step(network, frozen_body=False)
    network.seg_outputs[0].requires_grad_(True)
    network.eval()


def fisher_batches(
    run: Run, cases: Sequence[Case], plan: Plan, count: int, network: GenericUNet
) -> Iterable[tuple[Tensor, list[Tensor]]]:
    """Un-augmented batches (image, label maps of all outputs) at the end of a stage."""
    plain = training_batches(cases, plan, run.settings.seed + 2, plan.patch_size)
    for index in range(count):
        batch = _on(run, plain.batch(index))
        yield batch["image"], levels_of(batch["labels"], network)


def _on(run: Run, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    moved = run.to_device(batch)
    return {"image": moved["image"], "labels": moved["labels"].clamp(min=0)}
