"""The command `mmtl-octl`."""

from __future__ import annotations

from dart_core.cli import leave
from dart_core.cli import main as run_command
from mmtl_octl import __version__
from mmtl_octl import settings as of

DESCRIPTION = (
    "Supervised domain adaptation by gradient transfer: a network from one site is fine-tuned on a few labelled scans of "
    "another, with batches that move from source to target (MMTL) or with the source training's gradient history (OCTL). "
    "Research software, not a medical device."
)

COMMANDS = {
    "demo": (of.Demo, "mmtl_octl.demo:demo"),
    "check-data": (of.CheckData, "mmtl_octl.commands:check_data"),
    "pretrain": (of.Pretrain, "mmtl_octl.commands:pretrain"),
    "adapt": (of.Adapt, "mmtl_octl.commands:adapt"),
    "predict": (of.Predict, "mmtl_octl.commands:predict"),
    "evaluate": (of.Evaluate, "mmtl_octl.commands:evaluate"),
}


def main() -> None:
    """Entry point of the console script and of `python -m mmtl_octl` (which torchrun starts)."""
    leave(run_command("mmtl-octl", COMMANDS, __version__, DESCRIPTION))
