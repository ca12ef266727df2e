"""Run a program in a process of the fork server as if it had been started by itself.

`runpy` puts the names PROGRAM, ARGUMENTS, ENVIRONMENT and STDERR here.
"""

from __future__ import annotations

import os
import runpy
import sys

PROGRAM: str
ARGUMENTS: list[str]
ENVIRONMENT: dict[str, str]
STDERR: str

os.setsid()
os.environ.update(ENVIRONMENT)
os.dup2(os.open(STDERR, os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
sys.argv = [PROGRAM, *ARGUMENTS]
runpy.run_path(PROGRAM, run_name="__main__")
