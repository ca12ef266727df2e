"""How long a stage has taken, over all its sessions."""

from __future__ import annotations

import time
from pathlib import Path

from dart_core.files import output_errors

FILE = "seconds.txt"


class Stopwatch:
    """Wall time of a stage's command, with that of the sessions before a resume.

    It lies in a file of its own, a line for each time that it was saved: two runs of one seed have the same checkpoints, and
    never the same seconds.

    Args:
        out: run folder; what an earlier session left there counts.
        started: when this session began, by `time.monotonic`.
    """

    def __init__(self, out: Path, started: float) -> None:
        self.file = out / FILE
        self.started = started
        lines = self.file.read_text().split("\n")[:-1] if self.file.is_file() else []
        # Not the last line but the largest: one that kill -9 has cut is smaller.
        self.earlier = max((float(line) for line in lines if line), default=0.0)

    @property
    def seconds(self) -> float:
        """Up to now."""
        return self.earlier + time.monotonic() - self.started

    def save(self) -> None:
        """Add a line with the seconds up to now.

        Raises:
            OutputError: the file cannot be written.
        """
        with output_errors(self.file), open(self.file, "a", encoding="utf-8") as file:
            file.write(f"\n{self.seconds:.3f}\n")
