"""The commands `prepare` and `check-data`: volumes to slices of binary data sets (specification 2.1, 2.2, 5)."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dart_core.cli import say
from dart_core.data.catalog import decathlon
from dart_core.data.datalist import Row
from dart_core.errors import DartError, InputError
from dart_core.files import write_atomic
from dart_core.report import Report
from dart_core.run import METRICS, claim_folder, flat_settings
from metamedseg import settings as of
from metamedseg.datasets import (
    CHANNELS,
    INDEX,
    SLICING,
    SliceRow,
    SliceSet,
    draw_split,
    read_slices,
    write_index,
    write_slice,
)
from metamedseg.figures import slices_figure
from metamedseg.regions import UNUSED, OrganTask, organ_task
from metamedseg.slices import authors_picture, kept_slices, minmax, normalise_nonzero, resize_mask, resize_slice

PACKAGE = "metamedseg"
CT_BELOW, CT_WINDOW = -500.0, (-1000.0, 400.0)
SHOWN = 4


@dataclass(frozen=True)
class Slice:
    """A slice on its way to the disk."""

    dataset: str
    organ: str
    name: str
    volume: str
    number: int
    image: NDArray[np.float32]
    mask: NDArray[np.bool_]


def prepare(command: of.Prepare) -> None:
    """Write the folder of slices, and report.html with how many there are."""
    sources = _sources(command.data)
    out = command.output.out
    for source in sources:  # what can be known before anything is written
        source.check()
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    try:
        _write(command, sources)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)  # half a folder of slices is of no use
        raise


def _write(command: of.Prepare, sources: Sequence[DecathlonSource | NpzSource]) -> None:
    out = command.output.out
    found: dict[str, tuple[str, list[SliceRow]]] = {}
    volumes: dict[str, int] = {}
    for source in sources:
        for name, organ in source.datasets():
            found.setdefault(name, (organ, []))
            volumes[name] = source.volumes
        for one in source.slices(command.slicing):
            write_slice(out / one.dataset, one.name, one.image, one.mask)
            found[one.dataset][1].append(
                SliceRow(one.name, one.volume, one.number, "train", int(np.count_nonzero(one.mask)))
            )
    sets = []
    for name, (organ, rows) in sorted(found.items()):
        if not rows:
            raise InputError(
                f"no slice of {name} holds enough of the region", where=command.data, remedy="give a lower --threshold"
            )
        unit = "volume" if command.split_unit == "volume" else "name"
        split_of = draw_split(sorted({getattr(row, unit) for row in rows}))
        there = tuple(dataclasses.replace(row, split=split_of[getattr(row, unit)]) for row in rows)
        sets.append(SliceSet(name, organ, there, out / name))
        without = volumes[name] - len({row.volume for row in rows})
        if without:
            say(f"{name}: {without} of {volumes[name]} volumes hold no slice with enough of it")
    counts = _counts(sets)
    content: dict[str, Any] = {"datasets": counts}
    # Slices of a file were normalised one by one: a volume that is normalised as a whole does not give slices like them.
    cut = [source for source in sources if isinstance(source, DecathlonSource)]
    if len(cut) == len(sources):
        channels = {name: channel for source in cut for name, channel in source.channels().items()}
        content = {SLICING: dataclasses.asdict(command.slicing), CHANNELS: channels, **content}
    write_atomic(out / METRICS, json.dumps(content, indent=2) + "\n")
    _report(command, sets, counts)
    write_index(out, sets)
    say(f"{sum(map(len, sets))} slices of {len(sets)} data sets: {out}   report: {out / 'report.html'}")


def check_data(command: of.CheckData) -> int:
    """Print every problem, and how much each data set has; 2 if there is a problem."""
    problems, lines = [], []
    if (command.data / INDEX).is_file():
        for one in read_slices(command.data).values():
            shapes = set()
            for place in range(len(one)):
                try:
                    image, mask = one.image(place), one.mask(place)
                    shapes.add(image.shape)
                    if mask.shape != image.shape:
                        problems.append(f"{one.folder}, {one.rows[place].name}: image and mask differ in size")
                except DartError as error:
                    problems.append(str(error))
            if len(shapes) > 1:
                listed = ", ".join(f"{h} x {w}" for _, h, w in sorted(shapes))
                problems.append(f"{one.folder}: slices of unequal size ({listed}); prepare them with one --size")
            lines.append(f"{one.name}: {len(one)} slices of {len(one.volumes())} volumes")
    else:
        for folder in _folders(command.data):
            try:
                source = _source(folder)
                problems += source.problems()
                lines.append(source.line())
            except DartError as error:
                problems.append(str(error))
    for line in [*problems, *lines]:
        print(line)
    print(f"{len(lines)} data sets or tasks: {len(problems) or 'no'} problem{'s' * (len(problems) != 1)}")
    return 2 if problems else 0


# --- Decathlon folders -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DecathlonSource:
    """One task."""

    task: decathlon.DecathlonTask
    organs: OrganTask

    @property
    def volumes(self) -> int:
        """How many."""
        return len(self.task.cases)

    def datasets(self) -> list[tuple[str, str]]:
        """Names of its data sets, and their organ."""
        return [(name, self.organs.organ) for region in self.organs.regions for name in region.datasets.values()]

    def channels(self) -> dict[str, int]:
        """Data set -> channel of the volumes that it is made from."""
        return {name: channel for region in self.organs.regions for channel, name in region.datasets.items()}

    def check(self) -> None:
        """Look at all labels."""
        for row in self.task.cases:
            self._labels(row)

    def line(self) -> str:
        """What check-data says of it."""
        return f"{self.task.name}: {self.volumes} volumes for {', '.join(name for name, _ in self.datasets())}"

    def problems(self) -> list[str]:
        """What is wrong with its files."""
        found = []
        for row in self.task.cases:
            try:
                self._labels(row)
                for channel in sorted(self._channels()):
                    self.task.read_image(row, channel)
            except DartError as error:
                found.append(str(error))
        return found

    def _channels(self) -> set[int]:
        return {channel for region in self.organs.regions for channel in region.datasets}

    def _labels(self, row: Row) -> NDArray[np.int16]:
        labels = self.task.read_labels(row, self.task.read_image(row), negative_as_background=True)
        if not labels.any():
            raise InputError(
                "it holds no label at all", where=row.mask, remedy="take the case out of dataset.json, or label it"
            )
        return labels

    def slices(self, slicing: of.Slicing) -> Iterator[Slice]:
        """All slices that hold enough of a region, channel by channel."""
        for row in self.task.cases:
            labels = self._labels(row)
            masks: dict[int, dict[int, NDArray[np.bool_]]] = {region.label: {} for region in self.organs.regions}
            for region in self.organs.regions:
                least = region.threshold if slicing.threshold is None else slicing.threshold
                numbers = kept_slices(
                    labels, region.label, least, slicing.threshold_stage, slicing.size, *_cut(slicing)
                ).tolist()
                for z in numbers:
                    mask = resize_mask(labels[..., z] == region.label, slicing.size, *_cut(slicing))
                    if mask.any() or not least:  # a small region may be gone after resizing
                        masks[region.label][z] = mask
            for channel in sorted(self._channels()):
                volume = normalised_volume(self.task.read_image(row, channel).array, slicing)
                images: dict[int, NDArray[np.float32]] = {}
                for region in self.organs.regions:
                    for z, mask in masks[region.label].items() if channel in region.datasets else ():
                        if z not in images:
                            images[z] = finished_slice(volume[..., z], slicing)
                        name = f"{row.subject}_slice{z}"
                        yield Slice(region.datasets[channel], self.organs.organ, name, row.subject, z, images[z], mask)


def normalised_volume(volume: NDArray[Any], slicing: of.Slicing) -> NDArray[np.float32]:
    """What is done to a whole volume (H, W, Z) before it is cut into slices."""
    if slicing.clip_ct and volume.min() < CT_BELOW:
        volume = np.clip(volume, *CT_WINDOW)
    whole = normalise_nonzero(volume) if slicing.normalisation == "zscore" else volume
    return np.asarray(whole, dtype=np.float32)


def finished_slice(image: NDArray[np.float32], slicing: of.Slicing) -> NDArray[np.float32]:
    """Resize a slice, and scale it where slices are scaled one by one."""
    resized = resize_slice(image, slicing.size)
    if slicing.normalisation == "minmax_slice":
        return minmax(resized)
    if slicing.normalisation == "authors_png":
        return authors_picture(resized)
    return np.asarray(resized, dtype=np.float32)


def _cut(slicing: of.Slicing) -> tuple[float, bool]:
    """Where resized masks are cut, and whether that is a share of their maximum, as in the authors' pictures."""
    return slicing.mask_cut, slicing.normalisation == "authors_png"


