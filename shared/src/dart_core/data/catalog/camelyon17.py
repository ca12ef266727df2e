"""CAMELYON17: whole slides of lymph nodes from five Dutch hospitals, fifty of them with outlines of the metastases.

Litjens G. et al., "1399 H&E-stained sentinel lymph node sections of breast cancer patients: the CAMELYON dataset",
GigaScience 7:giy065, 2018, doi:10.1093/gigascience/giy065. Public domain (CC0).
"""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dart_core.data.catalog._tables import read_rows
from dart_core.data.datalist import Datalist, Row
from dart_core.errors import InputError

CENTRES = ("CWZ", "RST", "UMCU", "RUMC", "LPON")
"""Names of the centres 0 to 4: patients 0-19, 20-39, 40-59, 60-79, 80-99. Inferred from the order of Stain-AgLr's table and
from the scanners (stain-aglr 5), therefore an argument of `index`."""

ANNOTATED = (
    *((4, 4), (9, 1), (10, 4), (12, 0), (15, 1), (15, 2), (16, 1), (17, 1), (17, 2), (17, 4)),
    *((20, 2), (20, 4), (21, 3), (22, 4), (24, 1), (24, 2), (34, 3), (36, 3), (38, 2), (39, 1)),
    *((40, 2), (41, 0), (42, 3), (44, 4), (45, 1), (46, 3), (46, 4), (48, 1), (51, 2), (52, 1)),
    *((60, 3), (61, 4), (62, 2), (64, 0), (66, 2), (67, 4), (68, 1), (72, 0), (73, 1), (75, 4)),
    *((80, 1), (81, 4), (86, 0), (86, 4), (87, 0), (88, 1), (89, 3), (92, 1), (96, 0), (99, 4)),
)
"""(patient, node) of the fifty slides with outlines, ten per centre."""

PATIENTS_PER_CENTRE = 20

TUMOUR_GROUPS = ("metastases", "Tumor", "_0", "_1")
"""Groups of outlines that enclose tumour: CAMELYON17's, then those of CAMELYON16, which have the same format."""

NORMAL_GROUPS = ("normal", "Exclusion", "_2")
"""Groups that are holes in a tumour outline."""

IGNORED_GROUPS = ("None", "")

ORIGIN = (
    "the owners give it at https://camelyon17.grand-challenge.org/Data/ (also in the AWS registry of open data and at"
    " GigaScience); cite Litjens et al., GigaScience 7:giy065, 2018"
)

_NAME = re.compile(r"patient_(\d{3})_node_(\d)")
# Where slides, outlines, masks and the table of stages lie in the present and in older copies, below the root.
_SLIDES = ("images", "training", "training/center_*", "training/patient_*", "center_*", "tif", "")
_OUTLINES = ("annotations", "lesion_annotations", "training/lesion_annotations", "")
_MASKS = ("masks", "")
_STAGES = ("stages.csv", "training/stages.csv", "stage_labels.csv", "training/stage_labels.csv")


class Outlines(NamedTuple):
    """What was drawn on a slide: closed polygons in pixels of level 0, each an array (corners, 2) of x and y."""

    tumour: tuple[NDArray[np.float64], ...]
    normal: tuple[NDArray[np.float64], ...]
    """Holes: no tumour inside, whatever encloses them."""


def index(root: str | os.PathLike[str], centres: Sequence[str] = CENTRES, annotated: bool = True) -> Datalist:
    """List the training slides that are there, by patient and node.

    Layout: CAMELYON17/ with images/patient_PPP_node_N.tif, annotations/patient_PPP_node_N.xml,
    masks/patient_PPP_node_N_mask.tif and stages.csv; or, as in older copies, training/center_C/*.tif, lesion_annotations/*.xml
    and stage_labels.csv.

    Args:
        root: the folder CAMELYON17, or the one that holds it.
        centres: names of the centres 0 to 4, which become the sites.
        annotated: only slides with outlines or a mask, and those of ANNOTATED, whose outlines are then missing; False: all.

    Returns:
        rows with image (the slide), mask (the outlines, XML; else the mask TIFF; None where there is neither), subject
        (patient_004), site and labels: slide (patient_004_node_4), centre (0 to 4), and stage (negative, itc, micro, macro)
        where the owners' table gives it.

    Raises:
        InputError: another folder, no slide, a slide that is there twice, a table that does not fit.
    """
    folder = _folder(Path(root))
    if len(centres) != len(CENTRES):
        raise InputError(f"{len(centres)} names for {len(CENTRES)} centres", remedy="name each of them")
    stages = _stages(folder)
    rows = []
    for name, slide in sorted(_files(folder, _SLIDES, ".tif").items()):
        patient, node = _numbers(name)
        if patient >= PATIENTS_PER_CENTRE * len(CENTRES):
            continue  # patients 100 to 199 are the test set, whose centres are not told
        mask = _find(folder, _OUTLINES, f"{name}.xml") or _find(folder, _MASKS, f"{name}_mask.tif")
        if annotated and mask is None and (patient, node) not in ANNOTATED:
            continue
        centre = patient // PATIENTS_PER_CENTRE
        labels = {"slide": name, "centre": str(centre), "stage": stages.get(f"{name}.tif", "")}
        rows.append(
            Row(
                slide,
                mask,
                subject=f"patient_{patient:03d}",
                site=centres[centre],
                labels={key: value for key, value in labels.items() if value},
                source=folder,
            )
        )
    if not rows:
        raise InputError(
            "no training slide (patient_PPP_node_N.tif) " + "with outlines " * annotated + "in this folder",
            where=folder,
            remedy=f"unpack the slides there; {ORIGIN}",
        )
    return Datalist(tuple(rows), folder)


