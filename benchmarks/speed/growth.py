"""How cost grows with the work: slices, donors, boxes, parameters, workers; ours and the peer in turns, results equal first.

    python benchmarks/speed/growth.py [--rounds 5] [--out benchmarks/results]

The single benchmarks measure one size each; this one takes several sizes of the same functions. Writes growth_<hardware>_<date>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import tempfile
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from avagrad import OPTIMISERS
from compare import alternate, hardware, versions
from ensemble_boxes import weighted_boxes_fusion as reference_fusion
from fda_mri_search import CROP, pair_by_pair, ranked_scores, volumes
from fda_mri_transfer import BETA, SHAPE, slice_by_slice
from sissi_fusion import IOU, SKIP, boxes_of_views
from skintone_label import authors, ours, whole_lab, write_pictures

from fda_mri import DonorBank, fourier_transfer
from sissi import weighted_boxes_fusion
from skintone_debias.labelling import Labellers

Ways = Mapping[str, Callable[[], Any]]
TENSORS = 150


def slices(count: int) -> Ways:
    """Fourier transfer of a volume with one donor."""
    rng = np.random.default_rng(0)
    target, donor = (rng.random((count, *SHAPE), dtype=np.float32) for _ in range(2))
    first, second = torch.from_numpy(target), torch.from_numpy(donor)
    return {
        "NumPy, slice by slice": lambda: slice_by_slice(target, donor[None])[0],
        "ours": lambda: fourier_transfer(first, second, BETA).numpy(),
    }


def donors(count: int) -> Ways:
    """SR-SIM search among so many source scans, every eighth slice."""
    target, *sources = (scan[..., ::8].contiguous() for scan in volumes(count + 1))
    bank = DonorBank.build(sources)
    return {
        "piq, pair by pair": lambda: pair_by_pair(target, sources).numpy(),
        "ours, maps of the bank included": lambda: ranked_scores(DonorBank.build(sources), target).numpy(),
        "ours, further target": lambda: ranked_scores(bank, target).numpy(),
    }


def boxes(count: int) -> Ways:
    """Fusion of 20 views with so many boxes each."""
    given = boxes_of_views(count)
    return {
        "ensemble-boxes": lambda: reference_fusion(*given, iou_thr=IOU, skip_box_thr=SKIP)[0],
        "ours": lambda: weighted_boxes_fusion(*given, iou_threshold=IOU, skip_box_threshold=SKIP)[0],
    }


def parameters(count: int) -> Ways:
    """A step of an optimiser on so many numbers in 150 tensors."""

    def step_of(name: str) -> Callable[[], Any]:
        torch.manual_seed(0)
        tensors = [torch.randn(count // TENSORS, requires_grad=True) for _ in range(TENSORS)]
        for tensor in tensors:
            tensor.grad = 1e-4 * torch.randn_like(tensor)
        optimiser = OPTIMISERS[name](tensors)

        def step() -> Any:
            optimiser.step()
            # Adam is another method: nothing to compare.
            return None if name.startswith("Adam") else tensors[0].detach().numpy().copy()

        return step

    return {name: step_of(name) for name in ("loop", "AvaGrad", "Adam, foreach")}


SERIES: dict[str, tuple[str, Callable[[int], Ways], tuple[int, ...], float]] = {
    "slices": ("Fourier transfer (fda-mri)", slices, (25, 50, 100, 200), 1e-5),
    "donors": ("donor search (fda-mri)", donors, (2, 4, 8, 16), 2e-3),
    "boxes of each view": ("weighted boxes fusion of 20 views (sissi)", boxes, (25, 50, 100, 200, 400), 1e-5),
    "parameters": ("step of AvaGrad (adagrad-unet)", parameters, (10**5, 10**6, 10**7), 1e-4),
}
"""Unit of the work -> title, ways at a size, sizes, largest difference."""
WORKERS, PICTURES = (1, 2, 4, 8, 16), 96


def measured(ways: Ways, allowed: float, rounds: int) -> dict[str, float]:
    """Median seconds of each way, after a comparison of what they give."""
    results = [value for way in ways.values() if (value := way()) is not None]
    difference = max(float(np.abs(value - results[0]).max()) for value in results)
    if difference > allowed:
        raise SystemExit(f"results differ by {difference:.1e}; not timed")
    return {name: statistics.median(times) for name, times in alternate(ways, rounds).items()}


def workers(rounds: int) -> dict[str, dict[int, float]]:
    """Seconds for pictures to label, by processes (as many as there are cores), and of the authors' one."""
    cv2.setNumThreads(1)
    found: dict[str, dict[int, float]] = {"authors' program (one process)": {}, "ours": {}}
    with tempfile.TemporaryDirectory() as folder:
        files, _ = write_pictures(Path(folder), PICTURES)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        for count in [count for count in WORKERS if count <= cores]:
            with Labellers(0 if count == 1 else count) as labellers:
                ways = {
                    "authors' program (one process)": lambda: np.array([authors(file, whole_lab) for file in files]),
                    "ours": lambda labellers=labellers: ours(labellers, files),
                }
                for name, seconds in measured(ways, 1e-9, rounds).items():
                    found[name][count] = seconds
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="peers work on the CPU; other devices are skipped")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    arguments = parser.parse_args()
    if arguments.device != "cpu":
        print("growth is measured on the CPU")
        return
    torch.set_num_threads(1)
    series = []
    for unit, (title, make, sizes, allowed) in SERIES.items():
        seconds: dict[str, dict[int, float]] = {}
        for size in sizes:
            for name, value in measured(make(size), allowed, arguments.rounds).items():
                seconds.setdefault(name, {})[size] = value
            print(unit, size, {name: round(values[size], 5) for name, values in seconds.items()}, flush=True)
        series.append({"title": title, "unit": unit, "seconds": seconds})
    found = workers(arguments.rounds)
    print("workers", found, flush=True)
    series.append({"title": f"labels of {PICTURES} pictures (skintone-debias)", "unit": "workers", "seconds": found})
    machine, today = hardware(), date.today().isoformat()
    record = {
        "task": "growth", "date": today, "hardware": machine, "threads": torch.get_num_threads(), "versions": versions(),
        "rounds": arguments.rounds, "crop of the search": CROP, "series": series,
    }  # fmt: skip
    short = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"growth_{short}_{today}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
