"""Labelled pictures with their nuisance: from a datalist to the batches of a training (specification 5, B9)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dart_core.batches import Batches, Sample
from dart_core.data.datalist import Datalist, Row
from dart_core.data.pictures import PictureFiles
from dart_core.errors import InputError, SettingError
from skintone_debias.datalists import normalised
from skintone_debias.scores import TYPES
from skintone_debias.settings import CaseSettings

_LABELS = {"0": 0.0, "0.0": 0.0, "1": 1.0, "1.0": 1.0}
MOST_VALUES = 50
"""Values that a nuisance may have."""
_IN_MEMORY = 512 * 2**20
"""Training pictures that take fewer bytes than this are kept once they are read."""


@dataclass(frozen=True, eq=False)
class Cases:
    """Pictures with what is known about them."""

    rows: tuple[Row, ...]
    labels: NDArray[np.float32]
    """(n,) 1 = malignant."""
    nuisance: NDArray[np.int64]
    """(n, columns) place of each value in `values`."""
    values: dict[str, list[str]]
    """Column -> its values in the training pictures."""

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: Iterable[int]) -> Cases:
        """Some of them, in the order given; the values stay."""
        places = list(places)
        rows = tuple(self.rows[i] for i in places)
        return dataclasses.replace(self, rows=rows, labels=self.labels[places], nuisance=self.nuisance[places])

    def counts(self, column: str) -> NDArray[np.int64]:
        """Pictures of each value of a column."""
        place = list(self.values).index(column)
        return np.bincount(self.nuisance[:, place], minlength=len(self.values[column]))


# --- Cells -----------------------------------------------------------------------------------------------------------


def label_of(row: Row, column: str, needed: bool = True) -> float:
    """0 or 1; nan for an empty cell that need not be filled.

    Raises:
        InputError: something else.
    """
    cell = row.labels.get(column, "").strip()
    if cell in _LABELS:
        return _LABELS[cell]
    if not cell and not needed:
        return float("nan")
    problem = f"{cell!r} is no label" if cell else "there is no label"
    raise InputError(problem, where=row.where(column), remedy="give 1 for malignant, 0 for benign")


def cell_of(row: Row, column: str) -> str:
    """What a column of the datalist says, one of its own or the site; empty where it is unknown."""
    return normalised(row.site if column == "site" else row.labels.get(column, ""))


def nuisance_of(row: Row, column: str) -> str | None:
    """The value of a nuisance; None where it is unknown (empty, -1, nan).

    Raises:
        InputError: a skin type other than 1 to 6, in a column whose name begins with fitzpatrick.
    """
    cell = cell_of(row, column)
    if not cell:
        return None
    if column.startswith("fitzpatrick") and cell not in map(str, TYPES):
        raise InputError(
            f"{cell!r} is no Fitzpatrick type", where=row.where(column), remedy="give 1 to 6, or -1 where it is unknown"
        )
    return cell


def ordered(values: Iterable[str]) -> list[str]:
    """Numbers by their size, then words."""

    def key(value: str) -> tuple[bool, float, str]:
        try:
            return False, float(value), value
        except ValueError:
            return True, 0.0, value

    return sorted(set(values), key=key)


def has_column(rows: Sequence[Row], column: str) -> bool:
    """Whether the rows have a column."""
    return any(column in row.labels or (column == "site" and row.site) for row in rows)


# --- Reading ---------------------------------------------------------------------------------------------------------


def site_rows(datalist: Datalist, sites: Sequence[str]) -> list[Row]:
    """The rows of some sites, of all if none is named.

    Raises:
        InputError: no such site.
    """
    if not sites:
        return list(datalist)
    return [row for site in dict.fromkeys(sites) for row in datalist.select(site=site)]


def read_cases(datalist: Datalist, settings: CaseSettings, unlearn: bool) -> tuple[dict[str, Cases], int]:
    """Training and validation pictures. Opens no picture.

    Rows without a split are for training. Training pictures whose nuisance is unknown are left out, whatever the method,
    so that all methods see the same pictures; a datalist without the column is fine where nothing is unlearnt.

    Args:
        datalist: all rows.
        settings: which of them, and the columns.
        unlearn: the nuisance is needed.

    Returns:
        "train" and "val" (which may be empty), and the number of training pictures that were left out.

    Raises:
        InputError: no training picture, a class or column that is missing, a cell or file that is not right.
    """
    every = site_rows(datalist, settings.sites)
    rows = [row for row in every if row.split != "test"]
    columns = list(dict.fromkeys(settings.nuisance))
    for name in (settings.label, *(columns if unlearn else ())):
        if not has_column(every, name):
            there = dict.fromkeys(name for row in every for name in row.labels)
            remedy = f"columns there: {', '.join(there) or 'none'}"
            raise InputError(f"has no column {name!r}", where=datalist.source, remedy=remedy)
    columns = [name for name in columns if has_column(every, name)]
    parts: dict[str, list[Row]] = {"train": [], "val": []}
    left_out = 0
    for row in rows:
        known = [nuisance_of(row, name) is not None for name in columns]
        if row.split != "val" and not all(known):
            left_out += 1
            continue
        parts[row.split or "train"].append(row)
    if not parts["train"]:
        why = f"; {left_out} lack the nuisance" if left_out else ""
        raise InputError(
            f"holds no training picture{why}",
            where=datalist.source,
            remedy="write train into the column split of some rows",
        )
    values = {name: ordered(str(nuisance_of(row, name)) for row in parts["train"]) for name in columns}
    cases = {name: _cases(found, settings.label, values) for name, found in parts.items()}
    check_training(cases["train"], settings.label, columns if unlearn else (), str(datalist.source))
    return cases, left_out


def check_training(cases: Cases, label: str, nuisance: Iterable[str], where: str) -> None:
    """Training pictures have both labels, and of each nuisance two values and few; what a fold leaves of them may not.

    Raises:
        InputError: they have not.
    """
    for value, kind in enumerate(("benign", "malignant")):
        if not (cases.labels == value).any():
            raise InputError(
                f"no training picture is {kind} ({label} {value})",
                where=where,
                remedy="add some, or name another column: --label",
            )
    for name in nuisance:
        there = [value for value, count in zip(cases.values[name], cases.counts(name), strict=True) if count]
        if len(there) < 2:
            raise InputError(
                f"all training pictures have {name} {there[0]}, so that there is nothing to unlearn",
                where=where,
                remedy="name another column: --nuisance, or give --debias none",
            )
        # Each value is an output of the head: of an angle or another measure there would be about one per picture.
        # A few pictures may well have all the skin types.
        if len(there) > min(MOST_VALUES, max(len(TYPES), len(cases) / 2)):
            raise InputError(
                f"has {len(there)} values in {len(cases)} training pictures; {MOST_VALUES}, and half the pictures, are the most",
                where=f"{where}, column {name}",
                remedy="name a column with few values: --nuisance",
            )


def _cases(rows: Sequence[Row], label: str, values: Mapping[str, list[str]]) -> Cases:
    labels = np.array([label_of(row, label) for row in rows], dtype=np.float32)
    places = {name: {value: i for i, value in enumerate(found)} for name, found in values.items()}
    # Validation pictures may have values that training has not; nothing is asked of them.
    table = [[of.get(str(nuisance_of(row, name)), -1) for name, of in places.items()] for row in rows]
    for row in rows:
        if not row.image.is_file():
            raise InputError(f"{row.image} is not there", where=row.where("image"), remedy="check the path")
    return Cases(tuple(rows), labels, np.array(table, dtype=np.int64).reshape(len(rows), len(values)), dict(values))


def take_fold(cases: Cases, fold: int, folds: int, seed: int) -> tuple[Cases, Cases]:
    """Split training pictures for cross-validation (B11).

    Args:
        cases: training pictures.
        fold: the one that validates, from 0.
        folds: how many to draw where the pictures have no column fold: each label's share is alike in all of them, and a
            subject's pictures are in one.
        seed: of the draw.

    Returns:
        Those of the other folds, and those of the fold.

    Raises:
        SettingError: there is no such fold, or too few subjects.
    """
    given = [row.labels.get("fold", "").strip() for row in cases.rows]
    if any(given):
        there = ordered(given)
        if str(fold) not in there or len(there) < 2:
            raise SettingError(f"--fold is {fold}", remedy=f"the datalist's column fold has {', '.join(there)}")
        inside = [value == str(fold) for value in given]
    else:
        if fold >= folds:
            raise SettingError(f"--fold is {fold} of --folds {folds}", remedy=f"give 0 to {folds - 1}")
        inside = _drawn_fold(cases, fold, folds, seed)
    places = range(len(cases))
    return cases.take(i for i in places if not inside[i]), cases.take(i for i in places if inside[i])


def _drawn_fold(cases: Cases, fold: int, folds: int, seed: int) -> list[bool]:
    from sklearn.model_selection import StratifiedGroupKFold

    groups = [row.subject or f"\0{i}" for i, row in enumerate(cases.rows)]
    rarest = min(int((cases.labels == value).sum()) for value in (0, 1))
    if len(set(groups)) < folds or rarest < folds:
        raise SettingError(
            f"--folds is {folds}: there are {len(set(groups))} subjects, and {rarest} pictures of the rarer label",
            remedy="give fewer folds",
        )
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed % 2**32)
    held = list(splitter.split(np.zeros(len(cases)), cases.labels, groups))[fold][1]
    chosen = set(held.tolist())
    return [i in chosen for i in range(len(cases))]


# --- Batches ---------------------------------------------------------------------------------------------------------


class EpochBatches(Batches):
    """Batches of whole epochs: each a new order of all samples, whose incomplete last batch is dropped (B9)."""

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch."""
        return self.size // self.batch_size

    def plan(self, step: int) -> list[tuple[int, int]]:
        """The (epoch, sample) pairs of a step."""
        epoch, place = divmod(step, self.per_epoch)
        order = self._order(epoch)[place * self.batch_size : (place + 1) * self.batch_size]
        return [(epoch, int(sample)) for sample in order]


def case_batches(
    cases: Cases, heads: Sequence[str], side: int, square: bool, batch_size: int, seed: int
) -> EpochBatches:
    """Batches of "image" (B, 3, side, side) uint8, "label" (B,) float32, "nuisance" (B, heads) int64; no augmentation (B10).

    Args:
        cases: training pictures.
        heads: column of each auxiliary head.
        side: of the pictures.
        square: cut the middle square out first.
        batch_size: samples.
        seed: of the order.

    Raises:
        SettingError: fewer pictures than one batch.
    """
    if len(cases) < batch_size:
        raise SettingError(
            f"--batch-size is {batch_size}, and there are {len(cases)} training pictures",
            remedy=f"give --batch-size {len(cases)} or fewer",
        )
    files = PictureFiles(cases.rows, side, square=square, memory=len(cases) * 3 * side * side < _IN_MEMORY)
    columns = [list(cases.values).index(name) for name in heads]

    def load(index: int, rng: np.random.Generator) -> Sample:
        nuisance = cases.nuisance[index, columns]
        return {"image": files[index]["image"], "label": cases.labels[index], "nuisance": nuisance}

    return EpochBatches(load, len(cases), batch_size, seed)
