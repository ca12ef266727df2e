"""Clustering of two sites and matching of their clusters, against brute force and plain scikit-learn."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from aiva import cluster_sites, clustering, match_clusters, matched_distance
from dart_core.errors import InputError, SettingError


def blobs(rng: np.random.Generator, counts: list[int], shift: float = 0.0, shape: tuple[int, ...] = (4, 3, 2)) -> Any:
    """Features of well separated slice types and their types; type i has mean 10 e_i + shift."""
    features, kinds = [], []
    for kind, count in enumerate(counts):
        mean = np.zeros(int(np.prod(shape)))
        mean[kind] = 10
        features.append(mean + shift + rng.normal(size=(count, len(mean))))
        kinds += [kind] * count
    order = rng.permutation(len(kinds))
    return np.concatenate(features)[order].reshape(-1, *shape).astype(np.float32), np.array(kinds)[order]


def squared(source: np.ndarray, target: np.ndarray, match: Any) -> float:
    return float(np.square(target - source[list(match)]).sum())


# Matching


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_matching_minimises_the_squared_distance(data: st.DataObject) -> None:
    k = data.draw(st.integers(1, 7))
    points = hnp.arrays(np.float64, (k, 2), elements=st.floats(-100, 100))
    source, target = data.draw(points), data.draw(points)
    match = match_clusters(source, target)
    assert sorted(match) == list(range(k))
    best = min(squared(source, target, order) for order in itertools.permutations(range(k)))
    assert squared(source, target, match) == pytest.approx(best, rel=1e-9, abs=1e-9)


def test_matching_of_the_specification() -> None:
    source = np.array([[0, 0], [10, 0], [0, 10]])
    target = np.array([[9, 1], [1, 9], [6, 0]])
    # Targets 0 and 2 are both nearest to source 1; the matching is a bijection all the same.
    assert match_clusters(source, target).tolist() == [1, 2, 0]


def test_permuted_centres_give_the_permutation() -> None:
    source = np.random.default_rng(0).normal(size=(12, 2))
    order = np.random.default_rng(1).permutation(12)
    match = match_clusters(source, source[order])
    assert match.tolist() == order.tolist()
    assert squared(source, source[order], match) == 0


def test_matching_keeps_the_kind_of_its_input() -> None:
    source, target = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    match = match_clusters(source, target)
    assert isinstance(match, torch.Tensor)
    assert match.dtype == torch.int64
    assert match.tolist() == match_clusters(source.numpy(), target.numpy()).tolist()


@pytest.mark.parametrize(
    ("source", "target"),
    [((3, 2), (4, 2)), ((3,), (3,))],
)
def test_matching_of_centres_that_do_not_fit(source: tuple[int, ...], target: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="centres"):
        match_clusters(np.zeros(source), np.zeros(target))


def test_matching_of_centres_that_are_not_finite() -> None:
    with pytest.raises(InputError, match="not finite"):
        match_clusters(np.array([[0.0, np.nan]]), np.zeros((1, 2)))


# Clustering


@pytest.mark.parametrize("start", ["source", "k-means++"])
def test_slice_types_are_found_in_both_sites(start: Any) -> None:
    """Four types, a shift between the sites that is small against their distance."""
    rng = np.random.default_rng(3)
    source, source_kinds = blobs(rng, [20, 25, 15, 20])
    target, target_kinds = blobs(rng, [15, 15, 20, 30], shift=0.3)
    found = cluster_sites(source, target, k=4, start=start)
    for assignment, kinds in ((found.source_assignment, source_kinds), (found.target_assignment, target_kinds)):
        pairs = set(zip(assignment.tolist(), kinds.tolist(), strict=True))
        assert len(pairs) == 4  # one cluster, one type
    kind_of = dict(zip(found.source_assignment.tolist(), source_kinds.tolist(), strict=True))
    matched = [kind_of[found.match[cluster]] for cluster in found.target_assignment]
    assert matched == target_kinds.tolist()
    for cluster in range(4):
        np.testing.assert_allclose(
            found.source_means[cluster], source[found.source_assignment == cluster].mean(0), rtol=1e-5, atol=1e-5
        )
    assert found.embedding.shape == (160, 2)
    assert found.source_means.shape == (4, 4, 3, 2)


def test_pipeline_is_the_libraries_own() -> None:
    """The steps of the specification, written out once more."""
    rng = np.random.default_rng(5)
    source, _ = blobs(rng, [30, 30, 30], shape=(6, 5, 5))
    target, _ = blobs(rng, [20, 25, 30], shift=0.5, shape=(6, 5, 5))
    positions = rng.random(90), rng.random(75)
    found = cluster_sites(source, target, 3, positions)
    x = np.concatenate([source, target]).reshape(165, -1)
    components = PCA(20, svd_solver="full").fit_transform(x)
    points = np.column_stack([components, np.concatenate(positions)]).astype(np.float32)
    plane = TSNE(2, perplexity=30, learning_rate="auto", init="pca", max_iter=1000, random_state=42)
    embedding = plane.fit_transform(points)
    np.testing.assert_allclose(found.embedding, embedding, rtol=0, atol=1e-3 * np.abs(embedding).max())
    source_k = KMeans(3, n_init=10, random_state=42).fit(embedding[:90])
    target_k = KMeans(3, init=source_k.cluster_centers_, n_init=1).fit(embedding[90:])
    assert np.array_equal(found.source_assignment, source_k.labels_)
    assert np.array_equal(found.target_assignment, target_k.labels_)
    np.testing.assert_allclose(found.target_centres, target_k.cluster_centers_, rtol=0, atol=0.05)


def test_slice_positions_are_one_more_column(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    monkeypatch.setattr(clustering, "_embed", lambda points, *_: seen.append(points) or points[:, :2])
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(20, 30)), rng.normal(size=(25, 30))
    positions = rng.random(20), rng.random(25)
    cluster_sites(source, target, 2)
    cluster_sites(source, target, 2, positions)
    assert seen[0].shape == (45, 20)
    assert np.array_equal(seen[1][:, :20], seen[0])
    assert np.array_equal(seen[1][:, 20], np.concatenate(positions))


def test_same_sites_and_one_cluster() -> None:
    """The goal is the mean source feature."""
    features = torch.randn(40, 5, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = cluster_sites(features, features, k=1)
    assert isinstance(found.source_means, torch.Tensor)
    assert found.source_means.dtype == torch.float64
    torch.testing.assert_close(found.source_means[0], features.mean(0))
    assert found.match.tolist() == [0]
    assert set(found.source_assignment.tolist()) == set(found.target_assignment.tolist()) == {0}


def test_tensors_and_arrays_give_the_same() -> None:
    rng = np.random.default_rng(1)
    source, _ = blobs(rng, [30, 20])
    target, _ = blobs(rng, [20, 20])
    arrays = cluster_sites(source, target, 2)
    tensors = cluster_sites(torch.from_numpy(source), torch.from_numpy(target), 2)
    for name in vars(arrays):
        assert isinstance(getattr(tensors, name), torch.Tensor)
        assert np.array_equal(getattr(tensors, name).numpy(), getattr(arrays, name)), name


def test_the_same_again() -> None:
    rng = np.random.default_rng(2)
    source, target = rng.normal(size=(40, 8)), rng.normal(size=(40, 8))
    one, same = cluster_sites(source, target, 3), cluster_sites(source, target, 3)
    assert np.array_equal(one.embedding, same.embedding)
    assert np.array_equal(one.target_assignment, same.target_assignment)


# Principal components


def spectrum(rng: np.random.Generator, n: int, d: int, decay: float) -> np.ndarray:
    """(n, d) with singular values 100 i^-decay and a mean that is large against most of them."""
    rank = min(n, d)
    left, right = (np.linalg.qr(rng.normal(size=(size, rank)))[0] for size in (n, d))
    values = 100 * np.arange(1, rank + 1) ** -decay
    return np.asarray((left * values) @ right.T + rng.normal(size=d), dtype=np.float32)


@pytest.mark.parametrize(("n", "d"), [(60, 300), (150, 400), (400, 90)])
def test_components_in_blocks_equal_full_pca(n: int, d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the signs. Blocks of seven rows, which neither site's number of rows is a multiple of."""
    monkeypatch.setattr(clustering, "BLOCK", 7 * d)
    x = spectrum(np.random.default_rng(n), n, d, 1.0)
    expected = PCA(20, svd_solver="full").fit_transform(x.astype(np.float64))
    rows = clustering._Joint(x[: n // 3], x[n // 3 :])
    before = x.copy()
    found = clustering._reduce_in_blocks(rows, 20, 42, torch.device("cpu"))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4 * np.abs(expected).max())
    assert np.array_equal(x, before)


def test_large_sets_are_reduced_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the way, the clusters are the same."""
    rng = np.random.default_rng(7)
    source, _ = blobs(rng, [40, 40, 40], shape=(10, 8, 8))
    target, _ = blobs(rng, [40, 40, 40], shift=0.4, shape=(10, 8, 8))
    whole = cluster_sites(source, target, 3)
    monkeypatch.setattr(clustering, "IN_MEMORY", 1000)
    monkeypatch.setattr(clustering, "BLOCK", 20_000)
    blocks = cluster_sites(source.astype(np.float16), target.astype(np.float16), 3)
    for name in ("source_assignment", "target_assignment"):
        pairs = set(zip(getattr(whole, name).tolist(), getattr(blocks, name).tolist(), strict=True))
        assert len(pairs) == 3
    assert blocks.source_means.dtype == np.float32
    order = [whole.source_assignment[blocks.source_assignment == cluster][0] for cluster in range(3)]
    np.testing.assert_allclose(blocks.source_means, whole.source_means[order], rtol=0, atol=0.01)


# Bad input


def test_too_few_slices_and_too_large_a_perplexity() -> None:
    rng = np.random.default_rng(0)
    few, many = rng.normal(size=(5, 10)), rng.normal(size=(40, 10))
    with pytest.raises(ValueError, match="5 source slices cannot make 12 clusters"):
        cluster_sites(few, many)
    with pytest.raises(ValueError, match="5 target slices cannot make 6 clusters"):
        cluster_sites(many, few, 6)
    with pytest.raises(ValueError, match="perplexity of 30 needs more than the 30 slices"):
        cluster_sites(many[:15], many[15:30], 3)
    with pytest.raises(ValueError, match="perplexity of 45"):
        cluster_sites(few, many, 3, perplexity=45)
    assert cluster_sites(many[:15], many[15:31], 3).embedding.shape == (31, 2)


def test_other_bad_input() -> None:
    x = np.random.default_rng(0).normal(size=(40, 10))
    with pytest.raises(InputError, match=r"source features have shape \(40, 10\), target features \(40, 9\)"):
        cluster_sites(x, x[:, :9])
    with pytest.raises(InputError, match="slice positions have shapes"):
        cluster_sites(x, x, 3, (np.zeros(40), np.zeros(39)))
    with pytest.raises(SettingError, match="0 clusters"):
        cluster_sites(x, x, 0)
    with pytest.raises(SettingError, match="cannot start at"):
        cluster_sites(x, x, 3, start="target")  # type: ignore[arg-type]
    x[3, 4] = np.nan
    with pytest.raises(InputError, match="features are not finite"):
        cluster_sites(x, x, 3)


def test_blank_slices_are_no_clusters() -> None:
    """Forty slices, but three different ones: k-means would leave a cluster empty.

    Which site is found first depends on how t-SNE rounds: it can part equal points by a hair.
    """
    x = np.repeat(np.eye(3, 10), [20, 10, 10], axis=0)
    with pytest.raises(
        InputError, match=r"the (source|target) slices lie on \d+ distinct points, too few for 5 clusters"
    ):
        cluster_sites(x, x, 5)


def test_matched_distance() -> None:
    centres = np.array([[0.0, 0], [4, 0]])
    made = {"source_assignment": 0, "target_assignment": 0, "source_means": 0, "embedding": 0}
    same = clustering.Clustering(**made, match=np.array([1, 0]), source_centres=centres, target_centres=centres[::-1])
    assert matched_distance(same) == 0
    # All four centres 2 from their mean along x and 1.5 along y: spread 2.5; each pair 3 apart.
    moved = clustering.Clustering(
        **made, match=np.array([0, 1]), source_centres=centres, target_centres=centres + np.array([0, 3])
    )
    assert matched_distance(moved) == pytest.approx(3 / 2.5)
