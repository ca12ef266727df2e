"""The command `united-ssl`."""

from __future__ import annotations

from dart_core.cli import leave
from dart_core.cli import main as run_command
from united_ssl import __version__
from united_ssl import settings as of

DESCRIPTION = (
    "Self-supervised pretraining of 3-D U-Nets on unlabelled CT cubes: discriminative, restorative and adversarial learning "
    "with five pretext tasks, in one go or step by step, and transfer to classification and segmentation. Research "
    "software, not a medical device; patents are pending on the method (see the README)."
)

COMMANDS = {
    "demo": (of.Demo, "united_ssl.demo:demo"),
    "check-data": (of.CheckData, "united_ssl.preparing:check_data"),
    "prepare": (of.Prepare, "united_ssl.preparing:prepare"),
    "pretrain": (of.Pretrain, "united_ssl.commands:pretrain"),
    "fine-tune": (of.FineTune, "united_ssl.tuning:fine_tune_command"),
    "predict": (of.Predict, "united_ssl.prediction:predict"),
    "evaluate": (of.Evaluate, "united_ssl.evaluation:evaluate"),
    "export": (of.Export, "united_ssl.export:export"),
}


def main() -> None:
    """Entry point of the console script and of `python -m united_ssl` (which torchrun starts)."""
    leave(run_command("united-ssl", COMMANDS, __version__, DESCRIPTION))
