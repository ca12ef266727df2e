"""The timing column of the paper's Table 2: seconds for 100 patches of 128 x 128 that lie in memory (specification 6)."""

from __future__ import annotations

import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

PATCHES, SIDE = 100, 128


@dataclass(frozen=True)
class Timing:
    """How long 100 patches take."""

    name: str
    seconds: float
    """Median of the repeats."""
    fastest: float
    slowest: float
    repeats: int
    threads: int
    machine: str


def seconds_per_hundred(
    functions: Mapping[str, Callable[[Tensor], object]], patches: Tensor, repeats: int = 5
) -> list[Timing]:
    """Time functions of patches by turns, after one call each to warm up.

    Args:
        functions: name -> what takes uint8 (100, 3, 128, 128): a normaliser, or one followed by a classifier.
        patches: uint8 (100, 3, 128, 128), on the device.
        repeats: how many times.
    """
    cuda = patches.device.type == "cuda"
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            function(patches)
            if cuda:
                torch.cuda.synchronize(patches.device)
            if turn:
                seconds[name].append(time.perf_counter() - started)
    where = torch.cuda.get_device_name(patches.device) if cuda else _processor()
    return [
        Timing(name, statistics.median(each), min(each), max(each), repeats, torch.get_num_threads(), where)
        for name, each in seconds.items()
    ]


def hundred_patches(pictures: list[Tensor]) -> Tensor:
    """100 patches of 128 x 128 out of pictures uint8 (3, H, W): their middles, over and over; small ones are enlarged.

    Args:
        pictures: at least one.
    """
    from stain_aglr.normalisation import resized

    patches = []
    for picture in pictures[:PATCHES]:
        side = min(*picture.shape[1:], SIDE)
        top, left = (picture.shape[1] - side) // 2, (picture.shape[2] - side) // 2
        patches.append(resized(picture[None, :, top : top + side, left : left + side], (SIDE, SIDE))[0])
    return torch.stack([patches[i % len(patches)] for i in range(PATCHES)])


def _processor() -> str:
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        name = found[1].strip() if found else name
    return f"{name}, {os.cpu_count()} cores"
