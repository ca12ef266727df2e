"""Which cases there are, and which of them are held out: folders, lists and folds (specification 5.3, 5.4)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from catenorm import settings as of
from dart_core.data.catalog import btcv, pancreas_ct, prostate
from dart_core.data.datalist import Datalist, Row
from dart_core.data.scans import frame_of
from dart_core.errors import InputError

FOLDS = 5


def open_cases(cases: of.Cases) -> Datalist:
    """The rows of one or several datalists or folders, of the sites that were asked for.

    A folder is a Decathlon or nnU-Net one, one of site folders with all_list.txt (5.3), or that of the prostate collection, of
    BTCV or of Pancreas-CT.

    Raises:
        InputError: a datalist that cannot be read, or a site that is not there.
    """
    return _of_sites(_open_all(cases), cases.sites)


def open_divided(cases: of.Cases, fold: int | None) -> tuple[Datalist, dict[str, list[Row]], list[Row]]:
    """The rows of `open_cases`, and how `divide` divides them.

    Sites are numbered before any are left out, so that a fold of a site holds the same cases whatever it is trained with.

    Raises:
        InputError: as `open_cases` and `divide`.
    """
    every = _open_all(cases)
    datalist = _of_sites(every, cases.sites)
    return datalist, *divide(datalist, fold, ordered_sites(every))


def _of_sites(datalist: Datalist, sites: Sequence[str]) -> Datalist:
    chosen = [row for site in sites for row in datalist.select(site=site)] if sites else list(datalist)
    return Datalist(tuple(chosen), datalist.source)


def _open_all(cases: of.Cases) -> Datalist:
    rows: list[Row] = []
    for path in cases.datalist:
        rows += _open(path, "zenodo" if cases.preprocessing == "ct-multi" else "official")
    datalist = Datalist(tuple(rows), cases.datalist[0])
    first: dict[tuple[Path, int | None], Row] = {}
    for row in datalist:
        if (other := first.setdefault((row.image.resolve(), frame_of(row)), row)) is not row:
            raise InputError(
                f"{row.image.name} is in two datalists", where=row.source, remedy=f"leave {other.source} out"
            )
    return datalist


def _open(path: Path, annotation: Literal["official", "zenodo"]) -> Datalist:
    if not path.is_dir() or (path / "dataset.json").is_file():
        return Datalist.read(path)
    if lists := sorted(path.glob("*/all_list.txt")):
        return Datalist(tuple(row for file in lists for row in read_list(file)), path)
    errors: list[InputError] = []
    for index in (
        prostate.index,
        lambda root: _btcv(root, annotation),
        pancreas_ct.index,
    ):
        try:
            return index(path)
        except InputError as error:
            if not error.problem.startswith("this is not"):
                raise
            errors.append(error)
    raise InputError(
        "this is none of the folders that are known: dataset.json, site folders with all_list.txt, the prostate collection, BTCV,"
        " Pancreas-CT",
        where=path,
        remedy="give a datalist file, or the folder of one of these",
    ) from errors[0]


def _btcv(root: Path, annotation: Literal["official", "zenodo"]) -> Datalist:
    """The 30 training scans (5.2): Gibson et al. have labels of test scans too."""
    datalist = btcv.index(root, annotation)
    used = {f"{btcv.SITE}_{number:04d}" for number in btcv.NUMBERS}
    return Datalist(tuple(row for row in datalist if row.subject in used), datalist.source)


def read_list(file: Path) -> list[Row]:
    """The cases of an all_list.txt: "image path, label path" per line; the folder's last letter is the site.

    Raises:
        InputError: no such file, or a line of another form.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})", where=file, remedy="check the file") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != 2 or not all(parts):
            raise InputError(
                f"'{line.strip()[:60]}' is not an image path, a comma and a label path",
                where=f"{file}, row {number}",
                remedy="write one case per line",
            )
        image, mask = (_below(file.parent, part) for part in parts)
        site = file.parent.name[-1:]
        rows.append(Row(image, mask, subject=f"{site}_{image.name.split('.')[0]}", site=site, line=number, source=file))
    return rows


