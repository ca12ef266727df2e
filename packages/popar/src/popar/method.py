"""POPAR in the order of the paper: distortions, losses (section 3), schedule, one step and the loop (section 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dart_core.arrays import elementwise
from dart_core.augment import genesis
from dart_core.batches import Batches
from dart_core.data.picture_views import normalise
from dart_core.errors import InputError, SettingError
from dart_core.fine_tuning import step_generator
from dart_core.run import Run
from popar.networks import POPAR
from popar.patches import patchify, show_patches
from popar.settings import Pretraining, Subtask

NONLINEAR, PAINT, OUTER, DECREASING = 0.9, 0.9, 0.8, 0.5
"""Chances: the intensity map; painting; out-painting given painting; the decreasing map given a map (specification 2.9)."""
POINTS = 500
"""Of the table of the intensity map."""
ORDER = 0.5
"""Chance of the order branch (specification 2.4)."""
MOMENTUM = 0.9
_FIXED, _AT_ONCE = 20220918, 16
"""Seed of the fixed distortions; pictures that are measured at once."""


# --- Appearance distortion (section 3; specification 2.9) ------------------------------------------------------------


def distort(
    images: Tensor, generator: torch.Generator | None = None, channels: Literal["mixed", "together"] = "mixed"
) -> Tensor:
    """F_tran: local pixel shuffling always, a non-linear intensity map (0.9), painting (0.9; 0.8 of it from outside).

    Args:
        images: (N, 3, H, W) in [0, 1]; stays as it is. Every image gets draws of its own.
        generator: on the device of the images; None: PyTorch's global one.
        channels: pixel shuffling moves single values, also between channels (as coded), or pixels with all their channels.

    Returns:
        (N, 3, H, W) in [0, 1], not normalised.

    Raises:
        ValueError: another shape, values outside [0, 1], or sides too small for the windows.
    """
    if images.dim() != 4 or not images.is_floating_point():
        raise InputError(
            f"the images are {images.dtype} of shape {tuple(images.shape)}", remedy="give (N, C, H, W) float"
        )
    if not bool(((images >= 0) & (images <= 1)).all()):
        raise InputError(
            f"the images have values from {float(images.min()):g} to {float(images.max()):g}",
            remedy="give values in [0, 1]",
        )
    if not len(images):
        return images.clone()
    draws = torch.rand(len(images), 8, generator=generator, device=images.device)
    mapped = draws[:, 0] < NONLINEAR
    decreasing = draws[:, 1] < DECREASING
    painted = draws[:, 2] < PAINT
    outer = draws[:, 3] < OUTER
    ends = images.new_tensor([[0.0, 0.0], [1.0, 1.0]]).expand(len(images), 2, 2)
    # (0, 0), (a1, b1), (a2, b2), (1, 1)
    curve = torch.cat([ends[:, :1], draws[:, 4:].to(images).view(-1, 2, 2), ends[:, 1:]], 1)
    return genesis.distort(
        images, curve, torch.ones_like(mapped), mapped, painted & outer, painted & ~outer, decreasing, channels=channels,
        points=POINTS, generator=generator,
    )  # fmt: skip


# --- Branches (Eqs. 1 and 2; specification 2.3 to 2.5, 2.1) ----------------------------------------------------------


@dataclass(frozen=True)
class Objective:
    """Which images are distorted how, and which loss looks at them: the sub-tasks of the ablation (specification 2.1)."""

    subtasks: tuple[Subtask, ...] = ("poc", "mpr", "mgr")
    """poc: order of permuted images; mpr: their restoration; mgr: restoration of distorted appearance."""
    order_loss_on_appearance: bool = True
    """With poc and mgr, the order loss also looks at images whose appearance was distorted: "nothing was moved"."""
    statistics: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None
    """Mean and standard deviation per channel; None leaves values in [0, 1]."""
    channels: Literal["mixed", "together"] = "mixed"
    """See `distort`."""

    @property
    def order(self) -> bool:
        """Whether there is an order branch."""
        return "poc" in self.subtasks or "mpr" in self.subtasks

    def weight_of_order(self, weight: float) -> float:
        """The weight of L_pop in the sum: that given, or 1 or 0 where only one of the two losses is in use."""
        if "poc" not in self.subtasks:
            return 0.0
        return weight if len(self.subtasks) > 1 else 1.0

    @property
    def appearance(self) -> bool:
        """Whether there is an appearance branch."""
        return "mgr" in self.subtasks

    def views(self, images: Tensor, patch: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """What one step learns from, each image in one branch; nothing is changed in place.

        Args:
            images: (B, 3, H, H), uint8 or in [0, 1].
            patch: side of a patch.
            generator: draws, on the device of the images.

        Returns:
            "input", "target" (B, 3, H, H) normalised; "labels" (B, n) int64; "permuted" (B,) bool: order branch;
            "order_weight" and "restoration_weight" (B,): of each image in the two losses, with mean 1 (all 0 if none counts).
        """
        values = images.to(torch.get_default_dtype()) / 255 if images.dtype == torch.uint8 else images
        target = normalise(values, self.statistics)
        patches = patchify(target, patch)
        batch, count = patches.shape[:2]
        coin = torch.rand(batch, generator=generator, device=images.device)
        permuted = (
            coin >= 1 - ORDER if self.order and self.appearance else torch.full_like(coin, self.order, dtype=torch.bool)
        )
        identity = torch.arange(count, device=images.device).expand(batch, count)
        drawn = torch.rand(batch, count, generator=generator, device=images.device).argsort(1)
        labels = torch.where(permuted[:, None], drawn, identity)
        seen = show_patches(patches, labels, images.shape[-2] // patch)
        if self.appearance:
            rows = (~permuted).nonzero()[:, 0]
            changed = distort(values[rows], generator, self.channels)
            seen = seen.index_copy(0, rows, normalise(changed, self.statistics))
        with_order = permuted if not self.order_loss_on_appearance else torch.ones_like(permuted)
        with_order = with_order & ("poc" in self.subtasks)
        restored = (permuted & ("mpr" in self.subtasks)) | (~permuted & ("mgr" in self.subtasks))
        return {
            "input": seen, "target": target, "labels": labels, "permuted": permuted,
            "order_weight": _weights(with_order, target), "restoration_weight": _weights(restored, target),
        }  # fmt: skip


def _weights(chosen: Tensor, like: Tensor) -> Tensor:
    """1 for what counts, scaled so that a mean over all images is the mean over those that count."""
    counts = chosen.to(like.dtype)
    return counts * len(counts) / counts.sum().clamp(min=1)


# --- Losses (section 3; specification 2.8) ---------------------------------------------------------------------------


def popar_loss(
    order_logits: Tensor,
    order_labels: Tensor,
    restored: Tensor,
    target: Tensor,
    weight: float = 0.5,
    reduction: Literal["mean", "paper"] = "mean",
) -> Tensor:
    """L = weight L_pop + (1 - weight) L_ar.

    Args:
        order_logits: (B, n, n) or (B n, n).
        order_labels: (B, n) or (B n,) int64: the original position of what each position shows.
        restored: (B, 3, H, W).
        target: (B, 3, H, W), the undistorted image.
        weight: lambda.
        reduction: "mean" averages L_pop over positions and L_ar over values, as coded; "paper" sums both over an image and
            averages over images, which weighs restoration 3 k^2 times more.

    Returns:
        Scalar.

    Raises:
        ValueError: shapes that do not fit, or another reduction.
    """
    if reduction not in ("mean", "paper"):
        raise SettingError(f"reduction is {reduction!r}", remedy="give mean or paper")
    order = order_losses(order_logits.reshape(len(target), -1, order_logits.shape[-1]), order_labels, reduction)
    return weight * order.mean() + (1 - weight) * restoration_losses(restored, target, reduction).mean()


def order_losses(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """L_pop of each image: (B,) from logits (B, n, n) and labels (B, n) or (B n,)."""
    if logits.dim() != 3 or labels.numel() != logits.shape[0] * logits.shape[1]:
        raise InputError(
            f"the logits have shape {tuple(logits.shape)}, the labels {tuple(labels.shape)}",
            remedy="give (B, n, n) and (B, n)",
        )
    each = F.cross_entropy(logits.flatten(0, 1), labels.reshape(-1), reduction="none").view(logits.shape[:2])
    return each.mean(1) if reduction == "mean" else each.sum(1)


def restoration_losses(restored: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """L_ar of each image: (B,) from two (B, 3, H, W)."""
    if restored.shape != target.shape:
        raise InputError(
            f"the images have shapes {tuple(restored.shape)} and {tuple(target.shape)}", remedy="give equal ones"
        )
    each = (restored - target).square().flatten(1)
    return each.mean(1) if reduction == "mean" else each.sum(1)


def objective_loss(
    logits: Tensor, restored: Tensor, views: Mapping[str, Tensor], weight: float, reduction: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of some images of `Objective.views`, and its two parts over the images that count.

    Args:
        logits: (B, n, n).
        restored: (B, 3, H, H).
        views: see `Objective.views`.
        weight: of the order loss.
        reduction: see `popar_loss`.
    """
    order = (views["order_weight"] * order_losses(logits, views["labels"], reduction)).mean()
    restoration = (views["restoration_weight"] * restoration_losses(restored, views["target"], reduction)).mean()
    return weight * order + (1 - weight) * restoration, order, restoration


