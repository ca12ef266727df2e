"""What ODEx adds to the time of sequential training on the same stream (Fig. 3, right: "marginally").

    python benchmarks/speed/odex_overhead.py [--rounds 5] [--batches 60] [--out benchmarks/results]

Phantom stages of one distribution, so that both train one network for as many steps. A round is the second and third stage of both
methods, alternating, in process time: reading of cases, decisions, training, statistics, files.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from compare import record

from dart_core.data.phantoms import write_hippocampus_stream
from dart_core.settings import RunSettings
from odex import settings as of
from odex.learning import learn

METHODS: tuple[of.Method, ...] = ("sequential", "odex")
STAGES = 3


def course(folder: Path, stages: list[Path], method: of.Method, training: of.Training) -> float:
    """Process time of all stages but the first, where there is nothing to decide."""
    pool, seconds = None, 0.0
    for number, stage in enumerate(stages):
        run = folder / f"{method}-{number}"
        shutil.rmtree(run, ignore_errors=True)
        first = {"method": method, "network": of.Network(base_features=8, batch_size=4)} if pool is None else {}
        started = time.process_time()
        # -inf and inf are not what is measured: the decision is made, and trains on with the one network there is.
        distances = of.Pool(covariance="shrunk", threshold="inf") if pool is None else of.Pool()
        learn(
            of.Learn(
                RunSettings(run, device="cpu", checkpoint_every=10**6), (stage,), pool, distances=distances,
                training=training, **first,  # type: ignore[arg-type]
            )
        )  # fmt: skip
        seconds += time.process_time() - started if number else 0.0
        pool = run
    return seconds


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--batches", type=int, default=60, help="steps of a stage; the paper's 50,000 make the share smaller"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    training = of.Training(epochs=1, batches=arguments.batches)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lists = write_hippocampus_stream(folder / "stream", STAGES, 12, (32, 40, 32), sources=("HarP", "HarP"))
        stages = [path.parent for path in lists]
        seconds: dict[str, list[float]] = {method: [] for method in METHODS}
        for method in METHODS:
            course(folder, stages, method, of.Training(epochs=1, batches=2))
        for index in range(arguments.rounds):
            for method in METHODS[:: 1 if index % 2 == 0 else -1]:
                seconds[method].append(course(folder, stages, method, training))
    added = statistics.median(seconds["odex"]) / statistics.median(seconds["sequential"]) - 1
    print(f"ODEx adds {100 * added:.1f} % to {arguments.batches} steps of a stage")
    notes = {"added_share": added, "steps_per_stage": arguments.batches, "clock": "process time", "aim": "at most 0.05"}
    record("odex-overhead-cpu", seconds, notes, arguments.out)


if __name__ == "__main__":
    main()
