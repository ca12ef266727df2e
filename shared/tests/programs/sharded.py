"""Trainings of a small network of blocks that must not depend on how it is spread; run alone, or with torchrun."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dart_core.batches import Batches
from dart_core.checkpoint import save_tensors, save_weights
from dart_core.cli import leave
from dart_core.fine_tuning import clip_gradients
from dart_core.run import Run
from dart_core.settings import ShardedRunSettings

STEPS, HALF = 12, 5
PROBE = torch.linspace(-1, 1, 60).view(2, 5, 6)


class Block(nn.Module):
    """No attention: the bias of its keys has no gradient but rounding errors, which Adam makes as large as any other."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(5, 5)
        self.mlp = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 13), nn.GELU(), nn.Linear(13, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(x.mT).mT
        return x + self.mlp(x)


class Network(nn.Module):
    """Widths that two processes cannot share equally, a buffer, and a parameter of its own beside the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 12)
        self.place = nn.Parameter(torch.zeros(1, 5, 12))
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))
        self.head = nn.Linear(12, 1)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x * self.scale) + self.place).mean(1))


def load(index: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
    x = np.random.default_rng(index).normal(size=(5, 6)) + 0.1 * generator.normal(size=(5, 6))
    return {"x": x.astype(np.float32), "y": np.array([x.sum() > 0], np.float32)}


def train(out: Path, steps: int = STEPS, **changes: object) -> None:
    settings = replace(ShardedRunSettings(out=out, device="cpu", checkpoint_every=3, sharding="fsdp"), **changes)
    with Run(settings) as run:
        network = run.prepare(Network())
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, eps=1e-3, weight_decay=0.1)
        clip_gradients(optimizer, 0.3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        run.restore(network=network, optimizer=optimizer, schedule=schedule)
        shown: dict[str, float] = {}
        criterion = nn.BCEWithLogitsLoss()
        for step, batch in run.steps(Batches(load, 21, 12, 0), steps):
            loss = run.optimise(optimizer, lambda part: criterion(network(part["x"]), part["y"]), batch)
            schedule.step()
            run.log.write(step, loss=loss)
            if step % 4 == 1:
                with run.gathered(network):
                    if run.is_main:
                        shown[str(step)] = float(network(PROBE).sum())
        parts = [p.to_local() if hasattr(p, "to_local") else p for p in network.parameters()]
        weights = run.weights(network)
        if run.is_main:
            save_tensors(out / "weights.safetensors", weights, {"processes": str(run.world_size)})
        refused = False
        try:
            save_weights(out / "alone.safetensors", network, {})
            (out / "alone.safetensors").unlink()
        except TypeError:  # one process cannot write what is spread
            refused = True
        run.finish({"held": sum(part.numel() for part in parts), "shown": shown, "refused": refused})


def main(folder: Path) -> None:
    train(folder / "plain")
    train(folder / "accumulated", accumulate=3)
    train(folder / "half", HALF)
    train(folder / "ours", HALF)
    train(folder / "ours", resume=True)
    train(folder / "alone", resume=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave(0)
