"""Clusters of slices, common to two sites (paper section 2, "intra-site variability modeling" and "clustering matching").

Bottleneck features of both sites together -> principal components -> t-SNE in two dimensions -> k-means of each site ->
assignment of the target's clusters to the source's. Every argument of the libraries is written out, because their defaults have
changed over the years (specification 8.8).

Features are (slices, ...). They may be too many for memory: whatever gives rows by slice will do, and above `IN_MEMORY` numbers
the principal components are found block by block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dart_core.errors import InputError, SettingError

COMPONENTS = 20
PERPLEXITY = 30.0
IN_MEMORY = 2**26
"""Numbers up to which features are gathered in memory for scikit-learn's PCA: 256 MB in float32."""
BLOCK = 2**24
"""Numbers of one block of a larger set: 64 MB in float32."""
OVERSAMPLES, KRYLOV_STEPS = 10, 3

Start: TypeAlias = Literal["source", "k-means++"]


class Rows(Protocol):
    """Features that are read by rows, for example from a file: arrays, memory maps, `FeatureRows`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(slices, ...)."""

    def __getitem__(self, index: slice, /) -> Any:
        """Rows as an array."""


Features: TypeAlias = Tensor | NDArray[Any] | Rows


@dataclass(frozen=True, eq=False)
class Clustering:
    """Two clustered sites. Tensors where tensors were given, else arrays."""

    source_assignment: Any
    """(n,) cluster of each source slice, 0 to k-1."""
    target_assignment: Any
    """(m,) cluster of each target slice. Its numbers are the target's own; `match` relates them to the source's."""
    match: Any
    """(k,) pi: the source cluster that each target cluster is drawn to (paper Eq. 1)."""
    source_means: Any
    """(k, ...) nu: mean feature of each source cluster, in the full feature space."""
    embedding: Any
    """(n + m, 2) t-SNE points, the source's first."""
    source_centres: Any
    """(k, 2) mu of the source."""
    target_centres: Any
    """(k, 2) mu of the target."""


def cluster_sites(
    source_features: Features,
    target_features: Features,
    k: int = 12,
    slice_positions: tuple[Any, Any] | None = None,
    seed: int = 42,
    *,
    perplexity: float = PERPLEXITY,
    start: Start = "source",
    device: torch.device | str | None = None,
) -> Clustering:
    """Cluster the slices of both sites and match the clusters (specification 2.2).

    Args:
        source_features: (n, ...) bottleneck features of source slices.
        target_features: (m, ...) of target slices, the trailing axes as those of the source.
        k: clusters per site.
        slice_positions: relative positions in their scans, (n,) and (m,), appended to the principal components as one more
            column; None leaves them out. The paper does not mention them, its code has them.
        seed: of PCA, t-SNE and k-means.
        perplexity: of t-SNE; below n + m.
        start: where k-means of the target starts: at the centres of the source, as the code does (the matching is then
            nearly the identity), or "k-means++".
        device: where the principal components of sets above `IN_MEMORY` are computed; None: that of the features.

    Returns:
        Assignments (int64), matching, means of the source clusters in the full space, and the plane.

    Raises:
        ValueError: features that do not fit each other, fewer (distinct) slices in a site than clusters, a perplexity not below
            the number of slices, or features that are not finite.
    """
    tensors = isinstance(source_features, Tensor)
    home = source_features.device if isinstance(source_features, Tensor) else torch.device("cpu")
    rows = _Joint(_plain(source_features), _plain(target_features))
    n, m = rows.counts
    _check(rows, k, perplexity, start)
    points = _reduce(rows, seed, torch.device(home if device is None else device))
    if slice_positions is not None:
        points = np.column_stack([points, _positions(slice_positions, n, m).astype(points.dtype)])

    embedding = _embed(points, perplexity, seed)
    source_assignment, source_centres = _k_means(embedding[:n], k, seed, "k-means++", "source")
    initial = source_centres if start == "source" else "k-means++"
    target_assignment, target_centres = _k_means(embedding[n:], k, seed, initial, "target")
    found = {
        "source_assignment": source_assignment,
        "target_assignment": target_assignment,
        "match": match_clusters(source_centres, target_centres),
        "source_means": _means(rows, source_assignment, k),
        "embedding": embedding,
        "source_centres": source_centres,
        "target_centres": target_centres,
    }
    if tensors:
        return Clustering(**{name: torch.from_numpy(array).to(home) for name, array in found.items()})
    return Clustering(**found)


