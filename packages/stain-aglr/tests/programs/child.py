"""Run `stain-aglr` in a process of the fork server as if it had been started by itself.

The names ARGUMENTS and STDERR are put here by `runpy`.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from stain_aglr.cli import main

given: dict[str, Any] = globals()
os.setsid()
os.dup2(os.open(given["STDERR"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
sys.argv = ["stain-aglr", *given["ARGUMENTS"]]
main()
