"""Datalists: which images there are, with their masks, labels, subjects, sites and splits.

A datalist is a CSV file with a header. `image` is the one column that must be there; `mask`, `subject`, `site` and
`split` (train, val or test) have a meaning; every other column (`label`, one column per finding, `boxes`, ...) is kept as
text. Paths are relative to the CSV file. A Decathlon / MONAI `dataset.json` and an nnU-Net raw folder are read as well.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

from dart_core.errors import DartError, InputError
from dart_core.files import atomic_write

SPLITS = ("train", "val", "test")
_OWN_COLUMNS = ("image", "mask", "subject", "site", "split")
_DECATHLON_SPLITS = {"training": "train", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Row:
    """One image and what is known about it. A text that the datalist does not give is empty."""

    image: Path
    """The image file."""
    mask: Path | None = None
    """The mask file, where there is one."""
    subject: str = ""
    """Who was scanned; all images of one subject belong to one split."""
    site: str = ""
    """Where, or on which scanner."""
    split: str = ""
    """train, val or test."""
    labels: dict[str, str] = field(default_factory=dict, hash=False)
    """The further columns, as text; an empty cell is left out."""
    line: int = 0
    """Row of the datalist file it was read from, the header being row 1 (in a dataset.json: place in its list, from 1)."""
    source: Path = field(default_factory=Path)
    """The datalist file."""

    def where(self, column: str) -> str:
        """Name the cell for an error message: `list.csv, row 3, column mask`."""
        return f"{self.source}, row {self.line}, column {column}"


@dataclass(frozen=True)
class Problem:
    """Something wrong with a file that a datalist names."""

    row: Row
    column: str
    error: DartError

    def __str__(self) -> str:
        return f"{self.row.where(self.column)}: {self.error}"


@dataclass(frozen=True)
class Datalist(Sequence[Row]):
    """A sequence of rows. `Datalist.read` reads one from disk, `select` narrows it, `write` stores it as CSV."""

    rows: tuple[Row, ...]
    source: Path = field(default_factory=Path)
    """The file or folder that it was read from."""

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], required: Sequence[str] = ("image",), channel: str | int | None = None
    ) -> Datalist:
        """Read a CSV datalist, a Decathlon / MONAI `dataset.json` or an nnU-Net raw folder. Opens no image.

        Args:
            path: the CSV or JSON file, or the folder that holds a dataset.json.
            required: columns that must be there and filled in every row. (The test cases of a dataset.json or an
                nnU-Net folder are unlabelled by design and need no mask.)
            channel: name or number of the channel to take, needed only for an nnU-Net folder with several.

        Raises:
            InputError: one line with file, row, column and remedy for anything that does not fit.
        """
        path = Path(path)
        if not path.exists():
            raise InputError("datalist not found", where=path, remedy="check the path")
        if path.is_dir():
            if not (path / "dataset.json").is_file():
                raise InputError(
                    "this folder holds no dataset.json",
                    where=path,
                    remedy="give the datalist file (CSV or dataset.json)",
                )
            path = path / "dataset.json"
        is_json = path.suffix.lower() == ".json"
        rows = _read_json(path, required, channel) if is_json else _read_csv(path, required)
        _check_rows(path, rows)
        return cls(tuple(rows), path)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Datalist: ...
    def __getitem__(self, index: int | slice) -> Row | Datalist:
        return Datalist(self.rows[index], self.source) if isinstance(index, slice) else self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites in the order in which they first appear; empty when there is no site column."""
        return tuple(dict.fromkeys(row.site for row in self.rows if row.site))

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have rows, in the order train, val, test."""
        present = {row.split for row in self.rows}
        return tuple(split for split in SPLITS if split in present)

    @property
    def subjects(self) -> tuple[str, ...]:
        """The subjects in the order in which they first appear; empty when there is no subject column."""
        return tuple(dict.fromkeys(row.subject for row in self.rows if row.subject))

    def select(
        self, site: str | None = None, split: str | None = None, subjects: Iterable[str] | None = None
    ) -> Datalist:
        """Keep the rows of one site, one split, some subjects, or all three conditions at once, in their order.

        Raises:
            InputError: a site, split or subject that is not there, or a choice that leaves no row.
        """
        _check_choice(self, "site", site, self.sites)
        _check_choice(self, "split", split, self.splits)
        wanted = None if subjects is None else set(subjects)
        for subject in sorted(wanted or ()):
            _check_choice(self, "subject", subject, self.subjects)
        rows = tuple(
            row
            for row in self.rows
            if (site is None or row.site == site)
            and (split is None or row.split == split)
            and (wanted is None or row.subject in wanted)
        )
        if not rows:
            asked = [f"site {site!r}"] * (site is not None) + [f"split {split!r}"] * (split is not None)
            asked += ["the chosen subjects"] * (wanted is not None)
            raise InputError(
                f"no row has {' and '.join(asked)}" if asked else "the datalist has no rows",
                where=self.source,
                remedy=f"sites and splits there: {_combinations(self)}",
            )
        return Datalist(rows, self.source)

    def with_splits(self, splits: Mapping[str, Mapping[str, Iterable[str]]]) -> Datalist:
        """Give every row the split that a table says; the rows' own splits, and those of rows that it lacks, go.

        Args:
            splits: site -> split -> subjects, as the `published_split` functions of `dart_core.data.catalog` give it.

        Raises:
            InputError: an unknown split, or a table that has none of the rows.
        """
        split_of = {
            (site, subject): split
            for site, parts in splits.items()
            for split, subjects in parts.items()
            for subject in subjects
        }
        unknown = sorted(set(split_of.values()) - set(SPLITS))
        if unknown:
            raise InputError(f"unknown split {unknown[0]!r}", where=self.source, remedy="use train, val or test")
        rows = tuple(replace(row, split=split_of.get((row.site, row.subject), "")) for row in self.rows)
        if not any(row.split for row in rows):
            raise InputError(
                "none of its subjects is in this split", where=self.source, remedy="use a split made for these scans"
            )
        return Datalist(rows, self.source)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write as CSV with paths relative to it; the file appears whole or not at all.

        Raises:
            OutputError: the file cannot be written.
        """
        path = Path(path)
        labels = tuple(dict.fromkeys(name for row in self.rows for name in row.labels))
        folder = path.parent.resolve()
        cells = [
            {
                "image": _relative(row.image, folder),
                "mask": "" if row.mask is None else _relative(row.mask, folder),
                "subject": row.subject,
                "site": row.site,
                "split": row.split,
                **row.labels,
            }
            for row in self.rows
        ]
        columns = ["image", *(name for name in _OWN_COLUMNS[1:] if any(cell[name] for cell in cells)), *labels]
        with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(cells)
        return path


