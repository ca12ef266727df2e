"""`stain-aglr train` in processes that would come to different verdicts, on a slow disk: torchrun two.py DATALIST FOLDER."""

from __future__ import annotations

import itertools
import os
import sys
import time
from pathlib import Path

import torch

from dart_core.cli import leave
from dart_core.testing import InProcess
from stain_aglr import commands, method, normalisation

RANK = int(os.environ["RANK"])


def train(datalist: Path, folder: Path) -> None:
    """A training whose validation loss is constant in process 0 and falls in the others; each process writes how it ended."""
    epochs = itertools.count(1)
    commands.validation_loss = lambda logits, labels: 1.0 if RANK == 0 else 1 / next(epochs)
    schedules = []

    class Watched(method.PlateauUntil):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            schedules.append(self)

    method.PlateauUntil = Watched
    save, run = normalisation.save_normaliser, commands.train_network

    def save_slowly(*arguments):
        time.sleep(2)
        return save(*arguments)

    def watched(current, network, *arguments):
        best = run(current, network, *arguments)
        (group,) = schedules[0].optimizer.param_groups
        ended = {
            "parameters": dict(network.named_parameters()),
            "rate": group["lr"],
            "epoch": best.epoch,
            "loss": best.loss,
        }
        torch.save(ended, folder / f"{RANK}.pt")
        return best

    normalisation.save_normaliser, commands.train_network = save_slowly, watched
    words = ("--site", "RUMC", "--width", 2, "--batch-size", 8, "--max-epochs", 4, "--patience", 0, "--stop-lr", 0)
    words += ("--method", "macenko", "--device", "cpu", "--seed", 0)
    leave(InProcess("stain-aglr")("train", "--datalist", datalist, *words, "--out", folder / "run"))


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]))
