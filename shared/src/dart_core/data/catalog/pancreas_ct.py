"""TCIA Pancreas-CT: 80 abdominal CTs as DICOM series, 43 of them with the multi-organ labels of Gibson et al.

Roth H. et al., "Data from Pancreas-CT", The Cancer Imaging Archive 2016, doi:10.7937/K9/TCIA.2016.tNB1kqBU.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from dart_core.data.catalog import multi_organ
from dart_core.data.catalog._pictures import check_root
from dart_core.data.datalist import Datalist, Row
from dart_core.errors import InputError

SITE = "TCIA"
COUNT = 43
"""Scans with multi-organ labels."""
Z_DIVISOR = "3"
"""Slices are about 1 mm apart: catenorm keeps a third of them."""

ORIGIN = (
    "the scans are at https://doi.org/10.7937/K9/TCIA.2016.tNB1kqBU (CC BY 3.0), the folder manifest-.../Pancreas-CT; cite Roth et"
    " al. 2016"
)

_PATIENT = re.compile(r"PANCREAS_(\d{4})", re.IGNORECASE)


def index(root: str | os.PathLike[str], labels: str | os.PathLike[str] | None = None) -> Datalist:
    """List the scans that have multi-organ labels, by number.

    Layout: PANCREAS_0001/<study>/<series>/1-001.dcm, ..., at any depth below `root`, as the archive's program stores them.

    Args:
        root: the folder.
        labels: folder with label0001.nii.gz, ...; None: one below `root` named like label_tcia_multiorgan.

    Returns:
        rows with image (the folder of the series), mask, subject (PANCREAS_0001), site TCIA and the columns annotation (see
        `multi_organ.read_codes`) and z_divisor; no split.

    Raises:
        InputError: another folder, a patient with several series, or no label file.
    """
    folder = Path(root)
    series = _series(folder)
    places = [Path(labels)] if labels is not None else multi_organ.label_folders(folder, "tcia")
    masks = multi_organ.label_files(places)
    numbers = [number for number in sorted(series) if number in masks]
    if not numbers:
        raise InputError(
            "none of its scans has a multi-organ label file",
            where=folder,
            remedy=f"unpack label_tcia_multiorgan below this folder; {multi_organ.ORIGIN}",
        )
    columns = {"annotation": multi_organ.ANNOTATION, "z_divisor": Z_DIVISOR}
    rows = [
        Row(series[n], masks[n], subject=f"PANCREAS_{n:04d}", site=SITE, labels=dict(columns), source=folder)
        for n in numbers
    ]
    return Datalist(tuple(rows), folder)


def report_missing(root: str | os.PathLike[str], labels: str | os.PathLike[str] | None = None) -> list[str]:
    """Say how many of the 43 labelled scans are there, and where they come from; empty when all are.

    Raises:
        InputError: another folder, or a patient with several series.
    """
    folder = Path(root)
    series = _series(folder)
    masks = multi_organ.label_files([Path(labels)] if labels is not None else multi_organ.label_folders(folder, "tcia"))
    there = len(series.keys() & masks.keys())
    if there >= COUNT:
        return []
    return [
        f"{there} of {COUNT} scans with multi-organ labels are there ({len(series)} scans, {len(masks)} label files)",
        f"Pancreas-CT: {ORIGIN}; {multi_organ.ORIGIN}",
    ]


def _series(root: Path) -> dict[int, Path]:
    """Number of a patient -> the one folder with DICOM files."""
    check_root(root, "Pancreas-CT", ORIGIN)
    found: dict[int, Path] = {}
    for place, folders, files in os.walk(root):
        folders.sort()
        match = next((m for part in Path(place).relative_to(root).parts if (m := _PATIENT.fullmatch(part))), None)
        if match is None or not any(name.lower().endswith(".dcm") for name in files):
            continue
        number, path = int(match[1]), Path(place)
        if number in found:
            raise InputError(
                f"PANCREAS_{number:04d} has several series, also {found[number]}",
                where=path,
                remedy="remove one of the two",
            )
        found[number] = path
    if not found:
        raise InputError(
            "this is not the folder of Pancreas-CT (no PANCREAS_0001 with DICOM files)",
            where=root,
            remedy=f"give the folder that holds PANCREAS_0001; {ORIGIN}",
        )
    return found
