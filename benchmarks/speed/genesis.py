"""dart_core.augment.genesis against the loops of Models Genesis, written anew in NumPy: the distortions of 64^3 cubes.

The chain is that of Models Genesis: local shuffling of half of the cubes, the non-linear map of 0.9, a cutout of 0.9 (outer 0.8,
inner 0.2). Theirs takes one cube after the other on one core, as their generator does, and for a fairer comparison also the cubes in
--threads processes, as their loader's workers would; ours takes the batch, on one thread and on --threads. The moments of both are
compared first, with each other and with those measured on the authors' code (specification united-ssl 2.4). How many of the steps a
batch draws by chance moves its time, so both get the same choices in every round. Records seconds per batch of 16 cubes.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from compare import alternate, record
from scipy.special import comb

from dart_core.augment import genesis

CUBES, SIDE, POINTS = 16, 64, 100_000
# Fractions of a cube and their standard deviations: changed by the shuffling, replaced by the inner cutout, kept by the outer one.
MOMENTS = {"shuffled": (0.757, 0.004), "inner": (0.0576, 0.022), "outer": (0.326, 0.067)}


def their_shuffle(x: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """10,000 blocks, one after the other, out of the undistorted cube."""
    result = x.copy()
    limit = SIDE // 10
    for _ in range(10_000):
        a, b, c = random.randint(1, limit), random.randint(1, limit), random.randint(1, limit)
        i, j, k = random.randint(0, SIDE - a), random.randint(0, SIDE - b), random.randint(0, SIDE - c)
        window = x[i : i + a, j : j + b, k : k + c].flatten()
        rng.shuffle(window)
        result[i : i + a, j : j + b, k : k + c] = window.reshape(a, b, c)
    return result


def their_map(x: np.ndarray, control: np.ndarray, decreasing: bool) -> np.ndarray:
    """Interpolation in a table of 100,000 points of the curve."""
    u = np.linspace(0, 1, POINTS)
    basis = np.array([comb(3, i) * u**i * (1 - u) ** (3 - i) for i in range(4)])
    across, up = control[:, 0] @ basis, control[:, 1] @ basis
    return np.interp(x, np.sort(across), up[::-1] if decreasing else np.sort(up))


def their_cutout(x: np.ndarray, outer: bool, rng: np.random.RandomState) -> np.ndarray:
    """Up to five windows of noise, or noise but for up to five windows."""
    result = rng.rand(*x.shape) if outer else x.copy()
    low, high = (SIDE - 4 * SIDE // 7, SIDE - 3 * SIDE // 7) if outer else (SIDE // 6, SIDE // 3)
    for window in range(5):
        if not (outer and window == 0) and rng.rand() >= 0.95:
            break
        sides = rng.randint(low, high + 1, 3)
        where = tuple(slice(s, s + n) for n in sides for s in [rng.randint(3, SIDE - n - 2)])
        result[where] = x[where] if outer else rng.rand(*sides)
    return result


def agree(name: str, theirs: np.ndarray, ours: np.ndarray) -> float:
    """Stop if the means of two samples differ from each other or from the known one; their difference."""
    mean, deviation = MOMENTS[name]
    error = deviation * math.sqrt(1 / len(theirs) + 1 / len(ours))
    for found in (theirs.mean() - ours.mean(), theirs.mean() - mean, ours.mean() - mean):
        if abs(found) > 4 * error + 1e-3:  # the known ones are rounded
            raise SystemExit(f"{name}: {theirs.mean():.4f} theirs, {ours.mean():.4f} ours, {mean} known; not timed")
    return float(theirs.mean() - ours.mean())


def in_processes(function: Callable[[int], object], count: int, processes: int) -> Callable[[], None]:
    """A function that calls another with the numbers below `count` in processes, started beforehand; results stay there."""

    def serve(pipe: Connection, numbers: range) -> None:
        while pipe.recv():
            for number in numbers:
                function(number)
            pipe.send(True)

    pipes = []
    forking = multiprocessing.get_context("fork")
    for first in range(processes):
        here, there = forking.Pipe()
        forking.Process(target=serve, args=(there, range(first, count, processes)), daemon=True).start()
        pipes.append(here)

    def call() -> None:
        for pipe in pipes:
            pipe.send(True)
        for pipe in pipes:
            pipe.recv()

    return call


def processor_seconds(function: Callable[[], object], calls: int = 5) -> float:
    """The least that a call took of this process's threads together: almost the same however busy the machine is."""
    found = []
    for _ in range(calls):
        started = time.process_time()
        function()
        found.append(time.process_time() - started)
    return min(found)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="ours; theirs works on the CPU")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    random.seed(0)
    rng, generator = np.random.RandomState(0), torch.Generator(arguments.device).manual_seed(0)
    # Tissue-like cubes: smooth, with a background of exactly 0.
    grid = np.indices((SIDE, SIDE, SIDE)) / SIDE * 2 * np.pi
    cubes = np.stack([sum(np.sin(axis * rng.uniform(1, 4) + rng.uniform(0, 6)) for axis in grid) for _ in range(CUBES)])
    cubes = np.clip(0.35 + 0.2 * cubes + rng.normal(0, 0.02, cubes.shape), 0, 1)
    batch = torch.from_numpy(cubes[:, None]).float().to(arguments.device)

    numbers = np.arange(SIDE**3, dtype=np.float64).reshape(SIDE, SIDE, SIDE) + 2
    many = torch.from_numpy(numbers).float().to(arguments.device).expand(400, 1, -1, -1, -1)

    def fractions(found: list[np.ndarray] | torch.Tensor, changed: bool) -> np.ndarray:
        if isinstance(found, torch.Tensor):
            return ((found != many[: len(found)]) == changed).flatten(1).double().mean(1).cpu().numpy()
        return np.array([((one != numbers) == changed).mean() for one in found])

    differences = {
        "shuffled": agree(
            "shuffled",
            fractions([their_shuffle(numbers, rng) for _ in range(4)], True),
            fractions(genesis.local_pixel_shuffle(many[:4], generator=generator), True),
        ),
        "inner": agree(
            "inner",
            fractions([their_cutout(numbers, False, rng) for _ in range(400)], True),
            fractions(genesis.inner_cutout(many, generator), True),
        ),
        "outer": agree(
            "outer",
            fractions([their_cutout(numbers, True, rng) for _ in range(400)], False),
            fractions(genesis.outer_cutout(many, generator), False),
        ),
    }

    control = np.zeros((CUBES, 4, 2))
    control[:, 1:3], control[:, 3] = rng.rand(CUBES, 2, 2), 1
    points, down = torch.from_numpy(control).to(arguments.device), np.arange(CUBES) % 2 == 0
    found = genesis.nonlinear_intensity(batch, points, torch.from_numpy(down), POINTS).cpu().numpy()[:, 0]
    expected = [their_map(cube.astype(np.float32), p, d) for cube, p, d in zip(cubes, control, down, strict=True)]
    largest = float(np.abs(found - np.stack(expected)).max())
    if largest > 1e-5:
        raise SystemExit(f"the non-linear maps differ by {largest:.1e}; not timed")

    # Every round has the expected numbers of each step: 8 of 16 shuffled, 14 mapped, 11 cut outside and 3 inside.
    shuffled, mapped, outside, inside = slice(0, 8), slice(2, 16), slice(1, 12), slice(12, 15)

    def their_cube(i: int) -> np.ndarray:
        cube = cubes[i].copy()
        if i in range(CUBES)[shuffled]:
            cube = their_shuffle(cube, rng)
        if i in range(CUBES)[mapped]:
            cube = their_map(cube, control[i], bool(down[i]))
        for part in (outside, inside):
            if i in range(CUBES)[part]:
                cube = their_cutout(cube, part is outside, rng)
        return cube

    def theirs() -> list[np.ndarray]:
        return [their_cube(i) for i in range(CUBES)]

    choices = torch.zeros(4, CUBES, dtype=torch.bool, device=batch.device)
    for choice, part in zip(choices, (shuffled, mapped, outside, inside), strict=True):
        choice[part] = True
    falling = torch.from_numpy(down).to(batch.device)

    def ours(threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        x = genesis.distort(batch, points, *choices, falling, points=POINTS, generator=generator)
        if x.is_cuda:
            torch.cuda.synchronize()
        return x

    alone, threads = "NumPy, one cube after the other", 1 if batch.is_cuda else arguments.threads
    together = f"NumPy, {threads} processes"
    one = "ours" if batch.is_cuda else "ours, one thread"
    functions: dict[str, Callable[[], object]] = {alone: theirs, one: lambda: ours(1)}
    if threads > 1:
        functions[together] = in_processes(their_cube, CUBES, threads)
        functions[f"ours, {threads} threads"] = lambda: ours(threads)
    seconds = alternate(functions, arguments.rounds)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    about: dict[str, object] = {
        "cubes": CUBES,
        "side": SIDE,
        "differences of mean fractions": differences,
        "largest difference of the map": largest,
        "processor seconds": {
            name: processor_seconds(function) for name, function in functions.items() if name != together
        },
        "load average at the end": os.getloadavg(),
        "note": "a load average above the number of cores means that other programs ran; then both are slower, not by the same factor",
    }
    torch.set_num_threads(threads)
    if threads > 1:
        about[f"times as fast as {together}"] = median[together] / median[f"ours, {threads} threads"]
    record(f"genesis-{arguments.device}", seconds, about, arguments.out, arguments.device)


if __name__ == "__main__":
    main()
