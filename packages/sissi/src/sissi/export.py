"""The command `export`: a detector in torchvision's names."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import detection

from dart_core.checkpoint import save_tensors, weights_file
from dart_core.cli import say
from dart_core.errors import OutputError
from dart_core.export import check_file
from sissi import settings as of
from sissi.detectors import CLASSES, SMALL, load_detector
from sissi.pictures import frame_tensor

COLOURS = {"rgb": "red, green, blue", "bgr": "blue, green, red"}
"""Order of the channels -> what people call it."""


def export(command: of.Export) -> None:
    """Write the detector so that torchvision loads it without any renaming."""
    path = command.out
    if path.resolve() == weights_file(command.model).resolve():
        raise OutputError("is the model itself", where=path, remedy="rename --out")
    check_file(path, ".safetensors", command.overwrite)
    detector, about = load_detector(command.model)
    if about.detector == SMALL:
        raise OutputError(
            "torchvision has no detector 'small'", where=command.model, remedy="keep its model.safetensors"
        )
    side, faster = about.size, about.detector.startswith("fasterrcnn")
    prefix = "box_" if faster else ""
    words: dict[str, Any] = {
        "num_classes": CLASSES, "min_size": side, "max_size": 2 * side, f"{prefix}score_thresh": about.score,
        f"{prefix}nms_thresh": about.nms, f"{prefix}detections_per_img": about.detections,
    }  # fmt: skip
    other: nn.Module = getattr(detection, about.detector)(weights=None, weights_backbone=None, **words)
    state = _state_for(other, detector)
    other.load_state_dict(state)
    worst = _difference(detector, other.eval(), side, about.colours)
    if worst > 1e-3:
        raise OutputError(f"torchvision's detector differs by {worst:.1e}", where=path, remedy="use the tested version")
    # What torchvision's constructor knows nothing of: it would keep the shape of a picture.
    pictures = {"colours": about.colours, "resize": [side, side], "range": [0, 1]}
    told = {"torchvision": json.dumps({"detector": about.detector, **words}), "pictures": json.dumps(pictures)}
    save_tensors(path, state, told)
    listed = "".join(f", {name}={value}" for name, value in words.items())
    say(
        f"{path}: torchvision.models.detection.{about.detector}(weights=None, weights_backbone=None{listed}), then load_state_dict; "
        f"pictures: channels {COLOURS[about.colours]}, resized to {side} x {side} whatever their shape, values from 0 to 1"
    )


def _state_for(other: nn.Module, detector: nn.Module) -> dict[str, Tensor]:
    """The weights as torchvision's detector takes them.

    Its batch norms have a counter, which frozen ones lack, and may add another epsilon to the variance, for which the layer's
    weight makes up.
    """
    state = {name: value.detach().clone() for name, value in detector.state_dict().items()}
    own = dict(detector.named_modules())
    for name, module in other.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            state.setdefault(f"{name}.num_batches_tracked", torch.tensor(0))
            variance, eps = state[f"{name}.running_var"].double(), float(own[name].eps)
            if eps != module.eps:
                ratio = ((variance + module.eps) / (variance + eps)).sqrt()
                state[f"{name}.weight"] = (state[f"{name}.weight"] * ratio).float()
    return state


@torch.no_grad()
def _difference(detector: nn.Module, other: nn.Module, side: int, colours: str) -> float:
    """Largest difference of what both find in a coloured picture that is not square, in sides of the frame and scores."""
    picture = np.random.default_rng(0).integers(0, 256, (side, side + side // 2, 3), dtype=np.uint8)
    picture //= np.array([1, 2, 4], np.uint8)
    frame = frame_tensor(np.ascontiguousarray(picture[..., ::-1]) if colours == "bgr" else picture, side)
    (one,), (two,) = (network([frame.float() / 255]) for network in (detector, other))
    if len(one["boxes"]) != len(two["boxes"]):
        return float("inf")
    scales = {"boxes": side, "scores": 1}
    return max(
        [float((one[key] - two[key]).abs().max()) / scale for key, scale in scales.items() if len(one[key])] or [0.0]
    )
