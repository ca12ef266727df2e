"""The command `predict`: boxes and scores of every picture."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dart_core.cli import say
from dart_core.data.boxes import CELL, BoxedPicture, write_boxes
from dart_core.errors import InputError
from dart_core.files import write_atomic
from dart_core.report import Report
from dart_core.run import METRICS, claim_folder, find_device, flat_settings
from sissi import settings as of
from sissi.detectors import PACKAGE, About, load_detector
from sissi.figures import Look, label_sheet
from sissi.fusion import fuse
from sissi.method import detect, detect_views
from sissi.pictures import Files, dark_note, frame_tensor, is_dark, open_pictures, refuse_to_delete
from sissi.views import VIEWS

FILE = "detections.csv"
SHOWN = 6


def predict(command: of.Predict) -> None:
    """Detect cells in the pictures of a list or folder."""
    device = find_device(command.device)
    detector, about = load_detector(command.model, device)
    pictures = open_pictures(command.pictures, command.split)
    files, dark = Files(False, about.colours), []
    for picture in pictures:
        if not picture.image.is_file():
            raise InputError(f"no picture {picture.image}", where=picture.where, remedy="check the path")
        # A damaged one is named before the folder is touched.
        dark += [picture.image] * is_dark(files(picture.image))
    out = command.output.out
    if command.output.overwrite:
        refuse_to_delete(out, pictures)
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    if dark:
        say(f"note: {dark_note(dark)}")
    found = detect_cells(detector, about, pictures, device, command.views, command.batch_size)
    write_boxes(out / FILE, found)
    count = sum(len(picture.boxes) for picture in found)
    content = {"model": dataclasses.asdict(about), "views": command.views, "split": command.split, "pictures": len(found), "boxes": count}  # fmt: skip
    write_atomic(out / METRICS, json.dumps(content, indent=2) + "\n")
    report = Report("Detections", f"{count} cells in {len(found)} pictures; {about.method}", package=PACKAGE)
    shown = [
        Look(f"{picture.image.name}: {int((picture.scores > 0.5).sum())} cells", Files(False, "rgb")(picture.image), {"detected": picture.boxes[picture.scores > 0.5]})
        for picture in found[:SHOWN] if picture.scores is not None
    ]  # fmt: skip
    report.picture(
        label_sheet([shown[i : i + 3] for i in range(0, len(shown), 3)]), "Detections with a score above 0.5",
        "microscope pictures with boxes",
    )  # fmt: skip
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    say(f"detections: {out / FILE}   report: {out / 'report.html'}   next: {PACKAGE} evaluate --predictions {out} ...")


@torch.no_grad()
def detect_cells(
    detector: nn.Module, about: About, pictures: Sequence[BoxedPicture], device: torch.device, views: str = "one",
    batch_size: int = 4,
) -> list[BoxedPicture]:  # fmt: skip
    """The same pictures with what the detector finds, in their own pixels, with scores.

    Args:
        detector: in evaluation mode.
        about: what it says of itself.
        pictures: their boxes are not looked at.
        device: where the detector is.
        views: one, or all: boxes of 20 views, fused.
        batch_size: pictures at a time.
    """
    files, side, found = Files(False, about.colours), about.size, []
    for start in range(0, len(pictures), batch_size):
        part = pictures[start : start + batch_size]
        images = [files(picture.image) for picture in part]
        frames = torch.stack([frame_tensor(image, side) for image in images])
        results: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
        if views == "one":
            results = [
                (item["boxes"].double().cpu().numpy(), item["scores"].double().cpu().numpy())
                for item in detect(detector, frames, device)
            ]
        else:
            settings = of.Correction()
            for boxes, scores, index in detect_views(detector, frames, device, settings):
                labels = np.ones(len(boxes), np.int64)
                fused = fuse(boxes / side, scores, labels, index, np.ones(len(VIEWS)), settings.fusion_iou, about.score)
                results.append((fused[0] * side, fused[1]))
        for picture, image, (boxes, scores) in zip(part, images, results, strict=True):
            height, width = image.shape[:2]
            scale = np.array([width, height, width, height]) / side
            found.append(
                dataclasses.replace(
                    picture, boxes=boxes * scale, scores=scores, labels=(CELL,) * len(boxes), places=(), mask=None
                )
            )
    return found
