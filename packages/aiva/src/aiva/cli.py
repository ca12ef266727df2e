"""The command `aiva`."""

from __future__ import annotations

from aiva import __version__
from aiva import settings as of
from dart_core.cli import leave
from dart_core.cli import main as run_command

DESCRIPTION = (
    "Unsupervised site adaptation: a segmentation network trained on one site's labelled scans is adapted to another site's "
    "scans without masks, by aligning the clusters of both sites' slices (AIVA). Research software, not a medical device."
)

COMMANDS = {
    "demo": (of.Demo, "aiva.demo:demo"),
    "check-data": (of.CheckData, "aiva.commands:check_data"),
    "pretrain": (of.Pretrain, "aiva.commands:pretrain"),
    "adapt": (of.Adapt, "aiva.adaptation:adapt"),
    "predict": (of.Predict, "aiva.commands:predict"),
    "evaluate": (of.Evaluate, "aiva.commands:evaluate"),
    "clusters": (of.Clusters, "aiva.study:clusters"),
}


def main() -> None:
    """Entry point of the console script and of `python -m aiva` (which torchrun starts)."""
    leave(run_command("aiva", COMMANDS, __version__, DESCRIPTION))
