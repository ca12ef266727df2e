"""BraTS 2018: MR of 285 people with brain tumours, four contrasts each, with outlines.

Menze B. H. et al., "The multimodal brain tumor image segmentation benchmark (BRATS)", IEEE Transactions on Medical Imaging
34:1993-2024, 2015, doi:10.1109/TMI.2014.2377694; Bakas S. et al., arXiv:1811.02629, 2018.
"""

from __future__ import annotations

import os
from pathlib import Path

from dart_core.data.catalog._pictures import check_root
from dart_core.data.catalog._splits import Lists, draw_splits, read_lists
from dart_core.data.datalist import Datalist, Row
from dart_core.errors import InputError, SettingError

MODALITIES = ("flair", "t1", "t1ce", "t2")
COUNTS = {"HGG": 210, "LGG": 75}
"""People with a high-grade and with a low-grade glioma."""

TEST_SHARE, VAL_SHARE = 1 / 3, 1 / 12
"""One of three folds is for test, an eighth of the others for validation (united-ssl 5)."""

ORIGIN = (
    "registered users get it (MICCAI_BraTS_2018_Data_Training.zip), for research that is not commercial, at"
    " https://www.med.upenn.edu/sbia/brats2018/registration.html; cite Menze et al., IEEE TMI 34:1993-2024, 2015, and Bakas et"
    " al., arXiv:1811.02629, 2018"
)

_FOLDERS = ("", "MICCAI_BraTS_2018_Data_Training")
_ENDINGS = (".nii.gz", ".nii")


def index(root: str | os.PathLike[str], modality: str = "flair", lists: Lists | None = None, seed: int = 0) -> Datalist:
    """List the scans that are there, by grade and name.

    Layout: HGG/Brats18_*/Brats18_*_flair.nii.gz and _seg.nii.gz, and LGG/ likewise. A mask holds 1 (core without contrast), 2
    (oedema) and 4 (core with contrast): whatever is above 0 is the whole tumour.

    Args:
        root: the folder that holds HGG and LGG, or MICCAI_BraTS_2018_Data_Training.
        modality: one of MODALITIES.
        lists: authors' lists, if you have them: split -> text file. Scans in none of them are left out. None: a third of each
            grade is for test and an eighth of the rest for validation, drawn with `seed`.
        seed: of that draw.

    Returns:
        rows with image, mask, subject (Brats18_...), site "brats2018", split and labels: grade (HGG or LGG).

    Raises:
        InputError: another folder, a scan or outline that is missing, lists that name none.
        SettingError: another modality.
    """
    if modality not in MODALITIES:
        raise SettingError(f"BraTS has no modality {modality!r}", remedy=f"choose from {', '.join(MODALITIES)}")
    folder = _folder(Path(root))
    cases = _cases(folder)
    if lists is None:
        split_of = draw_splits({name: case.parent.name for name, case in cases.items()}, TEST_SHARE, VAL_SHARE, seed)
    else:
        split_of = read_lists(lists)
    rows = []
    for name, case in cases.items():
        if name not in split_of:
            continue
        files = [_find(case, part) for part in (modality, "seg")]
        for part, file in zip((modality, "seg"), files, strict=True):
            if file is None:
                raise InputError(
                    f"{name}_{part}.nii.gz is missing", where=case, remedy="add it or move the folder away"
                )
        image, mask = files
        assert image is not None
        labels = {"grade": case.parent.name}
        rows.append(
            Row(image, mask, subject=name, site="brats2018", split=split_of[name], labels=labels, source=folder)
        )
    if not rows:
        raise InputError("none of its scans is in the lists", where=folder, remedy="give lists of this data set")
    return Datalist(tuple(rows), folder)


def report_missing(root: str | os.PathLike[str]) -> list[str]:
    """Say how many people of each grade, and which of their files, are missing; empty when all are there.

    Raises:
        InputError: another folder.
    """
    folder = _folder(Path(root))
    cases = _cases(folder)
    lines = []
    for grade, count in COUNTS.items():
        there = sum(case.parent.name == grade for case in cases.values())
        if there < count:
            lines.append(f"{grade}: {count - there} of {count} people are missing")
    absent = [
        f"{name}_{part}.nii.gz"
        for name, case in cases.items()
        for part in (*MODALITIES, "seg")
        if not _find(case, part)
    ]
    if absent:
        lines.append(f"{len(absent)} files are missing, the first is {absent[0]}")
    return [*lines, f"BraTS 2018: {ORIGIN}"] if lines else []


def _folder(root: Path) -> Path:
    check_root(root, "BraTS 2018", ORIGIN)
    for name in _FOLDERS:
        if any((root / name / grade).is_dir() for grade in COUNTS):
            return root / name
    raise InputError(
        "this is not the folder of BraTS 2018 (neither HGG nor LGG)",
        where=root,
        remedy=f"give the folder that holds them; {ORIGIN}",
    )


def _cases(folder: Path) -> dict[str, Path]:
    found = {
        case.name: case for grade in COUNTS for case in sorted((folder / grade).glob("Brats18_*")) if case.is_dir()
    }
    if not found:
        raise InputError("HGG and LGG hold no folder Brats18_*", where=folder, remedy=f"unpack the archive; {ORIGIN}")
    return found


def _find(case: Path, part: str) -> Path | None:
    names = (case / f"{case.name}_{part}{ending}" for ending in _ENDINGS)
    return next((path for path in names if path.is_file()), None)
