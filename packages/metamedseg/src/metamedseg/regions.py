"""The 24 data sets of the paper: regions, channels and thresholds of the Decathlon's tasks (specification 2.1). Free of torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from dart_core.errors import InputError

DEFAULT_THRESHOLD = 100


@dataclass(frozen=True)
class Region:
    """One label of a task, and the data sets that it gives, one for each channel used."""

    label: int
    expected: str
    """What the name of this label in dataset.json must match, whatever its case."""
    threshold: int
    """Pixels that it must have in a slice."""
    datasets: Mapping[int, str]
    """Channel -> data set."""


@dataclass(frozen=True)
class OrganTask:
    """A task of the Decathlon."""

    organ: str
    regions: tuple[Region, ...]


def _brain(label: int, expected: str, threshold: int, name: str) -> Region:
    modes = ("FLAIR", "T1w", "t1gd", "T2w")
    return Region(label, expected, threshold, {i: f"brain_{name}_{mode}" for i, mode in enumerate(modes)})


TASKS: Mapping[str, OrganTask] = MappingProxyType(
    {
        "Task01_BrainTumour": OrganTask(
            "brain",
            (
                _brain(1, "o?edema", 1000, "edema"),
                _brain(2, r"non.?enhancing.*", 400, "ne_tumour"),
                _brain(3, r"enhancing.*", 600, "e_tumour"),
            ),
        ),
        "Task02_Heart": OrganTask("heart", (Region(1, "left atrium", 700, {0: "heart"}),)),
        "Task04_Hippocampus": OrganTask(
            "hippocampus",
            (
                Region(1, "anterior.*", 100, {0: "hippocampus_anterior"}),
                Region(2, "posterior.*", 100, {0: "hippocampus_posterior"}),
            ),
        ),
        "Task05_Prostate": OrganTask(
            "prostate",
            (
                Region(1, "pz|peripheral.*", 300, {0: "prostate_peripheral_T2"}),
                Region(2, "tz|transitional.*", 600, {0: "prostate_transitional_T2"}),
            ),
        ),
        "Task06_Lung": OrganTask("lung", (Region(1, ".*(cancer|tumou?r).*", 1000, {0: "lung"}),)),
        "Task07_Pancreas": OrganTask(
            "pancreas",
            (
                Region(1, "pancreas", 1000, {0: "pancreas"}),
                Region(2, "cancer|tumou?r", 1000, {0: "pancreas_cancer"}),
            ),
        ),
        "Task08_HepaticVessel": OrganTask(
            "vessel",
            (
                Region(1, "vessel", 1000, {0: "vessel"}),
                Region(2, "cancer|tumou?r", 1000, {0: "vessel_cancer"}),
            ),
        ),
        "Task09_Spleen": OrganTask("spleen", (Region(1, "spleen", 600, {0: "spleen"}),)),
        "Task10_Colon": OrganTask("colon", (Region(1, "colon.*", 400, {0: "colon"}),)),
    }
)
"""By the name of the folder; other folders get generic names."""
UNUSED = "Task03_Liver"
"""The tenth task of the Decathlon, which the paper leaves out."""


def organ_task(name: str, labels: Mapping[int, str], modalities: Sequence[str], where: Path) -> OrganTask:
    """Regions of a folder: those of the table, else one data set for each label and channel, named after them.

    Args:
        name: of the folder.
        labels: value -> name, as dataset.json has them.
        modalities: names of the channels.
        where: dataset.json, for messages.

    Raises:
        InputError: a folder of the table whose labels or channels are others; no label but background.
    """
    task = TASKS.get(name)
    if task is None:
        regions = [(value, label) for value, label in labels.items() if value]
        if not regions:
            raise InputError("it names no label but the background", where=where, remedy="name the labels there")
        organ = _word(re.sub(r"^Task\d+_", "", name))
        several, modes = len(regions) > 1, len(modalities) > 1
        made = []
        for value, label in regions:
            stem = f"{organ}_{_word(label)}" if several else organ
            datasets = {i: f"{stem}_{_word(mode)}" if modes else stem for i, mode in enumerate(modalities)}
            made.append(Region(value, "", DEFAULT_THRESHOLD, datasets))
        return OrganTask(organ, tuple(made))
    for region in task.regions:
        found = labels.get(region.label, "")
        if re.fullmatch(region.expected, found.strip(), re.IGNORECASE) is None:
            raise InputError(
                f"label {region.label} of {name} is {found!r}, not {region.expected!r}",
                where=where,
                remedy="give the Decathlon's own folder, or rename this one",
            )
        if max(region.datasets) >= len(modalities):
            raise InputError(
                f"{name} has {len(modalities)} channels, {max(region.datasets) + 1} are needed",
                where=where,
                remedy="give the Decathlon's own folder, or rename this one",
            )
    return task


def _word(text: str) -> str:
    """A name as a folder and a table can bear it."""
    return re.sub(r"[^A-Za-z0-9-]+", "_", text).strip("_").lower() or "x"
