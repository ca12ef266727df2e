"""The commands `prepare` and `check-data`: from scans to cubes (specification 5)."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from dart_core.cli import say
from dart_core.data.datalist import Datalist, Row
from dart_core.data.volumes import Volume, read_grid, read_labels, read_volume, scale_percentile
from dart_core.errors import DartError, InputError, SettingError
from dart_core.files import write_atomic
from dart_core.report import Report
from dart_core.run import CONFIG, Run
from united_ssl import settings as of
from united_ssl.cubes import INDEX, CubeRow, crop_accepted, read_cubes, scale_hu, write_cubes, write_index
from united_ssl.figures import SHOWN, masks_figure, restored_figure
from united_ssl.models import PACKAGE

ORIENTATION = "LPS"
"""That of LUNA16's files: cubes of all sources lie the same way."""
CT_MARGIN, SPARE = (100, 100, 30), 3
"""Voxels from the border, and slices that the crop rule gets beyond the cube."""
TRIALS = 50
"""Places tried for each cube that is wanted: 1600 for 32."""
AIR_HU = -500.0
"""Images with values below are taken for CTs."""
CANDIDATE, TUMOUR = (32, 32, 32), (100, 100, 50)
"""Voxels cut around a candidate of NCC, and out of a brain for BMS, before they are resized."""
_ENDINGS = (".nii", ".nii.gz", ".mhd", ".mha")
_SPLIT, _SCAN = 20, 21
"""Keys of random numbers."""


class NoRoomError(InputError):
    """A scan that is too small, or has no place that the crop rule accepts; it is left out."""


@dataclass(frozen=True, eq=False)
class Cut:
    """Cubes of one scan."""

    cubes: NDArray[np.float32]
    """(n, H, W, D) in [0, 1]."""
    corners: tuple[tuple[str, str, str], ...]
    labels: tuple[str, ...]
    masks: NDArray[np.uint8] | None = None


# --- Sources ---------------------------------------------------------------------------------------------------------


def open_source(data: Path, target: str = "none", seed: int = 0, validation: float = 0.2) -> tuple[list[Row], str]:
    """Find the scans.

    Args:
        data: see `Prepare.data`.
        target: see `Prepare.target`.
        seed: of splits that the data do not name.
        validation: share of the subjects that validates (and of a target that tests) then; of the training subjects of a
            datalist that names no others than training and test.

    Returns:
        Rows that all have a split, and what the data are: "luna16", "ct" or "".

    Raises:
        InputError: nothing there, or of another kind than the target needs.
    """
    from dart_core.data.catalog import brats, lidc, lits, luna16, pe_cad

    kind = ""
    readers: dict[str, Any] = {"NCS": lidc, "LCS": lits, "BMS": brats, "ECC": pe_cad, "NCC": luna16}
    if target in readers:
        listed, kind = readers[target].index(data), "luna16" if target == "NCC" else ""
        rows = [row for row in listed if row.mask is not None] if target == "NCS" else list(listed)
    elif data.is_dir() and any(re.fullmatch(r"subset\d", folder.name) for folder in data.iterdir() if folder.is_dir()):
        rows, kind = list(luna16.index(data)), "luna16"
    elif data.is_dir() and not (data / "dataset.json").is_file():
        rows = [
            Row(file, subject=_plain_name(file), source=data)
            for file in sorted(data.rglob("*")) if file.name.lower().endswith(_ENDINGS) and file.is_file()
        ]  # fmt: skip
        if not rows:
            raise InputError("holds no .nii, .nii.gz, .mhd or .mha", where=data, remedy="give a folder of scans")
    else:
        rows = _listed(data, target)
        if {row.split for row in rows} in ({"train"}, {"train", "test"}):  # as the Decathlon has it
            return _with_validation(rows, seed, validation), kind
    if any(row.split == "" for row in rows) and any(row.split for row in rows):
        raise InputError("some rows name a split and some do not", where=data, remedy="fill the column split in")
    return _with_splits(rows, target, seed, validation), kind


def _listed(data: Path, target: str) -> list[Row]:
    """Rows of a datalist. Those without a mask, which a dataset.json has for test, are left out for segmentation."""
    needed = {"classify": ("image", "label"), "segment": ("image", "mask")}.get(target, ("image",))
    rows = list(Datalist.read(data, needed))
    if target != "segment":
        return rows
    masked = [row for row in rows if row.mask is not None]
    if not masked:
        raise InputError("no row has a mask", where=data, remedy="name the masks")
    if len(masked) < len(rows):
        say(f"left out: {len(rows) - len(masked)} test scans without a mask")
    return masked


