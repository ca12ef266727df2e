"""The once-per-epoch part: whether there will be enough slices, and the state that a checkpoint keeps of a clustering."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from aiva import cluster_sites, matched_distance
from aiva.epoch import Clusters, check_counts
from aiva.settings import Alignment
from dart_core.errors import InputError

SETTINGS = Alignment(clusters=3, perplexity=8, iterations_per_epoch=8, acc_amount=6)


@pytest.mark.parametrize(
    ("counts", "changes", "problem"),
    [
        ((2, 50), {}, "2 source slices cannot make 3 clusters"),
        ((50, 2), {}, "2 target slices cannot make 3 clusters"),
        ((50, 50), {"clusters": 29}, "8 iterations per epoch collect 28 source slices, too few for 29 clusters"),
        ((50, 50), {"perplexity": 56.0}, "--perplexity 56 needs more than the 56 slices of both sites"),
        ((5, 7), {"perplexity": 12.0}, "--perplexity 12 needs more than the 12 slices of both sites"),
    ],
)
def test_counts_are_checked_before_any_work(counts: tuple[int, int], changes: Any, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        check_counts(*counts, 4, Alignment(**{**vars(SETTINGS), **changes}))


def test_recomputed_features_may_be_few_iterations() -> None:
    check_counts(50, 50, 1, Alignment(**{**vars(SETTINGS), "embedding": "recompute", "iterations_per_epoch": 1}))


def test_clusters_in_force() -> None:
    """Slices that were not seen have no cluster; a copy made from the state is the same."""
    draws = np.random.default_rng(3)
    source, target = draws.normal(size=(12, 6)).astype(np.float32), draws.normal(size=(9, 6)).astype(np.float32)
    found = cluster_sites(source, target, 3, perplexity=5)
    seen = np.array([0, 1, 3, 4, 6, 7, 8, 10, 11])
    clusters = Clusters(12, 13)
    assert clusters.step == -1
    assert clusters.of_target.tolist() == [-1] * 13
    clusters.take(7, found, seen)
    assert clusters.of_target[torch.from_numpy(seen)].tolist() == found.target_assignment.tolist()
    assert clusters.of_target[[2, 5, 9, 12]].tolist() == [-1] * 4
    assert clusters.distance == matched_distance(found)
    other = Clusters(12, 13)
    other.load_state_dict(copy.deepcopy(clusters.state_dict()))
    assert other.step == 7
    for name in ("of_target", "source_means", "match"):
        assert torch.equal(getattr(other, name), getattr(clusters, name))
