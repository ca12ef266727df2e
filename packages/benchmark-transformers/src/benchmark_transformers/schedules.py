"""Learning rates of fine-tuning (specification 2.1.10) and of SimMIM (2.2.6)."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmark_transformers.settings import PretrainingSchedule, Schedule
from dart_core.arrays import elementwise
from dart_core.errors import SettingError

FLOOR, START = 1e-5, 1e-6
"""Where the cosine of fine-tuning ends, and where its warm-up begins."""
REFERENCE_BATCH = 512
"""SimMIM's rates are printed for this batch and grow with it."""
DROP = 0.1
"""Factor of SimMIM's long recipes near their end."""


def fine_tune_lr(
    epoch: Any,
    epochs: int = 200,
    lr: float = 0.01,
    warmup: float = 0,
    schedule: Schedule = "intended",
    validation_loss: float | None = None,
) -> Any:
    """Learning rate of fine-tuning.

    Intended: a cosine from `lr` to 1e-5 over `epochs`, not shifted by the warm-up, which climbs from 1e-6 in its place. As
    coded: the authors' program hands the validation loss to its scheduler where the number of the epoch belongs, so that from
    the second epoch on the rate follows from that loss and hardly changes.

    Args:
        epoch: epochs done, from 0; a fraction is allowed, and an array or tensor of them.
        epochs: length of the cosine.
        lr: highest rate.
        warmup: epochs of the linear climb.
        schedule: "intended" or "as_coded".
        validation_loss: as_coded: that of the epoch before; ignored at epoch 0, where the program had not stepped yet.

    Raises:
        SettingError: an unknown schedule, or as_coded without the loss.
    """
    if schedule not in ("intended", "as_coded"):
        raise SettingError(f"schedule is {schedule!r}", remedy="give intended or as_coded")

    def rule(values: Any) -> Any:
        time = values.astype(np.float64)
        if schedule == "as_coded" and (time > 0).any():
            if validation_loss is None:
                raise SettingError(
                    "the schedule as coded needs the validation loss from the second epoch on",
                    remedy="give validation_loss",
                )
            time = np.where(time > 0, float(validation_loss), time)
        cosine = FLOOR + 0.5 * (lr - FLOOR) * (1 + np.cos(np.pi * np.minimum(time, epochs) / epochs))
        if warmup <= 0:
            return cosine
        return np.where(time < warmup, START + time * (lr - START) / warmup, cosine)

    return elementwise(epoch, rule)


def simmim_lr(
    iteration: Any,
    iterations_per_epoch: int,
    epochs: int = 100,
    warmup: float = 10,
    total_batch: int = 2048,
    base: float = 2e-4,
    minimum: float = 1e-5,
    start: float = 1e-6,
    schedule: PretrainingSchedule = "cosine",
    drop_epoch: int = 700,
) -> Any:
    """Learning rate of SimMIM's pre-training; the defaults are its recipe of 100 epochs for Swin-B.

    Args:
        iteration: iterations done, from 0; also an array or tensor of them.
        iterations_per_epoch: batches of an epoch.
        epochs: length of the training.
        warmup: epochs of the linear climb.
        total_batch: pictures of a batch over all processes; the three rates are printed for 512 and scaled with it.
        base: highest rate.
        minimum: cosine: rate at the end.
        start: rate at the beginning of the climb.
        schedule: "cosine", over all iterations and not shifted by the warm-up; "step": the highest rate, from `drop_epoch` on
            a tenth of it (the recipes of 800 epochs: base 1e-4, start 5e-7, drop at 700).
        drop_epoch: see there.

    Raises:
        SettingError: an unknown schedule, or an epoch without iterations.
    """
    if schedule not in ("cosine", "step"):
        raise SettingError(f"schedule is {schedule!r}", remedy="give cosine or step")
    if iterations_per_epoch < 1:
        raise SettingError(f"an epoch has {iterations_per_epoch} iterations", remedy="give at least 1")
    scale = total_batch / REFERENCE_BATCH
    high, low, first = base * scale, minimum * scale, start * scale
    climb, total = warmup * iterations_per_epoch, epochs * iterations_per_epoch

    def rule(values: Any) -> Any:
        time = values.astype(np.float64)
        if schedule == "cosine":
            later = low + 0.5 * (high - low) * (1 + np.cos(np.pi * np.minimum(time, total) / total))
        else:
            later = np.where(time < drop_epoch * iterations_per_epoch, high, high * DROP)
        if climb <= 0:
            return later
        return np.where(time < climb, first + time * (high - first) / climb, later)

    return elementwise(iteration, rule)
