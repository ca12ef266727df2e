"""The command `skintone-debias`."""

from __future__ import annotations

from dart_core.cli import leave
from dart_core.cli import main as run_command
from skintone_debias import __version__
from skintone_debias import settings as of

DESCRIPTION = (
    "Skin-tone labels (ITA and Fitzpatrick type) for photographs of skin, without segmentation; and classifiers of skin "
    "lesions that unlearn a nuisance such as skin type (LNTL, TABE, CLGR), scored per group of skin types. Research "
    "software, not a medical device."
)

COMMANDS = {
    "demo": (of.Demo, "skintone_debias.demo:demo"),
    "check-data": (of.CheckData, "skintone_debias.commands:check_data"),
    "label": (of.Label, "skintone_debias.labelling:label"),
    "train": (of.Train, "skintone_debias.commands:train"),
    "predict": (of.Predict, "skintone_debias.commands:predict"),
    "evaluate": (of.Evaluate, "skintone_debias.evaluation:evaluate"),
    "export": (of.Export, "skintone_debias.commands:export"),
}


def main() -> None:
    """Entry point of the console script and of `python -m skintone_debias` (which torchrun starts)."""
    leave(run_command("skintone-debias", COMMANDS, __version__, DESCRIPTION))
