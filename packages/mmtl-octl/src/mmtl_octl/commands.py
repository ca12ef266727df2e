"""The commands by task: where the function of a command lies."""

from __future__ import annotations

import importlib
from typing import Any

from mmtl_octl import settings as of

TASKS = {
    "segmentation": {
        "check_data": "mmtl_octl.segmentation",
        "pretrain": "mmtl_octl.segmentation",
        "adapt": "mmtl_octl.segmentation",
        "predict": "mmtl_octl.prediction",
        "evaluate": "mmtl_octl.evaluation",
    }
}
"""Task -> command -> module with a function of the command's name."""


def _run(name: str, command: Any) -> Any:
    return getattr(importlib.import_module(TASKS[command.task][name]), name)(command)


def check_data(command: of.CheckData) -> int:
    """Print every problem of a datalist; 0 if there is none, else 2."""
    status: int = _run("check_data", command)
    return status


def pretrain(command: of.Pretrain) -> None:
    """Train a source network and save its optimiser's history."""
    _run("pretrain", command)


def adapt(command: of.Adapt) -> None:
    """Fine-tune a source network on a target site."""
    _run("adapt", command)


def predict(command: of.Predict) -> None:
    """Apply a network to the scans of a site."""
    _run("predict", command)


def evaluate(command: of.Evaluate) -> None:
    """Score predictions."""
    _run("evaluate", command)
