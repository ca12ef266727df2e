"""SpotTUNet's forward pass against the plain U-Net's: 16 slices of 256 x 256, the networks of the paper.

SpotTUNet computes every layer twice and asks its policy network besides. Three forms are timed beside the plain network in the
same mode: a mixed policy that is given, the own policy (sampled in training, as every training step does it), and, in
evaluation mode, an own policy on which all slices agree, where each layer is computed once.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from compare import alternate, record

from dart_core.adapt import SpotTUNet
from dart_core.nets import ResidualUNet2d

BATCH, SIDE, LIMIT = 16, 256, 2.3


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    plain = ResidualUNet2d().to(arguments.device)
    spottunet = SpotTUNet(plain).to(arguments.device)
    with torch.no_grad():
        for parameter in spottunet.unet_parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    x = torch.rand(arguments.batch, 1, SIDE, SIDE, device=arguments.device)
    policy = torch.rand(arguments.batch, 32, device=arguments.device).round()
    check(plain, spottunet, x, policy)

    def timed(forward: Callable[[], object], training: bool) -> Callable[[], None]:
        def run() -> None:
            plain.train(training)
            spottunet.train(training)
            with torch.set_grad_enabled(training):
                forward()
            if arguments.device != "cpu":
                torch.cuda.synchronize()

        return run

    for training in (True, False):
        mode = "training" if training else "inference"
        functions = {
            "U-Net": timed(lambda: plain(x), training),
            "SpotTUNet, policy given": timed(lambda: spottunet(x, policy), training),
            "SpotTUNet, own policy": timed(lambda: spottunet(x), training),
        }
        seconds = alternate(functions, arguments.rounds)
        slower = {
            name: statistics.median(times) / statistics.median(seconds["U-Net"]) for name, times in seconds.items()
        }
        for name, factor in slower.items():
            print(f"{mode}, {name}: {factor:.3f} times the plain network's time")
        spottunet.eval()
        with torch.no_grad():
            chosen = spottunet(x, return_policy=True)[1]
        notes = {
            "mode": mode,
            "batch": arguments.batch,
            "side": SIDE,
            "largest_difference": 0.0,
            "times_the_plain_network": slower,
            "limit": LIMIT,
            "layers on which all slices agree, own policy": int((chosen == chosen[:1]).all(0).sum()),
        }
        device = torch.device(arguments.device).type
        record(f"spottunet-{mode}-{device}", seconds, notes, arguments.out, arguments.device)


@torch.no_grad()
def check(plain: ResidualUNet2d, spottunet: SpotTUNet, x: torch.Tensor, policy: torch.Tensor) -> None:
    """All frozen must be the plain network, and a mixed policy the layers mixed as the authors write it."""
    plain.eval()
    spottunet.eval()
    if not torch.equal(spottunet(x, torch.ones_like(policy)), plain(x)):
        raise SystemExit("a frozen SpotTUNet is not the plain network; not timed")
    halves = policy[:, :1].expand(-1, 32)
    expected = torch.where(halves[:, :1, None, None] == 1, plain(x), spottunet.fine_tuned(x))
    if not torch.equal(spottunet(x, halves), expected):
        raise SystemExit("SpotTUNet does not choose between its copies; not timed")


if __name__ == "__main__":
    main()
