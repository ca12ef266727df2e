"""A SimMIM step against the plain forward and backward pass of the same backbone with the decoder and a mean absolute error.

What masking and the masked loss cost beside the network itself. Checked before the timing: without a masked cell both give the same
reconstruction, and with all cells masked the same loss.

    python benchmarks/speed/simmim.py [--backbone swin_b] [--size base|small] [--batch-size 32] [--device cuda] [--precision bf16]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from compare import alternate, record
from torch import Tensor

from benchmark_transformers import SimMIM, simmim_mask

SMALL: dict[str, dict[str, Any]] = {
    "swin_b": {
        "image_size": 64,
        "patch_size": 4,
        "embed_dim": 48,
        "depths": (2, 2, 4),
        "num_heads": (3, 6, 12),
        "window_size": 4,
    },
    "vit_b": {"image_size": 64, "patch_size": 8, "embed_dim": 192, "depth": 4, "num_heads": 3},
}
"""About two million parameters, for the CPU."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", choices=tuple(SMALL), default=list(SMALL))
    parser.add_argument("--size", choices=("small", "base"), default="small")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for backbone in arguments.backbones:
        measured(backbone, arguments)


def measured(backbone: str, arguments: argparse.Namespace) -> None:
    """Check and time one backbone."""
    torch.manual_seed(0)
    device = arguments.device
    options = {"drop_path_rate": 0.0, **(SMALL[backbone] if arguments.size == "small" else {})}
    network = SimMIM(backbone, **options).to(device)
    side, cells = network.image_size, network.image_size // (16 if arguments.size == "small" else 32)
    images = torch.randn(arguments.batch_size, 3, side, side, device=device)
    permutations = torch.stack([torch.randperm(cells**2) for _ in range(arguments.batch_size)]).to(device)
    encoder: Any = network.encoder

    def reconstruct() -> Tensor:
        features = encoder.forward_features(images)
        if network.is_swin:
            features = features.permute(0, 3, 1, 2)
        else:
            features = features[:, 1:].transpose(1, 2).reshape(len(images), -1, network.grid, network.grid)
        found: Tensor = network.decoder(features)
        return found

    def backward(loss: Tensor) -> None:
        for parameter in network.parameters():
            parameter.grad = None
        loss.backward()
        if loss.is_cuda:
            torch.cuda.synchronize()

    def plain() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=arguments.precision == "bf16"):
            loss = (images - reconstruct().float()).abs().mean()
        backward(loss)

    def simmim() -> None:
        mask = simmim_mask(permutations, network.grid, cells)
        with torch.autocast(device, torch.bfloat16, enabled=arguments.precision == "bf16"):
            loss, _ = network(images, mask)
        backward(loss)

    with torch.no_grad():
        zeros = torch.zeros(len(images), network.grid, network.grid, device=device, dtype=torch.int64)
        _, found = network(images, zeros)
        difference = float((found - reconstruct()).abs().max() / found.abs().max())
        loss, found = network(images, zeros + 1)
        loss_difference = float((loss - (images - found).abs().mean()).abs() / loss)
    if max(difference, loss_difference) > 1e-4:
        raise SystemExit(f"reconstructions differ by {difference:.1e}, losses by {loss_difference:.1e}; not timed")
    seconds = alternate({"plain": plain, "simmim": simmim}, arguments.rounds)
    about = {
        "backbone": backbone, "size": arguments.size, "parameters": sum(p.numel() for p in network.parameters()),
        "image_side": side, "batch_size": arguments.batch_size, "precision": arguments.precision,
        "reconstruction_difference": difference, "loss_difference": loss_difference,
    }  # fmt: skip
    kind = torch.device(device).type
    record(f"simmim-{backbone.replace('_', '-')}-{arguments.size}-{kind}", seconds, about, arguments.out, device)


if __name__ == "__main__":
    main()
