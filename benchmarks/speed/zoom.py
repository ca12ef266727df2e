"""dart_core.data.volumes.zoom against scipy.ndimage.zoom: a head of CC359's size to 1 x 0.95 x 0.95 mm, cubic splines.

This is why the core multiplies matrices instead of calling SciPy on the volume: the values are the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from compare import alternate, record
from scipy import ndimage

from dart_core.data.volumes import Volume, zoom

SHAPE, SPACING, TARGET = (176, 256, 256), (1.0, 1.0, 1.0), (1.0, 0.95, 0.95)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="both work on the CPU; other devices are skipped")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    arguments = parser.parse_args()
    if arguments.device != "cpu":
        print("resampling is measured on the CPU")
        return
    volume = Volume(np.random.default_rng(0).random(SHAPE, np.float32), np.diag([*SPACING, 1.0]))

    def scipy() -> np.ndarray:
        return np.asarray(ndimage.zoom(volume.array, np.divide(SPACING, TARGET), order=3, mode="mirror"))

    def ours() -> np.ndarray:
        return zoom(volume, TARGET).array

    difference = float(np.abs(scipy() - ours()).max())
    if difference > 1e-6:
        raise SystemExit(f"values differ by {difference:.1e}; not timed")
    seconds = alternate({"SciPy": scipy, "ours": ours}, arguments.rounds)
    record("zoom", seconds, {"largest difference": difference}, arguments.out)


if __name__ == "__main__":
    main()
