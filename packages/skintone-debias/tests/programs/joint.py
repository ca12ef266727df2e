"""Steps of unlearning that must not depend on the number of processes; run alone, or with torchrun."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from dart_core.checkpoint import save_weights, unwrap
from dart_core.run import Run
from dart_core.settings import RunSettings
from skintone_debias.method import debias_optimizers, debias_step
from skintone_debias.recipes import RECIPES

METHODS = ("lntl", "clgr", "both")
SIZE = 8
WEIGHTS = torch.tensor([0.9, 0.08, 0.02])


def train(method: str, out: Path) -> None:
    with Run(RunSettings(out, device="cpu", seed=3)) as run:
        encoder = run.prepare(nn.Sequential(nn.Linear(5, 4), nn.Tanh()))
        main_head = run.prepare(nn.Linear(4, 1))
        heads = [run.prepare(nn.Linear(4, 3)) for _ in RECIPES[method].heads]
        optimizers = debias_optimizers(encoder, main_head, heads, method, 0.3, 0.3)
        own = slice(run.rank * SIZE // run.world_size, (run.rank + 1) * SIZE // run.world_size)
        losses = []
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            x, y = torch.randn(SIZE, 5, generator=generator), torch.randint(0, 2, (SIZE,), generator=generator)
            # In order, so that the halves of the batch have other weights.
            s = torch.randint(0, 3, (SIZE,), generator=generator).sort().values
            labels, weights = [s[own]] * len(heads), [WEIGHTS] * len(heads)
            found = debias_step(encoder, main_head, heads, optimizers, x[own], y[own], labels, method, weights, run=run)
            losses.append([float(run.mean(loss)) for loss in (found["loss_first"], *found["loss_auxiliary"])])
        if run.is_main:
            whole = nn.ModuleList(unwrap(module) for module in (encoder, main_head, *heads))
            save_weights(out / "network.safetensors", whole, {"processes": str(run.world_size)})
            run.finish({"losses": losses})


def main(out: Path) -> None:
    for method in METHODS:
        train(method, out / method)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