def report_missing(root: str | os.PathLike[str]) -> list[str]:
    """Say which of the fifty annotated slides and of their outlines are missing; empty when all are there.

    Raises:
        InputError: another folder.
    """
    folder = _folder(Path(root))
    slides = _files(folder, _SLIDES, ".tif")
    lines = []
    for centre, name in enumerate(CENTRES):
        listed = [f"patient_{p:03d}_node_{n}" for p, n in ANNOTATED if p // PATIENTS_PER_CENTRE == centre]
        for what, missing in (
            ("slides", [slide for slide in listed if slide not in slides]),
            ("outlines", [slide for slide in listed if _find(folder, _OUTLINES, f"{slide}.xml") is None]),
        ):
            if missing:
                lines.append(f"{name}: {len(missing)} of {len(listed)} {what} are missing: {', '.join(missing)}")
    return [*lines, f"CAMELYON17: {ORIGIN}"] if lines else []


def read_outlines(path: str | os.PathLike[str]) -> Outlines:
    """Read the outlines of one slide from ASAP's XML (CAMELYON17's and CAMELYON16's groups).

    Annotations with fewer than three corners enclose nothing and are left out.

    Raises:
        InputError: not XML, a document type declaration, a group that is not known, a coordinate that is no number.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path, remedy="check the file") from error
    # Entities could blow a small file up; ASAP declares none.
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise InputError("declares a document type, as no file of ASAP does", where=path, remedy="export it again")
    try:
        document = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(f"the outlines are damaged ({error})", where=path, remedy="copy the file again") from error
    if document.find(".//Annotations") is None and document.tag != "Annotations":
        raise InputError("holds no element Annotations", where=path, remedy="give the XML file that ASAP wrote")
    found: dict[str, list[NDArray[np.float64]]] = {"tumour": [], "normal": []}
    for number, annotation in enumerate(document.iter("Annotation"), start=1):
        group = annotation.get("PartOfGroup", "")
        if group in IGNORED_GROUPS:
            continue
        if group not in (*TUMOUR_GROUPS, *NORMAL_GROUPS):
            raise InputError(
                f"annotation {number} is of the group {group!r}",
                where=path,
                remedy="name the groups metastases (tumour), normal (holes) or None",
            )
        corners = _corners(path, number, annotation)
        if len(corners) >= 3:
            found["tumour" if group in TUMOUR_GROUPS else "normal"].append(corners)
    return Outlines(tuple(found["tumour"]), tuple(found["normal"]))


def _corners(path: Path, number: int, annotation: ElementTree.Element) -> NDArray[np.float64]:
    """(corners, 2), in the order of the attribute Order."""
    try:
        numbered = [
            (float(corner.get("Order", place)), float(corner.attrib["X"]), float(corner.attrib["Y"]))
            for place, corner in enumerate(annotation.iter("Coordinate"))
        ]
    except (KeyError, ValueError) as error:
        raise InputError(
            f"annotation {number} has a coordinate without a number ({error})", where=path, remedy="mend it there"
        ) from error
    corners = np.array([(x, y) for _, x, y in sorted(numbered, key=lambda corner: corner[0])]).reshape(-1, 2)
    if not np.isfinite(corners).all():
        raise InputError(f"annotation {number} has a coordinate that is no number", where=path, remedy="mend it there")
    return corners


def _folder(root: Path) -> Path:
    if not root.is_dir():
        raise InputError("the folder of CAMELYON17 is missing", where=root, remedy=f"check the path; {ORIGIN}")
    for folder in (root, root / "CAMELYON17"):
        if _files(folder, _SLIDES, ".tif"):
            return folder
    raise InputError(
        "this is not the folder of CAMELYON17 (no images/patient_PPP_node_N.tif)",
        where=root,
        remedy=f"give the folder that holds images/ and annotations/; {ORIGIN}",
    )


def _files(folder: Path, places: Sequence[str], ending: str) -> dict[str, Path]:
    """Name of the slide -> file.

    Raises:
        InputError: a slide is in two places.
    """
    found: dict[str, Path] = {}
    for place in places:
        for path in sorted(folder.glob(f"{place}/patient_*{ending}" if place else f"patient_*{ending}")):
            if not _NAME.fullmatch(path.stem) or found.get(path.stem) == path:
                continue
            if path.stem in found:
                raise InputError(
                    f"{path.stem} is there twice, also as {found[path.stem]}", where=path, remedy="remove one of them"
                )
            found[path.stem] = path
    return found


def _find(folder: Path, places: Sequence[str], name: str) -> Path | None:
    return next((folder / place / name for place in places if (folder / place / name).is_file()), None)


def _numbers(name: str) -> tuple[int, int]:
    match = _NAME.fullmatch(name)
    assert match is not None
    return int(match[1]), int(match[2])


def _stages(folder: Path) -> Mapping[str, str]:
    """Name of the slide's file -> its stage; the rows of patients (their pN-stage) are there too and do no harm."""
    table = next((folder / name for name in _STAGES if (folder / name).is_file()), None)
    return {} if table is None else {row["patient"]: row["stage"] for _, row in read_rows(table, ("patient", "stage"))}
