"""Donor search of fda-mri against piq's srsim called pair by pair, as the authors do.

One target scan (172 slices of 182 x 218) against 20 source scans; scores must agree to 2e-5 in all but two of a thousand pairs before
anything is timed. Also
notes how the search grows with the number of scans, and the memory of a bank of 60 scans.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from pathlib import Path

import numpy as np
import piq
import torch
from compare import alternate, record

from dart_core.data.phantoms import head_mr
from fda_mri import DonorBank, normalise_volume
from fda_mri.donors import crop_about_centre

SHAPE, SCANS, CROP = (182, 218, 172), 20, 60


def volumes(count: int) -> list[torch.Tensor]:
    """Scans on one grid that differ in contrast and position: two phantoms, shifted and with other intensity curves."""
    heads = [normalise_volume(head_mr(subject, site, SHAPE)[0]) for subject, site in ((0, "sm15"), (1, "ge3"))]
    rng = np.random.default_rng(0)
    scans = []
    for index in range(count):
        head = np.roll(heads[index % 2], rng.integers(-6, 7, 2), (0, 1)) ** rng.uniform(0.7, 1.4)
        scans.append(torch.from_numpy(head.astype(np.float16).astype(np.float32)))
    return scans


def pair_by_pair(target: torch.Tensor, sources: list[torch.Tensor]) -> torch.Tensor:
    """(Z, K) scores, one piq call per pair of cropped slices."""
    crops = crop_about_centre(target.permute(2, 0, 1), CROP)
    others = [crop_about_centre(source.permute(2, 0, 1), CROP) for source in sources]
    scores = torch.empty(len(crops), len(others))
    for z, crop in enumerate(crops):
        for k, other in enumerate(others):
            scores[z, k] = piq.srsim(crop[None, None].clamp(0, 1), other[z][None, None].clamp(0, 1), data_range=1.0)
    return scores


def ranked_scores(bank: DonorBank, target: torch.Tensor) -> torch.Tensor:
    """The same scores out of the 2-D search."""
    scans, _, scores = bank.rank(target, "2d", n=len(bank), crop=CROP)
    return torch.empty_like(scores).scatter_(1, scans, scores)


def memory_of_bank(count: int, queue: multiprocessing.Queue) -> None:
    """Peak memory in GB that a bank of `count` scans adds, searched in 2.5-D, with and without the crop."""
    scan = volumes(1)[0]
    torch.set_num_threads(1)
    DonorBank.build([scan]).rank(scan, "2.5d")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bank = DonorBank.build([scan.half().float().roll(k, 0) for k in range(count)])
    bank.rank(scan, "2.5d")
    cropped = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bank.rank(scan, "2.5d", crop=None)
    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    queue.put(((cropped - before) / 2**20, (whole - before) / 2**20))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="piq and the bank run on the CPU; other devices are skipped")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    arguments = parser.parse_args()
    if arguments.device != "cpu":
        print("the donor search is measured on the CPU")
        return
    target, *sources = volumes(SCANS + 1)
    bank = DonorBank.build(sources)
    expected, found = pair_by_pair(target, sources), ranked_scores(bank, target)
    differences = (expected - found).abs()
    # Where a frequency of a slice nearly vanishes, its logarithm is rounding noise in float32, in both programs (piq also
    # resizes float64 in float32): a handful of pairs is uncertain by more than the tolerance.
    uncertain = int((differences > 2e-5).sum())
    if uncertain > 2e-3 * expected.numel() or differences.max() > 2e-3:
        raise SystemExit(
            f"{uncertain} of {expected.numel()} scores differ, by up to {differences.max():.1e}; not timed"
        )

    def first_target() -> None:
        DonorBank.build(sources).rank(target, "2d", crop=CROP)

    seconds = alternate(
        {
            "piq pair by pair": lambda: pair_by_pair(target, sources),
            "ours, maps of the bank included": first_target,
            "ours, further target": lambda: bank.rank(target, "2d", crop=CROP),
        },
        rounds=arguments.rounds,
    )
    growth = {}
    for count in (5, 10, 20):
        part = DonorBank.build(sources[:count])
        part.rank(target, "2d")
        times = []
        for _ in range(arguments.rounds):
            started = time.perf_counter()
            part.rank(target, "2d")
            times.append(time.perf_counter() - started)
        growth[count] = float(np.median(times))
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=memory_of_bank, args=(60, queue))
    process.start()
    cropped, whole = queue.get()
    process.join()
    notes = {
        "largest score difference": float(differences[differences <= 2e-5].max()),
        "pairs": expected.numel(),
        "pairs that float32 leaves uncertain": uncertain,
        "their largest difference": float(differences.max()),
        "median seconds by scans": growth,
        "GB added by a bank of 60 scans searched in 2.5-D": {
            "crop 60": round(cropped, 2),
            "and whole slices": round(whole, 2),
        },
    }
    record("fda-mri-search", seconds, notes, arguments.out)


if __name__ == "__main__":
    main()
