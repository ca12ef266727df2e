"""Adaptation by intra-site variability alignment (Goodman, Kasten Serlin, Greenspan, Goldberger, DART 2022).

The loop in the order of the paper's algorithm box: once per epoch the slices of both sites are clustered and the clusters matched
(clustering.py); in between, segmentation is trained on the source while target slices are drawn to the source clusters that
theirs are matched with (alignment.py). Features wait on disk (features.py).

Where paper and authors' code differ, the defaults follow the code ("workshop code" of the specification).
"""

from __future__ import annotations

import contextlib
import io
import zipfile
import zlib
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from aiva.alignment import UNASSIGNED, AlignmentAccumulator, Form, LambdaNormaliser, alignment_loss
from aiva.clustering import Clustering, cluster_sites, matched_distance
from aiva.features import FeatureStore, check_room
from aiva.settings import Alignment, Training
from aiva.slices import SitePair, Slices
from aiva.training import Selection, learning_rate, make_optimizer, resolved_recipe, segmentation_loss, set_rate
from dart_core.data.slices import evaluating
from dart_core.errors import DartError, InputError, SettingError
from dart_core.files import atomic_write
from dart_core.nets import ResidualUNet2d
from dart_core.run import Run

CLUSTER_SEED = 42
FOLDER = "clusters"
"""Of the run: one .npz file per clustering."""

TRAINED = ("init_path", "down1", "down2", "out_path")
TRAINED_OF_BOTTLENECK = ("bottleneck.0", "bottleneck.1", "bottleneck.2", "bottleneck.3.first")


# --- Paper section 2: bottleneck space -------------------------------------------------------------------------------


def bottleneck_features(network: nn.Module, images: Tensor) -> Tensor:
    """v(x), the network's bottleneck features, by its encoder alone (specification 2.1).

    Args:
        network: ResidualUNet2d.
        images: (B, C, H, W).

    Returns:
        (B, 8 width, H/8, W/8): what `network(images, return_bottleneck=True)` gives as well.
    """
    encoder: Any = network
    block = encoder.bottleneck[3]
    features: Tensor = block.second.norm(
        block.first(encoder.bottleneck[:3](encoder.down2(encoder.down1(encoder.init_path(images)))))
    )
    return features


def bottleneck_width(network: ResidualUNet2d) -> int:
    """Channels of the bottleneck features."""
    return int(network.state_dict()["bottleneck.3.second.norm.weight"].numel())


def freeze_for_adaptation(network: ResidualUNet2d) -> int:
    """Leave trainable what the authors train: the encoder up to the bottleneck features, and out_path (specification 2.6).

    Returns:
        Number of trainable parameters: 1,087,670 at width 16 with two output channels.
    """
    count = 0
    for name, parameter in network.named_parameters():
        trained = name.startswith(tuple(f"{part}." for part in (*TRAINED, *TRAINED_OF_BOTTLENECK)))
        parameter.requires_grad_(trained)
        count += parameter.numel() if trained else 0
    return count


@contextlib.contextmanager
def statistics_kept(network: nn.Module) -> Generator[None]:
    """Within the block, batch norms in train mode use the batch's statistics and leave their running ones alone."""
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


# --- Algorithm box: clustering and matching, once per epoch ----------------------------------------------------------


class Clusters:
    """The clustering in force. Part of the checkpoint."""

    def __init__(self, source_slices: int, target_slices: int) -> None:
        self.step = -1
        """Step it was made for; -1: none yet."""
        self.counts = (source_slices, target_slices)
        self.of_target = torch.full((target_slices,), UNASSIGNED)
        """(target slices,) cluster of each, -1 for one that was not seen in the epoch before."""
        self.source_means = torch.empty(0)
        self.match = torch.empty(0, dtype=torch.long)
        self.distance = float("nan")
        """Of the matched centres, see `matched_distance`."""

    def take(self, step: int, found: Clustering, target_index: np.ndarray[Any, Any]) -> None:
        """Put a new clustering in force."""
        self.step = step
        self.of_target = torch.full((self.counts[1],), UNASSIGNED)
        self.of_target[torch.from_numpy(target_index)] = torch.as_tensor(found.target_assignment)
        self.source_means = torch.as_tensor(found.source_means)
        self.match = torch.as_tensor(found.match)
        self.distance = matched_distance(found)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the training uses of it."""
        return {
            "step": self.step,
            "of_target": self.of_target,
            "source_means": self.source_means,
            "match": self.match,
            "distance": self.distance,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a clustering on."""
        self.step, self.distance = int(state["step"]), float(state["distance"])
        self.of_target, self.source_means, self.match = state["of_target"], state["source_means"], state["match"]


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


