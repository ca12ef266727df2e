"""Random numbers, and batches in parts, of the distortions of Models Genesis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

AT_ONCE = {"cpu": 2**18, "cuda": 2**26}
"""Values that are worked on at once: on the CPU so many that they stay in the cache."""


class Draw:
    """Random numbers on a device.

    Of the CPU's generator just the seed of a stream of NumPy's: these are twice as fast, and threads can have one each.
    """

    def __init__(self, device: torch.device, source: torch.Generator | Sequence[int] | None) -> None:
        self.device = device
        self.generator = source if isinstance(source, torch.Generator) else None
        self.stream = None if source is None or self.generator else np.random.SFC64(source)  # type: ignore[arg-type]

    def bits(self, count: int) -> Tensor:
        """int64 (count,) of random bits; the sign may be fixed."""
        if self.stream is not None:
            return torch.from_numpy(self.stream.random_raw(count).view(np.int64)).to(self.device)
        return torch.empty(count, dtype=torch.int64, device=self.device).random_(generator=self.generator)

    def uniform(self, count: int, dtype: torch.dtype) -> Tensor:
        """(count,) from [0, 1), in steps of 2^-24, or 2^-53 in double precision."""
        if dtype == torch.float64:
            return (self.bits(count) & (1 << 53) - 1).double().mul_(2.0**-53)
        return (self.bits(count // 2 + 1).view(torch.int32)[:count] & (1 << 24) - 1).float().mul_(2.0**-24).to(dtype)


def in_parts(
    function: Callable[..., None], tensors: Sequence[Tensor], values: int, generator: torch.Generator | None
) -> None:
    """Call a function with parts of tensors along the samples, and with draws.

    Args:
        function: (*parts, draw), writes into the last of the parts.
        tensors: (N, ...) each.
        values: that a sample costs.
        generator: or None.
    """
    device = tensors[0].device
    step = max(1, AT_ONCE[device.type] // max(values, 1))
    parts = list(zip(*(tensor.split(step) for tensor in tensors), strict=True))
    if device.type == "cuda" and (generator is None or generator.device.type == "cuda"):
        for part in parts:
            function(*part, Draw(device, generator))
        return
    where = "cpu" if generator is None else generator.device
    seeds = torch.empty((len(parts), 4), dtype=torch.int64, device=where).random_(generator=generator).tolist()
    threads = min(torch.get_num_threads(), len(parts))
    if device.type == "cuda" or threads < 2:
        for part, seed in zip(parts, seeds, strict=True):
            function(*part, Draw(device, seed))
        return
    before = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for done in [pool.submit(function, *part, Draw(device, seed)) for part, seed in zip(parts, seeds, strict=True)]:
            done.result()
    # Threads that others start get what was set last.
    torch.set_num_threads(before)
