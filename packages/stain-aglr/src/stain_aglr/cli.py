"""The command `stain-aglr`."""

from __future__ import annotations

from dart_core.cli import leave
from dart_core.cli import main as run_command
from stain_aglr import __version__
from stain_aglr import settings as of

DESCRIPTION = (
    "Patch classifiers for H&E histology that keep their accuracy on slides of laboratories whose staining they never saw: "
    "training with altered stains, a consistency loss and a stain regeneration loss (Stain-AgLr), and what the paper "
    "compares it with. Research software, not a medical device."
)

COMMANDS = {
    "demo": (of.Demo, "stain_aglr.demo:demo"),
    "check-data": (of.CheckData, "stain_aglr.commands:check_data"),
    "patches": (of.Patches, "stain_aglr.patches:patches"),
    "normalise": (of.Normalise, "stain_aglr.normalising:normalise"),
    "train": (of.Train, "stain_aglr.commands:train"),
    "predict": (of.Predict, "stain_aglr.prediction:predict"),
    "evaluate": (of.Evaluate, "stain_aglr.evaluation:evaluate"),
    "export": (of.Export, "stain_aglr.export:export"),
}


def main() -> None:
    """Entry point of the console script and of `python -m stain_aglr` (which torchrun starts)."""
    leave(run_command("stain-aglr", COMMANDS, __version__, DESCRIPTION))
