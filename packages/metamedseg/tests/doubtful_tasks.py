"""Tasks that fail on demand. A module of its own under a plain name, because new processes import it to unpickle `Doubtful`."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch

from dart_core.errors import InputError
from metamedseg.method import State, TaskResult


@dataclass
class Doubtful:
    """Trains nothing; says which step it was, or fails at step 2."""

    failure: str = ""
    per_epoch: int = 4

    def train(self, step: int, theta: State, device: torch.device) -> TaskResult:
        """The weights plus the step."""
        if step == 1 and self.failure == "slow":
            time.sleep(2)
        if step == 2 and self.failure == "bad input":
            raise InputError("a slice is missing", where="x.npy", remedy="prepare it")
        if step == 2 and self.failure == "bug":
            raise ZeroDivisionError("oops")
        if step == 2 and self.failure == "death":
            os._exit(7)
        return TaskResult({"w": theta["w"] + step}, f"set {step}", [float(step)])