def _plain_name(file: Path) -> str:
    """Name of a scan without its ending; dots within it stay, as in the UIDs of LUNA16."""
    name = file.name
    return name[: len(name) - max((len(end) for end in _ENDINGS if name.lower().endswith(end)), default=0)]


def _who(row: Row) -> str:
    return row.subject or str(row.image)


def _drawn(rows: Sequence[Row], seed: int) -> list[str]:
    """The subjects in random order."""
    subjects = sorted({_who(row) for row in rows})
    order = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_SPLIT,))).permutation(len(subjects))
    return [subjects[i] for i in order]


def _with_validation(rows: list[Row], seed: int, validation: float) -> list[Row]:
    """Rows of which some of the training subjects validate, as the data name none for that."""
    subjects = _drawn([row for row in rows if row.split == "train"], seed)
    count = max(1, round(validation * len(subjects)))
    if len(subjects) <= count:
        raise InputError(
            f"{len(subjects)} training subjects cannot be dealt to training and validation", where=rows[0].source,
            remedy="give more, or name those that validate",
        )  # fmt: skip
    moved = set(subjects[:count])
    return [
        dataclasses.replace(row, split="val") if row.split == "train" and _who(row) in moved else row for row in rows
    ]


def _with_splits(rows: list[Row], target: str, seed: int, validation: float) -> list[Row]:
    """Rows that all have a split: their own, or drawn by subjects."""
    if all(row.split for row in rows):
        return rows
    subjects = _drawn(rows, seed)
    parts = 1 if target == "none" else 2
    count = max(1, round(validation * len(subjects)))
    if len(subjects) <= parts * count:
        raise InputError(
            f"{len(subjects)} subjects cannot be dealt to {'training and validation' if parts == 1 else 'three splits'}",
            where=rows[0].source if rows else None, remedy="give more, or name splits in a datalist",
        )  # fmt: skip
    split_of = dict.fromkeys(subjects, "train")
    split_of |= dict.fromkeys(subjects[:count], "val")
    split_of |= dict.fromkeys(subjects[count : parts * count], "test")
    return [dataclasses.replace(row, split=split_of[_who(row)]) for row in rows]


def split_for_pretraining(row: Row, kind: str, train_on_test: bool) -> str:
    """LUNA16's test subsets are left out, or train as in the authors' program."""
    if row.split == "test" and kind == "luna16" and train_on_test:
        return "train"
    return row.split


# --- Cutting ---------------------------------------------------------------------------------------------------------


def resized(volume: NDArray[Any], size: Sequence[int], labels: bool = False, smooth: bool = False) -> NDArray[Any]:
    """A volume (x, y, z) on another grid over the same space: linear, or nearest for labels.

    Args:
        volume: float32, or whole numbers.
        size: voxels along x, y, z.
        labels: whole numbers stay as they are.
        smooth: a Gaussian of sigma (factor - 1) / 2 before a coarser grid, against aliasing.
    """
    if tuple(volume.shape) == tuple(size):
        return volume
    if smooth and not labels:
        from scipy.ndimage import gaussian_filter

        sigmas = [max(0.0, (old / new - 1) / 2) for old, new in zip(volume.shape, size, strict=True)]
        volume = gaussian_filter(volume, sigmas, mode="nearest")
    x = torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32))[None, None]
    if labels:
        found = F.interpolate(x, tuple(size), mode="nearest-exact")
    else:
        found = F.interpolate(x, tuple(size), mode="trilinear", align_corners=False)
    return found[0, 0].numpy().astype(volume.dtype)


def scaled(volume: Volume, intensity: str | None) -> tuple[NDArray[np.float32], bool]:
    """Grey values in [0, 1], and whether they were taken for Hounsfield units."""
    is_ct = intensity == "hu" or (intensity is None and float(volume.array.min()) < AIR_HU)
    return (scale_hu(volume.array) if is_ct else scale_percentile(volume.array)), is_ct


