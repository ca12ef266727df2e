"""Batches that are a pure function of (seed, step).

Which samples a batch holds, and the random numbers that each sample's loading and augmentation get, follow from the seed and
the step alone. Loading processes therefore cannot change a result, and a run that stops in the middle of an epoch continues
with exactly the batch that would have come next.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dart_core.errors import DartError, InputError, SettingError

Sample = Mapping[str, Any]
_ORDER, _LOAD = 0, 1
_PREFETCH = 4
_WORKER_GRACE_SECONDS = 60


class Batches:
    """Draws batches of `batch_size` samples out of `size`.

    Without replacement the epochs follow each other without a gap: each is a permutation of all samples, and a batch may hold
    the end of one and the start of the next, so that all batches are full. With replacement every draw is uniform over all
    samples; an epoch is then just `size` draws.

    Args:
        load: gives sample `index` (0 to size-1) as a mapping of tensors, arrays or numbers of the same shape for every
            sample. All its randomness must come from the generator it gets, which is keyed by (seed, epoch, sample), or by
            (seed, epoch, position) with replacement, where a sample may come twice in an epoch.
        size: number of samples.
        batch_size: samples in a batch, over all processes together.
        seed: any integer from 0 on.
        replacement: draw with replacement.

    Raises:
        SettingError: no samples, an empty batch, or a negative seed.
    """

    def __init__(
        self,
        load: Callable[[int, np.random.Generator], Sample],
        size: int,
        batch_size: int,
        seed: int,
        replacement: bool = False,
    ) -> None:
        for name, value, low in (("number of samples", size, 1), ("batch size", batch_size, 1), ("seed", seed, 0)):
            if value < low:
                raise SettingError(f"the {name} is {value}", remedy=f"it must be at least {low}")
        self.load = load
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.replacement = replacement
        # One batch may reach over many epochs of a tiny data set; two are enough in practice.
        self._order = functools.lru_cache(maxsize=2)(self._draw_order)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_order"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._order = functools.lru_cache(maxsize=2)(self._draw_order)

    def _generator(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))

    def _draw_order(self, epoch: int) -> NDArray[np.int64]:
        generator = self._generator(_ORDER, epoch)
        if self.replacement:
            return generator.integers(self.size, size=self.size, dtype=np.int64)
        return generator.permutation(self.size)

    def plan(self, step: int) -> list[tuple[int, int]]:
        """The (epoch, sample) pairs of the batch of one step, in order, over all processes together."""
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [(p // self.size, int(self._order(p // self.size)[p % self.size])) for p in positions]

    def share(self, world_size: int) -> int:
        """Samples that each process gets.

        Raises:
            SettingError: the processes cannot share the batch equally.
        """
        if self.batch_size % world_size:
            raise SettingError(
                f"a batch of {self.batch_size} samples cannot be shared equally by {world_size} processes",
                remedy="change the batch size or the number of processes",
            )
        return self.batch_size // world_size

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> dict[str, Tensor]:
        """One process's share of a batch; the shares in the order of the ranks make up the joint batch.

        Args:
            step: step of the run, from 0.
            rank: this process.
            world_size: number of processes.

        Returns:
            Tensors (batch_size / world_size, ...) by name.

        Raises:
            SettingError: the processes cannot share the batch equally.
            InputError: samples with different keys or shapes, or with something that is no number.
        """
        share = self.share(world_size)
        start = step * self.batch_size + rank * share
        plan = self.plan(step)[rank * share : (rank + 1) * share]
        samples = []
        for position, (epoch, sample) in enumerate(plan, start):
            key = position % self.size if self.replacement else sample
            loaded = self.load(sample, self._generator(_LOAD, epoch, key))
            samples.append({name: _tensor(value, name, sample) for name, value in loaded.items()})
        first = samples[0]
        for (_, index), tensors in zip(plan, samples, strict=True):
            if tensors.keys() != first.keys():
                raise InputError(f"sample {index} has {sorted(tensors)}, sample {plan[0][1]} has {sorted(first)}")
            for name, tensor in tensors.items():
                if tensor.shape != first[name].shape:
                    raise InputError(
                        f"'{name}' of sample {index} has shape {tuple(tensor.shape)}, "
                        f"of sample {plan[0][1]} {tuple(first[name].shape)}",
                        remedy="crop or resample to one size",
                    )
        return {name: torch.stack([sample[name] for sample in samples]) for name in first}

    def loader(
        self,
        start: int,
        stop: int,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> Generator[dict[str, Tensor]]:
        """The batches of the steps from `start` to `stop`-1, loaded ahead by `workers` processes.

        The processes start at once, not at the first batch. Close the iterator to stop them early.

        Args:
            start: first step.
            stop: step after the last.
            workers: loading processes; 0 loads here when a batch is asked for. PyTorch computes with one thread in any of
                them. Does not change the batches.
            rank: this process.
            world_size: number of processes that share each batch.
            pin_memory: put the batches into page-locked memory (for copies to CUDA that overlap with computing).
        """
        if workers == 0:
            return self._load_here(start, stop, rank, world_size, pin_memory)
        loader = DataLoader(
            _Steps(self, rank, world_size),
            batch_size=None,
            sampler=range(start, stop),
            num_workers=workers,
            prefetch_factor=_PREFETCH,
            persistent_workers=True,
            pin_memory=pin_memory,
            worker_init_fn=_shield,
            # Its own generator: creating a loader must not use up numbers of the global one.
            generator=torch.Generator(),
        )
        return _unpack(iter(loader))

    def _load_here(
        self, start: int, stop: int, rank: int, world_size: int, pin_memory: bool
    ) -> Generator[dict[str, Tensor]]:
        # Sums over large tensors depend on the number of PyTorch's threads, and loading processes have one. It is a thread of
        # its own that is held to one, because changing it to and fro makes PyTorch prepare its convolutions anew.
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as thread:
            thread.submit(torch.get_num_threads).result()
            torch.set_num_threads(threads)
            for step in range(start, stop):
                batch = thread.submit(self.batch, step, rank, world_size).result()
                yield {name: tensor.pin_memory() for name, tensor in batch.items()} if pin_memory else batch


class _Steps(Dataset[Any]):
    """Batches by step, for the DataLoader."""

    def __init__(self, batches: Batches, rank: int, world_size: int) -> None:
        self.batches, self.rank, self.world_size = batches, rank, world_size

    def __getitem__(self, step: int) -> dict[str, Tensor] | DartError:
        try:
            return self.batches.batch(step, self.rank, self.world_size)
        except DartError as error:
            # Handed over as a value: the DataLoader would wrap a raised error in its traceback, and the line must stay one line.
            return error


def _unpack(batches: Iterator[dict[str, Tensor] | DartError]) -> Generator[dict[str, Tensor]]:
    for batch in batches:
        if isinstance(batch, DartError):
            raise batch
        yield batch


def _shield(worker: int) -> None:
    """Let a loading process outlive Ctrl-C and SIGTERM for a while.

    Both often reach the whole group of processes; the main process still needs its batches to finish the step and save.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, _leave_later)


def _leave_later(number: int, frame: FrameType | None) -> None:
    signal.alarm(_WORKER_GRACE_SECONDS)


def _tensor(value: Any, name: str, sample: int) -> Tensor:
    if isinstance(value, Tensor):
        return value.as_subclass(Tensor)
    try:
        if isinstance(value, np.ndarray):
            # torch takes neither foreign byte order nor negative strides, and warns of read-only memory.
            value = np.require(value, dtype=value.dtype.newbyteorder("="), requirements=("C", "W"))
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"'{name}' of sample {sample} is a {type(value).__name__} that does not make a tensor ({error})",
            remedy="give tensors, arrays or numbers",
        ) from error
