"""Pictures for reports: what the network saw and what it restored; how fast it was."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

SHOWN = 160
"""Largest side of a picture in a sheet of examples."""


def examples_sheet(rows: Mapping[str, Tensor]) -> NDArray[np.uint8]:
    """Rows of pictures under each other: uint8 (height, width, 3).

    Args:
        rows: name -> (N, 3, H, H) in [0, 1]; as many pictures in each row.
    """
    sheets = []
    for images in rows.values():
        if images.shape[-1] > SHOWN:
            images = F.interpolate(images, (SHOWN, SHOWN), mode="area")
        strip = F.pad(images, (0, 4, 0, 4), value=1.0).permute(2, 0, 3, 1).flatten(1, 2)
        sheets.append((strip * 255).round().numpy().astype(np.uint8))
    return np.concatenate(sheets)[:-4, :-4]


def examples_figure(rows: Mapping[str, Tensor]) -> Figure:
    """The same with the names of the rows, for a report."""
    count = len(next(iter(rows.values())))
    figure = Figure(figsize=(1.5 * count + 1.3, 1.55 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), count, squeeze=False)
    for (name, images), line in zip(rows.items(), axes, strict=True):
        for image, cell in zip(images, line, strict=True):
            cell.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
            cell.set_xticks([])
            cell.set_yticks([])
            for spine in cell.spines.values():
                spine.set_visible(False)
        line[0].set_ylabel(name.replace(": ", ":\n"), fontsize=8)
    return figure


def throughput(out: Path, batch_size: int) -> list[tuple[float, float]]:
    """(step, images per second) between the lines that a training logged, measurements left out.

    Args:
        out: the run's folder with metrics.jsonl.
        batch_size: images of a step.
    """
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found = []
    for before, after in itertools.pairwise(lines):
        seconds, steps = after["time"] - before["time"], after["step"] - before["step"]
        if "loss" in before and "loss" in after and steps > 0 and seconds > 0:
            found.append((after["step"], steps * batch_size / seconds))
    return found