def starts(
    shape: Sequence[int], size: Sequence[int], margin: Sequence[int], genesis: bool, path: Path | None
) -> list[tuple[int, int]]:
    """First and last place of a cube along each axis, both included.

    Args:
        shape: of the scan.
        size: of the cube.
        margin: voxels from the border.
        genesis: the bounds of Models Genesis: x, y in [m, side - size - 1 - m], z in [m, side - size - 3 - 1 - m].
        path: the scan's file, for the message.

    Raises:
        NoRoomError: there is no place.
    """
    bounds = []
    for axis, (side, cube, m) in enumerate(zip(shape, size, margin, strict=True)):
        spare = 0 if not genesis else 1 + SPARE if axis == 2 else 1
        least = cube + 2 * m + spare
        if side < least:
            what = "slices" if axis == 2 else f"voxels along {'xyz'[axis]}"
            raise NoRoomError(
                f"has {side} {what}, cubes of {cube} with a margin of {m} need {least}", where=path,
                remedy="lower --margin or --size, or leave the scan out",
            )  # fmt: skip
        bounds.append((m, side - cube - spare - m))
    return bounds


def random_cubes(volume: Volume, command: of.Prepare, rng: np.random.Generator) -> Cut:
    """Cubes for pretraining.

    Raises:
        NoRoomError: the scan has no room.
    """
    grey, is_ct = scaled(volume, command.intensity)
    genesis = (command.acceptance or ("genesis" if is_ct else "none")) == "genesis"
    if genesis and not is_ct:
        raise InputError(
            "holds no Hounsfield units, which --acceptance genesis is about", where=volume.path,
            remedy="give --acceptance none",
        )  # fmt: skip
    margin = command.margin or (CT_MARGIN if is_ct else (0, 0, 0))
    size = command.size
    bounds = starts(volume.array.shape, size, margin, genesis, volume.path)
    cubes, corners = [], []
    for _ in range(TRIALS * command.crops if genesis else command.crops):
        corner = [int(rng.integers(low, high + 1)) for low, high in bounds]
        x, y, z = (slice(c, c + side) for c, side in zip(corner, size, strict=True))
        if genesis:
            deep = volume.array[x, y, corner[2] : corner[2] + size[2] + SPARE]
            if not crop_accepted(deep, size[2])[0]:
                continue
        cubes.append(grey[x, y, z])
        corners.append(_corner(corner))
        if len(cubes) == command.crops:
            break
    if not cubes:
        raise NoRoomError(
            f"none of {TRIALS * command.crops} places holds little enough tissue", where=volume.path,
            remedy="lower --margin, give --acceptance none, or leave the scan out",
        )  # fmt: skip
    return Cut(np.stack(cubes), tuple(corners), ("",) * len(cubes))


def _corner(corner: Sequence[int]) -> tuple[str, str, str]:
    return str(corner[0]), str(corner[1]), str(corner[2])


