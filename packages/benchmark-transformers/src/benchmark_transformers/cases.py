"""Labelled pictures: from a datalist or the folder of a data set to what a training draws (specification 5)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmark_transformers import settings as of
from benchmark_transformers.augmentation import rand_augment
from benchmark_transformers.labels import chexpert_labels
from dart_core.batches import Batches
from dart_core.data.catalog import chestxray14, chexpert, radiographs, rsna_pe, rsna_pneumonia, shenzhen, vindr_cxr
from dart_core.data.datalist import Datalist, Row, check
from dart_core.data.dicom import apply_window, read_hounsfield
from dart_core.data.images import read_image
from dart_core.data.picture_views import ViewRanges, crop_view, draw_view
from dart_core.data.pictures import Pictures, filled, label_columns, site_rows, sites_of, split_pictures
from dart_core.errors import DartError, InputError, SettingError
from dart_core.settings import UncertainLabels

TEST_SHARE, VAL_SHARE = 0.2, 0.1
"""Of the patients, where the datalist names no such split (paper 2.2; a tenth of the training patients validates)."""
SPLIT_SEED = 0
"""The same for every run, so that runs can be compared."""
CLASS_COLUMN = "label"
CATALOG_LABELS: dict[str, tuple[str, ...]] = {
    "chestxray14": chestxray14.LIST_ORDER,
    "chexpert": chexpert.LABELS,
    "shenzhen": (shenzhen.LABEL,),
    "vindr-cxr": vindr_cxr.LABELS,
    "rsna-pneumonia": rsna_pneumonia.CLASSES,
    "rsna-pe": (rsna_pe.LABEL,),
}
"""Data set -> its labels in the order of the benchmark."""
TEST_LABELS = {"chexpert": chexpert.COMPETITION}
"""Data set -> labels whose mean AUC counts, where it is not all of them."""
_CELLS = {"": math.nan, "0": 0.0, "0.0": 0.0, "1": 1.0, "1.0": 1.0, "-1": -1.0, "-1.0": -1.0}
_UNCERTAIN = dict.fromkeys(("-1", "-1.0"), "-1 marks an uncertain label")
_MEMORY = 1 << 30
"""Bytes of decoded pictures that are kept; more are read again in every epoch."""


@dataclass(frozen=True, eq=False)
class Cases:
    """Pictures of one data set with their targets."""

    pictures: Pictures
    """`truth` (n, labels) of 0 and 1; nan = unknown; -1 = uncertain, only with a policy."""
    exclusive: bool
    """The labels are classes of which each picture has one."""
    policy: UncertainLabels | None

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def rows(self) -> tuple[Row, ...]:
        """Of the datalist."""
        return self.pictures.rows

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return self.pictures.labels

    def targets(self, places: Sequence[int], generator: np.random.Generator) -> NDArray[np.float32]:
        """(len(places), labels): what the loss compares with; uncertain ones are drawn anew at each call."""
        truth = self.pictures.truth[list(places)]
        if self.policy is None:
            return truth
        return chexpert_labels(truth, self.policy, generator).astype(np.float32)

    def known(self) -> NDArray[np.float32]:
        """(n, labels) 0 or 1; nan where a label is unknown or uncertain."""
        truth = self.pictures.truth
        return np.where(truth < 0, np.float32(np.nan), truth)

    def take(self, places: Sequence[int]) -> Cases:
        """Some of the pictures."""
        return dataclasses.replace(self, pictures=self.pictures.take(places))


# --- Reading ---------------------------------------------------------------------------------------------------------


def open_data(data: of.DataSettings) -> Datalist:
    """The datalist, or the folder of a data set.

    Raises:
        InputError: neither.
    """
    lists = dict(zip(("train", "val", "test"), data.lists, strict=True)) if data.lists else None
    return radiographs.open_radiographs(data.datalist, lists=lists)


def read_cases(data: of.DataSettings, labels: Sequence[str] = (), labelled: bool = True) -> dict[str, Cases]:
    """Train, val and test pictures of a data set; opens no picture.

    Args:
        data: where, and which labels.
        labels: those that a network answers; what the data set does not label is unknown where `labelled` is False.
        labelled: every picture must have a label, and every file must be there.

    Raises:
        InputError: no such site or column, a cell that is no label, a file that is missing.
        SettingError: several data sets, and none is named.
    """
    datalist = open_data(data)
    site = the_site(datalist, data.site)
    cases = _cases(datalist, site, data, labels, labelled)
    for row in cases.rows:
        if not row.image.is_file():
            raise InputError(f"{row.image} is not there", where=row.where("image"), remedy="check the path")
    place_of = {id(row): place for place, row in enumerate(cases.rows)}
    parts = split_pictures(cases.pictures, data.drawn_by, TEST_SHARE, VAL_SHARE, SPLIT_SEED)
    # In the order of the list, of which the authors' fractions are drawn.
    return {name: cases.take(sorted(place_of[id(row)] for row in part.rows)) for name, part in parts.items()}


def training_cases(data: of.DataSettings) -> dict[str, Cases]:
    """`read_cases` for a training: there must be pictures to train on and to validate with.

    Raises:
        InputError: there are none, or no training picture of a class.
    """
    parts = read_cases(data)
    datalist = Datalist((), data.datalist)
    for name in ("train", "val"):
        filled(parts[name].pictures, name, datalist)
    known = parts["train"].known()
    for column, label in enumerate(parts["train"].labels):
        if parts["train"].exclusive and not (known[:, column] == 1).any():
            raise InputError(
                f"no training picture is of class {label!r}", where=data.datalist, remedy="add some, or drop the class"
            )
    return parts


def the_site(datalist: Datalist, site: str) -> str:
    """The data set that is meant.

    Raises:
        SettingError: none is named and there are several.
        InputError: no such one.
    """
    there = sites_of(datalist)
    if not site and len(there) > 1:
        raise SettingError(f"{datalist.source} holds {len(there)} data sets", remedy=f"name one: --site {there[0]}")
    if site and site not in there:
        raise InputError(f"no site {site!r}", where=datalist.source, remedy=f"there are: {', '.join(there)}")
    return site or there[0]


def counted_labels(site: str, labels: Sequence[str]) -> tuple[str, ...]:
    """Those of `labels` whose mean AUC counts on a data set: of CheXpert the ones of its competition, else all."""
    return tuple(name for name in TEST_LABELS.get(site, ()) if name in labels) or tuple(labels)


def policy_of(data: of.DataSettings, site: str) -> UncertainLabels | None:
    """What uncertain cells become: of CheXpert draws near 1, unless told otherwise."""
    return data.uncertain or ("lsr-ones" if site == "chexpert" else None)


def _cases(datalist: Datalist, site: str, data: of.DataSettings, labels: Sequence[str], labelled: bool) -> Cases:
    rows = site_rows(datalist, site)
    there = list(dict.fromkeys(name for row in rows for name in row.labels))
    wanted = tuple(labels) or data.labels
    policy = policy_of(data, site)
    for name in data.labels:
        if name not in there:
            known = ", ".join(there) or "none with a filled cell"
            raise InputError(f"site {site} has no column {name!r}", where=datalist.source, remedy=f"there are: {known}")
    if not wanted and set(CATALOG_LABELS.get(site, ("",))) <= set(there):
        wanted = CATALOG_LABELS[site]
    columns = wanted or label_columns(rows, _UNCERTAIN)
    names = _class_names(rows, wanted)
    exclusive = data.task == "exclusive" or (data.task == "auto" and (site == "rsna-pneumonia" or bool(names)))
    in_columns = bool(columns) and set(columns) <= set(there)
    if exclusive and names and not (wanted and in_columns):
        columns = tuple(labels) or names
        truth = _one_hot(rows, columns, labelled)
    elif in_columns:
        truth = np.array([[_cell(row, name, policy) for name in columns] for row in rows], dtype=np.float32)
    elif labelled or not labels:
        raise InputError(
            f"site {site} has no label column", where=datalist.source,
            remedy="add one column per label with 0 and 1, or name them: --labels",
        )  # fmt: skip
    else:
        # What a network answers and the data set does not label is unknown.
        columns = tuple(labels)
        cells = [[_cell(row, name, policy) if name in there else math.nan for name in columns] for row in rows]
        truth = np.array(cells, dtype=np.float32)
    _check_rows(rows, columns, truth, exclusive, labelled)
    return Cases(Pictures(site, tuple(columns), rows, truth), exclusive, policy)


def _class_names(rows: Sequence[Row], wanted: Sequence[str]) -> tuple[str, ...]:
    """The classes that the column `label` names, where it is no column of 0 and 1."""
    if set(wanted) & {name for row in rows for name in row.labels} - {CLASS_COLUMN}:
        return ()
    cells = {row.labels.get(CLASS_COLUMN, "") for row in rows} - {""}
    if not cells or cells <= _CELLS.keys():
        return ()
    return tuple(sorted(cells, key=lambda cell: (not cell.isdecimal(), int(cell) if cell.isdecimal() else 0, cell)))


def _one_hot(rows: Sequence[Row], classes: Sequence[str], labelled: bool) -> NDArray[np.float32]:
    truth = np.full((len(rows), len(classes)), np.nan, dtype=np.float32)
    for i, row in enumerate(rows):
        cell = row.labels.get(CLASS_COLUMN, "")
        if cell in classes:
            truth[i] = 0
            truth[i, classes.index(cell)] = 1
        elif cell or labelled:
            problem = f"{cell!r} is none of the classes {', '.join(classes)}" if cell else "the picture has no class"
            raise InputError(problem, where=row.where(CLASS_COLUMN), remedy="correct the cell")
    return truth


def _cell(row: Row, name: str, policy: UncertainLabels | None) -> float:
    text = row.labels.get(name, "").strip()
    if text not in _CELLS:
        raise InputError(f"{text!r} is no label", where=row.where(name), remedy="give 0, 1, or nothing for unknown")
    value = _CELLS[text]
    if value < 0 and policy is None:
        raise InputError(
            "-1 marks an uncertain label", where=row.where(name),
            remedy="say what it becomes: --uncertain lsr-ones, lsr-zeros, ones or zeros",
        )  # fmt: skip
    return 0.0 if math.isnan(value) and policy is not None else value


def _check_rows(
    rows: Sequence[Row], columns: Sequence[str], truth: NDArray[np.float32], exclusive: bool, labelled: bool
) -> None:
    for row, cells in zip(rows, truth, strict=True):
        if labelled and np.isnan(cells).all():
            raise InputError("no label is filled in", where=row.where(columns[0]), remedy="fill in 0 or 1")
        if exclusive and not np.isnan(cells).all() and not (set(cells) <= {0.0, 1.0} and cells.sum() == 1):
            raise InputError(
                f"the picture has {int(np.nansum(cells))} of the exclusive classes {', '.join(columns)}",
                where=row.where(columns[0]), remedy="write 1 into exactly one of them, or give --task multi-label",
            )  # fmt: skip


# --- Pictures --------------------------------------------------------------------------------------------------------


class CaseFiles:
    """Pictures of some rows as uint8 (3, H, W) each; small sets stay in memory.

    Slices of RSNA PE come with their neighbours as the other two channels (specification 5).
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = tuple(rows)
        self._kept: dict[int, Tensor] | None = None
        first = self[0]
        self._kept = {} if len(rows) * first.numel() <= _MEMORY else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        """uint8 (3, H, W).

        Raises:
            InputError: a file that cannot be read.
        """
        image = None if self._kept is None else self._kept.get(index)
        if image is None:
            image = read_row(self.rows[index])
            if self._kept is not None:
                self._kept[index] = image
        return image

    def read_all(self) -> None:
        """Read the pictures now if they stay in memory, so that a mistake is found before it costs an output folder.

        Raises:
            InputError: a file that cannot be read.
        """
        if self._kept is not None:
            with ThreadPoolExecutor() as pool:
                for _ in pool.map(self.__getitem__, range(len(self))):
                    pass

    def in_batches(
        self, size: int, change: Callable[[Tensor], Tensor], places: Sequence[int] | None = None
    ) -> Iterator[Tensor]:
        """Changed pictures in order, (n, ...) each; files are decoded by several threads."""
        places = range(len(self)) if places is None else places
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(places), size):
                part = places[start : start + size]
                yield torch.stack(list(pool.map(lambda place: change(self[place]), part)))


