"""Mahalanobis distances of 10,000 features of dimension 128 against 20 Gaussians, against scikit-learn.

    python benchmarks/speed/mahalanobis.py [--rounds 5] [--threads 2] [--out benchmarks/results]

Three ways: scikit-learn's EmpiricalCovariance.mahalanobis in a loop over Gaussians (what the authors' program calls);
`odex.mahalanobis` in the same loop, inverses included; and the sum over the Gaussians (Eq. 4, what a decision needs), from the
statistics that a pool keeps. Results are compared first.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from compare import alternate, record
from sklearn.covariance import EmpiricalCovariance

from odex import Gaussian, mahalanobis
from odex.method import summed_distance

COUNT, SIZE, GAUSSIANS = 10_000, 128, 20


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rng = np.random.default_rng(0)
    z = rng.normal(size=(COUNT, SIZE)).astype(np.float32)
    samples = [rng.normal(i / 10, 1, (400, SIZE)) for i in range(GAUSSIANS)]
    history = [Gaussian.fit(torch.from_numpy(part)) for part in samples]
    fitted = [EmpiricalCovariance().fit(part) for part in samples]
    features = torch.from_numpy(z)
    pairs = [(stage.mean.float(), stage.covariance.float()) for stage in history]

    def theirs() -> np.ndarray:
        return np.stack([one.mahalanobis(z) for one in fitted])

    def ours() -> torch.Tensor:
        return torch.stack([mahalanobis(features, mean, covariance) for mean, covariance in pairs])

    def summed() -> torch.Tensor:
        return summed_distance(history, features)

    expected = theirs()
    difference = float(np.abs(ours().numpy() / expected - 1).max())
    difference_sum = float(np.abs(summed().numpy() / expected.sum(0) - 1).max())
    print(f"largest relative difference: single {difference:.2g}, summed {difference_sum:.2g}")
    assert difference < 1e-3
    assert difference_sum < 1e-6
    seconds = alternate({"scikit-learn": theirs, "odex": ours, "odex, summed": summed}, arguments.rounds)
    notes = {
        "features": [COUNT, SIZE], "gaussians": GAUSSIANS, "dtype": "float32", "largest_relative_difference": difference,
        "largest_relative_difference_of_sums": difference_sum, "aim": "under 0.05 s",
    }  # fmt: skip
    record("mahalanobis", seconds, notes, arguments.out)


if __name__ == "__main__":
    main()