def check(datalist: Datalist, open_row: Callable[[Row], Iterable[tuple[str, DartError]]]) -> list[Problem]:
    """Open every row and collect what is wrong, instead of stopping at the first problem.

    Args:
        datalist: the rows to look at.
        open_row: opens the files of a row and gives each problem as (column, error).
    """
    return [Problem(row, column, error) for row in datalist for column, error in open_row(row)]


def problems(
    datalist: Datalist, require_mask: bool = False, minimum_size: int | Sequence[int] | None = None
) -> list[Problem]:
    """Open every volume and mask of a datalist and list every problem with file, row and column.

    Args:
        datalist: rows whose `image` and `mask` are NIfTI volumes.
        require_mask: a row without a mask is a problem.
        minimum_size: voxels that a scan must have along each axis (RAS), one number or three.
    """
    from dart_core.data.volumes import read_mask, read_volume

    def open_row(row: Row) -> Iterator[tuple[str, DartError]]:
        volume = None
        try:
            volume = read_volume(row.image, minimum_size=minimum_size)
        except DartError as error:
            yield "image", error
        if row.mask is None:
            if require_mask:
                yield "mask", InputError("this row has no mask", remedy="name its mask file in the column mask")
            return
        try:
            read_mask(row.mask, like=volume)
        except DartError as error:
            yield "mask", error

    return check(datalist, open_row)


