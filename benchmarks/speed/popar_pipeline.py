"""How long a step of POPAR's pretraining waits for its loader: radiographs of 1024 pixels as PNG files, shown at 448.

A step is what `popar pretrain` does: distort the batch on the device (permutation or F_tran), both losses, backward, SGD. The loader reads, decodes
and resizes by area, in --workers processes ahead of the step, or from memory (`--memory`), where every picture is read once. Before
timing, the batches of both loaders are checked to be equal, bit for bit. Written down: seconds that a step waits for its batch, as a
share of the step; and seconds per picture of reading, and of the distortions on the device. On CUDA give --backbone swin_b.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch
from compare import hardware, versions

from dart_core.data.datalist import Row
from dart_core.data.images import write_image
from dart_core.data.phantoms import chest_xray
from popar import POPAR, distort
from popar.method import Objective, objective_loss
from popar.networks import parse_options
from popar.radiographs import STATISTICS, Radiographs, picture_batches, read_radiograph, three_channels

FILES, FILE_SIDE, SIDE = 32, 1024, 448
TINY = ("patch_size=32", "embed_dim=96", "depth=4", "num_heads=3")
LEAST_ROUNDS = 5


def synchronise(device: torch.device) -> None:
    """Wait for what was sent to a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def write_files(folder: Path) -> list[Row]:
    """Phantoms with the grain of a detector, so that the files are as large as real ones."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(FILES):
        small = chest_xray(number, "chestxray14", shape=(256, 256))
        large = np.kron(small, np.ones((FILE_SIDE // 256,) * 2)) + rng.normal(0, 2, (FILE_SIDE, FILE_SIDE))
        rows.append(Row(write_image(folder / f"{number}.png", large.round().clip(0, 255).astype(np.uint8), 3)))
    return rows


def shares(
    network: POPAR, pictures: Radiographs, batch: int, steps: int, workers: int, device: torch.device
) -> list[tuple[float, float]]:
    """(seconds of waiting, seconds in all) of each step after the first two."""
    objective = Objective(statistics=STATISTICS["chestxray14"])
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, foreach=True)
    generator = torch.Generator(device).manual_seed(0)
    loader = picture_batches(pictures, batch, 0).loader(0, steps + 2, workers, pin_memory=device.type == "cuda")
    found = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        images = next(loader)["image"].to(device, non_blocking=True)
        waited = time.perf_counter() - start
        with torch.no_grad():
            views = objective.views(three_channels(images), network.patch, generator)
        loss = objective_loss(*network(views["input"]), views, 0.5, "mean")[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        synchronise(device)
        found.append((waited, time.perf_counter() - start))
    loader.close()
    return found[2:]


def seconds_of(action: Callable[[], object], rounds: int = LEAST_ROUNDS) -> float:
    """Median of some rounds, after one that does not count."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--backbone", help="tiny (a ViT of four blocks; the default on a CPU), swin_b (on a GPU), vit_b"
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of the step, on the CPU")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    arguments.backbone = arguments.backbone or ("tiny" if device.type == "cpu" else "swin_b")
    torch.set_num_threads(arguments.threads)
    tiny = arguments.backbone == "tiny"
    network = (
        POPAR("vit_b" if tiny else arguments.backbone, SIDE, **parse_options(TINY if tiny else ())).to(device).train()
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = write_files(Path(folder))
        disk, memory = Radiographs(rows, SIDE), Radiographs(rows, SIDE, memory=True)
        memory.read_all()
        for step in range(2):
            one, other = (picture_batches(some, arguments.batch, 0).batch(step)["image"] for some in (disk, memory))
            if not torch.equal(one, other):
                raise SystemExit("the two loaders differ; not timed")
        timings = {
            f"files, {arguments.workers} loading processes": shares(network, disk, arguments.batch, arguments.steps, arguments.workers, device),
            "memory, no loading process": shares(network, memory, arguments.batch, arguments.steps, 0, device),
        }  # fmt: skip
        reading = seconds_of(lambda: [read_radiograph(row.image, SIDE) for row in rows[:8]]) / 8
    images = three_channels(memory.stack(range(8))).to(device).float() / 255

    def distorted() -> None:
        distort(images)
        synchronise(device)

    distorting = seconds_of(distorted) / len(images)
    summary = {}
    for name, steps in timings.items():
        wait, whole = (sum(values) for values in zip(*steps, strict=True))
        each = [w / s for w, s in steps]
        summary[name] = {
            "share_waiting": wait / whole, "spread": [min(each), max(each)], "seconds_of_a_step": whole / len(steps),
            "steps": steps,
        }  # fmt: skip
        print(
            f"{name}: waits {wait / whole:.2%} of a step of {whole / len(steps):.3f} s ({min(each):.2%} to {max(each):.2%})"
        )
    print(f"per picture: {reading * 1e3:.1f} ms to read and resize, {distorting * 1e3:.1f} ms to distort")
    machine, today = hardware(arguments.device), date.today().isoformat()
    content = {
        "task": f"popar-pipeline-{arguments.backbone}", "date": today, "hardware": machine, "versions": versions(),
        "parameters": sum(p.numel() for p in network.parameters()), "threads": arguments.threads,
        "sizes": {"files": FILE_SIDE, "images": SIDE, "batch": arguments.batch, "pictures": FILES},
        "equal_batches": True, "waiting": summary,
        "seconds_per_picture": {"read_and_resize": reading, "distort": distorting},
    }  # fmt: skip
    slug = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")
    path = arguments.out / f"{content['task']}_{slug}_{today}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
