"""The command `popar`."""

from __future__ import annotations

from dart_core.cli import leave
from dart_core.cli import main as run_command
from popar import __version__
from popar import settings as of

DESCRIPTION = (
    "Self-supervised pretraining of ViT and Swin transformers on chest radiographs by patch order prediction and appearance "
    "recovery (POPAR), and fine-tuning on labels. Research software, not a medical device. Patents are pending on the content "
    "of the paper."
)

COMMANDS = {
    "demo": (of.Demo, "popar.demo:demo"),
    "check-data": (of.CheckData, "popar.commands:check_data"),
    "pretrain": (of.Pretrain, "popar.pretraining:pretrain"),
    "fine-tune": (of.FineTune, "popar.transfer:fine_tune"),
    "predict": (of.Predict, "popar.prediction:predict"),
    "evaluate": (of.Evaluate, "popar.evaluation:evaluate"),
    "export": (of.Export, "popar.export:export"),
}


def main() -> None:
    """Entry point of the console script and of `python -m popar` (which torchrun starts)."""
    leave(run_command("popar", COMMANDS, __version__, DESCRIPTION))
