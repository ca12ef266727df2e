"""stain_aglr.MacenkoNormalizer on a batch of 256-pixel patches against torchstain's numpy form, patch by patch.

The results are compared first: levels differ by at most one, at less than a pixel in a thousand. Both have the same number of threads, by
default one: NumPy's linear algebra keeps its threads spinning between calls, and with two of them on two cores what is timed next, ours,
waits for them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from compare import alternate, record
from threadpoolctl import threadpool_limits
from torchstain.numpy.normalizers.macenko import NumpyMacenkoNormalizer

from dart_core.data.phantoms import histology_patch
from stain_aglr import MacenkoNormalizer

PATCHES, SIDE = 16, 256


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="of ours; torchstain's numpy form works on the CPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    threadpool_limits(arguments.threads)
    patches = [histology_patch(i, ("RUMC", "CWZ", "RST")[i % 3], i % 2 == 1, SIDE) for i in range(PATCHES)]
    batch = torch.stack([torch.from_numpy(patch).permute(2, 0, 1) for patch in patches]).to(arguments.device)
    peer, own = NumpyMacenkoNormalizer(), MacenkoNormalizer()
    peer.fit(patches[0])
    own.fit(patches[0])

    def torchstain() -> np.ndarray:
        return np.stack([peer.normalize(patch, stains=False)[0] for patch in patches])

    def ours() -> np.ndarray:
        return own.normalise_batch(batch).permute(0, 2, 3, 1).cpu().numpy()

    difference = np.abs(torchstain().astype(int) - ours())
    share = float((difference > 0).mean())
    if difference.max() > 1 or share > 1e-3:
        raise SystemExit(f"levels differ by up to {difference.max()}, at {share:.2%}; not timed")
    seconds = alternate({"torchstain (numpy)": torchstain, "ours": ours}, arguments.rounds)
    notes = {
        "patches": PATCHES,
        "threads": arguments.threads,
        "side": SIDE,
        "largest difference": int(difference.max()),
        "share that differs": share,
    }
    record("macenko", seconds, notes, arguments.out, arguments.device)


if __name__ == "__main__":
    main()
