"""The command `sissi`."""

from __future__ import annotations

from dart_core.cli import leave
from dart_core.cli import main as run_command
from sissi import __version__
from sissi import settings as of

DESCRIPTION = (
    "Cell detection from machine-made, wrong and incomplete boxes, which the detector corrects as it learns, with cells that have "
    "no box hidden by seamless cloning (SISSI). Research software, not a medical device."
)

COMMANDS = {
    "demo": (of.Demo, "sissi.demo:demo"),
    "check-data": (of.CheckData, "sissi.commands:check_data"),
    "weak-label": (of.WeakLabel, "sissi.commands:weak_label"),
    "train": (of.Train, "sissi.training:train"),
    "predict": (of.Predict, "sissi.prediction:predict"),
    "evaluate": (of.Evaluate, "sissi.evaluation:evaluate"),
    "export": (of.Export, "sissi.export:export"),
}


def main() -> None:
    """Entry point of the console script and of `python -m sissi` (which torchrun starts)."""
    leave(run_command("sissi", COMMANDS, __version__, DESCRIPTION))
