"""Pseudo labels (specification 2.3, 9.12)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group

from united_ssl import cluster_pseudo_labels, cluster_sampling_weights
from united_ssl.clustering import fit_clusters

RNG = np.random.default_rng(0)
CENTRES = 4 * RNG.normal(size=(5, 12))
TRUTH = np.repeat(np.arange(5), 20)
FEATURES = CENTRES[TRUTH] + 0.1 * RNG.normal(size=(100, 12))


def same_partition(a, b) -> bool:
    pairs = set(zip(np.asarray(a).tolist(), np.asarray(b).tolist(), strict=True))
    return len(pairs) == len(set(np.asarray(a).tolist())) == len(set(np.asarray(b).tolist()))


def test_finds_what_lies_apart():
    assert same_partition(cluster_pseudo_labels(FEATURES, 5, 4), TRUTH)


def test_orthogonal_transforms_change_nothing():
    turned = FEATURES @ ortho_group.rvs(12, random_state=1) + 3
    init = [0, 20, 40, 60, 80]
    labels = cluster_pseudo_labels(FEATURES, 5, 12, init)
    assert np.array_equal(labels, cluster_pseudo_labels(turned, 5, 12, init))
    assert np.array_equal(labels, cluster_pseudo_labels(torch.from_numpy(FEATURES), 5, 12, init).numpy())


def test_scaling_an_axis_changes_nothing_either():
    """Whitening takes the scales away where all components are kept."""
    init = [0, 20, 40, 60, 80]
    assert np.array_equal(
        cluster_pseudo_labels(FEATURES * np.arange(1, 13), 5, 12, init), cluster_pseudo_labels(FEATURES, 5, 12, init)
    )


def test_init_names_the_clusters():
    labels = cluster_pseudo_labels(FEATURES, 5, 4, [85, 0, 20, 40, 60])
    assert labels[0] == 1
    assert labels[90] == 0


def test_dims_are_cut_to_the_rank():
    flat = np.outer(np.arange(10.0), np.ones(3))
    labels = cluster_pseudo_labels(flat, 2, 3)
    assert same_partition(labels, np.arange(10) > 4)


def test_empty_clusters_are_filled():
    found = fit_clusters(torch.from_numpy(FEATURES), 5, 4, [0, 1, 2, 3, 4], iterations=50)
    assert found.labels.max() <= 4
    doubled = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    labels = cluster_pseudo_labels(doubled, 3, 1)
    assert labels.shape == (4,)
    assert labels[0] != labels[2]


def test_further_features_go_to_their_cluster():
    found = fit_clusters(torch.from_numpy(FEATURES), 5, 4)
    assert torch.equal(found.assign(torch.from_numpy(FEATURES)), found.labels)
    assert torch.equal(found.assign(torch.from_numpy(CENTRES)), found.labels[::20])


def test_the_same_every_time():
    assert np.array_equal(cluster_pseudo_labels(FEATURES, 7, 4, seed=3), cluster_pseudo_labels(FEATURES, 7, 4, seed=3))


def test_all_clusters_are_drawn_equally_often():
    labels = np.array([0, 0, 0, 5, 7, 7])
    weights = cluster_sampling_weights(labels)
    assert weights.sum() == pytest.approx(1)
    assert [weights[labels == k].sum() for k in (0, 5, 7)] == pytest.approx([1 / 3] * 3)
    assert torch.equal(cluster_sampling_weights(torch.from_numpy(labels)), torch.from_numpy(weights))


def test_refusals():
    for features, k in ((FEATURES[:3], 4), (FEATURES[0], 1), (np.full((4, 2), np.nan), 2)):
        with pytest.raises(ValueError, match="features"):
            cluster_pseudo_labels(features, k, 2)
    with pytest.raises(ValueError, match="2 first centroids for 3 clusters"):
        cluster_pseudo_labels(FEATURES, 3, 2, [0, 1])
