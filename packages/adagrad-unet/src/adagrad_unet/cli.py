"""The command `adagrad-unet`."""

from __future__ import annotations

from adagrad_unet import __version__
from adagrad_unet import settings as of
from dart_core.cli import leave
from dart_core.cli import main as run_command

DESCRIPTION = (
    "2-D nnU-Net trained with AvaGrad for few epochs, so that it segments images of other MRI scanners better. "
    "Research software, not a medical device."
)

COMMANDS = {
    "demo": (of.Demo, "adagrad_unet.demo:demo"),
    "check-data": (of.CheckData, "adagrad_unet.commands:check_data"),
    "plan": (of.MakePlan, "adagrad_unet.commands:make_plan"),
    "train": (of.Train, "adagrad_unet.commands:train"),
    "spottune": (of.Spottune, "adagrad_unet.spottune:spottune"),
    "predict": (of.Predict, "adagrad_unet.prediction:predict"),
    "evaluate": (of.Evaluate, "adagrad_unet.evaluation:evaluate"),
    "layer-speed": (of.LayerSpeed, "adagrad_unet.commands:layer_speed"),
}


def main() -> None:
    """Entry point of the console script and of `python -m adagrad_unet` (which torchrun starts)."""
    leave(run_command("adagrad-unet", COMMANDS, __version__, DESCRIPTION))
