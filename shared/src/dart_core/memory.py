"""Memory that a program keeps for its next step.

glibc gives freed memory back to the operating system when there is much of it, and gets it again page by page when the next step asks
for the same: thousands of page faults a step, which were 5 to 10 % of the time of small networks on CPUs.
"""

from __future__ import annotations

import ctypes
import os
import sys

# Of malloc.h; glibc alone has them.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT = 2**31 - 1
"""Bytes at the end of the heap that stay; the most that mallopt can be told."""
_LARGEST = 256 * 2**20
"""A larger block is a mapping of its own, and goes back as soon as it is free: whole volumes leave no holes."""
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Let this process, and those forked from it, keep up to 2 GiB of freed memory; nothing where there is no glibc.

    Who has set one of glibc's own variables (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_, GLIBC_TUNABLES) keeps what it says.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _VARIABLES):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return  # another C library
    # The first call ends glibc's own adaptation of both, so that the second must not be left out.
    mallopt(_TRIM_THRESHOLD, _KEPT)
    if not mallopt(_MMAP_THRESHOLD, _LARGEST):
        mallopt(_MMAP_THRESHOLD, 32 * 2**20)  # the most that older ones take
