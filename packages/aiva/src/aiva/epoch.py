"""What happens once per epoch (paper, algorithm box): the slices of both sites are clustered and the clusters matched.

The mathematics are in clustering.py; here is what feeds them, what stays in force until the next time, and what is written down.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aiva.alignment import UNASSIGNED
from aiva.bottleneck import bottleneck_features
from aiva.clustering import Clustering, cluster_sites, matched_distance
from aiva.features import FeatureStore
from aiva.settings import Alignment
from aiva.slices import Slices
from dart_core.data.slices import evaluating
from dart_core.errors import CheckpointError, DartError, InputError
from dart_core.files import atomic_write
from dart_core.run import CHECKPOINTS, Run

CLUSTER_SEED = 42
FOLDER = "clusters"
"""Of the run: one .npz file per clustering."""


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


def refuse_overwritten(run: Run) -> None:
    """Look whether the features that a resumed run goes on with are still those of its checkpoint.

    They are not where newer checkpoints were damaged and a clustering lies between: the epoch after it has written over rows of
    the epoch before.

    Raises:
        CheckpointError: they are not.
    """
    numbers = [int(path.stem.partition("-")[2]) for path in (run.out / CHECKPOINTS).glob("step-*.pt")]
    newest = max(numbers, default=0)
    clustered = [int(path.stem.partition("-")[2]) for path in (run.out / FOLDER).glob("step-*.npz")]
    lost = [step for step in clustered if run.step < step <= newest]
    if run.settings.resume and lost:
        raise CheckpointError(
            f"the checkpoint of step {run.step} cannot be continued: its features were written over after the clustering at step "
            f"{min(lost)}",
            where=run.out,
            remedy="start anew with --overwrite",
        )


def clusterings(folder: Path) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
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
