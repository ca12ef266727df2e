"""LIDC-IDRI: 1,018 CTs of the chest of 1,010 people, with the outlines that four radiologists drew of each nodule.

Armato S. G. et al., "The Lung Image Database Consortium (LIDC) and Image Database Resource Initiative (IDRI): a completed
reference database of lung nodules on CT scans", Medical Physics 38:915-931, 2011, doi:10.1118/1.3528204.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from dart_core.data.catalog._pictures import check_root
from dart_core.data.datalist import Datalist, Row
from dart_core.errors import InputError, SettingError

if TYPE_CHECKING:
    from dart_core.data.volumes import Volume

COUNT = 1018
"""CT series."""

READERS = 4

ORIGIN = (
    "The Cancer Imaging Archive gives it under CC BY 3.0 at https://www.cancerimagingarchive.net/collection/lidc-idri/ (images,"
    " and LIDC-XML-only.zip); cite Armato et al., Medical Physics 38:915-931, 2011"
)

_PATIENT = re.compile(r"LIDC-IDRI-\d{4}")
_SERIES = re.compile(r"<SeriesInstanceUid>\s*([\d.]+)\s*</SeriesInstanceUid>", re.IGNORECASE)
_TAGS = ("0008|0060", "0020|000e")


@dataclass(frozen=True, eq=False)
class Outline:
    """A closed line that one radiologist drew in one slice."""

    reader: int
    """Which of the radiologists, from 0; numbers of different scans have nothing to do with each other."""
    nodule: str
    """The reader's own name of the nodule."""
    height: float
    """Position of the slice in mm (the third number of DICOM's ImagePositionPatient)."""
    points: NDArray[np.int64]
    """(n, 2) column and row of pixels just outside the nodule; a single one marks a nodule below 3 mm."""
    inside: bool
    """Whether it encloses nodule; else a hole in one."""


def index(root: str | os.PathLike[str]) -> Datalist:
    """List the CT series that are there, by patient.

    Layouts: LIDC-IDRI-0001/<study>/<series>/*.dcm with the outlines (XML) beside the slices, or in another folder below
    `root`, such as tcia-lidc-xml/. Of each series one header is read. Radiographs, which some patients have too, are left out.

    Args:
        root: the folder LIDC-IDRI, or one that holds it and the outlines.

    Returns:
        rows with image (the folder of a series, see `dart_core.data.volumes.read_volume`), mask (its outlines, XML, see
        `read_outlines`; None where there are none), subject (LIDC-IDRI-0001), site "lidc-idri" and labels: series; no splits.

    Raises:
        InputError: another folder, no CT.
    """
    from dart_core.data.itk_volumes import series_tags

    folder = Path(root)
    found = _folders(folder)
    outlines = _outline_files(folder)
    rows = []
    for series_folder, patient in found:
        modality, series = series_tags(series_folder, _TAGS)
        if modality == "CT":
            mask = outlines.get(series)
            rows.append(
                Row(series_folder, mask, subject=patient, site="lidc-idri", labels={"series": series}, source=folder)
            )
    if not rows:
        raise InputError("none of its series is a CT", where=folder, remedy=ORIGIN)
    return Datalist(tuple(rows), folder)


def report_missing(root: str | os.PathLike[str]) -> list[str]:
    """Say how many of the 1,018 CTs, and of their outlines, are missing; empty when all are there.

    Raises:
        InputError: as `index`.
    """
    rows = index(root)
    lines = []
    if len(rows) < COUNT:
        lines.append(f"{COUNT - len(rows)} of {COUNT} CTs are missing")
    without = [row.subject for row in rows if row.mask is None]
    if without:
        lines.append(f"the outlines (XML) of {len(without)} CTs are missing, the first is that of {without[0]}")
    return [*lines, f"LIDC-IDRI: {ORIGIN}"] if lines else []


