"""Compiled functions on the samples of a batch, on several threads of the CPU."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


def sample_by_sample(function: Callable[[int], None], samples: int) -> None:
    """Call a function that releases the interpreter with the numbers of all samples, on as many threads as PyTorch may use."""
    numbers = iter(range(samples))

    def work() -> None:
        for number in numbers:
            function(number)

    helpers = min(torch.get_num_threads(), samples) - 1
    if helpers < 1:
        work()
        return
    # New ones each time: kept ones would be missing in processes that a loader forks.
    with ThreadPoolExecutor(helpers) as pool:
        working = [pool.submit(work) for _ in range(helpers)]
        work()
        for one in working:
            one.result()
