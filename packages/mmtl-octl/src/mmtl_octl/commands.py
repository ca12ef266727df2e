"""The commands by task: where the function of a command lies, and which settings belong to one task only."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator
from typing import Any

from dart_core.errors import SettingError
from mmtl_octl import settings as of

TASKS = {
    "segmentation": {
        "check_data": "mmtl_octl.segmentation",
        "pretrain": "mmtl_octl.segmentation",
        "adapt": "mmtl_octl.segmentation",
        "predict": "mmtl_octl.prediction",
        "evaluate": "mmtl_octl.evaluation",
    },
    "classification": {
        "check_data": "mmtl_octl.classification",
        "pretrain": "mmtl_octl.classification",
        "adapt": "mmtl_octl.classification",
        "predict": "mmtl_octl.label_prediction",
        "evaluate": "mmtl_octl.aucs",
    },
}
"""Task -> command -> module with a function of the command's name."""

ONLY = {
    "segmentation": {
        "preprocessing", "spacing", "cache", "width", "patch_size", "patients", "interval", "features", "require_mask",
        "largest_component", "filter_slices", "probabilities", "tolerance", "surface", "grid",
    },
    "classification": {"labels", "image_size", "split_by", "images", "imagenet", "policy_imagenet"},
}  # fmt: skip
"""Settings that the other task has no use for."""


def _run(name: str, command: Any) -> Any:
    for other, names in ONLY.items():
        if other != command.task and (given := next(_changed(command, names), None)):
            raise SettingError(
                f"--{given.replace('_', '-')} has no meaning for --task {command.task}", remedy="leave it out"
            )
    return getattr(importlib.import_module(TASKS[command.task][name]), name)(command)


def _changed(settings: Any, names: set[str]) -> Iterator[str]:
    """Which of these settings are not at their defaults."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from _changed(value, names)
        elif field.name in names and value != field.default:
            yield field.name


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