def match_clusters(source_centres: Any, target_centres: Any) -> Any:
    """Assign a source cluster to each target cluster so that the squared distances sum to the least (paper Eq. 1).

    Args:
        source_centres: (k, 2) centres of the source clusters, tensor or array.
        target_centres: (k, 2) centres of the target clusters.

    Returns:
        (k,) int64 of the kind that was given: a permutation, `result[t]` the source cluster of target cluster t.

    Raises:
        ValueError: the shapes differ, or a centre is not finite.
    """
    from scipy.optimize import linear_sum_assignment

    source, target = (np.asarray(_plain(centres), dtype=np.float64) for centres in (source_centres, target_centres))
    if source.ndim != 2 or source.shape != target.shape:
        raise InputError(
            f"source centres have shape {source.shape}, target centres {target.shape}",
            remedy="give (k, 2) centres of as many clusters in both sites",
        )
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise InputError("a cluster centre is not finite", remedy="check the features")
    cost = np.square(target[:, None] - source).mean(-1)  # c(s, t): mean over the coordinates
    match = linear_sum_assignment(cost)[1].astype(np.int64)
    return torch.from_numpy(match).to(target_centres.device) if isinstance(target_centres, Tensor) else match


def matched_distance(clustering: Clustering) -> float:
    """Mean distance of the matched centres over the spread of all centres.

    Two t-SNE planes have no common scale; this quotient says whether sites came closer (specification 7, Fig. 4). The spread is
    the root mean square distance of the 2 k centres to their mean.
    """
    source = np.asarray(_plain(clustering.source_centres), dtype=np.float64)
    target = np.asarray(_plain(clustering.target_centres), dtype=np.float64)
    distance = np.linalg.norm(target - source[np.asarray(_plain(clustering.match))], axis=1).mean()
    centres = np.concatenate([source, target])
    spread = np.sqrt(np.square(centres - centres.mean(0)).sum(1).mean())
    return float(distance / spread) if spread > 0 else 0.0


# --- The steps -------------------------------------------------------------------------------------------------------


