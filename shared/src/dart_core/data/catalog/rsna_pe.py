"""RSNA Pulmonary Embolism (STR-RSNA challenge 2020): 7,279 labelled CT angiographies, 1.79 million labelled slices.

Colak E. et al., "The RSNA pulmonary embolism CT dataset", Radiology: Artificial Intelligence 3:e200254, 2021,
doi:10.1148/ryai.2021200254. The test labels are not published.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from dart_core.data.catalog._pictures import BINARY, check_root, filled, find_first, pick
from dart_core.data.catalog._splits import draw_splits
from dart_core.data.catalog._tables import each_row
from dart_core.data.datalist import Datalist, Row
from dart_core.errors import InputError

LABEL = "pe_present_on_image"
"""The label of a slice."""

TEST_SHARE, VAL_SHARE = 0.2, 0.08
"""Of the studies, since the owners' test labels are not published; a tenth of the others is for validation."""

WINDOW = (100.0, 700.0)
"""Centre and width in HU of the window that slices are shown in (benchmark-transformers 5)."""

ORIGIN = (
    "Kaggle gives it, for research that is not commercial, at"
    " https://www.kaggle.com/competitions/rsna-str-pulmonary-embolism-detection/data; cite Colak et al., Radiology: Artificial"
    " Intelligence 3:e200254, 2021"
)

FOLDER = "rsna-str-pulmonary-embolism-detection"
"""The name under which Kaggle packs it."""

_COLUMNS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", LABEL)


def index(root: str | os.PathLike[str], studies: Sequence[str] | None = None, seed: int = 0) -> Datalist:
    """List the slices that are there, study by study, each study from the feet to the head.

    Layout: train.csv beside train/<StudyInstanceUID>/<SeriesInstanceUID>/<SOPInstanceUID>.dcm.

    The names of the files do not tell their order, so that the header of every slice is read, which takes about a
    millisecond each; write the result (`Datalist.write`) and read that from then on.

    Args:
        root: the folder that holds train.csv.
        studies: only these; None: all. The split of a study does not depend on it.
        seed: of the draw of a fifth of the studies for the test and of a tenth of the rest for validation. Whether a study
            shows an embolism anywhere is equally frequent in the three.

    Returns:
        rows with image, subject (the study; patients are not told), site "rsna-pe", split and labels: pe_present_on_image
        ("0" or "1"), series, slice (place in the series from 0), and below and above, the names of the neighbouring files in
        the same folder; the first and the last slice are their own neighbours.

    Raises:
        InputError: another folder, a table that does not fit, no slice, a slice without a position.
    """
    table = _table(Path(root))
    found = _read(table)
    split_of = _split(found, seed)
    wanted = found.keys() if studies is None else set(studies)
    for study in wanted - found.keys():
        raise InputError(f"there is no study {study!r}", where=table, remedy="name studies of the table")
    rows = tuple(
        row for study in found if study in wanted for row in _rows(table, study, found[study], split_of[study])
    )
    if not rows:
        raise InputError(
            "none of the slices in the table is there", where=table, remedy=f"unpack train/ beside it; {ORIGIN}"
        )
    return Datalist(rows, table)


def report_missing(root: str | os.PathLike[str]) -> list[str]:
    """Say how many studies and slices of the table are missing; empty when all are there.

    Raises:
        InputError: another folder, or a table that does not fit.
    """
    table = _table(Path(root))
    absent, slices, incomplete = 0, 0, 0
    found = _read(table)
    for study, series in found.items():
        folders = {uid: _names(table.parent / "train" / study / uid) for uid in series}
        missing = sum(len(part.keys() - folders[uid]) for uid, part in series.items())
        whole = missing == sum(map(len, series.values()))
        absent += whole
        incomplete += bool(missing) and not whole
        slices += missing
    if not slices:
        return []
    line = f"{absent} of {len(found)} studies are missing and {incomplete} are incomplete: {slices} slices"
    return [line, f"RSNA PE: {ORIGIN}"]


_Series = dict[str, dict[str, tuple[int, str]]]
"""Series -> file name -> line in the table, label."""


def _table(root: Path) -> Path:
    check_root(root, "RSNA PE", ORIGIN)
    table = find_first(root, ("train.csv", f"{FOLDER}/train.csv"))
    if table is None:
        raise InputError(
            "this is not an RSNA PE folder (no train.csv)",
            where=root,
            remedy=f"give the folder that holds it; {ORIGIN}",
        )
    return table


def _read(table: Path) -> dict[str, _Series]:
    """Study -> its series."""
    found: dict[str, _Series] = {}
    for line, cells in each_row(table, _COLUMNS):
        study, series, slice_ = (filled(table, line, cells, column) for column in _COLUMNS[:3])
        slices = found.setdefault(study, {}).setdefault(series, {})
        name = f"{slice_}.dcm"
        if name in slices:
            raise InputError(
                f"the slice {slice_} is already in row {slices[name][0]}",
                where=f"{table}, row {line}, column SOPInstanceUID",
                remedy="copy the owners' table again",
            )
        slices[name] = line, pick(table, line, cells, LABEL, BINARY)
    return found


def _split(found: dict[str, _Series], seed: int) -> dict[str, str]:
    ill = {
        study: str(max(label for slices in series.values() for _, label in slices.values()))
        for study, series in found.items()
    }
    return draw_splits(ill, TEST_SHARE, VAL_SHARE, seed)


def _rows(table: Path, study: str, series: _Series, split: str) -> Iterator[Row]:
    for uid, slices in series.items():
        folder = table.parent / "train" / study / uid
        names = [name for name in sorted(_names(folder)) if name in slices]
        names = [name for _, name in sorted((_height(folder / name), name) for name in names)]
        for place, name in enumerate(names):
            line, label = slices[name]
            yield Row(
                folder / name,
                subject=study,
                site="rsna-pe",
                split=split,
                labels={
                    LABEL: label,
                    "series": uid,
                    "slice": str(place),
                    "below": names[max(place - 1, 0)],
                    "above": names[min(place + 1, len(names) - 1)],
                },
                line=line,
                source=table,
            )


def _names(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _height(path: Path) -> float:
    """Position of a slice along the body in mm."""
    try:
        import pydicom
    except ImportError as error:
        raise InputError(
            "slices are DICOM files, and pydicom is not installed", where=path, remedy="pip install 'dart-core[dicom]'"
        ) from error
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["ImagePositionPatient"])
    except (OSError, pydicom.errors.InvalidDicomError, ValueError) as error:
        raise InputError(f"no DICOM file ({error})", where=path, remedy="copy it again") from error
    position = header.get("ImagePositionPatient")
    if position is None or len(position) != 3:
        raise InputError("the slice has no position (ImagePositionPatient)", where=path, remedy="copy it again")
    return float(position[2])