def read_row(row: Row) -> Tensor:
    """uint8 (3, H, W): the picture in colour, or of RSNA PE the slice between its neighbours in the window of its catalogue.

    Raises:
        InputError: a file that cannot be read, or neighbours of other sizes.
    """
    if not {"below", "above"} <= row.labels.keys():
        return torch.from_numpy(read_image(row.image)).permute(2, 0, 1).contiguous()
    files = [row.image.with_name(row.labels["below"]), row.image, row.image.with_name(row.labels["above"])]
    slices = [apply_window(read_hounsfield(file), *rsna_pe.WINDOW) for file in files]
    if len({part.shape for part in slices}) > 1:
        sizes = ", ".join(f"{part.shape[0]} x {part.shape[1]}" for part in slices)
        raise InputError(
            f"the slice and its neighbours have {sizes} pixels", where=row.where("image"), remedy="leave it out"
        )
    return torch.from_numpy(np.stack(slices))


class StoredViews:
    """The views of a validation set, kept as uint8 once they are made where they fit into memory.

    Args:
        files: pictures.
        change: picture -> view, all of one shape.
    """

    def __init__(self, files: CaseFiles, change: Callable[[Tensor], Tensor]) -> None:
        self._files, self._change = files, change
        self._kept: Tensor | None = None
        self._fits = len(files) * change(files[0]).numel() <= _MEMORY

    def __len__(self) -> int:
        return len(self._files)

    def in_batches(self, size: int) -> Iterator[Tensor]:
        """All views in order."""
        if self._kept is None and self._fits:
            self._kept = torch.cat(list(self._files.in_batches(size, self._change)))
        yield from self._files.in_batches(size, self._change) if self._kept is None else self._kept.split(size)


