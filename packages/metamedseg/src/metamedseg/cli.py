"""The command `metamedseg`."""

from __future__ import annotations

from dart_core.cli import leave
from dart_core.cli import main as run_command
from metamedseg import __version__
from metamedseg import settings as of

DESCRIPTION = (
    "Few-shot segmentation of new organs in CT and MR slices: meta-training (Reptile) on tasks that are volumes of other "
    "organs, with importance-aware weighting, then fine-tuning on 15 slices. Research software, not a medical device."
)

COMMANDS = {
    "demo": (of.Demo, "metamedseg.demo:demo"),
    "check-data": (of.CheckData, "metamedseg.preparing:check_data"),
    "prepare": (of.Prepare, "metamedseg.preparing:prepare"),
    "meta-train": (of.MetaTrain, "metamedseg.commands:meta_train_command"),
    "fine-tune": (of.FineTune, "metamedseg.tuning:fine_tune_command"),
    "predict": (of.Predict, "metamedseg.prediction:predict"),
    "evaluate": (of.Evaluate, "metamedseg.evaluation:evaluate"),
    "distances": (of.Distances, "metamedseg.distances:distances"),
}


def main() -> None:
    """Entry point of the console script and of `python -m metamedseg`."""
    leave(run_command("metamedseg", COMMANDS, __version__, DESCRIPTION))
