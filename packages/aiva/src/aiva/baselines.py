"""What the paper compares with: AdaBN, Seg-JDOT, AdaptSegNet, and the printed numbers (specification 4, 7)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from aiva.method import check_alone
from aiva.settings import Baselines, Training
from aiva.slices import SitePair, Slices
from aiva.training import Selection, learning_rate, make_optimizer, resolved_recipe, segmentation_loss, set_rate
from dart_core.adapt import adapt_batch_norm
from dart_core.arrays import accepts_arrays
from dart_core.errors import InputError, SettingError
from dart_core.files import packaged_table
from dart_core.nets import ResidualUNet2d
from dart_core.run import Run

PRINTED_TABLES = ("table1", "table2")

Transport: TypeAlias = Literal["emd", "sinkhorn"]
SOURCE_LABEL, TARGET_LABEL = 0.0, 1.0
"""Of the discriminator."""


def printed_table(name: str) -> list[dict[str, str | float]]:
    """One of the paper's tables as printed, in per cent; not measured here.

    Args:
        name: "table1" (CC359, surface Dice at 1 mm) or "table2" (prostate, Dice).

    Returns:
        A dict for each method; columns of numbers are floats.

    Raises:
        ValueError: no such table.
    """
    return packaged_table("aiva", name, PRINTED_TABLES)


# --- AdaBN -----------------------------------------------------------------------------------------------------------


def adapt_statistics(run: Run, network: nn.Module, target: Slices, batch_size: int, settings: Baselines) -> None:
    """Replace the batch norms' running statistics by the target's (specification 4.2).

    Args:
        run: gives device and seed.
        network: changed in place: statistics only.
        target: training slices without labels.
        batch_size: of the passes; the last batch of a pass may be smaller.
        settings: passes, and how statistics are averaged.
    """

    def batches() -> Iterator[Tensor]:
        for number in range(settings.passes):
            order = np.random.default_rng(np.random.SeedSequence(run.settings.seed, spawn_key=(number,)))
            shuffled = order.permutation(len(target))
            for first in range(0, len(target), batch_size):
                chosen = shuffled[first : first + batch_size]
                images = [torch.from_numpy(np.asarray(target.load(int(i), order)["image"])) for i in chosen]
                yield run.to_device({"image": torch.stack(images)})["image"]

    adapt_batch_norm(run.prepare(network), batches(), momentum=None if settings.adabn == "cumulative" else 0.1)


# --- Seg-JDOT --------------------------------------------------------------------------------------------------------


@accepts_arrays
def seg_jdot_plan(
    features_s: Tensor,
    features_t: Tensor,
    labels_s: Tensor,
    probabilities_t: Tensor,
    alpha: float,
    beta: float,
    ot: Transport = "emd",
    reg: float = 0.1,
) -> Tensor:
    """Transport plan between a source and a target batch (specification 4.3).

    Of the cost C_ij = alpha |f_i - f_j|^2 + beta |y_i - p_j|^2, with uniform marginals, in float64.

    Args:
        features_s: (n, ...) features of the source batch.
        features_t: (n, ...) of the target batch.
        labels_s: (n, 1, H, W) masks of the source batch.
        probabilities_t: (n, 1, H, W) foreground probabilities of the target batch.
        alpha: weight of the features.
        beta: weight of the labels.
        ot: "emd", exact: for batches of equal size a permutation over n; or "sinkhorn", with entropy.
        reg: sinkhorn: weight of the entropy, for the cost divided by its maximum.

    Returns:
        (n, n), source by target, sum 1, without gradient, in the type of the features; an array where arrays were given.

    Raises:
        ValueError: shapes that do not fit, or a cost that is not finite.
    """
    if ot not in ("emd", "sinkhorn"):
        raise SettingError(f"unknown transport {ot!r}", remedy="give emd or sinkhorn")
    cost = alpha * _squared_distances(features_s, features_t) + beta * _squared_distances(labels_s, probabilities_t)
    if not bool(cost.isfinite().all()):
        raise InputError("the transport cost is not finite", remedy="lower the learning rate")
    matrix = cost.cpu().numpy()
    rows, columns = (np.full(count, 1 / count) for count in matrix.shape)
    plan = _exact(rows, columns, matrix) if ot == "emd" else _entropic(rows, columns, matrix, reg)
    return torch.from_numpy(plan).to(features_s.device, torch.promote_types(features_s.dtype, torch.float32))


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(n, m) in float64, without gradient."""
    if a.shape[1:] != b.shape[1:]:
        raise InputError(
            f"shapes {tuple(a.shape)} and {tuple(b.shape)} do not fit", remedy="give (n, ...) of one shape"
        )
    x, y = (part.detach().flatten(1).double() for part in (a, b))
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()