def case_batches(
    cases: Cases, files: CaseFiles, size: int, batch_size: int, seed: int, augmented: bool = False
) -> Batches:
    """Batches of "image" uint8 (B, 3, size, size), "view" (B, 6) for `turn_views`, "label" float32 (B, labels).

    Pictures go through RandAugment where they are to be `augmented`.
    """

    def load(sample: int, rng: np.random.Generator) -> dict[str, Any]:
        image = files[sample]
        view = draw_view(rng, image.shape[-2], image.shape[-1], RANGES)
        part, label = crop_view(image, view, size), cases.targets([sample], rng)[0]
        return {"image": rand_augment(part, rng) if augmented else part, "view": view, "label": label}

    return Batches(load, len(cases), batch_size, seed)


RANGES = ViewRanges()
"""Specification 2.1.2."""


# --- check-data ------------------------------------------------------------------------------------------------------


def check_data(command: of.CheckData) -> int:
    """Print every problem of a data set; 0 if there is none, else 2."""
    data = command.data
    datalist = open_data(data)
    sites = (the_site(datalist, data.site),) if data.site else sites_of(datalist)
    for line in radiographs.report_missing(data.datalist):
        print(f"note: {line}")
    found: list[str] = []
    for site in sites:
        rows = site_rows(datalist, site)
        found += [str(problem) for problem in check(Datalist(rows, datalist.source), _open)]
        try:
            cases = _cases(datalist, site, data, (), labelled=True)
        except DartError as error:
            if str(error) not in found:
                found.append(str(error))
            continue
        known = cases.known()
        counts = ", ".join(f"{int((known[:, k] == 1).sum())} {name}" for k, name in enumerate(cases.labels))
        kind = "one of the classes" if cases.exclusive else "any of the labels"
        uncertain = int((cases.pictures.truth < 0).sum())
        print(
            f"site {site}: {len(rows)} pictures with {kind} {counts}" + (f"; {uncertain} uncertain" * (uncertain > 0))
        )
        try:
            parts = split_pictures(cases.pictures, data.drawn_by, TEST_SHARE, VAL_SHARE, SPLIT_SEED)
            print(f"site {site}: " + ", ".join(f"{len(part)} {name}" for name, part in parts.items()))
        except DartError as error:
            found.append(str(error))
    for line in found:
        print(line)
    print(f"{len(datalist)} pictures: {len(found) or 'no'} problem{'s' * (len(found) != 1)}")
    return 2 if found else 0


def _open(row: Row) -> Iterator[tuple[str, DartError]]:
    try:
        read_row(row)
    except DartError as error:
        yield "image", error
