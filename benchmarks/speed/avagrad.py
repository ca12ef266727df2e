"""One AvaGrad step against the same update written tensor by tensor, and against PyTorch's Adam.

The parameters are those of nnU-Net's 2-D network for patches of 256 x 256 that get a gradient (115 tensors, 30 M numbers),
and of the same network with a sixteenth of its width (0.1 M numbers), where the calls cost more than the work. The loops are
what one writes from the formulas: every operation a kernel over one tensor, every intermediate result a new tensor. One of them
takes the norm as the published code does, by PyTorch's p-norm with p = -2. Results must agree before anything is timed; in float32 that
p-norm is off by a percent, so there it is only noted.

On a CPU the step over 30 M numbers is bound by memory and by the roots. It runs as in a command, which keeps freed memory
(`dart_core.memory`); in a bare script the loops fetch the memory of their intermediate results from the system again and again, and fall
further behind. The record gives processor time too, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from compare import alternate, ratios, record
from torch import Tensor

from adagrad_unet import AvaGrad, GenericUNet2d

WIDTHS = {"30m": (32, 64, 128, 256, 480, 480, 480), "100k": (2, 4, 8, 16, 30, 30, 30)}
LR, BETAS, EPS, WEIGHT_DECAY = 10.0, (0.9, 0.999), 0.1, 3e-5
CHECKED = 3


class Loop:
    """The update of specification adagrad-unet 2.1 (official variant), one tensor and one operation after the other."""

    def __init__(self, parameters: Iterable[Tensor], p_norm: bool = False) -> None:
        self.p_norm = p_norm
        self.parameters = list(parameters)
        self.means = [torch.zeros_like(p) for p in self.parameters]
        self.squares = [torch.zeros_like(p) for p in self.parameters]
        self.t, self.gamma = 0, 0.0

    @torch.no_grad()
    def step(self) -> None:
        """One step along the gradients that the parameters hold."""
        self.t += 1
        b1, b2 = BETAS
        total = 0.0
        for w, m, v in zip(self.parameters, self.means, self.squares, strict=True):
            assert w.grad is not None
            g = w.grad + WEIGHT_DECAY * w
            m.mul_(b1).add_((1 - b1) * g)
            if self.t > 1:
                eta = 1 / ((v / (1 - b2 ** (self.t - 1))).sqrt() + EPS)
                w.sub_(LR * self.gamma / (1 - b1**self.t) * eta * m)
            denominator = (v / (1 - b2**self.t)).sqrt() + EPS
            if self.p_norm:
                total += float(torch.linalg.vector_norm(denominator, -2)) ** -2
            else:
                total += float(((1 / denominator) ** 2).sum(dtype=torch.float64))
            v.mul_(b2).add_((1 - b2) * g**2)
        self.gamma = math.sqrt(sum(w.numel() for w in self.parameters) / total)


AVAGRAD = functools.partial(AvaGrad, lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY)
OPTIMISERS: dict[str, Callable[[list[Tensor]], Any]] = {
    "loop": Loop,
    "loop with p-norm": functools.partial(Loop, p_norm=True),
    "AvaGrad": AVAGRAD,
    "AvaGrad, foreach": functools.partial(AVAGRAD, foreach=True),
    "Adam, foreach": functools.partial(torch.optim.Adam, lr=3e-4, weight_decay=WEIGHT_DECAY, foreach=True),
}


def parameters(width: str, device: str, dtype: torch.dtype) -> list[Tensor]:
    """The network's parameters with a gradient each, always the same ones; without the output that gets no gradient."""
    torch.manual_seed(0)
    network = GenericUNet2d(1, 2, [(2, 2)] * 6, [(3, 3)] * 7, WIDTHS[width]).to(device, dtype)
    found = [p for name, p in network.named_parameters() if not name.startswith("seg_outputs.0.")]
    for p in found:
        # as measured in specification 2.2: roots of v between 7e-6 and 6e-4, rarely up to 0.05
        p.grad = 1e-4 * torch.randn_like(p) * torch.randn_like(p).exp()
    return found


def check(width: str, device: str) -> dict[str, float]:
    """Largest difference of the parameters' change between AvaGrad and the loop, in parts of the largest change."""
    differences = {}
    for dtype, allowed in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        before = torch.cat([p.detach().flatten() for p in parameters(width, device, dtype)])
        reference = torch.empty(0)
        for name, make in OPTIMISERS.items():
            if name.startswith("Adam"):
                continue
            tensors = parameters(width, device, dtype)
            optimiser = make(tensors)
            for _ in range(CHECKED):
                optimiser.step()
            change = torch.cat([p.detach().flatten() for p in tensors]) - before
            reference = change if name == "loop" else reference
            worst = float((change - reference).abs().max() / reference.abs().max())
            differences[f"{name}, {dtype}".replace("torch.", "")] = worst
            inexact = name == "loop with p-norm" and dtype == torch.float32
            if not worst <= allowed and not inexact:
                raise SystemExit(f"{name} differs from the loop by {worst:.2g} in {dtype}; not timed")
    return differences


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    arguments = parser.parse_args()
    for width in WIDTHS:
        differences = check(width, arguments.device)
        processor_time: dict[str, list[float]] = {name: [] for name in OPTIMISERS}

        def timed(step: Callable[[], object], times: list[float]) -> None:
            started = time.process_time()
            step()
            if arguments.device != "cpu":
                torch.cuda.synchronize()
            times.append(time.process_time() - started)

        steps, tensors = {}, []
        for name, make in OPTIMISERS.items():
            tensors = parameters(width, arguments.device, torch.float32)
            optimiser = make(tensors)
            optimiser.step()  # makes the state
            steps[name] = functools.partial(timed, optimiser.step, processor_time[name])
        seconds = alternate(steps, arguments.rounds)
        # The first of each is the warm-up.
        processor = {name: times[1:] for name, times in processor_time.items()}
        against_adam = {
            name: statistics.median(seconds[name]) / statistics.median(seconds["Adam, foreach"]) for name in seconds
        }
        for name, ratio in against_adam.items():
            print(f"{name} takes {ratio:.3g} times Adam's time")
        notes = {
            "numbers": sum(p.numel() for p in tensors),
            "tensors": len(tensors),
            "differences_to_the_loop": differences,
            "time_in_Adams": against_adam,
            "times_as_fast_in_processor_time": ratios(processor),
            "seconds_of_processor_time": {name: statistics.median(times) for name, times in processor.items()},
        }
        record(f"avagrad-{width}-{arguments.device}", seconds, notes, arguments.out, arguments.device)


if __name__ == "__main__":
    main()
