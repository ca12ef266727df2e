"""A run that goes through its steps epoch by epoch, in two processes; each writes what it draws from the global generator.

torchrun ... epochs.py FOLDER EPOCHS resume|begin
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dart_core.batches import Batches
from dart_core.cli import leave
from dart_core.run import Run
from dart_core.settings import RunSettings


def load(index: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
    return {"image": np.full(2, index, np.float32)}


def main(out: Path, epochs: int, resume: bool) -> None:
    with Run(RunSettings(out, device="cpu", seed=1, resume=resume)) as run:
        network = run.prepare(nn.Linear(2, 1))
        run.restore(network=network)
        while run.step < 3 * epochs:
            for step, _ in run.steps(Batches(load, 8, 4, 0), 3 * (run.step // 3 + 1)):
                with (out.parent / f"{out.name}-{run.rank}.txt").open("a", encoding="utf-8") as file:
                    file.write(f"{step} {torch.rand(()):.9f}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "resume")
    leave(0)