# --- Files of slices -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NpzSource:
    """One data set as a file of slices: images (n, h, w), masks (n, h, w) of 0 and 1, names (n,)."""

    path: Path
    images: NDArray[Any]
    masks: NDArray[Any]
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the data set."""
        return re.sub(r"[^A-Za-z0-9-]+", "_", self.path.stem)

    @property
    def organ(self) -> str:
        """The first word of its name."""
        return self.name.split("_")[0]

    @property
    def volumes(self) -> int:
        """How many."""
        return len({volume_of(name)[0] for name in self.names})

    def datasets(self) -> list[tuple[str, str]]:
        """Its name and organ."""
        return [(self.name, self.organ)]

    def line(self) -> str:
        """What check-data says of it."""
        return f"{self.name}: {len(self.names)} slices of {self.volumes} volumes"

    def check(self) -> None:
        """Refuse slices without foreground, and values that are no mask."""
        found = self.problems()
        if found:
            raise DartError(found[0])

    def problems(self) -> list[str]:
        """What is wrong with its slices."""
        found = []
        for name, image, mask in zip(self.names, self.images, self.masks, strict=True):
            if not np.isin(mask, (0, 1)).all():
                strange = mask[~np.isin(mask, (0, 1))].ravel()[0]
                found.append(f"{self.path}, {name}: the mask holds {strange}; a mask holds only 0 and 1")
            elif not mask.any():
                found.append(f"{self.path}, {name}: the mask is empty; leave the slice out")
            if not np.isfinite(image).all():
                found.append(f"{self.path}, {name}: pixels that are no numbers; export the slice again")
        return found

    def slices(self, slicing: of.Slicing) -> Iterator[Slice]:
        """All slices with enough foreground; without a threshold of their own, one pixel is enough."""
        least = 1 if slicing.threshold is None else slicing.threshold
        for name, image, mask in zip(self.names, self.images, self.masks, strict=True):
            resized = resize_mask(mask, slicing.size, *_cut(slicing))
            counted = mask if slicing.threshold_stage == "native" else resized
            if np.count_nonzero(counted) < least or (least and not resized.any()):
                continue
            volume, number = volume_of(name)
            values = finished_slice(normalised_volume(image.astype(np.float32), slicing), slicing)
            yield Slice(self.name, self.organ, f"{volume}_slice{number}", volume, number, values, resized)


def volume_of(name: str) -> tuple[str, int]:
    """Volume and number of a slice by its name: 10005_454.jpg is number 454 of 10005, 105006.jpg number 6 of 105."""
    stem = Path(name).stem
    match = re.fullmatch(r"(.+?)_(?:slice)?(\d+)", stem) or re.fullmatch(r"(\d+)(\d{3})", stem)
    return (match[1], int(match[2])) if match else (stem, 0)


# --- Both ------------------------------------------------------------------------------------------------------------


def _folders(data: Path) -> list[Path]:
    if data.is_dir() and not (data / "dataset.json").is_file() and (found := sorted(data.glob("*.npz"))):
        return found
    if data.suffix == ".npz":
        return [data]
    folders = decathlon.task_folders(data)
    kept = [folder for folder in folders if folder.resolve().name != UNUSED]
    if not kept or len(kept) == len(folders):
        return folders
    say(f"{UNUSED} is left out, as in the paper; give its folder alone, or rename it, to use it")
    return kept


def _source(path: Path) -> DecathlonSource | NpzSource:
    if path.suffix == ".npz":
        return _read_npz(path)
    task = decathlon.index(path)
    return DecathlonSource(task, organ_task(task.name, task.labels, task.modalities, path / "dataset.json"))


def _sources(data: Path) -> list[DecathlonSource | NpzSource]:
    sources = [_source(path) for path in _folders(data)]
    names = [name for source in sources for name, _ in source.datasets()]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two tasks give a data set {name}", where=data, remedy="rename one of the folders")
    return sources


def _read_npz(path: Path) -> NpzSource:
    if path.is_file() and not zipfile.is_zipfile(path):
        raise InputError("is no file of slices", where=path, remedy="copy it again")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in ("images", "masks", "names") if key not in file]
            if missing:
                raise InputError(f"holds no array {missing[0]!r}", where=path, remedy="write images, masks and names")
            images, masks, names = file["images"], file["masks"], [str(name) for name in file["names"]]
    except FileNotFoundError as error:
        raise InputError("file not found", where=path, remedy="check the path") from error
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"is no file of slices ({error})", where=path, remedy="copy it again") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"slices of unequal size, or no numbers ({error})", where=path, remedy="write arrays (n, h, w)"
        ) from error
    if images.ndim != 3 or images.shape != masks.shape or len(names) != len(images) or not len(images):
        raise InputError(
            f"images {images.shape}, masks {masks.shape} and {len(names)} names do not fit each other",
            where=path,
            remedy="write images (n, h, w), masks (n, h, w) and n names",
        )
    keys = [volume_of(name) for name in names]
    for key, name in zip(keys, names, strict=True):
        if keys.count(key) > 1:
            raise InputError(f"the slice {name} is there twice", where=path, remedy="remove one of the two")
    return NpzSource(path, images, masks, tuple(names))


def _counts(sets: Sequence[SliceSet]) -> list[dict[str, Any]]:
    return [
        {
            "dataset": one.name,
            "organ": one.organ,
            "slices": len(one),
            "volumes": len(one.volumes()),
            **{split: len(one.split(split)) for split in ("train", "val", "test")},
            "mean_pixels": round(float(np.mean([row.pixels for row in one.rows])), 1),
        }
        for one in sets
    ]


def _report(command: of.Prepare, sets: Sequence[SliceSet], counts: Sequence[dict[str, Any]]) -> None:
    report = Report(
        "Slices of binary data sets", f"{sum(map(len, sets))} slices of {len(sets)} data sets", package=PACKAGE
    )
    report.table(
        ("data set", "organ", "slices", "volumes", "training", "validation", "test", "region in pixels"),
        [tuple(row.values()) for row in counts],
        f"Slices by data set and split, split by {command.split_unit}; the region's size is the mean over slices after resizing",
    )
    report.picture(
        slices_figure([(one.name, [_panel(one, place) for place in _spread(len(one))]) for one in sets]),
        "Slices of each data set with the outline of the region",
        "slices with outlines",
    )
    report.section("Settings")
    report.settings(command)
    report.write(command.output.out / "report.html")


def _spread(count: int) -> list[int]:
    return sorted({int(i) for i in np.linspace(0, count - 1, min(SHOWN, count)).round()})


def _panel(one: SliceSet, place: int) -> tuple[str, NDArray[Any], NDArray[Any]]:
    return one.rows[place].name, one.image(place)[0], one.mask(place)[0] > 0
