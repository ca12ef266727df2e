"""The command `stream`: the two streams of the paper as files (specification 5)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from dart_core.cli import say
from dart_core.data.datalist import Datalist, Row
from dart_core.data.scans import frame_of, subject_of, unique_names
from dart_core.data.volumes import Volume, read_labels, read_volume, write_volume
from dart_core.errors import InputError
from dart_core.run import claim_folder, flat_settings
from odex import settings as of
from odex.cases import DATALIST, Stage, read_stage
from odex.streams import smooth_stream

SCALE, DEGREES, TRANSLATION = 0.2, 15.0, 5.0
"""Of the strongest transform: scales 0.8 to 1.2, degrees and mm."""
PERCENTILE = 10.0

Item = TypeVar("Item")
Key: TypeAlias = tuple[str, str]
"""Name and source of a case."""
Stretch = Literal["percentiles", "linear", "torchio-percent"]


def stream(command: of.Stream) -> None:
    """Write stage-1, stage-2, ..., each with a datalist."""
    sources = [read_stage(path) for path in command.sources]
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise InputError(f"sources of the same name ({', '.join(names)})", remedy="rename their folders")
    if command.kind == "transformed" and len(sources) != 1:
        raise InputError(f"{len(sources)} sources", remedy="--kind transformed takes one")
    cases = _cases(sources)
    if command.kind == "shifting-source":
        by_source = {name: [key for key in cases if key[1] == name] for name in names}
        stages = smooth_stream(by_source, command.counts())
    else:
        of_subject: dict[str, list[Key]] = {}
        for key in sorted(cases):
            of_subject.setdefault(subject_of(cases[key]), []).append(key)
        parts = equal_parts(list(of_subject), command.stages)
        stages = [[key for subject in part for key in of_subject[subject]] for part in parts]
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    for number, stage in enumerate(stages):
        rows = with_splits([cases[key] for key in stage])
        if command.kind == "transformed":
            strength, first = number / max(len(stages) - 1, 1), sum(map(len, stages[:number]))
            rows = write_transformed(out / f"stage-{number + 1}", rows, strength, command.stretch, command.seed, first)
        path = write_stage(out, number + 1, rows)
        say(f"{path}: {len(rows)} cases, {', '.join(sorted({row.site for row in rows}))}")


def _cases(sources: Sequence[Stage]) -> dict[Key, Row]:
    """Every case by name and source; the site of each is its source."""
    found = {}
    for source in sources:
        rows = source.of("all")
        for row, name in zip(rows, unique_names(rows), strict=True):
            if row.mask is None:
                raise InputError("no mask", where=row.where("mask"), remedy="give the mask of every case of a stream")
            found[name, source.name] = replace(row, site=source.name)
    return found


def equal_parts(cases: Sequence[Item], stages: int) -> list[list[Item]]:
    """Cases (or subjects) in their order, in stages of sizes that differ by one at most.

    Raises:
        InputError: fewer than two cases for each stage.
    """
    if len(cases) < 2 * stages:
        raise InputError(f"{len(cases)} cases for {stages} stages", remedy="give at least two cases for each stage")
    ends = [round(len(cases) * number / stages) for number in range(stages + 1)]
    return [list(cases[a:b]) for a, b in itertools.pairwise(ends)]


def with_splits(rows: Sequence[Row]) -> list[Row]:
    """Rows with a split: every fifth subject in the order of the list is for test, one in ten for the reference distances (val).

    Stages of fewer than ten subjects have the last one for test and no val.
    """
    people = list(dict.fromkeys(map(subject_of, rows)))
    if len(people) < 10:
        splits = ["train"] * (len(people) - 1) + ["test"]
    else:
        splits = ["test" if i % 5 == 4 else "val" if i % 10 == 2 else "train" for i in range(len(people))]
    of_subject = dict(zip(people, splits, strict=True))
    return [replace(row, split=of_subject[subject_of(row)]) for row in rows]


def write_stage(out: Path, number: int, rows: Sequence[Row]) -> Path:
    """The datalist of a stage; paths in it lead to where the files are."""
    return Datalist(tuple(rows)).write(out / f"stage-{number}" / DATALIST)


# --- Transforms ------------------------------------------------------------------------------------------------------


def write_transformed(
    folder: Path, rows: Sequence[Row], strength: float, stretch: Stretch, seed: int, first: int = 0
) -> list[Row]:
    """Transform cases and write them; a strength of 0 leaves them where they are.

    Args:
        folder: gets images and masks.
        rows: with masks.
        strength: s, from 0 to 1.
        stretch: what "contrast stretching of (0.1, 0.9)" means.
        seed: of the draws.
        first: number of the first case in the whole stream: each case has a draw of its own.
    """
    if strength == 0:
        return list(rows)
    written = []
    for number, (row, name) in enumerate(zip(rows, unique_names(rows), strict=True), first):
        volume = read_volume(row.image, frame=frame_of(row))
        assert row.mask is not None  # `_cases` has looked
        labels = read_labels(row.mask, volume, frame_of(row), negative_as_background=True)
        image, mask = transform_case(volume, labels, strength, stretch, np.random.default_rng([seed, number]))
        paths = [folder / part / f"{name}.nii.gz" for part in ("images", "masks")]
        write_volume(paths[0], image, volume, dtype=np.float32)
        write_volume(paths[1], mask, volume, dtype=np.uint8)
        written.append(replace(row, image=paths[0], mask=paths[1], labels={}))
    return written


def transform_case(
    volume: Volume, labels: NDArray[Any], strength: float, stretch: Stretch, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """One case as the stage of strength s sees it, by TorchIO.

    First the contrast, then scales U(1 - 0.2 s, 1 + 0.2 s), angles U(-15 s, 15 s) degrees and shifts U(-5 s, 5 s) mm along each
    axis. Contrast: percentiles: stretched between the percentiles 10 s and 100 - 10 s; linear: to the range (0.1 s, 1 - 0.1 s), which any z-score
    undoes; torchio-percent: between the percentiles 0.1 and 0.9 (whatever s), as TorchIO takes (0.1, 0.9). Labels: nearest.

    Args:
        volume: the image.
        labels: (H, W, Z) on its grid.
        strength: s, from 0 to 1.
        stretch: see above.
        rng: of the draws.
    """
    import torch
    import torchio as tio

    s = strength
    scales, degrees, shift = (
        tuple(rng.uniform(low, high, 3).tolist())
        for low, high in (
            (1 - SCALE * s, 1 + SCALE * s),
            (-DEGREES * s, DEGREES * s),
            (-TRANSLATION * s, TRANSLATION * s),
        )
    )
    original = tio.ScalarImage(tensor=torch.from_numpy(np.ascontiguousarray(volume.array))[None], affine=volume.affine)
    labelled = tio.LabelMap(tensor=torch.from_numpy(labels.astype(np.int16))[None], affine=volume.affine)
    if stretch == "percentiles":
        contrast = tio.RescaleIntensity((0, 1), percentiles=(PERCENTILE * s, 100 - PERCENTILE * s))
    elif stretch == "linear":
        contrast = tio.RescaleIntensity((0.1 * s, 1 - 0.1 * s))
    else:
        contrast = tio.RescaleIntensity((0, 1), percentiles=(0.1, 0.9))
    move = tio.Affine(scales, degrees, shift)
    # In this order: the border that the movement fills in must not count among the percentiles.
    image, mask = move(contrast(original)).data[0].numpy(), move(labelled).data[0].numpy()
    # A shift of 1: nnU-Net's non-zero mask would else cut the darkest voxels away.
    return np.asarray(image + 1, dtype=np.float32), mask.astype(np.uint8)
