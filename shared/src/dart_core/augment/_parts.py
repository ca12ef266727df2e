"""How the distortions of Models Genesis go through a batch on a device: part by part, with random numbers of the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

AT_ONCE = 2**26
"""Values that tensor operations work on at once."""


def seeds(samples: int, generator: torch.Generator | None) -> NDArray[np.uint64]:
    """(samples,): a seed for each."""
    where = "cpu" if generator is None else generator.device
    drawn = torch.empty(samples, dtype=torch.int64, device=where).random_(generator=generator)
    return drawn.cpu().numpy().view(np.uint64)


class Draw:
    """Random numbers on a device; where the generator is the CPU's and the device another, from a stream of NumPy's."""

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
    parts = list(zip(*(tensor.split(max(1, AT_ONCE // max(values, 1))) for tensor in tensors), strict=True))
    if generator is None or generator.device.type == device.type:
        for part in parts:
            function(*part, Draw(device, generator))
        return
    four = torch.empty((len(parts), 4), dtype=torch.int64, device=generator.device).random_(generator=generator)
    for part, seed in zip(parts, four.tolist(), strict=True):
        function(*part, Draw(device, seed))
