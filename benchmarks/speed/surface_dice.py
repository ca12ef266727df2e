"""dart_core.metrics.surface_dice against DeepMind's surface-distance and MONAI, on two masks of the size of a brain.

This is why the core has its own: the values are the same, and importing MONAI takes longer than scoring ten scans.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import surface_distance
import torch
from compare import alternate, record

from dart_core.metrics import surface_dice

SHAPE, SPACING, TOLERANCE = (182, 218, 172), (1.0, 1.0, 1.0), 1.0


def masks() -> tuple[np.ndarray, np.ndarray]:
    """Two brain-sized ellipsoids, one voxel apart along each axis."""
    x, y, z = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    truth = ((x - 91) / 70) ** 2 + ((y - 109) / 85) ** 2 + ((z - 80) / 65) ** 2 < 1
    return np.roll(truth, (1, 1, 1), (0, 1, 2)), truth


def import_seconds(module: str) -> float:
    """Wall time of importing a module in a new process, torch being imported already."""
    code = f"import torch, time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    return min(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(2))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="all three work on the CPU; other devices are skipped")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    arguments = parser.parse_args()
    if arguments.device != "cpu":
        print("surface Dice is measured on the CPU")
        return
    from monai.metrics import compute_surface_dice

    pred, truth = masks()

    def deepmind() -> float:
        distances = surface_distance.compute_surface_distances(truth, pred, SPACING)
        return float(surface_distance.compute_surface_dice_at_tolerance(distances, TOLERANCE))

    def monai() -> float:
        tensors = [torch.from_numpy(mask)[None, None] for mask in (pred, truth)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return float(compute_surface_dice(*tensors, [TOLERANCE], True, spacing=SPACING, use_subvoxels=True))

    def ours() -> float:
        return surface_dice(pred, truth, SPACING, TOLERANCE)

    values = {"surface-distance": deepmind(), "MONAI": monai(), "ours": ours()}
    if max(values.values()) - min(values.values()) > 1e-6:
        raise SystemExit(f"values differ: {values}; not timed")
    seconds = alternate({"surface-distance": deepmind, "MONAI": monai, "ours": ours}, arguments.rounds)
    notes = {
        "values": values,
        "seconds to import": {name: import_seconds(name) for name in ("monai.metrics", "dart_core.metrics.surface")},
    }
    record("surface-dice", seconds, notes, arguments.out)


if __name__ == "__main__":
    main()
