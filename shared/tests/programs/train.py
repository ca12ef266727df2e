"""A small training that the tests start as a process of its own, to kill it, stop it, or run it with torchrun.

Everything that an exact resume has to bring back is in it: dropout, momentum, a schedule, augmentation, all global generators.
"""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
import tyro
from torch import nn

from dart_core.batches import Batches
from dart_core.checkpoint import save_weights
from dart_core.cli import leave
from dart_core.errors import DartError
from dart_core.run import Run
from dart_core.settings import RunSettings


@dataclass(frozen=True)
class Train:
    """A small training.

    Attributes:
        norm: batch normalisation in the network.
        dropout: drop activations, and use the global generators of Python and NumPy.
        pause: seconds that a step takes at least.
    """

    run: tyro.conf.OmitArgPrefixes[RunSettings]
    steps: int = 40
    norm: bool = False
    dropout: bool = True
    pause: float = 0.0
    lr: float = 0.1


def load(index: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
    image = np.random.default_rng(index).normal(size=(1, 8, 8)) + 0.1 * generator.normal(size=(1, 8, 8))
    return {"image": image.astype(np.float32), "label": np.array([index % 3 == 0], np.float32)}


def main(settings: Train) -> None:
    with Run(settings.run, settings) as run:
        norm = nn.BatchNorm2d(4) if settings.norm else nn.Identity()
        dropout = nn.Dropout(0.3) if settings.dropout else nn.Identity()
        network = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), dropout, nn.Flatten(), nn.Linear(144, 1))
        network = run.prepare(network)
        optimizer = torch.optim.SGD(network.parameters(), lr=settings.lr, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
        run.restore(network=network, optimizer=optimizer, schedule=schedule)
        criterion = nn.BCEWithLogitsLoss()
        batches = Batches(load, size=21, batch_size=8, seed=settings.run.seed)
        for step, batch in run.steps(batches, settings.steps):
            noise = random.random() + np.random.random() if settings.dropout else 0.0  # noqa: NPY002 (must be restored)
            batch["image"] += 0.01 * noise
            loss = run.optimise(optimizer, lambda part: criterion(network(part["image"]), part["label"]), batch)
            schedule.step()
            run.log.write(step, loss=loss, noise=noise)
            time.sleep(settings.pause)
        if run.is_main:
            save_weights(run.out / "weights.safetensors", network, {"steps": str(run.step)})
        run.finish({"loss": loss})


if __name__ == "__main__":
    arguments = tyro.cli(Train)
    try:
        main(arguments)
    except DartError as error:
        print(error, file=sys.stderr)
        leave(error.exit_status)
    leave(0)
