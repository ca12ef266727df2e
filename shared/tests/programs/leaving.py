"""Two processes that end with the status of the first argument, each saying what Python still did for it."""

from __future__ import annotations

import atexit
import sys

import torch
import torch.distributed as dist

from dart_core.cli import leave


class _Witness:
    def __del__(self) -> None:
        print("taken down", flush=True)


witness = _Witness()

if __name__ == "__main__":
    dist.init_process_group("gloo")
    atexit.register(dist.destroy_process_group)
    atexit.register(lambda: print(f"at exit {dist.get_rank()}", flush=True))
    dist.all_reduce(torch.ones(1))
    print("unflushed", end="")
    leave(int(sys.argv[1]))
