"""The command `fda-mri`."""

from __future__ import annotations

from dart_core.cli import leave
from dart_core.cli import main as run_command
from fda_mri import __version__
from fda_mri import settings as of

DESCRIPTION = (
    "Fourier domain adaptation at test time: a segmentation network trained on one MRI scanner is used on another "
    "without any training. Research software, not a medical device."
)

COMMANDS = {
    "demo": (of.Demo, "fda_mri.demo:demo"),
    "check-data": (of.CheckData, "fda_mri.commands:check_data"),
    "train": (of.Train, "fda_mri.commands:train"),
    "bank": (of.Bank, "fda_mri.commands:bank"),
    "adapt": (of.Adapt, "fda_mri.adaptation:adapt"),
    "predict": (of.Predict, "fda_mri.adaptation:predict"),
    "tune-beta": (of.TuneBeta, "fda_mri.tuning:tune_beta"),
    "evaluate": (of.Evaluate, "fda_mri.evaluation:evaluate"),
    "export": (of.Export, "fda_mri.commands:export"),
}


def main() -> None:
    """Entry point of the console script and of `python -m fda_mri` (which torchrun starts)."""
    leave(run_command("fda-mri", COMMANDS, __version__, DESCRIPTION))
