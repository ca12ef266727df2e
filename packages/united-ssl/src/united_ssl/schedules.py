"""Learning rates that are halved: at fixed epochs, or where the validation loss stays where it is (specification 2.2, 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dart_core.arrays import elementwise
from dart_core.errors import SettingError


def halving_lr(epoch: Any, lr: float, every: int) -> Any:
    """lr * 0.5^floor((1 + epoch) / every): with every = 32 the rate is halved for the first time in epoch 31.

    Args:
        epoch: from 0; a number, array or tensor.
        lr: at the start.
        every: epochs between halvings; 0 keeps the rate.

    Returns:
        Like `epoch`.

    Raises:
        SettingError: a negative `every`.
    """
    if every < 0:
        raise SettingError(f"the rate is halved every {every} epochs", remedy="give 0 (never) or a positive number")
    if every == 0:
        return elementwise(epoch, lambda e: np.full(np.shape(e), lr))
    return elementwise(epoch, lambda e: lr * 0.5 ** np.floor((1 + e) / every))


class Plateau:
    """A learning rate that is halved when the validation loss has not fallen for some epochs, as Keras does it.

    An epoch is better if its loss is below the best by more than `min_delta`. After `patience` epochs without one in a row
    the rate is halved and the counting begins anew.

    Args:
        lr: at the start.
        patience: see above; 0 keeps the rate.
        min_delta: see above.
        floor: the rate does not fall below this.
    """

    def __init__(self, lr: float, patience: int = 6, min_delta: float = 1e-4, floor: float = 1e-6) -> None:
        self.patience, self.min_delta, self.floor = patience, min_delta, floor
        self.rate, self.best, self.bad, self.seen = lr, float("inf"), 0, 0

    def __call__(self, epoch: float, validation_loss: float | None) -> float:
        """Rate of an epoch (from 0), given the validation loss of the one before it; asking twice changes nothing."""
        if epoch > self.seen and validation_loss is not None and self.patience:
            self.seen = int(epoch)
            if validation_loss < self.best - self.min_delta:
                self.best, self.bad = validation_loss, 0
            else:
                self.bad += 1
                if self.bad >= self.patience:
                    self.rate, self.bad = max(self.rate / 2, self.floor), 0
        return self.rate

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {name: getattr(self, name) for name in ("rate", "best", "bad", "seen")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` gave."""
        for name in ("rate", "best", "bad", "seen"):
            setattr(self, name, state[name])


def bad_epochs_allowed(patience: int) -> int | None:
    """How many bad epochs in a row a training outlives: `dart_core.fine_tuning.FineTuning.patience` for our --patience.

    Ours is Keras's, for which the authors' recipes are written: after so many bad epochs in a row the training ends. The core
    counts those after which it still goes on.

    Args:
        patience: as Keras counts; 0 = the training does not end before its last epoch.
    """
    return patience - 1 if patience else None
