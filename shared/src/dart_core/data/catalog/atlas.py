"""Interactive Atlas of Dermoscopy: 1,011 cases, each with one dermoscopic and one clinical picture.

Argenziano G. et al., "Interactive atlas of dermoscopy", Edra 2000; as published with Kawahara J. et al., "Seven-point checklist
and skin lesion classification using multitask multimodal neural nets", IEEE JBHI 23:538, 2019, doi:10.1109/JBHI.2018.2824327.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from dart_core.data.catalog._pictures import (
    BINARY,
    check_root,
    filled,
    find_first,
    missing,
    pick,
    pictures_below,
    present,
)
from dart_core.data.catalog._tables import read_rows
from dart_core.data.datalist import Datalist, Row
from dart_core.errors import InputError, SettingError

CASES = 1011
"""Cases of the owners' table; 252 of them are melanomas."""

ORIGIN = (
    "ask the owners for release_v0.zip at https://derm.cs.sfu.ca (meta/meta.csv and images/); cite Kawahara et al., IEEE JBHI"
    " 2019, and Argenziano et al., 2000"
)

View = Literal["derm", "clinic"]

_TABLES = ("meta/meta.csv", "release_v0/meta/meta.csv", "atlas_processed.csv", "csv/atlas_processed.csv")
_FOLDERS = ("images/atlas_256", "atlas_256", "images")


def index(root: str | os.PathLike[str], view: View = "derm") -> Datalist:
    """List the pictures that are there, in the order of the table.

    Layout: meta/meta.csv beside images/<folder>/<file>.jpg, as release_v0.zip unpacks; or the table atlas_processed.csv of
    the code of Bevan and Atapour-Abarghouei beside atlas_256/.

    Args:
        root: the folder release_v0, or the one that holds it.
        view: the dermoscopic or the clinical picture of each case.

    Returns:
        rows with image, subject (case1, ...), site ("atlas-derm" or "atlas-clinic"), split "test" (the atlas is a test set)
        and labels: label ("1" melanoma, of any thickness, in situ or metastasis), diagnosis and sex.

    Raises:
        InputError: another folder, a table that does not fit, no picture.
        SettingError: another view.
    """
    table = _find_table(Path(root))
    return present(_rows(table, view), table, ORIGIN)


def report_missing(root: str | os.PathLike[str], view: View = "derm") -> list[str]:
    """Say how many cases and pictures are missing, and where they come from; empty when all are there.

    Raises:
        InputError: another folder, or a table that does not fit.
        SettingError: another view.
    """
    rows = _rows(_find_table(Path(root)), view)
    lines = missing(rows, f"Interactive Atlas ({view})")
    if len(rows) < CASES:
        lines.append(f"the table has {len(rows)} of {CASES} cases")
    return [*lines, f"Interactive Atlas: {ORIGIN}"] if lines else []


def _find_table(root: Path) -> Path:
    check_root(root, "the Interactive Atlas", ORIGIN)
    table = find_first(root, _TABLES)
    if table is None:
        raise InputError(
            "this is not the Interactive Atlas (no meta/meta.csv)",
            where=root,
            remedy=f"give the folder that holds it; {ORIGIN}",
        )
    return table


def _rows(table: Path, view: View) -> list[Row]:
    if view not in ("derm", "clinic"):
        raise SettingError(f"no view {view!r} in the Interactive Atlas", remedy="choose derm or clinic")
    prepared = table.name == "atlas_processed.csv"
    base = table.parent if prepared and table.parent.name != "csv" else table.parent.parent
    images = find_first(base, _FOLDERS if prepared else ("images",)) or base / "images"
    there = pictures_below(images)
    rows = []
    for line, cells in read_rows(table, ("case_num", "diagnosis", view, *(("target",) if prepared else ()))):
        name = filled(table, line, cells, view)
        diagnosis = filled(table, line, cells, "diagnosis")
        melanoma = diagnosis == "melanoma" or diagnosis.startswith(("melanoma (", "melanoma metastasis"))
        labels = {
            "label": pick(table, line, cells, "target", BINARY) if prepared else str(int(melanoma)),
            "diagnosis": diagnosis,
            "sex": cells.get("sex", ""),
        }
        rows.append(
            Row(
                there.get(name.replace("\\", "/").lower(), images / name),
                subject=f"case{filled(table, line, cells, 'case_num')}",
                site=f"atlas-{view}",
                split="test",
                labels={column: value for column, value in labels.items() if value},
                line=line,
                source=table,
            )
        )
    return rows
