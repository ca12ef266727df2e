"""Mahalanobis distances of 10,000 features of dimension 128 to 20 Gaussians, against scikit-learn.

    python benchmarks/speed/mahalanobis.py [--rounds 5] [--threads 2] [--out benchmarks/results]

Four ways: scikit-learn's EmpiricalCovariance.mahalanobis in a loop over Gaussians (what the authors' program calls), from inverses that
it has made before; `odex.mahalanobis` in the same loop, and of all Gaussians at once, factorisation of the covariances included; and the
sum over the Gaussians (Eq. 4, what a decision needs), from the statistics that a pool keeps. First, all are compared with a plain loop
over features and Gaussians in double precision.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from compare import alternate, record
from sklearn.covariance import EmpiricalCovariance

from odex import Gaussian, mahalanobis
from odex.gaussians import summed_distance

COUNT, SIZE, GAUSSIANS = 10_000, 128, 20
PLAIN = 200
"""Features that the plain loop looks at."""


def plain_loop(z: np.ndarray, fitted: list[EmpiricalCovariance]) -> np.ndarray:
    """(Gaussians, n): a linear system for each pair."""
    found = np.empty((len(fitted), len(z)))
    for k, one in enumerate(fitted):
        for i, row in enumerate(z.astype(np.float64)):
            centred = row - one.location_
            found[k, i] = centred @ np.linalg.solve(one.covariance_, centred)
    return found


def processor_seconds(way: Callable[[], object]) -> float:
    """Time on all threads together, which other programs on the machine do not lengthen as they do wall time."""
    started = time.process_time()
    way()
    return time.process_time() - started


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="scikit-learn works on the CPU; other devices are skipped")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    arguments = parser.parse_args()
    if arguments.device != "cpu":
        print("distances are measured on the CPU")
        return
    torch.set_num_threads(arguments.threads)
    kind = getattr(torch, arguments.dtype)
    rng = np.random.default_rng(0)
    samples = [rng.normal(i / 10, 1, (400, SIZE)) for i in range(GAUSSIANS)]
    features = torch.from_numpy(rng.normal(size=(COUNT, SIZE))).to(kind)
    z = features.numpy()
    history = [Gaussian.fit(torch.from_numpy(part)) for part in samples]
    fitted = [EmpiricalCovariance().fit(part) for part in samples]
    means = torch.stack([stage.mean for stage in history]).to(kind)
    covariances = torch.stack([stage.covariance for stage in history]).to(kind)

    def theirs() -> np.ndarray:
        return np.stack([one.mahalanobis(z) for one in fitted])

    def one_by_one() -> torch.Tensor:
        return torch.stack([mahalanobis(features, *pair) for pair in zip(means, covariances, strict=True)])

    def at_once() -> torch.Tensor:
        return mahalanobis(features, means, covariances)

    def summed() -> torch.Tensor:
        return summed_distance(history, features)

    expected = plain_loop(z[:PLAIN], fitted)
    agreement = {
        name: float(np.abs(np.asarray(way())[..., :PLAIN] / truth - 1).max())
        for name, way, truth in (
            ("scikit-learn", theirs, expected), ("one by one", one_by_one, expected), ("at once", at_once, expected),
            ("summed", summed, expected.sum(0)),
        )
    }  # fmt: skip
    print("largest relative difference from the plain loop:", agreement)
    assert max(agreement.values()) < (1e-5 if arguments.dtype == "float32" else 1e-9)
    ways = {"scikit-learn": theirs, "odex, one by one": one_by_one, "odex, at once": at_once, "odex, summed": summed}
    seconds = alternate(ways, arguments.rounds)
    processor = {name: min(processor_seconds(way) for _ in range(arguments.rounds)) for name, way in ways.items()}
    print("seconds of processor time:", {name: round(value, 4) for name, value in processor.items()})
    notes = {
        "features": [COUNT, SIZE], "gaussians": GAUSSIANS, "dtype": arguments.dtype, "aim": "under 0.05 s",
        "fastest_round_seconds": {name: min(times) for name, times in seconds.items()},
        "processor_seconds_of_all_threads": processor,
        "largest_relative_difference_from_plain_loop": agreement,
        "load_average_of_the_machine": list(os.getloadavg()),
    }  # fmt: skip
    suffix = "" if arguments.dtype == "float32" else f"-{arguments.dtype}"
    record(f"mahalanobis{suffix}", seconds, notes, arguments.out)


if __name__ == "__main__":
    main()
