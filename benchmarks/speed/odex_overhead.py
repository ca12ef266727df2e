"""What ODEx adds to the time and memory of sequential training on the same stream (Fig. 3, right: "marginally").

    python benchmarks/speed/odex_overhead.py [--rounds 5] [--batches 60] [--out benchmarks/results]

Phantom stages of one distribution, so that both methods train one network for as many steps. A round is the second stage of both, in
turns, each in a process of its own: reading of cases, decision, training, statistics, files; on the CPU in process time, with the largest
memory that the process held, on CUDA in time on the clock, with the most that tensors held on the device. What ODEx adds does not grow with the steps, so that its share is smaller still in the paper's 50,000.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from compare import record

from dart_core.data.phantoms import write_hippocampus_stream
from dart_core.settings import RunSettings
from odex import settings as of
from odex.learning import learn

METHODS: tuple[of.Method, ...] = ("sequential", "odex")
NETWORK = of.Network(base_features=8, batch_size=4)
# The decision is made, and then trains on with the one network there is: as many steps for both.
DISTANCES = of.Pool(covariance="shrunk", threshold="inf")


def stage_command(
    folder: Path, method: of.Method, stages: list[Path], number: int, steps: int, device: str
) -> of.Learn:
    """The command of a stage; its run folder is made anew."""
    run = folder / f"{method}-{number}"
    shutil.rmtree(run, ignore_errors=True)
    command = of.Learn(
        RunSettings(run, device=device, checkpoint_every=10**6), (stages[number],), training=of.Training(1, steps)
    )
    if number:
        return replace(command, pool=folder / f"{method}-{number - 1}")
    return replace(command, method=method, network=NETWORK, distances=DISTANCES)


def learn_measured(connection: Connection, command: of.Learn) -> None:
    """Send the seconds and the megabytes of a stage."""
    torch.set_num_threads(1)
    if command.run.device == "cpu":
        started = time.process_time()
        learn(command)
        used, held = time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    else:
        torch.zeros(1, device=command.run.device)  # starts CUDA
        started = time.perf_counter()
        learn(command)
        torch.cuda.synchronize()
        used, held = time.perf_counter() - started, torch.cuda.max_memory_allocated() / 2**20
    connection.send((used, held))


def measured(command: of.Learn) -> tuple[float, float]:
    """Seconds and largest memory in MB of a stage, learned in a process of its own."""
    # A new process holds no memory of this one's; CUDA cannot be shared with a fork.
    context = multiprocessing.get_context("fork" if command.run.device == "cpu" else "spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=learn_measured, args=(sender, command))
    process.start()
    sender.close()
    found: tuple[float, float] = receiver.recv()
    process.join()
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=60, help="steps of the stage")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lists = write_hippocampus_stream(folder / "stream", 2, 12, (32, 40, 32), sources=("HarP", "HarP"))
        stages = [path.parent for path in lists]
        for method in METHODS:
            measured(stage_command(folder, method, stages, 0, 2, arguments.device))
        seconds: dict[str, list[float]] = {method: [] for method in METHODS}
        memory: dict[str, list[float]] = {method: [] for method in METHODS}
        for index in range(arguments.rounds):
            for method in METHODS[:: 1 if index % 2 == 0 else -1]:
                command = stage_command(folder, method, stages, 1, arguments.batches, arguments.device)
                used, held = measured(command)
                seconds[method].append(used)
                memory[method].append(held)
    middle = {method: statistics.median(values) for method, values in seconds.items()}
    largest = {method: statistics.median(values) for method, values in memory.items()}
    added = middle["odex"] / middle["sequential"] - 1
    print(
        f"ODEx adds {100 * added:.1f} % ({middle['odex'] - middle['sequential']:.2f} s) to {arguments.batches} steps of a stage"
    )
    print("largest memory: " + ", ".join(f"{method} {megabytes:.0f} MB" for method, megabytes in largest.items()))
    notes = {
        "added_share": added, "added_seconds": middle["odex"] - middle["sequential"], "steps_per_stage": arguments.batches,
        "largest_memory_megabytes": largest, "clock": "process time" if arguments.device == "cpu" else "time on the clock", "aim": "at most 0.05, and no more memory",
        "load_average_of_the_machine": list(os.getloadavg()),
    }  # fmt: skip
    record(f"odex-overhead-{arguments.device}", seconds, notes, arguments.out, arguments.device)


if __name__ == "__main__":
    main()
