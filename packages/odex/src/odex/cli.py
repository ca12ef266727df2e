"""The command `odex`."""

from __future__ import annotations

from dart_core.cli import leave
from dart_core.cli import main as run_command
from odex import __version__
from odex import settings as of

DESCRIPTION = (
    "Continual segmentation without task labels: a pool of networks that grows when the data drift away. "
    "Research software, not a medical device."
)

COMMANDS = {
    "demo": (of.Demo, "odex.demo:demo"),
    "check-data": (of.CheckData, "odex.commands:check_data"),
    "stream": (of.Stream, "odex.streaming:stream"),
    "learn": (of.Learn, "odex.learning:learn"),
    "predict": (of.Predict, "odex.prediction:predict"),
    "evaluate": (of.Evaluate, "odex.evaluation:evaluate"),
    "pool": (of.ShowPool, "odex.commands:show_pool"),
}


def main() -> None:
    """Entry point of the console script and of `python -m odex` (which torchrun starts)."""
    leave(run_command("odex", COMMANDS, __version__, DESCRIPTION))