def _relative(path: Path, folder: Path) -> str:
    absolute = path.parent.resolve() / path.name
    try:
        return Path(os.path.relpath(absolute, folder)).as_posix()
    except ValueError:  # another drive on Windows
        return absolute.as_posix()


def _nearest(word: str, choices: Iterable[str]) -> str | None:
    lowered = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    return lowered[found[0]] if found else None


def _check_choice(datalist: Datalist, kind: str, asked: str | None, there: Sequence[str]) -> None:
    if asked is None or asked in there:
        return
    if not there:
        remedy = f"the datalist has no column {kind}; add it"
    else:
        nearest = _nearest(asked, there)
        listed = ", ".join(there[:20]) + (f" and {len(there) - 20} more" if len(there) > 20 else "")
        remedy = f"{kind}s there: {listed}" + (f"; did you mean {nearest!r}?" if nearest else "")
    raise InputError(f"no row has {kind} {asked!r}", where=datalist.source, remedy=remedy)


def _combinations(datalist: Datalist) -> str:
    counts: dict[str, int] = {}
    for row in datalist:
        name = "/".join(part for part in (row.site, row.split) if part) or "neither"
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{name} ({count})" for name, count in counts.items()) or "none"


def _check_rows(path: Path, rows: Sequence[Row]) -> None:
    if not rows:
        raise InputError("the datalist has no rows", where=path, remedy="add one row per image below the header")
    first_of_image: dict[tuple[str, str], Row] = {}
    first_of_subject: dict[str, Row] = {}
    for row in rows:
        frame = row.labels.get("frame", "")  # a 4-D file may be there once for each of its frames
        earlier = first_of_image.setdefault((os.path.abspath(row.image), frame), row)
        if earlier is not row:
            named = f"frame {frame} of the image {row.image.name}" if frame else f"the image {row.image.name}"
            raise InputError(
                f"{named} is already in row {earlier.line}",
                where=row.where("image"),
                remedy="remove one of the two rows",
            )
        if row.split and row.split not in SPLITS:
            aliases = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}
            nearest = aliases.get(row.split.lower()) or _nearest(row.split, SPLITS)
            raise InputError(
                f"unknown split {row.split!r}",
                where=row.where("split"),
                remedy=f"use train, val or test{f' (did you mean {nearest!r}?)' if nearest else ''}",
            )
        if row.subject and row.split:
            earlier = first_of_subject.setdefault(row.subject, row)
            if earlier.split != row.split:
                raise InputError(
                    f"subject {row.subject!r} is in split {row.split!r} here and in {earlier.split!r} in row {earlier.line}",
                    where=row.where("split"),
                    remedy="keep all images of a subject in one split",
                )


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path, remedy="check the file") from error


