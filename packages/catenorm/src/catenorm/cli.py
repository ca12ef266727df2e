"""The command `catenorm`."""

from __future__ import annotations

from catenorm import __version__
from catenorm import settings as of
from dart_core.cli import leave
from dart_core.cli import main as run_command

DESCRIPTION = (
    "Segmentation of slices in two passes through one network: the second normalises its features by the classes that the first"
    " has found (CateNorm). Research software, not a medical device."
)

COMMANDS = {
    "demo": (of.Demo, "catenorm.demo:demo"),
    "check-data": (of.CheckData, "catenorm.commands:check_data"),
    "train": (of.Train, "catenorm.training:train"),
    "predict": (of.Predict, "catenorm.prediction:predict"),
    "evaluate": (of.Evaluate, "catenorm.evaluation:evaluate"),
    "align": (of.Align, "catenorm.commands:align"),
    "export": (of.Export, "catenorm.commands:export"),
}


def main() -> None:
    """Entry point of the console script and of `python -m catenorm`."""
    leave(run_command("catenorm", COMMANDS, __version__, DESCRIPTION))