# --- Schedules (specification 2.11 and 4) ----------------------------------------------------------------------------


def pretrain_lr(epoch: Any, epochs: int, lr: float = 0.1, warmup: int = 5) -> Any:
    """Learning rate of an epoch: linear warm-up times a cosine that is 0 in the last epoch.

    lr/2 (1 + cos(pi clip((e - w)/(E - w), 0, 1))) min(1, e/w)

    Args:
        epoch: e, from 1; a number, an array, a tensor or a sequence.
        epochs: E.
        lr: the highest.
        warmup: w, epochs of warm-up.

    Returns:
        Of the kind and shape of `epoch`.
    """

    def rule(e: NDArray[Any]) -> NDArray[np.float64]:
        progress = np.clip((e - warmup) / (epochs - warmup), 0, 1) if epochs > warmup else np.zeros(e.shape)
        rise = np.minimum(1.0, e / warmup) if warmup > 0 else 1.0
        return np.asarray(lr * 0.5 * (1 + np.cos(np.pi * progress)) * rise)

    return elementwise(epoch, rule)


def fine_tune_lr(epoch: Any, epochs: int = 200, lr: float = 1e-4) -> Any:
    """Learning rate of an epoch of the fine-tuning: lr/2 (1 + cos(pi e/E)), no warm-up.

    Args:
        epoch: e, from 1; a number, an array, a tensor or a sequence.
        epochs: E.
        lr: that of the recipe.

    Returns:
        Of the kind and shape of `epoch`.
    """
    return elementwise(epoch, lambda e: lr * 0.5 * (1 + np.cos(np.pi * e / epochs)))


