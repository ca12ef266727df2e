"""A training step of CateNorm (block 1-4, two passes, two optimiser steps) against one of the same U-Net with batch norm.

Checked before the timing: the BN pass of the network with CN layers gives what the plain network gives with the same weights. The
parameter ratio goes with the record.

    python benchmarks/speed/catenorm_step.py [--side 96] [--batch 2] [--device cuda]
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from compare import alternate, record

from catenorm import CateNormUNet, segmentation_loss, two_stage_step
from catenorm.method import one_stage_step

LIMIT = 2.3


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = arguments.device
    plain = CateNormUNet(3, arguments.classes, ()).to(device)
    network = CateNormUNet(3, arguments.classes, (1, 2, 3, 4)).to(device)
    network.load_state_dict(network.state_dict() | plain.state_dict())
    x = torch.randn(arguments.batch, 3, arguments.side, arguments.side, device=device)
    y = (x[:, 1] > 0.5).long()
    with torch.no_grad():
        difference = float((plain(x) - network(x)).abs().max())
    if difference != 0:
        raise SystemExit(f"the BN pass differs from the plain network by {difference:.1e}; not timed")
    optimizers = [torch.optim.Adam(module.parameters(), 1e-3) for module in (plain, network)]

    def bn() -> None:
        one_stage_step(plain, optimizers[0], x, y, segmentation_loss)
        if device != "cpu":
            torch.cuda.synchronize()

    def catenorm() -> None:
        two_stage_step(network, optimizers[1], x, y, segmentation_loss)
        if device != "cpu":
            torch.cuda.synchronize()

    seconds = alternate({"batch norm": bn, "catenorm 1-4": catenorm}, arguments.rounds)
    factor = statistics.median(seconds["catenorm 1-4"]) / statistics.median(seconds["batch norm"])
    counts = [sum(parameter.numel() for parameter in module.parameters()) for module in (plain, network)]
    print(f"a step takes {factor:.3f} times as long (limit {LIMIT}); {counts[1] / counts[0]:.4f} times the parameters")
    notes = {
        "times_the_batch_norm_step": factor, "limit": LIMIT, "parameters": counts, "parameter_ratio": counts[1] / counts[0],
        "side": arguments.side, "batch": arguments.batch, "classes": arguments.classes, "largest_difference_of_the_bn_pass": difference,
    }  # fmt: skip
    record(f"catenorm-step-{torch.device(device).type}", seconds, notes, arguments.out, device)


if __name__ == "__main__":
    main()
