"""What the operating system is asked for, in processes of their own."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from dart_core.memory import keep_freed_memory

if "keep" in sys.argv:
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def step():
    blocks = [libc.malloc(size << 20) for size in (20, 40, 60)]
    for block in blocks:
        ctypes.memset(block, 1, 20 << 20)
    for block in blocks:
        libc.free(block)

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

pytestmark = pytest.mark.skipif(
    "glibc" not in os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else True,
    reason="no glibc",
)


def faults(*words: str, **variables: str) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], env=environment | variables, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


PAGES = 3 * (20 << 20) // os.sysconf("SC_PAGE_SIZE")
"""Touched in a step."""


def test_memory_of_one_step_serves_the_next() -> None:
    assert faults() > 2 * PAGES
    assert faults("keep") < PAGES / 10


def test_what_the_user_has_set_stands() -> None:
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="131072") > 2 * PAGES