def read_outlines(path: str | os.PathLike[str]) -> tuple[Outline, ...]:
    """Read the outlines of one CT, reader by reader.

    Raises:
        InputError: not XML, another kind of XML, a document type declaration, or a number that is none.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path, remedy="check the file") from error
    # Entities could blow a small file up; the owners declare none.
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise InputError("declares a document type, as no file of LIDC-IDRI does", where=path, remedy="copy it again")
    try:
        document = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(f"the outlines are damaged ({error})", where=path, remedy="copy the file again") from error
    if not document.tag.endswith("LidcReadMessage"):
        raise InputError(
            "holds no readings of a CT (LidcReadMessage)", where=path, remedy="give the XML file that belongs to a CT"
        )
    return tuple(_outlines(path, document))


def nodule_mask(outlines: Sequence[Outline], volume: Volume, readers: int = 2) -> NDArray[np.bool_]:
    """Where at least some of the radiologists saw a nodule of 3 mm or more.

    Args:
        outlines: of `read_outlines`.
        volume: the CT, in whatever orientation.
        readers: how many of the four must agree on a voxel: 1 is the union, 2 (half of them) the usual choice.

    Returns:
        bool, of the shape of `volume.array`.

    Raises:
        InputError: an outline outside the CT.
        SettingError: another number of readers.
    """
    import nibabel
    from PIL import Image, ImageDraw

    if readers not in range(1, READERS + 1):
        raise SettingError(f"{readers} readers", remedy=f"give 1 to {READERS}")
    orientations: Any = nibabel.orientations
    # Outlines count columns, rows and slices as DICOM does: to the left, to the back, to the top.
    back = orientations.ornt_transform(
        orientations.axcodes2ornt(tuple("LPS")), orientations.axcodes2ornt(tuple(volume.orientation))
    )
    forth = orientations.ornt_transform(
        orientations.axcodes2ornt(tuple(volume.orientation)), orientations.axcodes2ornt(tuple("LPS"))
    )
    affine = volume.affine @ orientations.inv_ornt_aff(forth, volume.array.shape)
    shape = tuple(volume.array.shape[int(axis)] for axis in np.argsort(forth[:, 0]))
    votes = np.zeros(shape, dtype=np.uint8)
    for reader in sorted({outline.reader for outline in outlines}):
        # Holes are cut after everything that encloses them is filled.
        own = [outline for outline in outlines if outline.reader == reader and len(outline.points) > 2]
        seen = np.zeros(shape, dtype=bool)
        for outline in sorted(own, key=lambda outline: not outline.inside):
            place = (outline.height - affine[2, 3]) / affine[2, 2]
            k = round(place)
            low, high = outline.points.min(0), outline.points.max(0)
            if abs(place - k) > 0.4 or not 0 <= k < shape[2] or low.min() < 0 or (high >= shape[:2]).any():
                raise InputError(
                    f"the outline of {outline.nodule} at {outline.height:g} mm does not lie in a slice of the scan",
                    where=volume.path,
                    remedy="give the outlines of this CT",
                )
            picture = Image.new("1", shape[:2])
            corners = [(int(x), int(y)) for x, y in outline.points]
            # The line itself is outside what it encloses.
            ImageDraw.Draw(picture).polygon(corners, fill=1, outline=0)
            enclosed = np.array(picture).T
            seen[:, :, k] = seen[:, :, k] | enclosed if outline.inside else seen[:, :, k] & ~enclosed
        votes += seen
    return np.asarray(orientations.apply_orientation(votes >= readers, back), dtype=np.bool_)


def _folders(root: Path) -> list[tuple[Path, str]]:
    """Folders that hold slices, and the patient of each."""
    check_root(root, "LIDC-IDRI", ORIGIN)
    found = []
    for place, folders, names in os.walk(root):
        folders.sort()
        patient = next((part for part in reversed(Path(place).parts) if _PATIENT.fullmatch(part)), None)
        if patient is not None and any(name.lower().endswith(".dcm") for name in names):
            found.append((Path(place), patient))
    if not found:
        raise InputError(
            "this is not the folder of LIDC-IDRI (no LIDC-IDRI-0001/.../*.dcm)",
            where=root,
            remedy=f"give the folder that holds LIDC-IDRI-0001; {ORIGIN}",
        )
    return found


def _outline_files(root: Path) -> dict[str, Path]:
    """Series -> XML file."""
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*.xml")):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                match = _SERIES.search(file.read(8192))
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})", where=path, remedy="check the file") from error
        if match is not None:
            found.setdefault(match[1], path)
    return found


def _outlines(path: Path, document: ElementTree.Element) -> Iterator[Outline]:
    for reader, session in enumerate(document.iter(_name(document, "readingSession"))):
        for nodule in session.iter(_name(document, "unblindedReadNodule")):
            name = (nodule.findtext(_name(document, "noduleID")) or "").strip()
            for roi in nodule.iter(_name(document, "roi")):
                try:
                    height = float(roi.findtext(_name(document, "imageZposition")) or "")
                    points = [
                        [int(edge.findtext(_name(document, axis)) or "") for axis in ("xCoord", "yCoord")]
                        for edge in roi.iter(_name(document, "edgeMap"))
                    ]
                except ValueError as error:
                    raise InputError(
                        f"an outline of {name or 'a nodule'} has a coordinate that is no number ({error})",
                        where=path,
                        remedy="copy the file again",
                    ) from error
                inside = (roi.findtext(_name(document, "inclusion")) or "TRUE").strip().upper() != "FALSE"
                yield Outline(reader, name, height, np.array(points, dtype=np.int64).reshape(-1, 2), inside)


def _name(document: ElementTree.Element, tag: str) -> str:
    """The tag in the namespace of the document."""
    return document.tag.removesuffix("LidcReadMessage") + tag
