"""`sissi train` in processes that would come to different losses, curves and labels: torchrun two.py SOURCE TARGET FOLDER."""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path

import torch

from dart_core.cli import leave
from dart_core.testing import InProcess
from sissi import method, training

RANK = int(os.environ["RANK"])
RUNS = {
    "validation": ("--configuration", "sissi-s", "--epochs", 4, "--supervised", 2),
    "adele": ("--configuration", "plain-a", "--epochs", 5),
}


def disagree(validated: list[dict[str, torch.Tensor]]) -> None:
    """The main process finds the first epoch best, memorisation in epoch 3, and other labels than the others do.

    Args:
        validated: gets the state of every detector that is validated.
    """
    pseudo_labels = method.pseudo_labels

    def loss(detector, *_):
        validated.append(copy.deepcopy(detector.state_dict()))
        return len(validated) * (1.0, -1.0)[RANK]

    method.validation_loss = loss
    method.ap50 = lambda found, truth: 0.5 + 0.1 * RANK
    method.memorisation_epoch = lambda curve, epochs, threshold: (RANK == 0, 3 + RANK)
    method.pseudo_labels = lambda *given: [boxes + RANK for boxes in pseudo_labels(*given)]


def main(source: Path, target: Path, folder: Path) -> int:
    """Train; each process writes how its trainings ended."""
    validated: list[dict[str, torch.Tensor]] = []
    train = method.Trainer.train
    disagree(validated)
    training._report = lambda *given: None  # takes the longest, and is the main process' alone
    words = ("--detector", "small", "--size", 64, "--batch-size", 2, "--learning-rate", 0.01, "--edges", "clip")
    words += ("--views", "one", "--least-score", 0.01, "--skip-score", 0.01, "--device", "cpu", "--seed", 0)
    ended = {}
    for name, row in RUNS.items():

        def watched(trainer, name=name):
            progress = train(trainer)
            ended[name] = {
                "detector": method.unwrap(trainer.detector).state_dict(), "optimizer": trainer.optimizer.state_dict(),
                "schedule": trainer.schedule.state_dict(), "progress": progress.state_dict(), "validated": [*validated],
            }  # fmt: skip
            validated.clear()
            return progress

        method.Trainer.train = watched
        status = InProcess("sissi")("train", "--source", source, "--target", target, *words, *row, "--out", folder / name)  # fmt: skip
        if status:
            return status
    torch.save(ended, folder / f"{RANK}.pt")
    return 0


if __name__ == "__main__":
    leave(main(*map(Path, sys.argv[1:])))