def _below(folder: Path, text: str) -> Path:
    """A path of a list: as it is, or below the list's folder, or (lists are moved with their folders) by its name there."""
    choices = (Path(text), folder / text, folder.parent / text, folder / Path(text).name)
    return next((path for path in choices if path.exists()), folder / text)


def ordered_sites(datalist: Datalist) -> tuple[str, ...]:
    """The sites in sorted order; those of the prostate collection in the order of their letters A to F."""
    sites = datalist.sites or ("",)
    if set(sites) <= set(prostate.SITES):
        return tuple(sorted(sites, key=prostate.SITES.index))
    return tuple(sorted(sites))


def site_folds(n_cases: int, site_index: int) -> list[NDArray[np.int64]]:
    """Test indices of the five folds of a site (5.4): scikit-learn's KFold, shuffled with the site's place as seed.

    Args:
        n_cases: cases of the site (subjects, where one has several), in the order of its list.
        site_index: place of the site in sorted order, from 0.

    Raises:
        ValueError: fewer than five cases.
    """
    from sklearn.model_selection import KFold

    if n_cases < FOLDS:
        raise InputError(f"{n_cases} cases make no {FOLDS} folds", remedy="use a column split instead of --fold")
    folds = KFold(FOLDS, shuffle=True, random_state=site_index).split(np.arange(n_cases))
    return [np.asarray(test, dtype=np.int64) for _, test in folds]


def divide(
    datalist: Datalist, fold: int | None, numbered: Sequence[str] | None = None
) -> tuple[dict[str, list[Row]], list[Row]]:
    """The training cases of each site, and the test cases.

    Args:
        datalist: all of them.
        fold: 0 to 4: that fold of every site's subjects is the test part; None: by the column split.
        numbered: sites whose place here is the seed of their folds; None: those of the datalist in sorted order.

    Raises:
        InputError: too few cases for folds, no split, or a site without a training case.
    """
    training: dict[str, list[Row]] = {}
    test: list[Row] = []
    if fold is None and not datalist.splits:
        raise InputError("no case has a split", where=datalist.source, remedy="give --fold, or add a column split")
    own_sites = ordered_sites(datalist)
    numbers = {site: index for index, site in enumerate(numbered or own_sites)}
    for site in own_sites:
        own = [row for row in datalist if row.site == site]
        if fold is None:
            training[site] = [row for row in own if row.split == "train"]
            test += [row for row in own if row.split == "test"]
        else:
            # All scans of a subject fall in one fold. With one scan each these are the authors' folds.
            people = list(dict.fromkeys(_person(row) for row in own))
            try:
                held = {people[place] for place in site_folds(len(people), numbers[site])[fold]}
            except InputError as error:
                named = f"site {site}: " if site else ""
                raise InputError(named + error.problem, where=datalist.source, remedy=error.remedy) from error
            training[site] = [row for row in own if _person(row) not in held]
            test += [row for row in own if _person(row) in held]
        if not training[site]:
            raise InputError(
                f"{'site ' + site if site else 'the datalist'} has no case with split train",
                where=datalist.source,
                remedy="write train into the column split of some of its cases, or choose other --sites",
            )
    return training, test


def _person(row: Row) -> tuple[str, ...]:
    """Who a case is of: its subject; a case without one stands for itself."""
    return (row.subject,) if row.subject else ("", str(row.image), str(frame_of(row)))


def marks(row: Row) -> set[str]:
    """By what a weight file says which cases a network has seen: digests of the case's file and of its subject.

    Weights are given away, and names of patients must not go with them.
    """
    names = [f"{row.image.resolve()} {row.labels.get('frame', '')}"]
    names += [f"{row.site} {row.subject}"] if row.subject else []
    return {hashlib.sha256(name.encode()).hexdigest()[:16] for name in names}


def label_sets(datalist: Datalist, site: str) -> tuple[str, ...]:
    """Which of several published sets of labels the cases of a site come with; () where there is one set only."""
    found = (row.labels.get("annotation", "") for row in datalist if row.site == site)
    return tuple(dict.fromkeys(name for name in found if name))