class _Joint:
    """The rows of both sites, source first, read in blocks."""

    def __init__(self, source: Any, target: Any) -> None:
        if len(source.shape) < 2 or tuple(source.shape[1:]) != tuple(target.shape[1:]):
            raise InputError(
                f"source features have shape {tuple(source.shape)}, target features {tuple(target.shape)}",
                remedy="give (slices, ...) features of the same network and slice size",
            )
        self.parts = (source, target)
        self.counts = (source.shape[0], target.shape[0])
        self.total = sum(self.counts)
        self.shape = tuple(source.shape[1:])
        self.width = int(np.prod(self.shape))
        self.dtype = np.promote_types(np.result_type(_dtype(source), _dtype(target)), np.float32)

    def blocks(self, only_source: bool = False) -> Iterator[tuple[int, NDArray[Any]]]:
        """(first row, (rows, width) in the type of the file), one part of the features after the other."""
        size = max(1, BLOCK // self.width)
        offset = 0
        for part in self.parts[: 1 if only_source else 2]:
            for first in range(0, part.shape[0], size):
                block = np.asarray(part[first : first + size])
                yield offset + first, block.reshape(len(block), self.width)
            offset += part.shape[0]


def _check(rows: _Joint, k: int, perplexity: float, start: str) -> None:
    if k < 1:
        raise SettingError(f"{k} clusters", remedy="give at least 1")
    if start not in ("source", "k-means++"):
        raise SettingError(f"k-means cannot start at {start!r}", remedy="give source or k-means++")
    for name, count in zip(("source", "target"), rows.counts, strict=True):
        if count < k:
            raise InputError(
                f"{count} {name} slices cannot make {k} clusters", remedy="give more slices, or ask for fewer clusters"
            )
    if not 0 < perplexity < rows.total:
        raise InputError(
            f"a perplexity of {perplexity:g} needs more than the {rows.total} slices of both sites",
            remedy="give more slices, or a smaller perplexity",
        )


def _positions(slice_positions: tuple[Any, Any], n: int, m: int) -> NDArray[Any]:
    source, target = (np.asarray(_plain(positions)) for positions in slice_positions)
    if source.shape != (n,) or target.shape != (m,):
        raise InputError(
            f"slice positions have shapes {source.shape} and {target.shape} for {n} and {m} slices",
            remedy="give one position per slice",
        )
    return np.concatenate([source, target])


def _reduce(rows: _Joint, seed: int, device: torch.device) -> NDArray[Any]:
    """Principal components (total, up to 20) of both sites together: centred, neither scaled nor whitened."""
    from sklearn.decomposition import PCA

    components = min(COMPONENTS, rows.total, rows.width)
    if rows.total * rows.width > IN_MEMORY:
        return _reduce_in_blocks(rows, components, seed, device)
    matrix = np.concatenate([block.astype(rows.dtype, copy=False) for _, block in rows.blocks()])
    if not np.isfinite(matrix).all():
        raise InputError("features are not finite", remedy="lower the learning rate, or check the network's weights")
    smaller, larger = sorted(matrix.shape)
    if rows.width <= 1000 and rows.total >= 10 * rows.width:
        solver = "covariance_eigh"
    else:
        solver = "randomized" if larger > 500 and components < 0.8 * smaller else "full"
    pca = PCA(components, whiten=False, svd_solver=solver, iterated_power="auto", random_state=seed)
    return np.asarray(pca.fit_transform(matrix))


def _reduce_in_blocks(rows: _Joint, components: int, seed: int, device: torch.device) -> NDArray[Any]:
    """The same for more features than fit into memory, by a randomised block Krylov method (Musco and Musco 2015).

    The rows are read `KRYLOV_STEPS` + 1 times. Per reading, a block A_b of the centred matrix adds A_b^T (A_b Q) to the
    product A^T A Q. All those products together span the space in which the components are then found exactly. Signs are
    chosen as scikit-learn does, by the largest entry of each axis.
    """
    dtype = torch.float64 if rows.dtype == np.float64 else torch.float32
    buffer = torch.empty(0, dtype=dtype)

    def read() -> Iterator[tuple[int, Tensor]]:
        nonlocal buffer
        for first, block in rows.blocks():
            if len(buffer) < len(block):
                buffer = torch.empty(block.shape, dtype=dtype)
            buffer[: len(block)].copy_(
                _tensor(block)
            )  # always the same memory: new pages cost as much as the arithmetic
            yield first, buffer[: len(block)].to(device)

    draws = torch.Generator().manual_seed(seed)
    columns = min(components + OVERSAMPLES, rows.total, rows.width)
    basis = torch.randn(rows.width, columns, generator=draws, dtype=dtype).to(device)
    # The first reading finds the mean as well, and centres its product afterwards: A_c^T A_c Q = A^T A Q - N mean mean^T Q.
    total, product = torch.zeros(rows.width, dtype=torch.float64, device=device), torch.zeros_like(basis)
    for _, block in read():
        total += block.new_ones(len(block)) @ block
        product.addmm_(block.T, block @ basis)
    mean = (total / rows.total).to(dtype)
    if not bool(mean.isfinite().all()):
        raise InputError("features are not finite", remedy="lower the learning rate, or check the network's weights")
    product.addmm_(mean[:, None], (mean @ basis)[None], alpha=-rows.total)
    krylov = [torch.linalg.qr(product)[0]]
    for _ in range(KRYLOV_STEPS - 1):
        product = torch.zeros_like(basis)
        for _, block in read():
            # The rows of A Q, centred, sum to zero over all blocks: A^T needs no centring of its own.
            product.addmm_(block.T, block @ krylov[-1] - mean @ krylov[-1])
        krylov.append(torch.linalg.qr(product)[0])
    basis = torch.linalg.qr(torch.cat(krylov, 1))[0]

    inside = torch.empty(rows.total, basis.shape[1], dtype=dtype, device=device)
    for first, block in read():
        inside[first : first + len(block)] = block @ basis - mean @ basis
    left, singular, right = torch.linalg.svd(inside, full_matrices=False)
    axes = basis @ right[:components].T
    sign = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    return np.asarray((left[:, :components] * singular[:components] * sign).cpu().numpy())


def _embed(points: NDArray[Any], perplexity: float, seed: int) -> NDArray[Any]:
    """(N, 2) by Barnes-Hut t-SNE of (N, components)."""
    from sklearn.manifold import TSNE

    t_sne = TSNE(
        n_components=2,
        perplexity=perplexity,
        early_exaggeration=12.0,
        learning_rate="auto",  # max(N / 12 / 4, 50)
        max_iter=1000,
        n_iter_without_progress=300,
        min_grad_norm=1e-7,
        metric="euclidean",
        init="pca" if min(points.shape) >= 2 else "random",
        random_state=seed,
        method="barnes_hut",
        angle=0.5,
    )
    return np.asarray(t_sne.fit_transform(points))


def _k_means(
    points: NDArray[Any], k: int, seed: int, initial: Any, site: str
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Assignment (n,) and centres (k, 2): ten restarts of k-means++, or one run from given centres."""
    from sklearn.cluster import KMeans

    distinct = len(np.unique(points, axis=0))
    if distinct < k:
        raise InputError(
            f"the {site} slices lie on {distinct} distinct points, too few for {k} clusters",
            remedy="leave out blank or repeated slices, or ask for fewer clusters",
        )
    k_means = KMeans(
        n_clusters=k,
        init=initial,
        n_init=10 if isinstance(initial, str) else 1,
        max_iter=300,
        tol=1e-4,
        random_state=seed,
        algorithm="lloyd",
    ).fit(points)
    return k_means.labels_.astype(np.int64), k_means.cluster_centers_


def _means(rows: _Joint, assignment: NDArray[np.int64], k: int) -> NDArray[Any]:
    """(k, ...) mean of the source features of each cluster; the sums of the blocks are added in float64."""
    sums = torch.zeros(k, rows.width, dtype=torch.float64)
    clusters = torch.from_numpy(assignment)
    dtype = torch.float64 if rows.dtype == np.float64 else torch.float32
    for first, block in rows.blocks(only_source=True):
        members = torch.nn.functional.one_hot(clusters[first : first + len(block)], k).T.to(dtype)
        sums += members @ _tensor(block).to(dtype)
    counts = torch.bincount(clusters, minlength=k)
    return np.asarray((sums / counts[:, None]).numpy().astype(rows.dtype)).reshape(k, *rows.shape)


def _plain(features: Any) -> Any:
    if not isinstance(features, Tensor):
        return features
    features = features.detach().cpu()
    return (features.float() if features.dtype == torch.bfloat16 else features).numpy()


def _dtype(part: Any) -> np.dtype[Any]:
    return np.dtype(getattr(part, "dtype", np.float32))


def _tensor(block: NDArray[Any]) -> Tensor:
    # Memory maps are read-only, which PyTorch warns of.
    return torch.from_numpy(np.require(block, block.dtype.newbyteorder("="), ("C", "W")))
