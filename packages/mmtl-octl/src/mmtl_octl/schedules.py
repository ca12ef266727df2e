"""How many samples of a batch come from the target, which ones, and the learning rate (paper section 2 and Algorithm 1).

Everything here is a pure function of settings, seed, epoch and step, so that a resumed run goes on with the batch that
would have come next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dart_core.arrays import elementwise
from dart_core.batches import Batches, Sample
from dart_core.errors import InputError, SettingError

Schedule = Literal["paper", "paper0", "release", "xray", "target"]
SCHEDULES: tuple[Schedule, ...] = ("paper", "paper0", "release", "xray", "target")

T = TypeVar("T")
Many = TypeVar("Many", NDArray[Any], Tensor)
_TARGET, _SOURCE = 0, 1


@overload
def target_count(
    epoch: int, epochs: int, batch_size: int, schedule: Schedule = "paper", keep_source: bool = False
) -> int: ...
@overload
def target_count(
    epoch: Many, epochs: int, batch_size: int, schedule: Schedule = "paper", keep_source: bool = False
) -> Many: ...
def target_count(
    epoch: Any, epochs: int, batch_size: int, schedule: Schedule = "paper", keep_source: bool = False
) -> Any:
    """Target samples in every batch of an epoch of MMTL (paper Algorithm 1; specification 2.2, item 2).

    All arithmetic is in whole numbers: int(e / E * B) in floating point is one lower for some arguments.

    Args:
        epoch: from 0; one epoch, or an array or a tensor of them.
        epochs: E, epochs of the run.
        batch_size: B.
        schedule: "paper" counts epochs from 1 and ends with pure target; "paper0" counts from 0 and never gets there;
            "release" adds one sample every four epochs, whatever E and B are; "xray" starts at 4 and is one epoch late,
            as the authors' X-ray program is; "target" has nothing but target samples (plain fine-tuning).
        keep_source: at least one sample of each batch stays a source sample (not with "target").

    Returns:
        A number from 0 to B; of the kind of `epoch`, one for each.

    Raises:
        ValueError: a negative epoch, no epochs, an empty batch, or an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise SettingError(f"unknown schedule {schedule!r}", remedy=f"give one of {', '.join(SCHEDULES)}")

    def counts(e: NDArray[Any]) -> NDArray[Any]:
        if (e < 0).any() or epochs < 1 or batch_size < 1:
            raise SettingError(
                f"epoch {epoch} of {epochs} with batches of {batch_size}",
                remedy="count epochs from 0; the others from 1",
            )
        if schedule == "paper":
            found = (e + 1) * batch_size // epochs
        elif schedule == "paper0":
            found = e * batch_size // epochs
        elif schedule == "release":
            found = e // 4 + 1
        elif schedule == "xray":
            # The loaders are built before the program's epoch counter moves: epoch e works with counter e - 1.
            found = np.maximum(e - 1, 0) * batch_size // max(epochs - 1, 1) + 4
        else:
            found = np.full_like(e, batch_size)
        kept = int(keep_source and schedule != "target")
        return np.asarray(np.minimum(found, batch_size - kept))

    return elementwise(epoch, counts)


@overload
def learning_rate(epoch: float, base: float = 1e-3, drop_epoch: int = 45) -> float: ...
@overload
def learning_rate(epoch: Many, base: float = 1e-3, drop_epoch: int = 45) -> Many: ...
def learning_rate(epoch: Any, base: float = 1e-3, drop_epoch: int = 45) -> Any:
    """`base`, and a tenth of it from epoch index `drop_epoch` on (paper section 3.1; specification 2.1, item 2).

    `epoch` is a number, or an array or a tensor of them.
    """
    return elementwise(epoch, lambda e: np.where(e < drop_epoch, base, base * 0.1))