# --- Fixed distortions (specification 2.14) --------------------------------------------------------------------------


class FixedDistortions:
    """Held-out pictures under distortions that stay the same, so that measurements can be compared with each other.

    Args:
        images: uint8 (M, 3, H, H).
        patch: side of a patch.
        objective: only what its sub-tasks teach is measured.

    Attributes:
        images: as given.
        permutation: (M, n), one for each picture.
        distorted: uint8 (M, 3, H, H), their appearance distorted.
    """

    def __init__(self, images: Tensor, patch: int, objective: Objective) -> None:
        self.images, self.patch, self.objective = images, patch, objective
        # Drawn on the CPU: the same on every machine.
        generator = torch.Generator().manual_seed(_FIXED)
        count = (images.shape[-1] // patch) ** 2
        self.permutation = torch.rand(len(images), count, generator=generator).argsort(1)
        parts = [distort(part.float() / 255, generator, objective.channels) for part in images.split(_AT_ONCE)]
        self.distorted = (torch.cat(parts) * 255).round().to(torch.uint8) if parts else images.clone()

    def __len__(self) -> int:
        return len(self.images)

    def inputs(self, places: slice, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        """Targets (m, 3, H, H) and inputs by kind ("none", "permuted", "appearance"), normalised, on the device."""
        target = normalise(self.images[places].to(device), self.objective.statistics)
        permutation = self.permutation[places].to(device)
        permuted = show_patches(patchify(target, self.patch), permutation, target.shape[-2] // self.patch)
        appearance = normalise(self.distorted[places].to(device), self.objective.statistics)
        return target, {"none": target, "permuted": permuted, "appearance": appearance}

    @torch.no_grad()
    def measure(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """Accuracies over positions and mean squared errors in normalised values.

        Args:
            network: a `POPAR` in evaluation mode on `device`.
            device: where to compute.

        Returns:
            Of "order_accuracy" (permuted pictures), "identity_accuracy" (untouched ones), "mse_permuted", "mse_appearance"
            (restoration from either), those that the sub-tasks teach.
        """
        sums: dict[str, Tensor] = {}

        def add(name: str, values: Tensor) -> None:
            sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + values.double().sum().cpu()

        subtasks = self.objective.subtasks
        for start in range(0, len(self), _AT_ONCE):
            places = slice(start, start + _AT_ONCE)
            target, inputs = self.inputs(places, device)
            if self.objective.order:
                logits, restored = network(inputs["permuted"])
                if "poc" in subtasks:
                    add("order_accuracy", (logits.argmax(-1) == self.permutation[places].to(device)).float().mean(1))
                if "mpr" in subtasks:
                    add("mse_permuted", restoration_losses(restored, target))
            if "poc" in subtasks:
                found = network(inputs["none"])[0].argmax(-1)
                add("identity_accuracy", (found == torch.arange(found.shape[1], device=device)).float().mean(1))
            if "mgr" in subtasks:
                add("mse_appearance", restoration_losses(network(inputs["appearance"])[1], target))
        return {name: float(value) / len(self) for name, value in sums.items()}

    @torch.no_grad()
    def examples(self, network: nn.Module, device: torch.device, count: int = 4) -> dict[str, Tensor]:
        """The first pictures, what the network sees, and what it restores: (count, 3, H, H) in [0, 1] by name.

        Args:
            network: see `measure`.
            device: where to compute.
            count: of pictures.
        """
        target, inputs = self.inputs(slice(0, count), device)
        rows = {"radiograph": target}
        for kind, taught, name in (
            ("permuted", self.objective.order, "patches permuted"),
            ("appearance", self.objective.appearance, "appearance distorted"),
        ):
            if taught:
                rows[name] = inputs[kind]
                if kind == "appearance" or "mpr" in self.objective.subtasks:
                    rows[f"{name}: restored"] = network(inputs[kind])[1]
        return {name: visible(values, self.objective.statistics) for name, values in rows.items()}


def visible(images: Tensor, statistics: tuple[tuple[float, float, float], tuple[float, float, float]] | None) -> Tensor:
    """Normalised values as a picture in [0, 1], on the CPU."""
    if statistics is not None:
        mean, std = (images.new_tensor(numbers)[:, None, None] for numbers in statistics)
        images = images * std + mean
    return images.float().clamp(0, 1).cpu()


# --- The loop (section 4.1) ------------------------------------------------------------------------------------------


def pretrain_network(
    run: Run,
    network: POPAR,
    batches: Batches,
    objective: Objective,
    training: Pretraining,
    epochs: int,
    epoch_ended: Callable[[int, int], Mapping[str, float]] | None = None,
) -> dict[str, Tensor]:
    """Pretrain a network; resumes where the run was stopped.

    Args:
        run: an entered run.
        network: trained in place.
        batches: of "image" uint8 (B, 3, H, H) or, grey, (B, 1, H, H).
        objective: distortions and losses.
        training: the recipe.
        epochs: of it.
        epoch_ended: called in the first process, with the network in evaluation mode and whole, with epoch (from 1) and step
            (from 0); gives numbers to log.

    Returns:
        The weights after the last epoch, on the CPU.

    Raises:
        SettingError: the loss is no number.
    """
    prepared = run.prepare(network)
    optimizer = torch.optim.SGD(prepared.parameters(), training.learning_rate, momentum=MOMENTUM, foreach=True)
    run.restore(network=prepared, optimizer=optimizer)
    weight, per_epoch = objective.weight_of_order(training.weight), -(-batches.size // batches.batch_size)
    parts: list[tuple[Tensor, Tensor, float]] = []

    def loss_of(part: dict[str, Tensor]) -> Tensor:
        logits, restored = prepared(part["input"])
        loss, order, restoration = objective_loss(logits, restored, part, weight, training.reduction)
        parts.append((order.detach(), restoration.detach(), len(logits)))
        return loss

    prepared.train()
    for step, batch in run.steps(batches, epochs * per_epoch):
        epoch = step // per_epoch + 1
        for group in optimizer.param_groups:
            group["lr"] = pretrain_lr(epoch, epochs, training.learning_rate, training.warmup)
        with torch.no_grad():
            images = batch["image"].expand(-1, 3, -1, -1)
            views = objective.views(images, network.patch, step_generator(run, step))
        parts.clear()
        loss = run.optimise(optimizer, loss_of, views, prepared)
        if step % training.log_every == 0:
            if not bool(torch.isfinite(loss)):
                raise SettingError(f"the loss of step {step} is no number", remedy="give a lower --learning-rate")
            run.log.write(step, loss=loss, **_parts(parts, objective), learning_rate=optimizer.param_groups[0]["lr"])
        if (step + 1) % per_epoch == 0 and epoch_ended is not None:
            prepared.eval()
            with run.gathered(prepared):
                found = epoch_ended(epoch, step) if run.is_main else {}
            prepared.train()
            if found:
                run.log.write(step, epoch=epoch, **found)
    return run.weights(prepared)


def _parts(parts: Sequence[tuple[Tensor, Tensor, float]], objective: Objective) -> dict[str, Tensor]:
    """The two losses over a batch that was split, as far as they are in use."""
    total = sum(size for _, _, size in parts)
    found = {}
    if "poc" in objective.subtasks:
        found["order_loss"] = torch.stack([order * (size / total) for order, _, size in parts]).sum()
    if objective.weight_of_order(0.5) < 1:
        found["restoration_loss"] = torch.stack([restored * (size / total) for _, restored, size in parts]).sum()
    return found