@dataclass(frozen=True, eq=False)
class Adaptation:
    """The parts of a running adaptation."""

    run: Run
    network: nn.Module
    sites: Mapping[str, Slices]
    stores: Mapping[str, FeatureStore]
    settings: Alignment
    batch_size: int

    def store(self, name: str, batch: Mapping[str, Tensor], features: Tensor) -> None:
        """Keep the features of a batch for the next clustering."""
        if self.settings.embedding == "running":
            self.stores[name].put(batch[f"{name}_index"], features)

    def cluster(self, step: int) -> tuple[Clustering, np.ndarray[Any, Any]]:
        """Cluster the features at hand, write clusters/step-<step>.npz, and forget them; also gives the target's slices.

        Raises:
            InputError: too few slices, or features that are not finite.
        """
        if self.settings.embedding == "recompute":
            for name, slices in self.sites.items():
                _embed_all(self.run, self.network, slices, self.stores[name], self.batch_size)
        rows = {name: store.rows() for name, store in self.stores.items()}
        positions = tuple(self.sites[name].positions[rows[name].index] for name in ("source", "target"))
        try:
            found = cluster_sites(
                rows["source"],
                rows["target"],
                self.settings.clusters,
                (positions[0], positions[1]) if self.settings.slice_positions else None,
                CLUSTER_SEED,
                perplexity=self.settings.perplexity,
                start=self.settings.kmeans,
                device=self.run.device,
            )
        except DartError as error:
            raise InputError(error.problem, where=f"clustering at step {step}", remedy=error.remedy) from error
        places = {name: np.array(self.sites[name].places)[rows[name].index] for name in rows}
        save_clustering(self.run, step, found, places)
        for store in self.stores.values():
            store.clear()
        return found, rows["target"].index


def _embed_all(run: Run, network: nn.Module, slices: Slices, store: FeatureStore, batch_size: int) -> None:
    """Features of all slices by the network as it is now, in eval mode (option `embedding`)."""
    with evaluating(network), torch.no_grad(), run.autocast():
        for first in range(0, len(slices), batch_size):
            index = range(first, min(first + batch_size, len(slices)))
            images = torch.stack([torch.from_numpy(np.asarray(slices.load(i)["image"])) for i in index])
            store.put(torch.tensor(index), bottleneck_features(network, run.to_device({"image": images})["image"]))


def save_clustering(run: Run, step: int, found: Clustering, places: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write what Figs. 2 to 4 of the paper are drawn from; means in the full space are left out."""
    arrays = {
        "step": np.int64(step),
        "embedding": found.embedding,
        "source_assignment": found.source_assignment,
        "target_assignment": found.target_assignment,
        "match": found.match,
        "source_centres": found.source_centres,
        "target_centres": found.target_centres,
        "matched_distance": np.float64(matched_distance(found)),
        "source_places": places["source"],
        "target_places": places["target"],
    }
    with atomic_write(run.out / FOLDER / f"step-{step:09d}.npz") as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **arrays)


# --- Paper Eq. 2 and 3: one alignment --------------------------------------------------------------------------------


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


def check_counts(source_slices: int, target_slices: int, batch_size: int, settings: Alignment) -> None:
    """See before any work whether the first clustering will have enough slices.

    Raises:
        InputError: it will not.
    """
    drawn = (settings.iterations_per_epoch - 1) * batch_size
    counts = {"source": source_slices, "target": target_slices}
    for name, count in counts.items():
        if count < settings.clusters:
            raise InputError(
                f"{count} {name} slices cannot make {settings.clusters} clusters",
                remedy="give more scans, or a smaller --clusters",
            )
        if settings.embedding == "recompute":
            continue
        if drawn < settings.clusters:
            raise InputError(
                f"{settings.iterations_per_epoch} iterations per epoch collect {drawn} {name} slices, too few for "
                f"{settings.clusters} clusters",
                remedy="give a larger --iterations-per-epoch or --batch-size",
            )
        counts[name] = min(count, drawn)
    if sum(counts.values()) <= settings.perplexity:
        raise InputError(
            f"--perplexity {settings.perplexity:g} needs more than the {sum(counts.values())} slices of both sites",
            remedy="give a smaller --perplexity, or more scans",
        )


def clusterings(folder: Any) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """The clusterings that a run wrote, in their order.

    Args:
        folder: the run's folder.

    Raises:
        InputError: none there, or a damaged one.
    """
    paths = sorted((folder / FOLDER).glob("step-*.npz"))
    if not paths:
        raise InputError("holds no clusters", where=folder, remedy="give the run folder of `aiva adapt --method aiva`")
    for path in paths:
        try:
            # From memory: numpy leaves a damaged file open.
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"cannot be read ({error})", where=path, remedy="run the adaptation again") from error
        yield arrays
