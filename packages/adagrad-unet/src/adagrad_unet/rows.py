"""The rows of a datalist: which are for training, which files are their channels, and what their labels are called."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adagrad_unet import settings as of
from dart_core.data.catalog import mms
from dart_core.data.datalist import Datalist, Row
from dart_core.data.scans import frame_of, open_datalist, require_subjects, subject_of
from dart_core.errors import InputError

HELD_OUT = 0.2
"""Share of a site's subjects that is for testing where no split is given."""
SPLIT_SEED = 0xBADCAFE


def read_datalist(cases: of.Cases) -> Datalist:
    """The datalist of a command, narrowed to its site.

    Raises:
        InputError: it cannot be read, or has no such site.
    """
    path = cases.datalist
    file = path / "dataset.json" if path.is_dir() else path
    # nnU-Net's channels lie in files of their own, and the first names the case.
    several = file.suffix == ".json" and file.is_file() and len(_content(file).get("channel_names") or ()) > 1
    listed = (
        Datalist.read(path, channel=next(iter(_content(file)["channel_names"])))
        if several
        else open_datalist(path, published_splits=False)
    )
    return listed.select(site=cases.site) if cases.site else listed


def select(cases: of.Cases, split: of.Split, datalist: Datalist | None = None) -> list[Row]:
    """The rows of the site that belong to a split.

    A split column decides where there is one. Else a fifth of each site's subjects, drawn with a fixed seed, is test and the
    others are train, which is what the paper's source site needs; nothing is val.

    Raises:
        InputError: no row of this split.
    """
    listed = read_datalist(cases) if datalist is None else datalist
    if split == "all":
        return list(listed)
    if listed.splits:
        rows = [row for row in listed if row.split == split]
    else:
        held_out = _held_out(listed)
        rows = [
            row for row in listed if split != "val" and ((row.site, subject_of(row)) in held_out) == (split == "test")
        ]
    if not rows:
        where = f"{listed.source}, site {cases.site}" if cases.site else listed.source
        raise InputError(
            f"no row is for {split}", where=where, remedy=f"write {split} into the column split of some subjects"
        )
    return rows


def training_rows(cases: of.Cases, datalist: Datalist) -> list[Row]:
    """The training rows of a source site.

    Raises:
        InputError: none there, or those of one subject only: a plan, and a network for other scanners, need more to go by.
    """
    rows = select(cases, "train", datalist)
    require_subjects(rows, 2, f"site {cases.site}, split train" if cases.site else "split train")
    return rows


def _held_out(listed: Datalist) -> set[tuple[str, str]]:
    """(site, subject) of the test cases where there is no split column."""
    chosen: set[tuple[str, str]] = set()
    for site in listed.sites or ("",):
        subjects = sorted({subject_of(row) for row in listed if row.site == site})
        if len(subjects) < 2:
            continue  # nothing to divide: all are for training
        order = np.random.default_rng(SPLIT_SEED).permutation(len(subjects))
        chosen |= {(site, subjects[i]) for i in order[: max(1, round(HELD_OUT * len(subjects)))]}
    return chosen


def channel_files(row: Row) -> list[tuple[Path, int | None]]:
    """File, and frame of a 4-D file, of each channel of a row.

    nnU-Net's case_0000, case_0001, ...; the modalities of a Decathlon file; or the columns image, image_1, image_2, ...
    """
    frame, content = frame_of(row), _content(row.source) if row.source.suffix == ".json" else {}
    if names := content.get("channel_names"):
        ending = next(end for end in (str(content.get("file_ending", ".nii.gz")), "") if row.image.name.endswith(end))
        case = row.image.name.removesuffix(ending)[:-5]
        return [(row.image.with_name(f"{case}_{int(number):04d}{ending}"), frame) for number in names]
    if len(content.get("modality") or ()) > 1:
        return [(row.image, number) for number in range(len(content["modality"]))]
    files = [row.image]
    while further := row.labels.get(f"image_{len(files)}"):
        files.append(row.source.parent / further)
    return [(file, frame) for file in files]


def check_channels(rows: Sequence[Row], channels: int | None = None) -> int:
    """The number of channels, which must be that of every row, with every file there.

    Args:
        rows: of one site or of several.
        channels: how many there must be; None: as many as the first row has.

    Raises:
        InputError: names the first row that is different.
    """
    expected = len(channel_files(rows[0])) if channels is None else channels
    needed = "is" if expected == 1 else "are"
    for row in rows:
        files = [file for file, _ in channel_files(row)]
        count = f"{len(files)} channel{'s' * (len(files) != 1)}"
        problem = None if len(files) == expected else f"has {count} where {expected} {needed} needed"
        for file in files:
            if not file.is_file():
                problem = f"lacks the channel {file.name}" if file != row.image else "is not there"
        if problem is not None:
            raise InputError(
                f"the image {row.image.name}{f' of site {row.site}' if row.site else ''} {problem}",
                where=row.where("image"),
                remedy="give the images of all sites the same channels, in the same order",
            )
    return expected


@functools.lru_cache(maxsize=4)
def _parsed(path: Path, stamp: int) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def _content(path: Path) -> dict[str, Any]:
    """A dataset.json, which `Datalist.read` checks more closely."""
    try:
        return _parsed(path, path.stat().st_mtime_ns)
    except (OSError, ValueError):
        return {}


def label_names(cases: of.Cases, datalist: Datalist) -> tuple[str, ...]:
    """Names of the labels 1, 2, ... as far as somebody says them: the setting, the dataset.json, or M&Ms."""
    if cases.merge_labels:
        return cases.labels[:1]
    if cases.labels:
        return cases.labels
    if datalist.source.name == "dataset.json":
        written = _content(datalist.source).get("labels")
        # Version 1 and the Decathlon write number: name, version 2 name: number.
        pairs = (
            [(a, b) if str(a).isdecimal() else (b, a) for a, b in written.items()] if isinstance(written, dict) else []
        )
        numbered = {int(number): str(name) for number, name in pairs if str(number).isdecimal()}
        if pairs and set(numbered) == set(range(len(pairs))):
            return tuple(numbered[number] for number in range(1, len(numbered)))
        return ()
    phases = any("phase" in row.labels and "vendor" in row.labels for row in datalist)
    return tuple(mms.LABELS.values()) if phases else ()
