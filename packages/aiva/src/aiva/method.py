"""Adaptation by intra-site variability alignment (Goodman, Kasten Serlin, Greenspan, Goldberger, DART 2022).

The loop in the order of the paper's algorithm box: once per epoch the slices of both sites are clustered and the clusters matched
(epoch.py, clustering.py); in between, segmentation is trained on the source while target slices are drawn to the source clusters
that theirs are matched with (alignment.py), in the space of bottleneck features (bottleneck.py) that wait on disk (features.py).

Where paper and authors' code differ, the defaults follow the code ("workshop code" of the specification).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from aiva.alignment import UNASSIGNED, AlignmentAccumulator, Form, LambdaNormaliser, alignment_loss
from aiva.bottleneck import bottleneck_features, bottleneck_width, freeze_for_adaptation, statistics_kept
from aiva.epoch import Adaptation, Clusters, check_counts, refuse_overwritten
from aiva.features import FeatureStore, check_room
from aiva.settings import Alignment, Training
from aiva.slices import SitePair, Slices
from aiva.training import Selection, learning_rate, make_optimizer, resolved_recipe, segmentation_loss, set_rate
from dart_core.data.slices import evaluating
from dart_core.errors import InputError, SettingError
from dart_core.nets import ResidualUNet2d
from dart_core.run import Run

# --- Paper Eq. 2 and 3: one alignment --------------------------------------------------------------------------------


class Gradients:
    """The gradients that wait for the next step, as part of the checkpoint."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def state_dict(self) -> dict[str, Any]:
        """By parameter name; of those that have one."""
        named = self.network.named_parameters()
        return {name: parameter.grad for name, parameter in named if parameter.grad is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put them back."""
        for name, parameter in self.network.named_parameters():
            gradient = state.get(name)
            parameter.grad = None if gradient is None else torch.empty_like(parameter).copy_(gradient)


def align(
    run: Run,
    network: nn.Module,
    accumulator: AlignmentAccumulator,
    clusters: Clusters,
    normaliser: LambdaNormaliser,
    form: Form,
    refresh: bool = False,
) -> tuple[float, float]:
    """Add the gradient of the alignment loss of all held batches to the network's gradients, and let the batches go.

    The loss is a function of the features at hand; its gradient by them is then carried through the encoder, one batch at a
    time. As the weights are still those that the features were computed with, this is the gradient that the authors get
    by keeping every graph, in the memory of one batch.

    Args:
        run: gives precision and scaling.
        network: in train mode.
        accumulator: holds at least one batch with an assigned slice.
        clusters: the clustering in force.
        normaliser: scales the loss.
        form: of the loss.
        refresh: the weights have changed since: compute the features anew first.

    Returns:
        The loss before and after scaling.

    Raises:
        InputError: the loss is not finite.
    """
    held = [{name: tensor.to(run.device) for name, tensor in batch.items()} for batch in accumulator.pending]
    with statistics_kept(network):
        if refresh:
            with torch.no_grad(), run.autocast():
                held = [{**batch, "features": bottleneck_features(network, batch["images"])} for batch in held]
        features = torch.cat([batch["features"] for batch in held])
        features = features.to(torch.promote_types(features.dtype, torch.float32)).requires_grad_()
        assignment = torch.cat([batch["assignment"] for batch in held])
        loss = alignment_loss(features, assignment, clusters.source_means, clusters.match, form)
        scaled = normaliser(loss)
        if not bool(torch.isfinite(scaled)):
            raise InputError("the alignment loss is not finite", remedy="lower the learning rate")
        (gradient,) = torch.autograd.grad(scaled, features)
        for batch, part in zip(held, gradient.split([len(batch["images"]) for batch in held]), strict=True):
            with run.autocast():
                again = bottleneck_features(network, batch["images"])
                carried = (again * part).sum()
            run.backward(carried)
    accumulator.clear()
    return float(loss.detach()), float(scaled.detach())


# --- Algorithm box: the loop -----------------------------------------------------------------------------------------


def train_aiva(
    run: Run,
    network: ResidualUNet2d,
    source: Slices,
    target: Slices,
    training: Training,
    settings: Alignment,
    selection: Selection,
    milestones: tuple[int, ...] = (5000, 6000),
) -> None:
    """Adapt a source network to the target site; resumes exactly where the run was stopped.

    Iteration 0 only scores the network, those up to the first clustering only collect features in eval mode (specification 2.3);
    with `embedding="recompute"` training starts at once. In each further iteration the gradient of the segmentation loss
    on the source is added to the stored gradients, and target slices come together until there are enough for an
    alignment; then the optimiser steps and the gradients are cleared (specification 2.6, item 2).

    Args:
        run: an entered run.
        network: the source network, changed in place; afterwards the decoder's parameters are frozen.
        source: labelled slices.
        target: slices without labels.
        training: with nothing left open, see `Training.resolved`.
        settings: clustering and alignment.
        selection: chooses the network; call its `take` afterwards.
        milestones: see `learning_rate`; counted from the first training iteration.

    Raises:
        SettingError: several processes, or a batch divided into parts.
        InputError: too few slices for the clusters or the perplexity.
        OutputError: no room for the features.
    """
    check_alone(run)
    total, batch_size, base = resolved_recipe(training)
    period = settings.iterations_per_epoch
    check_counts(len(source), len(target), batch_size, settings)
    freeze_for_adaptation(network)
    prepared = run.prepare(network)
    optimizer = make_optimizer(network.parameters(), training)
    gradients, clusters = Gradients(network), Clusters(len(source), len(target))
    normaliser, accumulator = LambdaNormaliser(settings.lambda_factor), AlignmentAccumulator(settings.acc_amount)
    start = 0 if settings.embedding == "recompute" else period
    sites = {"source": source, "target": target}
    width = bottleneck_width(network)
    stores = {
        name: FeatureStore(run.out / "features" / f"{name}.f16", len(slices), (width, *slices.feature_shape))
        for name, slices in sites.items()
    }
    check_room(list(stores.values()))
    parts = Adaptation(run, network, sites, stores, settings, batch_size)
    with stores["source"], stores["target"]:
        run.restore(
            network=prepared, optimizer=optimizer, gradients=gradients, clusters=clusters, normaliser=normaliser,
            accumulator=accumulator, selection=selection, source_features=stores["source"],
            target_features=stores["target"],
        )  # fmt: skip
        if settings.embedding == "running":
            refuse_overwritten(run)
        if run.step == 0:
            selection.after(0, network, run)
        for step, batch in run.steps(SitePair(source, target, batch_size, run.settings.seed, period), total):
            if step < start:
                if step > 0:
                    _collect(parts, prepared, batch)
                continue
            if step % period == 0 and clusters.step != step:
                found, target_index = parts.cluster(step)
                clusters.take(step, found, target_index)
                accumulator.clear()  # pending target slices go; stored gradients stay
                run.save()  # before any row of the new epoch is written: see features.py
            if step % period == 0:
                run.log.write(step, matched_distance=clusters.distance)

            network.train()
            rate = learning_rate(step, "adapt", base=base, milestones=milestones, start=start)
            set_rate(optimizer, rate)
            with run.autocast():
                logits, features = prepared(batch["source_image"], return_bottleneck=True)
                loss = segmentation_loss(logits, batch["source_mask"])
            run.backward(loss)
            parts.store("source", batch, features)
            with torch.no_grad(), run.autocast():
                # The whole network, as its decoder's batch norms see the target too.
                _, features = prepared(batch["target_image"], return_bottleneck=True)
            parts.store("target", batch, features)

            assignment = clusters.of_target[batch["target_index"].cpu()]
            accumulator.hold(batch["target_image"], features, assignment)
            alignment = None
            if accumulator.ready(int((assignment != UNASSIGNED).sum())):
                alignment = align(
                    run, network, accumulator, clusters, normaliser, settings.alignment, settings.step_every_iteration
                )
            if alignment is not None or settings.step_every_iteration:
                run.step_optimizers(optimizer)  # Eq. 3: the sum of the stored gradients and the alignment's
                optimizer.zero_grad(set_to_none=True)
            if alignment is not None:
                run.log.write(step, alignment=alignment[0], alignment_scaled=alignment[1])
            if step % training.log_every == 0:
                run.log.write(step, loss=float(loss.detach()), learning_rate=rate)
            selection.after(step + 1, network, run)
    for store in stores.values():
        store.remove()
    with contextlib.suppress(OSError):
        (run.out / "features").rmdir()


def _collect(parts: Adaptation, prepared: nn.Module, batch: Mapping[str, Tensor]) -> None:
    """An iteration before the first clustering: features in eval mode, no gradient."""
    with evaluating(prepared), torch.no_grad(), parts.run.autocast():
        for name in parts.sites:
            _, features = prepared(batch[f"{name}_image"], return_bottleneck=True)
            parts.store(name, batch, features)


def check_alone(run: Run) -> None:
    """Refuse several processes and divided batches: batch norms and accumulation see whole batches.

    Raises:
        SettingError: there are several, or --accumulate is given.
    """
    if run.world_size > 1:
        raise SettingError("adaptation runs in one process", remedy="start it without torchrun")
    if run.settings.accumulate > 1:
        raise SettingError("adaptation does not divide its batches", remedy="leave out --accumulate")