class MixedBatches(Generic[T]):
    """Which samples each mini-batch of MMTL holds.

    Each draw is a patient of its pool, uniformly and with replacement, and then one of the patient's samples, uniformly.
    Target and source have random streams of their own. The target samples of a batch are the first ones of the batch
    that holds nothing else, so that with schedule "target" this is plain fine-tuning.

    Args:
        source: for each source patient the list of its samples (whatever they are).
        target: likewise for the target.
        batch_size: samples in a batch.
        epochs: epochs of the run.
        batches: batches of an epoch.
        schedule: see `target_count`.
        keep_source: see `target_count`.
        seed: of both streams.

    Raises:
        ValueError: a pool that the schedule draws from is empty, or a patient has no samples.

    Source: specification 2.2; the streams differ on purpose from the authors' (8.1, 8.2).
    """

    def __init__(
        self,
        source: Sequence[Sequence[T]],
        target: Sequence[Sequence[T]],
        batch_size: int = 16,
        epochs: int = 60,
        batches: int = 100,
        schedule: Schedule = "paper",
        keep_source: bool = False,
        seed: int = 0,
    ) -> None:
        if batches < 1 or seed < 0:
            raise SettingError(f"{batches} batches an epoch, seed {seed}", remedy="give at least 1 batch and seed 0")
        self.counts = tuple(target_count(e, epochs, batch_size, schedule, keep_source) for e in range(epochs))
        needed = {"source": min(self.counts) < batch_size, "target": max(self.counts) > 0}
        for name, pool in (("source", source), ("target", target)):
            if needed[name] and not pool:
                raise InputError(f"the {name} pool holds no patient", remedy=f"give at least one {name} patient")
            for number, patient in enumerate(pool):
                if not len(patient):
                    raise InputError(f"{name} patient {number} has no samples", remedy="leave this patient out")
        self.source, self.target = source, target
        self.batch_size, self.epochs, self.batches, self.seed = batch_size, epochs, batches, seed

    def batch(self, epoch: int, index: int) -> tuple[list[T], list[T]]:
        """The target samples and the source samples of one batch; together `batch_size`.

        Args:
            epoch: from 0 to epochs - 1.
            index: batch of the epoch, from 0 to batches - 1.

        Raises:
            ValueError: no such epoch or batch.
        """
        if not (0 <= epoch < self.epochs and 0 <= index < self.batches):
            raise InputError(f"no batch {index} of epoch {epoch} in {self.epochs} epochs of {self.batches} batches")
        count = self.counts[epoch]
        return (
            self._draw(self.target, _TARGET, epoch, index)[:count],
            self._draw(self.source, _SOURCE, epoch, index)[: self.batch_size - count],
        )

    def _draw(self, pool: Sequence[Sequence[T]], stream: int, epoch: int, index: int) -> list[T]:
        """As many samples as a batch has, however many of them are used: the first ones do not depend on the schedule."""
        if not pool:
            return []
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(stream, epoch, index)))
        patients = rng.integers(len(pool), size=self.batch_size)
        sizes: NDArray[np.int64] = np.array([len(pool[patient]) for patient in patients])
        return [pool[patient][place] for patient, place in zip(patients, rng.integers(sizes), strict=True)]


class TrainingBatches(Batches):
    """Loaded mini-batches of a run: `MixedBatches` says which samples, the core's `Batches` loads and joins them.

    A batch has the target samples first.

    Args:
        load: gives sample `index` as tensors or arrays; its randomness comes from the generator it gets, which is keyed
            by the seed and the sample's position in the run.
        mixed: draws the samples, which are numbers from 0 on.
    """

    def __init__(self, load: Callable[[int, np.random.Generator], Sample], mixed: MixedBatches[int]) -> None:
        size = 1 + max(sample for pool in (mixed.source, mixed.target) for patient in pool for sample in patient)
        super().__init__(load, size, mixed.batch_size, mixed.seed, replacement=True)
        self.mixed = mixed

    def plan(self, step: int) -> list[tuple[int, int]]:
        """The samples of one step; the first number of each pair and the position make the key of its random numbers."""
        target, source = self.mixed.batch(*divmod(step, self.mixed.batches))
        start = step * self.batch_size
        return [((start + place) // self.size, sample) for place, sample in enumerate((*target, *source))]
