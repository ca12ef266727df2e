"""A training step in bf16 and compiled, against fp32 as it is: time, share of the device's matrix product, peak memory, wait for the loader.

    python benchmarks/speed/precisions.py [--device cuda] [--network unet] [--rounds 5] [--out benchmarks/results]

The core's loop (`Run`) with its 2-D residual U-Net or a ViT of timm, on samples that workers make. What the device can do is measured, not
looked up: a large matrix product in the same precision. Before anything is timed, the first losses of all ways must lie within 2 % of
fp32's. On a CPU the sizes are small, and show only that the script works.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare import alternate, record
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dart_core.batches import Batches
from dart_core.nets import ResidualUNet2d
from dart_core.nets.backbones import create_backbone
from dart_core.run import Run
from dart_core.settings import RunSettings

WAYS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "bf16, channels last": {"precision": "bf16", "channels_last": True},
    "bf16, channels last, compiled": {"precision": "bf16", "channels_last": True, "compile": True},
}
SIZES = {
    ("unet", "cpu"): (4, 4, 48), ("unet", "cuda"): (32, 32, 192), ("vit", "cpu"): (48, 2, 64), ("vit", "cuda"): (768, 64, 224),
}  # fmt: skip
"""Width (of the ViT: features of a token), batch, side."""
SAMPLES, TOTAL, AGREE = 256, 10**9, 0.02


class Loop:
    """A training that takes a step whenever it is asked to."""

    def __init__(self, name: str, network: str, device: str, folder: Path, workers: int) -> None:
        width, batch, side = SIZES[network, device]
        settings = RunSettings(
            out=folder / name.replace(", ", "-"), device=device, workers=workers, checkpoint_every=TOTAL, **WAYS[name]
        )
        self.run = Run(settings)
        torch.manual_seed(0)
        made: nn.Module = ResidualUNet2d(width=width)
        if network == "vit":
            backbone = create_backbone("vit_base_patch16_224", in_channels=1, image_size=side, embed_dim=width)
            made = nn.Sequential(backbone, nn.Linear(width, 1))
        self.network, self.is_unet = made, network == "unet"

        def load(index: int, generator: np.random.Generator) -> dict[str, Any]:
            image = generator.random((1, side, side), dtype=np.float32)
            return {"image": torch.from_numpy(image), "mask": torch.from_numpy((image > 0.7).astype(np.float32))}

        self.batches = Batches(load, SAMPLES, batch, 0)
        self.losses: list[float] = []
        self.waits: list[float] = []
        self.flops = 0.0

    def steps(self) -> Iterator[None]:
        """The training."""
        criterion = nn.BCEWithLogitsLoss()
        with self.run as run:
            network = run.prepare(self.network)
            optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
            run.restore(network=network, optimizer=optimizer)

            def loss_of(part: dict[str, Tensor]) -> Tensor:
                target = part["mask"] if self.is_unet else part["mask"].mean((1, 2, 3))[:, None]
                return criterion(network(part["image"]), target)

            batches = run.steps(self.batches, TOTAL)
            for number in itertools.count():
                started = time.perf_counter()
                _, batch = next(batches)
                self.waits.append(time.perf_counter() - started)
                if number == 0 and not self.run.settings.compile:
                    with FlopCounterMode(display=False) as counter:
                        loss = run.optimise(optimizer, loss_of, batch)
                    self.flops = counter.get_total_flops()
                else:
                    loss = run.optimise(optimizer, loss_of, batch)
                self.losses.append(float(loss))  # waits for the device
                yield


def matrix_product(device: str, dtype: torch.dtype, tf32: bool) -> float:
    """Floating-point operations per second of a large square product; of float32 with TF32 where the network has that too."""
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    side = 8192 if device == "cuda" else 768
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(12):
        started = time.perf_counter()
        product = a @ b
        float(product[0, 0])
        times.append(time.perf_counter() - started)
    torch.set_float32_matmul_precision("highest")
    return 2 * side**3 / statistics.median(times[2:])


def measured(network: str, device: str, workers: int, rounds: int, out: Path) -> None:
    """All ways with one network."""
    with tempfile.TemporaryDirectory() as name:
        loops, trainings, memory = {}, {}, {}
        for way in WAYS:
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            loops[way] = Loop(way, network, device, Path(name), workers)
            trainings[way] = loops[way].steps()
            for _ in range(3):
                next(trainings[way])
            if device == "cuda":
                memory[way] = (torch.cuda.max_memory_allocated() - before) / 2**30
        first = loops["fp32"].losses[0]
        difference = max(abs(loop.losses[0] / first - 1) for loop in loops.values())
        if difference > AGREE:
            raise SystemExit(f"first losses differ by {difference:.1%}; not timed")
        for loop in loops.values():
            loop.waits.clear()
        seconds = alternate({way: lambda training=trainings[way]: next(training) for way in WAYS}, rounds)
        # PyTorch lets float32 convolutions use TF32, and matrix products not.
        convolves = network == "unet"
        peak = {dtype: matrix_product(device, getattr(torch, dtype), convolves) for dtype in ("float32", "bfloat16")}
        flops = loops["fp32"].flops
        shares = {
            way: flops / statistics.median(times) / peak["float32" if way == "fp32" else "bfloat16"]
            for way, times in seconds.items()
        }
        waits = {way: sum(loop.waits) / sum(seconds[way]) for way, loop in loops.items()}
        for training in trainings.values():
            training.close()
    width, batch, side = SIZES[network, device]
    notes = {
        "network": network, "width": width, "batch": batch, "side": side, "workers": workers,
        "largest_relative_difference_of_the_first_loss": difference, "floating_point_operations_of_a_step": flops,
        "measured_matrix_product_per_second": peak, "share_of_matrix_product": shares,
        "share_of_a_step_that_waits_for_the_loader": waits, "peak_memory_gigabytes": memory,
    }  # fmt: skip
    print({way: f"{share:.1%} of the matrix product, waits {waits[way]:.2%}" for way, share in shares.items()})
    record(f"precisions-{network}-{device}", seconds, notes, out, device)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--network", nargs="+", choices=("unet", "vit"), default=["unet", "vit"])
    parser.add_argument("--workers", type=int, help="default: 8 on CUDA, none on a CPU")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    arguments = parser.parse_args()
    workers = arguments.workers if arguments.workers is not None else 8 * (arguments.device == "cuda")
    for network in arguments.network:
        measured(network, arguments.device, workers, arguments.rounds, arguments.out)


if __name__ == "__main__":
    main()