def _padding(shape: Sequence[int], size: Sequence[int]) -> list[tuple[int, int]]:
    """Voxels before and behind a scan along each axis that make it as large as a cube."""
    rooms = [max(0, side - old) for side, old in zip(size, shape, strict=True)]
    return [(room // 2, room - room // 2) for room in rooms]


def segmentation_cubes(
    row: Row, volume: Volume, labels: NDArray[Any], command: of.Prepare, crop: Sequence[int], rng: np.random.Generator
) -> Cut:
    """Cubes with their masks: every second one around a voxel of the foreground, the others anywhere."""
    grey, _ = scaled(volume, command.intensity)
    padding = _padding(labels.shape, crop)
    grey = np.pad(grey, padding, constant_values=float(grey.min()))
    mask = np.pad(labels, padding)
    inside = np.argwhere(mask > 0)
    cubes, masks, corners = [], [], []
    for number in range(command.crops):
        rooms = [side - part for side, part in zip(mask.shape, crop, strict=True)]
        if len(inside) and number % 2 == 0:
            centre = inside[rng.integers(len(inside))]
            corner = [
                int(np.clip(c - part // 2, 0, room)) for c, part, room in zip(centre, crop, rooms, strict=True)
            ]  # fmt: skip
        else:
            corner = [int(rng.integers(room + 1)) for room in rooms]
        place = tuple(slice(c, c + part) for c, part in zip(corner, crop, strict=True))
        cubes.append(resized(grey[place], command.size))
        masks.append(resized(mask[place], command.size, labels=True))
        corners.append(_corner([c - before for c, (before, _) in zip(corner, padding, strict=True)]))
    return Cut(np.stack(cubes), tuple(corners), ("",) * len(cubes), np.stack(masks).astype(np.uint8))


def candidate_cubes(
    volume: Volume,
    places: NDArray[np.float64],
    labels: NDArray[np.int64],
    command: of.Prepare,
    rng: np.random.Generator,
) -> Cut:
    """Cubes around the candidates of a scan: all nodules, and at most --crops of the others."""
    grey, _ = scaled(volume, "hu")
    others = np.flatnonzero(labels == 0)
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == 1), rng.permutation(others)[: command.crops]]))
    back = np.linalg.inv(volume.affine)
    cubes, corners = [], []
    for place in places[chosen]:
        centre = np.rint(back[:3, :3] @ place + back[:3, 3]).astype(int)
        corner = [int(c - side // 2) for c, side in zip(centre, CANDIDATE, strict=True)]
        out = np.zeros(CANDIDATE, dtype=np.float32)
        source = tuple(
            slice(max(0, c), min(side, c + part)) for c, side, part in zip(corner, grey.shape, CANDIDATE, strict=True)
        )
        if any(part.start >= part.stop for part in source):
            raise InputError(
                f"the candidate at {', '.join(f'{v:.1f}' for v in place)} mm lies outside of the scan", where=volume.path,
                remedy="check that table and scan belong together",
            )  # fmt: skip
        goal = tuple(slice(part.start - c, part.stop - c) for part, c in zip(source, corner, strict=True))
        out[goal] = grey[source]
        cubes.append(resized(out, command.size))
        corners.append(_corner(corner))
    if not cubes:
        return Cut(np.zeros((0, *command.size), np.float32), (), ())
    return Cut(np.stack(cubes), tuple(corners), tuple(str(k) for k in labels[chosen]))


def _read_mask(row: Row, volume: Volume, target: str) -> NDArray[Any]:
    assert row.mask is not None
    if target == "NCS":
        from dart_core.data.catalog import lidc

        return lidc.nodule_mask(lidc.read_outlines(row.mask), volume).astype(np.uint8)
    labels = read_labels(row.mask, volume)
    if target in ("LCS", "BMS"):  # the whole liver, the whole tumour
        return (labels > 0).astype(np.uint8)
    if labels.max() > 255:
        raise InputError(f"holds the label {labels.max()}", where=row.mask, remedy="give labels up to 255")
    return labels.astype(np.uint8)


# --- prepare ---------------------------------------------------------------------------------------------------------


def prepare(command: of.Prepare) -> None:
    """Cut cubes; write files of cubes, index.csv and report.html. Scans that are cut already are not cut again."""
    if command.words:
        from united_ssl.words import prepare_words

        prepare_words(command)
        return
    if command.data.suffix.lower() == ".npz":
        rows: list[CubeRow] = _medmnist(command)
        say(f"cubes: {len(rows)} in {command.run.out}")
        return
    scans, kind = open_source(command.data, command.target, command.run.seed, command.validation)
    if command.target == "none":
        scans = [
            dataclasses.replace(row, split=split_for_pretraining(row, kind, command.train_on_test)) for row in scans
        ]
        scans = [row for row in scans if row.split in ("train", "val")] if kind == "luna16" else scans
    check_headers(scans, command, kind)
    for row in scans if command.target in ("classify", "ECC") else ():
        label = row.labels.get("label", "")
        if not re.fullmatch(r"\d{1,9}", label):
            raise InputError(f"{label!r} is no label", where=row.where("label"), remedy="give whole numbers from 0")
    candidates: dict[str, Any] = {}
    if command.target == "NCC":
        from dart_core.data.catalog import luna16

        candidates = luna16.read_candidates(command.data)
    rows, skipped = [], []
    with Run(command.run, command) as run, removed_on_failure(run):
        names = file_names(scans)
        for number, (row, name) in enumerate(run.log.progress(list(zip(scans, names, strict=True)), "scans")):
            file = run.out / "cubes" / f"{name}.npy"
            try:
                found = _cut_once(command, row, kind, candidates, file, number)
            except NoRoomError as error:
                say(f"left out: {error}")
                skipped.append(str(row.image))
                continue
            rows += found
        if not rows:
            raise InputError("no scan gave a cube", where=command.data, remedy="lower --margin or --size")
        write_index(run.out, rows)
        counts = {split: sum(row.split == split for row in rows) for split in ("train", "val", "test")}
        run.finish({"cubes": len(rows), "scans": len(scans) - len(skipped), "left_out": len(skipped), **counts})
        write_report(run, command, counts, skipped)
    say(
        f"cubes: {', '.join(f'{count} {split}' for split, count in counts.items())} in {command.run.out}"
        + (f"; {len(skipped)} scan{'s' * (len(skipped) > 1)} left out" if skipped else "")
    )


@contextlib.contextmanager
def removed_on_failure(run: Run) -> Iterator[None]:
    """Take back what was written where the input turns out to be unusable: cubes without an index are of no use.

    config.yaml stays, by which the core knows the folder and gives it back. Everything stays where the command goes on with
    what a stopped one has left (--resume).
    """
    try:
        yield
    except (InputError, SettingError):
        for path in list(run.out.iterdir()) if run.is_main and not run.settings.resume else ():
            if path.name != CONFIG:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise


def check_headers(scans: Iterable[Row], command: of.Prepare, kind: str) -> None:
    """Read the headers of all scans, so that a mistake is found before it costs an output folder.

    Folders of DICOM slices are left out: each slice has a header, and there are hundreds. What is no CT for sure may have cubes
    at its border.

    Raises:
        InputError: a file that is missing or damaged, or has no spacing; or no scan has room for a cube.
    """
    is_ct = kind == "luna16" or command.intensity == "hu"
    margin = command.margin or (CT_MARGIN if is_ct else (0, 0, 0))
    problems: list[NoRoomError] = []
    count = 0
    for row in scans:
        count += 1
        if row.image.is_dir():
            continue
        shape = read_grid(row.image, ORIENTATION).array.shape
        try:
            starts(shape, command.size, margin, is_ct and command.acceptance != "none", row.image)
        except NoRoomError as error:
            problems.append(error)
    if command.target == "none" and problems and len(problems) == count:
        first = problems[0]
        raise InputError(
            f"no scan has room for a cube: {first.where} {first.problem}", where=command.data,
            remedy="lower --margin or --size",
        )  # fmt: skip


def file_names(scans: Sequence[Row]) -> list[str]:
    """Names of files, unique."""
    plain = [re.sub(r"[^\w.-]", "_", _plain_name(row.image)) for row in scans]
    return [name if plain.count(name) == 1 else f"{name}_{i:05d}" for i, name in enumerate(plain)]


def _cut_once(
    command: of.Prepare, row: Row, kind: str, candidates: dict[str, Any], file: Path, number: int
) -> list[CubeRow]:
    """Rows of a scan's cubes, cut unless its file is there. The rows of a file stand beside it until all are done."""
    note = file.with_suffix(".csv")
    if not (file.is_file() and note.is_file()):
        rng = np.random.default_rng(np.random.SeedSequence(command.run.seed, spawn_key=(_SCAN, number)))
        cut = _cut(command, row, kind, candidates, rng)
        if not len(cut.cubes):
            return []
        write_cubes(file, cut.cubes, cut.masks)
        write_atomic(
            note, "".join(f"{label},{','.join(c)}\n" for label, c in zip(cut.labels, cut.corners, strict=True))
        )
    rows = []
    for place, line in enumerate(note.read_text(encoding="utf-8").splitlines()):
        label, x, y, z = line.split(",")
        rows.append(
            CubeRow(file, place, row.split, row.subject, row.site, label, str(row.image), (x, y, z))
        )  # fmt: skip
    return rows


def _cut(command: of.Prepare, row: Row, kind: str, candidates: dict[str, Any], rng: np.random.Generator) -> Cut:
    target = command.target
    volume = read_volume(row.image, ORIENTATION)
    if kind == "luna16" and command.intensity is None:
        command = dataclasses.replace(command, intensity="hu")
    if target == "none":
        return random_cubes(volume, command, rng)
    if target == "NCC":
        found = candidates.get(row.subject)
        if found is None:
            return Cut(np.zeros((0, *command.size), np.float32), (), ())
        return candidate_cubes(volume, found.places, found.labels, command, rng)
    if target in ("classify", "ECC"):
        grey, _ = scaled(volume, "hu" if target == "ECC" else command.intensity)
        return Cut(resized(grey, command.size, smooth=True)[None], (("", "", ""),), (row.labels["label"],))
    if row.mask is None:
        raise InputError("has no mask", where=row.where("mask"), remedy="give one for every scan")
    crop = TUMOUR if target == "BMS" else command.size
    return segmentation_cubes(row, volume, _read_mask(row, volume, target), command, crop, rng)


def _medmnist(command: of.Prepare) -> list[CubeRow]:
    """Cubes of a MedMNIST file with 3-D images."""
    try:
        with np.load(command.data, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        parts = {s: (arrays[f"{s}_images"], arrays[f"{s}_labels"].ravel()) for s in ("train", "val", "test")}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(
            f"is no MedMNIST file ({error})", where=command.data, remedy="give one of 3-D images"
        ) from error
    rows: list[CubeRow] = []
    with Run(command.run, command) as run, removed_on_failure(run):
        for split, (images, labels) in parts.items():
            if images.ndim != 4 or images.dtype != np.uint8:
                raise InputError(
                    f"{split}_images has shape {images.shape} and type {images.dtype}", where=command.data,
                    remedy="give (n, H, W, D) uint8",
                )  # fmt: skip
            small = np.stack([resized(image.astype(np.float32) / 255, command.size, smooth=True) for image in images])
            file_out = run.out / "cubes" / f"{split}.npy"
            write_cubes(file_out, small)
            rows += [CubeRow(file_out, i, split, label=str(int(k))) for i, k in enumerate(labels)]
        write_index(run.out, rows)
        counts = {split: len(labels) for split, (_, labels) in parts.items()}
        run.finish({"cubes": len(rows), **counts})
        write_report(run, command, counts, [])
    return rows


def write_report(run: Run, command: of.Prepare, counts: dict[str, int], skipped: Iterable[str]) -> None:
    """report.html of a folder of cubes: how many there are, some of them, and what was left out."""
    cubes = read_cubes(run.out)
    report = Report("Cubes", f"{len(cubes)} of {' x '.join(map(str, cubes.shape))} voxels", package=PACKAGE)
    report.table(("split", "cubes"), [[split, count] for split, count in counts.items()], "Cubes of each split")
    step = max(1, len(cubes) // SHOWN)
    shown = cubes.take(range(0, min(len(cubes), step * SHOWN), step))
    pictures = shown.stack(range(len(shown))).numpy()
    if cubes.has_masks:
        truth = np.stack([shown.mask(i) for i in range(len(shown))])
        report.picture(masks_figure(pictures, truth, np.zeros_like(truth)), "Cubes and their masks", "slices")
    else:
        report.picture(restored_figure({"cube": pictures}), "Middle axial slices of some cubes", "slices of cubes")
    skipped = list(skipped)
    if skipped:
        report.text(f"Left out, having no room for a cube: {', '.join(skipped)}")
    report.section("Settings")
    report.settings(command)
    report.write(run.out / "report.html")


# --- check-data ------------------------------------------------------------------------------------------------------


def check_data(command: of.CheckData) -> int:
    """Print every problem; 0 if there is none, else 2."""
    found: list[str] = []
    if command.data.is_dir() and ((command.data / INDEX).is_file() or any(command.data.glob("*.npy"))):
        cubes = read_cubes(command.data)
        for i, one in enumerate(cubes.rows):
            try:
                low, high = float((cube := cubes.cube(i)).min()), float(cube.max())
                if low < 0 or high > 1:
                    found.append(f"{one.file}: cube {one.place} holds values from {low:g} to {high:g}; give [0, 1]")
            except DartError as error:
                found.append(str(error))
        counts = {split: sum(row.split == split for row in cubes.rows) for split in ("train", "val", "test")}
        labels = sum(bool(row.label) for row in cubes.rows)
        print(
            f"cubes of {' x '.join(map(str, cubes.shape))} voxels: {', '.join(f'{n} {s}' for s, n in counts.items())}"
        )
        print(f"{labels} with label, {'all' if cubes.has_masks else 'not all'} with mask")
        number = len(cubes)
    else:
        rows, kind = open_source(command.data)
        number = len(rows)
        for row in rows:
            try:
                grid = read_grid(row.image, ORIENTATION)
                volume = read_volume(row.image, ORIENTATION)
                is_ct = scaled(volume, "hu" if kind == "luna16" else None)[1]
                margin = command.margin or (CT_MARGIN if is_ct else (0, 0, 0))
                starts(grid.array.shape, command.size, margin, is_ct, row.image)
                if row.mask is not None and row.mask.suffix != ".xml":
                    read_labels(row.mask, volume)
            except DartError as error:
                found.append(str(error))
        if kind == "luna16":
            from dart_core.data.catalog import luna16

            for line in luna16.report_missing(command.data):
                print(f"note: {line}")
        print(
            f"{number} scans: {', '.join(f'{sum(r.split == s for r in rows)} {s}' for s in ('train', 'val', 'test'))}"
        )
    for line in found:
        print(line)
    print(f"{len(found) or 'no'} problem{'s' * (len(found) != 1)}")
    return 2 if found else 0
