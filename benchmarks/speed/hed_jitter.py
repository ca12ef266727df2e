"""stain_aglr.hed_jitter against scikit-image: patches of 256 pixels, each with its own change of the three stains.

scikit-image takes one patch at a time, on one thread, as it always does: rgb2hed, s (1 + alpha) + beta, hed2rgb, of pictures as files
hold them, 8 bit (it works in float64 then), and of float32. Ours takes the batch in float32, as a training holds it, on one thread and
on all, in scikit-image's space ("skimage", the same values) and in the space of HED-light ("offset2", one affine map of the logarithms).
New memory is a good part of the time of ours where the operating system is slow to give it.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from compare import alternate, record
from skimage.color import hed2rgb, rgb2hed

from stain_aglr import hed_jitter
from stain_aglr.settings import Space

BATCH, SIDE, STRENGTH = 64, 256, 0.05  # the paper's batch and strength


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="ours; scikit-image works on the CPU")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    # Colours of stained tissue on glass: concentrations of two stains, by Beer's and Lambert's law.
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    amounts = rng.gamma(1.5, 0.35, (BATCH, SIDE, SIDE, 2))
    patches = np.round(255 * np.exp(-amounts @ stains)).astype(np.uint8)
    alpha, beta = rng.uniform(-STRENGTH, STRENGTH, (2, BATCH, 3)).astype(np.float32)
    levels = patches.astype(np.float32) / 255
    images = torch.from_numpy(levels).permute(0, 3, 1, 2).contiguous().to(arguments.device)
    a, b = (torch.from_numpy(value).to(arguments.device) for value in (alpha, beta))

    def peer(patches: np.ndarray) -> np.ndarray:
        return np.stack([hed2rgb(rgb2hed(p) * (1 + s) + t) for p, s, t in zip(patches, alpha, beta, strict=True)])

    def ours(space: Space, threads: int = arguments.threads) -> torch.Tensor:
        torch.set_num_threads(threads)
        found = hed_jitter(images, a, b, space)
        if found.is_cuda:
            torch.cuda.synchronize()
        return found

    difference = float(np.abs(peer(patches) - ours("skimage").permute(0, 2, 3, 1).cpu().numpy()).max())
    if difference > 1e-5:
        raise SystemExit(f"values differ by {difference:.1e}; not timed")
    functions = {
        "scikit-image": lambda: peer(patches),
        "scikit-image, float32": lambda: peer(levels),
        "ours, space skimage": lambda: ours("skimage"),
        "ours, space offset2": lambda: ours("offset2"),
    }
    if arguments.threads > 1 and not images.is_cuda:
        functions["ours, space skimage, one thread"] = lambda: ours("skimage", 1)
        functions["ours, space offset2, one thread"] = lambda: ours("offset2", 1)
    seconds = alternate(functions, arguments.rounds)
    torch.set_num_threads(arguments.threads)
    about = {"patches": BATCH, "side": SIDE, "threads": arguments.threads, "largest difference": difference}
    record(f"hed-jitter-{arguments.device}", seconds, about, arguments.out, arguments.device)


if __name__ == "__main__":
    main()