def _pot() -> Any:
    """POT; Python complains of the spelling of a text in it when it compiles it for the first time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ot
    return ot


def _exact(rows: NDArray[Any], columns: NDArray[Any], cost: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(_pot().emd(rows, columns, cost, numItermax=10_000_000))


def _entropic(rows: NDArray[Any], columns: NDArray[Any], cost: NDArray[Any], reg: float) -> NDArray[Any]:
    largest = cost.max()
    scaled = cost / largest if largest > 0 else cost
    # In log space, as exp(-cost / reg) vanishes for a small reg. Such a plan may stop before its marginals are met to 1e-9.
    plan = _pot().sinkhorn(
        rows, columns, scaled, reg, method="sinkhorn_log", numItermax=10_000, stopThr=1e-9, warn=False
    )
    return np.asarray(plan)


def seg_jdot_loss(
    logits_s: Tensor,
    logits_t: Tensor,
    labels_s: Tensor,
    features_s: Tensor,
    features_t: Tensor,
    alpha: float,
    beta: float,
    form: Literal["published", "authors"] = "published",
    *,
    ot: Transport = "emd",
    reg: float = 0.1,
) -> Tensor:
    """Cross-entropy on the source plus what it costs to carry source onto target by the optimal plan (specification 4.3).

    - "published": CE + alpha sum gamma_ij |f_i - f_j|^2 + beta sum gamma_ij |y_i - p_j|^2;
    - "authors": the code of the AIVA authors, which puts predictions for features and takes plain distances:
      CE + alpha sum gamma_ij |p_i - p_j| + beta sum gamma_ij |y_i - p_j|. The plan is the same in both.

    Args:
        logits_s: (n, 2, H, W) of the source batch.
        logits_t: (n, 2, H, W) of the target batch.
        labels_s: (n, 1, H, W) or (n, H, W) source masks, 0 and 1.
        features_s: (n, ...) features of the source batch (the training takes ReLU of the bottleneck features).
        features_t: (n, ...) of the target batch.
        alpha: weight of the features.
        beta: weight of the labels.
        form: see above.
        ot: see `seg_jdot_plan`.
        reg: see `seg_jdot_plan`.

    Returns:
        A scalar.

    Raises:
        ValueError: an unknown form, or what `seg_jdot_plan` raises.
    """
    if form not in ("published", "authors"):
        raise SettingError(f"unknown form {form!r}", remedy="give published or authors")
    labels = labels_s if labels_s.ndim == logits_s.ndim else labels_s[:, None]
    foreground_s, foreground_t = (_softmax(logits)[:, 1:2] for logits in (logits_s, logits_t))
    masks = labels.to(foreground_t.dtype)
    plan = seg_jdot_plan(features_s, features_t, masks, foreground_t, alpha, beta, ot, reg).to(foreground_t.dtype)
    if form == "published":
        representation = _cost(plan, features_s, features_t).square()
        label = _cost(plan, masks, foreground_t).square()
    else:
        representation = _cost(plan, foreground_s, foreground_t)
        label = _cost(plan, masks, foreground_t)
    return segmentation_loss(logits_s, labels) + (plan * (alpha * representation + beta * label)).sum()


def _cost(plan: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """(n, m) distances with gradient; that of equal vectors is zero."""
    x, y = (part.flatten(1).to(plan.dtype) for part in (a, b))
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _softmax(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)


def train_seg_jdot(
    run: Run,
    network: ResidualUNet2d,
    source: Slices,
    target: Slices,
    training: Training,
    settings: Baselines,
    selection: Selection,
    milestones: tuple[int, ...] = (),
) -> None:
    """Adapt a source network by Seg-JDOT: all layers, both batches in one forward pass; resumes where it was stopped.

    Args:
        run: an entered run.
        network: the source network, changed in place.
        source: labelled slices.
        target: slices without labels.
        training: with nothing left open, see `Training.resolved`.
        settings: weights, form and transport.
        selection: chooses the network; call its `take` afterwards.
        milestones: steps after which the learning rate falls to a tenth.

    Raises:
        SettingError: several processes, or a batch divided into parts.
    """
    check_alone(run)
    total, batch_size, base = resolved_recipe(training)
    prepared = run.prepare(network)
    optimizer = make_optimizer(prepared.parameters(), training)
    run.restore(network=prepared, optimizer=optimizer, selection=selection)
    if run.step == 0:
        selection.after(0, network, run)
    network.train()
    for step, batch in run.steps(SitePair(source, target, batch_size, run.settings.seed), total):
        rate = learning_rate(step, "adapt", base=base, milestones=milestones, start=0)
        set_rate(optimizer, rate)
        optimizer.zero_grad(set_to_none=True)
        images = torch.cat([batch["source_image"], batch["target_image"]])
        with run.autocast():
            logits, features = prepared(images, return_bottleneck=True)
            logits_s, logits_t = logits.chunk(2)
            features_s, features_t = features.relu().chunk(2)
            loss = seg_jdot_loss(
                logits_s, logits_t, batch["source_mask"], features_s, features_t, settings.alpha, settings.beta,
                settings.jdot_form, ot=settings.ot, reg=settings.reg,
            )  # fmt: skip
        run.backward(loss)
        run.step_optimizers(optimizer)
        if step % training.log_every == 0:
            run.log.write(step, loss=float(loss.detach()), learning_rate=rate)
        selection.after(step + 1, network, run)


# --- AdaptSegNet -----------------------------------------------------------------------------------------------------


class OutputDiscriminator(nn.Module):
    """Tells source from target by softmax maps, patch by patch (specification 3): 2,763,713 parameters for two classes.

    Args:
        classes: channels of the maps.
    """

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        widths = (classes, 64, 128, 256, 512, 1)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, maps: Tensor) -> Tensor:
        """(B, classes, H, W) probabilities -> (B, 1, H/32, W/32) logits, high for the target."""
        out: Tensor = self.layers(maps)
        return out


def adversarial_losses(
    discriminator: nn.Module, logits_s: Tensor, logits_t: Tensor, weight: float = 0.001
) -> tuple[Tensor, Tensor]:
    """Losses of AdaptSegNet in output space, one level, ordinary GAN (specification 4.4).

    Args:
        discriminator: maps softmax maps to logits; source is 0, target 1.
        logits_s: (B, K, H, W) of the segmenter on the source.
        logits_t: (B, K, H, W) on the target.
        weight: of the segmenter's term.

    Returns:
        weight * BCE(D(softmax target), source), whose gradient reaches the segmenter and not the discriminator; and
        BCE(D(source), source) / 2 + BCE(D(target), target) / 2, whose gradient reaches the discriminator only.
    """
    maps_s, maps_t = _softmax(logits_s), _softmax(logits_t)
    fixed = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    segmenter = weight * _judged(functional_call(discriminator, fixed, (maps_t,)), SOURCE_LABEL)
    of_source = _judged(discriminator(maps_s.detach()), SOURCE_LABEL)
    of_target = _judged(discriminator(maps_t.detach()), TARGET_LABEL)
    return segmenter, (of_source + of_target) / 2


def _judged(logits: Tensor, label: float) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.binary_cross_entropy_with_logits(wide, torch.full_like(wide, label))


def check_patch(size: int) -> None:
    """See before any work whether the discriminator, which halves its maps five times, can judge patches of this side.

    Raises:
        InputError: it cannot.
    """
    if size < 32:
        raise InputError(f"patches of {size} pixels are too small for the discriminator", remedy="give --patch-size 32")


def train_adaptsegnet(
    run: Run,
    network: ResidualUNet2d,
    source: Slices,
    target: Slices,
    training: Training,
    settings: Baselines,
    selection: Selection,
    milestones: tuple[int, ...] = (5000, 6000),
) -> None:
    """Adapt a source network by AdaptSegNet with one discriminator: all layers train; resumes where it was stopped.

    Args:
        run: an entered run.
        network: the source network, changed in place.
        source: labelled slices.
        target: slices without labels.
        training: with nothing left open, see `Training.resolved`.
        settings: weight of the adversarial term, learning rate of the discriminator.
        selection: chooses the network; call its `take` afterwards.
        milestones: steps after which the segmenter's learning rate falls to a tenth.

    Raises:
        SettingError: several processes, or a batch divided into parts.
        InputError: patches too small for the discriminator.
    """
    check_alone(run)
    check_patch(source.patch_size)
    total, batch_size, base = resolved_recipe(training)
    prepared = run.prepare(network)
    discriminator = run.prepare(OutputDiscriminator())
    optimizer = make_optimizer(prepared.parameters(), training)
    rate_d = settings.discriminator_learning_rate
    optimizer_d = torch.optim.Adam(discriminator.parameters(), rate_d, betas=(0.9, 0.99), foreach=True)
    run.restore(
        network=prepared, discriminator=discriminator, optimizer=optimizer, optimizer_of_discriminator=optimizer_d,
        selection=selection,
    )  # fmt: skip
    if run.step == 0:
        selection.after(0, network, run)
    network.train()
    for step, batch in run.steps(SitePair(source, target, batch_size, run.settings.seed), total):
        rate = learning_rate(step, "adapt", base=base, milestones=milestones, start=0)
        set_rate(optimizer, rate)
        set_rate(optimizer_d, learning_rate(step, "pretrain", base=rate_d, steps=total))
        for one in (optimizer, optimizer_d):
            one.zero_grad(set_to_none=True)
        with run.autocast():
            logits_s = prepared(batch["source_image"])
            loss = segmentation_loss(logits_s, batch["source_mask"])
            segmenter, loss_d = adversarial_losses(
                discriminator, logits_s, prepared(batch["target_image"]), settings.adversarial_weight
            )
        run.backward(loss + segmenter)
        run.backward(loss_d)
        run.step_optimizers(optimizer, optimizer_d)
        if step % training.log_every == 0:
            values = {"loss": loss, "adversarial": segmenter, "discriminator": loss_d}
            numbers = {name: float(value.detach()) for name, value in values.items()}
            run.log.write(step, **numbers, learning_rate=rate)
        selection.after(step + 1, network, run)
