"""Run `fda-mri` in a process of the fork server as if it had been started by itself.

`runpy` puts the names ARGUMENTS and STDERR here.
"""

from __future__ import annotations

import os
import sys

from fda_mri.cli import main

ARGUMENTS: list[str]
STDERR: str

os.setsid()
os.dup2(os.open(STDERR, os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
sys.argv = ["fda-mri", *ARGUMENTS]
main()
