"""Trainings that must not depend on the number of processes; run alone, or with torchrun."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dart_core.batches import Batches
from dart_core.checkpoint import save_weights
from dart_core.cli import leave
from dart_core.errors import DartError
from dart_core.run import Run
from dart_core.settings import RunSettings


def load(index: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
    image = np.random.default_rng(index).normal(size=(1, 8, 8)) + 0.1 * generator.normal(size=(1, 8, 8))
    return {"image": image.astype(np.float32), "label": np.array([index % 3 == 0], np.float32)}


def train(out: Path, norm: bool = False, **changes: Any) -> None:
    with Run(RunSettings(out=out, device="cpu", **changes)) as run:
        network = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4) if norm else nn.GELU(), nn.Flatten(), nn.Linear(144, 1)
        )
        network = run.prepare(network)
        frozen = run.prepare(nn.Identity())
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        run.restore(network=network, optimizer=optimizer)
        criterion = nn.BCEWithLogitsLoss()
        for step, batch in run.steps(Batches(load, 21, 12, 0), 15):
            loss = run.optimise(optimizer, lambda part: criterion(frozen(network(part["image"])), part["label"]), batch)
            run.log.write(step, loss=loss)
        if run.is_main:
            save_weights(out / "weights.safetensors", network, {"processes": str(run.world_size)})


def main(folder: Path) -> None:
    train(folder / "plain")
    train(folder / "accumulated", accumulate=3)
    train(folder / "workers", workers=1)
    train(folder / "norm", norm=True)
    train(folder / "plain")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except DartError as error:
        print(error, file=sys.stderr)
        leave(error.exit_status)
