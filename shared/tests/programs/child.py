"""Run a program in a process of the fork server as if it had been started by itself.

The names PROGRAM, ARGUMENTS, ENVIRONMENT and STDERR are put here by `runpy`.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from typing import Any

given: dict[str, Any] = globals()
os.setsid()
os.environ.update(given["ENVIRONMENT"])
os.dup2(os.open(given["STDERR"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
sys.argv = [given["PROGRAM"], *given["ARGUMENTS"]]
# A process of the fork server hands its own way of starting processes on; a program by itself forks.
multiprocessing.set_start_method("fork", force=True)
runpy.run_path(given["PROGRAM"], run_name="__main__")
