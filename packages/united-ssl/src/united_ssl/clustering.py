"""Deep clustering: pseudo labels from the network's own features (specification 2.3, DeepCluster in 3-D)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dart_core.errors import InputError

PERTURBATION = 1e-4
"""By which the two halves of a cluster that is split differ from it."""


class Clusters(NamedTuple):
    """Clusters of features, and how a new feature finds its own."""

    labels: Tensor
    """(n,) int64."""
    mean: Tensor
    """(d,)."""
    projection: Tensor
    """(d, dims): from centred features to whitened ones."""
    centroids: Tensor
    """(k, dims)."""

    def assign(self, features: Tensor) -> Tensor:
        """Cluster (m,) of further features (m, d)."""
        return _nearest(_unit((features.to(self.mean) - self.mean) @ self.projection), self.centroids)


def cluster_pseudo_labels(
    features: Any, k: int, dims: int, init: Sequence[int] | None = None, iterations: int = 20, seed: int = 0
) -> Any:
    """Cluster features: centred, PCA with whitening, rows of length 1, k-means.

    The labels do not change (up to their names) under orthogonal transforms of the features.

    Args:
        features: (n, d) array or tensor.
        k: clusters.
        dims: principal components, at most the rank of the centred features.
        init: row numbers (k,) of the first centroids; None draws them by k-means++.
        iterations: of k-means, at most; it ends when nothing changes.
        seed: of k-means++ and of what happens to empty clusters: a random one that is not empty is split.

    Returns:
        (n,) integers from 0 to k-1; an array for an array.

    Raises:
        InputError: fewer features than clusters, or features that are not finite.
    """
    given = torch.as_tensor(features)
    labels = fit_clusters(given, k, dims, init, iterations, seed).labels
    return labels if isinstance(features, Tensor) else labels.numpy()


def fit_clusters(
    features: Tensor, k: int, dims: int, init: Sequence[int] | None = None, iterations: int = 20, seed: int = 0
) -> Clusters:
    """`cluster_pseudo_labels` with what it takes to assign further features."""
    x = features.detach().to(torch.float64)
    if x.dim() != 2 or not 1 <= k <= len(x) or dims < 1:
        raise InputError(
            f"features of shape {tuple(x.shape)} do not make {k} clusters in {dims} dimensions",
            remedy="give (n, d) with at least as many rows as clusters",
        )
    if not bool(torch.isfinite(x).all()):
        raise InputError("features are not finite", remedy="train with a lower learning rate")
    mean = x.mean(0)
    _, values, vectors = torch.linalg.svd(x - mean, full_matrices=False)
    rank = int((values > values[0] * max(x.shape) * torch.finfo(x.dtype).eps).sum()) if values[0] > 0 else 0
    kept = max(1, min(dims, rank))
    scale = torch.where(values[:kept] > 0, values[:kept], 1.0)
    projection = vectors[:kept].T / scale * (max(len(x) - 1, 1)) ** 0.5
    points = _unit((x - mean) @ projection)
    rng = np.random.default_rng(seed)
    rows = _plus_plus(points, k, rng) if init is None else [int(i) for i in init]
    if len(rows) != k:
        raise InputError(f"there are {len(rows)} first centroids for {k} clusters", remedy="give one per cluster")
    labels, centroids = _k_means(points, points[rows].clone(), iterations, rng)
    return Clusters(labels, mean, projection, centroids)


def cluster_sampling_weights(labels: Any) -> Any:
    """Probability of each sample with which all clusters that are not empty are drawn equally often.

    Args:
        labels: (n,) integers, array or tensor.

    Returns:
        (n,) of sum 1; an array for an array.
    """
    given = torch.as_tensor(labels)
    _, place, counts = torch.unique(given, return_inverse=True, return_counts=True)
    weights = 1.0 / (len(counts) * counts[place].to(torch.float64))
    return weights if isinstance(labels, Tensor) else weights.numpy()


def _unit(x: Tensor) -> Tensor:
    length = x.norm(dim=1, keepdim=True)
    return x / torch.where(length > 0, length, 1.0)


def _nearest(points: Tensor, centroids: Tensor) -> Tensor:
    # |p|^2 is the same for all centroids of a point.
    return (centroids.square().sum(1) - 2 * points @ centroids.T).argmin(1)


def _plus_plus(points: Tensor, k: int, rng: np.random.Generator) -> list[int]:
    rows = [int(rng.integers(len(points)))]
    distance = (points - points[rows[0]]).square().sum(1)
    for _ in range(1, k):
        chances = distance.clamp_min(0).cpu().numpy()
        total = chances.sum()
        if total > 0:
            row = int(rng.choice(len(points), p=chances / total))
        else:  # fewer different points than clusters
            row = int(rng.choice(np.setdiff1d(np.arange(len(points)), rows)))
        rows.append(row)
        distance = torch.minimum(distance, (points - points[row]).square().sum(1))
    return rows


def _k_means(points: Tensor, centroids: Tensor, iterations: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    labels = _nearest(points, centroids)
    for _ in range(iterations):
        sums = torch.zeros_like(centroids).index_add_(0, labels, points)
        counts = torch.bincount(labels, minlength=len(centroids))
        filled = counts > 0
        moved = torch.where(filled[:, None], sums / counts.clamp_min(1)[:, None], centroids)
        for empty in torch.nonzero(~filled).ravel().tolist():
            victim = int(rng.choice(torch.nonzero(filled).ravel().cpu().numpy()))
            step = torch.from_numpy(rng.choice((-PERTURBATION, PERTURBATION), moved.shape[1])).to(moved)
            moved[empty] = moved[victim] + step
            moved[victim] = moved[victim] - step
        before, centroids = labels, moved
        labels = _nearest(points, centroids)
        if torch.equal(labels, before) and bool(filled.all()):
            break
    return labels, centroids
