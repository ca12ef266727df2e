"""New processes that start quickly."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext, SpawnContext


def process_context(*preload: str) -> SpawnContext | ForkServerContext:
    """How processes start: from a server that has imported what they need, where the system has such; else afresh.

    They are not forked from this process, which may hold locks, threads and a CUDA context.

    Args:
        preload: modules that the server imports once. Torch's own come along.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # torch imports torch._dynamo at the first optimiser: seconds, in every process.
    context.set_forkserver_preload([*preload, "torch._dynamo"])
    return context
