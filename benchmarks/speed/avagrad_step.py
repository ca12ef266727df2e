"""One AvaGrad step of 30 million parameters in 150 tensors: against the authors' loop over tensors, and against PyTorch's Adam."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from compare import alternate, record
from torch import Tensor, nn

from adagrad_unet import AvaGrad

# The tensors of a 2-D nnU-Net of 6 pools (116) and further small ones up to 150.
FEATURES, TENSORS = (32, 64, 128, 256, 480, 480, 480), 150
BETA1, BETA2, EPS, LR = 0.9, 0.999, 0.1, 10.0


def shapes() -> list[tuple[int, ...]]:
    """Shapes of 150 tensors with about 30 million numbers."""
    small = [(1,), (1,), (1,)]
    found: list[tuple[int, ...]] = []
    inputs = 1
    for width in FEATURES:
        found += [(width, inputs, 3, 3), (width, width, 3, 3)] + 2 * [(width,) for _ in small]
        inputs = width
    for below, width in zip(FEATURES[:0:-1], FEATURES[-2::-1], strict=True):
        found += [(below, width, 2, 2), (width, 2 * width, 3, 3), (width, width, 3, 3)] + 2 * [(width,) for _ in small]
        found.append((2, width, 1, 1))
    return found + [(480,)] * (TENSORS - len(found))


class Loop(torch.optim.Optimizer):
    """The method tensor by tensor, with the operations that the authors' code calls (specification 8, item 5)."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, {"gamma": None})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step."""
        (group,) = self.param_groups
        squared, count = 0.0, 0
        for p in group["params"]:
            state = self.state[p]
            if not state:
                state |= {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            state["step"] += 1
            t, m, v = state["step"], state["exp_avg"], state["exp_avg_sq"]
            m.mul_(BETA1).add_(p.grad, alpha=1 - BETA1)
            root = v.sqrt()
            if t > 1:
                denominator = root.div(math.sqrt(1 - BETA2 ** (t - 1))).add_(EPS)
                p.addcdiv_(m, denominator, value=-float(group["gamma"]) * LR / (1 - BETA1**t))
            v.mul_(BETA2).addcmul_(p.grad, p.grad, value=1 - BETA2)
            rate = root.div_(math.sqrt(1 - BETA2**t)).add_(EPS)
            squared = squared + rate.norm(-2) ** -2
            count += rate.numel()
        group["gamma"] = 1.0 / (squared / count) ** 0.5


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    arguments = parser.parse_args()
    device = arguments.device
    torch.manual_seed(0)
    tensors = [torch.randn(shape) * 0.05 for shape in shapes()]
    gradients = [torch.randn(shape, device=device) * 1e-3 for shape in shapes()]

    def parameters() -> list[nn.Parameter]:
        own = [nn.Parameter(tensor.to(device)) for tensor in tensors]
        for parameter, gradient in zip(own, gradients, strict=True):
            parameter.grad = gradient
        return own

    lists = [parameters() for _ in range(3)]
    loop, ours = Loop(lists[0]), AvaGrad(lists[1], LR, eps=EPS)
    adam = torch.optim.Adam(lists[2], lr=1e-5, foreach=True)

    def timed(optimizer: torch.optim.Optimizer) -> None:
        optimizer.step()
        if device != "cpu":
            torch.cuda.synchronize()

    for _ in range(3):
        timed(loop)
        timed(ours)
    # The generic norm of the loop loses digits on the CPU where all numbers are alike; they come back as a factor of the step.
    worst = max(largest(p, q, start) for p, q, start in zip(lists[0], lists[1], tensors, strict=True))
    if worst > 1e-3:
        raise SystemExit(f"steps differ by {worst:.1e} of the largest; not timed")
    seconds = alternate(
        {"loop over tensors": lambda: timed(loop), "ours": lambda: timed(ours), "Adam foreach": lambda: timed(adam)},
        arguments.rounds,
    )
    size = sum(tensor.numel() for tensor in tensors)
    notes = {"parameters": size, "tensors": len(tensors), "largest difference of three steps, relative": worst}
    record(f"avagrad-step-{device}", seconds, notes, arguments.out, device)


def largest(p: Tensor, q: Tensor, start: Tensor) -> float:
    """Largest difference of two parameters, relative to how far the first has moved."""
    moved = (p.detach().cpu() - start).abs().max()
    return float((p - q).detach().abs().max().cpu() / moved)


if __name__ == "__main__":
    main()
