"""The core's loop against a bare PyTorch loop that does the same steps: what the core costs per step.

Both load the same batches, train the same network with the same optimiser, and note the loss of every step (the core in
metrics.jsonl). A second bare loop shows how far two equal loops differ on this machine. The weights must be equal bit for bit before anything is timed. The core's checkpoint, which the bare loop
does not write, is timed apart and charged at its default of one per 500 steps.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare import alternate, record
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dart_core.batches import Batches
from dart_core.nets import ResidualUNet2d
from dart_core.run import Run
from dart_core.settings import RunSettings

SIZES = {"cpu": {"width": 4, "batch": 8, "side": 64}, "cuda": {"width": 32, "batch": 32, "side": 192}}
SAMPLES, SEED, TOTAL = 64, 0, 10**9
CHECKED = 5
# glibc returns large blocks to the system and fetches them again from step to step; by chance one loop does so more often than
# the other, which costs more than what is measured here.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}


class Pictures(Dataset[tuple[Tensor, Tensor]]):
    """The samples in the order in which the core draws them."""

    def __init__(self, images: Tensor, masks: Tensor, batches: Batches) -> None:
        self.images, self.masks, self.batches = images, masks, batches

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.masks[index]

    def order(self) -> Iterator[list[int]]:
        """Endless batches of sample numbers."""
        step = 0
        while True:
            yield [sample for _, sample in self.batches.plan(step)]
            step += 1


def network_and_optimizer(width: int, prepare: Callable[[nn.Module], nn.Module]) -> tuple[nn.Module, torch.optim.SGD]:
    """The same initial weights for both loops."""
    torch.manual_seed(SEED)
    network = prepare(ResidualUNet2d(width=width))
    return network, torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True)


def bare_loop(pictures: Pictures, width: int, device: str, losses: list[float]) -> Iterator[nn.Module]:
    """One step whenever the next item is asked for."""
    network, optimizer = network_and_optimizer(width, lambda module: module.to(device))
    criterion = nn.BCEWithLogitsLoss()
    for image, mask in DataLoader(pictures, batch_sampler=pictures.order(), pin_memory=device != "cpu"):
        image, mask = image.to(device, non_blocking=True), mask.to(device, non_blocking=True)
        optimizer.zero_grad()
        loss = criterion(network(image), mask)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        yield network


def core_loop(run: Run, batches: Batches, width: int) -> Iterator[nn.Module]:
    """One step whenever the next item is asked for."""
    network, optimizer = network_and_optimizer(width, run.prepare)
    run.restore(network=network, optimizer=optimizer)
    criterion = nn.BCEWithLogitsLoss()
    for step, batch in run.steps(batches, TOTAL):
        loss = run.optimise(optimizer, lambda part: criterion(network(part["image"]), part["mask"]), batch)
        run.log.write(step, loss=loss)
        yield network


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument(
        "--steps", type=int, default=3, help="steps of one round; few, so that both see the same machine"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    arguments = parser.parse_args()
    device, size = arguments.device, SIZES[arguments.device]
    generator = torch.Generator().manual_seed(SEED)
    images = torch.rand(SAMPLES, 1, size["side"], size["side"], generator=generator)
    masks = (images > 0.7).float()

    def load(index: int, generator: np.random.Generator) -> dict[str, Any]:
        return {"image": images[index], "mask": masks[index]}

    batches = Batches(load, SAMPLES, size["batch"], SEED)
    with tempfile.TemporaryDirectory() as folder:
        settings = RunSettings(out=Path(folder) / "run", device=device, checkpoint_every=TOTAL)
        with Run(settings) as run:
            bare_loops = [bare_loop(Pictures(images, masks, batches), size["width"], device, []) for _ in range(2)]
            loops = {
                "bare PyTorch": bare_loops[0],
                "dart-core": core_loop(run, batches, size["width"]),
                "bare PyTorch again": bare_loops[1],
            }
            torch.backends.cudnn.deterministic = True  # else two loops may differ in the last bit on a GPU
            for _ in range(CHECKED):
                networks = [next(loop) for loop in loops.values()]
            states = [network.state_dict().values() for network in networks]
            if not all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*states, strict=True)):
                raise SystemExit("the weights differ; not timed")
            torch.backends.cudnn.deterministic = False

            processor_time: dict[str, list[float]] = {name: [] for name in loops}

            def steps(name: str) -> None:
                started = time.process_time()
                for _ in range(arguments.steps):
                    next(loops[name])
                if device != "cpu":
                    torch.cuda.synchronize()
                processor_time[name].append(time.process_time() - started)

            seconds = alternate({name: functools.partial(steps, name) for name in loops}, arguments.rounds)
            started = time.perf_counter()
            run.save()
            checkpoint = time.perf_counter() - started
    bare, core, again = (statistics.median(times) / arguments.steps for times in seconds.values())
    bare_processor, core_processor, again_processor = (statistics.median(times) for times in processor_time.values())
    each = [2 * b / (a + c) - 1 for a, b, c in zip(*seconds.values(), strict=True)]
    notes = {
        **size,
        "steps_of_a_round": arguments.steps,
        "largest_difference": 0.0,
        "seconds_of_a_bare_step": bare,
        "overhead": 2 * core / (bare + again) - 1,
        "bare_against_itself": again / bare - 1,
        "overhead_of_rounds": {"mean": statistics.fmean(each), "std": statistics.stdev(each)},
        "overhead_in_processor_time": 2 * core_processor / (bare_processor + again_processor) - 1,
        "seconds_of_a_checkpoint": checkpoint,
        "overhead_with_checkpoints": 2 * (core + checkpoint / RunSettings(out=Path()).checkpoint_every) / (bare + again)
        - 1,
    }
    print(f"a bare step takes {1e3 * bare:.1f} ms; the core adds {100 * notes['overhead']:.2f} % (medians)")
    print(f"two equal bare loops differ by {100 * notes['bare_against_itself']:.2f} %")
    print(f"rounds: {100 * statistics.fmean(each):.2f} % (std {100 * statistics.stdev(each):.2f} %)")
    print(f"in processor time, which other programs disturb less: {100 * notes['overhead_in_processor_time']:.2f} %")
    print(f"with a checkpoint ({checkpoint:.3f} s) per 500 steps: {100 * notes['overhead_with_checkpoints']:.2f} %")
    record(f"core-loop-{device}", seconds, notes, arguments.out, device)


if __name__ == "__main__":
    if not KEEP_MEMORY.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    main()