def _decode(path: Path) -> str:
    content = _read_bytes(path)
    if not content.strip():
        raise InputError(
            "the datalist is empty", where=path, remedy="write a header (image, mask, ...) and one row per image"
        )
    for mark, name in ((b"\xef\xbb\xbf", "UTF-8"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16")):
        if content.startswith(mark):
            raise InputError(
                f"row 1: the file starts with a byte-order mark ({name})",
                where=path,
                remedy="save it as plain UTF-8 without byte-order mark",
            )
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"row {row}: byte {content[error.start]:#04x} is not UTF-8",
            where=path,
            remedy="save the file as plain UTF-8",
        ) from error
    if "\0" in text:
        raise InputError(
            f"row {text[: text.index(chr(0))].count(chr(10)) + 1}: holds a zero byte, so this is no text file",
            where=path,
            remedy="give a CSV file saved as plain UTF-8",
        )
    return text


def _read_csv(path: Path, required: Sequence[str]) -> list[Row]:
    reader = csv.reader(io.StringIO(_decode(path), newline=""), strict=True)
    numbered: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                numbered.append((reader.line_num, [cell.strip() for cell in cells]))
    except csv.Error as error:
        raise InputError(
            f"row {reader.line_num}: {error}", where=path, remedy='check the quotes (") around the cells of this row'
        ) from error
    header_line, header = numbered[0]
    _check_header(path, header_line, header, required)
    return [_csv_row(path, line, header, cells, required) for line, cells in numbered[1:]]


def _check_header(path: Path, line: int, header: list[str], required: Sequence[str]) -> None:
    if "image" not in header:
        for separator, name in ((";", "semicolons"), ("\t", "tabs")):
            if any(separator in cell for cell in header):
                raise InputError(
                    f"row {line}: the columns are separated by {name}", where=path, remedy="save it with commas"
                )
    for column in ("image", *required):
        if column not in header:
            nearest = _nearest(column, header)
            raise InputError(
                f"row {line}: no column {column!r} (there: {', '.join(header)})",
                where=path,
                remedy=f"rename the column {nearest!r}" if nearest else "add it to the header and fill it in every row",
            )
    for number, column in enumerate(header, start=1):
        if not column:
            raise InputError(f"row {line}: column {number} has no name", where=path, remedy="name it or remove it")
        if header.index(column) != number - 1:
            raise InputError(
                f"row {line}: column {column!r} is there twice", where=path, remedy="remove one of the two"
            )
        # As a label of its own it would leave every scan without its split, site or subject, and nobody would notice.
        if column.lower() in _OWN_COLUMNS and column not in _OWN_COLUMNS:
            raise InputError(
                f"row {line}: column {column!r} is in capitals", where=path, remedy=f"rename it {column.lower()!r}"
            )


def _csv_row(path: Path, line: int, header: list[str], cells: list[str], required: Sequence[str]) -> Row:
    if len(cells) != len(header):
        hint = "separate them with commas" if len(cells) == 1 and (";" in cells[0] or "\t" in cells[0]) else None
        raise InputError(
            f"row {line}: {len(cells)} cells where the header has {len(header)} columns",
            where=path,
            remedy=hint or 'fill in every column, and put a cell that holds a comma in quotes (")',
        )
    values = dict(zip(header, cells, strict=True))
    for column in header:
        optional = column not in ("image", "subject", "site", "split") and column not in required
        if not values[column] and not optional:
            raise InputError("the cell is empty", where=f"{path}, row {line}, column {column}", remedy="fill it in")
    return _row(path, line, path.parent, values)


def _row(source: Path, line: int, folder: Path, values: Mapping[str, str]) -> Row:
    return Row(
        image=folder / values["image"],
        mask=folder / values["mask"] if values.get("mask") else None,
        subject=values.get("subject", ""),
        site=values.get("site", ""),
        split=values.get("split", ""),
        labels={name: value for name, value in values.items() if name not in _OWN_COLUMNS and value},
        line=line,
        source=source,
    )


def _read_json(path: Path, required: Sequence[str], channel: str | int | None) -> list[Row]:
    try:
        content = json.loads(_decode(path))
    except json.JSONDecodeError as error:
        raise InputError(f"row {error.lineno}: {error.msg}", where=path, remedy="mend the JSON there") from error
    if not isinstance(content, dict):
        raise InputError("not a dataset.json: the outermost value is no object", where=path, remedy="give a datalist")
    if "channel_names" in content or "file_ending" in content:
        rows = _nnunet_rows(path, content, channel)
    else:
        rows = _decathlon_rows(path, content)
    for row in rows:
        values = {"mask": row.mask, "subject": row.subject, "site": row.site, "split": row.split, **row.labels}
        for column in required:
            if column != "image" and not values.get(column) and not (column == "mask" and row.split == "test"):
                raise InputError(f"no {column!r} is given", where=row.where(column), remedy="add it to this entry")
    return rows


def _decathlon_rows(path: Path, content: Mapping[str, Any]) -> list[Row]:
    parts = {key: content[key] for key in _DECATHLON_SPLITS if key in content}
    if not parts:
        raise InputError(
            "no key 'training', 'validation' or 'test'",
            where=path,
            remedy="give a Decathlon dataset.json or a CSV datalist",
        )
    found: list[tuple[int, dict[str, str]]] = []
    for key, entries in parts.items():
        if not isinstance(entries, list):
            raise InputError(
                f"key {key!r} is no list", where=path, remedy='list entries like {"image": ..., "label": ...}'
            )
        for number, entry in enumerate(entries, start=1):
            if isinstance(entry, str):
                entry = {"image": entry}
            image = entry.get("image") if isinstance(entry, dict) else None
            if isinstance(image, list) and len(image) == 1:
                image = image[0]
            if not isinstance(entry, dict) or not isinstance(image, str) or not image:
                raise InputError(
                    f"key {key!r}, entry {number}: no single file under 'image'",
                    where=path,
                    remedy='write {"image": FILE, "label": FILE}',
                )
            values = {name: str(value) for name, value in entry.items() if value is not None and name != "image"}
            values["image"] = image
            # In a Decathlon file "label" is the segmentation; in a MONAI classification list it is a class.
            if isinstance(entry.get("label"), str) and _is_file_name(entry["label"]):
                values["mask"] = values.pop("label")
            values.setdefault("split", _DECATHLON_SPLITS[key])
            found.append((number, values))
    # The file's name is the subject's, but where every subject has a folder with files of the same names.
    folders: dict[str, set[Path]] = {}
    for _, values in found:
        folders.setdefault(_stem(values["image"]), set()).add(Path(values["image"]).parent)
    for _, values in found:
        stem = _stem(values["image"])
        shared = len(folders[stem]) > 1
        values.setdefault("subject", "_".join((*Path(values["image"]).parent.parts, stem)) if shared else stem)
    return [_row(path, number, path.parent, values) for number, values in found]


def _nnunet_rows(path: Path, content: Mapping[str, Any], channel: str | int | None) -> list[Row]:
    folder = path.parent
    ending = content.get("file_ending", ".nii.gz")
    channels = content.get("channel_names", {"0": "image"})
    numbered = isinstance(channels, dict) and channels and all(number.isdecimal() for number in channels)
    if not isinstance(ending, str) or not numbered:
        raise InputError(
            "key 'file_ending' must be a text and 'channel_names' an object",
            where=path,
            remedy="follow nnU-Net's format",
        )
    number = _nnunet_channel(path, channels, channel)
    if not (folder / "imagesTr").is_dir():
        raise InputError("the folder imagesTr is missing", where=folder, remedy="give an nnU-Net raw data folder")
    rows = []
    for images, masks, split in (("imagesTr", "labelsTr", "train"), ("imagesTs", "labelsTs", "test")):
        tail = f"_{number:04d}{ending}"
        files = sorted(file for file in (folder / images).glob(f"*{tail}") if not file.name.startswith("."))
        cases = {file.name.removesuffix(tail) for file in files}
        for mask in sorted((folder / masks).glob(f"*{ending}")):
            if mask.name.removesuffix(ending) not in cases and not mask.name.startswith("."):
                raise InputError(
                    f"this label has no image {images}/{mask.name.removesuffix(ending)}{tail}",
                    where=mask,
                    remedy="add the image or remove the label",
                )
        for place, file in enumerate(files, start=1):
            case = file.name.removesuffix(tail)
            label = folder / masks / f"{case}{ending}"
            if split == "train" and not label.is_file():
                raise InputError(
                    f"this training image has no label {masks}/{label.name}", where=file, remedy="add the label"
                )
            mask_path = label if label.is_file() else None
            rows.append(Row(file, mask_path, subject=case, split=split, line=place, source=path))
    return rows


def _nnunet_channel(path: Path, channels: Mapping[str, str], channel: str | int | None) -> int:
    listed = ", ".join(f"{number} = {name}" for number, name in channels.items())
    if channel is None:
        if len(channels) > 1:
            raise InputError(f"the images have several channels ({listed})", where=path, remedy="choose a channel")
        return int(next(iter(channels)))
    for number, name in channels.items():
        if str(channel) in (number, name):
            return int(number)
    raise InputError(f"no channel {channel!r}", where=path, remedy=f"channels there: {listed}")


def _is_file_name(text: str) -> bool:
    return "/" in text or "\\" in text or bool(Path(text).suffix)


def _stem(name: str) -> str:
    return Path(name).name.removesuffix(".gz").rsplit(".", 1)[0]
