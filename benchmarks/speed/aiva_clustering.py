"""AIVA's clustering phase against plain scikit-learn, and its share of an epoch of training at the size of CC359.

    python benchmarks/speed/aiva_clustering.py [--slices 1000] [--rounds 3] [--device cpu]

Features of 131,072 numbers a slice (256 x 256 pixels, width 16), float16 as the feature store holds them. Both sides must find
the same clusters. The share is an extrapolation: the clustering of a whole epoch (16,000 slices) from its times for SLICES and
twice as many, by the power law through both; the epoch from one training iteration (8 + 8 slices), times 1,000.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from compare import alternate, record
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import adjusted_rand_score

from aiva import bottleneck_features, cluster_sites, segmentation_loss
from aiva.bottleneck import freeze_for_adaptation
from dart_core.nets import ResidualUNet2d

SHAPE = (128, 32, 32)
CLUSTERS, SEED = 12, 42
EPOCH_SLICES, EPOCH_ITERATIONS = 16_000, 1_000


def features(slices: int, seed: int) -> np.ndarray:
    """(slices, ...) float16: twelve kinds of slices, the same for all seeds, with common variation, and noise."""
    rng = np.random.default_rng(seed)
    width = math.prod(SHAPE)
    basis = np.random.default_rng(SEED).standard_normal((CLUSTERS + 4, width), dtype=np.float32)
    kind = np.arange(slices) % CLUSTERS
    weights = np.zeros((slices, CLUSTERS + 4), np.float32)
    weights[np.arange(slices), kind] = 1
    weights[:, CLUSTERS:] = 0.1 * rng.standard_normal((slices, 4))
    noise = 0.2 * rng.standard_normal((slices, width), dtype=np.float32)
    return (weights @ basis + noise).astype(np.float16).reshape(slices, *SHAPE)


def plain(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same steps by scikit-learn's classes alone: clusters of both sites, the target's by the name of the matched one."""
    joint = np.concatenate([source, target]).reshape(len(source) + len(target), -1).astype(np.float32)
    points = PCA(20, random_state=SEED).fit_transform(joint)
    plane = TSNE(2, perplexity=30, learning_rate="auto", init="pca", max_iter=1000, random_state=SEED)
    embedding = plane.fit_transform(points)
    first = KMeans(CLUSTERS, n_init=10, random_state=SEED).fit(embedding[: len(source)])
    second = KMeans(CLUSTERS, init=first.cluster_centers_, n_init=1, random_state=SEED).fit(embedding[len(source) :])
    cost = np.square(second.cluster_centers_[:, None] - first.cluster_centers_).mean(-1)
    return first.labels_, linear_sum_assignment(cost)[1][second.labels_]


def ours(source: np.ndarray, target: np.ndarray, device: str) -> tuple[np.ndarray, np.ndarray]:
    """The package's clustering phase."""
    found = cluster_sites(source, target, CLUSTERS, seed=SEED, device=device)
    return found.source_assignment, found.match[found.target_assignment]


def training_iteration(device: str) -> Callable[[], None]:
    """A training iteration: the source's batch, the target's, and the alignment's pass of the target's.

    The alignment comes every seventh iteration and passes the batches of all seven, so that each iteration has one. The
    optimiser's step, every seventh as well, is left out.
    """
    network = ResidualUNet2d(out_channels=2).to(device, memory_format=torch.channels_last)
    freeze_for_adaptation(network)
    source, target = (torch.rand(8, 1, 256, 256, device=device) for _ in range(2))
    labels = torch.randint(0, 2, (8, 256, 256), device=device)
    goal = torch.rand(8, *SHAPE, device=device)

    def iteration() -> None:
        segmentation_loss(network(source), labels).backward()
        with torch.no_grad():
            network(target)
        (bottleneck_features(network, target) * goal).sum().backward()
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    return iteration


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--slices", type=int, default=1000, help="of both sites together")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    arguments = parser.parse_args()
    small = [features(arguments.slices // 2, seed) for seed in (0, 1)]
    large = [features(arguments.slices, seed) for seed in (0, 1)]
    agreement = [
        float(adjusted_rand_score(a, b))
        for a, b in zip(plain(*small), ours(*small, arguments.device), strict=True)  # type: ignore[arg-type]
    ]
    if min(agreement) < 0.99:
        raise SystemExit(f"the clusters differ (adjusted Rand index {agreement})")
    seconds = alternate(
        {
            "scikit-learn": lambda: plain(*small),
            "ours": lambda: ours(*small, arguments.device),
            "ours, twice the slices": lambda: ours(*large, arguments.device),
            "training iteration": training_iteration(arguments.device),
        },
        arguments.rounds,
    )
    once, twice, iteration = (
        statistics.median(seconds.pop(name) if name != "ours" else seconds[name])
        for name in ("ours", "ours, twice the slices", "training iteration")
    )
    exponent = math.log2(twice / once)
    whole = twice * (EPOCH_SLICES / (2 * arguments.slices)) ** max(exponent, 1.0)
    share = whole / (EPOCH_ITERATIONS * iteration)
    print(
        f"clustering of {EPOCH_SLICES} slices, extrapolated: {whole:.0f} s; iteration {iteration:.2f} s; share {share:.2%}"
    )
    notes = {
        "slices": arguments.slices,
        "numbers per slice": math.prod(SHAPE),
        "adjusted Rand index, source and target": agreement,
        "seconds for twice the slices": twice,
        "exponent": exponent,
        "extrapolated seconds for an epoch": whole,
        "seconds of a training iteration": iteration,
        "extrapolated share of an epoch": share,
    }
    record("aiva-clustering", seconds, notes, arguments.out, arguments.device)


if __name__ == "__main__":
    main()
