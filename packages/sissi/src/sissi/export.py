"""The command `export`: a detector in torchvision's names."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection

from dart_core.checkpoint import save_tensors
from dart_core.cli import say
from dart_core.errors import OutputError
from dart_core.export import check_file
from sissi import settings as of
from sissi.detectors import CLASSES, SMALL, load_detector


def export(command: of.Export) -> None:
    """Write the detector so that torchvision loads it without any renaming."""
    path = command.out
    check_file(path, ".safetensors", command.overwrite)
    detector, about = load_detector(command.model)
    if about.detector == SMALL:
        raise OutputError(
            "torchvision has no detector 'small'", where=command.model, remedy="keep its model.safetensors"
        )
    state = _with_counters(detector)
    side, faster = about.size, about.detector.startswith("fasterrcnn")
    prefix = "box_" if faster else ""
    words: dict[str, Any] = {
        "num_classes": CLASSES, "min_size": side, "max_size": 2 * side, f"{prefix}score_thresh": about.score,
        f"{prefix}nms_thresh": about.nms, f"{prefix}detections_per_img": about.detections,
    }  # fmt: skip
    worst = _difference(detector, state, about.detector, words)
    if worst > 1e-3:
        raise OutputError(f"torchvision's detector differs by {worst:.1e}", where=path, remedy="use the tested version")
    save_tensors(path, state, {"torchvision": json.dumps({"detector": about.detector, **words})})
    listed = "".join(f", {name}={value}" for name, value in words.items())
    say(
        f"{path}: torchvision.models.detection.{about.detector}(weights=None, weights_backbone=None{listed}), then load_state_dict"
    )


def _with_counters(detector: nn.Module) -> dict[str, Tensor]:
    """The weights with a counter for every batch norm, which frozen ones lack and torchvision's have."""
    state = {name: value.detach().clone() for name, value in detector.state_dict().items()}
    for name in [name for name in state if name.endswith("running_mean")]:
        state.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    return state


@torch.no_grad()
def _difference(detector: nn.Module, state: dict[str, Tensor], name: str, words: dict[str, Any]) -> float:
    """Largest difference of what both find in a picture, in pixels and scores."""
    other: nn.Module = getattr(detection, name)(weights=None, weights_backbone=None, **words)
    other.load_state_dict(state)
    side = words["min_size"]
    pictures = [torch.rand((3, side, side), generator=torch.Generator().manual_seed(0))]
    (one,), (two,) = detector(pictures), other.eval()(pictures)
    if len(one["boxes"]) != len(two["boxes"]):
        return float("inf")
    return max([float((one[key] - two[key]).abs().max()) for key in ("boxes", "scores") if len(one[key])] or [0.0])
